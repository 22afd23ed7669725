"""Beside equal KL: other axes, equal length, best-of-n, and how large a study would have to be."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import TINY_STUDY
from synthetic_records import ArmTruth, best_of_n_rows, make, planted_clouds

from aligngap.cli import main
from aligngap.report import build_report, headline, planned_power
from aligngap.report.analysis import Analysis, analyse
from aligngap.report.power import change_of_mind, say_needed, say_prompts, say_seeds
from aligngap.report.tables import best_configurations, ranking, say_survival, say_unbeaten, seeds_and_prompts, tables
from aligngap.stats.axes import AXES, KL
from aligngap.stats.clouds import make_clouds, on_axis, thin
from aligngap.stats.compare import compare, curves_for
from aligngap.stats.power import Spread
from aligngap.stats.reference import against_best_of_n, reference_table
from aligngap.storage.columns import (
    BEST_OF_N_COLUMNS,
    PER_PROMPT_COLUMNS,
    PROBE_COLUMNS,
    RECORD_COLUMNS,
    SAMPLE_COLUMNS,
)
from aligngap.storage.records import BEST_OF_N, Tables, empty, write_table

BY_NAME = {a.name: a for a in AXES}


def tables_of(records: pd.DataFrame, per_prompt: pd.DataFrame, best_of_n: pd.DataFrame | None = None) -> Tables:
    none = empty(BEST_OF_N_COLUMNS) if best_of_n is None else best_of_n
    return Tables(records, per_prompt, empty(SAMPLE_COLUMNS), none, empty(PROBE_COLUMNS))


def made(arms: dict[str, ArmTruth] | None = None, best_of_n: pd.DataFrame | None = None, **options: object) -> Analysis:
    world = {"online": ArmTruth(gap=0.12), "offline": ArmTruth()} if arms is None else arms
    records, per_prompt, _ = make(
        world, **{"seeds": range(5), "prompts": 120, "opponents": ("golden_policy", "sft"), **options}
    )  # type: ignore[arg-type]
    return analyse(tables_of(records, per_prompt, best_of_n))


# -------------------------------------------------------------------------------------------------------- axes


def test_an_axis_is_a_grid_with_a_floor() -> None:
    assert KL.grid(0.1, 20.0)[0] >= np.log(0.1) - 1e-9
    assert np.isclose(KL.x(KL.grid(0.1, 20.0)), 4.0).any()
    plain = BY_NAME["proxy win rate"]
    grid = plain.grid(0.213, 0.4)
    assert (grid[0], grid[-1]) == (pytest.approx(0.215), pytest.approx(0.4))
    assert list(KL.usable(np.array([0.0, 0.05, 0.2, np.nan]))) == [False, False, True, False]
    assert list(BY_NAME["fresh samples"].usable(np.array([0.0, 64.0]))) == [False, True]
    assert KL.shown(12.34) == "12 nats"
    assert plain.shown(0.3456) == "0.35"
    assert KL.span(0.42, 12.3) == "0.42 to 12 nats"
    assert BY_NAME["pairs trained on"].shown(32000.0) == "32,000 pairs"


def test_the_gap_at_equal_steps_is_another_gap_and_is_found() -> None:
    """Equal win rate at equal KL, but one arm is twice as far at every step: level on KL, ahead on steps."""
    rng = np.random.default_rng(0)
    clouds = planted_clouds(rng, {"online": 0.0, "offline": 0.0}, seeds=4, prompts=400, seed_sd=0.0)
    items = []
    for c in clouds.items:
        steps = 100.0 * c.x / (2.0 if c.arm == "online" else 1.0)
        win = 0.2 + 0.1 * np.log(np.maximum(c.x, 0.5) / 0.4)  # rising in KL
        draws = (rng.random((len(win), len(c.prompt_ids))) < win[:, None]).astype(np.float32)
        columns = {"step": steps}
        items.append(c.__class__(**{**c.__dict__, "win": draws.mean(1), "win_by_prompt": draws, "columns": columns}))
    clouds = clouds.__class__(tuple(items))
    at_kl = compare(curves_for(clouds, 100), "online", "offline", band=False)
    at_steps = compare(curves_for(on_axis(clouds, BY_NAME["steps"]), 100), "online", "offline", band=False)
    assert at_kl.average.value == pytest.approx(0.0, abs=0.02)
    assert at_steps.average.value == pytest.approx(0.1 * np.log(2.0), abs=0.02)
    assert at_steps.average_interval[0] > 0
    assert at_steps.axis.name == "steps"


def test_no_gap_is_rarely_declared_on_the_proxy_axis() -> None:
    """The proxy's win rate is measured on the same prompts as the win rate it is the axis of."""
    wrong = []
    for i in range(30):
        records, per_prompt, _ = make(
            {"online": ArmTruth(), "offline": ArmTruth()}, prompts=150, opponents=("sft",), rng_seed=i, checkpoints=6
        )
        clouds = on_axis(make_clouds(records, per_prompt, "sft"), BY_NAME["proxy win rate"])
        c = compare(curves_for(clouds, 60), "online", "offline", band=False)
        wrong.append(c.average_interval[0] > 0 or c.average_interval[1] < 0)
    assert np.mean(wrong) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 30)


def test_every_axis_and_opponent_is_in_the_table_and_says_who_is_ahead() -> None:
    a = made()
    table = ranking(a)
    assert table is not None
    assert {r[0] for r in table.rows} == set(BY_NAME) - {"pairs trained on"}  # as many a step in both arms
    assert len(table.rows) == (len(AXES) - 1) * 2
    by = {(r[0], r[1]): r for r in table.rows}
    assert by["KL", "golden policy"][5] == "above 0"
    assert by["steps", "SFT policy"][5] == "above 0"
    fresh = by["fresh samples", "golden policy"]
    assert fresh[5] == "not comparable"
    assert "nothing recorded for offline" in fresh[4]
    assert "equal pairs are equal steps" in " ".join(table.notes)
    assert "chi-squared" in " ".join(table.notes)
    assert "Training compute is counted" in " ".join(table.notes)
    assert by["training compute", "golden policy"][4].endswith("FLOP")
    main = a.comparisons["golden_policy"][0]
    said = say_survival(main, [c for c in a.robust.axes if (c.a, c.b) == ("online", "offline") and c is not main])
    assert said.startswith("At equal KL the interval of online − offline: above 0. Of the 11 other combinations")
    assert "2 cannot be compared" in said


def test_pairs_are_an_axis_of_their_own_where_batches_differ() -> None:
    records, per_prompt, _ = make(prompts=60, opponents=("sft",))
    records["pairs_seen"] *= np.where(records["arm"] == "online", 2, 1)
    found = [c for c in analyse(tables_of(records, per_prompt)).robust.axes if (c.a, c.b) == ("online", "offline")]
    assert [c.axis.name for c in found] == list(BY_NAME)


def test_what_was_not_recorded_is_no_axis() -> None:
    records, per_prompt, _ = make(prompts=60, opponents=("sft",))
    records["flops"] = np.nan  # a table of before operations were counted
    found = [c for c in analyse(tables_of(records, per_prompt)).robust.axes if (c.a, c.b) == ("online", "offline")]
    assert [c.axis.name for c in found] == [n for n in BY_NAME if n not in ("pairs trained on", "training compute")]


def test_runs_beyond_an_equal_share_are_left_out_evenly() -> None:
    def kept(arms: int, runs: int) -> tuple[pd.Series, list[str]]:
        rows = [(f"arm {a}", 0, f"{a}/{r}", 1) for a in range(arms) for r in range(runs)]
        rows, said = thin(pd.DataFrame(rows, columns=["arm", "seed", "run", "step"]))
        return rows["run"], said

    assert kept(4, 120)[1] == []
    few, said = kept(4, 600)
    assert said == ["1920 of 2400 runs were left out of the frontiers, evenly: too many."]
    assert few.tolist() == [f"{a}/{r}" for a in range(4) for r in range(0, 600, 5)]
    assert len(kept(40, 31)[0]) == 40 * 30


def test_rows_without_a_value_on_an_axis_leave_the_other_axes_alone() -> None:
    records, per_prompt, _ = make(prompts=60, opponents=("sft",))
    records["forward_kl_nats"] = np.nan
    clouds = make_clouds(records, per_prompt, "sft")
    assert on_axis(clouds, BY_NAME["forward KL"]).items == ()
    assert "forward KL" in on_axis(clouds, BY_NAME["forward KL"]).warnings[0]
    assert len(on_axis(clouds, BY_NAME["steps"]).items) == len(clouds.items)
    c = compare(curves_for(on_axis(clouds, BY_NAME["forward KL"])), "online", "offline", axis=BY_NAME["forward KL"])
    assert not c.defined
    assert c.warnings == ("forward KL: nothing recorded for online and offline.",)


# --------------------------------------------------------------------------------------------------- best-of-n


def test_an_arm_is_held_against_best_of_n_at_equal_kl() -> None:
    """Best-of-n at the arm's own level is not told apart from it; at half of it, it is beaten."""
    records, per_prompt, _ = make({"online": ArmTruth(), "offline": ArmTruth(gap=-0.2)}, prompts=300, height=0.0)
    curves = curves_for(make_clouds(records, per_prompt, "golden_policy"), 100)
    same = {c.a: c for c in against_best_of_n(curves, best_of_n_rows(0.2, 0.0), "golden_policy")}
    assert same["online"].average.value == pytest.approx(0.0, abs=0.03)
    assert same["online"].average_interval[0] < 0 < same["online"].average_interval[1]
    assert same["offline"].average_interval[1] < 0
    low, high = same["online"].common
    assert low >= 0.35
    assert high <= 1.84
    beaten = {c.a: c for c in against_best_of_n(curves, best_of_n_rows(0.1, 0.0), "golden_policy")}
    assert beaten["online"].average_interval[0] > 0
    assert against_best_of_n(curves, best_of_n_rows(), "nobody") == ()


def test_its_points_are_means_over_seeds_with_an_honest_error() -> None:
    rows = best_of_n_rows(0.2, 0.05, seeds=(0, 1, 2, 3), se=0.02)
    table = reference_table(rows, "sft")
    assert list(table["n"]) == [1, 2, 4, 8, 16]
    assert set(table["seeds"]) == {4}
    one = rows[(rows["opponent"] == "sft") & (rows["n"] == 4)]
    assert table["win_rate"].iloc[2] == pytest.approx(one["win_rate"].mean())
    assert table["win_rate_se"].iloc[2] >= 0.02 / 2 - 1e-12
    alone = reference_table(rows[rows["seed"] == 0], "sft")
    assert alone["win_rate_se"].iloc[0] == pytest.approx(0.02)


def test_arms_of_another_world_are_compared_within_it() -> None:
    """A variant with a best-of-n of its own has another task, so other judges, opponents and SFT policy."""
    arms = {
        a: ArmTruth(0.1 * ("online" in a)) for a in ("online", "offline", "online[dpo]", "online[out]", "offline[out]")
    }
    here, there = best_of_n_rows(0.5, 0.05), best_of_n_rows(0.0, 0.0, variant="out")
    found = made(arms, pd.concat([here, there]))
    pairs = [(c.a, c.b) for c in found.comparisons["golden_policy"]]
    assert pairs == [
        ("online", "offline"), ("online[dpo]", "offline"), ("online[dpo]", "online"), ("online[out]", "offline[out]"),
    ]  # fmt: skip
    against = {c.a: c.average.value for c in found.robust.against if c.opponent == "golden_policy"}
    assert sorted(against) == sorted(arms)
    assert max(against[a] for a in arms if "out" not in a) < 0 < min(against[a] for a in arms if "out" in a)
    assert list(found.reference["win_rate"]) == list(reference_table(here, "golden_policy")["win_rate"])


def test_the_first_screen_says_when_nothing_beats_best_of_n() -> None:
    strong = made(best_of_n=best_of_n_rows(0.4, 0.1))
    assert any("No arm is shown to beat best-of-n" in s for s in say_unbeaten(strong))
    assert any("online, offline lie below it" in s for s in say_unbeaten(strong))
    weak = made(best_of_n=best_of_n_rows(0.05, 0.0))
    assert not any("best-of-n" in s for s in say_unbeaten(weak))
    assert "best-of-n" in [t.name for t in tables(weak)]
    assert "best-of-n" not in [t.name for t in tables(made())]


def test_each_arm_at_its_best_configuration_of_the_same_grid() -> None:
    grid = {"online": ArmTruth(gap=0.1, configs=3, spread=0.1), "offline": ArmTruth(configs=3, spread=0.1)}
    table = best_configurations(made(grid, opponents=("golden_policy",)))
    assert table is not None
    assert "best of the 3 configurations" in table.notes[0]
    assert [r[0] for r in table.rows] == ["1", "2", "4", "8"]
    assert all(r[1].startswith("+0.") for r in table.rows)
    assert best_configurations(made()) is None


# ------------------------------------------------------------------------------------------------------- power


def test_a_report_says_what_would_change_its_answer() -> None:
    a = made({"online": ArmTruth(), "offline": ArmTruth()}, seed_sd=0.04)
    assert all(b.interval[0] < 0 < b.interval[1] for b in a.main.judged)
    said = dict(change_of_mind(a))
    assert list(said) == ["seeds", "prompts", "KL"]
    assert "seeds × 120 prompts would be needed to see a difference of 0.05 with 80% power" in said["seeds"]
    assert "no number of prompts" in said["prompts"]
    assert said["KL"].startswith("Nothing is known above 8 nats")
    table = seeds_and_prompts(a)
    assert table is not None
    assert [r[0] for r in table.rows] == ["0.02", "0.05", "0.1"]
    short = made({"online": ArmTruth(), "offline": ArmTruth(kl_range=(0.1, 3.0))})
    assert "Nothing is judged above 2 nats: runs of offline ended before 4 nats" in dict(change_of_mind(short))["KL"]


def test_a_study_that_was_large_enough_looks_for_less() -> None:
    s = Spread(0.0001, 0.0002, 0.05, 0.0, 5, 500)
    assert say_seeds(s).startswith("These 5 see a difference of 0.05 with ")
    assert "would be needed to see a difference of 0.02" in say_seeds(s)
    assert "would show a difference of 0.02" in say_prompts(s)
    assert "would be needed to see a difference of 0.05" in say_seeds(replace(s, between=0.01))
    assert "no verdict below 5: run at least so many" in say_seeds(replace(s, seeds=3))
    assert say_prompts(replace(s, seeds=3)) == "No number of prompts gives a verdict with 3 seeds: it takes 5."


def test_one_seed_cannot_say() -> None:
    s = Spread(float("nan"), float("nan"), 0.05, 0.0, 1, 100)
    assert "One seed cannot tell" in say_needed(s)
    assert "say nothing of others" in say_prompts(s)
    a = made(seeds=(0,))
    assert [t.rows for t in tables(a) if t.name == "power"] == [()]


def test_what_the_judge_is_worth_stands_in_sight(tmp_path: Path) -> None:
    """How seldom golden agrees with labels, and the levels by the true preference, are before anything folded away."""
    records, per_prompt, _ = make({"online": ArmTruth(gap=0.12), "offline": ArmTruth()}, range(5), prompts=60)
    true = {f"oracle_{name}": records[f"proxy_{name}"] for name in ("win_rate", "win_rate_se")}
    write_table(tmp_path / "records.parquet", records.assign(**true), RECORD_COLUMNS)
    per_prompt["oracle_win"] = per_prompt["proxy_win"]
    write_table(tmp_path / "per_prompt.parquet", per_prompt, PER_PROMPT_COLUMNS)
    found = {"held out accuracy": 0.54, "held out pairs": 100}
    rows = [
        {"seed": s, "part": "golden judge", "what": what, "value": v} for s in range(5) for what, v in found.items()
    ]
    (tmp_path / "provenance.json").write_text(json.dumps({"pipeline": rows}))
    page = build_report(tmp_path).read_text()
    inside = re.sub(r"<details.*?</details>", "", page[page.index("</h1>") : page.index('id="equal-kl"')], flags=re.S)
    for text in (inside, headline(tmp_path), (tmp_path / "summary.md").read_text()):
        assert "agrees with 54% of the labels that it has not seen (95% interval 44% to 64%). That is near" in text
        levels = r"online 0\.\d+, offline 0\.\d+ and the SFT policy 0\.\d+"
        assert re.search(f"at 8 nats: by the golden judge {levels}; by the true preference {levels}\\.", text)
        assert "By the true preference, which no arm saw: online − offline is" in text


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pilot")
    records, per_prompt, _ = make(prompts=100, opponents=("golden_policy",), seed_sd=0.03)
    write_table(out / "records.parquet", records, RECORD_COLUMNS)
    write_table(out / "per_prompt.parquet", per_prompt, PER_PROMPT_COLUMNS)
    write_table(out / BEST_OF_N, best_of_n_rows(0.5, 0.0), BEST_OF_N_COLUMNS)
    return out


def test_plan_prints_the_power_of_the_planned_study(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY_STUDY)
    words = ["plan", str(tmp_path / "tiny.yaml"), "--out", str(folder / "out"), "--pilot", str(folder)]
    assert main([*words, "--set", "seeds=3", "--detect", "0.1"]) == 0
    said = capsys.readouterr().out
    assert "pilot: online − offline at 8 nats against the golden policy, 3 seeds × 100 prompts" in said
    assert "this study, 3 seeds × 16 prompts" in said
    assert "a difference of 0.1" in said
    assert main([*words[:4], "--detect", "0.1"]) == 2
    assert main([*words, "--detect", "7"]) == 2
    assert "between 0 and 1" in capsys.readouterr().err


def test_a_pilot_that_cannot_say_says_why(folder: Path) -> None:
    assert "No usable checkpoint of absent" in planned_power(folder, ("absent", "offline"), 3, 100)


def test_the_page_and_the_summary_hold_the_tables(folder: Path) -> None:
    page = build_report(folder).read_text()
    body, text = page[: page.index("<script")], (folder / "summary.md").read_text()
    for title in ("Does the ranking survive?", "At equal length", "Best-of-n of the SFT policy", "What it would take"):
        assert title in body
        assert f"## {title}" in text
    assert (
        "No arm is shown to beat best-of-n"
        in body[body.index("What it rests on") : body.index("How to read the chart")]
    )
    assert "length-controlled" in body
    assert "best-of-n of the SFT policy" in page[page.index("<script type=") :]
