"""The page of a study that goes on: collected and made anew as measurements arrive, at a small share of the time."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from aligngap.execute.collect import collect
from aligngap.types import Damaged

if TYPE_CHECKING:
    from aligngap.pipeline.plan import Plan
    from aligngap.storage.store import Store

#: of the wall time, what collecting and the page (in a process of its own) may take
SHARE = 0.05
#: seconds that a first page is taken to need: nothing is made anew in a study that is over sooner than it would pay
FIRST = 2.0
CHILD = "import sys, pathlib; from aligngap.report import build_report; build_report(pathlib.Path(sys.argv[1]))"


class Refresher:
    """Keeps the records and the page of an output folder up with a run; used as a context, it ends with the run."""

    def __init__(self, plan: Plan, store: Store, out: Path, command: str = "") -> None:
        self.plan, self.store, self.out, self.command = plan, store, out, command
        self.measures = {run.measure.name for run in plan.runs}
        self.child: subprocess.Popen[bytes] | None = None
        self.begun, self.took = time.monotonic(), FIRST  # a clock that is set does not hold it up
        self.clock = time.time()  # as the page's file has it

    def notice(self, name: str) -> bool:
        """Begin to make the page anew if the finished step is a measurement and the last page is long enough ago.

        Returns whether it has begun.
        """
        if name not in self.measures or not self._due():
            return False
        self.begun, self.clock = time.monotonic(), time.time()
        try:
            count = collect(self.plan, self.store, self.out, self.command)
        except Damaged:  # the collection at the end says so and has it made again
            return False
        if not 0 < count < len(self.plan.runs):
            return False
        words = [sys.executable, "-c", CHILD, str(self.out)]
        self.child = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return True

    def __enter__(self) -> Refresher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.child is not None:  # an older page must not come after the last one
            self.child.kill()
            self.child.wait()

    def _due(self) -> bool:
        """Whether no page is being made and the last one is paid for by the time that has passed."""
        if self.child is not None:
            if self.child.poll() is None:
                return False
            page = self.out / "report.html"
            self.took = max(page.stat().st_mtime - self.clock, FIRST) if page.exists() else FIRST
        return time.monotonic() - self.begun >= self.took / SHARE
