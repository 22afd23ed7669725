"""Staleness as one axis: how old may the pairs be before the frontier moves, and does only the speed change?

One figure joins the sync interval (semi-online: Lanchantin et al. 2025, arXiv 2506.21495), how often a batch is trained
on (sample reuse: Tajwar et al. 2024, arXiv 2404.14367), the shuffle window of arXiv 2405.08448, Figure 13, and the
share of the reference in who writes (IPO-MD: Calandriello et al. 2024, arXiv 2403.08635). Noukhovitch et al. 2024
(arXiv 2410.18252) find one frontier for all and only the speed to differ. Every arm here is one configuration, the
recipe; arms are compared where both ran it.
"""

from __future__ import annotations

from aligngap.hypotheses.base import Dial, Hypothesis, Point
from aligngap.hypotheses.rules import Rule, ahead, same
from aligngap.hypotheses.verdicts import arms_difference, decide, no_values, one_seed, p_value
from aligngap.hypotheses.view import View
from aligngap.types import Verdict

#: semi-online at s = 10 equals online in arXiv 2506.21495; the nearest interval here
NEAR, FAR = "sync-16", "sync-500"
REUSED, MIXED = ("reuse-4", "reuse-16"), ("mix-25", "mix-50")
REUSE = "Modest reuse is fine (arXiv 2404.14367, for PPO)."
MD = "IPO-MD and online IPO tie (arXiv 2403.08635: wins 0.515 ± 0.024 at m = 0.125)."
AXES = {"sync interval": "sync-", "times trained on": "reuse-", "shuffle window": "window-", "reference, %": "mix-"}


def speed_of(arm: str) -> str:
    """The text of the rule that compares an arm's KL at its end with online's."""
    return (
        "KL at the last step, at the configurations that both ran. Supported if the 95% two-level interval of "
        f"online - {arm} lies above 0 "
        "(its pairs move the policy less far in as many steps); contradicted if it lies below 0; else inconclusive."
    )


def differences(view: View) -> Dial | None:
    """Each arm minus online at equal KL, against how many batches old its pairs may be, or how far from the policy."""
    series: dict[str, tuple[Point, ...]] = {}
    for name, prefix in AXES.items():
        points = []
        for arm, batches in view.numbered(prefix).items():
            found = view.contrast({arm: 1.0, "online": -1.0})
            if found.defined:
                points.append(Point(float(batches), found.effect.value, *found.interval, arm))
        if points:
            series[name] = tuple(points)
    text = "difference to online at equal KL"
    x = "batches between syncs, or in a window; times trained on; % of the reference"
    return Dial(x, text, series, log_x=True, reference=0.0) if series else None


def slower(view: View, rule: Rule) -> Verdict:
    """Whether the rule's second arm has moved less far than its first when both end."""
    arm = rule.arms[1]
    ends = {"online": view.last("online", "kl_nats", arm), arm: view.last(arm, "kl_nats", "online")}
    found = arms_difference(ends["online"], ends[arm])
    if found is None:
        return rule.leave_undefined(no_values("KL", ends))
    means = {name: sum(v for v, _ in e.values()) / len(e) for name, e in ends.items()}
    text = f"At the end online has moved {means['online']:.2f} nats and {arm} {means[arm]:.2f}."
    interval = found.interval()
    effect = found.estimate("online - stale KL at the end, nats")
    return rule.found(decide(interval), effect, interval, text + one_seed(found.n), p=p_value(found))


STALENESS = Hypothesis(
    name="staleness",
    question="How stale may the pairs be: does staleness move the frontier, or only the speed?",
    claim="Small windows of shuffling equal online; beyond some level the win rate at equal KL falls (Fig. 13).",
    study="staleness",
    rules=(
        ahead("frontier", "online", FAR, "Beyond some level the win rate at equal KL falls (Fig. 13)."),
        same("semi-online", NEAR, "online", "A little staleness costs nothing (Fig. 13)."),
        Rule("speed", "", speed_of(FAR), ("online", FAR), slower),
        *(same(f"frontier {arm}", arm, "online", REUSE) for arm in REUSED),
        *(same(f"frontier {arm}", arm, "online", MD) for arm in MIXED),
        *(Rule(f"speed {arm}", "", speed_of(arm), ("online", arm), slower) for arm in (*REUSED, *MIXED)),
    ),
    dial=differences,
    shows=("sync-4", "sync-64", "window-2", "window-8", "window-32", "window-500"),
)
