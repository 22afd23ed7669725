"""From a survey's finished steps to the record tables of its folder, and the checkpoints compared with each other.

What is not made yet is left out: a checkpoint without a reading has no row, and one that a judge has not answered about
has no win rate by it.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from aligngap.execute.collect import find_trouble, vouch
from aligngap.instrument.deploy import told_of
from aligngap.instrument.folders import Found
from aligngap.instrument.gauge import ROLES
from aligngap.instrument.rows import (
    REFERENCE,
    Against,
    Frames,
    Moved,
    OfRun,
    frames_of,
    rows_of,
    study_text,
    write_frames,
)
from aligngap.instrument.survey import Survey
from aligngap.pipeline.checkpoints import AskJudge
from aligngap.pipeline.context import Context
from aligngap.stats.axes import say_nats
from aligngap.storage.files import write_text
from aligngap.storage.listing import writing
from aligngap.storage.reuse import (
    CEILINGS,
    EXPECTED,
    MATCHED,
    begin_folder,
    move_aside,
    write_provenance,
    writing_records,
)
from aligngap.types import Estimate

NEAR = 1.35  #: the largest ratio of a checkpoint's KL to a budget at which it stands for it


def collect(
    survey: Survey, ctx: Context, out: Path, command: str, compare: Sequence[str], budgets: Sequence[float]
) -> int:
    """Write the tables, `study.yaml` and the provenance of a survey; returns the number of checkpoints measured."""
    if not ctx.store.has(survey.start.name):
        return 0
    prompts, start = survey.prompts.prompts(ctx), survey.start.read(ctx)
    half = np.full(len(prompts), 0.5)
    roles = ROLES[: len(survey.setting.judges)]
    first = rows_of(start, prompts, {REFERENCE: Against(start, dict.fromkeys(roles, half))}, survey.setting.samples)
    found: list[tuple[OfRun, Any]] = []
    runs: dict[str, dict[str, Any]] = {}
    for checkpoint, step in survey.readings.items():
        if not ctx.store.has(step.name):
            continue
        of = OfRun(survey.name, checkpoint.arm, checkpoint.seed, checkpoint.step, checkpoint.config)
        if of.run not in runs:
            runs[of.run] = {"checkpoints": {}, "outcome": "ok"}
            found.append((OfRun(survey.name, of.arm, of.seed, 0, of.config), first))
        weights = step.policy
        assert weights is not None  # a survey's readings are of checkpoints
        runs[of.run]["checkpoints"][str(of.step)] = told_of(weights)
        made = {role: survey.verdicts[checkpoint, role] for role in roles}
        wins = {role: v.wins(ctx) for role, v in made.items() if ctx.store.has(v.name)}
        reading = step.read(ctx)
        moved = moved_of(survey, ctx, checkpoint)
        found.append((of, rows_of(reading, prompts, {REFERENCE: Against(start, wins)}, survey.setting.samples, moved)))
    if not runs:
        return 0
    frames = judged_by_outcome(frames_of(found), runs)
    arms = list(dict.fromkeys(of.arm for of, _ in found))
    own = survey.setting
    measured = {
        "reference": own.reference, "prompts": own.prompts, "base": own.base, "chat": survey.prompts.spec.chat,
        "response_tokens": own.response_tokens, "judges": [j.model_dump(exclude_none=True) for j in own.judges],
    }  # fmt: skip
    study = study_text(survey.name, arms, compare or None, budgets=list(budgets), measured=measured)
    about: dict[str, Any] = {"command": command, "runs": runs, "pipeline": told(survey, ctx), "artifacts": {}}
    reference = told_of(survey.prompts.reference) | {"reads": survey.prompts.reads}
    about |= {"directory": os.getcwd(), "reference": reference}
    made_steps = [s.name for s in survey.steps() if ctx.store.has(s.name)]
    about["artifacts"] = {name: ctx.store.manifest(name)["provenance"] for name in made_steps}
    asked: dict[str, Counter[str]] = {}
    for name in made_steps:
        for judge, counts in ctx.store.manifest(name)["result"].get("judges", {}).items():
            asked.setdefault(judge, Counter()).update(counts)
    if asked:
        about["judges"] = asked
    about |= vouch(ctx.store, made_steps, out)
    with writing_records(out):
        begin_folder(out, study, frames.samples, (MATCHED, CEILINGS))
        move_aside(out, *EXPECTED)
        write_frames(out, frames)
        write_provenance(out, about)
    return sum(len(run["checkpoints"]) for run in runs.values())


def moved_of(survey: Survey, ctx: Context, checkpoint: Found) -> Moved | None:
    """What rho and efficiency of a checkpoint stand on; None where it is left out, or not made yet."""
    if survey.behind is None:
        return None
    wins, ratios = survey.behind.wins, survey.behind.ratios[checkpoint]
    if not (ctx.store.has(wins.name) and ctx.store.has(ratios.name)):
        return None
    return Moved(ratios.read(ctx), wins.read(ctx))


def judged_by_outcome(frames: Frames, runs: Mapping[str, dict[str, Any]]) -> Frames:
    """The tables with what each run's measurements say went wrong, as a study's are."""
    rows = frames.records
    for run in runs:
        mine = rows["run"] == run
        start, later = rows[mine & (rows["step"] == 0)], rows[mine & (rows["step"] > 0)]
        outcome = find_trouble(start, later)
        runs[run]["outcome"] = outcome
        rows.loc[mine, "outcome"] = outcome
    return frames


def told(survey: Survey, ctx: Context) -> list[dict[str, Any]]:
    """What the step before the policies found, a row a quantity."""
    result = ctx.store.manifest(survey.prompts.name)["result"]
    return [{"seed": 0, "part": "prompts", "what": k.replace("_", " "), "value": v} for k, v in result.items()]


# ------------------------------------------------------------------------------------------------ against each other


@dataclass(frozen=True)
class Match:
    """Two policies' checkpoints nearest to a KL budget, of one seed, and the step that judges them."""

    kl: float
    seed: int
    left: Found
    right: Found
    kls: tuple[float, float]
    step: AskJudge


def matches(survey: Survey, ctx: Context, budgets: Sequence[float]) -> list[Match]:
    """For every two policies, seed and budget: the checkpoints nearest to it in KL, if both lie near enough.

    Chosen by KL alone, so that the choice does not flatter either. Judged by the first judge.
    """
    if not survey.setting.judges:
        return []
    kls = {
        c: float(ctx.store.manifest(s.name)["result"]["kl_nats"])
        for c, s in survey.readings.items()
        if ctx.store.has(s.name)
    }
    arms = list(dict.fromkeys(c.arm for c in kls))
    found = []
    for i, a in enumerate(arms):
        for b in arms[i + 1 :]:
            seeds = sorted({c.seed for c in kls if c.arm == a} & {c.seed for c in kls if c.arm == b})
            for kl in budgets:
                for seed in seeds:
                    left, right = (nearest([c for c in kls if (c.arm, c.seed) == (x, seed)], kls, kl) for x in (a, b))
                    if left is not None and right is not None:
                        step = survey.judge(ROLES[0], survey.readings[left], survey.readings[right])
                        found.append(Match(kl, seed, left, right, (kls[left], kls[right]), step))
    return found


def nearest(of: Sequence[Found], kls: Mapping[Found, float], kl: float) -> Found | None:
    """The checkpoint nearest to a KL on the log scale, if its KL is within a factor of `NEAR` of it."""
    moved = [c for c in of if kls[c] > 0]
    best = min(moved, key=lambda c: abs(math.log(kls[c] / kl)), default=None)
    return best if best is not None and abs(math.log(kls[best] / kl)) <= math.log(NEAR) else None


def write_matches(found: Sequence[Match], ctx: Context, out: Path) -> list[str]:
    """Write `matched.csv`, a row a match that is judged, and say them, averaged over seeds at each budget."""
    rows, wins = [], []
    for m in found:
        if ctx.store.has(m.step.name):
            won = m.step.wins(ctx)
            e = Estimate.mean(won)
            wins.append((m, won))
            rows.append({
                "kl_budget_nats": m.kl, "seed": m.seed, "policy": m.left.arm, "step": m.left.step,
                "kl_nats": m.kls[0], "against": m.right.arm, "against_step": m.right.step,
                "against_kl_nats": m.kls[1], "win_rate": e.value, "win_rate_se": e.se, "prompts": e.n,
            })  # fmt: skip
    with writing(out, [MATCHED]):
        (out / MATCHED).unlink(missing_ok=True)
        if rows:
            write_text(out / MATCHED, pd.DataFrame(rows).to_csv(index=False))
    groups: dict[tuple[float, str, str], list[tuple[Match, np.ndarray]]] = {}
    for m, won in wins:
        groups.setdefault((m.kl, m.left.arm, m.right.arm), []).append((m, won))
    said: dict[tuple[str, ...], tuple[list[float], list[tuple[Match, np.ndarray]]]] = {}
    for (kl, *_), of in groups.items():  # budgets with the same checkpoints nearest to them are said together
        said.setdefault(tuple(m.step.name for m, _ in of), ([], of))[0].append(kl)
    return [sentence(kls, of) for kls, of in said.values()]


def sentence(kls: Sequence[float], of: Sequence[tuple[Match, np.ndarray]]) -> str:
    """How the checkpoints of two policies nearest to these KL budgets do against each other, with a 95% interval.

    Over several seeds the interval is Student's over the seeds' means; of one seed it is over prompts, and says nothing
    of another training run.
    """
    from scipy.stats import t

    means = np.array([won.mean() for _, won in of])
    if len(means) > 1:
        half = float(t.ppf(0.975, len(means) - 1) * means.std(ddof=1) / math.sqrt(len(means)))
        over = f"{len(means)} seeds"
    else:
        e = Estimate.mean(of[0][1])
        half, over = 1.96 * e.se, f"{e.n} prompts of one seed"
    low, high = max(0.0, means.mean() - half), min(1.0, means.mean() + half)
    at = [np.mean([m.kls[side] for m, _ in of]) for side in (0, 1)]
    a, b = of[0][0].left.arm, of[0][0].right.arm
    return (
        f"against each other at about {say_nats(*kls)}: {a} ({at[0]:.2f} nats) wins against {b} ({at[1]:.2f} nats) "
        f"on {means.mean():.1%} of prompts (95% {low:.1%} to {high:.1%}, over {over})"
    )
