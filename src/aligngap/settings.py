"""What a study may say: every setting with its default, in one place, unknown keys forbidden. No torch.

YAML and `--set key=value` are two spellings of these classes. Defaults are the paper's where it states one.
"""

from __future__ import annotations

import datetime
import math
import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

#: What an arm or a variant may be called: it stands in tables, in files' names and in "ARM[VARIANT]" and "ARM@STEP".
DAY = "2024-07-26"  #: what Llama's templates say where they are told no date
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+=-]{0,79}")


class Settings(BaseModel):
    """Frozen, and strict about names."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class LoraSpec(Settings):
    """Low-rank adapters in place of all the weights (Hu et al. 2021, arXiv 2106.09685); needs `aligngap[peft]`.

    Each chosen linear layer W gets an update (alpha / r) B A of rank r, with B = 0 at the start; W itself stays.
    """

    r: int = Field(default=16, ge=1, description="rank of the update")
    alpha: float = Field(default=32.0, gt=0, description="its scale is alpha / r")
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0, description="dropout before A, in training only")
    target_modules: str | list[str] = Field(
        default="all-linear", description="names of the linear layers; all-linear: every one but the output layer"
    )


class ModelSpec(Settings):
    """Either `path` (a pretrained model) or `model_type` with `config`, any settings of that family.

    `path` is a local folder, a hub name, a file that ends in `.gguf`, or `package:NAME/FILE`, something inside an
    installed Python package. `config` takes the field names of the transformers configuration class (for `t5`: d_model,
    d_kv, d_ff, num_layers, num_decoder_layers, num_heads …); the vocabulary size comes from the tokenizer. Weights and
    optimiser are in float32 whatever `dtype` says, and so are log-probabilities and KL.
    """

    path: str | None = Field(
        default=None, description="a folder, hub name, .gguf file or package:NAME/FILE; null: a model from scratch"
    )
    model_type: str = Field(default="t5", description="transformers' name of the family, if from scratch")
    config: dict[str, Any] = Field(default_factory=dict, description="sizes of a model from scratch, by field name")
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0, description="dropout in training; always off in measurement")
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="of matrix products; bfloat16 is autocast, on float32 weights"
    )
    gradient_checkpointing: bool = Field(
        default=False, description="compute activations again in the backward pass: less memory, same result"
    )
    chat: bool = Field(default=False, description="write prompts by the tokenizer's chat template")
    template: dict[str, Any] = Field(
        default_factory=dict, description="arguments of the chat template, for instance {enable_thinking: false}"
    )
    date: str = Field(default=DAY, description="the day that a chat template is told which asks for today's date")

    @model_validator(mode="after")
    def _one_source(self) -> ModelSpec:
        if self.path is not None and self.config:
            raise ValueError("give either `path` (a pretrained model) or `config` (a model from scratch), not both")
        if not self.chat and (self.template or self.date != DAY):
            raise ValueError("`template` and `date` are for a chat template: set `chat: true`, or leave them out")
        return self

    @field_validator("date", mode="before")
    @classmethod
    def _day(cls, day: object) -> str:
        try:
            return datetime.date.fromisoformat(str(day)).isoformat()
        except ValueError as error:
            raise ValueError(f"must be a day, written as {DAY}") from error

    @property
    def family(self) -> ModelSpec:
        """What of the model changes how data are encoded: how it is run, and its sizes, do not."""
        return ModelSpec(
            path=self.path, model_type=self.model_type, chat=self.chat, template=self.template, date=self.date
        )


class TokenizerSpec(Settings):
    """A pretrained tokenizer by `path`, or one trained on the task's own training text.

    "word" splits on white space (the sandbox); "bpe" is byte-level BPE with `vocabulary` entries.
    """

    path: str | None = Field(default=None, description="a local folder or a hub name; null: train one on the task")
    kind: Literal["word", "bpe"] = Field(default="bpe", description="what is trained: words, or byte-level BPE")
    vocabulary: int = Field(default=2048, ge=260, le=500_000, description="most entries of a trained tokenizer")


class Limits(Settings):
    """Longest prompt and response in tokens, EOS included. Longer rows of a data set are dropped and counted."""

    prompt_tokens: int = Field(default=256, ge=1, description="longest prompt")
    response_tokens: int = Field(default=128, ge=1, description="longest response, of the data and of the policy")


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

    KL is measured from the SFT policy all the same. Log-probabilities that are stored with the data or a recording are
    another reference's, and are computed anew.
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


#: settings of an arm that say how the policy writes
ON_POLICY = (
    "sync_every", "reuse", "candidates", "grouped", "lag", "tokens_per_step", "drop_stale", "buffer", "pick",
    "freeze_writer_at", "retrain", "mix_reference",
)  # fmt: skip


class Arm(Settings):
    """A named stream: who writes the responses (`behavior`) and who labels them (`judge`). Nothing else.

    behavior "policy": the current policy, refreshed every `sync_every` steps (1 is online); "dataset": the task's own
    pairs, relabelled by the judge; "recording": the pairs that arm `of` trained on, in `order` (in-order, reversed,
    shuffled, window:K, blocks:K), with the labels they had or, with `judge`, labelled anew; "responses": a fixed set
    written once, one response to each of the data's prompts by each of two `writers` at `temperature`; "mixture": each
    pair from the first arm of `mix` with probability `share`, else from the second.

    What the policy writes may be older than the policy: `sync_every`, `reuse`, `lag`, `buffer`, `freeze_writer_at`.
    """

    behavior: Literal["policy", "dataset", "recording", "responses", "mixture"] = Field(
        description="who writes the two responses"
    )
    judge: Literal["golden", "proxy", "oracle"] | None = Field(
        default=None, description="who labels them; a recording without one keeps its labels"
    )
    sync_every: int = Field(default=1, ge=1, description="batches the policy writes before it is refreshed; 1: online")
    reuse: int = Field(default=1, ge=1, description="times that what the policy has written is trained on")
    candidates: int = Field(
        default=2, ge=2, description="responses the policy writes to a prompt; the pair is the best and the worst by "
        "the judge's round robin"
    )  # fmt: skip
    grouped: bool = Field(
        default=False, description="train on all `candidates`, as pairs of neighbours that know how each stands in its "
        "group (GRPO)"
    )  # fmt: skip
    lag: int = Field(
        default=0, ge=0, description="steps between the writing of a batch and its training; the first `lag` batches "
        "are the start policy's too"
    )  # fmt: skip
    tokens_per_step: int | None = Field(
        default=None, ge=1, description="tokens by which a response in flight grows during a step of training, with "
        "`lag` batches in flight: longer pairs are older; null: all are `lag` steps old"
    )  # fmt: skip
    drop_stale: int | None = Field(
        default=None, ge=0, description="age in steps above which a pair is discarded untrained; null: none is"
    )
    buffer: int | None = Field(
        default=None, ge=1, description="draw each batch from the last so many that the policy wrote, one of them "
        "every `reuse` steps; null: each batch is served as it was written"
    )  # fmt: skip
    pick: Literal["uniform", "recent"] = Field(
        default="uniform", description="how a batch is drawn from the buffer: uniformly, or in proportion to 1/(1+age)"
    )
    freeze_writer_at: int | None = Field(
        default=None, ge=1, description="step at which all that is left of the run is written at once; with `buffer`, "
        "from which on the buffer stays as it is; null: never"
    )  # fmt: skip
    retrain: RetrainSpec | None = Field(
        default=None, description="retrain the proxy on golden labels of the policy's own pairs; null: it stays"
    )
    mix_reference: float = Field(
        default=0.0, ge=0.0, le=1.0, description="share m of the reference in the writer: each token is drawn in "
        "proportion to policy^(1-m) reference^m (IPO-MD, arXiv 2403.08635)"
    )  # fmt: skip
    soft_labels: bool = Field(default=False, description="labels are the judge's probabilities, not their sign")
    unlabelled: float = Field(
        default=0.0, ge=0.0, lt=1.0, description="share of pairs that the current policy writes and nobody labels, for "
        "the KL term of HyPO (arXiv 2406.01462); its weight is `recipe.on_policy_kl`"
    )  # fmt: skip
    of: str | None = Field(default=None, description="the arm whose recording is replayed")
    order: str = Field(
        default="in-order", description="of a recording: in-order, reversed, shuffled, window:K or blocks:K"
    )
    writers: tuple[str, str] | None = Field(
        default=None,
        description="who wrote a fixed set: `sft`, or `ARM@STEP` or `ARM@last`, a checkpoint of an arm's run",
    )
    temperature: float = Field(
        default=1.0, gt=0, allow_inf_nan=False, description="of the writers of a fixed set; above 1 it spreads wider"
    )
    mix: tuple[str, str] | None = Field(default=None, description="the two arms of a mixture")
    share: float = Field(default=0.5, ge=0.0, le=1.0, description="share of a mixture's pairs from its first arm")
    share_to: float | None = Field(
        default=None, ge=0.0, le=1.0, description="that share at the last step, reached in a straight line; null: the "
        "same throughout"
    )  # fmt: skip

    @model_validator(mode="after")
    def _no_contradiction(self) -> Arm:
        belongs = {
            **dict.fromkeys(ON_POLICY, ("policy",)), "share_to": ("mixture",),
            "unlabelled": ("dataset", "responses"), "of": ("recording",), "order": ("recording",),
            "temperature": ("responses",),
            "writers": ("responses",), "mix": ("mixture",), "share": ("mixture",),
            "judge": ("policy", "dataset", "recording", "responses"),
            "soft_labels": ("policy", "dataset", "recording", "responses"),
        }  # fmt: skip
        for name, behaviors in belongs.items():
            default = type(self).model_fields[name].default
            if getattr(self, name) != default and self.behavior not in behaviors:
                raise ValueError(f"`{name}` does not belong to `behavior: {self.behavior}`")
        needed = {
            "policy": ["judge"], "dataset": ["judge"], "recording": ["of"], "mixture": ["mix"],
            "responses": ["writers", "judge"],
        }  # fmt: skip
        for name in needed[self.behavior]:
            if getattr(self, name) is None:
                raise ValueError(f"`behavior: {self.behavior}` needs `{name}`")
        if self.behavior == "recording" and self.soft_labels and self.judge is None:
            raise ValueError("`soft_labels` of a recording needs `judge`: its own labels are what they were")
        ages = self.lag > 0 or self.sync_every > 1 or (self.reuse > 1 and self.buffer is None)
        for wrong, why in (
            (self.pick != "uniform" and self.buffer is None, "`pick` is how a buffer is drawn from: it needs `buffer`"),
            (self.tokens_per_step and not self.lag, "`tokens_per_step` needs `lag`, the batches that are in flight"),
            (self.drop_stale is not None and not ages, "`drop_stale` needs `lag`, `sync_every` or `reuse`: else no "
             "pair is ever older than a step"),
            (self.drop_stale is not None and self.buffer, "`drop_stale` and `buffer` both say how old a pair may be"),
            (self.freeze_writer_at and (ages or self.drop_stale is not None), "`freeze_writer_at` goes with `buffer` "
             "or alone: what is written at that step is all that is left"),
            (self.grouped and self.candidates % 2, f"`grouped` serves pairs: {self.candidates} `candidates` are odd"),
            (self.retrain and self.judge != "proxy", "`retrain` is of the proxy: `judge: proxy`"),
        ):  # fmt: skip
            if wrong:
                raise ValueError(why)
        return self


class Sweep(Settings):
    """A grid that multiplies the named arms; other arms run the recipe as it stands.

    The two compared arms run the same grid, or `why` says why not: a sweep's best against a single run is another
    question than an arm against an arm.

    A grid holds for its arms under every variant; one that names "ARM[VARIANT]" takes its place there.
    """

    axes: dict[Literal["beta", "learning_rate", "steps"], list[float]] = Field(
        description="values per axis: beta, learning_rate, steps; every combination is run"
    )
    arms: list[str] = Field(description="the arms that are swept")
    why: str = Field(
        default="", description="which protocol this is; needed where the two compared arms get different grids"
    )  # fmt: skip

    @field_validator("axes")
    @classmethod
    def _not_empty(cls, axes: dict[str, list[float]]) -> dict[str, list[float]]:
        for name, values in axes.items():
            if not values:
                raise ValueError(f"axis `{name}` has no values")
            if len(set(values)) != len(values):
                raise ValueError(f"axis `{name}` names a value twice")
            if not all(math.isfinite(v) and v > 0 for v in values):
                raise ValueError(f"axis `{name}`: every value must be positive")
            if name == "steps" and not all(v == int(v) for v in values):
                raise ValueError("axis `steps`: every value must be a whole number")
        return axes


class Variant(Settings):
    """The same arms under other settings, shared by all of them: a policy size, another loss, fewer labels.

    `set` holds dotted keys as in `--set`. The golden policy that all are measured against stays the study's own
    wherever the task is the same, so that a larger policy meets the same opponent (arXiv 2405.08448, section 5.5).
    """

    set: dict[str, Any] = Field(min_length=1, description="dotted keys and their values, as in --set")
    arms: list[str] | None = Field(default=None, description="the arms that run under it; null: all")


class MeasurementSpec(Settings):
    """The one measurement of a study: at which steps, on how many prompts, against whom.

    `checkpoints` are optimiser steps (0, the SFT policy, is always measured); steps beyond a run's end are left out
    and the run's last step is always measured. `split` says which prompts are used: the paper uses those it trained on.
    """

    checkpoints: list[int] = Field(
        default_factory=lambda: [10, 20, 40, 80, 160, 320, 640], description="optimiser steps that are measured"
    )
    prompts: int = Field(default=512, ge=2, description="prompts behind KL and win rates")
    kl_prompts: int = Field(default=256, ge=2, description="prompts behind the forward KL; at most `prompts`")
    pairs: int = Field(default=1024, ge=2, description="held-out pairs for accuracy and log-ratios")
    opponents: list[Literal["golden_policy", "sft", "chosen"]] = Field(
        default=["golden_policy", "sft", "chosen"], description="whom the win rates are against; sft is always there"
    )
    split: Literal["train", "test"] = Field(default="train", description="which prompts are used")
    best_of_n: int = Field(default=16, ge=0, description="largest n of the best-of-n reference; 0: leave it out")
    best_of_n_prompts: int = Field(default=256, ge=2, description="prompts behind it; at most `prompts`")
    reference_samples: int = Field(
        default=16, ge=0, description="responses of the SFT policy to a prompt, written once, for rho(g, q) and the "
        "ceiling of the gain, which takes some 150 e^KL of them; 0: leave both out"
    )  # fmt: skip
    reference_prompts: int = Field(default=64, ge=2, description="prompts behind them; at most `prompts`")
    reference_opponents: int = Field(
        default=8, ge=2, multiple_of=2, description="further responses of the SFT policy that each of them is held "
        "against; one half tilts the ceiling and the other scores it"
    )  # fmt: skip
    reference_ratios: int = Field(
        default=16, ge=2, description="how many of a prompt's reference samples every checkpoint gives a log-ratio"
    )
    samples: int = Field(default=8, ge=0, description="responses kept as text, per checkpoint")
    batch: int = Field(default=128, ge=1, description="responses per forward pass in measurement")

    @field_validator("checkpoints")
    @classmethod
    def _increasing(cls, steps: list[int]) -> list[int]:
        if any(s < 0 for s in steps) or sorted(set(steps)) != steps:
            raise ValueError("must be increasing step numbers, each once")
        return [s for s in steps if s > 0]


class Study(Settings):
    """A whole study: one task, one recipe, one measurement, and arms that differ only in their stream."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9-]*$", description="lower case, digits, hyphens; names the output folder"
    )
    question: str = Field(description="what the study asks, in a sentence")
    task: dict[str, Any] = Field(description="`name` of a registered task, and that task's own settings beside it")
    tokenizer: TokenizerSpec = Field(default_factory=TokenizerSpec, description="one tokenizer for the whole study")
    limits: Limits = Field(default_factory=Limits, description="longest prompt and response")
    policy: ModelSpec = Field(description="the model that is aligned")
    sft: Optimization = Field(description="supervised fine-tuning on both responses of every pair")
    golden: JudgeSpec = Field(description="the judge that stands in for people; it relabels the data")
    proxy: JudgeSpec = Field(description="the judge that online arms hear; one that learns learns the relabelled data")
    recipe: Recipe = Field(description="loss and optimisation of every arm")
    measurement: MeasurementSpec = Field(default_factory=MeasurementSpec, description="the same for every arm")
    arms: dict[str, Arm] = Field(min_length=1, description="named streams")
    sweep: list[Sweep] = Field(default_factory=list, description="grids of hyper-parameters")
    variants: dict[str, Variant] = Field(
        default_factory=dict, description="the same arms under other settings, each with a name"
    )
    compare: tuple[str, str] = Field(default=("online", "offline"), description="two arms of this study to compare")
    probe: int = Field(
        default=0, ge=0, description="pairs near each checkpoint of the first compared arm's run on which the proxy "
        "and both arms' policies are held as classifiers; 0: none"
    )  # fmt: skip
    judge_share: float = Field(
        default=0.0, ge=0.0, lt=1.0, description="share of the training prompts that only the judges learn from, and "
        "no policy; 0: judges and policies learn from the same prompts"
    )  # fmt: skip
    budgets: list[float] = Field(
        default=[1.0, 2.0, 4.0, 8.0], min_length=1, description="KL in nats at which arms are compared, named before "
        "the runs; every verdict rests on them"
    )  # fmt: skip
    primary: list[str] = Field(
        default_factory=list, description="rules (of any hypothesis) that form the primary family, held to 5% as a "
        "whole by Holm; none named: online-golden against offline and what the proxy costs, where those arms are, else "
        "R2; by the true preference as well where the task has one"
    )  # fmt: skip
    spent_seeds: list[int] = Field(
        default_factory=list, description="seeds of this study that only choose (an arm's best checkpoint and "
        "configuration) and are judged by no rule"
    )  # fmt: skip
    decision_kl: float | None = Field(
        default=None, gt=0.0, allow_inf_nan=False, description="KL in nats of the policy that will be deployed, at "
        "which `decision_margin` is weighed; null: where the best checkpoint of either arm lies"
    )  # fmt: skip
    decision_margin: float | None = Field(
        default=None, gt=0.0, lt=0.5, description="the gain in win rate that online must bring to be worth it: the "
        "report then opens with a recommendation; null: none is made"
    )  # fmt: skip
    crossed_judges: bool = Field(
        default=False, description="every golden judge of the study, those of its variants included, evaluates every "
        "run: the table `crossed.parquet`"
    )  # fmt: skip
    seeds: int | list[int] = Field(
        default=1, description="a number (seeds 0, 1 …) or a list; all stages repeat per seed"
    )

    @field_validator("budgets")
    @classmethod
    def _rising_budgets(cls, budgets: list[float]) -> list[float]:
        if not all(math.isfinite(b) and b > 0 for b in budgets) or sorted(set(budgets)) != budgets:
            raise ValueError("must be increasing KLs above 0 nats, each once")
        return budgets

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

    def _check_policy(self, where: str, policy: str) -> None:
        """`sft`, or a checkpoint that is kept of an arm's run."""
        name, at, step = policy.partition("@")
        if policy != "sft" and (not at or name not in self.arms or not (step == "last" or step.isdecimal())):
            raise ValueError(f"{where} `{policy}` must be sft, ARM@STEP or ARM@last with an arm of this study")
        known = [*self.measurement.checkpoints, self.recipe.optimization.steps]
        if step.isdecimal() and int(step) not in known:
            raise ValueError(f"{where} `{policy}` names step {step}, not one of the checkpoints {known}")

    def _check_writer(self, arm: str, writer: str) -> None:
        self._check_policy(f"arm `{arm}`: writer", writer)
        name = writer.partition("@")[0]
        if name in self.arms and self.arms[name].behavior == "responses":
            raise ValueError(f"arm `{arm}`: writer `{writer}` is an arm that needs writers itself")

    @property
    def optimizations(self) -> list[Optimization]:
        """How every stage of the study is trained."""
        judges = [o for j in (self.golden, self.proxy) for o in (j.optimization, j.pretrain) if o is not None]
        return [self.sft, self.recipe.optimization, *judges]

    @property
    def models(self) -> list[ModelSpec]:
        """Every model the study names."""
        return [self.policy, *(j.model for j in (self.golden, self.proxy) if j.model is not None)]

    @model_validator(mode="after")
    def _arms_exist(self) -> Study:
        for kind, names in (("arms", self.arms), ("variants", self.variants)):
            for given in names:
                if not NAME.fullmatch(given):
                    raise ValueError(f"{kind}: `{given}`: a name is a letter or digit, then also blanks and . _ + = -")
        for side in self.compare:
            if side not in self.arms:
                raise ValueError(f"`compare` names `{side}`, which is not among the arms: {', '.join(self.arms)}")
        if self.probe and self.arms[self.compare[0]].behavior != "policy":
            raise ValueError(f"`probe` needs pairs that a policy writes: `{self.compare[0]}` does not")
        swept: set[str] = set()
        for grid in self.sweep:
            for arm in grid.arms:
                name, bracket, variant = arm.partition("[")
                if name not in self.arms:
                    raise ValueError(f"`sweep` names `{arm}`, which is not among the arms: {', '.join(self.arms)}")
                if bracket and variant.removesuffix("]") not in self.variants:
                    raise ValueError(f"`sweep` names `{arm}`, but there is no such variant: {', '.join(self.variants)}")
                if arm in swept:
                    raise ValueError(f"`{arm}` stands in two sweeps")
                swept.add(arm)
        for name, arm_ in self.arms.items():
            if arm_.unlabelled and not self.recipe.on_policy_kl:
                raise ValueError(f"arm `{name}` has unlabelled pairs, but `recipe.on_policy_kl` gives them no weight")
            if arm_.of is not None and (arm_.of not in self.arms or self.arms[arm_.of].behavior == "recording"):
                raise ValueError(f"arm `{name}` replays `{arm_.of}`, which is not an arm that writes its own pairs")
            for writer in arm_.writers or ():
                self._check_writer(name, writer)
            for part in arm_.mix or ():
                if part not in self.arms or self.arms[part].behavior == "mixture":
                    raise ValueError(f"arm `{name}` mixes `{part}`, which is not an arm that is no mixture itself")
                if self.arms[part].lag or self.arms[part].grouped:
                    raise ValueError(f"arm `{name}` mixes `{part}`, whose `lag` or groups go by whole batches")
            if arm_.mix_reference and self.recipe.writer_logps:
                raise ValueError(
                    f"arm `{name}` mixes the reference into each token (`mix_reference`), of which "
                    "`recipe.writer_logps` stores no log-probabilities; leave one of them out"
                )
            if arm_.grouped and self.recipe.optimization.batch % (arm_.candidates // 2):
                raise ValueError(
                    f"arm `{name}` writes groups of {arm_.candidates}, which do not fill a batch of "
                    f"{self.recipe.optimization.batch} pairs; choose a divisor"
                )
            if arm_.mix_reference and self.recipe.rollouts.engine != "transformers":
                raise ValueError(
                    f"arm `{name}` mixes the reference into each token (`mix_reference`), which only "
                    f"`recipe.rollouts.engine: transformers` does, not `{self.recipe.rollouts.engine}`"
                )
        self._check_policy("`recipe.start`", self.recipe.start)
        if self.recipe.reference is not None and self.recipe.optimization.lora is not None:
            raise ValueError("`recipe.reference` moves to the policy's weights, which with `lora` are the reference's")
        if self.policy.path is not None and "tokenizer" in self.model_fields_set:
            raise ValueError("`tokenizer` belongs to a policy from scratch: a pretrained policy brings its own")
        for seed in self.spent_seeds:
            if seed not in self.seed_list:
                raise ValueError(f"`spent_seeds` names {seed}, which is not among the seeds")
        if self.spent_seeds and set(self.spent_seeds) >= set(self.seed_list):
            raise ValueError("`spent_seeds` names every seed, so none is left to judge")
        if self.measurement.kl_prompts > self.measurement.prompts:
            raise ValueError("`measurement.kl_prompts` is larger than `measurement.prompts`")
        return self


def explain(error: Any, prefix: str = "") -> str:
    """The first complaint of a pydantic ValidationError as one line: key, what is wrong, what was given."""
    first = error.errors(include_url=False)[0]
    where = prefix + ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "unknown key; remove it or correct its name"
    elif first["type"] == "missing":
        message = "missing; add it"
    given = first.get("input")
    shown = f" (given: {given!r})" if isinstance(given, str | int | float | bool) else ""
    more = f" [and {error.error_count() - 1} more]" if error.error_count() > 1 else ""
    return f"{where.rstrip('.') or 'study'}: {message}{shown}{more}"
