"""The gain split into what lies within the reference's reach and what lies beyond it: exact at every KL.

With g = log pi - log r of a response and q its win probability against a fixed opponent, q0 that of the reference,

    gain = On_c + Beyond_c,  On_c = E_pi[(q - q0) 1{g <= c}],  Beyond_c = E_pi[(q - q0) 1{g > c}].

On_c is what choosing among about e^c responses of the reference could have found; Beyond_c is won or lost on responses
that the reference hardly writes. Both are plain means over the policy's *own* samples, without weights. Shapes: P
prompts, n responses a prompt.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from aligngap.stats.estimate import FloatArray
from aligngap.types import AligngapError, Estimate


@dataclass(frozen=True)
class Reach:
    """The split at one threshold, each part with its standard error over prompts; `gain` is the sum of the two."""

    threshold: float  # c, nats
    gain: Estimate
    within: Estimate  # On_c
    beyond: Estimate  # Beyond_c
    share_within: Estimate  # P_pi(g <= c)
    mean_within: Estimate  # mean of q - q0 where g <= c; nan where nothing is
    mean_beyond: Estimate


def split(
    wins: npt.ArrayLike, q0: npt.ArrayLike, g: npt.ArrayLike, threshold: float, weights: npt.ArrayLike | None = None
) -> Reach:
    """The split at `threshold` nats from wins [P, n] and log-ratios g [P, n] of the policy's samples, q0 [P] the
    reference's win probability. `weights` [P, n], the policy's probabilities, make it exact over an enumeration."""
    win, ratio, base = (np.asarray(x, dtype=np.float64) for x in (wins, g, q0))
    if win.ndim != 2 or win.shape != ratio.shape or base.shape != win.shape[:1]:
        raise AligngapError(
            f"reach: wins {win.shape}, g {ratio.shape}, q0 {base.shape}: must be [P, n], [P, n] and [P]"
        )
    w = np.full(win.shape, 1.0 / win.shape[1]) if weights is None else np.asarray(weights, dtype=np.float64)
    excess, near = win - base[:, None], ratio <= threshold
    on, off = (w * excess * near).sum(-1), (w * excess * ~near).sum(-1)
    share = (w * near).sum(-1)
    within, beyond = Estimate.mean(on), Estimate.mean(off)
    total = Estimate.mean(on + off)
    return Reach(
        float(threshold),
        Estimate(within.value + beyond.value, total.se, total.n, total.how),
        within,
        beyond,
        Estimate.mean(share),
        _ratio(on, share),
        _ratio(off, (w * ~near).sum(-1)),
    )


def within_from_reference(
    wins: npt.ArrayLike, q0: npt.ArrayLike, g: npt.ArrayLike, threshold: float, weights: npt.ArrayLike | None = None
) -> Estimate:
    """On_c from samples of the *reference*: the mean of e^g (q - q0) 1{g <= c}, a check at small c.

    Usable for c up to about log n - 2 with n samples a prompt; g must be normalised log-ratios.
    """
    win, ratio, base = (np.asarray(x, dtype=np.float64) for x in (wins, g, q0))
    w = np.full(win.shape, 1.0 / win.shape[1]) if weights is None else np.asarray(weights, dtype=np.float64)
    near = ratio <= threshold
    return Estimate.mean((w * np.where(near, np.exp(np.where(near, ratio, 0.0)), 0.0) * (win - base[:, None])).sum(-1))


def _ratio(top: FloatArray, bottom: FloatArray) -> Estimate:
    """Ratio of two means over prompts, with the linearised standard error; nan where the denominator is 0."""
    mean = float(bottom.mean())
    how = "ratio of means over prompts, linearised"
    if mean <= 0.0:
        return Estimate(float("nan"), float("nan"), len(top), how)
    value = float(top.mean()) / mean
    return Estimate(value, Estimate.mean((top - value * bottom) / mean).se, len(top), how)
