"""Where an arm is best, how it ends, and the KL at which it is as good as another's best: secondary views.

An arm's best checkpoint is chosen on other seeds than it is scored on (or on spent ones), configuration by
configuration; see `budgets.py` for the estimand that verdicts rest on.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from aligngap.stats.budgets import all_ties
from aligngap.stats.clouds import Cloud, Clouds, restrict
from aligngap.stats.estimate import FloatArray
from aligngap.stats.seedwise import Places, Seedwise, centre, read_run, scale


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
    index = Places(tuple(dict.fromkeys(p for a in arms for s in seeds for p in by[a][s].prompt_ids)))
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


def _at_checkpoints(rows: Sequence[tuple[Cloud, int]], seeds: tuple[int, ...], index: Places) -> Seedwise:
    """The win rates [S, 1] of one checkpoint a seed."""
    value = np.array([[cloud.win[at]] for cloud, at in rows], dtype=np.float64)
    influence, extra = np.zeros((len(rows), 1, len(index.place))), np.zeros((len(rows), 1))
    for row, (cloud, at) in enumerate(rows):
        if cloud.win_by_prompt is None:
            extra[row, 0] = cloud.win_se[at] ** 2
        else:
            influence[row, 0, index(cloud.prompt_ids)] = scale(centre(cloud.win_by_prompt[[at]]))[0]
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
    items = tuple(restrict(c, (config,)) for c in clouds.items if c.arm == arm)
    found = peaks_of(Clouds(items), (arm,), spent=spent)
    if isinstance(found, str):
        return found
    peak = found[arm].values
    index = Places(peak.prompts)
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
