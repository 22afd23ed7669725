"""Means, paired differences, the two-level interval and the simultaneous band, against theory and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as sps

from aligngap.stats.estimate import (
    bootstrap_weights,
    interval,
    simultaneous_factor,
    t_quantile,
    two_level,
)
from aligngap.types import Estimate


def test_the_interval_of_a_mean_is_students() -> None:
    x = np.random.default_rng(0).normal(size=50)
    want = sps.ttest_1samp(x, 0.0).confidence_interval(0.95)
    assert interval(Estimate.mean(x, "of fifty")) == pytest.approx((want.low, want.high))


def test_undefined_stays_undefined() -> None:
    assert np.isnan(interval(Estimate.mean([0.5], "of one"))).all()
    empty = two_level(np.zeros((0, 2)), np.zeros((0, 10, 2)))
    assert np.isnan(empty.value).all()
    assert np.isnan(empty.se).all()
    partly = two_level(np.array([[1.0, np.nan], [1.0, 2.0]]), np.ones((2, 10, 2)))
    assert np.isnan(partly.value[1])
    assert np.isnan(partly.lower[1])


def test_bootstrap_weights_are_multinomial() -> None:
    w = bootstrap_weights(20, 4000, np.random.default_rng(0))
    assert (w.sum(axis=1) == 20).all()
    assert w.mean() == pytest.approx(1.0)
    assert w.var() == pytest.approx(1 - 1 / 20, rel=0.05)


def test_t_quantile_is_close_to_scipy() -> None:
    df = np.array([1.0, 2.0, 2.7, 4.0, 6.3, 11.0, 40.0, 1e5])
    assert t_quantile(df, 0.95) == pytest.approx(sps.t.ppf(0.975, df), rel=0.02)


def test_many_seeds_and_no_prompt_noise_is_the_t_interval() -> None:
    x = np.random.default_rng(1).normal(size=12)
    got = two_level(x, np.repeat(x[:, None], 50, axis=1))
    want = sps.ttest_1samp(x, 0.0).confidence_interval(0.95)
    assert got.interval() == pytest.approx((want.low, want.high))


def simulate(seeds: int, seed_sd: float, shared: float, runs: int = 1500) -> float:
    """Share of intervals that cover: seeds' effects plus prompts' noise of sd 1, `shared` of it common to all seeds."""
    rng = np.random.default_rng([seeds, int(seed_sd * 100), int(shared * 10)])
    covered = 0
    own = np.sqrt(1 - shared**2)
    for _ in range(runs):
        point = rng.normal(0, seed_sd, seeds) + own * rng.normal(size=seeds) + shared * rng.normal()
        reps = point[:, None] + own * rng.normal(size=(seeds, 200)) + shared * rng.normal(size=200)
        low, high = two_level(point, reps).interval()
        covered += low <= 0 <= high
    return covered / runs


@pytest.mark.parametrize(
    ("seeds", "seed_sd", "shared"),
    [(1, 0.0, 0.0), (3, 0.0, 0.0), (3, 1.0, 0.0), (3, 4.0, 0.0), (5, 1.0, 0.0), (8, 2.0, 0.0), (4, 0.5, 0.8)],
)
def test_two_level_interval_covers_at_its_nominal_rate(seeds: int, seed_sd: float, shared: float) -> None:
    error = np.sqrt(0.05 * 0.95 / 1500)
    assert 0.95 - 3.5 * error <= simulate(seeds, seed_sd, shared) <= 0.995


def test_two_seeds_are_covered_as_the_docstring_says() -> None:
    assert simulate(2, 4.0, 0.0) >= 0.88


@pytest.mark.parametrize(
    ("seeds", "seed_sd", "least"), [(1, 0.0, 0.92), (3, 1.0, 0.90), (5, 1.0, 0.90), (5, 0.0, 0.93)]
)
def test_simultaneous_band_covers_everywhere_at_once(seeds: int, seed_sd: float, least: float) -> None:
    rng = np.random.default_rng([9, seeds, int(seed_sd)])
    runs, k = 250, 20
    mix = np.exp(-0.5 * ((np.arange(k)[:, None] - np.arange(0, k, 4)) / 3.0) ** 2)
    mix /= np.linalg.norm(mix, axis=1, keepdims=True)
    covered, pointwise = 0, 0
    for _ in range(runs):
        wave = rng.normal(size=(seeds, mix.shape[1])) @ mix.T
        point = rng.normal(0, seed_sd, (seeds, 1)) + wave
        reps = point[:, None, :] + rng.normal(size=(seeds, 200, mix.shape[1])) @ mix.T
        by_x = two_level(point, reps)
        half = simultaneous_factor(point, reps, 0.95, rng, 400) * (by_x.upper - by_x.value)
        covered += bool((np.abs(by_x.value) <= half).all())
        pointwise += bool(((by_x.lower <= 0) & (by_x.upper >= 0)).all())
    assert covered / runs >= least
    assert covered >= pointwise


def test_same_seed_same_numbers() -> None:
    point = np.random.default_rng(0).normal(size=(3, 5))
    reps = np.random.default_rng(1).normal(size=(3, 80, 5))
    a, b = (simultaneous_factor(point, reps, 0.95, np.random.default_rng(4), 200) for _ in range(2))
    assert a == b
