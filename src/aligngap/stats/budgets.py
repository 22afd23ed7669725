"""Arms at fixed KL budgets, configuration by configuration: the estimand that every verdict rests on.

*Matched.* A run is a piecewise-linear curve of its win rate in ln KL, and it is read at a few budgets named beforehand
(1, 2, 4 and 8 nats). Arms are subtracted within a seed and a configuration (the same beta, learning rate and steps),
then averaged over the configurations in which every one of the arms reached the budget in every seed: one fixed set a
budget, so that a run that falls short leaves its configuration out of every seed and changes no seed against another.
So no arm has more attempts than another, and nothing is averaged over KL.
*Chosen.* A second view, for tables: each arm at its best configuration of the grid that all of them ran, chosen on
other seeds than it is scored on: on the spent seeds where some are named, else on all seeds but the one scored. No
verdict of a primary family rests on it: by luck the arms may choose different
configurations, which no number of judged seeds averages out.

Intervals are those of `seedwise.py`. Budgets are covered together by Bonferroni's bound: the quantile is that of
1 - (1 - level)/2m for m budgets, 3.96 for three budgets at 5 seeds and 2.93 at 10.

An arm that does not reach a budget is not missing at random: it moved less. So a budget is judged only where some
configuration reached it in every arm and seed; elsewhere the estimate over the seeds that have one is given without an
interval, and how many runs fell short is counted for each arm. Nothing is extrapolated.
Leaves out: what happens between budgets, which the figures show; peaks and ends (`peaks.py`).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import ROUND_CEILING, ROUND_FLOOR, Context

import numpy as np

from aligngap.stats.axes import say_nats
from aligngap.stats.clouds import Clouds
from aligngap.stats.estimate import NAN, FloatArray
from aligngap.stats.seedwise import LEVEL, Mask, Places, Reading, Seedwise, mean_over_seeds, read_run
from aligngap.types import Estimate

#: nats at which arms are compared unless a study names others
BUDGETS = (1.0, 2.0, 4.0, 8.0)
#: seeds below which an estimate is given and no verdict
LEAST_SEEDS = 5
#: level of the interval that two one-sided tests at 5% amount to
EQUIVALENCE_LEVEL = 0.90


@dataclass(frozen=True)
class Budget:
    """A weighted sum of arms at one KL: its mean over seeds, with intervals where it is judged."""

    kl: float
    mean: Estimate
    interval: tuple[float, float]  # 95%, of all judged budgets at once
    equivalence: tuple[float, float]  # 90% of this one: what two one-sided tests compare with a margin
    p: float  # two-sided, of this budget alone
    by_seed: tuple[float, ...]  # nan where a seed has no configuration that reached it in every arm
    judged: bool  # some configuration reached it in every arm and seed
    short: Mapping[str, int]  # runs of shared configurations that ended below this KL, by arm
    configs: tuple[str, ...] = ()  # those that it is judged over
    passed: Mapping[str, int] = field(default_factory=dict)  # runs whose first checkpoint lies above this KL, by arm


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
        judged: Mask = np.asarray(np.isfinite(values.value).all(axis=0))
        sets = [configs for _ in places]
    else:
        reached = _find_reached(table, arms, seeds, configs, len(places))
        fixed: Mask = np.asarray(reached.all(axis=0))  # [C, M]
        values = _match(table, weights, seeds, configs, np.where(fixed.any(axis=0), fixed, reached))
        judged = np.asarray(fixed.any(axis=0))
        sets = [tuple(c for c, there in zip(configs, fixed[:, k], strict=True) if there) for k in range(len(places))]
    together = int(judged.sum())
    out = []
    for k, kl in enumerate(budgets):
        mean = mean_over_seeds(values.at(k))
        short, passed = (
            {
                a: sum(bool(getattr(table[a][s][c], side)[k]) for s in seeds for c in configs if c in table[a][s])
                for a in arms
            }
            for side in ("short", "passed")
        )
        how = "matched configurations" if not chosen else "configurations chosen on other seeds"
        sure = bool(judged[k])
        out.append(
            Budget(
                kl=float(kl),
                mean=Estimate(mean.value, mean.se, mean.n, f"difference at {say_nats(kl)}, {how}"),
                interval=mean.interval(level, together) if sure else (NAN, NAN),
                equivalence=mean.interval(EQUIVALENCE_LEVEL) if sure else (NAN, NAN),
                p=mean.p() if sure else NAN,
                by_seed=tuple(float(v) for v in values.value[:, k]),
                judged=sure,
                short=short,
                configs=sets[k] if sure else (),
                passed=passed,
            )
        )
    why = "" if together else _say_unreached(out, len(seeds), common_range(clouds, arms, seeds))
    return AtBudgets(tuple(out), seeds, configs, values, why)


def shared_configs(table: Table, arms: Sequence[str], seeds: Sequence[int]) -> tuple[str, ...]:
    """The configurations that every one of these arms ran, in any of the seeds."""
    ran = [{c for s in seeds for c in table[a].get(s, {})} for a in arms]
    first = dict.fromkeys(c for s in seeds for c in table[arms[0]].get(s, {}))
    return tuple(c for c in first if all(c in other for other in ran))


def common_range(clouds: Clouds, arms: Sequence[str], seeds: Collection[int]) -> tuple[float, float]:
    """The range of KL that some configuration covers in each of these arms and seeds; (inf, 0) if there is none.

    Of several ranges it is the one that ends at the highest KL.
    """
    by = {(c.arm, c.seed): c for c in clouds.items if c.arm in arms and c.seed in seeds}
    if not seeds or any((a, s) not in by for a in arms for s in seeds):
        return math.inf, 0.0
    best = (math.inf, 0.0)
    for config in sorted(set.intersection(*({*c.configs} for c in by.values()))):
        ends = []
        for cloud in by.values():
            x = cloud.x[cloud.run == cloud.configs.index(config)]
            x = x[np.isfinite(x)]
            ends.append((float(x.min()), float(x.max())) if len(x) else (math.inf, 0.0))
        low, high = max(e[0] for e in ends), min(e[1] for e in ends)
        if low < high and high > best[1]:
            best = (low, high)
    return best


def _find_reached(table: Table, arms: Sequence[str], seeds: Sequence[int], configs: Sequence[str], m: int) -> Mask:
    """Whether [S, C, M] every arm's run of a seed and configuration can be read at a place."""
    nowhere = np.zeros(m, bool)
    each = [
        [[np.isfinite(table[a][s][c].value) if c in table[a][s] else nowhere for a in arms] for c in configs]
        for s in seeds
    ]
    return np.asarray(np.array(each).all(axis=2))


def _match(
    table: Table,
    weights: Mapping[str, float | Mapping[int, float]],
    seeds: tuple[int, ...],
    configs: tuple[str, ...],
    used: Mask,
) -> Seedwise:
    """The weighted sum, averaged in each seed over the configurations that are `used` [S, C, M] there."""
    m = used.shape[2]
    seedwise, index = _empty(table, seeds, m)
    for row, seed in enumerate(seeds):
        count = np.maximum(used[row].sum(axis=0), 1)
        total, spread = np.zeros(m), np.zeros((len(weights), m))
        for c, ok in zip(configs, used[row], strict=True):
            for number, (arm, weight) in enumerate(weights.items()):
                if ok.any():
                    share = _of(weight, seed) * ok / count
                    _add(seedwise, row, table[arm][seed][c], share, index, total, spread[number])
        seedwise.value[row] = np.where(used[row].any(axis=0), total, NAN)
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


def _empty(table: Table, seeds: tuple[int, ...], m: int) -> tuple[Seedwise, Places]:
    """Zeros for the seeds and all prompts of these arms."""
    known = [r.prompts for of in table.values() for s in seeds for r in of.get(s, {}).values()]
    prompts = tuple(dict.fromkeys(p for ids in dict.fromkeys(known) for p in ids))
    s = len(seeds)
    nothing = Seedwise(seeds, prompts, np.full((s, m), NAN), np.zeros((s, m, len(prompts))), np.zeros((s, m)))
    return nothing, Places(prompts)


def _add(
    out: Seedwise, row: int, reading: Reading, weight: FloatArray, index: Places, total: FloatArray, spread: FloatArray
) -> None:
    """Add `weight` [M] times a reading to a seed's row; an arm's errors without prompts are added as one draw."""
    used = weight != 0
    total += np.where(used, weight * np.where(used, np.nan_to_num(reading.value), 0.0), 0.0)
    spread += np.abs(weight) * reading.se
    if reading.prompts:
        out.influence[row][:, index(reading.prompts)] += weight[:, None] * reading.influence


def all_ties(clouds: Clouds, arms: Sequence[str]) -> bool:
    """Whether every recorded win of these arms is one half."""
    mine = [c for c in clouds.items if c.arm in arms]
    wins = [c.win if c.win_by_prompt is None else c.win_by_prompt for c in mine]
    return bool(mine) and all(bool((w[np.isfinite(w)] == 0.5).all()) for w in wins)


def above(budgets: Sequence[Budget]) -> str:
    """Which arms' first checkpoints lie above which of these budgets already, as a clause; "" where none does."""
    arms = {a: [b.kl for b in budgets if b.passed.get(a)] for a in dict.fromkeys(a for b in budgets for a in b.passed)}
    parts = []
    for arm, kls in arms.items():
        if kls:
            runs = max(b.passed[arm] for b in budgets)
            parts.append(f"{arm} starts above {say_nats(*kls)} in {runs} run{'s' if runs > 1 else ''}")
    return "; ".join(parts)


def _say_unreached(found: Sequence[Budget], seeds: int, between: tuple[float, float]) -> str:
    least, remedy = found[0], _name_range(*between)
    passed = above(found)
    if passed:
        below = {a: [b.kl for b in found if b.short[a]] for a in least.short}
        ends = [f"{arm} ends below {say_nats(*kls)}" for arm, kls in below.items() if kls]
        why = "; ".join([passed, *ends])
        return (
            f"None of the KL budgets named lies between the first and the last checkpoint of every run: {why}. {remedy}"
        )
    reached = sum(np.isfinite(v) for v in least.by_seed)
    return (
        f"No budget was reached by every arm in every seed: {say_nats(least.kl)} in {reached} of {seeds} "
        f"seed{'s' if seeds > 1 else ''}. {remedy}"
    )


def _name_range(low: float, high: float) -> str:
    """Which budgets could be judged, as a sentence: two digits of the range, or three, rounded inwards."""
    if low >= high:
        return "Their runs have no range of KL in common in any configuration, so no budget can be judged."
    for digits in (2, 3):
        up, down = (Context(prec=digits, rounding=to) for to in (ROUND_CEILING, ROUND_FLOOR))
        first, last = float(up.create_decimal(repr(low))), float(down.create_decimal(repr(high)))
        if first < last:
            return f"Budgets from {first:g} to {say_nats(last)} can be judged: name some there."
    return f"Only budgets of about {say_nats(low, digits='.4g')} can be judged."
