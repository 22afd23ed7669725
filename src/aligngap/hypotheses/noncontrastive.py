"""H4, a contrastive loss: does the gap vanish when the loss only imitates the winner (Best-of-2)?

arXiv 2405.08448, section 5.4, Figure 9.
"""

from __future__ import annotations

from aligngap.hypotheses.base import Hypothesis
from aligngap.hypotheses.rules import ahead, same, share

BEST_OF_4 = "online-best-of-4[best-of-two]"
ONLINE, SHUFFLED, OFFLINE = (f"{arm}[best-of-two]" for arm in ("online", "shuffled", "offline"))

NONCONTRASTIVE = Hypothesis(
    name="noncontrastive",
    question="Is the contrastive loss the cause? Does the gap vanish under Best-of-2, which only imitates winners?",
    claim="Not the whole cause: the gap persists on two of three tasks; but coverage alone then closes it (Fig. 9).",
    study="noncontrastive",
    rules=(
        share("H4", (ONLINE, OFFLINE), "The gap under Best-of-2 persists (Fig. 9).", less=True),
        ahead("R10 gap", ONLINE, OFFLINE, "Under Best-of-2 online stays ahead of offline on two of three tasks."),
        same("R10 shuffled", SHUFFLED, ONLINE, "Under Best-of-2 shuffled online data equal online."),
        share("R10 coverage", (SHUFFLED, OFFLINE), "Coverage alone recovers online.", of=(ONLINE, OFFLINE)),
        ahead("Best-of-4", BEST_OF_4, ONLINE, "A larger n is not tested."),
        share("Best-of-4 gap", (BEST_OF_4, OFFLINE), "A larger n is not tested."),
    ),
    shows=("online-best-of-4",),
)
