"""Wall clock of a system that writes and trains side by side: a model, whose numbers are inputs and not measurements.

One machine writes a batch, another trains on one. The writer takes over the trainer's weights between batches, and is
never more than `lag` batches ahead: at lag 0 they wait for each other (synchronous), above it both work at once, as in
Noukhovitch et al. 2024, arXiv 2410.18252. What passing weights and batches on costs belongs into the durations.

What this module leaves out: any measurement of a real system; `docs/scale.md` says what this machine takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aligngap.types import AligngapError


@dataclass(frozen=True)
class System:
    """What a batch takes, in any unit of time: to write and label (`write`), and to train on (`train`)."""

    name: str
    write: float
    train: float

    def __post_init__(self) -> None:
        if not (self.write >= 0 and self.train > 0):
            raise AligngapError(f"system {self.name}: to write takes {self.write} and to train {self.train}: positive")

    def ends(self, steps: int, lag: int, every: int = 1) -> list[float]:
        """When each training step ends, if one batch is written for every so many of them (`reuse`, or a buffer's)."""
        batches = -(-steps // every)
        return schedule([self.write] * batches, [self.train] * steps, lag, every)


def schedule(write: Sequence[float], train: Sequence[float], lag: int, every: int = 1) -> list[float]:
    """When each training step ends, by what each batch takes to write and each step to train.

    Step t trains on batch t // every. Batch b is begun when batch b - 1 is written and step (b - lag) * every has ended
    (step 0: at once): its weights are then at most `lag` batches old when it is trained on.
    """
    if lag < 0 or every < 1:
        raise AligngapError(f"a schedule with lag {lag}, one batch every {every} steps: must be at least 0 and 1")
    written: list[float] = []
    ends: list[float] = []
    for step, cost in enumerate(train):
        while len(written) <= min(len(write) - 1, step // every + lag):
            batch = len(written)
            since = (batch - lag) * every  # steps that must have ended before it is begun
            if since > len(ends):
                break
            begun = max(written[-1] if written else 0.0, ends[since - 1] if since > 0 else 0.0)
            written.append(begun + write[batch])
        ends.append(max(written[step // every], ends[-1] if ends else 0.0) + cost)
    return ends


def steps_by(ends: Sequence[float], time: float) -> int:
    """How many steps have ended by a time."""
    return sum(end <= time * (1 + 1e-12) for end in ends)
