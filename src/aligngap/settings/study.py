"""Settings of the measurement, and of a study as a whole."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from aligngap.settings.arms import Arm, Sweep, Variant
from aligngap.settings.base import NAME, Settings
from aligngap.settings.models import Limits, ModelSpec, TokenizerSpec
from aligngap.settings.recipe import JudgeSpec, Optimization, Recipe


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
    opponents: list[Literal["golden_policy", "sft", "chosen", "best_of_n"]] = Field(
        default=["golden_policy", "sft", "chosen"], description="whom the win rates are against; sft is always there. "
        "best_of_n is the SFT policy's best of `opponent_best_of` responses as the proxy ranks, trained neither way"
    )  # fmt: skip
    opponent_best_of: int = Field(default=4, ge=2, description="responses of which the opponent best_of_n is the best")
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
    golden_labels: int | None = Field(
        default=None, ge=2, description="pairs of the data that the golden judge labels: the proxy and arms that learn "
        "from the data as it labels them, have no others; policies are tuned on, and write to, all prompts; null: all"
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
        if self.golden_labels is not None and self.judge_share:
            raise ValueError("`golden_labels` and `judge_share` both say which pairs the judges learn from; give one")
        scarce = self.golden_labels is not None and self.measurement.split == "train"
        if scarce and "chosen" in self.measurement.opponents:
            raise ValueError("`golden_labels` leaves prompts without a `chosen` response: leave it out of `opponents`")
        if self.golden.head_start is not None:
            raise ValueError("`head_start` belongs to the proxy: the golden judge learns from its own world alone")
        if self.measurement.kl_prompts > self.measurement.prompts:
            raise ValueError("`measurement.kl_prompts` is larger than `measurement.prompts`")
        return self
