"""Frontiers: interpolation, support, the envelope's optimism, the spline."""

from __future__ import annotations

import numpy as np
import pytest
from synthetic_records import planted_clouds

from aligngap.stats import frontier
from aligngap.stats.axes import KL, MIN_KL_NATS
from aligngap.stats.clouds import Cloud, Clouds
from aligngap.stats.compare import compare, curves_for
from aligngap.stats.frontier import arm_curves, envelope, interpolate, peaks, spline


def test_grid_holds_the_powers_of_two() -> None:
    grid = np.exp(KL.grid(0.1, 20.0))
    assert grid[0] >= 0.1
    assert grid[-1] <= 20.0
    for budget in (0.125, 0.5, 1.0, 4.0, 16.0):
        assert np.isclose(grid, budget).any()
    assert len(KL.grid(np.nan, 3.0)) == 0


def test_interpolation_agrees_with_numpy() -> None:
    rng = np.random.default_rng(0)
    x, y = np.sort(rng.normal(size=(5, 7)), axis=1), rng.normal(size=(5, 7))
    grid = np.linspace(-2, 2, 33)
    want = np.stack([np.interp(grid, a, b) for a, b in zip(x, y, strict=True)])
    assert interpolate(x, y, grid) == pytest.approx(want)


@pytest.mark.parametrize("block", [1, 2**18])
def test_the_envelope_is_the_best_run_wherever_a_run_is(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of unequal length and range, taken one by one or together, against a loop over everything."""
    monkeypatch.setattr(frontier, "BLOCK", block)
    rng = np.random.default_rng(1)
    run = rng.permutation(np.repeat(np.arange(6), [3, 5, 3, 1, 5, 3]))
    x, folds = rng.normal(size=(2, len(run))), rng.normal(size=(4, 2, len(run)))
    grid = np.linspace(-4.0, 4.0, 21)
    curve, naive = envelope(run, x, folds, grid, x[0])
    want, flat = np.full((4, 2, 21), np.nan), np.full((2, 21), np.nan)
    for b in range(2):
        for k, u in enumerate(grid):
            found = []
            for r in range(6):
                mine = np.flatnonzero(run == r)
                if x[0, mine].min() <= u <= x[0, mine].max():
                    order = mine[np.argsort(x[b, mine])]
                    found.append([np.interp(u, x[b, order], f[b, order]) for f in folds])
            if found:
                each = np.array(found)
                flat[b, k] = each.mean(axis=1).max()
                for f in range(4):
                    want[f, b, k] = each[np.argmax(each.sum(axis=1) - each[:, f]), f]
    assert curve == pytest.approx(want.mean(axis=0), nan_ok=True)
    assert naive == pytest.approx(flat, nan_ok=True)
    assert np.isfinite(curve).any()
    assert np.isnan(curve).any()


def test_nothing_is_extrapolated() -> None:
    grid = KL.grid(0.1, 20.0)
    x = np.log(np.array([[1.0, 2.0, 4.0]]))
    folds = np.ones((4, 1, 3)) * 0.5
    curve, naive = envelope(np.zeros(3, int), x, folds, grid, x[0])
    inside = (np.exp(grid) >= 1 - 1e-9) & (np.exp(grid) <= 4 + 1e-9)
    assert np.isfinite(curve[0, inside]).all()
    assert np.isnan(curve[0, ~inside]).all()
    assert np.isnan(naive[0, ~inside]).all()


def test_step_zero_and_tiny_kl_stay_off_the_log_axis() -> None:
    clouds = planted_clouds(np.random.default_rng(0), {"online": 0.0}, seeds=1, prompts=40)
    curve = arm_curves(clouds.items, KL.grid(0.01, 20.0), 20)["online"]
    assert curve.support[0] >= MIN_KL_NATS
    assert curve.support == pytest.approx((0.45, 15.0), rel=0.05)


def test_the_best_of_a_null_sweep_is_not_flattered() -> None:
    """Twelve equal configurations: the naive envelope lies above the truth, the cross-fitted one on it."""
    errors, naive_errors, peak_errors = [], [], []
    grid = KL.grid(0.5, 14.0)
    truth = 0.3 + 0.15 * np.exp(-((grid - np.log(4.0)) ** 2) / 4.0)
    for i in range(25):
        clouds = planted_clouds(np.random.default_rng([1, i]), {"offline": 0.0}, {"offline": 12}, 1, 160, seed_sd=0.0)
        c = arm_curves(clouds.items, grid, 2, i)["offline"]
        errors.append(np.nanmean(c.frontier[0] - truth))
        naive_errors.append(np.nanmean(c.frontier_naive[0] - truth))
        peak_errors.append(c.peak[0] - truth.max())
    se = np.std(errors) / np.sqrt(len(errors))
    assert np.mean(naive_errors) > 0.02
    assert abs(np.mean(errors)) < 3 * se + 0.005
    assert np.mean(peak_errors) < 0.01


def test_wins_that_are_not_known_by_prompt_are_one_fold() -> None:
    """Chosen and scored alike: the best run's curve and checkpoint, with the checkpoints' own standard error."""
    grid = KL.grid(1.0, 8.0)
    x = np.array([1.0, 2.0, 4.0, 8.0])
    win = np.array([[0.3, 0.5, 0.4, 0.2], [0.2, 0.4, 0.6, 0.1]])
    cloud = Cloud(
        "online", 0, ("a", "b"), ("a", "b"), run=np.repeat([0, 1], 4), step=np.tile([1, 2, 4, 8], 2), x=np.tile(x, 2),
        x_se=np.zeros(8), win=win.ravel(), win_se=np.full(8, 0.03),
    )  # fmt: skip
    c = arm_curves([cloud], grid, 2000)["online"]
    best = np.max([np.interp(grid, np.log(x), w) for w in win], axis=0)
    assert c.frontier[0] == pytest.approx(best)
    assert c.frontier_naive[0] == pytest.approx(best)
    assert c.frontier_reps[0].std(axis=0) == pytest.approx(np.full(len(grid), 0.03), rel=0.1)
    assert (c.peak[0], c.peak_x[0], c.peak_reps[0].std()) == (0.6, pytest.approx(4.0), pytest.approx(0.03, rel=0.1))


def test_peak_of_a_clear_winner_is_its_own_value() -> None:
    folds = np.tile(np.array([0.1, 0.9, 0.2]), (4, 2, 1))
    value, where = peaks(folds, np.tile(np.array([0.0, 1.0, 2.0]), (2, 1)))
    assert value == pytest.approx([0.9, 0.9])
    assert where == pytest.approx([1.0, 1.0])


def test_the_spline_keeps_lines_and_has_its_degrees_of_freedom() -> None:
    grid = np.linspace(0, 3, 60)
    hat = spline(grid, 5.0).hat
    assert np.trace(hat) == pytest.approx(5.0, abs=0.01)
    assert hat @ (2 + 3 * grid) == pytest.approx(2 + 3 * grid, abs=1e-5)
    hump = np.exp(-((grid - 1.5) ** 2))
    assert np.abs(hat @ hump - hump).max() < 0.06
    assert spline(grid[:4], 5.0).hat == pytest.approx(np.eye(4))


def test_arms_of_a_seed_share_their_prompts() -> None:
    """Two copies of one arm: every replicate of their difference is 0, which only holds if they are paired."""
    from dataclasses import replace

    clouds = planted_clouds(np.random.default_rng(2), {"online": 0.0}, seeds=2, prompts=60)
    both = [*clouds.items, *(replace(c, arm="copy") for c in clouds.items)]
    curves = arm_curves(both, KL.grid(0.5, 14), 30)
    assert np.nanmax(np.abs(curves["online"].frontier_reps - curves["copy"].frontier_reps)) < 1e-12


def test_neither_another_arm_nor_more_replicates_move_an_arms_curve() -> None:
    clouds = planted_clouds(np.random.default_rng(4), {"a": 0.0, "b": 0.02, "c": 0.1}, {"c": 30}, 2, 60)
    grid = KL.grid(0.5, 14)
    alone = arm_curves([c for c in clouds.items if c.arm != "c"], grid, 30)
    beside = arm_curves(clouds.items, grid, {"a": 30, "b": 20, "c": 7})
    assert np.array_equal(alone["a"].frontier, beside["a"].frontier, equal_nan=True)
    assert np.array_equal(alone["a"].frontier_reps, beside["a"].frontier_reps, equal_nan=True)
    assert np.array_equal(alone["b"].frontier_reps[:, :20], beside["b"].frontier_reps, equal_nan=True)
    fewer = arm_curves(clouds.items, grid, 10)
    assert np.array_equal(alone["a"].frontier, fewer["a"].frontier, equal_nan=True)
    assert np.array_equal(alone["a"].peak, fewer["a"].peak)


def test_the_number_of_an_arms_replicates_is_its_own() -> None:
    clouds = planted_clouds(np.random.default_rng(4), {"a": 0.0, "b": 0.02, "c": 0.1}, {"c": 30}, 2, 60)
    two = curves_for(Clouds(tuple(c for c in clouds.items if c.arm != "c")), 200, effort=3e7)
    three = curves_for(clouds, 200, effort=3e7)
    assert 60 <= three["c"].frontier_reps.shape[1] < three["a"].frontier_reps.shape[1]
    assert two["a"].frontier_reps.shape == three["a"].frontier_reps.shape
    with_c, without = compare(three, "a", "b"), compare(two, "a", "b")
    assert with_c.average_interval == without.average_interval
