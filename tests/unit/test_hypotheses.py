"""Hypotheses against planted truths: verdicts recover each world, and say nothing sure where nothing is planted."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from statsmodels.stats.multitest import multipletests
from synthetic_records import ArmTruth, best_of_n_rows, make, same_as

from aligngap import registry
from aligngap.hypotheses.base import Dial, Hypothesis, judge_all
from aligngap.hypotheses.classification import along_stream
from aligngap.hypotheses.families import correct, primary_of
from aligngap.hypotheses.geometry import heterogeneity
from aligngap.hypotheses.judge_dial import ARMS as JUDGED
from aligngap.hypotheses.rules import HALF, MARGIN, ahead, share
from aligngap.hypotheses.verdicts import CENSORED, CONTRADICTED, INCONCLUSIVE, SUPPORTED, alike, decide
from aligngap.hypotheses.view import View, under
from aligngap.pipeline.plan import expand
from aligngap.report import build_report, headline
from aligngap.report.figures import dial_chart
from aligngap.stats.adjust import benjamini_hochberg, holm
from aligngap.stats.compare import compare
from aligngap.stats.ratio import ratio, slope_weights
from aligngap.stats.seedwise import Seedwise
from aligngap.storage.columns import PER_PROMPT_COLUMNS, PROBE_COLUMNS, RECORD_COLUMNS, SAMPLE_COLUMNS
from aligngap.storage.records import write_table
from aligngap.study.load import load
from aligngap.types import AligngapError, Verdict

EXTRAS = Path(__file__).resolve().parents[2] / "examples" / "aligngap-extras"
ALL: list[Hypothesis] = [registry.get("hypotheses", name) for name in registry.SHELVES["hypotheses"]]
Parts = list[dict[str, Any]]


#: seeds and prompts that it takes to say that two arms are alike to within two points, at three budgets
SHARP: dict[str, Any] = {"prompts": 2000, "seeds": range(7), "seed_sd": 0.001}


def world(gaps: Mapping[str, float], parts: Parts | None = None, **more: Any) -> View:
    """A view of records in which each arm's win rate at equal KL is the opening curve plus its gap."""
    truth = {arm: ArmTruth(gap=gap) for arm, gap in gaps.items()}
    options = {"prompts": 300, "seeds": range(5), "opponents": ("golden_policy",), "seed_sd": 0.005} | more
    records, per_prompt, _ = make(truth, **options)
    return View(records, per_prompt, pipeline=parts or [])


def verdicts(name: str, view: View) -> dict[str, Verdict]:
    return {v.name: v for v in registry.get("hypotheses", name).judge(view)}


def outcomes(name: str, view: View) -> dict[str, str]:
    return {n: v.outcome for n, v in verdicts(name, view).items()}


# ---------------------------------------------------------------------------------------------------- declarations


def test_every_hypothesis_is_whole() -> None:
    assert len(ALL) == 20
    for name, h in zip(registry.SHELVES["hypotheses"], ALL, strict=True):
        assert h.name == name
        assert h.question.endswith("?")
        assert h.claim
        assert h.rules
        assert len({r.name for r in h.rules}) == len(h.rules)
        for rule in h.rules:
            assert re.search(r"Supported (\([a-z ]+\) )?if|supported if", rule.text)
            assert "ontradicted if" in rule.text
            assert "inconclusive" in rule.text


@pytest.mark.parametrize("h", ALL, ids=lambda h: h.name)
def test_the_named_study_makes_every_arm(h: Hypothesis) -> None:
    made = {run.arm for run in expand(load(h.study)).runs}
    assert set(h.arms) <= made
    assert h.command(1) == f"aligngap run {h.study}"


# -------------------------------------------------------------------------------------------------- planted truths


def test_coverage_is_the_cause() -> None:
    gaps = {
        "online": 0.12,
        "offline": 0.0,
        "shuffled": 0.12,
        "window-2": 0.12,
        "reversed": 0.12,
        "shuffled-golden": 0.12,
    }
    view = world(gaps)
    found = verdicts("coverage", view)
    assert found["H1"].outcome == SUPPORTED
    assert found["R4 shuffled"].outcome != SUPPORTED
    part, (low, high) = found["H1"].share, found["H1"].share_interval
    assert part is not None
    assert low < 1 < high
    assert part.value == pytest.approx(1, abs=0.2)
    assert "R3" not in found  # no arm `twin` in these records: the rule is not judged
    assert registry.get("hypotheses", "coverage").touched(view)


def test_coverage_is_not_the_cause() -> None:
    gaps = {
        "online": 0.12,
        "offline": 0.0,
        "shuffled": 0.01,
        "window-2": 0.12,
        "window-32": 0.02,
        "blocks-32": 0.1,
        "reversed": -0.08,
        "shuffled-golden": 0.08,
    }
    records, per_prompt, _ = make({a: ArmTruth(gap=g) for a, g in gaps.items()}, opponents=("golden_policy",), **SHARP)
    records, per_prompt = same_as("online", "twin", records, per_prompt)
    found = outcomes("coverage", View(records, per_prompt))
    assert found == {
        "H1": CONTRADICTED, "R3": SUPPORTED, "R4 shuffled": SUPPORTED, "R4 window": SUPPORTED,
        "order reversed": SUPPORTED, "order fine": SUPPORTED, "order coarse": CONTRADICTED,
        "labels shuffled": SUPPORTED,
    }  # fmt: skip


def test_a_window_that_harms_is_not_alike() -> None:
    found = outcomes("coverage", world({"online": 0.12, "offline": 0.0, "window-2": 0.04}))
    assert found["R4 window"] == CONTRADICTED


def test_quality_is_the_cause_and_is_not() -> None:
    good = outcomes("quality", world({"online": 0.12, "offline": 0.0, "final-vs-final": 0.12, "final-and-data": 0.12}))
    poor = outcomes("quality", world({"online": 0.12, "offline": 0.0, "final-vs-final": -0.1, "final-and-data": 0.0}))
    assert good["H2"] == SUPPORTED
    assert good["R5"] == CONTRADICTED
    assert poor == {"H2": CONTRADICTED, "R5": SUPPORTED, "support": SUPPORTED}


def test_why_final_data_fail() -> None:
    """Each explanation planted alone is the one that is found: too little support, or the wrong anchor."""
    names = ("final-vs-final", "final-and-data", "final-and-sft", "final-hot")
    moved = ("online[from-final]", "final-vs-final[from-final]", "offline[from-final]")
    rules = ("support", "support sft", "support hot", "anchor", "anchor data", "anchor gap")
    alike = {"anchor gap": SUPPORTED}
    for support, anchor in ((0.12, -0.1), (0.0, 0.12)):
        gaps = {"online": 0.1, "offline": 0.0} | dict(zip(names, (-0.1, *[-0.1 + support] * 3), strict=True))
        gaps |= dict(zip(moved, (0.3, 0.1 + anchor, 0.1), strict=True))
        found = outcomes("quality", world(gaps, **SHARP))
        sure = {r: found[r] for r in rules if found[r] != INCONCLUSIVE}
        if support:
            ahead_by = dict.fromkeys(rules[:3], SUPPORTED)
            assert sure == alike | ahead_by | {"anchor": CONTRADICTED, "anchor data": CONTRADICTED}
        else:
            assert sure == alike | {"anchor": SUPPORTED, "anchor data": SUPPORTED}


def geometry(gaps: tuple[float, float, float], gains: tuple[float, float, float]) -> dict[str, Verdict]:
    """Verdicts where the peak is inside, as opened, outside: the gap there, and what a doubling of n gains."""
    worlds = ("peak-in", "", "peak-out")
    truth = {under("online", w): ArmTruth(gap=g) for w, g in zip(worlds, gaps, strict=True)}
    truth |= {under("offline", w): ArmTruth() for w in worlds}
    records, per_prompt, _ = make(truth, opponents=("golden_policy",), **SHARP)
    best = [best_of_n_rows(0.5, g, range(7), se=0.005, variant=w) for w, g in zip(worlds, gains, strict=True)]
    return verdicts("geometry", View(records, per_prompt, best_of_n=pd.concat(best)))


def judges(lead: Mapping[str, float], truth: float, stranger: float) -> dict[str, Verdict]:
    """Verdicts where online leads by `lead` before each labelling judge and by `truth` in truth.

    Before the strongest judge the arms of the weakest one differ by `stranger`.
    """
    sources = {"labels-1000": 0.65, "labels-4000": 0.75, "": 0.85}
    gaps = {under("online-golden", v): lead[v or "golden"] for v in sources} | {
        under("offline", v): 0.0 for v in sources
    }
    made = [make({a: ArmTruth(gap=g) for a, g in gaps.items()}, **SHARP, opponents=("sft",))]
    for number, shift in enumerate((truth, stranger)):
        others = {a: ArmTruth(gap=shift if g else 0.0) for a, g in gaps.items()}
        made.append(make(others, **SHARP, opponents=("sft",), rng_seed=number + 1))
    (records, per_prompt, _), (true, _, _), (strange, _, _) = made
    key = ["run", "step", "opponent"]
    records = records.drop(columns=["oracle_win_rate", "oracle_win_rate_se"]).merge(
        true[[*key, "win_rate", "win_rate_se"]].rename(columns=lambda c: f"oracle_{c}" if "win" in c else c), on=key
    )
    own = records[[*key, "win_rate", "win_rate_se"]]
    crossed = pd.concat([own.assign(evaluator="labels-1000"), strange[own.columns].assign(evaluator="golden")])
    parts: Parts = [
        {"seed": s, "part": under("golden judge", v), "what": "held out accuracy", "value": a}
        for v, a in sources.items()
        for s in range(7)
    ]
    return verdicts("judge-dial", View(records, per_prompt, "sft", pipeline=parts, crossed=crossed))


def test_a_lead_that_only_its_own_judge_sees_is_told_from_one_that_is_there() -> None:
    falls = {"labels-1000": 0.16, "labels-4000": 0.1, "golden": 0.04}
    found = judges(falls, truth=0.01, stranger=0.02)
    assert [found[n].outcome for n in ("excess", "stranger", "judge slope")] == [SUPPORTED] * 3
    assert found["excess"].effect.value == pytest.approx(0.09, abs=0.02)
    assert found["stranger"].effect.value == pytest.approx(0.14, abs=0.03)
    assert found["judge slope"].effect.value == pytest.approx(0.06, abs=0.02)  # .12 over twenty points of accuracy
    there = judges(dict.fromkeys(falls, 0.1), truth=0.1, stranger=0.1)
    assert {there[n].outcome for n in ("excess", "stranger", "judge slope")} == {INCONCLUSIVE}
    assert "crossed_judges" in verdicts("judge-dial", world(dict.fromkeys(JUDGED, 0.0)))["stranger"].reason


def rates(small: float, large: float) -> dict[str, Verdict]:
    """Verdicts where online leads by `small` at the small learning rate and by `large` at the large one."""
    tables: list[tuple[pd.DataFrame, pd.DataFrame]] = []
    for number, (gap, rate) in enumerate(((small, 1e-5), (large, 3e-5))):
        records, per_prompt, _ = make({"online": ArmTruth(gap=gap), "offline": ArmTruth()}, **SHARP, rng_seed=number)
        names = {"config": f"beta=0.1 learning_rate={rate:g}", "learning_rate": rate}
        records = records.assign(**names, run=records["run"] + f" {rate:g}")
        tables.append((records, per_prompt.assign(run=per_prompt["run"] + f" {rate:g}")))
    records, per_prompt = (pd.concat(parts, ignore_index=True) for parts in zip(*tables, strict=True))
    return verdicts("step-size", View(records, per_prompt))


def test_a_lead_that_depends_on_the_learning_rate_is_told_by_rate() -> None:
    found = rates(small=-0.05, large=0.06)
    assert [found[n].outcome for n in ("rate", "large rate", "small rate")] == [SUPPORTED, SUPPORTED, CONTRADICTED]
    assert found["rate"].effect.value == pytest.approx(0.11, abs=0.02)
    same = rates(small=0.06, large=0.06)
    assert same["rate"].outcome == INCONCLUSIVE
    one = verdicts("step-size", world({"online": 0.1, "offline": 0.0}))
    assert "fewer than two learning rates" in one["rate"].reason


def gone_far(falls: Mapping[str, float], end: float = 20.0) -> View:
    """A view in which the true win rate of each arm rises by .1 in three checkpoints of eight, then falls so much."""
    arms = {arm: ArmTruth(kl_range=(0.5, end)) for arm in falls}
    records, per_prompt, _ = make(arms, seeds=range(5), prompts=400, opponents=("sft",))
    number = per_prompt["step"] / 100
    fall = per_prompt["arm"].map(falls).astype(float) * (number - 3).clip(lower=0) / 5
    truth = 0.5 + 0.1 * number.clip(upper=3) / 3 - fall
    won = (np.random.default_rng(0).random(len(truth)) < truth).astype(float)
    per_prompt = per_prompt.assign(oracle_win=won)
    each = per_prompt.groupby(["run", "step"])["oracle_win"].agg(["mean", "sem"]).reset_index()
    names = {"mean": "oracle_win_rate", "sem": "oracle_win_rate_se"}
    records = records.drop(columns=list(names.values())).merge(each.rename(columns=names), on=["run", "step"])
    return View(records, per_prompt, "sft")


def test_a_fall_that_only_the_truth_sees_is_told_where_an_arm_goes_far() -> None:
    hypothesis = registry.get("hypotheses", "over-optimisation")
    view = gone_far({"online": 0.4, "offline": 0.0})
    assert hypothesis.touched(view)
    found = verdicts("over-optimisation", view)
    assert found["R1 online truth"].outcome == SUPPORTED
    assert found["R1 online truth"].effect.value == pytest.approx(0.4, abs=0.04)
    assert "by the true preference" in found["R1 online truth"].reason
    assert found["R1 offline truth"].outcome != SUPPORTED
    assert [found[f"{arm} ends below SFT"].outcome for arm in ("online", "offline")] == [SUPPORTED, CONTRADICTED]
    assert found["online ends below SFT"].effect.value == pytest.approx(0.3, abs=0.04)
    dial = hypothesis.dial(view)
    assert [round(line[-1].value, 1) for name, line in dial.series.items() if "truth" in name] == [0.2, 0.6]
    assert [p.label for p in dial.series["online by the judge"]] == [f"step {n}00" for n in range(1, 9)]
    assert not hypothesis.touched(gone_far({"online": 0.4, "offline": 0.0}, end=6.0))
    assert not hypothesis.touched(world({"online": 0.1, "offline": 0.0}))  # where the truth is not known


def test_geometry_is_the_cause_and_is_not() -> None:
    cause = geometry((0.0, 0.06, 0.12), (0.09, 0.06, 0.03))
    assert {n: v.outcome for n, v in cause.items()} == dict.fromkeys(cause, SUPPORTED)
    assert cause["geometry"].effect.value == pytest.approx(0.12, abs=0.02)
    # Four doublings, 1.835 nats: gains of 0.36 and 0.12 are 0.131 per nat apart, so 0.12 of gap are 0.092 per tenth.
    assert cause["geometry knob"].effect.value == pytest.approx(4 * 0.06 / 1.835, abs=0.01)
    assert cause["geometry predicts"].effect.value == pytest.approx(-0.092, abs=0.02)
    turned = geometry((0.12, 0.06, 0.0), (0.09, 0.06, 0.03))
    assert (turned["geometry"].outcome, turned["geometry predicts"].outcome) == (CONTRADICTED, CONTRADICTED)
    idle = geometry((0.06, 0.06, 0.06), (0.06, 0.06, 0.06))
    assert idle["geometry"].outcome == INCONCLUSIVE
    blind = geometry((0.0, 0.06, 0.12), (0.06, 0.06, 0.06))["geometry predicts"]
    assert blind.outcome == INCONCLUSIVE
    assert np.isnan(blind.effect.value)
    assert "alike" in blind.reason


def test_a_place_that_is_an_estimate_is_drawn_with_its_error() -> None:
    truth = {under(a, w): ArmTruth() for w in ("peak-in", "") for a in ("online", "offline")}
    records, per_prompt, _ = make(truth, opponents=("golden_policy",), prompts=60)
    best = pd.concat([best_of_n_rows(0.5, g, variant=w) for w, g in (("peak-in", 0.09), ("", 0.06))])
    hypothesis = registry.get("hypotheses", "geometry")
    dial = hypothesis.dial(View(records, per_prompt, best_of_n=best))
    points = dial.series["online − offline"]
    assert [p.label for p in points] == ["peak-in", "as opened"]
    assert all(p.x_interval[0] < p.x < p.x_interval[1] for p in points)
    table, [drawn] = dial_chart(dial).numbers, dial_chart(dial).panels[0].series
    assert list(table["x lower"]) == [p.x_interval[0] for p in points]
    assert drawn.x_bars is not None
    assert np.allclose(drawn.x_bars, np.transpose([p.x_interval for p in points]))
    bare = Dial("x", "y", {"a": tuple(replace(p, x_interval=(np.nan, np.nan)) for p in points)})
    assert list(dial_chart(bare).numbers.columns) == ["series", "label", "x", "y", "lower", "upper"]
    assert dial_chart(bare).panels[0].series[0].x_bars is None
    equal = dial_chart(replace(bare, diagonal=True)).panels[0].series[-1]
    assert np.array_equal(equal.x, equal.y)
    assert list(np.asarray(equal.x)) == [min(p.x for p in points), max(p.x for p in points)]


def test_gains_that_differ_by_their_errors_alone_are_called_alike() -> None:
    rng = np.random.default_rng(0)
    se = np.array([0.01, 0.02, 0.03])

    def told_apart(shift: float) -> float:
        means = 0.2 + shift * np.arange(3)
        drawn = rng.normal(means, se, size=(2000, 2, 3))
        p = [heterogeneity([list(zip(seed, se, strict=True)) for seed in two]) for two in drawn]
        return float(np.mean(np.array(p) < 0.05))

    assert told_apart(0.0) == pytest.approx(0.05, abs=0.015)
    assert told_apart(0.05) > 0.95


def test_nearness_helps_or_harms() -> None:
    names = ("sft-vs-sft", "sft-vs-mid", "mid-vs-final", "final-vs-final")
    for sign, outcome in ((1, SUPPORTED), (-1, CONTRADICTED)):
        gaps = dict(zip(names, (0.05 * sign, 0.05 * sign, -0.05 * sign, -0.05 * sign), strict=True))
        found = verdicts("which-data", world({"online": 0.1, "offline": 0.0, "final-and-data": 0.0, **gaps}))
        assert found["R12"].outcome == outcome
        assert found["R12"].effect.value == pytest.approx(0.1 * sign, abs=0.02)


def test_the_loss_is_the_cause_and_is_not() -> None:
    base = {"online": 0.12, "offline": 0.0}
    closed = world({**base, "online[best-of-two]": 0.1, "offline[best-of-two]": 0.1, "shuffled[best-of-two]": 0.1})
    gap = {"online[best-of-two]": 0.1, "offline[best-of-two]": -0.02, "shuffled[best-of-two]": 0.1}
    stays = world({**base, **gap}, **SHARP)
    assert outcomes("noncontrastive", closed)["H4"] == SUPPORTED
    assert outcomes("noncontrastive", closed)["R10 coverage"] == INCONCLUSIVE  # of a gap that is not there
    assert outcomes("noncontrastive", stays) == {
        "H4": CONTRADICTED, "R10 gap": SUPPORTED, "R10 shuffled": SUPPORTED, "R10 coverage": SUPPORTED
    }  # fmt: skip


def test_the_gap_under_each_loss() -> None:
    gaps = {"online": 0.1, "offline": 0.0}
    gaps |= {"online[dpo]": 0.1, "offline[dpo]": 0.0, "online[slic]": 0.0, "offline[slic]": 0.1}
    view = world(gaps)
    found = {n: outcome for n, outcome in outcomes("losses", view).items() if n.startswith("gap")}
    assert found == {"gap dpo": SUPPORTED, "gap slic": CONTRADICTED}
    dial = registry.get("hypotheses", "losses").dial(view)
    assert [p.label for p in dial.series["online − offline"]] == ["as opened", "dpo", "slic"]


def test_which_share_of_the_gap_each_closes() -> None:
    """HyPO, RLOO and offline under another loss, against offline as opened."""
    gaps = {"online": 0.12, "offline": 0.0, "offline-hypo": 0.02, "online-soft": 0.12, "online-soft[rloo]": 0.12}
    view = world(gaps | {"online[smoothed]": 0.1, "offline[smoothed]": 0.0, "offline[dpo]": 0.12}, **SHARP)
    found = verdicts("losses", view)
    assert {n: v.outcome for n, v in found.items()} == {
        "gap smoothed": SUPPORTED, "closed by offline[dpo]": SUPPORTED, "closed by offline[smoothed]": CONTRADICTED,
        "closed by offline-hypo": CONTRADICTED, "closed by online-soft": SUPPORTED,
        "closed by online-soft[rloo]": SUPPORTED,
    }  # fmt: skip
    share = found["closed by offline-hypo"].share
    assert share is not None
    assert share.value == pytest.approx(1 / 6, abs=0.1)
    dial = registry.get("hypotheses", "losses").dial(view)
    gains = dial.series["arm − offline as opened"]
    assert [p.label for p in gains] == [
        "offline[dpo]", "offline[smoothed]", "offline-hypo", "online-soft", "online-soft[rloo]"
    ]  # fmt: skip
    assert len({p.x for s in dial.series.values() for p in s}) == sum(map(len, dial.series.values()))


def test_where_offline_leads_no_share_is_given() -> None:
    """An arm that is worse than offline does not "close" a gap in which offline is ahead."""
    view = world({"online": 0.0, "offline": 0.12, "offline[dpo]": 0.0}, **SHARP)
    found = verdicts("losses", view)["closed by offline[dpo]"]
    assert found.outcome == INCONCLUSIVE
    assert found.share is None or np.isnan(found.share.value)
    assert "no lead to close" in found.reason


def test_more_candidates_under_imitation() -> None:
    gaps = {"online": 0.12, "offline": 0.0, "online[best-of-two]": 0.05, "offline[best-of-two]": 0.0}
    found = outcomes("noncontrastive", world(gaps | {"online-best-of-4[best-of-two]": 0.12}, **SHARP))
    assert (found["Best-of-4"], found["Best-of-4 gap"]) == (SUPPORTED, SUPPORTED)
    found = outcomes("noncontrastive", world(gaps | {"online-best-of-4[best-of-two]": 0.0}, **SHARP))
    assert (found["Best-of-4"], found["Best-of-4 gap"]) == (CONTRADICTED, CONTRADICTED)


def test_staleness_moves_the_frontier_or_does_not() -> None:
    moves = {"online": 0.1, "offline": 0.0, "sync-4": 0.1, "sync-16": 0.1, "sync-500": 0.02, "window-2": 0.1}
    view = world(moves, **SHARP)
    found = outcomes("staleness", view)
    assert (found["frontier"], found["semi-online"]) == (SUPPORTED, SUPPORTED)
    dial = registry.get("hypotheses", "staleness").dial(view)
    assert [p.x for p in dial.series["sync interval"]] == [4, 16, 500]
    assert [p.value for p in dial.series["sync interval"]] == pytest.approx([0, 0, -0.08], abs=0.02)
    assert [p.x for p in dial.series["shuffle window"]] == [2]
    rests = world({"online": 0.1, "offline": 0.0, "sync-16": 0.1, "sync-500": 0.1})
    assert outcomes("staleness", rests)["frontier"] != SUPPORTED


def test_reuse_and_the_mixture_move_the_frontier_or_only_the_speed() -> None:
    gaps = {"online": 0.1, "offline": 0.0, "reuse-4": 0.1, "reuse-16": 0.02, "mix-25": 0.1, "mix-50": 0.1}
    view = world(gaps, **SHARP)
    found = outcomes("staleness", view)
    frontier = {arm: found[f"frontier {arm}"] for arm in ("reuse-4", "reuse-16", "mix-25", "mix-50")}
    assert frontier == {"reuse-4": SUPPORTED, "reuse-16": CONTRADICTED, "mix-25": SUPPORTED, "mix-50": SUPPORTED}
    dial = registry.get("hypotheses", "staleness").dial(view)
    assert [p.x for p in dial.series["times trained on"]] == [4, 16]
    assert [p.x for p in dial.series["reference, %"]] == [25, 50]
    ranges = {"online": 14.0, "reuse-4": 14.0, "mix-50": 7.0}
    records, per_prompt, _ = make(
        {"offline": ArmTruth(), **{arm: ArmTruth(kl_range=(0.5, end)) for arm, end in ranges.items()}},
        prompts=200, seeds=range(5), opponents=("golden_policy",),
    )  # fmt: skip
    speeds = verdicts("staleness", View(records, per_prompt))
    assert speeds["speed mix-50"].outcome == SUPPORTED
    assert speeds["speed mix-50"].effect.value == pytest.approx(7, abs=1)
    assert speeds["speed reuse-4"].outcome == INCONCLUSIVE


def test_stale_pairs_are_slower() -> None:
    truth = {"online": ArmTruth(kl_range=(0.5, 14.0)), "sync-500": ArmTruth(kl_range=(0.5, 7.0)), "offline": ArmTruth()}
    records, per_prompt, _ = make(truth, seeds=range(5), prompts=200, opponents=("golden_policy",))
    found = verdicts("staleness", View(records, per_prompt))["speed"]
    assert found.outcome == SUPPORTED
    assert found.effect.value == pytest.approx(7, abs=1)


def test_the_proxy_is_the_bottleneck() -> None:
    found = verdicts(
        "bottleneck", world({"online": 0.05, "offline": 0.0, "online-golden": 0.15, "offline-proxy": -0.05})
    )
    assert {n: v.outcome for n, v in found.items()} == {
        "proxy online": SUPPORTED, "writing": SUPPORTED, "labels offline": SUPPORTED, "writer, proxy labels": SUPPORTED
    }  # fmt: skip
    value = found["proxy online"].share
    assert value is not None
    assert value.value == pytest.approx(2, abs=0.8)  # 0.10 lost to the proxy, of a gap of 0.05


def proxies(seeds: tuple[int, ...] = (0, 1, 2, 3, 4)) -> tuple[dict[str, float], Parts]:
    """Six proxies' accuracies and the provenance that states them."""
    accuracy = dict(zip(("labels-1000", "labels-4000", "labels-16000", "", "proxy-small", "proxy-large"),
                        (0.62, 0.7, 0.78, 0.82, 0.74, 0.85), strict=True))  # fmt: skip
    rows = [{"seed": s, "part": under("proxy judge", v), "what": "held out accuracy", "value": a + 0.01 * s}
            for v, a in accuracy.items() for s in seeds]  # fmt: skip
    return accuracy, rows


def test_the_proxys_dial() -> None:
    accuracy, parts = proxies()
    for per_point, outcome in ((0.8, SUPPORTED), (-0.8, CONTRADICTED)):
        gaps = {under("online", v): per_point * (a - 0.72) for v, a in accuracy.items()}
        view = world({**gaps, "offline": 0.0}, parts)
        found = verdicts("proxy-dial", view)
        assert found["dial"].outcome == outcome
        assert found["dial"].effect.value == pytest.approx(0.1 * per_point, abs=0.03)  # per ten points
        assert found["weak proxy"].outcome == outcome
    dial = registry.get("hypotheses", "proxy-dial").dial(view)
    assert len(dial.series["on held-out D_golden"]) == 6
    assert outcomes("proxy-dial", world({**gaps, "offline": 0.0}))["dial"] == INCONCLUSIVE  # no accuracy recorded


def sizes(seeds: tuple[int, ...] = (0, 1, 2, 3, 4)) -> Parts:
    return [{"seed": s, "part": under("SFT policy", v), "what": "parameters", "value": n}
            for v, n in (("small", 60_000), ("", 240_000), ("large", 960_000)) for s in seeds]  # fmt: skip


def test_size_closes_the_gap_slowly() -> None:
    gaps = {"small": (0.0, -0.12, -0.12), "": (0.05, -0.04, -0.02), "large": (0.1, 0.03, 0.09)}
    names = ("online", "offline", "shuffled")
    planted = {under(n, v): g for v, row in gaps.items() for n, g in zip(names, row, strict=True)}
    view = world(planted, sizes(tuple(range(7))), **SHARP)
    assert outcomes("scaling", view) == {
        "H5": SUPPORTED, "R11 peak": SUPPORTED, "R11 gap": SUPPORTED, "R11 tandem": SUPPORTED
    }  # fmt: skip
    dial = registry.get("hypotheses", "scaling").dial(view)
    assert [p.x for p in dial.series["offline"]] == pytest.approx([0, 2, 4])
    assert [p.value for p in dial.series["online"]] == [1, 1, 1]
    further = {f.name: f.of(view) for f in registry.get("hypotheses", "scaling").more}
    assert set(further["frontiers"]) == {*names, *(under(n, "large") for n in names)}
    best = [[p.value for p in further["absolute"].series[n]] for n in ("offline", "online")]
    assert [a / b for a, b in zip(*best, strict=True)] == pytest.approx(
        [p.value for p in dial.series["offline"]], abs=0.01
    )
    flat = {under(n, v): g for v in ("small", "", "large") for n, g in zip(names, (0.1, 0.0, 0.0), strict=True)}
    assert outcomes("scaling", world(flat, sizes()))["R11 gap"] == INCONCLUSIVE
    assert "parameters" in verdicts("scaling", world(flat))["R11 gap"].reason
    records, per_prompt, _ = make({a: ArmTruth() for a in flat}, prompts=20, opponents=("golden_policy",))
    bare = View(records, per_prompt.iloc[:0], pipeline=sizes())  # wins prompt by prompt are not kept
    assert "prompt by prompt" in verdicts("scaling", bare)["H5"].reason
    assert registry.get("hypotheses", "scaling").dial(bare) is None


def classified(online: float, offline: float, gap: float) -> dict[str, Verdict]:
    truth = {"online": ArmTruth(gap=gap, accuracy_end=online), "offline": ArmTruth(accuracy_end=offline)}
    records, per_prompt, _ = make(truth, seeds=range(5), prompts=300, opponents=("golden_policy",), seed_sd=0.0)
    parts = [{"seed": s, "part": "proxy judge", "what": w, "value": v}
             for s in range(5) for w, v in (("held out accuracy", 0.8), ("held out pairs", 1024))]  # fmt: skip
    return verdicts("classification", View(records, per_prompt, pipeline=parts))


def test_classification() -> None:
    paper = classified(online=0.52, offline=0.68, gap=0.1)
    assert (paper["H3 proxy"].outcome, paper["H3"].outcome) == (SUPPORTED, CONTRADICTED)
    assert paper["R6"].outcome == paper["R13"].outcome == INCONCLUSIVE  # no probe
    assert "probe" in paper["R6"].reason
    assert classified(online=0.68, offline=0.52, gap=0.1)["H3"].outcome == SUPPORTED
    assert classified(online=0.6, offline=0.6, gap=0.1)["H3"].outcome == INCONCLUSIVE


def probe_table(proxy: tuple[float, float], online: float, offline: float, writer: float) -> pd.DataFrame:
    """A probe of five seeds: the proxy's accuracy at the first and last checkpoint, the others' throughout."""
    rows = []
    for seed in range(5):
        for step, first in ((10, True), (100, False)):
            found = {("proxy", ""): proxy[0] if first else proxy[1], ("writer", "online"): writer}
            found |= {("final", "online"): online, ("final", "offline"): offline}
            rows += [
                {"seed": seed, "recording": "online", "step": step, "classifier": who, "arm": arm, "pairs": 1024,
                 "ties": 0, "accuracy": value + 0.002 * seed, "accuracy_se": (value * (1 - value) / 1024) ** 0.5}
                for (who, arm), value in found.items()
            ]  # fmt: skip
    return pd.DataFrame(rows)[list(PROBE_COLUMNS)]


def probed(proxy: tuple[float, float], online: float, offline: float, writer: float) -> dict[str, str]:
    """Outcomes from a `probe_table`."""
    truth = {"online": ArmTruth(gap=0.1), "offline": ArmTruth()}
    records, per_prompt, _ = make(truth, seeds=range(5), prompts=40, opponents=("golden_policy",), seed_sd=0.005)
    table = probe_table(proxy, online, offline, writer)
    return outcomes("classification", View(records, per_prompt, probe=table))


def test_classifiers_along_the_online_run() -> None:
    paper = probed(proxy=(0.8, 0.65), online=0.55, offline=0.6, writer=0.5)
    assert (paper["R6"], paper["R6 decay"], paper["R13"]) == (SUPPORTED, SUPPORTED, SUPPORTED)
    other = probed(proxy=(0.65, 0.8), online=0.55, offline=0.85, writer=0.7)
    assert (other["R6"], other["R6 decay"], other["R13"]) == (CONTRADICTED, CONTRADICTED, CONTRADICTED)


def test_the_figure_of_classifiers_along_the_run() -> None:
    """Figure 6 shows the probe's table: a curve a classifier, means over seeds with an interval that covers them."""
    records, per_prompt, _ = make(prompts=20, opponents=("golden_policy",))
    table = probe_table(proxy=(0.8, 0.65), online=0.55, offline=0.6, writer=0.5)
    dial = along_stream(View(records, per_prompt, probe=table))
    assert dial is not None
    mean = 0.004  # of what `probe_table` adds to seeds 0 to 4
    expected = {"proxy": (0.8, 0.65), "online": (0.55, 0.55), "offline": (0.6, 0.6)}
    expected["the run's policy at that step"] = (0.5, 0.5)
    assert {n: tuple(p.value for p in points) for n, points in dial.series.items()} == {
        n: pytest.approx(tuple(v + mean for v in values)) for n, values in expected.items()
    }
    for points in dial.series.values():
        assert [p.x for p in points] == [10, 100]
        assert all(p.lower < p.value < p.upper for p in points)
    assert along_stream(View(records, per_prompt)) is None


@pytest.mark.parametrize(("accuracy", "gap", "expected"), [(0.7, 0.1, SUPPORTED), (0.55, 0.0, CONTRADICTED)])
def test_a_pointwise_proxy_against_the_pairwise_one(accuracy: float, gap: float, expected: str) -> None:
    """Planted: it classifies and teaches as the pairwise proxy does (0.7, a gap of 0.1), or worse in both."""
    variants = ("proxy-bradley-terry", "proxy-local")
    truth = {
        "online": ArmTruth(gap=0.1),
        "offline": ArmTruth(),
        **{f"online[{v}]": ArmTruth(gap=gap) for v in variants},
    }
    records, per_prompt, _ = make(truth, seeds=range(7), prompts=2000, opponents=("golden_policy",), seed_sd=0.0)
    rows = [
        {"seed": seed, "recording": "online", "step": step, "classifier": who, "arm": arm, "pairs": 1024, "ties": 0,
         "accuracy": value + 0.002 * seed, "accuracy_se": 0.014}
        for seed in range(7) for step in (10, 100)
        for who, arm, value in [("proxy", "", 0.7), *(("judge", v, accuracy) for v in variants)]
    ]  # fmt: skip
    view = View(records, per_prompt, probe=pd.DataFrame(rows)[list(PROBE_COLUMNS)])
    found = outcomes("pointwise", view)
    assert found["Bradley-Terry accuracy"] == found["local accuracy"] == expected
    assert found["Bradley-Terry frontier"] == found["local frontier"] == expected
    unprobed = verdicts("pointwise", View(records, per_prompt))["local accuracy"]
    assert unprobed.outcome == INCONCLUSIVE
    assert "probe" in unprobed.reason


# ------------------------------------------------------------------------------------------------- nothing planted


def test_with_nothing_planted_verdicts_are_rarely_sure() -> None:
    """Five seeds of equal arms: a difference is called at most as often as its intervals miss, 5%; a share of a gap
    that is not there is undefined at least as often as the gap is not called."""
    called = {"ahead": 0, "share": 0}
    worlds = 40
    for i in range(worlds):
        view = world({"online": 0.0, "offline": 0.0, "shuffled": 0.0}, prompts=40, checkpoints=6, rng_seed=i)
        called["ahead"] += ahead("x", "shuffled", "offline").judge(view).outcome != INCONCLUSIVE
        called["share"] += share("x", ("shuffled", "offline")).judge(view).outcome != INCONCLUSIVE
    assert called["ahead"] <= 7  # 5% of 40 is 2; P(more than 7) < 0.1%
    assert called["share"] <= 7


def test_one_of_the_arms_is_missing() -> None:
    view = world({"online": 0.1, "offline": 0.0})
    rule = registry.get("hypotheses", "coverage").rules[0]
    assert rule.judge(view).outcome == INCONCLUSIVE
    assert "shuffled" in rule.judge(view).reason
    judged, untested = judge_all(ALL, view)
    assert [j.hypothesis.name for j in judged] == ["opening", "classification"]
    assert len(untested) == len(ALL) - 2


def test_arms_that_never_meet_in_kl() -> None:
    truth = {"online": ArmTruth(kl_range=(3.0, 9.0)), "offline": ArmTruth(), "shuffled": ArmTruth(kl_range=(0.2, 0.9))}
    records, per_prompt, _ = make(truth, prompts=60, opponents=("golden_policy",))
    found = verdicts("coverage", View(records, per_prompt))
    assert found["R4 shuffled"].outcome == INCONCLUSIVE
    assert "None of the KL budgets named lies between the first and the last" in found["R4 shuffled"].reason
    asked = found["H1"].share
    assert asked is None or np.isnan(asked.value)  # undefined: never 0


def test_arms_are_compared_at_the_configurations_that_both_ran() -> None:
    """A pooled arm whose later configurations are better: against a one-configuration arm only the first counts."""
    truth = {"online": ArmTruth(), "offline": ArmTruth(configs=4, spread=-0.2)}
    records, per_prompt, _ = make(truth, seeds=range(5), prompts=300, opponents=("golden_policy",), seed_sd=0.0)
    view = View(records, per_prompt)
    found = view.contrast({"offline": 1.0, "online": -1.0})
    assert found.found.configs == ("beta=0.1 learning_rate=1e-05",)
    assert [b.mean.value for b in found.found.judged] == pytest.approx([0, 0, 0, 0], abs=0.03)
    assert compare(view.curves, "offline", "online").average.value > 0.1


def test_arms_that_share_no_configuration_say_so() -> None:
    records, per_prompt, _ = make(
        {"online": ArmTruth(), "offline": ArmTruth()}, prompts=20, opponents=("golden_policy",)
    )
    records.loc[records["arm"] == "online", "config"] = "learning_rate=1e-05"  # a loss that has no beta
    found = ahead("gap", "online", "offline").judge(View(records, per_prompt))
    assert found.outcome == INCONCLUSIVE
    assert "ran no configuration in common" in found.reason


def test_a_rank_correlation_is_taken_at_equal_kl() -> None:
    """Accuracy and win rate both grow with KL; over configurations at one KL they are planted together, or apart."""

    def found(sign: float) -> Verdict:
        arms = {"online": ArmTruth(), "offline": ArmTruth(configs=6, spread=0.3)}
        records, per_prompt, _ = make(arms, seeds=range(5), prompts=200, opponents=("golden_policy",), seed_sd=0.0)
        place = records.groupby("arm")["config"].transform(lambda c: pd.factorize(c)[0])
        records["accuracy"] = 0.5 + 0.01 * records["step"] / 100 - sign * 0.01 * place
        return verdicts("classification", View(records, per_prompt))["R9"]

    assert (found(1.0).outcome, found(-1.0).outcome) == (CONTRADICTED, SUPPORTED)
    few = make({"online": ArmTruth(), "offline": ArmTruth(configs=3)}, prompts=30, opponents=("golden_policy",))
    assert "configurations" in verdicts("classification", View(few[0], few[1]))["R9"].reason


# -------------------------------------------------------------------------------------------------- families


@pytest.mark.parametrize("seed", range(5))
def test_adjusted_p_values_are_those_of_statsmodels(seed: int) -> None:
    p = np.random.default_rng(seed).uniform(0, 0.2, 9) ** 2
    for ours, theirs in ((holm, "holm"), (benjamini_hochberg, "fdr_bh")):
        assert ours(list(p)) == pytest.approx(multipletests(p, method=theirs)[1])
        holes = ours([np.nan, *p, np.nan])
        assert holes[1:-1] == pytest.approx(ours(list(p)))
        assert np.isnan([holes[0], holes[-1]]).all()
    assert holm([]) == []


def test_the_primary_family_is_held_as_a_whole() -> None:
    view = world({"online": 0.12, "offline": 0.0, "online-golden": 0.2, "offline-proxy": 0.0})
    assert primary_of(view, ALL) == ("writing", "writing truth", "proxy online")
    assert primary_of(world({"online": 0.1, "offline": 0.0}), ALL) == ("R2", "R2 truth")
    assert primary_of(view, ALL, ["R2"]) == ("R2",)
    with pytest.raises(AligngapError, match="primary: no rule `R22`; did you mean `R2`"):
        primary_of(view, ALL, ["R22"])
    judged, _ = judge_all(ALL, view)
    found = {v.name: v for j in correct(judged, ("writing", "proxy online")) for v in j.verdicts}
    assert (found["writing"].outcome, found["writing"].primary) == (SUPPORTED, True)
    assert found["writing"].p <= found["writing"].p_adjusted <= 2 * found["writing"].p + 1e-12
    assert not found["R2"].primary
    shaky = [replace(judged[0], verdicts=tuple(replace(v, p=0.04) for v in judged[0].verdicts))]
    names = tuple(v.name for v in judged[0].verdicts)
    assert {v.outcome for v in correct(shaky, names)[0].verdicts} <= {INCONCLUSIVE, CENSORED}
    assert SUPPORTED in {v.outcome for v in correct(shaky, names[:1])[0].verdicts}


# ------------------------------------------------------------------------------------------------------ statistics


def test_thresholds_decide() -> None:
    assert decide((0.51, 2.0), HALF, HALF) == SUPPORTED
    assert decide((-1.0, 0.49), HALF, HALF) == CONTRADICTED
    assert decide((-np.inf, 0.4), HALF, HALF) == CONTRADICTED
    assert decide((0.4, np.inf), HALF, HALF) == INCONCLUSIVE
    assert decide((np.nan, 1.0)) == INCONCLUSIVE
    assert [alike(i, MARGIN) for i in ((0, 0), (-0.019, 0.019), (0.0, 0.03), (0.021, 0.05), (-0.3, -0.03))] == [
        SUPPORTED, SUPPORTED, INCONCLUSIVE, CONTRADICTED, CONTRADICTED
    ]  # fmt: skip


def seedwise(values: np.ndarray, noise: np.ndarray) -> Seedwise:
    """A number a seed whose prompts add noise of this size."""
    influence = np.zeros((len(values), 1, len(values)))
    influence[np.arange(len(values)), 0, np.arange(len(values))] = noise
    ids = tuple(map(str, range(len(values))))
    return Seedwise(tuple(range(len(values))), ids, values[:, None], influence, np.zeros((len(values), 1)))


@pytest.mark.parametrize(("seeds", "truth"), [(3, 0.3), (5, 1.0)])
def test_the_ratios_interval_covers(seeds: int, truth: float) -> None:
    """300 studies with noise between seeds: the Fieller interval holds the share 93% of the time or more."""
    rng = np.random.default_rng(5)
    held = defined = 0
    for _ in range(300):
        bottom, top = (seedwise(m + rng.normal(0, 0.01, seeds), np.full(seeds, 0.001)) for m in (0.1, 0.1 * truth))
        value, (low, high) = ratio(top, bottom)
        defined += bool(np.isfinite(value.value))
        held += low <= truth <= high
    assert defined > 250
    assert held >= 0.93 * defined


def test_a_share_of_nothing_is_undefined() -> None:
    rng = np.random.default_rng(0)
    top, bottom = (seedwise(rng.normal(m, 0.02, 5), np.full(5, 0.01)) for m in (0.1, 0.0))
    value, interval = ratio(top, bottom)
    assert np.isnan([value.value, *interval]).all()


def test_slope_weights() -> None:
    x = np.array([1.0, 2.0, 4.0])
    assert slope_weights(x) @ (3 * x + 7) == pytest.approx(3)
    assert np.isnan(slope_weights([2.0, 2.0])).all()


# ---------------------------------------------------------------------------------------------------- in the report


def save(folder: Path, frames: tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]) -> Path:
    tables = zip(
        ("records", "per_prompt", "samples"), frames, (RECORD_COLUMNS, PER_PROMPT_COLUMNS, SAMPLE_COLUMNS), strict=True
    )
    for name, frame, columns in tables:
        write_table(folder / f"{name}.parquet", frame, columns)
    return folder


@pytest.mark.filterwarnings("error")
def test_the_report_has_a_section_for_each(tmp_path: Path) -> None:
    gaps = {"online": 0.1, "offline": 0.0, "shuffled": 0.02, "window-2": 0.1, "sync-16": 0.1, "sync-500": 0.0,
            "online[dpo]": 0.1, "offline[dpo]": 0.0, "my own": 0.0}  # fmt: skip
    records, per_prompt, samples = make(
        {a: ArmTruth(gap=g) for a, g in gaps.items()}, prompts=60, opponents=("golden_policy",)
    )
    records, per_prompt = same_as("online", "twin", records, per_prompt)
    write_table(tmp_path / "probe.parquet", probe_table((0.8, 0.65), 0.55, 0.6, 0.5), PROBE_COLUMNS)
    page = build_report(save(tmp_path, (records, per_prompt, samples))).read_text()
    text = (tmp_path / "summary.md").read_text()
    for name in ("coverage", "staleness", "losses", "classification"):
        assert f"## {name}: " in text
        assert f'id="why-{name}"' in page
        assert (tmp_path / "figures" / f"{name}.png").exists()
        assert (tmp_path / "figures" / f"{name}.csv").exists()
    assert (
        "Not run: reversed, blocks-32, window-32, shuffled-golden. To make them: aligngap run coverage --set seeds=3"
        in text
    )
    for h in (registry.get("hypotheses", name) for name in ("scaling", "proxy-dial", "geometry")):
        lacking = ", ".join(a for a in h.arms if a not in gaps)
        assert f"{h.question} Not run: {lacking}. To test it: aligngap run {h.study} --set seeds=3" in text
    for name in ("along-online", "accuracy", "winners"):
        assert (tmp_path / "figures" / f"classification-{name}.png").exists()
    drawn = pd.read_csv(tmp_path / "figures" / "classification-along-online.csv")
    assert drawn[drawn["series"] == "proxy"].iloc[:, 3].tolist() == pytest.approx([0.804, 0.654])
    assert "along the online run&#39;s own pairs (Fig. 6)" in page
    assert "share of the opening gap" in page
    assert "R4 shuffled" in headline(tmp_path)
    opening = pd.read_csv(tmp_path / "figures" / "opening.csv")
    assert set(opening["arm"]) == {"online", "offline", "my own", "sft"}  # the others stand in their sections


def test_a_hypothesis_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The example package as if it were installed: one file, one line, a section in the report."""
    monkeypatch.syspath_prepend(str(EXTRAS))
    declared = tomllib.loads((EXTRAS / "pyproject.toml").read_text())["project"]["entry-points"]
    monkeypatch.setattr(
        registry, "entry_points", lambda group: [EntryPoint(n, v, group) for n, v in declared.get(group, {}).items()]
    )
    frames = make(prompts=60, opponents=("golden_policy",))
    build_report(save(tmp_path, frames))
    text = (tmp_path / "summary.md").read_text()
    assert "## length: Does online win by writing more?" in text
    assert "| longer |" in text
    sys.modules.pop("aligngap_extras_length", None)


def test_hypotheses_are_frozen() -> None:
    with pytest.raises(AttributeError):
        ALL[0].name = "x"  # type: ignore[misc]
    assert replace(ALL[0], name="x").name == "x"
