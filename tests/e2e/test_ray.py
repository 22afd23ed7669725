"""A study on a real Ray cluster of this machine: the same bytes as local processes, also where workers are killed."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import psutil
import pytest
from conftest import COMMAND_ENV, holder_of
from ray_cluster import Head, ray_command

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a command that finds a cluster of two cores."""
    head = Head(tmp_path_factory.mktemp("ray"))
    try:
        yield head.env
    finally:
        head.stop()


@pytest.fixture(scope="module")
def killed(cluster: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[int], str]:
    """The tiny study on the cluster; the worker is killed in mid-SFT and in mid-alignment, past a saved state."""
    folder = tmp_path_factory.mktemp("killed")
    words, kills = ray_command(folder, save_seconds=0.01), list[int]()
    with subprocess.Popen(
        words, cwd=folder, env=cluster, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as command:
        limit = time.monotonic() + 300
        for stage in ("sft-*/state-*", "align-*/state-*"):
            while True:
                assert command.poll() is None, command.communicate()[1][-3000:]
                assert time.monotonic() < limit
                found = next(iter((folder / "store" / "partial").glob(stage)), None)
                worker = holder_of(found.parent) if found else None
                if worker is not None:
                    worker.send_signal(signal.SIGKILL)
                    kills.append(worker.pid)
                    break
                time.sleep(0.001)
        said = command.communicate(timeout=300)[1]
        assert command.returncode == 0, said[-3000:]
    return folder, kills, said


def test_workers_were_killed_and_the_command_went_on(killed: tuple[Path, list[int], str]) -> None:
    assert len(set(killed[1])) == 2
    assert not any(psutil.pid_exists(pid) for pid in killed[1])
    assert "Traceback" not in killed[2]


@pytest.mark.parametrize("table", ["records", "per_prompt", "samples"])
def test_killed_workers_change_no_record(finished: Path, killed: tuple[Path, list[int], str], table: str) -> None:
    left, right = (pd.read_parquet(f / "out" / f"{table}.parquet") for f in (finished, killed[0]))
    assert len(left) > 0
    pd.testing.assert_frame_equal(left, right, check_exact=True)


def test_the_weights_are_those_of_local_processes(finished: Path, killed: tuple[Path, list[int], str]) -> None:
    files = list((finished / "store").rglob("*.safetensors"))
    assert files
    for file in files:
        assert file.read_bytes() == (killed[0] / file.relative_to(finished)).read_bytes(), file


def test_a_finished_study_is_only_reported_again(cluster: dict[str, str], killed: tuple[Path, list[int], str]) -> None:
    done = subprocess.run(
        ray_command(killed[0]), cwd=killed[0], env=cluster, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "made" not in done.stderr


def refused(folder: Path, env: dict[str, str], *more: str) -> str:
    done = subprocess.run(ray_command(folder, *more), cwd=folder, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("aligngap: ")
    return line


def test_more_gpus_than_exist_is_one_line(cluster: dict[str, str], tmp_path: Path) -> None:
    assert "--gpus 2: no node of the Ray cluster has more than 0" in refused(tmp_path, cluster, "--gpus", "2")


def test_no_cluster_is_one_line(tmp_path: Path) -> None:
    line = refused(tmp_path, {**COMMAND_ENV, "RAY_ADDRESS": "127.0.0.1:9"})
    assert "no Ray cluster at 127.0.0.1:9" in line
    assert "ray start --head" in line
