"""Which checkpoint to deploy at a KL budget, with the doubt: chosen on one half of the prompts, scored on the other.

A best of many is flattered by the prompts that chose it. So the prompts are halved by their ids; the checkpoint with
the highest win rate against the reference on one half is the choice, and what is said of it comes from the other half:
its win rate with a 95% interval over prompts, and which other checkpoints are not told apart from it there (paired on
prompts, Holm over all of them). It is about these very weights: an interval over prompts says nothing of another run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from aligngap.instrument.rows import REFERENCE
from aligngap.report.folder import REMEDY, read_provenance
from aligngap.stats.adjust import holm
from aligngap.stats.axes import say_nats
from aligngap.stats.estimate import interval
from aligngap.storage.listing import PROVENANCE
from aligngap.storage.records import Tables, read_folder
from aligngap.types import AligngapError, Estimate

SHOWN = 5  #: alternatives that are named
LEVEL = 0.05  #: of Holm's tests


@dataclass(frozen=True)
class Candidate:
    """One measured checkpoint: its run and step, its KL, and its win rate on the prompts that did not choose."""

    run: str
    arm: str
    step: int
    kl: Estimate
    win: Estimate

    @property
    def name(self) -> str:
        return f"{self.run}@{self.step}"


@dataclass(frozen=True)
class Pick:
    """The choice, and the other candidates by what the scoring prompts say of them beside it."""

    chosen: Candidate
    interval: tuple[float, float]
    alike: tuple[Candidate, ...]  # not told apart from the choice, the least KL first
    better: tuple[Candidate, ...]  # told apart, and ahead of it: the two halves of the prompts disagree
    candidates: int
    choosing: int  # prompts that chose
    budget: float | None
    beyond: int  # checkpoints left out for their KL
    doubts: tuple[str, ...] = ()  # sentences about files of the folder, and the reference, that are not what they were


def pick(out: Path, kl: float | None = None, policy: str | None = None) -> Pick:
    """The checkpoint of a measured folder with the highest win rate at a KL of at most `kl` nats (None: at any KL).

    `policy` leaves one policy's checkpoints only. Raises AligngapError where there are no win rates, no checkpoint at
    or below the KL, or fewer than four prompts.
    """
    tables = read_folder(out)
    rows = tables.records[(tables.records["opponent"] == REFERENCE) & (tables.records["step"] > 0)]
    if policy is not None:
        rows = rows[rows["arm"] == policy]
        if not len(rows):
            known = ", ".join(dict.fromkeys(tables.records["arm"]))
            raise AligngapError(f"{out}: no policy `{policy}`; it has: {known}")
    if not rows["win_rate"].notna().any():
        raise AligngapError(f"{out}: has no win rates against the reference; measure it with --judge")
    rows = rows[rows["win_rate"].notna()]
    within = rows if kl is None else rows[rows["kl_nats"] <= kl]
    if kl is not None and not len(within):
        near = rows.sort_values("kl_nats").iloc[0]
        what = f"{near['run']}@{near['step']} at {near['kl_nats']:.3g}"
        raise AligngapError(f"{out}: no checkpoint lies at or below {say_nats(kl)}; the nearest is {what}: raise --kl")
    wins = wins_of(tables, within)
    first = np.array([in_first_half(str(prompt)) for prompt in wins.columns])
    if first.sum() < 2 or (~first).sum() < 2:
        raise AligngapError(f"{out}: {len(first)} prompts; halves of at least two each are needed: measure on more")
    values = wins.to_numpy(np.float64)
    best = int(np.argmax(values[:, first].mean(axis=1)))
    scored = values[:, ~first]
    candidates = [
        Candidate(
            str(r["run"]), str(r["arm"]), int(r["step"]),
            Estimate(float(r["kl_nats"]), float(r["kl_nats_se"]), int(r["prompts"])), Estimate.mean(scored[i]),
        )
        for i, (_, r) in enumerate(within.iterrows())
    ]  # fmt: skip
    others = [i for i in range(len(candidates)) if i != best]
    gaps = [Estimate.mean(scored[best] - scored[i]) for i in others]
    adjusted = holm([p_of(gap) for gap in gaps])
    apart = {i: gap.value for i, gap, p in zip(others, gaps, adjusted, strict=True) if p < LEVEL}
    alike = sorted((candidates[i] for i in others if i not in apart), key=lambda c: c.kl.value)
    low, high = interval(candidates[best].win)
    return Pick(
        candidates[best], (max(0.0, low), min(1.0, high)), tuple(alike),
        tuple(candidates[i] for i, gap in apart.items() if gap < 0),
        len(candidates), int(first.sum()), kl, len(rows) - len(within), (*tables.doubts, *doubts_of(out)),
    )  # fmt: skip


def doubts_of(out: Path) -> list[str]:
    """A sentence where the reference is no longer the one that a folder was measured against."""
    if not read_provenance(out).get("reference"):
        return []
    from aligngap.instrument.deploy import changed_reference

    wrong = changed_reference(out)
    return [wrong] if wrong else []


def wins_of(tables: Tables, rows: pd.DataFrame) -> pd.DataFrame:
    """Wins against the reference, a row a checkpoint in the order of `rows` and a column a prompt."""
    own = tables.per_prompt[tables.per_prompt["opponent"] == REFERENCE]
    if not len(own):
        raise AligngapError("the folder has no wins prompt by prompt (per_prompt.parquet); measure it again")
    wide = own.pivot_table(index=["run", "step"], columns="prompt_id", values="win", observed=True)
    found = wide.reindex(pd.MultiIndex.from_frame(rows[["run", "step"]]))
    return found.dropna(axis=1)


def in_first_half(prompt: str) -> bool:
    """Whether a prompt, by its id, is one of those that choose."""
    return hashlib.sha256(f"half of {prompt}".encode()).digest()[0] < 128


def p_of(gap: Estimate) -> float:
    """The two-sided p-value of a mean of paired differences; 1 where all are equal."""
    if not gap.se > 0:
        return 1.0 if gap.value == 0 else 0.0
    return float(2 * special.stdtr(gap.n - 1, -abs(gap.value) / gap.se))


def sentences(found: Pick) -> list[str]:
    """The choice and its doubts, a line each."""
    c, (low, high) = found.chosen, found.interval
    at = "at any KL" if found.budget is None else f"at or below {say_nats(found.budget)}"
    left = f", {found.beyond} beyond it left out" if found.beyond else ""
    lines = [
        f"{c.name}: KL {c.kl.value:.3g} ± {c.kl.se:.2g} nats; it wins against the reference on {c.win.value:.1%} of "
        f"the {c.win.n} prompts that did not choose it (95% {low:.1%} to {high:.1%})",
        f"best of {found.candidates} checkpoints {at}{left}, chosen on {found.choosing} other prompts",
    ]
    if low <= 0.5:
        lines.append("doubt: it is not shown to beat the reference (the interval reaches down to 50%)")
    if found.budget is not None and c.kl.value + 1.96 * c.kl.se > found.budget:
        lines.append(
            f"doubt: its KL may lie above {say_nats(found.budget)} (95% up to {c.kl.value + 1.96 * c.kl.se:.3g})"
        )
    if found.better:
        told = ", ".join(f"{o.name} ({o.win.value:.1%})" for o in found.better[:SHOWN])
        lines.append(f"doubt: the other half of the prompts prefers {told}; measure on more prompts")
    if found.alike:
        told = ", ".join(
            f"{o.name} ({say_nats(o.kl.value, digits='.3g')}, {o.win.value:.1%})" for o in found.alike[:SHOWN]
        )
        more = f" and {len(found.alike) - SHOWN} more" if len(found.alike) > SHOWN else ""
        lines.append(f"not told apart from it, the least KL first: {told}{more}")
    elif found.candidates > 1:
        lines.append("told apart from every other one")
    return [*lines, *(f"doubt: {sentence}" for sentence in found.doubts)]


def place_of(out: Path, chosen: Candidate) -> dict[str, Any] | None:
    """Where a measured checkpoint lies as from here, with its hashes; None of a study's own run."""
    run = read_provenance(out).get("runs", {}).get(chosen.run, {})
    if run.get("align"):
        return None
    found: dict[str, Any] | None = run.get("checkpoints", {}).get(str(chosen.step))
    if found is None:
        raise AligngapError(f"{out / PROVENANCE}: does not say where {chosen.name} lies; {REMEDY}")
    from aligngap.instrument.deploy import placed

    return placed(found, out)


def export_pick(out: Path, found: Pick, to: Path, store: Path | None) -> Path:
    """Write the chosen checkpoint as a Hugging Face folder with a card, whole or not at all.

    A study's own run is exported as `aligngap export` does; an adapter is added to its base.
    """
    place = place_of(out, found.chosen)
    if place is None:
        from aligngap.exchange.export import export
        from aligngap.storage.store import Store

        return export(out, found.chosen.name, to, Store(store or out.resolve().parent / "store"))
    from aligngap.instrument.deploy import write_checkpoint

    return write_checkpoint(out, place, to, sentences(found), found.chosen.name)


def say_where(out: Path, found: Pick) -> Sequence[str]:
    """The line that says where the chosen weights lie, or that those which lie there are not what was measured."""
    place = place_of(out, found.chosen)
    if place is None:
        return []
    from aligngap.instrument.deploy import changed

    wrong = changed(place, found.chosen.name)
    return [f"doubt: {wrong}" if wrong else f"it lies in {place['path']}"]
