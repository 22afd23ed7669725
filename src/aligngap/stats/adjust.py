"""P-values adjusted for how many tests are made: by Holm (1979), and by Benjamini and Hochberg (1995)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from aligngap.stats.estimate import FloatArray

Step = Callable[[FloatArray, int], FloatArray]


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values; nan stays nan and is not counted."""
    return _step(p, lambda ordered, n: np.maximum.accumulate(ordered * (n - np.arange(n))))


def benjamini_hochberg(p: Sequence[float]) -> list[float]:
    """Benjamini and Hochberg's adjusted p-values; nan stays nan and is not counted."""
    return _step(p, lambda ordered, n: np.minimum.accumulate((ordered * n / np.arange(1, n + 1))[::-1])[::-1])


def _step(p: Sequence[float], adjust: Step) -> list[float]:
    values = np.asarray(p, dtype=np.float64)
    known = np.flatnonzero(np.isfinite(values))
    out = np.full(len(values), np.nan)
    if len(known):
        order = known[np.argsort(values[known], kind="stable")]
        out[order] = np.minimum(adjust(values[order], len(known)), 1.0)
    return [float(v) for v in out]
