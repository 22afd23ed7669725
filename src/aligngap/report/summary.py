"""`summary.md` and the terminal's page: the same numbers as the report, in plain text."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from aligngap.report import decision, words
from aligngap.report.analysis import LAST, Analysis, assertion
from aligngap.report.sections import HEADER as SECTION_HEADER
from aligngap.report.sections import IN_SANDBOX, cells, effect, lacking, not_tested, told, untested
from aligngap.report.tables import controlled_cells, first_screen, judge_answers, tables
from aligngap.stats.compare import Comparison

HEADER = (
    "opponent",
    "comparison",
    "difference ± se",
    "95% interval",
    "KL range, nats",
    "peaks",
    "length-controlled",
    "ahead, of log KL",
    "seeds",
)


def comparison_row(c: Comparison, controlled: str) -> tuple[str, ...]:
    """One comparison as cells of text; `controlled` is its length-controlled difference."""
    share = "–" if not c.defined else f"{c.share_a_ahead:.0%} / {c.share_b_ahead:.0%}"
    return (
        words.SHORT.get(c.opponent, c.opponent),
        f"{c.a} − {c.b}",
        "–" if not c.defined else f"{words.number(c.average.value, 3, True)} ± {words.number(c.average.se)}",
        words.span(c.average_interval) if c.defined else "not comparable",
        f"{words.kl(c.common[0])} to {words.kl(c.common[1])}" if c.defined else "none in common",
        f"{words.number(c.peak.value, 3, True)} ({words.span(c.peak_interval)})",
        controlled,
        share,
        str(len(c.seeds)),
    )


def rows(analysis: Analysis) -> list[tuple[str, ...]]:
    found = [c for o in analysis.opponents for c in analysis.comparisons[o]]
    return [comparison_row(c, cell) for c, cell in zip(found, controlled_cells(analysis), strict=True)]


def write_summary(analysis: Analysis, path: Path, command: str) -> Path:
    """Write `summary.md` atomically."""
    main = analysis.main
    lines = [
        f"# {_escape(analysis.study)}: online against offline at equal KL",
        "",
        *decided(analysis),
        f"**{_escape(words.answer(main))}**",
        "",
    ]
    lines += [f"- {_escape(s)}" for s in [*words.details(main), *first_screen(analysis)]]
    lines += ["", f"Opponent: {words.opponent(analysis.opponent)}. All intervals 95%, over seeds, then prompts.", ""]
    lines += claims(analysis)
    lines += ["## Comparisons at equal KL", "", _row(HEADER), _row(["---"] * len(HEADER))]
    lines += [_row([_escape(x) for x in r]) for r in rows(analysis)]
    for table in [*tables(analysis), *judge_answers(analysis)]:
        lines += ["", f"## {table.title}", "", *[f"{_escape(note)}\n" for note in table.notes if note]]
        if table.rows:
            lines += [_row(table.header), _row(["---"] * len(table.header))]
            lines += [_row([_escape(x) for x in r]) for r in table.rows]
    lines += hypotheses(analysis)
    lines += ["", "## Caveats", ""] + [f"- {_escape(s)}" for s in words.caveats(analysis)]
    lines += ["", "Made by:", "", *["    " + x for x in command.splitlines()], ""]
    text = "\n".join(lines)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
    return path


def decided(analysis: Analysis) -> list[str]:
    """The recommendation, where the study asks for one: before everything else."""
    d = analysis.decision
    if d is None:
        return []
    costs = decision.costs_of(analysis.costs)
    lines = [f"**{_escape(decision.sentence(d, costs))}**", "", *[f"- {_escape(s)}" for s in decision.details(d)], ""]
    lines += [_row(decision.HEADER), _row(["---"] * len(decision.HEADER))]
    lines += [_row([_escape(x) for x in r]) for r in decision.rows(d, costs)]
    return [*lines, "", *[f"{_escape(note)}\n" for note in decision.notes(d)]]


def claims(analysis: Analysis) -> list[str]:
    """The paper's assertions, each with what was found or the command that would find it."""
    lines = ["## What the paper claims, and what was found", ""]
    lines += [_row(["", "paper", "here", "effect (95% interval)", "reason"]), _row(["---"] * 5)]
    for v in analysis.verdicts:
        if assertion(v.name) < LAST:
            lines.append(_row([_escape(x) for x in (v.name, v.claim, v.outcome, effect(v), v.reason)]))
    lines += [_row([_escape(x) for x in (n, claim, "not tested", "–", run)]) for n, claim, run in not_tested(analysis)]
    return [*lines, ""]


def hypotheses(analysis: Analysis) -> list[str]:
    """A section for each hypothesis that the records touch, and a line for each that they do not."""
    lines = []
    for judged in told(analysis):
        h = judged.hypothesis
        lines += ["", f"## {h.name}: {h.question}", "", f"The paper: {_escape(h.claim)}", ""]
        missing = lacking(judged, len(analysis.seeds))
        lines += [_escape(missing), ""] if missing else []
        lines += [_row(SECTION_HEADER), _row(["---"] * len(SECTION_HEADER))]
        lines += [_row([_escape(x) for x in cells(v)]) for v in judged.verdicts]
        lines += ["", "Rules:", "", *[f"- *{_escape(v.name)}*: {_escape(v.rule)}" for v in judged.verdicts]]
    rest = untested(analysis)
    return lines + (["", "## Not tested here", "", IN_SANDBOX, "", *[f"- {_escape(x)}" for x in rest]] if rest else [])


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
        out += [*_aligned([decision.HEADER, *decision.rows(analysis.decision, costs)]), ""]
    out += [words.answer(analysis.main), ""]
    out += [f"  {s}" for s in [*words.details(analysis.main), *first_screen(analysis)]]
    out += ["", *_aligned([HEADER, *rows(analysis)]), ""]
    for v in analysis.verdicts:
        out.append(f"{v.name:<12} {v.outcome:<13} {effect(v)}  {v.reason}")
    out += ["", *[f"! {s}" for s in words.caveats(analysis)]]
    return "\n".join(out)


def _aligned(table: Sequence[tuple[str, ...]]) -> list[str]:
    width = [max(len(r[i]) for r in table) for i in range(len(table[0]))]
    return ["  ".join(x.ljust(w) for x, w in zip(r, width, strict=True)).rstrip() for r in table]


def _row(cells: list[str] | tuple[str, ...]) -> str:
    return "| " + " | ".join(cells) + " |"


def _escape(text: str) -> str:
    """Text that Markdown shows as it is."""
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*").split())
