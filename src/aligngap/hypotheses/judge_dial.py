"""The judge's dial: does online's lead fall as the evaluator nears the truth?

A learned golden judge labels the data, is asked by the online arm, and evaluates both. Online optimises what it says,
right or wrong, on responses of its own choice; offline optimises it on the data's. So a lead by the judge that taught
the arms may be one of its errors. Here judges of several strengths label, one judge in both arms of a pair, and every
judge and the true preference evaluate every arm.
"""

from __future__ import annotations

import numpy as np

from aligngap.hypotheses.base import Dial, Hypothesis, Point
from aligngap.hypotheses.rules import AT_BUDGETS, SIGN, Rule, ahead, judge_sign
from aligngap.hypotheses.view import Contrast, View, Weights, by_evaluator, under
from aligngap.stats.budgets import at_budgets
from aligngap.stats.clouds import column_clouds
from aligngap.stats.ratio import slope_weights
from aligngap.types import Verdict

WEAKEST, STRONGEST = "labels-1000", "golden"
SOURCES = {WEAKEST: WEAKEST, "labels-4000": "labels-4000", STRONGEST: ""}  # by evaluator: the variant of its arms
TRUTH = "oracle_win_rate"
ONLINE, OFFLINE = "online-golden", "offline"
ARMS = tuple(under(arm, variant) for variant in SOURCES.values() for arm in (ONLINE, OFFLINE))

EXCESS = (
    f"Mean over the golden judges that label of {ONLINE} - {OFFLINE} by that judge minus the same by the true "
    f"preference, {AT_BUDGETS}. {SIGN}"
)
STRANGER = (
    f"With the labels of {WEAKEST}, {ONLINE} - {OFFLINE} by the judge that labelled minus the same by the strongest "
    f"judge, {AT_BUDGETS}. {SIGN}"
)
SLOPE = (
    f"What ten points of the accuracy of the judge that labelled, on held-out true labels, take from {ONLINE} - "
    f"{OFFLINE} by that judge: minus the least-squares slope over the judges, per seed, {AT_BUDGETS}. {SIGN}"
)
NOT_CROSSED = "These runs were not evaluated by every judge (`crossed_judges`); to do so: aligngap run judge-dial."


def lead(variant: str, weight: float = 1.0) -> dict[str, float]:
    """The weights of online's lead among the arms of one label source."""
    return {under(ONLINE, variant): weight, under(OFFLINE, variant): -weight}


def between(view: View, weights: Weights, column: str, less: str) -> Contrast:
    """A contrast of one column of win rates less another, each checkpoint's own."""
    rows = view.records
    name = f"{column} less {less}"
    # The two are of the same responses, so the error of their difference is at most this.
    error = np.hypot(rows[f"{column}_se"], rows[f"{less}_se"])
    clouds = column_clouds(rows.assign(**{name: rows[column] - rows[less], f"{name}_se": error}), name)
    return Contrast(at_budgets(clouds, weights, view.budgets, spent=view.spent))


def excess(view: View, rule: Rule) -> Verdict:
    """How much more of a lead the judge that labelled sees than there is."""
    weights = {a: w for v in SOURCES.values() for a, w in lead(v, 1 / len(SOURCES)).items()}
    return judge_sign(
        view, rule, between(view, weights, "win_rate", TRUTH), "The lead by the judge less that by the truth"
    )


def stranger(view: View, rule: Rule) -> Verdict:
    """What is lost of the weakest judge's lead before a judge that did not teach it."""
    if WEAKEST not in view.evaluators or STRONGEST not in view.evaluators:
        return rule.leave_undefined(NOT_CROSSED)
    found = between(view, lead(SOURCES[WEAKEST]), by_evaluator(WEAKEST), by_evaluator(STRONGEST))
    return judge_sign(view, rule, found, "What the judge that labelled sees beyond the strongest judge")


def accuracy(view: View, evaluator: str) -> dict[int, float]:
    """Per seed how often a golden judge agrees with the true labels of held-out pairs."""
    return view.part("golden judge", "held out accuracy", SOURCES[evaluator])


def slope(view: View, rule: Rule) -> Verdict:
    """What ten points of the judge's accuracy take from online's lead by that judge."""
    known = [accuracy(view, e) for e in SOURCES]
    seeds = [s for s in view.seeds if all(s in a for a in known)]
    if not seeds:
        return rule.leave_undefined("The golden judges' accuracies are not in the provenance of these records.")
    by_seed = {s: -0.1 * slope_weights([a[s] for a in known]) for s in seeds}
    weights = {
        arm: {s: float(sign * by_seed[s][i]) for s in seeds}
        for i, variant in enumerate(SOURCES.values())
        for arm, sign in lead(variant).items()
    }
    return judge_sign(view, rule, view.contrast(weights), "What ten points of the judge's accuracy take from the lead")


def leads(view: View) -> Dial | None:
    """Online's lead against the accuracy of whoever evaluates, a line for each judge that labelled."""
    series: dict[str, tuple[Point, ...]] = {}
    for source, variant in SOURCES.items():
        points = []
        for evaluator in (*SOURCES, "true preference"):
            column = TRUTH if evaluator not in SOURCES else by_evaluator(evaluator)
            known = list(accuracy(view, evaluator).values()) if evaluator in SOURCES else [1.0]
            if column not in view.records or not known:
                continue
            found = view.contrast(lead(variant), column)
            if found.defined:
                points.append(Point(float(np.mean(known)), found.effect.value, *found.interval, evaluator))
        if points:
            series[f"labels of {source}"] = tuple(sorted(points, key=lambda p: p.x))
    if not series:
        return None
    text = "how often the evaluator agrees with the true preference"
    return Dial(text, f"{ONLINE} − {OFFLINE} at equal KL", series, reference=0.0)


JUDGE_DIAL = Hypothesis(
    name="judge-dial",
    question="Does online's lead fall, and turn, as the evaluator nears the truth?",
    claim="Not studied: one golden model labels and evaluates (section 4.1).",
    study="judge-dial",
    rules=(
        Rule("excess", "", EXCESS, ARMS, excess, TRUTH),
        Rule("stranger", "", STRANGER, ARMS, stranger),
        Rule("judge slope", "", SLOPE, ARMS, slope),
        ahead("truth labels", "online-oracle", "offline-oracle", score="oracle_win"),
    ),
    dial=leads,
)
