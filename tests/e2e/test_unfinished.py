"""A study that goes on: its records and its page are there as measurements arrive, and say what is missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from aligngap.cli import main
from aligngap.execute.collect import collect
from aligngap.execute.refresh import FIRST, SHARE, Refresher
from aligngap.pipeline.plan import expand
from aligngap.report import build_report
from aligngap.storage.records import read_records
from aligngap.storage.store import Store
from aligngap.study.load import load


def test_the_page_of_an_unfinished_study_says_what_is_missing(finished: Path, tmp_path: Path) -> None:
    plan, out = expand(load(finished / "tiny.yaml")), tmp_path / "out"
    first, last = plan.runs
    shutil.copytree(finished / "store", tmp_path / "store")
    shutil.rmtree(tmp_path / "store" / last.measure.name)
    store = Store(tmp_path / "store")
    with Refresher(plan, store, out) as refresher:
        refresher.notice(first.measure.name)
        assert refresher.child is None  # too soon to pay
        refresher.begun -= FIRST / SHARE
        refresher.notice(first.align.name)
        assert refresher.child is None  # no measurement
        refresher.notice(first.measure.name)
        assert refresher.child is not None
        assert refresher.child.wait(timeout=600) == 0
        refresher.notice(first.measure.name)
        assert refresher.child.poll() == 0  # no second one yet
    assert set(read_records(out)["run"]) == {first.name}
    said = f"Unfinished: 1 of 2 runs are measured, and what is said here is of these alone. Missing: {last.name}."
    for name in ("report.html", "summary.md"):
        assert said.replace("_", "\\_") in (out / name).read_text() or said in (out / name).read_text()
    assert main(["show", str(out)]) == 0
    whole = Store(finished / "store")
    assert collect(plan, whole, out) == 2
    assert "missing" not in json.loads((out / "provenance.json").read_text())
    assert "Unfinished" not in build_report(out).read_text()
    assert sorted(p.name for p in (out / "figures").iterdir()) == sorted(
        p.name for p in (finished / "out" / "figures").iterdir()
    )
