"""How much longer a command takes: what is left of its agenda played through, at the paces that its steps have shown.

`pace.py` says how long a step takes that has the machine to itself. Here is what else a remaining time consists of: how
far the running steps are, which steps can run beside each other, and what else the machine has to do.
"""

from __future__ import annotations

import heapq
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from aligngap.execute.agenda import Machine
from aligngap.execute.pace import STEPS, Belief, Duration, Pace, kind_of
from aligngap.pipeline.base import Step

OPEN_SECONDS = 4.0  #: from a worker's start to its first step: imports
LAST_SHARE = 0.03  #: of a step that takes longer than foreseen, what is left of it at least
ANEW_SECONDS = 2.0  #: between two times that the agenda is played through
MANY = 100  #: steps waiting, above which it is not played through again for every step that starts or ends
MINUTE = 60.0  #: over which the operating system averages its load
AHEAD = 0.02  #: uncertainty of a fraction done: a step's parts are not all equally long
ENOUGH = 0.1  #: variance of a running step's pace below which it tells of others of its kind: from 7% of it on


def read_load() -> float:
    """How many processes of the machine wish to run, over the last minute; 0 where nobody says."""
    try:
        return os.getloadavg()[0]
    except (OSError, AttributeError):
        return 0.0


@dataclass
class Running:
    """A step at work: seconds so far as if it had the machine to itself, and how far it has said to be and when."""

    step: Step
    opened: bool  # a worker was opened for it
    alone: float = 0.0
    first: tuple[float, float] | None = None  # (fraction, seconds) when it first said anything, and last
    last: tuple[float, float] | None = None

    def see(self, fraction: float) -> None:
        """Note how far it says to be; one that begins another part, which goes from 0 to 1 again, is begun anew."""
        if self.last is None or fraction < self.last[0]:
            self.first = self.last = fraction, self.alone
        elif fraction > self.last[0]:
            self.last = fraction, self.alone

    def resumed(self) -> bool:
        """Whether it was further at first sight than the rest of it lets it have come since its start."""
        if self.first is None or self.first[0] >= 1.0:
            return False
        whole = (self.alone - self.first[1]) / (1.0 - self.first[0])
        return self.first[0] > 0.05 and self.first[1] < 0.5 * self.first[0] * whole

    def so_far(self, guessed: float) -> tuple[Duration, float] | None:
        """Its whole duration by its progress, and the variance of that pace; None before it has made any."""
        if self.first is None or self.last is None or self.last[0] <= self.first[0]:
            return None
        part = self.last[0] - self.first[0]
        seconds = (self.last[1] - self.first[1]) / part
        return Duration(kind_of(self.step), guessed, max(seconds, 1e-3)), STEPS**2 + (AHEAD / part) ** 2


class Remaining:
    """What is left of a command, told what its executor tells: a step started, came so far, ended or cannot be made.

    `slots` says how many steps run at once on the `machine`. `guessed` are the cost model's seconds by a step's name,
    `after` those of what follows the last one; `rank` says which goes first.
    """

    def __init__(
        self, steps: Sequence[Step], guessed: Mapping[str, float], rank: Mapping[str, float], pace: Pace,
        slots: Callable[[], int], machine: Machine, *, after: float = 0.0,
        now: Callable[[], float] = time.monotonic, load: Callable[[], float] = read_load,
    ) -> None:  # fmt: skip
        self.waiting = {s.name: s for s in steps}
        self.needs = {s.name: {n.name for n in s.inputs.values()} & self.waiting.keys() for s in steps}
        self.needed_by: dict[str, list[str]] = {}
        for name, needs in self.needs.items():
            for need in needs:
                self.needed_by.setdefault(need, []).append(name)
        self.guessed, self.rank, self.pace, self.slots, self.machine = dict(guessed), rank, pace, slots, machine
        self.now, self.load, self.after = now, load, after
        self.running: dict[str, Running] = {}
        self.done: list[Duration] = []
        self.opened, self.own, self.clock = 0, 0.0, now()
        self.others = load()
        self.known: tuple[float, float] | None = None  # when it was last played through, and what came of it

    # ------------------------------------------------------------------------------------------- what is observed

    def start(self, step: Step) -> None:
        """A step has started."""
        self._pass()
        if self.waiting.pop(step.name, None) is not None:
            self.running[step.name] = Running(step, self.opened < self.slots())
            self.opened += 1
        self._change()

    def see(self, step: Step, fraction: float) -> None:
        """A running step says that this share of it is done."""
        self._pass()
        if step.name in self.running:
            self.running[step.name].see(fraction)

    def end(self, step: Step, made: bool) -> Duration | None:
        """A step has ended or will never start; its duration where it was made from its beginning to its end."""
        self._pass()
        self.waiting.pop(step.name, None)
        ended = self.running.pop(step.name, None)
        self._change()
        if ended is None or not made or ended.resumed():
            return None
        seconds = ended.alone
        if ended.opened:
            seconds -= min(OPEN_SECONDS * math.exp(self.pace.command.mean), 0.8 * seconds)
        found = Duration(kind_of(step), self.guessed[step.name], max(seconds, 0.01))
        self.done.append(found)
        return found

    def _change(self) -> None:
        """Note that the agenda is another: a long one is then played through when it is time to, and not at once."""
        if len(self.waiting) <= MANY:
            self.known = None

    def _pass(self) -> None:
        """Let the time since the last look pass for what is running, and for what is known of the machine's load."""
        now = self.now()
        spent, self.clock = max(0.0, now - self.clock), now
        for running in self.running.values():
            running.alone += spent / self.slower(len(self.running))
        # The operating system averages over a minute, ours among the others: so do we, and take ours away.
        wishing = len(self.running) * self.machine.threads
        self.own += (wishing - self.own) * (1.0 - math.exp(-spent / MINUTE))
        self.others = max(0.0, self.load() - self.own)

    def slower(self, at_once: int) -> float:
        """How many times longer each of so many steps takes at once, beside what else the machine does."""
        here = self.machine
        return 1.0 if here.cores is None else max(1.0, (at_once * here.threads + self.others) / here.cores)

    # --------------------------------------------------------------------------------------------- what is foreseen

    def seconds(self) -> float:
        """Seconds until everything is done, as far as can be known now."""
        self._pass()
        if self.known is None or self.clock - self.known[0] > ANEW_SECONDS:
            self.known = self.clock, self._play()
        return max(0.0, self.known[1] - (self.clock - self.known[0]))

    def takes(self, step: Step) -> float:
        """Seconds of a waiting step that has the machine to itself."""
        return self.pace.seconds(kind_of(step), self.guessed[step.name])

    def _play(self) -> float:
        told = {name: r.so_far(self.guessed[name]) for name, r in self.running.items()}
        self.pace.learn([*self.done, *(found[0] for found in told.values() if found and found[1] < ENOUGH)])
        left = {name: self._left(running, told[name]) for name, running in self.running.items()}
        # What follows the last step is done here, wherever the steps were.
        slower = max(1.0, (1.0 + self.others) / (os.cpu_count() or 1))
        return self._through(left) + self.after * math.exp(self.pace.command.mean) * slower

    def _left(self, running: Running, told: tuple[Duration, float] | None) -> float:
        """Seconds that a running step still takes if it has the machine to itself."""
        guessed = self.guessed[running.step.name]
        known = self.pace.of(kind_of(running.step), guessed)
        known = Belief(known.mean, known.variance + STEPS**2)
        if told is None:
            whole = guessed * math.exp(known.mean) + OPEN_SECONDS * running.opened
            left = whole - running.alone
        else:
            whole = guessed * math.exp(known.narrowed(told[0].pace, told[1]).mean)
            assert running.last is not None  # it has told
            left = whole * (1.0 - running.last[0]) - (running.alone - running.last[1])
        return max(left, LAST_SHARE * max(whole, running.alone))

    def _through(self, left: Mapping[str, float]) -> float:
        """What is left played through, the most urgent of what can start first: seconds until the last step ends."""
        slots, spent, turned = max(1, self.slots()), 0.0, 0.0
        busy = [(seconds, name) for name, seconds in left.items()]  # by how far all have turned when this one ends
        heapq.heapify(busy)
        unmade = self.running.keys() | self.waiting.keys()
        lacks = {name: len(self.needs[name] & unmade) for name in self.waiting}
        ready = [(-self.rank[name], name) for name, count in lacks.items() if not count]
        heapq.heapify(ready)
        takes: dict[tuple[str, float], float] = {}
        while ready or busy:
            while ready and len(busy) < slots:
                name = heapq.heappop(ready)[1]
                size = kind_of(self.waiting[name]), self.guessed[name]
                if size not in takes:
                    takes[size] = self.pace.seconds(*size)
                heapq.heappush(busy, (turned + takes[size], name))
            ends, ended = heapq.heappop(busy)
            spent += (ends - turned) * self.slower(len(busy) + 1)
            turned = ends
            for name in self.needed_by.get(ended, ()):
                if name in lacks:
                    lacks[name] -= 1
                    if not lacks[name]:
                        heapq.heappush(ready, (-self.rank[name], name))
        return spent
