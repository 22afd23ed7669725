"""What every verdict is made from: the outcomes, an interval's decision, and values at the end of an arm's runs."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pandas as pd
from scipy import special

from aligngap.stats.budgets import LEAST_SEEDS, AtBudgets, Budget
from aligngap.stats.estimate import NAN, FloatArray, TwoLevel, two_level
from aligngap.types import Estimate, Verdict

SUPPORTED, CONTRADICTED, INCONCLUSIVE = "supported", "contradicted", "inconclusive"
#: an arm was stopped while it rose, so its fall was not seen; and fewer seeds than a verdict takes
CENSORED, TOO_FEW = "censored", "too few seeds"

#: per seed (value, standard error)
Ends = dict[int, tuple[float, float]]


def decide(interval: tuple[float, float], below: float = 0.0, above: float = 0.0) -> str:
    """Supported above `above`, contradicted below `below`, inconclusive otherwise or when undefined."""
    low, high = interval
    if not defined(interval):
        return INCONCLUSIVE
    if low > above:
        return SUPPORTED
    return CONTRADICTED if high < below else INCONCLUSIVE


def alike(interval: tuple[float, float], margin: float) -> str:
    """Supported inside +-margin, contradicted wholly outside it, else inconclusive: a test of equivalence.

    The interval is the 95% one, so this asks for more than two one-sided tests at 5% do.
    """
    low, high = interval
    if not defined(interval):
        return INCONCLUSIVE
    if -margin < low and high < margin:
        return SUPPORTED
    return CONTRADICTED if low > margin or high < -margin else INCONCLUSIVE


def decide_anywhere(found: AtBudgets) -> tuple[str, Budget | None]:
    """Supported where some judged budget's interval lies above 0 and none below, contradicted where the reverse holds.

    The intervals hold at once, so any of them may speak. The budget returned is the one farthest from 0 in standard
    errors. With signs that differ between budgets, or none that is sure, the outcome is inconclusive.
    """
    if not found.judged:
        return INCONCLUSIVE, None
    sides = {decide(b.interval) for b in found.judged}
    outcome = INCONCLUSIVE
    if SUPPORTED in sides and CONTRADICTED not in sides:
        outcome = SUPPORTED
    elif CONTRADICTED in sides and SUPPORTED not in sides:
        outcome = CONTRADICTED
    known = [b for b in found.judged if np.isfinite(b.mean.se)]
    return outcome, max(known or found.judged, key=lambda b: abs(b.mean.value) / max(b.mean.se, 1e-12))


def p_equivalence(found: AtBudgets, margin: float) -> float:
    """The p-value of two one-sided tests of |difference| >= margin at every judged budget: the largest of all."""
    worst = 0.0
    for b in found.judged:
        if b.mean.n < 2:
            return NAN
        distance = margin - abs(b.mean.value)
        if b.mean.se > 0:
            worst = max(worst, float(special.stdtr(b.mean.n - 1, -distance / b.mean.se)))
        elif distance <= 0:
            worst = 1.0
    return worst if found.judged else NAN


def p_value(found: TwoLevel) -> float:
    """The two-sided p-value that a mean over seeds is 0; nan where it has no error."""
    value, se, df = float(found.value[0]), float(found.se[0]), float(found.df[0])
    if not (np.isfinite(value) and np.isfinite(se)) or found.n < 2:
        return NAN
    if se == 0:
        return 1.0 if value == 0 else 0.0
    return float(2 * special.stdtr(min(df, 1e6), -abs(value) / se))


def defined(interval: tuple[float, float]) -> bool:
    """Whether both ends are numbers; an end at infinity is one."""
    return not (np.isnan(interval[0]) or np.isnan(interval[1]))


def last_values(records: pd.DataFrame, arm: str, column: str) -> Ends:
    """Per seed (value, standard error) at the last checkpoint of an arm's runs, mean over its runs.

    The runs share the held-out pairs, so the standard error of their mean is taken as their mean standard error.
    """
    mask = (records["arm"] == arm) & records[column].notna() & (records["step"] > 0)
    rows = records[["run", "seed", "step", column, f"{column}_se"]][mask]
    if not len(rows):
        return {}
    rows = rows.sort_values("step", kind="stable").drop_duplicates("run", keep="last")
    grouped = rows.groupby("seed")[[column, f"{column}_se"]].mean()
    seeds, values = grouped.index.to_numpy(np.int64), grouped[column].to_numpy(np.float64)
    errors = grouped[f"{column}_se"].to_numpy(np.float64)
    return {int(s): (float(v), float(e)) for s, v, e in zip(seeds, values, errors, strict=True)}


def over_seeds(ends: Ends) -> TwoLevel:
    """Mean over seeds of `last_values` with a two-level interval; the pairs' noise from the standard errors."""
    point = np.array([v for v, _ in ends.values()])
    return two_level(point, noise(point, np.array([e for _, e in ends.values()]), tuple(ends)))


def arms_difference(a: Ends, b: Ends) -> TwoLevel | None:
    """a - b over the seeds that both have; None if they share none."""
    seeds = sorted(set(a) & set(b))
    if not seeds:
        return None
    point = np.array([a[s][0] - b[s][0] for s in seeds])
    error = np.array([float(np.hypot(a[s][1], b[s][1])) for s in seeds])
    return two_level(point, noise(point, error, tuple(seeds)))


def noise(point: FloatArray, error: FloatArray, seeds: tuple[int, ...], draws: int = 2000) -> FloatArray:
    """Replicates [S, B] with exactly the given standard errors; an undefined error leaves the interval undefined."""
    rng = np.random.default_rng(zlib.crc32(repr(seeds).encode()))
    z = rng.normal(size=(len(point), draws))
    z = (z - z.mean(axis=1, keepdims=True)) / z.std(axis=1, ddof=1, keepdims=True)
    return np.asarray(point[:, None] + error[:, None] * z)


def no_values(what: str, ends: Mapping[str, Ends]) -> str:
    """Why two arms cannot be compared: which of them has no values, or that they share no seed."""
    empty = [arm for arm, values in ends.items() if not values]
    return f"No {what} for {' and '.join(empty)}." if empty else "The arms share no seed."


def verdict(
    name: str, outcome: str, rule: str, effect: Estimate, interval: tuple[float, float], reason: str
) -> Verdict:
    """A verdict whose negative numbers have a minus sign."""
    return Verdict(name, outcome, rule, effect, interval, minus(reason))


def undefined(name: str, rule: str, reason: str) -> Verdict:
    """A verdict that decides nothing, with its reason."""
    return Verdict(name, INCONCLUSIVE, rule, Estimate(NAN, NAN, 0, "undefined"), (NAN, NAN), reason)


def minus(text: str) -> str:
    """Text whose negative numbers have a minus sign, not a hyphen."""
    return re.sub(r"(?<![\w−])-(?=\d)", "−", text)


def one_seed(n: int) -> str:
    """A sentence where one seed stands alone, to follow another."""
    return " One seed: run-to-run variation is not covered." if n == 1 else ""


def guarded(verdict: Verdict) -> Verdict:
    """The verdict, or, where its estimate rests on fewer seeds than a verdict takes, the estimate without one.

    A difference that is 0 without any error, where that is what the rule asks for, is an identity and needs no seeds.
    """
    n = verdict.effect.n
    exact = verdict.outcome == SUPPORTED and verdict.effect.value == 0 and verdict.effect.se == 0
    if not np.isfinite(verdict.effect.value) or n >= LEAST_SEEDS or exact:
        return verdict
    return replace(verdict, outcome=TOO_FEW)
