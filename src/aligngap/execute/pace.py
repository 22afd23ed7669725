"""How long a step takes on this machine: the cost model's guess times a pace, learnt from the steps that have run here.

Paces are natural logarithms of (seconds / seconds guessed), and seconds are those of a step that has the machine to
itself: who observes a step takes the load out first. What is known before a command runs comes from the durations kept
in the store; what it sees itself goes before them. All of it is one Gaussian model with three spreads, stated below.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from aligngap import __version__
from aligngap.pipeline.base import Step
from aligngap.storage.store import Store

KINDS = 0.35  #: standard deviation of kinds' paces around that of the machine
STEPS = 0.15  #: of a step's pace around that of its kind at its size
SIZES = 0.25  #: of the same per factor e between two sizes
FRESH, AGAIN = 1.0, 0.2  #: of a command's pace where nothing is kept, and around what is kept
OVERHEAD_SECONDS = 1.0  #: of a step that says nothing of its kind: loading, or waiting for the disk
MOST = 60  #: the latest durations of a kind that are looked at


@dataclass(frozen=True)
class Duration:
    """How long a step of a kind took, in seconds of a machine that it had to itself, and what was guessed before."""

    kind: str
    guessed: float
    seconds: float

    @property
    def pace(self) -> float:
        """The logarithm of how many times longer it took than guessed."""
        return math.log(max(self.seconds, 1e-3) / max(self.guessed, 1e-3))

    def variance(self, guessed: float) -> float:
        """How far the pace of a step of another size may lie from this one's, squared."""
        apart = math.log(max(guessed, 1e-3) / max(self.guessed, 1e-3))
        short = OVERHEAD_SECONDS / max(min(self.seconds, self.guessed), 1e-3)
        return STEPS**2 + (SIZES * apart) ** 2 + short**2


def kind_of(step: Step) -> str:
    """What steps have one pace: measuring is one kind of work whatever wrote the policy, training an arm is not."""
    return step.label if step.kind == "align" else step.kind


def file_of(store: Store) -> Path:
    """Where a store keeps durations: beside the work in progress, since they are no artifact."""
    return store.root / "partial" / "durations.jsonl"


def write_duration(store: Store, place: str, found: Duration) -> None:
    """Add a duration to those of the store; a disk that refuses costs a guess and nothing else."""
    row = {"place": place, "aligngap": __version__} | asdict(found)
    with suppress(OSError), file_of(store).open("a", encoding="utf-8") as out:
        out.write(json.dumps(row) + "\n")


def read_durations(store: Store, place: str) -> list[Duration]:
    """The durations that the store keeps of this place, oldest first; a line that a kill has torn is passed over.

    Those of another version of aligngap were held against other guesses and are left out.
    """
    found = []
    with suppress(OSError):
        for line in file_of(store).read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError, KeyError, TypeError):
                row = json.loads(line)
                one = Duration(str(row["kind"]), float(row["guessed"]), float(row["seconds"]))
                if (row["place"], row["aligngap"]) == (place, __version__) and one.seconds > 0 < one.guessed:
                    found.append(one)
    return found


@dataclass(frozen=True)
class Belief:
    """A pace with its variance."""

    mean: float
    variance: float

    def narrowed(self, mean: float, variance: float) -> Belief:
        """The belief after an independent observation of the same pace."""
        gain = self.variance / (self.variance + variance)
        return Belief(self.mean + gain * (mean - self.mean), self.variance * (1.0 - gain))


def average(durations: Iterable[tuple[float, float]]) -> tuple[float, float] | None:
    """The mean of (value, variance) pairs by their precision, and its variance; None of nothing."""
    weights = [(value, 1.0 / variance) for value, variance in durations]
    if not weights:
        return None
    total = sum(w for _, w in weights)
    return sum(v * w for v, w in weights) / total, 1.0 / total


class Pace:
    """What is known of the paces of kinds of steps: from kept durations, then from what a command has seen itself."""

    def __init__(self, kept: Sequence[Duration] = ()) -> None:
        self.kept = by_kind(kept)
        kinds = [average((d.pace, d.variance(d.guessed)) for d in group) for group in self.kept.values()]
        machine = average((mean, KINDS**2 + variance) for mean, variance in filter(None, kinds))
        self.machine = Belief(machine[0] if machine else 0.0, 0.0)
        self.command = Belief(0.0, (AGAIN if machine else FRESH) ** 2)
        self.seen: dict[str, list[Duration]] = {}

    def learn(self, seen: Sequence[Duration]) -> None:
        """Take what the command has seen so far, all of it, as what is known of this command."""
        self.seen = by_kind(seen)
        self.command = Belief(0.0, self.command.variance) if not seen else self._command()

    def _command(self) -> Belief:
        found = Belief(0.0, (AGAIN if self.kept else FRESH) ** 2)
        for kind, group in self.seen.items():
            rest = [(d.pace - self.before(kind, d.guessed).mean, d.variance(d.guessed)) for d in group]
            mean, variance = average(rest) or (0.0, math.inf)
            found = found.narrowed(mean, self.before(kind, group[-1].guessed).variance + variance)
        return found

    def before(self, kind: str, guessed: float) -> Belief:
        """The pace of a kind at a size by the kept durations alone."""
        found = Belief(self.machine.mean, KINDS**2)
        if rest := average((d.pace, d.variance(guessed)) for d in self.kept.get(kind, [])):
            found = found.narrowed(rest[0], rest[1] + STEPS**2)
        return found

    def of(self, kind: str, guessed: float) -> Belief:
        """The pace of a step of a kind and size, by all that is known; its variance is that of the kind's pace."""
        known, command = self.before(kind, guessed), self.command
        mean, variance = known.mean + command.mean, known.variance
        rest = average((d.pace - known.mean - command.mean, d.variance(guessed)) for d in self.seen.get(kind, []))
        if rest is None:
            return Belief(mean, variance + command.variance)
        gain = variance / (variance + rest[1])
        return Belief(mean + gain * rest[0], variance * (1.0 - gain) + command.variance * (1.0 - gain) ** 2)

    def seconds(self, kind: str, guessed: float) -> float:
        """Seconds of a step that has the machine to itself, on average over what its pace may be."""
        known = self.of(kind, guessed)
        return guessed * math.exp(known.mean + known.variance / 2)


def by_kind(durations: Sequence[Duration]) -> dict[str, list[Duration]]:
    """Durations of each kind, of very many the latest."""
    found: dict[str, list[Duration]] = defaultdict(list)
    for one in durations:
        found[one.kind].append(one)
    return {kind: group[-MOST:] for kind, group in found.items()}
