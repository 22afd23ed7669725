"""The policy on transformers: log-probabilities, samples, saving and loading, for T5 and decoder-only models alike.

A `Policy` is a `Backbone` with the language-model head and a sampler. Only completion positions reach the vocabulary
projection, in chunks, in float32.

What this module leaves out: the forward pass (`backbone.py`), how models are built and loaded (`loading.py`), the loop
that samples (`sampling.py`), other engines (`rollout.py`), and training (`fit.py`).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from aligngap.models import lora
from aligngap.models.backbone import LOGITS_BUDGET, Backbone
from aligngap.models.batch import Batch, Ids, collate
from aligngap.models.loading import PLAIN, load_model, load_tokenizer, seeded
from aligngap.models.sampling import Share, generate
from aligngap.parallel.world import ALONE, World
from aligngap.seeding import derive
from aligngap.settings import LoraSpec, ModelSpec
from aligngap.types import AligngapError, Prompt, Response, chunks

if TYPE_CHECKING:
    from peft import PeftModel


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
            first, of = world.share_of(len(part))[0] * n, len(part) * n
            share = Share(drawn, first, of, temperature, self.device) if world.size > 1 else None

            def write(own: Sequence[Prompt], drawn: int = drawn, share: Any = share) -> list[list[Response]]:
                with seeded(drawn, self.device), self.precision():
                    ids = [p.ids for p in own]
                    found = generate(self, ids, n, self.response_tokens, mixture, temperature, share)
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
