"""Our own attention against torch's, value by value and gradient by gradient, and the same bits in either mode."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import tiny_policy
from torch import Tensor
from torch.nn import functional as F

from aligngap.models import attention as module
from aligngap.models.attention import Attention, Slots, attention
from aligngap.models.batch import collate

#: texts, heads of queries, heads of keys, queries, keys, with a position bias, mask
CASES = [
    (3, 4, 4, 5, 5, False, "causal"),
    (3, 4, 2, 5, 7, False, "padding"),
    (2, 6, 2, 1, 9, False, None),
    (3, 2, 2, 4, 4, True, "causal"),
    (3, 2, 2, 4, 6, True, "padding"),
]


def case(texts: int, heads: int, shared: int, length: int, seen: int, biased: bool, masked: str | None) -> Any:
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    query, key, value = drawn(texts, heads, length, 8), drawn(texts, shared, seen, 8), drawn(texts, shared, seen, 8)
    bias = drawn(1, heads, length, seen) if biased else None
    mask = None
    if masked == "causal":
        mask = torch.ones((length, seen), dtype=torch.bool).tril()[None, None]
    if masked == "padding":
        mask = (torch.arange(seen) < torch.arange(seen - texts + 1, seen + 1)[:, None])[:, None, None]
    return query, key, value, bias, mask


@pytest.mark.parametrize("budgets", [(2**20, 2**24), (1, 0)], ids=["at once", "text by text, computed again"])
@pytest.mark.parametrize("given", CASES)
def test_values_and_gradients_are_softmax_attentions(
    given: Any, budgets: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "AT_ONCE", budgets[0])
    monkeypatch.setattr(module, "KEPT", budgets[1])
    query, key, value, bias, mask = case(*given)
    groups = query.shape[1] // key.shape[1]
    least = torch.finfo(torch.float64).min
    both = None
    if bias is not None:
        both = bias if mask is None else torch.where(mask, bias, least)
    elif mask is not None:
        both = torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, least)
    theirs = F.scaled_dot_product_attention(
        query, key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1), attn_mask=both, scale=0.3
    )
    mine = Attention.apply(query, key, value, bias, module.added(mask, False, given[3], given[4], query), 0.3)
    torch.testing.assert_close(mine, theirs)
    inputs = [x for x in (query, key, value, bias) if x is not None]
    weights = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found, wanted = (torch.autograd.grad((x * weights).sum(), inputs) for x in (mine, theirs))
    for mine_, theirs_ in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine_, theirs_)


@pytest.mark.parametrize("owners", [[0, 1, 2, 0, 1, 2], [2, 0, 2, 2, 1]], ids=["tiled", "ragged"])
def test_rows_that_share_a_text_see_it_as_if_each_had_its_own(owners: list[int]) -> None:
    """Of several queries each, with padding behind the texts; the decoder's attention to the encoder in T5."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn((len(owners), 2, 3, 8), generator=generator)
    key, value = torch.randn((2, 3, 2, 7, 8), generator=generator)
    mask = (torch.arange(7) < torch.tensor([5, 7, 6])[:, None])[:, None, None]
    cross: Any = SimpleNamespace(is_decoder=True, is_causal=False)
    at = torch.tensor(owners)
    slots = Slots.of(at, 3)
    assert slots.tiled == (owners == [0, 1, 2, 0, 1, 2])
    shared, _ = attention(cross, query, key, value, mask, scaling=1.0, slots=slots)
    alone, _ = attention(cross, query, key[at], value[at], mask[at], scaling=1.0)
    torch.testing.assert_close(shared, alone)
    assert shared.shape == (len(owners), 3, 2, 8)


@pytest.mark.parametrize("family", ["t5", "t5-v1.1", "llama", "gpt2", "qwen3"])
def test_a_policy_gives_the_same_bits_with_gradient_and_without(family: str) -> None:
    policy = tiny_policy(family)
    assert policy.alike_without_gradient
    batch = collate([(4, 5, 6), (7, 8, 9, 10)], [(4, 1), (5, 6, 1), (7,), (8, 1)], [0, 1, 0, 1])
    with torch.no_grad():
        without = policy.logps(batch)
    assert torch.equal(policy.logps(batch).detach(), without)
    assert policy.logps(batch).requires_grad


def test_the_position_bias_of_t5_is_its_own() -> None:
    """For the encoder and the decoder, from the start and behind tokens that were read before."""
    policy = tiny_policy("t5")
    for stack in (policy.model.get_encoder(), policy.model.get_decoder()):
        reads = stack.block[0].layer[0].SelfAttention
        for asked in ((150, 150, None, 0), (1, 9, None, 8), (3, 40, None, 37)):
            assert torch.equal(reads.compute_bias(*asked), type(reads).compute_bias(reads, *asked))


def test_what_is_not_attended_by_sdpa_is_left_alone() -> None:
    policy = tiny_policy("llama")
    policy.model.set_attn_implementation("eager")
    module.use(policy.model)
    assert policy.model.config._attn_implementation == "eager"
    assert not policy.alike_without_gradient
