"""Divergences between policy and reference: exact per token over the vocabulary, and the sampled estimators.

The budget of the study is KL(policy || reference) of whole responses. By the chain rule it is the expectation, over
responses of the policy, of the sum over positions of the KL between the two next-token distributions; taking that
inner KL exactly over the vocabulary and only the prefix from a sample gives an unbiased estimator that is never
negative and has less variance than the log-ratio (arXiv 2405.08448, App. D). All functions are pure; logits in,
nats out, computed in float32 or better. Masking and summing over positions is the caller's: these never see padding.
"""

from __future__ import annotations

import torch
from torch import Tensor


def kl_from_logits(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """KL(p || q) [N] of categorical distributions with logits [N, V]; sum of p (log p - log q), never below 0."""
    p, q = torch.log_softmax(p_logits.float(), -1), torch.log_softmax(q_logits.float(), -1)
    return (p.exp() * (p - q)).sum(-1).clamp_min(0.0)  # clamps rounding of order 1e-8 only


def entropy_from_logits(logits: Tensor) -> Tensor:
    """Entropy [N] in nats of categorical distributions with logits [N, V]."""
    log_p = torch.log_softmax(logits.float(), -1)
    return -(log_p.exp() * log_p).sum(-1)


def k1(log_ratio: Tensor) -> Tensor:
    """Plain estimator of KL(p || q) from samples of p, with log_ratio = log p - log q: unbiased, can be negative."""
    return log_ratio


def k2(log_ratio: Tensor) -> Tensor:
    """Half the squared log-ratio: biased, small variance near 0 (J. Schulman, "Approximating KL divergence", 2020)."""
    return 0.5 * log_ratio**2


def k3(log_ratio: Tensor) -> Tensor:
    """r - 1 - log r with r = q/p: unbiased, never negative, heavy tails when q/p is large (Schulman 2020)."""
    return torch.expm1(-log_ratio) + log_ratio
