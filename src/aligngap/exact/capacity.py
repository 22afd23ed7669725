"""The capacity study: the gap over (labels x what the judge sees x the policy's class), predicted before it is run.

Both arms run the same grid of beta with the same step sizes; KL and win rate are known exactly after each step.
`predict` fills the same table as `train_all` from closed forms alone (`theory.py`): the offline arm's path is exact,
the online arm's is that of its twin, and the ends of both are exact optima and equilibria. Three views at equal KL:

- *chosen*: each arm with the beta that was best for it, at that budget and in that cell, on seeds that are spent;
- *ends*: each arm trained to its end, over the grid of beta, its win rate interpolated in KL;
- *matched*: both arms at the same beta, each stopped where it first reaches the budget.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.interpolate import PchipInterpolator

from aligngap.exact import theory
from aligngap.exact.judge import TABLE, fit_judge
from aligngap.exact.learn import Fixed, OnPolicy, PolicyClass, step_sizes, train
from aligngap.exact.worlds import Floats, Pairs, World, capacity, draw_labels, log_softmax, preference
from aligngap.losses import IPO
from aligngap.stats.ceiling import tilted_to
from aligngap.stats.first_order import first_order

ONLINE, ONLINE_GOLDEN, OFFLINE, CEILING = "online", "online-golden", "offline", "ceiling"
UNLIMITED = math.inf


@dataclass(frozen=True)
class Grid:
    """The dials of the study, the same for every arm and seed."""

    labels: tuple[float, ...] = (250, 1000, 4000, 16000, UNLIMITED)
    sees: tuple[int, ...] = (8, 6, 4, 2, TABLE)
    betas: tuple[float, ...] = (0.3, 0.2, 0.14, 0.1, 0.07, 0.05, 0.035, 0.025, 0.015)  # in falling order
    budgets: tuple[float, ...] = (0.5, 1.0, 2.0)
    linear_sees: tuple[int, ...] = (8, 4)  # of `sees`, those for which linear policies are trained as well
    steps: int = 400
    warmup: int = 50
    prompts: int = 24
    responses: int = 12


#: columns of `runs.parquet` and `predictions.parquet`: a row a run; the budgets' columns are `win_at_BUDGET`
RUN_COLUMNS: dict[str, tuple[str, str]] = {
    "seed": ("int", "seed of world, labels and judge"),
    "policy": ("str", "`table`, or `linear` in the features that the judge sees"),
    "labels": ("float", "golden labels that judge and offline arm learn from; infinite: the whole distribution"),
    "sees": ("int", "features that the judge sees; 0: it knows responses by name only, as a table does"),
    "arm": ("str", "`online`, `online-golden`, `offline`, or `ceiling`: the best policy at this KL"),
    "beta": ("float", "regularisation strength; nan for the ceiling"),
    "kl_end": ("float", "KL from the reference after the last step, nats; predicted: at the optimum or equilibrium"),
    "win_end": ("float", "true win rate against the reference there"),
    "slope": (
        "float",
        "predictions only: rho(g, q) sd(q) of the first-order law, g the twin's or the offline optimum's",
    ),
}


def run_columns(budgets: Sequence[float]) -> dict[str, tuple[str, str]]:
    """`RUN_COLUMNS` and a column for each budget."""
    at = {f"win_at_{k:g}": ("float", f"true win rate where the run first has {k:g} nats; nan: never") for k in budgets}
    return {**RUN_COLUMNS, **at}


@dataclass(frozen=True, eq=False)
class Case:
    """One seed made ready: the world, the offline pairs for each number of labels, the judges' preferences."""

    seed: int
    world: World
    data: dict[float, Pairs]
    judged: dict[tuple[float, int], Floats]  # (labels, sees) -> p_first [P, M]


def prepare(seed: int, grid: Grid) -> Case:
    """Draw the world and its labels and fit every judge; no policy is trained."""
    world = capacity(seed, grid.prompts, grid.responses)
    drawn = {n: None if math.isinf(n) else draw_labels(world, int(n), seed) for n in grid.labels}
    data = {n: Pairs(world.data_weights, world.truth) if got is None else got.pairs() for n, got in drawn.items()}
    judged = {(n, s): preference(fit_judge(world, drawn[n], s)) for n in grid.labels for s in grid.sees}
    return Case(seed, world, data, judged)


@dataclass(frozen=True, eq=False)
class Family:
    """The runs of one policy class: designs, offline pairs and judges' labels, and which cells each belongs to."""

    policy: str
    designs: dict[int, Floats | None]  # by `sees`
    offline: list[tuple[int, Pairs, list[tuple[float, int]]]]  # sees (for the design), pairs, cells (labels, sees)
    online: list[tuple[int, str, Floats, list[tuple[float, int]]]]  # sees, arm, p_first, cells


def families(case: Case, grid: Grid) -> Iterator[Family]:
    """Every run of the study, each listed once even where several cells share it."""
    cells = [(n, s) for n in grid.labels for s in grid.sees]
    truth = case.world.truth
    offline = [(TABLE, case.data[n], [(n, s) for s in grid.sees]) for n in grid.labels]
    online = [(TABLE, ONLINE, case.judged[cell], [cell]) for cell in cells]
    yield Family("table", {TABLE: None}, offline, [*online, (TABLE, ONLINE_GOLDEN, truth, cells)])
    some = [s for s in grid.sees if s in grid.linear_sees]
    if not some:
        return
    cells = [(n, s) for n in grid.labels for s in some]
    designs: dict[int, Floats | None] = {}
    for s in some:
        designs[s] = np.where(np.arange(case.world.features.shape[-1]) < s, case.world.features, 0.0)
    golden = [(s, ONLINE_GOLDEN, truth, [(n, s) for n in grid.labels]) for s in some]
    yield Family(
        "linear",
        designs,
        [(s, case.data[n], [(n, s)]) for n, s in cells],
        [*((s, ONLINE, case.judged[n, s], [(n, s)]) for n, s in cells), *golden],
    )


def policies_of(case: Case, family: Family, sees: Sequence[int]) -> PolicyClass:
    """The stack of policy classes of runs whose designs are those of `sees`."""
    designs = [family.designs[s] for s in sees]
    return PolicyClass(
        case.world, None if family.policy == "table" else np.stack([d for d in designs if d is not None])
    )


def sizes_of(case: Case, family: Family, grid: Grid) -> Floats:
    """The step sizes of a class, the same for both arms: by its largest curvature on the reference's pairs."""
    return step_sizes(grid.steps, policies_of(case, family, list(family.designs)).curvature(), grid.warmup)


def crossings(kl: Floats, win: Floats, budgets: Sequence[float]) -> dict[str, float]:
    """The win rate where a path [T + 1] first has each of the budgets, linear between two steps; nan: it never has."""
    found = {}
    for budget in budgets:
        over = np.flatnonzero(kl >= budget)
        value = math.nan
        if len(over) and over[0] > 0:
            t = int(over[0])
            share = (budget - kl[t - 1]) / (kl[t] - kl[t - 1])
            value = float(win[t - 1] + share * (win[t] - win[t - 1]))
        found[f"win_at_{budget:g}"] = value
    return found


def _rows(
    case: Case, policy: str, arm: str, beta: float, cells: Sequence[tuple[float, int]], numbers: dict[str, float]
) -> list[dict[str, Any]]:
    about = {"seed": case.seed, "policy": policy, "arm": arm, "beta": beta}
    return [{**about, "labels": float(n), "sees": s, "slope": math.nan, **numbers} for n, s in cells]


def ceiling_rows(case: Case, grid: Grid) -> list[dict[str, Any]]:
    """The best true win rate at each budget: the reference tilted by it (Gibbs), one tilt for all prompts."""
    found: dict[str, float] = {}
    for budget in grid.budgets:
        at = tilted_to(case.world.win, budget, case.world.log_reference)
        found[f"win_at_{budget:g}"] = math.nan if at is None else case.world.win_rate(at).item()
    found |= {"kl_end": math.nan, "win_end": math.nan}
    cells = [(n, s) for n in grid.labels for s in grid.sees]
    return _rows(case, "any", CEILING, math.nan, cells, found)


def predict(case: Case, grid: Grid) -> list[dict[str, Any]]:
    """What every run should give, before any is trained: paths of static pairs, and ends by optimum or equilibrium."""
    world, rows = case.world, ceiling_rows(case, grid)
    reference = np.exp(world.log_reference)

    def path(solved: theory.Static, beta: float, sizes: Floats) -> dict[str, float]:
        return crossings(*theory.static_path(world, solved, beta, sizes), grid.budgets)

    def end(log_policy: Floats | None) -> dict[str, float]:
        if log_policy is None:
            return {"kl_end": math.nan, "win_end": math.nan}
        return {"kl_end": world.kl(log_policy).item(), "win_end": world.win_rate(log_policy).item()}

    def slope(solved: theory.Static) -> dict[str, float]:
        return {"slope": first_order(solved.tilt(1.0), world.win, reference).slope.value}

    for family in families(case, grid):
        sizes = sizes_of(case, family, grid)
        for sees, pairs, cells in family.offline:
            solved = theory.static(world, pairs, family.designs[sees])
            for beta in grid.betas:
                optimum = log_softmax(world.log_reference + solved.tilt(beta))
                numbers = {**path(solved, beta, sizes), **end(optimum), **slope(solved)}
                rows += _rows(case, family.policy, OFFLINE, beta, cells, numbers)
        for sees, arm, p_first, cells in family.online:
            twin = theory.static(world, Pairs(world.data_weights, p_first), family.designs[sees])
            ends = theory.equilibria(world, p_first, np.array(grid.betas), family.designs[sees])
            for beta, equilibrium in zip(grid.betas, ends, strict=True):
                numbers = {**path(twin, beta, sizes), **end(equilibrium), **slope(twin)}
                rows += _rows(case, family.policy, arm, beta, cells, numbers)
    return rows


def train_all(case: Case, grid: Grid) -> list[dict[str, Any]]:
    """Train every run of the study: the same loop, step sizes and betas for both arms."""
    rows = ceiling_rows(case, grid)
    for family in families(case, grid):
        sizes = sizes_of(case, family, grid)
        offline = Fixed(Pairs(*(np.stack(part) for part in zip(*(p for _, p, _ in family.offline), strict=True))))
        online = OnPolicy(np.stack([p for _, _, p, _ in family.online]))
        stacks = (
            (offline, [s for s, _, _ in family.offline], [(OFFLINE, cells) for _, _, cells in family.offline]),
            (online, [s for s, _, _, _ in family.online], [(arm, cells) for _, arm, _, cells in family.online]),
        )
        for source, sees, whose in stacks:
            policies = policies_of(case, family, sees)
            for beta in grid.betas:
                path = train(policies, source, IPO(beta=beta, form="target"), len(whose), sizes)
                for r, (arm, cells) in enumerate(whose):
                    kl, win = path.kl[:, r], path.win[:, r]
                    numbers = {**crossings(kl, win, grid.budgets), "kl_end": kl[-1].item(), "win_end": win[-1].item()}
                    rows += _rows(case, family.policy, arm, beta, cells, numbers)
    return rows


# ------------------------------------------------------------------------------------------------------ at equal KL

CELL = ["policy", "labels", "sees"]


def choose(spent: pd.DataFrame, budgets: Sequence[float]) -> pd.DataFrame:
    """The beta of each arm, cell and budget with the highest mean win rate over spent seeds, all of which reach it."""
    rows = []
    for key, frame in spent[spent["arm"] != CEILING].groupby([*CELL, "arm"]):
        for budget in budgets:
            wins = frame.pivot(index="seed", columns="beta", values=f"win_at_{budget:g}")
            means = wins.dropna(axis=1).mean()
            if len(means):
                rows.append(
                    {**dict(zip([*CELL, "arm"], key, strict=True)), "kl": budget, "beta": float(str(means.idxmax()))}
                )
    return pd.DataFrame(rows, columns=[*CELL, "arm", "kl", "beta"])


def chosen_wins(runs: pd.DataFrame, choices: pd.DataFrame) -> pd.DataFrame:
    """Each arm's win rate [seed, cell, arm, kl] at its chosen beta; where a seed does not reach, at the next."""
    out = []
    for budget, picked in choices.groupby("kl"):
        column = f"win_at_{budget:g}"
        found = runs.merge(picked.rename(columns={"beta": "picked"}), on=[*CELL, "arm"])
        found = found[(found["beta"] <= found["picked"] + 1e-12) & found[column].notna()]
        best = found.sort_values("beta").groupby([*CELL, "arm", "seed"], as_index=False).last()
        out.append(best.assign(win=best[column])[["seed", *CELL, "arm", "kl", "win"]])
    return pd.concat(out, ignore_index=True)


def end_wins(runs: pd.DataFrame, budgets: Sequence[float]) -> pd.DataFrame:
    """Each arm's win rate [seed, cell, arm, kl] over the ends of its runs, monotone cubic interpolation in KL."""
    out = []
    for key, frame in runs[runs["arm"] != CEILING].groupby(["seed", *CELL, "arm"]):
        moved = frame[frame["kl_end"] > 1e-9]  # a judge that learned nothing moves no policy
        line = moved.sort_values("kl_end").drop_duplicates("kl_end")
        if not len(line):
            continue
        kl, win = (np.append(0.0, line["kl_end"].to_numpy()), np.append(0.5, line["win_end"].to_numpy()))
        curve = PchipInterpolator(np.sqrt(kl), win, extrapolate=False)
        about = dict(zip(["seed", *CELL, "arm"], key, strict=True))
        out += [{**about, "kl": b, "win": float(curve(math.sqrt(b)))} for b in budgets if b <= kl[-1]]
    return pd.DataFrame(out, columns=["seed", *CELL, "arm", "kl", "win"])


def matched_wins(runs: pd.DataFrame, budgets: Sequence[float]) -> pd.DataFrame:
    """Each run's win rate [seed, cell, arm, kl, beta] where it first reaches each budget."""
    parts = []
    for budget in budgets:
        part = runs[(runs["arm"] != CEILING) & runs[f"win_at_{budget:g}"].notna()]
        parts.append(
            part.assign(kl=budget, win=part[f"win_at_{budget:g}"])[["seed", *CELL, "arm", "kl", "beta", "win"]]
        )
    return pd.concat(parts, ignore_index=True)


def gaps(wins: pd.DataFrame, first: str = ONLINE, second: str = OFFLINE) -> pd.DataFrame:
    """first - second wherever both have a win rate, one row a seed, cell and budget (and beta where there is one)."""
    keys = [c for c in wins.columns if c not in ("arm", "win")]
    wide = wins.pivot(index=keys, columns="arm", values="win")
    difference = (wide[first] - wide[second]).dropna().rename("gap")
    return difference.reset_index()
