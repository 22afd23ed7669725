"""Means, paired differences and the two-level interval (seeds, then prompts) that every comparison here uses.

Why not the plain two-level bootstrap percentile interval: with S seeds, drawing seeds with replacement understates the
variance between seeds by (S-1)/S, uses normal rather than t tails, and counts the prompts' noise twice (it is already
inside the spread of the seeds' results). At S = 3 its true coverage lies anywhere from 75% to 98%. `two_level`
keeps the bootstrap's two levels and repairs these three, as is done for multi-stage samples (Rao & Wu 1988, JASA 83:
231-241; Davison & Hinkley 1997, section 3.8; Satterthwaite 1946 for the degrees of freedom). Leaves out: weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats as sps

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


def paired_difference(a: npt.ArrayLike, b: npt.ArrayLike, how: str = "paired over the same prompts") -> Estimate:
    """Mean of a - b over the same prompts and its standard error; prompts where either is nan are dropped."""
    d = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    return Estimate.mean(d[np.isfinite(d)], how)


def interval(estimate: Estimate, level: float = 0.95) -> tuple[float, float]:
    """Student-t interval of an `Estimate` of n independent values; nan where its error is undefined."""
    if estimate.n < 2 or not np.isfinite(estimate.se):
        return NAN, NAN
    half = float(sps.t.ppf(0.5 + level / 2, estimate.n - 1)) * estimate.se
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
    Coverage in simulation (tests): 95-98% for 3 or more seeds, at worst about 91% for two.
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
    q = sps.t.ppf(0.5 + level / 2, np.minimum(df, 1e6))
    return TwoLevel(value, se, df, value - q * se, value + q * se, p.shape[0])


def sup_critical_value(
    point: FloatArray, reps: FloatArray, df: FloatArray, level: float, rng: np.random.Generator, draws: int = 4000
) -> float:
    """Critical value c so that value +- c * se covers all K positions at once with probability `level`.

    The studentised maximum over positions (max-t; Montiel Olea & Plagborg-Moller 2019, J. Appl. Econometrics 34: 1-17):
    a Gaussian multiplier on the seeds' deviations plus a replicate of the prompts' noise gives the process's
    correlation, and a shared chi-square on the smallest degrees of freedom its t tails.
    """
    s, b, k = reps.shape
    keep = np.isfinite(point).all(axis=0) & np.isfinite(reps).all(axis=(0, 1))
    if not keep.any():
        return NAN
    mean_rep = reps[:, :, keep].mean(axis=0)
    process = (mean_rep - mean_rep.mean(axis=0))[rng.integers(0, b, draws)]
    if s > 1:
        prompt_sd = mean_rep.std(axis=0, ddof=1)
        deviations = (point[:, keep] - point[:, keep].mean(axis=0)) / np.sqrt(s * (s - 1))
        between_sd = np.sqrt((deviations**2).sum(axis=0))
        # prompts' noise is inside the between-seed spread: add only what the variance estimate adds
        extra = np.sqrt(np.clip(1 - (between_sd / np.maximum(prompt_sd, 1e-300)) ** 2, 0.0, 1.0))
        process = process * np.maximum(extra, 0.3) + rng.normal(size=(draws, s)) @ deviations
    sd = process.std(axis=0, ddof=1)
    alive = sd > 0
    if not alive.any():
        return NAN
    sup = np.abs(process[:, alive] / sd[alive]).max(axis=1)
    dof = float(np.nanmin(df[keep]))
    if dof < 1e5:
        sup = sup / np.sqrt(rng.chisquare(dof, draws) / dof)
    return float(np.quantile(sup, level))
