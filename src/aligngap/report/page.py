"""`report.html`: one page that needs no network. The template escapes everything; charts travel as JSON."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from aligngap.report import decision, sections, words
from aligngap.report.analysis import LAST, Analysis, assertion
from aligngap.report.chart import Chart, Payload
from aligngap.report.figures import FIGURES, pictures_of
from aligngap.report.golden import say_golden
from aligngap.report.people import say_people, table_ratings
from aligngap.report.power import change_of_mind
from aligngap.report.reach import reach_tables
from aligngap.report.style import arm_styles
from aligngap.report.summary import HEADER, rows
from aligngap.report.tables import judge_answers, say_unbeaten, tables
from aligngap.stats.axes import MIN_KL_NATS
from aligngap.stats.budgets import above
from aligngap.stats.scaling_law import GaoFit, better_form
from aligngap.storage.files import write_text
from aligngap.storage.listing import HAS_LIST

FORM_NAMES = {"bon": "d(α − βd)", "rl": "d(α − β ln d)"}


def write_page(
    analysis: Analysis,
    charts: Mapping[str, Chart],
    path: Path,
    *,
    command: str = "",
    provenance: Mapping[str, Any] | None = None,
    study: str = "",
) -> Path:
    """Render the page and put it in place atomically."""
    import jinja2

    files, about = resources.files("aligngap.report"), provenance or {}
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["settings"] = mark_settings
    template = environment.from_string(files.joinpath("template.html.j2").read_text(encoding="utf-8"))
    styles, payload = arm_styles(analysis.arms), Payload()
    for name, chart in charts.items():
        payload.add(name, chart)
    target, seed, texts = samples_at_equal_kl(analysis)
    text = template.render(
        study_name=analysis.study,
        **opening(analysis),
        drawn=set(charts),
        own_figures={f.name for f in FIGURES if not f.heading},
        opponent=words.opponent(analysis.opponent),
        least_kl=MIN_KL_NATS,
        arms=[{"name": a, "colour": styles[a].colour, "what": what(analysis, a)} for a in analysis.arms],
        further=[f for f in FIGURES if f.heading and f.name in charts],
        comparison_header=HEADER,
        comparison_rows=rows(analysis),
        budget_header=BUDGET_HEADER,
        budget_rows=budget_rows(analysis),
        pair=analysis.pairs[0],
        robust=[*tables(analysis), *reach_tables(analysis), *table_ratings(analysis), *judge_answers(analysis)],
        best_of_n_drawn=len(analysis.reference) > 0,
        claims_header=sections.CLAIMS_HEADER,
        claims=sections.list_claims(analysis),
        rules=[(v.name, v.rule) for v in analysis.verdicts if assertion(v.name) < LAST],
        sections=[
            sections.describe_section(j, len(analysis.seeds))
            | {"charts": list(zip(sections.titles_of(j), pictures_of(j), strict=True))}
            for j in sections.list_judged(analysis)
        ],
        section_header=sections.HEADER,
        untested=sections.say_untested(analysis),
        in_sandbox=sections.IN_SANDBOX,
        given=analysis.given,
        judge=analysis.judges["win_rate"],
        over_optimised=not analysis.given or bool(analysis.records["proxy_win_rate"].notna().any()),
        gao_header=GAO_HEADER,
        gao_rows=[gao_row(arm, analysis.judges[score], dict(fits)) for (arm, score), fits in analysis.gao.items()],
        gao_opponent=words.opponent(analysis.gao_opponent),
        samples_kl=target,
        samples_seed=seed,
        samples=texts,
        kl=words.kl,
        caveats=words.caveats(analysis),
        command=command,
        parts=parts_table(about.get("pipeline", [])),
        provenance=summarise(about),
        study_yaml=study,
        charts=payload.as_json(),
        script=files.joinpath("page.js").read_text(encoding="utf-8"),
    )
    write_text(path, text)
    return path


def mark_settings(text: Any) -> Any:
    """What a sentence says, escaped, with a setting's name between backticks marked as code."""
    import markupsafe

    if not isinstance(text, str) or "`" not in text:
        return text
    return markupsafe.Markup(re.sub(r"`([^`\s]+)`", r"<code>\1</code>", str(markupsafe.escape(text))))


def opening(analysis: Analysis) -> dict[str, Any]:
    """The first screen: the verdict or the decision, three numbers, what would change it, and what it rests on."""
    d, doubts = analysis.decision, [*words.details(analysis), *say_unbeaten(analysis)]
    found: dict[str, Any] = {
        "answer": f"{words.claim(analysis)}.", "state": words.verdict(analysis.main),
        "missing": " ".join(words.say_missing(analysis)),
        "tiles": tiles(analysis), "change": change_of_mind(analysis),
        "standing": [*say_golden(analysis), *say_people(analysis)],
        "leading": sections.say_leading(analysis),
        "details": [words.numbers(analysis), *doubts],
        "option_rows": [], "option_header": (), "option_notes": [],
    }  # fmt: skip
    if d is None:
        return found
    costs = decision.costs_of(analysis.costs)
    return found | {
        "answer": decision.sentence(d, costs), "state": decision.state(d),
        "details": [*decision.details(d), words.answer(analysis), *doubts],
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
            f"{b.kl:.3g}",
            f"{words.number(b.mean.value, 3, True)} ± {words.number(b.mean.se)}",
            words.span(b.interval) if b.judged else "not judged",
            words.span(b.equivalence) if b.judged else "–",
            ", ".join(words.number(v, 3, True) for v in b.by_seed),
            str(len(b.configs)) if b.judged else "–",
            "; ".join(filter(None, (", ".join(f"{n} of {arm}" for arm, n in b.short.items() if n), above([b]))))
            or "none",
        )
        for b in found.budgets
    ]


def tiles(analysis: Analysis) -> list[tuple[str, str, str]]:
    """The numbers of the first screen, with what each is and how sure: two differences, and the study's size."""
    a, b = analysis.pairs[0]
    d = analysis.decision
    rows_ = analysis.records[["run", "step", "prompts"]][analysis.records["opponent"] == analysis.opponent]
    checkpoints = len(rows_[["run", "step"]].drop_duplicates())
    out = [
        (f"{a} − {b} at {words.nats(x.kl)}", words.number(x.mean.value, 3, True), f"95%: {words.span(x.interval)}")
        for x in analysis.main.judged[-2:]
    ]
    if d is not None and d.gap.defined:
        value = words.number(d.gap.value.value, 3, True)
        out = [(f"{a} − {b} at {words.nats(d.gap.kl)}", value, f"95%: {words.span(d.gap.interval)}")]
        if np.isfinite(d.agreement.value):
            agreement = decision.percent(d.agreement.value)
            out.append(("golden agrees with your labels", agreement, decision.interval_percent(d.agreement_interval)))
    size = f"{rows_['run'].nunique():,} runs, {checkpoints:,} checkpoints, {rows_['prompts'].median():,.0f} prompts"
    return [*out, ("evidence", words.seeds(len(analysis.seeds)), size)]


def what(analysis: Analysis, arm: str) -> str:
    """An arm in a few words: how many configurations, seeds and which KL it reached."""
    curve = analysis.curves[analysis.opponent].get(arm)
    if curve is None:
        return "no usable checkpoint"
    low, high = curve.support
    reach = f"{words.kl(low)} to {words.kl(high)} nats" if low == low else "no KL common to its seeds"
    sweep = "one configuration" if curve.configs == 1 else f"best of {curve.configs} configurations"
    return f"{sweep}, {words.seeds(len(curve.seeds))}, {reach}"


GAO_HEADER = (
    "arm", "score", "law", "α (95%)", "β (95%)", "peak KL, nats (95%)", "held-out error, d(α − βd) / d(α − β ln d)"
)  # fmt: skip


def gao_row(arm: str, score: str, fits: dict[str, GaoFit]) -> tuple[str, ...]:
    """One line of the table of fitted laws: the form with the smaller held-out error."""
    form = better_form(fits)
    if not form:
        return (arm, score, "too few checkpoints", "–", "–", "–", "–")
    fit, peak = fits[form], "none"
    if np.isfinite(fit.peak_kl):
        low, high = fit.peak_kl_interval
        bounds = f"{words.kl(low)} to {words.kl(high)}" if low == low else "not certain"
        inside = fit.kl_range[0] <= fit.peak_kl <= fit.kl_range[1]
        peak = f"{words.kl(fit.peak_kl)} ({bounds})" if inside else "beyond the KL reached"
    alpha, beta = (
        f"{words.number(value)} ({words.span(interval, sign=False)})"
        for value, interval in ((fit.alpha, fit.alpha_interval), (fit.beta, fit.beta_interval))
    )
    errors = " / ".join(words.number(fits[f].held_out) for f in FORM_NAMES)
    return (arm, score, FORM_NAMES[form], alpha, beta, peak, errors)


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
    known = {"artifacts", "runs", "pipeline", "costs", "judges", "contents", HAS_LIST}
    return out + [(k, str(v)) for k, v in flatten({k: v for k, v in found.items() if k not in known})]


def flatten(found: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested mappings as dotted keys and their values."""
    out: list[tuple[str, Any]] = []
    for key, value in found.items():
        name = f"{prefix}{key}"
        out += flatten(value, f"{name}.") if isinstance(value, Mapping) else [(name, value)]
    return out


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
