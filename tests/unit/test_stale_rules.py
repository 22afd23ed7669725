"""How old is too old: the hypothesis on planted records, and the packaged study."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from synthetic_records import ArmTruth, make

from aligngap import registry
from aligngap.hypotheses.base import Dial, judge_all
from aligngap.hypotheses.stale import SYSTEMS, clocked
from aligngap.hypotheses.verdicts import CONTRADICTED, INCONCLUSIVE, SUPPORTED
from aligngap.hypotheses.view import View
from aligngap.pipeline.plan import expand
from aligngap.report.sections import say_leading
from aligngap.study.load import load

STALE: Any = registry.get("hypotheses", "stale")


def view(gaps: dict[str, float], **more: Any) -> View:
    truth = {arm: ArmTruth(gap=gap, configs=1) for arm, gap in gaps.items()}
    how: dict[str, Any] = {"seeds": range(6), "prompts": 3000, "seed_sd": 0.001, "opponents": ("golden_policy",)}
    seen = more.pop("truth", True)
    records, per_prompt, _ = make(truth, **(how | more))
    if seen:  # the true preference says what the judge does
        records = records.assign(oracle_win_rate=records["win_rate"], oracle_win_rate_se=records["win_rate_se"])
        per_prompt = per_prompt.assign(oracle_win=per_prompt["win"])
    records["age"] = np.where(records["arm"].str.startswith("buffer"), 7.5, np.nan)
    return View(records, per_prompt)


def verdicts(v: View) -> dict[str, Any]:
    return {found.name: found for found in STALE.judge(v)}


OLD = {
    "online": 0.1, "offline": 0.0, "age-1": 0.1, "age-16": 0.1, "age-64": 0.04, "age-256": 0.0, "online[clipped]": 0.1,
    "age-256[clipped]": 0.1, "age-64[weighted]": 0.02, "buffer-16": 0.1,
}  # fmt: skip


@cache
def old() -> View:
    """Planted records in which pairs of 64 steps and more cost, and clipping answers it; the truth says the same."""
    return view(OLD)


def test_the_sentence_names_the_age_from_which_pairs_are_too_old_and_what_clipping_buys() -> None:
    found = verdicts(old())
    said = found["too old"].reason
    assert found["too old"].outcome == SUPPORTED
    assert "From 64 steps on pairs are too old here" in said
    assert "Up to 16 steps they are as good as fresh ones, to within 0.02." in said
    assert "At age 256 clipping buys +0." in said
    assert found["too old"].interval[1] < 0  # the KL that the sentence names is one at which it is sure
    assert (found["oldest"].outcome, found["oldest clipped"].outcome) == (SUPPORTED, SUPPORTED)
    assert (found["clipped at 256"].outcome, found["one step"].outcome) == (SUPPORTED, SUPPORTED)
    assert found["clipped at 256"].effect.value == pytest.approx(0.1, abs=0.02)


def test_an_age_that_is_as_good_as_fresh_is_not_too_old() -> None:
    found = verdicts(view(dict.fromkeys(("online", "offline", "age-1", "age-16", "age-64", "age-256"), 0.1)))
    assert found["too old"].outcome == CONTRADICTED
    assert "No age up to 256 steps is told to be too old." in found["too old"].reason
    assert "Up to 256 steps they are as good as fresh ones" in found["too old"].reason


def test_the_search_ends_at_the_first_age_that_is_not_told_to_fall() -> None:
    """A fall at 16 that neither 64 nor 256 shows is not what "too old" means."""
    found = verdicts(view({"online": 0.1, "offline": 0.0, "age-16": 0.0, "age-64": 0.1, "age-256": 0.1}))
    assert found["too old"].outcome == CONTRADICTED


def test_thin_records_decide_nothing() -> None:
    found = verdicts(view({"online": 0.1, "offline": 0.0, "age-256": 0.08}, prompts=40, seed_sd=0.05))
    assert found["too old"].outcome == INCONCLUSIVE


def test_the_figure_has_every_age_and_the_buffers_at_their_mean_age() -> None:
    dial = STALE.dial(old())
    assert [p.x for p in dial.series["as it is"]] == [1, 16, 64, 256]
    assert [p.value for p in dial.series["as it is"]] == pytest.approx([0, 0, -0.06, -0.1], abs=0.02)
    assert all(p.lower < p.value < p.upper for p in dial.series["as it is"])
    assert [(p.x, p.label) for p in dial.series["clipped"]] == [(256, "age-256")]
    assert [(p.x, p.label) for p in dial.series["weighted"]] == [(64, "age-64")]
    assert dial.series["weighted"][0].value == pytest.approx(-0.08, abs=0.02)  # from online as it is, like the others
    assert [p.x for p in dial.series["buffer, mean age"]] == [7.5]
    assert dial.y == "difference to online at 8 nats"


def test_the_figure_is_at_the_largest_kl_that_every_age_reached() -> None:
    """Where the oldest ends below 4 nats, every age stands at 2."""
    gaps = ("online", "offline", "age-1", "age-256")
    truth = {arm: ArmTruth(kl_range=(0.4, 3.0 if arm == "age-256" else 12.0)) for arm in gaps}
    records, per_prompt, _ = make(truth, seeds=range(5), prompts=200, opponents=("golden_policy",))
    found = View(records, per_prompt)
    dial = STALE.dial(found)
    assert dial.y == "difference to online at 2 nats"
    for point in dial.series["as it is"]:
        at = {b.kl: b for b in found.contrast({point.label: 1.0, "online": -1.0}).found.judged}
        assert (point.value, point.lower, point.upper) == (at[2.0].mean.value, *at[2.0].interval)


def test_the_truth_has_a_figure_of_its_own_and_a_place_in_the_sentence() -> None:
    judge, truth = STALE.dial(old()), STALE.more[0].of(old())
    assert truth.y == "difference to online by the true preference at 8 nats"
    assert truth.series == judge.series
    said = verdicts(old())["too old"].reason
    assert "By the true preference, which no arm saw, the difference there is −0.0" in said
    blind = view({"online": 0.1, "offline": 0.0, "age-256": 0.0}, truth=False, prompts=500)
    assert STALE.more[0].of(blind) is None
    assert "true preference" not in verdicts(blind)["too old"].reason


def test_the_first_screen_has_the_sentence_and_both_wall_clocks() -> None:
    judged, _ = judge_all([STALE], old())
    said = say_leading(SimpleNamespace(judged=judged))  # type: ignore[arg-type]
    named = [sentence.rpartition("(")[0].rpartition("(")[2].partition(":")[0] for sentence in said]
    assert named == ["too old", "sooner, 1 to 1", "sooner, 4 to 1"]
    assert "(too old: supported, −0.0" in said[0]
    assert said[0].startswith("From 64 steps on pairs are too old here")
    assert said[2].startswith("If writing a batch takes 4 and training on it 1, age-1, which does both at once, is at ")
    empty, _ = judge_all([STALE], view({"online": 0.1, "offline": 0.0, "age-256": 0.1}, seeds=(0,), prompts=200))
    assert all("too few seeds" in sentence for sentence in say_leading(SimpleNamespace(judged=empty)))  # type: ignore[arg-type]


def test_at_equal_time_side_by_side_is_held_against_onlines_fewer_steps() -> None:
    """800 steps of 1 + 1: side by side they take 801, in which online takes 400; at 4 to 1 3201 and 640."""
    v = old()
    records = v.records[(v.records["arm"] == "online") & (v.records["seed"] == 0)].set_index("step")
    ends, online = clocked(v, "age-1", SYSTEMS[0])
    assert online[0][0] == pytest.approx(records["win_rate"][400])
    assert sorted(ends) == list(range(6))
    _, slow = clocked(v, "age-1", SYSTEMS[1])
    a, b = records["win_rate"][600], records["win_rate"][700]
    w = np.log(640 / 600) / np.log(700 / 600)
    assert slow[0][0] == pytest.approx((1 - w) * a + w * b)
    figure = next(f for f in STALE.more if f.name == "clock")
    dial = figure.of(v)
    assert isinstance(dial, Dial)
    assert set(dial.series) == {s.name for s in SYSTEMS}
    assert [p.x for p in dial.series[SYSTEMS[0].name]] == [1, 16, 64, 256]


def test_records_of_other_studies_are_left_alone() -> None:
    records, per_prompt, _ = make({"online": ArmTruth(), "offline": ArmTruth()}, prompts=50)
    other = View(records, per_prompt)
    assert not STALE.touched(other)
    assert STALE.dial(other) is None
    assert all(figure.of(other) is None for figure in STALE.more)
    assert isinstance(records, pd.DataFrame)


def test_the_packaged_study_has_the_arms_that_its_hypothesis_needs() -> None:
    plan = expand(load("stale", ["seeds=1"]))
    arms = {run.arm for run in plan.runs}
    assert set(STALE.arms) | set(STALE.shows) <= arms
    assert len(plan.runs) == 16
    for run in plan.runs:
        assert run.align.writer_logps == (run.arm.partition("[")[0] != "offline"), run.arm
        assert (run.align.correction is None) == ("[" not in run.arm)
    opening = expand(load("opening"))
    for step in ("sft", "golden", "proxy"):  # what comes before the arms is there if `opening` was run
        assert getattr(plan.runs[0].measure, step).name == getattr(opening.runs[0].measure, step).name
