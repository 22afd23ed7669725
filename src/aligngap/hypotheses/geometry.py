"""Geometry: does the gap depend on whether the reward's peak lies in the SFT policy's support, and can one tell before?

arXiv 2405.08448, section 7, leaves the question to Tajwar et al. 2024 (arXiv 2404.14367), who find that on-policy data
help most where the peak is unlikely under the reference. The sandbox moves the peak (`task.peak_in_support`). The
measure that any task has, real data too, is how far best-of-n of the SFT policy moves the golden win rate per nat.
Every world has its own golden policy as opponent, so a gap is one of win rates against equally trained opponents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy import special

from aligngap.hypotheses.base import Dial, Hypothesis, Point
from aligngap.hypotheses.rules import AT_BUDGETS, Rule, contrast, judge_sign
from aligngap.hypotheses.verdicts import (
    CONTRADICTED,
    SUPPORTED,
    arms_difference,
    decide,
    one_seed,
    over_seeds,
    p_value,
)
from aligngap.hypotheses.view import View, under
from aligngap.stats.ratio import slope_weights
from aligngap.stats.reference import gain_per_nat
from aligngap.types import Verdict

IN, OUT = "peak-in", "peak-out"
WORLDS = (IN, "", OUT)
ARMS = tuple(under(arm, world) for arm in ("online", "offline") for world in WORLDS)
GAIN = (
    "golden win rate that best-of-n of the SFT policy gains per nat over n = 1, at the largest n, against that policy"
)
RULE_KNOB = (
    f"The {GAIN}: {IN} minus {OUT}. Supported if the 95% two-level interval lies above 0; contradicted if below 0; "
    "else inconclusive."
)
RULE_PREDICTS = (
    f"Per seed the least-squares slope of online - offline over the {GAIN}; the slope {AT_BUDGETS}. Supported if an "
    "interval lies below 0 and none above (the less there is to gain near the SFT policy, the wider the gap); "
    "contradicted if the reverse; else inconclusive. The effect is given for ten "
    "points of win rate per nat. Undefined where the worlds' gains are not told apart (Cochran's Q over worlds, 5%): a "
    "slope over the noise of its own x-axis says nothing."
)
#: level of the test that the worlds differ in what best-of-n gains
DIFFER = 0.05


def knob(view: View, rule: Rule) -> Verdict:
    """What best-of-n gains per nat with the reward's peak inside what SFT writes, minus with it outside."""
    found = arms_difference(*(gain_per_nat(view.best_of_n, variant=w) for w in (IN, OUT)))
    if found is None:
        return rule.leave_undefined("Best-of-n was not made against the SFT policy in both worlds.")
    reason = (
        f"With the peak inside, best-of-n gains {found.value[0]:+.3f} more of win rate per nat than with it outside."
    )
    effect = found.estimate("difference of win rate gained per nat, worlds as independent")
    outcome = decide(found.interval())
    return rule.found(outcome, effect, found.interval(), reason + one_seed(found.n), p=p_value(found))


def predicts(view: View, rule: Rule) -> Verdict:
    """Whether a larger gain of best-of-n goes with a smaller gap, over the worlds."""
    gains = [gain_per_nat(view.best_of_n, variant=w) for w in WORLDS]
    seeds = [s for s in view.seeds if all(s in g for g in gains)]
    if not seeds:
        return rule.leave_undefined("No seed has best-of-n against the SFT policy in every world.")
    p = heterogeneity([[g[s] for g in gains] for s in seeds])
    if p > DIFFER:
        return rule.leave_undefined(
            f"Best-of-n gains alike in every world (p = {p:.2f}): nothing to predict the gap from."
        )
    by_seed = {s: 0.1 * slope_weights([g[s][0] for g in gains]) for s in seeds}
    weights = {
        under(arm, world): {s: sign * float(by_seed[s][i]) for s in seeds}
        for i, world in enumerate(WORLDS)
        for arm, sign in (("online", 1.0), ("offline", -1.0))
    }
    found = judge_sign(view, rule, view.contrast(weights), "What ten points more of win rate per nat go with")
    turned = {SUPPORTED: CONTRADICTED, CONTRADICTED: SUPPORTED}
    return replace(found, outcome=turned.get(found.outcome, found.outcome))


def heterogeneity(gains: Sequence[Sequence[tuple[float, float]]]) -> float:
    """The p-value of Cochran's Q (1954, Biometrics 10: 101-129): whether gains (value, standard error) agree."""
    q = 0.0
    for seed in gains:
        value, se = np.array(seed).T
        se = np.maximum(se, 1e-9)
        q += float((((value - np.average(value, weights=se**-2)) / se) ** 2).sum())
    return float(special.chdtrc(sum(len(seed) - 1 for seed in gains), q))


def gaps(view: View) -> Dial | None:
    """The gap of each world against what best-of-n gains there."""
    points = []
    for world in view.variants("online"):
        known = gain_per_nat(view.best_of_n, variant=world)
        found = view.contrast({under("online", world): 1.0, under("offline", world): -1.0})
        if known and found.defined:
            x = over_seeds(known)
            name = world or "as opened"
            points.append(Point(float(x.value[0]), found.effect.value, *found.interval, name, x.interval()))
    text = "golden win rate gained per nat by best-of-n of the SFT policy"
    series = {"online − offline": tuple(points)}
    return Dial(text, "online − offline at equal KL", series, joined=False, reference=0.0) if points else None


GEOMETRY = Hypothesis(
    name="geometry",
    question="Does the gap depend on whether the reward's peak lies in the SFT policy's support? Can one tell before?",
    claim="Not studied (section 7); on-policy data should help most where the peak is unlikely (arXiv 2404.14367).",
    study="geometry",
    rules=(
        Rule("geometry knob", "", RULE_KNOB, (f"online[{IN}]", f"online[{OUT}]"), knob),
        contrast(
            "geometry", {f"online[{OUT}]": 1.0, f"offline[{OUT}]": -1.0, f"online[{IN}]": -1.0, f"offline[{IN}]": 1.0},
            f"online - offline under {OUT} minus that under {IN}",
            "On-policy data help most where the reward's peak is unlikely (arXiv 2404.14367; not tested).",
        ),
        Rule("geometry predicts", "", RULE_PREDICTS, ARMS, predicts),
    ),
    dial=gaps,
)  # fmt: skip
