"""A hypothesis's dial, drawn for paper: a quantity against a knob, with its intervals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from aligngap.hypotheses.base import Dial
from aligngap.report.style import ArmStyle, arm_styles

#: a cloud of more points is not labelled one by one
FEW = 10


def dial_table(dial: Dial) -> pd.DataFrame:
    """The numbers of a dial, one row a point."""
    columns = ["series", "label", dial.x, dial.y, "lower", "upper", "x lower", "x upper"]
    rows = [
        (name, p.label, p.x, p.value, p.lower, p.upper, *p.x_interval)
        for name, points in dial.series.items()
        for p in points
    ]
    table = pd.DataFrame(rows, columns=columns)
    return table if table["x lower"].notna().any() else table[columns[:-2]]


def styles_of(dial: Dial) -> dict[str, ArmStyle]:
    return arm_styles(tuple(dial.series))


def draw_dial(dial: Dial, plt: Any) -> tuple[Any, pd.DataFrame]:
    """The dial as a static figure, and its numbers."""
    figure, axis = plt.subplots(figsize=(6.4, 4.0))
    plain = not dial.joined and not dial.named and all(len(points) <= FEW for points in dial.series.values())
    for name, style in styles_of(dial).items():
        points = dial.series[name]
        x, y = [p.x for p in points], [p.value for p in points]
        low, high = [p.value - p.lower for p in points], [p.upper - p.value for p in points]
        if np.isfinite([*low, *high]).any():
            bars = np.nan_to_num(np.maximum([low, high], 0.0), posinf=0.0)
            axis.errorbar(x, y, yerr=bars, fmt="none", ecolor=style.colour, elinewidth=1.2, capsize=2.5, zorder=2)
        beside = np.array([[p.x - p.x_interval[0], p.x_interval[1] - p.x] for p in points]).T
        if np.isfinite(beside).any():
            wide = np.nan_to_num(beside)
            axis.errorbar(x, y, xerr=wide, fmt="none", ecolor=style.colour, elinewidth=0.8, alpha=0.5, zorder=2)
        axis.plot(x, y, style.marker, color=style.colour, ms=6, label=name, alpha=0.85, zorder=3)
        if dial.joined:
            axis.plot(x, y, style.line, color=style.colour, linewidth=1.5, zorder=2)
        for p in points if name == next(iter(dial.series)) and plain else ():
            axis.annotate(
                p.label, (p.x, p.value), xytext=(5, 4), textcoords="offset points", fontsize=7, color="#555555"
            )
    if dial.reference is not None:
        axis.axhline(dial.reference, color="#333333", linewidth=0.9)
    if dial.log_x:
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter(lambda v, _: f"{v:g}")
    if dial.named:
        places = {p.x: p.label for points in dial.series.values() for p in points}
        axis.set_xticks(list(places), list(places.values()), rotation=30, ha="right")
    axis.set_xlabel(dial.x)
    axis.set_ylabel(dial.y)
    # "best" does not see error bars, so what lies below the legend is veiled
    axis.legend(loc="best", fontsize=8, frameon=True, framealpha=0.85, edgecolor="none")
    return figure, dial_table(dial)
