"""Stores and records of every format that was ever released are read by this version; `format-1` is today's.

Each folder holds a tiny study's output and one artifact of each kind, as the command of its time left them. The numbers
come from the artifacts themselves: the stored log-probabilities and labels are what the stored models say today.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from aligngap.judges.preference_model import PreferenceModel
from aligngap.models.pair_logps import with_reference
from aligngap.models.policy import Policy
from aligngap.storage.pairs import read_pairs, read_rows
from aligngap.storage.records import read_folder
from aligngap.storage.store import Store
from aligngap.study.load import load

FORMATS = sorted(p for p in Path(__file__).parent.glob("format-*"))


@pytest.mark.parametrize("place", FORMATS, ids=lambda p: p.name)
def test_an_old_store_is_read(place: Path) -> None:
    store = Store(place / "store")
    found = {p.name.partition("-")[0]: p for p in (place / "store").iterdir()}
    assert set(found) == {"data", "sft", "judge", "relabel", "align", "measure"}
    assert all(store.manifest(p.name)["kind"] == kind for kind, p in found.items())

    policy = Policy.load(found["sft"] / "policy", response_tokens=6)
    judge = PreferenceModel.load(found["judge"] / "model")
    pairs = read_pairs(found["relabel"] / "train.parquet")[:16]
    again = with_reference(policy, [replace(p, ref_chosen=None, ref_rejected=None) for p in pairs])
    for old, new in zip(pairs, again, strict=True):
        assert (new.ref_chosen, new.ref_rejected) == pytest.approx((old.ref_chosen, old.ref_rejected), abs=1e-4)
    judged = judge.judge([p.prompt for p in pairs], [p.chosen for p in pairs], [p.rejected for p in pairs])
    assert judged.forward == pytest.approx([p.judged_forward for p in pairs], abs=1e-5)

    last = Policy.load(found["align"] / "checkpoints" / "step-000008", response_tokens=6)
    assert last.model.num_parameters() == policy.model.num_parameters()
    assert len(read_pairs(found["align"] / "recording.parquet")) == 64
    assert [r["step"] for r in read_rows(found["align"] / "log.parquet")] == list(range(1, 9))
    assert len(read_rows(found["data"] / "data.parquet")) > 0
    assert {r["step"] for r in read_rows(found["measure"] / "rows.parquet")} <= {0, 4, 8}


@pytest.mark.parametrize("place", FORMATS, ids=lambda p: p.name)
def test_an_old_output_folder_is_read(place: Path) -> None:
    tables = read_folder(place / "output")
    assert set(tables.records["step"]) == {0, 4, 8}
    assert set(tables.records["outcome"]) == {"ok"}
    assert len(tables.per_prompt)
    assert len(tables.samples)
    assert len(tables.best_of_n)
    assert load(str(place / "output" / "study.yaml")).name == "tiny"
