"""`recipe.rollouts`: what is refused before any compute, and a whole run whose pairs an engine wrote."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import DECODER, TINY_STUDY, complaint
from plain_engine import Plain, PlainRollout

from aligngap import registry
from aligngap.cli import main
from aligngap.execute.collect import collect
from aligngap.execute.worker import make
from aligngap.models.rollout import installed
from aligngap.pipeline.align import Align
from aligngap.pipeline.base import Step
from aligngap.pipeline.context import Context, Job
from aligngap.pipeline.plan import Plan, expand
from aligngap.report import headline
from aligngap.report.words import warn_apart
from aligngap.storage.pairs import read_rows
from aligngap.storage.store import Store
from aligngap.study.load import validate
from aligngap.types import Stopped

LLAMA = {"model_type": "llama", "config": DECODER}


def study(policy: dict[str, Any] | None = None, **rollouts: Any) -> dict[str, Any]:
    raw: dict[str, Any] = yaml.safe_load(TINY_STUDY)
    raw["recipe"]["rollouts"] = rollouts
    return raw | ({"policy": policy} if policy else {})


def mixing(raw: dict[str, Any]) -> dict[str, Any]:
    raw["arms"]["online"]["mix_reference"] = 0.5
    return raw


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (study(engine="vllm"), ["vllm serves decoder-only models", "`t5` (encoder-decoder)", "leave it out"]),
        (study(LLAMA, engine="vlm"), ["recipe.rollouts.engine", "did you mean `vllm`?"]),
        (study(LLAMA, engine="vllm", tolerance_nats=0), ["recipe.rollouts.tolerance_nats", "greater than 0"]),
        (mixing(study(LLAMA, engine="vllm")), ["arm `online`", "mix_reference", "recipe.rollouts.engine"]),
    ],
    ids=["encoder-decoder", "no such engine", "tolerance", "mixed with the reference"],
)
def test_what_an_engine_cannot_do_is_one_line(
    raw: dict[str, Any], said: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(raw, said, tmp_path, capsys)


@pytest.mark.skipif(installed("vllm") is None, reason="vLLM is installed")
def test_an_engine_that_is_not_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = ["recipe.rollouts.engine: vllm cannot be imported", "No module named 'vllm'", "pip install 'aligngap[vllm]'"]
    refused(study(LLAMA, engine="vllm"), said, tmp_path, capsys)


def refused(raw: dict[str, Any], said: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "tiny.yaml").write_text(yaml.safe_dump(raw))
    assert main(["run", str(folder / "tiny.yaml"), "--out", str(folder / "out")]) == 2
    told = complaint(capsys.readouterr().err)
    assert all(words in told for words in said), told
    assert not (folder / "out").exists()


# ------------------------------------------------------------------------------------------- a run that an engine wrote


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain engine among the registered rollouts, as a package's entry point would put it there."""
    monkeypatch.setitem(registry.SHELVES["rollouts"], "plain", "plain_engine:PlainRollout")
    PlainRollout.made.clear()


def planned(tolerance: float = 0.05) -> Plan:
    raw = study(LLAMA, engine="plain", tolerance_nats=tolerance)
    raw["arms"]["online"]["sync_every"] = 2
    return expand(validate(raw, "tiny"))


def done(steps: list[Step], store: Store, stopping: Callable[[], bool] = lambda: False) -> None:
    ctx = Context(store)
    for step in steps:
        make(step, ctx, Job(stopping=stopping))


def test_a_run_says_how_far_its_engine_was_from_the_trainer(plain: None, tmp_path: Path) -> None:
    plan = planned()
    online = next(r.align for r in plan.runs if r.arm == "online")
    offline = next(r.align for r in plan.runs if r.arm == "offline")
    before = [s for s in online.walk() if s.name != online.name]
    store = Store(tmp_path / "store")
    store.prepare()
    done(before, store)
    shutil.copytree(tmp_path / "store", tmp_path / "other")

    # Killed in the middle of what the policy wrote ahead, the run ends with the same pairs: an engine has no state.
    asked = iter(range(1000))
    with pytest.raises(Stopped):
        done([online], store, stopping=lambda: next(asked) >= 5)
    done(plan.steps(), store)
    other = Store(tmp_path / "other")
    done([online], other)
    for file in ("recording.parquet", "log.parquet"):
        pairs, again = ([str(r) for r in read_rows(s.path(online.name) / file)] for s in (store, other))
        assert pairs == again
    assert not any(hasattr(engine, "copy") for engine in PlainRollout.made)  # every engine was closed

    log = read_rows(store.path(online.name) / "log.parquet")
    written = [r["mismatch_tokens"] > 0 for r in log]
    assert written == [True, False] * 4  # two batches are written at every other step
    assert all(math.isnan(r["mismatch_nats"]) != w for r, w in zip(log, written, strict=True))
    about = store.manifest(online.name)["result"]["rollouts"]
    assert about["written_by"] == Plain.name
    assert 0 <= about["mismatch_nats"] <= about["mismatch_max_nats"] < 1e-3
    assert about["mismatch_tokens"] == sum(r["mismatch_tokens"] for r in log)
    assert "mismatch_nats" not in read_rows(store.path(offline.name) / "log.parquet")[0]
    assert "rollouts" not in store.manifest(offline.name)["result"]

    told = reported(plan, store, tmp_path / "out")
    assert "trained on responses of an engine" not in told
    strict = planned(tolerance=1e-12)
    assert [s.name for s in strict.steps()] == [s.name for s in plan.steps()]  # it changes no result
    told = reported(strict, store, tmp_path / "out")
    assert "! 1 run(s) trained on responses of an engine (plain 1)" in told
    assert "above recipe.rollouts.tolerance_nats, 1e-12" in told
    entry = json.loads((tmp_path / "out" / "provenance.json").read_text())["runs"]
    assert {r: a["rollouts"]["tolerance_nats"] for r, a in entry.items() if "rollouts" in a} == {
        r.name: 1e-12 for r in plan.runs if r.arm == "online"
    }


def reported(plan: Plan, store: Store, out: Path) -> str:
    assert collect(plan, store, out) == len(plan.runs)
    return headline(out)


def test_a_mismatch_that_is_no_number_is_above_every_tolerance() -> None:
    entry = {"written_by": "x 1", "mismatch_nats": 0.1, "mismatch_max_nats": 2.0, "tolerance_nats": 0.2}
    torn = {"rollouts": entry | {"mismatch_nats": "much"}}
    assert warn_apart({"a": {"rollouts": entry}, "b": {"rollouts": "torn"}, "c": "torn", "d": torn, "e": {}}) == []
    [told] = warn_apart({"a": {"rollouts": entry}, "b": {"rollouts": entry | {"mismatch_nats": math.nan}}})
    assert told.startswith("1 run(s)")
    assert "(b)" in told


def test_only_a_run_that_writes_has_an_engine() -> None:
    plan = expand(validate(study(LLAMA, engine="vllm"), "tiny"))
    engines = {r.arm: r.align.rollouts.engine for r in plan.runs}
    assert engines == {"online": "vllm", "offline": "transformers"}
    assert isinstance(plan.runs[0].align, Align)
