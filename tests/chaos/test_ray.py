"""A study on a real Ray cluster of this machine: the same bytes as local processes, also where workers are killed.

The last test kills the cluster's head too: see `many.py`, of which it is a small run.
"""

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
from many import play
from ray_cluster import Head, ray_command
from warm import Warm

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A cluster of two cores."""
    started = Head(tmp_path_factory.mktemp("ray"))
    try:
        yield started
    finally:
        started.stop()


@pytest.fixture(scope="module")
def killed(head: Head, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[int], str]:
    """The tiny study on the cluster; the worker is killed in mid-SFT and in mid-alignment, past a saved state."""
    folder = tmp_path_factory.mktemp("killed")
    words, kills = ray_command(folder, save_seconds=0.01), list[int]()
    env = {**COMMAND_ENV, **head.env}
    with subprocess.Popen(
        words, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
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


def test_a_finished_study_is_only_reported_again(warm: Warm, head: Head, killed: tuple[Path, list[int], str]) -> None:
    code, _, said = warm.run(ray_command(killed[0])[1:], killed[0], env=head.env)
    assert code == 0, said[-2000:]
    assert "made" not in said


def refused(warm: Warm, folder: Path, env: dict[str, str], *more: str) -> str:
    code, _, said = warm.run(ray_command(folder, *more)[1:], folder, env=env)
    assert code == 2, said[-2000:]
    assert "Traceback" not in said
    line = said.strip().splitlines()[-1]
    assert line.startswith("aligngap: ")
    return line


def test_more_gpus_than_exist_is_one_line(warm: Warm, head: Head, tmp_path: Path) -> None:
    assert "--gpus 2: no node of the Ray cluster has more than 0" in refused(warm, tmp_path, head.env, "--gpus", "2")


def test_no_cluster_is_one_line(warm: Warm, tmp_path: Path) -> None:
    line = refused(warm, tmp_path, {"RAY_ADDRESS": "127.0.0.1:9"})
    assert "no Ray cluster at 127.0.0.1:9" in line
    assert "ray start --head" in line


@pytest.mark.slow
def test_killed_workers_and_a_killed_head_cost_nothing_that_was_finished(
    warm: Warm, head: Head, tmp_path: Path
) -> None:
    told = play(warm, head, tmp_path, runs=8, kills=2, heads=1, seed=3)
    assert dict(told.killed) == {"worker": 2, "head": 1}
    assert told.commands == 2
    assert len(told.seen) > 8
