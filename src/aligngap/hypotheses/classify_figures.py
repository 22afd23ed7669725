"""The figures of the classification hypothesis: who classifies how well, against win rate and along training.

arXiv 2405.08448: Figure 6 (along the online run's own pairs), 7 (win rate against accuracy) and 8 (over training).
"""

from __future__ import annotations

from collections.abc import Mapping

from aligngap.hypotheses.base import COMMON, Dial, Figure, Point
from aligngap.hypotheses.verdicts import Ends, over_seeds
from aligngap.hypotheses.view import View

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
