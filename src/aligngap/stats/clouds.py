"""From tables to arrays: one `Cloud` an arm and seed, its checkpoints' x and win rate, prompt by prompt if recorded.

x is KL until `on_axis` puts the same checkpoints on another axis. A checkpoint at KL 0 (the SFT policy) is kept out: it
has no place on a log axis; its win rate is the SFT level.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pandas as pd

from aligngap.stats.axes import AXES, KL, Axis
from aligngap.stats.estimate import FloatArray

Matrix = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

#: score name in per_prompt -> column in records
SCORES = {"win": "win_rate", "proxy_win": "proxy_win_rate", "oracle_win": "oracle_win_rate"}

#: what the axes need of records
AXIS_COLUMNS = tuple(dict.fromkeys(c for a in AXES for c in (a.column, a.se) if c))
#: runs of all arms and seeds together, of which each arm at each seed may have an equal share, and 30 at least; and
#: checkpoints of a run. What is more is thinned evenly, and the report says so
MAX_RUNS, LEAST_RUNS, MAX_CHECKPOINTS = 480, 30, 100


@dataclass(frozen=True)
class Cloud:
    """Checkpoints of one arm at one seed against one opponent; C checkpoints of R runs, P prompts."""

    arm: str
    seed: int
    runs: tuple[str, ...]
    configs: tuple[str, ...]
    run: IntArray  # [C] index into runs
    step: IntArray  # [C]
    x: FloatArray  # [C] on `axis`
    x_se: FloatArray  # [C] 0 where it is exact
    win: FloatArray  # [C]
    win_se: FloatArray  # [C]
    prompt_ids: tuple[str, ...] = ()
    win_by_prompt: Matrix | None = None  # [C, P]
    x_by_prompt: Matrix | None = None  # [C, P], or None where x was not recorded by prompt
    axis: Axis = KL
    columns: Mapping[str, FloatArray] = field(default_factory=dict)  # [C] what the other axes need, by record column
    by_prompt: Mapping[str, Matrix] = field(default_factory=dict)  # [C, P] by per-prompt column

    @property
    def usable(self) -> np.ndarray:
        """[C] which checkpoints have a place on the axis."""
        return self.axis.usable(self.x)


@dataclass(frozen=True)
class Clouds:
    """All clouds against one opponent, and what had to be left out to make them."""

    items: tuple[Cloud, ...]
    warnings: tuple[str, ...] = field(default=())

    def arm(self, name: str) -> list[Cloud]:
        return [c for c in self.items if c.arm == name]

    @property
    def arms(self) -> list[str]:
        return list(dict.fromkeys(c.arm for c in self.items))


def make_clouds(
    records: pd.DataFrame, per_prompt: pd.DataFrame, opponent: str, score: str = "win", min_kl: float = 1e-9
) -> Clouds:
    """Clouds against `opponent`; rows without a finite KL or a score are dropped and counted."""
    column = SCORES[score]
    place = np.flatnonzero((records["opponent"] == opponent).to_numpy())
    rows = records[list(dict.fromkeys(["arm", "seed", "run", "step", column, KL.column]))].take(place)
    rows.index = pd.Index(place)
    rows = rows.drop_duplicates(["run", "step"], keep="last")
    warnings: list[str] = []
    warnings += list_dropped(rows, column, opponent)
    known = np.isfinite(rows["kl_nats"]) & rows[column].notna()
    rows = rows[known & (rows["kl_nats"] > min_kl)]
    if not len(rows):
        return Clouds((), tuple(warnings))
    rows, thinned = thin(rows)
    warnings += thinned
    wanted = dict.fromkeys([*rows, "config", f"{column}_se", *AXIS_COLUMNS])  # the wide ones for the few rows that stay
    rows = records[list(wanted)].take(rows.index.to_numpy())
    prompt_rows = per_prompt[per_prompt["opponent"] == opponent] if len(per_prompt) else per_prompt
    groups = dict(list(prompt_rows.groupby(["arm", "seed"], sort=False))) if len(prompt_rows) else {}
    clouds: list[Cloud] = []
    unpaired: list[str] = []
    for key, frame in rows.groupby(["arm", "seed"], sort=False):
        arm, seed = str(frame["arm"].iloc[0]), int(frame["seed"].iloc[0])
        frame = frame.sort_values(["run", "step"], kind="stable")
        codes, runs = pd.factorize(frame["run"])
        configs = frame["config"][frame["run"].notna() & ~frame["run"].duplicated()]
        x: FloatArray = frame["kl_nats"].to_numpy(np.float64)
        win: FloatArray = frame[column].to_numpy(np.float64)
        part = groups.get(key)
        found = _by_prompt(part, frame, score) if part is not None else None
        ids: tuple[str, ...] = ()
        by_prompt: dict[str, Matrix] = {}
        if found is None:
            unpaired.append(f"{arm} (seed {seed})")
        else:
            ids, by_prompt = found
            win = mean_of(by_prompt[score])
            if "kl_nats" in by_prompt:
                x = mean_of(by_prompt["kl_nats"])
        clouds.append(
            Cloud(
                arm=arm,
                seed=seed,
                runs=tuple(map(str, runs)),
                configs=tuple(map(str, configs)),
                run=codes.astype(np.int64),
                step=frame["step"].to_numpy(np.int64),
                x=np.maximum(x, min_kl),
                x_se=_se(frame, KL.se),
                win=win,
                win_se=_se(frame, f"{column}_se"),
                prompt_ids=ids,
                win_by_prompt=by_prompt.get(score),
                x_by_prompt=by_prompt.get(KL.by_prompt),
                columns={c: frame[c].to_numpy(np.float64) for c in AXIS_COLUMNS},
                by_prompt=by_prompt,
            )
        )
    if unpaired and len(unpaired) == len(clouds):
        warnings.append(
            "Wins prompt by prompt are not recorded, so the arms could not be paired on the same prompts: errors rest "
            "on the checkpoints' standard errors and are wider than they need be; and a sweep's best is scored on the "
            "prompts that chose it, which flatters it."
        )
    elif unpaired:
        warnings.append(f"Wins prompt by prompt are incomplete for {', '.join(unpaired[:6])}: not paired there.")
    warnings += missing_wins(tuple(clouds), opponent)
    return Clouds(tuple(clouds), tuple(warnings))


def column_clouds(records: pd.DataFrame, column: str) -> Clouds:
    """The checkpoints with a column of the records (and its standard error) in the place of the win rate.

    Rows of one opponent are expected, as `make_clouds` takes them; a row without a KL or a value is left out. Prompts
    are not known: the column is over held-out pairs, and its errors are its standard errors.
    """
    rows = records.drop_duplicates(["run", "step"], keep="last")
    rows = rows[rows[column].notna() & np.isfinite(rows["kl_nats"]) & (rows["kl_nats"] > 0)]
    items = []
    for _, frame in rows.groupby(["arm", "seed"], sort=False):
        frame = frame.sort_values(["run", "step"], kind="stable")
        codes, runs = pd.factorize(frame["run"])
        items.append(
            Cloud(
                arm=str(frame["arm"].iloc[0]),
                seed=int(frame["seed"].iloc[0]),
                runs=tuple(map(str, runs)),
                configs=tuple(map(str, frame["config"][~frame["run"].duplicated()])),
                run=codes.astype(np.int64),
                step=frame["step"].to_numpy(np.int64),
                x=frame["kl_nats"].to_numpy(np.float64),
                x_se=np.zeros(len(frame)),
                win=frame[column].to_numpy(np.float64),
                win_se=_se(frame, f"{column}_se"),
            )
        )
    return Clouds(tuple(items))


def list_dropped(rows: pd.DataFrame, column: str, opponent: str) -> list[str]:
    """Sentences that count what has no place: a KL or a score that is undefined, and runs that are lost with it."""
    kl, score = ~np.isfinite(rows["kl_nats"]), rows[column].isna()
    if score.all() or not (kl | score).any():
        return []
    parts = [f"{int(kl.sum())} had an undefined or infinite KL"] if kl.any() else []
    parts += [f"{int(score.sum())} had no {column}"] if score.any() else []
    left = rows[~(kl | score) & (rows["step"] > 0)]
    whole = rows[rows["step"] > 0].groupby("arm")["run"].nunique()
    gone = {str(a): int(whole[a] - left[left["arm"] == a]["run"].nunique()) for a in whole.index}
    runs = ", ".join(f"{n} of {arm}" for arm, n in gone.items() if n)
    said = f"{int((kl | score).sum())} of {len(rows)} checkpoints against {opponent} were dropped: {', '.join(parts)}."
    return [said + (f" Runs lost altogether: {runs}." if runs else "")]


def missing_wins(clouds: tuple[Cloud, ...], opponent: str) -> list[str]:
    """A sentence that counts wins that are missing prompt by prompt: they are left out of their means."""
    holes = sum(int(np.isnan(c.win_by_prompt).sum()) for c in clouds if c.win_by_prompt is not None)
    total = sum(c.win_by_prompt.size for c in clouds if c.win_by_prompt is not None)
    return [f"{holes:,} of {total:,} wins against {opponent} are missing and left out of their means."] if holes else []


def on_axis(clouds: Clouds, axis: Axis) -> Clouds:
    """The same checkpoints on another x-axis, with a sentence for arms that have no place on it."""
    items, absent = [], []
    for cloud in clouds.items:
        by_prompt = cloud.by_prompt.get(axis.by_prompt)
        x = cloud.columns[axis.column] if by_prompt is None else mean_of(by_prompt)
        se = np.nan_to_num(cloud.columns[axis.se]) if axis.se else np.zeros(len(x))
        moved = replace(cloud, x=x, x_se=se, x_by_prompt=by_prompt, axis=axis)
        ok = moved.usable
        if not ok.any():
            absent.append(cloud.arm)
            continue
        items.append(moved if ok.all() else keep(moved, ok))
    said = [f"{', '.join(dict.fromkeys(absent))}: no {axis.name} above zero is recorded."] if absent else []
    return Clouds(tuple(items), tuple(said))


def keep(cloud: Cloud, mask: np.ndarray) -> Cloud:
    """A cloud of some of its checkpoints; its runs keep their numbers."""

    def cut(values: Matrix | None) -> Matrix | None:
        return None if values is None else values[mask]

    return replace(
        cloud,
        **{name: getattr(cloud, name)[mask] for name in ("run", "step", "x", "x_se", "win", "win_se")},
        win_by_prompt=cut(cloud.win_by_prompt),
        x_by_prompt=cut(cloud.x_by_prompt),
        columns={k: v[mask] for k, v in cloud.columns.items()},
        by_prompt={k: v[mask] for k, v in cloud.by_prompt.items()},
    )


def restrict(cloud: Cloud, configs: Collection[str]) -> Cloud:
    """A cloud of the runs of these configurations."""
    wanted = np.array([c in configs for c in cloud.configs])
    mine = np.flatnonzero(wanted)
    place = np.cumsum(wanted) - 1
    kept = keep(cloud, wanted[cloud.run])
    runs, names = (tuple(of[i] for i in mine) for of in (cloud.runs, cloud.configs))
    return replace(kept, run=place[kept.run], runs=runs, configs=names)


def split_by_setting(clouds: Clouds, setting: str) -> dict[float, Clouds]:
    """The clouds of each value of one setting of the configurations (`learning_rate`), by that value in rising order.

    A configuration keeps the rest of its name, so that those of two values can be matched. Configurations that do not
    name the setting are left out.
    """
    out: dict[float, list[Cloud]] = {}
    for cloud in clouds.items:
        named = {c: re.search(rf"(?:^| ){re.escape(setting)}=(\S+)", c) for c in cloud.configs}
        for value in {float(m[1]) for m in named.values() if m}:
            part = restrict(cloud, [c for c, m in named.items() if m and float(m[1]) == value])
            rest = tuple(c.replace(m[0], "").strip() for c in part.configs if (m := named[c]))
            out.setdefault(value, []).append(replace(part, configs=rest))
    return {value: Clouds(tuple(out[value])) for value in sorted(out)}


def mean_of(values: Matrix) -> FloatArray:
    """Mean [C] over prompts, nan entries left out."""
    with np.errstate(invalid="ignore"):
        return np.asarray(np.nanmean(values, axis=1, dtype=np.float64))


def thin(rows: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """An arm's share of MAX_RUNS at each seed and MAX_CHECKPOINTS checkpoints a run, evenly, with a sentence if cut."""
    said = []
    runs = rows[["arm", "seed", "run"]].drop_duplicates()
    group = runs.groupby(["arm", "seed"])
    counts = group["run"].transform("size").to_numpy(np.float64)
    most = max(MAX_RUNS // group.ngroups, LEAST_RUNS)
    if counts.max() > most:
        order = group.cumcount().to_numpy(np.float64)
        slot = np.floor(order * most / counts)
        before = np.floor((order - 1) * most / counts)
        kept = runs["run"][(counts <= most) | (slot > before)]
        said.append(f"{len(runs) - len(kept)} of {len(runs)} runs were left out of the frontiers, evenly: too many.")
        rows = rows[rows["run"].isin(kept)]
    sizes = rows.groupby("run")["step"].transform("size").to_numpy(np.float64)
    if sizes.max() > MAX_CHECKPOINTS:
        order = rows.groupby("run")["step"].rank(method="first").to_numpy(np.float64) - 1
        slot, before = np.floor(order * MAX_CHECKPOINTS / sizes), np.floor((order - 1) * MAX_CHECKPOINTS / sizes)
        keep = (sizes <= MAX_CHECKPOINTS) | (slot > before) | (order == sizes - 1)
        said.append(
            f"{int((~keep).sum())} of {len(rows)} checkpoints were left out of the frontiers, evenly: too many."
        )
        rows = rows[keep]
    return rows, said


#: what is kept prompt by prompt beside the score: an x-axis each, and the lengths
BY_PROMPT = ("kl_nats", "proxy_win", "length_tokens", "opponent_length_tokens")


def _by_prompt(part: pd.DataFrame, frame: pd.DataFrame, score: str) -> tuple[tuple[str, ...], dict[str, Matrix]] | None:
    """Matrices [C, P] of the score, KL and lengths aligned to the rows of `frame`; None when they do not cover them."""
    index = pd.MultiIndex.from_arrays([frame["run"], frame["step"]])
    row_of = dict(zip(index, range(len(index)), strict=True))
    run_codes, run_names = pd.factorize(part["run"])
    steps = part["step"].to_numpy(np.int64)
    span = int(steps.max()) + 1
    key = run_codes.astype(np.int64) * span + steps
    keys, inverse = np.unique(key, return_inverse=True)
    target = np.array([row_of.get((run_names[int(k) // span], int(k) % span), -1) for k in keys], dtype=np.int64)
    row = target[inverse]
    prompt_codes, prompts = pd.factorize(part["prompt_id"])
    there = row >= 0
    place = (row[there], prompt_codes[there])
    out: dict[str, Matrix] = {}
    for name in dict.fromkeys((score, *BY_PROMPT)):
        values = np.full((len(frame), len(prompts)), np.nan, dtype=np.float32)
        values[place] = part[name].to_numpy(np.float32)[there]
        if not np.isnan(values).all(axis=1).any():
            out[name] = values
    return (tuple(map(str, prompts)), out) if score in out else None


def _se(frame: pd.DataFrame, column: str) -> FloatArray:
    values = frame[column].to_numpy(np.float64)
    return np.where(np.isfinite(values), values, 0.0)
