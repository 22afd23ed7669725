"""Settings of how something is trained: the one recipe of all arms, and the judges."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from aligngap.settings.base import Settings
from aligngap.settings.models import LoraSpec, ModelSpec


class Optimization(Settings):
    """How steps are taken: the same fields, and in a study the same values, for every arm."""

    steps: int = Field(ge=0, description="optimiser steps; 0 (of `sft` and `pretrain` only): the model as it is")
    batch: int = Field(default=32, ge=1, description="items (pairs, responses) per optimiser step")
    micro_batch: int | None = Field(default=None, ge=1, description="items per backward pass; null: all at once")
    learning_rate: float = Field(default=1e-5, gt=0, description="peak learning rate")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        default="constant", description="the learning rate after warm-up: constant, or down to 0 at the last step"
    )
    warmup_steps: int = Field(default=0, ge=0, description="steps of linear warm-up")
    optimizer: Literal["adamw", "adafactor"] = Field(default="adamw", description="the optimiser")
    betas: tuple[float, float] = Field(default=(0.9, 0.999), description="of AdamW")
    eps: float = Field(default=1e-8, gt=0, description="of AdamW")
    weight_decay: float = Field(default=0.0, ge=0, description="of either optimiser")
    grad_clip: float | None = Field(default=1.0, gt=0, description="norm to which gradients are clipped; null: never")
    lora: LoraSpec | None = Field(default=None, description="train low-rank adapters; null: train all weights")


def some_steps(how: Optimization) -> Optimization:
    """The optimisation itself, if it has any steps; ValueError where it has none."""
    if how.steps < 1:
        raise ValueError("`steps` must be at least 1: only `sft` and `pretrain` may take a model as it is")
    return how


class HeadStartSpec(Settings):
    """What a judge has learned before it sees a label of the study's world: comparisons of sibling worlds.

    A sibling is the same task at another seed, with a rater of its own: what pretraining is to judges of people's text.
    """

    worlds: int = Field(ge=1, description="sibling worlds, of a task that draws its world from the seed")
    pairs: int = Field(ge=1, description="comparisons of each, labelled by its own rater")
    optimization: Optimization | None = Field(
        default=None, description="how it learns from them; null: as it learns from the labels"
    )

    @field_validator("optimization")
    @classmethod
    def _learns(cls, how: Optimization | None) -> Optimization | None:
        return how and some_steps(how)


class JudgeSpec(BaseModel):
    """A judge by its registered kind, with that kind's own settings beside it; the rest is for kinds that learn.

    `model: null` takes the policy's own specification. The backbone is first fine-tuned on the responses (`pretrain`;
    null: the study's `sft` section), as the paper initialises its models from supervised checkpoints.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    kind: str = Field(default="pairwise", description="a registered kind of judge; its settings stand beside it")
    model: ModelSpec | None = Field(default=None, description="its backbone; null: the policy's specification")
    pretrain: Optimization | None = Field(default=None, description="fine-tuning of its backbone; null: as `sft`")
    optimization: Optimization | None = Field(default=None, description="how it learns; kinds that learn need it")
    labels: int | None = Field(default=None, ge=2, description="number of training pairs; null: all of them")
    stop_every: int | None = Field(
        default=None, ge=1, description="steps between looks at a fifth of its labels, which are kept apart: it stays "
        "as it was where their loss was least; null: as it is after its last step"
    )  # fmt: skip
    head_start: HeadStartSpec | None = Field(
        default=None, description="sibling worlds that it has learned from before; null: none"
    )

    @field_validator("optimization")
    @classmethod
    def _learns(cls, how: Optimization | None) -> Optimization | None:
        return how and some_steps(how)

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class LossSpec(BaseModel):
    """A loss by its registered name, with that loss's own hyper-parameters beside it."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str = Field(default="ipo", description="a registered loss; its hyper-parameters stand beside it")

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class RolloutSpec(Settings):
    """What generates the responses that the policy writes in training, the same for every arm.

    An engine other than `transformers` holds a copy of the weights, refreshed with the policy (`sync_every`). Its
    log-probabilities are held against the trainer's, which training reads; a mean difference above `tolerance_nats` is
    told in the report. Measurement, opponents and fixed sets are always sampled by the policy's own model.
    """

    engine: str = Field(default="transformers", description="a registered rollout: `transformers` or `vllm`")
    tolerance_nats: float = Field(
        default=0.05, gt=0, description="mean difference of a token's two log-probabilities above which the report "
        "says so"
    )  # fmt: skip
    cache_gib: float = Field(default=2.0, gt=0, description="memory of vLLM's cache of keys and values, beside weights")


class ReferenceSpec(Settings):
    """A reference that moves: every so many steps the policy as it stands becomes the reference of the loss.

    KL is measured from the SFT policy all the same. Log-probabilities that are stored with pairs or a recording are
    the first reference's, and are computed anew; a data file with columns of them is refused.
    """

    every: int = Field(ge=1, description="steps between two refreshes")


class RetrainSpec(Settings):
    """A proxy that learns on during a run, from golden labels of the policy's own pairs.

    It starts each time at the study's proxy and learns from all pairs that the golden judge has labelled in this run.
    """

    every: int = Field(ge=1, description="steps between two retrainings")
    pairs: int = Field(ge=1, description="most pairs that the golden judge labels at each: the last ones trained on")
    steps: int = Field(ge=1, description="optimiser steps of each, otherwise optimised as the proxy is")


class Recipe(Settings):
    """The one recipe of a study: there is nowhere to put a setting for one arm only."""

    loss: LossSpec = Field(default_factory=LossSpec, description="the loss on pairs")
    optimization: Optimization = Field(description="how every arm is trained")
    label_smoothing: float = Field(
        default=0.0, ge=0.0, le=0.5, description="probability with which every label is taken to be wrong"
    )
    start: str = Field(
        default="sft", description="the policy that every run starts at and that is the reference of its loss: `sft`, "
        "or `ARM@STEP` or `ARM@last`, a checkpoint of an arm's run from `sft`; KL is measured from `sft` all the same"
    )  # fmt: skip
    on_policy_kl: float = Field(
        default=0.0, ge=0.0, description="weight of the KL term on unlabelled pairs (HyPO); arms without any ignore it"
    )
    correction: LossSpec | None = Field(
        default=None, description="what answers staleness: a registered correction around the loss, its settings "
        "beside its `name`; null: none"
    )  # fmt: skip
    reference: ReferenceSpec | None = Field(
        default=None, description="a reference of the loss that follows the policy; null: the policy a run starts at"
    )
    writer_logps: bool = Field(
        default=False, description="store the writer's log-probabilities with each pair that a policy writes, so that "
        "the records tell the KL to who wrote the pairs; one more forward pass a response"
    )  # fmt: skip
    rollouts: RolloutSpec = Field(
        default_factory=RolloutSpec, description="what generates the responses that the policy writes in training"
    )

    @field_validator("optimization")
    @classmethod
    def _trains(cls, how: Optimization) -> Optimization:
        return some_steps(how)
