"""What a study may say: every setting with its default, in one place, unknown keys forbidden. No torch.

YAML and `--set key=value` are two spellings of these classes. Defaults are the paper's where it states one.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class Settings(BaseModel):
    """Frozen, and strict about names."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSpec(Settings):
    """Either `path` (a local folder or a hub name) or `model_type` with `config`, any settings of that family.

    `config` takes the field names of the transformers configuration class (for `t5`: d_model, d_kv, d_ff, num_layers,
    num_decoder_layers, num_heads …); the vocabulary size comes from the tokenizer. `dropout` is 0 unless set.
    """

    path: str | None = None
    model_type: str = "t5"
    config: dict[str, Any] = Field(default_factory=dict)
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)

    @model_validator(mode="after")
    def _one_source(self) -> ModelSpec:
        if self.path is not None and self.config:
            raise ValueError("give either `path` (a pretrained model) or `config` (a model from scratch), not both")
        return self


class TokenizerSpec(Settings):
    """A pretrained tokenizer by `path`, or one trained on the task's own training text.

    "word" splits on white space (the sandbox); "bpe" is byte-level BPE with `vocabulary` entries.
    """

    path: str | None = None
    kind: Literal["word", "bpe"] = "bpe"
    vocabulary: int = Field(default=2048, ge=260, le=500_000)


class Limits(Settings):
    """Longest prompt and response in tokens, EOS included. Longer rows of a data set are dropped and counted."""

    prompt_tokens: int = Field(default=256, ge=1)
    response_tokens: int = Field(default=128, ge=1)


class Optimization(Settings):
    """How steps are taken: the same fields, and in a study the same values, for every arm."""

    steps: int = Field(ge=1)
    batch: int = Field(default=32, ge=1, description="items (pairs, responses) per optimiser step")
    micro_batch: int | None = Field(default=None, ge=1, description="items per backward pass; null: all at once")
    learning_rate: float = Field(default=1e-5, gt=0)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int = Field(default=0, ge=0)
    optimizer: Literal["adamw", "adafactor"] = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    grad_clip: float | None = Field(default=1.0, gt=0, description="norm to which gradients are clipped; null: never")


class JudgeSpec(Settings):
    """A pairwise preference model: its backbone, how long it learns, and from how many labels.

    `model: null` takes the policy's own specification. The backbone is first fine-tuned on the responses (`pretrain`;
    null: the study's `sft` section), as the paper initialises its models from supervised checkpoints.
    """

    model: ModelSpec | None = None
    pretrain: Optimization | None = None
    optimization: Optimization
    labels: int | None = Field(default=None, ge=2, description="number of training pairs; null: all of them")


class LossSpec(BaseModel):
    """A loss by its registered name, with that loss's own hyper-parameters beside it."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str = "ipo"

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Recipe(Settings):
    """The one recipe of a study: there is nowhere to put a setting for one arm only."""

    loss: LossSpec = Field(default_factory=LossSpec)
    optimization: Optimization


class Arm(Settings):
    """A named stream: who writes the responses (`behavior`) and who labels them (`judge`). Nothing else.

    behavior "policy": the current policy, refreshed every `sync_every` steps (1 is online); "dataset": the task's own
    pairs, relabelled by the judge; "recording": the pairs that arm `of` trained on, in `order` (in-order, reversed,
    shuffled, window:K), with the labels they had.
    """

    behavior: Literal["policy", "dataset", "recording"]
    judge: Literal["golden", "proxy", "oracle"] | None = None
    sync_every: int = Field(default=1, ge=1)
    soft_labels: bool = False
    of: str | None = None
    order: str = "in-order"

    @model_validator(mode="after")
    def _no_contradiction(self) -> Arm:
        if self.behavior == "recording":
            if self.of is None:
                raise ValueError("`behavior: recording` needs `of`, the arm whose recording is replayed")
            if self.judge is not None:
                raise ValueError("a recording keeps the labels it was made with: leave out `judge`")
        else:
            if self.of is not None or self.order != "in-order":
                raise ValueError("`of` and `order` belong to `behavior: recording`")
            if self.judge is None:
                raise ValueError("needs `judge`: golden, proxy or oracle")
        if self.behavior != "policy" and self.sync_every != 1:
            raise ValueError("`sync_every` belongs to `behavior: policy`")
        return self


class Sweep(Settings):
    """A grid that multiplies the named arms; other arms run the recipe as it stands. `why` names the protocol."""

    axes: dict[Literal["beta", "learning_rate", "steps"], list[float]]
    arms: list[str]
    why: str

    @field_validator("axes")
    @classmethod
    def _not_empty(cls, axes: dict[str, list[float]]) -> dict[str, list[float]]:
        for name, values in axes.items():
            if not values:
                raise ValueError(f"axis `{name}` has no values")
            if len(set(values)) != len(values):
                raise ValueError(f"axis `{name}` names a value twice")
        return axes


class MeasurementSpec(Settings):
    """The one measurement of a study: at which steps, on how many prompts, against whom.

    `checkpoints` are optimiser steps (0, the SFT policy, is always measured); steps beyond a run's end are left out
    and the run's last step is always measured. `split` says which prompts are used: the paper uses those it trained on.
    """

    checkpoints: list[int] = Field(default_factory=lambda: [10, 20, 40, 80, 160, 320, 640])
    prompts: int = Field(default=512, ge=2)
    kl_prompts: int = Field(default=256, ge=2, description="prompts behind the forward KL; at most `prompts`")
    pairs: int = Field(default=1024, ge=2, description="held-out pairs for accuracy and log-ratios")
    opponents: list[Literal["golden_policy", "sft", "chosen"]] = ["golden_policy", "sft", "chosen"]
    split: Literal["train", "test"] = "train"
    samples: int = Field(default=8, ge=0, description="responses kept as text, per checkpoint")
    batch: int = Field(default=128, ge=1)

    @field_validator("checkpoints")
    @classmethod
    def _increasing(cls, steps: list[int]) -> list[int]:
        if any(s < 0 for s in steps) or sorted(set(steps)) != steps:
            raise ValueError("must be increasing step numbers, each once")
        return [s for s in steps if s > 0]


class Study(Settings):
    """A whole study: one task, one recipe, one measurement, and arms that differ only in their stream."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    question: str
    task: dict[str, Any]
    tokenizer: TokenizerSpec = Field(default_factory=TokenizerSpec)
    limits: Limits = Field(default_factory=Limits)
    policy: ModelSpec
    sft: Optimization
    golden: JudgeSpec
    proxy: JudgeSpec
    recipe: Recipe
    measurement: MeasurementSpec = Field(default_factory=MeasurementSpec)
    arms: dict[str, Arm] = Field(min_length=1)
    sweep: list[Sweep] = Field(default_factory=list)
    compare: tuple[str, str] = ("online", "offline")
    seeds: int | list[int] = 1

    @field_validator("seeds")
    @classmethod
    def _some_seed(cls, seeds: int | list[int]) -> int | list[int]:
        if (isinstance(seeds, int) and seeds < 1) or seeds == []:
            raise ValueError("at least one seed is needed")
        if isinstance(seeds, list) and len(set(seeds)) != len(seeds):
            raise ValueError("a seed is named twice")
        return seeds

    @property
    def seed_list(self) -> list[int]:
        return list(range(self.seeds)) if isinstance(self.seeds, int) else list(self.seeds)

    @model_validator(mode="after")
    def _arms_exist(self) -> Study:
        for side in self.compare:
            if side not in self.arms:
                raise ValueError(f"`compare` names `{side}`, which is not among the arms: {', '.join(self.arms)}")
        swept: set[str] = set()
        for grid in self.sweep:
            for arm in grid.arms:
                if arm not in self.arms:
                    raise ValueError(f"`sweep` names `{arm}`, which is not among the arms: {', '.join(self.arms)}")
                if arm in swept:
                    raise ValueError(f"`{arm}` stands in two sweeps")
                swept.add(arm)
        for name, arm_ in self.arms.items():
            if arm_.of is not None and (arm_.of not in self.arms or self.arms[arm_.of].behavior == "recording"):
                raise ValueError(f"arm `{name}` replays `{arm_.of}`, which is not an arm that writes its own pairs")
        if self.measurement.kl_prompts > self.measurement.prompts:
            raise ValueError("`measurement.kl_prompts` is larger than `measurement.prompts`")
        return self
