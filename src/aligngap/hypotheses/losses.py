"""More losses on the same two streams: does the gap stay when the contrastive loss changes?

arXiv 2405.08448, App. B, expects what it finds for IPO to carry over to DPO and other convex losses and does not test
it; the losses are GPO's (arXiv 2402.05749) and chi-PO (arXiv 2407.13399). Beside them stand smoothed labels, RLOO on
the proxy's probabilities (arXiv 2402.14740), and HyPO (arXiv 2406.01462): offline with unlabelled samples of the policy
for a KL term, which tells "samples" from "labels".
"""

from __future__ import annotations

from aligngap.hypotheses.base import Dial, Hypothesis, Point
from aligngap.hypotheses.rules import ahead, share
from aligngap.hypotheses.view import View, under

VARIANTS = ("dpo", "ipo-target", "slic", "exponential", "truncated-quadratic", "savage", "chi-po", "smoothed")
CLAIM = "Expected to carry over to other contrastive losses; not tested (App. B)."
HYPO, RLOO, SOFT = "offline-hypo", under("online-soft", "rloo"), "online-soft"
#: what may close the gap, each against offline as opened
CLOSERS = (*(under("offline", v) for v in VARIANTS), HYPO, SOFT, RLOO)


def gaps(view: View) -> Dial | None:
    """The gap under each loss, the study's own first; and what each arm gains on offline as opened, at equal KL."""
    points: list[Point] = []
    for variant in ("", *VARIANTS, "best-of-two"):
        found = view.contrast({under("online", variant): 1.0, under("offline", variant): -1.0})
        if found.defined:
            name = variant or "as opened"
            points.append(Point(float(len(points)), found.effect.value, *found.interval, name))
    series = {"online − offline": tuple(points)} if points else {}
    gains: list[Point] = []
    for arm in CLOSERS:
        found = view.contrast({arm: 1.0, "offline": -1.0})
        if found.defined:
            gains.append(Point(float(len(points) + len(gains)), found.effect.value, *found.interval, arm))
    if gains:
        series["arm − offline as opened"] = tuple(gains)
    text = "difference of win rates at equal KL"
    return Dial("loss, or arm", text, series, joined=False, reference=0.0, named=True) if series else None


LOSSES = Hypothesis(
    name="losses",
    question="Is the gap a property of the loss? Does it stay under other contrastive losses?",
    claim="The losses trade off win rate and KL alike, so the gap should stay (App. B; not tested).",
    study="losses",
    rules=(
        *(ahead(f"gap {v}", under("online", v), under("offline", v), CLAIM) for v in VARIANTS),
        *(share(f"closed by {arm}", (arm, "offline")) for arm in CLOSERS),
    ),
    dial=gaps,
)
