"""Side by side or one after the other: schedules by hand, and what must hold of every schedule."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aligngap.stats.wall_clock import System, schedule, steps_by
from aligngap.types import AligngapError


def test_one_after_the_other_by_hand() -> None:
    assert System("s", 2, 3).ends(4, lag=0) == [5, 10, 15, 20]


def test_side_by_side_by_hand() -> None:
    """Batches of 2 written from 0, 2 (ahead of the first step's end), then as steps end; the trainer never waits."""
    assert System("s", 2, 3).ends(4, lag=1) == [5, 8, 11, 14]
    assert System("s", 3, 2).ends(4, lag=1) == [5, 8, 11, 14]  # here it is the writer that never does
    assert System("s", 3, 2).ends(4, lag=5) == [5, 8, 11, 14]  # being further ahead is of no use when all is even


def test_slack_helps_where_writing_is_uneven() -> None:
    """Batches of 1, 5 and 1 and steps of 2: at lag 1 the second is begun at 1 and written at 6."""
    assert schedule([1, 5, 1], [2, 2, 2], lag=0) == [3, 10, 13]
    assert schedule([1, 5, 1], [2, 2, 2], lag=1) == [3, 8, 10]
    assert schedule([1, 1, 5], [2, 2, 2], lag=1) == [3, 5, 10]  # the third is begun when the first step has ended
    assert schedule([1, 1, 5], [2, 2, 2], lag=2) == [3, 5, 9]  # and here when the second is written


def test_one_batch_for_several_steps() -> None:
    assert System("s", 4, 1).ends(4, lag=0, every=2) == [5, 6, 11, 12]
    assert System("s", 4, 1).ends(4, lag=1, every=2) == [5, 6, 9, 10]


times = st.lists(st.integers(1, 9), min_size=1, max_size=12)


@given(times, times, st.integers(0, 4))
def test_more_slack_never_takes_longer_and_nothing_is_faster_than_its_parts(
    write: list[int], train: list[int], lag: int
) -> None:
    n = min(len(write), len(train))
    write, train = write[:n], train[:n]
    ends, later = (schedule(write, train, k) for k in (lag, lag + 1))
    assert all(b <= a for a, b in zip(ends, later, strict=True))
    assert ends[-1] >= max(write[0] + sum(train), sum(write) + train[-1])
    assert schedule(write, train, 0)[-1] == sum(write) + sum(train)


def test_steps_by_a_time() -> None:
    ends = System("s", 1, 1).ends(5, lag=0)
    assert [steps_by(ends, t) for t in (0, 1.9, 2, 7, 100)] == [0, 0, 1, 3, 5]


def test_what_is_refused() -> None:
    with pytest.raises(AligngapError, match="lag -1"):
        schedule([1], [1], -1)
    with pytest.raises(AligngapError, match="system s"):
        System("s", 1, 0)
