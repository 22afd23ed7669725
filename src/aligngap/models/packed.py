"""A T5 on real tokens only: every token of a batch is a row, and only attention sees texts padded to one length.

The forward pass of transformers multiplies padding by every matrix: of answers of 9 tokens in a window of 16 that is
nearly half of the work. Here the model's own modules are called on [M, d] for the M tokens that there are.

What this module leaves out: attention (`attention.py`), and what becomes of the states (`backbone.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from aligngap.models.attention import Slots, added, attention
from aligngap.models.batch import Ids


@dataclass(frozen=True)
class Places:
    """Where M tokens stand in N texts padded to T tokens: `flat` [M], text by text; None where no text is padded."""

    flat: Tensor | None
    texts: int
    width: int

    @classmethod
    def of(cls, rows: Sequence[Ids]) -> Places:
        """The places of the tokens of rows."""
        width = max(1, *map(len, rows))
        if all(len(row) == width for row in rows):
            return cls(None, len(rows), width)
        flat = [n * width + i for n, row in enumerate(rows) for i in range(len(row))]
        return cls(torch.tensor(flat, dtype=torch.long), len(rows), width)

    def spread(self, values: Tensor) -> Tensor:
        """[N, T, d] from values [M, d], with 0 where no token stands."""
        if self.flat is not None:
            values = Spread.apply(values, self.flat, self.texts * self.width)  # type: ignore[no-untyped-call]
        return values.view(self.texts, self.width, -1)

    def gather(self, values: Tensor) -> Tensor:
        """[M, d] from values [N, T, d]."""
        rows = values.flatten(0, 1)
        found: Tensor = rows if self.flat is None else Gather.apply(rows, self.flat)  # type: ignore[no-untyped-call]
        return found

    def mask(self) -> Tensor:
        """[N, T], 1 where a token stands."""
        seen = torch.ones(self.texts * self.width, dtype=torch.long)
        if self.flat is not None:
            seen = torch.zeros_like(seen).index_fill_(0, self.flat, 1)
        return seen.view(self.texts, self.width)


class Spread(torch.autograd.Function):
    """Rows [M, d] at places [M], all different, among `size` rows of zeros."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, places: Tensor, size: int) -> Tensor:
        ctx.save_for_backward(places)
        return values.new_zeros((size, values.shape[1])).index_copy_(0, places, values)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0].index_select(0, ctx.saved_tensors[0]), None, None


class Gather(torch.autograd.Function):
    """The rows [M, d] at places [M], all different, of more rows: the inverse of `Spread`."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.size = len(values)
        return values.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (places,) = ctx.saved_tensors
        return grads[0].new_zeros((ctx.size, grads[0].shape[1])).index_copy_(0, places, grads[0]), None


@dataclass(frozen=True)
class Texts:
    """What the rows of a decoder ask: P encoded texts [P, S, d], the mask of their tokens [P, S], and whose they are.

    `slots` says which rows ask which text; None: as many texts as rows, in one order.
    """

    states: Tensor
    mask: Tensor
    slots: Slots | None


def read(stack: Any, rows: Sequence[Ids], texts: Texts | None = None) -> Tensor:
    """States [M, d] of the tokens of rows, behind a T5's encoder, or behind its decoder that asks `texts`."""
    places = Places.of(rows)
    ids = torch.tensor([token for row in rows for token in row], dtype=torch.long)
    count(stack, ids)
    x = stack.embed_tokens(ids)
    first = stack.block[0].layer[0].SelfAttention
    bias, size = first.compute_bias(places.width, places.width), first.key_value_proj_dim
    if stack.is_decoder:
        mask = added(None, True, places.width, places.width, x)
    else:
        mask = None if places.flat is None else added(places.mask().bool()[:, None, None], False, 1, 1, x)
    hidden = None
    if texts is not None and not bool(texts.mask.all()):
        hidden = added(texts.mask.bool()[:, None, None], False, 1, 1, x)

    def heads(values: Tensor) -> Tensor:
        return values.view(*values.shape[:2], -1, size).transpose(1, 2)

    def attended(by: Any, keys: Tensor, values: Tensor, normed: Tensor, **how: Any) -> Tensor:
        found, _ = attention(
            by, heads(places.spread(by.q(normed))), keys, values, scaling=1.0, is_causal=False, **how
        )  # fmt: skip
        out: Tensor = by.o(places.gather(found.flatten(2)))
        return out

    for block in stack.block:
        itself, forward = block.layer[0], block.layer[-1]
        by, normed = itself.SelfAttention, itself.layer_norm(x)
        keys, values = (heads(places.spread(part(normed))) for part in (by.k, by.v))
        x = x + attended(by, keys, values, normed, attention_mask=mask, position_bias=bias)
        if texts is not None:
            other = block.layer[1]
            by = other.EncDecAttention
            keys, values = (heads(part(texts.states)) for part in (by.k, by.v))
            x = x + attended(by, keys, values, other.layer_norm(x), attention_mask=hidden, slots=texts.slots)
        x = x + forward.DenseReluDense(forward.layer_norm(x))
    states: Tensor = stack.final_layer_norm(x)
    return states


def count(stack: nn.Module, ids: Tensor) -> None:
    """Tell who counts the tokens that enter a stack (`flops.py`) of tokens that enter its parts."""
    for key, hook in stack._forward_pre_hooks.items():
        if key in stack._forward_pre_hooks_with_kwargs:
            hook(stack, (), {"input_ids": ids})
