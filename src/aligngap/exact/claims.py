"""What was predicted about the capacity world, as claims with a rule each, and the verdicts that 30 seeds give.

The claims are the primary family: they were written into the notebook before the judged seeds ran. Everything else
that the study shows is exploratory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from aligngap.exact.worlds import Floats
from aligngap.stats.adjust import holm

#: two points of win rate: a gap smaller than this counts as none
MARGIN = 0.02
LEVEL = 0.05
#: judged seeds below which a claim is not decided
FEWEST = 10

Cell = tuple[str, float, int]  # policy, labels, sees


@dataclass(frozen=True)
class Claim:
    """One prediction: the gap online - offline of a cell at one KL, or by how much it exceeds another cell's."""

    text: str
    says: str  # "ahead", "behind" or "none"
    cell: Cell
    kl: float
    beyond: Cell | None = None  # the value is the cell's gap minus this one's

    def values(self, gaps: pd.DataFrame) -> Floats:
        """The value on each seed that has one."""
        found = _at(gaps, self.cell, self.kl)
        if self.beyond is not None:
            found = (found - _at(gaps, self.beyond, self.kl)).dropna()
        return np.asarray(found, dtype=np.float64)


def _at(gaps: pd.DataFrame, cell: Cell, kl: float) -> pd.Series[float]:
    policy, labels, sees = cell
    here = (gaps["policy"] == policy) & (gaps["labels"] == labels) & (gaps["sees"] == sees) & (gaps["kl"] == kl)
    series: pd.Series[float] = gaps[here].set_index("seed")["gap"]
    return series


def _primary() -> tuple[Claim, ...]:
    everything = math.inf
    claims = []
    for kl in (1.0, 2.0):
        claims += [
            Claim("few labels, the judge sees all: online ahead", "ahead", ("table", 250, 8), kl),
            Claim("more labels, the judge sees all: online ahead", "ahead", ("table", 1000, 8), kl),
            Claim("the lead shrinks with labels", "ahead", ("table", 250, 8), kl, ("table", 4000, 8)),
            Claim("unlimited labels, the judge sees all: no gap", "none", ("table", everything, 8), kl),
            Claim("policy linear in the same features, few labels: no gap", "none", ("linear", 250, 8), kl),
            Claim("policy linear in the same features, unlimited: no gap", "none", ("linear", everything, 8), kl),
            Claim("blind to half, unlimited labels: offline ahead", "behind", ("table", everything, 4), kl),
            Claim("the blinder the more", "ahead", ("table", everything, 6), kl, ("table", everything, 4)),
        ]
    return (*claims, Claim("blind to half, few labels: about even", "none", ("table", 250, 4), 1.0))


PRIMARY = _primary()


def p_value(values: Floats, says: str, margin: float = MARGIN) -> float:
    """The p-value of a claim: a two-sided t test against 0, or the larger of two one-sided tests against the margin."""
    n = len(values)
    mean, error = float(values.mean()), float(values.std(ddof=1)) / math.sqrt(n)
    if error == 0.0:
        return float(abs(mean) >= margin) if says == "none" else float(mean == 0.0)
    if says == "none":
        return float(max(stats.t.sf((margin + mean) / error, n - 1), stats.t.sf((margin - mean) / error, n - 1)))
    return float(2.0 * stats.t.sf(abs(mean) / error, n - 1))


def judge(measured: pd.DataFrame, predicted: pd.DataFrame, claims: Sequence[Claim] = PRIMARY) -> pd.DataFrame:
    """A row a claim: predicted and measured value, simultaneous 95% interval (Bonferroni over the family), verdict.

    Supported: Holm's p below .05 and, for a direction, the claimed sign. Contradicted: the other sign with such a p, or
    for "none" an interval that lies outside the margin. Inconclusive: else, or fewer than 10 seeds reach the budget.
    """
    rows, p = [], []
    for claim in claims:
        values, expected = claim.values(measured), claim.values(predicted)
        n = len(values)
        row = {"claim": claim.text, "says": claim.says, "kl": claim.kl, "seeds": n}
        row["predicted"] = float(expected.mean()) if len(expected) else math.nan
        row |= {"measured": math.nan, "lower": math.nan, "upper": math.nan}
        if n >= 2:
            half = stats.t.ppf(1.0 - LEVEL / (2 * len(claims)), n - 1) * values.std(ddof=1) / math.sqrt(n)
            row |= {"measured": values.mean().item(), "lower": values.mean() - half, "upper": values.mean() + half}
        p.append(p_value(values, claim.says) if n >= FEWEST else math.nan)
        rows.append(row)
    for row, raw, adjusted in zip(rows, p, holm(p), strict=True):
        row |= {"p": raw, "p_holm": adjusted, "verdict": _verdict(row, adjusted)}
    return pd.DataFrame(rows)


def _verdict(row: dict[str, object], adjusted: float) -> str:
    says, mean, low, high = row["says"], float(str(row["measured"])), float(str(row["lower"])), float(str(row["upper"]))
    if math.isnan(adjusted):
        return "inconclusive"
    if says == "none":
        if adjusted < LEVEL:
            return "supported"
        return "contradicted" if low > MARGIN or high < -MARGIN else "inconclusive"
    if adjusted >= LEVEL:
        return "inconclusive"
    return "supported" if (mean > 0) == (says == "ahead") else "contradicted"
