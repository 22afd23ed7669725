"""Numbers to trackio, TensorBoard or W&B while a study runs, through Accelerate's tracker interface.

Off unless asked for (`--track`). A tracker only listens: it is no part of any key and no random number is drawn for it;
one that fails while steps run is dropped with a line, and the study goes on. What it is told is what a step's log
and measurements hold, so only steps that are made now are told of. Leaves out: what a tracker does with the numbers.
"""

from __future__ import annotations

import importlib
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from aligngap.storage.columns import GAP_COLUMNS
from aligngap.types import AligngapError, first_line

#: trackers, each named as the package that it needs beside accelerate
TRACKERS = ("trackio", "tensorboard", "wandb")


def check_trackers(words: Sequence[str]) -> tuple[str, ...]:
    """The trackers of `--track`, given as words or comma lists. AligngapError if one is unknown or cannot be used."""
    names = tuple(dict.fromkeys(name.strip() for word in words for name in word.split(",")))
    for name in names:
        if name not in TRACKERS:
            raise AligngapError(f"--track {name}: no such tracker; known: {', '.join(TRACKERS)}")
        missing = [package for package in ("accelerate", name) if find_spec(package) is None]
        if missing:
            own = " wandb" if name == "wandb" else ""
            what = f"{' and '.join(missing)} not installed; pip install 'aligngap[trackers]'{own}"
            raise AligngapError(f"--track {name}: {what}, or leave --track out")
    if "wandb" in names and os.environ.get("WANDB_MODE", "online") == "online":
        try:
            known = importlib.import_module("wandb").login(prompt=False)
        except Exception as error:  # whatever W&B raises: no server, a key that it refuses
            raise AligngapError(f"--track wandb: {first_line(error)}; or set WANDB_MODE=offline") from error
        if not known:
            raise AligngapError("--track wandb: not logged in; run `wandb login`, or set WANDB_MODE=offline")
    return names


@dataclass(frozen=True)
class Tracking:
    """Which trackers are told, the folder of their files, the project, and a person's name for each step's name."""

    names: tuple[str, ...] = ()
    folder: Path = Path("tracking")
    project: str = "aligngap"
    runs: Mapping[str, str] = field(default_factory=dict)

    def of(self, step: str) -> Track:
        """What a step tells its numbers; its run in the trackers is named as in the command's progress."""
        return Track(self, self.runs.get(step, step).replace("/", "-"))


class Track:
    """One step's run in every tracker, opened when it first has a number to tell."""

    def __init__(self, tracking: Tracking | None = None, run: str = "") -> None:
        self.tracking, self.run = tracking or Tracking(), run
        self.open: dict[str, Any] = {}
        self.left = set(self.tracking.names)

    def __call__(self, values: Mapping[str, Any], step: int) -> None:
        """Tell the finite numbers among the values, at an optimiser step."""
        if not self.left:
            return
        numbers = {
            name: float(value)
            for name, value in values.items()
            if isinstance(value, int | float) and math.isfinite(value) and name != "step"
        }
        for name in sorted(self.left):
            try:
                if name not in self.open:
                    self.open[name] = self._opened(name, step)
                self.open[name].log(numbers, step=step)
            except Exception as error:  # whatever a tracker's package raises: no disk, no server
                self._drop(name, error)

    def close(self) -> None:
        for name, tracker in self.open.items():
            try:
                tracker.finish()
            except Exception as error:
                self._drop(name, error)
        self.open, self.left = {}, set()

    def _opened(self, name: str, first: int) -> Any:
        """A started tracker. TensorBoard passes over what a killed attempt wrote from the step `first` on."""
        about, trackers = self.tracking, importlib.import_module("accelerate.tracking")
        importlib.import_module("accelerate.state").PartialState(cpu=True)  # leaves the GPU alone
        about.folder.mkdir(parents=True, exist_ok=True)
        if name == "tensorboard":
            tracker = trackers.TensorBoardTracker(self.run, logging_dir=str(about.folder), purge_step=first)
        elif name == "wandb":
            quiet = {"console": "off", "silent": True}
            tracker = trackers.WandBTracker(about.project, name=self.run, dir=str(about.folder), settings=quiet)
        else:
            tracker = trackers.TrackioTracker(about.project, name=self.run)
        tracker.start()
        return tracker

    def _drop(self, name: str, error: Exception) -> None:
        self.left.discard(name)
        print(f"aligngap: {self.run}: {name} is told no more: {first_line(error)}", file=sys.stderr, flush=True)


def measured(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A checkpoint's measurements by name: what depends on the opponent as `win_rate/OPPONENT`."""
    found: dict[str, Any] = {}
    for row in rows:
        opponent = row["opponent"]
        for name, value in row.items():
            if name in GAP_COLUMNS and value != value:  # which one opponent alone has
                continue
            per_opponent = "win_rate" in name or name in ("ties", "proxy_agreement", "opponent_length_tokens")
            found[f"{name}/{opponent}" if per_opponent else name] = value
    found.pop("opponent", None)
    return found
