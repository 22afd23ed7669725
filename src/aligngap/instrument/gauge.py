"""Checkpoints measured from Python, in this process: `kl` in one call, and a `Gauge` for many on the same prompts.

    import aligngap
    print(aligngap.kl("dpo/checkpoint-400", "sft", ["What is the capital of France?", ...]).reverse)

A policy is a folder, a hub name, a PEFT adapter, or a model in memory, which is viewed and left as it is, also in the
middle of its training. Everything is exact per token over the whole vocabulary, at temperature 1, on fresh samples.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aligngap.instrument.judging import open_judge
from aligngap.instrument.rows import REFERENCE, Against, Moved, rows_of
from aligngap.settings import Limits, ModelSpec
from aligngap.types import AligngapError, Estimate, Judge, Prompt

if TYPE_CHECKING:
    from aligngap.measurement import Measured, ReferenceSet
    from aligngap.models.policy import Policy
    from aligngap.pipeline.checkpoints import Reading

ROLES = ("golden", "proxy")  #: whose columns the first and the second judge fill


@dataclass(frozen=True)
class KL:
    """KL of a policy from its reference per response, in nats.

    `reverse` is KL(policy || reference) along the policy's own samples, the axis of the charts; `forward` is
    KL(reference || policy) along the reference's. Errors are over prompts; `by_prompt` [P] is the reverse KL.
    """

    reverse: Estimate
    forward: Estimate
    by_prompt: np.ndarray
    tokens: float  # mean length of the policy's responses, the closing token included
    ended: float  # share of them that ended within the limit

    def __str__(self) -> str:
        return f"{self.reverse} nats a response of {self.tokens:.0f} tokens; forward {self.forward}"


class Gauge:
    """A gauge holds a reference, prompts and judges, and measures one policy after another on them.

    `reference` and policies: a folder, a hub name, an adapter's folder, a transformers or PEFT model in memory, or a
    `Policy`. `prompts`: texts, lists of messages, or a file of them (`tasks/prompts.py`). `judges`: at most two, the
    first of which fills the golden judge's columns; each as after `--judge`, or any object with `key` and `judge`.
    `tokenizer` is needed where the reference is a model in memory. `chat` None: the template writes the prompts if the
    tokenizer has one. `forward`: prompts behind the forward KL, by default half of them; 0 leaves it out.
    `reference_samples`: further samples of the reference to a quarter of the prompts, for rho and efficiency.
    """

    def __init__(
        self,
        reference: Any,
        prompts: str | Path | Sequence[Any],
        judges: Sequence[Any] = (),
        *,
        tokenizer: Any = None,
        response_tokens: int = 128,
        prompt_tokens: int = 512,
        count: int = 256,
        chat: bool | None = None,
        seed: int = 0,
        batch: int = 64,
        device: str | None = None,
        samples: int = 8,
        forward: int | None = None,
        reference_samples: int = 0,
        base: str | None = None,
    ) -> None:
        from aligngap.pipeline.checkpoints import check_some, encode
        from aligngap.pipeline.drawn import check_size
        from aligngap.tasks.prompts import given_prompts, read_prompts

        if len(judges) > len(ROLES):
            raise AligngapError(f"{len(judges)} judges: at most two at once, the second as a check on the first")
        check_size(reference_samples)
        self.seed, self.batch, self.samples = seed, batch, samples
        self.limits = Limits(prompt_tokens=prompt_tokens, response_tokens=response_tokens)
        self.reference = _reference(reference, tokenizer, response_tokens, chat, base)
        if device is not None:
            import torch

            self.reference.to(torch.device(device))
        files = isinstance(prompts, str | Path)
        found = read_prompts(prompts) if files else given_prompts(prompts)  # type: ignore[arg-type]
        self.prompts: list[Prompt]
        self.prompts, dropped, _ = encode(self.reference, found.texts, self.limits, count, seed)
        check_some(self.prompts, found.source, dropped, self.limits)
        self.judges: Mapping[str, Judge] = {
            role: open_judge(judge, self.reference.device) for role, judge in zip(ROLES, judges, strict=False)
        }
        self.forward = (len(self.prompts) + 1) // 2 if forward is None else min(forward, len(self.prompts))
        self.reference_samples = reference_samples if judges else 0
        self._start: Reading | None = None
        self._further: ReferenceSet | None = None

    @property
    def start(self) -> Reading:
        """The reference's own reading, made when first asked for."""
        from aligngap.pipeline.checkpoints import read_policy

        if self._start is None:
            own = self.reference
            self._start = read_policy(own, own, self.prompts, seed=self.seed, batch=self.batch)
        return self._start

    def read(self, policy: Any, *, base: str | None = None) -> Reading:
        """A policy's response to every prompt, with its KL prompt by prompt."""
        from aligngap.pipeline.checkpoints import read_policy

        written = self.start.responses[: self.forward] if self.forward else ()
        how: dict[str, Any] = {"seed": self.seed, "batch": self.batch, "written": written}
        return read_policy(_policy(policy, self.reference, base), self.reference, self.prompts, **how)

    def kl(self, policy: Any, *, base: str | None = None) -> KL:
        """KL of a policy from the reference, in nats per response; no judge is asked."""
        return kl_of(self.read(policy, base=base))

    def measure(self, policy: Any, *, base: str | None = None) -> Measured:
        """The rows of the record tables for one policy: KL, win rate against the reference, lengths, samples."""
        opened = _policy(policy, self.reference, base)
        return self.judged(self.read(opened), self.moved(opened))

    @property
    def further(self) -> ReferenceSet:
        """Further samples of the reference with their win rates by the first judge, made when first asked for."""
        from aligngap.pipeline.checkpoints import ask
        from aligngap.pipeline.drawn import OPPONENTS, draw_reference, judge_drawn, sampled_prompts

        if self._further is None:
            prompts, judge = self.prompts[: sampled_prompts(len(self.prompts))], self.judges[ROLES[0]]
            how = {"seed": self.seed, "batch": self.batch}
            drawn = draw_reference(self.reference, prompts, self.reference_samples, OPPONENTS, **how)
            self._further = drawn.with_wins(judge_drawn(lambda p, a, b: ask(judge, p, a, b), prompts, drawn))
        return self._further

    def moved(self, policy: Any, *, base: str | None = None) -> Moved | None:
        """What rho and efficiency of a policy stand on; None where no further samples are asked for."""
        from aligngap.measurement import log_ratios_of

        if not self.reference_samples:
            return None
        opened = _policy(policy, self.reference, base)
        return Moved(log_ratios_of(opened, self.prompts, self.further, self.batch), self.further)

    def measure_reference(self) -> Measured:
        """The same rows for the reference itself: step 0 of every run. Its KL is 0 and its wins are ties."""
        half = np.full(len(self.prompts), 0.5)
        against = {REFERENCE: Against(self.start, dict.fromkeys(self.judges, half))}
        return rows_of(self.start, self.prompts, against, self.samples)

    def judged(self, reading: Reading, moved: Moved | None = None) -> Measured:
        """The rows of a reading, judged against the reference's responses."""
        from aligngap.pipeline.checkpoints import ask

        theirs = self.start.responses
        wins = {role: ask(judge, self.prompts, reading.responses, theirs).hard for role, judge in self.judges.items()}
        return rows_of(reading, self.prompts, {REFERENCE: Against(self.start, wins)}, self.samples, moved)


def kl_of(reading: Reading) -> KL:
    """The two KLs of a reading, with their errors over prompts."""
    ended = float(np.mean([r.ended for r in reading.responses]))
    reverse, forward = Estimate.mean(reading.kl), Estimate.mean(reading.forward)
    return KL(reverse, forward, reading.kl, float(reading.tokens.mean()), ended)


def kl(policy: Any, reference: Any, prompts: str | Path | Sequence[Any], **settings: Any) -> KL:
    """KL of a policy from a reference in nats per response, both ways, with errors over prompts.

    It is exact per token over the vocabulary, along one fresh sample a prompt: an unbiased estimate of the KL of whole
    responses with less noise than a mean log-ratio (arXiv 2405.08448, App. D). `settings` are those of `Gauge`.
    """
    return Gauge(reference, prompts, **settings).kl(policy)


def _reference(given: Any, tokenizer: Any, response_tokens: int, chat: bool | None, base: str | None) -> Policy:
    from aligngap.models.checkpoint import fetched, is_model, open_reference, tokenizer_of, view
    from aligngap.models.loading import quiet
    from aligngap.models.policy import Policy

    quiet()
    if isinstance(given, Policy):
        return given
    if is_model(given):
        if tokenizer is None:
            raise AligngapError("reference: a model in memory needs `tokenizer` beside it")
        own = ready_tokenizer(tokenizer)
        spec = ModelSpec(chat=bool(own.chat_template) if chat is None else chat)
        policy = Policy(view(given), own, response_tokens=response_tokens, spec=spec)
        policy.check_head()
        return policy
    path = fetched(str(given))
    own = tokenizer_of(path, base)
    spec = ModelSpec(path=path, chat=bool(own.chat_template) if chat is None else chat)
    return open_reference(path, response_tokens=response_tokens, spec=spec, base=base)


def ready_tokenizer(tokenizer: Any) -> Any:
    """A copy of a tokenizer in memory that reads text as text, as one loaded from a folder does here."""
    own = copy.deepcopy(tokenizer)
    if own.eos_token_id is None:
        raise AligngapError("tokenizer: has no EOS token; a response could never end")
    if own.pad_token_id is None:
        own.pad_token = own.eos_token
    own.split_special_tokens = True
    return own


def _policy(given: Any, reference: Policy, base: str | None) -> Policy:
    from aligngap.models.checkpoint import as_reference, check_tokenizer, fetched, is_model, open_policy, view
    from aligngap.models.policy import Policy

    if isinstance(given, Policy):
        return given
    if is_model(given):
        return as_reference(view(given), reference, "policy")
    path = fetched(str(given))
    check_tokenizer(Path(path), reference.tokenizer, reference.spec.path or "given")
    return open_policy(path, reference, base=base)
