"""What a win rate by the golden judge is worth: how often it agrees with labels, and what is true where that is known.

Sentences of the first screen. Where a decision is asked, it says itself how often golden agrees.
"""

from __future__ import annotations

import math

from aligngap.hypotheses.decision import judge_agreement
from aligngap.report import words
from aligngap.report.analysis import Analysis, sft_level
from aligngap.report.decision import interval_percent, is_weak, percent

#: a score of `View.contrast`, the column of the records that it is in, and whose preference it is
BY = (("win", "win_rate", "the golden judge"), ("oracle_win", "oracle_win_rate", "the true preference"))


def say_golden(analysis: Analysis) -> list[str]:
    """How often golden agrees with labels; then, where the truth is known, the levels by both and what it decides."""
    return [*say_agreement(analysis), *say_levels(analysis), *say_truth(analysis)]


def say_agreement(analysis: Analysis) -> list[str]:
    """How often golden prefers what the labels prefer that it has not seen; nothing where that is not recorded."""
    value, interval = judge_agreement(analysis.view)
    if analysis.decision is not None or not math.isfinite(value.value):
        return []
    near = " That is near chance, or not told from it: what golden prefers may not be what the labels prefer."
    return [
        f"The golden judge, by which win rates are taken, agrees with {percent(value.value)} of the labels that it has "
        f"not seen ({interval_percent(interval)}).{near if is_weak(value.value, interval) else ''}"
    ]


def say_levels(analysis: Analysis) -> list[str]:
    """Both arms' win rates at the largest KL budget, by golden and by the truth; nothing where that is not known."""
    a, b = analysis.pairs[0]
    rows = analysis.records[analysis.records["opponent"] == analysis.opponent]
    told, budgets = [], set()
    for score, column, name in BY:
        each = [analysis.view.contrast({arm: 1.0, other: 0.0}, score) for arm, other in ((a, b), (b, a))]
        if a == b or not all(c.defined for c in each):
            return []
        budgets |= {c.kl for c in each}
        levels = ", ".join(f"{arm} {words.number(c.effect.value)}" for arm, c in zip((a, b), each, strict=True))
        told.append(f"by {name} {levels} and the SFT policy {words.number(sft_level(rows, column))}")
    if len(budgets) > 1:
        return []
    return [f"Win rates against {words.opponent(analysis.opponent)} at {words.budget(*budgets)}: {'; '.join(told)}."]


def say_truth(analysis: Analysis) -> list[str]:
    """What the true preference decides of the two arms; nothing where it is not known."""
    truth = next((v for v in analysis.verdicts if v.name == "R2 truth"), None)
    if truth is None or not math.isfinite(truth.effect.value):
        return []
    return [f"By the true preference, which no arm saw: {truth.reason}"]
