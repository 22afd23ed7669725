"""Arms at KL budgets: closed forms of readings and errors, critical values, simulated nulls, what is not reached."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from synthetic_records import planted_clouds

from aligngap.report.words import say_unreached
from aligngap.stats.axes import say_nats
from aligngap.stats.budgets import BUDGETS, at_budgets
from aligngap.stats.clouds import Cloud, Clouds
from aligngap.stats.peaks import ending_of, first_at, kl_to_reach, peaks_of
from aligngap.stats.seedwise import Seedwise, critical, mean_over_seeds, read_run

DIFFERENCE = {"online": 1.0, "offline": -1.0}


def one(
    arm: str, seed: int, x: list[float], win: list[float], wins: np.ndarray | None = None, config: str = "c",
    kl: np.ndarray | None = None,
) -> Cloud:  # fmt: skip
    """A cloud of one run."""
    n = len(x)
    ids = () if wins is None else tuple(f"{seed}-{i}" for i in range(wins.shape[1]))
    return Cloud(
        arm, seed, (f"{arm}{seed}",), (config,), np.zeros(n, int), np.arange(1, n + 1), np.array(x), np.zeros(n),
        np.array(win), np.full(n, 0.02), ids, None if wins is None else wins.astype(np.float32), kl,
    )  # fmt: skip


def test_critical_values_are_students_with_bonferroni() -> None:
    assert critical(5, 0.95, 3) == pytest.approx(3.961, abs=0.001)
    assert critical(10, 0.95, 3) == pytest.approx(2.933, abs=0.001)
    assert critical(5) == pytest.approx(stats.t.ppf(0.975, 4))
    assert critical(1) == pytest.approx(stats.norm.ppf(0.975))


def test_a_run_is_read_between_its_checkpoints_and_nowhere_else() -> None:
    cloud = one("a", 0, [0.5, 2.0, 8.0], [0.5, 0.7, 0.6])
    found = read_run(cloud, 0, np.log([0.25, 0.5, 1.0, 4.0, 8.0, 9.0]))
    assert found.value == pytest.approx([np.nan, 0.5, 0.6, 0.65, 0.6, np.nan], nan_ok=True)
    assert list(found.short) == [False] * 5 + [True]
    assert list(found.passed) == [True] + [False] * 5
    alone = read_run(one("a", 0, [1.0], [0.5]), 0, np.log([1.0, 2.0]))
    assert alone.value == pytest.approx([0.5, np.nan], nan_ok=True)


def test_the_prompts_influence_is_the_bootstraps_variance() -> None:
    """The delta method, KL's own noise included, against 4,000 bootstrap draws of the same run."""
    rng = np.random.default_rng(0)
    p = 300
    z = rng.normal(size=p)
    wins = np.array([(rng.normal(size=p) + z < c) * 1.0 for c in (-0.5, 0.0, 0.6)])
    kl = np.array([m * rng.gamma(4.0, 0.25, p) for m in (0.5, 2.0, 8.0)])
    places = np.log([1.0, 4.0])
    cloud = one("a", 0, list(kl.mean(axis=1)), list(wins.mean(axis=1)), wins, kl=kl.astype(np.float32))
    found = read_run(cloud, 0, places)
    drawn = []
    for _ in range(4000):
        w = rng.multinomial(p, np.full(p, 1 / p)) / p
        drawn.append(np.interp(places, np.log(kl @ w), wins @ w))
    assert (found.influence**2).sum(axis=1) == pytest.approx(np.var(drawn, axis=0), rel=0.12)
    assert found.influence.sum(axis=1) == pytest.approx(0, abs=1e-9)


def test_missing_wins_leave_the_mean_where_it_is() -> None:
    wins = np.array([[1.0, 0.0, np.nan, 1.0], [1.0, 1.0, 0.0, np.nan]])
    cloud = one("a", 0, [1.0, 2.0], [2 / 3, 2 / 3], wins)
    found = read_run(cloud, 0, np.log([1.0]))
    known = wins[0][np.isfinite(wins[0])]
    assert (found.influence**2).sum() == pytest.approx(known.var() / 3 * 4 / 3)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-40, 40), min_size=2, max_size=9))
def test_with_exact_runs_the_interval_is_students_over_seeds(points: list[int]) -> None:
    differences = [d / 100 for d in points]
    clouds = []
    for seed, d in enumerate(differences):
        clouds += [one("online", seed, [1.0, 8.0], [0.5 + d] * 2), one("offline", seed, [0.9, 9.0], [0.5] * 2)]
    clouds = [replace(c, win_se=np.zeros(2)) for c in clouds]
    found = at_budgets(Clouds(tuple(clouds)), DIFFERENCE)
    if np.ptp(differences) == 0 and differences[0] == 0:
        assert "tie" in found.why
        return
    assert [b.judged for b in found.budgets] == [True] * 4
    mean, se = np.mean(differences), stats.sem(differences)
    q = stats.t.ppf(1 - 0.025 / 4, len(differences) - 1)
    for b in found.budgets:
        assert b.mean.value == pytest.approx(mean)
        assert b.interval == pytest.approx((mean - q * se, mean + q * se), abs=1e-9)


def test_swapping_arms_turns_the_sign_and_sums_add() -> None:
    clouds = planted_clouds(
        np.random.default_rng(3), {"online": 0.05, "offline": 0.0, "third": 0.02}, seeds=3, prompts=80
    )
    ab, ba = at_budgets(clouds, DIFFERENCE), at_budgets(clouds, {"offline": 1.0, "online": -1.0})
    for x, y in zip(ab.budgets, ba.budgets, strict=True):
        assert x.mean.value == pytest.approx(-y.mean.value)
        assert x.interval == pytest.approx((-y.interval[1], -y.interval[0]))
        assert x.p == pytest.approx(y.p)
    ac, cb = (at_budgets(clouds, {a: 1.0, b: -1.0}) for a, b in (("online", "third"), ("third", "offline")))
    for x, y, z in zip(ab.budgets, ac.budgets, cb.budgets, strict=True):
        assert x.mean.value == pytest.approx(y.mean.value + z.mean.value)


def test_shared_prompts_are_not_counted_as_independent() -> None:
    """The same prompts' noise in every seed does not average out over seeds; noise of a seed's own prompts does."""
    influence = np.random.default_rng(0).normal(size=(5, 1, 400)) * 1e-3
    value, extra = np.zeros((5, 1)), np.zeros((5, 1))
    own = np.zeros((5, 1, 2000))
    for s in range(5):
        own[s, 0, 400 * s : 400 * (s + 1)] = influence[s, 0]
    ids = tuple(map(str, range(2000)))
    shared = Seedwise((0, 1, 2, 3, 4), ids[:400], value, np.repeat(influence[:1], 5, axis=0), extra)
    one_seed = float((influence[0] ** 2).sum())
    assert mean_over_seeds(shared).se ** 2 == pytest.approx(one_seed)
    assert mean_over_seeds(Seedwise(shared.seeds, ids, value, own, extra)).se ** 2 == pytest.approx(
        one_seed / 5, rel=0.1
    )


def test_an_arm_that_falls_short_is_counted_and_not_judged() -> None:
    clouds = []
    for seed in range(5):
        end = 3.0 if seed == 4 else 9.0
        clouds += [
            one("online", seed, [0.5, end], [0.5, 0.7 + 0.01 * seed]),
            one("offline", seed, [0.5, 9.0], [0.5, 0.6]),
        ]
    found = at_budgets(Clouds(tuple(clouds)), DIFFERENCE)
    assert [b.judged for b in found.budgets] == [True, True, False, False]
    four = found.budgets[2]
    assert four.short == {"online": 1, "offline": 0}
    assert np.isnan(four.interval).all()
    assert (four.mean.n, np.isnan(four.by_seed[4])) == (4, True)
    assert np.isnan(four.p)
    nothing = at_budgets(Clouds(tuple(clouds)), DIFFERENCE, (16.0,))
    assert nothing.why.endswith("16 nats in 0 of 5 seeds. Budgets from 0.5 to 3 nats can be judged: name some there.")


def test_an_arm_that_starts_above_a_budget_is_said_to() -> None:
    clouds = []
    for seed in range(3):
        clouds += [one("ppo", seed, [1.5, 3.0], [0.5, 0.7]), one("dpo", seed, [0.5, 1.9], [0.5, 0.6])]
    nothing = at_budgets(Clouds(tuple(clouds)), {"ppo": 1.0, "dpo": -1.0}, (1.0, 2.0))
    assert nothing.budgets[0].passed == {"ppo": 3, "dpo": 0}
    assert nothing.budgets[1].passed == {"ppo": 0, "dpo": 0}
    assert nothing.why == (
        "None of the KL budgets named lies between the first and the last checkpoint of every run: "
        "ppo starts above 1 nat in 3 runs; "
        "dpo ends below 2 nats. Budgets from 1.5 to 1.9 nats can be judged: name some there."
    )
    some = at_budgets(Clouds(tuple(clouds)), {"ppo": 1.0, "dpo": -1.0}, (1.0, 1.7))
    (line,) = say_unreached(some)
    assert line == (
        "Not judged at 1 nat, where not every seed can be read in both arms. Earlier checkpoints are missing: ppo "
        "starts above 1 nat in 3 runs."
    )


def test_budgets_that_are_named_as_judgeable_are_judged() -> None:
    """The range is rounded inwards, so that its own ends can be named; where there is none, that is said."""
    weights = {"ppo": 1.0, "dpo": -1.0}

    def between(low: float, high: float) -> Clouds:
        pairs = [(one("ppo", s, [low, 9.0], [0.5, 0.7]), one("dpo", s, [0.01, high], [0.5, 0.6])) for s in range(3)]
        return Clouds(tuple(c for pair in pairs for c in pair))

    def say(clouds: Clouds) -> str:
        return at_budgets(clouds, weights, (0.001, 20.0)).why

    for low, high, named in [(1.512, 1.989, (1.6, 1.9)), (0.0123, 0.0199, (0.013, 0.019)), (1.23, 1.239, (1.23, 1.23))]:
        clouds = between(low, high)
        if named[0] < named[1]:
            assert f"Budgets from {named[0]:g} to {named[1]:g} nats can be judged" in say(clouds)
            assert all(b.judged for b in at_budgets(clouds, weights, named).budgets)
        else:
            assert "Only budgets of about 1.23 nats can be judged." in say(clouds)
    assert "so no budget can be judged" in say(between(3.0, 2.0))


def test_a_number_of_nats_has_its_unit() -> None:
    assert [say_nats(1), say_nats(1.5), say_nats(1, 2, 4), say_nats(1.04, digits=".2g")] == [
        "1 nat", "1.5 nats", "1, 2 and 4 nats", "1 nat",
    ]  # fmt: skip


def test_a_run_that_falls_short_leaves_its_configuration_out_of_every_seed() -> None:
    """Configurations differ in their gap (.1 and .3), so a mean over others in one seed is another question."""
    clouds = []
    for seed in range(5):
        items: dict[str, list[Cloud]] = {"online": [], "offline": []}
        for config, gap in (("near", 0.1), ("far", 0.3)):
            end = 3.0 if (seed, config) == (4, "far") else 9.0
            items["online"].append(one("online", seed, [0.5, end], [0.5 + gap] * 2, config=config))
            items["offline"].append(one("offline", seed, [0.5, 9.0], [0.5, 0.5], config=config))
        clouds += [both(*pair) for pair in items.values()]
    found = at_budgets(Clouds(tuple(clouds)), DIFFERENCE, (2.0, 4.0))
    two, four = found.budgets
    assert (two.judged, two.configs) == (True, ("near", "far"))
    assert two.by_seed == pytest.approx([0.2] * 5)
    assert (four.judged, four.configs) == (True, ("near",))
    assert four.by_seed == pytest.approx([0.1] * 5)  # and not .2 in four seeds and .1 in the fifth
    assert four.short == {"online": 1, "offline": 0}


def both(a: Cloud, b: Cloud) -> Cloud:
    """One cloud of two clouds' runs."""
    return replace(
        a, runs=a.runs + b.runs, configs=a.configs + b.configs, run=np.concatenate([a.run, b.run + 1]),
        **{n: np.concatenate([getattr(a, n), getattr(b, n)]) for n in ("step", "x", "x_se", "win", "win_se")},
    )  # fmt: skip


def test_what_cannot_be_compared_says_why() -> None:
    a, b = one("online", 0, [1.0, 8.0], [0.5, 0.6], config="x"), one("offline", 0, [1.0, 8.0], [0.5, 0.6], config="y")
    assert "no configuration in common" in at_budgets(Clouds((a, b)), DIFFERENCE).why
    assert "No usable checkpoint of offline" in at_budgets(Clouds((a,)), DIFFERENCE).why
    assert "share no seed" in at_budgets(Clouds((a, replace(b, seed=1))), DIFFERENCE).why
    ties = [one(arm, s, [1.0, 8.0], [0.5, 0.5]) for arm in DIFFERENCE for s in range(5)]
    assert "tie" in at_budgets(Clouds(tuple(ties)), DIFFERENCE).why
    assert "tie" in str(peaks_of(Clouds(tuple(ties)), tuple(DIFFERENCE)))


def null_rates(chosen: bool, seeds: int, studies: int, gap: float = 0.0, spent: int = 0) -> tuple[float, float, float]:
    """Shares of simulated studies in which some budget is called above and below 0, and the mean difference."""
    above = below = 0
    means = []
    for i in range(studies):
        clouds = planted_clouds(
            np.random.default_rng([11, i]), {"online": gap, "offline": 0.0}, {"online": 4, "offline": 4},
            seeds + spent, 60, 6, 0.02, wave_sd=0.01, spread=0.04,
        )  # fmt: skip
        found = at_budgets(clouds, DIFFERENCE, chosen=chosen, spent=range(spent))
        above += any(b.interval[0] > gap for b in found.judged)
        below += any(b.interval[1] < gap for b in found.judged)
        means.append([b.mean.value - gap for b in found.budgets])
    return above / studies, below / studies, float(np.abs(np.mean(means, axis=0)).max())


@pytest.mark.parametrize(("chosen", "spent"), [(False, 0), (True, 2)])
def test_no_gap_is_called_on_either_side_more_often_than_it_may(chosen: bool, spent: int) -> None:
    """200 null studies of five seeds: 2.5% a side is 5; more than 11 would happen once in 180 times."""
    above, below, bias = null_rates(chosen, 5, 200, spent=spent)
    assert above <= 11 / 200
    assert below <= 11 / 200
    assert bias < 0.006  # three standard errors of a mean over 200 studies


def test_a_best_configuration_is_not_flattered_by_being_chosen() -> None:
    """One arm of twelve equal configurations against one: chosen on spent seeds it gains nothing."""
    found = []
    for i in range(60):
        clouds = planted_clouds(
            np.random.default_rng([5, i]),
            {"online": 0.0, "offline": 0.0},
            {"online": 12, "offline": 12},
            5,
            60,
            seed_sd=0.0,
        )
        peaks = peaks_of(clouds, ("online",), spent=(0, 1))
        assert not isinstance(peaks, str)
        found.append(float(peaks["online"].values.value.mean()))
    assert np.mean(found) <= 0.45 + 3 * np.std(found) / np.sqrt(60)  # the top of the planted curve


def test_endings_tell_a_rising_arm_from_a_fallen_one() -> None:
    rising = [one("a", s, [0.5, 1.0, 2.0, 4.0], [0.5, 0.55, 0.6 + 0.01 * s, 0.65 + 0.01 * s]) for s in range(5)]
    found = ending_of(Clouds(tuple(rising)), "a")
    assert not isinstance(found, str)
    assert found.kl == (4.0,) * 5
    assert mean_over_seeds(found.rise).value == pytest.approx(0.05)
    assert mean_over_seeds(found.fall).value == pytest.approx(0.0)
    fallen = [one("a", s, [0.5, 1.0, 2.0, 8.0], [0.5, 0.6, 0.7, 0.5]) for s in range(5)]
    found = ending_of(Clouds(tuple(fallen)), "a")
    assert not isinstance(found, str)
    assert mean_over_seeds(found.fall).value == pytest.approx(0.2)
    assert mean_over_seeds(found.rise).value == pytest.approx(-0.1)
    assert "two seeds" in str(ending_of(Clouds((rising[0],)), "a"))


def test_the_kl_that_the_other_arms_best_takes() -> None:
    fast = [one("online", s, [0.5, 1.0, 2.0], [0.5, 0.7, 0.8]) for s in range(2)]
    slow = [one("offline", s, [0.5, 4.0], [0.5, 0.7]) for s in range(2)]
    clouds = Clouds((*fast, *slow))
    assert kl_to_reach(clouds, "online", "offline") == pytest.approx((1.0, 1.0))
    assert kl_to_reach(clouds, "offline", "online") == (np.inf, np.inf)
    assert first_at(np.log([1.0, 4.0]), np.array([0.5, 0.7]), 0.6) == pytest.approx(2.0)
    assert first_at(np.log([1.0, 4.0]), np.array([0.5, 0.7]), 0.4) == pytest.approx(1.0)


def test_the_default_budgets_are_those_of_the_docs() -> None:
    assert BUDGETS == (1.0, 2.0, 4.0, 8.0)
