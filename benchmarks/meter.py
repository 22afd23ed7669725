"""How a contender is timed: it runs update after update in a process of its own and stops where the driver says.

The driver (`speed.py`) starts every contender once, then lets them work in turns, so that whatever else the machine
does falls on all alike. A contender calls `Meter.update` after each optimiser step; at the end of a turn the meter
prints one JSON line and waits for the next turn, in the middle of the other library's own loop where need be.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def quiet_libraries() -> None:
    """Silence progress bars and warnings of the libraries compared; the protocol owns stdout."""
    import warnings

    from transformers.utils import logging

    warnings.filterwarnings("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()


class Meter:
    """Wall and CPU seconds (user and system, all threads of the process) of the updates of each turn."""

    def __init__(self) -> None:
        self.out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # whatever a library prints goes to stderr
        self.parts: dict[str, float] = {}
        self.losses: list[float] = []
        self.tokens = 0
        self.left: int | None = None

    def start(self, **about: Any) -> None:
        """Say that everything is loaded, then wait for the first turn."""
        self._say({"ready": about, "loaded_mb": peak_mb()})
        self._wait()

    def update(self, *, loss: float, tokens: int) -> None:
        """One update is done: its loss, and the response tokens trained on."""
        self.losses.append(loss)
        self.tokens += tokens
        assert self.left is not None, "start() comes first"
        self.left -= 1
        if self.left == 0:
            now = {"wall": time.perf_counter() - self.wall, "cpu": time.process_time() - self.cpu}
            self._say(now | {"losses": self.losses, "tokens": self.tokens, "parts": self.parts, "peak_mb": peak_mb()})
            self._wait()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time spent inside counts, in CPU seconds, as `name`."""
        begin = time.process_time()
        yield
        self.parts[name] = self.parts.get(name, 0.0) + time.process_time() - begin

    def _wait(self) -> None:
        word = sys.stdin.readline().strip()
        if not word:
            raise SystemExit(0)
        self.left, self.losses, self.tokens, self.parts = int(word), [], 0, {}
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def _say(self, value: dict[str, Any]) -> None:
        print(json.dumps(value), file=self.out, flush=True)


def peak_mb() -> float:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform.startswith("linux") else 1024**2)
