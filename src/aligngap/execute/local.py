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
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from aligngap.execute.agenda import Agenda, Answer, Event, position
from aligngap.execute.worker import WorkerSettings, leave_with, open_worker, work
from aligngap.pipeline.base import Step
from aligngap.storage.store import Store
from aligngap.storage.tracking import Tracking
from aligngap.types import RunFailed

PATIENCE_SECONDS = 20.0  # for workers to reach their next step and save


@dataclass
class Outcome:
    """What became of the steps: those made now, those found finished, a line per failure, and how many that cost."""

    made: list[str] = field(default_factory=list)
    found: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    lost: int = 0
    bad_input: bool = False


def start(settings: WorkerSettings, parent: int) -> None:
    """Open this process's worker: it ends with the command, and at SIGTERM once its step has saved its state."""
    leave_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the command decides what follows
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0))
    worker = open_worker(settings)

    def leave(number: int, frame: object) -> None:
        if not worker.busy:
            os._exit(0)
        worker.stopping = True

    signal.signal(signal.SIGTERM, leave)


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


def announce_stop() -> KeyboardInterrupt:
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
    ) -> Iterator[tuple[Event, Step, str]]:
        """Work through the steps until done or `stopped`; yields (event, step, message)."""
        todo = []
        for step in steps:
            if self.store.has(step.name):
                yield Event.FOUND, step, ""
            else:
                todo.append(step)
        agenda = Agenda(todo, importance(todo))
        running: dict[Future[Answer], Step] = {}
        os.environ["OMP_NUM_THREADS"] = str(self.threads)
        settings = WorkerSettings(
            str(self.store.root), os.getcwd(), self.device, self.threads, self.save_seconds, self.tracking
        )
        with ProcessPoolExecutor(
            self.workers, multiprocessing.get_context("spawn"), initializer=start, initargs=(settings, os.getpid())
        ) as pool:
            try:
                while agenda.waiting or running:
                    if stopped():
                        raise announce_stop()
                    for step, why in agenda.lost():
                        yield Event.LOST, step, why
                    for step in islice(agenda.ready(), self.workers - len(running)):
                        running[pool.submit(work, settings, step.model_dump_json())] = step
                        yield Event.START, step, ""
                    if not running:
                        continue
                    finished, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
                    for future in finished:
                        step = running.pop(future)
                        try:
                            event, message = future.result()
                        except BrokenProcessPool as error:
                            if stopped():  # the signal reached the workers as well, and they were quicker
                                raise announce_stop() from None
                            what = "a worker process was killed; the same command goes on from where it was"
                            raise RunFailed(what) from error
                        agenda.end(step, event, message)
                        yield event, step, message
                    if not finished:
                        yield Event.TICK, next(iter(running.values())), ""
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
