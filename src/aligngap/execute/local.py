"""Run steps on this machine: a pool of worker processes, needs before what needs them, nothing finished is lost.

Each worker holds one step at a time under the store's lock. A failed step fails what needs it and nothing else. If the
command is stopped, workers save their state and leave; if it is killed, they end with it. Either way the same command
goes on from the newest saved state. A worker that dies is replaced, and its step goes on from there too; dead twice at
the same place, the step has failed.
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
from itertools import chain
from pathlib import Path
from typing import Any

from aligngap.execute.agenda import Agenda, Answer, Event, position, tell_found, this_machine
from aligngap.execute.worker import OUT_OF_MEMORY, WorkerSettings, leave_with, open_worker, work
from aligngap.pipeline.base import Step
from aligngap.pipeline.measure import Measure
from aligngap.storage.store import Store
from aligngap.storage.tracking import Tracking

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


def dismiss(slots: Sequence[Slot]) -> None:
    """End the workers of slots, and wait until their pools have noticed.

    A pool's own thread closes a pipe when its worker is gone; the interpreter writes to that pipe as it exits, and
    complains of a bad file descriptor where both happen at once.
    """
    end([slot.process for slot in slots if slot.process is not None], PATIENCE_SECONDS)
    for slot in slots:
        slot.pool.shutdown(cancel_futures=True)


def announce_stop() -> KeyboardInterrupt:
    """What a stop raises, said first."""
    print("aligngap: stopping at the next step …", file=sys.stderr, flush=True)
    return KeyboardInterrupt()


class Slot:
    """A slot has one worker process at a time: started with its first step, and replaced when it has died."""

    def __init__(self, settings: WorkerSettings) -> None:
        self.settings, self.kills = settings, 0
        self.process: Any = None
        self.pool = self._opened()

    def _opened(self) -> ProcessPoolExecutor:
        spawn = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(1, spawn, initializer=start, initargs=(self.settings, os.getpid()))

    def begin(self, step: Step) -> Future[Answer]:
        """Hand the slot's worker a step."""
        self.kills = memory_kills()
        begun = self.pool.submit(work, self.settings, step.model_dump_json())
        self.process = next(iter((getattr(self.pool, "_processes", None) or {}).values()), None)
        return begun

    def replace(self) -> str:
        """Open the slot anew after its worker has died, and say how it died."""
        self.close()
        code = None
        limit = time.monotonic() + 5.0
        # The pool's own thread waits for the process too: whoever is told first of its end, tells the other soon.
        while self.process is not None and (code := self.process.exitcode) is None and time.monotonic() < limit:
            time.sleep(0.01)
        self.pool, self.process = self._opened(), None
        if code == -signal.SIGKILL and memory_kills() > self.kills:
            return f"its worker ran out of memory and was killed ({OUT_OF_MEMORY})"
        if code is not None and code < 0:
            return f"its worker was killed ({signal.Signals(-code).name})"
        return "its worker could not be started or ended by itself"

    def close(self) -> None:
        """Let the worker go once it has nothing to do; returns at once."""
        self.pool.shutdown(wait=False, cancel_futures=True)


def memory_kills() -> int:
    """How many processes the system, or this process's group, has killed since its start for want of memory."""
    found = 0
    for place in ("/proc/vmstat", "/sys/fs/cgroup/memory.events"):
        try:
            text = Path(place).read_text()
        except OSError:
            continue
        found += sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("oom_kill "))
    return found


def progress_of(store: Store, step: Step) -> str:
    """How far an unfinished step has saved its work; where two workers die at the same place, a third would too."""
    saved = [path.name for pattern in ("state-*", "measured-*") for path in store.partial(step.name).glob(pattern)]
    return " ".join(sorted(saved))


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
        self.machine = this_machine(device, threads)

    def slots(self) -> int:
        """How many steps run at once."""
        return self.workers

    def run(
        self, steps: Sequence[Step], stopped: Callable[[], bool] = lambda: False
    ) -> Iterator[tuple[Event, Step, str]]:
        """Work through the steps until done or `stopped`; yields (event, step, message)."""
        todo = yield from tell_found(self.store, steps)
        agenda = Agenda(todo, importance(todo))
        running: dict[Future[Answer], tuple[Step, Slot]] = {}
        os.environ["OMP_NUM_THREADS"] = str(self.threads)
        settings = WorkerSettings(
            str(self.store.root), os.getcwd(), self.device, self.threads, self.save_seconds, self.tracking
        )
        slots, deaths, again = [Slot(settings) for _ in range(self.workers)], dict[str, str](), list[Step]()
        try:
            while agenda.waiting or running or again:
                if stopped():
                    raise announce_stop()
                for step, why in agenda.lost():
                    yield Event.LOST, step, why
                busy = [slot for _, slot in running.values()]
                free = [slot for slot in slots if slot not in busy]
                for slot, step in zip(free, chain(again[: len(free)], agenda.ready()), strict=False):
                    running[slot.begin(step)] = step, slot
                    yield Event.START, step, ""
                del again[: len(free)]
                if not running:
                    continue
                finished, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in finished:
                    step, slot = running.pop(future)
                    try:
                        event, message = future.result()
                    except BrokenProcessPool:
                        if stopped():  # the signal reached the workers as well, and they were quicker
                            raise announce_stop() from None
                        why, at = slot.replace(), progress_of(self.store, step)
                        if deaths.get(step.name) != at:
                            deaths[step.name] = at
                            print(f"aligngap: {step.label}: {why}; started again", file=sys.stderr, flush=True)
                            again.append(step)
                            continue
                        event, message = Event.FAILED, f"{why}, twice at the same place"
                    agenda.end(step, event, message)
                    yield event, step, message
                if not finished:
                    yield Event.TICK, next(iter(running.values()))[0], ""
        except BaseException:
            dismiss(slots)
            raise
        finally:
            for slot in slots:
                slot.close()

    def position(self, step: Step) -> tuple[float, str]:
        """(fraction done, note) of a running step."""
        return position(self.store, step)


def importance(steps: Sequence[Step]) -> dict[str, float]:
    """Work on the longest chain that starts at each step: what much depends on goes first.

    Before all else goes the first run of each arm with its measurement, that of the SFT policy, and what they need,
    arm by arm in the order of the steps: a study shows a point of the arms that it compares as soon as it can, then one
    of every other arm, and neither after the last run.
    """
    rank: dict[str, float] = {s.name: s.units() for s in steps}
    first: dict[str, str] = {}  # the measurement that comes first of each arm
    for step in steps:
        if isinstance(step, Measure):
            first.setdefault(step.run_.source.arm.model_dump_json() if step.run_ is not None else "sft", step.name)
    everything = sum(rank.values())
    for later, name in enumerate(reversed(first.values())):
        rank[name] += (later + 1) * everything
    for step in reversed(steps):  # needs come before what needs them
        for need in step.inputs.values():
            if need.name in rank:
                rank[need.name] = max(rank[need.name], need.units() + rank[step.name])
    return rank
