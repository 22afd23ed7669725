"""T4 run: a one-parameter policy class and pairs of uneven shares, under which offline IPO can go the wrong way.

The class has two policies at each KL, one on either side of the reference. Below the turning point of the share of
pairs (3, 1) both arms take the side of the best response and their gap at equal KL is 0; above it offline takes the
other. `predict` says so from the pairs and the fitted judge alone; `train_all` runs both arms through the one trainer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from aligngap.exact import theory
from aligngap.exact.capacity import OFFLINE, ONLINE, ONLINE_GOLDEN, UNLIMITED, crossings
from aligngap.exact.judge import TABLE, fit_judge
from aligngap.exact.learn import Fixed, OnPolicy, PolicyClass, step_sizes, train
from aligngap.exact.worlds import Floats, Pairs, World, draw_labels, log_softmax, preference, skewed
from aligngap.losses import IPO


@dataclass(frozen=True)
class SkewedGrid:
    """The dials: shares of pairs (3, 1), numbers of drawn labels, and one grid of beta for both arms."""

    shares: tuple[float, ...] = (0.2, 0.4, 0.5, 0.56, 0.58, 0.62, 0.63, 0.66, 0.68, 0.74, 0.8, 0.9)
    labels: tuple[float, ...] = (200, 2000, UNLIMITED)
    betas: tuple[float, ...] = (0.3, 0.1, 0.03, 0.01)
    budgets: tuple[float, ...] = (0.25, 0.5, 1.0)
    steps: int = 400
    warmup: int = 100


#: columns of `runs.parquet` and `predictions.parquet` of the skewed study, a row a run
SKEWED_COLUMNS: dict[str, tuple[str, str]] = {
    "seed": ("int", "seed of the drawn labels; -1 where the distribution itself is learned from"),
    "labels": ("float", "labelled pairs; infinite: the whole distribution"),
    "hard": ("bool", "labels are the sure winner by the true reward, not drawn from its probability"),
    "share": ("float", "share of the pairs (3, 1)"),
    "arm": ("str", "`online` (fitted judge), `online-golden` (the labels themselves) or `offline`"),
    "beta": ("float", "regularisation strength"),
    "right": ("bool", "whether the run is on the best response's side of the reference"),
    "kl_end": ("float", "KL from the reference at the end, nats; predicted: of the offline optimum, else nan"),
    "win_end": ("float", "true win rate against the reference there"),
    "win_at_0.25": ("float", "true win rate where the run first has 0.25 nats; nan: never, or not predicted"),
    "win_at_0.5": ("float", "the same at 0.5 nats"),
    "win_at_1": ("float", "the same at 1 nat"),
}


@dataclass(frozen=True, eq=False)
class SkewedCase:
    """One seed and kind of label of one world: offline pairs and the labels [1, 3] of each online arm."""

    seed: int
    labels: float
    hard: bool
    share: float
    world: World
    offline: Pairs
    online: dict[str, Floats]


def cases(seeds: list[int], grid: SkewedGrid) -> list[SkewedCase]:
    """Every case: exact soft and hard labels once, drawn labels for each seed; no policy is trained."""
    out = []
    for share in grid.shares:
        world = skewed(share)
        for hard in (False, True):
            pairs = theory.skewed_pairs(world, hard)
            online = {ONLINE_GOLDEN: pairs.p_first}
            if not hard:
                online[ONLINE] = preference(fit_judge(world, None, TABLE))
            out.append(SkewedCase(-1, UNLIMITED, hard, share, world, pairs, online))
        for n in (n for n in grid.labels if not math.isinf(n)):
            for seed in seeds:
                drawn = draw_labels(world, int(n), seed)
                judged = preference(fit_judge(world, drawn, TABLE))
                out.append(SkewedCase(seed, n, False, share, world, drawn.pairs(), {ONLINE: judged}))
    return out


def direction(world: World, pairs: Pairs) -> float:
    """What has the sign of theta at the optimum on these pairs; negative is the best response's side."""
    return float((world.features[..., 0] * theory.pull(pairs, 3)).sum())


def wrong_share(share: float, labels: float) -> float:
    """The forecast of how many draws of so many labels send offline the wrong way: the mean's normal approximation."""
    world = skewed(share)
    difference = np.array([2.0, 1.0, -1.0])  # of the feature over pairs (1, 2), (1, 3), (2, 3)
    weights, sign = world.data_weights[0], 2.0 * world.truth[0] - 1.0
    mean = float((weights * difference * sign).sum())
    if math.isinf(labels):
        return float(mean > 0)
    spread = float((weights * difference**2).sum()) - mean**2
    return float(stats.norm.sf(-mean * math.sqrt(labels / spread)))


def _about(case: SkewedCase, arm: str, beta: float) -> dict[str, Any]:
    about = {"seed": case.seed, "labels": case.labels, "hard": case.hard, "share": case.share}
    return {**about, "arm": arm, "beta": beta}


def predict(case: SkewedCase, grid: SkewedGrid) -> list[dict[str, Any]]:
    """Which side each arm takes and what it wins there, from the pairs alone: offline by its optimum's sign, online by
    the pull of the reference's own pairs under its labels."""
    rows = []
    design = case.world.features
    own = {arm: direction(case.world, Pairs(np.full((1, 3), 2.0 / 9.0), p)) for arm, p in case.online.items()}
    solved = theory.static(case.world, case.offline, design)
    for arm, pull in {OFFLINE: direction(case.world, case.offline), **own}.items():
        wins = {f"win_at_{b:g}": math.nan for b in grid.budgets}
        for budget in grid.budgets:
            there = theory.skewed_policy(budget, 1 if pull > 0 else -1)
            wins[f"win_at_{budget:g}"] = case.world.win_rate(there).item()
        for beta in grid.betas:
            ends = {"kl_end": math.nan, "win_end": math.nan}
            reached = wins
            if arm == OFFLINE:
                optimum = log_softmax(case.world.log_reference + solved.tilt(beta))
                ends = {"kl_end": case.world.kl(optimum).item(), "win_end": case.world.win_rate(optimum).item()}
                reached = {k: w if float(k[7:]) <= ends["kl_end"] else math.nan for k, w in wins.items()}
            rows.append({**_about(case, arm, beta), "right": pull < 0, **ends, **reached})
    return rows


def train_all(every: list[SkewedCase], grid: SkewedGrid) -> list[dict[str, Any]]:
    """Train both arms of all cases, each arm as one stack: their worlds differ in the data's pairs and in nothing else.

    The step sizes are those for the reference's own pairs, the same for every share and arm.
    """
    world = skewed(1.0 / 3.0)
    rows = []
    offline = [(case, OFFLINE) for case in every]
    online = [(case, arm) for case in every for arm in case.online]
    fixed = Fixed(Pairs(*(np.stack(part) for part in zip(*(c.offline for c in every), strict=True))))
    own = OnPolicy(np.stack([case.online[arm] for case, arm in online]))
    for source, whose in ((fixed, offline), (own, online)):
        policies = PolicyClass(world, np.repeat(world.features[None], len(whose), axis=0))
        sizes = step_sizes(grid.steps, policies.curvature(), grid.warmup, fraction=0.2)
        for beta in grid.betas:
            path = train(policies, source, IPO(beta=beta, form="target"), len(whose), sizes)
            for r, (case, arm) in enumerate(whose):
                kl, win = path.kl[:, r], path.win[:, r]
                ends = {"right": path.theta[r, 0] < 0, "kl_end": kl[-1].item(), "win_end": win[-1].item()}
                rows.append({**_about(case, arm, beta), **ends, **crossings(kl, win, grid.budgets)})
    return rows
