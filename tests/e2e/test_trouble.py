"""Training that goes wrong, in real tiny runs: find_trouble, recorded with its step, and the rest of the sweep goes on.

The steps of a study are made in this process one after another, as a worker makes them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import TINY_STUDY

from aligngap.cli import main
from aligngap.execute.collect import collect, find_trouble
from aligngap.execute.worker import make
from aligngap.pipeline.context import Context
from aligngap.pipeline.judges import FitJudge
from aligngap.pipeline.plan import Plan, expand
from aligngap.report.words import warn_failed, warn_stopped
from aligngap.storage.records import read_folder, read_records, write_failures
from aligngap.storage.store import Store
from aligngap.study.load import validate
from aligngap.types import Judgement, Prompt, Response, RunFailed


def study(**changes: Any) -> Plan:
    """The tiny study without best-of-n, its SFT policy trained until most of its responses end; dotted keys (`__`)."""
    raw: dict[str, Any] = yaml.safe_load(TINY_STUDY)
    raw["sft"] |= {"steps": 80}
    raw["limits"]["response_tokens"] = 20
    raw["measurement"] |= {"best_of_n": 0, "opponents": ["sft"]}
    for key, value in changes.items():
        *parents, last = key.split("__")
        place = raw
        for parent in parents:
            place = place[parent]
        place[last] = value
    return expand(validate(raw, "trouble"))


def carry_out(plan: Plan, folder: Path, ctx: Context | None = None) -> dict[str, str]:
    """Make what can be made; step name -> why it failed, with what needs it left out."""
    ctx = ctx or Context(Store(folder / "store"))
    ctx.store.prepare()
    failures: dict[str, str] = {}
    for step in plan.steps():
        if not any(need.name in failures for need in step.inputs.values()):
            try:
                make(step, ctx)
            except RunFailed as error:
                failures[step.name] = str(error)
        else:
            failures[step.name] = ""
    (folder / "out").mkdir(exist_ok=True)
    collect(plan, ctx.store, folder / "out")
    write_failures(folder / "out", {n: why for n, why in failures.items() if why})
    return failures


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which everything before the arms has been made once, for all the runs below."""
    folder = tmp_path_factory.mktemp("started")
    plan, ctx = study(), Context(Store(folder / "store"))
    ctx.store.prepare()
    for step in plan.steps():
        if step.kind != "align" and getattr(step, "run_", None) is None:
            make(step, ctx)
    return folder


class Wish:
    key = "wish"

    def __init__(self, wish: Callable[[Response, Response], float]) -> None:
        self.wish = wish

    def judge(self, prompts: Sequence[Prompt], a: Sequence[Response], b: Sequence[Response]) -> Judgement:
        forward = np.array([self.wish(x, y) for x, y in zip(a, b, strict=True)])
        backward = np.array([self.wish(y, x) for x, y in zip(a, b, strict=True)])
        return Judgement(forward, backward)


@pytest.fixture
def wish_as_proxy(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Response, Response], float]], None]:
    """Makes the proxy, which learns from relabelled pairs, a wish of ours."""
    trained = FitJudge.open

    def put(wish: Callable[[Response, Response], float]) -> None:
        monkeypatch.setattr(FitJudge, "open", lambda self, *about: Wish(wish) if self.labels else trained(self, *about))

    return put


def outcomes(folder: Path) -> dict[str, str]:
    records = read_records(folder / "out")
    return dict(zip(records["arm"], records["outcome"], strict=True))


def test_a_loss_that_is_not_finite(started: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One learning rate of a sweep destroys its run: its outcome says at which step, the other run is whole."""
    grid = {"axes": {"learning_rate": [3e-3, 1e30]}, "arms": ["offline"], "why": "one of them cannot work"}
    plan = study(sweep=[grid])
    assert not carry_out(plan, started)
    records = read_folder(started / "out").records
    broken, sound = (records[(records["arm"] == "offline") & (records["learning_rate"] == lr)] for lr in (1e30, 3e-3))
    assert set(broken["outcome"].str.slice(0, 18)) == {"diverged at step 2"}
    assert set(broken["step"]) == {0}  # never got to a checkpoint
    assert set(sound["outcome"]) == {"ok"}
    assert set(sound["step"]) == {0, 4, 8}
    assert any("diverged at step 2" in line for line in warn_stopped(records))
    assert main(["show", str(started / "out"), "--failures"]) == 0
    said = capsys.readouterr().out
    assert "diverged at step 2" in said
    assert "learning_rate=1e+30" in said
    assert "learning_rate=0.003" not in said


def test_an_exploding_kl(started: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound is lowered: how far this tiny policy runs, and by which step, depends on a processor's last bits."""
    monkeypatch.setattr("aligngap.execute.collect.KL_PER_TOKEN_NATS", 0.5)
    assert not carry_out(study(recipe__optimization__learning_rate=1.0), started)
    found = outcomes(started)
    assert found["online"].startswith("by step ")
    assert "KL exploded" in found["online"]
    assert found["offline"] != "ok"


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        (lambda a, b: float(len(a.ids) < len(b.ids)), "responses are empty"),
        (lambda a, b: float(len(a.ids) > len(b.ids)), "responses no longer end"),
    ],
    ids=["empty", "endless"],
)
def test_a_collapse_to_empty_or_endless_responses(
    started: Path, wish: Callable[[Response, Response], float], words: str, wish_as_proxy: Callable[..., None]
) -> None:
    """A proxy that looks at nothing but length is obeyed, and the record says what came of it."""
    loss = {"recipe__loss": {"name": "dpo", "beta": 0.01}}
    # Many prompts and checkpoints: on 16 of them at one step it took one response that ends, on another processor.
    plan = study(
        recipe__optimization__steps=80 + ("empty" in words), recipe__optimization__learning_rate=5e-3,
        measurement__checkpoints=[20, 40, 60], measurement__prompts=48, **loss,
    )  # fmt: skip
    wish_as_proxy(wish)
    assert not carry_out(plan, started)
    assert outcomes(started)["online"].startswith("by step ")
    assert words in outcomes(started)["online"]
    assert outcomes(started)["offline"] == "ok"


def test_a_judge_that_answers_nan(
    started: Path, capsys: pytest.CaptureFixture[str], wish_as_proxy: Callable[..., None]
) -> None:
    """In training it ends the run at that step; the other arm's run and the SFT policy's measurement are there."""
    asked = [0]

    def wish(a: Response, b: Response) -> float:
        asked[0] += 1
        return float("nan") if asked[0] > 2 * 8 * 5 else float(len(a.ids) > len(b.ids))

    plan = study(recipe__optimization__batch=8, recipe__optimization__warmup_steps=1)
    align = {run.arm: run.align for run in plan.runs}
    wish_as_proxy(wish)
    failures = carry_out(plan, started)
    ctx = Context(Store(started / "store"))
    result = ctx.store.manifest(align["online"].name)["result"]
    assert result["outcome"].startswith("stopped at step 6: judge wish answered nan")
    assert result["last_step"] == 5
    assert len(pd.read_parquet(ctx.store.path(align["online"].name) / "recording.parquet")) == 5 * 8
    assert ctx.store.manifest(align["offline"].name)["result"]["outcome"] == "ok"
    # Measuring asks the same judge: that fails, and says why.
    assert {why.partition(" answered")[0] for why in failures.values()} == {"judge wish"}
    assert any("judge wish answered nan" in line for line in warn_failed({"measure": next(iter(failures.values()))}))
    assert main(["show", str(started / "out"), "--failures"]) == 0
    assert "judge wish answered nan" in capsys.readouterr().out


def test_what_replays_a_run_that_ended_early_says_so(started: Path) -> None:
    arms = {
        "online": {"behavior": "policy", "judge": "proxy"},
        "offline": {"behavior": "dataset", "judge": "golden"},
        "replayed": {"behavior": "recording", "of": "online"},
    }
    plan = study(arms=arms, recipe__optimization__learning_rate=1e30)
    failures = carry_out(plan, started)
    replayed = next(run.align.name for run in plan.runs if run.arm == "replayed")
    assert "has no whole recording: diverged at step 2" in failures[replayed]
    assert set(outcomes(started)) == {"online", "offline"}


def test_sft_that_diverges_is_a_failed_run_and_no_traceback(tmp_path: Path) -> None:
    plan = study(sft__learning_rate=1e30)
    failures = carry_out(plan, tmp_path)
    why = next(why for why in failures.values() if why)
    assert why.startswith("sft: diverged at step 2")
    assert "lower sft.learning_rate" in why


def frame(*rows: tuple[int, float, float, float]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["step", "kl_nats", "length_tokens", "unended"])


@pytest.mark.parametrize(
    ("rows", "outcome"),
    [
        ([(4, 1.0, 9.0, 0.2), (8, 40.0, 9.0, 0.9)], "ok"),
        ([(8, 50.0, 9.0, 0.2), (4, 1.0, 9.0, 0.2)], "by step 8: KL exploded (50 nats over 9 tokens)"),
        ([(4, float("inf"), 9.0, 0.2)], "by step 4: KL exploded (inf nats over 9 tokens)"),
        ([(4, float("nan"), 9.0, 0.2)], "by step 4: KL exploded (nan nats over 9 tokens)"),
        ([(4, 1.0, 1.2, 0.0)], "by step 4: responses are empty (1.2 tokens on average, EOS included)"),
        ([(4, 1.0, 12.0, 0.97)], "by step 4: responses no longer end (97% cut by the limit)"),
    ],
)
def test_what_measurements_tell(rows: list[tuple[int, float, float, float]], outcome: str) -> None:
    assert find_trouble(frame((0, 0.0, 9.0, 0.2)), frame(*rows)) == outcome


def test_what_was_so_from_the_start_is_no_collapse() -> None:
    """Responses of one token (the tabular world) and a limit that cuts the SFT policy too."""
    assert find_trouble(frame((0, 0.0, 1.0, 1.0)), frame((8, 2.0, 1.0, 1.0))) == "ok"
