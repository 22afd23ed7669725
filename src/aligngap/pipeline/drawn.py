"""Samples of the reference behind rho, ceiling and efficiency of given checkpoints: drawn, judged, and read, in steps.

A study's `ReferenceSamples` does this in one step. Here other people's checkpoints come one by one and judges change:
another judge draws nothing anew, another checkpoint asks no judge, and nothing of it samples a checkpoint again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from aligngap.pipeline.base import Step
from aligngap.pipeline.checkpoints import PromptSet, Weights, ask, open_ready
from aligngap.pipeline.measure import whole
from aligngap.pipeline.reference import Asking, win_shares
from aligngap.seeding import derive
from aligngap.settings import JudgeSpec
from aligngap.types import AligngapError, Prompt, Response, chunks

if TYPE_CHECKING:
    from aligngap.measurement import ReferenceSet
    from aligngap.models.policy import Policy
    from aligngap.pipeline.context import Context, Job
    from aligngap.stats.quantities import ReferenceWins

SAVED = 4096  #: comparisons that a judge is asked before its answers are saved
SAMPLES, OPPONENTS = 4, 8  #: where nothing else is said: samples a prompt, and those each is held against
MOST_PROMPTS = 64  #: the most prompts that are sampled further where nothing else is said
RATIOS = 16  #: samples a prompt that every checkpoint gives a log-ratio; the ceiling needs none of them


@dataclass(frozen=True)
class Drawn:
    """Samples of the reference to each of K prompts, the opponents they are held against, and log-probabilities.

    answers [K][n + opponents], the samples first; logps [K, r] of the first r <= n under the reference, nats.
    """

    answers: Sequence[Sequence[Response]]
    samples: int
    logps: np.ndarray

    def with_wins(self, wins: ReferenceWins | None) -> ReferenceSet:
        """What rho and the ceiling are computed from, with the win rates by the first judge; None: it was not asked."""
        from aligngap.measurement import ReferenceSet

        ids = [[r.ids for r in row[: self.logps.shape[1]]] for row in self.answers]
        return ReferenceSet(ids, self.logps, {} if wins is None else {"golden": wins})


def check_size(samples: int | None, prompts: int | None = None, opponents: int = 2) -> None:
    """Refuse numbers of which nothing can be estimated."""
    if samples is not None and (samples < 0 or samples == 1):
        what = "0 leaves rho and efficiency out, and they take 2 samples a prompt or more"
        raise AligngapError(f"--reference-samples {samples}: {what}")
    if prompts is not None and prompts < 2:
        raise AligngapError(f"reference_prompts: must be 2 or more, not {prompts}")
    if opponents < 2 or opponents % 2:
        raise AligngapError(f"reference_opponents: must be an even number of 2 or more, not {opponents}")


def sampled_prompts(size: int) -> int:
    """The number of prompts that are sampled further of `size` measured ones: a quarter, at most 64."""
    return min(MOST_PROMPTS, max(2, (size + 3) // 4))


def draw_reference(
    reference: Policy, prompts: Sequence[Prompt], samples: int, opponents: int, *, seed: int, batch: int
) -> Drawn:
    """Sample the reference on every prompt, at most `batch` responses at once: a function of its arguments."""
    answers: list[list[Response]] = [[] for _ in prompts]
    for number, part in enumerate(chunks(range(samples + opponents), batch)):
        drawn = reference.sample(prompts, len(part), derive(seed, "reference samples", number), batch_size=batch)
        for row, more in zip(answers, drawn, strict=True):
            row += more
    kept = min(samples, RATIOS)
    asked = [p.ids for p in prompts for _ in range(kept)]
    logps = reference.logps_of(asked, [r.ids for row in answers for r in row[:kept]], batch)
    return Drawn(answers, samples, logps.double().numpy().reshape(len(prompts), kept))


def judge_drawn(asked: Asking, prompts: Sequence[Prompt], drawn: Drawn) -> ReferenceWins:
    """The samples' win rates [K, n] against each half of their opponents, by one judge."""
    from aligngap.stats.quantities import ReferenceWins

    shares = win_shares(asked, prompts, drawn.answers, drawn.samples)
    return ReferenceWins(shares[..., 0], shares[..., 1])


class DrawReference(Step):
    """Samples of the reference to the first of the measured prompts, and as many further ones to hold them against."""

    kind: Literal["reference-draw"] = "reference-draw"
    prompts: PromptSet
    count: int  # prompts
    samples: int
    opponents: int
    batch: int

    @cached_property
    def configuration(self) -> Any:
        size = [self.count, self.samples, self.opponents, min(self.samples, RATIOS)]
        who = {"reference": self.prompts.reference.identity, "prompts": self.prompts.name}
        return who | {"size": size, "batch": self.batch}

    @property
    def label(self) -> str:
        return "sample the reference"

    def asked(self, ctx: Context) -> list[Prompt]:
        """The prompts that are sampled."""
        return self.prompts.prompts(ctx)[: self.count]

    def run(self, ctx: Context, job: Job) -> dict[str, Any]:
        from aligngap.storage.pairs import write_rows

        prompts, seed = self.asked(ctx), self.prompts.seed
        found = draw_reference(
            self.prompts.policy(ctx), prompts, self.samples, self.opponents, seed=seed, batch=self.batch
        )
        rows = [
            {
                "prompt_id": p.id, "ids": [list(r.ids) for r in row], "ended": [r.ended for r in row],
                "text": [r.text for r in row], "logps": found.logps[i].tolist(),
            }
            for i, (p, row) in enumerate(zip(prompts, found.answers, strict=True))
        ]  # fmt: skip
        write_rows(job.work / "drawn.parquet", rows)
        return {"prompts": len(rows), "samples": self.samples, "opponents": self.opponents}

    def read(self, ctx: Context) -> Drawn:
        """The samples as they were stored, read once a process."""
        from aligngap.storage.pairs import read_rows

        def build() -> Drawn:
            rows = read_rows(self.made(ctx, "drawn.parquet"))
            answers = [
                [Response(tuple(x), bool(e), t) for x, e, t in zip(r["ids"], r["ended"], r["text"], strict=True)]
                for r in rows
            ]
            return Drawn(answers, self.samples, np.array([r["logps"] for r in rows], dtype=np.float64))

        found: Drawn = ctx.cached((self.name, "drawn"), build)
        return found


class JudgeReference(Step):
    """What a ready judge says of the reference's samples, each held against further ones.

    Its answers are saved every few prompts: a judge that fails half-way is asked the rest when the command is repeated.
    """

    kind: Literal["reference-verdict"] = "reference-verdict"
    drawn: DrawReference
    judge: JudgeSpec
    identity: dict[str, Any]
    code: str = ""

    @cached_property
    def configuration(self) -> Any:
        return {"drawn": self.drawn.name, "judge": self.judge.kind, "identity": self.identity, "code": self.code}

    @property
    def label(self) -> str:
        return f"judge the reference's samples ({self.judge.kind})"

    def run(self, ctx: Context, job: Job) -> dict[str, Any]:
        from aligngap.storage.checksums import write_sealed
        from aligngap.storage.pairs import write_rows

        judge = job.asked(open_ready(self, ctx))
        prompts, drawn = self.drawn.asked(ctx), self.drawn.read(ctx)
        rows: list[dict[str, Any]] = []
        for part in chunks(range(len(prompts)), max(1, SAVED // (drawn.samples * self.drawn.opponents))):
            job.progress(len(rows), len(prompts), f"prompt {len(rows) + 1}")
            file, of = job.work / f"judged-{part[0]:06d}.json", f"{self.name} prompt {part[0]}"
            answers = whole(file, of)
            if answers is None:
                mine = [prompts[i] for i in part]
                some = Drawn([drawn.answers[i] for i in part], drawn.samples, drawn.logps)
                wins = judge_drawn(lambda p, a, b: ask(judge, p, a, b), mine, some)
                answers = {"of": of, "first": wins.first.tolist(), "second": wins.second.tolist()}
                write_sealed(file, answers)
            rows += [
                {"prompt_id": prompts[i].id, "first": first, "second": second}
                for i, first, second in zip(part, answers["first"], answers["second"], strict=True)
            ]
        write_rows(job.work / "wins.parquet", rows)
        return {"prompts": len(rows)}

    def wins(self, ctx: Context) -> ReferenceWins:
        """The win rates as they were stored."""
        from aligngap.stats.quantities import ReferenceWins
        from aligngap.storage.pairs import read_rows

        def build() -> ReferenceWins:
            rows = read_rows(self.made(ctx, "wins.parquet"))
            return ReferenceWins(*(np.array([r[side] for r in rows]) for side in ("first", "second")))

        found: ReferenceWins = ctx.cached((self.name, "wins"), build)
        return found

    def read(self, ctx: Context) -> ReferenceSet:
        """The reference's samples with their win rates."""
        return self.drawn.read(ctx).with_wins(self.wins(ctx))


class ReadRatios(Step):
    """Log-ratios of a checkpoint to the reference on the reference's own samples."""

    kind: Literal["ratios"] = "ratios"
    drawn: DrawReference
    policy: Weights
    batch: int
    shown: str

    @cached_property
    def configuration(self) -> Any:
        return {"policy": self.policy.identity, "drawn": self.drawn.name, "batch": self.batch}

    @property
    def label(self) -> str:
        return f"log-ratios of {self.shown}"

    def run(self, ctx: Context, job: Job) -> dict[str, Any]:
        from aligngap.measurement import log_ratios_of
        from aligngap.storage.pairs import write_rows

        prompts, drawn = self.drawn.asked(ctx), self.drawn.read(ctx)
        policy = self.policy.open(self.drawn.prompts.policy(ctx))
        found = log_ratios_of(policy, prompts, drawn.with_wins(None), self.batch)
        rows = [{"prompt_id": p.id, "log_ratios": row.tolist()} for p, row in zip(prompts, found, strict=True)]
        write_rows(job.work / "ratios.parquet", rows)
        return {"prompts": len(rows)}

    def read(self, ctx: Context) -> np.ndarray:
        """The log-ratios [K, r] as they were stored, nats."""
        from aligngap.storage.pairs import read_rows

        return np.array([r["log_ratios"] for r in read_rows(self.made(ctx, "ratios.parquet"))], dtype=np.float64)
