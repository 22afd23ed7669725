"""The reference's own samples with their win rates, made once a seed: what ceiling and first-order law stand on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from aligngap.pipeline.base import Step, configuration_of
from aligngap.pipeline.data import Data
from aligngap.pipeline.judges import FitJudge, OracleJudge, ReadyJudge
from aligngap.pipeline.sft import Sft
from aligngap.seeding import derive
from aligngap.settings import Limits, MeasurementSpec
from aligngap.types import Judge, Judgement, Prompt, Response

if TYPE_CHECKING:
    import numpy as np

    from aligngap.measurement import ReferenceSet
    from aligngap.pipeline.context import Context, Job

#: comparisons handed to a judge at once: bounds memory, changes no answer beyond a judge's own batching
AT_ONCE = 65536
#: what says of prompts [B] and two responses to each which is better
Asking = Callable[[Sequence[Prompt], Sequence[Response], Sequence[Response]], Judgement]


def asking(judge: Judge) -> Asking:
    """A judge's checked answers."""
    return lambda prompts, a, b: judge.judge(prompts, a, b).checked(judge.key, prompts)


def win_shares(ask: Asking, prompts: Sequence[Prompt], answers: Sequence[Sequence[Response]], n: int) -> np.ndarray:
    """Win rates [K, n, 2] of the first n answers to each of K prompts, against the halves of the answers that follow.

    Everything is asked at once: hand it at most `AT_ONCE` comparisons.
    """
    import numpy as np

    others = len(answers[0]) - n
    asked = [p for p in prompts for _ in range(n * others)]
    first = [r for a in answers for r in a[:n] for _ in range(others)]
    second = [r for a in answers for _ in range(n) for r in a[n:]]
    return np.asarray(ask(asked, first, second).hard.reshape(len(prompts), n, 2, others // 2).mean(-1))


class ReferenceSamples(Step):
    """Samples of the SFT policy to the first measured prompts, each held against further ones by every evaluator.

    Neither samples nor opponents are those of another step: rho, the ceiling and an arm's gain share no response.
    """

    version: ClassVar[int] = 2  # 1 multiplied T5's padding
    kind: Literal["reference-samples"] = "reference-samples"
    data: Data
    sft: Sft
    golden: FitJudge | ReadyJudge
    oracle: OracleJudge | None = None
    measurement: MeasurementSpec
    limits: Limits
    seed: int

    @cached_property
    def configuration(self) -> Any:
        m = self.measurement
        size = [m.reference_prompts, m.reference_samples, m.reference_opponents]
        return configuration_of(self) | {"measurement": {"of": m.prompts, "split": m.split, "size": size}}

    def run(self, ctx: Context, job: Job) -> dict[str, Any]:
        from aligngap.storage.pairs import write_rows
        from aligngap.types import chunks

        m = self.measurement
        n, half = m.reference_samples, m.reference_opponents // 2
        prompts = self.data.prompts(ctx, m.split, m.prompts)[: m.reference_prompts]
        judges = {"golden": self.golden.open(ctx, job)}
        if self.oracle is not None:
            judges["oracle"] = self.oracle.open(ctx, job)
        policy = self.sft.policy(ctx)
        answers = policy.sample(prompts, n + 2 * half, derive(self.seed, "reference samples"))
        rows: list[dict[str, Any]] = []
        for part in chunks(list(zip(prompts, answers, strict=True)), max(1, AT_ONCE // (n * 2 * half))):
            job.progress(len(rows), len(prompts), "judging")
            mine = [p for p, _ in part for _ in range(n)]
            logps = policy.logps_of([p.ids for p in mine], [r.ids for _, a in part for r in a[:n]])
            asked, written = [p for p, _ in part], [a for _, a in part]
            won = {name: win_shares(asking(j), asked, written, n) for name, j in judges.items()}
            for i, (p, a) in enumerate(part):
                row: dict[str, Any] = {"prompt_id": p.id, "ids": [list(r.ids) for r in a[:n]]}
                row["logps"] = logps[i * n : (i + 1) * n].double().tolist()
                for name, share in won.items():
                    row |= {f"{name}_first": share[i, :, 0].tolist(), f"{name}_second": share[i, :, 1].tolist()}
                rows.append(row)
        write_rows(job.work / "samples.parquet", rows)
        return {"prompts": len(rows), "samples": n, "opponents": 2 * half}

    def read(self, ctx: Context, ratios: int) -> ReferenceSet:
        """The samples with their win rates, read once a process; the first `ratios` of each prompt's as token ids."""
        import numpy as np

        from aligngap.measurement import ReferenceSet
        from aligngap.stats.quantities import ReferenceWins
        from aligngap.storage.pairs import read_rows

        def load() -> ReferenceSet:
            rows = read_rows(self.made(ctx, "samples.parquet"))
            wins = {
                name: ReferenceWins(*(np.array([r[f"{name}_{side}"] for r in rows]) for side in ("first", "second")))
                for name in ("golden", "oracle")
                if f"{name}_first" in rows[0]
            }
            ids = [[tuple(x) for x in r["ids"][:ratios]] for r in rows]
            return ReferenceSet(ids, np.array([r["logps"][:ratios] for r in rows]), wins)

        return ctx.cached((self.name, ratios), load)

    def units(self) -> float:
        m = self.measurement
        return float(min(m.reference_prompts, m.prompts) * m.reference_samples * (1 + 2 * m.reference_opponents))
