"""Who writes the pairs, in variations of the online stream: candidates, reuse, and mixtures with the reference."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from conftest import BOTH, TableJudge, prompt, response, tiny_policy
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from test_streams import PROMPTS, Writer, ranks

from aligngap.models.policy import Mixed, Policy
from aligngap.streams import OnPolicy
from aligngap.types import AligngapError, Prompt, Response

Policies = Callable[..., Policy]


# ------------------------------------------------------------------------------------------------------------- reuse


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 5), st.integers(1, 14))
def test_each_batch_is_trained_on_reuse_times(reuse: int, sync: int, batch: int, steps: int) -> None:
    """The block of `sync` batches is served `reuse` times over, and only then is the policy asked again."""
    writer, stream = Writer(), OnPolicy(PROMPTS, ranks(), seed=0, sync_every=sync, reuse=reuse)
    drawn = []
    for step in range(steps):
        writer.step = step
        drawn.append(stream.draw(batch, writer))
    for step, pairs in enumerate(drawn):
        block, place = divmod(step, sync * reuse)
        assert pairs == drawn[block * sync * reuse + place % sync]
        assert {p.writer for p in pairs} == {f"w@step{block * sync * reuse}"}
    rounds = -(-steps // (sync * reuse))
    assert len({seed for *_, seed in writer.calls}) == len(writer.calls) == rounds * sync
    assert stream.responses_sampled == 2 * batch * sync * rounds


def test_reuse_writes_the_same_batches_as_online() -> None:
    """Prompts and sampling seeds go by the batch's number: the k-th batch written is online's k-th, up to weights."""
    online, reused = OnPolicy(PROMPTS, ranks(), seed=0), OnPolicy(PROMPTS, ranks(), seed=0, reuse=3)
    once = [online.draw(4, Writer()) for _ in range(2)]
    again = [reused.draw(4, Writer()) for _ in range(6)]
    assert again == [once[0]] * 3 + [once[1]] * 3


# -------------------------------------------------------------------------------------------------------- candidates


@dataclass
class Numbered:
    """A sampler whose responses to a prompt are n different numbers, in an order drawn from the seed."""

    key: str = "n"

    def sample(self, prompts: list[Prompt], n: int, seed: int) -> list[list[Response]]:
        rng = np.random.default_rng(seed)
        return [[response((int(i), 1)) for i in rng.permutation(n)] for _ in prompts]


@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize("soft", [False, True])
def test_the_pair_is_the_best_and_the_worst_of_n(n: int, soft: bool) -> None:
    judge = ranks(n)  # a larger number is better
    stream = OnPolicy(PROMPTS, judge, seed=0, candidates=n, soft_labels=soft)
    for p in stream.draw(9, Numbered()):
        assert (p.chosen.ids[0], p.rejected.ids[0]) == (n - 1, 0)
        assert p.p_chosen == pytest.approx(judge.table[n - 1, 0] if soft else 1.0)
        assert p.judged_forward == judge.table[n - 1, 0]
    assert stream.responses_sampled == 9 * n


def test_two_candidates_are_the_pair_without_a_ranking() -> None:
    """The judge is asked once, as it always was; above two, once more for the round robin."""
    calls = {}
    for n in (2, 3):
        judge = ranks()
        OnPolicy(PROMPTS, judge, seed=0, candidates=n).draw(4, Numbered())
        calls[n] = judge.calls
    assert calls == {2: 1, 3: 2}


def test_best_of_n_of_a_table_is_distributed_as_the_largest_of_n() -> None:
    """With responses drawn from pi, the chosen one is k with probability F(k)^n - F(k-1)^n, the rejected by 1 - F."""
    k, n, draws = 5, 3, 4000
    pi = np.array([0.1, 0.3, 0.2, 0.25, 0.15])

    class Table:
        key = "table"

        def sample(self, prompts: list[Prompt], n: int, seed: int) -> list[list[Response]]:
            drawn = np.random.default_rng(seed).choice(k, size=(len(prompts), n), p=pi)
            return [[response((int(i), 1)) for i in row] for row in drawn]

    pairs = OnPolicy(PROMPTS, ranks(k), seed=1, candidates=n).draw(draws, Table())
    upto = np.concatenate([[0], np.cumsum(pi)])
    largest, smallest = np.diff(upto**n), -np.diff((1 - upto) ** n)
    for side, expected in (("chosen", largest), ("rejected", smallest)):
        counts = np.bincount([getattr(p, side).ids[0] for p in pairs], minlength=k)
        assert stats.chisquare(counts, draws * expected).pvalue > 1e-3


def test_a_cycle_leaves_a_pair_that_is_labelled_as_any_other() -> None:
    """Rock, paper, scissors: all tie in the round robin; the label is what the judge says of the pair itself."""
    judge = TableJudge(np.array([[0.5, 0.9, 0.1], [0.1, 0.5, 0.9], [0.9, 0.1, 0.5]]))
    for p in OnPolicy(PROMPTS, judge, seed=0, candidates=3).draw(20, Numbered()):
        assert judge.table[p.chosen.ids[0], p.rejected.ids[0]] == 0.9


@pytest.mark.parametrize("wrong", [{"reuse": 0}, {"candidates": 1}])
def test_bad_numbers_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(AligngapError, match=next(iter(wrong))):
        OnPolicy(PROMPTS, ranks(), seed=0, **wrong)


# ----------------------------------------------------------------------------------------- mixtures with the reference

WORDS = ("river", "lamp")
ITEMS = [prompt((4, 5)), prompt((5, 4, 4)), prompt((4,))]


def exact(policy: Policy, reference: Policy, p: Prompt, m: float, longest: int) -> dict[tuple[int, ...], float]:
    """Probability of every response under the token-level mixture, from each model's own forward, prefix by prefix."""

    def next_logits(model: Policy, prefix: tuple[int, ...]) -> np.ndarray:
        with torch.no_grad():
            if model.encoder_decoder:
                start = (model.model.config.decoder_start_token_id, *prefix)
                ids = {"input_ids": torch.tensor([p.ids]), "decoder_input_ids": torch.tensor([start])}
            else:
                ids = {"input_ids": torch.tensor([(*p.ids, *prefix)])}
            return np.asarray(model.model(**ids).logits[0, -1].double().numpy())

    found: dict[tuple[int, ...], float] = {}
    open_ = {(): 1.0}
    for length in range(longest):
        grown = {}
        for prefix, weight in open_.items():
            logits = (1 - m) * next_logits(policy, prefix) + m * next_logits(reference, prefix)
            q = np.exp(logits - logits.max())
            for token, share in enumerate(q / q.sum()):
                into = found if token == policy.eos_id or length == longest - 1 else grown
                into[(*prefix, token)] = weight * float(share)
        open_ = grown
    return found


@pytest.mark.parametrize("family", BOTH)
@pytest.mark.parametrize("m", [0.25, 0.7])
def test_mixed_samples_are_distributed_as_the_token_level_mixture(policies: Policies, family: str, m: float) -> None:
    options = {"words": WORDS, "response_tokens": 2, "spread": 3.0}
    policy, reference = policies(family, **options), policies(family, **options, seed=7)
    draws = 6000
    written = Mixed(policy, reference, m).sample(ITEMS, draws, seed=3)
    for p, answers in zip(ITEMS, written, strict=True):
        expected = exact(policy, reference, p, m, 2)
        own = exact(policy, reference, p, 0.0, 2)
        assert sum(expected.values()) == pytest.approx(1)
        assert sum(abs(expected[k] - own[k]) for k in own) > 0.1  # a test that could not tell them apart is no test
        counts = dict.fromkeys(expected, 0)
        for a in answers:
            counts[a.ids] += 1
        common = [k for k in expected if draws * expected[k] >= 5]
        rest = 1 - sum(expected[k] for k in common)
        seen = [*(counts[k] for k in common), draws - sum(counts[k] for k in common)]
        wanted = [*(draws * expected[k] for k in common), draws * rest]
        if rest * draws < 1:
            seen, wanted = seen[:-1], [w * sum(seen[:-1]) / sum(wanted[:-1]) for w in wanted[:-1]]
        assert stats.chisquare(seen, wanted).pvalue > 1e-3


@pytest.mark.parametrize("family", ["t5", "llama", "gpt2"])
def test_the_ends_of_the_mixture_are_the_policy_and_the_reference(policies: Policies, family: str) -> None:
    """The same samples at the same seed, prompts of different lengths among them; and the cache reads along."""
    policy, reference = policies(family), policies(family, seed=7)
    for n in (1, 2):
        assert Mixed(policy, reference, 0.0).sample(ITEMS, n, 5) == policy.sample(ITEMS, n, 5)
        assert Mixed(policy, reference, 1.0).sample(ITEMS, n, 5) == reference.sample(ITEMS, n, 5)
        between = Mixed(policy, reference, 0.5).sample(ITEMS * 4, n, 5)
        assert between != policy.sample(ITEMS * 4, n, 5)
        assert between == Mixed(policy, reference, 0.5).sample(ITEMS * 4, n, 5)


def test_a_mixed_stream_writes_with_the_mixture_and_says_whose_weights() -> None:
    policy, reference = tiny_policy("t5", key="mine@step3"), tiny_policy("t5", seed=7)
    pick = TableJudge(np.full((20, 20), 0.5))
    streams = [
        OnPolicy(ITEMS, pick, seed=0, through=through)
        for through in (None, lambda s: Mixed(s, reference, 0.0), lambda s: Mixed(s, reference, 1.0))
    ]
    plain, same, other = (s.draw(6, policy) for s in streams)
    assert plain == same
    assert plain != other
    assert [p.prompt for p in plain] == [p.prompt for p in other]
    assert {p.writer for p in itertools.chain(plain, other)} == {"mine@step3"}
