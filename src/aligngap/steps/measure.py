"""What is measured: opponents' responses, checkpoints of a run, and the best-of-n reference."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from aligngap.seeding import derive
from aligngap.settings import Limits, MeasurementSpec
from aligngap.steps.align import Align
from aligngap.steps.base import Step, _plain
from aligngap.steps.data import Data
from aligngap.steps.judges import FitJudge, OracleJudge, ReadyJudge, Relabel, Sft
from aligngap.types import Prompt, Response

if TYPE_CHECKING:
    from aligngap.context import Context
    from aligngap.measure import Opponent


class Responses(Step):
    """One response to each measured prompt by a finished policy: an opponent, sampled once for the whole study."""

    kind: Literal["responses"] = "responses"
    data: Data
    policy: Sft | Align
    measurement: MeasurementSpec
    limits: Limits
    seed: int

    @cached_property
    def configuration(self) -> Any:
        m = self.measurement
        own = {"prompts": m.prompts, "split": m.split, "limits": self.limits.model_dump(), "seed": self.seed}
        return own | {"policy": self.policy.name}  # the rest of the measurement does not change a response

    def run(self, ctx: Context) -> dict[str, Any]:
        from aligngap.storage.pairs import write_rows

        prompts = self.data.prompts(ctx, self.measurement.split, self.measurement.prompts)
        policy = ctx.policy(self.policy)
        answers = policy.sample(prompts, 1, derive(self.seed, "opponent", self.policy.name))
        rows = [
            {"prompt_id": p.id, "ids": list(r[0].ids), "ended": r[0].ended, "text": r[0].text}
            for p, r in zip(prompts, answers, strict=True)
        ]
        write_rows(ctx.work / "responses.parquet", rows)
        return {"prompts": len(rows)}

    def read(self, ctx: Context) -> list[Response]:
        from aligngap.storage.pairs import read_rows

        rows = read_rows(ctx.path(self) / "responses.parquet")
        return [Response(tuple(r["ids"]), bool(r["ended"]), r["text"]) for r in rows]


class Measure(Step):
    """Measure a run's checkpoints (or the SFT policy: `run=None`, step 0) against every opponent."""

    kind: Literal["measure"] = "measure"
    data: Data
    sft: Sft
    run_: Align | None = None
    golden: FitJudge | ReadyJudge
    proxy: FitJudge | ReadyJudge
    oracle: OracleJudge | None = None
    held_out: Relabel
    reference_samples: Responses
    opponents: dict[str, Responses]
    measurement: MeasurementSpec
    seed: int

    @cached_property
    def configuration(self) -> Any:
        found = _plain(self, {})
        for name in ("best_of_n", "best_of_n_prompts"):  # another step's settings
            found["measurement"].pop(name, None)
        return found

    @property
    def label(self) -> str:
        return f"measure ({self.run_.source.arm.behavior})" if self.run_ else "measure (sft)"

    def run(self, ctx: Context) -> dict[str, Any]:
        from aligngap.measure import measure
        from aligngap.storage.pairs import write_rows
        from aligngap.storage.tracking import measured

        m = self.measurement
        prompts = self.data.prompts(ctx, m.split, m.prompts)
        against = opponents_of(ctx, self.opponents, self.held_out, m, prompts)
        judges = {"golden": ctx.judge(self.golden), "proxy": ctx.judge(self.proxy)}
        if self.oracle is not None:
            judges["oracle"] = ctx.judge(self.oracle)
        reference = ctx.policy(self.sft)
        sft_samples = self.reference_samples.read(ctx)[: m.kl_prompts]
        steps = [0] if self.run_ is None else self.run_.measured_steps
        parts: dict[int, Any] = {}
        for number, step in enumerate(steps):
            ctx.progress(number, len(steps), f"step {step}")
            part = ctx.work / f"measured-{step:06d}.json"
            if not part.exists():
                if self.run_ is not None and not self.run_.checkpoint(ctx, step).exists():
                    continue  # the run diverged before this step; its manifest says so
                policy = reference if self.run_ is None else ctx.policy(self.run_, step)
                result = measure(
                    policy, reference, prompts=prompts, opponents=against, judges=judges,
                    held_out=self.held_out.pairs(ctx, "test")[: m.pairs], reference_samples=sft_samples,
                    seed=derive(self.seed, "measurement"), samples=m.samples, batch=m.batch,
                )  # fmt: skip
                ctx.write_json(part, {"rows": result.rows, "per_prompt": result.per_prompt, "samples": result.samples})
            parts[step] = json.loads(part.read_text())
            ctx.track(measured(parts[step]["rows"]), step)
        for table in ("rows", "per_prompt", "samples"):
            rows = [{"step": step, **row} for step, read in parts.items() for row in read[table]]
            if rows:
                write_rows(ctx.work / f"{table}.parquet", rows)
        return {"steps": list(parts)}

    def units(self) -> float:
        checkpoints = 1 if self.run_ is None else len(self.run_.measured_steps)
        return checkpoints * (self.measurement.prompts * 13.0 + self.measurement.pairs)


class BestOfN(Step):
    """The reference that needs no training: best-of-n of the SFT policy as the proxy ranks it."""

    kind: Literal["best-of-n"] = "best-of-n"
    data: Data
    sft: Sft
    golden: FitJudge | ReadyJudge
    proxy: FitJudge | ReadyJudge
    opponents: dict[str, Responses]
    labelled: Relabel
    measurement: MeasurementSpec
    seed: int

    @cached_property
    def configuration(self) -> Any:
        m = self.measurement
        kept = {"n": m.best_of_n, "prompts": m.best_of_n_prompts, "of": m.prompts, "split": m.split}
        return _plain(self, {}) | {"measurement": kept | {"opponents": list(m.opponents)}}

    def run(self, ctx: Context) -> dict[str, Any]:
        from aligngap.best_of_n import best_of_n
        from aligngap.storage.pairs import write_rows

        m = self.measurement
        prompts = self.data.prompts(ctx, m.split, m.prompts)
        against = opponents_of(ctx, self.opponents, self.labelled, m, prompts)
        prompts = prompts[: m.best_of_n_prompts]
        rows = best_of_n(
            ctx.policy(self.sft), ctx.judge(self.proxy), ctx.judge(self.golden), prompts,
            [type(o)(o.name, o.responses[: len(prompts)]) for o in against], n=m.best_of_n, seed=self.seed,
        )  # fmt: skip
        write_rows(ctx.work / "best_of_n.parquet", rows)
        return {"prompts": len(prompts), "n": m.best_of_n}

    def units(self) -> float:
        m = self.measurement
        answers = m.best_of_n * min(m.best_of_n_prompts, m.prompts)
        return answers * (m.best_of_n - 1.0 + 4.0 * len(m.opponents))  # each against the others, and the opponents


def opponents_of(
    ctx: Context, sampled: dict[str, Responses], labelled: Relabel, m: MeasurementSpec, prompts: Sequence[Prompt]
) -> list[Opponent]:
    """The opponents and their responses to the measured prompts, one each."""
    from aligngap.measure import Opponent

    against = [Opponent(name, responses.read(ctx)) for name, responses in sampled.items()]
    if "chosen" in m.opponents:
        # The golden winner of each prompt's first pair: data responses as an opponent.
        best = {p.prompt.id: p.chosen for p in reversed(labelled.pairs(ctx, m.split))}
        against.append(Opponent("chosen", [best[p.id] for p in prompts]))
    return against
