"""The drawn frontier: one hump, the best fit among all of them, and a band that covers planted truth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import isotonic_regression, minimize
from synthetic_records import hump, planted_clouds

from aligngap.stats.axes import KL
from aligngap.stats.estimate import two_level
from aligngap.stats.frontier import ArmCurves, Spline, arm_curves, spline
from aligngap.stats.unimodal import frontier_line, unimodal

GRID = KL.grid(0.5, 14.0)


def plateau(kl: np.ndarray) -> np.ndarray:
    return np.asarray(0.25 + 0.2 / (1 + np.exp(-3 * (np.log(kl) - 0.5))))


def rise(kl: np.ndarray) -> np.ndarray:
    return np.asarray(0.25 + 0.06 * (np.log(kl) + 0.7))


def curves(i: int, shape: Callable[[np.ndarray], np.ndarray], seeds: int = 3, prompts: int = 150) -> ArmCurves:
    clouds = planted_clouds(
        np.random.default_rng([5, i]), {"a": 0.0}, seeds=seeds, prompts=prompts, checkpoints=10,
        seed_sd=0.02 if seeds > 1 else 0.0, shape=shape,
    )  # fmt: skip
    return arm_curves(clouds.items, KL.grid(0.45, 15.0), 100, i)["a"]


def turns(y: np.ndarray) -> bool:
    """Whether y rises again after a fall."""
    steps = np.diff(y)
    fell = np.maximum.accumulate(steps < -1e-9)
    return bool((fell & (steps > 1e-9)).any())


@pytest.mark.parametrize("seed", range(6))
def test_fit_has_one_hump_and_no_better_one_exists(seed: int) -> None:
    rng = np.random.default_rng(seed)
    fit = spline(GRID, 6.0, segments=7)
    y = 0.3 + 0.1 * np.sin(3 * GRID + seed) + rng.normal(0, 0.05, len(GRID))
    found = unimodal(fit, y[None])[0]
    assert not turns(found)
    free = fit.solve @ y

    def loss(c: np.ndarray) -> float:
        return float(np.sum((fit.root @ (c - free)) ** 2))

    mine = loss(np.linalg.lstsq(fit.basis, found, rcond=None)[0])
    q = len(free)
    best = np.inf
    for mode in range(q):  # the same problem by a general solver
        sign = np.where(np.arange(q - 1) < mode, 1.0, -1.0)
        rules = {"type": "ineq", "fun": lambda c, s=sign: s * np.diff(c)}
        solved = minimize(loss, np.full(q, y.mean()), constraints=rules, options={"maxiter": 400, "ftol": 1e-12})
        best = min(best, solved.fun)
    assert mine == pytest.approx(best, rel=1e-3, abs=1e-6)


def test_without_smoothing_it_is_unimodal_regression() -> None:
    """With one coefficient a point and no penalty: isotonic up to the mode, antitonic after it, the mode profiled."""
    rng = np.random.default_rng(0)
    for k in (2, 5, 12):
        y = rng.normal(size=k)
        found = unimodal(Spline(np.eye(k), np.eye(k), np.eye(k)), y[None])[0]
        best = min(
            float(((isotonic_regression(y[:m]).x - y[:m]) ** 2).sum() if m else 0.0)
            + float(((isotonic_regression(y[m:], increasing=False).x - y[m:]) ** 2).sum() if m < k else 0.0)
            for m in range(k + 1)
        )
        assert float(((found - y) ** 2).sum()) == pytest.approx(best, abs=1e-10)


def test_a_smooth_hump_is_left_as_the_spline_has_it() -> None:
    fit = spline(GRID, 6.0)
    for shape in (hump, rise, lambda kl: -rise(kl)):
        y = np.asarray(shape(np.exp(GRID)))
        assert unimodal(fit, y[None])[0] == pytest.approx(fit.hat @ y, abs=1e-9)


def test_the_limits_are_named_and_nothing_is_extrapolated() -> None:
    c = curves(0, rise)
    for sign, name in ((1.0, "rising"), (-1.0, "falling")):
        line = frontier_line(replace(c, frontier=sign * c.frontier, frontier_reps=sign * c.frontier_reps))
        assert (line.kl[0], line.kl[-1]) == pytest.approx(c.support)
        assert line.shape in (name, "hump")
        assert not turns(line.value)
    nothing = frontier_line(replace(c, frontier=np.full_like(c.frontier, np.nan)))
    assert (len(nothing.kl), nothing.shape) == (0, "")
    few = frontier_line(
        replace(c, grid=c.grid[:3], frontier=c.frontier[:, :3], frontier_reps=c.frontier_reps[:, :, :3])
    )
    assert np.isfinite(few.value).all()


def test_same_seed_same_band() -> None:
    a, b = (frontier_line(curves(1, hump)) for _ in range(2))
    assert (a.lower == b.lower).all()
    assert (a.upper == b.upper).all()


@pytest.mark.parametrize("shape", [hump, plateau, rise])
@pytest.mark.parametrize("seeds", [1, 3])
def test_band_covers_planted_truth_and_the_shape_costs_nothing(
    shape: Callable[[np.ndarray], np.ndarray], seeds: int
) -> None:
    covered, shaped, free = [], [], []
    n = 20
    for i in range(n):
        c = curves(i, shape, seeds)
        line, inside = frontier_line(c), np.isfinite(c.frontier).all(axis=0)
        truth = shape(line.kl)
        hat = spline(c.grid[inside], 6.0).hat
        plain = two_level(c.frontier[:, inside] @ hat.T, c.frontier_reps[:, :, inside] @ hat.T)
        covered.append(np.mean((line.lower <= truth) & (truth <= line.upper)))
        shaped.append(np.mean((line.value - truth) ** 2))
        free.append(np.mean((plain.value - truth) ** 2))
    assert np.mean(covered) >= 0.95 - 3 * np.std(covered) / np.sqrt(n) - 0.01
    assert np.mean(shaped) <= 1.02 * np.mean(free)


def test_a_band_of_two_unlike_seeds_ends_where_win_rates_do() -> None:
    clouds = planted_clouds(np.random.default_rng(5), {"a": 0.0}, seeds=2, prompts=60, seed_sd=0.2)
    line = frontier_line(arm_curves(clouds.items, GRID, 60)["a"])
    assert line.lower.min() == 0.0
    assert line.upper.max() == 1.0
    assert ((line.lower <= line.value) & (line.value <= line.upper)).all()
