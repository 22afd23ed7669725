"""Everything the figures, the page and the terminal say, computed once from the tables.

Leaves out drawing (`figures.py`, `paper.py`, `page.js`) and sentences (`words.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from aligngap import registry
from aligngap.hypotheses.base import COMMON, Hypothesis, Judged, judge_all
from aligngap.hypotheses.decision import Decision, decide
from aligngap.hypotheses.families import correct, primary_of
from aligngap.hypotheses.view import View, under, world_of
from aligngap.report.robust import Robust, make_robust
from aligngap.stats.budgets import BUDGETS, AtBudgets, at_budgets
from aligngap.stats.clouds import Clouds, IntArray, make_clouds
from aligngap.stats.compare import EFFORT, Comparison, compare, curves_for, match_configurations, protocol_bias
from aligngap.stats.frontier import ArmCurves
from aligngap.stats.power import spread_of
from aligngap.stats.reference import reference_table
from aligngap.stats.scaling_law import GaoFit, fit_laws
from aligngap.stats.unimodal import Line, frontier_line
from aligngap.storage.records import Tables
from aligngap.types import Verdict

#: the order in which known arms are named and coloured; others follow by first appearance
ARM_ORDER = ("online", "offline", "online-golden", "offline-proxy")
#: a study with more arms features those that no section of a hypothesis shows
FEATURED = 7
#: the place of a verdict that is about no assertion of the paper
LAST = 1000
OPPONENT_ORDER = ("golden_policy", "sft", "chosen", "best_of_n")

#: column -> axis label
DYNAMICS = {
    "accuracy": "accuracy on held-out D_golden",
    "chosen_log_ratio": "log-ratio of winners, nats",
    "rejected_log_ratio": "log-ratio of losers, nats",
    "length_tokens": "response length, tokens",
    "entropy_nats": "entropy per token, nats",
    "unended": "share of unended responses",
}
SCORES = {"win_rate": "golden judge", "proxy_win_rate": "proxy judge", "oracle_win_rate": "true preference"}
#: the same where the arms were given, by the order of their judges
GIVEN_SCORES = {"win_rate": "judge", "proxy_win_rate": "second judge", "oracle_win_rate": "true preference"}
#: points of one arm in one figure, drawn and in its CSV; with more, every so many
MAX_POINTS = 600
#: texts of one checkpoint that its note in a figure holds
TEXTS = 2
#: what is drawn of a checkpoint
DRAWN = ("arm", "run", "config", "seed", "step", "kl_nats", "kl_nats_se", "win_rate", "win_rate_se", *list(SCORES)[1:])


@dataclass(frozen=True)
class Scored:
    """An arm's checkpoints with their scores, and by score the SFT policy's level (nan where not measured)."""

    rows: pd.DataFrame
    base: Mapping[str, float]


@dataclass(frozen=True)
class Analysis:
    """What a report is made of."""

    study: str
    arms: tuple[str, ...]
    opponents: tuple[str, ...]
    opponent: str
    seeds: tuple[int, ...]
    online: str
    offline: str
    records: pd.DataFrame
    samples: pd.DataFrame
    clouds: Mapping[str, Clouds]
    curves: Mapping[str, Mapping[str, ArmCurves]]  # by opponent and arm
    lines: Mapping[str, Line]  # against the main opponent
    pairs: tuple[tuple[str, str], ...]  # of arms, the two of the question first
    view: View  # against the main opponent
    primary: tuple[str, ...]  # names of the rules of the primary family
    judged: tuple[Judged, ...]
    untested: tuple[Hypothesis, ...]
    best_of_n: pd.DataFrame  # every seed, opponent and variant that changes the task
    rng_seed: int = 0
    gao: Mapping[tuple[str, str], Mapping[str, GaoFit]] = field(default_factory=dict)  # (arm, score) -> form -> fit
    gao_opponent: str = ""
    failures: Mapping[str, str] = field(default_factory=dict)  # steps that failed, and why
    decision: Decision | None = None
    costs: Mapping[str, Any] = field(default_factory=dict)  # what each run generated, as `collect` wrote it
    asked: Mapping[str, Any] = field(default_factory=dict)  # what judges that are paid for were asked, likewise
    runs: Mapping[str, Any] = field(default_factory=dict)  # each run's artifacts and what its engine told, likewise
    ratings: pd.DataFrame = field(default_factory=pd.DataFrame)  # what people said of pairs
    doubts: tuple[str, ...] = ()  # sentences about files of the folder that are not what aligngap wrote
    missing: tuple[str, ...] = ()  # runs that the study plans and that are not measured yet
    given: bool = False  # policies that somebody else has trained: the paper asserts nothing of them

    @property
    def judges(self) -> Mapping[str, str]:
        """What each score's judge is called."""
        return GIVEN_SCORES if self.given else SCORES

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """Every verdict, those on the paper's assertions R1 to R13 first, in their order."""
        return tuple(sorted((v for j in self.judged for v in j.verdicts), key=lambda v: assertion(v.name)))

    @cached_property
    def at_budgets(self) -> Mapping[str, tuple[AtBudgets, ...]]:
        """Each pair's difference at the KL budgets, by opponent, over the configurations that both arms ran."""
        view = self.view
        return {
            o: tuple(
                at_budgets(self.clouds[o], {a: 1.0, b: -1.0}, view.budgets, spent=view.spent) for a, b in self.pairs
            )
            for o in self.opponents
        }

    @property
    def main(self) -> AtBudgets:
        """The difference that the study asks for, against the main opponent."""
        return self.at_budgets[self.opponent][0]

    @cached_property
    def compared(self) -> tuple[Comparison, ...]:
        """The curve of each pair's difference against the main opponent, over the configurations that both ran."""
        clouds, curves = self.clouds[self.opponent], self.curves[self.opponent]
        return tuple(
            compare(match_configurations(clouds, curves, a, b, self.rng_seed), a, b, self.opponent)
            for a, b in self.pairs
        )

    @cached_property
    def comparisons(self) -> Mapping[str, tuple[Comparison, ...]]:
        """Every pair of arms against each opponent by the paper's protocol: each arm pooled over what it ran."""
        return {o: tuple(compare(self.curves[o], a, b, o, band=False) for a, b in self.pairs) for o in self.opponents}

    @cached_property
    def bias(self) -> Comparison | None:
        """What the paper's protocol says of the main pair where there is nothing; None where their sweeps agree."""
        return protocol_bias(self.clouds[self.opponent], self.curves[self.opponent], *self.pairs[0])

    @cached_property
    def robust(self) -> Robust:
        """The same comparisons on other axes, at equal length and against best-of-n; made when first asked for."""
        return make_robust(
            self.clouds,
            self.curves,
            self.comparisons,
            self.best_of_n,
            self.opponent,
            self.rng_seed,
            spread_of(self.main),
        )

    @cached_property
    def reference(self) -> pd.DataFrame:
        """Best-of-n of the SFT policy against the main opponent, mean over seeds."""
        return reference_table(self.best_of_n, self.opponent)

    @cached_property
    def points(self) -> Mapping[str, pd.DataFrame]:
        """Each arm's checkpoints against the main opponent that have a place in the figures, thinned if very many."""
        rows = self.records[list(DRAWN[: DRAWN.index("win_rate_se") + 1])]
        drawn = ((rows["kl_nats"] > 0) & rows["win_rate"].notna()).to_numpy()
        return {arm: rows.iloc[thin(at[drawn[at]])] for arm, at in self._places[self.opponent].items()}

    @cached_property
    def first_texts(self) -> Mapping[tuple[str, int], list[tuple[str, str]]]:
        """The first prompts and responses recorded of a checkpoint, by run and step."""
        columns = ["run", "step", "prompt", "response"]
        found: dict[tuple[str, int], list[tuple[str, str]]] = {}
        for run, step, prompt, response in self.samples[columns].itertuples(index=False):
            texts = found.setdefault((str(run), int(step)), [])
            if len(texts) < TEXTS:
                texts.append((str(prompt), str(response)))
        return found

    @cached_property
    def scored(self) -> Mapping[str, Scored]:
        """Each arm's scores for the over-optimisation figures, thinned; arms without a score or a KL are left out."""
        rows, found = self.records[list(DRAWN)], {}
        known = (rows["kl_nats"].notna() & rows[list(SCORES)].notna().any(axis=1)).to_numpy()
        for arm, at in self._places[self.gao_opponent].items():
            if arm in self.arms and known[at].any():
                base = rows[["seed", "step", *SCORES]].iloc[at[known[at]]]
                found[arm] = Scored(rows.iloc[thin(at[known[at]])], {s: sft_level(base, s) for s in SCORES})
        return {arm: found[arm] for arm in self.arms if arm in found}

    @cached_property
    def _places(self) -> Mapping[str, Mapping[str, IntArray]]:
        """Where each arm's rows against each opponent lie in the records."""
        arm, arms = pd.factorize(self.records["arm"])
        opponent, opponents = pd.factorize(self.records["opponent"])
        return {
            str(o): {str(a): np.flatnonzero((opponent == i) & (arm == j)) for j, a in enumerate(arms)}
            for i, o in enumerate(opponents)
        }

    @cached_property
    def training(self) -> pd.DataFrame:
        """`dynamics` of every quantity that was measured."""
        columns = [c for c in DYNAMICS if self.records[c].notna().any()]
        return dynamics(self.records, self.opponent, columns) if columns else pd.DataFrame()

    @cached_property
    def sft_level(self) -> float:
        """Win rate of the SFT policy against the main opponent, mean over seeds; nan if not measured."""
        return sft_level(self.records[["seed", "step", "win_rate"]][self.records["opponent"] == self.opponent])


def thin(places: IntArray, cap: int = MAX_POINTS) -> IntArray:
    """At most `cap` places, spread evenly."""
    if len(places) <= cap:
        return places
    return np.asarray(places[np.linspace(0, len(places) - 1, cap).round().astype(int)])


def assertion(name: str) -> int:
    """The number of the paper's assertion that a verdict is about, R1 to R13: "R4 window" -> 4; `LAST` for others."""
    head = name.split()[0]
    return int(head[1:]) if head[:1] == "R" and head[1:].isdecimal() else LAST


def pick_featured(arms: tuple[str, ...], judged: Sequence[Judged], compared: tuple[str, str]) -> tuple[str, ...]:
    """The arms of the page's own figures: all, or, where they are many, those that no hypothesis's section shows."""
    if len(arms) <= FEATURED:
        return arms
    sections = {a for j in judged for a in j.arms} - {*COMMON, *ARM_ORDER, *compared}
    return tuple(a for a in arms if a not in sections)


def order_names(names: list[str], known: tuple[str, ...]) -> tuple[str, ...]:
    """Known names first in their order, then the others as they appear."""
    seen = list(dict.fromkeys(map(str, names)))
    return tuple([n for n in known if n in seen] + [n for n in seen if n not in known])


def pair_arms(arms: tuple[str, ...], online: str, offline: str, worlds: Collection[str] = ()) -> list[tuple[str, str]]:
    """online against offline, then every other arm against each of the two.

    An arm under a variant that changes the task (`worlds`) has judges and opponents of its own, so it is compared with
    the two under that variant.
    """
    pairs = [(online, offline)]
    for arm in arms:
        if arm not in (online, offline):
            world = world_of(arm, worlds)
            bases = [b for b in (under(offline, world), under(online, world)) if b in arms and b != arm]
            pairs += [(arm, b) for b in bases if (b, arm) not in pairs]
    return pairs


@dataclass(frozen=True)
class Question:
    """What a study asks of its records, as declared in its file before it ran."""

    online: str = "online"
    offline: str = "offline"
    budgets: Sequence[float] = BUDGETS  # KL in nats
    spent: Sequence[int] = ()  # seeds that only choose configurations
    primary: Sequence[str] = ()
    margin: float | None = None  # of a decision, in win rate; None: no decision is asked
    decision_kl: float | None = None
    cheaper: Sequence[str] = ()  # arms that a decision may recommend in online's place
    given: bool = False  # the arms are policies that somebody else has trained, of which no hypothesis is asked
    rng_seed: int = 0


@dataclass(frozen=True)
class Background:
    """What the provenance tells beside the tables, as `collect` writes it."""

    pipeline: Sequence[Mapping[str, Any]] = ()  # what the steps before the arms found
    costs: Mapping[str, Any] = field(default_factory=dict)
    judges: Mapping[str, Any] = field(default_factory=dict)
    runs: Mapping[str, Any] = field(default_factory=dict)
    missing: Sequence[str] = ()  # runs not measured yet


def analyse(tables: Tables, asks: Question | None = None, background: Background | None = None) -> Analysis:
    """Frontiers, comparisons, verdicts and fits of a study, from the tables of its folder."""
    asks, background = asks or Question(), background or Background()
    records, per_prompt, best_of_n = tables.records, tables.per_prompt, tables.best_of_n
    online, offline = asks.online, asks.offline
    opponents = order_names(list(records["opponent"].unique()), OPPONENT_ORDER)
    arms = order_names(list(records["arm"].unique()), ARM_ORDER)

    def against(opponent: str, effort: float = EFFORT) -> tuple[Clouds, dict[str, ArmCurves]]:
        found = make_clouds(records, per_prompt, opponent)
        return found, curves_for(found, rng_seed=asks.rng_seed, effort=effort)

    # The others' intervals stand in tables only, so half of the effort does.
    seen = {o: against(o, EFFORT if o == opponents[0] else EFFORT / 2) for o in opponents}
    main_opponent = next((o for o, (_, found) in seen.items() if found), opponents[0])
    main_curves = seen[main_opponent][1]
    view = View(
        records,
        per_prompt,
        main_opponent,
        online,
        offline,
        curves=main_curves,
        clouds=seen[main_opponent][0],
        pipeline=background.pipeline,
        probe=tables.probe,
        best_of_n=best_of_n,
        crossed=tables.crossed,
        budgets=asks.budgets,
        spent=asks.spent,
    )
    hypotheses = () if asks.given else registry.every("hypotheses")
    family = () if asks.given else primary_of(view, hypotheses, asks.primary)
    judged, untested = judge_all(hypotheses, view)
    judged = correct(judged, family)
    arms = pick_featured(arms, judged, (online, offline))
    pairs = pair_arms(arms, online, offline, set(best_of_n["variant"]))
    lines = {a: frontier_line(c) for a, c in main_curves.items()}
    gao_opponent = "sft" if "sft" in opponents else main_opponent
    gao = fit_laws(records, gao_opponent, arms)
    decision = None if asks.margin is None else decide(view, asks.margin, asks.cheaper, asks.decision_kl)
    return Analysis(
        study=str(records["study"].iloc[0]),
        arms=arms,
        opponents=opponents,
        opponent=main_opponent,
        seeds=tuple(sorted(int(s) for s in records["seed"].unique())),
        online=online,
        offline=offline,
        records=records,
        samples=tables.samples,
        clouds={o: clouds for o, (clouds, _) in seen.items()},
        curves={o: curves for o, (_, curves) in seen.items()},
        lines=lines,
        pairs=tuple(pairs),
        view=view,
        primary=family,
        judged=judged,
        untested=untested,
        best_of_n=best_of_n,
        rng_seed=asks.rng_seed,
        gao=gao,
        gao_opponent=gao_opponent,
        failures=tables.failures,
        decision=decision,
        costs=background.costs,
        asked=background.judges,
        runs=background.runs,
        ratings=tables.ratings,
        doubts=tables.doubts,
        missing=tuple(background.missing),
        given=asks.given,
    )


def sft_level(rows: pd.DataFrame, column: str = "win_rate") -> float:
    """Score of the SFT policy (step 0) in these rows, mean over seeds; nan if not measured."""
    values = rows[["seed", column]][rows["step"] == 0].groupby("seed")[column].mean()
    return float(values.mean()) if len(values) else float("nan")


def dynamics(records: pd.DataFrame, opponent: str, columns: list[str]) -> pd.DataFrame:
    """Per arm and step: mean over runs and seeds of each column, their least and greatest, and how many runs."""
    rows = records[["arm", "step", *columns]][records["opponent"] == opponent]
    grouped = rows.groupby(["arm", "step"])[columns].agg(["mean", "min", "max", "count"])
    grouped.columns = ["_".join(map(str, pair)) for pair in grouped.columns.to_flat_index()]
    return grouped.reset_index()
