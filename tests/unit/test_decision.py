"""The decision of `aligngap compare` on planted truths: clearly better, equal, noisy, a judge that knows nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from synthetic_records import ArmTruth, make, planted_clouds

from aligngap.hypotheses.decision import OFFLINE, ONLINE, OPEN, SEMI, Decision, decide, prompts_needed
from aligngap.hypotheses.view import View
from aligngap.report.decision import cheaper_arms, costs_of, details, rows, sentence
from aligngap.stats.compare import curves_for
from aligngap.stats.power import Spread, power

MARGIN = 0.03
REACH = (0.45, 15.0)


def judge(right: float, pairs: int = 400, seeds: int = 3) -> list[dict[str, Any]]:
    found = []
    for seed in range(seeds):
        for what, value in (("held out accuracy", right), ("held out pairs", pairs)):
            found.append({"seed": seed, "part": "golden judge", "what": what, "value": value})
    return found


def decided(
    gaps: Mapping[str, float], *, prompts: int = 400, seeds: int = 3, right: float = 0.7, rng_seed: int = 0,
    seed_sd: float = 0.005, cheaper: Sequence[str] = (),
) -> Decision:  # fmt: skip
    """The decision on clouds whose arms differ by constants at equal KL."""
    rng = np.random.default_rng(rng_seed)
    curves = curves_for(planted_clouds(rng, gaps, seeds=seeds, prompts=prompts, seed_sd=seed_sd), replicates=100)
    records, per_prompt, _ = make({a: ArmTruth(kl_range=REACH) for a in gaps}, (0,), prompts=4, checkpoints=2)
    view = View(records, per_prompt, "sft", curves=curves, pipeline=judge(right, seeds=seeds))
    return decide(view, MARGIN, cheaper)


def test_online_clearly_better_is_said() -> None:
    d = decided({"online": 0.15, "offline": 0.0})
    assert (d.outcome, d.choose) == (ONLINE, "online")
    assert d.gap.average_interval[0] > 0
    assert sentence(d, {}).startswith("Train online: it gains +0.1")


def test_equal_arms_are_enough_only_when_the_interval_excludes_the_margin() -> None:
    many = decided({"online": 0.0, "offline": 0.0}, prompts=4000, seed_sd=0.0)
    assert (many.outcome, many.choose) == (OFFLINE, "offline")
    assert many.gap.average_interval[1] < MARGIN
    assert sentence(many, {}).startswith("Offline is enough: ")
    few = decided({"online": 0.0, "offline": 0.0}, prompts=30)
    assert few.gap.average_interval[1] >= MARGIN
    assert few.outcome == OPEN


def test_offline_ahead_is_enough() -> None:
    assert decided({"online": 0.0, "offline": 0.15}).outcome == OFFLINE


@pytest.mark.parametrize("seeds", [1, 3])
def test_noise_is_not_told_and_says_how_much_more(seeds: int) -> None:
    d = decided({"online": 0.02, "offline": 0.0}, prompts=40, seeds=seeds, rng_seed=2)
    assert (d.outcome, d.choose, d.doubt) == (OPEN, "", "noise")
    assert d.need is not None
    assert d.need.prompts is not None
    assert d.need.prompts > 40
    assert (d.need.seeds is None) == (seeds == 1)
    said = sentence(d, {})
    assert said.startswith(f"Cannot tell yet: needs about {d.need.prompts:,} more prompts")
    assert ("more seed" in said) == (seeds == 3)


def test_the_prompts_said_to_be_needed_have_the_power_and_no_fewer_have() -> None:
    for seeds, between in ((2, 0.0), (3, 1e-5)):
        s = Spread(between, between, 0.4, 0.0, seeds, 100)
        n = prompts_needed(s, MARGIN, seeds)
        assert n is not None
        assert power(s, MARGIN, seeds, n) >= 0.8 > power(s, MARGIN, seeds, n - 1)
    one = Spread(math.nan, math.nan, 0.4, 0.0, 1, 100)
    n = prompts_needed(one, MARGIN, 1)
    assert n is not None
    assert power(one, MARGIN, 1, n) >= 0.8 > power(one, MARGIN, 1, n - 1)


def test_seeds_that_differ_need_seeds_and_no_number_of_prompts_helps() -> None:
    assert prompts_needed(Spread(0.01, 0.02, 0.4, 0.0, 3, 100), MARGIN, 3) is None


def test_the_stalest_option_that_keeps_enough_is_recommended() -> None:
    gaps = {"online": 0.15, "semi-8": 0.15, "semi-32": 0.0, "offline": 0.0}
    d = decided(gaps, prompts=3000, seed_sd=0.0, cheaper=("semi-32", "semi-8"))
    assert (d.outcome, d.choose) == (SEMI, "semi-8")
    shares = {o.arm: o for o in d.options}
    assert shares["semi-8"].kept.value == pytest.approx(1.0, abs=0.1)
    assert shares["semi-32"].kept.value == pytest.approx(0.0, abs=0.1)
    low, high = shares["semi-8"].kept_interval
    assert low < 1.0 < high
    assert "semi-8" in sentence(d, {})
    assert [r[0] for r in rows(d, {})] == ["online", "semi-8", "semi-32", "offline"]


@pytest.mark.parametrize("right", [0.5, 0.53, 0.2])
def test_a_judge_near_chance_decides_nothing(right: float) -> None:
    d = decided({"online": 0.15, "offline": 0.0}, right=right)
    assert (d.outcome, d.doubt) == (OPEN, "judge")
    assert "not told from chance" in sentence(d, {})
    assert "near chance" in details(d)[0]


def test_a_weak_judge_is_named_beside_the_decision() -> None:
    d = decided({"online": 0.15, "offline": 0.0}, right=0.58)
    assert d.outcome == ONLINE
    assert "near chance" in details(d)[0]
    assert "near chance" not in details(decided({"online": 0.15, "offline": 0.0}, right=0.8))[0]


def test_arms_that_share_no_kl_are_not_told() -> None:
    records, per_prompt, _ = make(
        {"online": ArmTruth(kl_range=(0.4, 0.5)), "offline": ArmTruth(kl_range=(10.0, 12.0))}, (0,), prompts=20
    )
    d = decide(View(records, per_prompt, "sft", pipeline=judge(0.7, seeds=1)), MARGIN)
    assert (d.outcome, d.doubt) == (OPEN, "undefined")
    assert sentence(d, {}).startswith("Cannot tell yet: online and offline are not comparable at equal KL")


def test_how_often_the_decision_is_wrong() -> None:
    """20 planted studies each: with no gap online is called better at most as often as a 2.5% test may, with a gap of
    twice the margin offline is never called enough."""
    equal = [decided({"online": 0.0, "offline": 0.0}, prompts=100, rng_seed=i).outcome for i in range(20)]
    ahead = [decided({"online": 0.06, "offline": 0.0}, prompts=100, rng_seed=i).outcome for i in range(20)]
    assert equal.count(ONLINE) <= 2
    assert ahead.count(OFFLINE) == 0


def test_costs_are_means_over_an_arms_runs() -> None:
    found = costs_of({
        "a": {"arm": "online", "responses": 100, "tokens": 900, "seconds": 4.0},
        "b": {"arm": "online", "responses": 200, "tokens": 1100, "seconds": 6.0},
        "c": {"arm": "offline", "responses": 0, "tokens": 0, "seconds": None},
        "d": "not a cost",
    })  # fmt: skip
    assert (found["online"].responses, found["online"].tokens, found["online"].seconds) == (150, 1000, 5)
    assert math.isnan(found["offline"].seconds)
    assert rows(decided({"online": 0.15, "offline": 0.0}), found)[0][3:] == ("150", "1,000", "5.0")


def test_cheaper_arms_are_those_that_sync_less_often() -> None:
    arms = {"online": {"sync_every": 1}, "a": {"sync_every": 8}, "b": {"sync_every": 32}, "offline": {"behavior": "x"}}
    assert cheaper_arms(arms) == ["b", "a"]
