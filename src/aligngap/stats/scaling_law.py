"""Over-optimisation laws of Gao, Schulman & Hilton (2023, arXiv 2210.10760) and the best-of-n reference.

With d = sqrt(KL(pi || pi_init)) and R the gain over the initial policy: best-of-n R = d (alpha - beta d), RL
R = d (alpha - beta ln d) (their equations 1 and 2). Both are linear in (alpha, beta), so weighted least squares is
exact. The RL form has infinite slope at d = 0 and is not meant for small KL. Leaves out: their size laws for the
coefficients.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import special

from aligngap.stats.estimate import NAN, FloatArray

FORMS = ("bon", "rl")
#: groups are left out together where there are more
MOST_FOLDS = 50


@dataclass(frozen=True)
class GaoFit:
    """One fitted law; intervals are 95%. `held_out` is the weighted RMS error on groups left out of the fit."""

    form: str
    alpha: float
    beta: float
    alpha_interval: tuple[float, float]
    beta_interval: tuple[float, float]
    peak_kl: float  # nats; nan where the fit has no peak (beta <= 0)
    peak_kl_interval: tuple[float, float]  # nan ends where a peak is not certain
    peak_gain: float
    rms: float
    held_out: float
    n: int
    kl_range: tuple[float, float]

    def __call__(self, kl: npt.ArrayLike) -> FloatArray:
        return np.asarray(design(kl, self.form) @ np.array([self.alpha, self.beta]))


def design(kl: npt.ArrayLike, form: str) -> FloatArray:
    """Columns [n, 2] that multiply (alpha, beta)."""
    d = np.sqrt(np.asarray(kl, dtype=np.float64))
    if form == "bon":
        return np.stack([d, -(d**2)], axis=-1)
    if form == "rl":
        return np.stack([d, -d * np.log(np.maximum(d, 1e-12))], axis=-1)
    raise ValueError(f"form must be one of {FORMS}, not {form!r}")


def peak(alpha: npt.ArrayLike, beta: npt.ArrayLike, form: str) -> tuple[FloatArray, FloatArray]:
    """KL in nats and gain at the maximum: bon d* = alpha/2beta, rl d* = exp(alpha/beta - 1); nan if beta <= 0."""
    a, b = np.asarray(alpha, dtype=np.float64), np.asarray(beta, dtype=np.float64)
    ok = (b > 0) & (a > 0 if form == "bon" else True)
    safe = np.where(ok, b, 1.0)
    if form == "bon":
        d, gain = a / (2 * safe), a**2 / (4 * safe)
    else:
        d = np.exp(np.clip(a / safe - 1, -50, 50))
        gain = safe * d
    return np.where(ok, d**2, NAN), np.where(ok, gain, NAN)


def wls(x: FloatArray, y: FloatArray, weight: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Weighted least squares: coefficients, and their covariance with the dispersion estimated (as statsmodels WLS)."""
    root = np.sqrt(weight)[:, None]
    q, r = np.linalg.qr(x * root)
    coef = np.linalg.solve(r, q.T @ (y * root[:, 0]))
    inverse = np.linalg.inv(r)
    dof = len(y) - x.shape[1]
    residual = (y - x @ coef) * root[:, 0]
    scale = float(residual @ residual / dof) if dof > 0 else NAN
    return coef, scale * inverse @ inverse.T


def cluster_covariance(
    x: FloatArray, y: FloatArray, weight: FloatArray, coef: FloatArray, group: np.ndarray
) -> FloatArray:
    """CR1 covariance of `wls` when rows of one group (a run, a seed) are correlated (Liang & Zeger 1986)."""
    bread = np.linalg.inv((x * weight[:, None]).T @ x)
    score = x * (weight * (y - x @ coef))[:, None]
    codes = np.unique(group, return_inverse=True)[1]
    g, n, k = int(codes.max()) + 1, len(y), x.shape[1]
    sums = np.zeros((g, k))
    np.add.at(sums, codes, score)
    factor = g / (g - 1) * (n - 1) / (n - k)
    return np.asarray(factor * bread @ (sums.T @ sums) @ bread)


def fit_gao(
    kl: npt.ArrayLike,
    gain: npt.ArrayLike,
    se: npt.ArrayLike | None = None,
    form: str = "rl",
    group: npt.ArrayLike | None = None,
    level: float = 0.95,
    rng_seed: int = 0,
) -> GaoFit:
    """Fit one law to gains at KLs > 0. `group` (for instance the run) clusters the error and defines what is held out.

    Intervals: cluster-robust t on groups - 1 for four or more groups, else plain t on n - 2. Peak: percentiles of
    draws from the coefficients' distribution, given only if every drawn law but 5% has a peak.
    """
    k, y = np.asarray(kl, dtype=np.float64), np.asarray(gain, dtype=np.float64)
    s = np.ones_like(y) if se is None else np.asarray(se, dtype=np.float64)
    g = np.arange(len(y)) if group is None else np.unique(np.asarray(group), return_inverse=True)[1]
    ok = np.isfinite(k) & np.isfinite(y) & (k > 0) & np.isfinite(s)
    k, y, s, g = k[ok], y[ok], s[ok], g[ok]
    floor = float(np.median(s[s > 0])) * 0.2 if (s > 0).any() else 1.0
    weight = 1.0 / np.maximum(s, floor) ** 2
    nothing = (NAN, NAN)
    if len(y) < 4 or len(np.unique(k)) < 3:
        return GaoFit(form, NAN, NAN, nothing, nothing, NAN, nothing, NAN, NAN, NAN, len(y), nothing)
    x = design(k, form)
    coef, cov = wls(x, y, weight)
    groups = len(np.unique(g))
    clustered = group is not None and groups >= 4
    if clustered:
        cov = cluster_covariance(x, y, weight, coef, g)
    dof = groups - 1 if clustered else len(y) - 2
    half = float(special.stdtrit(dof, 0.5 + level / 2)) * np.sqrt(np.diag(cov))
    rng = np.random.default_rng(rng_seed)
    scale = np.sqrt(dof / rng.chisquare(dof, 4000))[:, None]
    draws = coef + scale * (rng.normal(size=(4000, 2)) @ np.linalg.cholesky(cov + 1e-300 * np.eye(2)).T)
    drawn = peak(draws[:, 0], draws[:, 1], form)[0]
    tails = (0.5 - level / 2, 0.5 + level / 2)
    sure = np.isfinite(drawn).mean() >= level
    low, high = np.nanquantile(drawn, tails) if sure else nothing
    top_kl, top = peak(coef[0], coef[1], form)
    return GaoFit(
        form=form,
        alpha=float(coef[0]),
        beta=float(coef[1]),
        alpha_interval=(float(coef[0] - half[0]), float(coef[0] + half[0])),
        beta_interval=(float(coef[1] - half[1]), float(coef[1] + half[1])),
        peak_kl=float(top_kl),
        peak_kl_interval=(float(low), float(high)),
        peak_gain=float(top),
        rms=float(np.sqrt(np.average((y - x @ coef) ** 2, weights=weight))),
        held_out=held_out_error(x, y, weight, g),
        n=len(y),
        kl_range=(float(k.min()), float(k.max())),
    )


def fit_laws(
    records: pd.DataFrame, opponent: str, arms: tuple[str, ...], min_kl: float = 0.1, cap: int = 4000
) -> dict[tuple[str, str], dict[str, GaoFit]]:
    """Both laws for the golden and the proxy win rate of each arm: the gain is the win rate minus its step-0 value."""
    out: dict[tuple[str, str], dict[str, GaoFit]] = {}
    scores = ("win_rate", "proxy_win_rate", "oracle_win_rate")
    rows = records[["run", "seed", "step", "kl_nats", *scores, *(f"{s}_se" for s in scores)]]
    against, arm_of = (records["opponent"] == opponent).to_numpy(), records["arm"]
    for arm in arms:
        mine = np.flatnonzero(against & (arm_of == arm).to_numpy())
        first, moved = rows["step"].to_numpy()[mine] == 0, rows["kl_nats"].to_numpy()[mine] >= min_kl
        for score in scores:
            place = mine[moved & ~np.isnan(rows[score].to_numpy()[mine])]
            if not len(place):
                continue
            if len(place) > cap:
                place = np.sort(np.random.default_rng(0).choice(place, cap, replace=False))
            later, start = rows.take(place), rows[["seed", score]].take(mine[first])
            base = later["seed"].map(start.groupby("seed")[score].mean()).to_numpy(np.float64)
            if not np.isfinite(base).all():
                continue
            gain = later[score].to_numpy(np.float64) - base
            se = later[f"{score}_se"].to_numpy(np.float64)
            kl = later["kl_nats"].to_numpy(np.float64)
            out[arm, score] = {f: fit_gao(kl, gain, se, f, pd.factorize(later["run"])[0]) for f in FORMS}
    return out


def held_out_error(x: FloatArray, y: FloatArray, weight: FloatArray, group: np.ndarray) -> float:
    """Weighted RMS error on each group predicted from the others (rows in turn if fewer than three groups)."""
    groups = group if len(np.unique(group)) >= 3 else np.arange(len(y))
    mine = np.unique(groups, return_inverse=True)[1] % MOST_FOLDS
    folds = int(mine.max()) + 1
    if len(y) - np.bincount(mine).max() < 3:
        return NAN
    # Normal equations of everything minus those of each fold: [F, 2, 2] and [F, 2].
    square, cross = np.zeros((folds, 2, 2)), np.zeros((folds, 2))
    np.add.at(square, mine, (x * weight[:, None])[:, :, None] * x[:, None, :])
    np.add.at(cross, mine, x * (weight * y)[:, None])
    inverse = np.linalg.pinv(square.sum(axis=0) - square, hermitian=True)
    coef = (inverse @ (cross.sum(axis=0) - cross)[:, :, None])[:, :, 0]
    error = y - (x * coef[mine]).sum(axis=1)
    return float(np.sqrt(np.average(error**2, weights=weight)))


def better_form(fits: dict[str, GaoFit]) -> str:
    """The form with the smaller held-out error; "" where neither is defined."""
    defined = {f: fit.held_out for f, fit in fits.items() if np.isfinite(fit.held_out)}
    return min(defined, key=lambda f: defined[f]) if defined else ""


def best_of_n_kl(n: npt.ArrayLike) -> FloatArray:
    """KL in nats of best-of-n from the base policy, ln n - (n-1)/n: exact without ties, an upper bound with them
    (Beirami et al. 2024, arXiv 2401.01879)."""
    m = np.asarray(n, dtype=np.float64)
    return np.log(m) - (m - 1.0) / m
