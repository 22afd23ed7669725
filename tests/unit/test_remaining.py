"""What a command says is left, against what was: whole commands played on a clock of their own.

A world has durations that nobody knows beforehand: a machine's own pace, kinds of steps that the cost model guesses
wrong by factors of their own, and a load that comes and goes. The command looks once a second, as the real one does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import Field

from aligngap.execute.agenda import Machine
from aligngap.execute.pace import Duration, Pace, read_durations, write_duration
from aligngap.execute.remaining import MINUTE, Remaining
from aligngap.pipeline.base import Step
from aligngap.storage.store import Store

WITHIN = 1.5
CORES = 2
MACHINE = Machine("here", CORES, 1)


class Fake(Step):
    kind: str = "fake"  # type: ignore[assignment]
    guess: float
    of: str
    parts: int = 200  # how often it says how far it is
    needs: list[Any] = Field(default_factory=list)

    def run(self, ctx: Any, job: Any) -> dict[str, Any]:
        raise AssertionError("played, not run")


def opening(seeds: int = 1, runs: int = 8) -> list[Fake]:
    """A study as the packaged ones are: a chain on one core first, then runs side by side, each measured."""
    steps: list[Fake] = []
    for seed in range(seeds):

        def add(kind: str, guess: float, *needs: Fake, parts: int = 200, name: object = "", seed: int = seed) -> Fake:
            steps.append(Fake(kind=kind, guess=guess, of=f"{seed} {name}", parts=parts, needs=list(needs)))
            return steps[-1]

        data = add("data", 5, parts=0)
        sft = add("sft", 40, data)
        golden = add("judge", 100, data, sft, name="golden")
        labels = add("relabel", 25, golden, sft, parts=0)
        proxy = add("judge", 60, labels, name="proxy")
        for number in range(runs):
            online = number % 2
            run = add("writes" if online else "reads", 60 if online else 20, proxy, name=number)
            add("measure", 18, run, parts=7, name=number)
    return steps


@dataclass
class World:
    """What nobody knows beforehand."""

    pace: float = 1.0  # of the machine
    kinds: float = 0.0  # the largest logarithm of a kind's own factor, up or down
    load: Callable[[float], float] = lambda now: 0.0  # other processes that wish to run
    seed: int = 0
    factors: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)

    def takes(self, step: Fake) -> float:
        if step.kind not in self.factors:
            self.factors[step.kind] = math.exp(self.kinds * self.rng.uniform(-1, 1))
        return step.guess * self.pace * self.factors[step.kind] * math.exp(0.1 * self.rng.normal())


def rank_of(steps: list[Fake]) -> dict[str, float]:
    rank = {s.name: s.guess for s in steps}
    for step in reversed(steps):
        for need in step.inputs.values():
            rank[need.name] = max(rank[need.name], need.guess + rank[step.name])  # type: ignore[attr-defined]
    return rank


def play(steps: list[Fake], world: World, pace: Pace, workers: int = 2) -> list[tuple[float, float]]:
    """(seconds since the start, seconds said to be left), a row a second, to the end of the command."""
    now, average, said = [0.0], [world.load(0.0)], list[tuple[float, float]]()
    guessed, rank = {s.name: s.guess for s in steps}, rank_of(steps)
    remaining = Remaining(
        steps, guessed, rank, pace, lambda: workers, MACHINE, now=lambda: now[0], load=lambda: average[0]
    )
    waiting = sorted(steps, key=lambda s: -rank[s.name])
    unmade, left, whole = {s.name for s in steps}, dict[str, float](), dict[str, float]()
    by_name = {s.name: s for s in steps}
    while waiting or left:
        for step in list(waiting):
            if len(left) < workers and not any(n.name in unmade for n in step.inputs.values()):
                waiting.remove(step)
                left[step.name] = whole[step.name] = world.takes(step)
                remaining.start(step)
        for name, seconds in left.items():
            step = by_name[name]
            if step.parts:
                remaining.see(step, math.floor(step.parts * (1 - seconds / whole[name])) / step.parts)
        said.append((now[0], remaining.seconds()))
        wishing = len(left) + world.load(now[0])
        now[0] += 1.0
        average[0] += (wishing - average[0]) * (1 - math.exp(-1 / MINUTE))
        for name in list(left):
            left[name] -= min(1.0, CORES / wishing)
            if left[name] <= 0:
                del left[name]
                unmade.discard(name)
                found = remaining.end(by_name[name], made=True)
                assert found is not None
    return said


def worst(said: list[tuple[float, float]], since: float = 60.0, until: float = 30.0) -> float:
    """The largest factor between what was said and what was left, from `since` on until `until` seconds are left."""
    end = said[-1][0] + 1.0
    rows = [(end - at, told) for at, told in said if at >= since and end - at >= until]
    assert len(rows) > 30
    return max(max(told / true, true / told) for true, told in rows)


def busy_from(start: float, processes: float) -> Callable[[float], float]:
    return lambda now: processes if now >= start else 0.0


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("pace", [0.4, 1.0, 3.0])
def test_a_fresh_store_is_right_from_the_first_minute_on(pace: float, seed: int) -> None:
    """Nothing is kept, the machine is of a pace of its own, and kinds are guessed wrong by up to a quarter."""
    said = play(opening(), World(pace, kinds=0.25, seed=seed), Pace())
    assert worst(said) < WITHIN


@pytest.mark.parametrize("seed", range(4))
def test_kept_durations_are_right_where_the_cost_model_is_not(seed: int) -> None:
    """Kinds guessed wrong by factors of up to 3; the durations of an earlier command are kept."""
    world = World(2.0, kinds=1.2, seed=seed)
    before = [Duration(s.kind, s.guess, world.takes(s)) for s in opening()]
    assert worst(play(opening(), world, Pace(before))) < WITHIN
    alone = World(2.0, kinds=1.2, seed=seed, factors=world.factors)
    assert worst(play(opening(), alone, Pace())) > worst(play(opening(), world, Pace(before)))


@pytest.mark.parametrize("load", [1.0, 2.0, 4.0])
def test_a_loaded_machine_slows_what_runs_side_by_side_more(load: float) -> None:
    """The chain before the runs has a core, or most of one; the runs share what is left."""
    world = World(1.0, kinds=0.2, load=busy_from(-1, load), seed=1)
    before = [Duration(s.kind, s.guess, world.takes(s)) for s in opening()]
    assert worst(play(opening(), world, Pace(before))) < WITHIN
    assert worst(play(opening(), World(1.0, kinds=0.2, load=busy_from(-1, load), seed=1), Pace())) < WITHIN


def test_a_load_that_comes_later_is_known_two_minutes_after() -> None:
    world = World(1.0, kinds=0.2, load=busy_from(300.0, 3.0), seed=2)
    before = [Duration(s.kind, s.guess, world.takes(s)) for s in opening(seeds=3)]
    said = play(opening(seeds=3), world, Pace(before))
    assert worst(said, since=420.0) < WITHIN


def test_workers_and_the_longest_chain_count() -> None:
    """One seed's chain cannot be shared: with 64 workers on as many cores as these, its length is what is left."""
    steps = opening(seeds=1, runs=2)
    guessed, rank = {s.name: s.guess for s in steps}, rank_of(steps)
    known = Pace([Duration(s.kind, s.guess, s.guess) for s in steps * 20])

    def left(workers: int, cores: float | None) -> float:
        clock = [0.0]
        return Remaining(
            steps, guessed, rank, known, lambda: workers, Machine("", cores, 1), now=lambda: clock[0], load=lambda: 0.0
        ).seconds()

    chain = 5 + 40 + 100 + 25 + 60 + 60 + 18
    total = sum(s.guess for s in steps)
    assert left(1, 1) == pytest.approx(total, rel=0.05)
    assert left(64, None) == pytest.approx(chain, rel=0.05)
    assert left(64, 64) == pytest.approx(chain, rel=0.05)
    assert chain < left(64, 1) <= total * 1.05


def test_a_step_gone_on_with_tells_its_pace_but_no_duration() -> None:
    """A step resumed at three quarters is not taken for one that is four times as fast."""
    step, clock = Fake(kind="sft", guess=100, of="alone"), [0.0]
    remaining = Remaining(
        [step], {step.name: 100.0}, {step.name: 1.0}, Pace(), lambda: 1, MACHINE, now=lambda: clock[0], load=lambda: 0.0
    )
    remaining.start(step)
    for second in range(10, 21):
        clock[0] = float(second)
        remaining.see(step, 0.75 + 0.005 * (second - 10))
    assert remaining.seconds() == pytest.approx(40.0, rel=0.15)
    clock[0] = 60.0
    assert remaining.end(step, made=True) is None
    assert remaining.seconds() == 0.0


def test_a_step_of_few_parts_that_began_here_tells_its_duration() -> None:
    step, clock = Fake(kind="sft", guess=10, of="alone"), [0.0]
    remaining = Remaining(
        [step], {step.name: 10.0}, {step.name: 1.0}, Pace(), lambda: 1, MACHINE, now=lambda: clock[0], load=lambda: 0.0
    )
    remaining.start(step)
    for second, fraction in ((9.0, 0.375), (11.0, 0.75), (12.0, 1.0)):
        clock[0] = second
        remaining.see(step, fraction)
    found = remaining.end(step, made=True)
    assert found is not None
    assert 5.0 < found.seconds < 12.0  # without the time that opened its worker


def test_what_cannot_be_made_is_not_waited_for() -> None:
    steps = opening(runs=2)
    guessed, clock = {s.name: s.guess for s in steps}, [0.0]
    remaining = Remaining(
        steps, guessed, rank_of(steps), Pace(), lambda: 2, MACHINE, now=lambda: clock[0], load=lambda: 0.0
    )
    remaining.start(steps[0])
    assert remaining.seconds() > 100
    for step in steps:
        assert remaining.end(step, made=False) is None
    assert remaining.seconds() == 0.0


def test_durations_are_kept_by_place_and_a_torn_line_is_passed_over(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.prepare()
    write_duration(store, "here", Duration("sft", 10.0, 21.0))
    write_duration(store, "elsewhere", Duration("sft", 10.0, 5.0))
    with (tmp_path / "partial" / "durations.jsonl").open("a") as out:
        out.write('{"place": "here", "kind": "sft", "gue\n')
    write_duration(store, "here", Duration("judge", 10.0, 19.0))
    assert read_durations(store, "here") == [Duration("sft", 10.0, 21.0), Duration("judge", 10.0, 19.0)]
    assert read_durations(Store(tmp_path / "nothing"), "here") == []


def test_what_many_steps_take_lies_between_its_bounds() -> None:
    """No schedule beats the longest chain or all work shared out, and one that never idles takes at most both."""
    steps = opening(seeds=6, runs=40)
    guessed, rank, clock = {s.name: s.guess for s in steps}, rank_of(steps), [0.0]
    known = Pace([Duration(s.kind, s.guess, s.guess) for s in steps])
    left = Remaining(
        steps, guessed, rank, known, lambda: 16, Machine("", None, 1), now=lambda: clock[0], load=lambda: 0.0
    ).seconds()
    longest, shared = max(rank.values()), sum(guessed.values()) / 16
    assert 0.95 * max(longest, shared) <= left <= 1.05 * (longest + shared)


@pytest.mark.parametrize(("runs", "times"), [(10, 6), (500, 1)])
def test_a_long_agenda_is_not_played_through_at_every_event(
    runs: int, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a thousand steps that would be most of what surrounds a tiny one; a short agenda is always as it stands."""
    played: list[int] = []
    through = Remaining._through
    monkeypatch.setattr(Remaining, "_through", lambda self, left: played.append(1) or through(self, left))
    steps = opening(runs=runs)
    guessed, clock = {s.name: s.guess for s in steps}, [0.0]
    left = Remaining(steps, guessed, rank_of(steps), Pace(), lambda: 1, MACHINE, now=lambda: clock[0], load=lambda: 0.0)
    for step in steps[:3]:
        left.start(step)
        left.seconds()
        clock[0] += 0.3
        left.end(step, made=True)
        left.seconds()
    assert len(played) == times
    clock[0] += 3.0
    left.seconds()
    assert len(played) == times + 1
