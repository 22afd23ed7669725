"""Our own sampling loop, for T5 and for the decoders whose cache is plain keys and values.

Each prompt is read once, keys and values are written in place into memory that is there from the start, a token is one
draw, and rows leave the batch when they end. The token of a row at a position is the one that wins the exponential race
argmax p / e: its noise e is a function of (seed, row, position) alone, on a GPU also of the number of rows, so that
results do not depend on which rows are gone, nor on what else the batch holds, apart from rounding.

What this module leaves out: the other families, which transformers' `generate` samples (`sampling.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from aligngap.models.attention import ATTENTION, Slots, added, attend
from aligngap.models.backbone import Backbone
from aligngap.models.batch import Ids, pad, positions
from aligngap.models.packed import count
from aligngap.seeding import derive

#: families whose samples are held against their own log-probabilities by the tests
KNOWN = ("t5", "llama", "mistral", "qwen2", "qwen3", "gpt2", "gpt_neox", "olmo2", "phi", "phi3", "granite", "smollm3")

#: of these, decoders whose layers are built alike, module by module
ALIKE = ("llama", "mistral", "qwen2", "qwen3")


def knows(config: Any) -> bool:
    """Whether the loop samples a model of this transformers configuration: its family, and what its layers keep."""
    if config.model_type not in KNOWN:
        return False
    plain = all(type(layer) is DynamicLayer for layer in DynamicCache(config=config).layers)
    return plain and (not config.is_encoder_decoder or config._attn_implementation in (None, "sdpa", ATTENTION))


class Room(DynamicLayer):
    """Keys and values [N, H, W, D] of one layer, with room for all that is to come; rows can leave."""

    keys: Any
    values: Any

    def __init__(self, room: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.room, self.seen = room, 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **more: Any) -> tuple[Tensor, Tensor]:
        """Write new keys and values [N, H, T, D] behind those that are there; returns all."""
        until = self.seen + key_states.shape[2]
        if self.keys is None:
            # Under autocast keys may be float32 beside values that are not: they are multiplied as the values are.
            self.keys = value_states.new_empty((*key_states.shape[:2], self.room, key_states.shape[3]))
            self.values = value_states.new_empty((*value_states.shape[:2], self.room, value_states.shape[3]))
            self.is_initialized = True
        self.keys[:, :, self.seen : until] = key_states
        self.values[:, :, self.seen : until] = value_states
        self.seen = until
        return self.keys[:, :, :until], self.values[:, :, :until]

    def get_seq_length(self) -> int:
        return self.seen

    def repeat(self, n: int) -> None:
        """Each row n times, one behind the other."""
        for name in ("keys", "values"):
            kept = getattr(self, name)
            wide = kept.new_empty((len(kept), n, *kept.shape[1:]))
            wide[:, :, :, : self.seen] = kept[:, None, :, : self.seen]
            setattr(self, name, wide.flatten(0, 1))

    def leave(self, gone: Tensor, last: Tensor, left: int) -> None:
        """Rows `last` take the places `gone`, and the first `left` rows stay."""
        for name in ("keys", "values"):
            kept = getattr(self, name)
            kept[gone] = kept[last]
            setattr(self, name, kept[:left])


class Reader(Protocol):
    """A model that reads P prompts and then, token by token, their P x n responses."""

    def first(self) -> Tensor:
        """Logits [P x n, V] of the first token."""
        ...

    def next(self, new: Tensor) -> Tensor:
        """Logits [N, V] after the tokens `new` [N] of the rows that are left."""
        ...

    def leave(self, gone: Tensor, last: Tensor, left: int) -> None:
        """Rows `last` take the places `gone`, and the first `left` rows stay."""
        ...


class DecoderReader:
    """A decoder-only model: the prompt's keys and values are computed once, then kept for each of its responses."""

    def __init__(self, policy: Any, prompts: Sequence[Ids], n: int, room: int) -> None:
        self.policy, self.n = policy, n
        ids, mask = pad(prompts, policy.pad_id, side="left")
        self.ids, mask = ids.to(policy.device), mask.to(policy.device)
        self.width = self.ids.shape[1]
        self.places = positions(mask)
        self.given: dict[str, Any] = {}
        self.hidden: Tensor | None = None if bool(mask.all()) else mask
        self.layers = [Room(self.width + room) for _ in DynamicCache(config=policy.model.config).layers]
        self.cache = Cache(layers=[*self.layers])

    def first(self) -> Tensor:
        logits = self._read(self.ids, self.places, self.hidden)
        self.places = self.places[:, -1:].repeat_interleave(self.n, 0)
        for layer in self.layers:
            layer.repeat(self.n)
        if self.hidden is not None:  # added to scores: what stands before a prompt is not seen
            room = self.layers[0].room
            seen = torch.zeros((len(self.places), 1, 1, room), device=self.ids.device)
            before = self.hidden.repeat_interleave(self.n, 0)[:, None, None] == 0
            seen[..., : self.width].masked_fill_(before, -torch.inf)
            self.hidden = seen
        return logits.repeat_interleave(self.n, 0)

    def next(self, new: Tensor) -> Tensor:
        self.places = self.places + 1
        seen = self.layers[0].seen + 1
        mask = None if self.hidden is None else self.hidden[..., :seen]
        if self.policy.model.config.model_type in ALIKE:
            return self._step(new, mask)
        return self._read(new[:, None], self.places, mask)

    def _step(self, new: Tensor, mask: Tensor | None) -> Tensor:
        """One token through the layers' own modules; what surrounds them in the forward pass costs as much again."""
        stack = self.policy.model.base_model
        count(stack, new[:, None])
        state = stack.embed_tokens(new)
        angles = stack.rotary_emb(state, position_ids=self.places)
        for layer, kept in zip(stack.layers, self.layers, strict=True):
            reads, normed = layer.self_attn, norm(layer.input_layernorm, state)
            query, key, value = (
                by(normed).view(len(new), -1, 1, reads.head_dim) for by in (reads.q_proj, reads.k_proj, reads.v_proj)
            )
            if hasattr(reads, "q_norm"):
                query, key = norm(reads.q_norm, query), norm(reads.k_norm, key)
            query, key = apply_rotary_pos_emb(query, key, *angles)
            found, _ = attend(query.to(value.dtype), *kept.update(key, value), None, mask, reads.scaling)
            state = state + reads.o_proj(found.flatten(1))
            state = state + layer.mlp(norm(layer.post_attention_layernorm, state))
        logits: Tensor = self.policy.logits(norm(stack.norm, state))
        return logits

    def _read(self, ids: Tensor, places: Tensor, mask: Tensor | None) -> Tensor:
        out = self.policy.model.base_model(
            input_ids=ids, attention_mask=mask, position_ids=places, past_key_values=self.cache, use_cache=True
        )
        logits: Tensor = self.policy.logits(out.last_hidden_state[:, -1])
        return logits

    def leave(self, gone: Tensor, last: Tensor, left: int) -> None:
        for layer in self.layers:
            layer.leave(gone, last, left)
        self.places = moved(self.places, gone, last, left)
        if self.hidden is not None:
            self.hidden = moved(self.hidden, gone, last, left)


class EncoderReader:
    """A T5: the prompt is encoded once, and its keys and values for the decoder are kept once for all its responses."""

    def __init__(self, policy: Any, prompts: Sequence[Ids], n: int, room: int) -> None:
        self.policy, self.decoder = policy, policy.model.get_decoder()
        self.states, mask = policy.encode(prompts)
        self.mask = None if bool(mask.all()) else added(mask.bool()[:, None, None], False, 1, 1, self.states)
        self.owners = torch.arange(len(prompts), device=policy.device).repeat_interleave(n)
        self.slots = Slots.of(self.owners, len(prompts))
        self.read = [self._kept(block.layer[1].EncDecAttention) for block in self.decoder.block]
        self.written = [Room(room) for _ in self.read]
        self.bias = self.decoder.block[0].layer[0].SelfAttention.compute_bias(room, room)

    def _kept(self, reads: Any) -> Room:
        shape = (*self.states.shape[:2], -1, reads.key_value_proj_dim)
        keys, values = (by(self.states).view(shape).transpose(1, 2).contiguous() for by in (reads.k, reads.v))
        kept = Room(keys.shape[2])
        kept.keys, kept.values, kept.seen = keys, values, keys.shape[2]
        return kept

    def first(self) -> Tensor:
        return self.next(torch.full_like(self.owners, self.policy.model.config.decoder_start_token_id))

    def next(self, new: Tensor) -> Tensor:
        """One token through the decoder's own modules; what surrounds them in its forward pass costs as much again."""
        count(self.decoder, new[:, None])
        state = self.decoder.embed_tokens(new)
        seen = self.written[0].seen
        bias = self.bias[:, :, seen : seen + 1, : seen + 1]
        for block, written, read in zip(self.decoder.block, self.written, self.read, strict=True):
            itself, encoder, forward = block.layer
            own = itself.SelfAttention
            normed = norm(itself.layer_norm, state)
            asked, key, value = (
                by(normed).view(len(new), -1, 1, own.key_value_proj_dim) for by in (own.q, own.k, own.v)
            )
            found, _ = attend(asked, *written.update(key, value), bias, None, 1.0)
            state = state + own.o(found.flatten(1))
            asked = encoder.EncDecAttention.q(norm(encoder.layer_norm, state)).view(asked.shape)
            by_text, _ = attend(self.slots.asked(asked), read.keys, read.values, None, self.mask, 1.0)
            state = state + encoder.EncDecAttention.o(self.slots.answered(by_text).flatten(1))
            state = state + forward.DenseReluDense(norm(forward.layer_norm, state))
        logits: Tensor = self.policy.logits(norm(self.decoder.final_layer_norm, state))
        return logits

    def leave(self, gone: Tensor, last: Tensor, left: int) -> None:
        for layer in self.written:
            layer.leave(gone, last, left)
        owners = moved(self.owners, gone, last, left)
        asked, self.owners = torch.unique(owners, return_inverse=True)
        if len(asked) < len(self.states):  # nobody asks some prompts any more
            self.states = self.states[asked]
            self.mask = None if self.mask is None else self.mask[asked]
            for read in self.read:
                read.keys, read.values = read.keys[asked], read.values[asked]
        self.slots = Slots.of(self.owners, len(asked))


def norm(module: Any, state: Tensor) -> Tensor:
    """What the norms of T5 and of `ALIKE` compute, in one call."""
    return torch.nn.functional.rms_norm(state, module.weight.shape, module.weight, module.variance_epsilon)


def moved(kept: Tensor, gone: Tensor, last: Tensor, left: int) -> Tensor:
    """The first `left` rows, after rows `last` have taken the places `gone`."""
    kept[gone] = kept[last]
    return kept[:left]


def noise(seed: int, position: int, rows: int, vocabulary: int, device: torch.device) -> Tensor:
    """Random bits [rows, >= V], int32: of each row and position its own, from `seed`."""
    generator = torch.Generator(device).manual_seed(derive(seed, "position", position))
    bits = torch.empty((rows, (vocabulary + 1) // 2), dtype=torch.int64, device=device)
    return bits.random_(-(2**63), None, generator=generator).view(torch.int32)


def draw(logits: Tensor, bits: Tensor) -> Tensor:
    """Tokens [N] from softmax(logits [N, V]): argmax p / e, with e standard exponential made from `bits` [N, V].

    e = -log(1 - u) with u of 31 bits, so that it is as fine as 2^-31 where it is small.
    """
    less = bits.to(torch.float32).abs_().add_(0.5).mul_(-(2.0**-31)).log1p_()  # -e
    return (torch.softmax(logits, -1) / less).argmin(-1)


def sample(
    policy: Any,
    prompts: Sequence[Ids],
    n: int,
    max_new_tokens: int,
    seed: int,
    ends: Collection[int],
    mixture: tuple[Any, float] | None = None,
    temperature: float = 1.0,
    first: int = 0,
    of: int | None = None,
) -> list[list[int]]:
    """Ids of P x n responses (without the prompt), the n of one prompt adjacent, each up to the first of `ends`.

    With `mixture=(other, m)` tokens come from policy^(1-m) other^m, normalised at each position. The rows are those
    from `first` on of a batch of `of`, and get the tokens that they have there.
    """
    total = len(prompts) * n
    readers = [(reader(policy, prompts, n, max_new_tokens), 1.0)]
    if mixture is not None:
        other, share = mixture
        readers = [(readers[0][0], 1.0 - share), (reader(other, prompts, n, max_new_tokens), share)]
    device, of = policy.device, total if of is None else of
    written = torch.zeros((total, max_new_tokens), dtype=torch.long, device=device)
    lengths = torch.full((total,), max_new_tokens, dtype=torch.long, device=device)
    stops = torch.tensor(sorted(ends), device=device)
    rows = torch.arange(total, device=device)
    found = [by.first() for by, _ in readers]
    for position in range(max_new_tokens):
        logits = found[0]
        if len(readers) == 2:
            logits = readers[0][1] * found[0] + readers[1][1] * found[1]
        logits = logits if temperature == 1.0 else logits / temperature
        vocabulary = logits.shape[1]
        bits = noise(seed, position, of, vocabulary, device)
        whole = len(rows) == of
        new = draw(logits, bits[:, :vocabulary] if whole and position == 0 else bits[first + rows, :vocabulary])
        written[rows, position] = new
        if position + 1 == max_new_tokens:
            break
        ended = torch.isin(new, stops)
        leaving = int(ended.sum())
        if leaving:
            lengths[rows[ended]] = position + 1
            left = len(rows) - leaving
            if left == 0:
                break
            gone, last = ended[:left].nonzero()[:, 0], left + (~ended[left:]).nonzero()[:, 0]
            for by, _ in readers:
                by.leave(gone, last, left)
            rows, new = moved(rows, gone, last, left), moved(new, gone, last, left)
        found = [by.next(new) for by, _ in readers]
    return [row[:length] for row, length in zip(written.tolist(), lengths.tolist(), strict=True)]


def reader(policy: Backbone, prompts: Sequence[Ids], n: int, room: int) -> Reader:
    """What reads for a policy, by its family."""
    made: type[Any] = EncoderReader if policy.encoder_decoder else DecoderReader
    found: Reader = made(policy, prompts, n, room)
    return found
