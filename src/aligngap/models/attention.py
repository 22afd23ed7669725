"""Attention as small models on a CPU need it, under the name `ATTENTION` of transformers' attention interface.

The usual kernels are made for long texts and wide heads; here most of the time goes into steps of one query over kept
keys and values, which plain batched products do faster. On other devices, and for whatever has no case here,
transformers' own `sdpa` computes. The numbers are those of softmax attention in every case, up to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "aligngap"


@dataclass(frozen=True)
class Slots:
    """Which rows ask which of fewer texts' keys and values: `width` slots for each of G texts, some of them unused.

    `take` [G * width] is the row in each slot (any row where it is unused), `back` [N] the slot of each row.
    """

    take: Tensor
    back: Tensor
    width: int

    @classmethod
    def of(cls, owners: Tensor, texts: int) -> Slots:
        """The slots of rows whose texts are `owners` [N], each below `texts`."""
        counts = torch.bincount(owners, minlength=texts)
        width = int(counts.max())
        order = torch.argsort(owners, stable=True)
        starts = counts.cumsum(0) - counts
        place = torch.arange(len(owners), device=owners.device) - starts[owners[order]]
        back = torch.empty_like(owners)
        back[order] = owners[order] * width + place
        take = torch.zeros(texts * width, dtype=torch.long, device=owners.device)
        take[back] = torch.arange(len(owners), device=owners.device)
        return cls(take, back, width)


def attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    position_bias: Tensor | None = None,
    slots: Slots | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """Attention output [N, T, H, D] of queries [N, H, T, D], as transformers calls it."""
    if getattr(module, "is_decoder", False) and not getattr(module, "is_causal", True):
        position_bias = None  # T5 gives attention to the encoder a bias of zeros
    grouped = slots is not None and len(key) != len(query)
    if grouped or (query.device.type == "cpu" and query.shape[2] == 1 and not torch.is_grad_enabled()):
        return one_query(query, key, value, attention_mask, scaling, position_bias, slots if grouped else None), None
    found: tuple[Tensor, None] = sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, position_bias=position_bias, **more
    )
    return found


def one_query(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    bias: Tensor | None,
    slots: Slots | None,
) -> Tensor:
    """One query a row [N, H, 1, D] over keys and values [G, H', W, D]: [N, 1, H, D].

    G = N, or the texts of `slots`; several heads of queries may share a head of keys. The mask is of the texts, boolean
    or added; the bias [1, H, 1, W] is added.
    """
    rows, heads, _, width = query.shape
    texts, shared, seen, _ = key.shape
    asked = query[:, :, 0] * (width**-0.5 if scaling is None else scaling)
    if slots is not None:
        asked = asked[slots.take].view(texts, slots.width, shared, -1, width).transpose(1, 2)
    asked = asked.reshape(texts * shared, -1, width)
    scores = torch.bmm(asked, key.reshape(texts * shared, seen, width).transpose(1, 2))
    if bias is not None:
        per_head = bias.view(1, shared, -1, 1, seen) if slots is None else bias.view(1, shared, 1, -1, seen)
        scores = (scores.view(texts, shared, -1, 1, seen) + per_head).view(scores.shape)
    if mask is not None:
        spread = scores.view(texts, -1, seen)
        flat = mask.reshape(texts, 1, seen)
        spread = spread.masked_fill(~flat, -torch.inf) if flat.dtype == torch.bool else spread + flat
        scores = spread.view(scores.shape)
    out = torch.bmm(torch.softmax(scores, -1), value.reshape(texts * shared, seen, -1))
    if slots is not None:
        out = out.view(texts, shared, slots.width, -1).transpose(1, 2).reshape(texts * slots.width, -1)[slots.back]
    return out.reshape(rows, 1, heads, -1)


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def use(model: Any) -> None:
    """Let a model that would attend by transformers' `sdpa` attend by `attention`."""
    if model.config._attn_implementation == "sdpa" and model._can_set_attn_implementation():
        model.set_attn_implementation(ATTENTION)
