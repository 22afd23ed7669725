"""Run `fit` so that it survives: saved state, a journal that never outruns it, progress, and a stop on divergence.

The same driver serves SFT, preference models and every arm. It saves the whole training state now and then; what a run
leaves behind (its log, the pairs it trained on) is written in parts at the same moments, so that a killed run goes on
from its newest state and ends with the same bytes.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aligngap.fit import Objective, Stream, Trainer, Update, fit
from aligngap.models.rollout import Following
from aligngap.storage.checksums import check_files, checksums, difference, listed_in, unseal, write_sealed
from aligngap.storage.files import discard
from aligngap.storage.pairs import pair_from_row, pair_to_row, read_rows, write_pair_rows, write_rows
from aligngap.streams import dropped_by
from aligngap.types import Damaged, JudgeFailed, Pair, Stopped

if TYPE_CHECKING:
    from aligngap.pipeline.context import Job


class Journal:
    """Rows kept in parts named by the steps they cover; parts beyond the state resumed from are dropped.

    Beside each state lies a list of the parts that belong to it, with their checksums (`kept_at`).
    """

    def __init__(self, folder: Path, write: Callable[[Path, list[dict[str, Any]]], None] = write_rows) -> None:
        self.folder, self.write, self.rows = folder, write, list[dict[str, Any]]()
        folder.mkdir(parents=True, exist_ok=True)

    def flush(self, step: int) -> None:
        if self.rows:
            beside = self.folder / ".writing"
            self.write(beside, self.rows)
            beside.replace(self.folder / f"until-{step:08d}.parquet")
            self.rows = []

    def rewind(self, step: int) -> None:
        for part in self.folder.glob("until-*.parquet"):
            if int(part.stem.removeprefix("until-")) > step:
                part.unlink()

    def collect(self) -> list[dict[str, Any]]:
        return [row for part in sorted(self.folder.glob("until-*.parquet")) for row in read_rows(part)]


def newest_state(work: Path) -> Path | None:
    """The newest whole state folder, if any."""
    states = [p for p in work.glob("state-*") if re.fullmatch(r"state-\d{8}", p.name)]
    return next((p for p in sorted(states, reverse=True) if is_whole(p)), None)


def states_in(work: Path) -> list[Path]:
    """The states in a step's folder, each with its list."""
    return [*work.glob("state-*"), *work.glob("kept-*.json")]


def is_whole(state: Path) -> bool:
    """Whether a state, and what the step had left beside it by then, is what was written.

    What a dying disk or machine has torn is passed over: for an older state, or to train from the start.
    """
    try:
        check_files(state)
        kept = unseal(kept_at(state))
        return kept.get("of", state.name) == state.name and not difference(state.parent, listed_in(kept_at(state)))
    except (OSError, Damaged):
        return False


def kept_at(state: Path) -> Path:
    """The sealed list of journals and checkpoints that a step had left when it saved the state."""
    return state.with_name(f"kept-{state.name.removeprefix('state-')}.json")


def train(
    job: Job,
    trainer: Trainer,
    stream: Stream,
    objective: Objective,
    *,
    sampler: Any = None,
    prepare: Callable[[Sequence[Any]], Sequence[Any]] | None = None,
    after: Callable[[int], None] = lambda step: None,
    record_pairs: bool = False,
    spent: Callable[[], float] | None = None,
) -> str:
    """Train to the end, or until loss or gradient is not finite; returns the outcome: "ok" or what went wrong.

    `after(step)` is called after every step, before any state that includes it is saved. Leaves `log.parquet` in
    `job.work` and, with `record_pairs`, `recording.parquet`: every pair in the order in which it was trained on; with
    `spent`, which says what this process computed since it was last asked, the log tells each step's operations. The
    states and journals stay until the step is finished, so that a kill after the last step costs no training. A judge
    that answers no probability ends the run with that outcome. Raises Stopped, the state saved, if the job is to stop.
    Of several processes, only the first one returns (`world.Released`); what the others write is thrown away.
    """
    world, layout = trainer.world, trainer.layout
    log = Journal(job.work / "log")
    recording = Journal(job.work / "recording", write_pair_rows)
    work = world.broadcast(job.work)
    state = world.broadcast(newest_state(work))
    if state is not None:
        trainer.load(state, stream)
        after(trainer.step)
        job.log.note("resumed", step=trainer.step)
    log.rewind(trainer.step)
    recording.rewind(trainer.step)
    outcome, saved = "ok", time.monotonic()

    def save() -> None:
        log.flush(trainer.step)
        recording.flush(trainer.step)
        folder = work / f"state-{trainer.step:08d}"
        for old in job.work.glob(folder.name):
            discard(old)
        if world.rank == 0:
            write_sealed(kept_at(folder), {"of": folder.name, "files": checksums(work, states_in(work))})
        trainer.save(folder, stream)
        job.log.note("saved", step=trainer.step)
        for old in states_in(job.work):
            if old not in (folder, kept_at(folder)):
                discard(old)

    def prepared(items: Sequence[Any]) -> Sequence[Any]:
        return world.each(items, prepare) if prepare is not None else items

    try:
        for step in fit(trainer, stream, objective, layout.sampler(sampler), prepared):
            log.rows.append(log_row(step, stream, sampler))
            if spent is not None:
                log.rows[-1] |= world.sum({"flops": spent()})
            if record_pairs:
                log.rows[-1] |= describe_pairs(step, stream)
                recording.rows.extend(pair_to_row(p) for p in step.items)
            job.track(log.rows[-1], step.number)
            job.log.step(step.number, loss=step.loss, grad_norm=step.grad_norm, learning_rate=step.learning_rate)
            if not step.finite:
                outcome = f"diverged at step {step.number}: loss {step.loss}, gradient norm {step.grad_norm}"
                break
            after(step.number)
            stop, due = world.any(job.stopping(), time.monotonic() - saved > job.save_seconds)
            if stop:
                save()
                raise Stopped
            job.progress(step.number, trainer.how.steps, f"loss {step.loss:.3f}")
            if due and step.number < trainer.how.steps:
                save()
                saved = time.monotonic()
    except JudgeFailed as error:
        outcome = f"stopped at step {trainer.step + 1}: {error}"
    state = world.broadcast(newest_state(work))
    if outcome == "ok" and state is not None and state.name != f"state-{trainer.step:08d}":
        save()  # a run this long is not trained again for a kill in what follows
    layout.finish()
    log.flush(trainer.step)
    recording.flush(trainer.step)
    rows = log.collect()
    if record_pairs:
        pairs = recording.collect()
        write_pair_rows(job.work / "recording.parquet", pairs)
        count_pairs(rows, pairs, trainer.how.batch)
    write_rows(job.work / "log.parquet", rows)
    job.log.note("trained", step=trainer.step, outcome=outcome)
    return outcome


def log_row(step: Update, stream: Any, sampler: Any = None) -> dict[str, Any]:
    """What the log says of one optimiser step: loss, metrics, responses sampled, an engine's mismatch."""
    row: dict[str, Any] = {"step": step.number, "loss": step.loss, "grad_norm": step.grad_norm}
    row |= {"learning_rate": step.learning_rate, "responses_sampled": stream.responses_sampled}
    return row | step.metrics | (sampler.mismatch() if isinstance(sampler, Following) else {})


def describe_pairs(step: Update, stream: Any) -> dict[str, Any]:
    """What the log says of a step's pairs: their age, the KL to who wrote them, their length, and what was discarded.

    `age` is the mean over the pairs of how many steps ago they were written, `age_max` the largest; nan where the
    weights of no training step wrote them. `lag_kl_nats` is the mean over the pairs whose writer's log-probabilities
    are stored of log writer - log policy, per response: the plain estimate of KL(writer || policy). `length_tokens` is
    per response. `dropped` counts the pairs discarded so far, `dropped_length_tokens` is the mean length of theirs.
    """
    pairs: Sequence[Pair] = step.items
    ages = [step.number - 1 - p.written_at for p in pairs if p.written_at is not None]
    lengths = [len(r.ids) for p in pairs for r in (p.chosen, p.rejected)]
    known, (dropped, tokens) = step.metrics.get("writer_known", 0.0), dropped_by(stream)
    return {
        "age": sum(ages) / len(ages) if ages else math.nan, "age_max": float(max(ages, default=math.nan)),
        "lag_kl_nats": step.metrics.get("lag_kl_nats", 0.0) / known if known else math.nan,
        "length_tokens": sum(lengths) / len(lengths),
        "dropped": dropped, "dropped_length_tokens": tokens / (2 * dropped) if dropped else math.nan,
    }  # fmt: skip


def mismatch(log: Path) -> dict[str, Any]:
    """How far an engine's log-probabilities of a token were from the trainer's, over a run's log; {} if none wrote."""
    rows = [r for r in read_rows(log) if r.get("mismatch_tokens")]
    tokens = sum(int(r["mismatch_tokens"]) for r in rows)
    if not tokens:
        return {}
    total = sum(r["mismatch_nats"] * r["mismatch_tokens"] for r in rows)
    most = max(r["mismatch_max_nats"] for r in rows)
    return {"mismatch_nats": total / tokens, "mismatch_max_nats": most, "mismatch_tokens": tokens}


def count_pairs(rows: list[dict[str, Any]], pairs: Sequence[dict[str, Any]], batch: int) -> None:
    """Add to each log row how many pairs, and how many distinct pairs, the run had trained on by then."""
    seen: set[Any] = set()
    for number, row in enumerate(rows):
        seen.update(pair_from_row(p).key for p in pairs[number * batch : (number + 1) * batch])
        row["pairs_seen"], row["pairs_distinct"] = (number + 1) * batch, len(seen)
