"""The kinds of judge a study can name under `golden` and `proxy`, each a settings class; heavy code is loaded late.

A kind that learns is a `LearningKind`: the step `FitJudge` trains it on labels, as every kind by the same trainer. Any
other kind is ready: it is a `Judge` itself, or an `OpenedKind` that gives one. What a kind may do beside is a
`CheckedKind` or an `IdentifiedKind`. Its fields are its settings in the study.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from pydantic import Field, field_validator

from aligngap.settings import Limits, LoraSpec, ModelSpec, Settings
from aligngap.types import Judge, Judgement, Pair, Prompt, Response

if TYPE_CHECKING:
    import numpy as np
    import torch


class Learner(Protocol):
    """A judge that learns from labelled pairs: what a kind's `start` and `load` give."""

    module: Any  # torch.nn.Module: what the trainer trains
    key: str

    def to(self, device: torch.device) -> Any: ...

    def attach(self, spec: LoraSpec, seed: int) -> Any:
        """Put a low-rank adapter into its backbone, which alone trains of it; `merge` adds it to the weights."""
        ...

    def merge(self) -> Any: ...

    def items(self, pairs: Sequence[Pair], rng: np.random.Generator) -> list[Any]:
        """Pairs as this learner is shown them in training; `rng` is for the order of presentation."""
        ...

    def objective(self, items: Sequence[Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Unreduced losses [B] and metrics [B]."""
        ...

    def judge(self, prompts: Sequence[Prompt], a: Sequence[Response], b: Sequence[Response]) -> Judgement: ...

    def save(self, path: Path) -> None: ...


@runtime_checkable
class LearningKind(Protocol):
    """A kind of judge that is trained on labels."""

    def start(self, backbone: Path, spec: ModelSpec, tokenizer: Any, *, key: str, seed: int) -> Learner:
        """An untrained learner on the fine-tuned model in the folder `backbone`."""
        ...

    def load(self, path: Path, backbone: Path, spec: ModelSpec) -> Learner:
        """The trained learner that was saved in the folder `path`."""
        ...


@runtime_checkable
class OpenedKind(Protocol):
    """A kind of judge that is ready once it is opened."""

    def open(self, folder: Path, device: torch.device) -> Judge:
        """The judge, computing on `device`; it may keep files in the store's `folder`."""
        ...


@runtime_checkable
class CheckedKind(Protocol):
    """A kind of judge that can say before any compute whether it can be used."""

    def check(self, folder: Path) -> None:
        """Raise AligngapError or RunFailed where the judge could not answer."""
        ...


@runtime_checkable
class ReadingKind(Protocol):
    """A kind of judge that learns and can say how long the texts are that its model reads."""

    def reads(self, prompt: int, response: int) -> int:
        """The tokens that its model reads at once, of a prompt and responses of so many tokens."""
        ...


@runtime_checkable
class LimitedKind(Protocol):
    """A ready kind of judge that can say whether it reads texts of a study's limits."""

    def check_limits(self, limits: Limits) -> None:
        """Raise AligngapError where texts of these limits are longer than what the judge reads."""
        ...


@runtime_checkable
class IdentifiedKind(Protocol):
    """A kind of judge that says itself what makes its answers; of others it is their settings."""

    def identity(self) -> dict[str, Any]:
        """JSON values that change whenever an answer could."""
        ...


class Pairwise(Settings):
    """A preference model that reads both responses in one context and assumes no scale of quality: the paper's."""

    def reads(self, prompt: int, response: int) -> int:
        """The tokens that it reads at once: the prompt, and both responses with a separator after each."""
        return prompt + 2 * response + 2

    def start(self, backbone: Path, spec: ModelSpec, tokenizer: Any, *, key: str, seed: int) -> Learner:
        from aligngap.judges.preference_model import PreferenceModel
        from aligngap.models.loading import load_model

        return PreferenceModel(load_model(backbone, spec), tokenizer, key=key, seed=seed, spec=spec)

    def load(self, path: Path, backbone: Path, spec: ModelSpec) -> Learner:
        from aligngap.judges.preference_model import PreferenceModel

        return PreferenceModel.load(path, spec=spec)


class BradleyTerry(Settings):
    """A point-wise reward model: one number per response, and the sigmoid of the difference as its preference."""

    def reads(self, prompt: int, response: int) -> int:
        """The tokens that it reads at once: the prompt, and the response with a separator after it."""
        return prompt + response + 1

    def start(self, backbone: Path, spec: ModelSpec, tokenizer: Any, *, key: str, seed: int) -> Learner:
        from aligngap.judges.bradley_terry import BradleyTerryModel
        from aligngap.models.loading import load_model

        return BradleyTerryModel(load_model(backbone, spec), tokenizer, key=key, seed=seed, spec=spec)

    def load(self, path: Path, backbone: Path, spec: ModelSpec) -> Learner:
        from aligngap.judges.bradley_terry import BradleyTerryModel

        return BradleyTerryModel.load(path, spec=spec)


class Local(Settings):
    """A policy as reward model: beta times its log-ratio to the backbone it started at, trained by DPO."""

    beta: float = Field(default=0.1, gt=0, description="scale of its reward, and the beta of its DPO loss")

    def reads(self, prompt: int, response: int) -> int:
        """The tokens that it reads at once: the prompt and the response."""
        return prompt + response

    def start(self, backbone: Path, spec: ModelSpec, tokenizer: Any, *, key: str, seed: int) -> Learner:
        from aligngap.judges.local import LocalReward
        from aligngap.models.loading import load_model

        ours, theirs = load_model(backbone, spec), load_model(backbone, spec)
        return LocalReward(ours, theirs, tokenizer, key=key, beta=self.beta, spec=spec)

    def load(self, path: Path, backbone: Path, spec: ModelSpec) -> Learner:
        from aligngap.judges.local import LocalReward

        return LocalReward.load(path, backbone, beta=self.beta, spec=spec)


class RewardModel(Settings):
    """A ready reward model: a sequence classifier with one logit, from a folder or the hub, with its own tokenizer."""

    path: str = Field(description="a local folder or a hub name")
    template: str = Field(
        default="{prompt}\n\n{response}",
        description="how both are joined, if its tokenizer has no chat template; as it is by default, a model with CLS "
        "and SEP reads both as a pair",
    )
    max_tokens: int | None = Field(
        default=None, ge=8, description="longer texts are cut at the front of the prompt; null: what the model reads"
    )
    batch: int = Field(default=32, ge=1, description="texts per forward pass")

    @field_validator("template")
    @classmethod
    def _both(cls, template: str) -> str:
        if "{prompt}" not in template or "{response}" not in template:
            raise ValueError("must hold {prompt} and {response}")
        return template

    def identity(self) -> dict[str, Any]:
        from aligngap.models.pretrained import content_of

        own = self.model_dump(exclude={"batch"}) | {"reading": 2}  # raised when the same texts are read as other ids
        content = content_of(self.path)
        return own | {"content": content} if content else own

    def check(self, folder: Path) -> None:
        from aligngap.judges.reward_model import check_path

        check_path(self.path, self.max_tokens)

    def check_limits(self, limits: Limits) -> None:
        """Raise AligngapError where texts of the study's limits are longer than what the model reads."""
        from aligngap.judges.reward_model import check_path

        check_path(self.path, self.max_tokens, limits)

    def open(self, folder: Path, device: torch.device) -> Any:
        from aligngap.judges.reward_model import RewardModelJudge

        return RewardModelJudge(self.path, self.template, self.max_tokens, self.batch, device)
