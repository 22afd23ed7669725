"""Arms at equal KL: planted gaps are found, none is declared where there is none, doubts are said."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from synthetic_records import ArmTruth, make, planted_clouds

from aligngap.hypotheses.opening import OPENING
from aligngap.hypotheses.verdicts import CENSORED, CONTRADICTED, INCONCLUSIVE, SUPPORTED, TOO_FEW, decide
from aligngap.hypotheses.view import View
from aligngap.stats.axes import KL
from aligngap.stats.clouds import make_clouds
from aligngap.stats.compare import Comparison, compare, curves_for, match_configurations, protocol_bias, ranges
from aligngap.stats.frontier import arm_curves
from aligngap.types import Verdict


def planted(i: int, gap: float, seeds: int, seed_sd: float = 0.02, sweep: int = 1) -> Comparison:
    clouds = planted_clouds(
        np.random.default_rng([7, i]), {"online": gap, "offline": 0.0}, {"offline": sweep}, seeds, 150, 6, seed_sd
    )
    curves = arm_curves(clouds.items, KL.grid(0.45, 15), 60, i)
    return compare(curves, "online", "offline")


@pytest.mark.parametrize(("seeds", "seed_sd", "sweep"), [(1, 0.0, 1), (3, 0.02, 1), (5, 0.02, 1), (3, 0.02, 4)])
def test_no_gap_is_rarely_declared(seeds: int, seed_sd: float, sweep: int) -> None:
    n = 80 if sweep == 1 else 50
    found = [planted(i, 0.0, seeds, seed_sd, sweep) for i in range(n)]
    wrong = np.mean([c.average_interval[0] > 0 or c.average_interval[1] < 0 for c in found])
    anywhere = np.mean([c.share_a_ahead + c.share_b_ahead > 0 for c in found])
    error = np.sqrt(0.05 * 0.95 / n)
    assert wrong <= 0.05 + 3 * error
    assert anywhere <= 0.09 + 3 * error  # the band holds 88-92% of the time at worst


def test_a_planted_gap_is_found_and_estimated() -> None:
    found = [planted(i, 0.10, 5) for i in range(30)]
    assert np.mean([c.average_interval[0] > 0 for c in found]) >= 0.95
    assert np.mean([c.average.value for c in found]) == pytest.approx(0.10, abs=0.01)
    covers = np.mean([c.average_interval[0] <= 0.10 <= c.average_interval[1] for c in found])
    assert covers >= 0.85
    assert np.mean([c.share_a_ahead for c in found]) > 0.4
    assert all(c.share_b_ahead == 0 for c in found)


def test_swapping_the_arms_changes_the_sign() -> None:
    clouds = planted_clouds(np.random.default_rng(3), {"online": 0.05, "offline": 0.0}, seeds=3, prompts=80)
    curves = curves_for(clouds, 80)
    ab, ba = compare(curves, "online", "offline"), compare(curves, "offline", "online")
    assert ab.average.value == pytest.approx(-ba.average.value)
    assert ab.average_interval == pytest.approx((-ba.average_interval[1], -ba.average_interval[0]))
    assert ab.budgets[0].difference.value == pytest.approx(-ba.budgets[0].difference.value)
    assert [b.x for b in ab.budgets] == [0.5, 1.0, 2.0, 4.0, 8.0]


def test_one_seed_is_said() -> None:
    c = planted(0, 0.1, 1, 0.0)
    assert c.defined
    assert any("One seed" in w for w in c.warnings)


def test_no_overlap_is_said_and_undefined() -> None:
    records, per_prompt, _ = make(
        {"online": ArmTruth(kl_range=(0.5, 1.0)), "offline": ArmTruth(kl_range=(4.0, 9.0))}, prompts=40
    )
    c = compare(curves_for(make_clouds(records, per_prompt, "sft")), "online", "offline", "sft")
    assert not c.defined
    assert np.isnan(c.average.se)
    assert np.isnan(c.share_a_ahead)
    assert np.isfinite(c.peak.value)  # peaks need no overlap
    assert any("do not overlap" in w for w in c.warnings)


def test_missing_arm_missing_seed_and_nan_rows() -> None:
    records, per_prompt, _ = make(prompts=40, opponents=("golden_policy",))
    curves = curves_for(make_clouds(records, per_prompt, "golden_policy"))
    assert "No usable checkpoint of absent" in compare(curves, "absent", "offline").warnings[0]
    lost = records[~((records["arm"] == "online") & (records["seed"] == 2))].copy()
    index = lost.index[(lost["step"] == 300) & (lost["arm"] == "online")]
    lost.loc[index, "win_rate"] = np.nan
    clouds = make_clouds(lost, per_prompt, "golden_policy")
    assert f"{len(index)} of {len(lost)} checkpoints" in clouds.warnings[0]
    c = compare(curves_for(clouds), "online", "offline")
    assert c.seeds == (0, 1)
    assert any("only one of the two arms" in w for w in c.warnings)
    assert any("Two seeds" in w for w in c.warnings)


def test_without_prompts_it_is_said_and_still_made() -> None:
    records, per_prompt, _ = make(prompts=100, opponents=("sft",))
    with_prompts = compare(curves_for(make_clouds(records, per_prompt, "sft")), "online", "offline")
    clouds = make_clouds(records, per_prompt.iloc[:0], "sft")
    without = compare(curves_for(clouds), "online", "offline")
    assert any("prompt by prompt" in w for w in clouds.warnings)
    assert without.average.value == pytest.approx(with_prompts.average.value, abs=0.04)


def test_prompts_with_gaps_are_left_out_of_means_not_counted_as_losses() -> None:
    clouds = planted_clouds(np.random.default_rng(5), {"online": 0.1, "offline": 0.0}, seeds=1, prompts=200)
    c0 = clouds.items[0]
    assert c0.win_by_prompt is not None
    holes = c0.win_by_prompt.copy()
    holes[:, :20] = np.nan
    full = arm_curves(clouds.items, KL.grid(0.5, 14), 20)["online"].frontier
    part = arm_curves([replace(c0, win_by_prompt=holes), clouds.items[1]], KL.grid(0.5, 14), 20)["online"].frontier
    assert np.nanmax(np.abs(part - full)) < 0.05


def test_matched_frontiers_hold_what_both_arms_ran_and_the_protocols_bias_is_its_own_sweep_against_itself() -> None:
    clouds = planted_clouds(
        np.random.default_rng(8), {"online": 0.0, "offline": 0.0}, {"online": 1, "offline": 6}, 3, 200, spread=-0.06
    )
    curves = curves_for(clouds, 60)
    alike = match_configurations(clouds, curves, "online", "offline")
    assert (alike["online"].configs, alike["offline"].configs) == (1, 1)
    assert abs(compare(alike, "online", "offline").average.value) < 0.03
    assert compare(curves, "online", "offline").average.value < -0.03
    bias = protocol_bias(clouds, curves, "online", "offline")
    assert bias is not None
    assert bias.average.value == pytest.approx(-0.06, abs=0.02)
    assert protocol_bias(clouds, curves, "offline", "online") is None
    even = planted_clouds(np.random.default_rng(8), {"online": 0.0, "offline": 0.0}, {"online": 2, "offline": 2}, 2, 40)
    assert protocol_bias(even, curves_for(even, 60), "online", "offline") is None


def test_ranges() -> None:
    kl = np.array([1.0, 2.0, 3.0, 4.0])
    assert ranges(kl, np.array([True, True, False, True])) == ((1.0, 2.0), (4.0, 4.0))
    assert ranges(kl, np.zeros(4, bool)) == ()


def judged(tables: tuple[pd.DataFrame, ...], online: str = "online", offline: str = "offline") -> dict[str, Verdict]:
    """The opening verdicts of these tables."""
    return {v.name: v for v in OPENING.judge(View(tables[0], tables[1], "golden_policy", online, offline))}


def test_verdicts_follow_their_rules() -> None:
    assert decide((0.1, 0.2)) == SUPPORTED
    assert decide((-0.2, -0.1)) == CONTRADICTED
    assert decide((-0.1, 0.1)) == INCONCLUSIVE
    assert decide((float("nan"), 0.1)) == INCONCLUSIVE
    assert decide((-0.01, 0.01), 0.02) == CONTRADICTED
    arms = {"online": ArmTruth(gap=0.08, kl_range=(0.5, 20.0), accuracy_end=0.53, chosen_end=-8.0),
            "offline": ArmTruth(kl_range=(0.5, 20.0), accuracy_end=0.67, chosen_end=-40.0)}  # fmt: skip
    tables = make(arms, seeds=range(6), prompts=600, opponents=("golden_policy",), seed_sd=0.003, checkpoints=9)
    found = judged(tables)
    assert list(found) == ["R1 online", "R1 offline", "R2", "R7", "R8"]
    assert {n: v.outcome for n, v in found.items()} == dict.fromkeys(found, SUPPORTED)
    assert found["R2"].effect.value == pytest.approx(0.08, abs=0.03)
    assert found["R2"].p < 0.01
    turned = {n: v.outcome for n, v in judged(tables, online="offline", offline="online").items()}
    assert (turned["R2"], turned["R7"], turned["R8"]) == (CONTRADICTED,) * 3


def test_fewer_than_five_seeds_give_an_estimate_and_no_verdict() -> None:
    found = judged(make(seeds=range(4), prompts=400, opponents=("golden_policy",)))
    assert {found[n].outcome for n in ("R2", "R7", "R8", "R1 online")} == {TOO_FEW}
    assert found["R2"].effect.value == pytest.approx(0.08, abs=0.03)
    assert np.isfinite(found["R2"].interval).all()


def test_nothing_but_ties_decides_nothing() -> None:
    records, per_prompt, _ = make(seeds=range(6), prompts=40, opponents=("golden_policy",))
    records["win_rate"], records["win_rate_se"] = 0.5, 0.0
    per_prompt["win"] = 0.5
    found = judged((records, per_prompt))
    for name in ("R1 online", "R1 offline", "R2"):
        assert found[name].outcome == INCONCLUSIVE
        assert "tie" in found[name].reason


def test_verdicts_without_data_are_inconclusive_with_a_reason() -> None:
    records, per_prompt, _ = make({"offline": ArmTruth()}, prompts=30, opponents=("golden_policy",))
    records["accuracy"] = np.nan
    found = judged((records, per_prompt))
    assert found["R2"].outcome == INCONCLUSIVE
    assert np.isnan(found["R2"].effect.value)
    assert "online" in found["R1 online"].reason
    assert "No usable checkpoint" in found["R7"].reason


def test_an_arm_that_was_stopped_while_rising_is_censored_and_never_contradicted() -> None:
    arms = {"online": ArmTruth(kl_range=(0.02, 1.5)), "offline": ArmTruth()}
    found = judged(make(arms, seeds=range(6), prompts=800, opponents=("golden_policy",), seed_sd=0.0))
    assert found["R1 online"].outcome == CENSORED
    assert "not seen" in found["R1 online"].reason
    for i in range(8):
        tables = make(arms, seeds=range(5), prompts=50, opponents=("golden_policy",), rng_seed=i)
        assert judged(tables)["R1 online"].outcome == CENSORED


def test_an_arm_that_has_stopped_rising_and_does_not_fall_contradicts_the_hump() -> None:
    arms = {"online": ArmTruth(kl_range=(0.5, 14.0)), "offline": ArmTruth()}
    found = judged(make(arms, seeds=range(8), prompts=3000, opponents=("golden_policy",), seed_sd=0.0, height=0.0))
    assert found["R1 online"].outcome == CONTRADICTED


def test_duplicate_rows_of_a_resumed_run_count_once() -> None:
    records, per_prompt, _ = make(prompts=30, seeds=(0,), opponents=("sft",))
    a = make_clouds(records, per_prompt, "sft")
    b = make_clouds(pd.concat([records, records.head(3)]), per_prompt, "sft")
    assert [len(c.x) for c in a.items] == [len(c.x) for c in b.items]
