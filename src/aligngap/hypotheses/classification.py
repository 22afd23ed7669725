"""H3, classification: does who classifies better also generate better?

arXiv 2405.08448, section 5.3: on held-out D_golden at every checkpoint (Figures 7, 8), and along the online run's own
pairs (Figure 6, self-classification), which needs a study whose `probe` is not 0. Their figures stand below the
rules.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from aligngap.hypotheses.base import COMMON, Dial, Figure, Hypothesis, Point
from aligngap.hypotheses.rules import AT_BUDGETS, Rule, say_differences
from aligngap.hypotheses.verdicts import (
    CONTRADICTED,
    INCONCLUSIVE,
    SUPPORTED,
    Ends,
    alike,
    arms_difference,
    decide,
    decide_anywhere,
    one_seed,
    over_seeds,
    p_value,
)
from aligngap.hypotheses.view import View
from aligngap.stats.budgets import read_all
from aligngap.stats.estimate import NAN, FloatArray, interval
from aligngap.types import Estimate, Verdict

#: a rank correlation below this explains less than a tenth of the variance: "almost none"
WEAK = 0.3
#: five points: the paper calls 45 to 55% chance (64 pairs a checkpoint, 95% half-width 12 points)
CHANCE = 0.05
NO_PROBE = (
    "The classifiers were not held along the online run (`probe` is 0); to do so: --set probe=1024, or aligngap run "
    "classification."
)
RULE_R6 = (
    "Accuracy against the golden model on the online run's own pairs, mean over its checkpoints. Supported if the 95% "
    "two-level intervals of the proxy minus the final online and minus the final offline policy lie above 0; "
    "contradicted if either lies below 0; else inconclusive."
)
RULE_DECAY = (
    "The same of the proxy, first checkpoint minus last. Supported if the 95% two-level interval lies above 0; "
    "contradicted if below 0; else inconclusive."
)
RULE_R13 = (
    "The same of the online policy at each checkpoint on the pairs it writes there. Supported if the 95% two-level "
    f"interval lies within {CHANCE} of one half; contradicted if it lies wholly outside; else inconclusive."
)
RULE_PROXY = (
    "Accuracy on held-out D_golden: the proxy's minus that of the offline policy at each run's last checkpoint (mean "
    "over its runs). Supported if the 95% two-level interval lies above 0; contradicted if below 0; else inconclusive."
)
RULE_H3 = (
    f"Online - offline in win rate and in accuracy on held-out D_golden, each {AT_BUDGETS}. Supported if both are sure "
    "and on the same side of 0 (the better classifier generates better); contradicted if on opposite sides; else "
    "inconclusive."
)
#: configurations at one KL below which they are not ranked
LEAST = 4
RULE_R9 = (
    "Rank correlation of accuracy and win rate over offline's configurations at a KL budget that at least "
    f"{LEAST} of them reached, mean over such budgets, per seed. Supported (no positive correlation) if its 95% t "
    f"interval lies below {WEAK}; contradicted if above {WEAK}; else inconclusive."
)


def proxy_first(view: View, rule: Rule) -> Verdict:
    """R6: the proxy's accuracy on held-out pairs minus that of the offline policy at its end."""
    known, pairs = view.part("proxy judge", "held out accuracy"), view.part("proxy judge", "held out pairs")
    judge = {s: (p, float(np.sqrt(p * (1 - p) / pairs[s]))) for s, p in known.items() if pairs.get(s)}
    policy = view.last("offline", "accuracy")
    found = arms_difference(judge, policy)
    if found is None:
        return rule.leave_undefined("The proxy's accuracy is not in the provenance of these records.")
    a, b = (float(np.mean([v for v, _ in e.values()])) for e in (judge, policy))
    bounds = found.interval()
    effect = found.estimate("proxy - offline policy, accuracy, as independent samples of pairs")
    reason = f"The proxy classifies {a:.3f} of held-out D_golden, the offline policy {b:.3f}."
    return rule.found(decide(bounds), effect, bounds, reason + one_seed(found.n), p=p_value(found))


def explains(view: View, rule: Rule) -> Verdict:
    """H3: whether who classifies better is also ahead in win rate."""
    weights = {"online": 1.0, "offline": -1.0}
    wins, accuracy = view.contrast(weights), view.contrast(weights, "accuracy")
    if not (wins.defined and accuracy.defined):
        return rule.leave_undefined(wins.why or accuracy.why)
    sides = [{SUPPORTED: 1, CONTRADICTED: -1}.get(decide_anywhere(c.found)[0], 0) for c in (wins, accuracy)]
    product = sides[0] * sides[1]
    outcome = SUPPORTED if product > 0 else CONTRADICTED if product < 0 else INCONCLUSIVE
    said = (
        say_differences("Online − offline in win rate", wins.found),
        say_differences("In accuracy it", accuracy.found),
    )
    p = max(wins.found.p, accuracy.found.p)
    return rule.found(outcome, accuracy.effect, accuracy.interval, " ".join(said) + one_seed(len(wins.seeds)), p=p)


def ranks_correlate(x: FloatArray, y: FloatArray) -> float:
    """Spearman's correlation of x [C] with y [C]; nan where either does not vary."""
    a, b = (pd.Series(v).rank().to_numpy(np.float64) for v in (x, y))
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt((a**2).sum() * (b**2).sum()))
    return float((a * b).sum()) / size if size > 0 else NAN


def correlation(view: View, rule: Rule) -> Verdict:
    """Over offline's configurations at one KL, then over budgets and seeds: KL itself raises both, so it is held."""
    places = np.log(np.asarray(view.budgets))
    wins, accuracy = (read_all(view.clouds(c), ("offline",), places)["offline"] for c in ("win", "accuracy"))
    by_seed = []
    for seed in (s for s in view.seeds if s in wins and s in accuracy):
        shared = [c for c in wins[seed] if c in accuracy[seed]]
        both = np.array([[accuracy[seed][c].value, wins[seed][c].value] for c in shared]).reshape(-1, 2, len(places))
        known = np.isfinite(both).all(axis=1)
        each = [ranks_correlate(*both[known[:, k], :, k].T) for k in range(len(places)) if known[:, k].sum() >= LEAST]
        if np.isfinite(each).any():
            by_seed.append(float(np.nanmean(each)))
    if not by_seed:
        return rule.leave_undefined(
            f"At no KL budget did {LEAST} configurations of offline have an accuracy and a win rate."
        )
    found = Estimate.mean(by_seed, "rank correlation over configurations at equal KL, mean over budgets and seeds")
    low, high = interval(found)
    outcome = decide((WEAK - high, WEAK - low))
    reason = f"Over offline's configurations at equal KL accuracy and win rate correlate by {found.value:+.2f}."
    return rule.found(outcome, found, (low, high), reason + one_seed(found.n))


def along_run(view: View, who: str, arm: str | None = None) -> Ends:
    """Per seed a classifier's accuracy over the run: mean over the steps, as independent pairs."""
    return {
        seed: (float(np.mean([p for p, _ in at.values()])), float(np.sqrt(sum(e**2 for _, e in at.values())) / len(at)))
        for seed, at in positions(view, who, arm).items()
    }


def along(view: View, rule: Rule) -> Verdict:
    """Along the online run, the proxy's accuracy minus each finished policy's."""
    proxy = along_run(view, "proxy")
    found = {arm: arms_difference(proxy, along_run(view, "final", arm)) for arm in COMMON}
    both = [f for f in found.values() if f is not None]
    if len(both) < len(COMMON):
        return rule.leave_undefined(NO_PROBE)
    outcomes = [decide(f.interval()) for f in both]
    outcome = CONTRADICTED if CONTRADICTED in outcomes else SUPPORTED if set(outcomes) == {SUPPORTED} else INCONCLUSIVE
    reason = ", ".join(f"the proxy is {f.value[0]:+.3f} above {arm}" for arm, f in zip(found, both, strict=True))
    least = min(both, key=lambda f: float(f.value[0]))
    effect = least.estimate("proxy minus the better policy, accuracy along the online run")
    p = max(p_value(f) for f in both)
    return rule.found(outcome, effect, least.interval(), f"Along the run {reason}.{one_seed(least.n)}", p=p)


def decay(view: View, rule: Rule) -> Verdict:
    """How much of its accuracy the proxy loses from the run's first checkpoint to its last."""
    at = positions(view, "proxy")
    if not at:
        return rule.leave_undefined(NO_PROBE)
    found = arms_difference({s: p[min(p)] for s, p in at.items()}, {s: p[max(p)] for s, p in at.items()})
    assert found is not None
    reason = f"From the first checkpoint to the last the proxy loses {found.value[0]:+.3f} of accuracy."
    effect = found.estimate("proxy's accuracy at the first checkpoint minus the last")
    outcome = decide(found.interval())
    return rule.found(outcome, effect, found.interval(), reason + one_seed(found.n), p=p_value(found))


def itself(view: View, rule: Rule) -> Verdict:
    """R13: how well the online policy classifies the pairs that it writes."""
    ends = along_run(view, "writer")
    if not ends:
        return rule.leave_undefined(NO_PROBE)
    found = over_seeds(ends)
    low, high = found.interval()
    reason = f"On its own pairs the online policy classifies {found.value[0]:.3f}."
    outcome = alike((low - 0.5, high - 0.5), CHANCE)
    return rule.found(outcome, found.estimate("accuracy along the run"), (low, high), reason + one_seed(found.n))


#: the arms of the paper's figures
ARMS = (*COMMON, "shuffled")
#: points of one curve, and of one arm in a cloud; with more checkpoints, every so many
MOST, MOST_IN_CLOUD = 60, 600


def positions(view: View, who: str, arm: str | None = None) -> dict[int, dict[int, tuple[float, float]]]:
    """Per seed, per step of the online run: a classifier's accuracy on its own pairs near there, and standard error."""
    rows = view.probe[view.probe["classifier"] == who]
    rows = rows[rows["accuracy"].notna() & (rows["recording"] == "online")]
    out: dict[int, dict[int, tuple[float, float]]] = {}
    for row in rows.to_dict("records"):
        if arm is None or row["arm"] == arm:
            out.setdefault(int(row["seed"]), {})[int(row["step"])] = float(row["accuracy"]), float(row["accuracy_se"])
    return out


def cloud(view: View) -> Dial | None:
    """Figure 7: win rate against accuracy, a point a checkpoint."""
    series = {}
    for arm in ("online", "offline", "shuffled"):
        mine = (view.records["arm"] == arm) & (view.records["step"] > 0)
        rows = view.records[["step", "accuracy", "win_rate"]][mine]
        rows = rows.dropna(subset=["accuracy", "win_rate"])
        rows = rows.iloc[:: -(-len(rows) // MOST_IN_CLOUD) or 1]
        points = [
            Point(float(r["accuracy"]), float(r["win_rate"]), float("nan"), float("nan"), f"step {r['step']}")
            for r in rows.to_dict("records")
        ]
        if points:
            series[arm] = tuple(points)
    return Dial("accuracy on held-out D_golden", "win rate", series, joined=False) if series else None


def curve(at: Mapping[int, Ends]) -> tuple[Point, ...]:
    """A point a step, from values per step and seed: mean over seeds, 95% two-level interval."""
    steps = sorted(at)
    points = []
    for step in steps[:: max(len(steps) // MOST, 1)]:
        found = over_seeds(at[step])
        points.append(Point(float(step), float(found.value[0]), *found.interval(), f"step {step}"))
    return tuple(points)


def by_step(found: Mapping[int, Mapping[int, tuple[float, float]]]) -> dict[int, Ends]:
    """What is known per seed and step, per step and seed."""
    out: dict[int, Ends] = {}
    for seed, at in found.items():
        for step, value in at.items():
            out.setdefault(step, {})[seed] = value
    return out


def along_stream(view: View) -> Dial | None:
    """Figure 6: accuracy against the golden model on the pairs that the online run wrote near each checkpoint."""
    who = {
        "proxy": positions(view, "proxy"),
        **{arm: positions(view, "final", arm) for arm in COMMON},
        "the run's policy at that step": positions(view, "writer"),
    }
    series = {name: curve(by_step(found)) for name, found in who.items() if found}
    x = "step of the online run whose pairs the proxy and the finished policies classify"
    return Dial(x, "accuracy against the golden judge", series, log_x=True, reference=0.5) if series else None


def over_training(view: View, column: str, y: str) -> Dial | None:
    """Figure 8: a quantity on held-out D_golden over training, the shuffled arm beside the two compared.

    Only where that arm was run: the others are in the report's own figure of training.
    """
    if not view.has(*ARMS):
        return None
    series = {}
    for arm in ARMS:
        rows = view.records[["seed", "step", column, f"{column}_se"]]
        rows = rows[(view.records["arm"] == arm) & (view.records["step"] > 0) & rows[column].notna()]
        at: dict[int, Ends] = {}
        for row in rows.groupby(["step", "seed"]).mean().reset_index().to_dict("records"):
            value = float(row[column]), float(row[f"{column}_se"])
            at.setdefault(int(row["step"]), {})[int(row["seed"])] = value
        if at:
            series[arm] = curve(at)
    return Dial("optimiser steps, mean over an arm's runs", y, series, log_x=True) if series else None


CURVES = (
    Figure("along-online", "Classifiers along the online run's own pairs (Fig. 6)", along_stream),
    Figure(
        "accuracy",
        "Accuracy on held-out D_golden over training (Fig. 8, top)",
        lambda view: over_training(view, "accuracy", "accuracy on held-out D_golden"),
    ),
    Figure(
        "winners",
        "Log-ratio of D_golden's winners over training (Fig. 8, bottom)",
        lambda view: over_training(view, "chosen_log_ratio", "log-ratio of winners, nats"),
    ),
)


CLASSIFICATION = Hypothesis(
    name="classification",
    question="Is who classifies better also who generates better? Does accuracy explain the gap?",
    claim="The proxy classifies best, but accuracy does not explain the gap: offline classifies better, online wins.",
    study="classification",
    rules=(
        Rule("H3 proxy", "The proxy is a better classifier than a policy of its size (section 5.3.1).", RULE_PROXY,
            ("offline",), proxy_first),
        Rule("H3", "Accuracy does not explain the gap: online has the worst accuracy and wins (Fig. 7).", RULE_H3,
            COMMON, explains),
        Rule("R6", "Along the online data the proxy classifies best (Fig. 6).", RULE_R6, COMMON, along),
        Rule("R6 decay", "And its accuracy falls along the run (Fig. 6).", RULE_DECAY, ("online",), decay),
        Rule("R13", "On pairs it writes itself a policy is at chance (5.3.3).", RULE_R13, ("online",), itself),
        Rule("R9", "Inside offline, accuracy and win rate hardly correlate (Fig. 7).", RULE_R9, ("offline",),
            correlation),
    ),
    dial=cloud,
    more=CURVES,
)  # fmt: skip
