"""Work through a study's steps on machines that share a store: each is a task that some scheduler runs somewhere.

What Ray (`ray.py`) and Slurm (`slurm.py`) have in common: which step is handed over next, and what is told of it. A
task does what a worker of this machine does, under the same lock, from the newest state in the store to the same bytes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

from aligngap.execute.agenda import Agenda, Answer, Event, Machine, position, tell_found
from aligngap.execute.local import importance
from aligngap.pipeline.base import Step
from aligngap.storage.store import Store

Task = TypeVar("Task")

LOOK_SECONDS = 0.5  #: between two looks at what has ended


class Cluster(ABC, Generic[Task]):
    """Machines behind a scheduler; tasks can be keys of a dictionary."""

    machine: Machine

    def __init__(self, store: Store) -> None:
        self.store = Store(store.root.resolve())

    @abstractmethod
    def slots(self) -> int:
        """How many tasks are handed over at once, as things stand."""

    @abstractmethod
    def open(self) -> None:
        """What is done and checked once before the first task."""

    @abstractmethod
    def submit(self, step: Step) -> Task:
        """Hand a step over."""

    @abstractmethod
    def wait(self, tasks: Sequence[Task], seconds: float) -> Sequence[Task]:
        """Those of the tasks that have ended, after so many seconds at most."""

    @abstractmethod
    def answer(self, step: Step, task: Task) -> Answer | None:
        """What became of a step whose task has ended; None where it is to be handed over again."""

    @abstractmethod
    def cancel(self, tasks: Sequence[Task]) -> None:
        """End tasks where they are."""

    def run(
        self, steps: Sequence[Step], stopped: Callable[[], bool] = lambda: False
    ) -> Iterator[tuple[Event, Step, str]]:
        """Work through the steps as tasks until done or `stopped`; yields (event, step, message)."""
        todo = yield from tell_found(self.store, steps)
        if not todo:
            return
        self.open()
        agenda = Agenda(todo, importance(todo))
        running: dict[Task, Step] = {}
        queue: list[Step] = []
        try:
            while agenda.waiting or queue or running:
                if stopped():
                    raise KeyboardInterrupt
                for step, why in agenda.lost():
                    yield Event.LOST, step, why
                queue += agenda.ready()
                while queue and len(running) < self.slots():
                    step = queue.pop(0)
                    running[self.submit(step)] = step
                    yield Event.START, step, ""
                if not running:
                    continue
                finished = self.wait(list(running), LOOK_SECONDS)
                for task in finished:
                    step = running.pop(task)
                    answer = self.answer(step, task)
                    if answer is None:
                        running[self.submit(step)] = step
                        continue
                    agenda.end(step, *answer)
                    yield answer[0], step, answer[1]
                if not finished:
                    yield Event.TICK, next(iter(running.values())), ""
        except BaseException:
            self.cancel(list(running))
            raise

    def position(self, step: Step) -> tuple[float, str]:
        """(fraction done, note) of a running step, from the shared store."""
        return position(self.store, step)
