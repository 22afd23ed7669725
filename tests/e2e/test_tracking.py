"""`--track`: every step and every measurement can be read back, and nothing else changes by it."""

from __future__ import annotations

import json
import multiprocessing
import os
import sqlite3
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import TINY_STUDY, complaint, finish, run_command
from warm import Warm

from aligngap.cli import main
from aligngap.execute.worker import WorkerSettings
from aligngap.storage.tracking import TRACKERS, Track, Tracking

RUNS = tuple(f"{arm} beta=0.1 learning_rate=0.003 seed=0" for arm in ("online", "offline"))
needs_tensorboard = pytest.mark.skipif(
    find_spec("tensorboard") is None or find_spec("accelerate") is None, reason="needs aligngap[trackers]"
)


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard reads in a run's folder: name -> (step, value)."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder))
    read.Reload()
    return {name: [(e.step, e.value) for e in read.Scalars(name)] for name in read.Tags()["scalars"]}


def arm(folder: Path, run: str) -> tuple[Path, pd.DataFrame]:
    """A run's folder for TensorBoard, and the log in its artifact."""
    about = json.loads((folder / "out" / "provenance.json").read_text())["runs"][run]
    return folder / "out" / "tracking" / run, pd.read_parquet(folder / "store" / about["align"] / "log.parquet")


@pytest.fixture(scope="module")
def tracked(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny study, tracked."""
    folder = tmp_path_factory.mktemp("tracked")
    finish([*run_command(folder, workers=2), "--track", "tensorboard"], folder, warm)
    return folder


def test_what_a_spawned_worker_is_to_track_arrives_there(tmp_path: Path) -> None:
    tracking = Tracking(("tensorboard",), tmp_path, "p", {"align-1": "online seed=0"})
    settings = WorkerSettings("store", "folder", "cpu", 1, 30.0, tracking)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as spawned:
        assert spawned.submit(replace, settings, device="cuda").result(60) == replace(settings, device="cuda")


@needs_tensorboard
@pytest.mark.parametrize("run", RUNS)
def test_tensorboard_is_told_every_step_once(tracked: Path, run: str) -> None:
    told, log = scalars(arm(tracked, run)[0]), arm(tracked, run)[1]
    assert {"loss", "learning_rate", "grad_norm", "accuracy", "margin"} <= set(told)
    for name, values in told.items():
        known = log.set_index("step")[name].dropna()  # what is not known is not told
        assert [step for step, _ in values] == list(known.index)
        assert [value for _, value in values] == pytest.approx(known.tolist(), rel=1e-6)


@needs_tensorboard
@pytest.mark.parametrize("run", RUNS)
def test_tensorboard_is_told_every_measurement(tracked: Path, run: str) -> None:
    records = pd.read_parquet(tracked / "out" / "records.parquet")
    mine = records[(records.run == run) & (records.step > 0)]
    told = scalars(tracked / "out" / "tracking" / f"measure {run}")
    for opponent in ("sft", "chosen"):
        rows = mine[mine.opponent == opponent].sort_values("step")
        for name, tag in (("kl_nats", "kl_nats"), ("win_rate", f"win_rate/{opponent}")):
            assert [step for step, _ in told[tag]] == rows.step.tolist() == [4, 8]
            assert [value for _, value in told[tag]] == pytest.approx(rows[name].tolist(), rel=1e-6)


@needs_tensorboard
def test_steps_trained_again_after_a_kill_are_shown_once(tmp_path: Path) -> None:
    tracking = Tracking(("tensorboard",), tmp_path, "p", {"align-1": "online/seed=0"})
    tracking.of("align-1").close()  # a step that tells nothing opens nothing
    assert not list(tmp_path.iterdir())
    for steps in (range(1, 6), range(4, 9)):  # killed after step 5, saved at step 3
        track = tracking.of("align-1")
        for step in steps:
            track({"loss": 1.0 / step}, step)
        track.close()
    told = scalars(tmp_path / "online-seed=0")
    assert told == {"loss": [(step, pytest.approx(1.0 / step)) for step in range(1, 9)]}


@pytest.mark.skipif(find_spec("trackio") is None, reason="needs aligngap[trackers]")
def test_trackio_keeps_every_step_on_this_machine(tmp_path: Path) -> None:
    """In a process of its own, which trackio's settings and its writing thread need; no hub can be reached."""
    code = (
        "from aligngap.storage.tracking import Tracking, check_trackers\n"
        "track = Tracking(check_trackers(['trackio']), project='p', runs={'align-1': 'online/seed=0'}).of('align-1')\n"
        "[track({'loss': 1.0 / step}, step) for step in range(1, 6)]\n"
        "track.close()\n"
    )
    own = os.environ | {"TRACKIO_DIR": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, env=own, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "told no more" not in done.stderr
    with closing(sqlite3.connect(tmp_path / "p.db")) as kept:
        rows = kept.execute("select run_name, step, metrics from metrics order by step").fetchall()
    assert [(run, step) for run, step, _ in rows] == [("online-seed=0", step) for step in range(1, 6)]
    assert [json.loads(values)["loss"] for *_, values in rows] == [1.0 / step for step in range(1, 6)]


@needs_tensorboard
def test_tracking_changes_no_byte(finished: Path, tracked: Path) -> None:
    kept = [p for pattern in ("*.safetensors", "*.parquet") for p in (finished / "store").rglob(pattern)]
    kept = [p for p in kept if "partial" not in p.parts]
    assert any(p.suffix == ".safetensors" for p in kept)
    for file in [*kept, *(finished / "out").glob("*.parquet")]:
        assert file.read_bytes() == (tracked / file.relative_to(finished)).read_bytes(), file


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["tensorbord"], ("--track tensorbord: no such tracker", *TRACKERS)),
        (["wandb"], ("--track wandb: wandb not installed", "pip install 'aligngap[trackers]' wandb")),
        (["tensorboard,trackio"], ("--track trackio: trackio not installed",)),
    ],
)
def test_a_tracker_that_cannot_be_used_costs_one_line(
    words: list[str], told: tuple[str, ...], tmp_path: Path, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    absent = ("wandb", "trackio")
    monkeypatch.setattr("aligngap.storage.tracking.find_spec", lambda name: None if name in absent else object())
    (tmp_path / "tiny.yaml").write_text(TINY_STUDY)
    assert main(["run", "tiny.yaml", "--out", "out", "--track", *words]) == 2
    line = complaint(capfd.readouterr().err)
    for what in told:
        assert what in line
    assert [p.name for p in tmp_path.iterdir()] == ["tiny.yaml"]


def test_a_tracker_that_fails_is_dropped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []

    class Full:
        def log(self, values: dict[str, float], step: int) -> None:
            told.append((values, step))
            raise OSError("no space left")

        def finish(self) -> None:
            told.append("finished")

    monkeypatch.setattr(Track, "_opened", lambda self, name, first: Full())
    track = Tracking(("tensorboard",), tmp_path, "p", {"align-1": "online seed=0"}).of("align-1")
    track({"step": 1, "loss": 0.5, "margin": float("nan"), "outcome": "ok"}, 1)
    track({"loss": 0.25}, 2)
    track.close()
    assert told == [({"loss": 0.5}, 1), "finished"]
    assert capsys.readouterr().err == "aligngap: online seed=0: tensorboard is told no more: no space left\n"
