"""H2, sub-optimal data: would better responses in the offline data fix offline training, and if not, why?

arXiv 2405.08448, section 5.2, Figure 5: both responses by the final online policy, labelled by the golden model. All
arms are compared at the learning rates they share, since the paper tunes only that on these data.

Two explanations are told apart. *Support* (the paper's conjecture): the final policy writes too little besides what it
prefers; then the same pairs help once their support is wider, by a mixture or a higher temperature. *Anchor* (App. H:
the minimiser is pi_ref exp(p / beta), so it lies near pi_ref, wherever the data lie): the pairs say little about
responses that the SFT policy writes; then they help once the policy that wrote them is start and reference.
"""

from __future__ import annotations

from aligngap.hypotheses.base import Hypothesis
from aligngap.hypotheses.rules import Rule, ahead, no_better, own, share
from aligngap.hypotheses.verdicts import decide, one_seed
from aligngap.hypotheses.view import View, under
from aligngap.types import Verdict

MOVED = "from-final"
ONLINE, OFFLINE, FINAL = (under(arm, MOVED) for arm in ("online", "offline", "final-vs-final"))
RULE_ANCHOR = (
    f"Win rate of the best checkpoint (cross-fitted) of {FINAL} minus that of online, whose last policy wrote the "
    "pairs, is the start and is the reference. Supported if the 95% two-level interval lies above 0 (the pairs improve "
    "their own writer: what they lack from the SFT policy is nearness); contradicted if it lies below 0; else "
    "inconclusive."
)


def improves(view: View, rule: Rule) -> Verdict:
    found = view.peak({FINAL: 1.0, "online": -1.0})
    if not found.defined:
        return rule.unknown(found.why)
    reason = f"From its writer on, the best checkpoint is {found.effect.value:+.3f} above online's best."
    return rule.found(decide(found.interval), found.effect, found.interval, reason + one_seed(len(found.seeds)))


QUALITY = Hypothesis(
    name="quality",
    question="Is offline behind because its responses are poor? Does data by the final online policy close the gap?",
    claim="Rejected: trained on pairs of the final online policy, offline stays near the SFT policy (Fig. 5).",
    study="quality",
    rules=(
        share("H2", ("final-vs-final", "offline"), "Better responses do not close the gap (Fig. 5).", matched=True),
        no_better("R5", "final-vs-final", "offline", "Final against final is no better than D_golden.", matched=True),
        ahead("support", "final-and-data", "final-vs-final", "The final policy lacks support (5.2; conjectured).",
              matched=True),
        ahead("support sft", "final-and-sft", "final-vs-final", matched=True),
        ahead("support hot", "final-hot", "final-vs-final", matched=True),
        own("anchor", "Offline training improves on the policy that wrote its data (App. H).", RULE_ANCHOR,
            (FINAL, "online"), improves),
        ahead("anchor data", FINAL, OFFLINE, matched=True),
        ahead("anchor gap", ONLINE, FINAL, matched=True),
    ),
    shows=("sft-vs-sft",),
)  # fmt: skip
