"""Pairs for people to rate: what two arms wrote to the same prompts at equal KL, drawn at random.

At a KL budget that lies between two checkpoints of a run, the report reads the run's win rate off the line between them
in ln KL. A pair is drawn accordingly: from the checkpoint below with the probability that the line gives it, else from
the one above. So the pairs have, on average, the gap that the report gives at that budget.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from aligngap.stats.budgets import shared_configs
from aligngap.stats.clouds import Cloud, Clouds, make_clouds
from aligngap.stats.seedwise import TINY_KL
from aligngap.storage.columns import OPPONENTS
from aligngap.storage.records import Tables
from aligngap.types import AligngapError


@dataclass(frozen=True)
class Side:
    """One arm's response of a pair, and the checkpoint that wrote it."""

    arm: str
    run: str
    step: int
    kl_nats: float
    response: str


@dataclass(frozen=True)
class RatedPair:
    """A prompt and what each of two arms wrote to it."""

    seed: int
    config: str
    prompt_id: str
    prompt: str
    first: Side
    second: Side

    @property
    def identical(self) -> bool:
        """Whether both wrote the same, so that nobody need be asked: it is a tie."""
        return self.first.response == self.second.response

    @property
    def digest(self) -> str:
        """A hash of the texts, by which it is seen later that they are still the same."""
        return digest(self.prompt, self.first.response, self.second.response)


def digest(prompt: str, first: str, second: str) -> str:
    """A hash of a pair's texts."""
    return hashlib.sha256("\0".join((prompt, first, second)).encode()).hexdigest()[:16]


def main_opponent(records: pd.DataFrame) -> str:
    """The opponent against which the report compares arms first."""
    found = list(dict.fromkeys(map(str, records["opponent"])))
    return next((o for o in OPPONENTS if o in found), found[0])


def find_pairs(tables: Tables, arms: tuple[str, str], kl: float, seed: int) -> list[RatedPair]:
    """Every pair of the two arms at this KL of which both texts are kept, in random order, seeds taking turns.

    Of a run that did not reach the KL there are none; AligngapError if so there are none at all.
    """
    known = list(dict.fromkeys(map(str, tables.records["arm"])))
    for arm in arms:
        if arm not in known:
            raise AligngapError(f"--arms {arm}: no such arm; there are {', '.join(known)}")
    if arms[0] == arms[1]:
        raise AligngapError(f"--arms {arms[0]} {arms[1]}: name two arms")
    if not len(tables.samples):
        raise AligngapError(
            "samples.parquet keeps no response, so there is nothing to rate; set measurement.samples and run again"
        )
    clouds = make_clouds(tables.records, tables.per_prompt, main_opponent(tables.records))
    rng = np.random.default_rng([seed, 16])
    texts = texts_of(tables.samples, arms)
    by_seed: list[list[RatedPair]] = []
    for number, both in _both(clouds, arms):
        mine = [
            pair
            for config in both[0].configs
            if config in both[1].configs
            for pair in _pairs(both, config, number, kl, texts, rng)
        ]
        by_seed.append([mine[i] for i in rng.permutation(len(mine))])
    if not any(by_seed):
        raise AligngapError(_nothing(clouds, arms, kl))
    longest = max(map(len, by_seed))
    return [mine[i] for i in range(longest) for mine in by_seed if i < len(mine)]


def texts_of(samples: pd.DataFrame, arms: tuple[str, str]) -> dict[tuple[str, int, str], tuple[str, str]]:
    """Prompt and response of every text that is kept of two arms, by run, step and prompt."""
    mine = samples[samples["arm"].isin(arms)]
    columns = (mine[c].tolist() for c in ("run", "step", "prompt_id", "prompt", "response"))
    return {(r, int(s), p): (prompt, response) for r, s, p, prompt, response in zip(*columns, strict=True)}


def _both(clouds: Clouds, arms: tuple[str, str]) -> Iterator[tuple[int, tuple[Cloud, Cloud]]]:
    """Each seed with the clouds of both arms."""
    first, second = ({c.seed: c for c in clouds.arm(arm)} for arm in arms)
    for seed in sorted(set(first) & set(second)):
        yield seed, (first[seed], second[seed])


def _pairs(
    clouds: tuple[Cloud, Cloud],
    config: str,
    seed: int,
    kl: float,
    texts: dict[tuple[str, int, str], tuple[str, str]],
    rng: np.random.Generator,
) -> Iterator[RatedPair]:
    """The pairs of one seed and configuration."""
    around = [_around(cloud, cloud.configs.index(config), kl) for cloud in clouds]
    runs = [cloud.runs[cloud.configs.index(config)] for cloud in clouds]
    if not all(around):
        return
    kept = [
        [p for (r, s, p) in texts if r == run and s == int(cloud.step[places[0][0]])]
        for run, cloud, places in zip(runs, clouds, around, strict=True)
    ]
    for prompt in (p for p in kept[0] if p in set(kept[1])):
        sides = []
        for cloud, run, places in zip(clouds, runs, around, strict=True):
            at = places[int(rng.random() > places[0][1])][0] if len(places) > 1 else places[0][0]
            found = texts.get((run, int(cloud.step[at]), prompt))
            if found is not None:
                sides.append((found[0], Side(cloud.arm, run, int(cloud.step[at]), float(cloud.x[at]), found[1])))
        if len(sides) == 2:
            yield RatedPair(seed, config, prompt, sides[0][0], sides[0][1], sides[1][1])


def _around(cloud: Cloud, run: int, kl: float) -> list[tuple[int, float]]:
    """The checkpoints of a run below and above a KL with their shares in ln KL; none where the run is not there."""
    mine = np.flatnonzero((cloud.run == run) & np.isfinite(cloud.x) & (cloud.x > TINY_KL) & np.isfinite(cloud.win))
    mine = mine[np.argsort(cloud.x[mine], kind="stable")]
    u, at = np.log(cloud.x[mine]), float(np.log(kl))
    if not len(u) or not u[0] - 1e-9 <= at <= u[-1] + 1e-9:
        return []
    above = int(np.clip(np.searchsorted(u, at), 0, len(u) - 1))
    below = max(above - 1, 0)
    gap = u[above] - u[below]
    share = float(np.clip((u[above] - at) / gap, 0.0, 1.0)) if gap > 0 else 0.0
    return [(int(mine[below]), share), (int(mine[above]), 1.0 - share)] if share > 0 else [(int(mine[above]), 1.0)]


def _nothing(clouds: Clouds, arms: Sequence[str], kl: float) -> str:
    """Why there is no pair at this KL, and what there is."""
    table: dict[str, dict[int, dict[str, None]]] = {
        a: {c.seed: dict.fromkeys(c.configs) for c in clouds.arm(a)} for a in arms
    }
    seeds = sorted(set(table[arms[0]]) & set(table[arms[1]]))
    if not seeds or not shared_configs(table, arms, seeds):  # type: ignore[arg-type]
        return f"{' and '.join(arms)} share no seed and configuration, so they have no pair at equal KL"
    ends = []
    for arm in arms:
        x = np.concatenate([c.x[np.isfinite(c.x)] for c in clouds.arm(arm)])
        ends.append(f"{arm} {x.min():.2g} to {x.max():.2g}")
    return f"--kl {kl:g}: no run of both arms reached it with texts kept ({', '.join(ends)} nats); name another KL"
