"""Crossed evaluation: one run's checkpoints by other golden judges than the one whose labels its study is about.

A judge that stands in for people labels the data and evaluates the policies, so an arm can win by what is wrong with
it. Here every golden judge of a study, those of its variants included, says how often each checkpoint wins. The
responses are those of the run's own measurement: drawn again from the same policy with the same seed.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from aligngap.pipeline.base import Step, configuration_of
from aligngap.pipeline.judges import FitJudge, ReadyJudge
from aligngap.pipeline.measure import Measure, opponents_of
from aligngap.seeding import derive

if TYPE_CHECKING:
    from aligngap.pipeline.context import Context, Job


class CrossJudge(Step):
    """Win rates of a measured run's checkpoints by each of several judges, against the same opponents' responses."""

    version: ClassVar[int] = 2  # 1 multiplied T5's padding
    kind: Literal["cross-judge"] = "cross-judge"
    measured: Measure
    judges: dict[str, FitJudge | ReadyJudge]

    @cached_property
    def configuration(self) -> Any:
        # Beside the judges, what the responses and opponents are; not what else is measured of them.
        m = self.measured.measurement
        kept = {"prompts": m.prompts, "split": m.split, "opponents": list(m.opponents)}
        own = self.measured.run_.name if self.measured.run_ else self.measured.sft.name
        return {
            "policy": own, "seed": self.measured.seed, "measurement": kept, "labelled": self.measured.held_out.name,
            "opponents": {name: r.name for name, r in self.measured.opponents.items()},
            "judges": configuration_of(self)["judges"],
        }  # fmt: skip

    def run(self, ctx: Context, job: Job) -> dict[str, Any]:
        from aligngap.measurement import wins
        from aligngap.storage.pairs import write_rows
        from aligngap.types import Estimate

        measured, m = self.measured, self.measured.measurement
        prompts = measured.data.prompts(ctx, m.split, m.prompts)
        against = opponents_of(ctx, measured.opponents, measured.held_out, m, prompts)
        judges = {name: judge.open(ctx, job) for name, judge in self.judges.items()}
        steps = [0] if measured.run_ is None else measured.run_.measured_steps
        rows: list[dict[str, Any]] = []
        for number, step in enumerate(steps):
            job.progress(number, len(steps), f"step {step}")
            if measured.run_ is not None and not measured.run_.reached(ctx, step):
                continue
            policy = measured.sft.policy(ctx) if measured.run_ is None else measured.run_.policy(ctx, step)
            own = [r[0] for r in policy.sample(prompts, 1, derive(measured.seed, "measurement"))]
            for opponent in against:
                for name, judge in judges.items():
                    judged = judge.judge(prompts, own, opponent.responses).checked(judge.key, prompts)
                    won = Estimate.mean(wins(judged, len(prompts)))
                    row = {"step": step, "opponent": opponent.name, "evaluator": name}
                    rows.append(row | {"win_rate": won.value, "win_rate_se": won.se})
        write_rows(job.work / "crossed.parquet", rows)
        return {"evaluators": sorted(self.judges), "checkpoints": len(steps)}

    def units(self) -> float:
        checkpoints = 1 if self.measured.run_ is None else len(self.measured.run_.measured_steps)
        m = self.measured.measurement
        return checkpoints * m.prompts * (3.0 + 4.0 * len(self.judges) * len(m.opponents))
