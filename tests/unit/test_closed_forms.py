"""Optima known in closed form, reached by the losses and by the real training loop.

The tabular world: one prompt, K responses of one token, so that policy, KL and optimum are exact. First the losses
alone, with every pair enumerated under its probability (no sampling); then the same optima through `fit`, the real
streams and a tiny transformer, sampled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import TableJudge, pair, prompt, response, tiny_policy
from torch import Tensor

from aligngap.fit import Trainer, fit, pair_objective
from aligngap.losses import DPO, IPO, BestOfTwo, Loss, PairLogps
from aligngap.models.pair_logps import with_reference
from aligngap.models.policy import Policy
from aligngap.settings import Optimization
from aligngap.streams import Dataset, OnPolicy
from aligngap.types import Pair, Prompt, Response

Array = np.ndarray


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max())
    return e / e.sum()


def kl(p: Array, q: Array) -> float:
    return float((p * np.log(p / q)).sum())


def random_world(k: int, seed: int) -> tuple[Array, Array, Array]:
    """A reference, a full-support behavior, and preferences, p[i, j] + p[j, i] = 1, that no scalar reward explains."""
    rng = np.random.default_rng(seed)
    upper = np.triu(rng.uniform(0.05, 0.95, (k, k)), 1)
    p = upper + np.tril(1 - upper.T, -1) + 0.5 * np.eye(k)
    return softmax(rng.normal(size=k)), softmax(rng.normal(size=k)), p


def cyclic_world(k: int = 5) -> tuple[Array, Array]:
    """Rock, paper, scissors and more: each response beats the next half of the circle; an uneven reference."""
    p = np.full((k, k), 0.5)
    for i in range(k):
        for ahead in range(1, (k + 1) // 2):
            p[i, (i + ahead) % k], p[(i + ahead) % k, i] = 0.9, 0.1
    return softmax(np.linspace(1.2, -1.2, k)), p


def every_pair(logits: Tensor, ref: Array, p: Array) -> PairLogps:
    """All K x K ordered pairs of a tabular policy, in row-major order, with soft labels."""
    k = len(ref)
    log_pi, log_ref = torch.log_softmax(logits, -1), torch.tensor(np.log(ref))
    i, j = (x.flatten() for x in torch.meshgrid(torch.arange(k), torch.arange(k), indexing="ij"))
    ones = torch.ones(k * k, dtype=torch.float64)
    return PairLogps(log_pi[i], log_pi[j], log_ref[i], log_ref[j], torch.tensor(p).flatten(), ones, ones)


def minimise(loss: Loss, ref: Array, mu: Array, p: Array) -> Array:
    """The policy that minimises the exact expected loss over pairs of mu x mu."""
    logits = torch.tensor(np.log(ref)).clone().requires_grad_()
    weights = torch.tensor(np.outer(mu, mu).flatten())
    optimizer = torch.optim.LBFGS(
        [logits], max_iter=2000, tolerance_grad=1e-12, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = (weights * loss(every_pair(logits, ref, p))).sum()
        value.backward()
        return value

    optimizer.step(closure)
    return softmax(logits.detach().numpy())


def nash(ref: Array, p: Array, beta: float) -> Array:
    """The regularised Nash equilibrium, pi = softmax(log ref + p(y > pi) / beta), by damped iteration in numpy."""
    pi = ref.copy()
    for _ in range(200_000):
        best = softmax(np.log(ref) + p @ pi / beta)
        if np.abs(best - pi).max() < 1e-14:
            return pi
        pi = 0.98 * pi + 0.02 * best
    raise AssertionError("no equilibrium found")


# ----------------------------------------------------------------------------------------- enumerated: losses alone


@pytest.mark.parametrize("form", ["beta_h", "target"])
@pytest.mark.parametrize("beta", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("k", [3, 6])
def test_offline_ipo_optimum(k: int, beta: float, form: str) -> None:
    """pi* is proportional to pi_sft exp(p(y > mu) / beta) for full-support mu: arXiv 2405.08448, App. E and H."""
    ref, mu, p = random_world(k, seed=k)
    expected = softmax(np.log(ref) + p @ mu / beta)
    found = minimise(IPO(beta=beta, form=form), ref, mu, p)  # type: ignore[arg-type]
    np.testing.assert_allclose(found, expected, atol=1e-7)


@pytest.mark.parametrize("beta", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("k", [3, 6])
def test_dpo_optimum_under_bradley_terry(k: int, beta: float) -> None:
    """pi* is proportional to pi_ref exp(r / beta), whatever the full-support mu: arXiv 2305.18290, Eq. 4."""
    ref, mu, _ = random_world(k, seed=10 + k)
    reward = np.random.default_rng(k).normal(size=k)
    p = 1 / (1 + np.exp(reward[None, :] - reward[:, None]))
    found = minimise(DPO(beta=beta), ref, mu, p)
    np.testing.assert_allclose(found, softmax(np.log(ref) + reward / beta), atol=1e-6)


def test_ipo_under_bradley_terry_is_not_dpo() -> None:
    ref, mu, _ = random_world(4, seed=3)
    reward = np.array([2.0, 0.5, -0.5, -1.0])
    p = 1 / (1 + np.exp(reward[None, :] - reward[:, None]))
    assert np.abs(minimise(IPO(beta=0.5), ref, mu, p) - minimise(DPO(beta=0.5), ref, mu, p)).max() > 0.02


@pytest.mark.parametrize(("k", "beta"), [(3, 0.1), (3, 0.3), (5, 0.2), (5, 0.5)])
def test_online_ipo_ends_at_the_regularised_nash_equilibrium(k: int, beta: float) -> None:
    """mu is the current policy, without gradient, at each step: the fixed point of arXiv 2403.08635."""
    ref, p = cyclic_world(k)
    logits = torch.tensor(np.log(ref)).clone().requires_grad_()
    optimizer = torch.optim.SGD([logits], lr=1.0 / (4 * beta**2))
    for _ in range(20_000):
        mu = torch.softmax(logits.detach(), -1)
        optimizer.zero_grad()
        (torch.outer(mu, mu).flatten() * IPO(beta=beta)(every_pair(logits, ref, p))).sum().backward()
        optimizer.step()
        if float(logits.grad.abs().max()) < 1e-12:  # type: ignore[union-attr]
            break
    found, expected = softmax(logits.detach().numpy()), nash(ref, p, beta)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(expected, softmax(np.log(ref) + p @ expected / beta), atol=1e-12)
    # It is an equilibrium: no policy does better against it than it does itself, regularisation counted.
    value = lambda pi: pi @ p @ expected - beta * kl(pi, ref)  # noqa: E731
    for seed in range(50):
        other = softmax(np.random.default_rng(seed).normal(size=k))
        assert value(other) <= value(expected) + 1e-12
    # With a cycle it is not what offline data from the reference lead to.
    offline = minimise(IPO(beta=beta), ref, ref, p)
    assert np.abs(offline - expected).max() > 0.02


def test_online_and_offline_coincide_for_two_responses() -> None:
    """With two actions mu cannot matter: margins have one target."""
    ref, p, beta = np.array([0.7, 0.3]), np.array([[0.5, 0.8], [0.2, 0.5]]), 0.3
    np.testing.assert_allclose(minimise(IPO(beta=beta), ref, ref, p), nash(ref, p, beta), atol=1e-7)


def winner(base: Array) -> Array:
    """Distribution of the better of two draws from `base`, response i ranked above all j < i."""
    below = np.cumsum(base) - base
    return base * (2 * below + base)


def test_best_of_two_of_a_continuum() -> None:
    """KL ln 2 - 1/2 = 0.1931 nats and win rate 2/3 against the base under its own ranker, as ties vanish."""
    gaps = []
    for k in (10, 100, 1000, 10_000):
        base = np.full(k, 1 / k)
        best = winner(base)
        np.testing.assert_allclose(best, (2 * np.arange(1, k + 1) - 1) / k**2, atol=1e-15)
        rate = best @ (np.cumsum(base) - base / 2)
        assert rate == pytest.approx(2 / 3 - 1 / (6 * k**2), abs=1e-12)  # exact for k equal responses, ties one half
        assert kl(best, base) <= math.log(2) - 0.5
        gaps.append(math.log(2) - 0.5 - kl(best, base))
    assert all(a > 5 * b for a, b in pairwise(gaps))
    assert gaps[-1] < 1e-7
    assert math.log(2) - 0.5 == pytest.approx(0.1931, abs=5e-5)


def test_best_of_two_minimiser_is_the_winner_distribution() -> None:
    """Maximum likelihood on winners, every pair enumerated; labels are sure, a response ties with itself."""
    ref, _, _ = random_world(7, seed=2)
    rank = np.arange(7)
    p = (np.sign(rank[:, None] - rank[None, :]) + 1) / 2
    np.testing.assert_allclose(minimise(BestOfTwo(), ref, ref, p), winner(ref), atol=1e-6)


# ------------------------------------------------------------------------- sampled: `fit`, streams and a transformer

ONE = prompt((2, 3))


def first_token(policy: Policy) -> Array:
    """The exact distribution of one-token responses to the one prompt."""
    n = policy.model.config.vocab_size
    with torch.no_grad():
        logps = policy.logps_of([ONE.ids] * n, [(t,) for t in range(n)])
    return np.exp(logps.double().numpy())


class Frozen:
    """A sampler that stays where it is while the policy moves: the reference as behavior."""

    key = "frozen"

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def sample(self, prompts: Sequence[Prompt], n: int, seed: int) -> list[list[Response]]:
        return self.policy.sample(prompts, n, seed, batch_size=4096)


def reference_of(words: int, seed: int, spread: float) -> Policy:
    return tiny_policy("llama", words=[f"w{i}" for i in range(words)], response_tokens=1, seed=seed, spread=spread)


Sampling = Callable[[Policy, Policy], Frozen | Policy | None]


def train(reference: Policy, stream: Dataset | OnPolicy, loss: Loss, how: Optimization, sampler: Sampling) -> Array:
    """The real loop from the reference; the trained policy's exact distribution."""
    policy = reference.copy("student")
    trainer = Trainer(policy.model, how, seed=0)
    objective, writer = pair_objective(policy, loss), sampler(reference, policy)
    for step in fit(trainer, stream, objective, writer, lambda pairs: with_reference(reference, pairs)):
        assert step.finite
    return first_token(policy)


def test_best_of_two_through_fit() -> None:
    """Best-of-2 of a frozen base with a rank judge lands at its population target, near 0.193 nats and 2/3."""
    reference = reference_of(28, seed=1, spread=0.5)
    base = first_token(reference)
    rank = np.arange(len(base))
    stream = OnPolicy([ONE], TableJudge((np.sign(rank[:, None] - rank[None, :]) + 1) / 2), seed=0)
    how = Optimization(steps=200, batch=192, learning_rate=1e-2, schedule="linear")
    found = train(reference, stream, BestOfTwo(), how, lambda reference, policy: Frozen(reference))
    rate = lambda pi: float(pi @ (np.cumsum(base) - base / 2))  # noqa: E731
    assert stream.responses_sampled == 2 * 192 * 200
    assert kl(found, base) == pytest.approx(kl(winner(base), base), abs=0.01)
    assert kl(found, base) == pytest.approx(math.log(2) - 0.5, abs=0.02)
    assert rate(found) == pytest.approx(rate(winner(base)), abs=0.005)
    assert rate(found) == pytest.approx(2 / 3, abs=0.01)
    assert 0.5 * np.abs(found - winner(base)).sum() < 0.03


def test_offline_ipo_through_fit_and_a_data_set() -> None:
    """A data set of pairs from an uneven behavior, shuffled every epoch; `fit` ends at the closed form."""
    beta, reference = 0.25, reference_of(2, seed=3, spread=2.0)
    ref = first_token(reference)
    k = len(ref)
    times = np.array([1, 2, 3, 3, 3, 4])  # how often each response stands in the data
    mu = times / times.sum()
    _, _, p = random_world(k, seed=4)
    pairs: list[Pair] = [
        pair(ONE, (i,), (j,), float(p[i, j])) for i in range(k) for j in range(k) for _ in range(times[i] * times[j])
    ]
    how = Optimization(steps=320, batch=64, learning_rate=1e-2, schedule="cosine")
    found = train(reference, Dataset(pairs, seed=0), IPO(beta=beta), how, lambda reference, policy: None)
    expected = softmax(np.log(ref) + p @ mu / beta)
    assert 0.5 * np.abs(expected - ref).sum() > 0.1  # far enough from the start to mean something
    assert 0.5 * np.abs(found - expected).sum() < 0.01
    assert kl(found, ref) == pytest.approx(kl(expected, ref), rel=0.1)


def test_online_ipo_through_fit_ends_at_nash() -> None:
    """The online stream itself (sampling, judging, soft labels) with cyclic preferences ends at the equilibrium."""
    beta, reference = 0.2, reference_of(1, seed=5, spread=2.0)
    ref = first_token(reference)
    _, p = cyclic_world(len(ref))
    stream = OnPolicy([ONE], TableJudge(p), seed=0, soft_labels=True)
    how = Optimization(steps=400, batch=96, learning_rate=2e-2, schedule="cosine")
    found = train(reference, stream, IPO(beta=beta), how, lambda reference, policy: policy)
    expected, offline = nash(ref, p, beta), softmax(np.log(ref) + p @ ref / beta)
    assert 0.5 * np.abs(offline - expected).sum() > 0.08
    assert 0.5 * np.abs(found - expected).sum() < 0.03


def test_response_helper_is_one_token() -> None:
    assert response((1,)).ended
    assert not response((3,)).ended
