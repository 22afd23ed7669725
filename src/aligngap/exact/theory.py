"""What is known before any policy is trained: closed forms for static pairs, fixed points of the online arm, T4.

Let w be the pairs' weights, p their labels, L the Laplacian of w and b_i = sum_j w_ij (2 p(i beats j) - 1). The
expected IPO loss of form "target" is theta' L theta - theta' b / beta + const in a tabular policy's logits (the
normaliser cancels in a margin), so on *static* pairs gradient descent is linear: its optimum is pinv(L) b / (2 beta)
and every step is known (Azar et al. 2023, arXiv 2310.12036, for the optimum). With the design X of a linear policy L
becomes X'LX and b becomes X'b. On its own pairs a policy ends where the optimum for them is itself (2403.08635).

The *twin* of an online run learns from static pairs: the reference's own, labelled by the same judge. To first order in
the distance from the reference it is the online run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq

from aligngap.exact.learn import laplacian
from aligngap.exact.worlds import Floats, Pairs, World, ends_of_pairs, independent, log_softmax, skewed
from aligngap.types import RunFailed


def pull(pairs: Pairs, k: int) -> Floats:
    """b [P, K]: b_i = sum over j of w_ij (2 p(i beats j) - 1)."""
    first, second = ends_of_pairs(k)
    signed = pairs.weights * (2.0 * pairs.p_first - 1.0)
    out = np.zeros((*signed.shape[:-1], k))
    for m, (i, j) in enumerate(zip(first, second, strict=True)):
        out[..., i] += signed[..., m]
        out[..., j] -= signed[..., m]
    return out


def laplacians(weights: Floats, k: int) -> Floats:
    """`laplacian` of every prompt: weights [P, M] to [P, K, K]."""
    return np.stack([laplacian(one, k) for one in weights])


@dataclass(frozen=True, eq=False)
class Static:
    """Gradient descent on static pairs, solved: modes of the curvature and how far each is pulled.

    `vectors` [N, D, D] and `values` [N, D] are eigenpairs of N independent blocks (prompts of a table, one of a linear
    policy), `target` [N, D] the optimum in those coordinates at beta = 1, 0 where the pairs say nothing.
    """

    vectors: Floats
    values: Floats
    target: Floats
    design: Floats | None  # [P, K, D] of a linear policy

    def tilt(self, beta: float, progress: Floats | None = None) -> Floats:
        """log pi - log reference + const, [P, K]: at the optimum, or with each mode at `progress` [N, D] of its way."""
        reached = self.target if progress is None else self.target * progress
        theta = np.einsum("nde,ne->nd", self.vectors, reached) / beta
        return theta if self.design is None else np.asarray(self.design @ theta[0], dtype=np.float64)

    def progress(self, sizes: Floats) -> Floats:
        """How far each mode has come after each of the steps, [T + 1, N, D]: 1 - prod (1 - 2 size value)."""
        left = np.cumprod(1.0 - 2.0 * sizes[:, None, None] * self.values, axis=0)
        return np.concatenate([np.zeros((1, *self.values.shape)), 1.0 - left])


def static(world: World, pairs: Pairs, design: Floats | None = None) -> Static:
    """The solution of gradient descent on these pairs [P, M], for a table or a linear policy of design [P, K, D]."""
    k = world.reward.shape[1]
    curvature, b = laplacians(pairs.weights, k), pull(pairs, k)
    if design is not None:
        curvature = np.einsum("pkd,pkl,ple->de", design, curvature, design)[None]
        b = np.einsum("pkd,pk->d", design, b)[None]
    values, vectors = np.linalg.eigh(curvature)
    values = np.where(values > 1e-12 * values.max(), values, 0.0)
    along = np.einsum("nde,nd->ne", vectors, b)
    target = np.where(values > 0, along / (2.0 * np.where(values > 0, values, 1.0)), 0.0)
    return Static(vectors, values, target, design)


def static_path(world: World, solved: Static, beta: float, sizes: Floats) -> tuple[Floats, Floats]:
    """KL and true win rate [T + 1] along gradient descent on static pairs, without taking a step."""
    reached = solved.target * solved.progress(sizes)  # [T + 1, N, D]
    theta = np.einsum("nde,tne->tnd", solved.vectors, reached) / beta
    tilt = theta if solved.design is None else np.einsum("pkd,td->tpk", solved.design, theta[:, 0])
    log_policy = log_softmax(world.log_reference + tilt)
    return world.kl(log_policy), world.win_rate(log_policy)


def equilibria(world: World, p_first: Floats, betas: Floats, design: Floats | None = None) -> list[Floats | None]:
    """Where online IPO ends at each beta (given in falling order): log pi [P, K], each found from the one before.

    A table ends at g(y) = (p(y beats pi) - 1/2) / beta + const, the regularised Nash equilibrium, here by Newton's
    method prompt by prompt; a linear policy where the expected gradient over its own pairs is zero. A misspecified
    linear class may have no such place that is reached from the reference: None there and at every smaller beta.
    """
    found: list[Floats | None] = []
    k = world.reward.shape[1]
    first, second = ends_of_pairs(k)
    matrix = np.full((len(p_first), k, k), 0.5)
    matrix[:, first, second], matrix[:, second, first] = p_first, 1.0 - p_first
    theta: Floats | None = np.zeros(world.reward.shape if design is None else design.shape[-1:])
    before = 0.0
    for beta in betas:
        # small steps in 1 / beta keep Newton's method near its solution
        for inverse in np.linspace(before, 1.0 / float(beta), 2 + int(1.0 / float(beta) - before))[1:]:
            if theta is not None and design is None:
                theta = _nash(world, matrix, inverse, theta)
            elif theta is not None and design is not None:
                theta = _linear(world, p_first, inverse, design, theta)
        before = 1.0 / float(beta)
        tilt = theta if theta is None or design is None else design @ theta
        found.append(None if tilt is None else log_softmax(world.log_reference + tilt))
    return found


def _nash(world: World, matrix: Floats, inverse: float, g: Floats) -> Floats | None:
    eye = np.eye(g.shape[1])
    for _ in range(200):
        pi = np.exp(log_softmax(world.log_reference + g))
        off = g - inverse * (np.einsum("pij,pj->pi", matrix, pi) - 0.5)
        if float(np.abs(off).max()) < 1e-11:
            return g
        moved = pi[:, :, None] * (eye - pi[:, None, :])  # d pi / d g
        g = g - np.linalg.solve(eye - inverse * matrix @ moved, off[:, :, None])[:, :, 0]
    return None


def _linear(world: World, p_first: Floats, inverse: float, design: Floats, theta: Floats) -> Floats | None:
    first, second = ends_of_pairs(world.reward.shape[1])
    difference, total = design[:, first] - design[:, second], design[:, first] + design[:, second]  # [P, M, D]
    for _ in range(200):
        log_policy = log_softmax(world.log_reference + design @ theta)
        mean = np.einsum("pk,pkd->pd", np.exp(log_policy), design)
        weights = independent(log_policy)
        off = weights * (difference @ theta - inverse * (p_first - 0.5))
        gradient = np.einsum("pm,pmd->d", off, difference)
        slope = np.einsum("pm,pmd,pme->de", weights, difference, difference)
        slope += np.einsum("pm,pmd,pme->de", off, difference, total - 2.0 * mean[:, None])
        step = np.linalg.lstsq(slope, gradient, rcond=1e-12)[0]
        if float(np.abs(step).max()) < 1e-9:
            return theta
        theta = theta - step * min(1.0, 1.0 / float(np.abs(step).max()))
    return None


# ---------------------------------------------------------------------------------------------------- T4, skewed pairs


def turning_point(hard: bool) -> float:
    """The share of pairs (3, 1) in `worlds.skewed` above which offline IPO moves away from the best response.

    The sign of the optimum is that of sum over pairs of weight (phi_i - phi_j)(2 p(i beats j) - 1), which is linear in
    the share; its root is found numerically. `hard`: the labels are the signs of the reward differences.
    """
    return float(brentq(lambda share: offline_direction(share, hard), 0.0, 1.0, xtol=1e-14))


def skewed_pairs(world: World, hard: bool) -> Pairs:
    """The pairs of a skewed world with the true probabilities as labels, or with hard ones."""
    return Pairs(world.data_weights, (np.sign(world.truth - 0.5) + 1.0) / 2.0 if hard else world.truth)


def offline_direction(share: float, hard: bool) -> float:
    """What has the sign of theta at the offline optimum of a skewed world: negative is towards the best response."""
    world = skewed(share)
    b = pull(skewed_pairs(world, hard), 3)
    return float((world.features[..., 0] * b).sum())


def skewed_policy(kl_nats: float, sign: int) -> Floats:
    """The policy [1, 3] of the one-parameter class on one side of the reference at this KL, as log-probabilities."""
    world = skewed(0.0)
    along = world.features[..., 0]
    most = math.log(3.0)
    if not 0.0 < kl_nats < most:
        raise RunFailed(f"the skewed world's policies have between 0 and {most:.3f} nats, not {kl_nats}")
    theta = brentq(lambda t: float(world.kl(log_softmax(world.log_reference + sign * t * along))) - kl_nats, 0.0, 60.0)
    return log_softmax(world.log_reference + sign * float(theta) * along)
