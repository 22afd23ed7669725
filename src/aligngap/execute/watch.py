"""Run a plan to its end and show it: one bar with the time left and a line per running step; plain lines without a tty.

Leaves out tables for the terminal (`console.py`).
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from aligngap.execute.agenda import Event, Executor, Machine
from aligngap.execute.local import Outcome, importance
from aligngap.execute.pace import Pace, read_durations, write_duration
from aligngap.execute.remaining import Remaining

if TYPE_CHECKING:
    from aligngap.pipeline.base import Step
    from aligngap.pipeline.plan import Plan
    from aligngap.storage.store import Store

REPORT_SECONDS = 10.0  #: from the last step to the report, on the machine that the cost model was calibrated on


def clock(seconds: float) -> str:
    """Seconds as minutes and seconds, with hours where there are any."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


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


def left_of(todo: Sequence[Step], store: Store, slots: Callable[[], int], machine: Machine) -> Remaining:
    """What is left of a command that has these steps to do, as the durations kept in the store let it be foreseen."""
    known, rank = Pace(read_durations(store, machine.place)), importance(todo)
    return Remaining(todo, guess(todo, store), rank, known, slots, machine, after=REPORT_SECONDS if todo else 0.0)


def guess(steps: Sequence[Step], store: Store) -> dict[str, float]:
    """The cost model's seconds of each step, by its name; data that are made already say how many pairs they hold."""
    from aligngap.pipeline.duration import data_of, seconds_of

    data = {data.name for step in steps if (data := data_of(step)) is not None}
    counted = {n: float(sum(store.manifest(n)["result"]["rows"].values())) for n in data if store.has(n)}
    return {step.name: seconds_of(step, counted) for step in steps}


def watch(local: Executor, plan: Plan, on_made: Callable[[str], bool] = lambda name: False) -> Outcome:
    """Run a plan to its end and show it; returns what was made, found and failed.

    `on_made` is called with the name of each step when it is there, and says whether a page is made with it.
    """
    steps = plan.steps()
    names = labels(plan)
    todo = [s for s in steps if not local.store.has(s.name)]
    outcome = Outcome()
    remaining = left_of(todo, local.store, local.slots, local.machine)
    told = False
    console = Console(stderr=True)
    live = console.is_terminal
    running: dict[str, tuple[Step, Any]] = {}
    last_line = time.monotonic()
    title, state = TextColumn("{task.description}"), TextColumn("{task.fields[note]}")
    columns = (title, BarColumn(bar_width=24), state, TimeElapsedColumn())
    with interruptible() as stopped, Progress(*columns, console=console, disable=not live) as bar:
        whole = bar.add_task(f"{plan.study.name}", total=max(1, len(todo)), note="")
        for event, step, message in local.run(steps, stopped):
            if event == Event.FOUND:
                outcome.found.append(step.name)
                remaining.end(step, made=False)
                if step.name in running:  # another command was quicker
                    bar.remove_task(running.pop(step.name)[1])
            elif event == Event.START:
                running[step.name] = (step, bar.add_task("  " + names[step.name], total=1.0, note=""))
                remaining.start(step)
            elif event == Event.LOST:
                outcome.lost += 1
                remaining.end(step, made=False)
            elif event in (Event.MADE, Event.FAILED, Event.BAD_INPUT):
                if step.name in running:
                    bar.remove_task(running.pop(step.name)[1])
                if (took := remaining.end(step, made=event == Event.MADE)) is not None:
                    write_duration(local.store, local.machine.place, took)
                if event == Event.MADE:
                    outcome.made.append(step.name)
                    if step.kind == "data":
                        remaining.guessed |= guess(todo, local.store)
                    if on_made(step.name) and not told:
                        told = True
                        bar.console.print("first points: they are in the page, which grows while the study goes on")
                else:
                    outcome.failed[names[step.name]] = message
                    outcome.bad_input |= event == Event.BAD_INPUT
                if not live and event != Event.BAD_INPUT:  # which is said once, at the end, with its remedy
                    left = clock(remaining.seconds())
                    say(f"[{len(outcome.made)}/{len(todo)}] {event}: {names[step.name]} (left: about {left})")
            for active, task in running.values():
                fraction, note = local.position(active)
                if note:  # until it says anything it loads what it draws on
                    remaining.see(active, fraction)
                bar.update(task, completed=fraction, note=note)
            done = len(outcome.made) + len(outcome.failed) + outcome.lost
            bar.update(
                whole, completed=done, note=f"{done}/{len(todo)} steps, left: about {clock(remaining.seconds())}"
            )
            if not live and time.monotonic() - last_line > 30:
                last_line = time.monotonic()
                now = "; ".join(f"{names[n]} {local.position(s)[0]:.0%}" for n, (s, _) in running.items())
                say(f"… {now} (left: about {clock(remaining.seconds())})")
    return outcome


def follow(executor: Executor, plan: Plan) -> None:
    """Run a plan to its end in silence: one of several processes, another of which tells."""
    with interruptible() as stopped:
        for _ in executor.run(plan.steps(), stopped):
            pass


def say(line: str) -> None:
    """Print a line on stderr at once."""
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
        if run.crossed is not None:
            found[run.crossed.name] = f"cross-judge {run.name}"
    return found
