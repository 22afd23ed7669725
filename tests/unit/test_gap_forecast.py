"""The forecast of online's lead: what is run, what is read off its records, and how its calibration is judged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from aligngap.hypotheses.base import Dial
from aligngap.hypotheses.forecast import FORECAST, Cell, cells, fit, forecast, scatter
from aligngap.hypotheses.view import View
from aligngap.pipeline.plan import expand
from aligngap.report.forecast import write_forecast
from aligngap.storage.columns import PER_PROMPT_COLUMNS, RECORD_COLUMNS
from aligngap.storage.records import empty, write_table
from aligngap.study.forecast import TWIN, forecast_study
from aligngap.study.load import load
from aligngap.types import AligngapError

CONFIGS = ("beta=0.02 learning_rate=0.001", "beta=0.1 learning_rate=0.001")


def records(
    gains: dict[str, float], slopes: dict[str, float], seeds: range = range(2), top: float = 4.5
) -> pd.DataFrame:
    """Rows of arms whose win rate is one half plus `gain` times ln(1 + KL), and whose slope of the law is constant."""
    rows = []
    for arm, gain in gains.items():
        for seed in seeds:
            for config in CONFIGS:
                for step, kl in enumerate((0.0, 0.2, 0.6, 1.3, 2.5, 4.5)):
                    row: dict[str, object] = {
                        n: {"str": "", "int": 0}.get(k, np.nan) for n, (k, _) in RECORD_COLUMNS.items()
                    }
                    win = 0.5 + gain * float(np.log1p(kl)) * (1 + 0.1 * seed)
                    row |= {
                        "study": "s", "arm": arm, "run": f"{arm} {config} seed={seed}", "config": config, "seed": seed,
                        "step": step, "opponent": "sft", "kl_nats": kl, "win_rate": win, "win_rate_se": 0.02,
                        "oracle_win_rate": 0.5 + 0.5 * (win - 0.5), "oracle_win_rate_se": 0.02, "outcome": "ok",
                    }  # fmt: skip
                    if kl:
                        row |= {
                            "slope": slopes[arm],
                            "slope_se": 0.01,
                            "oracle_slope": slopes[arm] / 2,
                            "oracle_slope_se": 0.01,
                        }
                    rows.append(row)
    return pd.DataFrame(rows)


def view_of(table: pd.DataFrame) -> View:
    return View(table, empty(PER_PROMPT_COLUMNS), "sft", TWIN, "offline")


def test_the_law_and_the_twin_are_differences_at_equal_kl() -> None:
    view = view_of(records({TWIN: 0.12, "offline": 0.08}, {TWIN: 0.2, "offline": 0.15}))
    found = {(f.kl, f.evaluator): f for f in forecast(view, (1.0, 2.0, 8.0), TWIN, "offline")}
    assert {e for _, e in found} == {"golden judge", "true preference"}
    one = found[1.0, "golden judge"]
    assert one.law.value == pytest.approx(np.sqrt(2.0) * 0.05)
    assert one.slope_at == 1.0
    assert one.law_interval[0] < one.law.value < one.law_interval[1]
    assert found[1.0, "true preference"].law.value == pytest.approx(one.law.value / 2)
    two = found[2.0, "golden judge"]
    assert two.law.value == pytest.approx(2.0 * 0.05)
    assert two.twin.value == pytest.approx(0.04 * np.log(3.0) * 1.05, abs=0.01)  # linear in ln KL between checkpoints
    far = found[8.0, "golden judge"]  # nobody got there: the slopes are those at 4 nats, and the twin says nothing
    assert far.slope_at == 4.0
    assert far.law.value == pytest.approx(4.0 * 0.05)
    assert np.isnan(far.twin.value)


def test_one_seed_has_an_interval_of_its_prompts() -> None:
    view = view_of(records({TWIN: 0.12, "offline": 0.08}, {TWIN: 0.2, "offline": 0.15}, range(1)))
    (one, *_) = forecast(view, (1.0,), TWIN, "offline")
    half = (one.law_interval[1] - one.law_interval[0]) / 2
    assert half == pytest.approx(1.96 * one.law.se, rel=1e-3)
    assert one.law.se > 0.01  # two arms' errors of .01, times sqrt 2, over two configurations


def test_what_the_command_says_and_writes(tmp_path: Path) -> None:
    write_table(
        tmp_path / "records.parquet",
        records({TWIN: 0.12, "offline": 0.08}, {TWIN: 0.2, "offline": 0.15}, range(1)),
        RECORD_COLUMNS,
    )
    (tmp_path / "study.yaml").write_text("name: x\ncompare: [twin, offline]\nbudgets: [1.0, 8.0]\n")
    text = write_forecast(tmp_path)
    assert "at 1 nat by the golden judge: law +0.071" in text
    assert "at 8 nats by the golden judge: law +0.200" in text
    assert "(slopes read at 4 nats), twin: – (a run ended below" in text
    assert "one seed" in text
    table = pd.read_csv(tmp_path / "forecast.csv")
    assert list(table["kl_nats"]) == [1.0, 8.0, 1.0, 8.0]
    assert table["law"].iloc[0] == pytest.approx(np.sqrt(2.0) * 0.05, abs=1e-5)


def test_runs_that_ended_early_are_told(tmp_path: Path) -> None:
    gains, slopes = {TWIN: 0.1, "offline": 0.05}, {TWIN: 0.1, "offline": 0.05}
    table = records(gains, slopes)
    (tmp_path / "study.yaml").write_text(f"name: s\ncompare: [{TWIN}, offline]\nbudgets: [1.0, 2.0]\n")
    write_table(tmp_path / "per_prompt.parquet", empty(PER_PROMPT_COLUMNS), PER_PROMPT_COLUMNS)
    write_table(tmp_path / "records.parquet", table[(table["seed"] == 0) | (table["kl_nats"] < 2)], RECORD_COLUMNS)
    said = write_forecast(tmp_path)
    assert "of the 2 seeds not all reach every budget: 1 at 2 nats; --steps makes the runs longer" in said
    write_table(tmp_path / "records.parquet", table[table["kl_nats"] < 0.1], RECORD_COLUMNS)
    assert "no KL budget was reached: the runs ended at 0 nats; --steps makes them longer" in write_forecast(tmp_path)


def test_what_is_run_is_the_study_without_its_online_arm() -> None:
    study = load("opening", ["recipe.optimization.steps=80"])
    made = forecast_study(study)
    assert made.compare == (TWIN, "offline")
    assert set(made.arms) == {TWIN, "offline"}
    assert made.recipe.optimization.steps == 20
    assert made.arms[TWIN].sync_every == 20  # every pair is written before the first step
    assert made.arms[TWIN].model_copy(update={"sync_every": 1}) == study.arms["online"]
    assert made.arms["offline"] == study.arms["offline"]
    assert made.sweep[0].axes == study.sweep[0].axes
    assert sorted(made.sweep[0].arms) == ["offline", TWIN]
    runs = expand(made).runs
    assert {(r.arm, r.beta, r.learning_rate) for r in runs} == {
        (a, b, lr) for a in (TWIN, "offline") for b in (0.01, 0.05) for lr in (1e-4, 3e-4)
    }
    whole = {r.align.sft.name for r in expand(study).runs} | {r.measure.golden.name for r in expand(study).runs}
    assert {r.align.sft.name for r in runs} | {
        r.measure.golden.name for r in runs
    } == whole  # which the study finds again
    assert forecast_study(study, steps=80).recipe.optimization.steps == 80


@pytest.mark.parametrize(
    ("sets", "steps", "said"),
    [
        (["compare=[offline, online]"], None, "does not learn from what its policy writes"),
        (["compare=[online, online-golden]"], None, "must learn from the data"),
        (["recipe.start=online@last", "recipe.optimization.steps=250"], None, "must be sft"),
        ([], 10**6, "must lie between 1 and the study's own 500"),
    ],
)
def test_what_cannot_be_forecast_is_refused(sets: list[str], steps: int | None, said: str) -> None:
    with pytest.raises(AligngapError, match=said):
        forecast_study(load("opening", sets), steps)


def planted_cells(slope: float) -> pd.DataFrame:
    """Records in which the measured gap at 1 nat is `slope` times what the law says, over four judges' arms."""
    gains, slopes = {"offline": 0.1, "offline-sft": 0.05}, {"offline": 0.15, "offline-sft": 0.1}
    for number, name in enumerate(("", "-golden", "-oracle")):
        lead = 0.03 * (number + 1)
        slopes |= {f"twin{name}": 0.1 + lead, f"online{name}": 0.0}
        gains |= {f"twin{name}": 0.1, f"online{name}": 0.1 + slope * (lead - 0.05) * np.sqrt(2) / np.log(2)}
    gains["offline-sft"] = 0.1 - slope * 0.05 * np.sqrt(2) / np.log(2)
    return records(gains, slopes)


def test_calibration_over_cells_finds_the_planted_slope() -> None:
    view = view_of(planted_cells(0.8))
    found = cells(view, 1.0, "golden judge", "law")
    assert len(found) == 3 * 2 * 2  # judges, sources of offline data, betas
    said = fit(found)
    assert said is not None
    assert said.slope.value == pytest.approx(0.8, rel=0.15)
    assert said.right == said.said > 3
    assert said.cells == 12
    turned = fit([Cell(c.name, c.forecast, -c.measured) for c in found])
    assert turned is not None
    assert turned.right == 0
    assert turned.slope.value == pytest.approx(-said.slope.value)
    assert fit(found[:2]) is None
    dial = scatter(view, "golden judge", "law")
    assert isinstance(dial, Dial)
    assert dial.diagonal
    assert set(dial.series) == {"0.5 nats", "1 nat", "2 nats", "4 nats"}
    assert len(dial.series["1 nat"]) == 12
    law = next(v for v in FORECAST.judge(view) if v.name == "law at 1")
    assert law.outcome == "too few seeds"  # an estimate and no verdict
    assert law.effect.value == pytest.approx(said.slope.value)


def test_a_variant_without_an_offline_arm_is_held_against_the_studys_own() -> None:
    table = planted_cells(1.0)
    weak = table[table["arm"].isin(["online", "twin"])]
    weak = weak.assign(arm=weak["arm"] + "[weak]", run=weak["run"].str.replace(" ", "[weak] ", n=1))
    names = {c.name for c in cells(view_of(pd.concat([table, weak], ignore_index=True)), 1.0, "golden judge", "twin")}
    assert f"online[weak] − offline, {CONFIGS[0]}" in names
    assert f"online[weak] − offline-sft, {CONFIGS[1]}" in names
    assert len(names) == 16


def test_the_packaged_study_has_enough_cells() -> None:
    made = expand(load("forecast", []))
    arms = {r.arm for r in made.runs}
    offlines = [a for a in arms if a.startswith("offline")]
    count = 0
    for twin in (a for a in arms if a.startswith("twin")):
        variant = twin.partition("[")[1:]
        count += len([a for a in offlines if a.partition("[")[1:] == variant] or [a for a in offlines if "[" not in a])
    assert 2 * count >= 30  # two betas
    twin = next(r for r in made.runs if r.arm == "twin").align
    assert twin.source.arm.sync_every == twin.optimization.steps
