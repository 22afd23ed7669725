"""What an executor does next, without any process: needs first, urgent first, failures cost what needs them only."""

from __future__ import annotations

import subprocess
import sys
from typing import Any, Literal

from conftest import complaint
from pydantic import Field

from aligngap.execute.agenda import Agenda, Event
from aligngap.execute.local import importance
from aligngap.pipeline.base import Step
from aligngap.pipeline.plan import expand
from aligngap.study.load import load


class Fake(Step):
    kind: Literal["fake"] = "fake"
    label_: str
    needs: list[Any] = Field(default_factory=list)

    def run(self, ctx: Any) -> dict[str, Any]:
        raise AssertionError("an agenda orders steps and runs none")


def diamond() -> dict[str, Fake]:
    """a before b and c; d after both."""
    a = Fake(label_="a")
    b, c = (Fake(label_=x, needs=[a]) for x in "bc")
    return {"a": a, "b": b, "c": c, "d": Fake(label_="d", needs=[b, c])}


def agenda(steps: dict[str, Fake]) -> Agenda:
    rank = {s.name: float(n == "c") for n, s in steps.items()}
    return Agenda(list(steps.values()), rank)


def names(steps: Any) -> str:
    return "".join(s.label_ for s in steps)


def test_needs_come_first_and_the_urgent_before_the_rest() -> None:
    steps = diamond()
    todo = agenda(steps)
    assert names(todo.ready()) == "a"
    assert names(todo.ready()) == ""  # given out once
    todo.end(steps["a"], Event.MADE, "")
    assert names(todo.ready()) == "cb"
    todo.end(steps["c"], Event.FOUND, "")
    assert names(todo.ready()) == ""
    todo.end(steps["b"], Event.MADE, "")
    assert names(todo.ready()) == "d"
    assert not todo.waiting


def test_a_failure_costs_what_needs_it_and_nothing_else() -> None:
    steps = diamond()
    todo = agenda(steps)
    list(todo.ready())
    todo.end(steps["a"], Event.MADE, "")
    list(todo.ready())
    todo.end(steps["c"], Event.FAILED, "no memory")
    lost = list(todo.lost())
    assert [(s.label_, why) for s, why in lost] == [("d", f"needs {steps['c'].name}, which failed")]
    assert list(todo.lost()) == []
    todo.end(steps["b"], Event.MADE, "")
    assert names(todo.ready()) == ""
    assert not todo.waiting


def test_what_is_already_made_is_no_part_of_the_agenda() -> None:
    steps = diamond()
    del steps["a"]
    assert sorted(names(agenda(steps).ready())) == ["b", "c"]


def test_a_point_of_every_arm_comes_before_the_rest() -> None:
    """The first run of each arm, its measurement and the SFT policy's, and what they need, outrank all other steps."""
    plan = expand(load("opening", ["seeds=2"]))
    first = {run.arm: run.measure for run in reversed(plan.runs)}
    shown = [*first.values(), plan.start[plan.runs[0].name]]
    early = {s.name for wanted in shown for s in wanted.walk()}
    rank = importance(plan.steps())
    assert len(first) == 4
    assert 0 < len(early) < len(rank) / 2
    assert min(rank[name] for name in early) > max(rank[name] for name in rank.keys() - early)


def test_points_of_the_compared_arms_come_first() -> None:
    """What the first comparison needs outranks all else, though the compared arms are not the first of the study."""
    plan = expand(load("opening", ["compare=[online-golden, offline]"]))
    first = {run.arm: run.measure for run in reversed(plan.runs)}
    assert list(reversed(first)) == ["online", "offline", "offline-proxy", "online-golden"]
    shown = [plan.start[plan.runs[0].name], *(first[arm] for arm in plan.study.compare)]
    compared = {s.name for wanted in shown for s in wanted.walk()}
    rank = importance(plan.steps())
    others = rank.keys() - compared
    assert first["online"].name in others
    assert min(rank[name] for name in compared) > max(rank[name] for name in others)

    run = first["online"].run_
    assert run is not None
    assert rank[first["offline"].name] > rank[run.name]


def test_ray_that_is_not_installed_is_one_line() -> None:
    """With `ray` made unimportable, in a fresh interpreter."""
    code = (
        "import sys; sys.modules['ray'] = None\n"
        "from aligngap.cli import main\n"
        "sys.exit(main(['run', 'opening', '--executor', 'ray', '--out', sys.argv[1]]))"
    )
    done = subprocess.run([sys.executable, "-c", code, "unused"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert complaint(done.stderr) == "aligngap: --executor ray: Ray is not installed; pip install 'aligngap[ray]'"
