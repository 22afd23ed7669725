"""What rules read of records that were read from a file, where each of over a hundred columns is a block of its own."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from aligngap.hypotheses.view import View
from aligngap.storage.records import read_folder

FOLDER = Path(__file__).resolve().parents[2] / "results" / "opening-sandbox"


def test_win_rates_come_with_their_checkpoints_and_without_a_warning() -> None:
    tables = read_folder(FOLDER)
    view = View(tables.records, tables.per_prompt, "sft")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = view.wins("offline", draws=10)
    assert set(found) == set(view.seeds)
    for rows, point, replicates in found.values():
        assert (len(rows), replicates.shape) == (len(point), (len(point), 10))
        assert (rows["arm"] == "offline").all()
        np.testing.assert_allclose(rows["win_rate"], point, atol=1e-6)
