"""A hypothesis: one question, what the paper says, the rules that decide it, and the study whose runs it needs.

To add one, write a file with a `Hypothesis` made of rules and name it on the `hypotheses` shelf of `registry.py` (or
under the entry-point group `aligngap.hypotheses` of a package of your own). Nothing else knows how many there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from aligngap.hypotheses.rules import Rule
from aligngap.hypotheses.view import View
from aligngap.stats.estimate import NAN
from aligngap.types import Verdict

#: arms that every study has: on their own they do not make a hypothesis's records
COMMON = ("online", "offline")


@dataclass(frozen=True)
class Point:
    """One position of a dial: where it stands, the value there and its 95% interval.

    A place that is itself an estimate has its 95% interval in `x_interval`; nan where it has none.
    """

    x: float
    value: float
    lower: float
    upper: float
    label: str = ""
    x_interval: tuple[float, float] = (NAN, NAN)


@dataclass(frozen=True)
class Dial:
    """A quantity against a knob, the figure of hypotheses that turn one; a series a line (or a cloud of points)."""

    x: str
    y: str
    series: Mapping[str, tuple[Point, ...]]
    log_x: bool = False
    joined: bool = True
    reference: float | None = None  # a horizontal line
    diagonal: bool = False  # the line on which both are equal
    named: bool = False  # positions are names, the points' labels, and not numbers


@dataclass(frozen=True)
class Figure:
    """A further figure of a hypothesis: a dial, or arms whose frontiers are drawn; None where the records lack it."""

    name: str  # of its files, after the hypothesis's own
    title: str
    of: Callable[[View], Dial | tuple[str, ...] | None]


@dataclass(frozen=True)
class Hypothesis:
    """What is asked, and how it is decided. `study` is the packaged study that makes the runs."""

    name: str
    question: str
    claim: str
    study: str
    rules: tuple[Rule, ...]
    dial: Callable[[View], Dial | None] | None = None
    shows: tuple[str, ...] = ()  # arms that its figure shows beside those that its rules need
    more: tuple[Figure, ...] = ()
    leads: tuple[str, ...] = ()  # rules whose findings stand on the first screen of a report
    applies: Callable[[View], bool] | None = None  # whether records that have its arms say anything about it

    @property
    def arms(self) -> tuple[str, ...]:
        """Every arm that some rule needs."""
        return tuple(dict.fromkeys(a for rule in self.rules for a in rule.arms))

    def judge(self, view: View) -> list[Verdict]:
        """The verdict of every rule whose arms are there."""
        return [rule.judge(view) for rule in self.rules if not rule.missing(view) and rule.recorded(view)]

    def touched(self, view: View) -> bool:
        """Whether the records decide some rule about an arm of its own; where it has none, any rule."""
        if self.applies is not None and not self.applies(view):
            return False
        own = set(self.arms) - set(COMMON)
        return any(view.has(*rule.arms) and (not own or own & set(rule.arms)) for rule in self.rules)

    def command(self, seeds: int) -> str:
        """The command that makes its runs."""
        return f"aligngap run {self.study}" + (f" --set seeds={seeds}" if seeds > 1 else "")


@dataclass(frozen=True)
class Judged:
    """A hypothesis held against one study's records."""

    hypothesis: Hypothesis
    verdicts: tuple[Verdict, ...]
    arms: tuple[str, ...]  # those it needs or shows that are there, in the records' order
    missing: tuple[str, ...]
    dial: Dial | None
    more: tuple[tuple[Figure, Dial | tuple[str, ...]], ...] = ()  # the further figures that the records allow


def judge_all(hypotheses: Iterable[Hypothesis], view: View) -> tuple[tuple[Judged, ...], tuple[Hypothesis, ...]]:
    """Every hypothesis that the records touch with its verdicts; and those they do not touch."""
    judged, untested = [], []
    for hypothesis in hypotheses:
        if not hypothesis.touched(view):
            untested.append(hypothesis)
            continue
        missing = tuple(a for a in hypothesis.arms if not view.has(a))
        present = tuple(a for a in view.arms if a in (*hypothesis.arms, *hypothesis.shows))
        dial = hypothesis.dial(view) if hypothesis.dial else None
        drawn = [(figure, figure.of(view)) for figure in hypothesis.more]
        more = tuple((figure, of) for figure, of in drawn if of)
        judged.append(Judged(hypothesis, tuple(hypothesis.judge(view)), present, missing, dial, more))
    return tuple(judged), tuple(untested)
