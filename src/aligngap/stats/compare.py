"""Two arms at equal KL: the difference of their frontiers with its error, its band, and the doubts in words.

Differences are taken within a seed (the arms share its prompts, judges and SFT policy) and then averaged over seeds;
the interval is `two_level` (seeds, then prompts), the band simultaneous over the common KL range. Declared choices:
averages run over ln KL with equal weight, from 0.1 nats up, where both arms are defined in every compared seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from aligngap.stats.clouds import Cloud, Clouds
from aligngap.stats.estimate import NAN, FloatArray, simultaneous_factor, two_level
from aligngap.stats.frontier import MIN_KL_NATS, ArmCurves, arm_curves, log_grid
from aligngap.types import Estimate

BUDGETS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
LEVEL = 0.95
#: narrower than this ratio of KL (a tenth of an octave) is no range to compare on
MIN_RATIO = 2.0**0.25


@dataclass(frozen=True)
class AtBudget:
    """The two arms and their difference at one KL budget."""

    kl_nats: float
    a: Estimate
    b: Estimate
    difference: Estimate
    interval: tuple[float, float]


@dataclass(frozen=True)
class Comparison:
    """a - b at equal KL against one opponent. Undefined numbers are nan; `warnings` say why."""

    a: str
    b: str
    opponent: str
    seeds: tuple[int, ...]
    common_kl: tuple[float, float]
    overlap: float  # length of the common ln KL range over that of the union
    average: Estimate
    average_interval: tuple[float, float]
    average_naive: float  # with the sweeps' best scored on the prompts that chose it
    peak_a: Estimate
    peak_b: Estimate
    peak: Estimate
    peak_interval: tuple[float, float]
    budgets: tuple[AtBudget, ...]
    kl: FloatArray  # [K] nats
    difference: FloatArray  # [K]
    lower: FloatArray  # [K] simultaneous
    upper: FloatArray  # [K]
    point_lower: FloatArray  # [K] pointwise
    point_upper: FloatArray  # [K]
    share_a_ahead: float  # share of the common ln KL range with the whole band above 0
    share_b_ahead: float
    a_ahead: tuple[tuple[float, float], ...]  # KL ranges in nats
    b_ahead: tuple[tuple[float, float], ...]
    warnings: tuple[str, ...] = field(default=())

    @property
    def defined(self) -> bool:
        return bool(np.isfinite(self.average.value))


def curves_for(clouds: Clouds, replicates: int = 400, rng_seed: int = 0) -> dict[str, ArmCurves]:
    """Frontiers of all arms on one grid; the number of replicates is cut so that a large study stays quick."""
    items = clouds.items
    if not items:
        return {}
    grid = log_grid(max(MIN_KL_NATS, min(float(c.kl.min()) for c in items)), max(float(c.kl.max()) for c in items))
    work = sum(_size(c, len(grid)) for c in items)
    replicates = int(np.clip(6e9 / max(work, 1.0), 60, replicates))
    return arm_curves(items, grid, replicates, rng_seed)


def _size(c: Cloud, k: int) -> float:
    """Rough number of operations per replicate."""
    return 4.0 * len(c.kl) * max(len(c.prompt_ids), 1) + 30.0 * k * (len(c.kl) + 6 * len(c.runs))


def compare(
    curves: dict[str, ArmCurves], a: str, b: str, opponent: str = "", level: float = LEVEL, rng_seed: int = 0
) -> Comparison:
    """Compare arm a with arm b. Never raises for thin data: what cannot be concluded is nan and in the warnings."""
    missing = [name for name in (a, b) if name not in curves]
    if missing:
        return _undefined(a, b, opponent, (), [f"No usable checkpoint of {' or '.join(missing)} against {opponent}."])
    ca, cb = curves[a], curves[b]
    seeds = tuple(s for s in ca.seeds if s in cb.seeds)
    warnings: list[str] = []
    left_out = sorted((set(ca.seeds) | set(cb.seeds)) - set(seeds))
    if left_out:
        warnings.append(f"Seed(s) {', '.join(map(str, left_out))} exist in only one of the two arms and are left out.")
    if not seeds:
        return _undefined(a, b, opponent, (), [*warnings, f"{a} and {b} share no seed, so nothing can be paired."])
    ia, ib = [ca.seeds.index(s) for s in seeds], [cb.seeds.index(s) for s in seeds]
    point = ca.frontier[ia] - cb.frontier[ib]
    both = np.asarray(np.isfinite(point))
    usable = np.asarray(both.any(axis=1))
    if not usable.any():
        return _undefined(a, b, opponent, seeds, [*warnings, _no_overlap(ca, cb)], _peaks(ca, cb, ia, ib))
    if not usable.all():
        dropped = [str(s) for s, u in zip(seeds, usable, strict=True) if not u]
        warnings.append(f"The arms' KL ranges do not overlap in seed(s) {', '.join(dropped)}: left out.")
        seeds = tuple(s for s, u in zip(seeds, usable, strict=True) if u)
        ia, ib = [ca.seeds.index(s) for s in seeds], [cb.seeds.index(s) for s in seeds]
        point, both = point[usable], both[usable]
    inside = np.asarray(both.all(axis=0))
    kl = np.exp(ca.grid)
    if not inside.any() or kl[inside][-1] / kl[inside][0] < MIN_RATIO:
        text = "No KL was reached by both arms in every seed" if not inside.any() else "The common KL range is a point"
        return _undefined(
            a,
            b,
            opponent,
            seeds,
            [*warnings, f"{text}, so the arms are not compared at equal KL."],
            _peaks(ca, cb, ia, ib),
        )
    point = point[:, inside]
    reps = ca.frontier_reps[ia][:, :, inside] - cb.frontier_reps[ib][:, :, inside]
    x = ca.grid[inside]
    how = f"paired by seed and prompt, {_seeds(len(seeds))}, two-level interval"
    mean = two_level(point.mean(axis=1), reps.mean(axis=2), level)
    by_kl = two_level(point, reps, level)
    wider = simultaneous_factor(point, reps, level, np.random.default_rng([rng_seed, 11]))
    half = wider * (by_kl.upper - by_kl.value)
    lower, upper = by_kl.value - half, by_kl.value + half
    naive = float((ca.frontier_naive[ia] - cb.frontier_naive[ib])[:, inside].mean())
    peak_a, peak_b, peak, peak_interval = _peaks(ca, cb, ia, ib, level)
    warnings += _doubts(ca, cb, len(seeds), x)
    union = [np.isfinite(np.vstack([ca.frontier, cb.frontier])).any(axis=0)]
    return Comparison(
        a=a,
        b=b,
        opponent=opponent,
        seeds=seeds,
        common_kl=(float(np.exp(x[0])), float(np.exp(x[-1]))),
        overlap=float(inside.sum() / max(int(union[0].sum()), 1)),
        average=mean.estimate(f"a - b averaged over the common ln KL range; {how}"),
        average_interval=mean.interval(),
        average_naive=naive,
        peak_a=peak_a,
        peak_b=peak_b,
        peak=peak,
        peak_interval=peak_interval,
        budgets=_at_budgets(ca, cb, ia, ib, inside, level),
        kl=np.exp(x),
        difference=by_kl.value,
        lower=lower,
        upper=upper,
        point_lower=by_kl.lower,
        point_upper=by_kl.upper,
        share_a_ahead=float((lower > 0).mean()),
        share_b_ahead=float((upper < 0).mean()),
        a_ahead=ranges(np.exp(x), lower > 0),
        b_ahead=ranges(np.exp(x), upper < 0),
        warnings=tuple(warnings),
    )


def ranges(kl: FloatArray, mask: np.ndarray) -> tuple[tuple[float, float], ...]:
    """Runs of true positions as (from, to) in nats."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return tuple((float(kl[i]), float(kl[j - 1])) for i, j in zip(edges[::2], edges[1::2], strict=True))


def hump(c: ArmCurves, level: float = LEVEL) -> tuple[Estimate, tuple[float, float]]:
    """How far the win rate at an arm's largest KL lies below its peak (R1); the peak is cross-fitted."""
    drop = two_level(c.peak - c.end, c.peak_reps - c.end_reps, level)
    return drop.estimate(f"cross-fitted peak minus the largest KL, {_seeds(len(c.seeds))}"), drop.interval()


def peak_of(c: ArmCurves, level: float = LEVEL) -> tuple[Estimate, tuple[float, float]]:
    """An arm's best checkpoint, chosen on three folds of the prompts and scored on the fourth."""
    best = two_level(c.peak, c.peak_reps, level)
    return best.estimate(f"cross-fitted best checkpoint, {_seeds(len(c.seeds))}"), best.interval()


def at_kl(c: ArmCurves, rows: Sequence[int], k: int, level: float = LEVEL) -> Estimate:
    found = two_level(c.frontier[list(rows)][:, [k]], c.frontier_reps[list(rows)][:, :, [k]], level)
    return found.estimate("frontier at this KL")


def _at_budgets(
    ca: ArmCurves, cb: ArmCurves, ia: list[int], ib: list[int], inside: np.ndarray, level: float
) -> tuple[AtBudget, ...]:
    out = []
    for budget in BUDGETS:
        hits = np.flatnonzero(inside & np.isclose(ca.grid, np.log(budget), atol=1e-6))
        if not len(hits):
            continue
        k = int(hits[0])
        d = two_level(
            ca.frontier[ia][:, k] - cb.frontier[ib][:, k],
            ca.frontier_reps[ia][:, :, k] - cb.frontier_reps[ib][:, :, k],
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
    d = two_level(ca.peak[ia] - cb.peak[ib], ca.peak_reps[ia] - cb.peak_reps[ib], level)
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
            "Two seeds: with so few, a 95% interval may truly cover as little as about 91% of the time, and the "
            "band for the whole range about 85%."
        )
    for c in (ca, cb):
        if c.checkpoints / max(len(c.seeds), 1) < 4:
            out.append(f"{c.arm} has fewer than four checkpoints a seed: its curve between them is a straight line.")
    if x[-1] - x[0] < np.log(2.0):
        out.append(
            f"The KL ranges overlap only from {np.exp(x[0]):.2g} to {np.exp(x[-1]):.2g} nats, less than a doubling."
        )
    return out


def _no_overlap(ca: ArmCurves, cb: ArmCurves) -> str:
    def span(c: ArmCurves) -> str:
        x = np.exp(c.grid[np.isfinite(c.frontier).any(axis=0)])
        return f"{x[0]:.2g} to {x[-1]:.2g} nats" if len(x) else "a single KL"

    return (
        f"The KL ranges do not overlap ({ca.arm} reached {span(ca)}, {cb.arm} {span(cb)}), so nothing can be said "
        "about the arms at equal KL."
    )


def _undefined(
    a: str, b: str, opponent: str, seeds: tuple[int, ...], warnings: list[str], peaks: Peaks | None = None
) -> Comparison:
    nothing = Estimate(NAN, NAN, 0, "undefined")
    pa, pb, peak, interval = peaks or (nothing, nothing, nothing, (NAN, NAN))
    none = np.zeros(0)
    return Comparison(
        a,
        b,
        opponent,
        seeds,
        (NAN, NAN),
        0.0,
        nothing,
        (NAN, NAN),
        NAN,
        pa,
        pb,
        peak,
        interval,
        (),
        none,
        none,
        none,
        none,
        none,
        none,
        NAN,
        NAN,
        (),
        (),
        tuple(warnings),
    )


def _seeds(n: int) -> str:
    return "one seed, prompts only" if n == 1 else f"{n} seeds"
