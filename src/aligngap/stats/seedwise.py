"""Runs read at fixed places along their KL, and numbers for each seed with what every prompt adds to them.

A run is a piecewise-linear curve of its win rate in ln KL. The noise of prompts is the delta method's: a win rate at a
KL is a smooth function of means over prompts (of wins, and of KL where it is known prompt by prompt), so every prompt
has an influence on it and no bootstrap is needed. The interval is Student's t over seeds with as many degrees of
freedom as seeds less one, its variance that between seeds plus what prompts shared by the seeds add. Where seeds happen
to agree it is no narrower than the normal interval that the prompts' noise alone gives.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import special

from aligngap.stats.clouds import Cloud
from aligngap.stats.estimate import NAN, FloatArray

LEVEL = 0.95
TINY_KL = 1e-9

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Reading:
    """One curve read at M places: its values, each prompt's influence on them, and errors that no prompt explains.

    `influence` sums to 0 over prompts, and the sum of its squares is the variance that the prompts give to a value.
    """

    value: FloatArray  # [M] nan where the curve does not reach
    prompts: tuple[str, ...]
    influence: FloatArray  # [M, P]
    se: FloatArray  # [M] where wins are not known prompt by prompt
    short: Mask  # [M] whether the curve ends below
    passed: Mask  # [M] whether its first checkpoint lies above


@dataclass(frozen=True)
class Seedwise:
    """A number for each seed and place, with what each prompt adds to it; sums and multiples are again such numbers.

    value [S, M] (nan where undefined), influence [S, M, U] over the U prompts of all seeds, extra [S, M] the variance
    that no recorded prompt explains.
    """

    seeds: tuple[int, ...]
    prompts: tuple[str, ...]
    value: FloatArray
    influence: FloatArray
    extra: FloatArray

    def plus(self, other: Seedwise, weight: float = 1.0) -> Seedwise:
        """The sum of this and `weight` times another over the same seeds and places."""
        mine, theirs = self, other
        if self.prompts != other.prompts:
            prompts = tuple(dict.fromkeys((*self.prompts, *other.prompts)))
            mine, theirs = self.over(prompts), other.over(prompts)
        return replace(
            mine,
            value=mine.value + weight * theirs.value,
            influence=mine.influence + weight * theirs.influence,
            extra=mine.extra + weight**2 * theirs.extra,
        )

    def over(self, prompts: tuple[str, ...]) -> Seedwise:
        """The same over these prompts, which hold its own; others add nothing to it."""
        wider = np.zeros((*self.value.shape, len(prompts)))
        wider[:, :, Places(prompts)(self.prompts)] = self.influence
        return replace(self, prompts=prompts, influence=wider)

    def times(self, weights: FloatArray) -> Seedwise:
        """The same with each seed multiplied by its weight [S]."""
        w = np.asarray(weights, dtype=np.float64)[:, None]
        return replace(self, value=w * self.value, influence=w[:, :, None] * self.influence, extra=w**2 * self.extra)

    def at(self, place: int) -> Seedwise:
        """The same at one place alone."""
        k = slice(place, place + 1)
        return replace(self, value=self.value[:, k], influence=self.influence[:, k], extra=self.extra[:, k])


@dataclass(frozen=True)
class Mean:
    """The mean over seeds at one place, with t intervals of any level.

    `seeds_se` is the standard error from the spread of the seeds, nan for one; `prompts_se` that of the prompts alone.
    """

    value: float
    seeds_se: float
    prompts_se: float
    n: int

    @property
    def se(self) -> float:
        """The larger of the two standard errors."""
        return float(np.fmax(self.seeds_se, self.prompts_se))

    def interval(self, level: float = LEVEL, together: int = 1) -> tuple[float, float]:
        """The t interval that covers with `level` when `together` such intervals are to cover at once.

        One seed has no degrees of freedom: its interval rests on the prompts alone, with normal quantiles.
        """
        if not np.isfinite(self.se):
            return NAN, NAN
        half = critical(1, level, together) * self.prompts_se
        if self.n > 1:
            half = max(half, critical(self.n, level, together) * self.seeds_se)
        return self.value - half, self.value + half

    def p(self) -> float:
        """The two-sided p-value of no difference; nan with fewer than two seeds."""
        if self.n < 2 or not np.isfinite(self.se):
            return NAN
        if self.se == 0:
            return 1.0 if self.value == 0 else 0.0
        with np.errstate(divide="ignore", invalid="ignore"):
            by_seeds = special.stdtr(self.n - 1, -abs(self.value) / np.float64(self.seeds_se))
            by_prompts = special.ndtr(-abs(self.value) / np.float64(self.prompts_se))
        return float(2 * np.fmax(by_seeds, by_prompts))


def critical(seeds: int, level: float = LEVEL, together: int = 1) -> float:
    """The quantile by which a standard error over this many seeds becomes the half-width of `together` intervals."""
    tail = (1 - level) / 2 / max(together, 1)
    return float(-special.stdtrit(seeds - 1, tail)) if seeds > 1 else float(-special.ndtri(tail))


def read_run(cloud: Cloud, run: int, places: FloatArray) -> Reading:
    """One run's win rate at places u = ln KL [M], linear between its checkpoints, with each prompt's influence."""
    mine = np.flatnonzero((cloud.run == run) & np.isfinite(cloud.x) & (cloud.x > TINY_KL) & np.isfinite(cloud.win))
    mine = mine[np.argsort(cloud.x[mine], kind="stable")]
    m = len(places)
    nothing = np.zeros((m, 0))
    if not len(mine):
        return Reading(np.full(m, NAN), (), nothing, np.zeros(m), np.ones(m, bool), np.zeros(m, bool))
    u, win = np.log(cloud.x[mine]), cloud.win[mine]
    short, passed = places > u[-1] + 1e-9, places < u[0] - 1e-9
    after = np.clip(np.searchsorted(u, places, side="right"), min(1, len(u) - 1), len(u) - 1)
    before = np.maximum(after - 1, 0)
    gap = u[after] - u[before]
    share = np.where(gap > 0, (places - u[before]) / np.where(gap > 0, gap, 1.0), 0.0)
    share = np.clip(share, 0.0, 1.0)
    slope = np.where(gap > 0, (win[after] - win[before]) / np.where(gap > 0, gap, 1.0), 0.0)
    value = np.where(short | passed, NAN, (1 - share) * win[before] + share * win[after])
    if cloud.win_by_prompt is None:
        se = (1 - share) * cloud.win_se[mine[before]] + share * cloud.win_se[mine[after]]
        return Reading(value, (), nothing, se, short, passed)
    influence = np.zeros((m, len(cloud.prompt_ids)))
    for at, weight in ((before, 1 - share), (after, share)):
        influence += weight[:, None] * centre(cloud.win_by_prompt[mine[at]])
        if cloud.x_by_prompt is not None:
            moved = centre(cloud.x_by_prompt[mine[at]]) / cloud.x[mine[at], None]
            influence -= (weight * slope)[:, None] * moved
    return Reading(value, cloud.prompt_ids, scale(influence), np.zeros(m), short, passed)


def centre(values: np.ndarray) -> FloatArray:
    """Values [M, P] less their mean; 0 where one is missing, which leaves the mean where it is."""
    v = np.asarray(values, dtype=np.float64)
    known = np.isfinite(v)
    count = np.maximum(known.sum(axis=1, keepdims=True), 1)
    mean = np.where(known, v, 0.0).sum(axis=1, keepdims=True) / count
    return np.asarray(np.where(known, v - mean, 0.0) * (v.shape[1] / count))


def scale(influence: FloatArray) -> FloatArray:
    """Influences whose squares sum to the variance of the mean (with the n - 1 of a sample variance)."""
    n = influence.shape[1]
    return np.asarray(influence / np.sqrt(max(n * (n - 1), 1)))


class Places:
    """Where the prompts of a reading stand among all prompts, looked up once for each list of prompts."""

    def __init__(self, prompts: tuple[str, ...]) -> None:
        self.place = {p: i for i, p in enumerate(prompts)}
        self.known: dict[tuple[str, ...], np.ndarray] = {}

    def __call__(self, prompts: tuple[str, ...]) -> np.ndarray:
        if prompts not in self.known:
            self.known[prompts] = np.array([self.place[p] for p in prompts], dtype=np.int64)
        return self.known[prompts]


def mean_over_seeds(values: Seedwise) -> Mean:
    """The mean over the seeds that are defined at the one place of `values`, with the error of this file's head."""
    there = np.isfinite(values.value[:, 0])
    n = int(there.sum())
    if not n:
        return Mean(NAN, NAN, NAN, 0)
    v, e = values.value[there, 0], values.influence[there, 0]
    prompts = float((e.mean(axis=0) ** 2).sum())
    alone = float((e**2).sum()) / n**2
    extra = float(values.extra[there, 0].sum()) / n**2
    by_prompts = float(np.sqrt(prompts + extra))
    if n == 1:
        return Mean(float(v[0]), NAN, by_prompts, 1)
    shared = max(prompts - alone, 0.0) * n / (n - 1)
    return Mean(float(v.mean()), float(np.sqrt(v.var(ddof=1) / n + shared)), by_prompts, n)
