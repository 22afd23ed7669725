"""A worker that dies costs at most its own step: it is replaced, the step goes on, and the rest never hears of it."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from test_survive import WORDS, same, small
from warm import Warm

from aligngap.execute import local
from aligngap.execute.agenda import Answer, Event
from aligngap.pipeline.kinds import step_from_json
from aligngap.pipeline.plan import Plan, expand
from aligngap.storage.store import Store
from aligngap.study.load import validate

KILLS = 10


def folder_of(parent: Path, name: str) -> Path:
    place = parent / name
    place.mkdir()
    (place / "tiny.yaml").write_text(small())
    return place


def test_a_study_whose_workers_are_killed_ten_times_ends_the_same(warm: Warm, tmp_path: Path) -> None:
    """The one worker is killed in each of ten steps; the command is started once."""
    whole, folder = folder_of(tmp_path, "whole"), folder_of(tmp_path, "killed")
    code, _, said = warm.run([*WORDS, "out"], whole)
    assert code == 0, said
    running = warm.start([*WORDS, "out", "--save-seconds", "0.05"], folder)
    killed: set[str] = set()
    while running.wait(0.0) is None and len(killed) < KILLS:
        begun = {p.name for p in (folder / "store" / "partial").glob("*.log.jsonl")} - killed
        unfinished = {n for n in begun if '"finished"' not in (folder / "store" / "partial" / n).read_text()}
        if unfinished:
            killed |= unfinished
            for worker in psutil.Process(running.pid).children(recursive=True):
                worker.kill()
        time.sleep(0.002)
    code, _, said = running.finish()
    assert code == 0, said
    assert len(killed) >= KILLS
    assert "its worker was killed (SIGKILL); started again" in said  # the others were just finished, or just starting
    assert "Traceback" not in said
    same(whole / "out", folder / "out")


EDITED = """
from pathlib import Path

def prefer(prompts, a, b):
    helper = Path(__file__).with_name("edited_helper.py")
    helper.write_text("HALF = 1 / 2" + " " * 8)  # as its owner does, in an editor, while the command runs
    import edited_helper
    return [edited_helper.HALF for _ in a]
"""


def test_source_that_is_edited_while_worker_processes_run_is_refused(warm: Warm, tmp_path: Path) -> None:
    """A worker that loads a helper after it was edited makes nothing of it; the same command then goes on."""
    folder = folder_of(tmp_path, "edited")
    raw = yaml.safe_load(small()) | {"golden": {"kind": "function", "object": "edited_judge:prefer"}}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(raw))
    (folder / "edited_judge.py").write_text(EDITED)
    (folder / "edited_helper.py").write_text("HALF = 0.5")
    code, _, said = warm.run([*WORDS, "out"], folder)
    assert code == 2, said
    assert "has changed while the command ran; repeat it" in said
    assert "Traceback" not in said
    asked = [p.name for p in (folder / "store").glob("*/manifest.json") if p.parent.name.startswith("measure-")]
    assert not asked  # what stands on the judge is not made of the edited one under the old one's key
    code, _, said = warm.run([*WORDS, "out"], folder)
    assert code == 0, said


# --------------------------------------------------------------------------- with workers that only pretend to work


@pytest.fixture
def plan() -> Plan:
    return expand(validate(yaml.safe_load(small()), "small"))


def pretend(settings: Any, text: str) -> Answer:
    """Make an empty artifact; die at the steps and as often as `deaths.json` says."""
    step, store = step_from_json(text), Store(Path(settings.root))
    wanted = json.loads((store.root / "deaths.json").read_text())
    count = store.root / "partial" / f"{step.name}.deaths"
    before = int(count.read_text()) if count.exists() else 0
    if before < wanted.get(step.name, 0):
        count.write_text(str(before + 1))
        os.kill(os.getpid(), signal.SIGKILL)
    with store.making(step.name) as work:
        assert work is not None
        store.finish(step.name, {})
    return Event.MADE, ""


def refuse(settings: Any, parent: int) -> None:
    os._exit(3)


def told(
    plan: Plan, root: Path, monkeypatch: pytest.MonkeyPatch, deaths: dict[str, int], start: Any = print
) -> dict[str, tuple[Event, str]]:
    """How each step ended."""
    fork = multiprocessing.get_context("fork")
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: fork)
    monkeypatch.setattr(local, "work", pretend)
    monkeypatch.setattr(local, "start", start)
    store = Store(root)
    store.prepare()
    (root / "deaths.json").write_text(json.dumps(deaths))
    events = local.Local(store, workers=2, device="cpu").run(plan.steps())
    return {step.name: (event, message) for event, step, message in events if event not in (Event.START, Event.TICK)}


def test_every_step_may_lose_a_worker(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = told(plan, tmp_path / "store", monkeypatch, {s.name: 1 for s in plan.steps()})
    assert {event for event, _ in found.values()} == {Event.MADE}
    assert set(found) == {s.name for s in plan.steps()}


def test_dead_twice_at_the_same_place_is_a_failed_run_and_no_failed_study(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = plan.runs[0], plan.runs[1]
    found = told(plan, tmp_path / "store", monkeypatch, {bad.align.name: 99})
    event, message = found[bad.align.name]
    assert event == Event.FAILED
    assert message == "its worker was killed (SIGKILL), twice at the same place"
    assert found[bad.measure.name][0] == Event.LOST
    assert found[good.measure.name][0] == Event.MADE
    assert sum(event != Event.MADE for event, _ in found.values()) == 2


def test_out_of_memory_is_told_with_its_remedy(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = iter(range(1000))
    monkeypatch.setattr(local, "memory_kills", lambda: next(counts))
    bad = plan.runs[0].align.name
    _, message = told(plan, tmp_path / "store", monkeypatch, {bad: 99})[bad]
    assert message.startswith("its worker ran out of memory and was killed (lower --workers")


def test_workers_that_cannot_be_started_fail_their_steps(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = told(plan, tmp_path / "store", monkeypatch, {}, start=refuse)
    failed = {message for event, message in found.values() if event == Event.FAILED}
    assert failed == {"its worker could not be started or ended by itself, twice at the same place"}
    assert {event for event, _ in found.values()} == {Event.FAILED, Event.LOST}
