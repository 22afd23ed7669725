"""A difference as a share of another difference, with an interval that knows when the denominator may be zero.

Fieller's method (1954, J. R. Stat. Soc. B 16: 175-185) on the t intervals of `budgets`: a share r is in the interval
when the interval of `numerator - r denominator` holds 0. If the denominator's own interval holds 0 no share can be
excluded, and the share is undefined, not large.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq

from aligngap.stats.estimate import NAN, FloatArray
from aligngap.stats.seedwise import LEVEL, Seedwise, mean_over_seeds
from aligngap.types import Estimate

#: a share beyond this (a hundred times the denominator) is given as unbounded
FAR = 100.0


def ratio(top: Seedwise, bottom: Seedwise, level: float = LEVEL) -> tuple[Estimate, tuple[float, float]]:
    """The mean over seeds of `top` over that of `bottom`, both at one place [S, 1] and over the same seeds."""
    above, below = mean_over_seeds(top), mean_over_seeds(bottom)
    low, high = below.interval(level)
    if not (np.isfinite(low) and np.isfinite(high)) or low <= 0 <= high or not np.isfinite(above.value):
        return Estimate(NAN, NAN, below.n, "undefined: the denominator's interval holds 0"), (NAN, NAN)
    value = above.value / below.value
    se = mean_over_seeds(top.plus(bottom, -value)).se / abs(below.value)

    def outside(share: float) -> float:
        """Below 0 inside the interval, above 0 outside."""
        found = mean_over_seeds(top.plus(bottom, -share))
        return abs(found.value) - (found.interval(level)[1] - found.value)

    ends = tuple(_crossing(outside, value, side * max(se, 1e-3)) for side in (-1.0, 1.0))
    how = f"ratio of means over {below.n} seed(s), Fieller interval"
    return Estimate(value, se, below.n, how), (ends[0], ends[1])


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
