"""A study on a Ray cluster whose workers and whose head are killed: see `many.py`, of which this is a small run."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("ray")
pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_killed_workers_and_a_killed_head_cost_nothing_that_was_finished(tmp_path: Path) -> None:
    from many import play

    told = play(tmp_path, runs=8, kills=2, heads=1, seed=3)
    assert dict(told.killed) == {"worker": 2, "head": 1}
    assert told.commands == 2
    assert len(told.seen) > 8
