"""Rules: how a question about arms is decided, declared in code before any run and printed with its verdict.

A rule names the arms it needs, says in words when it is supported, contradicted or inconclusive, and decides a `View`.
`ahead`, `same`, `no_better`, `share` and `contrast` cover most; a `Rule` takes any function. Arms are compared
at named KL budgets over the configurations that all of them ran (`stats.budgets`), never on an average over KL.
Leaves out: a correction for judging many rules at once, which `families` makes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from aligngap.hypotheses.verdicts import (
    CONTRADICTED,
    INCONCLUSIVE,
    SUPPORTED,
    decide,
    decide_anywhere,
    guarded,
    minus,
    one_seed,
    p_equivalence,
    undefined,
)
from aligngap.hypotheses.view import NOTHING, Contrast, View, Weights
from aligngap.stats.axes import say_nats
from aligngap.stats.budgets import AtBudgets, Budget
from aligngap.stats.estimate import NAN
from aligngap.types import Estimate, Verdict

#: two points of win rate: what two arms may differ by and still be called alike. The paper's own 95% half-width of one
#: win rate is 2.1 points (n = 2,048), so it could not have told less; `opening` calls a smaller fall no fall.
MARGIN = 0.02
#: whether an explanation accounts for more or for less than half of the gap; shares need not sum to one, so that two
#: explanations may each account for more than half, and none is "the cause"
HALF = 0.5

AT_BUDGETS = (
    "at the KL budgets that every seed reached, over the configurations in which all these arms reached the budget in "
    "every seed (one fixed set a budget; t intervals over seeds, 95% for all budgets at once)"
)


@dataclass(frozen=True)
class Rule:
    """One assertion: its name, the paper's claim, when it holds, the arms it needs, and the function that decides."""

    name: str
    claim: str
    text: str
    arms: tuple[str, ...]
    decide: Callable[[View, Rule], Verdict]
    column: str = ""  # of the records, without which there is nothing to judge

    def recorded(self, view: View) -> bool:
        """Whether the records hold the column that it needs."""
        return not self.column or bool(view.records[self.column].notna().any())

    def missing(self, view: View) -> tuple[str, ...]:
        return tuple(a for a in self.arms if not view.has(a))

    def judge(self, view: View) -> Verdict:
        """The verdict; where arms are missing it is undefined and says which, with too few seeds there is none."""
        absent = self.missing(view)
        if absent:
            return replace(undefined(self.name, self.text, f"Not run: {', '.join(absent)}."), claim=self.claim)
        return guarded(replace(self.decide(view, self), claim=self.claim))

    def found(
        self,
        outcome: str,
        effect: Estimate,
        interval: tuple[float, float],
        reason: str,
        share: tuple[Estimate, tuple[float, float]] | None = None,
        p: float = NAN,
    ) -> Verdict:
        """A verdict under this rule."""
        value, bounds = share or (None, (NAN, NAN))
        return Verdict(self.name, outcome, self.text, effect, interval, minus(reason), self.claim, value, bounds, p)

    def leave_undefined(self, why: str) -> Verdict:
        return undefined(self.name, self.text, why)


def ahead(name: str, a: str, b: str, claim: str = "", *, score: str = "win") -> Rule:
    """The rule that asks whether arm a is ahead of arm b at equal KL."""
    text = f"{a} - {b}{BY[score]} {AT_BUDGETS}. {SIGN}"
    weights = {a: 1.0, b: -1.0}

    def judge(view: View, rule: Rule) -> Verdict:
        return judge_sign(view, rule, view.contrast(weights, score), f"{a} − {b}", weights if score == "win" else None)

    return Rule(name, claim, text, (a, b), judge, "" if score == "win" else "oracle_win_rate")


#: by whom a win is judged, in a rule's words
BY = {"win": "", "oracle_win": " by the true preference"}
SIGN = (
    "Supported if an interval lies above 0 and none below; contradicted if one lies below 0 and none above; else "
    "inconclusive."
)


def same(name: str, a: str, b: str, claim: str = "") -> Rule:
    """The rule that asks whether a and b are alike at equal KL, to within two points of win rate."""
    text = (
        f"{a} - {b} {AT_BUDGETS}. Supported if at every budget two one-sided tests at 5% put it within {MARGIN} of 0 "
        f"(the 90% interval lies inside); contradicted if an interval lies wholly outside; else inconclusive."
    )
    weights = {a: 1.0, b: -1.0}

    def judge(view: View, rule: Rule) -> Verdict:
        found = view.contrast(weights)
        if not found.defined:
            return rule.leave_undefined(found.why)
        judged = found.found.judged
        far = [x for x in judged if x.interval[0] > MARGIN or x.interval[1] < -MARGIN]
        near = all(x.equivalence[0] > -MARGIN and x.equivalence[1] < MARGIN for x in judged)
        outcome = CONTRADICTED if far else SUPPORTED if near else INCONCLUSIVE
        at = max(judged, key=lambda x: abs(x.mean.value))
        said = f" The 90% interval at {say_nats(at.kl)} is {at.equivalence[0]:+.3f} to {at.equivalence[1]:+.3f}."
        reason = say_differences(f"{a} − {b}", found.found) + said + one_seed(len(found.seeds))
        p = NAN if outcome == CONTRADICTED else p_equivalence(found.found, MARGIN)  # which tests the other direction
        return rule.found(outcome, at.mean, at.interval, reason, _share(view, weights), p)

    return Rule(name, claim, text, (a, b), judge)


def no_better(name: str, a: str, b: str, claim: str = "") -> Rule:
    """The rule that asks whether a is no better than b at equal KL, to within two points of win rate."""
    text = (
        f"{a} - {b} {AT_BUDGETS}. Contradicted if an interval lies above 0; supported if none does and a one-sided "
        f"test at 5% puts it below {MARGIN} at every budget; else inconclusive."
    )
    weights = {a: 1.0, b: -1.0}

    def judge(view: View, rule: Rule) -> Verdict:
        found = view.contrast(weights)
        if not found.defined:
            return rule.leave_undefined(found.why)
        judged = found.found.judged
        better = any(x.interval[0] > 0 for x in judged)
        below = all(x.equivalence[1] < MARGIN for x in judged)
        outcome = CONTRADICTED if better else SUPPORTED if below else INCONCLUSIVE
        at = max(judged, key=lambda x: x.mean.value)
        reason = say_differences(f"{a} − {b}", found.found) + one_seed(len(found.seeds))
        p = found.found.p if outcome == CONTRADICTED else NAN  # of no difference, which is not what was supported
        return rule.found(outcome, at.mean, at.interval, reason, _share(view, weights), p)

    return Rule(name, claim, text, (a, b), judge)


def share(
    name: str, top: tuple[str, str], claim: str = "", *, of: tuple[str, str] | None = None, less: bool = False
) -> Rule:
    """The rule that asks whether the difference of `top` is more than half of a gap (`of`; by default the opening one).

    With `less` it asks whether it is less than half.
    """
    a, b = top
    gap = of or ("online", "offline")
    sides = ("below", "above") if less else ("above", "below")
    text = (
        f"Share = ({a} - {b}) / ({gap[0]} - {gap[1]}), each over the configurations that its arms ran, at the largest "
        f"KL budget that every seed reached in both. Supported if its 95% interval (Fieller, t over seeds) lies "
        f"{sides[0]} {HALF}; contradicted if it lies {sides[1]}; else inconclusive. If the interval of {gap[0]} - "
        f"{gap[1]} does not lie above 0, the share is undefined."
    )

    def judged(view: View, rule: Rule) -> Verdict:
        weights = {a: 1.0, b: -1.0}
        contrast = view.contrast(weights)
        if not contrast.defined:
            return rule.leave_undefined(contrast.why)
        value, interval, why = view.share(weights, {gap[0]: 1.0, gap[1]: -1.0} if of else None)
        reason = say_differences(f"{a} − {b}", contrast.found)
        if why:
            return rule.found(INCONCLUSIVE, contrast.effect, contrast.interval, f"{reason} {why}", (value, interval))
        outcome = decide(interval, HALF, HALF)
        if less:
            outcome = {SUPPORTED: CONTRADICTED, CONTRADICTED: SUPPORTED}.get(outcome, outcome)
        reason += f" That is {value.value:.0%} of {gap[0]} − {gap[1]}."
        return rule.found(
            outcome, contrast.effect, contrast.interval, reason + one_seed(len(contrast.seeds)), (value, interval)
        )

    return Rule(name, claim, text, tuple(dict.fromkeys((a, b, *gap))), judged)


def contrast(name: str, weights: Mapping[str, float], what: str, claim: str = "") -> Rule:
    """The rule that asks whether a weighted sum of arms is above 0 at equal KL."""
    subject = what[0].upper() + what[1:]
    text = f"{subject}, {AT_BUDGETS}. {SIGN}"

    def judged(view: View, rule: Rule) -> Verdict:
        return judge_sign(view, rule, view.contrast(weights), subject, weights)

    return Rule(name, claim, text, tuple(weights), judged)


def judge_sign(view: View, rule: Rule, found: Contrast, what: str, weights: Weights | None = None) -> Verdict:
    """A verdict on the sign of a contrast, with its share of the opening gap beside it where `weights` ask for one."""
    if not found.defined:
        return rule.leave_undefined(found.why)
    outcome, at = decide_anywhere(found.found)
    assert at is not None
    reason = say_differences(what, found.found) + one_seed(len(found.seeds))
    return rule.found(outcome, at.mean, at.interval, reason, _share(view, weights), found.found.p)


def _share(view: View, weights: Weights | None) -> tuple[Estimate, tuple[float, float]]:
    if weights is None:
        return NOTHING, (NAN, NAN)
    value, interval, _ = view.share(weights)
    return value, interval


def say_differences(what: str, found: AtBudgets) -> str:
    """The differences at every budget as a sentence, and what was not reached."""
    judged = ", ".join(at(b) for b in found.judged)
    out = f"{what} is {judged}."
    for b in found.judged:
        if left_out := [f"{n} run{'s' * (n > 1)} of {arm}" for arm, n in b.short.items() if n]:
            who = " and ".join(left_out)
            out += f" At {say_nats(b.kl)} {who} ended below: their configurations are left out there."
    lost = [b for b in found.budgets if not b.judged]
    short = dict.fromkeys(f"{arm}'s runs" for b in lost for arm, n in b.short.items() if n)
    if lost:
        why = f": {' and '.join(short)} ended below." if short else "."
        out += f" Not judged at {say_nats(*(b.kl for b in lost))}{why}"
    return out


def at(b: Budget) -> str:
    """One budget's difference with its interval."""
    low, high = b.interval
    ends = f" ({low:+.3f} to {high:+.3f})" if np.isfinite(low) else ""
    return f"{b.mean.value:+.3f}{ends} at {say_nats(b.kl)}"
