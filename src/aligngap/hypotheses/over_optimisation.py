"""Over-optimisation: far from the SFT policy, does the judge go on approving what the true preference does not?

A judge that was learned from labels is wrong where it has seen none, and training finds these places (Gao et al. 2023,
arXiv 2210.10760). The paper looks at the win rate by its golden model alone. Where the truth is known it is asked here
of an arm that has gone far. Below `FAR` nats nothing is asked: the two differ little there.
"""

from __future__ import annotations

import numpy as np

from aligngap.hypotheses.base import Dial, Hypothesis, Point
from aligngap.hypotheses.opening import RULE_R1, rise_and_fall
from aligngap.hypotheses.rules import Rule
from aligngap.hypotheses.verdicts import Ends, arms_difference, decide, no_values, one_seed, p_value
from aligngap.hypotheses.view import View
from aligngap.stats.estimate import interval
from aligngap.types import Estimate, Verdict

FAR = 10.0  #: nats, the mean over seeds and runs at their ends
TRUTH = "oracle_win_rate"
BELOW = (
    "By the true preference: win rate of the SFT policy minus that of the arm at its last checkpoint, against the same "
    "opponent (95% two-level intervals over seeds). Supported if the interval lies above 0; contradicted if it lies "
    "below 0; else inconclusive."
)
CLAIM = "Not studied: one golden model labels and evaluates (section 4.1)."


def goes_far(view: View) -> bool:
    """Whether the true preference is known and one of the compared arms ended far from the SFT policy."""
    if not view.records[TRUTH].notna().any():
        return False
    ends = [view.last(arm, "kl_nats") for arm in (view.online, view.offline)]
    return any(np.mean([kl for kl, _ in end.values()]) > FAR for end in ends if end)


def start(view: View, arm: str) -> Ends:
    """Per seed the true win rate of the SFT policy, from which an arm starts, and its error."""
    rows = view.records[(view.records["arm"] == arm) & (view.records["step"] == 0)]
    grouped = rows[~rows["seed"].isin(view.spent)].groupby("seed")[[TRUTH, f"{TRUTH}_se"]].mean()
    return {int(str(seed)): (float(row[TRUTH]), float(row[f"{TRUTH}_se"])) for seed, row in grouped.iterrows()}


def below_sft(view: View, rule: Rule, arm: str) -> Verdict:
    """Whether an arm ends below where it began, by the true preference."""
    begun, ended = start(view, arm), view.last(arm, TRUTH)
    found = arms_difference(begun, ended)
    if found is None:
        return rule.leave_undefined(no_values("true win rate", {"the SFT policy": begun, arm: ended}))
    judge = np.mean([v for v, _ in view.last(arm, "win_rate").values()])
    first, last = (np.mean([v for v, _ in of.values()]) for of in (begun, ended))
    kl = np.exp(np.mean([np.log(v) for v, _ in view.last(arm, "kl_nats").values()]))
    reason = (
        f"At its end ({kl:.2g} nats) {arm} wins {judge:.3f} by the judge and {last:.3f} by the true preference, by "
        f"which the SFT policy wins {first:.3f}." + one_seed(found.n)
    )
    ends = found.interval()
    return rule.found(decide(ends), found.estimate(f"SFT policy - {arm}"), ends, reason, p=p_value(found))


def along(view: View) -> Dial | None:
    """Win rates by judge and truth at each step, against KL; means over seeds with pointwise 95% t intervals."""
    series: dict[str, tuple[Point, ...]] = {}
    for arm in (view.online, view.offline):
        rows = view.records[(view.records["arm"] == arm) & ~view.records["seed"].isin(view.spent)]
        rows = rows[rows["step"] > 0]
        for column, who in (("win_rate", "by the judge"), (TRUTH, "by the truth")):
            points = []
            for step, mine in rows.groupby("step"):
                each = mine.groupby("seed")[[column, "kl_nats"]].mean().dropna()
                if len(each):
                    mean = Estimate.mean(each[column].to_numpy(np.float64))
                    points.append(Point(float(each["kl_nats"].mean()), mean.value, *interval(mean), f"step {step}"))
            if points:
                series[f"{arm} {who}"] = tuple(sorted(points, key=lambda p: p.x))
    return Dial("KL from the SFT policy, nats", "win rate", series, log_x=True, reference=0.5) if series else None


def _rule(name: str, online: bool, score: str = "") -> Rule:
    def judge(view: View, rule: Rule) -> Verdict:
        arm = view.online if online else view.offline
        return rise_and_fall(view, rule, arm, score) if score else below_sft(view, rule, arm)

    text = f"By the true preference. {RULE_R1}" if score else BELOW
    return Rule(name, CLAIM, text, (), judge, TRUTH)


OVER_OPTIMISATION = Hypothesis(
    name="over-optimisation",
    question="Far from the SFT policy, does the judge go on approving what the true preference does not?",
    claim=CLAIM,
    study="hump",
    applies=goes_far,
    rules=(
        _rule("R1 online truth", True, "oracle_win"),
        _rule("R1 offline truth", False, "oracle_win"),
        _rule("online ends below SFT", True),
        _rule("offline ends below SFT", False),
    ),
    dial=along,
)
