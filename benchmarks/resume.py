"""What it costs to be able to go on after a kill: `python benchmarks/resume.py`.

The opening study's online run, at its own sizes, saves its state every second instead of every 30, so that a short run
has many saves. The seconds in everything that only serves going on (states, journals, the structured log) are summed;
what a save takes, over 30 seconds, and the log's share of a step are what a run pays at the default.
"""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from aligngap.execute.worker import make
from aligngap.fit import Trainer
from aligngap.pipeline import training
from aligngap.pipeline.context import Context, Job
from aligngap.pipeline.plan import expand
from aligngap.storage.runlog import RunLog
from aligngap.storage.store import Store
from aligngap.study.load import load

DEFAULT_SECONDS = 30.0
SHORT = [
    "task.train_pairs=4000", "sft.steps=20", "golden.optimization.steps=20", "proxy.optimization.steps=20",
    "recipe.optimization.steps=200",
]  # fmt: skip

spent: dict[str, float] = defaultdict(float)
calls: dict[str, int] = defaultdict(int)


def timed(owner: Any, name: str, part: str) -> None:
    """Count the wall seconds of a function under `part`."""
    original: Callable[..., Any] = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        try:
            return original(*args, **kwargs)
        finally:
            spent[part] += time.perf_counter() - started
            calls[part] += 1

    setattr(owner, name, wrapped)


def main() -> None:
    torch.set_num_threads(1)
    run = expand(load("opening", SHORT)).runs[0].align
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        store.prepare()
        ctx = Context(store, "cpu")
        needed = {s.name: s for s in run.walk()}
        for step in needed.values():
            if step.name != run.name:
                make(step, ctx)
        timed(Trainer, "save", "state")
        timed(training.Journal, "flush", "journals")
        timed(training, "discard", "old states")
        timed(RunLog, "step", "log")
        started = time.perf_counter()
        make(run, ctx, Job(save_seconds=1.0))
        seconds = time.perf_counter() - started
    saves = calls["state"]
    a_save = (spent["state"] + spent["journals"] + spent["old states"]) / saves
    log = spent["log"] / (seconds - a_save * saves)
    print(f"{run.optimization.steps} steps in {seconds:.1f} s, {saves} saves of {1000 * a_save:.0f} ms; wall time")
    print(f"at a save every {DEFAULT_SECONDS:.0f} s: {a_save / DEFAULT_SECONDS:.2%} for states, {log:.2%} for the log")


if __name__ == "__main__":
    main()
