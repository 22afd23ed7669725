"""`report.html`: one page that needs no network. The template escapes everything; charts travel as JSON."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from aligngap.hypotheses.base import Dial, Judged
from aligngap.report import decision, words
from aligngap.report.analysis import LAST, SCORES, Analysis, assertion
from aligngap.report.charts import (
    SCORE_COLOURS,
    dial_figure,
    difference_figure,
    dynamics_panels,
    frontier_figure,
    over_optimisation_panels,
)
from aligngap.report.figures import difference_limits
from aligngap.report.people import ratings, sentences
from aligngap.report.reach import reach_tables
from aligngap.report.sections import HEADER as SECTION_HEADER
from aligngap.report.sections import (
    IN_SANDBOX,
    effect,
    not_tested,
    p_value,
    pictures_of,
    section,
    titles_of,
    told,
    untested,
)
from aligngap.report.style import arm_styles
from aligngap.report.summary import HEADER, rows
from aligngap.report.tables import first_screen, judge_answers, tables
from aligngap.stats.scaling_law import GaoFit, better_form
from aligngap.storage.files import write_text

SCORE_NAMES = {"win_rate": "golden", "proxy_win_rate": "proxy", "oracle_win_rate": "true preference"}
FORM_NAMES = {"bon": "d(α − βd)", "rl": "d(α − β ln d)"}


def write_page(
    analysis: Analysis,
    path: Path,
    *,
    command: str = "",
    provenance: Mapping[str, Any] | None = None,
    study: str = "",
    figures: Callable[[], list[Path]] = list,
) -> Path:
    """Render the page and put it in place atomically."""
    text = page(analysis, command=command, provenance=provenance or {}, study=study, figures=figures)
    write_text(path, text)
    return path


def page(
    analysis: Analysis,
    *,
    command: str = "",
    provenance: Mapping[str, Any] | None = None,
    study: str = "",
    figures: Callable[[], list[Path]] = list,
) -> str:
    """The whole page as text; `figures` gives the static ones, and is asked last."""
    import jinja2
    from plotly.offline import get_plotlyjs

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    source = resources.files("aligngap.report").joinpath("template.html.j2").read_text(encoding="utf-8")
    styles = arm_styles(analysis.arms)
    target, seed, texts = samples_at_equal_kl(analysis)
    charts = Charts()
    chart_opening = charts.frontiers(analysis, analysis.arms)
    defined = [c for c in analysis.compared if c.defined]
    limits = difference_limits(defined)
    chart_difference = [
        (f"{c.a} − {c.b}", charts.add(difference_figure(c, styles[c.a].colour, limits))) for c in defined
    ]
    sections = [
        section(j, len(analysis.seeds)) | {"charts": list(zip(titles_of(j), charts.of(analysis, j), strict=True))}
        for j in told(analysis)
    ]
    chart_gao = [(title, charts.add(f)) for title, f in over_optimisation_panels(analysis)]
    chart_dynamics = [(title, charts.add(f)) for title, f in dynamics_panels(analysis)]
    return environment.from_string(source).render(
        study_name=analysis.study,
        **opening(analysis),
        tiles=tiles(analysis),
        opponent=words.opponent(analysis.opponent),
        arms=[{"name": a, "colour": styles[a].colour, "what": what(analysis, a)} for a in analysis.arms],
        chart_opening=chart_opening,
        chart_difference=chart_difference,
        chart_gao=chart_gao,
        chart_dynamics=chart_dynamics,
        charts=charts.items,
        comparison_header=HEADER,
        comparison_rows=rows(analysis),
        budget_header=BUDGET_HEADER,
        budget_rows=budget_rows(analysis),
        pair=analysis.pairs[0],
        robust=[*tables(analysis), *reach_tables(analysis), *ratings(analysis), *judge_answers(analysis)],
        best_of_n_drawn=len(analysis.reference) > 0,
        verdicts=[
            {
                "name": v.name,
                "claim": v.claim,
                "outcome": v.outcome,
                "effect": effect(v),
                "p": p_value(v),
                "reason": v.reason,
                "rule": v.rule,
            }
            for v in analysis.verdicts
            if assertion(v.name) < LAST
        ],
        sections=sections,
        section_header=SECTION_HEADER,
        untested=untested(analysis),
        in_sandbox=IN_SANDBOX,
        not_tested=not_tested(analysis),
        gao_rows=[gao_row(arm, score, dict(fits)) for (arm, score), fits in analysis.gao.items()],
        gao_opponent=words.opponent(analysis.gao_opponent),
        samples_kl=target,
        samples_seed=seed,
        samples=texts,
        number=words.number,
        kl=words.kl,
        pm=words.pm,
        span=words.span,
        caveats=words.caveats(analysis),
        scores=[(SCORES[s], SCORE_COLOURS[s][0]) for s in SCORES if analysis.records[s].notna().any()],
        command=command,
        parts=parts_table((provenance or {}).get("pipeline", [])),
        provenance=summarise(provenance or {}),
        study_yaml=study,
        still=embed(figures(), "opening"),
        plotly_js=get_plotlyjs(),
    )


class Charts:
    """Charts as JSON that cannot end the script element that carries it."""

    def __init__(self) -> None:
        self.items: list[tuple[str, str]] = []
        self._frontiers: dict[tuple[str, ...], str] = {}

    def add(self, figure: Any) -> str:
        return self._place(script_json(figure.to_json()))

    def frontiers(self, analysis: Analysis, arms: tuple[str, ...]) -> str:
        """The frontiers of these arms; a second time they are not made anew."""
        if arms not in self._frontiers:
            self._frontiers[arms] = script_json(frontier_figure(analysis, arms).to_json())
        return self._place(self._frontiers[arms])

    def of(self, analysis: Analysis, judged: Judged) -> list[str]:
        """A hypothesis's figures."""
        return [
            self.add(dial_figure(of)) if isinstance(of, Dial) else self.frontiers(analysis, of)
            for of in pictures_of(judged).values()
        ]

    def _place(self, json: str) -> str:
        name = f"chart-{len(self.items)}"
        self.items.append((name, json))
        return name


def script_json(text: str) -> str:
    """JSON safe inside <script>: no '<', '>' or '&' and no line separators remain."""
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


def opening(analysis: Analysis) -> dict[str, Any]:
    """The first sentence, what stands under it, and the options of a decision where the study asks for one."""
    d = analysis.decision
    found: dict[str, Any] = {
        "answer": words.answer(analysis), "state": words.verdict(analysis.main), "option_rows": [], "option_header": (),
        "option_notes": [], "details": [*words.details(analysis), *first_screen(analysis), *sentences(analysis)],
    }  # fmt: skip
    if d is None:
        return found
    costs = decision.costs_of(analysis.costs)
    return found | {
        "answer": decision.sentence(d, costs), "state": decision.state(d),
        "details": [*decision.details(d), words.answer(analysis), *found["details"]],
        "option_header": decision.HEADER, "option_rows": decision.rows(d, costs), "option_notes": decision.notes(d),
    }  # fmt: skip


BUDGET_HEADER = (
    "KL, nats", "difference ± se", "95%, all budgets at once", "90%, this one", "by seed", "configurations",
    "runs that ended below",
)  # fmt: skip


def budget_rows(analysis: Analysis) -> list[tuple[str, ...]]:
    """The main pair's difference at each KL budget, judged or not."""
    found = analysis.main
    return [
        (
            words.kl(b.kl),
            f"{words.number(b.mean.value, 3, True)} ± {words.number(b.mean.se)}",
            words.span(b.interval) if b.judged else "not judged",
            words.span(b.equivalence) if b.judged else "–",
            ", ".join(words.number(v, 3, True) for v in b.by_seed),
            str(len(b.configs)) if b.judged else "–",
            ", ".join(f"{n} of {arm}" for arm, n in b.short.items() if n) or "none",
        )
        for b in found.budgets
    ]


def tiles(analysis: Analysis) -> list[dict[str, str]]:
    """The numbers of the first screen."""
    a, b = analysis.pairs[0]
    mine = analysis.records["opponent"] == analysis.opponent
    rows_ = analysis.records[["run", "step", "prompts"]][mine]
    runs, prompts = rows_["run"].nunique(), rows_["prompts"].median()
    checkpoints = len(rows_[["run", "step"]].drop_duplicates())
    out = [
        {
            "label": f"{a} − {b} at {words.nats(x.kl)}",
            "value": words.number(x.mean.value, 3, True),
            "note": f"95%: {words.span(x.interval)}",
        }
        for x in analysis.main.judged[-3:]
    ]
    out.append(
        {
            "label": "evidence",
            "value": words.seeds(len(analysis.seeds)),
            "note": f"{runs:,} runs, {checkpoints:,} checkpoints, {prompts:,.0f} prompts",
        }
    )
    return out


def what(analysis: Analysis, arm: str) -> str:
    """An arm in a few words: how many configurations, seeds and which KL it reached."""
    curve = analysis.curves[analysis.opponent].get(arm)
    if curve is None:
        return "no usable checkpoint"
    low, high = curve.support
    reach = f"{words.kl(low)} to {words.kl(high)} nats" if low == low else "no KL common to its seeds"
    sweep = "one configuration" if curve.configs == 1 else f"best of {curve.configs} configurations"
    return f"{sweep}, {words.seeds(len(curve.seeds))}, {reach}"


def gao_row(arm: str, score: str, fits: dict[str, GaoFit]) -> dict[str, str]:
    """One line of the table of fitted laws: the form with the smaller held-out error."""
    form = better_form(fits)
    if not form:
        return {"arm": arm, "score": SCORE_NAMES[score], "form": "too few checkpoints"} | dict.fromkeys(
            ("alpha", "beta", "peak", "error"), "–"
        )
    fit = fits[form]
    inside = fit.kl_range[0] <= fit.peak_kl <= fit.kl_range[1]
    peak = words.kl(fit.peak_kl)
    if fit.peak_kl == fit.peak_kl:
        low, high = fit.peak_kl_interval
        bounds = f"{words.kl(low)} to {words.kl(high)}" if low == low else "not certain"
        peak = f"{peak} ({bounds})" if inside else "beyond the KL reached"
    else:
        peak = "none"
    return {
        "arm": arm,
        "score": SCORE_NAMES[score],
        "form": FORM_NAMES[form],
        "alpha": f"{words.number(fit.alpha)} ({words.span(fit.alpha_interval, sign=False)})",
        "beta": f"{words.number(fit.beta)} ({words.span(fit.beta_interval, sign=False)})",
        "peak": peak,
        "error": " / ".join(words.number(fits[f].held_out) for f in FORM_NAMES),
    }


def parts_table(found: list[dict[str, Any]]) -> tuple[list[str], list[tuple[str, ...]]]:
    """What was found before the arms ran: one row per part and quantity, one column per seed."""
    seeds = sorted({row["seed"] for row in found})
    lines: dict[tuple[str, str], dict[Any, str]] = {}
    for row in found:
        values = row["value"] if isinstance(row["value"], Mapping) else {"": row["value"]}
        for key, value in flatten(values):
            name = f"{row['what']}: {key}" if key else row["what"]
            shown = f"{value:.4g}" if isinstance(value, float) else str(value)
            lines.setdefault((row["part"], name), {})[row["seed"]] = shown
    header = ["part", "what", *(f"seed {s}" for s in seeds)]
    return header, [(*key, *(cells.get(s, "–") for s in seeds)) for key, cells in lines.items()]


def summarise(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Provenance as key and text: what all artifacts share once, then each run's artifacts and outcome."""
    artifacts = found.get("artifacts", {})
    shared: dict[str, list[str]] = {}
    for about in artifacts.values():
        for key, value in flatten(about):
            if key != "seconds":
                shared.setdefault(key, []).append(str(value))
    out = [(key, ", ".join(sorted(set(values)))) for key, values in shared.items()]
    seconds = sum(float(about.get("seconds", 0.0)) for about in artifacts.values())
    out.append(("artifacts", f"{len(artifacts)}, made in {seconds:,.0f} seconds of worker time"))
    for run, about in found.get("runs", {}).items():
        out.append((str(run), ", ".join(str(v) for _, v in flatten(about))))
    known = {"artifacts", "runs", "pipeline", "costs", "judges"}
    return out + [(k, str(v)) for k, v in flatten({k: v for k, v in found.items() if k not in known})]


def flatten(found: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested mappings as dotted keys and their values."""
    out: list[tuple[str, Any]] = []
    for key, value in found.items():
        name = f"{prefix}{key}"
        out += flatten(value, f"{name}.") if isinstance(value, Mapping) else [(name, value)]
    return out


def embed(figures: list[Path], stem: str) -> str:
    """A figure as a data URI, for readers without JavaScript; "" if it was not drawn."""
    for path in figures:
        if path.stem == stem and path.is_file():
            return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
    return ""


def samples_at_equal_kl(
    analysis: Analysis, prompts: int = 4, targets: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)
) -> tuple[float, int, list[dict[str, object]]]:
    """Texts of every arm for the same prompts at nearly equal KL: (target KL, seed, one dict a prompt).

    For each arm the checkpoint of the seed nearest in log KL to the target is taken; the target is the one at which the
    farthest arm is nearest. Step 0 of any run stands for the SFT policy.
    """
    samples, rows = analysis.samples, analysis.records
    if not len(samples):
        return float("nan"), -1, []
    mask = (rows["opponent"] == analysis.opponent) & rows["kl_nats"].notna()
    rows = rows[["run", "arm", "seed", "step", "config", "kl_nats"]][mask]
    rows = rows.merge(samples[["run", "step"]].drop_duplicates(), on=["run", "step"])
    best: tuple[float, float, int, pd.DataFrame] | None = None
    for seed in sorted(rows["seed"].unique()):
        mine = rows[(rows["seed"] == seed) & (rows["kl_nats"] > 0.05)]
        if not len(mine):
            continue
        for target in targets:
            gap = (np.log(mine["kl_nats"]) - np.log(target)).abs()
            chosen = mine.loc[gap.groupby(mine["arm"]).idxmin()]
            worst = float(gap.loc[chosen.index].max()) - 0.5 * len(chosen)
            if best is None or worst < best[0] - 1e-9:
                best = (worst, target, int(seed), chosen)
    if best is None:
        return float("nan"), -1, []
    _, target, seed, chosen = best
    start = rows[(rows["seed"] == seed) & (rows["step"] == 0)].head(1).assign(arm="sft")
    picked = pd.concat([start, chosen]).drop_duplicates("arm")
    texts: list[dict[str, object]] = []
    of_seed = samples[samples["seed"] == seed]
    for prompt_id in of_seed["prompt_id"].drop_duplicates().head(prompts):
        about = of_seed[of_seed["prompt_id"] == prompt_id]
        answers = []
        for arm in ("sft", *analysis.arms):
            for row in picked[picked["arm"] == arm].itertuples():
                hit = about[(about["run"] == row.run) & (about["step"] == row.step)]
                if len(hit):
                    answers.append(
                        {
                            "arm": arm,
                            "kl": row.kl_nats,
                            "step": row.step,
                            "config": row.config,
                            "response": hit["response"].iloc[0],
                            "ended": bool(hit["ended"].iloc[0]),
                        }
                    )
        texts.append({"prompt_id": prompt_id, "prompt": about["prompt"].iloc[0], "answers": answers})
    return target, seed, texts
