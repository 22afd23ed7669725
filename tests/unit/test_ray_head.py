"""A command on a Ray cluster whose head has gone: it waits a while, and ends in a line. No Ray is needed here."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from aligngap.execute.ray import AWAY_SECONDS, Ray, answers
from aligngap.types import RunFailed


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def cluster_at(address: str, silent_seconds: float) -> tuple[Ray, list[str]]:
    """A cluster whose head was last heard of so long ago, and the tasks that were cancelled on it."""
    cluster, cancelled = Ray.__new__(Ray), list[str]()
    cluster.ray = SimpleNamespace(
        wait=lambda tasks, timeout: ([], tasks),
        cancel=lambda task, force: cancelled.append(task),
        cluster_resources=lambda: {"CPU": 4.0},
    )
    cluster.head, cluster.answered, cluster.watched = address, time.monotonic() - silent_seconds, True
    cluster.have, cluster.workers, cluster.threads, cluster.gpus = {"CPU": 2.0}, None, 1, 0.0
    return cluster, cancelled


def test_a_head_that_answers_is_asked(listener: socket.socket) -> None:
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    assert answers(address)
    cluster, cancelled = cluster_at(address, silent_seconds=AWAY_SECONDS + 1)
    assert cluster.wait(["a"], 0.0) == []
    assert not cluster.gone()
    assert cluster.slots() == 4
    cluster.cancel(["a", "b"])
    assert cancelled == ["a", "b"]


def test_a_head_that_does_not_answer_is_waited_for_and_then_given_up(listener: socket.socket) -> None:
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    listener.close()
    assert not answers(address)
    cluster, _ = cluster_at(address, silent_seconds=0)
    assert cluster.wait(["a"], 0.0) == []
    assert cluster.slots() == 2  # as it was last known: Ray itself would wait
    cluster, cancelled = cluster_at(address, silent_seconds=AWAY_SECONDS + 1)
    with pytest.raises(RunFailed, match=f"{address} does not answer; start it again, and the same command goes on"):
        cluster.wait(["a"], 0.0)
    cluster.cancel(["a"])
    assert cancelled == []


def test_a_head_that_could_never_be_asked_is_not_given_up() -> None:
    assert not answers("nowhere")
    cluster, _ = cluster_at("nowhere", silent_seconds=AWAY_SECONDS + 1)
    cluster.watched = False
    assert cluster.wait(["a"], 0.0) == []
    assert not cluster.gone()
