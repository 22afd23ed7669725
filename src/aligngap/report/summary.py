"""`summary.md` and the terminal's page: the same numbers as the report, in plain text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from aligngap.report import decision, sections, words
from aligngap.report.analysis import Analysis
from aligngap.report.folder import MADE_BY
from aligngap.report.golden import say_golden
from aligngap.report.people import say_people, table_ratings
from aligngap.report.power import change_of_mind
from aligngap.report.reach import reach_tables
from aligngap.report.tables import judge_answers, say_unbeaten, tables
from aligngap.stats.budgets import AtBudgets
from aligngap.storage.files import write_text

HEADER = (
    "opponent",
    "comparison",
    "difference at each KL budget (95%, all budgets at once)",
    "not judged at, nats",
    "configurations in both",
    "seeds",
)


def comparison_row(pair: tuple[str, str], opponent: str, found: AtBudgets) -> tuple[str, ...]:
    """One comparison as cells of text."""
    return (
        words.SHORT.get(opponent, opponent),
        f"{pair[0]} − {pair[1]}",
        "; ".join(words.at(b) for b in found.judged) or found.why,
        ", ".join(f"{b.kl:.3g}" for b in found.budgets if not b.judged) or "–",
        str(len(found.configs)),
        str(len(found.seeds)),
    )


def rows(analysis: Analysis) -> list[tuple[str, ...]]:
    """Every pair of arms against each opponent."""
    return [
        comparison_row(pair, o, found)
        for o in analysis.opponents
        for pair, found in zip(analysis.pairs, analysis.at_budgets[o], strict=True)
    ]


def write_summary(analysis: Analysis, path: Path, command: str) -> Path:
    """Write `summary.md` atomically."""
    lines = [
        f"# {_escape(analysis.study)}: {' against '.join(dict.fromkeys(map(_escape, analysis.pairs[0])))} at equal KL",
        "",
        *decision_lines(analysis),
        f"**{_escape(words.answer(analysis))}**",
        "",
    ]
    lines += [f"- {_escape(s)}" for s in first_screen(analysis)]
    lines += ["", f"Opponent: {words.opponent(analysis.opponent)}. All intervals are 95%, over seeds.", ""]
    claims = sections.list_claims(analysis)
    if claims:
        lines += ["## What the paper claims, and what was found", "", *_table(sections.CLAIMS_HEADER, claims), ""]
    lines += ["## Comparisons at equal KL", "", *_table(HEADER, rows(analysis))]
    for table in [*tables(analysis), *reach_tables(analysis), *table_ratings(analysis), *judge_answers(analysis)]:
        lines += ["", f"## {table.title}", "", *[f"{_escape(note)}\n" for note in table.notes if note]]
        lines += _table(table.header, table.rows) if table.rows else []
    lines += hypotheses(analysis)
    lines += ["", "## Caveats", ""] + [f"- {_escape(s)}" for s in words.caveats(analysis)]
    lines += ["", MADE_BY, "", *["    " + x for x in command.splitlines()], ""]
    write_text(path, "\n".join(lines))
    return path


def first_screen(analysis: Analysis) -> list[str]:
    """What stands under the first sentence: what it rests on, and what would change it."""
    change = [f"What would change this ({what}): {sentence}" for what, sentence in change_of_mind(analysis)]
    return [
        *words.say_missing(analysis),
        *sections.say_leading(analysis),
        *say_golden(analysis),
        *words.details(analysis),
        *say_unbeaten(analysis),
        *say_people(analysis),
        *change,
    ]


def decision_lines(analysis: Analysis) -> list[str]:
    """The recommendation, where the study asks for one: before everything else."""
    d = analysis.decision
    if d is None:
        return []
    costs = decision.costs_of(analysis.costs)
    lines = [f"**{_escape(decision.sentence(d, costs))}**", "", *[f"- {_escape(s)}" for s in decision.details(d)], ""]
    lines += _table(decision.HEADER, decision.rows(d, costs))
    return [*lines, "", *[f"{_escape(note)}\n" for note in decision.notes(d)]]


def hypotheses(analysis: Analysis) -> list[str]:
    """A section for each hypothesis that the records touch, and a line for each that they do not."""
    lines = []
    for judged in sections.list_judged(analysis):
        h = judged.hypothesis
        lines += ["", f"## {h.name}: {h.question}", "", f"The paper: {_escape(h.claim)}", ""]
        missing = sections.say_lacking(judged, len(analysis.seeds))
        lines += [_escape(missing), ""] if missing else []
        lines += _table(sections.HEADER, [sections.cells(v) for v in judged.verdicts])
        lines += ["", "Rules:", "", *[f"- *{_escape(v.name)}*: {_escape(v.rule)}" for v in judged.verdicts]]
    rest = sections.say_untested(analysis)
    return lines + (
        ["", "## Not tested here", "", sections.IN_SANDBOX, "", *[f"- {_escape(x)}" for x in rest]] if rest else []
    )


def terminal(analysis: Analysis) -> str:
    """The page that `aligngap show` prints."""
    out = []
    if analysis.decision is not None:
        costs = decision.costs_of(analysis.costs)
        out = [
            decision.sentence(analysis.decision, costs),
            *[f"  {s}" for s in decision.details(analysis.decision)],
            "",
        ]
        out += [*_align([decision.HEADER, *decision.rows(analysis.decision, costs)]), ""]
    out += [words.answer(analysis), ""]
    out += [f"  {s}" for s in first_screen(analysis)]
    out += ["", *_align([HEADER, *rows(analysis)]), ""]
    for v in analysis.verdicts if analysis.decision is None else ():  # else the page has them, folded away
        out.append(f"{v.name:<12} {v.outcome:<14} {sections.effect(v)}  {v.reason}")
    out += ["", *[f"! {s}" for s in words.caveats(analysis)]]
    return "\n".join(out)


def _align(table: Sequence[tuple[str, ...]]) -> list[str]:
    width = [max(len(r[i]) for r in table) for i in range(len(table[0]))]
    return ["  ".join(x.ljust(w) for x, w in zip(r, width, strict=True)).rstrip() for r in table]


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *([_escape(x) for x in row] for row in rows)]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _escape(text: str) -> str:
    """Text that Markdown shows as it is."""
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*").split())
