"""Two arms at equal KL (or another axis): the difference of their frontiers, its error, its band, the doubts in words.

This draws the curve of a difference, and it is the paper's protocol where the arms' sweeps differ: each arm pooled over
what it ran, averaged over log KL. No verdict rests on it (see `budgets`); what it says where there is nothing is
`protocol_bias`.

Differences are taken within a seed (the arms share its prompts, judges and SFT policy) and then averaged over seeds;
the interval is `two_level` (seeds, then prompts), the band simultaneous over the common KL range. Declared choices:
averages run over ln KL (u of the axis) with equal weight, from 0.1 nats up, where both arms are defined in every
compared seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from aligngap.stats.axes import KL, Axis
from aligngap.stats.clouds import Cloud, Clouds, restrict
from aligngap.stats.estimate import NAN, FloatArray, simultaneous_factor, two_level
from aligngap.stats.frontier import ArmCurves, arm_curves
from aligngap.types import Estimate

LEVEL = 0.95
#: operations (by `_size`) that the replicates of one arm may take, so that no other arm changes their number; never
#: fewer than 60 replicates
EFFORT = 1e9


@dataclass(frozen=True)
class AtBudget:
    """The two arms and their difference at one budget (of KL)."""

    x: float
    a: Estimate
    b: Estimate
    difference: Estimate
    interval: tuple[float, float]


@dataclass(frozen=True)
class Comparison:
    """a - b at equal x against one opponent. Undefined numbers are nan; `warnings` say why."""

    a: str
    b: str
    opponent: str
    axis: Axis
    seeds: tuple[int, ...]
    prompts: int  # behind each seed; 0 where wins were not recorded prompt by prompt
    common: tuple[float, float]  # range of x
    average: Estimate
    average_interval: tuple[float, float]
    average_naive: float  # with the sweeps' best scored on the prompts that chose it
    peak_a: Estimate
    peak_b: Estimate
    peak: Estimate
    peak_interval: tuple[float, float]
    budgets: tuple[AtBudget, ...]
    x: FloatArray  # [K]
    difference: FloatArray  # [K]
    lower: FloatArray  # [K] simultaneous
    upper: FloatArray  # [K]
    point_lower: FloatArray  # [K] pointwise
    point_upper: FloatArray  # [K]
    share_a_ahead: float  # share of the common range in u with the whole band above 0
    share_b_ahead: float
    a_ahead: tuple[tuple[float, float], ...]  # ranges of x
    b_ahead: tuple[tuple[float, float], ...]
    by_seed: FloatArray  # [S] the average difference of each seed, and its replicates [S, B]: what `stats.power` needs
    by_seed_reps: FloatArray
    warnings: tuple[str, ...] = field(default=())

    @property
    def defined(self) -> bool:
        return bool(np.isfinite(self.average.value))


def curves_for(
    clouds: Clouds,
    replicates: int = 400,
    rng_seed: int = 0,
    effort: float = EFFORT,
    least: int = 60,
    coarse: bool = False,
    grid: FloatArray | None = None,
) -> dict[str, ArmCurves]:
    """Frontiers of all arms on one grid; an arm's replicates are cut, to `least` at worst, where the arm is large.

    `effort` is the number of operations, by the estimate of `_size`, that the replicates of one arm may take. `coarse`
    takes every fourth position (four an octave): enough for averages, not for budgets or a band. `grid` gives the
    positions in the place of those that the clouds span.
    """
    items = [c for c in clouds.items if c.usable.any()]
    if not items:
        return {}
    axis = items[0].axis
    if grid is None:
        ends = [(float(c.x[c.usable].min()), float(c.x[c.usable].max())) for c in items]
        grid = axis.grid(min(low for low, _ in ends), max(high for _, high in ends))
    if coarse:
        grid = grid[np.round(grid / axis.step).astype(np.int64) % 4 == 0]
    work: dict[str, float] = {}
    for c in items:
        work[c.arm] = work.get(c.arm, 0.0) + _size(c)
    count = {arm: int(np.clip(effort / max(w, 1.0), least, replicates)) for arm, w in work.items()}
    return arm_curves(items, grid, count, rng_seed)


def match_configurations(
    clouds: Clouds, curves: Mapping[str, ArmCurves], a: str, b: str, rng_seed: int = 0
) -> dict[str, ArmCurves]:
    """The frontiers of two arms over the configurations that both ran; {} where they share none."""
    ran = {arm: {c for cloud in clouds.items if cloud.arm == arm for c in cloud.configs} for arm in (a, b)}
    shared = ran[a] & ran[b]
    if not shared or a not in curves or b not in curves:
        return {}
    out = {arm: curves[arm] for arm in (a, b) if ran[arm] == shared}
    rest = [restrict(c, shared) for c in clouds.items if c.arm in (a, b) and c.arm not in out]
    found = Clouds(tuple(c for c in rest if len(c.x)))
    return out | curves_for(found, rng_seed=rng_seed, grid=curves[a].grid)


def protocol_bias(clouds: Clouds, curves: Mapping[str, ArmCurves], a: str, b: str) -> Comparison | None:
    """What the pooled comparison of a and b says where there is nothing: b's runs of a's configurations, as if another
    arm, minus b's whole sweep. None where b ran nothing else, or none of a's."""
    ran = {arm: {c for cloud in clouds.items if cloud.arm == arm for c in cloud.configs} for arm in (a, b)}
    shared = ran[a] & ran[b]
    if b not in curves or not shared or shared == ran[b]:
        return None
    name = f"{b}, {a}'s configurations"
    few = Clouds(tuple(replace(restrict(c, shared), arm=name) for c in clouds.items if c.arm == b))
    return compare({**curves, **curves_for(few, grid=curves[b].grid)}, name, b, band=False)


def _size(c: Cloud) -> float:
    """Rough number of operations per replicate, over as many positions as lie between the cloud's own ends."""
    u = c.axis.u(c.x[c.usable])
    k = float(np.ptp(u)) / c.axis.step + 1 if len(u) else 1.0
    return 4.0 * len(c.x) * max(len(c.prompt_ids), 1) + 30.0 * k * (len(c.x) + 6 * len(c.runs))


def compare(
    curves: Mapping[str, ArmCurves],
    a: str,
    b: str,
    opponent: str = "",
    level: float = LEVEL,
    rng_seed: int = 0,
    band: bool = True,
    axis: Axis = KL,
) -> Comparison:
    """Compare arm a with arm b. Never raises for thin data: what cannot be concluded is nan and in the warnings.

    Without `band` the simultaneous band, the costly part, and what follows from it are left undefined. `axis` names the
    axis where no curve does.
    """
    axis = next((c.axis for c in curves.values()), axis)
    missing = [name for name in (a, b) if name not in curves]
    if missing:
        said = f"No usable checkpoint of {' or '.join(missing)} against {opponent}."
        if axis != KL:
            said = f"{axis.name}: nothing recorded for {' and '.join(missing)}."
        return _leave_undefined(a, b, opponent, axis, (), [said])
    ca, cb = curves[a], curves[b]
    seeds = tuple(s for s in ca.seeds if s in cb.seeds)
    warnings: list[str] = []
    left_out = sorted((set(ca.seeds) | set(cb.seeds)) - set(seeds))
    if left_out:
        warnings.append(f"Seed(s) {', '.join(map(str, left_out))} exist in only one of the two arms and are left out.")
    if not seeds:
        said = f"{a} and {b} share no seed, so nothing can be paired."
        return _leave_undefined(a, b, opponent, axis, (), [*warnings, said])
    ia, ib = [ca.seeds.index(s) for s in seeds], [cb.seeds.index(s) for s in seeds]
    point = ca.frontier[ia] - cb.frontier[ib]
    both = np.asarray(np.isfinite(point))
    usable = np.asarray(both.any(axis=1))
    if not usable.any():
        return _leave_undefined(a, b, opponent, axis, seeds, [*warnings, _no_overlap(ca, cb)], _peaks(ca, cb, ia, ib))
    if not usable.all():
        dropped = [str(s) for s, u in zip(seeds, usable, strict=True) if not u]
        warnings.append(f"The arms' {axis.name} ranges do not overlap in seed(s) {', '.join(dropped)}: left out.")
        seeds = tuple(s for s, u in zip(seeds, usable, strict=True) if u)
        ia, ib = [ca.seeds.index(s) for s in seeds], [cb.seeds.index(s) for s in seeds]
        point, both = point[usable], both[usable]
    inside = np.asarray(both.all(axis=0))
    x = ca.grid[inside]
    if not inside.any() or x[-1] - x[0] < axis.narrow:
        what = axis.name
        text = f"The {what} range that all runs share is too narrow to average over"
        if not inside.any():
            text = f"No {what} was reached by both arms in every seed"
        said = f"{text}, so their difference is not averaged over equal {what}."
        return _leave_undefined(a, b, opponent, axis, seeds, [*warnings, said], _peaks(ca, cb, ia, ib))
    point = point[:, inside]
    draws = min(ca.frontier_reps.shape[1], cb.frontier_reps.shape[1])
    reps = ca.frontier_reps[ia, :draws][:, :, inside] - cb.frontier_reps[ib, :draws][:, :, inside]
    how = f"paired by seed and prompt, {_seeds(len(seeds))}, two-level interval"
    mean = two_level(point.mean(axis=1), reps.mean(axis=2), level)
    by_x = two_level(point, reps, level)
    wider = simultaneous_factor(point, reps, level, np.random.default_rng([rng_seed, 11])) if band else NAN
    half = wider * (by_x.upper - by_x.value)
    lower, upper = by_x.value - half, by_x.value + half
    naive = float((ca.frontier_naive[ia] - cb.frontier_naive[ib])[:, inside].mean())
    peak_a, peak_b, peak, peak_interval = _peaks(ca, cb, ia, ib, level)
    warnings += _doubts(ca, cb, len(seeds), x)
    at = axis.x(x)
    return Comparison(
        a=a,
        b=b,
        opponent=opponent,
        axis=axis,
        seeds=seeds,
        prompts=min(ca.prompts, cb.prompts),
        common=(float(at[0]), float(at[-1])),
        average=mean.estimate(f"a - b averaged over the common {axis.name} range; {how}"),
        average_interval=mean.interval(),
        average_naive=naive,
        peak_a=peak_a,
        peak_b=peak_b,
        peak=peak,
        peak_interval=peak_interval,
        budgets=_at_budgets(ca, cb, ia, ib, inside, level),
        x=at,
        difference=by_x.value,
        lower=lower,
        upper=upper,
        point_lower=by_x.lower,
        point_upper=by_x.upper,
        share_a_ahead=float((lower > 0).mean()) if band else NAN,
        share_b_ahead=float((upper < 0).mean()) if band else NAN,
        a_ahead=ranges(at, lower > 0),
        b_ahead=ranges(at, upper < 0),
        by_seed=point.mean(axis=1),
        by_seed_reps=reps.mean(axis=2),
        warnings=tuple(warnings),
    )


def ranges(x: FloatArray, mask: np.ndarray) -> tuple[tuple[float, float], ...]:
    """Runs of true positions as (from, to)."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return tuple((float(x[i]), float(x[j - 1])) for i, j in zip(edges[::2], edges[1::2], strict=True))


def hump(c: ArmCurves, level: float = LEVEL) -> tuple[Estimate, tuple[float, float]]:
    """How far the win rate at an arm's largest KL lies below its peak (R1); the peak is cross-fitted."""
    drop = two_level(c.peak - c.end, c.peak_reps - c.end_reps, level)
    return drop.estimate(f"cross-fitted peak minus the largest KL, {_seeds(len(c.seeds))}"), drop.interval()


def peak_of(c: ArmCurves, level: float = LEVEL) -> tuple[Estimate, tuple[float, float]]:
    """An arm's best checkpoint, chosen on three folds of the prompts and scored on the fourth."""
    best = two_level(c.peak, c.peak_reps, level)
    return best.estimate(f"cross-fitted best checkpoint, {_seeds(len(c.seeds))}"), best.interval()


def at_kl(c: ArmCurves, rows: Sequence[int], k: int, level: float = LEVEL) -> Estimate:
    """A frontier's estimate at the k-th point of its grid of KL, over the given rows (seeds)."""
    found = two_level(c.frontier[list(rows)][:, [k]], c.frontier_reps[list(rows)][:, :, [k]], level)
    return found.estimate("frontier at this KL")


def _at_budgets(
    ca: ArmCurves, cb: ArmCurves, ia: list[int], ib: list[int], inside: np.ndarray, level: float
) -> tuple[AtBudget, ...]:
    out = []
    draws = min(ca.frontier_reps.shape[1], cb.frontier_reps.shape[1])
    for budget in ca.axis.budgets:
        hits = np.flatnonzero(inside & np.isclose(ca.grid, ca.axis.u(budget), atol=1e-6))
        if not len(hits):
            continue
        k = int(hits[0])
        d = two_level(
            ca.frontier[ia][:, k] - cb.frontier[ib][:, k],
            ca.frontier_reps[ia, :draws, k] - cb.frontier_reps[ib, :draws, k],
            level,
        )
        how = "difference at this KL, paired"
        out.append(AtBudget(budget, at_kl(ca, ia, k), at_kl(cb, ib, k), d.estimate(how), d.interval()))
    return tuple(out)


Peaks = tuple[Estimate, Estimate, Estimate, tuple[float, float]]


def _peaks(ca: ArmCurves, cb: ArmCurves, ia: list[int], ib: list[int], level: float = LEVEL) -> Peaks:
    how = "cross-fitted best checkpoint"
    pa = two_level(ca.peak[ia], ca.peak_reps[ia], level).estimate(how)
    pb = two_level(cb.peak[ib], cb.peak_reps[ib], level).estimate(how)
    draws = min(ca.peak_reps.shape[1], cb.peak_reps.shape[1])
    d = two_level(ca.peak[ia] - cb.peak[ib], ca.peak_reps[ia, :draws] - cb.peak_reps[ib, :draws], level)
    return pa, pb, d.estimate("difference of cross-fitted peaks, paired"), d.interval()


def _doubts(ca: ArmCurves, cb: ArmCurves, seeds: int, x: FloatArray) -> list[str]:
    out = []
    if seeds == 1:
        out.append(
            "One seed: the interval covers the choice of prompts only; how much the result changes from one training "
            "run to the next is not covered."
        )
    elif seeds == 2:
        out.append(
            "Two seeds: with so few, the band of the curve may truly cover as little as 88% of the time at one KL, and "
            "less over the whole range."
        )
    for c in (ca, cb):
        if c.checkpoints / max(len(c.seeds), 1) < 4:
            out.append(f"{c.arm} has fewer than four checkpoints a seed: its curve between them is a straight line.")
    axis, (enough, how) = ca.axis, ca.axis.short
    if x[-1] - x[0] < enough:
        low, high = (float(v) for v in axis.x(x[[0, -1]]))
        out.append(f"The {axis.name} ranges overlap only from {axis.span(low, high)}, {how}.")
    return out


def _no_overlap(ca: ArmCurves, cb: ArmCurves) -> str:
    axis = ca.axis

    def span(c: ArmCurves) -> str:
        x = axis.x(c.grid[np.isfinite(c.frontier).any(axis=0)])
        return axis.span(float(x[0]), float(x[-1])) if len(x) else "a single value"

    return (
        f"The {axis.name} ranges do not overlap ({ca.arm} reached {span(ca)}, {cb.arm} {span(cb)}), so nothing can be "
        f"said about the arms at equal {axis.name}."
    )


def _leave_undefined(
    a: str,
    b: str,
    opponent: str,
    axis: Axis,
    seeds: tuple[int, ...],
    warnings: list[str],
    peaks: Peaks | None = None,
) -> Comparison:
    nothing = Estimate(NAN, NAN, 0, "undefined")
    pa, pb, peak, interval = peaks or (nothing, nothing, nothing, (NAN, NAN))
    curves = dict.fromkeys(("x", "difference", "lower", "upper", "point_lower", "point_upper"), np.zeros(0))
    return Comparison(
        a=a,
        b=b,
        opponent=opponent,
        axis=axis,
        seeds=seeds,
        prompts=0,
        common=(NAN, NAN),
        average=nothing,
        average_interval=(NAN, NAN),
        average_naive=NAN,
        peak_a=pa,
        peak_b=pb,
        peak=peak,
        peak_interval=interval,
        budgets=(),
        share_a_ahead=NAN,
        share_b_ahead=NAN,
        a_ahead=(),
        b_ahead=(),
        by_seed=np.zeros(0),
        by_seed_reps=np.zeros((0, 0)),
        warnings=tuple(warnings),
        **curves,
    )


def _seeds(n: int) -> str:
    return "one seed, prompts only" if n == 1 else f"{n} seeds"
