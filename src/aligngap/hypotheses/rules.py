"""Rules: how a question about arms is decided, declared in code before any run and printed with its verdict.

A rule names the arms it needs, says in words when it is supported, contradicted or inconclusive, and decides a `View`.
`ahead`, `alike`, `no_better` and `share` cover most questions; `own` takes a function. All intervals are 95%, over
seeds, then prompts. Leaves out: a correction for judging many rules at once; each verdict stands for itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from aligngap.hypotheses.verdicts import (
    CONTRADICTED,
    INCONCLUSIVE,
    SUPPORTED,
    decide,
    defined,
    minus,
    one_seed,
    undefined,
)
from aligngap.hypotheses.verdicts import (
    alike as inside,
)
from aligngap.hypotheses.view import Contrast, View
from aligngap.stats.estimate import NAN
from aligngap.types import Estimate, Verdict

#: two points of win rate: what two arms may differ by and still be called alike. The paper's own 95% half-width of one
#: win rate is 2.1 points (n = 2,048), so it could not have told less; `opening` calls a smaller fall no fall.
MARGIN = 0.02
#: an explanation that accounts for more than half of the gap is called its cause, for less than half it is not
HALF = 0.5

EQUAL_KL = "averaged over the log-KL range that these arms reached"
MATCHED = " Only hyper-parameters that these arms have in common are compared."


@dataclass(frozen=True)
class Rule:
    """One assertion: its name, the paper's claim, when it holds, the arms it needs, and the function that decides."""

    name: str
    claim: str
    text: str
    arms: tuple[str, ...]
    decide: Callable[[View, Rule], Verdict]

    def missing(self, view: View) -> tuple[str, ...]:
        return tuple(a for a in self.arms if not view.has(a))

    def judge(self, view: View) -> Verdict:
        """The verdict; where arms are missing it is undefined and says which."""
        absent = self.missing(view)
        if absent:
            return replace(undefined(self.name, self.text, f"Not run: {', '.join(absent)}."), claim=self.claim)
        return replace(self.decide(view, self), claim=self.claim)

    def found(
        self,
        outcome: str,
        effect: Estimate,
        interval: tuple[float, float],
        reason: str,
        share: tuple[Estimate, tuple[float, float]] | None = None,
    ) -> Verdict:
        """A verdict under this rule."""
        value, bounds = share or (None, (NAN, NAN))
        return Verdict(self.name, outcome, self.text, effect, interval, minus(reason), self.claim, value, bounds)

    def unknown(self, why: str) -> Verdict:
        return undefined(self.name, self.text, why)


def own(name: str, claim: str, text: str, arms: tuple[str, ...], decide: Callable[[View, Rule], Verdict]) -> Rule:
    """A rule with a decision of its own."""
    return Rule(name, claim, text, arms, decide)


def ahead(name: str, a: str, b: str, claim: str = "", *, matched: bool = False) -> Rule:
    """Is a ahead of b at equal KL?"""
    text = (
        f"Supported if the 95% two-level interval of {a} - {b} at equal KL, {EQUAL_KL}, lies above 0; contradicted if "
        f"it lies below 0; else inconclusive.{MATCHED if matched else ''}"
    )
    return _difference(name, a, b, claim, text, matched, decide)


def same(name: str, a: str, b: str, claim: str = "", *, matched: bool = False) -> Rule:
    """Are a and b alike at equal KL, to within two points of win rate?"""
    text = (
        f"Supported if the 95% two-level interval of {a} - {b} at equal KL, {EQUAL_KL}, lies within {MARGIN} of 0; "
        f"contradicted if it lies wholly outside; else inconclusive.{MATCHED if matched else ''}"
    )
    return _difference(name, a, b, claim, text, matched, lambda interval: inside(interval, MARGIN))


def no_better(name: str, a: str, b: str, claim: str = "", *, matched: bool = False) -> Rule:
    """Is a no better than b at equal KL, to within two points of win rate?"""
    text = (
        f"Contradicted if the 95% two-level interval of {a} - {b} at equal KL, {EQUAL_KL}, lies above 0; supported if "
        f"it lies below {MARGIN} and not above 0; else inconclusive.{MATCHED if matched else ''}"
    )

    def judged(interval: tuple[float, float]) -> str:
        if not defined(interval):
            return INCONCLUSIVE
        return CONTRADICTED if interval[0] > 0 else SUPPORTED if interval[1] < MARGIN else INCONCLUSIVE

    return _difference(name, a, b, claim, text, matched, judged)


def share(
    name: str,
    top: tuple[str, str],
    claim: str = "",
    *,
    of: tuple[str, str] | None = None,
    matched: bool = False,
    less: bool = False,
) -> Rule:
    """Is the difference of `top` more than half of the opening gap (of the gap `of`)? With `less`: less than half?"""
    a, b = top
    gap = of or ("online", "offline")
    sides = ("below", "above") if less else ("above", "below")
    text = (
        f"Share = ({a} - {b}) / ({gap[0]} - {gap[1]}), both at equal KL, {EQUAL_KL}. Supported if its 95% interval "
        f"(Fieller, two-level) lies {sides[0]} {HALF}; contradicted if it lies {sides[1]}; else inconclusive. If the "
        f"interval of {gap[0]} - {gap[1]} does not lie above 0, the share is undefined.{MATCHED if matched else ''}"
    )

    def judged(view: View, rule: Rule) -> Verdict:
        weights = {a: 1.0, b: -1.0}
        contrast = view.contrast(weights, matched=matched)
        if not contrast.defined:
            return rule.unknown(contrast.why)
        value, interval, why = view.share(weights, {gap[0]: 1.0, gap[1]: -1.0} if of else None, matched=matched)
        if why:
            reason = f"{words(a, b, contrast)} {why}"
            return rule.found(INCONCLUSIVE, contrast.effect, contrast.interval, reason, (value, interval))
        outcome = decide(interval, HALF, HALF)
        if less:
            outcome = {SUPPORTED: CONTRADICTED, CONTRADICTED: SUPPORTED}.get(outcome, outcome)
        reason = f"{words(a, b, contrast)} That is {value.value:.0%} of {gap[0]} − {gap[1]}."
        return rule.found(
            outcome, contrast.effect, contrast.interval, reason + one_seed(len(contrast.seeds)), (value, interval)
        )

    return Rule(name, claim, text, tuple(dict.fromkeys((a, b, *gap))), judged)


def contrast(
    name: str,
    weights: Mapping[str, float],
    what: str,
    claim: str = "",
    *,
    matched: bool = False,
) -> Rule:
    """Is a weighted sum of arms above 0 at equal KL?"""
    text = (
        f"{what[0].upper()}{what[1:]} at equal KL, {EQUAL_KL}. Supported if its 95% two-level interval lies above 0; "
        f"contradicted if it lies below 0; else inconclusive.{MATCHED if matched else ''}"
    )

    def judged(view: View, rule: Rule) -> Verdict:
        return from_contrast(view, rule, view.contrast(weights, matched=matched), weights, decide, what, matched)

    return Rule(name, claim, text, tuple(weights), judged)


def from_contrast(
    view: View,
    rule: Rule,
    found: Contrast,
    weights: Mapping[str, float],
    judged: Callable[[tuple[float, float]], str],
    what: str = "",
    matched: bool = False,
) -> Verdict:
    """A verdict on a contrast, with its share of the opening gap beside it."""
    if not found.defined:
        return rule.unknown(found.why)
    part, bounds, _ = view.share(weights, matched=matched)
    names = list(weights)
    text = (
        words(names[0], names[1], found)
        if not what
        else f"It is {found.effect.value:+.3f} over {found.kl[0]:.2g} to {found.kl[1]:.2g} nats."
    )
    reason = text + one_seed(len(found.seeds))
    return rule.found(judged(found.interval), found.effect, found.interval, reason, (part, bounds))


def words(a: str, b: str, found: Contrast) -> str:
    return f"{a} − {b} is {found.effect.value:+.3f} over {found.kl[0]:.2g} to {found.kl[1]:.2g} nats."


def _difference(
    name: str,
    a: str,
    b: str,
    claim: str,
    text: str,
    matched: bool,
    judged: Callable[[tuple[float, float]], str],
) -> Rule:
    weights = {a: 1.0, b: -1.0}

    def judge(view: View, rule: Rule) -> Verdict:
        found = view.contrast(weights, matched=matched)
        return from_contrast(view, rule, found, weights, judged, matched=matched)

    return Rule(name, claim, text, (a, b), judge)
