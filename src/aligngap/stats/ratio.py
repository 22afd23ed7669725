"""A difference as a share of another difference, with an interval that knows when the denominator may be zero.

Fieller's method (1954, J. R. Stat. Soc. B 16: 175-185) on `two_level`: a share r is in the interval when the two-level
interval of `numerator - r denominator` holds 0. If the denominator's own interval holds 0 no share can be excluded, and
the share is undefined, not large.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq

from aligngap.stats.estimate import NAN, FloatArray, two_level
from aligngap.types import Estimate

#: a share beyond this (a hundred times the denominator) is given as unbounded
FAR = 100.0


def ratio(
    top: npt.ArrayLike, top_reps: npt.ArrayLike, bottom: npt.ArrayLike, bottom_reps: npt.ArrayLike, level: float = 0.95
) -> tuple[Estimate, tuple[float, float]]:
    """Mean over seeds of `top` over that of `bottom`; point [S], replicates [S, B], drawn on the same prompts."""
    t, b = np.asarray(top, dtype=np.float64), np.asarray(bottom, dtype=np.float64)
    t_reps, b_reps = np.asarray(top_reps, dtype=np.float64), np.asarray(bottom_reps, dtype=np.float64)
    below = two_level(b, b_reps, level)
    low, high = below.interval() if below.n else (NAN, NAN)
    if not (np.isfinite(low) and np.isfinite(high)) or low <= 0 <= high or not np.isfinite(t).all():
        return Estimate(NAN, NAN, len(b), "undefined: the denominator's interval holds 0"), (NAN, NAN)
    value = float(t.mean() / b.mean())
    spread = two_level(t - value * b, t_reps - value * b_reps, level)
    se = float(spread.se[0] / abs(b.mean()))

    def outside(share: float) -> float:
        """Below 0 inside the interval, above 0 outside."""
        found = two_level(t - share * b, t_reps - share * b_reps, level)
        half = float(found.upper[0] - found.value[0])
        return abs(float(found.value[0])) - half

    ends = tuple(_crossing(outside, value, side * max(se, 1e-3)) for side in (-1.0, 1.0))
    how = f"ratio of means over {len(b)} seed(s), Fieller interval"
    return Estimate(value, se, len(b), how), (ends[0], ends[1])


def _crossing(outside: Callable[[float], float], start: float, step: float) -> float:
    """Where `outside` first turns positive on one side of `start`; infinite if it does not within `FAR`."""
    if outside(start) >= 0:
        return start
    inner = start
    while abs(inner - start) < FAR:
        outer = inner + step
        if outside(outer) > 0:
            return float(brentq(outside, min(inner, outer), max(inner, outer), xtol=1e-6))
        inner, step = outer, 1.5 * step
    return float(np.copysign(np.inf, step))


def slope_weights(x: npt.ArrayLike) -> FloatArray:
    """Weights [n] whose product with values at x [n] is their least-squares slope; nan if x does not vary."""
    a = np.asarray(x, dtype=np.float64)
    centred = a - a.mean()
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(centred / np.where((centred**2).sum() > 0, (centred**2).sum(), np.nan))
