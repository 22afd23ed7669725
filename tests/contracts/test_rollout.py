"""What any generation engine must do, whatever it runs on: `ENGINES` names them, and every test asks each.

An engine is a function (policy, prompts, n, max_new_tokens, seed) -> rows of generated ids, the n of one prompt
adjacent, drawn from the whole distribution at temperature 1; a row may run past EOS, which `Policy.response` cuts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from conftest import BOTH, tiny_policy
from scipy import stats

from aligngap.models import decoding
from aligngap.models.batch import Ids, collate
from aligngap.models.loading import seeded
from aligngap.models.policy import Policy
from aligngap.models.sampling import generate

Engine = Callable[[Policy, Sequence[Ids], int, int, int], list[list[int]]]


def by_transformers(policy: Policy, prompts: Sequence[Ids], n: int, tokens: int, seed: int) -> list[list[int]]:
    with seeded(seed, policy.device):
        return generate(policy, prompts, n, tokens)


def by_our_loop(policy: Policy, prompts: Sequence[Ids], n: int, tokens: int, seed: int) -> list[list[int]]:
    return decoding.sample(policy, prompts, n, tokens, seed, policy.end_ids)


ENGINES: dict[str, Engine] = {"transformers": by_transformers, "our loop": by_our_loop}
PROMPTS: list[Ids] = [(4, 5, 6), (7, 8, 9, 10, 11, 12), (5,)]

pytestmark = [pytest.mark.parametrize("engine", ENGINES), pytest.mark.parametrize("family", BOTH)]


@pytest.fixture
def policy(family: str) -> Policy:
    return tiny_policy(family, spread=2.0, response_tokens=4)


def rows_of(engine: str, policy: Policy, prompts: Sequence[Ids], n: int, tokens: int, seed: int = 0) -> list[list[int]]:
    with torch.no_grad():
        return ENGINES[engine](policy, prompts, n, tokens, seed)


def test_rows_are_new_tokens_of_the_vocabulary_within_the_limit(engine: str, family: str, policy: Policy) -> None:
    rows = rows_of(engine, policy, PROMPTS, 3, 4)
    assert len(rows) == 3 * len(PROMPTS)
    assert {type(t) for row in rows for t in row} == {int}
    assert all(0 <= t < policy.model.config.vocab_size for row in rows for t in row)
    for row in rows:
        assert 1 <= len(row) <= 4
        assert len(row) == 4 or policy.eos_id in row  # nothing but EOS ends a row before the limit


def test_a_seed_decides_and_another_differs(engine: str, family: str, policy: Policy) -> None:
    first, again, other = (rows_of(engine, policy, PROMPTS, 8, 4, seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_the_policy_is_left_as_it_was(engine: str, family: str, policy: Policy) -> None:
    before = {k: v.clone() for k, v in policy.model.state_dict().items()}
    random = torch.get_rng_state()
    rows_of(engine, policy, PROMPTS, 2, 4)
    assert all(torch.equal(v, before[k]) for k, v in policy.model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert not policy.model.training


def test_samples_follow_the_trainers_distribution(engine: str, family: str, policy: Policy) -> None:
    """First and second tokens of each prompt's responses against the trainer's own log-probabilities.

    Other prompts, longer and shorter, are in the same batch: padding must not reach the distribution. Training uses the
    trainer's log-probabilities, so this is also where an engine's mismatch would show.
    """
    n, vocabulary = 4000, policy.model.config.vocab_size
    rows = rows_of(engine, policy, PROMPTS, n, 2, seed=5)
    for number, ids in enumerate(PROMPTS):
        mine = rows[number * n : (number + 1) * n]
        heads = policy.logps(collate([ids] * vocabulary, [(t,) for t in range(vocabulary)]))
        expected = n * heads.detach().double().exp().numpy()
        assert fits(np.bincount([row[0] for row in mine], minlength=vocabulary), expected)
        head = int(np.argmax(np.where(np.arange(vocabulary) == policy.eos_id, 0, expected)))  # then what follows it
        tails = np.bincount([row[1] for row in mine if row[0] == head], minlength=vocabulary)
        whole = policy.logps(collate([ids] * vocabulary, [(head, t) for t in range(vocabulary)]))
        assert fits(tails, tails.sum() * torch.softmax(whole.detach().double(), 0).numpy())


def fits(seen: np.ndarray, expected: np.ndarray) -> bool:
    """Whether counts fit what is expected: a G-test, rare tokens pooled, so strict that a right engine fails never."""
    common = expected >= 5
    seen = np.append(seen[common], seen[~common].sum())
    expected = np.append(expected[common], expected[~common].sum())
    keep = expected > 0
    p = stats.power_divergence(seen[keep], expected[keep] * seen[keep].sum() / expected[keep].sum(), lambda_=0).pvalue
    return bool(p > 1e-4)


def test_the_distribution_test_would_notice_a_temperature(engine: str, family: str, policy: Policy) -> None:
    """The same counts against the distribution at temperature 0.5 do not fit: the test above can fail."""
    n, vocabulary = 4000, policy.model.config.vocab_size
    rows = rows_of(engine, policy, PROMPTS[:1], n, 1, seed=5)
    heads = policy.logps(collate([PROMPTS[0]] * vocabulary, [(t,) for t in range(vocabulary)])).detach().double()
    seen = np.bincount([row[0] for row in rows], minlength=vocabulary)
    assert not fits(seen, n * torch.softmax(heads / 0.5, 0).numpy())
