"""The opening hypothesis: is online alignment better than offline at equal KL, and do both over-optimise?

Tests assertions R1, R2, R7 and R8 of arXiv 2405.08448 (Figures 1, 7, 8) on records. Each rule is a string here, fixed
before any run, and printed with its verdict. Arms are compared at named KL budgets over the configurations that both
ran (`stats.budgets`): an average over log KL, or one configuration against the best of a sweep, is no estimand here.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from aligngap.hypotheses.base import Hypothesis
from aligngap.hypotheses.rules import AT_BUDGETS, BY, SIGN, Rule, judge_sign, say_differences
from aligngap.hypotheses.verdicts import (
    CENSORED,
    CONTRADICTED,
    INCONCLUSIVE,
    SUPPORTED,
    decide_anywhere,
    one_seed,
)
from aligngap.hypotheses.view import View
from aligngap.stats.axes import say_nats
from aligngap.stats.peaks import ending_of, peaks_of
from aligngap.stats.seedwise import mean_over_seeds
from aligngap.types import Estimate, Verdict

#: a fall smaller than this (two points of win rate) is no fall worth the name
NO_FALL = 0.02

RULE_R1 = (
    "Of the arm's configuration that moved farthest: fall = win rate of its best checkpoint (chosen on the other "
    "seeds) minus that of its last; rise = that of the last minus the same run's at half its KL (95% t intervals over "
    "seeds). Supported if the interval of the fall lies above 0. Else censored if the interval of the rise does "
    "not lie below 0.02 a doubling (the arm may have been stopped while rising, so its fall was not seen); "
    f"contradicted if it does and the fall's interval lies below {NO_FALL}; else inconclusive."
)
RULE_R2 = (
    f"Online - offline{{by}} {AT_BUDGETS}. {SIGN} With fewer than five seeds there is the estimate and no verdict."
)
RULE_R7 = f"Accuracy on held-out D_golden, offline - online, {AT_BUDGETS}. {SIGN}"
RULE_R8 = (
    f"Log-ratio of held-out D_golden winners, {AT_BUDGETS}. Supported if it lies below 0 in both arms at every budget "
    "and that of online - offline above 0 at some budget and below at none; contradicted if that of either arm lies "
    "above 0 at some budget, or that of online - offline below 0 at some and above at none; else inconclusive."
)

#: what the paper says, to stand beside what was found
CLAIMS: Mapping[str, str] = {
    "R1": "In both arms the win rate first rises and then falls as KL grows (Fig. 1).",
    "R2": "At equal KL online is generally higher, and its peak is higher, on all four tasks (Fig. 1).",
    "R7": "As a classifier of D_golden the offline policy reaches 60–70%, the online policy about 50% (Figs 7, 8).",
    "R8": "The log-probability of D_golden's winners falls in every arm, most for offline (Fig. 8).",
}


def rise_and_fall(view: View, rule: Rule, arm: str, score: str = "win") -> Verdict:
    """Whether the win rate of an arm has fallen from its best checkpoint, by a score."""
    found = ending_of(view.clouds(score), arm, view.spent)
    if isinstance(found, str):
        return rule.leave_undefined(found)
    fall, rise = mean_over_seeds(found.fall), mean_over_seeds(found.rise)
    interval, slope = fall.interval(), rise.interval()
    outcome = INCONCLUSIVE
    if interval[0] > 0:
        outcome = SUPPORTED
    elif not slope[1] < NO_FALL:
        outcome = CENSORED if np.isfinite(rise.value) else INCONCLUSIVE
    elif interval[1] < NO_FALL:
        outcome = CONTRADICTED
    config = f", {found.config}" if found.config else ""
    change = f"{rise.value:+.3f} ({slope[0]:+.3f} to {slope[1]:+.3f})"
    rose = (
        f"over the last doubling of its KL the win rate changed by {change}."
        if np.isfinite(rise.value)
        else "whether it still rose there is not known, for its first checkpoint lies above half of that KL."
    )
    text = (
        f"At its end ({np.exp(np.mean(np.log(found.kl))):.2g} nats{config}) {arm} is {abs(fall.value):.3f} "
        f"{'below' if fall.value >= 0 else 'above'} its best checkpoint{BY[score]}; {rose}"
    )
    if outcome == CENSORED:
        text += " It may have been stopped while rising: whether it falls later was not seen."
    effect = Estimate(fall.value, fall.se, fall.n, "best checkpoint, chosen on other seeds, minus the last")
    return rule.found(outcome, effect, interval, text + one_seed(fall.n), p=fall.p())


def _r2(view: View, rule: Rule, score: str) -> Verdict:
    weights = {view.online: 1.0, view.offline: -1.0}
    found = judge_sign(view, rule, view.contrast(weights, score), f"{view.online} − {view.offline}")
    best = peaks_of(view.clouds(score), tuple(weights), spent=view.spent)
    if isinstance(best, str) or not np.isfinite(found.effect.value):
        return found
    peak = mean_over_seeds(best[view.online].values.plus(best[view.offline].values, -1.0))
    low, high = peak.interval()
    said = f" Of the best checkpoints, chosen on other seeds: {peak.value:+.3f} ({low:+.3f} to {high:+.3f})."
    return rule.found(found.outcome, found.effect, found.interval, found.reason + said, p=found.p)


def _r7(view: View, rule: Rule) -> Verdict:
    found = view.contrast({view.offline: 1.0, view.online: -1.0}, "accuracy")
    return judge_sign(view, rule, found, f"Accuracy of {view.offline} − {view.online}")


def _r8(view: View, rule: Rule) -> Verdict:
    online, offline = view.online, view.offline
    column = "chosen_log_ratio"
    apart = view.contrast({online: 1.0, offline: -1.0}, column)
    if not apart.defined:
        return rule.leave_undefined(apart.why)
    each = {arm: view.contrast({arm: 1.0, other: 0.0}, column) for arm, other in ((online, offline), (offline, online))}
    rises = any(b.interval[0] > 0 for c in each.values() for b in c.found.judged)
    falls = all(b.interval[1] < 0 for c in each.values() for b in c.found.judged)
    order, at = decide_anywhere(apart.found)
    assert at is not None
    outcome = INCONCLUSIVE
    if rises or order == CONTRADICTED:
        outcome = CONTRADICTED
    elif falls and order == SUPPORTED:
        outcome = SUPPORTED
    means = ", ".join(f"{c.effect.value:+.1f} nats in {arm}" for arm, c in each.items())
    text = f"At {say_nats(apart.kl)} of KL the winners' log-ratio is {means}. "
    text += say_differences(f"{online} − {offline}", apart.found)
    return rule.found(outcome, at.mean, at.interval, text + one_seed(len(apart.seeds)), p=apart.found.p)


#: rules without arms: they are judged on the two arms that the study compares, whatever their names, and never raise
OPENING = Hypothesis(
    name="opening",
    question="At the same KL budget, is it better to align online than offline, and do both over-optimise?",
    claim="Both arms rise and fall with KL; at equal KL online is ahead, on every task (Fig. 1).",
    study="opening",
    rules=(
        Rule("R1 online", CLAIMS["R1"], RULE_R1, (), lambda v, r: rise_and_fall(v, r, v.online)),
        Rule("R1 offline", CLAIMS["R1"], RULE_R1, (), lambda v, r: rise_and_fall(v, r, v.offline)),
        Rule("R2", CLAIMS["R2"], RULE_R2.format(by=BY["win"]), (), lambda v, r: _r2(v, r, "win")),
        Rule(
            "R2 truth", CLAIMS["R2"], RULE_R2.format(by=BY["oracle_win"]), (), lambda v, r: _r2(v, r, "oracle_win"),
            column="oracle_win_rate",
        ),
        Rule("R7", CLAIMS["R7"], RULE_R7, (), _r7),
        Rule("R8", CLAIMS["R8"], RULE_R8, (), _r8),
    ),
)  # fmt: skip
