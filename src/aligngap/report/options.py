"""The options of a decision as a figure: how far online is ahead of each, and what each gains for what it generates."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd

from aligngap.hypotheses.decision import Decision
from aligngap.report import words
from aligngap.report.analysis import Analysis
from aligngap.report.chart import Axis, Chart, Panel, Series, limits_of
from aligngap.report.decision import Cost, costs_of
from aligngap.report.style import arm_styles

#: what an option costs: a field of `Cost` and its name on the axis
COSTS = {"tokens": "tokens generated", "seconds": "seconds of writing and labelling"}
#: a difference with the ends of its 95% interval
Ends = tuple[float, float, float]


def options_chart(analysis: Analysis) -> Chart | None:
    """The differences of a decision as a forest, then gain against each cost; None where nothing is compared."""
    d = analysis.decision
    if d is None or not d.gap.defined:
        return None
    behind, gains = differences_of(d)
    costs, styles = costs_of(analysis.costs), arm_styles(analysis.arms)
    places = {arm: float(len(behind) - 1 - i) for i, arm in enumerate(behind)}
    named = Series(d.gap.a, styles[d.gap.a], [], [], points="full")  # it leads the legend
    forest = tuple(
        Series(
            arm, styles[arm], [value], [places[arm]], points="full", x_bars=([low], [high]),
            notes=[f"{d.gap.a} − {arm}\n{words.effect(value, (low, high))}"],
        )
        for arm, (value, low, high) in behind.items()
    )  # fmt: skip
    x = Axis(f"{d.gap.a} − it in win rate", limits=limits_of([*ends_of(behind), d.margin]))
    y = Axis("", names={at: arm for arm, at in places.items()}, limits=(-0.5, len(behind) - 0.5))
    ahead = f"{d.gap.a}'s lead at {words.nats(d.gap.kl)}"
    panels = [Panel(x, y, (named, *forest), ahead, x_rules=((0.0, ""), (d.margin, f"margin {d.margin:g}")))]
    gain = Axis(f"gain over {d.gap.b}", limits=limits_of(ends_of(gains)))
    for name, label in COSTS.items():
        spent = {arm: float(getattr(costs[arm], name)) for arm in gains if arm in costs}
        known = {arm: cost for arm, cost in spent.items() if math.isfinite(cost)}
        if len(known) < 2:
            continue
        unit, of = unit_of(max(known.values()))
        series = tuple(
            Series(
                arm, styles[arm], [cost / unit], [gains[arm][0]], points="full",
                bars=([gains[arm][1]], [gains[arm][2]]), notes=[arm],
            )
            for arm, cost in known.items()
        )  # fmt: skip
        panels.append(Panel(Axis(f"{label}{of}"), gain, series, f"gain against {name}", ((0.0, ""),)))
    return Chart(tuple(panels), numbers(d, behind, gains, costs))


def differences_of(d: Decision) -> tuple[dict[str, Ends], dict[str, Ends]]:
    """Online's lead over each option, in the order of the table; and each arm's gain over offline."""
    gap = d.gap
    whole = (gap.value.value, *gap.interval)
    options = [o for o in reversed(d.options) if math.isfinite(o.behind.value)]
    behind = {o.arm: (o.behind.value, *o.interval) for o in options} | {gap.b: whole}
    gains = {gap.a: whole, **{o.arm: (o.gain.value, *o.gain_interval) for o in options}, gap.b: (0.0, 0.0, 0.0)}
    return behind, gains


def ends_of(found: Mapping[str, Ends]) -> list[float]:
    """All values and ends of intervals."""
    return [x for three in found.values() for x in three]


def unit_of(most: float) -> tuple[float, str]:
    """The unit in which numbers of up to `most` are short, and how it is said."""
    for unit, name in ((1e9, ", billions"), (1e6, ", millions"), (1e4, ", thousands")):
        if most >= unit:
            return (1e3 if unit == 1e4 else unit), name
    return 1.0, ""


def numbers(
    d: Decision, behind: Mapping[str, Ends], gains: Mapping[str, Ends], costs: Mapping[str, Cost]
) -> pd.DataFrame:
    """The figure's numbers: a row for each difference, then one for each gain with what its arm generated."""
    nothing = Cost(np.nan, np.nan, np.nan)
    rows = [
        {"what": what, "arm": arm, "kl_nats": d.gap.kl, "value": value, "lower": low, "upper": high}
        | {name: getattr(costs.get(arm, nothing), name) for name in ("responses", *COSTS)}
        for what, found in ((f"{d.gap.a} − it", behind), (f"gain over {d.gap.b}", gains))
        for arm, (value, low, high) in found.items()
    ]
    return pd.DataFrame(rows)
