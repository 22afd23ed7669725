"""Staleness as one axis: how old may the pairs be before the frontier moves, and does only the speed change?

One figure joins the sync interval (semi-online: Lanchantin et al. 2025, arXiv 2506.21495), and the shuffle window of
arXiv 2405.08448, Figure 13. Noukhovitch et al. 2024 (arXiv 2410.18252) find one frontier for all and only the speed to
differ. Every arm here is one configuration, the recipe; arms are compared where both ran it.
"""

from __future__ import annotations

from aligngap.hypotheses.base import Dial, Hypothesis, Point
from aligngap.hypotheses.rules import Rule, ahead, own, same
from aligngap.hypotheses.verdicts import arms_difference, decide, no_values, one_seed
from aligngap.hypotheses.view import View
from aligngap.types import Verdict

#: semi-online at s = 10 equals online in arXiv 2506.21495; the nearest interval here
NEAR, FAR = "sync-16", "sync-500"
SPEED = (
    f"KL at the last step, at the recipe. Supported if the 95% two-level interval of online - {FAR} lies above 0 (stale"
    " pairs move the policy less far in as many steps); contradicted if it lies below 0; else inconclusive."
)


def differences(view: View) -> Dial | None:
    """Each arm minus online at equal KL, against how many batches old its pairs may be."""
    series: dict[str, tuple[Point, ...]] = {}
    for name, prefix in (("sync interval", "sync-"), ("shuffle window", "window-")):
        points = []
        for arm, batches in view.numbered(prefix).items():
            found = view.contrast({arm: 1.0, "online": -1.0}, matched=True)
            if found.defined:
                points.append(Point(float(batches), found.effect.value, *found.interval, arm))
        if points:
            series[name] = tuple(points)
    text = "difference to online at equal KL"
    return Dial("batches between syncs, or in a window", text, series, log_x=True, reference=0.0) if series else None


def slower(view: View, rule: Rule) -> Verdict:
    ends = {arm: view.last(arm, "kl_nats") for arm in ("online", FAR)}
    found = arms_difference(ends["online"], ends[FAR])
    if found is None:
        return rule.unknown(no_values("KL", ends))
    means = {arm: sum(v for v, _ in e.values()) / len(e) for arm, e in ends.items()}
    text = f"At the end online has moved {means['online']:.2f} nats and {FAR} {means[FAR]:.2f}."
    interval = found.interval()
    effect = found.estimate("online - stale KL at the end, nats")
    return rule.found(decide(interval), effect, interval, text + one_seed(found.n))


STALENESS = Hypothesis(
    name="staleness",
    question="How stale may the pairs be: does staleness move the frontier, or only the speed?",
    claim="Small windows of shuffling equal online; beyond some level the win rate at equal KL falls (Fig. 13).",
    study="staleness",
    rules=(
        ahead("frontier", "online", FAR, "Beyond some level the win rate at equal KL falls (Fig. 13).", matched=True),
        same("semi-online", NEAR, "online", "A little staleness costs nothing (Fig. 13).", matched=True),
        own("speed", "", SPEED, ("online", FAR), slower),
    ),
    dial=differences,
    shows=("sync-4", "sync-64", "window-2", "window-8", "window-32", "window-500"),
)
