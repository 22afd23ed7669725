"""Within reach and beyond in the report: the table and the figure say what was planted, or what is missing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
from synthetic_records import ArmTruth, best_of_n_rows, make

from aligngap.report.analysis import SCORES
from aligngap.report.reach import at_kl, reach_chart, reach_tables
from aligngap.storage.columns import BEST_OF_N_COLUMNS, EVALUATORS, REACH
from aligngap.storage.records import empty


def planted(oracle: bool = True, ceiling_to: float = 2.0) -> Any:
    """Records in which the gain beyond c is .01 c + .02 a nat, and online's .05 less by the truth."""
    arms = {"online": ArmTruth(kl_range=(0.4, 6.0)), "offline": ArmTruth(kl_range=(0.4, 6.0))}
    records, _, _ = make(arms, seeds=(0, 1), prompts=8, checkpoints=6, opponents=("golden_policy", "sft"))
    kl, on = records["kl_nats"].to_numpy(np.float64), (records["arm"] == "online").to_numpy()
    for who in EVALUATORS if oracle else EVALUATORS[:1]:
        for c in REACH:
            records[f"share_beyond_{c}"] = np.minimum(kl / 10, 1)
            records[f"{who}within_{c}"] = 0.1 + 0.01 * kl
            records[f"{who}beyond_{c}"] = 0.01 * c + 0.02 * kl - (0.05 * on if who else 0.0)
            records[f"{who}mean_beyond_{c}"] = 0.4
        records[f"{who}rho"] = np.where(kl < 6, 0.6, np.nan)
        records[f"{who}ceiling"] = np.where(kl <= ceiling_to, 0.3, np.nan)
        records[f"{who}efficiency"] = np.where(kl <= ceiling_to, 0.5 + 0.1 * on, np.nan)
    records["oracle_win_rate"] = records["win_rate"] if oracle else np.nan
    reach = [f"{who}within_{c}" for who in EVALUATORS for c in REACH]
    records.loc[records["opponent"] != "sft", [c for c in reach if c in records]] = np.nan
    return SimpleNamespace(
        records=records, arms=("online", "offline"), opponents=("golden_policy", "sft"), pairs=(("online", "offline"),),
        best_of_n=best_of_n_rows(seeds=(0, 1)), view=SimpleNamespace(budgets=(1.0, 2.0, 4.0, 8.0)),
        given=False, judges=SCORES,
    )  # fmt: skip


def test_the_table_says_both_parts_by_judge_and_by_truth() -> None:
    (table,) = reach_tables(planted())
    assert [row[:2] for row in table.rows] == [
        (kl, what) for kl in ("1", "2", "4") for what in ("online", "offline", "difference")
    ]  # nobody reached 8 nats
    cells = {(row[0], row[1]): dict(zip(table.header, row, strict=True)) for row in table.rows}
    at_four = cells["4", "online"]
    assert at_four["share beyond 4 nats"] == "0.400 ± 0.000"
    assert at_four["within, judge"] == "0.140 ± 0.000"
    assert at_four["beyond, judge"] == "0.120 ± 0.000"
    assert cells["4", "difference"]["beyond, judge"].startswith("0.000")
    assert cells["4", "difference"]["beyond, truth"].startswith("−0.050")
    assert at_four["efficiency, judge"] == "–"  # the ceiling had ended
    assert cells["1", "difference"]["efficiency, truth"].startswith("+0.100")
    assert any(note.startswith("The ceiling ends at") for note in table.notes)


def test_a_lone_arm_is_shown_without_a_difference() -> None:
    lone = planted()
    lone.pairs = (("online", "online"),)
    (table,) = reach_tables(lone)
    assert [row[:2] for row in table.rows] == [(kl, "online") for kl in ("1", "2", "4")]


def test_the_figure_has_a_row_of_panels_for_each_evaluator() -> None:
    for oracle, rows in ((True, 2), (False, 1)):
        chart = reach_chart(planted(oracle))
        assert chart is not None
        panels, numbers = chart.panels, chart.numbers
        assert len(panels) == 4 * rows
        assert {"online", "offline", "ceiling", "best-of-n"} == {s.name for s in panels[2].series}
        assert ("oracle_within_2" in numbers) == oracle
        assert set(numbers["what"]) == {"checkpoint", "best-of-n"}
        share = panels[3].series[-1]  # best-of-n's efficiency, where there is a ceiling
        bon = numbers[(numbers["what"] == "best-of-n") & (numbers["kl_nats"] > 0.5)].iloc[0]
        assert np.allclose((share.x[0], share.y[0]), (bon["kl_nats"], (bon["win_rate"] - 0.5) / 0.3))


def test_what_is_missing_is_said() -> None:
    old = planted()
    old.records = old.records.drop(columns=[c for c in old.records if "within" in c]).assign(within_2=np.nan)
    (table,) = reach_tables(old)
    assert not table.rows
    assert "made before" in table.notes[0]
    assert reach_chart(old) is None
    old.opponents = ("golden_policy",)
    assert reach_tables(old) == []
    bare = planted(ceiling_to=0.0)
    bare.records[["rho", "oracle_rho"]] = np.nan
    bare.best_of_n = empty(BEST_OF_N_COLUMNS)
    notes = " ".join(reach_tables(bare)[0].notes)
    assert "No ceiling and no efficiency" in notes
    assert "No rho" in notes
    assert reach_chart(bare) is not None


def test_values_at_a_kl_are_where_a_run_first_has_it() -> None:
    rows = pd.DataFrame({
        "seed": 0, "run": "a", "step": [1, 2, 3, 4], "kl_nats": [0.5, 1.5, 3.0, 1.0], "x": [1.0, 2.0, 9.0, 50.0],
        "x_se": [0.1, 0.2, 0.3, 0.4],
    })  # fmt: skip
    found = at_kl(rows, ["x"], 0.8)
    assert found["x"].iloc[0] == 1.3
    assert found["x_se"].iloc[0] == 0.1
    assert not len(at_kl(rows, ["x"], 0.4))  # before the first checkpoint
    assert not len(at_kl(rows, ["x"], 3.5))
