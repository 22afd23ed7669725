"""The probe's two pure parts: which pairs lie near a checkpoint, and how often two labellings agree."""

from __future__ import annotations

from dataclasses import replace

from conftest import pair, prompt

from aligngap.steps import STEPS
from aligngap.steps.probe import Probe, agreement, near

P = prompt((5, 6))


def test_near_a_checkpoint() -> None:
    pairs = [pair(P, (i + 2, 1), (1,)) for i in range(10)]
    first = [[p.chosen.ids[0] - 2 for p in near(pairs, start, 4)] for start in (0, 3, 8, 10)]
    assert first == [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9], [6, 7, 8, 9]]
    assert len(near(pairs, 0, 40)) == 10


def test_agreement_by_hand() -> None:
    a = pair(P, (7, 1), (8, 1))
    turned, tie = replace(a, chosen=a.rejected, rejected=a.chosen), replace(a, p_chosen=0.5)
    assert agreement([a, turned, tie, a], [a, a, a, tie]) == (1 + 0 + 0.5) / 3  # a tie of the truth says nothing
    assert agreement([], []) == 0


def test_workers_know_the_step() -> None:
    assert STEPS["probe"] is Probe
