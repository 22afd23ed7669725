"""Few golden labels: is online ahead where its judge knows more than the policy, and only there?

The offline arm learns from N golden labels, the judge that online asks from the same N. A judge that is as ignorant as
the policy has nothing to pass on. One that has judged sibling worlds before (a head start) needs fewer labels than the
policy, and online hands on what it knows; one that cannot hold the truth hands on its errors, the more so
the more labels offline has. Two packaged studies turn the dials: `epochs` (labels and head start), `few-labels` (labels
and the judge's size, all with the head start).

What is expected is computed before anything is trained, in the tabular capacity world: `sees` of a regime is the number
of features (of 8) that the judge of its tabular analogue sees, 0 for one that knows responses by their names, as the
policy does. Its sign is the prediction; its size is that of another world. A size for this world is forecast by each
regime's twin, online with all pairs written by the SFT policy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from aligngap.hypotheses.base import Dial, Figure, Hypothesis, Point
from aligngap.hypotheses.forecast import Cell, fit
from aligngap.hypotheses.rules import Rule, ahead, contrast, no_better
from aligngap.hypotheses.view import View, under
from aligngap.stats.axes import say_nats
from aligngap.stats.estimate import NAN
from aligngap.types import Verdict

LABELS = (250, 1000, 4000)
TWIN = "sft-twin"


@dataclass(frozen=True)
class Regime:
    """So many labels and one judge: its arms are `online`, `sft-twin` and `offline`, each under a variant."""

    judge: str  # in words: a line of the phase diagram
    labels: int
    variant: str  # of the online arm and its twin
    offline: str  # the variant that holds the offline arm of as many labels
    sees: int | None  # features that the judge of the tabular analogue sees; None: there is no analogue

    @property
    def arms(self) -> tuple[str, str, str]:
        """The online arm, its twin and the offline arm."""
        return under("online", self.variant), under(TWIN, self.variant), under("offline", self.offline)


def regimes(judges: Sequence[tuple[str, str, int | None]]) -> tuple[Regime, ...]:
    """Every number of labels with every judge: (words, variant, features seen by its analogue)."""
    return tuple(
        Regime(words, n, "-".join(x for x in (name, many) if x), many, sees)
        for words, name, sees in judges
        for n, many in zip(LABELS, ("", *(f"labels-{n}" for n in LABELS[1:])), strict=True)
    )


EPOCHS_REGIMES = regimes(
    (("no head start", "", 0), ("1,000 sibling comparisons", "some", None), ("16,000 sibling comparisons", "much", 8))
)
SIZE_REGIMES = regimes(
    (("judge of the policy's size", "", 8), ("small judge", "small", 4), ("large judge", "large", 8))
)

CALIBRATED = (
    "Over all regimes (labels and judge) that reach 1 nat, per seed the slope through 0 of the measured gap online - "
    "offline on the twin's, by the golden judge; t interval over seeds. Supported if it lies within 0.5 to 1.5; "
    "contradicted if wholly outside; else inconclusive."
)
APART = (
    "Over the differences between two judges at equal labels and 1 nat, per seed the slope through 0 of the measured "
    "one on the twins', by the golden judge; t interval over seeds. The offline arm falls out, so forecast and "
    "measurement share no run; the twins' own noise pulls the slope towards 0. Supported if it lies within 0.5 to 1.5; "
    "contradicted if wholly outside; else inconclusive."
)


def cells(view: View, every: Sequence[Regime], kl: float) -> list[Cell]:
    """Forecast and measured gap of every regime at a KL in nats, by seed."""
    out = []
    for regime in every:
        online, twin, offline = regime.arms
        if not view.has(online, twin, offline):
            continue
        both = [view.at(kl).contrast({arm: 1.0, offline: -1.0}).found.budgets for arm in (twin, online)]
        if all(both) and len({len(b[0].by_seed) for b in both}) == 1:
            said, found = (np.array(b[0].by_seed) for b in both)
            out.append(Cell(f"{regime.judge}, {regime.labels:,} labels", said, found))
    return out


def between(view: View, every: Sequence[Regime], kl: float) -> list[Cell]:
    """The differences between the gaps of two judges with as many labels, forecast and measured, by seed."""
    found = [(r, c) for r in every for c in cells(view, [r], kl)]
    return [
        Cell(f"{mine.name} - {other.name}", mine.forecast - other.forecast, mine.measured - other.measured)
        for (left, mine), (right, other) in combinations(found, 2)
        if left.labels == right.labels and mine.forecast.shape == other.forecast.shape
    ]


def calibrated(name: str, every: Sequence[Regime]) -> Rule:
    """The rule that asks whether the twins of all regimes forecast their gaps."""
    return _slope(name, CALIBRATED, every, cells, "regimes")


def apart(name: str, every: Sequence[Regime]) -> Rule:
    """The rule that asks whether the twins forecast how the gaps of two judges differ."""
    return _slope(name, APART, every, between, "pairs of judges")


def _slope(
    name: str,
    text: str,
    every: Sequence[Regime],
    found: Callable[[View, Sequence[Regime], float], list[Cell]],
    what: str,
) -> Rule:
    def judge(view: View, rule: Rule) -> Verdict:
        fitted = fit(found(view, every, 1.0))
        if fitted is None:
            return rule.leave_undefined(f"Fewer than three {what} reach 1 nat with their twins.")
        low, high = fitted.interval
        reason = (
            f"The slope is {fitted.slope.value:.2f} ({low:.2f} to {high:.2f}) over {fitted.cells} {what}, the root "
            f"mean square error {fitted.error:.3f}; of {fitted.said} forecasts of more than two points {fitted.right} "
            "have the sign that was measured."
        )
        return rule.found(fitted.outcome, fitted.slope, fitted.interval, reason)

    return Rule(name, "", text, every[0].arms, judge)


def phase(every: Sequence[Regime], kl: float = 1.0) -> Callable[[View], Dial | None]:
    """The phase diagram: the gap over the labels, a line a judge, measured and as its twin forecasts it."""

    def draw(view: View) -> Dial | None:
        series: dict[str, list[Point]] = {}
        for regime in every:
            online, twin, offline = regime.arms
            for arm, what in ((online, "measured"), (twin, "forecast")):
                if not view.has(arm, offline):
                    continue
                found = view.at(kl).contrast({arm: 1.0, offline: -1.0})
                if not found.found.budgets or not np.isfinite(found.found.budgets[0].mean.value):
                    continue
                at = found.found.budgets[0]
                bars = at.interval if what == "measured" else (NAN, NAN)
                label = f"{regime.labels:,} labels"
                series.setdefault(f"{regime.judge}, {what}", []).append(
                    Point(float(regime.labels), at.mean.value, *bars, label)
                )
        if not series:
            return None
        lines = {name: tuple(points) for name, points in series.items()}
        y = f"online − offline at {say_nats(kl)}"
        return Dial("golden labels", y, lines, log_x=True, reference=0.0)

    return draw


def scatter(every: Sequence[Regime], kls: Sequence[float] = (0.5, 1.0, 2.0)) -> Callable[[View], Dial | None]:
    """Measured against forecast gap of every regime, KL by KL."""

    def draw(view: View) -> Dial | None:
        series = {}
        for kl in kls:
            points = [
                Point(float(c.forecast[ok].mean()), float(c.measured[ok].mean()), NAN, NAN, c.name)
                for c in cells(view, every, kl)
                if (ok := np.isfinite(c.forecast) & np.isfinite(c.measured)).any()
            ]
            if points:
                series[say_nats(kl)] = tuple(sorted(points, key=lambda p: p.x))
        if not series:
            return None
        x, y = "gap that the twin forecasts", "measured gap, golden judge"
        return Dial(x, y, series, joined=False, reference=0.0, diagonal=True)

    return draw


def fades(name: str, few: Regime, many: Regime) -> Rule:
    """The rule that asks whether a judge's lead is smaller with many labels than with few."""
    online, _, offline = few.arms
    later, _, after = many.arms
    weights = {online: 1.0, offline: -1.0, later: -1.0, after: 1.0}
    what = f"the lead of online with {few.labels:,} labels less that with {many.labels:,} ({few.judge})"
    return contrast(name, weights, what)


def _figures(every: Sequence[Regime]) -> tuple[Figure, ...]:
    return (
        Figure("phase-2", "The gap over the labels at 2 nats, measured and forecast.", phase(every, 2.0)),
        Figure("twins", "Measured against forecast gap, regime by regime.", scatter(every)),
    )


MUCH, LEAST, MOST = EPOCHS_REGIMES[6], EPOCHS_REGIMES[0], EPOCHS_REGIMES[8]

EPOCHS = Hypothesis(
    name="epochs",
    question="With few labels, is online ahead where the judge has learned from sibling worlds, and only there?",
    claim="Not studied: judges are pretrained, and offline sees its pairs for many epochs (section 4.1).",
    study="epochs",
    applies=lambda view: view.has(MUCH.arms[0]),
    rules=(
        ahead("head start", MUCH.arms[0], MUCH.arms[2]),
        ahead("head start truth", MUCH.arms[0], MUCH.arms[2], score="oracle_win"),
        ahead("head start helps", MUCH.arms[0], LEAST.arms[0]),
        fades("head start fades", MUCH, MOST),
        no_better("ignorant judge", LEAST.arms[0], LEAST.arms[2]),
        calibrated("twins by head start", EPOCHS_REGIMES),
        apart("twins between head starts", EPOCHS_REGIMES),
    ),
    dial=phase(EPOCHS_REGIMES),
    more=_figures(EPOCHS_REGIMES),
)

SAME, SMALL = SIZE_REGIMES[:3], SIZE_REGIMES[3:6]

FEW_LABELS = Hypothesis(
    name="few-labels",
    question="With a head start, does online's lead shrink with labels, and turn where the judge is too small?",
    claim="Not studied: proxy and policy are of one size (section 4.1; a larger proxy is named in 5.5).",
    study="few-labels",
    applies=lambda view: view.has(SMALL[0].arms[0]),
    rules=(
        ahead("few labels", SAME[0].arms[0], SAME[0].arms[2]),
        ahead("few labels truth", SAME[0].arms[0], SAME[0].arms[2], score="oracle_win"),
        fades("few labels fade", SAME[0], SAME[2]),
        ahead("small judge behind", SMALL[2].arms[2], SMALL[2].arms[0]),
        ahead("small judge costs", SAME[2].arms[0], SMALL[2].arms[0]),
        calibrated("twins by size", SIZE_REGIMES),
        apart("twins between sizes", SIZE_REGIMES),
    ),
    dial=phase(SIZE_REGIMES),
    more=_figures(SIZE_REGIMES),
)

#: what is expected before the runs, by the study's name
REGIMES = {"epochs": EPOCHS_REGIMES, "few-labels": SIZE_REGIMES}
