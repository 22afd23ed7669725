"""Run steps on this machine: a pool of worker processes, needs before what needs them, nothing finished is lost.

Each worker holds one step at a time under the store's lock. A failed step fails what needs it and nothing else. If the
command is stopped, workers save their state and leave; if it is killed, they end with it. Either way the same command
goes on from the newest saved state.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from aligngap.execute.agenda import Agenda, position
from aligngap.steps import Step, step_from_json
from aligngap.storage.files import disk_line, disk_trouble, write_text
from aligngap.storage.provenance import provenance
from aligngap.storage.runlog import RunLog
from aligngap.storage.store import Store
from aligngap.storage.tracking import Tracking
from aligngap.types import AligngapError, RunFailed, Stopped

PATIENCE_SECONDS = 20.0  # for workers to reach their next step and save

_worker: dict[str, Any] = {}


@dataclass
class Outcome:
    """What became of the steps: those made now, those found finished, a line per failure, and how many that cost."""

    made: list[str] = field(default_factory=list)
    found: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    lost: int = 0
    bad_input: bool = False


def make(step: Step, store: Store, ctx: Any) -> bool:
    """Make one artifact in this process; False if it was there already."""
    if store.has(step.name):
        return False
    with store.making(step.name) as work:
        if work is not None:
            work_on(step, store, ctx, work)
        return work is not None


def work_on(step: Step, store: Store, ctx: Any, work: Path) -> None:
    """Make one artifact in its work folder, which this process holds the lock of."""
    ctx.work = work
    # Of several processes none leaves between two steps of training: they agree on it there.
    reporter = _Reporter(
        store.root / "partial" / f"{step.name}.progress", ctx.stopping if ctx.world.size == 1 else bool
    )
    ctx.progress, ctx.log = reporter, RunLog(store.root / "partial" / f"{step.name}.log.jsonl")
    ctx.log.note("started", step=step.label, process=os.getpid(), device=ctx.device_name, **ctx.world.about())
    ctx.track = ctx.tracking.of(step.name)
    started = time.monotonic()
    try:
        about = step.run(ctx)
    except BaseException as error:
        with suppress(OSError):  # a full disk may be the very reason
            ctx.log.note("stopped" if isinstance(error, Stopped) else "failed", why=repr(error))
        raise
    finally:
        ctx.track.close()
    if spent := ctx.spent():
        about |= {"judges": spent}
    manifest = {
        "kind": step.kind, "version": step.version, "configuration": step.configuration,
        "inputs": {k: s.name for k, s in step.inputs.items()}, "result": about,
        "provenance": provenance(ctx.device_name, time.monotonic() - started) | ctx.world.about(),
    }  # fmt: skip
    store.finish(step.name, manifest)
    ctx.log.note("finished")
    reporter.path.unlink(missing_ok=True)


class _Reporter:
    """Progress as a small file that the command reads: works for any worker, on any terminal or none.

    Where a step says how far it is, it can also be stopped; training saves first, see `training.train`.
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


def _start(root: str, device: str, threads: int, save_seconds: float, tracking: Tracking, parent: int) -> None:
    def leave_with_parent() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    def leave(number: int, frame: object) -> None:
        if not _worker.get("busy"):
            os._exit(0)
        _worker["stopping"] = True

    threading.Thread(target=leave_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the command decides what follows
    signal.signal(signal.SIGTERM, leave)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import torch

    from aligngap.context import Context
    from aligngap.models.loading import quiet

    torch.set_num_threads(threads)
    quiet()
    ctx = Context(Store(Path(root)), device, save_seconds, tracking)
    ctx.stopping = lambda: bool(_worker.get("stopping"))
    _worker["ctx"] = ctx


def _work(text: str) -> tuple[str, str]:
    """Runs in a worker: ("made" | "found" | "bad input" | "failed", what to say)."""
    ctx = _worker["ctx"]
    step = step_from_json(text)
    _worker["busy"] = True
    try:
        return ("made" if make(step, ctx.store, ctx) else "found"), ""
    except Stopped:
        os._exit(0)
    except AligngapError as error:
        return "bad input", str(error)
    except RunFailed as error:
        return "failed", str(error)
    except Exception as error:  # the sweep goes on without this run
        return "failed", told(error, step, ctx.store)
    finally:
        _worker["busy"] = False


def told(error: Exception, step: Step, store: Store) -> str:
    """A line about an error nobody foresaw; the traceback is kept beside the step's work, unless the disk refuses."""
    if disk := disk_trouble(error):
        return disk_line(disk, store.root)
    log = store.partial(step.name).with_suffix(".error")
    with suppress(OSError):
        write_text(log, "".join(traceback.format_exception(error)))
    first_line = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {first_line} (traceback: {log})"


def end(processes: Sequence[Any], patience_seconds: float) -> None:
    """Ask workers to save and leave; those that have not after a while, or at a second Ctrl-C, are killed."""
    left = {p.sentinel: p for p in processes}
    try:
        for process in processes:
            process.terminate()
        limit = time.monotonic() + patience_seconds
        while left and time.monotonic() < limit:
            for sentinel in multiprocessing.connection.wait(list(left), max(0.0, limit - time.monotonic())):
                del left[sentinel]
    finally:
        for process in left.values():
            process.kill()


def interrupted() -> KeyboardInterrupt:
    """What a stop raises, said first."""
    print("aligngap: stopping at the next step …", file=sys.stderr, flush=True)
    return KeyboardInterrupt()


class Local:
    """Local processes. `workers` never changes a result, only how long it takes.

    `threads` is the number of threads of each worker on a CPU. Sums over another number of threads differ in their
    last bits, so a study keeps to one number; 1, with one worker per core, is also what small models are fastest with.
    """

    def __init__(
        self, store: Store, *, workers: int, device: str, threads: int = 1, save_seconds: float = 30.0,
        tracking: Tracking | None = None,
    ) -> None:  # fmt: skip
        self.store, self.workers, self.device = store, workers, device
        self.threads, self.save_seconds, self.tracking = threads, save_seconds, tracking or Tracking()

    def run(
        self, steps: Sequence[Step], stopped: Callable[[], bool] = lambda: False
    ) -> Iterator[tuple[str, Step, str]]:
        """Work through the steps until done or `stopped`; yields (event, step, message).

        Events: start, made, found, failed, "bad input", lost (needs what failed), tick.
        """
        todo = []
        for step in steps:
            if self.store.has(step.name):
                yield "found", step, ""
            else:
                todo.append(step)
        agenda = Agenda(todo, importance(todo))
        running: dict[Future[tuple[str, str]], Step] = {}
        os.environ["OMP_NUM_THREADS"] = str(self.threads)
        arguments = (str(self.store.root), self.device, self.threads, self.save_seconds, self.tracking, os.getpid())
        with ProcessPoolExecutor(
            self.workers, multiprocessing.get_context("spawn"), initializer=_start, initargs=arguments
        ) as pool:
            try:
                while agenda.waiting or running:
                    if stopped():
                        raise interrupted()
                    for step, why in agenda.lost():
                        yield "lost", step, why
                    for step in islice(agenda.ready(), self.workers - len(running)):
                        running[pool.submit(_work, step.model_dump_json())] = step
                        yield "start", step, ""
                    if not running:
                        continue
                    finished, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
                    for future in finished:
                        step = running.pop(future)
                        try:
                            event, message = future.result()
                        except BrokenProcessPool as error:
                            if stopped():  # the signal reached the workers as well, and they were quicker
                                raise interrupted() from None
                            what = "a worker process was killed; the same command goes on from where it was"
                            raise RunFailed(what) from error
                        agenda.end(step, event, message)
                        yield event, step, message
                    if not finished:
                        yield "tick", next(iter(running.values())), ""
            except BaseException:
                processes = list((getattr(pool, "_processes", None) or {}).values())  # shutdown forgets them
                pool.shutdown(wait=False, cancel_futures=True)
                end(processes, PATIENCE_SECONDS)
                raise

    def position(self, step: Step) -> tuple[float, str]:
        """(fraction done, note) of a running step."""
        return position(self.store, step)


def importance(steps: Sequence[Step]) -> dict[str, float]:
    """Work on the longest chain that starts at each step: what much depends on goes first."""
    rank: dict[str, float] = {s.name: s.units() for s in steps}
    for step in reversed(steps):  # needs come before what needs them
        for need in step.inputs.values():
            if need.name in rank:
                rank[need.name] = max(rank[need.name], need.units() + rank[step.name])
    return rank
