"""A transformers model read in batches: the hidden states from which completion tokens are predicted.

Policies add the language-model head (`policy.py`), preference models a scalar head (`judges/`). Each prompt is read
once for all of its responses: by the encoder, or by a decoder-only model that then goes on from the prompt's keys and
values. What this module leaves out: how models are built and loaded (`loading.py`), text (`encoding.py`), and padding
(`batch.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from aligngap.models import attention, compiled, lora, packed
from aligngap.models.batch import Batch, Ids, collate, pad, positions
from aligngap.models.encoding import Encoding, generation_ends
from aligngap.models.loading import PLAIN, seeded
from aligngap.settings import LoraSpec, ModelSpec
from aligngap.types import AligngapError, first_line

if TYPE_CHECKING:
    from peft import PeftModel


LOGITS_BUDGET = 2**24  # elements of one [positions, V] block of logits: 64 MiB in float32


class Backbone:
    """A transformers model and its tokenizer: hidden states at completion positions, for any family.

    `spec` says how the model is run (precision, chat template). `adapter` is PEFT's view of a low-rank adapter that
    sits in the model, if there is one.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        spec: ModelSpec = PLAIN,
        adapter: PeftModel | None = None,
    ) -> None:
        self.model = model.eval()
        attention.use(model)
        if spec.compile:
            compiled.use(model)
        self.tokenizer = tokenizer
        self.spec, self.adapter = spec, adapter
        self.pad_id: int = tokenizer.pad_token_id
        self.eos_id: int = tokenizer.eos_token_id
        self.encoder_decoder: bool = bool(model.config.is_encoder_decoder)
        self.encoding = Encoding(tokenizer, self.encoder_decoder, spec)
        ends = [self.eos_id, self.encoding.close_id, *generation_ends(model, tokenizer)]
        self.end_ids: tuple[int, ...] = tuple(dict.fromkeys(ends))  # any of them ends a response
        self.shares = not self.encoder_decoder  # a decoder reads a prompt once for all its responses, if it is able to

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.model.parameters()).device
        return device

    def to(self, device: torch.device) -> Any:
        self.model.to(device)
        return self

    @property
    def body(self) -> Any:
        """The model without its output layer."""
        found = self.model.base_model
        return found if found is not self.model else getattr(self.model, "model", found)

    def precision(self) -> Any:
        """A context for forward passes: bfloat16 matrix products on float32 weights, if the specification says so."""
        if self.spec.dtype == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    @property
    def alike_without_gradient(self) -> bool:
        """Whether a forward pass gives the same bits with gradient and without: our own attention does, on a CPU.

        Not a compiled model, which computes without gradient by its plain code.
        """
        return self._attends() and not self.spec.compile

    def _attends(self) -> bool:
        """Whether our own attention computes, with gradient and without."""
        own = self.model.config._attn_implementation == attention.ATTENTION
        return own and self.device.type == "cpu" and self.spec.dtype == "float32" and self.spec.dropout == 0.0

    def attach(self, spec: LoraSpec, seed: int) -> Self:
        """Put a fresh adapter into this very model: its weights are frozen, and only the adapter trains."""
        with seeded(seed, self.device):
            self.adapter = lora.attach(self.model, spec)
        self.model.eval()
        return self

    def merge(self) -> Self:
        """Add the adapter, if there is one, to these very weights: an ordinary model again. Not if they are shared."""
        if self.adapter is not None:
            lora.merge(self.adapter)
            self.adapter = None
        return self

    def encode_prompt(self, text: str) -> tuple[int, ...]:
        return self.encoding.prompt(text)

    def encode_response(self, text: str, ended: bool = True, prompt: str = "") -> tuple[int, ...]:
        """Ids of a response to a prompt, whose text can decide how the response begins (`encoding.py`)."""
        return self.encoding.response(text, ended, prompt)

    def hidden(self, batch: Batch) -> Tensor:
        """Hidden states [M, d] from which each completion token is predicted, flattened in row order."""
        with self.precision():
            return self._hidden(batch.to(self.device))

    def _hidden(self, batch: Batch) -> Tensor:
        if self.encoder_decoder:
            return self._decode(batch, *self.encode(batch.prompts))
        if any(len(p) == 0 for p in batch.prompts):
            raise AligngapError("an empty prompt: a decoder-only model needs at least one token before the response")
        if self._shares_prompts(batch):
            return self._continue(batch)
        owners = batch.prompt_of.tolist()
        whole = [tuple(batch.prompts[o]) + tuple(c) for o, c in zip(owners, batch.completions, strict=True)]
        ids, mask = pad(whole, self.pad_id)
        states: Tensor = self.body(
            input_ids=ids.to(self.device),
            attention_mask=mask.to(self.device),
            position_ids=positions(mask).to(self.device),
            use_cache=False,
        ).last_hidden_state
        offsets = torch.tensor([len(batch.prompts[o]) - 1 for o in owners], device=self.device)
        return states[batch.rows, batch.columns + offsets[batch.rows]]

    def _shares_prompts(self, batch: Batch) -> bool:
        """Whether a decoder-only model reads each prompt once and goes on from its keys and values.

        Not where the family cannot (`shares`), where they are not kept (activations computed again, a recurrent state),
        where FSDP lets a layer be called once a step, nor under dropout, which two responses would then share.
        """
        repeated = len(batch.completions) > len(batch.prompts) and min(map(len, batch.prompts)) > 1
        kept = not self.spec.gradient_checkpointing and not getattr(self.model, "_is_stateful", False)
        dropped = self.model.training and self.spec.dropout > 0
        return self.shares and repeated and kept and not dropped and not self._sharded()

    def _sharded(self) -> bool:
        """Whether FSDP gathers each layer's weights when the layer itself is called."""
        together = torch.distributed.is_available() and torch.distributed.is_initialized()
        return together and any(hasattr(m, "unshard") for m in self.model.modules())

    def _packs(self) -> bool:
        """Whether a T5 is read without its padding: where our own attention computes and nothing hangs on its layers.

        Not where activations are computed again, under dropout, nor with FSDP.
        """
        t5 = self.model.config.model_type == "t5" and self._attends()
        return t5 and not self.spec.gradient_checkpointing and not self._sharded()

    def _continue(self, batch: Batch) -> Tensor:
        """`_hidden` of a decoder-only model whose prompts have several completions: [M, d], differentiable."""
        ids, read = pad([p[:-1] for p in batch.prompts], self.pad_id, side="left")
        owners = batch.prompt_of.tolist()
        last = [(batch.prompts[o][-1], *c[:-1]) for o, c in zip(owners, batch.completions, strict=True)]
        inputs, real = pad(last, self.pad_id)

        def forward(ids: Tensor, mask: Tensor, cache: Any = None) -> Any:
            """The model on the last of the tokens that the mask is of."""
            given = {"input_ids": ids, "attention_mask": mask, "position_ids": positions(mask)[:, -ids.shape[1] :]}
            moved = {name: t.to(self.device) for name, t in given.items()}
            return self.body(**moved, past_key_values=cache, use_cache=True)

        cache = forward(ids, read).past_key_values
        slots = attention.Slots.of(batch.prompt_of, len(batch.prompts))
        if slots.tiled:  # to repeat is much cheaper than to select, in the backward pass above all
            for layer in cache.layers:
                layer.keys, layer.values = (x.repeat(slots.width, 1, 1, 1) for x in (layer.keys, layer.values))
        else:
            cache.reorder_cache(batch.prompt_of)
        out: Tensor = forward(inputs, torch.cat([read[owners], real], -1), cache).last_hidden_state
        return out[batch.rows, batch.columns]

    def last_states(self, rows: Sequence[Ids]) -> Tensor:
        """The state [N, d] at the last token of each row of a decoder, every row read from its beginning."""
        ids, mask = pad(rows, self.pad_id)
        given = {"input_ids": ids, "attention_mask": mask, "position_ids": positions(mask)}
        states: Tensor = self.body(
            **{n: t.to(self.device) for n, t in given.items()}, use_cache=False
        ).last_hidden_state
        return states[range(len(rows)), [len(r) - 1 for r in rows]]

    @torch.no_grad()
    def check_reading(self) -> None:
        """Hold the states of padded batches against the model's own, row by row, once, when weights are loaded.

        A decoder whose prompts cannot be shared is noticed here and reads each prompt anew. Raises AligngapError where
        even that gives other states than the model's own forward pass.
        """
        family = f"model family `{self.model.config.model_type}`"
        try:
            prompts, completions = probe_rows(self)
            apart = collate([*prompts, *prompts], completions)
            ours = self._hidden(apart.to(self.device))
            if self.encoder_decoder:
                rows = [collate([p], [c]) for p, c in zip(apart.prompts, completions, strict=True)]
                own = [self._hidden(row.to(self.device)) for row in rows]
            else:
                own = [self._own_states(p, c) for p, c in zip(apart.prompts, completions, strict=True)]
        except Exception as error:
            what = f"cannot be read here ({first_line(error, 120)}); choose another family"
            raise AligngapError(f"{family}: {what}") from error
        if not alike(ours, torch.cat(own)):
            what = "the states of a padded batch are not those of its rows alone; choose another family"
            raise AligngapError(f"{family}: {what}")
        together = collate(prompts, completions, [0, 1, 0, 1]).to(self.device)
        if self._shares_prompts(together):
            try:
                self.shares = alike(self._continue(together), ours)
            except Exception:
                self.shares = False

    def _own_states(self, prompt: Ids, completion: Ids) -> Tensor:
        whole = torch.tensor([[*prompt, *completion]], device=self.device)
        states: Tensor = self.body(input_ids=whole, use_cache=False).last_hidden_state[0, len(prompt) - 1 : -1]
        return states

    def encode(self, prompts: Sequence[Ids]) -> tuple[Tensor, Tensor]:
        """Encoder states [P, T, d] and mask [P, T]: once per prompt, however many responses it has."""
        if self._packs():
            places = packed.Places.of(prompts)
            return places.spread(packed.read(self.model.get_encoder(), prompts)), places.mask()
        ids, mask = pad(prompts, self.pad_id)
        ids, mask = ids.to(self.device), mask.to(self.device)
        return self.model.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state, mask

    def _decode(self, batch: Batch, states: Tensor, mask: Tensor) -> Tensor:
        start, of = self.model.config.decoder_start_token_id, batch.prompt_of
        slots = attention.Slots.of(of, len(states)) if attention.shares_texts(self.model) else None
        if slots is None or slots.width * len(states) >= 2 * len(batch.completions):
            slots, states, mask = None, states[of], mask[of]
        if self._packs():
            rows = [(start, *c)[: len(c)] for c in batch.completions]
            return packed.read(self.model.get_decoder(), rows, packed.Texts(states, mask, slots))
        inputs, _ = pad([(start, *c[:-1]) for c in batch.completions], self.pad_id)
        given: dict[str, Any] = {"input_ids": inputs.to(self.device), "use_cache": False}
        given |= {"encoder_hidden_states": states, "encoder_attention_mask": mask}
        if slots is not None:
            seen = None if bool(mask.all()) else mask.bool()[:, None, None]
            given |= {"encoder_attention_mask": seen, "slots": slots}
        out: Tensor = self.model.get_decoder()(**given).last_hidden_state
        return out[batch.rows, batch.columns]


def probe_rows(backbone: Backbone) -> tuple[list[Ids], list[Ids]]:
    """Two prompts of three and two tokens, and two completions of each, of three and two tokens."""
    size, end = backbone.model.get_input_embeddings().num_embeddings, backbone.eos_id
    a, b, c, d = (token % size for token in (3, 5, 4, 6))
    return [(a, b, end), (d, a)], [(c, d, end), (b, end), (d, c, end), (a, end)]


def alike(ours: Tensor, theirs: Tensor) -> bool:
    """Whether two computations of the same numbers [M, d] in float32 agree, by the spread of the numbers."""
    return bool((ours.float() - theirs.float()).abs().max() <= 1e-3 * theirs.float().std() + 1e-5)
