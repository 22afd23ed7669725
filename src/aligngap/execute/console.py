"""Tables for the terminal: a plan, a run's numbers, its failures, and the stages of a report."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from aligngap.execute.agenda import this_machine
from aligngap.execute.watch import clock, labels, left_of
from aligngap.storage.store import Store
from aligngap.types import Progress as ProgressRole
from aligngap.types import TaskData

if TYPE_CHECKING:
    import pandas as pd

    from aligngap.pipeline.plan import Plan
    from aligngap.storage.records import Tables


@contextmanager
def stages(name: str) -> Iterator[ProgressRole]:
    """Progress of a few stages: a bar with the time left on a terminal, nothing elsewhere."""
    console = Console(stderr=True)
    note = TextColumn("{task.fields[note]}")
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TimeRemainingColumn(), note)
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(name, total=None, note="")

        def progress(done: int, total: int, note: str = "") -> None:
            bar.update(task, completed=done, total=total, note=note)

        yield progress


def print_rows(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table on stdout, wide enough for a pipe."""
    table = Table(box=None, pad_edge=False)
    for name in header:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*row)
    out = Console(markup=False, highlight=False)
    if not out.is_terminal:
        out.width = 200  # a pipe or a file has no width of its own
    out.print(table)


def print_plan(plan: Plan, store: Store, out: Path) -> None:
    """Print each step of a plan with its artifact, and about how long what is missing takes on this machine."""
    from aligngap.pipeline.duration import unsized

    names, workers = labels(plan), os.cpu_count() or 1
    todo = [s for s in plan.steps() if not store.has(s.name)]
    remaining = left_of(todo, store, lambda: workers, this_machine("cpu", 1))
    takes = {s.name: remaining.takes(s) for s in todo}
    rows = [
        (names[s.name], s.name, f"about {clock(takes[s.name])}" if s.name in takes else "there") for s in plan.steps()
    ]
    print_rows(["step", "artifact", "compute"], rows)
    work = clock(sum(takes.values()))
    print(
        f"{len(plan.runs)} runs, {len(rows)} steps, {len(todo)} to make; about {work} of one core's time, "
        f"{clock(remaining.seconds())} with {workers} workers beside what else this machine does now "
        f"(guessed by `aligngap.pipeline.duration`, and by the durations kept in the store); results go to {out}"
    )
    if absent := unsized(todo):
        print(f"the sizes of {', '.join(absent)} are not known here: their steps take longer than the guess")


def print_data(read: Sequence[TaskData]) -> None:
    """Say a line about each task whose files were read: rows by layout, comparisons by split, what was left out."""
    for found in read:
        known = "; ".join(f"{count} laid out as {name}" for name, count in found.layouts.items())
        left_out = ", ".join(f"{reason} {count}" for reason, count in found.dropped.items()) or "nothing"
        kept = f"{len(found.train)} comparisons in train, {len(found.test)} in test"
        print(f"{found.source}: {found.rows} rows ({known}); {kept}; left out: {left_out}")


def print_records(records: pd.DataFrame) -> None:
    """Print each arm's best checkpoint against each opponent."""
    rows = []
    for (arm, opponent), group in records[records["step"] > 0].groupby(["arm", "opponent"], sort=False):
        place = int(np.nanargmax(group["win_rate"].to_numpy())) if group["win_rate"].notna().any() else 0
        best = group.iloc[place]
        kl_range = f"{group['kl_nats'].min():.2f}–{group['kl_nats'].max():.2f}"
        highest = f"{best['win_rate']:.3f} ± {best['win_rate_se']:.3f}"
        seeds, at = str(group["seed"].nunique()), f"{best['kl_nats']:.2f}"
        rows.append(
            (
                str(arm),
                str(opponent),
                seeds,
                kl_range,
                highest,
                at,
                str(best["config"]),
                str(best["seed"]),
                str(best["step"]),
            )
        )
    print_rows(
        ["arm", "opponent", "seeds", "KL (nats)", "highest win rate", "at KL", "configuration", "seed", "step"], rows
    )


def print_failures(failed: Mapping[str, str], tables: Tables | None) -> None:
    """Steps that failed, then runs whose outcome is not `ok`, a line each."""
    rows = list(failed.items())
    if tables is not None:
        bad = tables.records[tables.records["outcome"] != "ok"].drop_duplicates("run")
        rows += [(str(run), str(outcome)) for run, outcome in zip(bad["run"], bad["outcome"], strict=True)]
    if rows:
        print_rows(["step or run", "what happened"], rows)
    else:
        print("nothing failed, and every run ended well")
