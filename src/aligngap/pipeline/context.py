"""What a step is handed: the context of its process, and the job that an executor gives it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from aligngap.parallel.world import ALONE, World
from aligngap.storage.runlog import RunLog
from aligngap.storage.store import Store
from aligngap.storage.tracking import Track
from aligngap.types import Judge, PaidJudge, Progress, silent

if TYPE_CHECKING:
    import torch


T = TypeVar("T")

CACHED = 12  # models and tables held by one process


def never() -> bool:
    """Nobody asks a step to stop."""
    return False


@dataclass
class Job:
    """A job is one step's work as an executor hands it over: its folder, who shares the work, and whom it tells."""

    work: Path = field(default_factory=Path)  # the folder to write in, of which only this step knows
    world: World = ALONE  # the processes that make this step together
    progress: Progress = silent
    log: RunLog = field(default_factory=RunLog)
    track: Track = field(default_factory=Track)  # told every training step and every measurement
    stopping: Callable[[], bool] = never  # asked between training steps
    save_seconds: float = 30.0  # between two saved training states
    paid: dict[str, PaidJudge] = field(default_factory=dict)  # judges that the step has asked and that are paid for

    def asked(self, judge: Judge) -> Judge:
        """The judge as this step asks it: its cost is counted, and processes that train together share its work."""
        if isinstance(judge, PaidJudge):
            judge.for_step(self.work.name)
            self.paid[judge.key] = judge
        return self.world.share_judge(judge)

    def spent(self) -> dict[str, Any]:
        """What judges that are paid for were asked by this step, and cost, by the judge's key."""
        counts = {key: judge.spent(self.work.name) for key, judge in self.paid.items()}
        return {key: about for key, about in counts.items() if about}


class Context:
    """A context is one process's view of a study: the store, the device, and models loaded once for many steps."""

    def __init__(self, store: Store, device: str = "cpu") -> None:
        self.store, self.device_name = store, device
        self._cache: OrderedDict[Hashable, Any] = OrderedDict()

    @property
    def device(self) -> torch.device:
        """The device on which models of this process compute."""
        import torch

        return torch.device(self.device_name)

    def cached(self, key: Hashable, build: Callable[[], T]) -> T:
        """The value of `build`, kept in memory for the steps that follow; of many the least recently used goes."""
        if key not in self._cache:
            self._cache[key] = build()
            while len(self._cache) > CACHED:
                self._cache.popitem(last=False)
        self._cache.move_to_end(key)
        value: T = self._cache[key]
        return value
