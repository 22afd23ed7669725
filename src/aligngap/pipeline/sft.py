"""Supervised fine-tuning: the policy that every arm starts from, and the backbone of judges that learn."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from aligngap.pipeline.base import Step, configuration_of
from aligngap.pipeline.data import Data, encoded_by
from aligngap.seeding import derive
from aligngap.settings import Limits, ModelSpec, Optimization
from aligngap.types import RunFailed

if TYPE_CHECKING:
    from aligngap.models.policy import Policy
    from aligngap.pipeline.context import Context, Job


ASKED, ENOUGH, FEW = 64, 16, 0.05  #: prompts asked, responses that tell, and the share that ends below which none do


class Sft(Step):
    """Fine-tune on both responses of every pair: wide coverage of the data, not quality (arXiv 2405.08448, 4.1).

    With no steps it is the given model as it is; `split` says whose prompts it learns from.
    """

    version: ClassVar[int] = 3  # 2 multiplied T5's padding, 1 attended by transformers
    kind: Literal["sft"] = "sft"
    data: Data
    model: ModelSpec
    optimization: Optimization
    limits: Limits
    seed: int
    split: Literal["train", "judge"] = "train"
    content: str = ""  # of the files of a pretrained model

    @cached_property
    def configuration(self) -> Any:
        own = self.model.path if self.model.path != self.data.tokenizer.path else None  # else the data's key has it
        return configuration_of(self) | encoded_by(own)

    def run(self, ctx: Context, job: Job) -> dict[str, Any]:
        import torch

        from aligngap.fit import Trainer
        from aligngap.models.batch import Ids, collate
        from aligngap.models.loading import build_model
        from aligngap.models.policy import Policy
        from aligngap.models.pretrained import check_content
        from aligngap.pipeline.training import train
        from aligngap.streams import Epochs

        check_content(self.model.path, self.content)
        tokenizer = tokenizer_of(ctx, self.data, self.model)
        model = build_model(self.model, tokenizer, derive(self.seed, "initialisation"))
        policy = Policy(model, tokenizer, response_tokens=self.limits.response_tokens, spec=self.model)
        policy.to(ctx.device)
        policy.check_head()
        if self.optimization.lora is not None:
            policy.attach(self.optimization.lora, derive(self.seed, "adapter"))
        examples, held_out = (
            [
                (policy.encode_prompt(p.prompt.text), policy.encode_response(r.text, r.ended, p.prompt.text))
                for p in pairs
                for r in (p.chosen, p.rejected)
            ]
            for pairs in (self.data.pairs(ctx, self.split), self.data.pairs(ctx, "test")[:256])
        )
        mean_length = sum(len(r) for _, r in examples) / len(examples)

        def objective(items: Sequence[tuple[Ids, Ids]]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            logps = policy.logps(collate([p for p, _ in items], [r for _, r in items]))
            return -logps / mean_length, {}  # nats per token of an average response

        if self.optimization.steps:
            trainer = Trainer(policy.model, self.optimization, self.seed, job.world)
            outcome = train(job, trainer, Epochs(examples, derive(self.seed, "sft order")), objective)
            if outcome != "ok":
                raise RunFailed(f"sft: {outcome}; lower sft.learning_rate")
        ended = self.ended(ctx, policy)
        policy.merge().save(job.work / "policy")
        nll = -policy.logps_of([p for p, _ in held_out], [r for _, r in held_out]).sum()
        tokens = sum(len(r) for _, r in held_out)
        about = {"held_out_nats_per_token": float(nll) / tokens, "parameters": policy.model.num_parameters()}
        return about if ended is None else about | {"ended_share": ended}

    def ended(self, ctx: Context, policy: Policy) -> float | None:
        """The share of a pretrained policy's own responses that end; None for what does not write or has its own EOS.

        Raises RunFailed where hardly any does though the data's do, before any judge or arm is trained: its turns then
        end in a token that nobody has named, and every measurement would be of text cut at the limit. A model from
        scratch has learned its one EOS from the data, and may be too small to end.
        """
        if self.model.path is None or self.model.path != self.data.family.path or not self.data.closed:
            return None
        prompts = list({p.prompt.id: p.prompt for p in self.data.pairs(ctx, "test")}.values())[:ASKED]
        written = [r for rs in policy.sample(prompts, 1, derive(self.seed, "ended")) for r in rs]
        share = sum(r.ended for r in written) / len(written)
        if len(written) >= ENOUGH and share < FEW:
            names = ", ".join(str(policy.tokenizer.convert_ids_to_tokens(i)) for i in policy.end_ids)
            raise RunFailed(
                f"sft: {share:.0%} of {len(written)} responses of the policy {self.model.path} end within "
                f"{self.limits.response_tokens} tokens, and those of the data do; it ends at {names}: name the token "
                "that ends its turns in eos_token_id of its generation_config.json, raise limits.response_tokens, or "
                "give sft more steps"
            )
        return share

    def policy(self, ctx: Context, checkpoint: int | None = None) -> Policy:
        """The fine-tuned policy, loaded once per process; it has no checkpoints, so `checkpoint` is None."""
        from aligngap.models.policy import Policy

        def load() -> Policy:
            folder, tokens = self.made(ctx, "policy"), self.limits.response_tokens
            policy = Policy.load(folder, response_tokens=tokens, key=self.name, spec=self.model)
            policy.to(ctx.device)
            return policy

        return ctx.cached(self.name, load)

    @property
    def training(self) -> Optimization | None:
        return self.optimization

    def units(self) -> float:
        return 3.0 * self.optimization.steps * self.optimization.batch


def tokenizer_of(ctx: Context, data: Data, model: ModelSpec) -> Any:
    """The study's tokenizer, or a pretrained model's own where the model comes with one."""
    from aligngap.models.loading import load_tokenizer

    own = model.path is not None and data.tokenizer.path != model.path and model.path != data.family.path
    return load_tokenizer(str(model.path) if own else data.made(ctx, "tokenizer"))
