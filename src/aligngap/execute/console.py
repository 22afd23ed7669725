"""What a person sees while a study runs: one bar with an ETA and a line per running step; plain lines without a tty."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from aligngap.execute.agenda import Executor
from aligngap.execute.local import Outcome
from aligngap.storage.store import Store
from aligngap.types import Progress as ProgressRole

if TYPE_CHECKING:
    import pandas as pd

    from aligngap.plan import Plan
    from aligngap.steps import Step
    from aligngap.storage.records import Tables


def clock(seconds: float) -> str:
    minutes, rest = divmod(max(0, round(seconds)), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


class Eta:
    """Time left, from the work done since the start against the work that remains (in forecast seconds)."""

    def __init__(self, total: float) -> None:
        self.total, self.done, self.started = total, 0.0, time.monotonic()

    def left(self, running: float) -> str:
        done = self.done + running
        spent = time.monotonic() - self.started
        if done <= 0.02 * self.total or spent < 5:
            return "?"
        return clock(spent * (self.total - done) / done)


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed, or SIGTERM came (a machine that is taken away): noted, not raised, so that no library
    can swallow it; a second one is raised."""
    pressed: list[int] = []

    def note(number: int, frame: object) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(pressed)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def watch(local: Executor, plan: Plan) -> Outcome:
    """Run a plan to its end and show it; returns what was made, found and failed."""
    from aligngap.forecast import seconds_of

    steps = plan.steps()
    names = labels(plan)
    cost = {s.name: seconds_of(s) for s in steps}
    todo = [s for s in steps if not local.store.has(s.name)]
    outcome = Outcome()
    eta = Eta(sum(cost[s.name] for s in todo))
    console = Console(stderr=True)
    live = console.is_terminal
    running: dict[str, tuple[Step, Any]] = {}
    last_line = time.monotonic()
    title, state = TextColumn("{task.description}"), TextColumn("{task.fields[note]}")
    columns = (title, BarColumn(bar_width=24), state, TimeElapsedColumn())
    with interruptible() as stopped, Progress(*columns, console=console, disable=not live) as bar:
        whole = bar.add_task(f"{plan.study.name}", total=max(1, len(todo)), note="")
        for event, step, message in local.run(steps, stopped):
            if event == "found":
                outcome.found.append(step.name)
            elif event == "start":
                running[step.name] = (step, bar.add_task("  " + names[step.name], total=1.0, note=""))
            elif event == "lost":
                outcome.lost += 1
                eta.done += cost[step.name]
            elif event in ("made", "failed", "bad input"):
                if step.name in running:
                    bar.remove_task(running.pop(step.name)[1])
                eta.done += cost[step.name]
                if event == "made":
                    outcome.made.append(step.name)
                else:
                    outcome.failed[names[step.name]] = message
                    outcome.bad_input |= event == "bad input"
                if not live and event != "bad input":  # which is said once, at the end, with its remedy
                    say(f"[{len(outcome.made)}/{len(todo)}] {event}: {names[step.name]} (left: {eta.left(0.0)})")
            part = 0.0
            for name, (active, task) in running.items():
                fraction, note = local.position(active)
                part += fraction * cost[name]
                bar.update(task, completed=fraction, note=note)
            done = len(outcome.made) + len(outcome.failed) + outcome.lost
            bar.update(whole, completed=done, note=f"{done}/{len(todo)} steps, left: {eta.left(part)}")
            if not live and time.monotonic() - last_line > 30:
                last_line = time.monotonic()
                now = "; ".join(f"{names[n]} {local.position(s)[0]:.0%}" for n, (s, _) in running.items())
                say(f"… {now} (left: {eta.left(part)})")
    return outcome


def follow(executor: Executor, plan: Plan) -> None:
    """Run a plan to its end in silence: one of several processes, another of which tells."""
    with interruptible() as stopped:
        for _ in executor.run(plan.steps(), stopped):
            pass


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


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def labels(plan: Plan) -> dict[str, str]:
    """A person's name for every step: the run's name where there is one."""
    found = {s.name: s.label for s in plan.steps()}
    for run in plan.runs:
        start = plan.start[run.name]
        variant = run.arm.partition("[")[2].rstrip("]")
        tail = f"{variant} seed={run.seed}".strip()
        made: list[tuple[Step, str]] = [
            (start, "measure sft"), (start.golden, "golden judge"), (start.proxy, "proxy judge"), (start.sft, "sft"),
            (start.data, "data"), (start.held_out, "D_golden"),
        ]  # fmt: skip
        for opponent, responses in start.opponents.items():
            made.append((responses, f"responses of {opponent}"))
            if responses.policy.kind == "align":
                made.append((responses.policy, "golden policy"))
        for step, what in made:
            if found[step.name] == step.label:
                found[step.name] = f"{what} {tail}"
    for run in plan.runs:
        found[run.align.name] = run.name
        found[run.measure.name] = f"measure {run.name}"
    return found


def print_rows(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
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
    from aligngap.forecast import seconds_of, unsized

    names = labels(plan)
    rows, left, todo = [], 0.0, 0
    for step in plan.steps():
        there = store.has(step.name)
        seconds = seconds_of(step)
        left += 0.0 if there else seconds
        todo += not there
        rows.append((names[step.name], step.name, "there" if there else f"about {clock(seconds)}"))
    print_rows(["step", "artifact", "compute"], rows)
    print(
        f"{len(plan.runs)} runs, {len(rows)} steps, {todo} to make; about {clock(left)} of one core's time "
        f"(a rough guess: `aligngap.forecast`); results go to {out}"
    )
    if absent := unsized(plan.steps()):
        print(f"the sizes of {', '.join(absent)} are not known here: their steps take longer than the guess")


def print_records(records: pd.DataFrame) -> None:
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
