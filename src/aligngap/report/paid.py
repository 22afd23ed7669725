"""What judges over an endpoint were asked for a study, what they did not answer, and what that cost: one table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aligngap.report.analysis import Analysis
from aligngap.report.robust_tables import Row, Table

#: heading -> the count that a judge keeps under that name
COUNTS = {
    "pairs": "pairs",
    "answers used": "answers",
    "refused": "refused",
    "cut off": "truncated",
    "unreadable": "unreadable",
    "orders disagree": "orders_disagree",
    "suspicious texts": "suspicious",
    "paid for": "asked",
    "tokens in": "tokens_in",
    "tokens out": "tokens_out",
}
NOTE = (
    "Summed over the study's finished steps. A refusal, an answer cut off and one that cannot be read are ties, as is "
    "a pair whose two orders disagree. What was answered before, for another step or another study on the same store, "
    "is used and not paid for again; the cost is by the prices that the study names."
)


def judge_answers(analysis: Analysis) -> list[Table]:
    """The table, where a judge counted what it was asked; else nothing."""
    rows = tuple(row(key, counts) for key, counts in analysis.asked.items() if isinstance(counts, Mapping))
    header = ("judge", *COUNTS, "cost")
    return [Table("judges", "What the judges were asked and cost", (NOTE,), header, rows)] if rows else []


def row(key: str, counts: Mapping[str, Any]) -> Row:
    def count(name: str) -> str:
        value = counts.get(name, 0)
        return f"{value:,.0f}" if isinstance(value, int | float) else "–"

    cost = counts.get("cost", 0.0)
    return (key, *map(count, COUNTS.values()), f"{cost:,.4g}" if isinstance(cost, int | float) else "–")
