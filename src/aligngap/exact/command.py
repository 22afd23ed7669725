"""`aligngap exact capacity` and `aligngap exact skewed`: predictions to a file, then the runs, then what came out."""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from aligngap.exact import capacity, skewed
from aligngap.exact.arguments import SPENT
from aligngap.exact.report import save_csv, write_capacity, write_skewed
from aligngap.storage.files import check_free, write_text
from aligngap.storage.provenance import commit
from aligngap.storage.records import Columns, write_table
from aligngap.types import AligngapError

In = TypeVar("In")
Out = TypeVar("Out")


def run(args: argparse.Namespace) -> int:
    """Run the study of one world into its folder; AligngapError for a setting that cannot work, before any compute."""
    if args.seeds < 1 or args.spent < 1 or args.workers < 1:
        raise AligngapError("--seeds, --spent and --workers must be positive")
    if args.first_seed < 0 or (args.first_seed < SPENT + args.spent and args.first_seed + args.seeds > SPENT):
        raise AligngapError(
            f"--first-seed {args.first_seed}: judged seeds must be 0 or more and none of the spent ones, "
            f"{SPENT} to {SPENT + args.spent - 1}"
        )
    check_free(args.out)
    args.out.mkdir(parents=True, exist_ok=True)
    seeds = list(range(args.first_seed, args.first_seed + args.seeds))
    return run_skewed(args, seeds) if args.world == "skewed" else run_capacity(args, seeds, grid_of(args))


def grid_of(args: argparse.Namespace) -> capacity.Grid:
    """The study's grid with the dials that the command names."""
    named: dict[str, Any] = {
        name: tuple(getattr(args, name)) for name in ("sees", "betas", "budgets") if getattr(args, name) is not None
    }
    if args.labels is not None:
        try:
            named["labels"] = tuple(float("inf") if text == "all" else float(int(text)) for text in args.labels)
        except ValueError as error:
            raise AligngapError(f"--labels {' '.join(args.labels)}: must be whole numbers or `all`") from error
    named |= {
        name: getattr(args, name) for name in ("steps", "prompts", "responses") if getattr(args, name) is not None
    }
    grid = replace(capacity.Grid(), **named)
    positive = (*grid.labels, *grid.betas, *grid.budgets, grid.steps, grid.prompts)
    if min(positive) <= 0 or grid.responses < 2 or not all(0 <= s <= 8 for s in grid.sees):
        raise AligngapError("exact: dials must be positive, responses above 1, and --sees between 0 and 8")
    if list(grid.betas) != sorted(set(grid.betas), reverse=True):
        raise AligngapError("--betas: give different values in falling order")
    return grid


def run_capacity(args: argparse.Namespace, seeds: Sequence[int], grid: capacity.Grid) -> int:
    """Choose betas on spent seeds; predict every judged seed and write it down; train; report."""
    columns, out = capacity.run_columns(grid.budgets), args.out
    spent_seeds = range(SPENT, SPENT + args.spent)
    spent = _frame(_each(partial(_spend, grid=grid), spent_seeds, args.workers, "spent seed"))
    choices = capacity.choose(spent, grid.budgets)
    write_table(out / "spent.parquet", spent, columns)
    save_csv(out / "choices.csv", choices)
    made = list(_each(partial(_foresee, grid=grid), seeds, args.workers, "prediction"))
    predictions = pd.DataFrame([row for _, rows in made for row in rows])
    about = write_predictions(out, predictions, columns, {"seeds": list(seeds), "grid": _plain(asdict(grid))})
    about["spent"] = f"{spent_seeds[0]} to {spent_seeds[-1]}"
    runs = _frame(_each(partial(_train, grid=grid), [case for case, _ in made], args.workers, "seed"))
    write_table(out / "runs.parquet", runs, columns)
    write_capacity(out, runs, predictions, choices, grid, about)
    print(out / "summary.md")
    return 0


def run_skewed(args: argparse.Namespace, seeds: Sequence[int]) -> int:
    """The same order of things for the skewed world, which has nothing to choose."""
    grid = skewed.SkewedGrid()
    every = skewed.cases(list(seeds), grid)
    predictions = pd.DataFrame([row for case in every for row in skewed.predict(case, grid)])
    about = write_predictions(args.out, predictions, skewed.SKEWED_COLUMNS, {"seeds": list(seeds)})
    runs = pd.DataFrame(skewed.train_all(every, grid))
    write_table(args.out / "runs.parquet", runs, skewed.SKEWED_COLUMNS)
    write_skewed(args.out, runs, predictions, grid, about)
    print(args.out / "summary.md")
    return 0


def write_predictions(out: Path, rows: pd.DataFrame, columns: Columns, what: dict[str, Any]) -> dict[str, Any]:
    """Write the predictions and, beside them, when that was, by which commit, and the file's hash."""
    file = write_table(out / "predictions.parquet", rows, columns)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    about = {"written": now, "sha256": digest, "commit": commit(), "rows": len(rows), **what}
    write_text(out / "predictions.json", json.dumps(about, indent=1) + "\n", durable=True)
    print(f"predictions: {file} (sha256 {digest[:16]}, {now})", flush=True)
    return about


def _spend(seed: int, grid: capacity.Grid) -> list[dict[str, Any]]:
    return capacity.train_all(capacity.prepare(seed, grid), grid)


def _foresee(seed: int, grid: capacity.Grid) -> tuple[capacity.Case, list[dict[str, Any]]]:
    case = capacity.prepare(seed, grid)
    return case, capacity.predict(case, grid)


def _train(case: capacity.Case, grid: capacity.Grid) -> list[dict[str, Any]]:
    return capacity.train_all(case, grid)


def _frame(parts: Iterable[list[dict[str, Any]]]) -> pd.DataFrame:
    return pd.DataFrame([row for part in parts for row in part])


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: list(map(str, v)) if isinstance(v, tuple) else v for name, v in settings.items()}


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _each(work: Callable[[In], Out], items: Sequence[In], workers: int, what: str) -> Iterator[Out]:
    """`work` on every item in order, in processes of one thread each; says on stdout how far it is."""
    if workers == 1 or len(items) == 1:
        for done, item in enumerate(items, 1):
            yield work(item)
            print(f"{what} {done} of {len(items)}", flush=True)
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(items)), mp_context=spawn, initializer=_one_thread) as pool:
        for done, result in enumerate(pool.map(work, items), 1):
            yield result
            print(f"{what} {done} of {len(items)}", flush=True)
