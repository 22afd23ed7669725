"""The decision of `aligngap compare` on planted truths: clearly better, equal, noisy, a judge that knows nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from synthetic_records import ArmTruth, hump, make, planted_clouds

from aligngap.hypotheses.decision import OFFLINE, ONLINE, OPEN, SEMI, Decision, best_kl, decide, gap_at, prompts_needed
from aligngap.hypotheses.view import View
from aligngap.report.decision import cheaper_arms, costs_of, details, next_command, rows, sentence
from aligngap.report.options import options_chart
from aligngap.stats.clouds import Clouds, keep
from aligngap.stats.power import Spread, power

MARGIN = 0.03
REACH = (0.45, 15.0)


def judge(right: float, pairs: int = 400, seeds: int = 3) -> list[dict[str, Any]]:
    found = []
    for seed in range(seeds):
        for what, value in (("held out accuracy", right), ("held out pairs", pairs)):
            found.append({"seed": seed, "part": "golden judge", "what": what, "value": value})
    return found


@cache
def stub(arms: tuple[str, ...]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Tables that name these arms; their numbers are not looked at where clouds are given."""
    return make({a: ArmTruth(kl_range=REACH) for a in arms}, (0,), prompts=4, checkpoints=2)[:2]


def viewed(
    gaps: Mapping[str, float], *, prompts: int = 400, seeds: int = 5, right: float = 0.7, rng_seed: int = 0,
    seed_sd: float = 0.005, shape: Callable[[np.ndarray], np.ndarray] = hump,
) -> View:  # fmt: skip
    """A view of clouds whose arms differ by constants at equal KL."""
    rng = np.random.default_rng([rng_seed, 1])
    clouds = planted_clouds(rng, gaps, seeds=seeds, prompts=prompts, seed_sd=seed_sd, shape=shape)
    records, per_prompt = stub(tuple(gaps))
    return View(records, per_prompt, "sft", clouds=clouds, pipeline=judge(right, seeds=seeds))


def decided(gaps: Mapping[str, float], cheaper: Sequence[str] = (), kl: float | None = None, **more: Any) -> Decision:
    """The decision on such a view."""
    return decide(viewed(gaps, **more), MARGIN, cheaper, kl)


def test_online_clearly_better_is_said() -> None:
    d = decided({"online": 0.15, "offline": 0.0})
    assert (d.outcome, d.choose) == (ONLINE, "online")
    assert d.gap.interval[0] > 0
    assert sentence(d, {}).startswith("Train online: it gains +0.1")


def test_equal_arms_are_enough_only_when_the_margin_is_excluded() -> None:
    many = decided({"online": 0.0, "offline": 0.0}, prompts=4000, seed_sd=0.0)
    assert (many.outcome, many.choose) == (OFFLINE, "offline")
    assert many.gap.upper < MARGIN
    assert sentence(many, {}).startswith("Offline is enough: ")
    few = decided({"online": 0.0, "offline": 0.0}, prompts=30)
    assert few.gap.upper >= MARGIN
    assert few.outcome == OPEN


def test_offline_ahead_is_enough() -> None:
    assert decided({"online": 0.0, "offline": 0.15}).outcome == OFFLINE


def test_it_is_decided_at_the_kl_that_is_asked_for_and_else_at_the_best_checkpoint() -> None:
    gaps = {"online": 0.15, "offline": 0.0}
    asked = decided(gaps, kl=2.0)
    assert (asked.gap.kl, math.isnan(asked.gap.best)) == (2.0, True)
    free = decided(gaps)
    assert free.gap.kl == free.gap.best
    assert 2.0 < free.gap.kl < 8.0  # the planted hump peaks at 4 nats
    assert "at 2 nats of KL" in sentence(asked, {})
    assert any("No KL was given" in s for s in details(free))
    assert not any("No KL was given" in s for s in details(asked))
    nowhere = decided(gaps, kl=40.0)
    assert (nowhere.outcome, nowhere.doubt) == (OPEN, "undefined")
    assert "40 nats in 0 of 5 seeds" in sentence(nowhere, {})


def lucky(view: View, seed: int, below: float, spent: Sequence[int] = ()) -> View:
    """The view with one seed whose every checkpoint below a KL wins far more, by luck."""
    items = []
    for c in view.clouds().items:
        better = c.seed == seed and c.win_by_prompt is not None
        up = (c.x < below) & better
        wins = np.where(up[:, None], 1.0, c.win_by_prompt).astype(np.float32) if better else c.win_by_prompt
        items.append(replace(c, win=np.where(up, 1.0, c.win), win_by_prompt=wins))
    return View(view.records, view.records.iloc[:0], "sft", clouds=Clouds(tuple(items)), spent=spent)


def test_no_seed_is_weighed_at_a_kl_that_its_own_luck_has_picked() -> None:
    view = viewed({"online": 0.15, "offline": 0.0})
    other = lucky(view, 0, 1.0)
    assert best_kl(other, 0) == best_kl(view, 0)  # chosen on the other four
    assert best_kl(other, 1)[0] < 1.0 < best_kl(view, 1)[0]  # which the luck of seed 0 does move
    found = gap_at(other, None)
    assert found.seeds == 5
    own = [other.at(min(best_kl(other, s)[0], 14.0)).contrast({"online": 1.0, "offline": -1.0}).found for s in range(5)]
    assert found.value.value == pytest.approx(np.mean([f.budgets[0].by_seed[s] for s, f in enumerate(own)]), abs=0.01)
    kept = lucky(view, 0, 1.0, spent=[1, 2])
    assert len({best_kl(kept, s) for s in (0, 3, 4)}) == 1
    assert best_kl(kept, 0)[0] > 1.0  # the spent seeds choose, and seed 0 is none of them
    assert gap_at(kept, None).seeds == 3


def test_a_gain_that_comes_late_is_not_diluted() -> None:
    """Equal up to 2 nats, 0.05 apart from there: at 1 nat offline is enough, at the KL of the best policy it is not."""
    rng = np.random.default_rng(0)
    arms = {"online": 0.05, "offline": 0.0}
    items = []
    for arm, gain in arms.items():
        found = planted_clouds(
            rng, {arm: 0.0}, seeds=5, prompts=4000, seed_sd=0.0,
            shape=lambda kl, gain=gain: hump(kl) + gain * (kl > 2.0),
        )  # fmt: skip
        items += [*found.items]
    records, per_prompt, _ = make({a: ArmTruth(kl_range=REACH) for a in arms}, (0,), prompts=4, checkpoints=2)
    view = View(records, per_prompt, "sft", clouds=Clouds(tuple(items)), pipeline=judge(0.7, seeds=5))
    assert decide(view, MARGIN, kl=1.0).outcome == OFFLINE
    late = decide(view, MARGIN)
    assert late.outcome == ONLINE
    assert late.gap.value.value == pytest.approx(0.05, abs=0.02)


def test_where_one_arm_ended_before_the_best_checkpoint_offline_is_not_called_enough() -> None:
    view = viewed({"online": 0.0, "offline": 0.0}, prompts=4000, seed_sd=0.0, shape=lambda kl: 0.2 + 0.1 * np.log1p(kl))
    short = Clouds(tuple(keep(c, c.x < 5.0) if c.arm == "offline" else c for c in view.clouds().items))
    other = View(view.records, view.records.iloc[:0], "sft", clouds=short, pipeline=judge(0.7, seeds=5))
    d = decide(other, MARGIN)
    assert (d.outcome, d.doubt) == (OPEN, "reach")
    assert d.gap.best > d.gap.kl
    assert "longer, or name the KL that you will deploy (--kl)" in sentence(d, {})
    assert decide(other, MARGIN, kl=d.gap.kl).outcome == OFFLINE


def test_online_is_not_recommended_where_offline_went_on_to_the_best_checkpoint() -> None:
    """Online leads as far as it went; offline, behind there, went on and won more."""
    gaps = {"online": 0.05, "offline": 0.0}
    view = viewed(gaps, prompts=4000, seed_sd=0.0, shape=lambda kl: 0.2 + 0.1 * np.log1p(kl))
    short = Clouds(tuple(keep(c, c.x < 2.5) if c.arm == "online" else c for c in view.clouds().items))
    other = View(view.records, view.records.iloc[:0], "sft", clouds=short, pipeline=judge(0.7, seeds=5))
    d = decide(other, MARGIN)
    assert d.gap.interval[0] > 0
    assert d.gap.beyond == "offline"
    assert (d.outcome, d.doubt) == (OPEN, "reach")
    assert "offline's, at 15 nats, and online ended at" in sentence(d, {})
    assert decide(other, MARGIN, kl=d.gap.kl).outcome == ONLINE


def test_noise_is_not_told_and_says_how_much_more() -> None:
    d = decided({"online": 0.02, "offline": 0.0}, prompts=40, seeds=4, rng_seed=1)
    assert (d.outcome, d.choose, d.doubt) == (OPEN, "", "noise")
    assert d.need is not None
    assert d.need.prompts is not None
    assert d.need.prompts > 40
    said = sentence(d, {})
    assert said.startswith(f"Cannot tell yet: needs about {d.need.prompts:,} more prompts")
    assert "more seed" in said


def test_one_seed_decides_nothing() -> None:
    d = decided({"online": 0.3, "offline": 0.0}, seeds=1, prompts=4000)
    assert (d.outcome, d.doubt, d.need) == (OPEN, "one seed", None)
    assert "run at least two" in sentence(d, {})


def test_the_prompts_said_to_be_needed_have_the_power_and_no_fewer_have() -> None:
    for seeds, between in ((4, 0.0), (5, 1e-5)):
        s = Spread(between, between, 0.4, 0.0, seeds, 100)
        n = prompts_needed(s, MARGIN, seeds)
        assert n is not None
        assert power(s, MARGIN, seeds, n) >= 0.8 > power(s, MARGIN, seeds, n - 1)


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
        {"online": ArmTruth(kl_range=(0.4, 0.5)), "offline": ArmTruth(kl_range=(10.0, 12.0))}, (0, 1), prompts=20
    )
    d = decide(View(records, per_prompt, "sft", pipeline=judge(0.7, seeds=2)), MARGIN)
    assert (d.outcome, d.doubt) == (OPEN, "undefined")
    assert sentence(d, {}).startswith("Cannot tell yet: online and offline are not comparable at equal KL")


@pytest.mark.parametrize("seeds", [2, 5])
def test_how_often_the_decision_is_wrong(seeds: int) -> None:
    """200 planted studies each, at the KL of the best checkpoint, which is chosen on the same runs. At a true gain of
    the margin offline is called enough in at most 5% (10; more than 18 would happen once in 160 times); with no gain
    online is called better in at most 2.5% (5; more than 11 once in 180)."""
    options: dict[str, Any] = {"prompts": 100, "seeds": seeds, "seed_sd": 0.02}
    at_margin = [decided({"online": MARGIN, "offline": 0.0}, rng_seed=i, **options).outcome for i in range(200)]
    equal = [decided({"online": 0.0, "offline": 0.0}, rng_seed=i, **options).outcome for i in range(200)]
    assert at_margin.count(OFFLINE) <= 18
    assert equal.count(ONLINE) <= 11


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


@pytest.mark.parametrize(("offline", "who"), [((1e-3, 0.04), "No arm moved"), ((0.2, 3.0), "online never moved")])
def test_arms_that_did_not_move_are_told_so_with_what_to_try(offline: tuple[float, float], who: str) -> None:
    arms = {"online": ArmTruth(kl_range=(1e-3, 0.04)), "offline": ArmTruth(kl_range=offline)}
    records, per_prompt, _ = make(arms, (0, 1), prompts=20, checkpoints=4)
    view = View(records, per_prompt, "sft", pipeline=judge(0.7))
    for kl in (None, 2.0):
        decision = decide(view, MARGIN, kl=kl)
        assert (decision.outcome, decision.doubt) == (OPEN, "undefined")
        said = sentence(decision, {})
        assert f"{who} 0.1 nats from your model (largest KL: online 0.0" in said
        assert "--set 'sweep=[]' --set recipe.optimization.learning_rate=" in said
        assert "--set recipe.optimization.steps=" in said
        assert "do not overlap" not in said


def words_of(decision: Decision, **settings: Any) -> tuple[str, list[str]]:
    """What is said to come next, without the command that it begins with."""
    study = {"recipe": {"optimization": {"steps": 128}}, "golden": {"optimization": {"steps": 300}}} | settings
    why, found = next_command(decision, ["aligngap", "compare", "--policy", "p"], "out/compare", study)
    start = ["aligngap", "pick", "out/compare"] if decision.choose else ["aligngap", "compare", "--policy", "p"]
    assert found[: len(start)] == start
    return why, found[len(start) :]


def test_a_recommended_arm_is_picked_from_next() -> None:
    decision = decided({"online": 0.15, "offline": 0.0}, kl=2.0)
    assert words_of(decision)[1] == ["--kl", "2", "--policy", "online"]


def test_what_a_decision_lacked_is_in_the_command_that_comes_next() -> None:
    arms = {"online": 0.04, "offline": 0.0}
    one = decided(arms, seeds=1)
    assert one.doubt == "one seed"
    assert words_of(one)[1] == ["--set", "seeds=3"]
    noise = decided(arms, seeds=2, prompts=40, seed_sd=0.05)
    assert noise.doubt == "noise"
    assert noise.need is not None
    assert noise.need.seeds is not None
    why, more = words_of(noise)
    assert why == f"{noise.need.seeds} more seeds"
    assert more == ["--set", f"seeds={2 + noise.need.seeds}"]
    few = replace(noise, need=replace(noise.need, seeds=None, prompts=500))
    assert words_of(few)[1] == ["--set", f"measurement.prompts={noise.gap.spread.prompts + 500}"]  # type: ignore[union-attr]
    assert words_of(decided(arms, right=0.5))[1] == ["--set", "golden.optimization.steps=600"]
    assert words_of(replace(noise, doubt="reach", need=None))[1] == ["--set", "recipe.optimization.steps=256"]
    still = ("sweep=[]", "recipe.optimization.learning_rate=1.0e-04")
    unmoved = replace(noise, doubt="undefined", need=None, gap=replace(noise.gap, remedy=still))
    assert words_of(unmoved)[1] == ["--set", still[0], "--set", still[1]]


def test_the_options_are_a_forest_and_a_gain_against_each_cost() -> None:
    decision = decided({"online": 0.15, "semi": 0.10, "offline": 0.0}, cheaper=["semi"])
    costs = {
        arm: {"arm": arm, "responses": n, "tokens": 1000 * n, "seconds": seconds}
        for arm, n, seconds in (("online", 30, 9.0), ("semi", 30, None), ("offline", 0, None))
    }
    told: Any = SimpleNamespace(decision=decision, costs=costs, arms=("online", "semi", "offline"))
    chart = options_chart(told)
    assert chart is not None
    forest, tokens = chart.panels  # seconds are known of one arm only, and one point shows nothing
    assert list((forest.y.names or {}).values()) == ["semi", "offline"]
    [semi] = [s for s in forest.series if s.name == "semi"]
    [behind] = decision.options
    assert (semi.x, semi.x_bars) == ([behind.behind.value], ([behind.interval[0]], [behind.interval[1]]))
    assert [at for at, _ in forest.x_rules] == [0.0, MARGIN]
    points = {s.name: (s.x, s.y) for s in tokens.series}
    assert tokens.x.label == "tokens generated, thousands"
    assert points == {
        "online": ([30.0], [decision.gap.value.value]),
        "semi": ([30.0], [behind.gain.value]),
        "offline": ([0.0], [0.0]),
    }
    assert behind.gain.value == pytest.approx(decision.gap.value.value - behind.behind.value, abs=0.01)
    assert set(chart.numbers["what"]) == {"online − it", "gain over offline"}
    told.decision = replace(decision, gap=replace(decision.gap, value=replace(decision.gap.value, value=math.nan)))
    assert options_chart(told) is None
