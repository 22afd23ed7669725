"""The judge that is never wrong: the true preference of a task that has one, such as the sandbox.

It is for evaluation and for controls (online with true labels); no arm of the paper sees it. It reads text only, so
it judges whatever a policy writes. It knows a task by what it asks of it, not by its class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from aligngap.types import Judgement, Prompt, Response


class TrueWorld(Protocol):
    """What the oracle asks of a world: reward and preference [N] of text, given whether each response ended."""

    def reward(
        self, prompts: Sequence[str], responses: Sequence[str], ended: NDArray[np.bool_] | None = None
    ) -> NDArray[np.float64]: ...

    def preference(
        self,
        prompts: Sequence[str],
        a: Sequence[str],
        b: Sequence[str],
        a_ended: NDArray[np.bool_] | None = None,
        b_ended: NDArray[np.bool_] | None = None,
    ) -> NDArray[np.float64]: ...


class TrueTask(Protocol):
    """A task with a known truth per seed; `aligngap.tasks.sandbox.Sandbox` is one."""

    def fingerprint(self) -> str: ...

    def world(self, seed: int) -> TrueWorld: ...


class SandboxOracle:
    """The true preference of the sandbox of this seed: sure answers if its rater is hard, else probabilities.

    It has no position bias (`backward = 1 - forward`), and equal text, or equal reward, is a tie.
    """

    def __init__(self, task: TrueTask, seed: int) -> None:
        self.world = task.world(seed)
        self._key = f"oracle-{task.fingerprint()}-{seed}"

    @property
    def key(self) -> str:
        return self._key

    def judge(self, prompts: Sequence[Prompt], a: Sequence[Response], b: Sequence[Response]) -> Judgement:
        """p(a beats b) [B], from the text of the responses and whether they ended."""
        p = self.world.preference(_texts(prompts), _texts(a), _texts(b), _have_ended(a), _have_ended(b))
        return Judgement(forward=p, backward=1 - p)

    def reward(self, prompts: Sequence[Prompt], responses: Sequence[Response]) -> NDArray[np.float64]:
        """True reward [B]."""
        return self.world.reward(_texts(prompts), _texts(responses), _have_ended(responses))


def _texts(items: Sequence[Prompt] | Sequence[Response]) -> list[str]:
    return [item.text for item in items]


def _have_ended(responses: Sequence[Response]) -> NDArray[np.bool_]:
    return np.array([y.ended for y in responses], dtype=bool)
