"""`summary.md` and the terminal's page: the same numbers as the report, in plain text."""

from __future__ import annotations

import os
from pathlib import Path

from aligngap.hypotheses.opening import CLAIMS
from aligngap.report import words
from aligngap.report.analysis import Analysis
from aligngap.stats.compare import Comparison

HEADER = (
    "opponent",
    "comparison",
    "difference ± se",
    "95% interval",
    "KL range, nats",
    "peaks",
    "ahead, of log KL",
    "seeds",
)


def comparison_row(c: Comparison) -> tuple[str, ...]:
    """One comparison as cells of text."""
    share = "–" if not c.defined else f"{c.share_a_ahead:.0%} / {c.share_b_ahead:.0%}"
    return (
        words.SHORT.get(c.opponent, c.opponent),
        f"{c.a} − {c.b}",
        "–" if not c.defined else f"{words.number(c.average.value, 3, True)} ± {words.number(c.average.se)}",
        words.span(c.average_interval) if c.defined else "not comparable",
        f"{words.kl(c.common_kl[0])} to {words.kl(c.common_kl[1])}" if c.defined else "none in common",
        f"{words.number(c.peak.value, 3, True)} ({words.span(c.peak_interval)})",
        share,
        str(len(c.seeds)),
    )


def rows(analysis: Analysis) -> list[tuple[str, ...]]:
    return [comparison_row(c) for o in analysis.opponents for c in analysis.comparisons[o]]


def write_summary(analysis: Analysis, path: Path, command: str) -> Path:
    """Write `summary.md` atomically."""
    main = analysis.main
    lines = [
        f"# {_escape(analysis.study)}: online against offline at equal KL",
        "",
        f"**{_escape(words.answer(main))}**",
        "",
    ]
    lines += [f"- {_escape(s)}" for s in words.details(main)]
    lines += ["", f"Opponent: {words.opponent(analysis.opponent)}. All intervals 95%, over seeds, then prompts.", ""]
    lines += ["## Comparisons at equal KL", "", _row(HEADER), _row(["---"] * len(HEADER))]
    lines += [_row([_escape(x) for x in r]) for r in rows(analysis)]
    lines += ["", "## What the paper claims, and what was found", ""]
    lines += [_row(["", "paper", "here", "effect (95% interval)", "reason"]), _row(["---"] * 5)]
    for v in analysis.verdicts:
        effect = f"{words.number(v.effect.value, 3, True)} ({words.span(v.interval)})"
        claim = CLAIMS.get(v.name.split()[0], "")
        lines.append(_row([_escape(x) for x in (v.name, claim, v.outcome, effect, v.reason)]))
    lines += ["", "## Caveats", ""] + [f"- {_escape(s)}" for s in words.caveats(analysis)]
    lines += ["", "Made by:", "", *["    " + x for x in command.splitlines()], ""]
    text = "\n".join(lines)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
    return path


def terminal(analysis: Analysis) -> str:
    """The page that `aligngap show` prints."""
    out = [words.answer(analysis.main), ""]
    out += [f"  {s}" for s in words.details(analysis.main)]
    table = [HEADER, *rows(analysis)]
    width = [max(len(r[i]) for r in table) for i in range(len(HEADER))]
    out += ["", *["  ".join(x.ljust(w) for x, w in zip(r, width, strict=True)).rstrip() for r in table], ""]
    for v in analysis.verdicts:
        effect = f"{words.number(v.effect.value, 3, True)} ({words.span(v.interval)})"
        out.append(f"{v.name:<12} {v.outcome:<13} {effect}  {v.reason}")
    out += ["", *[f"! {s}" for s in words.caveats(analysis)]]
    return "\n".join(out)


def _row(cells: list[str] | tuple[str, ...]) -> str:
    return "| " + " | ".join(cells) + " |"


def _escape(text: str) -> str:
    """Text that Markdown shows as it is."""
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*").split())
