"""Settings of the arms, of the grids that multiply them, and of the variants they run under."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from aligngap.settings.base import Settings
from aligngap.settings.recipe import RetrainSpec

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


#: what a sweep may go over; other settings go under `variants`
Axis = Literal["beta", "learning_rate", "steps"]


class Sweep(Settings):
    """A grid that multiplies the named arms; other arms run the recipe as it stands.

    The two compared arms run the same grid, or `why` says why not: a sweep's best against a single run is another
    question than an arm against an arm.

    A grid holds for its arms under every variant; one that names "ARM[VARIANT]" takes its place there.
    """

    axes: dict[Axis, list[float]] = Field(
        description="values per axis: beta, learning_rate, steps; every combination is run"
    )
    arms: list[str] = Field(description="the arms that are swept")
    why: str = Field(
        default="", description="which protocol this is; needed where the two compared arms get different grids"
    )  # fmt: skip

    @field_validator("axes", mode="before")
    @classmethod
    def _known(cls, axes: Any) -> Any:
        known = get_args(Axis)
        for name in axes if isinstance(axes, dict) else ():
            if name not in known:
                raise ValueError(
                    f"`{name}` is no axis of a sweep, which are {', '.join(known)}; give each of its values a variant: "
                    "`variants: {NAME: {set: {KEY: VALUE}}}`, where KEY is as in --set"
                )
        return axes

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
