"""What a figure is, apart from how it is drawn: a `Chart` of panels of series, and the table of its numbers.

Every figure is described once. `paper.py` draws the description with matplotlib, `page.js` in a browser.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from aligngap.report.style import Style

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Axis:
    """An axis: its label, its scale, and places with names of their own where positions are no numbers."""

    label: str
    scale: Literal["linear", "log", "log2", "sqrt"] = "linear"
    names: Mapping[float, str] | None = None
    limits: tuple[float, float] | None = None


@dataclass(frozen=True)
class Series:
    """Points of one colour, drawn as any of a line, marks, a band and error bars.

    Series of one name share an entry of the legend. `notes` say what each point is: on the page where it is hovered,
    and beside it in print if it is `annotated`.
    """

    name: str
    style: Style
    x: npt.ArrayLike
    y: npt.ArrayLike
    line: bool = False
    points: Literal["", "faint", "full", "hollow"] = ""
    band: tuple[npt.ArrayLike, npt.ArrayLike] | None = None
    band_opacity: float = 0.15
    bars: tuple[npt.ArrayLike, npt.ArrayLike] | None = None  # ends of the error bars
    x_bars: tuple[npt.ArrayLike, npt.ArrayLike] | None = None
    notes: Sequence[str] = ()
    annotated: bool = False


@dataclass(frozen=True)
class Panel:
    """One pair of axes with its series, and horizontal and vertical rules, each with a label or ""."""

    x: Axis
    y: Axis
    series: tuple[Series, ...]
    title: str = ""
    rules: tuple[tuple[float, str], ...] = ()
    x_rules: tuple[tuple[float, str], ...] = ()


@dataclass(frozen=True)
class Chart:
    """A figure: its panels, the table that is written beside it, and how many panels stand in a row on paper."""

    panels: tuple[Panel, ...]
    numbers: pd.DataFrame
    columns: int = 3

    @property
    def shares_y(self) -> bool:
        """Whether the panels have one vertical axis: all of one label, and a label at all."""
        return len({p.y.label for p in self.panels}) == 1 and bool(self.panels[0].y.label)


def limits_of(ends: npt.ArrayLike) -> tuple[float, float]:
    """A range that holds 0 and these differences of win rates, with some room, and ends at -1 and 1."""
    values = as_numbers(ends)
    known = values[np.isfinite(values)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (-0.1, 0.1)
    room = 0.05 * max(high - low, 1e-3)
    return max(min(low, 0.0) - room, -1.0), min(max(high, 0.0) + room, 1.0)


#: the axis of most figures
KL_AXIS = Axis("KL(policy ‖ SFT), nats (log axis)", "log")


def as_numbers(values: Any) -> Numbers:
    """The values as an array of floats."""
    return np.asarray(values, dtype=np.float64)


@dataclass
class Payload:
    """Charts as the page's script reads them: equal texts and equal series stand once, whichever charts show them."""

    texts: dict[str, int] = field(default_factory=dict)
    data: dict[str, int] = field(default_factory=dict)
    charts: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, name: str, chart: Chart) -> None:
        """Add a chart under its name."""
        panels = [self._panel(p) for p in chart.panels]
        self.charts[name] = {"panels": panels, "columns": chart.columns, "shared": chart.shares_y}

    def as_json(self) -> str:
        """The whole as JSON that cannot end the <script> element that carries it."""
        data = "[" + ",".join(self.data) + "]"
        rest = {"texts": list(self.texts), "charts": self.charts}
        text = json.dumps(rest, separators=(",", ":"), ensure_ascii=False)
        return escape_json(f'{text[:-1]},"data":{data}}}')

    def _panel(self, panel: Panel) -> dict[str, Any]:
        return {
            "title": panel.title,
            "x": _axis(panel.x),
            "y": _axis(panel.y),
            "rules": [[round_numbers([at])[0], label] for at, label in panel.rules],
            "xrules": [[round_numbers([at])[0], label] for at, label in panel.x_rules],
            "series": [self._series(s) for s in panel.series],
        }

    def _series(self, s: Series) -> dict[str, Any]:
        columns: dict[str, Any] = {"x": round_numbers(s.x), "y": round_numbers(s.y)}
        for key, pair in (("band", s.band), ("bars", s.bars), ("xbars", s.x_bars)):
            if pair is not None:
                columns[key] = [round_numbers(side) for side in pair]
        if s.notes:
            columns["notes"] = [self.texts.setdefault(note, len(self.texts)) for note in s.notes]
        place = self.data.setdefault(json.dumps(columns, separators=(",", ":")), len(self.data))
        looks = {"line": s.line, "points": s.points, "dash": s.style.dash, "opacity": s.band_opacity}
        return {
            "name": s.name, "colour": s.style.colour, "marker": s.style.marker, "data": place,
            **{key: value for key, value in looks.items() if value},
        }  # fmt: skip


def _axis(axis: Axis) -> dict[str, Any]:
    names = [[at, name] for at, name in (axis.names or {}).items()]
    return {"label": axis.label, "scale": axis.scale, "names": names, "limits": axis.limits}


def round_numbers(values: Any) -> list[float | None]:
    """Numbers of five significant digits; an undefined one is null."""
    return [float(f"{v:.5g}") if np.isfinite(v) else None for v in as_numbers(values).ravel()]


def escape_json(text: str) -> str:
    """JSON safe inside <script>: no '<', '>' or '&' and no line separators remain."""
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text
