"""Seconds and peak memory of a report: `python benchmarks/report.py [records|prompts|both] [ROWS] [--keep DIR]`.

Synthetic records of the given size (default a million rows) are written to a temporary folder; the report is then made
in a fresh process, imports and figures included, and one row of a Markdown table is printed for each case:

- `prompts`: a study of few checkpoints and many prompts, ROWS rows in `per_prompt.parquet`;
- `records`: a sweep of very many runs, ROWS rows in `records.parquet` and nothing prompt by prompt.

Run by hand; nothing is asserted. CPU seconds are those to compare on a busy machine.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from aligngap.stats.scaling_law import best_of_n_kl
from aligngap.storage.columns import BEST_OF_N_COLUMNS, PER_PROMPT_COLUMNS, RECORD_COLUMNS, SAMPLE_COLUMNS
from aligngap.storage.records import BEST_OF_N, PER_PROMPT, RECORDS, SAMPLES, write_table

OPPONENTS = ("golden_policy", "sft", "chosen")
ARMS = {"online": 1, "offline": 6, "online-golden": 1, "offline-proxy": 1}  # configurations each
SEEDS, CHECKPOINTS = 4, 8

CHILD = """
import os, sys, time
wall, before = time.perf_counter(), os.times()
from pathlib import Path
from aligngap.report import build_report
build_report(Path(sys.argv[1]))
assert "torch" not in sys.modules
wall, after = time.perf_counter() - wall, os.times()
print(wall, sum(after[:4]) - sum(before[:4]))
"""


def checkpoints(copies: int, rng: np.random.Generator) -> pd.DataFrame:
    """One row a checkpoint and opponent; `copies` repeats every configuration."""
    runs = [
        (arm, f"beta={0.1 * (c + 1):.1f} copy={k}", seed)
        for arm, configs in ARMS.items()
        for c in range(configs)
        for k in range(copies)
        for seed in range(SEEDS)
    ]
    steps = np.array([0, *(2**k * 8 for k in range(CHECKPOINTS))])
    frame = pd.DataFrame(runs, columns=["arm", "config", "seed"])
    frame["run"] = frame["arm"] + " " + frame["config"] + " seed=" + frame["seed"].astype(str)
    frame = frame.merge(pd.DataFrame({"step": steps}), how="cross").merge(
        pd.DataFrame({"opponent": OPPONENTS}), how="cross"
    )
    n = len(frame)
    kl = 0.05 * frame["step"] ** 0.9 * np.exp(rng.normal(0, 0.1, n))
    win = np.clip(0.25 + 0.1 * np.exp(-((np.log(kl + 1e-9) - 1.5) ** 2)) + 0.05 * (frame["arm"] == "online"), 0, 1)
    values: dict[str, object] = {
        "study": "benchmark", "loss": "ipo", "beta": 0.1, "learning_rate": 1e-4, "kl_nats": kl, "kl_nats_se": 0.05 * kl,
        "kl_k1_nats": kl, "forward_kl_nats": 1.2 * kl, "forward_kl_nats_se": 0.05 * kl,
        "win_rate": np.clip(win + rng.normal(0, 0.02, n), 0, 1), "win_rate_se": 0.02, "ties": 0,
        "proxy_win_rate": np.clip(win + 0.03 * np.log1p(kl), 0, 1), "proxy_win_rate_se": 0.02,
        "oracle_win_rate": np.nan, "oracle_win_rate_se": np.nan, "prompts": 500, "outcome": "ok",
        "responses_sampled": np.where(frame["arm"].str.startswith("online"), 128 * frame["step"], 0),
        "pairs_seen": 64 * frame["step"], "pairs_distinct": 64 * frame["step"],
        "flops": 1e9 * frame["step"] * (1 + frame["arm"].str.startswith("online")),
    }  # fmt: skip
    frame = frame.assign(**values)
    for name, (kind, _) in RECORD_COLUMNS.items():
        if name not in frame:
            frame[name] = rng.random(n) if kind == "float" else 1
    return frame[list(RECORD_COLUMNS)]


def prompt_by_prompt(records: pd.DataFrame, prompts: int, rng: np.random.Generator) -> pd.DataFrame:
    """Wins of every checkpoint on the same prompts of its seed."""
    rows = records[["run", "arm", "seed", "step", "opponent", "win_rate", "proxy_win_rate", "kl_nats"]]
    rows = rows.loc[rows.index.repeat(prompts)].reset_index(drop=True)
    n = len(rows)
    frame = rows[["run", "arm", "seed", "step", "opponent"]].assign(
        prompt_id=np.tile([f"p{i}" for i in range(prompts)], n // prompts),
        win=(rng.random(n) < rows["win_rate"]).astype(float),
        proxy_win=(rng.random(n) < rows["proxy_win_rate"]).astype(float),
        oracle_win=np.nan,
        kl_nats=rows["kl_nats"] * rng.gamma(9, 1 / 9, n),
        length_tokens=rng.poisson(12, n) + 1,
        opponent_length_tokens=rng.poisson(11, n) + 1,
    )
    return frame[list(PER_PROMPT_COLUMNS)]


def generate(folder: Path, case: str, rows: int) -> str:
    """Write the tables of one case; returns their sizes in words."""
    rng = np.random.default_rng(0)
    one = sum(ARMS.values()) * SEEDS * (CHECKPOINTS + 1) * len(OPPONENTS)
    records = checkpoints(1 if case == "prompts" else -(-rows // one), rng)
    prompts = prompt_by_prompt(records if case == "prompts" else records.iloc[:0], max(rows // one, 1), rng)
    bon = pd.DataFrame(
        {"seed": s, "opponent": o, "n": m, "kl_nats": float(best_of_n_kl(m)), "prompts": 500}
        for s in range(SEEDS) for o in OPPONENTS for m in (1, 2, 4, 8, 16)
    ).assign(variant="", win_rate=0.25, win_rate_se=0.02, proxy_win_rate=0.3, proxy_win_rate_se=0.02)  # fmt: skip
    write_table(folder / RECORDS, records, RECORD_COLUMNS)
    write_table(folder / PER_PROMPT, prompts, PER_PROMPT_COLUMNS)
    write_table(folder / SAMPLES, [], SAMPLE_COLUMNS)
    write_table(folder / BEST_OF_N, bon, BEST_OF_N_COLUMNS)
    return f"{len(records):,} records, {len(prompts):,} per prompt"


def measure(folder: Path) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds and peak MB of a report in a process of its own; with one BLAS thread.

    Memory is watched in a run of its own: to read it, the kernel holds up the process whose memory it is.
    """
    wall, cpu = map(float, made(folder).communicate()[0].split())
    watched, peak = made(folder), 0.0
    while watched.poll() is None:
        peak = max(peak, memory_mb(watched.pid))
        time.sleep(0.1)
    return wall, cpu, peak


def made(folder: Path) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"} | {"OPENBLAS_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(folder)], env=environment, stdout=subprocess.PIPE, text=True
    )


def memory_mb(pid: int) -> float:
    """Memory of a process and its children now, pages that they share counted once (Linux; elsewhere nan)."""
    if sys.platform != "linux":
        return float("nan")
    total = 0
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for one in (str(pid), *children):
            lines = Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()
            total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    except OSError:  # it has just ended
        return 0.0
    return total / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", nargs="?", choices=["records", "prompts", "both"], default="both")
    parser.add_argument("rows", nargs="?", type=int, default=1_000_000)
    parser.add_argument("--keep", type=Path, help="write the tables and the report here instead")
    args = parser.parse_args()
    print("| case | rows | wall s | CPU s | peak MB |\n| --- | --- | --- | --- | --- |")
    for case in ("prompts", "records") if args.case == "both" else (args.case,):
        with tempfile.TemporaryDirectory() as temporary:
            folder = (args.keep or Path(temporary)) / case
            folder.mkdir(parents=True, exist_ok=True)
            sizes = generate(folder, case, args.rows)
            wall, cpu, peak = measure(folder)
            print(f"| {case} | {sizes} | {wall:.1f} | {cpu:.1f} | {peak:.0f} |", flush=True)


if __name__ == "__main__":
    main()
