"""The first-order law of the gain: near the reference only the direction of the log-ratio counts.

With g = log pi - log r and q the win probability, gain = sqrt(2 KL) sd(q) rho(g, q) (1 + O(sqrt KL)), where
rho = E_x[Cov(g, q)] / sqrt(E_x[Var g] E_x[Var q]), under r within each prompt and then averaged over prompts, since
E_pi[q] - q0 is Cov_r(g, q) and KL is Var_r(g) / 2 to first order. It is a small-KL statement and nothing else: beyond a
nat it overstates. Noise in q attenuates rho, so that only rho sd(q), `slope`, compares between evaluators.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from aligngap.stats.estimate import FloatArray
from aligngap.types import AligngapError, Estimate


@dataclass(frozen=True)
class FirstOrder:
    """rho(g, q), sd(q), and their product, the gain per sqrt(2 KL); each with its jackknife error over prompts."""

    rho: Estimate
    sd_q: Estimate
    slope: Estimate

    def gain(self, kl: float) -> float:
        """The gain that the law says at `kl` nats."""
        return float(np.sqrt(2.0 * kl)) * self.slope.value


def first_order(g: npt.ArrayLike, q: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> FirstOrder:
    """rho, sd(q) and the slope from log-ratios and win probabilities [P, n] of the same responses of the reference.

    Without `weights` the responses are samples, and covariances divide by n - 1; with them ([P, n], the reference's
    probabilities) they are an enumeration. A constant may be added to g per prompt. At least 2 responses a prompt.
    """
    ratio, win = np.asarray(g, dtype=np.float64), np.asarray(q, dtype=np.float64)
    if ratio.shape != win.shape or ratio.ndim != 2 or ratio.shape[1] < 2:
        raise AligngapError(f"first_order: g has shape {ratio.shape} and q {win.shape}: both must be [P, n], n above 1")
    n = ratio.shape[1]
    w = np.full(ratio.shape, 1.0 / n) if weights is None else np.asarray(weights, dtype=np.float64)
    scale = n / (n - 1.0) if weights is None else 1.0
    dg = ratio - (w * ratio).sum(-1, keepdims=True)
    dq = win - (w * win).sum(-1, keepdims=True)
    parts = scale * np.stack([(w * dg * dq).sum(-1), (w * dg * dg).sum(-1), (w * dq * dq).sum(-1)])  # [3, P]
    found = _law(parts.mean(-1))
    prompts = parts.shape[1]
    error = np.full(3, np.nan)
    if prompts > 1:
        left = (parts.sum(-1, keepdims=True) - parts) / (prompts - 1)
        each = np.stack([_law(left[:, p]) for p in range(prompts)])
        error = np.sqrt((prompts - 1) / prompts * ((each - each.mean(0)) ** 2).sum(0))
    how = "within prompts under the reference, jackknife over prompts"
    rho, sd, slope = (Estimate(float(v), float(e), prompts, how) for v, e in zip(found, error, strict=True))
    return FirstOrder(rho, sd, slope)


def _law(parts: FloatArray) -> FloatArray:
    """rho, sd(q) and their product from the mean covariance and variances; nan where g does not vary."""
    covariance, var_g, var_q = parts
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.array([covariance / np.sqrt(var_g * var_q), np.sqrt(var_q), covariance / np.sqrt(var_g)])
