"""Generation by transformers, for families that `decoding.py` does not know.

With a KV cache, the prompt read once for all of its responses, and nothing truncated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from aligngap.models.batch import Ids, pad, positions

if TYPE_CHECKING:
    from aligngap.models.backbone import Backbone


class GeometricMixture(LogitsProcessor):
    """Next-token logits (1 - m) own + m other [N, V], whose softmax is own^(1-m) other^m, normalised.

    The other model reads along with a KV cache of its own; `given` is what its forward needs beside the new tokens.
    """

    def __init__(self, other: Backbone, share: float, mask: Tensor, given: dict[str, Any]) -> None:
        self.other, self.share, self.mask, self.given = other, share, mask, given
        self.cache: Any = None
        self.seen = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        new = input_ids[:, self.seen :]
        if self.other.encoder_decoder:
            inputs = {"decoder_input_ids": new, "attention_mask": self.mask, **self.given}
        else:
            grown = self.mask.new_ones(len(self.mask), input_ids.shape[1] - self.mask.shape[1])
            mask = torch.cat([self.mask, grown], -1)
            places = positions(mask)[:, self.seen :]
            inputs = {"input_ids": new, "attention_mask": mask, "position_ids": places, "logits_to_keep": 1}
        out = self.other.model(**inputs, past_key_values=self.cache, use_cache=True)
        self.cache, self.seen = out.past_key_values, input_ids.shape[1]
        mixed: Tensor = (1.0 - self.share) * scores + self.share * out.logits[:, -1].to(scores.dtype)
        return mixed


class Share(LogitsProcessor):
    """Rows `first` to `first` + N of a batch of `of` rows: draws them the tokens that they get where all are together.

    A token is the argmax of p / e with e standard exponential [of, V], which is how `torch.multinomial` draws one
    (the exponential race); the noise of all rows is drawn from `seed`, as for the whole batch, and this part's used.
    """

    def __init__(self, seed: int, first: int, of: int, temperature: float, device: torch.device) -> None:
        self.first, self.of, self.temperature = first, of, temperature
        self.generator = torch.Generator(device).manual_seed(seed)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores / self.temperature if self.temperature != 1.0 else scores
        noise = torch.empty(self.of, scores.shape[1], device=scores.device).exponential_(generator=self.generator)
        mine = noise[self.first : self.first + len(scores)]
        chosen = (torch.softmax(scores, -1) / mine).argmax(-1, keepdim=True)
        return torch.full_like(scores, -torch.inf).scatter(-1, chosen, 0.0)


def mixing(mixture: tuple[Backbone, float] | None, ids: Tensor, mask: Tensor, n: int) -> list[LogitsProcessor]:
    """What mixes another policy in, if one is: rows are prompts repeated n times."""
    if mixture is None:
        return []
    other, share = mixture
    given: dict[str, Any] = {}
    if other.encoder_decoder:
        states = other.model.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state
        given = {"encoder_outputs": (states.repeat_interleave(n, 0),)}
    return [GeometricMixture(other, share, mask.repeat_interleave(n, 0), given)]


def generate(
    policy: Backbone,
    prompts: Sequence[Ids],
    n: int,
    max_new_tokens: int,
    mixture: tuple[Backbone, float] | None = None,
    temperature: float = 1.0,
    share: Share | None = None,
) -> list[list[int]]:
    """Generated ids of P x n responses (without the prompt), the n of one prompt adjacent; rows may run past EOS.

    With `mixture=(other, m)` tokens come from policy^(1-m) other^m, normalised at each position. With `share` the rows
    are part of a larger batch. Draws from torch's global random state, which the caller has seeded. An encoder runs
    once per prompt (transformers expands its output); a decoder's prompt is prefilled once and its cache repeated,
    unless the family keeps none that can be (`reread`).
    """
    if not all(getattr(p, "keeps", True) for p in (policy, *(mixture or ())[:1])):
        return reread(policy, prompts, n, max_new_tokens, mixture, temperature, share)
    model, drawn = policy.model, [] if share is None else [share]
    if policy.encoder_decoder:
        ids, mask = pad(prompts, policy.pad_id, side="right")
        ids, mask = ids.to(policy.device), mask.to(policy.device)
        out = model.generate(
            input_ids=ids, attention_mask=mask, num_return_sequences=n, max_new_tokens=max_new_tokens, use_cache=True,
            temperature=temperature, logits_processor=LogitsProcessorList([*mixing(mixture, ids, mask, n), *drawn]),
            synced_gpus=False,  # where weights are whole, nobody waits for another's longest response
        )  # fmt: skip
        return [row[1:] for row in out.tolist()]
    ids, mask = pad(prompts, policy.pad_id, side="left")
    ids, mask = ids.to(policy.device), mask.to(policy.device)
    width = ids.shape[1]
    processors = LogitsProcessorList([*mixing(mixture, ids, mask, n), *drawn])
    cache = None
    if n > 1 and width > 1 and bool(mask[:, -2].all()):
        cache = model(
            input_ids=ids[:, :-1], attention_mask=mask[:, :-1], position_ids=positions(mask)[:, :-1], use_cache=True,
            logits_to_keep=1,
        ).past_key_values  # fmt: skip
        cache.batch_repeat_interleave(n)
        ids, mask, n = ids.repeat_interleave(n, 0), mask.repeat_interleave(n, 0), 1
    out = model.generate(
        input_ids=ids, attention_mask=mask, past_key_values=cache, logits_processor=processors,
        num_return_sequences=n, max_new_tokens=max_new_tokens, use_cache=True, temperature=temperature,
        synced_gpus=False,
    )  # fmt: skip
    return [row[width:] for row in torch.as_tensor(out).tolist()]


def reread(
    policy: Any,
    prompts: Sequence[Ids],
    n: int,
    max_new_tokens: int,
    mixture: tuple[Any, float] | None,
    temperature: float,
    share: Share | None,
) -> list[list[int]]:
    """`generate` for decoders whose state cannot be kept for padded rows: every token is drawn after reading all anew.

    Slow, and right for every family whose log-probabilities are: both read the same rows in the same way.
    """
    rows = [list(ids) for ids in prompts for _ in range(n)]
    lengths, going = [len(row) for row in rows], set(range(len(rows)))
    for _ in range(max_new_tokens):
        scores = policy.logits(policy.last_states(rows))
        if mixture is not None:
            other, part = mixture
            scores = (1.0 - part) * scores + part * other.logits(other.last_states(rows))
        if share is not None:
            new = share(torch.tensor([]), scores).argmax(-1)
        else:
            new = torch.multinomial(torch.softmax(scores / temperature, -1), 1).squeeze(-1)
        for row, token in zip(rows, new.tolist(), strict=True):
            row.append(token)
        going -= {i for i in going if rows[i][-1] in policy.end_ids}
        if not going:
            break
    return [row[length:] for row, length in zip(rows, lengths, strict=True)]
