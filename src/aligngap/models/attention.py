"""Softmax attention as small models on a CPU need it, under the name `ATTENTION` of transformers' attention interface.

The usual kernels are made for long texts and wide heads. Here scores are batched products over a few texts or heads at
a time, so that they stay in the processor's cache, and texts that several rows ask (a prompt) are kept once.
The same operations compute with gradient and without, so that a policy and its copy give the same bits in either mode;
T5's trained position bias gets its gradient. Elsewhere (other devices, autocast, dropout, long texts without a bias)
transformers' own `sdpa` computes.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.models.t5.modeling_t5 import T5Attention

ATTENTION = "aligngap"
AT_ONCE = 2**18  # scores that are computed at once, 1 MiB: what a core's own cache holds
KEPT = 2**24  # scores of a layer that are kept for the backward pass, 64 MiB; beyond, they are computed again


@dataclass(frozen=True)
class Slots:
    """Which of N rows ask which of P texts: `width` slots for each text, in which its rows stand, some of them unused.

    `take` [P * width] is the row in each slot (any row where it is unused), `back` [N] the slot of each row. `tiled`:
    the rows are all texts once, then all once more, and so on.
    """

    take: Tensor
    back: Tensor
    width: int
    tiled: bool = False

    @classmethod
    def of(cls, owners: Tensor, texts: int) -> Slots:
        """The slots of rows whose texts are `owners` [N], each below `texts`."""
        device, rows = owners.device, torch.arange(len(owners), device=owners.device)
        counts = torch.bincount(owners, minlength=texts)
        width = int(counts.max())
        order = torch.argsort(owners, stable=True)
        starts = counts.cumsum(0) - counts
        back = torch.empty_like(owners)
        back[order] = owners[order] * width + rows - starts[owners[order]]
        take = torch.zeros(texts * width, dtype=torch.long, device=device)
        take[back] = rows
        tiled = len(owners) == texts * width and torch.equal(owners, rows % texts)
        return cls(take, back, width, tiled)

    def asked(self, query: Tensor) -> Tensor:
        """Queries [N, H, T, D] by text: [P, H, width * T, D]."""
        heads, length, size = query.shape[1:]
        texts = len(self.take) // self.width
        if self.tiled:
            by_text = query.view(self.width, texts, heads, length, size).permute(1, 2, 0, 3, 4)
        else:
            by_text = query[self.take].view(texts, self.width, heads, length, size).transpose(1, 2)
        return by_text.reshape(texts, heads, self.width * length, size)

    def answered(self, found: Tensor) -> Tensor:
        """The inverse of `asked`: [N, H, T, D] from [P, H, width * T, D]."""
        texts, heads, _, size = found.shape
        by_text = found.view(texts, heads, self.width, -1, size)
        if self.tiled:
            return by_text.permute(2, 0, 1, 3, 4).flatten(0, 1)
        return by_text.transpose(1, 2).flatten(0, 1)[self.back]


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
    """Attention output [N, T, H, D] of queries [N, H, T, D], as transformers calls it.

    Keys and values are [N, H', S, D] with H' a divisor of H, or of the texts of `slots`.
    """
    if getattr(module, "is_decoder", False) and not getattr(module, "is_causal", True):
        position_bias = None  # T5 gives the decoder's attention to the encoder a bias of zeros
    slots = slots if len(key) != len(query) else None
    asked = query if slots is None else slots.asked(query)
    if ours(query, dropout, position_bias, asked.shape[0] * asked.shape[1] * asked.shape[2] * key.shape[2]):
        causal = (
            attention_mask is None and query.shape[2] > 1 and more.get("is_causal", getattr(module, "is_causal", True))
        )
        mask = added(attention_mask, causal, query.shape[2], key.shape[2], query)
        scale = query.shape[3] ** -0.5 if scaling is None else scaling
        found: Tensor = Attention.apply(asked, key, value, position_bias, mask, scale)  # type: ignore[no-untyped-call]
    else:
        found, _ = sdpa_attention_forward(
            module, asked, key, value, attention_mask, dropout=dropout, scaling=scaling, position_bias=position_bias,
            **more,
        )  # fmt: skip
        found = found.transpose(1, 2)
    return (found if slots is None else slots.answered(found)).transpose(1, 2).contiguous(), None


def ours(query: Tensor, dropout: float, bias: Tensor | None, scores: int) -> bool:
    """Whether so many scores are computed here; the answer is the same with gradient and without."""
    plain = query.device.type == "cpu" and query.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return plain and dropout == 0.0 and (bias is not None or scores <= KEPT)


def added(mask: Tensor | None, causal: bool, length: int, seen: int, like: Tensor) -> Tensor | None:
    """What a mask adds to scores: 0 where it lets look, the least number where not."""
    if causal:
        mask = torch.ones((length, seen), dtype=torch.bool, device=like.device).tril()[None, None]
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=like.dtype, device=like.device).masked_fill_(
        ~mask, torch.finfo(like.dtype).min
    )


class Attention(torch.autograd.Function):
    """softmax(scale q k' + bias + mask) v, [N, H, T, D], a part of it at a time, and its gradients."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, mask: Tensor | None, scale: float
    ) -> Tensor:
        needed = any(ctx.needs_input_grad)
        out, weights = attend(query, key, value, bias, mask, scale, keep=needed)
        if needed:
            keep = sum(map(torch.numel, weights)) <= KEPT
            ctx.save_for_backward(query, key, value, bias, mask, out, *(weights if keep else ()))
            ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        query, key, value, bias, mask, out, *kept = ctx.saved_tensors
        grad = grads[0].contiguous()
        d_query, d_key, d_value = (x.new_empty(x.shape) for x in (query, key, value))
        d_bias = bias.new_zeros(bias.shape) if bias is not None and ctx.needs_input_grad[3] else None
        inner = (grad * out).sum(-1)
        by = Shared(query, key, bias, mask)
        asked_all, d_asked, grad, inner = (by.heads(x) for x in (query, d_query, grad, inner))
        nothing = query.new_zeros(())
        for number, part in enumerate(by.parts()):
            weights = kept[number] if kept else by.weights(part, ctx.scale)
            asked, keys, values, back = (
                x[part].reshape(len(weights), -1, x.shape[-1]) for x in (asked_all, key, value, grad)
            )
            torch.bmm(weights.transpose(1, 2), back, out=d_value[part].view(values.shape))
            scores = torch.bmm(back, values.transpose(1, 2))
            scores.sub_(inner[part].reshape(len(weights), -1, 1)).mul_(weights)
            if d_bias is not None:
                texts = scores.view(*asked_all[part].shape[:4], -1)
                by.heads(d_bias)[:, part[1]] += texts if len(texts) == 1 else texts.sum(0)
            to_query, to_key = d_asked[part].view(asked.shape), d_key[part].view(keys.shape)
            torch.baddbmm(nothing, scores, keys, beta=0, alpha=ctx.scale, out=to_query)
            torch.baddbmm(nothing, scores.transpose(1, 2), asked, beta=0, alpha=ctx.scale, out=to_key)
        return d_query, d_key, d_value, d_bias, None, None


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    scale: float,
    keep: bool = False,
) -> tuple[Tensor, list[Tensor]]:
    """softmax(scale q k' + bias + mask) v [N, H, T, D], and where `keep` the weights of each part."""
    out = query.new_empty(query.shape[:3] + value.shape[3:])
    by, weights = Shared(query, key, bias, mask), []
    by_heads = by.heads(out)
    for part in by.parts():
        found = by.weights(part, scale)
        torch.bmm(found, value[part].flatten(0, 1), out=by_heads[part].view(len(found), -1, value.shape[3]))
        if keep:
            weights.append(found)
    return out, weights


@dataclass(frozen=True)
class Shared:
    """Queries [N, H, T, D] and keys [N, H', S, D], with heads of queries behind the head of keys that they share."""

    query: Tensor
    key: Tensor
    bias: Tensor | None
    mask: Tensor | None

    def heads(self, values: Tensor) -> Tensor:
        """[N, H', H / H', …] of values [N, H, …]."""
        found: Tensor = values.unflatten(1, (self.key.shape[1], -1))
        return found

    def parts(self) -> list[tuple[slice, slice]]:
        """Texts and heads of keys whose scores are computed at once: some texts, or some heads of a text."""
        texts, shared = self.key.shape[:2]
        scores = self.query.shape[1] * self.query.shape[2] * self.key.shape[2]
        step = max(1, AT_ONCE // scores)
        wide = shared if scores <= AT_ONCE else max(1, AT_ONCE * shared // scores)
        return [
            (slice(text, text + step), slice(head, head + wide))
            for head in range(0, shared, wide)  # the bias of a head stays in the cache for all texts
            for text in range(0, texts, step)
        ]

    def weights(self, part: tuple[slice, slice], scale: float) -> Tensor:
        """Attention weights [n * h, (H / H') * T, S] of a part of n texts and h heads of keys."""
        asked, keys = self.heads(self.query)[part], self.key[part].flatten(0, 1)
        scores = torch.bmm(asked.reshape(len(keys), -1, asked.shape[-1]), keys.transpose(1, 2))
        if scale != 1.0:
            scores *= scale
        by_heads = scores.view(*asked.shape[:4], -1)
        if self.bias is not None:
            by_heads += self.heads(self.bias)[:, part[1]]
        if self.mask is not None:
            mask = self.mask if len(self.mask) == 1 else self.mask[part[0]]
            by_heads += mask[:, None] if mask.shape[1] == 1 else self.heads(mask)[:, part[1]]
        return torch.softmax(scores, -1).to(scores.dtype)  # autocast makes it float32


def position_bias(
    self: Any, query_length: int, key_length: int, device: torch.device | None = None, past_seen_tokens: int = 0
) -> Tensor:
    """T5's relative position bias [1, H, T, S]: looked up once per distance, not once per pair of positions."""
    table = self.relative_attention_bias
    first = -(past_seen_tokens + query_length - 1)
    distance = torch.arange(first, first + query_length + key_length - 1, device=device or table.weight.device)
    buckets = self._relative_position_bucket(
        distance, bidirectional=not self.is_decoder, num_buckets=self.relative_attention_num_buckets,
        max_distance=self.relative_attention_max_distance,
    )  # fmt: skip
    by_distance: Tensor = table(buckets).T.contiguous()
    return by_distance.unfold(1, key_length, 1).flip(1)[None]


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def use(model: Any) -> None:
    """Let a model that would attend by transformers' `sdpa` attend by `attention`."""
    if model.config._attn_implementation == "sdpa" and model._can_set_attn_implementation():
        model.set_attn_implementation(ATTENTION)
        for module in model.modules():
            reads: Any = module
            if isinstance(module, T5Attention) and module.has_relative_attention_bias:
                reads.compute_bias = MethodType(position_bias, module)


def shares_texts(model: Any) -> bool:
    """Whether the decoder of an encoder-decoder model takes `slots`: fewer texts than rows that ask them."""
    return bool(model.config.model_type == "t5" and model.config._attn_implementation == ATTENTION)
