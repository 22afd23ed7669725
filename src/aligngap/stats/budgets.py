"""Arms at fixed KL budgets, configuration by configuration: the estimand that every verdict rests on.

*Matched.* A run is a piecewise-linear curve of its win rate in ln KL, and it is read at a few budgets named beforehand
(1, 2, 4 and 8 nats). Arms are subtracted within a seed and a configuration (the same beta, learning rate and steps),
then averaged over the configurations in which every one of the arms reached the budget. So no arm has more attempts
than another, and nothing is averaged over KL.
*Chosen.* A second view, for tables: each arm at its best configuration of the grid that all of them ran, chosen on
other seeds than it is scored on: on the spent seeds where some are named, else on all seeds but the one scored. No
verdict of a primary family rests on it: by luck the arms may choose different
configurations, which no number of judged seeds averages out.

The interval is Student's t over seeds with as many degrees of freedom as seeds less one, its variance that between
seeds plus what prompts shared by the seeds add. Where seeds happen to agree it is no narrower than the normal interval
that the prompts' noise alone gives. Budgets are covered together by Bonferroni's bound: the quantile is that of
1 - (1 - level)/2m for m budgets, 3.96 for three budgets at 5 seeds and 2.93 at 10. The noise of prompts is the delta
method's: a win rate at a budget is a smooth function of means over prompts (of wins, and of KL where it is known prompt
by prompt), so every prompt has an influence on it and no bootstrap is needed.

An arm that does not reach a budget is not missing at random: it moved less. So a budget is judged only where every
seed has a configuration in which all arms reached it; elsewhere the estimate over the seeds that have one is given
without an interval, and how many runs fell short is counted for each arm. Nothing is extrapolated.
Leaves out: what happens between budgets, which the figures show.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import special

from aligngap.stats.clouds import Cloud, Clouds, restricted
from aligngap.stats.estimate import NAN, FloatArray
from aligngap.types import Estimate

#: nats at which arms are compared unless a study names others
BUDGETS = (1.0, 2.0, 4.0, 8.0)
#: seeds below which an estimate is given and no verdict
LEAST_SEEDS = 5
LEVEL = 0.95
#: level of the interval that two one-sided tests at 5% amount to
EQUIVALENCE_LEVEL = 0.90
TINY_KL = 1e-9

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Reading:
    """One curve read at M places: its values, each prompt's influence on them, and errors that no prompt explains.

    `influence` sums to 0 over prompts, and the sum of its squares is the variance that the prompts give to a value.
    """

    value: FloatArray  # [M] nan where the curve does not reach
    prompts: tuple[str, ...]
    influence: FloatArray  # [M, P]
    se: FloatArray  # [M] where wins are not known prompt by prompt
    short: Mask  # [M] whether the curve ends below
    passed: Mask  # [M] whether its first checkpoint lies above


@dataclass(frozen=True)
class Seedwise:
    """A number for each seed and place, with what each prompt adds to it; sums and multiples are again such numbers.

    value [S, M] (nan where undefined), influence [S, M, U] over the U prompts of all seeds, extra [S, M] the variance
    that no recorded prompt explains.
    """

    seeds: tuple[int, ...]
    prompts: tuple[str, ...]
    value: FloatArray
    influence: FloatArray
    extra: FloatArray

    def plus(self, other: Seedwise, weight: float = 1.0) -> Seedwise:
        """The sum of this and `weight` times another over the same seeds and places."""
        mine, theirs = self, other
        if self.prompts != other.prompts:
            prompts = tuple(dict.fromkeys((*self.prompts, *other.prompts)))
            mine, theirs = self.over(prompts), other.over(prompts)
        return replace(
            mine,
            value=mine.value + weight * theirs.value,
            influence=mine.influence + weight * theirs.influence,
            extra=mine.extra + weight**2 * theirs.extra,
        )

    def over(self, prompts: tuple[str, ...]) -> Seedwise:
        """The same over these prompts, which hold its own; others add nothing to it."""
        wider = np.zeros((*self.value.shape, len(prompts)))
        wider[:, :, _Places(prompts)(self.prompts)] = self.influence
        return replace(self, prompts=prompts, influence=wider)

    def times(self, weights: FloatArray) -> Seedwise:
        """The same with each seed multiplied by its weight [S]."""
        w = np.asarray(weights, dtype=np.float64)[:, None]
        return replace(self, value=w * self.value, influence=w[:, :, None] * self.influence, extra=w**2 * self.extra)

    def at(self, place: int) -> Seedwise:
        """The same at one place alone."""
        k = slice(place, place + 1)
        return replace(self, value=self.value[:, k], influence=self.influence[:, k], extra=self.extra[:, k])


@dataclass(frozen=True)
class Mean:
    """The mean over seeds at one place, with t intervals of any level.

    `seeds_se` is the standard error from the spread of the seeds, nan for one; `prompts_se` that of the prompts alone.
    """

    value: float
    seeds_se: float
    prompts_se: float
    n: int

    @property
    def se(self) -> float:
        """The larger of the two standard errors."""
        return float(np.fmax(self.seeds_se, self.prompts_se))

    def interval(self, level: float = LEVEL, together: int = 1) -> tuple[float, float]:
        """The t interval that covers with `level` when `together` such intervals are to cover at once.

        One seed has no degrees of freedom: its interval rests on the prompts alone, with normal quantiles.
        """
        if not np.isfinite(self.se):
            return NAN, NAN
        half = critical(1, level, together) * self.prompts_se
        if self.n > 1:
            half = max(half, critical(self.n, level, together) * self.seeds_se)
        return self.value - half, self.value + half

    def p(self) -> float:
        """The two-sided p-value of no difference; nan with fewer than two seeds."""
        if self.n < 2 or not np.isfinite(self.se):
            return NAN
        if self.se == 0:
            return 1.0 if self.value == 0 else 0.0
        with np.errstate(divide="ignore"):
            by_seeds = special.stdtr(self.n - 1, -abs(self.value) / np.float64(self.seeds_se))
            by_prompts = special.ndtr(-abs(self.value) / np.float64(self.prompts_se))
        return float(2 * np.fmax(by_seeds, by_prompts))


@dataclass(frozen=True)
class Budget:
    """A weighted sum of arms at one KL: its mean over seeds, with intervals where it is judged."""

    kl: float
    mean: Estimate
    interval: tuple[float, float]  # 95%, of all judged budgets at once
    equivalence: tuple[float, float]  # 90% of this one: what two one-sided tests compare with a margin
    p: float  # two-sided, of this budget alone
    by_seed: tuple[float, ...]  # nan where a seed has no configuration that reached it in every arm
    judged: bool  # every seed has one
    short: Mapping[str, int]  # runs of shared configurations that ended below this KL, by arm


@dataclass(frozen=True)
class AtBudgets:
    """A weighted sum of arms at each budget; `why` says what is missing where nothing can be said."""

    budgets: tuple[Budget, ...]
    seeds: tuple[int, ...] = ()
    configs: tuple[str, ...] = ()
    values: Seedwise | None = None
    why: str = ""

    @property
    def judged(self) -> tuple[Budget, ...]:
        return tuple(b for b in self.budgets if b.judged)

    @property
    def p(self) -> float:
        """The p-value of no difference at any judged budget (Bonferroni over them); nan where none is judged."""
        known = [b.p for b in self.judged if np.isfinite(b.p)]
        return min(1.0, len(known) * min(known)) if known else NAN


def critical(seeds: int, level: float = LEVEL, together: int = 1) -> float:
    """The quantile by which a standard error over this many seeds becomes the half-width of `together` intervals."""
    tail = (1 - level) / 2 / max(together, 1)
    return float(-special.stdtrit(seeds - 1, tail)) if seeds > 1 else float(-special.ndtri(tail))


def read_run(cloud: Cloud, run: int, places: FloatArray) -> Reading:
    """One run's win rate at places u = ln KL [M], linear between its checkpoints, with each prompt's influence."""
    mine = np.flatnonzero((cloud.run == run) & np.isfinite(cloud.x) & (cloud.x > TINY_KL) & np.isfinite(cloud.win))
    mine = mine[np.argsort(cloud.x[mine], kind="stable")]
    m = len(places)
    nothing = np.zeros((m, 0))
    if not len(mine):
        return Reading(np.full(m, NAN), (), nothing, np.zeros(m), np.ones(m, bool), np.zeros(m, bool))
    u, win = np.log(cloud.x[mine]), cloud.win[mine]
    short, passed = places > u[-1] + 1e-9, places < u[0] - 1e-9
    after = np.clip(np.searchsorted(u, places, side="right"), min(1, len(u) - 1), len(u) - 1)
    before = np.maximum(after - 1, 0)
    gap = u[after] - u[before]
    share = np.where(gap > 0, (places - u[before]) / np.where(gap > 0, gap, 1.0), 0.0)
    share = np.clip(share, 0.0, 1.0)
    slope = np.where(gap > 0, (win[after] - win[before]) / np.where(gap > 0, gap, 1.0), 0.0)
    value = np.where(short | passed, NAN, (1 - share) * win[before] + share * win[after])
    if cloud.win_by_prompt is None:
        se = (1 - share) * cloud.win_se[mine[before]] + share * cloud.win_se[mine[after]]
        return Reading(value, (), nothing, se, short, passed)
    influence = np.zeros((m, len(cloud.prompt_ids)))
    for at, weight in ((before, 1 - share), (after, share)):
        influence += weight[:, None] * _centred(cloud.win_by_prompt[mine[at]])
        if cloud.x_by_prompt is not None:
            moved = _centred(cloud.x_by_prompt[mine[at]]) / cloud.x[mine[at], None]
            influence -= (weight * slope)[:, None] * moved
    return Reading(value, cloud.prompt_ids, _scaled(influence), np.zeros(m), short, passed)


def _centred(values: np.ndarray) -> FloatArray:
    """Values [M, P] less their mean; 0 where one is missing, which leaves the mean where it is."""
    v = np.asarray(values, dtype=np.float64)
    known = np.isfinite(v)
    count = np.maximum(known.sum(axis=1, keepdims=True), 1)
    mean = np.where(known, v, 0.0).sum(axis=1, keepdims=True) / count
    return np.asarray(np.where(known, v - mean, 0.0) * (v.shape[1] / count))


def _scaled(influence: FloatArray) -> FloatArray:
    """Influences whose squares sum to the variance of the mean (with the n - 1 of a sample variance)."""
    n = influence.shape[1]
    return np.asarray(influence / np.sqrt(max(n * (n - 1), 1)))


#: by arm, seed and configuration
Table = dict[str, dict[int, dict[str, Reading]]]


def read_all(clouds: Clouds, arms: Sequence[str], places: FloatArray) -> Table:
    """Every run of these arms read at places u [M]; of several runs of one configuration in a seed the first counts."""
    out: Table = {arm: {} for arm in arms}
    for cloud in clouds.items:
        if cloud.arm in out:
            found = out[cloud.arm].setdefault(cloud.seed, {})
            for run, config in enumerate(cloud.configs):
                if config not in found and (cloud.run == run).any():
                    found[config] = read_run(cloud, run, places)
    return out


def at_budgets(
    clouds: Clouds,
    weights: Mapping[str, float | Mapping[int, float]],
    budgets: Sequence[float] = BUDGETS,
    *,
    chosen: bool = False,
    spent: Collection[int] = (),
    level: float = LEVEL,
) -> AtBudgets:
    """The weighted sum of arms at each KL budget in nats, over matched configurations or (`chosen`) each arm's best.

    A weight is a number, or one for each seed. `spent` seeds are not scored; with `chosen` they choose the
    configurations. Never raises for thin data: what is missing is said in `why`.
    """
    arms = tuple(weights)
    missing = [a for a in arms if not any(c.arm == a for c in clouds.items)]
    if missing:
        return AtBudgets((), why=f"No usable checkpoint of {' and '.join(missing)}.")
    if all_ties(clouds, arms):
        return AtBudgets((), why="Every comparison of these arms was a tie, so nothing is decided.")
    places = np.log(np.asarray(budgets, dtype=np.float64))
    table = read_all(clouds, arms, places)
    both = sorted(set.intersection(*(set(table[a]) for a in arms)))
    seeds = tuple(s for s in both if s not in set(spent))
    if not seeds:
        return AtBudgets((), why="The arms share no seed.")
    configs = shared_configs(table, arms, seeds)
    if not configs:
        return AtBudgets(
            (), seeds, why=f"{' and '.join(arms)} ran no configuration in common, so they are not compared at equal KL."
        )
    if chosen:
        values = _chosen(table, weights, seeds, configs, tuple(spent), len(places))
    else:
        values = _matched(table, weights, seeds, configs, len(places))
    judged: Mask = np.asarray(np.isfinite(values.value).all(axis=0))
    together = int(judged.sum())
    out = []
    for k, kl in enumerate(budgets):
        mean = mean_over_seeds(values.at(k))
        short = {
            a: sum(bool(table[a][s][c].short[k]) for s in seeds for c in configs if c in table[a][s]) for a in arms
        }
        how = "matched configurations" if not chosen else "configurations chosen on other seeds"
        sure = bool(judged[k])
        out.append(
            Budget(
                kl=float(kl),
                mean=Estimate(mean.value, mean.se, mean.n, f"difference at {kl:g} nats, {how}"),
                interval=mean.interval(level, together) if sure else (NAN, NAN),
                equivalence=mean.interval(EQUIVALENCE_LEVEL) if sure else (NAN, NAN),
                p=mean.p() if sure else NAN,
                by_seed=tuple(float(v) for v in values.value[:, k]),
                judged=sure,
                short=short,
            )
        )
    why = "" if together else _unreached(out, len(seeds))
    return AtBudgets(tuple(out), seeds, configs, values, why)


def _count_short(
    mine: Mapping[int, Mapping[str, Reading]], seeds: Sequence[int], configs: Sequence[str], place: int
) -> int:
    """How many runs of these configurations end below a place."""
    return sum(bool(mine[s][c].short[place]) for s in seeds for c in configs if c in mine[s])


def shared_configs(table: Table, arms: Sequence[str], seeds: Sequence[int]) -> tuple[str, ...]:
    """The configurations that every one of these arms ran, in any of the seeds."""
    ran = [{c for s in seeds for c in table[a].get(s, {})} for a in arms]
    first = dict.fromkeys(c for s in seeds for c in table[arms[0]].get(s, {}))
    return tuple(c for c in first if all(c in other for other in ran))


def _matched(
    table: Table,
    weights: Mapping[str, float | Mapping[int, float]],
    seeds: tuple[int, ...],
    configs: tuple[str, ...],
    m: int,
) -> Seedwise:
    """The weighted sum, averaged over the shared configurations in which every arm reached a place."""
    seedwise, index = _empty(table, seeds, m)
    for row, seed in enumerate(seeds):
        there = [c for c in configs if all(c in table[a][seed] for a in weights)]
        if not there:
            continue
        known = np.array([[np.isfinite(table[a][seed][c].value) for a in weights] for c in there])
        reached: Mask = np.asarray(known.all(axis=1))
        count = np.maximum(reached.sum(axis=0), 1)
        total, spread = np.zeros(m), np.zeros((len(weights), m))
        for c, ok in zip(there, reached, strict=True):
            for number, (arm, weight) in enumerate(weights.items()):
                _add(seedwise, row, table[arm][seed][c], _of(weight, seed) * ok / count, index, total, spread[number])
        seedwise.value[row] = np.where(reached.any(axis=0), total, NAN)
        seedwise.extra[row] = (spread**2).sum(axis=0)
    return seedwise


def _chosen(
    table: Table,
    weights: Mapping[str, float | Mapping[int, float]],
    seeds: tuple[int, ...],
    configs: tuple[str, ...],
    spent: tuple[int, ...],
    m: int,
) -> Seedwise:
    """The weighted sum with each arm at the configuration that is best at a place on the choosing seeds."""
    seedwise, index = _empty(table, seeds, m)
    for row, seed in enumerate(seeds):
        choosing = spent or tuple(s for s in seeds if s != seed)
        total, spread, whole = np.zeros(m), np.zeros((len(weights), m)), np.ones(m, bool)
        for number, (arm, weight) in enumerate(weights.items()):
            mine = table[arm]
            means = np.array([_mean([mine[s][c].value for s in choosing if c in mine.get(s, {})], m) for c in configs])
            best = np.argmax(np.where(np.isfinite(means), means, -np.inf), axis=0)
            known = np.isfinite(means).any(axis=0)
            for k in range(m):
                reading = mine[seed].get(configs[best[k]])
                if not known[k] or reading is None or not np.isfinite(reading.value[k]):
                    whole[k] = False
                    continue
                only = np.zeros(m)
                only[k] = _of(weight, seed)
                _add(seedwise, row, reading, only, index, total, spread[number])
        seedwise.value[row] = np.where(whole, total, NAN)
        seedwise.extra[row] = (spread**2).sum(axis=0)
    return seedwise


def _mean(rows: list[FloatArray], m: int) -> FloatArray:
    """Mean [M] over rows, nan left out; nan where none is there."""
    if not rows:
        return np.full(m, NAN)
    values = np.array(rows)
    known = np.isfinite(values)
    count = known.sum(axis=0)
    return np.where(count > 0, np.where(known, values, 0.0).sum(axis=0) / np.maximum(count, 1), NAN)


def _of(weight: float | Mapping[int, float], seed: int) -> float:
    return weight[seed] if isinstance(weight, Mapping) else weight


def _empty(table: Table, seeds: tuple[int, ...], m: int) -> tuple[Seedwise, _Places]:
    """Zeros for the seeds and all prompts of these arms."""
    known = [r.prompts for of in table.values() for s in seeds for r in of.get(s, {}).values()]
    prompts = tuple(dict.fromkeys(p for ids in dict.fromkeys(known) for p in ids))
    s = len(seeds)
    nothing = Seedwise(seeds, prompts, np.full((s, m), NAN), np.zeros((s, m, len(prompts))), np.zeros((s, m)))
    return nothing, _Places(prompts)


class _Places:
    """Where the prompts of a reading stand among all prompts, looked up once for each list of prompts."""

    def __init__(self, prompts: tuple[str, ...]) -> None:
        self.place = {p: i for i, p in enumerate(prompts)}
        self.known: dict[tuple[str, ...], np.ndarray] = {}

    def __call__(self, prompts: tuple[str, ...]) -> np.ndarray:
        if prompts not in self.known:
            self.known[prompts] = np.array([self.place[p] for p in prompts], dtype=np.int64)
        return self.known[prompts]


def _add(
    out: Seedwise, row: int, reading: Reading, weight: FloatArray, index: _Places, total: FloatArray, spread: FloatArray
) -> None:
    """Add `weight` [M] times a reading to a seed's row; an arm's errors without prompts are added as one draw."""
    used = weight != 0
    total += np.where(used, weight * np.where(used, np.nan_to_num(reading.value), 0.0), 0.0)
    spread += np.abs(weight) * reading.se
    if reading.prompts:
        out.influence[row][:, index(reading.prompts)] += weight[:, None] * reading.influence


def mean_over_seeds(values: Seedwise) -> Mean:
    """The mean over the seeds that are defined at the one place of `values`, with the error of this file's head."""
    there = np.isfinite(values.value[:, 0])
    n = int(there.sum())
    if not n:
        return Mean(NAN, NAN, NAN, 0)
    v, e = values.value[there, 0], values.influence[there, 0]
    prompts = float((e.mean(axis=0) ** 2).sum())
    alone = float((e**2).sum()) / n**2
    extra = float(values.extra[there, 0].sum()) / n**2
    by_prompts = float(np.sqrt(prompts + extra))
    if n == 1:
        return Mean(float(v[0]), NAN, by_prompts, 1)
    shared = max(prompts - alone, 0.0) * n / (n - 1)
    return Mean(float(v.mean()), float(np.sqrt(v.var(ddof=1) / n + shared)), by_prompts, n)


def all_ties(clouds: Clouds, arms: Sequence[str]) -> bool:
    """Whether every recorded win of these arms is one half."""
    mine = [c for c in clouds.items if c.arm in arms]
    wins = [c.win if c.win_by_prompt is None else c.win_by_prompt for c in mine]
    return bool(mine) and all(bool((w[np.isfinite(w)] == 0.5).all()) for w in wins)


def _unreached(found: Sequence[Budget], seeds: int) -> str:
    least = found[0]
    reached = sum(np.isfinite(v) for v in least.by_seed)
    return (
        f"No budget was reached by every arm in every seed: {least.kl:g} nat{'' if least.kl == 1 else 's'} in "
        f"{reached} of {seeds} "
        f"seed{'s' if seeds > 1 else ''}."
    )


# ------------------------------------------------------------------------------------------------ peaks, ends, reach


@dataclass(frozen=True)
class Peak:
    """An arm's best checkpoints, seed by seed: of each configuration the step that is best on other seeds.

    Configurations are averaged, not chosen from: with the best of several, luck may give two arms different ones, and
    no number of seeds averages that out.
    """

    values: Seedwise  # [S, 1] mean over configurations
    kl: tuple[float, ...]  # where they lie, geometric mean over configurations, by seed
    by_config: Mapping[str, FloatArray]  # [S] the win rate at each configuration's best step


def peaks_of(clouds: Clouds, arms: Sequence[str], *, spent: Collection[int] = ()) -> Mapping[str, Peak] | str:
    """Each arm's best checkpoints over the seeds and configurations that all share, or a sentence that says why not.

    It takes two seeds, or spent ones to choose.
    """
    missing = [a for a in arms if not any(c.arm == a for c in clouds.items)]
    if missing:
        return f"No usable checkpoint of {' and '.join(missing)}."
    if all_ties(clouds, arms):
        return "Every comparison of these arms was a tie, so nothing is decided."
    by = {a: {c.seed: c for c in clouds.items if c.arm == a} for a in arms}
    both = sorted(set.intersection(*(set(v) for v in by.values())))
    seeds = tuple(s for s in both if s not in set(spent))
    if not seeds or (len(seeds) < 2 and not spent):
        return "A best checkpoint is chosen on other seeds than it is scored on, which takes two seeds."
    configs = sorted(set.intersection(*({*by[a][s].configs} for a in arms for s in both)))
    if not configs:
        return f"{' and '.join(arms)} ran no configuration in common in every seed."
    index = _Places(tuple(dict.fromkeys(p for a in arms for s in seeds for p in by[a][s].prompt_ids)))
    out = {}
    for arm in arms:
        total: Seedwise | None = None
        logs, each = np.zeros(len(seeds)), {}
        for config in configs:
            rows = _best_steps(by[arm], config, seeds, tuple(spent))
            if rows is None:
                return f"No checkpoint of {arm} at {config} was measured in every seed and in those that choose."
            found = _at_checkpoints(rows, seeds, index).times(np.full(len(seeds), 1 / len(configs)))
            total = found if total is None else total.plus(found)
            each[config] = np.array([cloud.win[at] for cloud, at in rows], dtype=np.float64)
            logs += np.log([cloud.x[at] for cloud, at in rows]) / len(configs)
        assert total is not None
        out[arm] = Peak(total, tuple(float(v) for v in np.exp(logs)), each)
    return out


def _best_steps(
    by: Mapping[int, Cloud], config: str, seeds: Sequence[int], spent: Sequence[int]
) -> list[tuple[Cloud, int]] | None:
    """For each seed the checkpoint of a configuration whose step is best on the other (or the spent) seeds."""
    found = {s: _checkpoints(c, (config,)) for s, c in by.items()}
    scores = {s: {place: float(by[s].win[at]) for place, at in v.items()} for s, v in found.items()}
    rows = []
    for seed in seeds:
        choosing = [scores[s] for s in (spent or [s for s in seeds if s != seed]) if s in scores]
        place = _best(scores[seed], choosing)
        if place is None:
            return None
        rows.append((by[seed], found[seed][place]))
    return rows


def _checkpoints(cloud: Cloud, allowed: Collection[str]) -> dict[tuple[str, int], int]:
    """Where each checkpoint of the allowed configurations stands in the cloud."""
    where = ((cloud.configs[r], int(s), i) for i, (r, s) in enumerate(zip(cloud.run, cloud.step, strict=True)))
    return {(config, step): i for config, step, i in where if config in allowed and np.isfinite(cloud.win[i])}


def _best(
    mine: Mapping[tuple[str, int], float], choosing: Sequence[Mapping[tuple[str, int], float]]
) -> tuple[str, int] | None:
    """The checkpoint, of those that are there, with the best mean over the choosing seeds that have it."""
    means = {place: [c[place] for c in choosing if place in c] for place in mine}
    known = {place: sum(v) / len(v) for place, v in means.items() if v}
    return max(known, key=lambda place: known[place]) if known else None


def _at_checkpoints(rows: Sequence[tuple[Cloud, int]], seeds: tuple[int, ...], index: _Places) -> Seedwise:
    """The win rates [S, 1] of one checkpoint a seed."""
    value = np.array([[cloud.win[at]] for cloud, at in rows], dtype=np.float64)
    influence, extra = np.zeros((len(rows), 1, len(index.place))), np.zeros((len(rows), 1))
    for row, (cloud, at) in enumerate(rows):
        if cloud.win_by_prompt is None:
            extra[row, 0] = cloud.win_se[at] ** 2
        else:
            influence[row, 0, index(cloud.prompt_ids)] = _scaled(_centred(cloud.win_by_prompt[[at]]))[0]
    return Seedwise(seeds, tuple(index.place), value, influence, extra)


@dataclass(frozen=True)
class Ending:
    """How an arm's curve ends, on the configuration that moved farthest: seed by seed."""

    config: str
    kl: tuple[float, ...]  # nats, by seed
    fall: Seedwise  # [S, 1] best checkpoint (chosen on other seeds) minus the last
    rise: Seedwise  # [S, 1] the last checkpoint minus the same run at half its KL: the slope a doubling at the end


def ending_of(clouds: Clouds, arm: str, spent: Collection[int] = ()) -> Ending | str:
    """The fall of an arm's farthest configuration from its best checkpoint to its end, and the slope there.

    A sentence says why there is none where there is none.
    """
    mine = {c.seed: c for c in clouds.items if c.arm == arm}
    seeds = tuple(s for s in sorted(mine) if s not in set(spent))
    farthest: dict[str, list[float]] = {}
    for seed in seeds:
        cloud = mine[seed]
        for run, config in enumerate(cloud.configs):
            if (cloud.run == run).any():
                farthest.setdefault(config, []).append(float(cloud.x[cloud.run == run].max()))
    whole = {c: sum(np.log(v)) for c, v in farthest.items() if len(v) == len(seeds)}
    if mine and not whole:
        return f"No configuration of {arm} was run in every seed."
    config = max(whole, key=lambda c: whole[c]) if whole else ""
    items = tuple(restricted(c, (config,)) for c in clouds.items if c.arm == arm)
    found = peaks_of(Clouds(items), (arm,), spent=spent)
    if isinstance(found, str):
        return found
    peak = found[arm].values
    index = _Places(peak.prompts)
    ends, half, kl = [], [], []
    for seed in seeds:
        cloud = mine[seed]
        run = cloud.configs.index(config)
        at = np.flatnonzero(cloud.run == run)
        last = int(at[np.argmax(cloud.x[at])])
        ends.append((cloud, last))
        kl.append(float(cloud.x[last]))
        half.append(read_run(cloud, run, np.log([cloud.x[last] / 2])))
    end = _at_checkpoints(ends, seeds, index)
    before = replace(
        end,
        value=np.array([r.value for r in half]),
        influence=np.zeros_like(end.influence),
        extra=np.zeros_like(end.extra),
    )
    for row, reading in enumerate(half):
        before.influence[row][:, index(reading.prompts)] += reading.influence
        before.extra[row] = reading.se**2
    return Ending(config, tuple(kl), peak.plus(end, -1.0), end.plus(before, -1.0))


def kl_to_reach(clouds: Clouds, arm: str, other: str, spent: Collection[int] = ()) -> tuple[float, ...] | str:
    """The KL in nats at which each run of `arm` first reaches the best of the other arm's run of that configuration.

    One entry a seed and shared configuration; the other's best step is chosen on other seeds. An infinite entry is
    censored: the run ended before, or fell short.
    """
    found = peaks_of(clouds, (arm, other), spent=spent)
    if isinstance(found, str):
        return found
    out = []
    for row, seed in enumerate(found[arm].values.seeds):
        cloud = next(c for c in clouds.items if c.arm == arm and c.seed == seed)
        for config, best in found[other].by_config.items():
            mine = np.flatnonzero(cloud.run == cloud.configs.index(config))
            mine = mine[np.argsort(cloud.x[mine], kind="stable")]
            out.append(first_at(np.log(cloud.x[mine]), cloud.win[mine], float(best[row])))
    return tuple(out)


def first_at(u: FloatArray, value: FloatArray, level: float) -> float:
    """exp(u) at which a piecewise-linear curve first reaches a level; infinite where it does not."""
    if value[0] >= level:
        return float(np.exp(u[0]))
    for i in range(1, len(u)):
        if value[i] >= level:
            share = (level - value[i - 1]) / (value[i] - value[i - 1])
            return float(np.exp(u[i - 1] + share * (u[i] - u[i - 1])))
    return float("inf")
