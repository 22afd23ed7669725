"""Prediction-powered inference: what a judge says of many pairs, corrected by what people say of a few.

With H what people say of a rated pair, g what the judge says of it, and G the judge's estimate over all pairs:

    corrected = w G + mean over rated pairs of (H - w g).

Whatever the judge's bias, the second term takes it out, so the estimate is of what people would say: w = 1 is
prediction-powered inference (Angelopoulos et al. 2023, arXiv 2301.09633), a w that makes the variance small is PPI++
(Angelopoulos et al. 2023, arXiv 2311.01453), here w = cov(H, g) / (var(g) + n var(G)), held between 0 and 1; with w = 0
people stand alone. That language models as judges are to be corrected so: arXiv 2511.21140, arXiv 2601.05420.

The interval adds the half-widths of the two terms' intervals in quadrature (MOVER: Zou & Donner 2008, Statistics in
Medicine 27: 1693-1702). That of the second term is the wider of two: Student's t over prompts (pairs of one prompt are
one group, Liang & Zeger 1986) and, with two seeds or more, Student's t over seeds.
Leaves out: that a rated pair is also one of those behind G. With the chosen w the two terms are then uncorrelated; with
w = 1 their covariance is of the order of 1 over the number of all pairs.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from aligngap.stats.estimate import NAN, FloatArray
from aligngap.types import Estimate

LEVEL = 0.95


@dataclass(frozen=True)
class Corrected:
    """A judge's estimate corrected by people; undefined numbers are nan."""

    value: float
    interval: tuple[float, float]
    weight: float  # w of this file's head
    rectifier: Estimate  # mean of human - weight * judge over rated pairs
    people: Estimate  # mean of what people say, without the judge
    people_interval: tuple[float, float]


@dataclass(frozen=True)
class Agreement:
    """How often two raters say the same of a pair: first better, second better or tie."""

    pairs: int
    share: float  # of all pairs
    kappa: float  # Cohen 1960; nan where both always say one and the same thing
    kappa_se: float  # large-sample, as Cohen gives it
    decided: int  # pairs of which neither says tie
    share_decided: float  # of those


def correct(
    gap: float,
    gap_se: float,
    gap_half: float,
    judge: Sequence[float] | FloatArray,
    human: Sequence[float] | FloatArray,
    prompts: Sequence[Hashable] | None = None,
    seeds: Sequence[int] | None = None,
    weight: float | None = None,
    level: float = LEVEL,
) -> Corrected:
    """The gap as people see it, from the judge's `gap` over all pairs and both verdicts on the n rated pairs.

    `gap_half` is the half-width of the gap's own interval at this level. `judge` and `human` [n] are in the gap's
    units; `prompts` [n] and `seeds` [n] name each pair's prompt and seed (None: every pair its own prompt, one seed).
    With fewer than two prompts nothing has an interval.
    """
    g, h = np.asarray(judge, dtype=np.float64), np.asarray(human, dtype=np.float64)
    groups = np.unique([str(p) for p in prompts], return_inverse=True)[1] if prompts is not None else np.arange(len(h))
    runs = np.asarray(seeds if seeds is not None else np.zeros(len(h)), dtype=np.int64)
    if weight is None:
        weight = best_weight(g, h, gap_se)
    rectifier, half = mean_of_groups(h - weight * g, groups, runs, level)
    people, people_half = mean_of_groups(h, groups, runs, level)
    value = weight * gap + rectifier.value if weight else rectifier.value
    whole = float(np.hypot(weight * gap_half, half)) if weight else half
    return Corrected(
        value, (value - whole, value + whole), weight, rectifier, people,
        (people.value - people_half, people.value + people_half),
    )  # fmt: skip


def best_weight(judge: FloatArray, human: FloatArray, gap_se: float) -> float:
    """The weight of the judge with the least variance, between 0 and 1; 0 where the judge never varies."""
    n = len(human)
    if n < 2 or not np.isfinite(gap_se):
        return 0.0
    spread = float(np.var(judge, ddof=1)) + n * gap_se**2
    return float(np.clip(np.cov(human, judge)[0, 1] / spread, 0.0, 1.0)) if spread > 0 else 0.0


def mean_of_groups(
    values: FloatArray, groups: np.ndarray, seeds: np.ndarray, level: float = LEVEL
) -> tuple[Estimate, float]:
    """The mean of values [n] and the half-width of its interval; values of one group (a prompt) go together."""
    n = len(values)
    if not n:
        return Estimate(NAN, NAN, 0), NAN
    mean = float(values.mean())
    count = len(np.unique(groups))
    if count < 2:
        return Estimate(mean, NAN, n), NAN
    sums = np.bincount(groups, values - mean)
    by_prompts = float(np.sqrt((sums**2).sum() * count / (count - 1)) / n)
    half = float(special.stdtrit(count - 1, 0.5 + level / 2)) * by_prompts
    each = [values[seeds == s] for s in np.unique(seeds)]
    by_seeds = 0.0
    if len(each) > 1:  # the same weights as in the mean: a seed counts by its pairs
        off = np.array([(v - mean).sum() for v in each])
        by_seeds = float(np.sqrt((off**2).sum() * len(each) / (len(each) - 1)) / n)
        half = max(half, float(special.stdtrit(len(each) - 1, 0.5 + level / 2)) * by_seeds)
    return Estimate(mean, max(by_prompts, by_seeds), n, "mean over rated pairs"), half


def agreement(judge: Sequence[float] | FloatArray, human: Sequence[float] | FloatArray) -> Agreement:
    """How far two raters agree on pairs, from the signs of their verdicts [n]: above 0 the first is better, 0 is a tie.

    Cohen's kappa (Cohen 1960, Educational and Psychological Measurement 20: 37-46) over the three answers.
    """
    a, b = np.sign(np.asarray(judge, dtype=np.float64)), np.sign(np.asarray(human, dtype=np.float64))
    n = len(a)
    if not n:
        return Agreement(0, NAN, NAN, NAN, 0, NAN)
    same = float((a == b).mean())
    chance = float(sum((a == s).mean() * (b == s).mean() for s in (-1, 0, 1)))
    known = chance < 1 - 1e-12
    decided = (a != 0) & (b != 0)
    return Agreement(
        pairs=n,
        share=same,
        kappa=(same - chance) / (1 - chance) if known else NAN,
        kappa_se=float(np.sqrt(same * (1 - same) / n)) / (1 - chance) if known else NAN,
        decided=int(decided.sum()),
        share_decided=float((a == b)[decided].mean()) if decided.any() else NAN,
    )
