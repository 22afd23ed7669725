"""Which processes train a model together: the role, and the plain case of one process.

A step's batch is split among the processes of a world: each computes its share of the responses, labels, reference
log-probabilities and gradients, and everybody gets all of them, so that streams, logs and weights are the same
everywhere and the science does not know how many processes there are. Leaves out: what needs more than one process
(`distributed.py`), and starting them (`execute/together.py`).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from aligngap.storage.checksums import list_files
from aligngap.storage.files import sync
from aligngap.types import Judge

if TYPE_CHECKING:
    from torch import Tensor, nn

T = TypeVar("T")
Item = TypeVar("Item")


def in_world() -> bool:
    """Whether a launcher has started this process as one of several."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


class Released(BaseException):
    """Training is over, and the rest of the step is the first process's work."""


class Layout(Protocol):
    """A model laid out over the processes of a world."""

    shards: int  # into how many parts its state is split

    def __call__(self, objective: Callable[[Sequence[Any]], T], items: Sequence[Any]) -> T:
        """The objective's forward pass."""
        ...

    def microbatch(self, last: bool) -> AbstractContextManager[Any]:
        """Around each forward and backward pass of a step: at the last one, gradients are averaged over processes."""
        ...

    def gather_weights(self) -> AbstractContextManager[bool]:
        """All weights in each process meanwhile; true for the process that writes them."""
        ...

    def sampler(self, sampler: Any) -> Any:
        """The model's sampler; each process writes its share of the responses."""
        ...

    def file_name(self, name: str, shard: int | None = None) -> str:
        """What a file of saved state is called: this process's own, or that of a given shard."""
        ...

    def scalar(self, value: Tensor) -> float:
        """A scalar of the whole model, such as its gradient's norm."""
        ...

    def local_part(self, value: Tensor) -> Tensor:
        """The part of a parameter or moment that is in this process."""
        ...

    def join_part(self, part: Tensor, like: Tensor) -> Tensor:
        """The inverse of `local` for a value laid out as the parameter `like` is."""
        ...

    def finish(self) -> None:
        """The end of training: weights stay whole. Raises Released in all processes but the first."""
        ...


class World(Protocol):
    """Processes numbered from 0 (`rank`), all of which call the same methods in the same order."""

    rank: int
    size: int

    def about(self) -> dict[str, Any]:
        """What an artifact's provenance says of it."""
        ...

    def share_of(self, n: int) -> tuple[int, int]:
        """This process's share of n items: from, and up to."""
        ...

    def each(self, items: Sequence[Item], work: Callable[[Sequence[Item]], Sequence[T]]) -> list[T]:
        """A result for each item: every process works on its share, and all get all results, in order."""
        ...

    def broadcast(self, value: T) -> T:
        """The first process's value; nobody goes on before all are here."""
        ...

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Which flags are true in any process."""
        ...

    def sum(self, values: Mapping[str, float]) -> dict[str, float]:
        """Sums over the processes, to the same bits in all of them."""
        ...

    def own_seed(self, seed: int) -> int:
        """A seed of this process's own; the first one's is the seed itself."""
        ...

    def share_judge(self, judge: Judge) -> Judge:
        """The judge, asked for its share by each process."""
        ...

    def lay_out(self, model: nn.Module) -> Layout: ...


class Undivided:
    """A model in one process, as it is."""

    shards = 1

    def __call__(self, objective: Callable[[Sequence[Any]], T], items: Sequence[Any]) -> T:
        return objective(items)

    def microbatch(self, last: bool) -> AbstractContextManager[Any]:
        return nullcontext()

    def gather_weights(self) -> AbstractContextManager[bool]:
        return nullcontext(True)

    def sampler(self, sampler: Any) -> Any:
        return sampler

    def file_name(self, name: str, shard: int | None = None) -> str:
        return name

    def scalar(self, value: Tensor) -> float:
        return float(value)

    def local_part(self, value: Tensor) -> Tensor:
        return value

    def join_part(self, part: Tensor, like: Tensor) -> Tensor:
        return part

    def finish(self) -> None:
        pass


class Alone:
    """One process: every share is the whole."""

    rank, size = 0, 1

    def about(self) -> dict[str, Any]:
        return {}

    def share_of(self, n: int) -> tuple[int, int]:
        return 0, n

    def each(self, items: Sequence[Item], work: Callable[[Sequence[Item]], Sequence[T]]) -> list[T]:
        return list(work(items))

    def broadcast(self, value: T) -> T:
        return value

    def any(self, *flags: bool) -> tuple[bool, ...]:
        return flags

    def sum(self, values: Mapping[str, float]) -> dict[str, float]:
        return dict(values)

    def own_seed(self, seed: int) -> int:
        return seed

    def share_judge(self, judge: Judge) -> Judge:
        return judge

    def lay_out(self, model: nn.Module) -> Layout:
        return Undivided()


ALONE = Alone()


@contextmanager
def writing(folder: Path, world: World, everyone: bool) -> Iterator[Path | None]:
    """A folder to write in, which becomes `folder` when all have written; None where only the first process writes.

    It ends with the sealed list of its files (`checksums.list_files`).
    """
    beside = folder.with_name(folder.name + ".writing")
    if world.rank == 0:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
    world.broadcast(None)
    yield beside if everyone or world.rank == 0 else None
    world.broadcast(None)
    if world.rank == 0:
        list_files(beside)
        sync(beside)
        os.replace(beside, folder)
    world.broadcast(None)
