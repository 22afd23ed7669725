"""An example hypothesis from outside: no torch here, since reports are made without it."""

from __future__ import annotations

from aligngap.hypotheses.base import Hypothesis
from aligngap.hypotheses.rules import Rule, ahead
from aligngap.hypotheses.verdicts import decide
from aligngap.hypotheses.view import View
from aligngap.stats.estimate import interval
from aligngap.types import Estimate, Verdict

RULE = (
    "Response length at the last checkpoint, online minus offline, as independent seeds. Supported if the 95% t "
    "interval lies above 0; contradicted if below 0; else inconclusive."
)


def longer(view: View, rule: Rule) -> Verdict:
    """A rule's own decision: from the view to a verdict."""
    rows = view.records.sort_values("step").drop_duplicates("run", keep="last")
    means = rows.groupby(["arm", "seed"])["length_tokens"].mean().unstack("arm")
    found = Estimate.mean((means["online"] - means["offline"]).dropna(), "mean over seeds")
    bounds = interval(found)
    return rule.found(decide(bounds), found, bounds, f"Online's responses are {found.value:+.1f} tokens longer.")


LENGTH = Hypothesis(
    name="length",
    question="Does online win by writing more?",
    claim="Length was not measured.",
    study="opening",
    rules=(
        Rule("longer", "", RULE, ("online", "offline"), longer),
        ahead("gap", "online", "offline"),
    ),
)
