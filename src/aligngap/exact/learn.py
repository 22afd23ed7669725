"""One trainer for both arms: exact gradients of the product's own loss over all pairs, and where the pairs come from.

`train` steps down the expected loss of a stack of R policies at once. It asks a source for the pairs and never looks at
which source it is: `OnPolicy` weighs the pairs as the policy as it stands writes them, without gradient, and labels
them by a judge's scores; `Fixed` returns one distribution for ever. Everything else is shared by the arms. A soft label
is exact here: every loss of `aligngap.losses` that is linear in the label has the same mean for a drawn label.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from aligngap.exact.worlds import Floats, Pairs, World, ends_of_pairs, independent, log_softmax
from aligngap.losses import Loss, PairLogps


class Source(Protocol):
    """Where the pairs come from: the one thing in which online and offline differ."""

    def draw(self, log_policy: Floats) -> Pairs:
        """The pairs [R, P, M] to learn from, given the policies [R, P, K] as they stand."""
        ...


@dataclass(frozen=True, eq=False)
class Fixed:
    """The same pairs for ever: a data set, or a distribution that was written down."""

    pairs: Pairs  # [R, P, M]

    def draw(self, log_policy: Floats) -> Pairs:
        return self.pairs


@dataclass(frozen=True, eq=False)
class OnPolicy:
    """Independent pairs of the policy as it stands, labelled by a judge's preference."""

    p_first: Floats  # [R, P, M]

    def draw(self, log_policy: Floats) -> Pairs:
        return Pairs(independent(log_policy), self.p_first)


@dataclass(frozen=True, eq=False)
class PolicyClass:
    """Policies reference * exp(design @ theta): `design` is None for a table, else [R, P, K, D]."""

    world: World
    design: Floats | None = None

    def start(self, runs: int) -> Tensor:
        """Parameters of the reference itself: zeros [R, P, K] or [R, D]."""
        shape = self.world.log_reference.shape if self.design is None else self.design.shape[-1:]
        return torch.zeros((runs, *shape), dtype=torch.float64)

    def log_probabilities(self, theta: Tensor) -> Tensor:
        """log pi [R, P, K]."""
        moved = theta if self.design is None else torch.einsum("rpkd,rd->rpk", torch.from_numpy(self.design), theta)
        return torch.log_softmax(torch.from_numpy(self.world.log_reference) + moved, -1)

    def curvature(self) -> float:
        """The largest curvature, over the class's directions, of E[h^2] summed over prompts for pairs of the data."""
        every = [
            laplacian(self.world.data_weights[p], self.world.reward.shape[1]) for p in range(len(self.world.reward))
        ]
        if self.design is None:
            return 2.0 * max(float(np.linalg.eigvalsh(one)[-1]) for one in every)
        seen = np.einsum("rpkd,pkl,rple->rde", self.design, np.stack(every), self.design)
        return 2.0 * float(np.linalg.eigvalsh(seen).max())


def laplacian(weights: Floats, k: int) -> Floats:
    """The matrix L [K, K] with theta' L theta = sum over pairs of weight (theta_i - theta_j)^2, weights [M]."""
    first, second = ends_of_pairs(k)
    out = np.zeros((k, k))
    np.add.at(out, (first, first), weights)
    np.add.at(out, (second, second), weights)
    np.add.at(out, (first, second), -weights)
    np.add.at(out, (second, first), -weights)
    return out


@cache
def _sides(k: int) -> tuple[Tensor, Tensor]:
    """Indicators [K, M] of the first and the second response of each pair; a product with them picks, and is quick."""
    eye = torch.eye(k, dtype=torch.float64)
    first, second = ends_of_pairs(k)
    return eye[:, first].contiguous(), eye[:, second].contiguous()


def expected_loss(loss: Loss, log_policy: Tensor, log_reference: Tensor, pairs: Pairs) -> Tensor:
    """The exact mean loss [R] over all pairs, summed over prompts, of policies [R, P, K]."""
    first, second = _sides(log_policy.shape[-1])
    weights, p_first = (torch.from_numpy(np.ascontiguousarray(x)) for x in pairs)
    one = torch.ones((), dtype=log_policy.dtype)
    x = PairLogps(
        policy_chosen=log_policy @ first,
        policy_rejected=log_policy @ second,
        ref_chosen=log_reference @ first,
        ref_rejected=log_reference @ second,
        p_chosen=p_first,
        chosen_length=one,
        rejected_length=one,
    )
    return (weights * loss(x)).sum((-1, -2))


@dataclass(frozen=True, eq=False)
class Path:
    """A stack of R trainings: KL and true win rate [T + 1, R] after each step, and the last parameters [R, ...]."""

    kl: Floats
    win: Floats
    theta: Floats


def step_sizes(steps: int, curvature: float, warmup: int, fraction: float = 0.4) -> Floats:
    """Step sizes [T]: linear warm-up to `fraction` of the inverse curvature of the loss of form "target"."""
    ramp = np.minimum(1.0, np.arange(1, steps + 1) / max(1, warmup))
    return np.asarray(fraction * ramp / curvature, dtype=np.float64)


def train(policies: PolicyClass, source: Source, loss: Loss, runs: int, sizes: Floats) -> Path:
    """Plain gradient descent from the reference: draw, step, measure; every arm of every exact study is this loop."""
    world = policies.world
    reference = torch.from_numpy(world.log_reference)
    theta = policies.start(runs).requires_grad_()
    kl, win = np.zeros((len(sizes) + 1, runs)), np.zeros((len(sizes) + 1, runs))
    log_policy = policies.log_probabilities(theta)
    for step in range(len(sizes) + 1):
        now = log_policy.detach().numpy()
        kl[step], win[step] = world.kl(now), world.win_rate(now)
        if step == len(sizes):
            break
        value = expected_loss(loss, log_policy, reference, source.draw(now)).sum()
        (gradient,) = torch.autograd.grad(value, theta)
        with torch.no_grad():
            theta -= float(sizes[step]) * gradient
        log_policy = policies.log_probabilities(theta)
    return Path(kl, win, theta.detach().numpy().copy())


def policy_of(world: World, tilt: Floats) -> Floats:
    """log pi of reference * exp(tilt), normalised."""
    return log_softmax(world.log_reference + tilt)
