"""The interactive figures of the page, as plotly JSON. Every text that reaches a hover label is escaped here."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from aligngap.hypotheses.base import Dial
from aligngap.report.analysis import DYNAMICS, SCORES, Analysis, thin
from aligngap.report.figures import REFERENCE, styles_of
from aligngap.report.style import arm_styles
from aligngap.report.words import opponent as opponent_words
from aligngap.stats.compare import Comparison, peak_of
from aligngap.stats.scaling_law import better_form

MAX_TEXT = 160


def hover_text(text: str, limit: int = MAX_TEXT, width: int = 46) -> str:
    """Text that plotly shows as it is: it renders a small HTML subset and %{...} templates, so both are disarmed."""
    if not text.isprintable():
        text = "".join(ch if ch.isprintable() else " " for ch in text)
    text = " ".join(text.split())
    if len(text) > limit:
        text = text[: limit - 1] + "…"
    lines: list[str] = []
    while text:
        cut = text[:width]
        if len(text) > width and " " in cut:
            cut = cut[: cut.rindex(" ")]
        lines.append(cut)
        text = text[len(cut) :].lstrip()
    return "<br>".join(html.escape(line, quote=True).replace("%{", "%&#123;") for line in lines)


def frontier_figure(analysis: Analysis, arms: tuple[str, ...]) -> Any:
    """KL against win rate, every checkpoint with its run, step, configuration and a sample on hover."""
    styles = arm_styles(arms)
    figure = blank(f"win rate against {opponent_words(analysis.opponent)}")
    texts = first_texts(analysis.samples)
    for arm in arms:
        style = styles[arm]
        line = analysis.lines.get(arm)
        if line is not None and len(line.kl):
            x = plain(np.concatenate([line.kl, line.kl[::-1]]))
            figure.add_scatter(
                x=x,
                y=plain(np.concatenate([line.upper, line.lower[::-1]])),
                fill="toself",
                mode="lines",
                fillcolor=rgba(style.colour, 0.16),
                line={"width": 0},
                hoverinfo="skip",
                showlegend=False,
                legendgroup=arm,
            )
            figure.add_scatter(
                x=plain(line.kl),
                y=plain(line.value),
                mode="lines",
                name=hover_text(arm),
                legendgroup=arm,
                line={"color": style.colour, "width": 2.4, "dash": style.dash},
                hoverinfo="skip",
            )
        points = analysis.points.get(arm)
        if points is not None and len(points):
            figure.add_scatter(
                x=plain(points["kl_nats"]),
                y=plain(points["win_rate"]),
                mode="markers",
                legendgroup=arm,
                name=hover_text(f"{arm}, checkpoints"),
                showlegend=line is None or not len(line.kl),
                marker={"color": style.colour, "symbol": style.symbol, "size": 7, "opacity": 0.45},
                text=[label(row, texts) for row in points.to_dict("records")],
                hovertemplate="%{text}<extra></extra>",
            )
        curve = analysis.curves[analysis.opponent].get(arm)
        if curve is not None:
            best, _ = peak_of(curve)
            figure.add_scatter(
                x=plain([float(np.exp(np.mean(np.log(curve.peak_x))))]),
                y=plain([best.value]),
                mode="markers",
                marker={
                    "symbol": style.symbol,
                    "size": 13,
                    "color": "rgba(0,0,0,0)",
                    "line": {"color": style.colour, "width": 2.5},
                },
                text=[f"{hover_text(arm)}: best checkpoint<br>{best.value:.3f} ± {best.se:.3f} on held-out prompts"],
                hovertemplate="%{text}<extra></extra>",
                legendgroup=arm,
                showlegend=False,
            )
    reference = analysis.reference
    reference = reference[reference["kl_nats"] > 0]
    if len(reference):
        figure.add_scatter(
            x=plain(reference["kl_nats"]),
            y=plain(reference["win_rate"]),
            mode="lines+markers",
            name=REFERENCE,
            line={"color": "#777777", "width": 1.6, "dash": "dot"},
            marker={"symbol": "circle-open", "size": 7, "color": "#777777"},
            text=[
                f"best of {p['n']:.0f} of the SFT policy<br>KL at most {p['kl_nats']:.3g} nats<br>"
                f"win rate {p['win_rate']:.3f} ± {p['win_rate_se']:.3f}"
                for p in reference.to_dict("records")
            ],
            hovertemplate="%{text}<extra></extra>",
        )
    level = analysis.sft_level
    if np.isfinite(level):
        figure.add_hline(
            y=level,
            line={"color": "#888", "width": 1, "dash": "dash"},
            annotation_text="SFT policy",
            annotation_position="bottom right",
            annotation_font_size=11,
        )
    return figure


def difference_figure(comparison: Comparison, colour: str, y_range: tuple[float, float]) -> Any:
    """The difference of two arms against KL with pointwise and simultaneous bands."""
    c = comparison
    figure = blank("difference in win rate")
    for lower, upper, alpha, name in (
        (c.lower, c.upper, 0.14, "simultaneous 95% band"),
        (c.point_lower, c.point_upper, 0.22, "pointwise 95% band"),
    ):
        figure.add_scatter(
            x=plain(np.concatenate([c.x, c.x[::-1]])),
            y=plain(np.concatenate([upper, lower[::-1]])),
            fill="toself",
            mode="lines",
            fillcolor=rgba(colour, alpha),
            line={"width": 0},
            hoverinfo="skip",
            name=name,
        )
    figure.add_scatter(
        x=plain(c.x),
        y=plain(c.difference),
        mode="lines",
        line={"color": colour, "width": 2.4},
        name=hover_text(f"{c.a} − {c.b}"),
        hovertemplate="%{x:.3g} nats: %{y:+.3f}<extra></extra>",
    )
    figure.add_hline(y=0, line={"color": "#888", "width": 1})
    figure.update_layout(showlegend=False)
    figure.update_yaxes(range=rounded(y_range))
    return figure


def blank(y_title: str) -> Any:
    """A figure with the common looks: log KL axis, legend below, transparent ground so that the page's theme shows."""
    import plotly.graph_objects as go

    axis = {"gridcolor": "rgba(128,128,128,0.18)", "linecolor": "rgba(128,128,128,0.5)", "zeroline": False}
    looks = go.Layout(
        template="none",
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": "rgba(128,128,128,0.55)", "activecolor": "rgba(128,128,128,1)"},
        margin={"l": 54, "r": 12, "t": 12, "b": 48},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "inherit", "size": 13},
        hoverlabel={"align": "left", "font": {"size": 12}},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "title": {"text": ""}},
        dragmode="zoom",
        xaxis={
            "type": "log",
            "title": {"text": "KL(policy ‖ SFT), nats (log axis)", "font": {"size": 13}, "standoff": 8},
            "tickvals": ticks(),
            "ticktext": [f"{v:g}" for v in ticks()],
            **axis,
        },
        yaxis={"title": {"text": y_title, "font": {"size": 13}, "standoff": 6}, "automargin": True, **axis},
    )
    return go.Figure(layout=looks)


def ticks() -> list[float]:
    """1, 2 and 5 times the powers of ten: places on a logarithmic axis."""
    return [m * 10.0**e for e in range(-3, 4) for m in (1, 2, 5)]


def label(row: dict[Any, Any], texts: dict[tuple[str, int], str]) -> str:
    """The hover label of a checkpoint."""
    parts = [
        f"<b>{hover_text(str(row['run']))}</b>",
        f"step {int(row['step'])}, seed {int(row['seed'])}",
        hover_text(str(row["config"])),
        f"KL {row['kl_nats']:.3g} ± {row['kl_nats_se']:.2g} nats",
        f"win rate {row['win_rate']:.3f} ± {row['win_rate_se']:.3f}",
    ]
    sample = texts.get((str(row["run"]), int(row["step"])))
    if sample:
        parts.append(f"<i>{sample}</i>")
    return "<br>".join(p for p in parts if p)


def first_texts(samples: pd.DataFrame) -> dict[tuple[str, int], str]:
    """One escaped response for each checkpoint that has samples."""
    if not len(samples):
        return {}
    first = samples.drop_duplicates(["run", "step"])
    return {
        (str(run), int(step)): hover_text(str(text))
        for run, step, text in zip(first["run"], first["step"], first["response"], strict=True)
    }


def plain(values: Any) -> npt.NDArray[np.float32]:
    """Numbers of a trace; plotly packs an array into the page, and takes it whole instead of number by number."""
    return np.asarray(values, dtype=np.float32)


def rounded(values: Any) -> list[float | None]:
    """Plain numbers of five significant digits; an undefined one is null."""
    return [float(f"{v:.5g}") if np.isfinite(v) else None for v in np.asarray(values, dtype=np.float64)]


def rgba(colour: str, alpha: float) -> str:
    """A colour `#rrggbb` with an opacity, as CSS spells it."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"


SCORE_COLOURS = {
    "win_rate": ("#0072B2", "circle"),
    "proxy_win_rate": ("#E69F00", "square"),
    "oracle_win_rate": ("#8C8C8C", "triangle-up"),
}


#: KL values marked on a square-root axis
SQRT_TICKS = (0.25, 1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256)


def over_optimisation_panels(analysis: Analysis) -> list[tuple[str, Any]]:
    """(title, chart) per arm: golden, proxy and true win rate over sqrt KL, with the better of Gao's laws."""
    out = []
    for arm, scored in analysis.scored.items():
        mine = scored.rows
        figure = blank("win rate")
        for score, name in SCORES.items():
            if not mine[score].notna().any():
                continue
            colour, symbol = SCORE_COLOURS[score]
            fits = dict(analysis.gao.get((arm, score), {}))
            form = better_form(fits)
            figure.add_scatter(
                x=plain(np.sqrt(mine["kl_nats"])),
                y=plain(mine[score]),
                mode="markers",
                name=name,
                legendgroup=score,
                marker={"color": colour, "symbol": symbol, "size": 5.5, "opacity": 0.5},
                customdata=plain(mine["kl_nats"]),
                hovertemplate=f"{name} %{{y:.3f}} at %{{customdata:.3g}} nats<extra></extra>",
            )
            base = scored.base[score]
            if form and np.isfinite(base):
                fit = fits[form]
                x = np.linspace(np.sqrt(fit.kl_range[0]), np.sqrt(fit.kl_range[1]), 60)
                figure.add_scatter(
                    x=plain(x),
                    y=plain(base + fit(x**2)),
                    mode="lines",
                    legendgroup=score,
                    showlegend=False,
                    line={"color": colour, "width": 2.2},
                    hoverinfo="skip",
                )
        figure.update_layout(showlegend=False)
        top = float(mine["kl_nats"].max())
        tick = [v for v in SQRT_TICKS if v <= top * 1.05]
        if len(tick) > 6:
            tick = [v for v in tick if v in (1, 4, 12, 24, 48, 96, 256)]
        figure.update_xaxes(
            type="linear",
            tickvals=rounded(np.sqrt(tick)),
            ticktext=[f"{v:g}" for v in tick],
            rangemode="tozero",
            title={"text": "KL, nats (square-root axis)", "font": {"size": 13}},
        )
        out.append((arm, figure))
    return out


def dynamics_panels(analysis: Analysis) -> list[tuple[str, Any]]:
    """(title, chart) per quantity over optimiser steps: mean over an arm's runs, their range shaded."""
    columns = [c for c in DYNAMICS if f"{c}_mean" in analysis.training]
    table = analysis.training
    styles = arm_styles(analysis.arms)
    out = []
    for column in columns:
        figure = blank("")
        for arm in analysis.arms:
            mine, style = table.iloc[thin(np.flatnonzero(table["arm"] == arm), 400)], styles[arm]
            mine = mine[mine[f"{column}_mean"].notna()]
            if not len(mine):
                continue
            steps = mine["step"].to_numpy(np.float64)
            low, high = mine[f"{column}_min"].to_numpy(), mine[f"{column}_max"].to_numpy()
            figure.add_scatter(
                x=plain(np.concatenate([steps, steps[::-1]])),
                y=plain(np.concatenate([high, low[::-1]])),
                fill="toself",
                mode="lines",
                fillcolor=rgba(style.colour, 0.12),
                line={"width": 0},
                hoverinfo="skip",
                showlegend=False,
                legendgroup=arm,
            )
            figure.add_scatter(
                x=plain(steps),
                y=plain(mine[f"{column}_mean"]),
                mode="lines",
                legendgroup=arm,
                name=hover_text(arm),
                line={"color": style.colour, "width": 2, "dash": style.dash},
                hovertemplate=f"{hover_text(arm)}: %{{y:.4g}} at step %{{x}}<extra></extra>",
            )
        figure.update_layout(showlegend=False)
        figure.update_xaxes(
            type="linear",
            tickvals=None,
            ticktext=None,
            title={"text": "optimiser steps", "font": {"size": 13}},
            nticks=5,
        )
        out.append((DYNAMICS[column], figure))
    return out


def dial_figure(dial: Dial) -> Any:
    """The dial as an interactive figure."""
    figure = blank(dial.y)
    for name, style in styles_of(dial).items():
        points = dial.series[name]
        places = [(p.x, *p.x_interval) for p in points]
        figure.add_scatter(
            x=plain([p.x for p in points]),
            y=plain([p.value for p in points]),
            error_y=bars([(p.value, p.lower, p.upper) for p in points], 1.2),
            error_x=bars(places, 0.8) if np.isfinite(places).all() else None,
            mode="lines+markers" if dial.joined else "markers",
            name=hover_text(name),
            line={"color": style.colour, "width": 2, "dash": style.dash},
            marker={"color": style.colour, "symbol": style.symbol, "size": 8},
            text=[hover_text(p.label) for p in points],
            hovertemplate="%{text}: %{y:.3f} at %{x:.3g}<extra></extra>",
        )
    if dial.reference is not None:
        figure.add_hline(y=dial.reference, line={"color": "#888", "width": 1})
    if dial.diagonal:
        xs = [p.x for points in dial.series.values() for p in points]
        ends = plain([min(xs), max(xs)])
        figure.add_scatter(
            x=ends, y=ends, mode="lines", name="equal", line={"color": "#888", "width": 1, "dash": "dash"}
        )
    names = {p.x: hover_text(p.label) for points in dial.series.values() for p in points} if dial.named else {}
    figure.update_xaxes(
        type="log" if dial.log_x else "linear",
        title_text=dial.x,
        tickvals=list(names) or None,
        ticktext=list(names.values()) or None,
    )
    return figure


def bars(values: Sequence[tuple[float, float, float]], thickness: float) -> dict[str, Any]:
    """Error bars of (value, lower, upper) for plotly."""
    at, lower, upper = np.array(values, dtype=np.float64).reshape(-1, 3).T
    return {"type": "data", "array": plain(upper - at), "arrayminus": plain(at - lower), "thickness": thickness}
