"""How many seeds and prompts a difference takes, from a pilot's variances: said before the compute is spent.

The pilot's difference of two arms (averaged over the common KL range) varies for two reasons: seeds differ (variance
`between`), and its prompts are a sample (variance `prompt` / P within a seed, of which the share `correlation` is
common to seeds that are asked the same prompts). The mean over S seeds of P prompts then has variance

    between / S + prompt / P * (1 + (S - 1) * correlation) / S

(Raudenbush & Liu 2000, Psychol. Methods 5: 199-213, for designs of two levels). The rule that will judge it is the
interval of `stats.estimate.two_level`, so the power is that rule's, floors and degrees of freedom included. A variance
from few seeds is itself uncertain, and half of the time too small: beside the plain number stands one for the upper 80%
confidence limit of the between-seed variance (Browne 1995, Statistics in Medicine 14: 1933-1940).

The difference to detect is stated, never the pilot's own (the power to find what was found says nothing new: Hoenig &
Heisey 2001, Am. Statistician 55: 19-24). Leaves out: how variances change with the study's sizes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import special

from aligngap.stats.compare import Comparison
from aligngap.stats.estimate import NAN, FloatArray

LEVEL, POWER, CAUTION = 0.95, 0.8, 0.8
MAX_SEEDS = 200
#: where the distribution of the seeds' sample variance is looked at: midpoints of 400 equally likely parts
NODES = (np.arange(400) + 0.5) / 400


@dataclass(frozen=True)
class Spread:
    """The variances of a difference in win rate. `between` is nan where one seed cannot tell."""

    between: float  # of the seeds' true differences
    between_upper: float  # its upper one-sided 80% confidence limit
    prompt: float  # of one prompt's contribution, within a seed
    correlation: float  # of the prompts' noise between two seeds: 0 where every seed has its own prompts
    seeds: int  # of the pilot
    prompts: int


def spread(point: FloatArray, reps: FloatArray, prompts: int) -> Spread:
    """Variances from each seed's difference [S] and its replicates [S, B] under a bootstrap of P prompts.

    `between` is the variance of the seeds' differences less what the prompts explain, not below 0. The correlation
    comes from the replicates of the mean over seeds, which share their draws where seeds share prompts.
    """
    s = len(point)
    noise = float(reps.var(axis=1, ddof=1).mean())
    if s < 2:
        return Spread(NAN, NAN, noise * prompts, 0.0, s, prompts)
    of_mean = float(reps.mean(axis=0).var(ddof=1))
    correlation = (of_mean * s / noise - 1) / (s - 1) if noise > 0 else 0.0
    correlation = float(np.clip(correlation, 0.0, 1.0)) if correlation > 0.2 else 0.0  # below: Monte-Carlo noise
    seen = float(point.var(ddof=1))
    own = noise * (1 - correlation)
    upper = seen * (s - 1) / (2 * float(special.gammaincinv((s - 1) / 2, 1 - CAUTION)))
    return Spread(max(seen - own, 0.0), max(upper - own, 0.0), noise * prompts, correlation, s, prompts)


def spread_of(c: Comparison) -> Spread | None:
    """The variances behind a comparison's average; None where it is undefined or its prompts were not recorded."""
    if not c.defined or c.prompts < 2:
        return None
    return spread(c.by_seed, c.by_seed_reps, c.prompts)


def power(
    s: Spread, difference: float, seeds: int, prompts: int, cautious: bool = False, level: float = LEVEL
) -> float:
    """Probability that the interval of a study of this size lies on the side of 0 where the difference truly lies.

    Given the seeds' sample variance (a scaled chi-square) the rule's half-width is known and the mean is normal; the
    probability is averaged over that variance. One seed: the interval rests on prompts alone, and so does this. nan
    where the pilot cannot tell.
    """
    if seeds < 1 or prompts < 2 or (seeds > 1 and not np.isfinite(s.between)):
        return NAN
    noise = s.prompt / prompts
    if seeds == 1:
        return float(special.ndtr(abs(difference) / np.sqrt(max(noise, 1e-300)) - special.ndtri(0.5 + level / 2)))
    tau = s.between_upper if cautious else s.between
    own = max(tau + noise * (1 - s.correlation), 1e-300)  # variance of one seed's result, beyond what seeds share
    between = own / seeds * 2 * special.gammaincinv((seeds - 1) / 2, NODES) / (seeds - 1)
    prompt_only = noise * (1 + (seeds - 1) * s.correlation) / seeds
    total = np.maximum(between + noise * s.correlation, prompt_only)  # as `estimate.variance_parts`
    df = np.clip(total**2 / (between**2 / (seeds - 1)), seeds - 1, 1e6)
    half = special.stdtrit(df, 0.5 + level / 2) * np.sqrt(total)
    sd = np.sqrt(own / seeds + noise * s.correlation)
    return float(special.ndtr((abs(difference) - half) / sd).mean())


def seeds_needed(s: Spread, difference: float, prompts: int, cautious: bool = False, goal: float = POWER) -> int | None:
    """The least number of seeds (from two) of P prompts each that finds the difference with this power; None: > 200."""
    if not np.isfinite(s.between) or difference == 0:
        return None
    low, high = 2, MAX_SEEDS
    if not power(s, difference, high, prompts, cautious) >= goal:
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if power(s, difference, middle, prompts, cautious) >= goal else (middle + 1, high)
    return low
