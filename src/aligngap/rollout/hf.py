"""Generation by transformers: KV cache on, the prompt encoded once for all of its responses, nothing truncated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ..batch import Ids, pad

if TYPE_CHECKING:
    from ..policy import Policy


def generate(policy: Policy, prompts: Sequence[Ids], n: int, max_new_tokens: int) -> list[list[int]]:
    """Generated ids of P x n responses (without the prompt), the n of one prompt adjacent; rows may run past EOS.

    Draws from torch's global random state, which the caller has seeded. An encoder runs once per prompt (transformers
    expands its output); a decoder's prompt is prefilled once and its cache repeated.
    """
    model = policy.model
    if policy.encoder_decoder:
        ids, mask = pad(prompts, policy.pad_id, side="right")
        out = model.generate(
            input_ids=ids.to(policy.device), attention_mask=mask.to(policy.device),
            num_return_sequences=n, max_new_tokens=max_new_tokens, use_cache=True,
        )  # fmt: skip
        return [row[1:] for row in out.tolist()]
    ids, mask = pad(prompts, policy.pad_id, side="left")
    ids, mask = ids.to(policy.device), mask.to(policy.device)
    width = ids.shape[1]
    cache = None
    if n > 1 and width > 1 and bool(mask[:, -2].all()):
        positions = (mask.cumsum(-1) - 1).clamp_min(0)
        cache = model(
            input_ids=ids[:, :-1], attention_mask=mask[:, :-1], position_ids=positions[:, :-1], use_cache=True,
            logits_to_keep=1,
        ).past_key_values  # fmt: skip
        cache.batch_repeat_interleave(n)
        ids, mask, n = ids.repeat_interleave(n, 0), mask.repeat_interleave(n, 0), 1
    out = model.generate(
        input_ids=ids, attention_mask=mask, past_key_values=cache,
        num_return_sequences=n, max_new_tokens=max_new_tokens, use_cache=True,
    )  # fmt: skip
    return [row[width:] for row in torch.as_tensor(out).tolist()]
