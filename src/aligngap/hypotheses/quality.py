"""H2, sub-optimal data: would better responses in the offline data fix offline training?

arXiv 2405.08448, section 5.2, Figure 5: both responses by the final online policy, labelled by the golden model. All
arms are compared at the learning rates they share, since the paper tunes only that on these data.
"""

from __future__ import annotations

from aligngap.hypotheses.base import Hypothesis
from aligngap.hypotheses.rules import ahead, no_better, share

QUALITY = Hypothesis(
    name="quality",
    question="Is offline behind because its responses are poor? Does data by the final online policy close the gap?",
    claim="Rejected: trained on pairs of the final online policy, offline stays near the SFT policy (Fig. 5).",
    study="quality",
    rules=(
        share("H2", ("final-vs-final", "offline"), "Better responses do not close the gap (Fig. 5).", matched=True),
        no_better("R5", "final-vs-final", "offline", "Final against final is no better than D_golden.", matched=True),
        ahead("support", "final-and-data", "final-vs-final", matched=True),
    ),
)
