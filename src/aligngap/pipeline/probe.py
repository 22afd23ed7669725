"""Classifiers along a recorded online run: the proxy, finished policies and the writer itself, on the run's own pairs.

arXiv 2405.08448, Figure 6 and section 5.3.3 (App. E): near each checkpoint the pairs that the run wrote are labelled by
the golden model, and everybody's preference is held against that. The proxy's are the labels the run learned from; a
policy's is the sign of its log-ratio margin; the writer is the run's own policy at that checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from aligngap.pipeline.align import Align
from aligngap.pipeline.base import Step
from aligngap.pipeline.judges import FitJudge, ReadyJudge
from aligngap.types import Estimate, Pair

if TYPE_CHECKING:
    from aligngap.pipeline.context import Context, Job


def near(pairs: Sequence[Pair], start: int, count: int) -> list[Pair]:
    """`count` consecutive pairs from `start` on, or the last that there are."""
    start = max(0, min(start, len(pairs) - count))
    return list(pairs[start : start + count])


def agreement(labelled: Sequence[Pair], truth: Sequence[Pair]) -> Estimate:
    """How often two labellings of the same pairs prefer the same response; a tie in the first counts one half, one in
    the second leaves the pair out."""
    same = [
        0.5 if a.p_chosen == 0.5 else float(a.chosen.ids == b.chosen.ids)
        for a, b in zip(labelled, truth, strict=True)
        if b.p_chosen != 0.5
    ]
    return Estimate.mean(same, "mean over pairs")


class Probe(Step):
    """Accuracy against the golden model on pairs of a recorded run, near each of its checkpoints."""

    version: ClassVar[int] = 3  # 2 multiplied T5's padding, 1 left no table
    kind: Literal["probe"] = "probe"
    recording: Align
    policies: dict[str, Align]
    golden: FitJudge | ReadyJudge
    pairs: int = Field(ge=2)

    def run(self, ctx: Context, job: Job) -> dict[str, Any]:
        from aligngap.measurement import classify
        from aligngap.storage.pairs import write_rows
        from aligngap.streams import Relabelled, Replay

        recorded, width = self.recording.recorded(ctx), self.recording.optimization.batch
        golden = self.golden.open(ctx, job)
        finished = {name: run.policy(ctx) for name, run in self.policies.items()}
        own = next((name for name, run in self.policies.items() if run.name == self.recording.name), "")
        steps = self.recording.measured_steps
        rows: list[dict[str, Any]] = []
        for number, step in enumerate(steps):
            job.progress(number, len(steps), f"step {step}")
            written = near(recorded, step * width, self.pairs)
            writer = self.recording.policy(ctx, step)
            stream = Relabelled(Replay(written, order="in-order", batch=width, seed=0), golden)
            truth = stream.draw(len(written), writer)
            proxy = agreement(written, truth)
            held = [("proxy", "", proxy.value, proxy.se)]
            for role, arm, policy in [("writer", own, writer), *(("final", a, p) for a, p in finished.items())]:
                right = classify(policy, truth)
                held.append((role, arm, right["accuracy"], right["accuracy_se"]))
            counts = {"pairs": proxy.n, "ties": len(truth) - proxy.n}
            names = ("classifier", "arm", "accuracy", "accuracy_se")
            rows += [{"step": step, **dict(zip(names, found, strict=True)), **counts} for found in held]
        write_rows(job.work / "probe.parquet", rows)
        return {"rows": len(rows)}

    def units(self) -> float:
        return 2.0 * len(self.recording.measured_steps) * self.pairs * (len(self.policies) + 3)


class JudgesProbe(Step):
    """Other judges held against the golden model on the same pairs as `Probe`: what else the run might have heard."""

    kind: Literal["judges-probe"] = "judges-probe"
    recording: Align
    judges: dict[str, FitJudge | ReadyJudge]
    golden: FitJudge | ReadyJudge
    pairs: int = Field(ge=2)

    def run(self, ctx: Context, job: Job) -> dict[str, Any]:
        from aligngap.storage.pairs import write_rows
        from aligngap.streams import label

        recorded, width = self.recording.recorded(ctx), self.recording.optimization.batch
        steps = self.recording.measured_steps
        rows: list[dict[str, Any]] = []
        for number, step in enumerate(steps):
            written = near(recorded, step * width, self.pairs)
            asked = [p.prompt for p in written], [p.chosen for p in written], [p.rejected for p in written]
            truth = label(*asked, self.golden.open(ctx, job), writer="")
            for at, (name, judge) in enumerate(self.judges.items()):
                job.progress(number * len(self.judges) + at, len(steps) * len(self.judges), f"step {step}")
                found = agreement(label(*asked, judge.open(ctx, job), writer=""), truth)
                right = {"accuracy": found.value, "accuracy_se": found.se}
                counts = {"pairs": found.n, "ties": len(truth) - found.n}
                rows.append({"step": step, "classifier": "judge", "arm": name, **right, **counts})
        write_rows(job.work / "probe.parquet", rows)
        return {"rows": len(rows)}

    def units(self) -> float:
        return 4.0 * len(self.recording.measured_steps) * self.pairs * (len(self.judges) + 1)
