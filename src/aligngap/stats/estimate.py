"""Means, paired differences and the two-level interval (seeds, then prompts) that every comparison here uses.

Why not the plain two-level bootstrap percentile interval: with S seeds, drawing seeds with replacement understates the
variance between seeds by (S-1)/S, uses normal rather than t tails, and counts the prompts' noise twice (it is already
inside the spread of the seeds' results), so that at S = 3 it covers too little or too much by chance. `two_level`
keeps the bootstrap's two levels and repairs these three, as is done for multi-stage samples (Rao & Wu 1988, JASA 83:
231-241; Davison & Hinkley 1997, section 3.8; Satterthwaite 1946 for the degrees of freedom). Leaves out: weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

from aligngap.types import Estimate

FloatArray = npt.NDArray[np.float64]
NAN = float("nan")


@dataclass(frozen=True)
class TwoLevel:
    """An estimate over seeds for each of K positions, with pointwise intervals; nan where undefined."""

    value: FloatArray
    se: FloatArray
    df: FloatArray
    lower: FloatArray
    upper: FloatArray
    n: int

    def estimate(self, how: str, k: int = 0) -> Estimate:
        return Estimate(float(self.value[k]), float(self.se[k]), self.n, how)

    def interval(self, k: int = 0) -> tuple[float, float]:
        return float(self.lower[k]), float(self.upper[k])


def interval(estimate: Estimate, level: float = 0.95) -> tuple[float, float]:
    """The Student-t interval of an `Estimate` of n independent values; nan where its error is undefined."""
    if estimate.n < 2 or not np.isfinite(estimate.se):
        return NAN, NAN
    half = float(special.stdtrit(estimate.n - 1, 0.5 + level / 2)) * estimate.se
    return estimate.value - half, estimate.value + half


def bootstrap_weights(n: int, replicates: int, rng: np.random.Generator) -> FloatArray:
    """Multinomial bootstrap counts [replicates, n]: how often each of n prompts is drawn (Efron 1979)."""
    if n == 0:
        return np.zeros((replicates, 0))
    draws = rng.integers(0, n, size=(replicates, n))
    flat = (draws + n * np.arange(replicates)[:, None]).ravel()
    return np.bincount(flat, minlength=replicates * n).reshape(replicates, n).astype(np.float64)


def variance_parts(point: FloatArray, reps: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Variance [K] of the mean over seeds, and its Satterthwaite degrees of freedom [K].

    point: [S, K] each seed's estimate. reps: [S, B, K] its replicates under a bootstrap of prompts, replicate b using
    the same prompts in every seed that shares them. With s2 the variance between seeds, v the mean over seeds of the
    prompts' variance and V that of the prompts' replicates of the mean over seeds:
    s2 / S, plus what prompts shared by the seeds add, (V - v/S) S/(S-1); never less than V, the prompts' noise alone.
    The last holds the interval up when a few seeds happen to agree.
    """
    s = point.shape[0]
    prompt_only = reps.mean(axis=0).var(axis=0, ddof=1)
    if s == 1:
        return prompt_only, np.full(point.shape[1], np.inf)
    between = point.var(axis=0, ddof=1) / s
    mean_prompt = reps.var(axis=1, ddof=1).mean(axis=0)
    shared = np.maximum(prompt_only - mean_prompt / s, 0.0) * s / (s - 1)
    # nested prompts share nothing: what is left is Monte-Carlo noise, about sqrt(2/B) of prompt_only
    shared = np.where(shared > 0.2 * prompt_only, shared, 0.0)
    total = np.maximum(between + shared, prompt_only)
    with np.errstate(divide="ignore", invalid="ignore"):
        df = total**2 / (between**2 / (s - 1))
    return total, np.clip(np.where(between > 0, df, np.inf), s - 1, 1e6)


def two_level(point: npt.ArrayLike, reps: npt.ArrayLike, level: float = 0.95) -> TwoLevel:
    """Mean over seeds with a t interval from the two-level bootstrap; point [S, K] or [S], reps [S, B, K] or [S, B].

    A position k counts only where every seed is defined there (elsewhere nan). One seed: prompts only.
    Coverage in simulation (200 prompts): 93-94% for two or three seeds and 93-96% for five where the seeds share their
    prompts, 93% and more for two where they do not. Verdicts on win rates rest on `budgets` instead.
    """
    p = np.asarray(point, dtype=np.float64)
    r = np.asarray(reps, dtype=np.float64)
    if p.ndim == 1:
        p, r = p[:, None], r[:, :, None]
    k = p.shape[1]
    if p.shape[0] == 0:
        nan = np.full(k, NAN)
        return TwoLevel(nan, nan, nan, nan, nan, 0)
    value = p.mean(axis=0)
    var, df = variance_parts(p, r)
    se = np.where(np.isfinite(value), np.sqrt(var), NAN)
    q = special.stdtrit(np.minimum(df, 1e6), 0.5 + level / 2)
    return TwoLevel(value, se, df, value - q * se, value + q * se, p.shape[0])


def t_quantile(df: FloatArray, level: float) -> FloatArray:
    """Student-t two-sided quantiles by interpolation in 1/df (exact at the nodes; error below 1e-3)."""
    nodes = np.array([1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 7, 10, 15, 25, 50, 200, 1e6])
    values = special.stdtrit(nodes, 0.5 + level / 2)
    return np.asarray(np.interp(-1.0 / np.maximum(df, 1.0), -1.0 / nodes, values), dtype=np.float64)


def seed_draws(point: FloatArray, reps: FloatArray, rng: np.random.Generator, draws: int) -> FloatArray:
    """Drawn studies [draws, S, K], centred on 0: each seed a bootstrap replicate of its prompts' noise, plus a Gaussian
    mix of the seeds' own deviations, scaled to the between-seed variance beyond the prompts' noise."""
    s, b, _ = reps.shape
    noise = reps - reps.mean(axis=1, keepdims=True)
    at = rng.integers(0, b, size=(draws, s))
    drawn = np.stack([noise[i][at[:, i]] for i in range(s)], axis=1)
    if s == 1:
        return drawn
    mean_prompt = reps.var(axis=1, ddof=1).mean(axis=0)
    between = point.var(axis=0, ddof=1)
    excess = np.sqrt(np.clip(1.0 - mean_prompt / np.maximum(between, 1e-300), 0.0, 1.0))
    deviations = (point - point.mean(axis=0)) / np.sqrt(s - 1) * excess
    return np.asarray(drawn + rng.normal(size=(draws, s, s)) @ deviations)


def simultaneous_factor(
    point: FloatArray, reps: FloatArray, level: float, rng: np.random.Generator, draws: int = 1500
) -> float:
    """Factor >= 1 by which the pointwise intervals of `two_level` widen to cover all K positions at once.

    A max-t band (Montiel Olea & Plagborg-Moller 2019, J. Appl. Econometrics 34: 1-17) whose critical value is found by
    doing the whole procedure again on drawn studies: each drawn seed is a bootstrap replicate of the prompts' noise
    plus a Gaussian mix of the seeds' own deviations, scaled to the between-seed variance beyond the prompts' noise;
    each drawn study gets its own `variance_parts`. So the few degrees of freedom, and how much the positions move
    together, are both paid for; it draws figures, and no verdict rests on it.
    The factor is the `level` quantile of max over positions |mean| / half-width.
    """
    s = reps.shape[0]
    keep = np.isfinite(point).all(axis=0) & np.isfinite(reps).all(axis=(0, 1))
    if not keep.any():
        return NAN
    p, r = point[:, keep], reps[:, :, keep]
    prompt_only = r.mean(axis=0).var(axis=0, ddof=1)
    if not (prompt_only > 0).any():
        return NAN
    drawn = seed_draws(p, r, rng, draws)
    floor = np.maximum(prompt_only, 1e-12 * prompt_only.max())
    if s == 1:
        half = t_quantile(np.full(1, 1e6), level) * np.sqrt(floor)
        sup = np.abs(drawn[:, 0] / half).max(axis=1)
        return float(max(np.quantile(sup, level), 1.0))
    var = drawn.var(axis=1, ddof=1) / s
    total = np.maximum(var, floor)
    df = np.clip(total**2 / (np.maximum(var, 1e-300) ** 2 / (s - 1)), s - 1, 1e6)
    sup = np.abs(drawn.mean(axis=1) / (t_quantile(df, level) * np.sqrt(total))).max(axis=1)
    return float(max(np.quantile(sup, level), 1.0))
