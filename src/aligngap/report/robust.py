"""Does the answer hold otherwise? The same comparisons on other axes, at equal length, and against best-of-n: numbers.

Every table here is `stats.compare` on the same checkpoints: put on another x-axis, scored by the length-controlled win
rate, or held against the best-of-n of the SFT policy. Words and tables are made in `tables.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from aligngap.hypotheses.verdicts import over_seeds
from aligngap.hypotheses.view import world_of
from aligngap.stats.axes import AXES, KL, PAIRS, STEPS
from aligngap.stats.clouds import Clouds, on_axis
from aligngap.stats.compare import Comparison, compare, curves_for, peak_of
from aligngap.stats.frontier import ArmCurves
from aligngap.stats.length import control_length
from aligngap.stats.power import Spread
from aligngap.stats.reference import against_best_of_n, gain_per_nat
from aligngap.types import Estimate

Pairs = Sequence[tuple[str, str]]
#: replicates and effort of one axis or score: there are many, and only averages are wanted
REPLICATES, EFFORT, LEAST = 100, 1e9, 40


@dataclass(frozen=True)
class Peaks:
    """An arm's best checkpoint against the main opponent, plain and length-controlled, each cross-fitted."""

    arm: str
    plain: Estimate
    controlled: Estimate | None


@dataclass(frozen=True)
class Robust:
    """What a report says beside equal KL."""

    axes: tuple[Comparison, ...]  # every axis, opponent and pair; KL included
    length: Mapping[str, tuple[Comparison, ...]]  # by opponent, in the order of the plain comparisons
    peaks: tuple[Peaks, ...]
    against: tuple[Comparison, ...]  # arms minus best-of-n, every opponent
    spread: Spread | None  # variances behind the main comparison
    gain: Estimate | None = None  # golden win rate that best-of-n gains per nat against the SFT policy
    warnings: tuple[str, ...] = ()


def make_robust(
    clouds: Mapping[str, Clouds],
    curves: Mapping[str, Mapping[str, ArmCurves]],
    comparisons: Mapping[str, tuple[Comparison, ...]],
    best_of_n: pd.DataFrame,
    opponent: str,
    rng_seed: int = 0,
    spread: Spread | None = None,
) -> Robust:
    """Everything beside equal KL, for the pairs of arms in `comparisons` (by opponent)."""
    pairs = [(c.a, c.b) for c in comparisons[opponent]]
    arms = tuple(dict.fromkeys(arm for pair in pairs for arm in pair))
    few = {o: replace(c, items=tuple(i for i in c.items if i.arm in arms)) for o, c in clouds.items()}
    length: dict[str, tuple[Comparison, ...]] = {}
    controlled: dict[str, ArmCurves] = {}
    warnings: list[str] = []
    for o, some in few.items():
        scored = control_length(some)
        warnings += [f"Against {o}: {w}" for w in scored.warnings]
        found = curves_for(scored, REPLICATES, rng_seed, EFFORT, LEAST, coarse=True)
        length[o] = tuple(compare(found, a, b, o, band=False) for a, b in pairs)
        controlled = found if o == opponent else controlled
    worlds = {str(variant): rows for variant, rows in best_of_n.groupby("variant")}
    against = [
        c
        for o in few
        for world, rows in worlds.items()
        for c in against_best_of_n(
            {a: k for a, k in curves[o].items() if a in arms and world_of(a, worlds) == world}, rows, o, rng_seed
        )
    ]
    here, gains = curves[opponent], gain_per_nat(best_of_n)
    return Robust(
        axes=tuple(c for o in few for c in on_axes(few[o], comparisons[o], pairs, o, rng_seed)),
        length=length,
        peaks=tuple(
            Peaks(a, peak_of(here[a])[0], peak_of(controlled[a])[0] if a in controlled else None)
            for a in arms
            if a in here
        ),
        against=tuple(against),
        spread=spread,
        gain=over_seeds(gains).estimate("mean over seeds") if gains else None,
        warnings=tuple(warnings),
    )


def on_axes(
    clouds: Clouds, at_equal_kl: tuple[Comparison, ...], pairs: Pairs, opponent: str, rng_seed: int
) -> list[Comparison]:
    """The pairs compared at equal everything that was recorded, axis by axis; those at equal KL are there already."""
    out = list(at_equal_kl)
    for axis in AXES:
        recorded = any((np.nan_to_num(c.columns[axis.column]) != 0).any() for c in clouds.items)
        if axis != KL and recorded and not (axis == PAIRS and in_step(clouds)):
            curves = curves_for(on_axis(clouds, axis), REPLICATES, rng_seed, EFFORT, LEAST, coarse=True)
            out += [compare(curves, a, b, opponent, band=False, axis=axis) for a, b in pairs]
    return out


def in_step(clouds: Clouds) -> bool:
    """Whether every run trains on equally many pairs a step: at equal pairs is then at equal steps, and said once."""
    each = [c.columns[PAIRS.column] / np.maximum(c.columns[STEPS.column], 1.0) for c in clouds.items]
    shares = np.concatenate([*each, np.zeros(0)])
    return bool(np.isfinite(shares).all() and np.unique(shares).size == 1)
