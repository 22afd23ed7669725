"""Run steps on this machine: a pool of worker processes, needs before what needs them, nothing finished is lost.

Each worker holds one step at a time under the store's lock. A failed step fails what needs it and nothing else. If the
command is killed, workers end with it, and the same command goes on from their newest saved state.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..provenance import provenance
from ..steps import Step, step_from_json
from ..store import Store, write_text
from ..types import AligngapError, RunFailed

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
        if work is None:
            return False
        ctx.work = work
        ctx.progress = _Reporter(store.root / "partial" / f"{step.name}.progress")
        started = time.monotonic()
        about = step.run(ctx)
        manifest = {
            "kind": step.kind, "version": step.version, "configuration": step.configuration,
            "inputs": {k: s.name for k, s in step.inputs.items()}, "result": about,
            "provenance": provenance(ctx.device_name, time.monotonic() - started),
        }  # fmt: skip
        store.finish(step.name, manifest)
        ctx.progress.path.unlink(missing_ok=True)
    return True


class _Reporter:
    """Progress as a small file that the command reads: works for any worker, on any terminal or none."""

    def __init__(self, path: Path) -> None:
        self.path, self.last = path, 0.0

    def __call__(self, done: int, total: int, note: str = "") -> None:
        now = time.monotonic()
        if now - self.last > 0.4:
            self.last = now
            write_text(self.path, f"{done} {total} {note}")


def _start(root: str, device: str, threads: int, save_seconds: float, parent: int) -> None:
    def leave_with_parent() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import torch

    from ..context import Context
    from ..policy import quiet

    torch.set_num_threads(threads)
    quiet()
    _worker["ctx"] = Context(Store(Path(root)), device, save_seconds)


def _work(text: str) -> tuple[str, str]:
    """Runs in a worker: ("made" | "found" | "bad input" | "failed", what to say)."""
    ctx = _worker["ctx"]
    step = step_from_json(text)
    try:
        return ("made" if make(step, ctx.store, ctx) else "found"), ""
    except AligngapError as error:
        return "bad input", str(error)
    except OSError as error:
        where = error.filename or ctx.store.root
        return "failed", f"{where}: {error.strerror or error}; free space or fix access, then repeat"
    except Exception as error:  # the sweep goes on without this run; the traceback is kept beside its work
        log = ctx.store.partial(step.name).with_suffix(".error")
        write_text(log, traceback.format_exc())
        first_line = next(iter(str(error).splitlines()), "")
        return "failed", f"{type(error).__name__}: {first_line} (traceback: {log})"


class Local:
    """Local processes. `workers` never changes a result, only how long it takes.

    `threads` is the number of threads of each worker on a CPU. Sums over another number of threads differ in their
    last bits, so a study keeps to one number; 1, with one worker per core, is also what small models are fastest with.
    """

    def __init__(
        self, store: Store, *, workers: int, device: str, threads: int = 1, save_seconds: float = 30.0
    ) -> None:
        self.store, self.workers, self.device = store, workers, device
        self.threads, self.save_seconds = threads, save_seconds

    def run(
        self, steps: Sequence[Step], stopped: Callable[[], bool] = lambda: False
    ) -> Iterator[tuple[str, Step, str]]:
        """Work through the steps until done or `stopped`; yields (event, step, message).

        Events: start, made, found, failed, "bad input", lost (needs what failed), tick.
        """
        waiting = {s.name: s for s in steps}
        done: set[str] = set()
        for step in list(waiting.values()):
            if self.store.has(step.name):
                done.add(step.name)
                del waiting[step.name]
                yield "found", step, ""
        broken: dict[str, str] = {}
        running: dict[Future[tuple[str, str]], Step] = {}
        rank = importance(list(waiting.values()))
        os.environ["OMP_NUM_THREADS"] = str(self.threads)
        arguments = (str(self.store.root), self.device, self.threads, self.save_seconds, os.getpid())
        with ProcessPoolExecutor(
            self.workers, multiprocessing.get_context("spawn"), initializer=_start, initargs=arguments
        ) as pool:
            try:
                while waiting or running:
                    if stopped():
                        raise KeyboardInterrupt
                    for name, step in sorted(waiting.items(), key=lambda item: -rank[item[0]]):
                        lost = [n.name for n in step.inputs.values() if n.name in broken]
                        if lost:
                            broken[name] = f"needs {lost[0]}, which failed"
                            del waiting[name]
                            yield "lost", step, broken[name]
                        elif len(running) < self.workers and all(n.name in done for n in step.inputs.values()):
                            running[pool.submit(_work, step.model_dump_json())] = step
                            del waiting[name]
                            yield "start", step, ""
                    if not running:
                        continue
                    finished, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
                    for future in finished:
                        step = running.pop(future)
                        try:
                            event, message = future.result()
                        except BrokenProcessPool as error:
                            what = "a worker process was killed; the same command goes on from where it was"
                            raise RunFailed(what) from error
                        if event in ("made", "found"):
                            done.add(step.name)
                        else:
                            broken[step.name] = message
                        yield event, step, message
                    if not finished:
                        yield "tick", next(iter(running.values())), ""
            except BaseException:
                processes = list((getattr(pool, "_processes", None) or {}).values())  # shutdown forgets them
                pool.shutdown(wait=False, cancel_futures=True)
                for process in processes:
                    process.terminate()
                raise

    def position(self, step: Step) -> tuple[float, str]:
        """(fraction done, note) of a running step."""
        try:
            done, total, note = (self.store.root / "partial" / f"{step.name}.progress").read_text().split(" ", 2)
            return float(done) / max(1.0, float(total)), note
        except (OSError, ValueError):
            return 0.0, ""


def importance(steps: Sequence[Step]) -> dict[str, float]:
    """Work on the longest chain that starts at each step: what much depends on goes first."""
    rank: dict[str, float] = {s.name: s.units() for s in steps}
    for step in reversed(steps):  # needs come before what needs them
        for need in step.inputs.values():
            if need.name in rank:
                rank[need.name] = max(rank[need.name], need.units() + rank[step.name])
    return rank
