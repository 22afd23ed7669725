"""The figures of a report, each described once: a function from the analysis to a `Chart`.

To add one, write such a function (None where the records do not allow it) and name it in `FIGURES`. It is then drawn
for papers and on the page, in a section of its own, and its numbers are written beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from aligngap.hypotheses.base import Dial, Judged
from aligngap.report import words
from aligngap.report.analysis import DYNAMICS, Analysis, thin
from aligngap.report.chart import KL_AXIS, Axis, Chart, Panel, Series, as_numbers, limits_of
from aligngap.report.options import options_chart
from aligngap.report.reach import reach_chart
from aligngap.report.style import NEUTRAL, Style, arm_styles
from aligngap.stats.axes import MIN_KL_NATS
from aligngap.stats.compare import Comparison, peak_of
from aligngap.stats.scaling_law import better_form

#: what the best-of-n line is called in every figure
REFERENCE = "best-of-n of the SFT policy"
#: letters of each text that a policy wrote
LETTERS = 150
#: steps of one arm in a figure of training
MAX_STEPS = 400
SCORE_STYLES = {
    "win_rate": Style("#0072B2", "o"),
    "proxy_win_rate": Style("#E69F00", "s"),
    "oracle_win_rate": Style("#777777", "^"),
}


def make_charts(analysis: Analysis) -> dict[str, Chart]:
    """Every figure that the records allow, by the name of its files.

    Those of the page itself, then those of the hypotheses; figures that show the same arms are one and the same chart.
    """
    made: dict[tuple[str, ...], Chart | None] = {}

    def draw(of: Dial | tuple[str, ...]) -> Chart | None:
        if isinstance(of, Dial):
            return dial_chart(of)
        if of not in made:
            made[of] = frontiers(analysis, of)
        return made[of]

    found = {"opening": draw(analysis.arms)} | {f.name: f.describe(analysis) for f in FIGURES}
    for judged in analysis.judged:
        if judged.hypothesis.name != "opening":
            found |= {name: draw(of) for name, of in pictures_of(judged).items()}
    return {name: chart for name, chart in found.items() if chart is not None}


def pictures_of(judged: Judged) -> dict[str, Dial | tuple[str, ...]]:
    """A hypothesis's figures by file name: its dial or the frontiers of its arms, then its further ones."""
    name = judged.hypothesis.name
    return {name: judged.dial or judged.arms, **{f"{name}-{figure.name}": of for figure, of in judged.more}}


def frontiers(analysis: Analysis, arms: tuple[str, ...]) -> Chart | None:
    """KL against win rate: every checkpoint, each arm's frontier with its band, peaks, and the SFT level."""
    if not set(analysis.clouds[analysis.opponent].arms) & set(arms):
        return None
    styles, texts = arm_styles(arms), analysis.first_texts
    series, numbers = [], []
    for arm in arms:
        points = analysis.points.get(arm)
        if points is None or not len(points):
            continue
        style, x, y = styles[arm], points["kl_nats"], points["win_rate"]
        notes = [describe_checkpoint(row, texts) for row in points.to_dict("records")]
        series.append(Series(arm, style, x, y, points="faint", notes=notes))
        numbers.append(points.assign(what="checkpoint"))
        line = analysis.lines.get(arm)
        if line is not None and len(line.kl):
            series.append(Series(arm, style, line.kl, line.value, line=True, band=(line.lower, line.upper)))
            columns = {"kl_nats": line.kl, "win_rate": line.value, "lower": line.lower, "upper": line.upper}
            numbers.append(pd.DataFrame({"arm": arm, **columns}).assign(what="frontier"))
        curve = analysis.curves[analysis.opponent].get(arm)
        if curve is not None:
            best, (lower, upper) = peak_of(curve)
            at = float(np.exp(np.mean(np.log(curve.peak_x))))
            note = f"{arm}: best checkpoint\n{words.pm(best)} on held-out prompts, at {words.nats(at)}"
            series.append(Series(arm, style, [at], [best.value], points="hollow", notes=[note]))
            row = {"arm": arm, "kl_nats": at, "win_rate": best.value, "lower": lower, "upper": upper, "what": "peak"}
            numbers.append(pd.DataFrame([row]))
    reference = analysis.reference
    shown = reference[reference["kl_nats"] > 0] if len(reference) else reference
    if len(shown):
        notes = [
            f"best of {p['n']:.0f} of the SFT policy\nKL at most {words.nats(p['kl_nats'])}\n"
            f"win rate {words.number(p['win_rate'])} ± {words.number(p['win_rate_se'])}"
            for p in shown.to_dict("records")
        ]
        x, y = shown["kl_nats"], shown["win_rate"]
        series.append(Series(REFERENCE, NEUTRAL, x, y, line=True, points="hollow", notes=notes))
        numbers.append(reference.rename(columns={"n": "best_of_n"}).assign(arm="sft", what="best-of-n"))
    level, rules = analysis.sft_level, []
    if np.isfinite(level):
        rules = [(level, "SFT policy")]
        numbers.append(pd.DataFrame([{"arm": "sft", "win_rate": level, "what": "sft level"}]))
    y_axis = Axis(f"win rate against {words.opponent(analysis.opponent)}")
    panel = Panel(KL_AXIS, y_axis, tuple(series), rules=tuple(rules), x_rules=least_kl(series))
    return Chart((panel,), pd.concat(numbers, ignore_index=True)) if numbers else None


def least_kl(series: Sequence[Series]) -> tuple[tuple[float, str], ...]:
    """The vertical rule at the least KL that is compared, where some of the series lies to the left of it."""
    left = any((as_numbers(s.x) < MIN_KL_NATS).any() for s in series)
    return ((MIN_KL_NATS, f"compared from {MIN_KL_NATS:g} nats on"),) if left else ()


def describe_checkpoint(row: Mapping[Any, Any], texts: Mapping[tuple[str, int], list[tuple[str, str]]]) -> str:
    """What is known of a checkpoint, a fact a line: its run first, what its policy wrote last."""
    run, step = str(row["run"]), int(row["step"])
    facts = [
        run,
        f"step {step}, seed {row['seed']}",
        f"KL {row['kl_nats']:.3g} ± {row['kl_nats_se']:.2g} nats",
        f"win rate {row['win_rate']:.3f} ± {row['win_rate_se']:.3f}",
    ]
    if str(row["config"]) not in run:
        facts.insert(1, str(row["config"]))
    facts += [f"“{clip_text(prompt)}” → {clip_text(response)}" for prompt, response in texts.get((run, step), [])]
    return "\n".join(facts)


def clip_text(text: str, letters: int = LETTERS) -> str:
    """Text in one line of at most so many letters; what cannot be printed is a space."""
    text = " ".join("".join(ch if ch.isprintable() else " " for ch in text[: 4 * letters]).split())
    return text if len(text) <= letters else text[: letters - 1] + "…"


def differences(analysis: Analysis) -> Chart | None:
    """Each comparison's difference against KL, with pointwise and simultaneous 95% bands; one panel a comparison."""
    found = [c for c in analysis.compared if c.defined]
    if not found:
        return None
    y = Axis("difference in win rate", limits=difference_limits(found))
    panels, numbers = [], []
    for c in found:
        style = replace(arm_styles(analysis.arms)[c.a], dash=())
        wide = Series("simultaneous 95%", style, c.x, c.difference, band=(c.lower, c.upper))
        near = Series("pointwise 95%", style, c.x, c.difference, line=True, band=(c.point_lower, c.point_upper))
        panels.append(Panel(KL_AXIS, y, (wide, near), f"{c.a} − {c.b}", ((0.0, ""),)))
        numbers.append(
            pd.DataFrame(
                {
                    "a": c.a, "b": c.b, "opponent": c.opponent, "kl_nats": c.x, "difference": c.difference,
                    "lower_simultaneous": c.lower, "upper_simultaneous": c.upper,
                    "lower_pointwise": c.point_lower, "upper_pointwise": c.point_upper,
                }
            )
        )  # fmt: skip
    return Chart(tuple(panels), pd.concat(numbers, ignore_index=True))


def difference_limits(found: list[Comparison]) -> tuple[float, float]:
    """One range for the panels of all these comparisons: it holds every band."""
    return limits_of(np.concatenate([end for c in found for end in (c.lower, c.upper)]) if found else [])


def over_optimisation(analysis: Analysis) -> Chart | None:
    """Golden against proxy (and true) win rate over sqrt KL per arm, with the better of Gao's two laws."""
    x_axis = Axis("KL, nats (square-root axis)", "sqrt")
    y_axis = Axis(f"win rate against {words.opponent(analysis.gao_opponent)}")
    panels, numbers = [], []
    for arm, scored in analysis.scored.items():
        series = []
        for score, name in analysis.judges.items():
            mine = scored.rows[scored.rows[score].notna()]
            if not len(mine):
                continue
            style = SCORE_STYLES[score]
            series.append(Series(name, style, mine["kl_nats"], mine[score], points="faint"))
            rows = mine[["arm", "run", "seed", "step", "kl_nats", score]].rename(columns={score: "value"})
            numbers.append(rows.assign(score=score, what="checkpoint"))
            fits = dict(analysis.gao.get((arm, score), {}))
            form, base = better_form(fits), scored.base[score]
            if form and np.isfinite(base):
                low, high = fits[form].kl_range
                x = np.linspace(low**0.5, high**0.5, 80) ** 2
                y = base + fits[form](x)
                series.append(Series(name, style, x, y, line=True))
                numbers.append(pd.DataFrame({"arm": arm, "kl_nats": x, "value": y}).assign(score=score, what=form))
        panels.append(Panel(x_axis, y_axis, tuple(series), arm))
    return Chart(tuple(panels), pd.concat(numbers, ignore_index=True), 4) if panels else None


def training(analysis: Analysis) -> Chart | None:
    """What changes during training, a panel a quantity: mean over an arm's runs, the range of the runs shaded."""
    table, styles = analysis.training, arm_styles(analysis.arms)
    panels = []
    for column, title in DYNAMICS.items():
        if f"{column}_mean" not in table:
            continue
        series = []
        for arm in analysis.arms:
            mine = table.iloc[np.flatnonzero((table["arm"] == arm) & table[f"{column}_mean"].notna())]
            mine = mine.iloc[thin(np.arange(len(mine)), MAX_STEPS)]
            if len(mine):
                band = (mine[f"{column}_min"], mine[f"{column}_max"])
                y = mine[f"{column}_mean"]
                series.append(Series(arm, styles[arm], mine["step"], y, line=True, band=band, band_opacity=0.12))
        panels.append(Panel(Axis("optimiser steps"), Axis(""), tuple(series), title))
    return Chart(tuple(panels), table) if panels else None


def dial_chart(dial: Dial) -> Chart:
    """A quantity against a knob, each value with its interval."""
    names = {p.x: p.label for points in dial.series.values() for p in points} if dial.named else None
    few = all(len(points) <= FEW for points in dial.series.values())
    plain = few and not (dial.joined or dial.named or dial.diagonal)
    series = []
    for name, style in arm_styles(tuple(dial.series)).items():
        points = dial.series[name]
        ends = np.array([(p.lower, p.upper, *p.x_interval) for p in points], dtype=np.float64).reshape(-1, 4).T
        series.append(
            Series(
                name, style, [p.x for p in points], [p.value for p in points], line=dial.joined, points="full",
                bars=(ends[0], ends[1]) if np.isfinite(ends[:2]).any() else None,
                x_bars=(ends[2], ends[3]) if np.isfinite(ends[2:]).any() else None,
                notes=[p.label for p in points], annotated=plain and name == next(iter(dial.series)),
            )
        )  # fmt: skip
    if dial.diagonal:
        xs = [p.x for points in dial.series.values() for p in points]
        whole = [min(xs), max(xs)]
        series.append(Series("equal", replace(NEUTRAL, dash=(4, 3)), whole, whole, line=True))
    rules = () if dial.reference is None else ((dial.reference, ""),)
    x_axis = Axis(dial.x, "log2" if dial.log_x else "linear", names)
    return Chart((Panel(x_axis, Axis(dial.y), tuple(series), rules=rules),), dial_table(dial))


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


@dataclass(frozen=True)
class Figure:
    """A figure of every report: the name of its files, its description, and the heading and note of its own section.

    Without a heading it has no section of its own: it stands in that of the table of its name, or where the page's
    template says.
    """

    name: str
    describe: Callable[[Analysis], Chart | None]
    heading: str = ""
    note: str = ""


FIGURES = (
    Figure("options", options_chart),
    Figure("difference", differences),
    Figure("reach", reach_chart),
    Figure("over-optimisation", over_optimisation),
    Figure("dynamics", training),
)
