"""False verdicts where there is nothing to find: a small run of `benchmarks/null_studies.py`, whose figures stand in
docs/hypotheses.md."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import null_studies


@pytest.mark.parametrize("number", range(6))
def test_no_protocol_that_a_verdict_rests_on_finds_what_is_not_there(number: int) -> None:
    """150 studies: 2.5% a side is 3.75; more than 10 on one side would happen once in 400 times."""
    found = null_studies.protocols(prompts=64)[number].run(range(150))
    assert max(found.above, found.below) <= 10
    error = np.nanstd(np.array(found.values), axis=0, ddof=1) / np.sqrt(found.studies)
    assert (np.abs(found.bias) <= 0.003 + 3.5 * error).all()


def test_the_papers_protocol_is_biased_against_the_arm_with_one_configuration() -> None:
    """What stands beside the second view: one configuration loses to the best of four of the same kind."""
    found = null_studies.protocols(prompts=64)[8].run(range(60))
    assert found.bias[1] < -0.005


def test_offline_is_rarely_called_enough_at_a_true_gain_of_the_margin() -> None:
    """100 studies: 5% is 5; more than 12 would happen once in 700 times. At none online is called better in 2.5%."""
    enough, online = null_studies.wrong_decisions(5, range(100), prompts=64)
    assert enough <= 12
    assert online <= 9
