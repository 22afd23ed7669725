"""Figures for papers: each chart as PNG, SVG and PDF, and its numbers as CSV, under `figures/`."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from aligngap.report.chart import Axis, Chart, Panel, Series, as_numbers

FORMATS = ("png", "svg", "pdf")
#: more points of one series are an image inside SVG and PDF
DENSE = 500
LOOKS: Any = {
    "font.size": 9,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.edgecolor": "#555555",
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "grid.color": "#e8e8e8",
    "grid.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "svg.hashsalt": "aligngap",
    "pdf.fonttype": 42,
    "ps.fonttype": 42,  # by which matplotlib also decides how many parts a PDF's font is embedded in
    "figure.dpi": 100,
}


def draw_all(charts: Mapping[str, Chart], folder: Path) -> None:
    """Draw every chart under its name; a chart with several names is drawn once and copied."""
    folder.mkdir(parents=True, exist_ok=True)
    first: dict[int, str] = {}
    for name, chart in charts.items():
        same = first.setdefault(id(chart), name)
        if same == name:
            draw(chart, folder, name)
        else:
            for suffix in (*FORMATS, "csv"):
                shutil.copyfile(folder / f"{same}.{suffix}", folder / f"{name}.{suffix}")


def draw(chart: Chart, folder: Path, name: str) -> None:
    """Write NAME.png, NAME.svg, NAME.pdf and NAME.csv."""
    import matplotlib

    matplotlib.use("Agg", force=False)
    import matplotlib.pyplot

    plt: Any = matplotlib.pyplot
    wide = min(len(chart.panels), chart.columns)
    high = -(-len(chart.panels) // wide)
    size = (6.4, 4.2) if len(chart.panels) == 1 else (max(6.4, 3.0 * wide), 2.8 * high)
    with plt.rc_context(LOOKS):
        figure, axes = plt.subplots(high, wide, figsize=size, squeeze=False, sharey=chart.shares_y)
        for axis, panel in zip(axes.flat, chart.panels, strict=False):
            draw_panel(axis, panel)
        for axis in axes.flat[len(chart.panels) :]:
            axis.set_visible(False)
        for axis in axes[:, 1:].flat if chart.shares_y else ():
            axis.set_ylabel("")  # the first of a row says it
        fullest = max(range(len(chart.panels)), key=lambda i: len({s.name for s in chart.panels[i].series}))
        add_legend(axes.flat[fullest], chart.panels[fullest], small=len(chart.panels) > 1)
        figure.tight_layout()
        figure.set_layout_engine(None)  # else every format is laid out and drawn once more
        for text in figure.findobj(lambda artist: hasattr(artist, "set_fontfeatures")):  # matplotlib 3.11
            text.set_fontfeatures(("-liga",))  # a ligature, as in "offline", is one more font in the PDF
        for suffix in FORMATS:
            meta: dict[str, Any] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(suffix, {})
            how: dict[str, Any] = {"pil_kwargs": {"compress_level": 3}} if suffix == "png" else {}
            figure.savefig(folder / f"{name}.{suffix}", dpi=200, metadata=meta, **how)
        plt.close(figure)
    chart.numbers.to_csv(folder / f"{name}.csv", index=False, float_format="%.6g")


def draw_panel(axis: Any, panel: Panel) -> None:
    """Draw a panel's series and rules, and set its axes."""
    for series in panel.series:
        draw_series(axis, series)
    for at, label in panel.rules:
        axis.axhline(at, color="#555555", linewidth=0.9, linestyle=(0, (4, 3)) if label else "-", zorder=1)
        if label:
            where: Any = {"xycoords": ("axes fraction", "data"), "xytext": (-2, 3), "textcoords": "offset points"}
            axis.annotate(label, (1, at), ha="right", color="#555555", fontsize=8, **where)
    for at, label in panel.x_rules:
        axis.axvline(at, color="#555555", linewidth=0.9, linestyle=(0, (4, 3)) if label else "-", zorder=1)
        beside: Any = {"xycoords": ("data", "axes fraction"), "xytext": (3, -3), "textcoords": "offset points"}
        axis.annotate(label, (at, 1), ha="left", va="top", rotation=90, color="#555555", fontsize=8, **beside)
    axis.set_title(panel.title)
    axis.set_xlabel(panel.x.label)
    axis.set_ylabel(panel.y.label)
    if panel.x.limits is not None:
        axis.set_xlim(*panel.x.limits)
    if panel.y.limits is not None:
        axis.set_ylim(*panel.y.limits)
    if panel.y.names:
        axis.set_yticks(list(panel.y.names), list(panel.y.names.values()))
    set_scale(axis, panel.x)


def draw_series(axis: Any, s: Series) -> None:
    """Draw the band, the bars, the line and the marks of a series."""
    x, y, colour = as_numbers(s.x), as_numbers(s.y), s.style.colour
    if s.band is not None:
        lower, upper = map(as_numbers, s.band)
        axis.fill_between(x, lower, upper, color=colour, alpha=s.band_opacity, linewidth=0, zorder=1)
    for ends, centre, which, width in ((s.bars, y, "yerr", 1.2), (s.x_bars, x, "xerr", 0.8)):
        if ends is not None:
            lower, upper = map(as_numbers, ends)
            size = np.nan_to_num(np.maximum([centre - lower, upper - centre], 0.0), posinf=0.0)
            how: Any = {which: size, "capsize": 2.5 if which == "yerr" else 0, "elinewidth": width, "zorder": 2}
            axis.errorbar(x, y, fmt="none", ecolor=colour, **how)
    if s.line:
        axis.plot(x, y, linestyle=(0, s.style.dash), color=colour, linewidth=1.7, zorder=3)
    if s.points == "faint":
        how = {"s": 13, "alpha": 0.38, "linewidths": 0, "rasterized": len(x) > DENSE, "zorder": 2}
        axis.scatter(x, y, marker=s.style.marker, color=colour, **how)
    elif s.points:
        fill = "white" if s.points == "hollow" else colour
        mark_size = 5 if s.line else 8 if s.points == "hollow" else 6
        axis.plot(x, y, s.style.marker, ms=mark_size, mfc=fill, mec=colour, mew=1.5, zorder=5)
    for at, value, note in zip(x, y, s.notes, strict=False) if s.annotated else ():
        axis.annotate(note, (at, value), xytext=(5, 4), textcoords="offset points", fontsize=7, color="#555555")


def set_scale(axis: Any, x: Axis) -> None:
    """Set the scale of the horizontal axis, with plain numbers or the names of its places."""
    from matplotlib.ticker import LogLocator, NullLocator

    if x.scale.startswith("log") and not axis.dataLim.x1 > 0:
        return  # nothing is drawn, and a logarithm of nothing has no ticks
    if x.scale == "log":
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
        axis.xaxis.set_minor_locator(NullLocator())
    elif x.scale == "log2":
        axis.set_xscale("log", base=2)
    elif x.scale == "sqrt":
        axis.set_xscale("function", functions=(lambda v: np.sqrt(np.maximum(v, 0)), np.square))
        axis.set_xlim(left=0)
        top = axis.get_xlim()[1]
        axis.set_xticks([v for v in (1.0, 4.0, 9.0, 16.0, 25.0, 49.0, 100.0, 225.0) if v <= top] or [round(top, 2)])
    if x.scale.startswith("log"):
        axis.xaxis.set_major_formatter(lambda v, _: f"{v:g}")
    if x.names:
        axis.set_xticks(list(x.names), list(x.names.values()), rotation=30, ha="right")


def add_legend(axis: Any, panel: Panel, small: bool) -> None:
    """Name every series once, by its line, its marker or its band."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    entries: dict[str, Any] = {}
    for name in dict.fromkeys(s.name for s in panel.series):
        mine = [s for s in panel.series if s.name == name]
        style, line = mine[0].style, any(s.line for s in mine)
        marker = style.marker if any(s.points for s in mine) else ""
        look: Any = {"color": style.colour, "marker": marker, "ms": 4.5}
        entries[name] = (
            Line2D([], [], linestyle=(0, style.dash) if line else "", **look)
            if line or marker
            else Patch(color=style.colour, alpha=mine[0].band_opacity, linewidth=0)
        )
    if entries:  # "best" does not see error bars, so what lies below the legend is veiled
        size = 7.5 if small else 8
        axis.legend(
            entries.values(), entries.keys(), loc="best", fontsize=size, framealpha=0.85, edgecolor="none"
        )  # fmt: skip
