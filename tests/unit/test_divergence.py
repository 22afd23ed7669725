"""The KL estimator of the study against the enumerated KL of whole responses, on policies small enough to enumerate.

Six tokens and responses of at most three, so every response is listed: those closed by EOS and those cut by the limit.
Expectations are then exact sums and need no tolerance for luck; one test samples as the pipeline does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from conftest import BOTH, prompt, tiny_policy
from hypothesis import given
from hypothesis import strategies as st

from aligngap.measurement import Scores, entropy_from_logits, kl_from_logits, score
from aligngap.models.policy import Policy
from aligngap.types import Response

EOS, VOCABULARY, LIMIT = 1, 6, 3
PROMPTS = [prompt((4, 5, 1)), prompt((5, 1))]


def k3(log_ratio: torch.Tensor) -> torch.Tensor:
    """r - 1 - log r with r = q/p: unbiased, never negative (J. Schulman, "Approximating KL divergence", 2020)."""
    return torch.expm1(-log_ratio) + log_ratio


def every_response() -> Iterator[Response]:
    """All 1 + 5 + 25 responses that end within the limit and the 125 that are cut by it."""

    def grow(ids: tuple[int, ...]) -> Iterator[Response]:
        for token in range(VOCABULARY):
            longer = (*ids, token)
            if token == EOS or len(longer) == LIMIT:
                yield Response(longer, token == EOS, "")
            else:
                yield from grow(longer)

    return grow(())


RESPONSES = list(every_response())


@pytest.fixture(scope="module", params=BOTH)
def two(request: pytest.FixtureRequest) -> tuple[Policy, Policy]:
    """A policy and a reference that differ, of one family."""
    make = lambda seed: tiny_policy(request.param, words=["a", "b"], response_tokens=LIMIT, seed=seed, spread=3.0)  # noqa: E731
    return make(0), make(1)


def scored(two: tuple[Policy, Policy], number: int) -> Scores:
    return score(*two, [PROMPTS[number]] * len(RESPONSES), RESPONSES)


def test_enumeration_is_whole(two: tuple[Policy, Policy]) -> None:
    assert len(RESPONSES) == 1 + 5 + 25 + 125
    for number in range(2):
        s = scored(two, number)
        assert np.exp(s.logp).sum() == pytest.approx(1, abs=1e-5)
        assert np.exp(s.other_logp).sum() == pytest.approx(1, abs=1e-5)


def expectations(s: Scores) -> tuple[np.ndarray, float]:
    p = np.exp(s.logp)
    return p / p.sum(), float((np.exp(s.logp) * (s.logp - s.other_logp)).sum())


@pytest.mark.parametrize("number", [0, 1])
def test_unbiased_and_never_negative(two: tuple[Policy, Policy], number: int) -> None:
    """The exact expectation of the per-token KL along own samples is the KL of whole responses (chain rule)."""
    s = scored(two, number)
    p, exact = expectations(s)
    assert exact > 0.1
    assert p @ s.kl == pytest.approx(exact, rel=1e-5)
    assert (s.kl >= 0).all()


@pytest.mark.parametrize("number", [0, 1])
def test_less_variance_than_k1_and_k3(two: tuple[Policy, Policy], number: int) -> None:
    s = scored(two, number)
    p, exact = expectations(s)
    ratio = torch.tensor(s.logp - s.other_logp)

    def moments(values: np.ndarray) -> tuple[float, float]:
        mean = float(p @ values)
        return mean, float(p @ (values - mean) ** 2)

    mean1, variance1 = moments(ratio.numpy())
    mean3, variance3 = moments(k3(ratio).numpy())
    assert mean1 == pytest.approx(exact, rel=1e-5)
    assert mean3 == pytest.approx(exact, rel=1e-5)  # k3 of whole responses: unbiased here since supports are equal
    assert (k3(ratio) >= 0).all()
    assert (ratio < 0).any()
    ours = moments(s.kl)[1]
    assert ours < 0.7 * variance1
    assert ours < 0.7 * variance3


def test_entropy_is_exact_too(two: tuple[Policy, Policy]) -> None:
    s = scored(two, 0)
    p, _ = expectations(s)
    assert p @ s.entropy == pytest.approx(-(np.exp(s.logp) * s.logp).sum(), rel=1e-5)


def test_sampled_as_the_pipeline_does(two: tuple[Policy, Policy]) -> None:
    """Mean over sampled responses within 4 standard errors; the three unbiased estimators on the same samples."""
    n = 3000
    prompts = [PROMPTS[0]] * n
    own = [r[0] for r in two[0].sample(prompts, 1, seed=5, batch_size=n)]
    s = score(*two, prompts, own, batch_size=1024)
    exact = expectations(scored(two, 0))[1]
    se = s.kl.std(ddof=1) / np.sqrt(n)
    assert abs(s.kl.mean() - exact) < 4 * se
    ratio = torch.tensor(s.logp - s.other_logp)
    assert s.kl.std() < float(ratio.std())
    assert s.kl.std() < float(k3(ratio).std())
    assert se < 0.02 * exact
    assert {r.ended for r in own} == {True, False}
    assert (s.tokens == [len(r.ids) for r in own]).all()


def test_of_equal_policies_is_zero(two: tuple[Policy, Policy]) -> None:
    s = score(two[0], two[0].copy("same"), [PROMPTS[0]] * len(RESPONSES), RESPONSES)
    assert (s.kl == 0).all()
    assert (s.logp == s.other_logp).all()


def test_per_token_kl_against_numpy(two: tuple[Policy, Policy]) -> None:
    """Position by position from each policy's own full forward pass, in float64."""
    chosen = [RESPONSES[i] for i in (0, 3, 40, 155)]
    s = score(*two, [PROMPTS[0]] * 4, chosen)
    for row, r in enumerate(chosen):
        total = 0.0
        for column in range(len(r.ids)):
            logp = [
                np.array([float(x.logps_of([PROMPTS[0].ids], [(*r.ids[:column], t)])[0]) for t in range(VOCABULARY)])
                - (float(x.logps_of([PROMPTS[0].ids], [r.ids[:column]])[0]) if column else 0.0)
                for x in two
            ]
            total += float((np.exp(logp[0]) * (logp[0] - logp[1])).sum())
        assert s.kl[row] == pytest.approx(total, abs=2e-4)


# --------------------------------------------------------------------------------------------------- pure functions


def test_known_values() -> None:
    p, q = torch.tensor([[0.75, 0.25]]).log(), torch.tensor([[0.5, 0.5]]).log()
    assert float(kl_from_logits(p, q)) == pytest.approx(0.75 * np.log(1.5) + 0.25 * np.log(0.5), abs=1e-7)
    assert float(kl_from_logits(p + 7.0, q - 3.0)) == pytest.approx(float(kl_from_logits(p, q)), abs=1e-6)  # logits
    assert float(entropy_from_logits(q)) == pytest.approx(np.log(2), abs=1e-7)


@given(st.lists(st.tuples(st.floats(-30, 30), st.floats(-30, 30)), min_size=2, max_size=9))
def test_kl_is_never_negative_and_finite(rows: Sequence[tuple[float, float]]) -> None:
    both = torch.tensor(rows).T[:, None, :]
    value = float(kl_from_logits(both[0], both[1]))
    p, q = (np.asarray(x[0], dtype=np.float64) for x in both)
    log_p, log_q = p - np.logaddexp.reduce(p), q - np.logaddexp.reduce(q)
    assert 0 <= value < np.inf
    assert value == pytest.approx(float((np.exp(log_p) * (log_p - log_q)).sum()), abs=1e-4)
