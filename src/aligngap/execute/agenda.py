"""What is to be done next: steps whose needs are made, the costliest chain first; what fails costs what needs it only.

Bookkeeping without any process in it, and the role that the command knows an executor by.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from aligngap.pipeline.base import Step
from aligngap.storage.store import Store


class Event(StrEnum):
    """What an executor tells of a step."""

    START = "start"  # a worker has taken it
    MADE = "made"  # its artifact is new
    FOUND = "found"  # its artifact was there already
    FAILED = "failed"
    BAD_INPUT = "bad input"  # the failure has a remedy in the study or the data
    LOST = "lost"  # it needs a step that failed
    STOPPED = "stopped"  # somebody asked for it; what it did so far is saved
    TICK = "tick"  # nothing happened, and it is still at work


#: An event, and what to say about it.
Answer = tuple[Event, str]


@dataclass(frozen=True)
class Machine:
    """What steps run on: a name under which durations are kept, the cores that all share, and those that a step takes.

    `cores` is None where steps share none with each other or with anything else.
    """

    place: str
    cores: float | None
    threads: int


def this_machine(device: str, threads: int, processes: int = 1) -> Machine:
    """This machine as steps of so many threads in each of so many processes use it: on a GPU they share no cores."""
    cores = float(os.cpu_count() or 1) if device == "cpu" else None
    several = f" {processes} processes" if processes > 1 else ""
    return Machine(f"{platform.node()} {device} x{threads}{several}", cores, threads * processes)


def tell_found(store: Store, steps: Sequence[Step]) -> Generator[tuple[Event, Step, str], None, list[Step]]:
    """Tell which steps are made already; returns the others, which are left to do."""
    todo = []
    for step in steps:
        if store.has(step.name):
            yield Event.FOUND, step, ""
        else:
            todo.append(step)
    return todo


class Executor(Protocol):
    """An executor makes steps, wherever it does so."""

    @property
    def store(self) -> Store: ...

    @property
    def machine(self) -> Machine: ...

    def slots(self) -> int:
        """How many steps it can run at once, as things stand."""
        ...

    def run(
        self, steps: Sequence[Step], stopped: Callable[[], bool] = lambda: False
    ) -> Iterator[tuple[Event, Step, str]]:
        """Work through the steps until done or `stopped`; yields (event, step, message)."""
        ...

    def position(self, step: Step) -> tuple[float, str]:
        """(fraction done, note) of a running step."""
        ...


class Agenda:
    """Steps waiting, made and broken."""

    def __init__(self, steps: Sequence[Step], rank: dict[str, float]) -> None:
        self.waiting = {s.name: s for s in sorted(steps, key=lambda s: -rank[s.name])}
        self.unmade = set(self.waiting)
        self.broken: dict[str, str] = {}

    def ready(self) -> Iterator[Step]:
        """Steps that can start now, most urgent first; each is given out once."""
        for step in list(self.waiting.values()):
            if not any(need.name in self.unmade for need in step.inputs.values()):
                del self.waiting[step.name]
                yield step

    def lost(self) -> Iterator[tuple[Step, str]]:
        """Steps that cannot be made any more, and why; each is told once."""
        for step in list(self.waiting.values()) if self.broken else ():
            why = [need.name for need in step.inputs.values() if need.name in self.broken]
            if why:
                del self.waiting[step.name]
                self.broken[step.name] = f"needs {why[0]}, which failed"
                yield step, self.broken[step.name]

    def end(self, step: Step, event: Event, message: str) -> None:
        """Note how a started step ended."""
        if event in (Event.MADE, Event.FOUND):
            self.unmade.discard(step.name)
        else:
            self.broken[step.name] = message


def position(store: Store, step: Step) -> tuple[float, str]:
    """(fraction done, note) of a step that some worker is making, from what it last said in the store."""
    try:
        done, total, note = (store.root / "partial" / f"{step.name}.progress").read_text().split(" ", 2)
        return float(done) / max(1.0, float(total)), note
    except (OSError, ValueError):
        return 0.0, ""
