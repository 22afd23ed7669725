"""An example of everything that can be added from outside: a loss, a task, a judge and a stream, one class each."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from aligngap.losses import PairLogps
from aligngap.seeding import derive
from aligngap.types import Comparison, Judgement, Pair, PairStream, Prompt, Response, Sampler, TaskData

VERSION = 1  # part of the fingerprint; raise it when the same settings would give other text


@dataclass(frozen=True)
class Hinge:
    """max(0, 1 - beta h): the ranking loss of SLiC-HF, Zhao et al. 2023, arXiv 2305.10425, on the log-ratio margin."""

    beta: float = 0.1

    def __call__(self, x: PairLogps) -> Tensor:
        """[B], unreduced; the label mixes the loss of h and the loss of -h."""
        z = self.beta * x.margin()
        return x.p_chosen * (1 - z).clamp_min(0) + (1 - x.p_chosen) * (1 + z).clamp_min(0)


class SortedLetters(BaseModel):
    """Prompts are letters; the preferred response has them in order, the other has them in some other order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    letters: int = Field(default=5, ge=2, le=26, description="letters of a prompt")
    pairs: int = Field(default=500, ge=4, description="comparisons; a fifth of them is held out")

    def fingerprint(self) -> str:
        """Everything that changes what is loaded, except the seed."""
        return hashlib.sha256(f"sorted letters {VERSION} {self.model_dump_json()}".encode()).hexdigest()

    def load(self, seed: int) -> TaskData:
        rng = random.Random(f"sorted letters {seed}")
        rows: dict[str, Comparison] = {}  # by prompt, so that no prompt is in both splits
        for _ in range(100 * self.pairs):
            drawn = rng.sample("abcdefghijklmnopqrstuvwxyz", self.letters)
            prompt, best = " ".join(drawn), " ".join(sorted(drawn))
            other = " ".join(rng.sample(drawn, self.letters))
            if other != best:
                rows.setdefault(prompt, Comparison(prompt, prompt, best, other))
            if len(rows) == self.pairs:
                break
        every = list(rows.values())
        return TaskData(train=every[len(every) // 5 :], test=every[: len(every) // 5], source="sorted letters")


class Shorter(BaseModel):
    """A judge that prefers the response of fewer characters; about the same length is a tie."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    margin: int = Field(default=0, ge=0, description="difference in characters up to which it is a tie")

    @property
    def key(self) -> str:
        return f"shorter {self.margin}"

    def judge(self, prompts: Sequence[Prompt], a: Sequence[Response], b: Sequence[Response]) -> Judgement:
        gap = np.array([len(y.text) - len(x.text) for x, y in zip(a, b, strict=True)], dtype=np.float64)
        forward = (np.sign(gap) * (np.abs(gap) > self.margin) + 1) / 2
        return Judgement(forward=forward, backward=1 - forward)


class NoisyLabels:
    """Another stream's pairs, with the label of a share of them reversed: a stream that wraps a stream."""

    def __init__(self, stream: PairStream, *, share: float, seed: int) -> None:
        self.stream, self.share, self.seed, self.draws = stream, share, seed, 0

    def draw(self, n: int, sampler: Sampler) -> list[Pair]:
        rng = np.random.default_rng(derive(self.seed, "noisy labels", self.draws))
        self.draws += 1
        flipped = rng.random(n) < self.share
        pairs = self.stream.draw(n, sampler)
        return [replace(p, p_chosen=1 - p.p_chosen) if flip else p for p, flip in zip(pairs, flipped, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        return {"draws": self.draws, "stream": self.stream.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.draws = int(state["draws"])
        self.stream.load_state_dict(state["stream"])
