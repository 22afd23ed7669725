"""The length-controlled win rate: a planted length bias is taken out, its errors cover, statsmodels agrees."""

from __future__ import annotations

import numpy as np
import pytest
import statsmodels.api as sm
from synthetic_records import make

from aligngap.stats.clouds import make_clouds
from aligngap.stats.compare import compare, curves_for
from aligngap.stats.length import control_length, pseudo_values

#: what a policy wins at equal length
QUALITY = 0.4


def planted(
    rng: np.random.Generator,
    rows: int,
    prompts: int,
    bias: float,
    longer: float,
    linear: bool = False,
    ties: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Wins and length differences [rows, prompts]: logit P(win) = logit(QUALITY) + bias * tanh(gap / sd), or linear."""
    gap = np.round(rng.normal(longer, 4.0, (rows, prompts)))
    scaled = gap / gap.std(axis=1, keepdims=True)
    logit = np.log(QUALITY / (1 - QUALITY)) + bias * (scaled if linear else np.tanh(scaled))
    win = (rng.random((rows, prompts)) < 1 / (1 + np.exp(-logit))).astype(float)
    return np.where(rng.random((rows, prompts)) < ties, 0.5, win), gap


def errors(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return values.mean(axis=1), values.std(axis=1, ddof=1) / np.sqrt(values.shape[1])


@pytest.mark.parametrize(("bias", "longer"), [(0.0, 2.0), (1.5, 3.0), (-1.5, 3.0), (1.5, 0.0)])
def test_a_planted_bias_is_taken_out_and_the_error_covers(bias: float, longer: float) -> None:
    win, gap = planted(np.random.default_rng(1), 800, 300, bias, longer)
    value, se = errors(pseudo_values(win, gap))
    assert value.mean() == pytest.approx(QUALITY, abs=0.006)
    assert np.mean(np.abs(value - QUALITY) < 1.96 * se) == pytest.approx(0.95, abs=0.025)
    assert se.mean() == pytest.approx(value.std(), rel=0.08)
    if bias and longer:
        assert abs(win.mean() - QUALITY) > 0.1  # the plain win rate is far off


def test_a_bias_of_another_shape_is_nearly_taken_out() -> None:
    """Linear in the length difference, where the model has tanh: what is left is small beside what was there."""
    win, gap = planted(np.random.default_rng(2), 400, 400, 0.8, 3.0, linear=True)
    value, _ = errors(pseudo_values(win, gap))
    left, before = abs(value.mean() - QUALITY), abs(win.mean() - QUALITY)
    assert before > 0.12
    assert left < 0.25 * before


def test_ties_count_half() -> None:
    win, gap = planted(np.random.default_rng(3), 400, 400, 0.0, 2.0, ties=0.5)
    value, se = errors(pseudo_values(win, gap))
    assert value.mean() == pytest.approx(0.5 * QUALITY + 0.25, abs=0.006)
    assert se.mean() == pytest.approx(value.std(), rel=0.1)


def test_statsmodels_agrees() -> None:
    win, gap = planted(np.random.default_rng(4), 5, 250, 1.0, 2.0)
    values = pseudo_values(win, gap)
    for w, d, mine in zip(win, gap, values, strict=True):
        design = sm.add_constant(np.tanh(d / d.std()))
        theirs = sm.GLM(w, design, family=sm.families.Binomial()).fit(cov_type="HC0")
        level = 1 / (1 + np.exp(-theirs.params[0]))
        assert mine.mean() == pytest.approx(level, abs=2e-4)  # the weak prior
        assert mine.std() / np.sqrt(len(w)) == pytest.approx(level * (1 - level) * theirs.bse[0], rel=5e-3)


def test_the_bootstrap_of_pseudo_values_is_that_of_the_regression() -> None:
    rng = np.random.default_rng(5)
    win, gap = planted(rng, 1, 200, 1.2, 2.0)
    draws = rng.integers(0, 200, (300, 200))
    refitted = pseudo_values(win[0][draws], gap[0][draws]).mean(axis=1)
    linear = pseudo_values(win, gap)[0][draws].mean(axis=1)
    assert np.corrcoef(refitted, linear)[0, 1] > 0.98
    assert linear.std() == pytest.approx(refitted.std(), rel=0.06)


def test_what_cannot_be_told_is_undefined_or_plain() -> None:
    rng = np.random.default_rng(6)
    win, gap = planted(rng, 1, 100, 0.0, 0.0)
    assert np.isnan(pseudo_values(win, np.abs(gap) + 1)).all()  # never as short as the opponent: extrapolation
    np.testing.assert_allclose(pseudo_values(win, 0 * gap), win)  # equal lengths: the plain win rate
    np.testing.assert_allclose(pseudo_values(0 * win, gap), 0)
    separated = pseudo_values((gap > 0).astype(float), gap)
    assert np.isfinite(separated).all()
    holes = win.copy()
    holes[0, :30] = np.nan
    np.testing.assert_allclose(pseudo_values(holes, gap)[0, 30:], pseudo_values(win[:, 30:], gap[:, 30:])[0], atol=1e-9)
    assert np.isnan(pseudo_values(holes, gap)[0, :30]).all()


def test_arms_are_compared_at_equal_kl_and_equal_length() -> None:
    """Online wins by length alone: ahead on the plain win rate, level on the length-controlled one."""
    records, per_prompt, _ = make(seeds=range(4), prompts=300, opponents=("sft",), seed_sd=0.0, height=0.0)
    rng = np.random.default_rng(0)
    gap = np.round(rng.normal(np.where(per_prompt["arm"] == "online", 4.0, 0.0), 4.0))
    per_prompt["length_tokens"] = (20 + gap).astype(int).clip(1)
    per_prompt["opponent_length_tokens"] = 20
    per_prompt["win"] = (rng.random(len(gap)) < 1 / (1 + np.exp(-2.0 * np.tanh(gap / 4)))).astype(float)
    clouds = make_clouds(records, per_prompt, "sft")
    plain = compare(curves_for(clouds, 100), "online", "offline", "sft")
    fair = compare(curves_for(control_length(clouds), 100), "online", "offline", "sft")
    assert plain.average_interval[0] > 0.15
    assert fair.average.value == pytest.approx(0.0, abs=0.05)
    assert fair.average_interval[0] < 0 < fair.average_interval[1]


def test_without_lengths_it_is_said() -> None:
    records, per_prompt, _ = make(prompts=60, seeds=(0,), opponents=("sft",))
    assert control_length(make_clouds(records, per_prompt.iloc[:0], "sft")).items == ()
    per_prompt.loc[per_prompt["step"] >= 700, "length_tokens"] = 200
    found = control_length(make_clouds(records, per_prompt, "sft"))
    assert len(found.items) == 2
    assert "no length-controlled win rate" in found.warnings[0]
