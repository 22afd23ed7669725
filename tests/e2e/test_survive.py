"""The command on disks that are full, beside another command, stopped by hand, and in another order: same results."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml
from conftest import TINY_STUDY
from warm import Warm

from aligngap.execute.worker import make
from aligngap.pipeline.context import Context
from aligngap.pipeline.plan import expand
from aligngap.storage.listing import Faults, find_faults
from aligngap.storage.store import Store
from aligngap.study.load import validate

WORDS = ["run", "tiny.yaml", "--device", "cpu", "--workers", "1", "--out"]
TABLES = ("records", "per_prompt", "samples")


def small() -> str:
    raw = yaml.safe_load(TINY_STUDY)
    raw["limits"]["response_tokens"] = 6
    raw["task"] |= {"train_pairs": 80, "test_pairs": 20}
    raw["measurement"] |= {"best_of_n": 0, "reference_samples": 0, "prompts": 8, "kl_prompts": 4, "opponents": ["sft"]}
    return yaml.safe_dump(raw)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "study"
    place.mkdir()
    (place / "tiny.yaml").write_text(small())
    return place


@pytest.fixture(scope="module")
def whole(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which two commands ran the same study at once, on one store."""
    place = tmp_path_factory.mktemp("whole") / "study"
    place.mkdir()
    (place / "tiny.yaml").write_text(small())
    both = [warm.start([*WORDS, out, "--store", "store"], place) for out in ("out", "other")]
    made: list[str] = []
    for running in both:
        code, _, said = running.finish()
        assert code == 0, said
        made += [line.partition("made: ")[2].partition(" (")[0] for line in said.splitlines() if "made: " in line]
    assert len(made) == len(set(made)) == len(list((place / "store").glob("*/manifest.json")))  # each by one of them
    return place


def same(left: Path, right: Path) -> None:
    for table in TABLES:
        assert (left / f"{table}.parquet").read_bytes() == (right / f"{table}.parquet").read_bytes()


def test_two_commands_on_one_store_make_everything_once(whole: Path) -> None:
    same(whole / "out", whole / "other")


def test_two_commands_in_one_output_folder(warm: Warm, whole: Path, tmp_path: Path) -> None:
    """Two runs that collect at once, and a page and a table that are made meanwhile: none is torn, none accuses."""
    place = tmp_path / "study"
    shutil.copytree(whole, place)
    (place / "out" / ".said.json").unlink()  # all is there, and every run collects
    again = [*WORDS, "out", "--store", "store"]
    for running in [warm.start(words, place) for words in (again, again, ["report", "out"], ["show", "out"])]:
        code, _, said = running.finish()
        assert code == 0, said
        assert "changed" not in said
        assert "stopped" not in said
        assert "Traceback" not in said
    assert find_faults(place / "out") == Faults()
    same(place / "out", whole / "out")
    page, own = ((folder / "out" / "report.html").read_bytes() for folder in (place, whole))
    assert page == own


@pytest.mark.parametrize("where", ["the store", "an artifact"])
def test_a_store_on_a_symlink_is_held_against_its_checksums(
    warm: Warm, whole: Path, tmp_path: Path, where: str
) -> None:
    place, other = tmp_path / "study", tmp_path / "elsewhere"
    shutil.copytree(whole, place)
    shutil.rmtree(place / "out")
    artifact = next((place / "store").glob("measure-*"))
    moved = place / "store" if where == "the store" else artifact
    shutil.move(moved, other)
    moved.symlink_to(other)
    rows = artifact / "rows.parquet"
    rows.write_bytes(rows.read_bytes()[:-1] + b"\0")
    code, _, said = warm.run([*WORDS, "out"], place)
    assert code == 0, said
    assert "rows.parquet is not what was written" in said
    same(place / "out", whole / "out")


def test_a_study_that_is_moved_while_it_is_stopped_goes_on(warm: Warm, whole: Path, folder: Path) -> None:
    running = warm.start([*WORDS, "out", "--save-seconds", "0.01"], folder)
    limit = time.monotonic() + 120
    while not list((folder / "store" / "partial").glob("*-*/state-*")):
        assert time.monotonic() < limit
        assert running.wait(0) is None
        time.sleep(0.01)
    running.kill()
    moved = folder.with_name("moved")
    shutil.move(folder, moved)
    code, _, said = warm.run([*WORDS, "out"], moved)
    assert code == 0, said
    same(whole / "out", moved / "out")


@pytest.mark.parametrize("file_bytes", [1_500, 9_000, 40_000])
def test_a_disk_that_takes_no_more(warm: Warm, whole: Path, folder: Path, file_bytes: int) -> None:
    """A limit on the size of files stands for a full disk: the first writes that do not fit are in other steps."""
    code, _, trouble = warm.run([*WORDS, "out"], folder, file_bytes=file_bytes)
    assert code == 1, trouble
    assert "Traceback" not in trouble
    complaints = [line for line in trouble.splitlines() if "File too large; free space or fix access" in line]
    assert len(complaints) == 1
    for artifact in (folder / "store").glob("*-*"):  # what was finished is whole
        if artifact.name != "partial":
            for file in artifact.rglob("*.*"):
                if file.name != "manifest.json" and file.is_file():
                    assert file.read_bytes() == (whole / file.relative_to(folder)).read_bytes()
    code, _, trouble = warm.run([*WORDS, "out"], folder)
    assert code == 0, trouble
    same(whole / "out", folder / "out")


def test_a_small_file_system(warm: Warm, folder: Path) -> None:
    """A real ENOSPC, where a file system may be mounted."""
    (folder / "full").mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder / "full")], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("may not mount here")
    try:
        code, _, trouble = warm.run([*WORDS, "out", "--store", "full/store"], folder)
        assert code == 1, trouble
        assert "No space left on device; free space" in trouble
        assert "Traceback" not in trouble
        subprocess.run(["mount", "-o", "remount,size=16m", str(folder / "full")], check=True)
        code, _, trouble = warm.run([*WORDS, "out", "--store", "full/store"], folder)
        assert code == 0, trouble
    finally:
        subprocess.run(["umount", str(folder / "full")], check=True)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_stopped_by_hand_it_saves_and_goes_on(warm: Warm, whole: Path, folder: Path, how: signal.Signals) -> None:
    """No state is due for an hour, and yet none of the steps taken before the stop is taken again."""
    raw = yaml.safe_load((folder / "tiny.yaml").read_text())
    raw["sft"]["steps"] = 4000
    (folder / "tiny.yaml").write_text(yaml.safe_dump(raw))
    words = [*WORDS, "out", "--save-seconds", "3600"]
    running = warm.start(words, folder)
    limit = time.monotonic() + 120
    while not any('"step"' in p.read_text() for p in (folder / "store" / "partial").glob("sft-*.jsonl")):
        assert time.monotonic() < limit
        time.sleep(0.05)
    os.killpg(running.pid, how)  # as a terminal does: to the workers too
    code, _, said = running.finish(60)
    assert code == 130, said
    assert "stopping at the next step" in said
    assert said.splitlines()[-1] == "aligngap: stopped; go on with the same command"
    assert "Traceback" not in said
    (log,) = (folder / "store" / "partial").glob("sft-*.jsonl")
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert [e["event"] for e in events if e["event"] != "step"] == ["started", "saved", "stopped"]
    assert {"step", "loss", "seconds", "time"} <= set(next(e for e in events if e["event"] == "step"))
    saved = events[-2]["step"]
    assert list((folder / "store" / "partial").glob(f"sft-*/state-{saved:08d}"))
    running = warm.start(words, folder)
    while '"resumed"' not in log.read_text():
        assert time.monotonic() < limit + 120
        time.sleep(0.05)
    running.kill()
    resumed = [json.loads(line) for line in log.read_text().splitlines() if '"resumed"' in line]
    assert resumed[0]["step"] == saved


@pytest.mark.parametrize("seed", [0, 1])
def test_the_order_of_execution_changes_nothing(whole: Path, tmp_path: Path, seed: int) -> None:
    """Every artifact is made in this process, in a random order that only keeps needs before what needs them."""
    plan = expand(validate(yaml.safe_load(small()), "small"))
    waiting, rng, ctx = plan.steps(), random.Random(seed), Context(Store(tmp_path / "store"))
    ctx.store.prepare()
    while waiting:
        ready = [s for s in waiting if all(ctx.store.has(n.name) for n in s.inputs.values())]
        step = rng.choice(ready)
        make(step, ctx)
        waiting.remove(step)
    for artifact in (tmp_path / "store").glob("*-*"):
        for file in artifact.rglob("*"):
            if file.is_file() and file.name != "manifest.json":
                assert file.read_bytes() == (whole / file.relative_to(tmp_path)).read_bytes(), file


def test_without_a_terminal_progress_is_plain_lines(whole: Path) -> None:
    said = next(whole.parent.glob("study.*.err")).read_text()
    assert "\x1b" not in said
    assert "\r" not in said


def test_a_log_per_step(whole: Path) -> None:
    for manifest in (whole / "store").glob("*/manifest.json"):
        log = whole / "store" / "partial" / f"{manifest.parent.name}.log.jsonl"
        events = [json.loads(line)["event"] for line in log.read_text().splitlines()]
        assert events[0] == "started"
        assert events[-1] == "finished"
    assert len(pd.read_parquet(whole / "out" / "records.parquet"))
