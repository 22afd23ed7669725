"""Power from a pilot: predicted power is the simulated power of the rule that judges, variances are recovered."""

from __future__ import annotations

import numpy as np
import pytest
from synthetic_records import planted_clouds

from aligngap.stats.axes import KL
from aligngap.stats.compare import Comparison, compare
from aligngap.stats.estimate import bootstrap_weights, two_level
from aligngap.stats.frontier import arm_curves
from aligngap.stats.power import POWER, Spread, power, seeds_needed, spread, spread_of

PROMPT_SD = 0.5  # of one prompt's difference


def study(
    rng: np.random.Generator,
    difference: float,
    tau: float,
    seeds: int,
    prompts: int,
    shared: bool = False,
    reps: int = 80,
) -> tuple[np.ndarray, np.ndarray]:
    """Point [S] and replicates [S, B] of a study whose truth is planted; shared: all seeds ask the same prompts."""
    common = rng.normal(0, PROMPT_SD, prompts)
    weights = bootstrap_weights(prompts, reps, rng) / prompts
    point, drawn = [], []
    for _ in range(seeds):
        values = difference + rng.normal(0, tau) + (common if shared else rng.normal(0, PROMPT_SD, prompts))
        w = weights if shared else bootstrap_weights(prompts, reps, rng) / prompts
        point.append(values.mean())
        drawn.append(w @ values)
    return np.array(point), np.array(drawn)


def truth(tau: float, shared: bool = False) -> Spread:
    return Spread(tau**2, tau**2, PROMPT_SD**2, 1.0 if shared else 0.0, 9, 100)


@pytest.mark.parametrize(
    ("difference", "tau", "seeds", "prompts", "shared"),
    [
        (0.08, 0.03, 3, 200, False),
        (0.06, 0.0, 3, 200, False),
        (0.05, 0.03, 6, 150, False),
        (0.09, 0.02, 5, 200, True),
        (0.07, 0.0, 1, 200, False),
    ],
)
def test_predicted_power_is_the_rules_power(
    difference: float, tau: float, seeds: int, prompts: int, shared: bool
) -> None:
    rng = np.random.default_rng(4)
    n = 600
    found = sum(two_level(*study(rng, difference, tau, seeds, prompts, shared)).lower[0] > 0 for _ in range(n)) / n
    predicted = power(truth(tau, shared), difference, seeds, prompts)
    assert 0.3 < predicted < 0.97
    assert found == pytest.approx(predicted, abs=3 * np.sqrt(0.25 / n) + 0.01)


def test_no_difference_is_found_at_the_error_rate() -> None:
    for seeds in (2, 3, 10):
        assert 0.005 < power(truth(0.02), 0.0, seeds, 200) <= 0.0251  # one side of a 95% interval


@pytest.mark.parametrize("shared", [False, True])
def test_variances_are_recovered(shared: bool) -> None:
    rng = np.random.default_rng(1)
    found = [spread(*study(rng, 0.1, 0.04, 5, 150, shared), prompts=150) for _ in range(300)]
    assert np.mean([s.prompt for s in found]) == pytest.approx(PROMPT_SD**2, rel=0.05)
    assert np.mean([s.correlation for s in found]) == pytest.approx(1.0 if shared else 0.0, abs=0.08)
    assert np.median([s.between for s in found]) == pytest.approx(0.04**2, rel=0.25)
    above = np.mean([s.between_upper >= 0.04**2 for s in found])
    assert above >= 0.75  # an upper 80% limit


def test_the_seeds_it_asks_for_have_the_power_it_promises() -> None:
    s = truth(0.04)
    for prompts in (100, 400):
        n = seeds_needed(s, 0.05, prompts)
        assert n is not None
        assert power(s, 0.05, n, prompts) >= POWER > power(s, 0.05, n - 1, prompts)
    rng = np.random.default_rng(8)
    n = seeds_needed(s, 0.05, 200)
    assert n is not None
    found = np.mean([two_level(*study(rng, 0.05, 0.04, n, 200)).lower[0] > 0 for _ in range(400)])
    assert 0.72 < found < 0.9


def test_caution_asks_for_more_and_what_cannot_be_had_is_none() -> None:
    point, reps = study(np.random.default_rng(3), 0.1, 0.04, 3, 100)
    s = spread(point, reps, 100)
    assert s.between_upper > s.between
    plain, cautious = seeds_needed(s, 0.05, 100), seeds_needed(s, 0.05, 100, cautious=True)
    assert plain is not None
    assert cautious is None or cautious > plain
    assert seeds_needed(truth(0.5), 0.01, 100) is None
    assert seeds_needed(s, 0.0, 100) is None


def test_one_seed_says_nothing_about_seeds() -> None:
    s = spread(*study(np.random.default_rng(3), 0.1, 0.04, 1, 100), prompts=100)
    assert np.isnan(s.between)
    assert np.isnan(power(s, 0.05, 3, 100))
    assert seeds_needed(s, 0.05, 100) is None
    assert 0 < power(s, 0.05, 1, 100) < 1


def test_from_clouds_to_power() -> None:
    """A pilot's comparison predicts how often studies like it find the planted gap."""
    grid = KL.grid(0.45, 15)

    def one(i: int, seeds: int) -> Comparison:
        clouds = planted_clouds(
            np.random.default_rng([5, 2000 + i]),
            {"online": 0.06, "offline": 0.0},
            seeds=seeds,
            prompts=120,
            checkpoints=5,
        )
        return compare(arm_curves(clouds.items, grid, 60, i), "online", "offline", band=False)

    pilot = spread_of(one(999, 50))
    assert pilot is not None
    assert (pilot.seeds, pilot.prompts, pilot.correlation) == (50, 120, 0.0)
    predicted = power(pilot, 0.06, 4, 120)
    found = np.mean([one(i, 4).average_interval[0] > 0 for i in range(100)])
    assert found == pytest.approx(predicted, abs=0.17)  # three standard errors, and the pilot's
