"""How far a device's records are from the CPU's, and from its own: `python benchmarks/deviation.py [--device cuda]`.

A short opening study is run twice on the device and once on the CPU, each from an empty store. On a CPU two runs are
the same bytes. On a GPU sums may be taken in another order, and random numbers come from another generator, so arms
with `behavior: policy` train on other responses than on a CPU. What is printed per arm is the largest difference over
its checkpoints and opponents; the standard errors beside it say what the choice of prompts alone would do.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from command import command, settings

SHORT = [
    "task.train_pairs=1000", "sft.steps=60", "golden.optimization.steps=60", "proxy.optimization.steps=60",
    "recipe.optimization.steps=20", "measurement.checkpoints=[8]", "measurement.prompts=64",
    "measurement.kl_prompts=32", "measurement.pairs=64", "measurement.best_of_n=0", "sweep=[]",
]  # fmt: skip
AT = ["run", "step", "opponent"]
VALUES = {"kl_nats": "kl_nats_se", "win_rate": "win_rate_se"}


def records(folder: Path, device: str, sets: Sequence[str] = SHORT) -> pd.DataFrame:
    """The records of a short opening study on a device, made in `folder` from an empty store."""
    out = folder / "out" / "deviation"
    command("run", "opening", *settings(sets), "--device", device, "--out", str(out))
    return pd.read_parquet(out / "records.parquet").set_index(AT)


def print_apart(device: str, first: pd.DataFrame, again: pd.DataFrame, cpu: pd.DataFrame) -> None:
    """The largest differences per arm, as a table: of a device's records from its own, and from the CPU's."""
    print(f"| arm | value | {device}, twice | {device} against cpu | largest standard error |")
    print("| --- | --- | --- | --- | --- |")
    for arm, rows in first.groupby("arm", sort=False):
        for value, error in VALUES.items():
            apart = [(rows[value] - other.loc[rows.index, value]).abs().max() for other in (again, cpu)]
            print(f"| {arm} | {value} | {apart[0]:.2g} | {apart[1]:.2g} | {rows[error].max():.2g} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="cuda", help="what is held against the CPU")
    device = parser.parse_args().device
    with tempfile.TemporaryDirectory() as folder:
        first, again, cpu = (records(Path(folder) / str(n), name) for n, name in enumerate((device, device, "cpu")))
    print_apart(device, first, again, cpu)


if __name__ == "__main__":
    main()
