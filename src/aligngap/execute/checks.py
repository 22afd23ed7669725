"""What is looked at before any compute: data files, models, judges, trackers, processes and devices."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from aligngap.judges.kinds import CheckedKind
from aligngap.settings import ModelSpec
from aligngap.types import AligngapError, FileTask, RunFailed, one_line

if TYPE_CHECKING:
    from aligngap.execute.agenda import Executor
    from aligngap.pipeline.base import Step
    from aligngap.pipeline.plan import Plan
    from aligngap.settings import Study
    from aligngap.storage.store import Store
    from aligngap.storage.tracking import Tracking
    from aligngap.types import TaskData


#: what the columns are called in which trainers store a reference's log-probabilities of both responses
REFERENCE_COLUMNS = {f"{who}_{side}_logps" for who in ("ref", "reference") for side in ("chosen", "rejected")}


def check_data(made: Plan, store: Store) -> list[TaskData]:
    """What the data files hold that no earlier run has read: a broken row, or too few, costs a line and nothing more.

    A file is read once however many seeds there are, since the seed only draws rows under a limit.
    """
    from aligngap.pipeline.data import Data
    from aligngap.study.build import build_task

    read: dict[str, TaskData] = {}
    unread: dict[str, tuple[str, Sequence[str]]] = {}  # by file: what it is called, and its columns that nobody reads
    for step in made.steps():
        if not isinstance(step, Data) or step.fingerprint in unread:
            continue
        if store.has(step.name):
            about = store.manifest(step.name)["result"]
            unread[step.fingerprint] = about["source"], about.get("read", {}).get("unread", ())
            continue
        task = build_task(step.task)
        if isinstance(task, FileTask):
            found = read[step.fingerprint] = task.load(step.seed)
            unread[step.fingerprint] = found.source, found.unread
            step.check_rows(found.source, {"train": len(found.train), "test": len(found.test)}, found.dropped)
    for run in made.runs:
        if run.align.reference_every is not None:
            check_reference(*unread.get(run.align.data.fingerprint, ("", ())))
    return list(read.values())


def tell_unvouched(steps: Sequence[Step], store: Store) -> None:
    """Say on stderr which artifacts of a plan nothing vouches for, and which were made from other bytes.

    The first were made before there were checksums; an input of the others was made again, or is another store's.
    """
    names = [step.name for step in steps]
    if old := store.unvouched(names):
        what = f"{say_some(old)} were made before there were checksums, and nothing vouches for them"
        print(f"aligngap: {store.root}: {what}; remove their folders to make them anew", file=sys.stderr)
    if apart := store.replaced(names):
        what = f"{say_some(list(apart))} stand on an input that has been made again, or brought in, with other bytes"
        remedy = f"`aligngap check {store.root}` says which; remove their folders to make them anew"
        print(f"aligngap: {store.root}: {what}; {remedy}", file=sys.stderr)


def say_some(names: Sequence[str]) -> str:
    """How many artifacts, and the names of the first ones."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{len(names)} artifact{'s' * (len(names) != 1)} ({', '.join(names[:3])}{more})"


def tell_fewer_prompts(study: Study, out: Path) -> None:
    """Say on stderr where a task has fewer prompts than the study asks to measure on: more of them cannot be had."""
    import pandas as pd

    from aligngap.storage.records import RECORDS

    asked, there = study.measurement.prompts, pd.read_parquet(out / RECORDS, columns=["prompts"])["prompts"].max()
    if there < asked:
        what = f"measurement.prompts is {asked:,}, and its {study.measurement.split} split has {there:,}"
        print(f"aligngap: {study.name}: {what}; all of them were used", file=sys.stderr)


def check_reference(source: str, unread: Sequence[str]) -> None:
    """Refuse log-probabilities that are stored with the data, of a reference that stays, where a run's moves."""
    stored = [f"`{name}`" for name in unread if name in REFERENCE_COLUMNS]
    if stored:
        what = f"{source}: {' and '.join(stored)} are of a reference that stays, and that of `recipe.reference` moves"
        raise AligngapError(f"{what}; remove these columns, or leave `recipe.reference` out")


def pick_tracking(args: argparse.Namespace, made: Plan, out: Path) -> Tracking:
    """The trackers asked for, refused before any work where one cannot be used."""
    from aligngap.execute.watch import labels
    from aligngap.storage.tracking import Tracking, check_trackers

    names = check_trackers(args.track)
    if names and args.executor != "local":
        raise AligngapError("--track belongs to --executor local; leave one of them out")
    return Tracking(names, out.resolve() / "tracking", made.study.name, labels(made))


def pick_processes(args: argparse.Namespace, made: Plan) -> int:
    """How many processes train a model together, refused before any work where they cannot be had."""
    from aligngap.execute.together import check_batches
    from aligngap.parallel.world import in_world
    from aligngap.pipeline.align import Align

    found = int(os.environ["WORLD_SIZE"]) if in_world() else 1
    processes: int = found if args.processes is None else args.processes
    parallel: Literal["ddp", "fsdp"] = args.parallel or "ddp"
    if processes < 1 or (found > 1 and processes != found):
        raise AligngapError(
            f"--processes {processes}: must be " + ("positive" if found == 1 else f"{found}, as started")
        )
    if processes == 1:
        if args.parallel is not None:
            raise AligngapError("--parallel belongs to --processes N; add it, with N above 1")
        return 1
    engine = next((s.rollouts.engine for s in made.steps() if isinstance(s, Align) and s.engine_writes), None)
    if engine is not None:
        raise AligngapError(f"recipe.rollouts.engine: {engine} writes for one process; leave it or --processes out")
    for given, what in (
        (args.executor != "local", f"--executor {args.executor}"),
        (args.workers is not None, "--workers"),
    ):
        if given:
            raise AligngapError(f"{what} spreads a study's steps and --processes one model; leave one of them out")
    from aligngap.parallel.distributed import check_parallel

    check_batches(made, processes, parallel)
    check_parallel(parallel, processes, pick_device(args.device), int(os.environ.get("LOCAL_WORLD_SIZE", processes)))
    return processes


def pick_executor(args: argparse.Namespace, store: Store, tracking: Tracking) -> Executor:
    """Local processes, a Ray cluster or a Slurm cluster, refused before any work where it cannot be had."""
    if args.slurm and args.executor != "slurm":
        raise AligngapError("--slurm belongs to --executor slurm; add it")
    if args.executor != "local":
        if args.device != "auto":
            what = f"with {args.executor}, --gpus says what a step gets"
            raise AligngapError(f"--device belongs to --executor local; {what}")
        how = {"gpus": args.gpus, "workers": args.workers, "threads": args.threads, "save_seconds": args.save_seconds}
        if args.executor == "ray":
            from aligngap.execute.ray import Ray

            return Ray(store, **how)
        from aligngap.execute.slurm import Slurm

        return Slurm(store, options=args.slurm, **how)
    from aligngap.execute.local import Local
    from aligngap.execute.together import Together
    from aligngap.parallel.world import in_world

    if args.gpus is not None:
        raise AligngapError(
            "--gpus belongs to --executor ray or slurm; with local processes, --device names the device"
        )
    device = pick_device(args.device)
    if in_world():
        return Together(
            store, parallel=args.parallel or "ddp", device=device, threads=args.threads,
            save_seconds=args.save_seconds, tracking=tracking,
        )  # fmt: skip
    workers = args.workers if args.workers is not None else 1 if device.startswith("cuda") else os.cpu_count() or 1
    return Local(
        store, workers=workers, threads=args.threads, device=device, save_seconds=args.save_seconds, tracking=tracking
    )


def check_models(study: Study) -> None:
    """Look at every model the study names before anything is computed: an unknown one costs a line, not an hour.

    A line on stderr says which policy families transformers' `generate` samples.
    """
    from aligngap.models.decoding import knows
    from aligngap.models.loading import check_spec, check_tokenizer, config_of, load_tokenizer, quiet
    from aligngap.models.lora import check_peft
    from aligngap.models.policy import try_family
    from aligngap.models.rollout import rollout_of
    from aligngap.study.variants import apply_variant

    quiet()
    every = [study, *(apply_variant(study, name) for name in study.variants)]
    if any(how.lora is not None for s in every for how in s.optimizations):
        check_peft()
    for path in dict.fromkeys(s.tokenizer.path for s in every):
        if path is not None:
            load_tokenizer(path)
    for spec in {m.model_dump_json(): m for s in every for m in s.models}.values():
        check_spec(spec)
        check_tokenizer(spec)
        try_family(spec)
    configs = [config_of(s.policy) for s in every]
    for s, config in zip(every, configs, strict=True):
        rollout_of(s.recipe.rollouts).check(config)
        check_windows(s)
    for family in dict.fromkeys(c.model_type for c in configs if not knows(c)):
        what = "is none that our own sampling loop knows: transformers' generate samples it, which is slower"
        print(f"aligngap: policy family `{family}` {what}", file=sys.stderr)


def check_planned(study: Study) -> None:
    """Look at a study's models before it is run, unless all are a T5 from scratch, which no limit is too long for.

    Nothing of torch is imported for those.
    """
    from aligngap.judges.kinds import LimitedKind
    from aligngap.study.build import build_judge
    from aligngap.study.variants import apply_variant

    every = [study, *(apply_variant(study, name) for name in study.variants)]
    other = any(m.path is not None or m.model_type != ModelSpec().model_type for s in every for m in s.models)
    if other or any(isinstance(build_judge(j), LimitedKind) for s in every for j in (s.golden, s.proxy)):
        check_models(study)


def check_windows(study: Study) -> None:
    """Refuse limits that are longer than what a model of the study, or a ready judge, reads at once."""
    from aligngap.judges.kinds import LimitedKind
    from aligngap.study.build import build_judge
    from aligngap.study.windows import too_long

    if wrong := too_long(study):
        raise AligngapError(wrong)
    for role, judge in (("golden", study.golden), ("proxy", study.proxy)):
        kind = build_judge(judge, role)
        if isinstance(kind, LimitedKind):
            kind.check_limits(study.limits)


def check_judges(made: Plan, store: Any) -> None:
    """Ask each judge that can say so whether it can be used, unless everything is done."""
    from aligngap.pipeline.judges import ReadyJudge
    from aligngap.study.build import build_judge

    steps = made.steps()
    if all(store.has(s.name) for s in steps):
        return
    for judge in (s for s in steps if isinstance(s, ReadyJudge)):
        kind = build_judge(judge.spec)
        if isinstance(kind, CheckedKind):
            try:
                kind.check(store.root)
            except RunFailed as error:
                raise AligngapError(str(error)) from error


def pick_device(name: str) -> str:
    """The device that `--device` names, or a GPU if there is one; AligngapError where it cannot be used."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise AligngapError(f"--device {name}: {one_line(error)[:120]}; use cpu or auto") from error
    return name
