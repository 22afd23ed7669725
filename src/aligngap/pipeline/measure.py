"""What is measured: opponents' responses, checkpoints of a run, and the best-of-n reference."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from aligngap.pipeline.align import Align
from aligngap.pipeline.base import Step, configuration_of
from aligngap.pipeline.data import Data
from aligngap.pipeline.judges import FitJudge, OracleJudge, ReadyJudge, Relabel
from aligngap.pipeline.reference import ReferenceSamples
from aligngap.pipeline.sft import Sft
from aligngap.seeding import derive
from aligngap.settings import Limits, MeasurementSpec
from aligngap.types import Damaged, Judge, Prompt, Response

if TYPE_CHECKING:
    from aligngap.measurement import Opponent
    from aligngap.pipeline.context import Context, Job


class Responses(Step):
    """One response to each measured prompt by a finished policy: an opponent, sampled once for the whole study.

    With a judge in `picked_by` it is the best of `of` responses, as that judge ranks them in a round
    robin; of those that tie for it the first.
    """

    version: ClassVar[int] = 3  # 2 multiplied T5's padding, 1 sampled and attended by transformers
    kind: Literal["responses"] = "responses"
    data: Data
    policy: Sft | Align
    measurement: MeasurementSpec
    limits: Limits
    seed: int
    picked_by: FitJudge | ReadyJudge | None = None
    of: int = 1

    @cached_property
    def configuration(self) -> Any:
        m = self.measurement
        own: dict[str, Any] = {"prompts": m.prompts, "split": m.split, "limits": self.limits.model_dump()}
        own |= {"seed": self.seed, "policy": self.policy.name}  # the rest of the measurement does not change a response
        return own if self.picked_by is None else own | {"picked_by": self.picked_by.name, "of": self.of}

    def run(self, ctx: Context, job: Job) -> dict[str, Any]:
        from aligngap.storage.pairs import write_rows

        prompts = self.data.prompts(ctx, self.measurement.split, self.measurement.prompts)
        policy = self.policy.policy(ctx)
        drawn = policy.sample(prompts, self.of, derive(self.seed, "opponent", self.policy.name))
        answers = drawn if self.picked_by is None else best_of(self.picked_by.open(ctx, job), prompts, drawn)
        rows = [
            {"prompt_id": p.id, "ids": list(r[0].ids), "ended": r[0].ended, "text": r[0].text}
            for p, r in zip(prompts, answers, strict=True)
        ]
        write_rows(job.work / "responses.parquet", rows)
        others = sum(
            policy.encode_response(r[0].text, r[0].ended, p.text) != r[0].ids
            for p, r in zip(prompts, answers, strict=True)
        )
        return {"prompts": len(rows), "of_other_tokens_when_read_from_their_text": others}

    def read(self, ctx: Context) -> list[Response]:
        from aligngap.storage.pairs import read_rows

        rows = read_rows(self.made(ctx, "responses.parquet"))
        return [Response(tuple(r["ids"]), bool(r["ended"]), r["text"]) for r in rows]


def best_of(judge: Judge, prompts: Sequence[Prompt], drawn: Sequence[Sequence[Response]]) -> list[list[Response]]:
    """Of the responses to each prompt the one with the highest mean probability of beating the others, in a list of
    one."""
    from aligngap.streams import round_robin

    best = round_robin(judge, prompts, drawn).argmax(axis=1)
    return [[row[int(i)]] for row, i in zip(drawn, best, strict=True)]


class Measure(Step):
    """Measure a run's checkpoints (or the SFT policy: `run=None`, step 0) against every opponent."""

    #: 3 multiplied T5's padding, 2 lacked the gap's three quantities, 1 sampled and attended by transformers
    version: ClassVar[int] = 4
    kind: Literal["measure"] = "measure"
    data: Data
    sft: Sft
    run_: Align | None = None
    golden: FitJudge | ReadyJudge
    proxy: FitJudge | ReadyJudge
    oracle: OracleJudge | None = None
    held_out: Relabel
    reference_samples: Responses
    reference_set: ReferenceSamples | None = None  # behind rho and the ceiling; None: they are not measured
    opponents: dict[str, Responses]
    measurement: MeasurementSpec
    seed: int

    @cached_property
    def configuration(self) -> Any:
        found = configuration_of(self)
        others = ("best_of_n", "best_of_n_prompts", "reference_prompts", "reference_samples", "reference_opponents")
        for name in others:  # other steps' settings
            found["measurement"].pop(name, None)
        return found

    @property
    def label(self) -> str:
        return f"measure ({self.run_.source.arm.behavior})" if self.run_ else "measure (sft)"

    def run(self, ctx: Context, job: Job) -> dict[str, Any]:
        from aligngap.measurement import measure
        from aligngap.storage.checksums import unseal, write_sealed
        from aligngap.storage.pairs import write_rows
        from aligngap.storage.tracking import measured

        m = self.measurement
        prompts = self.data.prompts(ctx, m.split, m.prompts)
        against = opponents_of(ctx, self.opponents, self.held_out, m, prompts)
        judges = {"golden": self.golden.open(ctx, job), "proxy": self.proxy.open(ctx, job)}
        if self.oracle is not None:
            judges["oracle"] = self.oracle.open(ctx, job)
        reference = self.sft.policy(ctx)
        sft_samples = self.reference_samples.read(ctx)[: m.kl_prompts]
        reference_set = None if self.reference_set is None else self.reference_set.read(ctx, m.reference_ratios)
        steps = [0] if self.run_ is None else self.run_.measured_steps
        parts: dict[int, Any] = {}
        for number, step in enumerate(steps):
            job.progress(number, len(steps), f"step {step}")
            part = job.work / f"measured-{step:06d}.json"
            of = f"{self.name} step {step}"
            tables = whole(part, of)
            if tables is None:
                if self.run_ is not None and not self.run_.reached(ctx, step):
                    continue  # the run diverged before this step; its manifest says so
                policy = reference if self.run_ is None else self.run_.policy(ctx, step)
                result = measure(
                    policy, reference, prompts=prompts, opponents=against, judges=judges,
                    held_out=self.held_out.pairs(ctx, "test")[: m.pairs], reference_samples=sft_samples,
                    reference_set=reference_set, seed=derive(self.seed, "measurement"), samples=m.samples,
                    batch=m.batch,
                )  # fmt: skip
                found = {"rows": result.rows, "per_prompt": result.per_prompt, "samples": result.samples}
                write_sealed(part, {"of": of, **found})
                tables = unseal(part)
            parts[step] = tables
            job.track(measured(parts[step]["rows"]), step)
        for table in ("rows", "per_prompt", "samples"):
            rows = [{"step": step, **row} for step, read in parts.items() for row in read[table]]
            if rows:
                write_rows(job.work / f"{table}.parquet", rows)
        return {"steps": list(parts)}

    def units(self) -> float:
        checkpoints = 1 if self.run_ is None else len(self.run_.measured_steps)
        m = self.measurement
        ratios = min(m.reference_samples, m.reference_ratios) * min(m.reference_prompts, m.prompts)
        return checkpoints * (m.prompts * 13.0 + m.pairs + ratios)


def whole(part: Path, of: str) -> dict[str, Any] | None:
    """The tables of a checkpoint that an earlier attempt has measured; None if the file holds none, or another's."""
    from aligngap.storage.checksums import unseal

    try:
        found = unseal(part)
    except Damaged:
        return None
    return found if found.get("of") == of else None


def opponents_of(
    ctx: Context, sampled: dict[str, Responses], labelled: Relabel, m: MeasurementSpec, prompts: Sequence[Prompt]
) -> list[Opponent]:
    """The opponents and their responses to the measured prompts, one each."""
    from aligngap.measurement import Opponent

    against = [Opponent(name, responses.read(ctx)) for name, responses in sampled.items()]
    if "chosen" in m.opponents:
        # The golden winner of each prompt's first pair: data responses as an opponent.
        best = {p.prompt.id: p.chosen for p in reversed(labelled.pairs(ctx, m.split))}
        against.append(Opponent("chosen", [best[p.id] for p in prompts]))
    return against
