"""H3's control: is it the pairwise form of the proxy that lets it classify the online run's pairs, and online win?

arXiv 2405.08448, section 5.3, names a point-wise reward model and a policy-parameterised ("local") one as the control
for its account of classification and does not run them. Here each learns the pairwise proxy's labels with its backbone
and its optimisation, is held as a classifier along the online run that the pairwise proxy taught, and teaches one.
"""

from __future__ import annotations

from collections.abc import Callable

from aligngap.hypotheses.base import Dial, Hypothesis, Point
from aligngap.hypotheses.classification import CHANCE, along_run
from aligngap.hypotheses.rules import Rule, same
from aligngap.hypotheses.verdicts import alike, arms_difference, one_seed, over_seeds
from aligngap.hypotheses.view import View, under
from aligngap.types import Verdict

#: variants of the study whose proxy gives each response one number
POINTWISE = {"Bradley-Terry": "proxy-bradley-terry", "local": "proxy-local"}
RULE = (
    "Accuracy against the golden model on the pairs of the pairwise proxy's online run, mean over its checkpoints: the "
    f"{{kind}} proxy's minus the pairwise one's. Supported if the 95% two-level interval lies within {CHANCE} of 0; "
    "contradicted if it lies wholly outside; else inconclusive."
)


def as_well(variant: str) -> Callable[[View, Rule], Verdict]:
    """A rule that holds a variant's proxy against the pairwise one along the online run."""

    def decided(view: View, rule: Rule) -> Verdict:
        found = arms_difference(along_run(view, "judge", variant), along_run(view, "proxy"))
        if found is None:
            return rule.leave_undefined("The proxies were not held along the online run: `probe` is 0.")
        reason = f"Along the online run it classifies {found.value[0]:+.3f} against the pairwise proxy."
        effect = found.estimate("accuracy along the online run, minus the pairwise proxy's")
        outcome = alike(found.interval(), CHANCE)
        return rule.found(outcome, effect, found.interval(), reason + one_seed(found.n))

    return decided


def accuracies(view: View) -> Dial | None:
    """Each form of proxy: accuracy on held-out D_golden and along the online run."""
    held: list[Point] = []
    along: list[Point] = []
    for place, (name, variant) in enumerate({"pairwise": "", **POINTWISE}.items()):
        known = view.part("proxy judge", "held out accuracy", variant)
        pairs = view.part("proxy judge", "held out pairs", variant)
        on = {s: (p, (p * (1 - p) / pairs[s]) ** 0.5) for s, p in known.items() if pairs.get(s)}
        off = along_run(view, "judge", variant) if variant else along_run(view, "proxy")
        for points, ends in ((held, on), (along, off)):
            if ends:
                found = over_seeds(ends)
                points.append(Point(float(place), float(found.value[0]), *found.interval(), name))
    series = {"on held-out D_golden": tuple(held), "along the online run": tuple(along)}
    return Dial("proxy", "accuracy against the golden model", series, joined=False, named=True) if held else None


POINTWISE_PROXY = Hypothesis(
    name="pointwise",
    question="Is it the proxy's pairwise form? Does a point-wise one classify the online data, and teach, as well?",
    claim="Named as a control, not run: a point-wise reward model, and a policy as reward model (section 5.3).",
    study="classification",
    rules=tuple(
        rule
        for kind, variant in POINTWISE.items()
        for rule in (
            Rule(f"{kind} accuracy", f"A {kind} proxy classifies the online run's pairs as well (5.3; not run).",
                RULE.format(kind=kind), ("online", under("online", variant)), as_well(variant)),
            same(f"{kind} frontier", under("online", variant), "online",
                 f"Online with a {kind} proxy reaches the same frontier (5.3; not run)."),
        )
    ),
    dial=accuracies,
)  # fmt: skip
