"""Fixed lists of pairs, in a stated order: a labelled data set, and a recording that is replayed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

import numpy as np

from aligngap.seeding import derive
from aligngap.types import AligngapError, Pair, Sampler

Item = TypeVar("Item")


def order_of(name: str, n: int, seed: int, batch: int) -> list[int]:
    """The order in which a recording of n pairs (batches of `batch`) is served.

    "in-order", "reversed", "shuffled" (uniformly), "window:k": pairs are permuted inside consecutive windows of k
    batches (arXiv 2405.08448, App. G), or "blocks:k": consecutive blocks of k batches are permuted among themselves and
    stay in order inside. A window keeps the coarse order and loses the fine one, a block the other way round.
    """
    rng = np.random.default_rng(derive(seed, "order", name))
    if name == "in-order":
        return list(range(n))
    if name == "reversed":
        return [i for start in range(0, n, batch) for i in range(start, min(n, start + batch))][::-1]
    if name == "shuffled":
        return [int(i) for i in rng.permutation(n)]
    kind, _, size = name.partition(":")
    if kind in ("window", "blocks") and size.isdecimal() and int(size) > 0:
        width = int(size) * batch
        starts = range(0, n, width)
        if kind == "blocks":
            return [i for b in rng.permutation(len(starts)) for i in range(starts[b], min(n, starts[b] + width))]
        return [start + int(i) for start in starts for i in rng.permutation(min(width, n - start))]
    raise AligngapError(f"order `{name}`: must be in-order, reversed, shuffled, window:K or blocks:K with K batches")


class Epochs(Generic[Item]):
    """A fixed list served forever, each epoch in a fresh order drawn from the seed: SFT, judges and data-set arms."""

    responses_sampled = 0

    def __init__(self, items: Sequence[Item], seed: int) -> None:
        if not items:
            raise AligngapError("a stream over an empty data set: nothing to draw from")
        self.items, self.seed, self.drawn = items, seed, 0
        self._epoch, self._permutation = -1, list[int]()

    def draw(self, n: int, sampler: Sampler | None = None) -> list[Item]:
        out = []
        for position in range(self.drawn, self.drawn + n):
            epoch, place = divmod(position, len(self.items))
            out.append(self.items[self._order(epoch)[place]])
        self.drawn += n
        return out

    def _order(self, epoch: int) -> list[int]:
        if self._epoch != epoch:
            rng = np.random.default_rng(derive(self.seed, "epoch", epoch))
            self._epoch, self._permutation = epoch, [int(i) for i in rng.permutation(len(self.items))]
        return self._permutation

    def state_dict(self) -> dict[str, Any]:
        return {"drawn": self.drawn}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.drawn = int(state["drawn"])


class Replay:
    """A recording served once, in a stated order (`order_of`); asking for more than was recorded is an error."""

    responses_sampled = 0

    def __init__(self, pairs: Sequence[Pair], *, order: str, batch: int, seed: int) -> None:
        self.pairs, self.drawn = pairs, 0
        self.order = order_of(order, len(pairs), seed, batch)

    def draw(self, n: int, sampler: Sampler) -> list[Pair]:
        if self.drawn + n > len(self.order):
            raise AligngapError(
                f"the recording holds {len(self.order)} pairs and {self.drawn + n} were asked for: "
                "replay at most as many steps as were recorded"
            )
        out = [self.pairs[i] for i in self.order[self.drawn : self.drawn + n]]
        self.drawn += n
        return out

    def state_dict(self) -> dict[str, Any]:
        return {"drawn": self.drawn}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.drawn = int(state["drawn"])


class Dataset(Epochs[Pair]):
    """A labelled data set of pairs, epoch after epoch: the offline stream. The policy is ignored."""

    responses_sampled = 0
