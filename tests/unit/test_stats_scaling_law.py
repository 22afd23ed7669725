"""Gao et al.'s laws and best-of-n: planted coefficients, statsmodels, brute force."""

from __future__ import annotations

import numpy as np
import pytest
import statsmodels.api as sm

from aligngap.stats.scaling_law import (
    MOST_FOLDS,
    best_of_n_kl,
    better_form,
    cluster_covariance,
    design,
    fit_gao,
    held_out_error,
    peak,
    wls,
)

KL = np.geomspace(0.3, 40.0, 24)


def planted(form: str, noise: float, seed: int, alpha: float = 0.25, beta: float = 0.06) -> np.ndarray:
    rng = np.random.default_rng([seed, form == "rl"])
    return design(KL, form) @ [alpha, beta] + rng.normal(0, noise, len(KL))


@pytest.mark.parametrize("groups", [2, 7, 120])
def test_what_is_held_out_is_predicted_from_the_rest(groups: int) -> None:
    rng = np.random.default_rng(3)
    n = 240
    x, y, weight = design(rng.gamma(2.0, 2.0, n), "rl"), rng.normal(size=n), rng.gamma(2.0, 1.0, n)
    group = rng.permutation(np.arange(n) % groups)
    folds = (group if groups > 2 else np.arange(n)) % MOST_FOLDS  # two groups are too few: row by row
    error = np.empty(n)
    for fold in range(folds.max() + 1):
        out = folds == fold
        error[out] = y[out] - sm.WLS(y[~out], x[~out], weight[~out]).fit().predict(x[out])
    assert held_out_error(x, y, weight, group) == pytest.approx(np.sqrt(np.average(error**2, weights=weight)))


@pytest.mark.parametrize("form", ["bon", "rl"])
def test_exact_data_are_recovered_exactly(form: str) -> None:
    fit = fit_gao(KL, planted(form, 0.0, 0), form=form)
    assert (fit.alpha, fit.beta) == pytest.approx((0.25, 0.06), abs=1e-9)
    assert fit.held_out == pytest.approx(0.0, abs=1e-9)
    d = np.linspace(0.01, 200.0, 400_000)
    gain = design(d**2, form) @ [0.25, 0.06]
    assert fit.peak_kl == pytest.approx(d[gain.argmax()] ** 2, rel=1e-3)
    assert fit.peak_gain == pytest.approx(gain.max(), rel=1e-6)
    assert fit(4.0) == pytest.approx(design(4.0, form) @ [0.25, 0.06])


@pytest.mark.parametrize("form", ["bon", "rl"])
def test_intervals_cover_planted_coefficients(form: str) -> None:
    fits = [fit_gao(KL, planted(form, 0.02, i), form=form) for i in range(300)]
    for name, truth in (("alpha", 0.25), ("beta", 0.06)):
        hits = [getattr(f, f"{name}_interval")[0] <= truth <= getattr(f, f"{name}_interval")[1] for f in fits]
        assert abs(np.mean(hits) - 0.95) < 3.5 * np.sqrt(0.05 * 0.95 / 300)
    top = float(peak(0.25, 0.06, form)[0])
    covered = [f.peak_kl_interval[0] <= top <= f.peak_kl_interval[1] for f in fits]
    assert 0.90 <= np.mean(covered) <= 0.99


@pytest.mark.parametrize("form", ["bon", "rl"])
def test_the_form_that_made_the_data_is_preferred(form: str) -> None:
    chosen = [better_form({f: fit_gao(KL, planted(form, 0.01, i), form=f) for f in ("bon", "rl")}) for i in range(30)]
    assert np.mean([c == form for c in chosen]) > 0.8


def test_weighted_fit_and_clustered_errors_agree_with_statsmodels() -> None:
    rng = np.random.default_rng(0)
    x, y = design(KL, "rl"), planted("rl", 0.03, 4)
    weight, group = rng.uniform(0.5, 2.0, len(KL)), np.arange(len(KL)) % 6
    coef, cov = wls(x, y, weight)
    want = sm.WLS(y, x, weights=weight).fit()
    assert coef == pytest.approx(want.params)
    assert cov == pytest.approx(want.cov_params())
    robust = sm.WLS(y, x, weights=weight).fit(cov_type="cluster", cov_kwds={"groups": group})
    assert cluster_covariance(x, y, weight, coef, group) == pytest.approx(robust.cov_params())


def test_too_few_points_and_no_peak_are_undefined() -> None:
    assert np.isnan(fit_gao(KL[:3], KL[:3]).alpha)
    rising = fit_gao(KL, 0.1 * np.sqrt(KL) + 0.02 * KL, form="bon")
    assert np.isnan(rising.peak_kl)
    assert np.isnan(rising.peak_kl_interval).all()
    nan = fit_gao(KL, np.where(KL > 1, planted("bon", 0.01, 1), np.nan), form="bon")
    assert nan.n == int((KL > 1).sum())


def test_best_of_n_kl_is_the_analytic_one() -> None:
    got = best_of_n_kl([1, 2, 4, 16, 64, 256, 1000, 60000])
    assert got == pytest.approx([0.0, 0.193, 0.636, 1.84, 3.17, 4.55, 5.91, 10.0], abs=0.006)
