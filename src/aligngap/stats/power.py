"""How many seeds and prompts a difference takes, from a pilot's variances: said before the compute is spent.

The pilot's difference of two arms at a KL budget varies for two reasons: seeds differ (variance `between`), and its
prompts are a sample (variance `prompt` / P within a seed, of which the share `correlation` is common to seeds that are
asked the same prompts). The mean over S seeds of P prompts then has variance

    between / S + prompt / P * (1 + (S - 1) * correlation) / S

(Raudenbush & Liu 2000, Psychol. Methods 5: 199-213, for designs of two levels). The rule that will judge it is the
interval of `stats.budgets`, so the power is that rule's, its floor and degrees of freedom included. A variance from few
seeds is itself uncertain, and half of the time too small: beside the plain number stands one for the upper 80%
confidence limit of the between-seed variance (Browne 1995, Statistics in Medicine 14: 1933-1940).

The difference to detect is stated, never the pilot's own (the power to find what was found says nothing new: Hoenig &
Heisey 2001, Am. Statistician 55: 19-24). Leaves out: how variances change with the study's sizes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import special

from aligngap.stats.budgets import AtBudgets
from aligngap.stats.estimate import NAN
from aligngap.stats.seedwise import Seedwise, critical

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
    together: int = 1  # budgets that the rule judges at once


def spread(values: Seedwise, prompts: int, together: int = 1) -> Spread:
    """The variances of a difference at one place, known in every seed, P prompts behind each.

    `between` is the variance of the seeds' differences less what the prompts explain, not below 0. The correlation is
    that of what prompts shared by the seeds add to them.
    """
    point, influence = values.value[:, 0], values.influence[:, 0]
    s = len(point)
    noise = float((influence**2).sum()) / s
    if s < 2:
        return Spread(NAN, NAN, noise * prompts, 0.0, s, prompts, together)
    of_mean = float((influence.mean(axis=0) ** 2).sum())
    correlation = float(np.clip((of_mean * s / noise - 1) / (s - 1), 0.0, 1.0)) if noise > 0 else 0.0
    seen = float(point.var(ddof=1))
    own = noise * (1 - correlation)
    upper = seen * (s - 1) / (2 * float(special.gammaincinv((s - 1) / 2, 1 - CAUTION)))
    return Spread(max(seen - own, 0.0), max(upper - own, 0.0), noise * prompts, correlation, s, prompts, together)


def spread_of(found: AtBudgets) -> Spread | None:
    """The variances behind the largest budget that is judged; None where none is, or prompts were not recorded."""
    judged = [k for k, b in enumerate(found.budgets) if b.judged]
    if not judged or found.values is None or not found.values.prompts:
        return None
    at = found.values.at(judged[-1])
    prompts = int(min((row != 0).sum() for row in at.influence[:, 0]))
    return spread(at, prompts, len(judged)) if prompts >= 2 else None


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
        return float(special.ndtr(abs(difference) / np.sqrt(max(noise, 1e-300)) - critical(1, level, s.together)))
    tau = s.between_upper if cautious else s.between
    own = max(tau + noise * (1 - s.correlation), 1e-300)  # variance of one seed's result, beyond what seeds share
    between = own / seeds * 2 * special.gammaincinv((seeds - 1) / 2, NODES) / (seeds - 1)
    prompt_only = noise * (1 + (seeds - 1) * s.correlation) / seeds
    by_seeds = critical(seeds, level, s.together) * np.sqrt(between + noise * s.correlation)  # as `budgets.Mean`
    half = np.maximum(by_seeds, critical(1, level, s.together) * np.sqrt(prompt_only))
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
