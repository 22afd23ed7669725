"""Run a plan to its end and show it: one bar with the time left and a line per running step; plain lines without a tty.

Leaves out tables for the terminal (`console.py`).
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from aligngap.execute.agenda import Event, Executor
from aligngap.execute.local import Outcome

if TYPE_CHECKING:
    from aligngap.pipeline.base import Step
    from aligngap.pipeline.plan import Plan


def clock(seconds: float) -> str:
    """Seconds as minutes and seconds, with hours where there are any."""
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
    from aligngap.pipeline.forecast import seconds_of

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
            if event == Event.FOUND:
                outcome.found.append(step.name)
            elif event == Event.START:
                running[step.name] = (step, bar.add_task("  " + names[step.name], total=1.0, note=""))
            elif event == Event.LOST:
                outcome.lost += 1
                eta.done += cost[step.name]
            elif event in (Event.MADE, Event.FAILED, Event.BAD_INPUT):
                if step.name in running:
                    bar.remove_task(running.pop(step.name)[1])
                eta.done += cost[step.name]
                if event == Event.MADE:
                    outcome.made.append(step.name)
                else:
                    outcome.failed[names[step.name]] = message
                    outcome.bad_input |= event == Event.BAD_INPUT
                if not live and event != Event.BAD_INPUT:  # which is said once, at the end, with its remedy
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
    return found
