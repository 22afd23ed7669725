"""An engine with nothing clever, and a rollout of it that a study can name: what the contract suite is tried on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from aligngap.models.batch import Ids
from aligngap.models.policy import Policy
from aligngap.models.rollout import Following, Generated
from aligngap.seeding import derive
from aligngap.settings import RolloutSpec


class Plain:
    """A copy of the weights, no cache, one prompt at a time, a generator per prompt."""

    name = "plain 1"
    temperature = 1.0
    scored_at = 1.0

    def sync(self, policy: Policy) -> None:
        self.copy = policy.copy("copy")

    @torch.no_grad()
    def generate(self, prompts: Sequence[Ids], n: int, max_new_tokens: int, seed: int) -> list[list[Generated]]:
        return [self.written(ids, n, max_new_tokens, derive(seed, number)) for number, ids in enumerate(prompts)]

    def written(self, ids: Ids, n: int, tokens: int, seed: int) -> list[Generated]:
        generator = torch.Generator().manual_seed(seed)
        rows, logps = torch.tensor([list(ids)] * n), torch.zeros((n, 0))
        for _ in range(tokens):
            scores = self.copy.model(input_ids=rows).logits[:, -1].float()
            new = torch.multinomial(torch.softmax(scores / self.temperature, -1), 1, generator=generator)
            rows = torch.cat([rows, new], 1)
            logps = torch.cat([logps, torch.log_softmax(scores / self.scored_at, -1).gather(1, new)], 1)
        return [self.cut(row, logp) for row, logp in zip(rows[:, len(ids) :].tolist(), logps.tolist(), strict=True)]

    def cut(self, row: list[int], logps: list[float]) -> Generated:
        end = next((i + 1 for i, token in enumerate(row) if token in self.copy.end_ids), len(row))
        return Generated(tuple(row[:end]), tuple(logps[:end]))

    def close(self) -> None:
        del self.copy


@dataclass(frozen=True)
class PlainRollout:
    """The plain engine, by name."""

    spec: RolloutSpec
    made: ClassVar[list[Plain]] = []

    def check(self, config: Any) -> None: ...

    def open(self, policy: Policy, prompt_tokens: int) -> Following:
        self.made.append(Plain())
        return Following(policy, self.made[-1])
