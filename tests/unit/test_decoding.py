"""Our own sampling loop: each family that it knows, noise by seed, row and position, and rows that leave."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from conftest import DECODER, FAMILIES, SPECS, T5, prompt, tiny_policy
from scipy import stats

from aligngap.execute.checks import check_models
from aligngap.models import decoding
from aligngap.models import policy as policy_module
from aligngap.models.attention import Slots
from aligngap.models.batch import Ids, collate
from aligngap.models.loading import config_of
from aligngap.models.policy import Policy
from aligngap.settings import ModelSpec
from aligngap.study.load import load

GPT_NEOX = {k: v for k, v in DECODER.items() if k != "num_key_value_heads"}
SPECS_BY_FAMILY = {
    **{name: SPECS[name] for name in ("t5", "t5-v1.1", "llama", "gpt2", "qwen2", "qwen3", "smollm")},
    "gpt_neox": ModelSpec(model_type="gpt_neox", config=GPT_NEOX),
    "mistral": ModelSpec(model_type="mistral", config=DECODER | {"head_dim": 8, "sliding_window": None}),
    **{name: ModelSpec(model_type=name, config=DECODER) for name in ("olmo2", "phi", "phi3", "granite", "smollm3")},
}
PROMPTS: list[Ids] = [(4, 5, 6), (7, 8, 9, 10, 11, 12), (5,), (13, 14)]


def made(family: str, **options: Any) -> Policy:
    return tiny_policy(SPECS_BY_FAMILY[family], **({"spread": 2.0} | options))


@torch.no_grad()
def sampled(policy: Policy, prompts: Sequence[Ids], n: int, tokens: int, seed: int = 0, **more: Any) -> list[list[int]]:
    return decoding.sample(policy, prompts, n, tokens, seed, more.pop("ends", policy.end_ids), **more)


def test_every_family_that_is_known_is_tried_here() -> None:
    assert {spec.model_type for spec in SPECS_BY_FAMILY.values()} == set(decoding.KNOWN)


@pytest.mark.parametrize("family", SPECS_BY_FAMILY)
def test_a_family_that_is_known_writes_what_its_log_probabilities_say(family: str) -> None:
    """All responses of two tokens to prompts of unequal lengths, counted against their exact probabilities.

    That rows leave after their first token is part of it: a third of the vocabulary ends a response.
    """
    policy = made(family, response_tokens=2)
    assert decoding.knows(policy.model.config)
    n, vocabulary, ends = 4000, policy.model.config.vocab_size, (1, 4, 5, 6, 7, 8)
    rows = sampled(policy, PROMPTS[:3], n, 2, ends=ends)
    assert all(len(row) == (1 if row[0] in ends else 2) for row in rows)
    cells = [(h,) if h in ends else (h, t) for h in range(vocabulary) for t in range(vocabulary)]
    cells = list(dict.fromkeys(cells))
    for number, ids in enumerate(PROMPTS[:3]):
        with torch.no_grad():
            expected = n * policy.logps(collate([ids], cells, [0] * len(cells))).double().exp().numpy()
        at = {cell: i for i, cell in enumerate(cells)}
        mine = rows[number * n : (number + 1) * n]
        seen = np.bincount([at[tuple(row)] for row in mine], minlength=len(cells))
        common = expected >= 5
        seen, expected = (np.append(x[common], x[~common].sum()) for x in (seen, expected))
        assert stats.power_divergence(seen, expected * seen.sum() / expected.sum(), lambda_=0).pvalue > 1e-4


@pytest.mark.parametrize("family", SPECS_BY_FAMILY)
def test_a_token_depends_on_its_row_and_position_and_on_no_other_row(family: str) -> None:
    """Alone, in a larger batch, and where the others leave early: the same tokens."""
    policy = made(family)
    whole = sampled(policy, PROMPTS, 2, 12, ends=(), temperature=3.0)
    assert sampled(policy, PROMPTS[:1], 2, 12, ends=(), temperature=3.0) == whole[:2]
    assert sampled(policy, PROMPTS[2:], 2, 12, ends=(), temperature=3.0, first=4, of=8) == whole[4:]
    ends = (1, 4, 5, 6, 9)
    for row, cut in zip(whole, sampled(policy, PROMPTS, 2, 12, ends=ends, temperature=3.0), strict=True):
        until = next((i + 1 for i, t in enumerate(row) if t in ends), len(row))
        assert cut == row[:until]
    lengths = {len(row) for row in sampled(policy, PROMPTS, 2, 12, ends=ends, temperature=3.0)}
    assert len(lengths) > 2  # rows left at several places


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_rows_that_ended_are_not_read_any_more(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = made(family)
    read: list[int] = []
    stack = policy.model.get_decoder() if family == "t5" else policy.model.base_model
    stack.register_forward_pre_hook(lambda m, a, k: read.append(len(k["input_ids"])), with_kwargs=True)
    rows = sampled(policy, PROMPTS, 4, 12, ends=(1, 4, 5, 6, 9))
    later = read if family == "t5" else read[1:]
    want = [sum(len(row) > i for row in rows) for i in range(12)]
    if family == "llama":  # the first token follows from the prompt
        want = want[1:]
    assert later == [n for n in want if n]


def test_noise_is_exponential_and_of_its_own_for_each_row_and_position() -> None:
    """The winner of the race follows the given probabilities, down to one in ten thousand; no two rows are alike."""
    p = torch.tensor([0.6, 0.3, 0.0799, 0.02, 1e-4])
    rows = 200_000
    bits = decoding.noise(3, 0, rows, 5, torch.device("cpu"))[:, :5]
    seen = torch.bincount(decoding.draw(p.log().expand(rows, 5), bits), minlength=5).double().numpy()
    assert stats.chisquare(seen, rows * p.double().numpy() / float(p.double().sum())).pvalue > 1e-3
    assert len(torch.unique(bits[:1000], dim=0)) == 1000
    assert torch.equal(bits[:7], decoding.noise(3, 0, 7, 5, torch.device("cpu"))[:, :5])
    assert not torch.equal(bits[:7], decoding.noise(3, 1, 7, 5, torch.device("cpu"))[:, :5])


def test_slots_hold_every_row_once() -> None:
    owners = torch.tensor([2, 0, 2, 2, 1])
    slots = Slots.of(owners, 3)
    assert slots.width == 3
    assert slots.take[slots.back].tolist() == [0, 1, 2, 3, 4]
    assert (slots.back // slots.width).tolist() == owners.tolist()


@pytest.mark.parametrize(
    ("model_type", "config", "known"),
    [
        ("t5", T5, True),
        ("llama", DECODER, True),
        ("mistral", DECODER | {"sliding_window": 8}, False),
        ("mistral", DECODER | {"sliding_window": None}, True),
        ("qwen2", DECODER | {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}, False),
        ("gemma2", DECODER, False),
        ("mamba", {"hidden_size": 16, "num_hidden_layers": 1}, False),
        ("bart", {"d_model": 16}, False),
    ],
)
def test_what_is_not_plain_keys_and_values_is_not_known(model_type: str, config: dict[str, Any], known: bool) -> None:
    assert decoding.knows(config_of(ModelSpec(model_type=model_type, config=config))) == known


def test_a_family_that_is_not_known_is_sampled_by_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_policy(ModelSpec(model_type="mistral", config=DECODER | {"head_dim": 8, "sliding_window": 4}))
    asked: list[str] = []
    by_transformers: Callable[..., Any] = policy_module.generate
    monkeypatch.setattr(policy_module, "generate", lambda *a, **k: asked.append("generate") or by_transformers(*a, **k))
    answers = policy.sample([prompt((4, 5, 6))], 2, 0)
    assert asked == ["generate"]
    assert len(answers[0]) == 2
    tiny_policy(SPECS["llama"]).sample([prompt((4, 5, 6))], 2, 0)
    assert asked == ["generate"]


@pytest.mark.parametrize(("family", "told"), [("gemma2", True), ("llama", False)])
def test_who_samples_a_family_that_is_not_known_is_said_before_training(
    family: str, told: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    config = "{hidden_size: 16, intermediate_size: 16, num_hidden_layers: 1, num_attention_heads: 2, head_dim: 8}"
    check_models(load("opening", [f"policy.model_type={family}", f"policy.config={config}"]))
    said = capsys.readouterr().err
    assert ("`gemma2`" in said and "transformers' generate" in said) == told
    assert said.count("\n") == told


def test_families_of_the_other_tests_are_known() -> None:
    assert all(decoding.knows(config_of(SPECS[name])) for name in FAMILIES)
