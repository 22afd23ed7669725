"""Win rate as a function of KL: one arm's frontier, per seed, with its bootstrap replicates.

A run is a piecewise-linear curve through its checkpoints in ln KL; an arm's frontier is the upper envelope over the
runs of its sweep. Taking the best of a sweep on the data that then score it flatters the sweep, so the prompts are
split into four folds: the run is chosen on three and scored on the fourth, every fold in turn (sample splitting, Cox
1975, Biometrika 62: 441-444; cross-fitting, Chernozhukov et al. 2018, Econometrics J. 21: C1-C68). Two halves would
choose on fewer prompts, hence worse, and so understate a sweep more. The same for an arm's peak, which chooses a
checkpoint. `frontier_naive` scores on the choosing prompts: the truth lies between it and `frontier`.
Nothing is extrapolated: beyond a run's own KL range its curve is undefined (nan).
Leaves out: choosing on other seeds (a sweep's luck in the *training* noise is part of what that pipeline reached).
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.interpolate import BSpline

from aligngap.stats.clouds import Cloud
from aligngap.stats.estimate import FloatArray, bootstrap_weights

#: the grid: 16 points an octave of KL, so that budgets of 2^k nats lie on it
STEPS_PER_OCTAVE = 16
#: below this KL both arms are the SFT policy for every purpose; averaging there would only dilute a difference
MIN_KL_NATS = 0.1
#: folds of the cross-fitting, and how many random partitions the point estimate is averaged over
FOLDS = 4
SPLITS = 4


@dataclass(frozen=True)
class ArmCurves:
    """One arm's frontier on a grid: S seeds, B replicates, K positions. nan outside the KL that was reached."""

    arm: str
    seeds: tuple[int, ...]
    grid: FloatArray  # [K] ln KL
    frontier: FloatArray  # [S, K]
    frontier_reps: FloatArray  # [S, B, K]
    frontier_naive: FloatArray  # [S, K] chosen and scored on the same prompts
    peak: FloatArray  # [S]
    peak_reps: FloatArray  # [S, B]
    peak_kl: FloatArray  # [S] nats
    end: FloatArray  # [S] win rate at the largest KL
    end_reps: FloatArray  # [S, B]
    end_kl: FloatArray  # [S]
    configs: int
    checkpoints: int

    @property
    def support(self) -> tuple[float, float]:
        """KL range in nats on which every seed's frontier is defined; (nan, nan) if there is none."""
        inside = np.isfinite(self.frontier).all(axis=0) if len(self.seeds) else np.zeros(len(self.grid), bool)
        if not inside.any():
            return float("nan"), float("nan")
        x = np.exp(self.grid[inside])
        return float(x[0]), float(x[-1])


def log_grid(low: float, high: float) -> FloatArray:
    """ln KL positions inside [low, high] nats, at multiples of ln 2 / 16."""
    step = np.log(2.0) / STEPS_PER_OCTAVE
    if not (np.isfinite(low) and np.isfinite(high) and 0 < low <= high):
        return np.zeros(0)
    first, last = int(np.ceil(np.log(low) / step - 1e-9)), int(np.floor(np.log(high) / step + 1e-9))
    return np.asarray(step * np.arange(first, last + 1), dtype=np.float64)


def interpolate(x: FloatArray, y: FloatArray, grid: FloatArray) -> FloatArray:
    """Piecewise-linear curves [B, K] through nodes x, y [B, C] sorted along C, held constant beyond the last node."""
    if x.shape[1] == 1:
        return np.repeat(y, len(grid), axis=1)
    at = np.clip((x[:, None, :] <= grid[None, :, None]).sum(axis=2) - 1, 0, x.shape[1] - 2)
    x0, x1 = np.take_along_axis(x, at, 1), np.take_along_axis(x, at + 1, 1)
    y0, y1 = np.take_along_axis(y, at, 1), np.take_along_axis(y, at + 1, 1)
    share = np.clip((grid - x0) / np.maximum(x1 - x0, 1e-12), 0.0, 1.0)
    return np.asarray(y0 + share * (y1 - y0), dtype=np.float64)


def replicate_means(
    cloud: Cloud, prompts: Sequence[str], weights: FloatArray, partition: np.ndarray, rng: np.random.Generator
) -> tuple[FloatArray, FloatArray]:
    """ln KL [rows, C] and each fold's win rates [FOLDS, rows, C] under rows of prompt weights.

    partition [SPLITS, P] holds each prompt's fold; row i uses partition i mod SPLITS.
    """
    rows = weights.shape[0]
    if cloud.win_by_prompt is None:
        noise = rng.normal(size=(FOLDS, rows, len(cloud.win))) * cloud.win_se * np.sqrt(FOLDS)
        kl_noise = rng.normal(size=(rows, len(cloud.kl))) * cloud.kl_se
        noise[:, :SPLITS] = 0.0
        kl_noise[:SPLITS] = 0.0
        return np.log(np.maximum(cloud.kl + kl_noise, 0.05 * cloud.kl)), cloud.win + noise
    position = {p: i for i, p in enumerate(cloud.prompt_ids)}
    columns = np.array([position[p] for p in prompts], dtype=np.int64)
    wins, weights = cloud.win_by_prompt[:, columns], weights.astype(np.float32)
    by_fold = np.empty((FOLDS, rows, len(wins)))
    for split, folds in enumerate(partition):
        for f in range(FOLDS):
            mine = np.flatnonzero(folds == f)
            by_fold[f, split :: len(partition)] = _weighted(wins[:, mine], weights[split :: len(partition), mine])
    if np.isnan(by_fold).any():  # very few prompts: a fold may be empty
        by_fold = np.where(np.isnan(by_fold), _weighted(wins, weights), by_fold)
    if cloud.kl_by_prompt is None:
        return np.tile(np.log(cloud.kl), (rows, 1)), by_fold
    return np.log(np.maximum(_weighted(cloud.kl_by_prompt[:, columns], weights), 1e-9)), by_fold


def _weighted(values: np.ndarray, weights: FloatArray) -> FloatArray:
    """Weighted means [rows, C] of values [C, P], nan entries left out."""
    w = np.asarray(weights, dtype=np.float32)
    bad = np.isnan(values)
    if bad.any():
        total = w @ (~bad).astype(np.float32).T
        top = w @ np.where(bad, np.float32(0), values).T
    else:
        total = w.sum(axis=1, keepdims=True)
        top = w @ values.T
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(top / np.where(total > 0, total, np.nan), dtype=np.float64)


def envelope(
    run: np.ndarray, x: FloatArray, folds: FloatArray, grid: FloatArray, observed: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Upper envelope over runs [rows, K], cross-fitted, and the naive one that scores on the choosing prompts.

    x [rows, C] ln KL, folds [F, rows, C] win rates by fold. `observed` [C] is the ln KL of the point estimate: it fixes
    where each run is defined, in every row alike.
    """
    f, rows, _ = folds.shape
    best = np.full((f, rows, len(grid)), -np.inf)
    score = np.full((f, rows, len(grid)), np.nan)
    naive = np.full((rows, len(grid)), -np.inf)
    for r in range(int(run.max()) + 1 if len(run) else 0):
        mine = np.flatnonzero(run == r)
        inside = (grid >= observed[mine].min() - 1e-9) & (grid <= observed[mine].max() + 1e-9) if len(mine) else None
        if inside is None or not inside.any():
            continue
        order = np.argsort(x[:, mine], axis=1, kind="stable")
        nodes = np.take_along_axis(x[:, mine], order, 1)
        judge = np.stack([interpolate(nodes, np.take_along_axis(y[:, mine], order, 1), grid[inside]) for y in folds])
        total = judge.sum(axis=0)
        choose = (total - judge) / (f - 1)
        better = choose > best[:, :, inside]
        best[:, :, inside] = np.where(better, choose, best[:, :, inside])
        score[:, :, inside] = np.where(better, judge, score[:, :, inside])
        naive[:, inside] = np.maximum(naive[:, inside], total / f)
    return score.mean(axis=0), np.where(np.isfinite(naive), naive, np.nan)


def peaks(folds: FloatArray, x: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Cross-fitted best checkpoint [rows]: its win rate, and its ln KL (mean of the folds' choices)."""
    choose = (folds.sum(axis=0) - folds) / (folds.shape[0] - 1)
    chosen = np.argmax(choose, axis=2)[:, :, None]
    value = np.take_along_axis(folds, chosen, 2)[:, :, 0].mean(axis=0)
    where = np.stack([np.take_along_axis(x, c, 1)[:, 0] for c in chosen]).mean(axis=0)
    return value, where


def arm_curves(
    clouds: Sequence[Cloud], grid: FloatArray, replicates: int = 400, rng_seed: int = 0, min_kl: float = MIN_KL_NATS
) -> dict[str, ArmCurves]:
    """Frontiers of every arm on one grid. All arms of a seed are resampled on the same prompts (that is the pairing),
    and seeds that hold the same prompts share their draws, so that what they share is not counted as independent."""
    by_seed: dict[int, list[Cloud]] = {}
    for cloud in clouds:
        if (cloud.kl >= min_kl).any():
            by_seed.setdefault(cloud.seed, []).append(cloud)
    found: dict[str, list[tuple[Cloud, FloatArray, FloatArray, FloatArray, FloatArray, FloatArray, float]]] = {}
    for seed in sorted(by_seed):
        group = by_seed[seed]
        shared = [set(c.prompt_ids) for c in group if c.win_by_prompt is not None]
        prompts = sorted(set.intersection(*shared)) if shared else []
        tag = zlib.crc32("\n".join(prompts).encode()) if prompts else seed
        rng = np.random.default_rng([rng_seed, tag])
        n = max(len(prompts), 2)
        weights = np.vstack([np.ones((SPLITS, n)), bootstrap_weights(n, replicates, rng)])
        partition = np.stack([rng.permutation(n) % FOLDS for _ in range(SPLITS)])
        for number, cloud in enumerate(group):
            if cloud.win_by_prompt is not None and not prompts:
                continue
            noise = np.random.default_rng([rng_seed, seed, number, zlib.crc32(cloud.arm.encode())])
            x, folds = replicate_means(cloud, prompts, weights, partition, noise)
            keep = cloud.kl >= min_kl
            x, folds, run = x[:, keep], folds[:, :, keep], cloud.run[keep]
            curve, naive = envelope(run, x, folds, grid, x[0])
            top, top_x = peaks(folds, x)
            last = int(np.argmax(x[0]))
            found.setdefault(cloud.arm, []).append(
                (cloud, curve, naive[0], top, folds[:, :, last].mean(axis=0), top_x, float(np.exp(x[0, last])))
            )
    out: dict[str, ArmCurves] = {}
    for arm, items in found.items():
        curve = np.stack([i[1] for i in items])
        top, end = np.stack([i[3] for i in items]), np.stack([i[4] for i in items])
        out[arm] = ArmCurves(
            arm=arm,
            seeds=tuple(i[0].seed for i in items),
            grid=grid,
            frontier=curve[:, :SPLITS].mean(axis=1),
            frontier_reps=curve[:, SPLITS:],
            frontier_naive=np.stack([i[2] for i in items]),
            peak=top[:, :SPLITS].mean(axis=1),
            peak_reps=top[:, SPLITS:],
            peak_kl=np.exp(np.stack([i[5] for i in items])[:, :SPLITS].mean(axis=1)),
            end=end[:, :SPLITS].mean(axis=1),
            end_reps=end[:, SPLITS:],
            end_kl=np.array([i[6] for i in items]),
            configs=len({c for i in items for c in i[0].configs}),
            checkpoints=sum(int((i[0].kl >= min_kl).sum()) for i in items),
        )
    return out


def smoother(grid: FloatArray, edf: float = 6.0, segments: int = 12) -> FloatArray:
    """Matrix [K, K] of a penalised cubic spline with `edf` effective degrees of freedom on the grid.

    P-splines: cubic B-splines with a second-difference penalty (Eilers & Marx 1996, Statistical Science 11: 89-121);
    the penalty is found by bisection so that the trace of the smoother is `edf`. Linear, so it commutes with the mean
    over seeds and applies to replicates as it stands.
    """
    k = len(grid)
    if k < 5 or edf >= k:
        return np.eye(k)
    u = (grid - grid[0]) / (grid[-1] - grid[0])
    m = min(segments, k - 3)
    knots = np.arange(-3, m + 4) / m
    basis = BSpline.design_matrix(np.clip(u, 0, 1 - 1e-12), knots, 3).toarray()
    penalty = np.diff(np.eye(basis.shape[1]), 2, axis=0)
    gram, ridge = basis.T @ basis, penalty.T @ penalty
    low, high = -8.0, 8.0
    hat = np.eye(k)
    for _ in range(40):
        middle = (low + high) / 2
        hat = basis @ np.linalg.solve(gram + 10.0**middle * ridge + 1e-10 * np.eye(len(gram)), basis.T)
        low, high = (middle, high) if np.trace(hat) > edf else (low, middle)
    return np.asarray(hat, dtype=np.float64)
