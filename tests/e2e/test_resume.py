"""Killed anywhere, the same command goes on and ends with the same records; workers change nothing but the time.

The real command as a subprocess, ended by SIGKILL at four stages of one study, against a run that nobody disturbed,
which has two workers where the killed one has one.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from conftest import COMMAND_ENV as ENV
from conftest import finish, run_command

TABLES = ("records", "per_prompt", "samples")


def kill_when(
    words: list[str], folder: Path, reached: Callable[[], bool], how: signal.Signals = signal.SIGKILL
) -> None:
    """Start the command and kill it once `reached`; its workers must end by themselves."""
    with subprocess.Popen(
        words, cwd=folder, env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        limit = time.monotonic() + 600
        while not reached():
            assert process.poll() is None, f"ended before the stage was seen: {process.communicate()[1][-2000:]}"
            assert time.monotonic() < limit
            time.sleep(0.001)
        process.send_signal(how)
        said = process.communicate(timeout=60)[1]
        if how == signal.SIGINT:  # Ctrl-C: one line, no traceback, and the usual exit code
            assert process.returncode == 130
            assert "stopped; go on with the same command" in said
            assert "Traceback" not in said
            assert "Exception ignored" not in said
        else:
            assert process.returncode == -signal.SIGKILL


@pytest.fixture(scope="module")
def whole(finished: Path) -> Path:
    return finished


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """One study killed in SFT, in alignment past a saved state and in measurement, and stopped by hand in a judge."""
    folder = tmp_path_factory.mktemp("killed")
    partial, words = folder / "store" / "partial", run_command(folder, workers=1, save_seconds=0.01)
    stages = ("sft-*/state-*", "judge-*/state-*", "align-*/state-*", "measure-*/measured-*.json")
    for stage in stages:
        how = signal.SIGINT if stage.startswith("judge") else signal.SIGKILL
        kill_when(words, folder, lambda stage=stage: any(partial.glob(stage)), how)  # type: ignore[misc]
        assert not (folder / "out" / "records.parquet").exists()
    said = finish(words, folder)
    return folder, [line for line in said.splitlines() if "made" in line]


@pytest.mark.parametrize("table", TABLES)
def test_a_killed_study_ends_with_the_same_records(whole: Path, killed: tuple[Path, list[str]], table: str) -> None:
    left, right = (pd.read_parquet(f / "out" / f"{table}.parquet") for f in (whole, killed[0]))
    assert len(left) > 0
    pd.testing.assert_frame_equal(left, right, check_exact=True)


def test_artifacts_have_the_same_names_and_leave_no_work_behind(whole: Path, killed: tuple[Path, list[str]]) -> None:
    """Keys do not depend on the folder, the worker count or the kills; nothing half-made stays."""
    names = [
        {p.name for p in (f / "store").iterdir() if p.is_dir() and p.name != "partial"} for f in (whole, killed[0])
    ]
    assert names[0] == names[1]
    for folder in (whole, killed[0]):
        assert [p for p in (folder / "store" / "partial").iterdir() if p.is_dir()] == []
        for artifact in (folder / "store").iterdir():
            assert artifact.name == "partial" or (artifact / "manifest.json").is_file()
            assert not list(artifact.glob("state-*"))
            assert not list(artifact.glob(".*"))


def test_finished_steps_are_not_made_again(killed: tuple[Path, list[str]]) -> None:
    said = "\n".join(killed[1])
    assert "made: sft seed=0" not in said
    assert "golden judge" not in said
    assert "measure" in said


def test_the_weights_are_the_same(whole: Path, killed: tuple[Path, list[str]]) -> None:
    for file in (whole / "store").rglob("*.safetensors"):
        assert file.read_bytes() == (killed[0] / file.relative_to(whole)).read_bytes(), file


def test_a_finished_study_is_only_reported_again(whole: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in (whole / "store").rglob("*") if "partial" not in p.parts}
    said = finish(run_command(whole, workers=1), whole)
    assert "made" not in said
    assert before == {p: p.stat().st_mtime_ns for p in (whole / "store").rglob("*") if "partial" not in p.parts}
