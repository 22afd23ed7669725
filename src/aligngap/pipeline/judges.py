"""From data to judges: SFT, the judges that learn, and the data as a judge labels them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from aligngap.pipeline.base import Step, configuration_of
from aligngap.pipeline.data import Data
from aligngap.pipeline.sft import Sft, tokenizer_of
from aligngap.pipeline.teaching import HeadStart, Taught, teach
from aligngap.registry import use_source
from aligngap.seeding import derive
from aligngap.settings import JudgeSpec, Settings
from aligngap.study.build import build_judge, build_task, open_judge
from aligngap.types import Judge, JudgeFailed, Pair, RunFailed, TellingJudge

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from aligngap.pipeline.context import Context, Job


class OracleJudge(Settings):
    """The task's own true preference, where it has one."""

    kind: Literal["oracle"] = "oracle"
    task: dict[str, Any]
    seed: int
    code: str = ""  # of the source of a task that is not aligngap's own

    def open(self, ctx: Context, job: Job) -> Judge:
        """The judge, loaded once per process, as the job asks it."""
        from aligngap.judges.oracle import SandboxOracle

        def load() -> Judge:
            use_source(self.code, ("tasks", str(self.task["name"])))
            return SandboxOracle(build_task(self.task), self.seed)

        return job.asked(ctx.cached(("oracle", self.model_dump_json()), load))


class FitJudge(Taught):
    """Train a judge that learns on the rater's labels (golden) or on a relabelled set (proxy)."""

    version: ClassVar[int] = 3  # 2 multiplied T5's padding, 1 attended by transformers
    kind: Literal["judge"] = "judge"
    data: Data
    labels: Relabel | None = None
    backbone: Sft
    seed: int
    split: Literal["train", "judge"] = "train"
    code: str = ""  # of the source of a kind of judge that is not aligngap's own
    taught: HeadStart | None = None  # what it has learned before, on other worlds

    def run(self, ctx: Context, job: Job) -> dict[str, Any]:
        import numpy as np

        source = self.labels or self.data
        pairs, held_out = source.pairs(ctx, self.split), source.pairs(ctx, "test")
        if self.spec.labels is not None:
            keep = np.random.default_rng(derive(self.seed, "labels")).permutation(len(pairs))[: self.spec.labels]
            pairs = [pairs[int(i)] for i in sorted(keep)]
        folder = self.backbone.made(ctx, "policy")
        spec, how = self.backbone.model, self.spec.optimization
        assert how is not None  # `build_judge` has checked it
        kind = self.built()
        if self.taught is not None:
            judge = kind.load(self.taught.made(ctx, "model"), folder, spec)
            judge.key = self.name
        else:
            tokenizer = tokenizer_of(ctx, self.data, spec)
            judge = kind.start(folder, spec, tokenizer, key=self.name, seed=derive(self.seed, "head"))
        judge.to(ctx.device)
        if how.lora is not None:
            judge.attach(how.lora, derive(self.seed, "adapter"))
        stopped = teach(job, judge, pairs, how, self.seed, self.spec.stop_every)
        judge.merge().save(job.work / "model")
        about, _ = held_against(judge, held_out)
        return about | {"training_pairs": len(pairs)} | stopped

    def built(self) -> Any:
        """The kind of judge, its source found to be that in the key."""
        use_source(self.code, ("judges", self.spec.kind))
        return build_judge(self.spec)

    def open(self, ctx: Context, job: Job) -> Judge:
        """The trained judge, loaded once per process, as the job asks it."""

        def load() -> Judge:
            kind = self.built()
            model, backbone = self.made(ctx, "model"), self.backbone.made(ctx, "policy")
            learner = kind.load(model, backbone, self.backbone.model)
            learner.to(ctx.device)
            judge: Judge = learner
            return judge

        return job.asked(ctx.cached(self.name, load))

    def learn_on(self, ctx: Context, pairs: Sequence[Pair], steps: int, seed: int) -> Judge:
        """The trained judge after so many more steps on other pairs: a function of its arguments, not kept."""
        import numpy as np

        from aligngap.fit import Trainer, fit
        from aligngap.streams import Epochs

        assert self.spec.optimization is not None  # `build_judge` has checked it
        model, backbone = self.made(ctx, "model"), self.backbone.made(ctx, "policy")
        judge = self.built().load(model, backbone, self.backbone.model)
        judge.to(ctx.device)
        how = self.spec.optimization.model_copy(update={"steps": steps, "lora": None})
        items = judge.items(pairs, np.random.default_rng(derive(seed, "shown order")))
        trainer = Trainer(judge.module, how, seed)
        for step in fit(trainer, Epochs(items, derive(seed, "judge order")), judge.objective):
            if not step.finite:
                raise JudgeFailed(f"judge {self.name}: diverged as it learned on; lower the proxy's learning_rate")
        learned: Judge = judge
        return learned


class ReadyJudge(Step):
    """A judge that does not learn, held against the labels: the rater's (golden) or those of a relabelled set (proxy).

    `identity` is what makes its answers; how it is asked (batch, concurrency, a key's variable) is no part of the key.
    """

    kind: Literal["ready-judge"] = "ready-judge"
    data: Data
    labels: Relabel | None = None
    spec: JudgeSpec
    identity: dict[str, Any]
    code: str = ""  # of the source of a kind of judge that is not aligngap's own

    @cached_property
    def configuration(self) -> Any:
        found = configuration_of(self)
        return found | {"spec": {"kind": self.spec.kind}}

    def run(self, ctx: Context, job: Job) -> dict[str, Any]:
        judge = self.open(ctx, job)
        about, right = held_against(judge, (self.labels or self.data).pairs(ctx, "test"))
        about |= judge.about() if isinstance(judge, TellingJudge) else {}
        return about | {"held_out_ties": int((right == 0.5).sum())}

    def open(self, ctx: Context, job: Job) -> Judge:
        """The ready judge, opened once per process, as the job asks it."""

        def load() -> Judge:
            return open_judge(self.spec, self.identity, self.code, ctx.store.root, ctx.device)

        return job.asked(ctx.cached(self.name, load))


def held_against(judge: Judge, pairs: Sequence[Pair]) -> tuple[dict[str, Any], NDArray[np.float64]]:
    """How a judge does on pairs whose labels are no ties, and per pair 1, 1/2 or 0: right, a tie or wrong."""
    hard = [p for p in pairs if p.p_chosen != 0.5]
    judged = judge.judge([p.prompt for p in hard], [p.chosen for p in hard], [p.rejected for p in hard])
    about = {
        "held_out_accuracy": float(judged.hard.mean()), "held_out_pairs": len(hard),
        "first_position_share": float(((judged.forward > 0.5).mean() + (judged.backward > 0.5).mean()) / 2),
    }  # fmt: skip
    return about, judged.hard


class Relabel(Step):
    """The task's pairs as a judge orders them (both orders, ties kept), with the reference's log-probabilities."""

    version: ClassVar[int] = 3  # 2 multiplied T5's padding, 1 attended by transformers
    kind: Literal["relabel"] = "relabel"
    data: Data
    judge: FitJudge | ReadyJudge | OracleJudge
    reference: Sft
    soft: bool = False
    keep: int | None = None  # how many of the data's pairs it labels; the held-out ones are labelled all

    def run(self, ctx: Context, job: Job) -> dict[str, Any]:
        from aligngap.models.pair_logps import store_reference
        from aligngap.storage.pairs import write_pairs
        from aligngap.streams import label

        judge = self.judge.open(ctx, job)
        reference = self.reference.policy(ctx)
        about: dict[str, Any] = {}
        for number, split in enumerate(self.data.splits):
            given = self.data.pairs(ctx, split)
            if split != "test":
                given = self.kept(given)
            job.progress(number, len(self.data.splits), split)
            pairs = label(
                [p.prompt for p in given], [p.chosen for p in given], [p.rejected for p in given], judge,
                writer="data", soft=self.soft,
            )  # fmt: skip
            if split != "judge":  # from which no policy learns
                pairs = store_reference(reference, pairs, job.progress)
            write_pairs(job.work / f"{split}.parquet", pairs)
            agree = sum(p.chosen.ids == g.chosen.ids for p, g in zip(pairs, given, strict=True))
            ties = sum(p.judged_forward == p.judged_backward for p in pairs)
            about[split] = {"pairs": len(pairs), "ties": ties, "agreement_with_rater": agree / len(pairs)}
        return about

    def kept(self, given: list[Pair]) -> list[Pair]:
        """The pairs that are labelled, in the data's order; fewer are always among more of the same data."""
        import numpy as np

        if self.keep is None:
            return given
        if self.keep > len(given):
            raise RunFailed(f"golden_labels: {self.keep} are more than the {len(given)} pairs of the data; lower it")
        order = np.random.default_rng(derive(self.data.seed, "golden labels")).permutation(len(given))
        return [given[int(i)] for i in sorted(order[: self.keep])]

    def pairs(self, ctx: Context, split: str) -> list[Pair]:
        return stored_pairs(ctx, self, split)

    def units(self) -> float:
        return float(self.keep or self.data.expected)


def stored_pairs(ctx: Context, step: Step, split: str) -> list[Pair]:
    """The pairs a step has written, read once per process."""
    from aligngap.storage.pairs import read_pairs

    return ctx.cached((step.name, "pairs", split), lambda: read_pairs(step.made(ctx, f"{split}.parquet")))
