"""The policy on transformers: log-probabilities, samples, saving and loading, for T5 and decoder-only models alike.

A `Policy` is a `Backbone` with the language-model head and a sampler. Only completion positions reach the vocabulary
projection, in chunks, in float32.

What this module leaves out: the forward pass (`backbone.py`), how models are built and loaded (`loading.py`), the loops
that sample (`decoding.py`, `sampling.py`), other engines (`rollout.py`), and training (`fit.py`).
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

from aligngap.models import decoding, lora
from aligngap.models.backbone import LOGITS_BUDGET, Backbone, alike, probe_rows
from aligngap.models.batch import Batch, Ids, collate, pad, positions
from aligngap.models.loading import PLAIN, TESTED, build_model, config_of, load_model, load_tokenizer, seeded
from aligngap.models.sampling import Share, generate
from aligngap.models.tokenizer import stand_in
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
        self.keeps = True  # whether it can be sampled with keys and values that are kept
        # Every generation default of the loaded model (temperature, top-k, penalties) is dropped: the axis of the
        # study is KL of the policy itself, not of a truncated version of it.
        self.model.generation_config = GenerationConfig(
            do_sample=True, temperature=1.0, top_k=0, top_p=1.0, num_beams=1, repetition_penalty=1.0,
            pad_token_id=self.pad_id, eos_token_id=list(self.end_ids) if len(self.end_ids) > 1 else self.eos_id,
            decoder_start_token_id=getattr(model.config, "decoder_start_token_id", None),
        )  # fmt: skip

    @classmethod
    def load(
        cls, path: str | Path, *, response_tokens: int, key: str = "", spec: ModelSpec = PLAIN,
        alike: Policy | None = None,
    ) -> Policy:  # fmt: skip
        """The policy in a folder, run as `spec` says.

        Its log-probabilities are held against its own forward pass, unless those of one `alike` were: the same model
        with other weights.
        """
        policy = cls(load_model(path, spec), load_tokenizer(path), response_tokens=response_tokens, key=key, spec=spec)
        if alike is None:
            policy.check_head()
        else:
            policy.shares, policy.keeps = alike.shares, alike.keeps
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
        other = Policy(model, self.tokenizer, response_tokens=self.response_tokens, key=key, spec=self.spec, **more)
        other.shares, other.keeps = self.shares, self.keeps
        return other

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
        scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
        logits = logits if scale == 1.0 else logits * scale  # Cohere's and Granite's
        cap = getattr(config, "final_logit_softcapping", None) or getattr(config, "logits_soft_cap", None)
        return logits if not cap else torch.tanh(logits / cap) * cap

    def token_logps(self, batch: Batch) -> Tensor:
        """log pi of every completion token [M], float32, differentiable; logits exist one chunk at a time."""
        hidden, targets = self.hidden(batch), batch.targets.to(self.device)
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

    def logps(self, batch: Batch) -> Tensor:
        """log pi(completion | prompt) [N]: sums over tokens, nats."""
        return batch.to(self.device).sum_rows(self.token_logps(batch))

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

        `batch_size` bounds the responses generated at once; the result depends on it through the random numbers only:
        the token of row r at a position is drawn with noise of its own, from the seed `derive(seed, "chunk", number of
        the batch)`, r and the position. With `mixture=(other, m)` each token is drawn in proportion to
        self^(1-m) other^m (see `Mixed`). The processes of a `world` write a share each of the responses that one
        process would write, up to rounding. Families that our own loop does not know are sampled by transformers.
        """
        out: list[list[Response]] = []
        how: dict[str, Any] = {"mixture": mixture, "temperature": temperature}
        own = all(decoding.knows(p.model.config) for p in (self, *(mixture or ())[:1]))
        for number, part in enumerate(chunks(prompts, max(1, batch_size // n))):
            drawn = derive(seed, "chunk", number)
            first, of = world.share_of(len(part))[0] * n, len(part) * n

            def write(
                mine: Sequence[Prompt], drawn: int = drawn, first: int = first, of: int = of
            ) -> list[list[Response]]:
                asked = [p.ids for p in mine], n, self.response_tokens
                with self.precision():
                    if own:
                        found = decoding.sample(self, *asked, drawn, self.end_ids, first=first, of=of, **how)
                    else:
                        share = Share(drawn, first, of, temperature, self.device) if world.size > 1 else None
                        with seeded(drawn, self.device):
                            found = generate(self, *asked, share=share, **how)
                rows = [self.response(row, mine[i // n].text) for i, row in enumerate(found)]
                return [rows[i : i + n] for i in range(0, len(rows), n)]

            out.extend(world.each(part, write))
        return out

    def score(self, prompts: Sequence[Prompt], responses: Sequence[Response]) -> list[float]:
        """log pi(response | prompt) of each, summed over tokens, nats."""
        found: list[float] = self.logps_of([p.ids for p in prompts], [r.ids for r in responses]).tolist()
        return found

    def response(self, ids: Sequence[int], prompt: str = "") -> Response:
        """Cut generated ids after the first token that ends a response (`end_ids`); a row without one did not end."""
        row = tuple(ids[: self.response_tokens])
        end = next((i for i, token in enumerate(row) if token in self.end_ids), None)
        row = row if end is None else row[: end + 1]
        return Response(row, end is not None, self.encoding.text(row if end is None else row[:-1], prompt))

    @torch.no_grad()
    def check_head(self) -> None:
        """Compare our log-probabilities with the model's own forward pass in float32, once, when weights are loaded.

        What the family cannot do is found out: sharing a prompt, and sampling with keys and values that are kept.
        """
        self.check_reading()
        prompts, completions = probe_rows(self)
        batch = collate([prompts[0]], [completions[0]])
        ours = self._logps(self._hidden(batch.to(self.device)), batch.targets.to(self.device))
        target = torch.tensor([completions[0]], device=self.device)
        if self.encoder_decoder:
            out = self.model(input_ids=torch.tensor([prompts[0]], device=self.device), labels=target).logits[0]
        else:
            out = self._own_logits([*prompts[0], *completions[0]])[len(prompts[0]) - 1 : -1]
        theirs = torch.log_softmax(out.float(), -1).gather(-1, target.T).squeeze(-1)
        gap = float((ours - theirs).abs().max())
        if gap > 1e-3:
            what = f"log-probabilities differ from its own forward by {gap:.2g} nats"
            raise AligngapError(f"model family `{self.model.config.model_type}`: {what}; choose another family")
        if not self.encoder_decoder:
            self.keeps = self._keeps(prompts, completions)

    def _own_logits(self, row: Ids) -> Tensor:
        logits: Tensor = self.model(input_ids=torch.tensor([row], device=self.device), use_cache=False).logits[0]
        return logits

    def _keeps(self, prompts: Sequence[Ids], completions: Sequence[Ids]) -> bool:
        """Whether a decoder goes on from the keys and values of each prompt, repeated, as it reads the whole."""
        ids, mask = (t.to(self.device) for t in pad(prompts, self.pad_id, side="left"))
        try:
            cache = self.model(
                input_ids=ids[:, :-1], attention_mask=mask[:, :-1], position_ids=positions(mask)[:, :-1], use_cache=True
            ).past_key_values
            cache.batch_repeat_interleave(2)
            ids, mask = ids.repeat_interleave(2, 0), mask.repeat_interleave(2, 0)
            for step in range(2):
                out = self.model(
                    input_ids=ids[:, -1:], attention_mask=mask, position_ids=positions(mask)[:, -1:],
                    past_key_values=cache, use_cache=True,
                )  # fmt: skip
                rows = [[*prompts[i // 2], *c[:step]] for i, c in enumerate(completions)]
                own = torch.stack([self._own_logits(row)[-1] for row in rows])
                if not alike(out.logits[:, -1], own):
                    return False
                cache, new = out.past_key_values, [[c[step]] for c in completions]
                ids = torch.cat([ids, torch.tensor(new, device=self.device)], -1)
                mask = torch.cat([mask, mask.new_ones(len(mask), 1)], -1)
        except Exception:
            return False
        return True


def try_family(spec: ModelSpec) -> None:
    """Make a model of a family that no test knows and hold it against its own forward pass, as a run will.

    Raises AligngapError where its numbers would not be its own. Weights are loaded, or drawn, and thrown away.
    """
    if config_of(spec).model_type in TESTED:
        return
    if spec.path is not None:
        Policy.load(spec.path, response_tokens=1, spec=spec)
        return
    tokenizer = stand_in()
    Policy(build_model(spec, tokenizer, 0), tokenizer, response_tokens=1, spec=spec).check_head()


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
