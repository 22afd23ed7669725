"""The opening hypothesis: is online alignment better than offline at equal KL, and do both over-optimise?

Tests assertions R1, R2, R7 and R8 of arXiv 2405.08448 (Figures 1, 7, 8) on records. Each rule is a string here, fixed
before any run, and printed with its verdict. Rules judge with 95% two-level intervals (seeds, then prompts or pairs).
Leaves out: a correction for judging four assertions at once; each verdict stands for itself.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from aligngap.hypotheses.base import Hypothesis
from aligngap.hypotheses.rules import own
from aligngap.hypotheses.verdicts import (
    CONTRADICTED,
    INCONCLUSIVE,
    SUPPORTED,
    arms_difference,
    decide,
    no_values,
    one_seed,
    over_seeds,
    undefined,
    verdict,
)
from aligngap.hypotheses.view import View
from aligngap.stats.axes import MIN_KL_NATS
from aligngap.stats.compare import Comparison, hump
from aligngap.stats.frontier import ArmCurves
from aligngap.types import Verdict

#: a fall smaller than this (two points of win rate) is no fall worth the name
NO_FALL = 0.02

RULE_R1 = (
    "Fall = win rate of the arm's best checkpoint (chosen on three quarters of the prompts, scored on the rest) minus "
    "that of its largest-KL checkpoint. Supported if the 95% two-level interval of the fall lies above 0; contradicted "
    f"if it lies below {NO_FALL}; else inconclusive. An arm that is best where its runs end, in every seed, is "
    "inconclusive: it was stopped before it could fall."
)
RULE_R2 = (
    "Supported if the 95% two-level interval of the difference online - offline, averaged over the common log-KL range "
    f"(from {MIN_KL_NATS} nats), lies above 0; contradicted if it lies below 0; else inconclusive."
)
RULE_R7 = (
    "Accuracy on held-out D_golden at each run's last checkpoint, mean over an arm's runs. Supported if the 95% "
    "two-level interval of offline - online lies above 0; contradicted if below 0; else inconclusive."
)
RULE_R8 = (
    "Log-ratio of held-out D_golden winners at each run's last checkpoint, mean over an arm's runs. Supported if the "
    "95% two-level intervals lie below 0 in both arms and that of online - offline above 0; contradicted if the "
    "interval of either arm lies above 0 or that of online - offline below 0; else inconclusive."
)

#: what the paper says, to stand beside what was found
CLAIMS: Mapping[str, str] = {
    "R1": "In both arms the win rate first rises and then falls as KL grows (Fig. 1).",
    "R2": "At equal KL online is generally higher, and its peak is higher, on all four tasks (Fig. 1).",
    "R7": "As a classifier of D_golden the offline policy reaches 60–70%, the online policy about 50% (Figs 7, 8).",
    "R8": "The log-probability of D_golden's winners falls in every arm, most for offline (Fig. 8).",
}


def judge_opening(
    records: pd.DataFrame,
    per_prompt: pd.DataFrame,
    online: str = "online",
    offline: str = "offline",
    opponent: str = "golden_policy",
) -> list[Verdict]:
    """Verdicts on R1 (each arm), R2, R7 and R8. Never raises for thin data: the reason says what is missing."""
    return OPENING.judge(View(records, per_prompt, opponent, online, offline))


def _r1(curve: ArmCurves | None, arm: str) -> Verdict:
    name = f"R1 {arm}"
    if curve is None:
        return undefined(name, RULE_R1, f"No usable checkpoint of {arm}.")
    largest = float(np.mean(curve.end_x))
    if np.allclose(curve.peak_x, curve.end_x):
        text = f"{arm} is best at its largest KL ({largest:.3g} nats): longer runs would show whether it falls."
        return undefined(name, RULE_R1, text + one_seed(len(curve.seeds)))
    effect, interval = hump(curve)
    top = float(np.exp(np.mean(np.log(curve.peak_x))))
    outcome = decide(interval, NO_FALL)
    text = (
        f"{arm} peaks near {top:.2g} nats; at its largest KL ({largest:.3g} nats) the win rate is "
        f"{abs(effect.value):.3f} {'below' if effect.value >= 0 else 'above'} that peak."
    )
    if outcome != SUPPORTED:
        text += " A fall beyond the KL that was reached is not excluded."
    return verdict(name, outcome, RULE_R1, effect, interval, text + one_seed(len(curve.seeds)))


def _r2(c: Comparison) -> Verdict:
    if not c.defined:
        return undefined("R2", RULE_R2, " ".join(c.warnings))
    text = (
        f"{c.a} − {c.b} is {c.average.value:+.3f} over {c.common[0]:.2g} to {c.common[1]:.2g} nats; of the "
        f"peaks {c.peak.value:+.3f} ({c.peak_interval[0]:+.3f} to {c.peak_interval[1]:+.3f})."
    )
    outcome = decide(c.average_interval)
    return verdict("R2", outcome, RULE_R2, c.average, c.average_interval, text + one_seed(len(c.seeds)))


def _r7(view: View) -> Verdict:
    online, offline = view.online, view.offline
    ends = {arm: view.last(arm, "accuracy") for arm in (online, offline)}
    found = arms_difference(ends[offline], ends[online])
    if found is None:
        return undefined("R7", RULE_R7, no_values("accuracy on held-out D_golden", ends))
    each = {arm: over_seeds(values) for arm, values in ends.items()}
    text = f"At the end {offline} classifies {each[offline].value[0]:.3f} and {online} {each[online].value[0]:.3f}."
    interval = found.interval()
    effect = found.estimate("offline - online accuracy at the end, arms as independent samples of pairs")
    return verdict("R7", decide(interval), RULE_R7, effect, interval, text + one_seed(found.n))


def _r8(view: View) -> Verdict:
    online, offline = view.online, view.offline
    ends = {arm: view.last(arm, "chosen_log_ratio") for arm in (online, offline)}
    found = arms_difference(ends[online], ends[offline])
    if found is None:
        return undefined("R8", RULE_R8, no_values("log-ratio of the winners", ends))
    each = {arm: over_seeds(values) for arm, values in ends.items()}
    rises = any(e.lower[0] > 0 for e in each.values())
    falls = all(e.upper[0] < 0 for e in each.values())
    interval = found.interval()
    order = decide(interval)
    outcome = INCONCLUSIVE
    if rises or order == CONTRADICTED:
        outcome = CONTRADICTED
    elif falls and order == SUPPORTED:
        outcome = SUPPORTED
    text = (
        f"At the end the winners' log-ratio is {each[online].value[0]:+.1f} nats in {online} and "
        f"{each[offline].value[0]:+.1f} in {offline}."
    )
    effect = found.estimate("online - offline log-ratio of winners at the end, nats")
    return verdict("R8", outcome, RULE_R8, effect, interval, text + one_seed(found.n))


#: rules without arms: they are judged on the two arms that the study compares, whatever their names, and never raise
OPENING = Hypothesis(
    name="opening",
    question="At the same KL budget, is it better to align online than offline, and do both over-optimise?",
    claim="Both arms rise and fall with KL; at equal KL online is ahead, on every task (Fig. 1).",
    study="opening",
    rules=(
        own("R1 online", CLAIMS["R1"], RULE_R1, (), lambda v, _: _r1(v.curves.get(v.online), v.online)),
        own("R1 offline", CLAIMS["R1"], RULE_R1, (), lambda v, _: _r1(v.curves.get(v.offline), v.offline)),
        own("R2", CLAIMS["R2"], RULE_R2, (), lambda v, _: _r2(v.compare(v.online, v.offline))),
        own("R7", CLAIMS["R7"], RULE_R7, (), lambda v, _: _r7(v)),
        own("R8", CLAIMS["R8"], RULE_R8, (), lambda v, _: _r8(v)),
    ),
)
