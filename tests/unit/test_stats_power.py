"""Power from a pilot: predicted power is the simulated power of the rule that judges, variances are recovered."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from synthetic_records import planted_clouds

from aligngap.stats.budgets import AtBudgets, at_budgets
from aligngap.stats.power import POWER, Spread, power, seeds_needed, spread, spread_of
from aligngap.stats.seedwise import Seedwise, mean_over_seeds

PROMPT_SD = 0.5  # of one prompt's difference


def study(
    rng: np.random.Generator, difference: float, tau: float, seeds: int, prompts: int, shared: bool = False
) -> Seedwise:
    """The difference of a study whose truth is planted; shared: all seeds ask the same prompts."""
    common = rng.normal(0, PROMPT_SD, prompts)
    value, rows = [], []
    for _ in range(seeds):
        values = difference + rng.normal(0, tau) + (common if shared else rng.normal(0, PROMPT_SD, prompts))
        value.append(values.mean())
        rows.append((values - values.mean()) / np.sqrt(prompts * (prompts - 1)))
    width = prompts if shared else prompts * seeds
    influence = np.zeros((seeds, 1, width))
    for s, row in enumerate(rows):
        start = 0 if shared else s * prompts
        influence[s, 0, start : start + prompts] = row
    ids = tuple(map(str, range(width)))
    return Seedwise(tuple(range(seeds)), ids, np.array(value)[:, None], influence, np.zeros((seeds, 1)))


def truth(tau: float, shared: bool = False) -> Spread:
    return Spread(tau**2, tau**2, PROMPT_SD**2, 1.0 if shared else 0.0, 9, 100)


def found(values: Seedwise, together: int = 1) -> bool:
    """Whether the interval lies above 0."""
    return mean_over_seeds(values).interval(0.95, together)[0] > 0


@pytest.mark.parametrize(
    ("difference", "tau", "seeds", "prompts", "shared", "together"),
    [
        (0.12, 0.03, 3, 200, False, 1),
        (0.06, 0.0, 4, 200, False, 1),
        (0.05, 0.03, 6, 150, False, 1),
        (0.09, 0.02, 5, 200, True, 1),
        (0.07, 0.03, 8, 150, False, 3),
        (0.07, 0.0, 1, 200, False, 1),
    ],
)
def test_predicted_power_is_the_rules_power(
    difference: float, tau: float, seeds: int, prompts: int, shared: bool, together: int
) -> None:
    rng = np.random.default_rng(4)
    n = 600
    seen = sum(found(study(rng, difference, tau, seeds, prompts, shared), together) for _ in range(n)) / n
    predicted = power(replace(truth(tau, shared), together=together), difference, seeds, prompts)
    assert 0.3 < predicted < 0.97
    assert seen == pytest.approx(predicted, abs=3 * np.sqrt(0.25 / n) + 0.01)


def test_no_difference_is_found_at_the_error_rate() -> None:
    for seeds in (2, 3, 10):
        assert power(truth(0.02), 0.0, seeds, 200) <= 0.0251  # one side of a 95% interval
    assert power(truth(0.2), 0.0, 10, 200) == pytest.approx(0.025, abs=0.001)


@pytest.mark.parametrize("shared", [False, True])
def test_variances_are_recovered(shared: bool) -> None:
    rng = np.random.default_rng(1)
    pilots = [spread(study(rng, 0.1, 0.04, 5, 150, shared), prompts=150) for _ in range(300)]
    assert np.mean([s.prompt for s in pilots]) == pytest.approx(PROMPT_SD**2, rel=0.05)
    assert np.mean([s.correlation for s in pilots]) == pytest.approx(1.0 if shared else 0.0, abs=0.08)
    assert np.mean([s.between for s in pilots]) == pytest.approx(0.04**2, rel=0.25)
    above = np.mean([s.between_upper >= 0.04**2 for s in pilots])
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
    seen = np.mean([found(study(rng, 0.05, 0.04, n, 200)) for _ in range(400)])
    assert 0.72 < seen < 0.9


def test_caution_asks_for_more_and_what_cannot_be_had_is_none() -> None:
    s = spread(study(np.random.default_rng(3), 0.1, 0.04, 3, 100), 100)
    assert s.between_upper > s.between
    plain, cautious = seeds_needed(s, 0.05, 100), seeds_needed(s, 0.05, 100, cautious=True)
    assert plain is not None
    assert cautious is None or cautious > plain
    assert seeds_needed(truth(0.5), 0.01, 100) is None
    assert seeds_needed(s, 0.0, 100) is None


def test_one_seed_says_nothing_about_seeds() -> None:
    s = spread(study(np.random.default_rng(3), 0.1, 0.04, 1, 100), prompts=100)
    assert np.isnan(s.between)
    assert np.isnan(power(s, 0.05, 3, 100))
    assert seeds_needed(s, 0.05, 100) is None
    assert 0 < power(s, 0.05, 1, 100) < 1


def test_from_clouds_to_power() -> None:
    """A pilot's difference predicts how often studies like it find the planted gap at the largest budget."""

    def one(i: int, seeds: int) -> AtBudgets:
        clouds = planted_clouds(
            np.random.default_rng([5, 2000 + i]), {"online": 0.1, "offline": 0.0}, seeds=seeds, prompts=120,
            checkpoints=5,
        )  # fmt: skip
        return at_budgets(clouds, {"online": 1.0, "offline": -1.0})

    pilot = spread_of(one(999, 50))
    assert pilot is not None
    assert (pilot.seeds, pilot.prompts, pilot.together) == (50, 120, 4)
    assert pilot.correlation < 0.05
    predicted = power(pilot, 0.1, 6, 120)
    seen = np.mean([one(i, 6).judged[-1].interval[0] > 0 for i in range(150)])
    assert seen == pytest.approx(predicted, abs=0.15)  # three standard errors, and the pilot's
    assert spread_of(AtBudgets((), why="nothing")) is None
