"""What a hypothesis may look at: records, checkpoints, frontiers and contrasts at equal KL, against one opponent.

A `View` answers questions about arms by name; an arm under a variant is "ARM[VARIANT]". Whatever the records do not
hold comes back undefined, with a sentence that says what is missing; nothing here raises for thin data.
Leaves out: decisions. Those are the rules' (`rules.py`).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from aligngap.hypotheses.verdicts import Ends, last_values
from aligngap.stats.budgets import BUDGETS, AtBudgets, Budget, at_budgets
from aligngap.stats.clouds import SCORES, Clouds, column_clouds, make_clouds
from aligngap.stats.compare import curves_for
from aligngap.stats.estimate import NAN, FloatArray
from aligngap.stats.frontier import ArmCurves
from aligngap.stats.peaks import peaks_of
from aligngap.stats.ratio import ratio
from aligngap.stats.seedwise import Mean, Seedwise, mean_over_seeds
from aligngap.storage.columns import BEST_OF_N_COLUMNS, PROBE_COLUMNS
from aligngap.storage.records import empty
from aligngap.types import Estimate

#: a weight of an arm in a contrast: one number, or one per seed
Weights = Mapping[str, float | Mapping[int, float]]
NOTHING = Estimate(NAN, NAN, 0, "undefined")


@dataclass(frozen=True)
class Contrast:
    """A weighted sum of arms at equal KL: what was found at each budget, and the largest budget that is judged.

    `effect` and `interval` are those of that budget, the interval one that covers all judged budgets at once.
    """

    found: AtBudgets

    @property
    def last(self) -> Budget | None:
        """The largest budget that is judged."""
        return self.found.judged[-1] if self.found.judged else None

    @property
    def effect(self) -> Estimate:
        return self.last.mean if self.last else NOTHING

    @property
    def interval(self) -> tuple[float, float]:
        return self.last.interval if self.last else (NAN, NAN)

    @property
    def kl(self) -> float:
        return self.last.kl if self.last else NAN

    @property
    def seeds(self) -> tuple[int, ...]:
        return self.found.seeds

    @property
    def why(self) -> str:
        """What is missing, where it is undefined."""
        return self.found.why

    @property
    def defined(self) -> bool:
        return self.last is not None


def base_of(arm: str) -> str:
    """The arm without the variant that it is run under."""
    return arm.partition("[")[0]


def variant_of(arm: str) -> str:
    """The variant an arm was run under; "" for the study as it stands."""
    return arm.partition("[")[2].removesuffix("]")


def world_of(arm: str, worlds: Collection[str]) -> str:
    """The variant an arm was run under, if it is one of `worlds`, those that change the task; else ""."""
    return variant_of(arm) if variant_of(arm) in worlds else ""


def under(arm: str, variant: str) -> str:
    """The name of an arm under a variant."""
    return f"{arm}[{variant}]" if variant else arm


def by_evaluator(evaluator: str) -> str:
    """The column of a view's records that holds the win rate by one golden judge of a crossed study."""
    return f"win_rate by {evaluator}"


def with_evaluators(records: pd.DataFrame, crossed: pd.DataFrame) -> pd.DataFrame:
    """Records with a column of win rates for every evaluator of `crossed`, and its standard errors."""
    wide = crossed.pivot(index=["run", "step"], columns="evaluator", values=["win_rate", "win_rate_se"])
    wide.columns = pd.Index([by_evaluator(str(c[1])) + str(c[0]).removeprefix("win_rate") for c in wide.columns])
    return records.merge(wide.reset_index(), on=["run", "step"], how="left")


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
        clouds: Clouds | None = None,
        pipeline: Sequence[Mapping[str, Any]] = (),
        probe: pd.DataFrame | None = None,
        best_of_n: pd.DataFrame | None = None,
        crossed: pd.DataFrame | None = None,
        budgets: Sequence[float] = BUDGETS,
        spent: Collection[int] = (),
    ) -> None:
        self.records = records[records["opponent"] == opponent]
        self._per_prompt = per_prompt[per_prompt["opponent"] == opponent] if len(per_prompt) else per_prompt
        self.opponent, self.online, self.offline, self.pipeline = opponent, online, offline, tuple(pipeline)
        self.budgets, self.spent = tuple(budgets), tuple(spent)
        self.probe = empty(PROBE_COLUMNS) if probe is None else probe
        self.best_of_n = empty(BEST_OF_N_COLUMNS) if best_of_n is None else best_of_n
        self.evaluators = [] if crossed is None else sorted(map(str, crossed["evaluator"].unique()))
        if crossed is not None and len(crossed):
            self.records = with_evaluators(self.records, crossed[crossed["opponent"] == opponent])
        self._clouds = {} if clouds is None else {"win": clouds}
        self.arms = tuple(map(str, self.records["arm"].unique()))
        self.seeds = tuple(sorted(int(s) for s in self.records["seed"].unique() if s not in self.spent))
        self._curves = curves
        self._last: dict[tuple[str, str, str], Ends] = {}
        self._contrasts: dict[tuple[tuple[str, str], tuple[float, ...]], Contrast] = {}
        self._upper: dict[tuple[str, float], dict[int, tuple[float, FloatArray]]] = {}

    @property
    def curves(self) -> Mapping[str, ArmCurves]:
        """Frontiers of all arms, pooled over the configurations that each ran."""
        if self._curves is None:
            self._curves = curves_for(self.clouds())
        return self._curves

    def clouds(self, score: str = "win") -> Clouds:
        """The checkpoints by a score: `win` (golden's), `proxy_win` or `oracle_win`; or by a column of the records."""
        if score not in self._clouds:
            made = (
                make_clouds(self.records, self._per_prompt, self.opponent, score)
                if score in SCORES
                else column_clouds(self.records, score)
            )
            self._clouds[score] = made
        return self._clouds[score]

    def at(self, *budgets: float) -> View:
        """The same view with other KL budgets, in nats."""
        other = copy(self)
        other.budgets = budgets
        return other

    def only(self, arms: Sequence[str], config: str) -> View:
        """The view of these arms' runs at one configuration."""
        records = self.records[self.records["arm"].isin(arms) & (self.records["config"] == config)]
        table = self._per_prompt
        mine = table[table["run"].isin(records["run"].unique())] if len(table) else table
        return View(
            records, mine, self.opponent, self.online, self.offline, budgets=self.budgets, spent=self.spent
        )  # fmt: skip

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

    def contrast(self, weights: Weights, score: str = "win") -> Contrast:
        """The weighted sum of arms at each KL budget, over the configurations that all of them ran, seed by seed."""
        named = {a: sorted(w.items()) if isinstance(w, Mapping) else w for a, w in weights.items()}
        key = (repr(sorted(named.items())), score)
        if (key, self.budgets) not in self._contrasts:
            found = at_budgets(self.clouds(score), weights, self.budgets, spent=self.spent)
            self._contrasts[key, self.budgets] = Contrast(found)
        return self._contrasts[key, self.budgets]

    def share(self, weights: Weights, of: Weights | None = None) -> tuple[Estimate, tuple[float, float], str]:
        """A contrast as a share of the opening gap (or of `of`): estimate, interval, and why it is undefined.

        Both are taken at the largest budget at which both are judged. A share is of a lead: it is undefined where the
        gap is not surely above 0, and also where it is surely below 0, since an arm that is worse than offline would
        then close the gap by falling as low as online.
        """
        gap: Weights = of or {self.online: 1.0, self.offline: -1.0}
        top, bottom = self.contrast(weights).found, self.contrast(gap).found
        for found in (top, bottom):
            if found.why:
                return NOTHING, (NAN, NAN), found.why
        both = [k for k, (a, b) in enumerate(zip(top.budgets, bottom.budgets, strict=True)) if a.judged and b.judged]
        if not both or top.seeds != bottom.seeds or top.values is None or bottom.values is None:
            return NOTHING, (NAN, NAN), "The arms and the gap are not judged at the same budget over the same seeds."
        value, interval = ratio(top.values.at(both[-1]), bottom.values.at(both[-1]))
        if not np.isfinite(value.value):
            return value, interval, "The gap it would be a share of is not told from 0 at this KL."
        if np.mean(bottom.values.value[:, both[-1]]) < 0:
            return NOTHING, (NAN, NAN), "The gap it would be a share of is negative at this KL: no lead to close."
        return value, interval, ""

    # ------------------------------------------------------------------------------------ peaks, ends and parts

    def peak(self, weights: Weights) -> tuple[Mean, tuple[int, ...]] | str:
        """The weighted sum of the arms' best checkpoints, chosen on other seeds; or why there is none.

        The arms choose among the configurations that all of them ran.
        """
        found = peaks_of(self.clouds(), tuple(weights), spent=self.spent)
        if isinstance(found, str):
            return found
        total: Seedwise | None = None
        for arm, weight in weights.items():
            values = found[arm].values
            each = np.array([weight[s] if isinstance(weight, Mapping) else weight for s in values.seeds])
            term = values.times(each)
            total = term if total is None else total.plus(term)
        assert total is not None
        return mean_over_seeds(total), total.seeds

    def last(self, arm: str, column: str, like: str = "") -> Ends:
        """Per seed (value, standard error) at the last checkpoint of the arm's runs, mean over its runs.

        With `like` only over the configurations that this other arm ran too.
        """
        if (arm, column, like) not in self._last:
            rows = self.records[~self.records["seed"].isin(self.spent)]
            if like:
                rows = rows[rows["config"].isin(rows["config"][rows["arm"] == like].unique())]
            self._last[arm, column, like] = last_values(rows, arm, column)
        return self._last[arm, column, like]

    def part(self, part: str, what: str, variant: str = "") -> dict[int, float]:
        """Per seed what a step before the arms found, for instance ("proxy judge", "held out accuracy")."""
        name = under(part, variant)
        return {
            int(row["seed"]): float(row["value"])
            for row in self.pipeline
            if row["part"] == name and row["what"] == what and isinstance(row["value"], int | float)
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
            found = wide.index.to_frame(index=False).merge(rows, how="left", on=["run", "step"])
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
