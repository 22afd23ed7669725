"""What one more run costs in a sweep of very many: `python benchmarks/sweep.py [--runs 10 100 1000]`.

The runs are real and as small as they can be (a tabular policy, one step), so that what is measured is what surrounds
them: scheduling, stores, locks, measuring, collecting. For each size the study is run from a store that has the shared
artifacts already, then planned, run again with nothing to do, shown and reported, each in a process of its own. CPU
seconds of the command and its workers; nothing is asserted.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import tempfile
from pathlib import Path

import numpy as np
from command import command, settings

LITTLE = [
    "task.train_pairs=500", "sft.steps=5", "golden.optimization.steps=5", "proxy.optimization.steps=5",
    "recipe.optimization.steps=1", "recipe.optimization.batch=4", "measurement.checkpoints=[]",
    "measurement.best_of_n=0", "measurement.pairs=16", "measurement.samples=0",
]  # fmt: skip


def seconds(*words: str) -> float:
    """CPU seconds of an aligngap command and all that it starts."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command(*words)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def study(runs: int) -> list[str]:
    rates = ", ".join(f"{rate:.6e}" for rate in np.geomspace(1e-5, 1e-3, runs))
    sweep = f"[{{axes: {{learning_rate: [{rates}]}}, arms: [offline], why: many}}]"
    return ["tabular", *settings([*LITTLE, f"sweep={sweep}"])]


def measure(runs: int, shared: Path) -> list[float]:
    """CPU seconds of: all runs made, the plan, the same command with nothing to do, show, report."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out" / "sweep"
        shutil.copytree(shared / "out", Path(folder) / "out")
        where = ["--out", str(out)]
        made = seconds("run", *study(runs), *where, "--workers", "1")
        plan = seconds("plan", *study(runs), *where)
        again = seconds("run", *study(runs), *where, "--workers", "1")
        return [made, plan, again, seconds("show", str(out)), seconds("report", str(out))]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, nargs="+", default=[10, 100, 1000])
    sizes = parser.parse_args().runs
    print("| runs | all made | one more run | plan | nothing to do | show | report |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        command("run", *study(1), "--out", str(Path(folder) / "out" / "sweep"), "--workers", "1")
        before: tuple[int, float] | None = None
        for runs in sizes:
            made, *rest = measure(runs, Path(folder))
            one = f"{(made - before[1]) / (runs - before[0]):.2f}" if before else ""
            print(f"| {runs:,} | {made:.0f} | {one} | " + " | ".join(f"{s:.1f}" for s in rest) + " |", flush=True)
            before = runs, made


if __name__ == "__main__":
    main()
