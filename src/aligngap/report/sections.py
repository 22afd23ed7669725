"""The sections of the hypotheses: question, the paper's claim, rules, verdicts with their share of the opening gap."""

from __future__ import annotations

import math
from typing import Any

from aligngap.hypotheses.base import Judged
from aligngap.hypotheses.verdicts import CONTRADICTED, SUPPORTED
from aligngap.report import words
from aligngap.report.analysis import LAST, Analysis, assertion
from aligngap.types import Verdict

#: what the commands of the packaged studies do, whatever task the records are of
IN_SANDBOX = (
    "The packaged studies named here make their runs in the sandbox; a study of other data has the same arms with "
    "`extends: STUDY` in its file."
)
CLAIMS_HEADER = ("assertion", "arXiv 2405.08448", "here", "effect (95%)", "p, adjusted", "in words")
HEADER = ("", "paper", "here", "effect (95%)", "p, adjusted", "share of the opening gap (95%)", "in words")


def list_judged(analysis: Analysis) -> list[Judged]:
    """The hypotheses that get a section: all but the opening one, which is the page itself."""
    return [j for j in analysis.judged if j.hypothesis.name != "opening"]


def say_leading(analysis: Analysis) -> list[str]:
    """What a hypothesis found that its reader wants first, with the verdict: for the first screen.

    That is what the hypothesis leads with, and what is decided of the claims that the study named beforehand.
    """
    return [
        f"{v.reason} ({v.name}: {', '.join(filter(None, (v.outcome, effect(v), words.p_adjusted(v))))})"
        for judged in list_judged(analysis)
        for v in judged.verdicts
        if math.isfinite(v.effect.value)
        and (v.name in judged.hypothesis.leads or (v.primary and v.outcome in (SUPPORTED, CONTRADICTED)))
    ]


def titles_of(judged: Judged) -> list[str]:
    """What stands under each of a hypothesis's figures; nothing under the first, which the question explains."""
    return ["", *(figure.title for figure, _ in judged.more)]


def effect(v: Verdict) -> str:
    """The effect with its interval; a dash where there is none."""
    if not math.isfinite(v.effect.value):
        return "–"
    return words.effect(v.effect.value, v.interval)


def share(v: Verdict) -> str:
    """The effect as a share of the opening gap; a dash where it was not asked, `undefined` where it has no meaning."""
    if v.share is None:
        return "–"
    if not math.isfinite(v.share.value):
        return "undefined"
    ends = (words.number(100 * x, 0) + "%" if math.isfinite(x) else "unbounded" for x in v.share_interval)
    return f"{words.number(100 * v.share.value, 0)}% ({' to '.join(ends)})"


def cells(v: Verdict) -> tuple[str, ...]:
    """A verdict as the cells of a table."""
    return (v.name, v.claim or "–", v.outcome, effect(v), p_value(v), share(v), v.reason)


def p_value(v: Verdict) -> str:
    """The adjusted p-value and the family it was adjusted in; a dash where the rule has no test."""
    if not math.isfinite(v.p_adjusted):
        return "–"
    size = f"{v.p_adjusted:.3f}" if v.p_adjusted >= 0.001 else "below 0.001"
    return f"{size} ({'primary' if v.primary else 'exploratory'})"


def say_lacking(judged: Judged, seeds: int) -> str:
    """Which runs are missing and the command that makes them; "" if none are."""
    if not judged.missing:
        return ""
    return f"Not run: {', '.join(judged.missing)}. To make them: {judged.hypothesis.command(seeds)}"


def say_untested(analysis: Analysis) -> list[str]:
    """One line for each hypothesis that these records say nothing of: the runs they lack and the command."""
    seeds, there = len(analysis.seeds), set(analysis.records["arm"].unique())
    return [
        f"{h.name}: {h.question} Not run: {', '.join(a for a in h.arms if a not in there) or 'its arms'}. "
        f"To test it: {h.command(seeds)}"
        for h in analysis.untested
    ]


def describe_section(judged: Judged, seeds: int) -> dict[str, Any]:
    """What the page's template needs of one hypothesis."""
    h = judged.hypothesis
    return {
        "name": h.name,
        "question": h.question,
        "claim": h.claim,
        "rows": [cells(v) for v in judged.verdicts],
        "rules": [(v.name, v.rule) for v in judged.verdicts],
        "lacking": say_lacking(judged, seeds),
        "outcomes": list(dict.fromkeys(v.outcome for v in judged.verdicts)),
    }


def list_untested_claims(analysis: Analysis) -> list[tuple[str, str, str]]:
    """The paper's assertions that no verdict here is about: name, claim, and the command that makes the runs."""
    known = {v.name for v in analysis.verdicts}
    hypotheses = [*analysis.untested, *(j.hypothesis for j in analysis.judged)]
    seeds = len(analysis.seeds)
    rows = [(r.name, r.claim, h.command(seeds)) for h in hypotheses for r in h.rules if r.name not in known]
    return sorted((row for row in rows if assertion(row[0]) < LAST), key=lambda row: assertion(row[0]))


def list_claims(analysis: Analysis) -> list[tuple[str, ...]]:
    """The paper's assertions as rows of a table: each with what was found, or the command that would find it."""
    found = [
        (v.name, v.claim, v.outcome, effect(v), p_value(v), v.reason)
        for v in analysis.verdicts
        if assertion(v.name) < LAST
    ]
    rest = [(name, claim, "not tested", "–", "–", run) for name, claim, run in list_untested_claims(analysis)]
    return [*found, *rest]
