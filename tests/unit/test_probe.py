"""The probe's pure parts, which pairs lie near a checkpoint and how often two labellings agree; and its table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from conftest import pair, prompt

from aligngap.pipeline.kinds import STEPS
from aligngap.pipeline.probe import Probe, agreement, near
from aligngap.storage.columns import PROBE_COLUMNS
from aligngap.storage.records import read_probe, write_table
from aligngap.types import AligngapError

P = prompt((5, 6))


def test_near_a_checkpoint() -> None:
    pairs = [pair(P, (i + 2, 1), (1,)) for i in range(10)]
    first = [[p.chosen.ids[0] - 2 for p in near(pairs, start, 4)] for start in (0, 3, 8, 10)]
    assert first == [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9], [6, 7, 8, 9]]
    assert len(near(pairs, 0, 40)) == 10


def test_agreement_by_hand() -> None:
    a = pair(P, (7, 1), (8, 1))
    turned, tie = replace(a, chosen=a.rejected, rejected=a.chosen), replace(a, p_chosen=0.5)
    found = agreement([a, turned, tie, a], [a, a, a, tie])  # a tie of the truth says nothing
    assert (found.value, found.n) == (0.5, 3)
    assert found.se == pytest.approx((0.5 / 2 / 3) ** 0.5)
    assert agreement([], []).n == 0


def test_the_table_has_its_declared_columns(tmp_path: Path) -> None:
    row = {"seed": 0, "recording": "online", "step": 8, "classifier": "proxy", "arm": "", "accuracy": 0.7}
    row |= {"accuracy_se": 0.01, "pairs": 1000, "ties": 24}
    write_table(tmp_path / "probe.parquet", [row], PROBE_COLUMNS)
    assert read_probe(tmp_path).to_dict("records") == [row]
    with pytest.raises(AligngapError, match=r"probe\.parquet: cannot write, rows lack the column\(s\) ties"):
        write_table(tmp_path / "probe.parquet", [{k: v for k, v in row.items() if k != "ties"}], PROBE_COLUMNS)


def test_workers_know_the_step() -> None:
    assert STEPS["probe"] is Probe
