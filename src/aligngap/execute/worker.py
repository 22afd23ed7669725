"""Make steps inside a process, whoever started it: in a pool of this machine, on a Ray cluster, or one of several.

A worker holds one step at a time under the store's lock, says how far it is, and answers what became of the step.
Leaves out which step comes next (`agenda.py`) and where workers come from (`local.py`, `ray.py`, `together.py`).
"""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from aligngap.execute.agenda import Answer, Event
from aligngap.pipeline.base import Step
from aligngap.pipeline.context import Context, Job, never
from aligngap.pipeline.kinds import step_from_json
from aligngap.source import check_used
from aligngap.storage.files import disk_line, disk_trouble, write_text
from aligngap.storage.provenance import provenance
from aligngap.storage.runlog import RunLog
from aligngap.storage.store import Store
from aligngap.storage.tracking import Track, Tracking
from aligngap.types import AligngapError, Damaged, RunFailed, Stopped

COMPILED = "TORCHINDUCTOR_CACHE_DIR"  #: the variable that says where torch keeps what it has compiled


def make(step: Step, ctx: Context, job: Job | None = None) -> bool:
    """Make one artifact in this process; False if it was there already.

    The job says who shares the work, whom it tells and how it is stopped; its folder is the store's.
    """
    if ctx.store.has(step.name):
        return False
    with ctx.store.making(step.name) as work:
        if work is not None:
            work_on(step, ctx, replace(job or Job(), work=work))
        return work is not None


def make_sound(step: Step, ctx: Context, job: Job, damaged: frozenset[str] = frozenset()) -> bool:
    """Make one artifact; what it stands on and is found `damaged` is set aside and made again first, each once."""
    while True:
        try:
            return make(step, ctx, job)
        except Damaged as error:
            need = next((s for s in step.walk() if s.name == error.name and s is not step), None)
            if need is None or need.name in damaged:
                raise
            damaged |= {need.name}
            ctx.store.set_aside(need.name)
            make_sound(need, ctx, replace(job, track=Track()), damaged)


def make_or_set_aside(making: Callable[[], bool], store: Store) -> bool:
    """Make a step where several processes work together, of which none can make its damaged inputs again by itself.

    RunFailed, with the damaged artifact moved aside: the same command, repeated, makes it and goes on.
    """
    try:
        return making()
    except Damaged as error:
        if not error.name:
            raise
        store.set_aside(error.name)
        raise RunFailed(f"{error}; it is moved aside, and the same command makes it again") from error


def work_on(step: Step, ctx: Context, job: Job) -> None:
    """Make one artifact in the job's folder, which this process holds the lock of."""
    store, world = ctx.store, job.world
    # Of several processes none leaves between two steps of training: they agree on it there.
    reporter = Reporter(store.root / "partial" / f"{step.name}.progress", job.stopping if world.size == 1 else never)
    job = replace(job, progress=reporter, log=RunLog(store.root / "partial" / f"{step.name}.log.jsonl"))
    job.log.note("started", step=step.label, process=os.getpid(), device=ctx.device_name, **world.about())
    started, cpu = time.monotonic(), time.process_time()
    try:
        check_used()
        about = step.run(ctx, job)
        check_used()
    except BaseException as error:
        with suppress(OSError):  # a full disk may be the very reason
            job.log.note("stopped" if isinstance(error, Stopped) else "failed", why=repr(error))
        raise
    finally:
        job.track.close()
    if spent := job.spent():
        about |= {"judges": spent}
    manifest = {
        "kind": step.kind, "version": step.version, "configuration": step.configuration,
        "inputs": {k: s.name for k, s in step.inputs.items()}, "result": about,
        "made_from": {s.name: store.content(s.name) for s in step.inputs.values()},
        "provenance": provenance(ctx.device_name, time.monotonic() - started)
        | {"cpu_seconds": round(time.process_time() - cpu, 3)} | world.about(),
    }  # fmt: skip
    store.finish(step.name, manifest)
    job.log.note("finished")
    reporter.path.unlink(missing_ok=True)


class Reporter:
    """A reporter writes progress as a small file that the command reads: works for any worker, on any terminal or none.

    Where a step says how far it is, it can also be stopped; training saves first, see `pipeline/training.py`.
    """

    def __init__(self, path: Path, stopping: Callable[[], bool]) -> None:
        self.path, self.last, self.stopping = path, 0.0, stopping

    def __call__(self, done: int, total: int, note: str = "") -> None:
        if self.stopping():
            raise Stopped
        now = time.monotonic()
        if now - self.last > 0.4:
            self.last = now
            write_text(self.path, f"{done} {total} {note}")


@dataclass(frozen=True)
class WorkerSettings:
    """What a worker process is opened with: the store, the command's folder, and how the worker computes."""

    root: str
    folder: str
    device: str
    threads: int
    save_seconds: float
    tracking: Tracking = field(default_factory=Tracking)


class Worker:
    """A worker makes one step after another in its process, with models kept in memory between them."""

    current: ClassVar[Worker | None] = None

    def __init__(self, settings: WorkerSettings) -> None:
        import torch

        from aligngap.models.loading import quiet

        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        os.chdir(settings.folder)
        keep_compiled(Store(Path(settings.root)))
        torch.set_num_threads(settings.threads)
        quiet()
        self.settings, self.busy, self.stopping = settings, False, False
        self.context = Context(Store(Path(settings.root)), settings.device)

    def attempt(self, step: Step) -> Answer:
        """Make a step; an error becomes the answer, and the sweep goes on without the step."""
        self.busy = True
        job = Job(
            track=self.settings.tracking.of(step.name), stopping=lambda: self.stopping,
            save_seconds=self.settings.save_seconds,
        )  # fmt: skip
        try:
            return attempt(step, lambda: make_sound(step, self.context, job), self.context.store)
        finally:
            self.busy = False


def keep_compiled(store: Store) -> None:
    """Have torch keep what it compiles beside a store's unfinished work, unless the environment names a folder.

    To be called before anything of torch's compiler is imported, which names a folder of its own.
    """
    os.environ.setdefault(COMPILED, str(store.root.resolve() / "partial" / "compiled"))


def leave_with(parent: int) -> None:
    """End this process as soon as its parent is gone: a command that is killed leaves no worker behind."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def open_worker(settings: WorkerSettings) -> Worker:
    """The worker of this process; a new one where the settings are others than before."""
    if Worker.current is None or Worker.current.settings != settings:
        Worker.current = Worker(settings)
    return Worker.current


def work(settings: WorkerSettings, step: str) -> Answer:
    """Make the step that a JSON text describes, in a worker process; a step asked to stop ends the process."""
    event, message = open_worker(settings).attempt(step_from_json(step))
    if event is Event.STOPPED:
        os._exit(0)
    return event, message


def attempt(step: Step, making: Callable[[], bool], store: Store, crash: Callable[[str], None] | None = None) -> Answer:
    """What became of `making` a step: made, found, stopped, or why it failed; `crash` hears of what nobody foresaw."""
    try:
        return (Event.MADE if making() else Event.FOUND), ""
    except Stopped:
        return Event.STOPPED, ""
    except AligngapError as error:
        return Event.BAD_INPUT, str(error)
    except RunFailed as error:
        return Event.FAILED, str(error)
    except Exception as error:  # an error nobody foresaw costs this step and what needs it
        line = explain_crash(error, step, store)
        if crash is not None:
            crash(line)
        return Event.FAILED, line


#: what to do where memory is short, and how PyTorch says that it is
OUT_OF_MEMORY = "lower --workers, or set micro_batch or gradient_checkpointing"
NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


def explain_crash(error: Exception, step: Step, store: Store) -> str:
    """A line about an error nobody foresaw; the traceback is kept beside the step's work, unless the disk refuses."""
    log = store.partial(step.name).with_suffix(".error")
    with suppress(OSError):
        write_text(log, "".join(traceback.format_exception(error)))
    if disk := disk_trouble(error):
        return disk_line(disk, store.root)
    if isinstance(error, MemoryError) or any(said in str(error) for said in NO_MEMORY):
        return f"{step.label}: out of memory; {OUT_OF_MEMORY} (traceback: {log})"
    first_line = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {first_line} (traceback: {log})"
