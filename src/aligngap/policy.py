"""The policy on transformers: log-probabilities, samples, saving and loading, for T5 and decoder-only models alike.

`Backbone` turns (prompts, completions) into hidden states at completion positions; `Policy` adds the language-model
head and the sampler; the preference model in `judges/` adds a scalar head. Each prompt is read once for all of its
responses: by the encoder, or by a decoder-only model that then goes on from the prompt's keys and values. Only
completion positions reach the vocabulary projection, in chunks, in float32.

What this module leaves out: how models are built and loaded (`loading.py`), text (`encoding.py`), padding (`batch.py`),
the generation engine (`rollout/`), and training (`fit.py`).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from aligngap import lora, rollout
from aligngap.batch import Batch, Ids, collate, pad, positions
from aligngap.encoding import encode_prompt, encode_response
from aligngap.loading import PLAIN, load_model, load_tokenizer, seeded
from aligngap.seeding import derive
from aligngap.settings import LoraSpec, ModelSpec
from aligngap.types import AligngapError, Prompt, Response, chunks
from aligngap.world import ALONE, World

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
        self.tokenizer = tokenizer
        self.spec, self.adapter = spec, adapter
        self.pad_id: int = tokenizer.pad_token_id
        self.eos_id: int = tokenizer.eos_token_id
        self.encoder_decoder: bool = bool(model.config.is_encoder_decoder)

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.model.parameters()).device
        return device

    def to(self, device: torch.device) -> Any:
        self.model.to(device)
        return self

    def precision(self) -> Any:
        """A context for forward passes: bfloat16 matrix products on float32 weights, if the specification says so."""
        if self.spec.dtype == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

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
        return encode_prompt(self.tokenizer, self.encoder_decoder, text, self.spec.chat)

    def encode_response(self, text: str, ended: bool = True) -> tuple[int, ...]:
        return encode_response(self.tokenizer, text, ended)

    def hidden(self, batch: Batch, prompt_padding: str = "right") -> Tensor:
        """Hidden states [M, d] from which each completion token is predicted, flattened in row order."""
        with self.precision():
            return self._hidden(batch.to(self.device), prompt_padding)

    def _hidden(self, batch: Batch, prompt_padding: str) -> Tensor:
        if self.encoder_decoder:
            decoded = self._decode(batch, *self.encode(batch.prompts, prompt_padding))
            return decoded[batch.rows, batch.columns]
        if any(len(p) == 0 for p in batch.prompts):
            raise AligngapError("an empty prompt: a decoder-only model needs at least one token before the response")
        if self._shares_prompts(batch):
            return self._continue(batch)
        owners = batch.prompt_of.tolist()
        whole = [tuple(batch.prompts[o]) + tuple(c) for o, c in zip(owners, batch.completions, strict=True)]
        ids, mask = pad(whole, self.pad_id, side="left" if prompt_padding == "left" else "right")
        states: Tensor = self.model.base_model(
            input_ids=ids.to(self.device),
            attention_mask=mask.to(self.device),
            position_ids=positions(mask).to(self.device),
            use_cache=False,
        ).last_hidden_state
        offsets = torch.tensor([len(batch.prompts[o]) - 1 for o in owners], device=self.device)
        if prompt_padding == "left":
            offsets = offsets + ids.shape[1] - torch.tensor([len(w) for w in whole], device=self.device)
        return states[batch.rows, batch.columns + offsets[batch.rows]]

    def _shares_prompts(self, batch: Batch) -> bool:
        """Whether a decoder-only model reads each prompt once and goes on from its keys and values.

        Not where they are not kept (activations computed again, a recurrent state), where FSDP lets a layer be called
        once a step, nor under dropout, which two responses to one prompt would then share.
        """
        repeated = len(batch.completions) > len(batch.prompts) and min(map(len, batch.prompts)) > 1
        kept = not self.spec.gradient_checkpointing and not getattr(self.model, "_is_stateful", False)
        dropped = self.model.training and self.spec.dropout > 0
        return repeated and kept and not dropped and not any(hasattr(m, "unshard") for m in self.model.modules())

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
            return self.model.base_model(**moved, past_key_values=cache, use_cache=True)

        cache = forward(ids, read).past_key_values
        cache.reorder_cache(batch.prompt_of)
        out: Tensor = forward(inputs, torch.cat([read[owners], real], -1), cache).last_hidden_state
        return out[batch.rows, batch.columns]

    def encode(self, prompts: Sequence[Ids], prompt_padding: str = "right") -> tuple[Tensor, Tensor]:
        """Encoder states [P, T, d] and mask [P, T]: once per prompt, however many responses it has."""
        ids, mask = pad(prompts, self.pad_id, side="left" if prompt_padding == "left" else "right")
        ids, mask = ids.to(self.device), mask.to(self.device)
        return self.model.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state, mask

    def _decode(self, batch: Batch, states: Tensor, mask: Tensor) -> Tensor:
        start = self.model.config.decoder_start_token_id
        inputs, _ = pad([(start, *c[:-1]) for c in batch.completions], self.pad_id)
        out: Tensor = self.model.get_decoder()(
            input_ids=inputs.to(self.device),
            encoder_hidden_states=states[batch.prompt_of],
            encoder_attention_mask=mask[batch.prompt_of],
            use_cache=False,
        ).last_hidden_state
        return out


class Policy(Backbone):
    """pi(response | prompt): differentiable log-probabilities, seeded samples at temperature 1, saving, loading."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        response_tokens: int,
        key: str = "",
        spec: ModelSpec = PLAIN,
        adapter: PeftModel | None = None,
        base: str = "",
    ) -> None:
        super().__init__(model, tokenizer, spec, adapter)
        self.response_tokens = response_tokens
        self.key = key
        self.base = base  # whose weights the adapter stands on
        # Every generation default of the loaded model (temperature, top-k, penalties) is dropped: the axis of the
        # study is KL of the policy itself, not of a truncated version of it.
        self.model.generation_config = GenerationConfig(
            do_sample=True, temperature=1.0, top_k=0, top_p=1.0, num_beams=1, repetition_penalty=1.0,
            pad_token_id=self.pad_id, eos_token_id=self.eos_id,
            decoder_start_token_id=getattr(model.config, "decoder_start_token_id", None),
        )  # fmt: skip

    @classmethod
    def load(cls, path: str | Path, *, response_tokens: int, key: str = "", spec: ModelSpec = PLAIN) -> Policy:
        """The policy in a folder, run as `spec` says."""
        policy = cls(load_model(path, spec), load_tokenizer(path), response_tokens=response_tokens, key=key, spec=spec)
        policy.check_head()
        return policy

    def save(self, path: str | Path) -> None:
        """Write an ordinary Hugging Face folder (safetensors, configuration, tokenizer) for `from_pretrained`.

        Of a policy with an adapter only the adapter is written, as PEFT does: `merge` it first for an ordinary folder.
        """
        if self.adapter is not None:
            lora.save(self.adapter, Path(path), self.base)
            return
        self.model.save_pretrained(str(path))
        self.tokenizer.save_pretrained(str(path))

    def _like(self, model: PreTrainedModel, key: str, **more: Any) -> Policy:
        return Policy(model, self.tokenizer, response_tokens=self.response_tokens, key=key, spec=self.spec, **more)

    def copy(self, key: str) -> Policy:
        """The same weights under another name, sharing nothing: what a stream holds while the policy moves on."""
        if self.adapter is None:
            return self._like(copy.deepcopy(self.model), key)
        adapter: Any = copy.deepcopy(self.adapter)
        return self._like(adapter.get_base_model(), key, adapter=adapter, base=self.base)

    def frozen(self) -> Policy:
        """This policy as the reference of its adapted self: the same weights in memory, frozen as they are there.

        T5's attention takes another kernel where its position bias is trained, and h would not be exactly 0.
        """
        return self._like(lora.sharing(self.model), self.key)

    def adapted(self, spec: LoraSpec, key: str, seed: int, folder: Path | None = None) -> Policy:
        """This policy with a low-rank adapter, fresh or from `folder`, on the same weights in memory.

        The policy itself stays as it is, without the adapter: there is no second copy of the weights.
        """
        other = self._like(lora.sharing(self.model), key, base=self.key).attach(spec, seed)
        if folder is not None and other.adapter is not None:
            lora.fill(other.adapter, folder)
        return other

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits [M, V] from hidden states [M, d], in float32 from the output layer on."""
        config = self.model.config
        hidden = hidden.float() if hidden.dtype == torch.bfloat16 else hidden
        if getattr(config, "scale_decoder_outputs", False):
            hidden = hidden * (config.d_model**-0.5)
        logits: Tensor = self.model.get_output_embeddings()(hidden).float()
        cap = getattr(config, "final_logit_softcapping", None)
        return logits if not cap else torch.tanh(logits / cap) * cap

    def token_logps(self, batch: Batch, prompt_padding: str = "right") -> Tensor:
        """log pi of every completion token [M], float32, differentiable; logits exist one chunk at a time."""
        hidden, targets = self.hidden(batch, prompt_padding), batch.targets.to(self.device)
        size = max(1, LOGITS_BUDGET // self.model.config.vocab_size)
        if hidden.shape[0] <= size:
            return self._logps(hidden, targets)
        parts = []
        for h, t in zip(hidden.split(size), targets.split(size), strict=True):
            recompute = torch.is_grad_enabled() and h.requires_grad
            parts.append(checkpoint(self._logps, h, t, use_reentrant=False) if recompute else self._logps(h, t))
        return torch.cat(parts)

    def _logps(self, hidden: Tensor, targets: Tensor) -> Tensor:
        return -torch.nn.functional.cross_entropy(self.logits(hidden), targets, reduction="none")

    def logps(self, batch: Batch, prompt_padding: str = "right") -> Tensor:
        """log pi(completion | prompt) [N]: sums over tokens, nats."""
        return batch.to(self.device).sum_rows(self.token_logps(batch, prompt_padding))

    @torch.no_grad()
    def logps_of(self, prompts: Sequence[Ids], completions: Sequence[Ids], batch_size: int = 128) -> Tensor:
        """Log-probabilities [N] without gradient, in batches of neighbours in length, in the order given; on CPU."""
        order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]) + len(completions[i]), i))
        out = torch.empty(len(prompts))
        for part in chunks(order, batch_size):
            batch = collate([prompts[i] for i in part], [completions[i] for i in part])
            out[torch.tensor(part)] = self.logps(batch).cpu()
        return out

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[Prompt],
        n: int,
        seed: int,
        batch_size: int = 256,
        mixture: tuple[Policy, float] | None = None,
        temperature: float = 1.0,
        world: World = ALONE,
    ) -> list[list[Response]]:
        """n responses to each prompt from the untruncated distribution at a temperature: a function of its arguments.

        `batch_size` bounds the responses generated at once; the result depends on it through the random numbers only.
        With `mixture=(other, m)` each token is drawn in proportion to self^(1-m) other^m (see `Mixed`). The processes
        of a `world` write a share each of the responses that one process would write, up to rounding.
        """
        out: list[list[Response]] = []
        for number, part in enumerate(chunks(prompts, max(1, batch_size // n))):
            drawn = derive(seed, "chunk", number)
            first, of = world.bounds(len(part))[0] * n, len(part) * n
            share = rollout.Share(drawn, first, of, temperature, self.device) if world.size > 1 else None

            def write(own: Sequence[Prompt], drawn: int = drawn, share: Any = share) -> list[list[Response]]:
                with seeded(drawn, self.device), self.precision():
                    ids = [p.ids for p in own]
                    found = rollout.generate(self, ids, n, self.response_tokens, mixture, temperature, share)
                rows = [self.response(row) for row in found]
                return [rows[i : i + n] for i in range(0, len(rows), n)]

            out.extend(world.each(part, write))
        return out

    def response(self, ids: Sequence[int]) -> Response:
        """Cut generated ids after the first EOS; a row without EOS did not end."""
        row = tuple(ids[: self.response_tokens])
        ended = self.eos_id in row
        if ended:
            row = row[: row.index(self.eos_id) + 1]
        return Response(row, ended, str(self.tokenizer.decode(list(row), skip_special_tokens=True)))

    @torch.no_grad()
    def check_head(self) -> None:
        """Compare our log-probabilities with the model's own forward pass in float32, once, when weights are loaded."""
        vocabulary = self.model.config.vocab_size
        prompt = [3 % vocabulary, 5 % vocabulary, self.eos_id]
        completion = [4 % vocabulary, 6 % vocabulary, self.eos_id]
        batch = collate([prompt], [completion])
        ours = self._logps(self._hidden(batch.to(self.device), "right"), batch.targets.to(self.device))
        target = torch.tensor([completion], device=self.device)
        if self.encoder_decoder:
            out = self.model(input_ids=torch.tensor([prompt], device=self.device), labels=target).logits[0]
        else:
            whole = torch.tensor([prompt + completion], device=self.device)
            out = self.model(input_ids=whole).logits[0, len(prompt) - 1 : -1]
        theirs = torch.log_softmax(out.float(), -1).gather(-1, target.T).squeeze(-1)
        gap = float((ours - theirs).abs().max())
        if gap > 1e-3:
            what = f"log-probabilities differ from its own forward by {gap:.2g} nats"
            raise AligngapError(f"model family `{self.model.config.model_type}`: {what}")


@dataclass(frozen=True)
class Mixed:
    """A sampler of the geometric mixture of policy and reference, token by token: pi^(1-m) pi_ref^m, normalised.

    Who writes in IPO-MD (Calandriello et al. 2024, arXiv 2403.08635) and Nash-MD (Munos et al. 2023, arXiv 2312.00886).
    m = 0 is the policy, m = 1 the reference, to the same samples at the same seed.
    """

    policy: Any
    reference: Policy
    share: float

    @property
    def key(self) -> str:
        return str(self.policy.key)

    def sample(self, prompts: Sequence[Prompt], n: int, seed: int) -> list[list[Response]]:
        found: list[list[Response]] = self.policy.sample(prompts, n, seed, mixture=(self.reference, self.share))
        return found
