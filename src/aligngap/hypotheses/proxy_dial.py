"""The proxy's dial: how good must the learned proxy be for online to be ahead?

arXiv 2405.08448, section 5.5, predicts that a larger proxy raises online's peak and widens the gap, and does not run
it. Here the proxy's labels and its size turn its accuracy; offline learns from the golden model and does not change.
"""

from __future__ import annotations

import numpy as np

from aligngap.hypotheses.base import Dial, Hypothesis, Point
from aligngap.hypotheses.rules import AT_BUDGETS, SIGN, Rule, ahead, judge_sign
from aligngap.hypotheses.view import View, under
from aligngap.stats.ratio import slope_weights
from aligngap.types import Verdict

WEAKEST = "labels-1000"
VARIANTS = ("labels-1000", "labels-4000", "labels-16000", "", "proxy-small", "proxy-large")
ARMS = tuple(under("online", v) for v in VARIANTS)
RULE = (
    "Per seed the least-squares slope of online's win rate over the proxy's accuracy on held-out D_golden, "
    f"{AT_BUDGETS}. {SIGN} The effect is given for ten points of accuracy."
)


def accuracy(view: View, variant: str) -> dict[int, float]:
    """Per seed the accuracy of a variant's proxy on held-out D_golden."""
    return view.part("proxy judge", "held out accuracy", variant)


def slope(view: View, rule: Rule) -> Verdict:
    """What ten points of the proxy's accuracy are worth to the online arm."""
    found = [accuracy(view, v) for v in VARIANTS]
    seeds = [s for s in view.seeds if all(s in a for a in found)]
    if not seeds:
        return rule.leave_undefined("The proxies' accuracies are not in the provenance of these records.")
    by_seed = {s: 0.1 * slope_weights([a[s] for a in found]) for s in seeds}
    weights = {arm: {s: float(by_seed[s][i]) for s in seeds} for i, arm in enumerate(ARMS)}
    return judge_sign(view, rule, view.contrast(weights), "What ten points of the proxy's accuracy are worth online")


def gaps(view: View) -> Dial | None:
    """The gap against the proxy's accuracy on its own distribution and on the policy's samples."""
    on, off = [], []
    for variant, arm in zip(VARIANTS, ARMS, strict=True):
        found = view.contrast({arm: 1.0, "offline": -1.0})
        known = list(accuracy(view, variant).values())
        if not found.defined or not known:
            continue
        rows = view.records[(view.records["arm"] == arm) & (view.records["step"] > 0)]
        agreement = rows.sort_values("step").drop_duplicates("run", keep="last")["proxy_agreement"]
        numbers = (found.effect.value, *found.interval)
        on.append(Point(float(np.mean(known)), *numbers, variant or "as opened"))
        off.append(Point(float(agreement.mean()), *numbers, variant or "as opened"))
    if not on:
        return None
    series = {
        "on held-out D_golden": tuple(sorted(on, key=lambda p: p.x)),
        "on the final policy's samples": tuple(sorted(off, key=lambda p: p.x)),
    }
    text = "how often the proxy agrees with the golden model"
    return Dial(text, "online − offline at equal KL", series, joined=False, reference=0.0)


PROXY_DIAL = Hypothesis(
    name="proxy-dial",
    question="How good must the proxy be? Does the gap grow with the proxy's accuracy, and turn round with a weak one?",
    claim="Predicted, not run: a better proxy raises online's peak and widens the gap (section 5.5).",
    study="proxy-dial",
    rules=(
        Rule("dial", "A better proxy widens the gap (section 5.5; not run).", RULE, ARMS, slope),
        ahead("weak proxy", "offline", under("online", WEAKEST)),
        ahead("larger proxy", under("online", "proxy-large"), "online", "A larger proxy raises online (section 5.5)."),
    ),
    dial=gaps,
)
