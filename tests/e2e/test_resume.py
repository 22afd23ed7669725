"""Killed anywhere, the same command goes on and ends with the same records; workers change nothing but the time.

The command, ended by SIGKILL at three stages of one study and by Ctrl-C at a fourth, against a run that nobody
disturbed, which has two workers where the killed one has one. The first two that are ended are the installed command,
whose workers are spawned; the others are forked (see `warm.py`).
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import psutil
import pytest
from conftest import COMMAND_ENV as ENV
from conftest import finish, run_command
from warm import Warm

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


def kill_forked_when(warm: Warm, words: list[str], folder: Path, reached: Callable[[], bool]) -> None:
    """The same of a command forked from `warm`, by SIGKILL."""
    running, limit = warm.start(words[1:], folder), time.monotonic() + 600
    while not reached():
        assert running.wait(0.001) is None, f"ended before the stage was seen: {running.stderr.read_text()[-2000:]}"
        assert time.monotonic() < limit
    workers = psutil.Process(running.pid).children(recursive=True)
    assert running.kill(group=False) == -signal.SIGKILL
    assert workers
    limit = time.monotonic() + 60
    while not all(map(has_ended, workers)):
        assert time.monotonic() < limit
        time.sleep(0.05)


def has_ended(process: psutil.Process) -> bool:
    """Whether a process is gone, or waits for nothing but somebody to ask how it ended."""
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


@pytest.fixture(scope="module")
def whole(finished: Path) -> Path:
    return finished


@pytest.fixture(scope="module")
def killed(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """One study killed in SFT, in alignment past a saved state and in measurement, and stopped by hand in a judge."""
    folder = tmp_path_factory.mktemp("killed")
    partial, words = folder / "store" / "partial", run_command(folder, workers=1, save_seconds=0.01)
    stages = ("sft-*/state-*", "judge-*/state-*", "align-*/state-*", "measure-*/measured-*.json")
    seen = [lambda stage=stage: any(partial.glob(stage)) for stage in stages]  # type: ignore[misc]
    kill_when(words, folder, seen[0])
    kill_when(words, folder, seen[1], signal.SIGINT)
    for reached in seen[2:]:
        assert not (folder / "out" / "records.parquet").exists()
        kill_forked_when(warm, words, folder, reached)
    assert not (folder / "out" / "records.parquet").exists()
    said = finish(words, folder, warm)
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


def test_a_finished_study_is_only_reported_again(warm: Warm, whole: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in (whole / "store").rglob("*") if "partial" not in p.parts}
    said = finish(run_command(whole, workers=1), whole, warm)
    assert "made" not in said
    assert before == {p: p.stat().st_mtime_ns for p in (whole / "store").rglob("*") if "partial" not in p.parts}
