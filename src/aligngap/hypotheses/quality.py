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
from aligngap.hypotheses.rules import Rule, ahead, no_better, share
from aligngap.hypotheses.verdicts import decide, one_seed
from aligngap.hypotheses.view import View, under
from aligngap.types import Estimate, Verdict

MOVED = "from-final"
ONLINE, OFFLINE, FINAL = (under(arm, MOVED) for arm in ("online", "offline", "final-vs-final"))
RULE_ANCHOR = (
    f"Win rate of each configuration's best checkpoint (chosen on the other seeds) of {FINAL} minus that of online, "
    "whose last policy wrote the pairs, is the start and is the reference. Supported if the 95% t interval lies above "
    "0 (the pairs improve their own writer: what they lack from the SFT policy is nearness); contradicted if it lies "
    "below 0; else inconclusive."
)


def improves(view: View, rule: Rule) -> Verdict:
    """The best checkpoint from the final online policy on, minus the best of the run that wrote the pairs."""
    found = view.peak({FINAL: 1.0, "online": -1.0})
    if isinstance(found, str):
        return rule.leave_undefined(found)
    mean, seeds = found
    reason = f"From its writer on, the best checkpoint is {mean.value:+.3f} above online's best."
    effect = Estimate(mean.value, mean.se, mean.n, "difference of best checkpoints, chosen on other seeds")
    return rule.found(decide(mean.interval()), effect, mean.interval(), reason + one_seed(len(seeds)), p=mean.p())


QUALITY = Hypothesis(
    name="quality",
    question="Is offline behind because its responses are poor? Does data by the final online policy close the gap?",
    claim="Rejected: trained on pairs of the final online policy, offline stays near the SFT policy (Fig. 5).",
    study="quality",
    rules=(
        share("H2", ("final-vs-final", "offline"), "Better responses do not close the gap (Fig. 5)."),
        no_better("R5", "final-vs-final", "offline", "Final against final is no better than D_golden."),
        ahead("support", "final-and-data", "final-vs-final", "The final policy lacks support (5.2; conjectured)."),
        ahead("support sft", "final-and-sft", "final-vs-final"),
        ahead("support hot", "final-hot", "final-vs-final"),
        Rule("anchor", "Offline training improves on the policy that wrote its data (App. H).", RULE_ANCHOR,
            (FINAL, "online"), improves),
        ahead("anchor data", FINAL, OFFLINE),
        ahead("anchor gap", ONLINE, FINAL),
    ),
    shows=("sft-vs-sft",),
)  # fmt: skip
