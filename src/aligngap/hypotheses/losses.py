"""More losses on the same two streams: does the gap stay when the contrastive loss changes?

arXiv 2405.08448, App. B, expects what it finds for IPO to carry over to DPO and other convex losses and does not test
it; the losses are GPO's (arXiv 2402.05749) and chi-PO (arXiv 2407.13399).
"""

from __future__ import annotations

from aligngap.hypotheses.base import Dial, Hypothesis, Point
from aligngap.hypotheses.rules import ahead
from aligngap.hypotheses.view import View, under

VARIANTS = ("dpo", "ipo-target", "slic", "exponential", "truncated-quadratic", "savage", "chi-po")
CLAIM = "Expected to carry over to other contrastive losses; not tested (App. B)."


def gaps(view: View) -> Dial | None:
    """The gap under each loss; the study's own loss first."""
    points: list[Point] = []
    for variant in ("", *VARIANTS, "best-of-two"):
        found = view.contrast({under("online", variant): 1.0, under("offline", variant): -1.0})
        if found.defined:
            name = variant or "as opened"
            points.append(Point(float(len(points)), found.effect.value, *found.interval, name))
    series = {"online − offline": tuple(points)}
    return (
        Dial("loss", "online − offline at equal KL", series, joined=False, reference=0.0, named=True)
        if points
        else None
    )


LOSSES = Hypothesis(
    name="losses",
    question="Is the gap a property of the loss? Does it stay under other contrastive losses?",
    claim="The losses trade off win rate and KL alike, so the gap should stay (App. B; not tested).",
    study="losses",
    rules=tuple(ahead(f"gap {v}", under("online", v), under("offline", v), CLAIM) for v in VARIANTS),
    dial=gaps,
)
