"""Classifiers along a recorded online run: the proxy, finished policies and the writer itself, on the run's own pairs.

arXiv 2405.08448, Figure 6 and section 5.3.3 (App. E): near each checkpoint the pairs that the run wrote are labelled by
the golden model, and everybody's preference is held against that. The proxy's are the labels the run learned from; a
policy's is the sign of its log-ratio margin; the writer is the run's own policy at that checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from ..types import Pair
from .align import Align
from .base import Step
from .judges import FitJudge

if TYPE_CHECKING:
    from ..context import Context


def near(pairs: Sequence[Pair], start: int, count: int) -> list[Pair]:
    """`count` consecutive pairs from `start` on, or the last that there are."""
    start = max(0, min(start, len(pairs) - count))
    return list(pairs[start : start + count])


def agreement(labelled: Sequence[Pair], truth: Sequence[Pair]) -> float:
    """How often two labellings of the same pairs prefer the same response; a tie in the first counts one half."""
    same = [
        0.5 if a.p_chosen == 0.5 else float(a.chosen.ids == b.chosen.ids)
        for a, b in zip(labelled, truth, strict=True)
        if b.p_chosen != 0.5
    ]
    return sum(same) / max(len(same), 1)


class Probe(Step):
    """Accuracy against the golden model on pairs of a recorded run, near each of its checkpoints."""

    kind: Literal["probe"] = "probe"
    recording: Align
    policies: dict[str, Align]
    golden: FitJudge
    pairs: int = Field(ge=2)

    def run(self, ctx: Context) -> dict[str, Any]:
        from ..measure import classify
        from ..streams import Relabelled, Replay

        recorded, width = self.recording.recorded(ctx), self.recording.optimization.batch
        golden = ctx.judge(self.golden)
        finished = {name: ctx.policy(run) for name, run in self.policies.items()}
        steps = self.recording.measured_steps
        found: dict[str, Any] = {}
        for number, step in enumerate(steps):
            ctx.progress(number, len(steps), f"step {step}")
            written = near(recorded, step * width, self.pairs)
            stream = Relabelled(Replay(written, order="in-order", batch=width, seed=0), golden)
            truth = stream.draw(len(written), ctx.policy(self.recording, step))
            found[f"proxy at step {step}"] = agreement(written, truth)
            for name, policy in {**finished, "writer": ctx.policy(self.recording, step)}.items():
                found[f"{name} at step {step}"] = float(classify(policy, truth)["accuracy"])
            found[f"pairs at step {step}"] = sum(p.p_chosen != 0.5 for p in truth)
        return found

    def units(self) -> float:
        return 2.0 * len(self.recording.measured_steps) * self.pairs * (len(self.policies) + 3)
