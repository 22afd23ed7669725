"""The ceiling: the best win rate that any policy can have at a given KL from the reference, and how near an arm comes.

Among all policies with KL(pi || r) <= k on average over prompts, E_pi[q] is largest for pi proportional to
r exp(lambda q), with one lambda for all prompts (Gibbs' variational principle; arXiv 2605.07105 draws such a ceiling).
From n samples of r a prompt it is estimated by self-normalised weights. A finite sample bounds it from below, noise in
q would lift it; so q for tilting and q for scoring come from disjoint opponents and the two are exchanged. The curve
ends where the lowest decile over prompts of the effective sample size falls below a floor: about 0.7 n e^-KL is left
at a given KL, so that 4.6 nats take thousands of samples a prompt.

Shapes: P prompts, n responses a prompt. Leaves out: where samples and judgements come from.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq

from aligngap.stats.estimate import FloatArray
from aligngap.types import AligngapError, Estimate

#: effective samples that the lowest decile of prompts must keep
ESS_FLOOR = 50.0

#: the tilt beyond which nothing is looked for: the best response of a prompt then outweighs any other
STEEPEST = 1e5


def tilt(q: npt.ArrayLike, strength: float, log_weights: npt.ArrayLike | None = None) -> FloatArray:
    """The log-weights [P, n] of r exp(strength q), normalised per prompt; `log_weights` are r's, by default equal."""
    values = np.asarray(q, dtype=np.float64)
    base = np.full(values.shape, -np.log(values.shape[-1])) if log_weights is None else np.asarray(log_weights)
    logits = base + strength * values
    logits = logits - logits.max(-1, keepdims=True)
    return np.asarray(logits - np.log(np.exp(logits).sum(-1, keepdims=True)), dtype=np.float64)


def divergence(log_policy: FloatArray, log_weights: npt.ArrayLike | None = None) -> FloatArray:
    """KL [P] in nats of weights from the reference's, both normalised per prompt."""
    base = -np.log(log_policy.shape[-1]) if log_weights is None else np.asarray(log_weights)
    return np.asarray((np.exp(log_policy) * (log_policy - base)).sum(-1), dtype=np.float64)


def tilted_to(q: npt.ArrayLike, kl: float, log_weights: npt.ArrayLike | None = None) -> FloatArray | None:
    """Log-weights [P, n] of r exp(lambda q) with the one lambda at which the mean KL is `kl`; None: it never is."""
    found = strength_at(q, kl, log_weights)
    return None if found is None else tilt(q, found, log_weights)


def strength_at(q: npt.ArrayLike, kl: float, log_weights: npt.ArrayLike | None = None) -> float | None:
    """The lambda at which the mean over prompts of KL(r exp(lambda q) || r) is `kl`; None if no finite one has it."""
    if not kl > 0:
        raise AligngapError(f"ceiling: KL is {kl!r}: must be a positive number of nats")

    def off(log_strength: float) -> float:
        return float(divergence(tilt(q, float(np.exp(log_strength)), log_weights), log_weights).mean()) - kl

    if off(float(np.log(STEEPEST))) < 0 or off(-14.0) > 0:
        return None
    return float(np.exp(brentq(off, -14.0, float(np.log(STEEPEST)), xtol=1e-13)))


@dataclass(frozen=True)
class Ceiling:
    """The ceiling at one KL: its gain over the reference, each prompt's gain [P], and what carries the estimate."""

    kl: float
    gain: Estimate
    gains: FloatArray
    strength: float
    ess_low: float  # lowest decile over prompts of the effective sample size


def ceiling(
    q_first: npt.ArrayLike,
    q_second: npt.ArrayLike,
    kl: float,
    log_weights: npt.ArrayLike | None = None,
    floor: float = ESS_FLOOR,
) -> Ceiling | None:
    """The gain of the best policy at `kl` nats; None where too few effective samples are left or no tilt reaches it.

    q_first, q_second [P, n]: win probabilities of the same samples of r against two disjoint halves of the opponents.
    Each half tilts once and is scored by the other; the two gains are averaged. `log_weights` [P, n] makes it exact
    over an enumeration (pass the same q twice, floor 0). The standard error is over prompts, at the fitted lambda.
    """
    halves = [np.asarray(q, dtype=np.float64) for q in (q_first, q_second)]
    if halves[0].shape != halves[1].shape or halves[0].ndim != 2:
        raise AligngapError(
            f"ceiling: the two halves have shapes {halves[0].shape} and {halves[1].shape}: both must be [P, n]"
        )
    gains, strengths, ess = [], [], []
    for by, scored in (halves, halves[::-1]):
        strength = strength_at(by, kl, log_weights)
        if strength is None:
            return None
        weights = np.exp(tilt(by, strength, log_weights))
        base = np.exp(tilt(by, 0.0, log_weights))
        gains.append(((weights - base) * scored).sum(-1))
        strengths.append(strength)
        ess.append(float(np.quantile(1.0 / (weights**2).sum(-1), 0.1)))
    if min(ess) < floor:
        return None
    each = np.asarray((gains[0] + gains[1]) / 2.0, dtype=np.float64)
    how = "split-half Gibbs tilt of the reference, error over prompts"
    return Ceiling(kl, Estimate.mean(each, how), each, float(np.mean(strengths)), min(ess))


def efficiency(gains: npt.ArrayLike, best: Ceiling) -> Estimate:
    """An arm's gain as a share of the ceiling's at the same KL, from the arm's gains [P].

    The ceiling's prompts [K] are the first K of the arm's P. The standard error is that of a ratio of means over
    prompts (linearised); the KL's own error is not in it.
    """
    mine = np.asarray(gains, dtype=np.float64)
    size, few = len(mine), len(best.gains)
    if mine.ndim != 1 or size < few:
        raise AligngapError(f"efficiency: {size} prompts against the ceiling's {few}")
    bottom = float(best.gains.mean())
    value = float(mine.mean()) / bottom
    pull = (mine - mine.mean()) / size  # of each prompt on the numerator, less its pull on the denominator
    pull[:few] -= value * (best.gains - bottom) / few
    error = float(np.sqrt((pull**2).sum() * size / (size - 1.0))) / abs(bottom) if size > 1 else float("nan")
    return Estimate(value, error, size, "gain over the ceiling's at equal KL, linearised over prompts")
