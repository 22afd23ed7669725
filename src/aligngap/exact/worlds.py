"""Worlds of a few prompts and one-token responses, in which a policy is a table and nothing has to be sampled.

`capacity` has rewards that a few features explain; `skewed` goes with a one-parameter policy class. A world holds the
reference, the reward, what a judge or a policy may look at, and the distribution of the pairs in the data.

Letters for shapes: P prompts, K responses a prompt, F features, M = K (K - 1) / 2 unordered pairs of two different
responses (a pair of equal responses has margin 0 under every policy and is left out of every sum).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from aligngap.seeding import derive
from aligngap.types import AligngapError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class Pairs(NamedTuple):
    """A distribution over labelled pairs: weights [..., P, M] and p_first [..., P, M], the mean label of each pair.

    The weights of a prompt sum to 1 less the share of pairs of equal responses. `p_first` is the probability that the
    first of the two is preferred; where the weight is 0 it is one half and counts for nothing.
    """

    weights: Floats
    p_first: Floats


def ends_of_pairs(k: int) -> tuple[Ints, Ints]:
    """The first and the second response, [M] each, of every unordered pair of k responses."""
    first, second = np.triu_indices(k, 1)
    return first, second


def sigmoid(x: Floats) -> Floats:
    """1 / (1 + e^-x), without overflow."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * x)), dtype=np.float64)


def log_softmax(logits: Floats) -> Floats:
    """Normalised log-probabilities along the last axis."""
    shifted = logits - logits.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)), dtype=np.float64)


@dataclass(frozen=True, eq=False)
class World:
    """A reference, a true reward, features and the distribution of the data's pairs; all of it known exactly."""

    name: str
    log_reference: Floats  # [P, K]
    reward: Floats  # [P, K]; the true preference is Bradley-Terry's of it
    features: Floats  # [P, K, F]
    data_weights: Floats  # [P, M], how the pairs of the data are distributed

    @property
    def truth(self) -> Floats:
        """The true preference p(first beats second) [P, M] of every pair."""
        return preference(self.reward)

    @cached_property
    def win(self) -> Floats:
        """The true probability [P, K] that a response beats one of the reference, a tie counting one half."""
        gap = self.reward[:, :, None] - self.reward[:, None, :]
        return np.asarray((sigmoid(gap) * np.exp(self.log_reference)[:, None, :]).sum(-1), dtype=np.float64)

    def kl(self, log_policy: Floats) -> Floats:
        """KL(policy || reference) [...] in nats, averaged over prompts, of policies [..., P, K]."""
        ratio = log_policy - self.log_reference
        return np.asarray((np.exp(log_policy) * ratio).sum(-1).mean(-1), dtype=np.float64)

    def win_rate(self, log_policy: Floats) -> Floats:
        """True win rate [...] against the reference, averaged over prompts, of policies [..., P, K]."""
        return np.asarray((np.exp(log_policy) * self.win).sum(-1).mean(-1), dtype=np.float64)


def preference(score: Floats) -> Floats:
    """Bradley-Terry's probability [P, M] that the first response of each pair beats the second, by score [P, K]."""
    first, second = ends_of_pairs(score.shape[-1])
    return sigmoid(score[..., first] - score[..., second])


def independent(log_policy: Floats) -> Floats:
    """Weights [..., P, M] of the unordered pairs of two independent responses of a policy [..., P, K]."""
    first, second = ends_of_pairs(log_policy.shape[-1])
    return np.asarray(2.0 * np.exp(log_policy[..., first] + log_policy[..., second]), dtype=np.float64)


def capacity(seed: int, prompts: int = 24, responses: int = 12, features: int = 8, reward_sd: float = 2.0) -> World:
    """The capacity world: a reward that is the sum of a few features, so that a judge can be simpler than a policy.

    Features are N(0, 1), centred within the prompt; the reward is their sum, scaled to `reward_sd` over all responses;
    the reference is the softmax of N(0, 1) logits, and the data are independent pairs of it.
    """
    if prompts < 1 or responses < 2 or features < 1:
        raise AligngapError("the capacity world needs at least 1 prompt, 2 responses and 1 feature")
    rng = np.random.default_rng(derive(seed, "capacity world"))
    phi = rng.normal(size=(prompts, responses, features))
    phi -= phi.mean(axis=1, keepdims=True)
    reward = phi.sum(-1)
    log_reference = log_softmax(rng.normal(size=(prompts, responses)))
    return World("capacity", log_reference, reward * (reward_sd / reward.std()), phi, independent(log_reference))


def skewed(share: float) -> World:
    """The world of T4: one prompt, three responses of rewards 1, 2, 0, a uniform reference and uneven pairs.

    The policy's class is softmax of theta (1, -1, 0), one parameter. Pairs (3, 1) have the share `share`, the rest is
    divided equally between (1, 2) and (2, 3). After Gopalan et al. on misspecified policy classes.
    """
    if not 0.0 <= share <= 1.0:
        raise AligngapError(f"share of the pairs (3, 1) is {share!r}: must lie between 0 and 1")
    rest = (1.0 - share) / 2.0
    return World(
        "skewed",
        np.full((1, 3), -np.log(3.0)),
        np.array([[1.0, 2.0, 0.0]]),
        np.array([[[1.0], [-1.0], [0.0]]]),
        np.array([[rest, share, rest]]),  # pairs (1, 2), (1, 3), (2, 3)
    )


class Labels(NamedTuple):
    """Labelled pairs as counts: how often each pair stands in the data and how often its first response won, [P, M].

    `held_out` counts those on which a judge's training is stopped; they are among `counts`, since the offline arm
    learns from all of them.
    """

    counts: Floats
    wins: Floats
    held_out: Floats
    held_out_wins: Floats
    equal: float  # pairs of equal responses among them, which say nothing

    def pairs(self) -> Pairs:
        """The empirical distribution of the pairs and their mean labels, in the scale of `Pairs`."""
        total = max(1.0, float(self.equal + self.counts.sum()))
        weights = self.counts * (len(self.counts) / total)
        return Pairs(weights, np.where(self.counts > 0, self.wins / np.maximum(self.counts, 1.0), 0.5))


def draw_labels(world: World, n: int, seed: int, held_out: float = 0.2) -> Labels:
    """n pairs of the world's data, each with one label drawn from the true preference; a share of them held out.

    Prompts are uniform; a pair of equal responses counts as one of the n and carries no information.
    """
    if n < 1:
        raise AligngapError(f"number of labels is {n!r}: must be positive")
    rng = np.random.default_rng(derive(seed, "labels", n))
    prompts = len(world.log_reference)
    chances = np.append(world.data_weights.ravel() / prompts, 0.0)
    chances[-1] = max(0.0, 1.0 - chances.sum())
    outside = round(held_out * n)
    inside_drawn, outside_drawn = (rng.multinomial(m, chances / chances.sum()) for m in (n - outside, outside))
    shape = world.data_weights.shape
    inside, kept = (x[:-1].reshape(shape) for x in (inside_drawn, outside_drawn))
    won, kept_won = (rng.binomial(x, world.truth).astype(np.float64) for x in (inside, kept))
    equal = float(inside_drawn[-1] + outside_drawn[-1])
    return Labels((inside + kept).astype(np.float64), won + kept_won, kept.astype(np.float64), kept_won, equal)
