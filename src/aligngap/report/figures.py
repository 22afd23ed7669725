"""Static figures for papers: PNG, SVG and PDF of each, and a CSV of its numbers, under `figures/`."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from aligngap.hypotheses.base import Dial
from aligngap.report.analysis import DYNAMICS, SCORES, Analysis
from aligngap.report.reach import reach_figure
from aligngap.report.sections import pictures_of
from aligngap.report.style import ArmStyle, arm_styles
from aligngap.report.words import opponent as opponent_words
from aligngap.stats.compare import Comparison, peak_of

#: a figure and its numbers, or None where the records do not allow it
Maker = Callable[[Analysis, Any], tuple[Any, pd.DataFrame] | None]
FORMATS = ("png", "svg", "pdf")
#: a scatter of more points is an image inside SVG and PDF
DENSE = 500
#: what the best-of-n line is called in every figure
REFERENCE = "best-of-n of the SFT policy"
STYLE: Any = {
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
    "legend.frameon": False,
    "svg.hashsalt": "aligngap",
    "pdf.fonttype": 42,
    "ps.fonttype": 42,  # by which matplotlib also decides how many parts a PDF's font is embedded in
    "figure.dpi": 100,
}
#: figures of the page itself, so that the hypothesis of that name needs none
OWN = ("opening",)


def drawings(analysis: Analysis, folder: Path) -> list[Callable[[], list[Path]]]:
    """A job for every figure that the records may allow: it draws it, if they do, and gives its PNG files.

    Hypotheses whose figures show the same arms share one job, which draws once and copies.
    """
    folder.mkdir(parents=True, exist_ok=True)
    makers: dict[str, Maker] = {  # those with many panels first: what two processes do last should be short
        "dynamics": dynamics_figure,
        "over-optimisation": over_optimisation,
        "difference": difference,
        "reach": reach_figure,
        "opening": opening,
    }
    pictures = {
        name: of for j in analysis.judged if j.hypothesis.name not in OWN for name, of in pictures_of(j).items()
    }
    makers |= {name: partial(picture, of=of) for name, of in pictures.items()}
    #: arms of those that show frontiers: the same arms make the same figure
    shown = {**{n: of for n, of in pictures.items() if isinstance(of, tuple)}, "opening": analysis.arms}
    alike: dict[tuple[str, ...], list[str]] = {}
    for name in makers:
        alike.setdefault(shown.get(name, (name,)), []).append(name)
    return [partial(draw, analysis, folder, makers[names[0]], names) for names in alike.values()]


def draw(analysis: Analysis, folder: Path, maker: Maker, names: Sequence[str]) -> list[Path]:
    """Draw one figure under the first of the names and copy it to the others; its PNGs, none where there is nothing."""
    import matplotlib

    matplotlib.use("Agg", force=False)
    import matplotlib.pyplot as plt

    first, *others = names
    with plt.rc_context(STYLE):
        drawn = maker(analysis, plt)
        if drawn is None:
            return []
        figure, numbers = drawn
        figure.tight_layout()
        figure.set_layout_engine(None)  # else every format is laid out and drawn once more
        for text in figure.findobj(lambda artist: hasattr(artist, "set_fontfeatures")):  # matplotlib 3.11
            text.set_fontfeatures(("-liga",))  # a ligature, as in "offline", is one more font in the PDF
        for suffix in FORMATS:
            meta: dict[str, Any] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(suffix, {})
            how: dict[str, Any] = {"pil_kwargs": {"compress_level": 3}} if suffix == "png" else {}
            figure.savefig(folder / f"{first}.{suffix}", dpi=200, metadata=meta, **how)
        plt.close(figure)
    numbers.to_csv(folder / f"{first}.csv", index=False, float_format="%.6g")
    for name in others:
        for suffix in (*FORMATS, "csv"):
            shutil.copyfile(folder / f"{first}.{suffix}", folder / f"{name}.{suffix}")
    return [folder / f"{name}.png" for name in names]


def opening(analysis: Analysis, plt: Any) -> tuple[Any, pd.DataFrame] | None:
    """KL against win rate of the study's arms."""
    return frontiers(analysis, plt, analysis.arms)


def frontiers(analysis: Analysis, plt: Any, arms: tuple[str, ...]) -> tuple[Any, pd.DataFrame] | None:
    """KL against win rate: every checkpoint, each arm's frontier with its band, peaks, and the SFT level."""
    clouds = analysis.clouds[analysis.opponent]
    if not set(clouds.arms) & set(arms):
        return None
    styles = arm_styles(arms)
    figure, axis = plt.subplots(figsize=(6.4, 4.2))
    numbers = []
    for arm in arms:
        style = styles[arm]
        points = analysis.points.get(arm)
        if points is None or not len(points):
            continue
        numbers.append(points.assign(what="checkpoint"))
        axis.scatter(
            points["kl_nats"],
            points["win_rate"],
            s=13,
            marker=style.marker,
            color=style.colour,
            alpha=0.35,
            linewidths=0,
            rasterized=len(points) > DENSE,
            zorder=2,
        )
        line = analysis.lines.get(arm)
        if line is not None and len(line.kl):
            axis.fill_between(line.kl, line.lower, line.upper, color=style.colour, alpha=0.15, linewidth=0, zorder=1)
            axis.plot(line.kl, line.value, style.line, color=style.colour, linewidth=1.9, label=arm, zorder=3)
            numbers.append(
                pd.DataFrame(
                    {"arm": arm, "kl_nats": line.kl, "win_rate": line.value, "lower": line.lower, "upper": line.upper}
                ).assign(what="frontier")
            )
        else:
            axis.plot([], [], style.marker, color=style.colour, label=arm)
        curve = analysis.curves[analysis.opponent].get(arm)
        if curve is not None:
            best, interval = peak_of(curve)
            x = float(np.exp(np.mean(np.log(curve.peak_x))))
            axis.plot(x, best.value, style.marker, ms=8.5, mfc="white", mec=style.colour, mew=1.7, zorder=5)
            numbers.append(
                pd.DataFrame(
                    [{"arm": arm, "kl_nats": x, "win_rate": best.value, "lower": interval[0], "upper": interval[1]}]
                ).assign(what="peak")
            )
    reference = analysis.reference
    if len(reference):
        axis.plot(
            reference["kl_nats"].where(reference["kl_nats"] > 0),
            reference["win_rate"],
            "o:",
            color="#555555",
            mfc="white",
            ms=4.5,
            linewidth=1.3,
            label=REFERENCE,
            zorder=4,
        )
        numbers.append(reference.rename(columns={"n": "best_of_n"}).assign(arm="sft", what="best-of-n"))
    level = analysis.sft_level
    if np.isfinite(level):
        axis.axhline(level, color="#555555", linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        axis.annotate(
            "SFT policy",
            (1, level),
            xycoords=("axes fraction", "data"),
            xytext=(-2, 3),
            textcoords="offset points",
            ha="right",
            color="#555555",
            fontsize=8,
        )
        numbers.append(pd.DataFrame([{"arm": "sft", "win_rate": level, "what": "sft level"}]))
    log_axis(axis)
    axis.set_ylabel(f"win rate against {opponent_words(analysis.opponent)}")
    if axis.get_legend_handles_labels()[0]:
        axis.legend(loc="best")
    return figure, pd.concat(numbers, ignore_index=True)


def picture(analysis: Analysis, plt: Any, of: Dial | tuple[str, ...]) -> tuple[Any, pd.DataFrame] | None:
    """A hypothesis's figure: a dial, or the frontiers of arms."""
    return draw_dial(of, plt) if isinstance(of, Dial) else frontiers(analysis, plt, of)


def difference(analysis: Analysis, plt: Any) -> tuple[Any, pd.DataFrame] | None:
    """Each comparison's difference against KL, with pointwise and simultaneous 95% bands; one panel a comparison."""
    found = [c for c in analysis.compared if c.defined]
    if not found:
        return None
    wide = min(len(found), 3)
    high = -(-len(found) // wide)
    figure, axes = plt.subplots(high, wide, figsize=(max(6.4, 3.0 * wide), 3.0 * high), squeeze=False, sharey=True)
    axes[0, 0].set_ylim(*difference_limits(found))
    styles = arm_styles(analysis.arms)
    numbers = []
    for axis, c in zip(axes.flat, found, strict=False):
        style = styles[c.a]
        axis.axhline(0, color="#333333", linewidth=0.9)
        axis.fill_between(c.x, c.lower, c.upper, color=style.colour, alpha=0.13, linewidth=0, label="simultaneous 95%")
        axis.fill_between(
            c.x, c.point_lower, c.point_upper, color=style.colour, alpha=0.22, linewidth=0, label="pointwise 95%"
        )
        axis.plot(c.x, c.difference, color=style.colour, linewidth=1.7)
        axis.set_title(f"{c.a} − {c.b}")
        log_axis(axis)
        numbers.append(
            pd.DataFrame(
                {
                    "a": c.a,
                    "b": c.b,
                    "opponent": c.opponent,
                    "kl_nats": c.x,
                    "difference": c.difference,
                    "lower_simultaneous": c.lower,
                    "upper_simultaneous": c.upper,
                    "lower_pointwise": c.point_lower,
                    "upper_pointwise": c.point_upper,
                }
            )
        )
    for axis in list(axes.flat)[len(found) :]:
        axis.set_visible(False)
    small_legend(axes[0, 0])
    for row in axes:
        row[0].set_ylabel("difference in win rate")
    return figure, pd.concat(numbers, ignore_index=True)


def difference_limits(found: Sequence[Comparison]) -> tuple[float, float]:
    """One range for the panels of all these comparisons: it holds every band and 0, and ends at -1 and 1."""
    low = min((float(np.nanmin(c.lower)) for c in found), default=-0.1)
    high = max((float(np.nanmax(c.upper)) for c in found), default=0.1)
    room = 0.05 * max(high - low, 1e-3)
    return max(min(low, 0.0) - room, -1.0), min(max(high, 0.0) + room, 1.0)


def over_optimisation(analysis: Analysis, plt: Any) -> tuple[Any, pd.DataFrame] | None:
    """Golden against proxy (and true) win rate over sqrt KL per arm, with the better of Gao's two laws."""
    arms = list(analysis.scored)
    if not arms:
        return None
    from aligngap.stats.scaling_law import better_form

    wide = min(len(arms), 4)
    high = -(-len(arms) // wide)
    figure, axes = plt.subplots(high, wide, figsize=(max(6.4, 2.9 * wide), 3.0 * high), squeeze=False, sharey=True)
    colours = {"win_rate": ("#0072B2", "o"), "proxy_win_rate": ("#E69F00", "s"), "oracle_win_rate": ("#444444", "^")}
    numbers = []
    for axis, arm in zip(axes.flat, arms, strict=False):
        mine = analysis.scored[arm].rows
        for score, label in SCORES.items():
            if not mine[score].notna().any():
                continue
            colour, marker = colours[score]
            axis.scatter(
                mine["kl_nats"], mine[score], s=11, color=colour, marker=marker, alpha=0.4, linewidths=0,
                rasterized=len(mine) > DENSE,
            )  # fmt: skip
            numbers.append(
                mine[["arm", "run", "seed", "step", "kl_nats", score]]
                .rename(columns={score: "value"})
                .assign(score=score, what="checkpoint")
            )
            fits = analysis.gao.get((arm, score), {})
            form = better_form(dict(fits))
            base = analysis.scored[arm].base[score]
            axis.plot([], [], marker + "-", color=colour, label=label, ms=4)
            if form and np.isfinite(base):
                fit = fits[form]
                x = np.geomspace(fit.kl_range[0], fit.kl_range[1], 80)
                axis.plot(x, base + fit(x), color=colour, linewidth=1.6)
                numbers.append(
                    pd.DataFrame({"arm": arm, "kl_nats": x, "value": base + fit(x)}).assign(score=score, what=form)
                )
        axis.set_title(arm)
        axis.set_xscale("function", functions=(lambda v: np.sqrt(np.maximum(v, 0)), np.square))
        axis.set_xlim(left=0)
        top = float(mine["kl_nats"].max())
        axis.set_xticks([v for v in (1.0, 4.0, 9.0, 16.0, 25.0, 49.0, 100.0, 225.0) if v <= top] or [round(top, 2)])
        axis.set_xlabel("KL, nats (square-root axis)")
    for axis in list(axes.flat)[len(arms) :]:
        axis.set_visible(False)
    small_legend(axes[0, 0])
    for row in axes:
        row[0].set_ylabel(f"win rate against {opponent_words(analysis.gao_opponent)}")
    return figure, pd.concat(numbers, ignore_index=True)


def dynamics_figure(analysis: Analysis, plt: Any) -> tuple[Any, pd.DataFrame] | None:
    """What changes during training, per arm: mean over runs, the range of runs shaded."""
    table = analysis.training
    columns = [c for c in DYNAMICS if f"{c}_mean" in table]
    if not columns:
        return None
    styles = arm_styles(analysis.arms)
    wide = 3
    high = -(-len(columns) // wide)
    figure, axes = plt.subplots(high, wide, figsize=(9.2, 2.6 * high), squeeze=False)
    for axis, column in zip(axes.flat, columns, strict=False):
        for arm in analysis.arms:
            mine, style = table[table["arm"] == arm], styles[arm]
            draw_range(axis, mine, column, style, arm)
        axis.set_title(DYNAMICS[column])
        axis.set_xlabel("optimiser steps")
    for axis in list(axes.flat)[len(columns) :]:
        axis.set_visible(False)
    small_legend(axes[0, 0])
    return figure, table


def draw_range(axis: Any, mine: pd.DataFrame, column: str, style: ArmStyle, arm: str) -> None:
    """Draw an arm's mean over runs, and the band from the least to the greatest."""
    axis.fill_between(
        mine["step"], mine[f"{column}_min"], mine[f"{column}_max"], color=style.colour, alpha=0.12, linewidth=0
    )
    axis.plot(mine["step"], mine[f"{column}_mean"], style.line, color=style.colour, linewidth=1.5, label=arm)


def small_legend(axis: Any) -> None:
    """Add a small legend where anything has a name."""
    if axis.get_legend_handles_labels()[0]:
        axis.legend(loc="best", fontsize=7.5)


def log_axis(axis: Any) -> None:
    """KL on a log axis with plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlabel("KL(policy ‖ SFT), nats (log axis)")


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
    """The colour and the marks of each series of a dial."""
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
    if dial.diagonal:
        axis.axline((0, 0), slope=1, color="#888888", linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
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
