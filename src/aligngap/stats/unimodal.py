"""One arm's frontier as a single smooth hump: rising, then falling, with a pointwise 95% band. This is the drawn line.

Penalised cubic B-splines whose coefficients rise up to a mode and fall after it (Eilers 2005, J. Chemometrics 19:
317-328; Koellmann, Bornkamp & Ickstadt 2014, Biometrics 70: 783-793). Splines are variation diminishing: coefficients
with one change of direction give a curve with at most one (Schumaker 1981, section 4.7), so the constraint is linear,
each mode is a non-negative least squares problem, and the mode is profiled over all of them. Only rising and only
falling are the limits. The smoothness is that of `frontier.spline`: where its own fit has one hump already, this is it.

The band: studies are drawn by the two-level bootstrap (seeds, then prompts) and each is fitted, once with the shape and
once without; the two-level error of the unconstrained fit, with its Student-t quantile, times the ratio of the two
spreads, is the error of the line. Where the shape never binds it is exactly `estimate.two_level`'s. The band ends at 0
and at 1, as win rates do.
Leaves out: comparisons. Differences, averages and verdicts rest on the unsmoothed frontier (`compare`), on which no
shape is imposed: a constraint that is wrong in one arm would be an effect between two. Nothing is extrapolated.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from aligngap.stats.estimate import FloatArray, seed_draws, two_level
from aligngap.stats.frontier import ArmCurves, Spline, spline

#: curves drawn for a band: its width is then known to about 5%
DRAWS = 200


@dataclass(frozen=True)
class Line:
    """An arm's frontier as drawn, on the KL that every seed reached, with its pointwise 95% band; empty if none was."""

    kl: FloatArray
    value: FloatArray
    lower: FloatArray
    upper: FloatArray

    @property
    def shape(self) -> str:
        """rising, falling or a hump, over the KL shown; "" for an empty line."""
        if not len(self.kl):
            return ""
        top = int(np.argmax(self.value))
        return "rising" if top == len(self.kl) - 1 else "falling" if top == 0 else "hump"


def frontier_line(curve: ArmCurves, rng_seed: int = 0, level: float = 0.95) -> Line:
    """The unimodal fit to an arm's frontier (mean over seeds) with its pointwise band."""
    inside = np.isfinite(curve.frontier).all(axis=0) if len(curve.seeds) else np.zeros(len(curve.grid), bool)
    if not inside.any():
        none = np.zeros(0)
        return Line(none, none, none, none)
    grid, point, reps = curve.grid[inside], curve.frontier[:, inside], curve.frontier_reps[:, :, inside]
    per_run = curve.checkpoints / max(len(curve.seeds) * curve.configs, 1)
    fit = spline(grid, edf=float(np.clip(per_run - 1, 2.0, 6.0)))
    line = unimodal(fit, point.mean(axis=0)[None])[0]
    known = two_level(point @ fit.hat.T, reps @ fit.hat.T, level)
    free = seed_draws(point, reps, np.random.default_rng([rng_seed, 17]), DRAWS).mean(axis=1) @ fit.hat.T
    spread = free.std(axis=0, ddof=1)
    half = known.upper - known.value
    if (spread > 0).all() and np.isfinite(known.se).all():
        free *= float(np.median(known.se / spread))
        fits = unimodal(fit, point.mean(axis=0) + free)
        half = half * fits.std(axis=0, ddof=1) / free.std(axis=0, ddof=1)
    return Line(np.exp(grid), line, np.maximum(line - half, 0.0), np.minimum(line + half, 1.0))


def unimodal(fit: Spline, y: FloatArray) -> FloatArray:
    """Fitted curves [N, K] with one hump through curves y [N, K], by least squares with the spline's penalty."""
    coefficients = y @ fit.solve.T
    bent = np.flatnonzero(~_one_hump(np.diff(coefficients, axis=1)))
    shapes = _shapes(fit) if len(bent) else []
    for i in bent:
        coefficients[i] = _fit_one(fit.root @ coefficients[i], shapes)
    return np.asarray(coefficients @ fit.basis.T, dtype=np.float64)


def _one_hump(steps: FloatArray, tiny: float = 1e-12) -> np.ndarray:
    """[N] whether the coefficients' steps [N, Q-1] never rise again after a fall."""
    fell = np.maximum.accumulate(steps < -tiny, axis=1)
    return np.asarray(~(fell & (steps > tiny)).any(axis=1))


def _shapes(fit: Spline) -> list[tuple[FloatArray, FloatArray]]:
    """For every mode, what the coefficients are made of: the sign of each step [Q-1], and the columns [Q, Q+1] of a
    non-negative least squares problem, times R."""
    q = len(fit.root)
    level = fit.root.sum(axis=1)
    #: column j of `rises` is what a unit step between coefficients j and j + 1 adds
    rises = fit.root @ np.tril(np.ones((q, q)), -1)[:, : q - 1]
    signs = [np.where(np.arange(q - 1) < mode, 1.0, -1.0) for mode in range(q)]
    return [(sign, np.column_stack([level, -level, rises * sign])) for sign in signs]


def _fit_one(target: FloatArray, shapes: list[tuple[FloatArray, FloatArray]]) -> FloatArray:
    """Coefficients [Q] nearest to the free ones (target = R free) in the norm of the penalised problem, over all modes.

    The penalised sum of squares is a constant plus |R (c - free)|^2, R the Cholesky factor of its normal matrix. With
    c = level + signed cumulative steps, the level free (as a difference of two) and the steps not negative, that is
    non-negative least squares.
    """
    best, found = np.inf, target
    for sign, columns in shapes:
        theta, miss = nnls(columns, target)
        if miss < best - 1e-12:
            best = miss
            found = theta[0] - theta[1] + np.concatenate([[0.0], np.cumsum(sign * theta[2:])])
    return np.asarray(found, dtype=np.float64)
