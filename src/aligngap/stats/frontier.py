"""Win rate as a function of KL, or of another axis: one arm's frontier, per seed, with its bootstrap replicates.

A run is a piecewise-linear curve through its checkpoints in u (ln KL); an arm's frontier is the upper envelope over the
runs of its sweep. Taking the best of a sweep on the data that then score it flatters the sweep, so the prompts are
split into four folds: the run is chosen on three and scored on the fourth, every fold in turn (sample splitting, Cox
1975, Biometrika 62: 441-444; cross-fitting, Chernozhukov et al. 2018, Econometrics J. 21: C1-C68). Two halves would
choose on fewer prompts, hence worse, and so understate a sweep more. The same for an arm's peak, which chooses a
checkpoint. `frontier_naive` scores on the choosing prompts: the truth lies between it and `frontier`.
Nothing is extrapolated: beyond a run's own range its curve is undefined (nan).
Leaves out: choosing on other seeds (a sweep's luck in the *training* noise is part of what that pipeline reached).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.interpolate import BSpline

from aligngap.stats.axes import Axis
from aligngap.stats.clouds import Cloud, Matrix
from aligngap.stats.estimate import FloatArray, bootstrap_weights

#: folds of the cross-fitting, and how many random partitions the point estimate is averaged over
FOLDS = 4
SPLITS = 4
#: elements of an array of interpolated curves: runs are taken together up to this many
BLOCK = 2**18


@dataclass(frozen=True)
class ArmCurves:
    """One arm's frontier on a grid: S seeds, B replicates, K positions. nan outside what was reached."""

    arm: str
    seeds: tuple[int, ...]
    axis: Axis
    grid: FloatArray  # [K] u, positions on the axis
    frontier: FloatArray  # [S, K]
    frontier_reps: FloatArray  # [S, B, K]
    frontier_naive: FloatArray  # [S, K] chosen and scored on the same prompts
    peak: FloatArray  # [S]
    peak_reps: FloatArray  # [S, B]
    peak_x: FloatArray  # [S] where the peak lies
    end: FloatArray  # [S] win rate at the largest x
    end_reps: FloatArray  # [S, B]
    end_x: FloatArray  # [S]
    configs: int
    checkpoints: int
    prompts: int  # shared by the arms of a seed, fewest over seeds; 0 where not recorded

    @property
    def support(self) -> tuple[float, float]:
        """Range of x on which every seed's frontier is defined; (nan, nan) if there is none."""
        inside = np.isfinite(self.frontier).all(axis=0) if len(self.seeds) else np.zeros(len(self.grid), bool)
        if not inside.any():
            return float("nan"), float("nan")
        x = self.axis.x(self.grid[inside])
        return float(x[0]), float(x[-1])


def interpolate(x: FloatArray, y: FloatArray, grid: FloatArray) -> FloatArray:
    """Piecewise-linear curves [..., B, K] through nodes x [B, C], y [..., B, C], held constant beyond the last node.

    Nodes are sorted along C. Where every row has the same x, the places are looked up once.
    """
    last = x.shape[1] - 1
    if last == 0:
        return np.repeat(y, len(grid), axis=-1)
    if (x == x[:1]).all():
        at = np.clip(np.searchsorted(x[0], grid, side="right") - 1, 0, last - 1)
        share = np.clip((grid - x[0, at]) / np.maximum(x[0, at + 1] - x[0, at], 1e-12), 0.0, 1.0)
        weights = np.zeros((last + 1, len(grid)))
        weights[at, np.arange(len(grid))] = 1.0 - share
        weights[at + 1, np.arange(len(grid))] += share
        return np.asarray(y @ weights)
    rows, k = len(x), len(grid)
    passed = np.searchsorted(grid, x[:, 1:last]) + (k + 1) * np.arange(rows)[:, None]  # where each inner node is passed
    at = np.bincount(passed.ravel(), minlength=rows * (k + 1)).reshape(rows, k + 1)[:, :k].cumsum(axis=1)
    at += (last + 1) * np.arange(rows)[:, None]
    nodes, values = x.ravel(), y.reshape(*y.shape[:-2], -1)
    gap = np.maximum(np.diff(nodes, append=0.0), 1e-12)
    share = np.clip((grid - nodes.take(at)) / gap.take(at), 0.0, 1.0)
    out = np.diff(values, append=0.0).take(at, axis=-1)
    out *= share
    out += values.take(at, axis=-1)
    return np.asarray(out)


@dataclass(frozen=True)
class Draws:
    """Rows of prompt weights [rows, P], cut into the blocks that score: per split and fold its prompts and weights."""

    weights: Matrix
    blocks: tuple[tuple[int, int, npt.NDArray[np.int64], Matrix], ...]  # split, fold, prompts, weights[split::SPLITS]

    @classmethod
    def of(cls, weights: Matrix, partition: np.ndarray) -> Draws:
        """partition [SPLITS, P] holds each prompt's fold; row i uses partition i mod SPLITS."""
        blocks = []
        for split, folds in enumerate(partition):
            for f in range(FOLDS):
                mine = np.flatnonzero(folds == f)
                blocks.append((split, f, mine, np.ascontiguousarray(weights[split :: len(partition), mine])))
        return cls(weights, tuple(blocks))


def replicate_means(
    cloud: Cloud, prompts: Sequence[str], draws: Draws, rng: np.random.Generator
) -> tuple[FloatArray, FloatArray]:
    """u [rows, C] and each fold's win rates [F, rows, C] under rows of prompt weights.

    What is not known prompt by prompt is drawn from its standard error; wins with one draw for all checkpoints, since
    they share their prompts: independent draws would average out over the axis, and understate an average's error.
    Such wins cannot be split by prompt, and are one fold.
    """
    rows, axis = draws.weights.shape[0], cloud.axis
    drawn = cloud.x + rng.normal(size=(rows, len(cloud.x))) * cloud.x_se
    drawn[:SPLITS] = cloud.x
    u = axis.u(np.maximum(drawn, 0.05 * cloud.x) if axis.log else drawn)
    if cloud.win_by_prompt is None:
        noise = rng.normal(size=(1, rows, 1)) * cloud.win_se
        noise[:, :SPLITS] = 0.0
        return u, cloud.win + noise
    columns = pd.Index(cloud.prompt_ids).get_indexer(pd.Index(prompts))
    wins = np.ascontiguousarray(cloud.win_by_prompt[:, columns].T)
    holes = np.isnan(wins)
    there = (~holes).astype(np.float32) if holes.any() else None
    if there is not None:
        wins = np.where(holes, np.float32(0), wins)
    by_fold = np.empty((FOLDS, rows, wins.shape[1]))
    for split, f, mine, block in draws.blocks:
        by_fold[f, split::SPLITS] = _weigh(wins[mine], block, None if there is None else there[mine])
    if np.isnan(by_fold).any():  # very few prompts: a fold may be empty
        by_fold = np.where(np.isnan(by_fold), _weigh(wins, draws.weights, there), by_fold)
    if cloud.x_by_prompt is not None:
        x = cloud.x_by_prompt[:, columns].T
        known = ~np.isnan(x)
        whole = bool(known.all())
        u = axis.u(
            _weigh(np.where(known, x, np.float32(0)), draws.weights, None if whole else known.astype(np.float32))
        )
    return u, by_fold


def _weigh(values: Matrix, weights: Matrix, there: Matrix | None) -> FloatArray:
    """Weighted means [rows, C] of values [P, C] under weights [rows, P]; `there` is 0 where a value (0) is missing."""
    total = weights.sum(axis=1, keepdims=True) if there is None else weights @ there
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray((weights @ values) / np.where(total > 0, total, np.nan), dtype=np.float64)


def envelope(
    run: np.ndarray, x: FloatArray, folds: FloatArray, grid: FloatArray, observed: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Upper envelope over runs [rows, K], cross-fitted, and the naive one that scores on the choosing prompts.

    x [rows, C] u, folds [F, rows, C] win rates by fold; of a single fold the two are the same. `observed` [C] is the u
    of the point estimate: it fixes where each run is defined, in every row alike.
    """
    f, rows, _ = folds.shape
    best = np.full((f, rows, len(grid)), -np.inf)
    score = np.full((f, rows, len(grid)), np.nan)
    naive = np.full((rows, len(grid)), -np.inf)
    for mine in alike(run, max(BLOCK // max(f * rows * len(grid), 1), 1)):
        first = np.searchsorted(grid, observed[mine].min(axis=1) - 1e-9)
        end = np.searchsorted(grid, observed[mine].max(axis=1) + 1e-9, side="right")
        low, high = int(first.min()), int(end.max())
        if low >= high:
            continue
        nodes, judged = x[:, mine].reshape(-1, mine.shape[1]), folds[:, :, mine].reshape(f, -1, mine.shape[1])
        if (nodes[:, 1:] < nodes[:, :-1]).any():
            order = np.argsort(nodes, axis=1, kind="stable")
            nodes, judged = np.take_along_axis(nodes, order, 1), np.take_along_axis(judged, order[None], 2)
        found = interpolate(nodes, judged, grid[low:high]).reshape(f, rows, len(mine), high - low)
        for r, (start, stop) in enumerate(zip(first, end, strict=True)):
            at, judge = slice(start, stop), found[:, :, r, start - low : stop - low]
            total = judge.sum(axis=0)
            choose = others(judge, total)
            better = choose > best[:, :, at]
            np.copyto(best[:, :, at], choose, where=better)
            np.copyto(score[:, :, at], judge, where=better)
            np.maximum(naive[:, at], total / f, out=naive[:, at])
    return score.mean(axis=0), np.where(np.isfinite(naive), naive, np.nan)


def others(folds: FloatArray, total: FloatArray) -> FloatArray:
    """What each fold [F, ...] is chosen by: the other folds' sum, as good as their mean for it; one fold by itself."""
    return total - folds if len(folds) > 1 else folds


def alike(run: np.ndarray, most: int) -> Iterator[npt.NDArray[np.int64]]:
    """The places [R, n] in `run` [C] of R <= `most` runs with n checkpoints each, until every run has had its turn."""
    order = np.argsort(run, kind="stable")
    starts = np.flatnonzero(np.diff(run[order], prepend=-1))
    sizes = np.diff(starts, append=len(run))
    for n in dict.fromkeys(sizes.tolist()):
        rows = order[starts[sizes == n][:, None] + np.arange(n)]
        yield from (rows[i : i + most] for i in range(0, len(rows), most))


def peaks(folds: FloatArray, x: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Cross-fitted best checkpoint [rows]: its win rate, and its u (mean of the folds' choices)."""
    chosen = np.argmax(others(folds, folds.sum(axis=0)), axis=2)[:, :, None]
    value = np.take_along_axis(folds, chosen, 2)[:, :, 0].mean(axis=0)
    where = np.stack([np.take_along_axis(x, c, 1)[:, 0] for c in chosen]).mean(axis=0)
    return value, where


@dataclass(frozen=True)
class _OfSeed:
    """One arm's curves at one seed: the first SPLITS rows are the point estimate, the others replicates."""

    cloud: Cloud
    prompts: int
    frontier: FloatArray  # [SPLITS + B, K]
    naive: FloatArray  # [K]
    peak: FloatArray  # [SPLITS + B]
    end: FloatArray  # [SPLITS + B]
    peak_u: FloatArray  # [SPLITS + B]
    end_u: float


def arm_curves(
    clouds: Sequence[Cloud], grid: FloatArray, replicates: int | Mapping[str, int] = 400, rng_seed: int = 0
) -> dict[str, ArmCurves]:
    """Frontiers of every arm on one grid. All arms of a seed are resampled on the same prompts (that is the pairing),
    and seeds that hold the same prompts share their draws, so that what they share is not counted as independent.

    `replicates` is one number, or one for each arm: the first so many of the same draws, so that neither another arm
    nor another number of replicates moves an arm's point estimate or the draws that it shares with another.
    """
    count = replicates if isinstance(replicates, Mapping) else {c.arm: replicates for c in clouds}
    by_seed: dict[int, list[Cloud]] = {}
    for cloud in clouds:
        if cloud.usable.any():
            by_seed.setdefault(cloud.seed, []).append(cloud)
    found: dict[str, list[_OfSeed]] = {}
    for seed in sorted(by_seed):
        group = by_seed[seed]
        shared = [set(c.prompt_ids) for c in group if c.win_by_prompt is not None]
        prompts = sorted(set.intersection(*shared)) if shared else []
        tag = zlib.crc32("\n".join(prompts).encode()) if prompts else seed
        rng = np.random.default_rng([rng_seed, tag])
        n = max(len(prompts), 2)
        partition = np.stack([rng.permutation(n) % FOLDS for _ in range(SPLITS)])
        drawn = bootstrap_weights(n, max(count[c.arm] for c in group), rng)
        weights = np.vstack([np.ones((SPLITS, n)), drawn]).astype(np.float32)
        draws: dict[int, Draws] = {}
        for cloud in group:
            if cloud.win_by_prompt is not None and not prompts:
                continue
            rows = SPLITS + count[cloud.arm]
            if rows not in draws:
                draws[rows] = Draws.of(weights[:rows], partition)
            noise = np.random.default_rng([rng_seed, seed, zlib.crc32(cloud.arm.encode())])
            x, folds = replicate_means(cloud, prompts, draws[rows], noise)
            keep = cloud.usable
            x, folds, run = x[:, keep], folds[:, :, keep], cloud.run[keep]
            curve, naive = envelope(run, x, folds, grid, x[0])
            top, top_x = peaks(folds, x)
            last = int(np.argmax(x[0]))
            mine = _OfSeed(
                cloud=cloud,
                prompts=len(prompts) if cloud.win_by_prompt is not None else 0,
                frontier=curve,
                naive=naive[0],
                peak=top,
                end=folds[:, :, last].mean(axis=0),
                peak_u=top_x,
                end_u=float(x[0, last]),
            )
            found.setdefault(cloud.arm, []).append(mine)
    return {arm: _over_seeds(arm, items, grid) for arm, items in found.items()}


def _over_seeds(arm: str, items: Sequence[_OfSeed], grid: FloatArray) -> ArmCurves:
    """An arm's curves from those of its seeds."""
    axis = items[0].cloud.axis
    curve, top, end = (np.stack(v) for v in zip(*((i.frontier, i.peak, i.end) for i in items), strict=True))
    return ArmCurves(
        arm=arm,
        seeds=tuple(i.cloud.seed for i in items),
        axis=axis,
        grid=grid,
        frontier=curve[:, :SPLITS].mean(axis=1),
        frontier_reps=curve[:, SPLITS:],
        frontier_naive=np.stack([i.naive for i in items]),
        peak=top[:, :SPLITS].mean(axis=1),
        peak_reps=top[:, SPLITS:],
        peak_x=axis.x(np.stack([i.peak_u for i in items])[:, :SPLITS].mean(axis=1)),
        end=end[:, :SPLITS].mean(axis=1),
        end_reps=end[:, SPLITS:],
        end_x=axis.x([i.end_u for i in items]),
        configs=len({c for i in items for c in i.cloud.configs}),
        checkpoints=sum(int(i.cloud.usable.sum()) for i in items),
        prompts=min(i.prompts for i in items),
    )


@dataclass(frozen=True)
class Spline:
    """A penalised cubic spline on a grid of K points with Q coefficients: its basis, and how it is fitted."""

    basis: FloatArray  # [K, Q]
    solve: FloatArray  # [Q, K] values -> coefficients
    root: FloatArray  # [Q, Q] R with R'R the normal matrix, penalty included

    @property
    def hat(self) -> FloatArray:
        """[K, K] values -> fitted values."""
        return self.basis @ self.solve


def spline(grid: FloatArray, edf: float = 6.0, segments: int = 12) -> Spline:
    """A P-spline with `edf` effective degrees of freedom on an even grid; fewer than five points are interpolated.

    Cubic B-splines with a second-difference penalty (Eilers & Marx 1996, Statistical Science 11: 89-121); the penalty
    is found by bisection so that the trace of the smoother is `edf`.
    """
    k = len(grid)
    if k < 5 or edf >= k:
        return Spline(np.eye(k), np.eye(k), np.eye(k))
    u = (grid - grid[0]) / (grid[-1] - grid[0])
    m = min(segments, k - 3)
    knots = np.arange(-3, m + 4) / m
    basis = BSpline.design_matrix(np.clip(u, 0, 1 - 1e-12), knots, 3).toarray()
    penalty = np.diff(np.eye(basis.shape[1]), 2, axis=0)
    gram, ridge = basis.T @ basis, penalty.T @ penalty
    low, high = -8.0, 8.0
    normal, solve = gram, basis.T
    for _ in range(40):
        middle = (low + high) / 2
        normal = gram + 10.0**middle * ridge + 1e-10 * np.eye(len(gram))
        solve = np.linalg.solve(normal, basis.T)
        low, high = (middle, high) if np.trace(basis @ solve) > edf else (low, middle)
    return Spline(np.asarray(basis, dtype=np.float64), solve, np.linalg.cholesky(normal).T)
