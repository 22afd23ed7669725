"""Families of tests: the one that was named before the runs, held to 5% as a whole, and everything else, exploratory.

The primary family is corrected by Holm (1979, Scand. J. Statistics 6: 65-70): a verdict of it stands only where its
adjusted p-value is at most 5%. All other verdicts with a p-value are exploratory: they keep the outcome of their rule,
and beside it stands their adjusted p-value (Benjamini & Hochberg 1995, J. R. Stat. Soc. B 57: 289-300).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import replace

from aligngap.hypotheses.base import Hypothesis, Judged
from aligngap.hypotheses.verdicts import CONTRADICTED, INCONCLUSIVE, SUPPORTED
from aligngap.hypotheses.view import View
from aligngap.registry import did_you_mean
from aligngap.stats.adjust import benjamini_hochberg, holm
from aligngap.types import AligngapError, Verdict

LEVEL = 0.05
#: with one judge in both arms, where the arm that allows it is there, and what the proxy costs; else the arms compared.
#: The true preference is co-primary wherever the task has one
ONE_JUDGE = ("writing", "writing truth", "proxy online")
TWO_JUDGES = ("R2", "R2 truth")


def primary_of(view: View, hypotheses: Sequence[Hypothesis], named: Sequence[str] = ()) -> tuple[str, ...]:
    """The rules of the primary family: those that the study names, else the primary contrast of the arms it has."""
    if named:
        known = [r.name for h in hypotheses for r in h.rules]
        for name in named:
            if name not in known:
                raise AligngapError(f"primary: no rule `{name}`{did_you_mean(name, known)}")
        return tuple(named)
    return ONE_JUDGE if view.has("online-golden", view.offline) and view.offline == "offline" else TWO_JUDGES


def correct(judged: Sequence[Judged], primary: Collection[str]) -> tuple[Judged, ...]:
    """The same verdicts with p-values adjusted within their family, and primary ones held to them."""
    every = [v for j in judged for v in j.verdicts]
    first = [v for v in every if v.name in primary]
    rest = [v for v in every if v.name not in primary]
    adjusted = dict(zip(map(id, first), holm([v.p for v in first]), strict=True))
    adjusted |= dict(zip(map(id, rest), benjamini_hochberg([v.p for v in rest]), strict=True))
    return tuple(
        replace(j, verdicts=tuple(_held(v, adjusted[id(v)], v.name in primary, len(first)) for v in j.verdicts))
        for j in judged
    )


def _held(v: Verdict, adjusted: float, primary: bool, size: int) -> Verdict:
    """A verdict with its adjusted p-value; a primary one that it does not bear out decides nothing."""
    v = replace(v, p_adjusted=adjusted, primary=primary)
    if primary and v.outcome in (SUPPORTED, CONTRADICTED) and not adjusted <= LEVEL:
        known = f"p = {adjusted:.3f}" if math.isfinite(adjusted) else "it has no p-value of this direction"
        said = f" Not sure among the {size} primary tests (Holm, {known})."
        return replace(v, outcome=INCONCLUSIVE, reason=v.reason + said)
    return v
