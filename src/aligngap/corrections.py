"""Corrections for pairs that another policy wrote than the one that learns: each a loss around a loss, of a few lines.

A correction reads how far the policy has gone from the writer, log(policy / writer) of each response
(`PairLogps.ratios`), and weighs, clips or leaves out. Where who wrote is a data set, the reference stands for the
writer. All go by whole responses, as the losses do; the papers on token-wise losses clip tokens, so that their
thresholds are not ours. Named by `recipe.correction`, the same for every arm.

What this module leaves out: the losses (`losses.py`), and who stores the writer's log-probabilities (`streams/`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from aligngap.losses import Loss, PairLogps
from aligngap.types import AligngapError

if TYPE_CHECKING:
    from torch import Tensor


def _check_positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise AligngapError(f"correction.{name} is {value!r}: must be a positive number")


@dataclass(frozen=True)
class Importance:
    """A loss times the clipped importance ratio of its pair: IS-DAA, Nguyen et al. 2025, arXiv 2506.08681.

    The weight is pi(y_w) pi(y_l) / (mu(y_w) mu(y_l)), at most `bound`, with mu who wrote the pair; the paper takes the
    reference for mu, whose data are offline. No gradient flows through the weight: unclipped, the expected gradient on
    mu's pairs is that of the loss on the policy's own. The paper's clip is not known to us; 2 is ours.
    """

    loss: Loss
    bound: float = 2.0

    reads_writer = True

    def __post_init__(self) -> None:
        _check_positive("bound", self.bound)

    def __call__(self, x: PairLogps) -> Tensor:
        chosen, rejected = x.ratios()
        return (chosen + rejected).detach().clamp_max(math.log(self.bound)).exp() * self.loss(x)


@dataclass(frozen=True)
class Perceptual:
    """A loss on log-ratios to the reference that are clipped to [`low`, `high`] nats.

    After the humanline losses, Liu, Muennighoff and Ethayarajh 2025, arXiv 2509.24207, which clip the likelihood
    ratios to the reference ahead of the loss, asymmetrically, and refresh the reference (`recipe.reference`); they clip
    every token's, this clips a response's. A response beyond a bound gives no gradient, from either side.
    """

    loss: Loss
    low: float = -4.0
    high: float = 4.0

    reads_writer = False

    def __post_init__(self) -> None:
        if not self.low < 0 < self.high:
            raise AligngapError(f"correction.low and high are {self.low!r} and {self.high!r}: 0 must lie between them")

    def __call__(self, x: PairLogps) -> Tensor:
        chosen = x.ref_chosen + (x.policy_chosen - x.ref_chosen).clamp(self.low, self.high)
        rejected = x.ref_rejected + (x.policy_rejected - x.ref_rejected).clamp(self.low, self.high)
        return self.loss(replace(x, policy_chosen=chosen, policy_rejected=rejected))


@dataclass(frozen=True)
class Proximal:
    """The larger of a loss and of the same at a margin that is clipped near the writer's: PPO's bound, on pairs.

    Schulman et al. 2017, arXiv 1707.06347, Eq. 7, with the ratio of a pair: since it was written its margin has moved
    by d = log pi(y_w)/mu(y_w) - log pi(y_l)/mu(y_l), which is clipped to at most log(1 + `epsilon`) either way. A pair
    that has gone further in the direction in which its loss falls gives no gradient; one that went the other way does.
    For losses that read pairs by their margin.
    """

    loss: Loss
    epsilon: float = 0.2

    reads_writer = True

    def __post_init__(self) -> None:
        _check_positive("epsilon", self.epsilon)

    def __call__(self, x: PairLogps) -> Tensor:
        chosen, rejected = x.ratios()
        moved, most = chosen - rejected, math.log1p(self.epsilon)
        beyond = (moved - moved.clamp(-most, most)) / 2
        near = replace(x, policy_chosen=x.policy_chosen - beyond, policy_rejected=x.policy_rejected + beyond)
        return self.loss(x).maximum(self.loss(near))


@dataclass(frozen=True)
class SecondMoment:
    """A loss without the pairs that have gone furthest from their writers: M2PO, Zheng et al. 2025, arXiv 2510.01161.

    Of a batch the pairs with the largest mean of (log pi/mu)^2 over their two responses are left out, until the mean
    over those that stay is at most `threshold`; the rest is divided by the number of all pairs, as in the paper, whose
    0.04 is for tokens. Pairs with small ratios are never clipped, however many there are.
    """

    loss: Loss
    threshold: float = 0.04

    reads_writer = True
    reads_batch = True  # a batch in parts would be another batch

    def __post_init__(self) -> None:
        _check_positive("threshold", self.threshold)

    def __call__(self, x: PairLogps) -> Tensor:
        chosen, rejected = x.ratios()
        moment, order = ((chosen**2 + rejected**2) / 2).detach().sort()
        stays = moment.cumsum(0) <= self.threshold * moment.new_ones(len(moment)).cumsum(0)
        return stays[order.argsort()] * self.loss(x)
