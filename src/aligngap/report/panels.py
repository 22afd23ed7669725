"""The small interactive panels: over-optimisation per arm, and training dynamics, one chart a quantity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from aligngap.hypotheses.base import Dial
from aligngap.report.analysis import DYNAMICS, SCORES, Analysis, thin
from aligngap.report.dials import styles_of
from aligngap.report.interactive import blank, hover_text, plain, rgba, rounded
from aligngap.report.style import arm_styles
from aligngap.stats.scaling_law import better_form

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
