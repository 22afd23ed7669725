"""What any rollout must do, asked of every registered one that can be imported, and of a plain engine made here.

The checks are functions of a way to make a sampler; that each can fail is shown on engines with one fault apiece. What
transformers' own generation must do beside, for encoder-decoder models too, is in `test_rollout.py`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from conftest import DECODER, TableJudge, prompt, tiny_policy
from plain_engine import Plain
from scipy import stats

from aligngap import registry
from aligngap.fit import Trainer, fit
from aligngap.models.batch import Ids, collate
from aligngap.models.policy import Policy
from aligngap.models.rollout import COMPARED, Following, Generated, installed, rollout_of
from aligngap.settings import ModelSpec, Optimization, RolloutSpec
from aligngap.streams import OnPolicy
from aligngap.types import Response, Sampler

Make = Callable[[Policy], Sampler]
LONG = prompt([4 + i * i % 13 for i in range(261)], "long")  # more than two of the largest blocks a cache is kept in
TINY = ModelSpec(  # heads of 32: the smallest that vLLM has kernels for on CPU
    model_type="llama", config=DECODER | {"head_dim": 32, "max_position_embeddings": 512}
)
PROMPTS = [prompt((4, 5, 6)), prompt((7, 8, 9, 10, 11, 12)), prompt((5,))]
FLOAT32_NATS = 1e-3  # mean and largest difference of one token's log-probability between two float32 engines


def by(engine: type[Plain]) -> Make:
    return lambda policy: Following(policy, engine())


def registered(name: str) -> Make:
    return lambda policy: rollout_of(RolloutSpec(engine=name, cache_gib=0.25)).open(policy, len(LONG.ids))


WAYS: dict[str, Make] = {"plain": by(Plain), **{name: registered(name) for name in registry.names("rollouts")}}


@pytest.fixture(params=WAYS)
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    """A way to make samplers; those it made are closed after the test."""
    if request.param == "vllm" and installed("vllm") is not None:
        pytest.skip("vLLM is not installed here")
    made: list[Any] = []

    def make(policy: Policy) -> Sampler:
        for before in made:
            before.close()
        sampler = WAYS[request.param](policy)
        made[:] = [sampler] if hasattr(sampler, "close") else []
        return sampler

    yield make
    for sampler in made:
        sampler.close()


def tiny(tokens: int, spec: ModelSpec = TINY) -> Policy:
    return tiny_policy(spec, spread=2.0, response_tokens=tokens, key="run@step0")


# ------------------------------------------------------------------------------------------------------- the checks


def check_responses_are_whole(make: Make) -> None:
    """n responses a prompt; ids of the vocabulary; EOS ends a response, is kept, and nothing else ends one early."""
    policy = tiny(4)
    policy.model.get_output_embeddings().weight.data[policy.eos_id] *= 2.0  # some responses end, some do not
    written = make(policy).sample(PROMPTS, 8, seed=0)
    assert [len(row) for row in written] == [8] * len(PROMPTS)
    flat = [r for row in written for r in row]
    assert {type(t) for r in flat for t in r.ids} == {int}
    assert all(0 <= t < policy.model.config.vocab_size for r in flat for t in r.ids)
    assert len({r.ended for r in flat}) == 2
    for r in flat:
        assert policy.eos_id not in r.ids[:-1]
        assert r.ended == (r.ids[-1] == policy.eos_id)
        assert 1 <= len(r.ids) <= 4 if r.ended else len(r.ids) == 4
        assert r.text == policy.tokenizer.decode(list(r.ids), skip_special_tokens=True)


def check_the_seed_decides(make: Make) -> None:
    """The same seed, the same responses, whatever was written in between; another seed, others; no response twice."""
    sampler = make(tiny(4))
    first = sampler.sample(PROMPTS, 8, seed=1)
    other = sampler.sample(PROMPTS, 8, seed=2)
    assert sampler.sample(PROMPTS, 8, seed=1) == first
    assert other != first
    assert all(len({r.ids for r in row}) > 1 for row in first)


def check_the_policy_is_left_as_it_was(make: Make) -> None:
    policy = tiny(4)
    before = {k: v.clone() for k, v in policy.model.state_dict().items()}
    sampler, random = make(policy), torch.get_rng_state()
    sampler.sample(PROMPTS, 2, seed=0)
    assert all(torch.equal(v, before[k]) for k, v in policy.model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert not policy.model.training


def check_samples_follow_the_trainer(make: Make) -> None:
    """Every response of two tokens against its exact probability: all V + V^2 - V of them are enumerated."""
    policy = tiny(2)
    for ids, row in zip(PROMPTS, make(policy).sample(PROMPTS, 3000, seed=5), strict=True):
        assert fits([r.ids for r in row], exact(policy, ids.ids))


def check_samples_follow_new_weights(make: Make) -> None:
    """After optimiser steps and a new key the samples are the new policy's and no longer the old one's."""
    policy = tiny(1)
    sampler = make(policy)
    old = exact(policy, PROMPTS[1].ids)
    assert fits([r.ids for r in sampler.sample(PROMPTS, 3000, seed=1)[1]], old)
    learn(policy, steps=3, key="run@step3")
    new = exact(policy, PROMPTS[1].ids)
    row = [r.ids for r in sampler.sample(PROMPTS, 3000, seed=1)[1]]
    assert fits(row, new)
    assert not fits(row, old)


def check_staleness_is_the_streams(make: Make) -> None:
    """With `sync_every=2` two batches are the old policy's, however often it has moved since; the third is the new."""

    def draws(moves: bool) -> list[list[tuple[Any, ...]]]:
        policy = tiny(4)
        stream = OnPolicy(PROMPTS, TableJudge(np.full((64, 64), 0.5)), seed=3, sync_every=2)
        sampler, found = make(policy), []
        for step in range(3):
            found.append([p.key for p in stream.draw(3, sampler)])
            if moves:
                learn(policy, steps=1, key=f"run@step{step + 1}")
        return found

    still, moved = draws(False), draws(True)
    assert moved[:2] == still[:2]
    assert moved[2] != still[2]


def check_log_probabilities_are_the_trainers(make: Make) -> None:
    """What an engine says of its own tokens is what the trainer says, before and after a sync.

    The long prompt is read under the old weights before: no cache of its keys and values may outlive them.
    """
    log_probabilities(make, tiny(4))


def check_tied_embeddings_are_one_thing(make: Make) -> None:
    """The same where the output layer's weights are the input embeddings: an engine may keep them twice."""
    config = {"tie_word_embeddings": True, "hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 2}
    log_probabilities(make, tiny(4, TINY.model_copy(update={"config": TINY.config | config})))


def log_probabilities(make: Make, policy: Policy) -> None:
    sampler: Any = make(policy)
    if not isinstance(sampler, Following):
        assert sampler is policy  # the trainer itself: nothing to compare
        return
    for key in ("run@step0", "run@step2"):
        if key != policy.key:
            learn(policy, steps=2, key=key)
        written = sampler.sample([LONG, *PROMPTS], 4, seed=0)
        told = sampler.mismatch()
        assert told["mismatch_tokens"] == sum(len(r.ids) for row in written for r in row)
        assert told["mismatch_nats"] <= told["mismatch_max_nats"] < FLOAT32_NATS


def exact(policy: Policy, ids: Ids) -> dict[tuple[int, ...], float]:
    """The probability of every response there is, at a limit of one or two tokens."""
    vocabulary = range(policy.model.config.vocab_size)
    every = [(t,) for t in vocabulary]
    if policy.response_tokens == 2:
        heads = [t for t in vocabulary if t != policy.eos_id]
        every = [(policy.eos_id,), *((h, t) for h in heads for t in vocabulary)]
    with torch.no_grad():
        logps = policy.logps(collate([ids], every, [0] * len(every))).double()
    assert float(logps.exp().sum()) == pytest.approx(1.0, abs=1e-5)
    return dict(zip(every, logps.exp().tolist(), strict=True))


def fits(seen: Sequence[tuple[int, ...]], probabilities: dict[tuple[int, ...], float]) -> bool:
    """Whether samples fit the probabilities: a G-test, rare ones pooled, so strict that a right engine never fails."""
    at = {ids: i for i, ids in enumerate(probabilities)}
    counts = np.bincount([at[ids] for ids in seen], minlength=len(at))
    expected = len(seen) * np.array(list(probabilities.values()))
    common = expected >= 5
    counts = np.append(counts[common], counts[~common].sum())
    expected = np.append(expected[common], expected[~common].sum())
    keep = expected > 0
    wanted = expected[keep] * counts[keep].sum() / expected[keep].sum()
    return bool(stats.power_divergence(counts[keep], wanted, lambda_=0).pvalue > 1e-4)


class Fixed:
    """A stream of one item, for ever."""

    def draw(self, n: int, sampler: Any) -> list[int]:
        return [0]

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Any) -> None: ...


def learn(policy: Policy, steps: int, key: str) -> None:
    """Optimiser steps of the one trainer, towards an answer that is rare; then the key that says so."""

    def objective(items: Sequence[Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return -policy.logps(collate([p.ids for p in PROMPTS], [(9,)] * len(PROMPTS)))[:1], {}

    trainer = Trainer(policy.model, Optimization(steps=steps, batch=1, learning_rate=0.05), seed=0)
    assert len(list(fit(trainer, Fixed(), objective))) == steps
    policy.key = key


CHECKS = [
    check_responses_are_whole, check_the_seed_decides, check_the_policy_is_left_as_it_was,
    check_samples_follow_the_trainer, check_samples_follow_new_weights, check_staleness_is_the_streams,
    check_log_probabilities_are_the_trainers, check_tied_embeddings_are_one_thing,
]  # fmt: skip


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
def test_rollout(check: Callable[[Make], None], make: Make) -> None:
    check(make)


def test_the_suite_has_seen_every_registered_rollout() -> None:
    assert {"transformers", "vllm"} <= set(registry.names("rollouts")) <= set(WAYS)


# ------------------------------------------------------------------------------------------------ each can also fail


class LosesEos(Plain):
    def cut(self, row: list[int], logps: list[float]) -> Generated:
        whole = super().cut(row, logps)
        keep = len(whole.ids) - (whole.ids[-1] == self.copy.eos_id)
        return Generated(whole.ids[:keep], whole.logps[:keep])


class Deaf(Plain):
    def written(self, ids: Ids, n: int, tokens: int, seed: int) -> list[Generated]:
        return super().written(ids, n, tokens, 0)


class Global(Plain):
    def written(self, ids: Ids, n: int, tokens: int, seed: int) -> list[Generated]:
        return super().written(ids, n, tokens, int(torch.randint(2**31, (1,))))


class Cold(Plain):
    temperature = 0.7


class NeverAgain(Plain):
    def sync(self, policy: Policy) -> None:
        if not hasattr(self, "copy"):
            super().sync(policy)


class Miscounts(Plain):
    scored_at = 0.9


class Hoards(Plain):
    """Keeps the keys and values of a prompt that it has read once, whatever the weights are by now."""

    def __init__(self) -> None:
        self.read: dict[tuple[int, ...], Any] = {}

    @torch.no_grad()
    def written(self, ids: Ids, n: int, tokens: int, seed: int) -> list[Generated]:
        if tuple(ids) not in self.read:
            self.read[tuple(ids)] = self.copy.model(input_ids=torch.tensor([list(ids)]), use_cache=True)
        generator, known = torch.Generator().manual_seed(seed), copy.deepcopy(self.read[tuple(ids)])
        rows = []
        for _ in range(n):
            cache, scores, row, logps = copy.deepcopy(known.past_key_values), known.logits, list[int](), list[float]()
            for _ in range(tokens):
                logp = torch.log_softmax(scores[0, -1].float(), -1)
                row.append(int(torch.multinomial(logp.exp(), 1, generator=generator)))
                logps.append(float(logp[row[-1]]))
                scores = self.copy.model(input_ids=torch.tensor([row[-1:]]), past_key_values=cache).logits
            rows.append(self.cut(row, logps))
        return rows


@pytest.mark.parametrize(
    ("engine", "check"),
    [
        (LosesEos, check_responses_are_whole), (Deaf, check_the_seed_decides), (Global, check_the_seed_decides),
        (Global, check_the_policy_is_left_as_it_was), (Cold, check_samples_follow_the_trainer),
        (NeverAgain, check_samples_follow_new_weights), (NeverAgain, check_staleness_is_the_streams),
        (NeverAgain, check_log_probabilities_are_the_trainers), (Miscounts, check_log_probabilities_are_the_trainers),
        (Hoards, check_log_probabilities_are_the_trainers),
    ],
    ids=lambda x: x.__name__,
)  # fmt: skip
def test_an_engine_with_a_fault_is_noticed(engine: type[Plain], check: Callable[[Make], None]) -> None:
    with pytest.raises((AssertionError, IndexError)):
        check(by(engine))


# ----------------------------------------------------------------------------------------------- the follower itself


class Counting(Plain):
    def __init__(self) -> None:
        self.syncs = 0

    def sync(self, policy: Policy) -> None:
        self.syncs += 1
        super().sync(policy)


def test_weights_cross_over_once_per_key() -> None:
    policy, engine = tiny(2), Counting()
    sampler = Following(policy, engine)
    for step, syncs in ((0, 1), (0, 1), (1, 2), (1, 2)):
        policy.key = f"run@step{step}"
        sampler.sample(PROMPTS, 1, seed=0)
        assert (sampler.key, engine.syncs) == (policy.key, syncs)


def test_the_mismatch_is_of_what_was_written_since_last_asked() -> None:
    policy = tiny(2)
    sampler = Following(policy, Miscounts())
    assert math.isnan(sampler.mismatch()["mismatch_nats"])
    sampler.sample(PROMPTS, 40, seed=0)
    told = sampler.mismatch()
    assert told["mismatch_max_nats"] > told["mismatch_nats"] > 0.01
    assert COMPARED <= told["mismatch_tokens"] <= 2 * COMPARED  # of 120 responses, the first 64
    assert sampler.mismatch()["mismatch_tokens"] == 0


def test_the_default_rollout_is_the_policy_itself() -> None:
    policy = tiny(4)
    assert rollout_of(RolloutSpec()).open(policy, 6) is policy
    assert isinstance(policy.sample(PROMPTS, 1, 0)[0][0], Response)
