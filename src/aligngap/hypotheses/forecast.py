"""The forecast of a gap from online's first-order twin, and how well it holds.

The twin is the online arm with every pair written by the policy that it starts from and labelled by its own judge. Two
forecasts are read off its runs and the offline arm's, at one configuration, against the SFT policy, before any online
run. *Law*: sqrt(2 KL) times the difference in rho(g, q) sd(q), the first-order law's gain per sqrt(2 KL), from samples
of the reference alone. *Twin*: the difference in win rate at equal KL. Both are by the golden judge and, where the task
has one, by the true preference. Pairs that the twin learns from, samples that rho is taken on and the policies' own
samples are disjoint draws.

Calibration is judged over cells: an online arm, an offline arm, a configuration and a variant. The measured gap and the
twin's forecast share the offline arm's runs, samples included, which lifts their agreement; the law's forecast shares
its training and no sample.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from aligngap.hypotheses.base import Dial, Figure, Hypothesis, Point
from aligngap.hypotheses.rules import Rule
from aligngap.hypotheses.verdicts import CONTRADICTED, INCONCLUSIVE, SUPPORTED
from aligngap.hypotheses.view import View, base_of, variant_of
from aligngap.stats.axes import say_nats
from aligngap.stats.budgets import Budget
from aligngap.stats.estimate import NAN
from aligngap.stats.seedwise import LEVEL, critical
from aligngap.types import Estimate, Verdict

TWIN = "twin"
#: nats at which a slope may be read where runs end before the KL that is forecast
LADDER = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
#: by each evaluator: words, the score of a win rate, and the column of the law's slope
BY = {"golden judge": ("win", "slope"), "true preference": ("oracle_win", "oracle_slope")}
#: a forecast of less than this is not asked for its sign
SAID = 0.02
KLS = (0.5, 1.0, 2.0, 4.0)


@dataclass(frozen=True)
class Forecast:
    """What is expected of online minus offline at one KL by one evaluator: by the law and by the twin, each nan where
    the runs do not allow it, with 95% intervals; `slope_at` is the KL in nats at which the law's slopes were read."""

    kl: float
    evaluator: str
    law: Estimate
    law_interval: tuple[float, float]
    slope_at: float
    twin: Estimate
    twin_interval: tuple[float, float]


def forecast(view: View, kls: Sequence[float], twin: str = TWIN, offline: str = "") -> list[Forecast]:
    """The forecasts at each KL in nats, by every evaluator that the records have; the view is of the SFT policy."""
    weights = {twin: 1.0, offline or view.offline: -1.0}
    out = []
    for evaluator, (score, column) in BY.items():
        if not view.records[column].notna().any():
            continue
        places = tuple(sorted({*LADDER, *kls}))
        slopes = {b.kl: b for b in view.at(*places).contrast(weights, column).found.budgets}
        wins = {b.kl: b for b in view.at(*kls).contrast(weights, score).found.budgets}
        for kl in kls:
            there = [x for x in places if x <= kl and x in slopes and math.isfinite(slopes[x].mean.value)]
            law, span = scaled(slopes[there[-1]], math.sqrt(2.0 * kl)) if there else (_none(), (NAN, NAN))
            twin_, bounds = scaled(wins[kl], 1.0) if kl in wins else (_none(), (NAN, NAN))
            out.append(Forecast(kl, evaluator, law, span, there[-1] if there else NAN, twin_, bounds))
    return out


def scaled(found: Budget, by: float) -> tuple[Estimate, tuple[float, float]]:
    """A budget's mean times a number, with its 95% interval alone: t over seeds, normal for one."""
    mean = found.mean
    half = critical(mean.n, LEVEL) * mean.se * by
    value = Estimate(by * mean.value, by * mean.se, mean.n, mean.how)
    return value, (value.value - half, value.value + half)


def _none() -> Estimate:
    return Estimate(NAN, NAN, 0, "undefined")


# ---------------------------------------------------------------------------------------------------- calibration


@dataclass(frozen=True)
class Cell:
    """One cell at one KL: what was forecast and what was measured, by seed [S], nan where runs do not reach it."""

    name: str
    forecast: np.ndarray
    measured: np.ndarray


def cells(view: View, kl: float, evaluator: str, by: str) -> list[Cell]:
    """Every cell of the records at a KL: online arms with a twin, offline arms, configurations and variants.

    by: "law" or "twin". Under a variant that does not run an offline arm it is the study's own.
    """
    score, column = BY[evaluator]
    out = []
    for twin, online, offline, config in _cells(view):
        mine = view.only((twin, online, offline), config).at(kl)
        measured = mine.contrast({online: 1.0, offline: -1.0}, score).found.budgets
        said = mine.contrast({twin: 1.0, offline: -1.0}, column if by == "law" else score).found.budgets
        if measured and said and len(measured[0].by_seed) == len(said[0].by_seed):
            scale = math.sqrt(2.0 * kl) if by == "law" else 1.0
            name = f"{online} − {offline}, {config}"
            out.append(Cell(name, scale * np.array(said[0].by_seed), np.array(measured[0].by_seed)))
    return out


def _cells(view: View) -> Iterator[tuple[str, str, str, str]]:
    """Twin, online arm, offline arm and configuration of each cell."""
    offlines = [a for a in view.arms if base_of(a).startswith("offline")]
    for twin in (a for a in view.arms if base_of(a).split("-")[0] == TWIN):
        online = "online" + twin.removeprefix(TWIN)
        mine = [a for a in offlines if variant_of(a) == variant_of(twin)]
        for offline in mine or [a for a in offlines if not variant_of(a)]:
            for config in view.records["config"][view.records["arm"] == online].unique():
                yield twin, online, offline, str(config)


@dataclass(frozen=True)
class Fit:
    """How the measured gaps lie on the forecast ones at one KL: the slope through 0 seed by seed, the error run by run,
    and of the cells with a forecast of more than `SAID` how many have its sign."""

    slope: Estimate
    interval: tuple[float, float]
    error: float  # root mean square of measured less forecast
    right: int
    said: int
    cells: int

    @property
    def outcome(self) -> str:
        """Whether the forecast is calibrated: supported if the slope's interval lies within 0.5 to 1.5."""
        low, high = self.interval
        if low >= 0.5 and high <= 1.5:
            return SUPPORTED
        return CONTRADICTED if low > 1.5 or high < 0.5 else INCONCLUSIVE  # an interval that is nan says nothing


def fit(found: Sequence[Cell]) -> Fit | None:
    """The fit over cells; None with fewer than three."""
    if len(found) < 3:
        return None
    f, m = (np.array([getattr(c, name) for c in found]) for name in ("forecast", "measured"))
    known = np.isfinite(f) & np.isfinite(m)
    f, m = np.where(known, f, 0.0), np.where(known, m, 0.0)
    top, bottom, count = (f * m).sum(axis=0), (f * f).sum(axis=0), known.sum(axis=0)
    there = (count >= 3) & (bottom > 0)
    if not there.any():
        return None
    slopes = Estimate.mean(top[there] / bottom[there], "slope through 0 over cells, mean over seeds")
    half = critical(slopes.n, LEVEL) * slopes.se if slopes.n > 1 else NAN
    means = [(c.forecast[ok].mean(), c.measured[ok].mean()) for c, ok in zip(found, known, strict=True) if ok.any()]
    said = [(a, b) for a, b in means if abs(a) > SAID]
    error = float(np.sqrt(((m - f)[known] ** 2).mean()))
    right = sum(a * b > 0 for a, b in said)
    return Fit(slopes, (slopes.value - half, slopes.value + half), error, right, len(said), len(means))


TEXT = (
    "Over all cells that reach {kl} (an online arm with a twin, an offline arm, a configuration, a variant), "
    "per seed the slope through 0 of the measured gap on the one that {by} forecasts, by the {evaluator}; t interval "
    "over seeds. Supported if it lies within 0.5 to 1.5; contradicted if wholly outside; else inconclusive."
)


def calibrated(kl: float, evaluator: str, by: str) -> Rule:
    """The rule that asks whether a forecast is calibrated at one KL by one evaluator."""

    def judge(view: View, rule: Rule) -> Verdict:
        found = fit(cells(view, kl, evaluator, by))
        if found is None:
            return rule.leave_undefined(f"Fewer than three cells reach {say_nats(kl)}.")
        reason = (
            f"The slope is {found.slope.value:.2f} over {found.cells} cells and {found.slope.n} seed"
            f"{'s' * (found.slope.n > 1)}; the root mean square error of one seed's cell is {found.error:.3f}; "
            f"{found.right} of the {found.said} cells with a forecast of more than {SAID:g} have its sign."
        )
        return rule.found(found.outcome, found.slope, found.interval, reason)

    words = {"law": "the first-order law", "twin": "the twin"}[by]
    short = "" if evaluator == "golden judge" else ", truth"
    text = TEXT.format(kl=say_nats(kl), by=words, evaluator=evaluator)
    column = "slope" if not short else "oracle_slope"
    return Rule(f"{by} at {kl:g}{short}", "", text, ("online", TWIN, "offline"), judge, column)


def scatter(view: View, evaluator: str, by: str) -> Dial | None:
    """Measured against forecast gap, a point a cell, a series a KL: means over seeds ± their standard errors."""
    series: dict[str, tuple[Point, ...]] = {}
    for kl in KLS:
        points = []
        for cell in cells(view, kl, evaluator, by):
            ok = np.isfinite(cell.forecast) & np.isfinite(cell.measured)
            if ok.any():
                x, y = (Estimate.mean(v[ok]) for v in (cell.forecast, cell.measured))
                wide = [e.se if e.n > 1 else NAN for e in (x, y)]
                ends = (x.value - wide[0], x.value + wide[0])
                points.append(Point(x.value, y.value, y.value - wide[1], y.value + wide[1], cell.name, ends))
        if points:
            series[say_nats(kl)] = tuple(sorted(points, key=lambda p: p.x))
    if not series:
        return None
    words = "the first-order law" if by == "law" else "the twin"
    return Dial(
        f"gap that {words} forecasts", f"measured gap, {evaluator}", series, joined=False, reference=0.0, diagonal=True
    )


def _figure(by: str, evaluator: str) -> Figure:
    short = "judge" if evaluator == "golden judge" else "truth"
    title = f"Measured against forecast gap, {by}, by the {evaluator} (± standard errors over seeds)."
    return Figure(f"{by}-{short}", title, lambda view: scatter(view, evaluator, by))


FORECAST = Hypothesis(
    name="forecast",
    question="Does online's first-order twin say, before any online run, how far ahead online will be?",
    claim="Not in the paper. To first order in the distance from the reference the twin is the online run.",
    study="forecast",
    rules=tuple(calibrated(kl, evaluator, by) for evaluator in BY for by in ("law", "twin") for kl in (1.0, 2.0, 4.0)),
    dial=lambda view: scatter(view, "golden judge", "law"),
    more=tuple(
        _figure(by, e) for by, e in (("twin", "golden judge"), ("law", "true preference"), ("twin", "true preference"))
    ),
)
