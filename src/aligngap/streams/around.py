"""Streams around other streams: a buffer, a mixture, a judge that learns on, new labels, a stopwatch."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from aligngap.seeding import derive
from aligngap.storage.pairs import pair_from_row, pair_to_row
from aligngap.streams.labels import label
from aligngap.streams.on_policy import OnPolicy
from aligngap.types import AligngapError, Judge, Pair, PairStream, Sampler, step_of


def dropped_by(stream: Any) -> tuple[int, int]:
    """How many pairs a stream has discarded so far as too old, and how many tokens their responses have."""
    found: tuple[int, int] = getattr(stream, "dropped", (0, 0))
    return found


class Around:
    """What a stream around another one counts: what that one has sampled and dropped."""

    source: PairStream

    @property
    def responses_sampled(self) -> int:
        return self.source.responses_sampled

    @property
    def dropped(self) -> tuple[int, int]:
        return dropped_by(self.source)


class Buffer(Around):
    """The last `size` batches that another stream has served: each batch is drawn from them, no pair twice in it.

    A batch is asked for at the first draw and at every `every`-th after it, but not from the step `until` on, after
    which the buffer stays as it is. `pick`: "uniform", or "recent", in proportion to 1 / (1 + age in steps).
    """

    def __init__(
        self,
        source: PairStream,
        *,
        size: int,
        seed: int,
        pick: str = "uniform",
        every: int = 1,
        until: int | None = None,
    ) -> None:
        if size < 1 or every < 1:
            raise AligngapError(f"buffer is {size} batches, one every {every} steps: both must be at least 1")
        if pick not in ("uniform", "recent"):
            raise AligngapError(f"pick is {pick!r}: must be uniform or recent")
        self.source, self.size, self.seed, self.pick, self.every, self.until = source, size, seed, pick, every, until
        self.batches: list[list[Pair]] = []
        self.draws = 0

    def draw(self, n: int, sampler: Sampler) -> list[Pair]:
        step = step_of(sampler.key) or 0
        due = self.draws % self.every == 0 and (self.until is None or step < self.until)
        while due or sum(map(len, self.batches)) < n:
            self.batches = [*self.batches, self.source.draw(n, sampler)][-self.size :]
            due = False
        held = [pair for batch in self.batches for pair in batch]
        weights = np.array([1.0 if self.pick == "uniform" else 1 / (1 + step - (p.written_at or 0)) for p in held])
        rng = np.random.default_rng(derive(self.seed, "buffer", self.draws))
        self.draws += 1
        return [held[i] for i in rng.choice(len(held), n, replace=False, p=weights / weights.sum())]

    def state_dict(self) -> dict[str, Any]:
        rows = [[pair_to_row(p) for p in batch] for batch in self.batches]
        return {"source": self.source.state_dict(), "draws": self.draws, "batches": rows}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.source.load_state_dict(state["source"])
        self.draws = int(state["draws"])
        self.batches = [[pair_from_row(row) for row in batch] for batch in state["batches"]]


class Retrained(Around):
    """An on-policy stream whose judge learns on: made anew every `every` draws, from golden labels of its own pairs.

    The golden judge labels the last `pairs` that were drawn since; `refit` makes a judge from all that it has labelled
    so far, always from the same start, so that after a kill the same judge is made again from the same labels.
    """

    source: OnPolicy

    def __init__(
        self, source: OnPolicy, golden: Judge, refit: Callable[[Sequence[Pair]], Judge], *, every: int, pairs: int
    ) -> None:
        if every < 1 or pairs < 1:
            raise AligngapError(f"a judge retrained every {every} steps on {pairs} pairs: both must be at least 1")
        self.source, self.golden, self.refit, self.every, self.pairs = source, golden, refit, every, pairs
        self.recent: list[Pair] = []
        self.learned: list[Pair] = []
        self.draws = 0

    def draw(self, n: int, sampler: Sampler) -> list[Pair]:
        if self.draws and self.draws % self.every == 0:
            sides = [p.prompt for p in self.recent], [p.chosen for p in self.recent], [p.rejected for p in self.recent]
            self.learned, self.recent = [*self.learned, *label(*sides, self.golden, writer=sampler.key)], []
            self.source.judge = self.refit(self.learned)
        drawn = self.source.draw(n, sampler)
        self.draws += 1
        self.recent = [*self.recent, *drawn][-self.pairs :]
        return drawn

    def state_dict(self) -> dict[str, Any]:
        rows = {name: [pair_to_row(p) for p in getattr(self, name)] for name in ("recent", "learned")}
        return {"source": self.source.state_dict(), "draws": self.draws, **rows}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.source.load_state_dict(state["source"])
        self.draws = int(state["draws"])
        self.recent, self.learned = ([pair_from_row(row) for row in state[name]] for name in ("recent", "learned"))
        if self.learned:
            self.source.judge = self.refit(self.learned)


class Mixture:
    """Each pair comes from the first stream with probability `share`, else from the second; seeded, exact to resume.

    With `until=(last, steps)` the share goes in a straight line from `share` at the first of so many draws to `last`
    at the last one.
    """

    def __init__(
        self, first: PairStream, second: PairStream, *, share: float, seed: int, until: tuple[float, int] | None = None
    ) -> None:
        for value in (share, until[0] if until else share):
            if not 0.0 <= value <= 1.0:
                raise AligngapError(f"mixture share is {value}: must lie between 0 and 1")
        self.first, self.second, self.share, self.seed, self.draws = first, second, share, seed, 0
        self.until = until

    @property
    def responses_sampled(self) -> int:
        return self.first.responses_sampled + self.second.responses_sampled

    @property
    def dropped(self) -> tuple[int, int]:
        a, b = dropped_by(self.first), dropped_by(self.second)
        return (a[0] + b[0], a[1] + b[1])

    @property
    def share_now(self) -> float:
        """The share at the next draw."""
        if self.until is None:
            return self.share
        last, steps = self.until
        return self.share + (last - self.share) * min(1.0, self.draws / max(1, steps - 1))

    def draw(self, n: int, sampler: Sampler) -> list[Pair]:
        rng = np.random.default_rng(derive(self.seed, "mixture", self.draws))
        from_first = rng.random(n) < self.share_now
        self.draws += 1
        count = int(from_first.sum())
        a = iter(self.first.draw(count, sampler) if count else [])
        b = iter(self.second.draw(n - count, sampler) if count < n else [])
        return [next(a) if pick else next(b) for pick in from_first]

    def state_dict(self) -> dict[str, Any]:
        return {"draws": self.draws, "first": self.first.state_dict(), "second": self.second.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.draws = int(state["draws"])
        self.first.load_state_dict(state["first"])
        self.second.load_state_dict(state["second"])


class Stopwatch(Around):
    """Another stream, and the seconds that its draws took: what writing and labelling fresh pairs costs.

    The seconds are saved with the stream's state, so that a run that was killed still counts all of them; they change
    nothing that is drawn.
    """

    def __init__(self, source: PairStream) -> None:
        self.source, self.seconds = source, 0.0

    def draw(self, n: int, sampler: Sampler) -> list[Pair]:
        started = time.perf_counter()
        pairs = self.source.draw(n, sampler)
        self.seconds += time.perf_counter() - started
        return pairs

    def state_dict(self) -> dict[str, Any]:
        return {**self.source.state_dict(), "draw_seconds": self.seconds}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.source.load_state_dict({k: v for k, v in state.items() if k != "draw_seconds"})
        self.seconds = float(state.get("draw_seconds", 0.0))


class Relabelled(Around):
    """Another stream's pairs, labelled anew by a judge as they are drawn; who wrote them stays what it was.

    Unlabelled pairs stay unlabelled.
    """

    def __init__(self, source: PairStream, judge: Judge, *, soft_labels: bool = False) -> None:
        self.source, self.judge, self.soft_labels = source, judge, soft_labels

    def draw(self, n: int, sampler: Sampler) -> list[Pair]:
        given = self.source.draw(n, sampler)
        asked = [p for p in given if p.labelled]
        sides = [p.prompt for p in asked], [p.chosen for p in asked], [p.rejected for p in asked]
        fresh = iter(label(*sides, self.judge, writer="", soft=self.soft_labels) if asked else [])
        out = []
        for old in given:
            if not old.labelled:
                out.append(old)
                continue
            new = next(fresh)
            swapped = new.chosen is not old.chosen
            kept: dict[str, Any] = {"writer": old.writer}
            for what in ("ref", "writer", "advantage"):
                both = getattr(old, f"{what}_chosen"), getattr(old, f"{what}_rejected")
                kept |= zip((f"{what}_chosen", f"{what}_rejected"), both[::-1] if swapped else both, strict=True)
            out.append(replace(new, **kept))
        return out

    def state_dict(self) -> dict[str, Any]:
        return self.source.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.source.load_state_dict(state)
