"""Prediction-powered inference: closed forms, unbiased under any judge, coverage, and Cohen's kappa."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from aligngap.stats.ppi import agreement, best_weight, correct


def test_two_rated_pairs_by_hand() -> None:
    found = correct(0.3, 0.1, 0.2, judge=[0.5, 0.1], human=[0.2, 0.0], weight=1.0)
    assert found.rectifier.value == pytest.approx(-0.2)  # (-0.3 - 0.1) / 2
    assert found.value == pytest.approx(0.1)
    half = stats.t.ppf(0.975, 1) * 0.1  # standard deviation 0.1 sqrt(2) over sqrt(2)
    assert found.interval[1] - found.value == pytest.approx(np.hypot(0.2, half))
    assert found.people.value == pytest.approx(0.1)


def test_without_weight_people_stand_alone() -> None:
    found = correct(0.9, 0.1, 0.2, judge=[1.0, 0.0, 1.0], human=[0.0, 0.5, 0.1], weight=0.0)
    assert found.value == found.people.value == pytest.approx(0.2)
    assert found.interval == found.people_interval


def test_a_gap_that_is_unknown_leaves_people_alone() -> None:
    found = correct(np.nan, np.nan, np.nan, judge=[1.0, 0.0, 1.0], human=[0.5, 0.0, 0.5])
    assert found.weight == 0.0
    assert found.value == pytest.approx(1 / 3)
    assert np.isfinite(found.interval).all()


def test_the_weight_is_that_of_ppi_plus_plus() -> None:
    rng = np.random.default_rng(0)
    g = rng.normal(size=50)
    h = 0.4 * g + rng.normal(size=50)
    more = 200  # judged and not rated: var(G) = var(g) / more gives cov / (var (1 + n/N))
    se = float(np.std(g, ddof=1) / np.sqrt(more))
    expected = np.cov(h, g)[0, 1] / (np.var(g, ddof=1) * (1 + 50 / more))
    assert best_weight(g, h, se) == pytest.approx(expected)
    assert best_weight(g, -h, se) == 0.0
    assert best_weight(g, 9 * h, se) == 1.0
    assert best_weight(np.zeros(50), h, 0.0) == 0.0


def simulated(trials: int, n: int, more: int, weight: float | None) -> tuple[np.ndarray, np.ndarray]:
    """(estimate - truth, whether covered) over trials: people prefer the first by 0.08, the judge by 0.30."""
    rng = np.random.default_rng(3)
    errors, covered = np.zeros(trials), np.zeros(trials, bool)
    for t in range(trials):
        quality = rng.normal(0.2, 1.0, n + more)
        human = np.where(quality + rng.normal(0, 0.5, n + more) > 0, 0.5, -0.5)
        judge = np.where(quality + 0.8 + rng.normal(0, 0.5, n + more) > 0, 0.5, -0.5)
        truth = stats.norm.cdf(0.2 / np.sqrt(1.25)) - 0.5
        gap, se = float(judge[n:].mean()), float(judge[n:].std(ddof=1) / np.sqrt(more))
        found = correct(gap, se, 1.96 * se, judge[:n], human[:n], weight=weight)
        errors[t] = found.value - truth
        covered[t] = found.interval[0] <= truth <= found.interval[1]
    return errors, covered


@pytest.mark.parametrize("weight", [None, 1.0])
def test_a_biased_judge_is_corrected_and_the_interval_covers(weight: float | None) -> None:
    trials = 1500
    errors, covered = simulated(trials, n=60, more=600, weight=weight)
    assert abs(errors.mean()) < 3 * errors.std() / np.sqrt(trials) + 0.003  # the judge alone is 0.22 off
    assert 0.935 <= covered.mean() <= 0.975


def test_the_judge_makes_the_interval_shorter_than_people_alone() -> None:
    with_judge, _ = simulated(400, n=60, more=600, weight=None)
    alone, _ = simulated(400, n=60, more=600, weight=0.0)
    assert with_judge.std() < 0.93 * alone.std()


def test_pairs_of_one_prompt_count_as_one_group() -> None:
    h, g = np.array([0.5, -0.5, 0.5, 0.0]), np.zeros(4)
    once = correct(0.0, 0.0, 0.0, g, h, prompts=list("abcd"), weight=0.0)
    thrice = correct(0.0, 0.0, 0.0, np.repeat(g, 3), np.repeat(h, 3), prompts=[p for p in "abcd" for _ in range(3)],
                     weight=0.0)  # fmt: skip
    assert thrice.interval == pytest.approx(once.interval)


def test_seeds_that_disagree_widen_the_interval() -> None:
    h = np.array([0.5] * 20 + [-0.5] * 20)
    apart = correct(0.0, 0.0, 0.0, np.zeros(40), h, seeds=[0] * 20 + [1] * 20, weight=0.0)
    mixed = correct(0.0, 0.0, 0.0, np.zeros(40), h, seeds=[0, 1] * 20, weight=0.0)
    assert apart.interval[1] == pytest.approx(stats.t.ppf(0.975, 1) * 0.5)  # two means, +0.5 and -0.5: se 0.5
    assert mixed.interval[1] < 0.2


def test_kappa_is_that_of_statsmodels() -> None:
    from statsmodels.stats.inter_rater import cohens_kappa

    rng = np.random.default_rng(1)
    a = rng.integers(-1, 2, 80)
    b = np.where(rng.random(80) < 0.6, a, rng.integers(-1, 2, 80))
    table = np.array([[np.sum((a == i) & (b == j)) for j in (-1, 0, 1)] for i in (-1, 0, 1)])
    found = agreement(0.5 * a, 0.5 * b)
    assert found.kappa == pytest.approx(cohens_kappa(table).kappa)
    assert found.share == pytest.approx(np.mean(a == b))
    assert found.decided == np.sum((a != 0) & (b != 0))
    assert np.isnan(agreement([0.5, 0.5], [0.5, 0.5]).kappa)
    assert agreement([], []).pairs == 0
