"""What a hypothesis may look at: records, frontiers, comparisons and contrasts at equal KL, all against one opponent.

A `View` answers questions about arms by name; an arm under a variant is "ARM[VARIANT]". Whatever the records do not
hold comes back undefined, with a sentence that says what is missing; nothing here raises for thin data.
Leaves out: decisions. Those are the rules' (`rules.py`).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from aligngap.hypotheses.verdicts import Ends, last_values
from aligngap.stats.clouds import make_clouds
from aligngap.stats.compare import Comparison, compare, curves_for
from aligngap.stats.estimate import NAN, FloatArray, two_level
from aligngap.stats.frontier import ArmCurves
from aligngap.stats.ratio import ratio
from aligngap.storage.columns import BEST_OF_N_COLUMNS, PROBE_COLUMNS
from aligngap.storage.records import empty
from aligngap.types import Estimate

#: a weight of an arm in a contrast: one number, or one per seed
Weights = Mapping[str, float | Mapping[int, float]]
#: range of KL (ratio of its ends) below which arms are not averaged: a quarter octave, as in `stats.compare`
NARROW = 2.0**0.25
NOTHING = Estimate(NAN, NAN, 0, "undefined")


@dataclass(frozen=True)
class Contrast:
    """A weighted sum of arms' win rates at equal KL, averaged over the ln KL range that all of them reached."""

    effect: Estimate
    interval: tuple[float, float]
    kl: tuple[float, float] = (NAN, NAN)
    seeds: tuple[int, ...] = ()
    why: str = ""  # what is missing, where it is undefined

    @property
    def defined(self) -> bool:
        return bool(np.isfinite(self.effect.value))


def base_of(arm: str) -> str:
    return arm.partition("[")[0]


def variant_of(arm: str) -> str:
    """The variant an arm was run under; "" for the study as it stands."""
    return arm.partition("[")[2].removesuffix("]")


def world_of(arm: str, worlds: Collection[str]) -> str:
    """The variant an arm was run under, if it is one of `worlds`, those that change the task; else ""."""
    return variant_of(arm) if variant_of(arm) in worlds else ""


def under(arm: str, variant: str) -> str:
    return f"{arm}[{variant}]" if variant else arm


class View:
    """One study's records against one opponent."""

    def __init__(
        self,
        records: pd.DataFrame,
        per_prompt: pd.DataFrame,
        opponent: str = "golden_policy",
        online: str = "online",
        offline: str = "offline",
        *,
        curves: Mapping[str, ArmCurves] | None = None,
        pipeline: Sequence[Mapping[str, Any]] = (),
        probe: pd.DataFrame | None = None,
        best_of_n: pd.DataFrame | None = None,
    ) -> None:
        self.records = records[records["opponent"] == opponent]
        self._per_prompt = per_prompt[per_prompt["opponent"] == opponent] if len(per_prompt) else per_prompt
        self.opponent, self.online, self.offline, self.pipeline = opponent, online, offline, tuple(pipeline)
        self.probe = empty(PROBE_COLUMNS) if probe is None else probe
        self.best_of_n = empty(BEST_OF_N_COLUMNS) if best_of_n is None else best_of_n
        self.curves = dict(curves) if curves is not None else self._curves(self.records)
        self.arms = tuple(map(str, self.records["arm"].unique()))
        self.seeds = tuple(sorted(int(s) for s in self.records["seed"].unique()))
        self._matched: dict[tuple[str, ...], dict[str, ArmCurves]] = {}
        self._last: dict[tuple[str, str], Ends] = {}
        self._upper: dict[tuple[str, float], dict[int, tuple[float, FloatArray]]] = {}

    def has(self, *arms: str) -> bool:
        return all(a in self.arms for a in arms)

    def numbered(self, prefix: str) -> dict[str, int]:
        """Arms named `prefix` and a number, and that number, in its order: "sync-16" -> 16."""
        found = {a: re.fullmatch(rf"{re.escape(prefix)}(\d+)", a) for a in self.arms}
        return dict(sorted(((a, int(m[1])) for a, m in found.items() if m), key=lambda item: item[1]))

    def variants(self, arm: str) -> list[str]:
        """The variants under which an arm was run, the study as it stands ("") included."""
        return [variant_of(a) for a in self.arms if base_of(a) == arm]

    # ------------------------------------------------------------------------------------------- at equal KL

    def matched(self, *arms: str) -> dict[str, ArmCurves]:
        """Frontiers of these arms from the configurations that every one of them ran: equal effort, equal settings."""
        key = tuple(sorted(set(arms)))
        if key not in self._matched:
            rows = self.records[self.records["arm"].isin(key)]
            configs = [set(rows["config"][rows["arm"] == a]) for a in key]
            shared = set.intersection(*configs) if configs else set()
            self._matched[key] = self._curves(rows[rows["config"].isin(shared)])
        return self._matched[key]

    def compare(self, a: str, b: str, *, matched: bool = False) -> Comparison:
        """a - b at equal KL; `matched`: only at the hyper-parameters that both arms ran."""
        return compare(self.matched(a, b) if matched else self.curves, a, b, self.opponent)

    def contrast(self, weights: Weights, *, matched: bool = False) -> Contrast:
        """The weighted sum of arms at equal KL, paired by seed and prompt."""
        found = self._terms([(weights, self._of(weights, matched))])
        if isinstance(found, str):
            return Contrast(NOTHING, (NAN, NAN), why=found)
        [(point, reps)], seeds, kl = found
        mean = two_level(point, reps)
        effect = mean.estimate(f"contrast at equal KL, averaged over the common ln KL range, {len(seeds)} seed(s)")
        return Contrast(effect, mean.interval(), kl, seeds)

    def share(
        self, weights: Weights, of: Weights | None = None, *, matched: bool = False
    ) -> tuple[Estimate, tuple[float, float], str]:
        """A contrast as a share of the opening gap (or of `of`): estimate, interval, and why it is undefined.

        A share is of a lead: it is undefined where the gap is not surely above 0, and also where it is surely below 0,
        since an arm that is worse than offline would then close the gap by falling as low as online.
        Both are averaged over the same KL range, the one that every arm in either reached; `matched` holds for the
        contrast, while the gap is that of the arms as they were run.
        """
        gap: Weights = of or {self.online: 1.0, self.offline: -1.0}
        found = self._terms([(weights, self._of(weights, matched)), (gap, self.curves)])
        if isinstance(found, str):
            return NOTHING, (NAN, NAN), found
        (top, bottom), _, _ = found
        value, interval = ratio(*top, *bottom)
        if not np.isfinite(value.value):
            return value, interval, "The gap it would be a share of is not told from 0 over this range."
        if bottom[0].mean() < 0:
            return NOTHING, (NAN, NAN), "The gap it would be a share of is negative over this range: no lead to close."
        return value, interval, ""

    def _of(self, weights: Weights, matched: bool) -> Mapping[str, ArmCurves]:
        return self.matched(*weights) if matched else self.curves

    def _curves(self, rows: pd.DataFrame) -> dict[str, ArmCurves]:
        runs = self._per_prompt
        if len(runs) and len(rows) < len(self.records):
            runs = runs[runs["run"].isin(rows["run"].unique())]
        return dict(curves_for(make_clouds(rows, runs, self.opponent)))

    def _terms(
        self, sums: Sequence[tuple[Weights, Mapping[str, ArmCurves]]]
    ) -> tuple[list[tuple[FloatArray, FloatArray]], tuple[int, ...], tuple[float, float]] | str:
        """Each weighted sum as point [S] and replicates [S, B] over one KL range and the seeds that all arms share."""
        missing = [a for weights, curves in sums for a in weights if a not in curves]
        if missing:
            return f"No usable checkpoint of {' and '.join(dict.fromkeys(missing))}."
        used = [curves[a] for weights, curves in sums for a in weights]
        seeds = tuple(s for s in used[0].seeds if all(s in c.seeds for c in used))
        if not seeds:
            return "The arms share no seed."
        grids = [np.round(c.grid, 9) for c in used]
        grid = grids[0]
        for g in grids[1:]:
            grid = np.intersect1d(grid, g)
        rows = [[c.seeds.index(s) for s in seeds] for c in used]
        inside = np.ones(len(grid), dtype=bool)
        for c, g, at in zip(used, grids, rows, strict=True):
            inside &= np.isfinite(c.frontier[at][:, np.isin(g, grid)]).all(axis=0)
        grid = grid[inside]
        if len(grid) < 2 or np.exp(grid[-1] - grid[0]) < NARROW:
            return "No range of KL was reached by every one of these arms, so they are not compared at equal KL."
        draws = min(c.frontier_reps.shape[1] for c in used)
        out = []
        for weights, curves in sums:
            point, reps = np.zeros(len(seeds)), np.zeros((len(seeds), draws))
            for arm, weight in weights.items():
                c = curves[arm]
                at, here = [c.seeds.index(s) for s in seeds], np.isin(np.round(c.grid, 9), grid)
                w = np.array([weight[s] if isinstance(weight, Mapping) else weight for s in seeds])
                point += w * c.frontier[at][:, here].mean(axis=1)
                reps += w[:, None] * c.frontier_reps[at, :draws][:, :, here].mean(axis=2)
            out.append((point, reps))
        return out, seeds, (float(np.exp(grid[0])), float(np.exp(grid[-1])))

    # ------------------------------------------------------------------------------------ peaks, ends and parts

    def peak(self, weights: Weights) -> Contrast:
        """The weighted sum of the arms' best checkpoints (each chosen on other prompts than it is scored on)."""
        missing = [a for a in weights if a not in self.curves]
        if missing:
            return Contrast(NOTHING, (NAN, NAN), why=f"No usable checkpoint of {' and '.join(missing)}.")
        used = [self.curves[a] for a in weights]
        seeds = tuple(s for s in used[0].seeds if all(s in c.seeds for c in used))
        if not seeds:
            return Contrast(NOTHING, (NAN, NAN), why="The arms share no seed.")
        draws = min(c.peak_reps.shape[1] for c in used)
        point, reps = np.zeros(len(seeds)), np.zeros((len(seeds), draws))
        for (_, weight), c in zip(weights.items(), used, strict=True):
            at = [c.seeds.index(s) for s in seeds]
            w = np.array([weight[s] if isinstance(weight, Mapping) else weight for s in seeds])
            point, reps = point + w * c.peak[at], reps + w[:, None] * c.peak_reps[at, :draws]
        found = two_level(point, reps)
        return Contrast(found.estimate("difference of cross-fitted peaks"), found.interval(), seeds=seeds)

    def last(self, arm: str, column: str) -> Ends:
        """Per seed (value, standard error) at the last checkpoint of the arm's runs, mean over its runs."""
        if (arm, column) not in self._last:
            self._last[arm, column] = last_values(self.records, arm, column)
        return self._last[arm, column]

    def part(self, part: str, what: str, variant: str = "") -> dict[int, float]:
        """Per seed what a step before the arms found, for instance ("proxy judge", "held out accuracy")."""
        name = under(part, variant)
        return {
            int(row["seed"]): float(row["value"])
            for row in self.pipeline
            if row["part"] == name and row["what"] == what
        }

    def wins(self, arm: str, draws: int = 400) -> dict[int, tuple[pd.DataFrame, FloatArray, FloatArray]]:
        """Per seed the arm's checkpoints [C], their win rates [C], and these under resampled prompts [C, B].

        Prompts are resampled alike in every arm of a seed.
        """
        table = self._per_prompt
        if not len(table):
            return {}
        rows = self.records[(self.records["arm"] == arm) & (self.records["step"] > 0)]
        table = table[(table["arm"] == arm) & (table["step"] > 0)]
        out = {}
        for seed, mine in table.groupby("seed"):
            wide = mine.pivot_table(index=["run", "step"], columns="prompt_id", values="win").dropna(axis=1)
            found = rows.set_index(["run", "step"]).reindex(wide.index).reset_index()
            values = wide.to_numpy(np.float64)
            n = values.shape[1]
            if n:
                counts = np.random.default_rng([int(str(seed)), n]).multinomial(n, np.full(n, 1 / n), size=draws)
                out[int(str(seed))] = (found, values.mean(axis=1), values @ counts.T / n)
        return out

    def upper(self, arm: str, quantile: float) -> dict[int, tuple[float, FloatArray]]:
        """Per seed the quantile of the win rates of all the arm's checkpoints, and its replicates [B].

        The protocol of arXiv 2405.08448, section 5.5 (90%: a best that no single lucky checkpoint decides).
        """
        if (arm, quantile) not in self._upper:
            self._upper[arm, quantile] = {
                seed: (float(np.quantile(point, quantile)), np.asarray(np.quantile(reps, quantile, axis=0)))
                for seed, (_, point, reps) in self.wins(arm).items()
            }
        return self._upper[arm, quantile]
