"""The rollout role: whose code generates what the policy writes in training, and how far its numbers are from ours.

A stream asks a `Sampler` and knows no more. A *rollout* makes that sampler from the policy: `Transformers` hands out
the policy itself, `vllm.Vllm` an engine that holds a copy of the weights. Such a copy is `Following`: it takes the
weights over whenever the policy's key says that they are others, and holds the engine's log-probabilities of what it
wrote against the trainer's. Training reads the trainer's only; the difference is measured, logged and reported.

What this module leaves out: measurement, opponents and fixed sets, which the policy's own model always samples, and how
it does so (`decoding.py`, `sampling.py`).
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

import torch

from aligngap.models.batch import Ids, collate
from aligngap.registry import get
from aligngap.types import Prompt, Response, Sampler

if TYPE_CHECKING:
    from aligngap.models.policy import Policy
    from aligngap.settings import RolloutSpec

COMPARED = 64  #: responses of each call whose log-probabilities are held against the trainer's


@dataclass(frozen=True)
class Generated:
    """A response as an engine wrote it: ids up to the EOS that closes it, and the engine's log pi of each token."""

    ids: tuple[int, ...]
    logps: tuple[float, ...]


class Engine(Protocol):
    """A copy of the policy that writes. What any engine must do: `tests/contracts/test_rollout_engines.py`."""

    name: str  # with its version, for the record of where a run's pairs come from

    def sync(self, policy: Policy) -> None:
        """Take over the policy's weights as they stand; nothing computed under older ones may be used again."""
        ...

    def generate(self, prompts: Sequence[Ids], n: int, max_new_tokens: int, seed: int) -> list[list[Generated]]:
        """n responses to each prompt from the whole distribution at temperature 1: a function of weights and arguments.

        A response ends with the first of the policy's `end_ids` or at `max_new_tokens`, whichever comes first.
        """
        ...

    def close(self) -> None:
        """Give back what the engine holds."""
        ...


class Rollout(Protocol):
    """A way to generate, by its registered name; made from the study's `recipe.rollouts`."""

    spec: RolloutSpec

    def check(self, config: Any) -> None:
        """Raise AligngapError if a model of this transformers configuration cannot be served here. No weights yet."""
        ...

    def open(self, policy: Policy, prompt_tokens: int) -> Sampler:
        """The sampler of a run's policy, for prompts of at most so many tokens."""
        ...


class Following:
    """A sampler whose responses an engine writes, with the policy's weights as of its present key.

    A stream that writes `sync_every` batches at once asks under one key, so the weights cross over once for all.
    """

    def __init__(self, policy: Policy, engine: Engine) -> None:
        self.policy, self.engine = policy, engine
        self.holds: str | None = None  # the key of the weights that the engine has
        self.gaps: list[torch.Tensor] = []  # |engine - trainer| of every compared token since last told

    @property
    def key(self) -> str:
        return self.policy.key

    @property
    def written_by(self) -> str:
        return self.engine.name

    def sample(self, prompts: Sequence[Prompt], n: int, seed: int) -> list[list[Response]]:
        if self.holds != self.policy.key:
            self.engine.sync(self.policy)
            self.holds = self.policy.key
        written = self.engine.generate([p.ids for p in prompts], n, self.policy.response_tokens, seed)
        rows = ((p.ids, g) for p, row in zip(prompts, written, strict=True) for g in row)
        self.gaps.append(gaps(self.policy, list(islice(rows, COMPARED))))
        return [[self.policy.response(g.ids, p.text) for g in row] for p, row in zip(prompts, written, strict=True)]

    def score(self, prompts: Sequence[Prompt], responses: Sequence[Response]) -> list[float]:
        """The trainer's log-probabilities, as everywhere in training."""
        return self.policy.score(prompts, responses)

    def mismatch(self) -> dict[str, float]:
        """Mean and largest |engine - trainer| log-probability of a token since last asked, nats; nan if none."""
        gap = torch.cat([*self.gaps, torch.zeros(0)])
        self.gaps = []
        mean, most = (float(gap.mean()), float(gap.max())) if len(gap) else (math.nan, math.nan)
        return {"mismatch_nats": mean, "mismatch_max_nats": most, "mismatch_tokens": len(gap)}

    def close(self) -> None:
        self.engine.close()


@torch.no_grad()
def gaps(policy: Policy, rows: Sequence[tuple[Ids, Generated]]) -> torch.Tensor:
    """|log pi by the engine - log pi by the trainer| of every token [M] of the given responses, on CPU, float32."""
    batch = collate([ids for ids, _ in rows], [g.ids for _, g in rows])
    theirs = torch.tensor([x for _, g in rows for x in g.logps], dtype=torch.float32)
    return (policy.token_logps(batch).float().cpu() - theirs).abs()


def rollout_of(spec: RolloutSpec) -> Rollout:
    """The rollout that a study names."""
    made: Rollout = get("rollouts", spec.engine)(spec)
    return made


@contextmanager
def opened(spec: RolloutSpec, policy: Policy, prompt_tokens: int) -> Iterator[Sampler]:
    """A run's sampler, closed after the run if there is something to close."""
    sampler = rollout_of(spec).open(policy, prompt_tokens)
    try:
        yield sampler
    finally:
        if isinstance(sampler, Following):
            sampler.close()


def installed(module: str) -> Exception | None:
    """None if a module can be imported, else why not."""
    try:
        importlib.import_module(module)
    except (ImportError, OSError) as error:
        return error
    return None


@dataclass(frozen=True)
class Transformers:
    """The default rollout: the policy's own model writes, so that there is nothing to copy and nothing to compare."""

    spec: RolloutSpec

    def check(self, config: Any) -> None:
        """Every policy can sample itself."""

    def open(self, policy: Policy, prompt_tokens: int) -> Policy:
        return policy
