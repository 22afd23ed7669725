"""One run of an arm: its stream, with the artifacts that it draws on, and the alignment itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from aligngap import registry
from aligngap.pipeline.base import Step, configuration_of
from aligngap.pipeline.data import Data
from aligngap.pipeline.judges import FitJudge, OracleJudge, ReadyJudge, Relabel, stored_pairs
from aligngap.pipeline.sft import Sft
from aligngap.seeding import derive
from aligngap.settings import Arm, Limits, LossSpec, Optimization, RetrainSpec, RolloutSpec, Settings
from aligngap.study.build import recipe_loss
from aligngap.types import Judge, Pair, PairStream, RunFailed

if TYPE_CHECKING:
    from aligngap.models.policy import Policy
    from aligngap.pipeline.context import Context, Job


class Written(Step):
    """A fixed set of pairs written once: to each training prompt one response by each of two writers, judged."""

    version: ClassVar[int] = 3  # 2 multiplied T5's padding, 1 sampled and attended by transformers
    kind: Literal["written"] = "written"
    data: Data
    writers: list[Sft | Align]
    at: list[int | None]
    judge: FitJudge | ReadyJudge | OracleJudge
    reference: Sft
    soft: bool = False
    temperature: float = 1.0
    seed: int

    def run(self, ctx: Context, job: Job) -> dict[str, Any]:
        from aligngap.models.pair_logps import store_reference
        from aligngap.storage.pairs import write_pairs
        from aligngap.streams import label

        prompts = [p.prompt for p in self.data.pairs(ctx, "train")]
        sides = []
        for number, (writer, step) in enumerate(zip(self.writers, self.at, strict=True)):
            job.progress(number, 4, "sampling")
            answers = writer.policy(ctx, step).sample(
                prompts, 1, derive(self.seed, "writer", number), temperature=self.temperature
            )
            sides.append([a[0] for a in answers])
        names = " vs ".join(
            w.name + (f"@step{s}" if s is not None else "") for w, s in zip(self.writers, self.at, strict=True)
        )
        pairs = label(prompts, sides[0], sides[1], self.judge.open(ctx, job), writer=names, soft=self.soft)
        write_pairs(job.work / "train.parquet", store_reference(self.reference.policy(ctx), pairs, job.progress))
        first = sum(p.chosen is a for p, a in zip(pairs, sides[0], strict=True))
        return {
            "pairs": len(pairs),
            "first_writer_wins": first / len(pairs),
            "ties": sum(p.p_chosen == 0.5 for p in pairs),
        }

    def pairs(self, ctx: Context, split: str) -> list[Pair]:
        return stored_pairs(ctx, self, split)

    def units(self) -> float:
        return self.data.expected


class ArmStream(Settings):
    """An arm's stream and the artifacts it draws on: the one thing in which two arms of a study differ."""

    arm: Arm
    judge: FitJudge | ReadyJudge | OracleJudge | None = None
    dataset: Relabel | Written | None = None
    recording: Align | None = None
    mixed: list[ArmStream] = Field(default_factory=list)
    golden: FitJudge | ReadyJudge | None = None  # where it labels the policy's own pairs

    def stream(self, ctx: Context, job: Job, run: Align, seed: int, reference: Policy) -> PairStream:
        """Build a run's stream; at equal seeds, every stream that draws from the data does so in the same order."""
        from aligngap.models.policy import Mixed
        from aligngap.streams import Buffer, Mixture, OnPolicy, Relabelled, Retrained

        arm, make = self.arm, registry.get("behaviors", self.arm.behavior)
        data, steps = run.data, run.optimization.steps
        if self.mixed:
            first, second = (
                s.stream(ctx, job, run, derive(seed, "mixed", i), reference) for i, s in enumerate(self.mixed)
            )
            until = None if arm.share_to is None else (arm.share_to, steps)
            mixture: PairStream = make(first, second, share=arm.share, seed=seed, until=until)
            return mixture
        if self.recording is not None:
            pairs, width = self.recording.recorded(ctx), self.recording.optimization.batch
            replay: PairStream = make(pairs, order=arm.order, batch=width, seed=seed)
            return Relabelled(replay, self.judge.open(ctx, job), soft_labels=arm.soft_labels) if self.judge else replay
        prompts = [p.prompt for p in data.pairs(ctx, "train")]
        if self.dataset is not None:
            labelled: PairStream = make(self.dataset.pairs(ctx, "train"), seed)
            if not arm.unlabelled:
                return labelled
            beside = OnPolicy(prompts, None, seed=derive(seed, "unlabelled"))
            return Mixture(beside, labelled, share=arm.unlabelled, seed=seed)
        assert self.judge is not None  # `Arm` has checked it
        judge = self.judge.open(ctx, job)
        share, freeze = arm.mix_reference, arm.freeze_writer_at
        written: OnPolicy = make(
            prompts, judge, seed=seed, sync_every=arm.sync_every, soft_labels=arm.soft_labels,
            reuse=1 if arm.buffer else arm.reuse, candidates=arm.candidates, grouped=arm.grouped, lag=arm.lag,
            through=(lambda policy: Mixed(policy, reference, share)) if share else None,
            tokens_per_step=arm.tokens_per_step, drop_stale=arm.drop_stale, keeps_logps=run.writer_logps,
            freeze_writer_at=None if freeze is None or arm.buffer else (freeze, steps),
        )  # fmt: skip
        online: PairStream = written
        if arm.retrain is not None and self.golden is not None:
            golden, refit = self.golden.open(ctx, job), self.refit(ctx, job, seed, arm.retrain)
            online = Retrained(written, golden, refit, every=arm.retrain.every, pairs=arm.retrain.pairs)
        if arm.buffer is None:
            return online
        return Buffer(online, size=arm.buffer, seed=seed, pick=arm.pick, every=arm.reuse, until=freeze)

    def refit(self, ctx: Context, job: Job, seed: int, how: RetrainSpec) -> Callable[[Sequence[Pair]], Judge]:
        """What makes a judge from labelled pairs: the arm's own, trained on them from where it stands."""
        proxy = self.judge
        assert isinstance(proxy, FitJudge)  # `check_ages` has

        def make(pairs: Sequence[Pair]) -> Judge:
            return job.asked(proxy.learn_on(ctx, pairs, how.steps, derive(seed, "retrain", len(pairs))))

        return make

    def judges(self, ctx: Context, job: Job) -> list[Judge]:
        """The judges that label while the run trains."""
        own = [judge.open(ctx, job) for judge in (self.judge, self.golden) if judge is not None]
        return [*own, *(judge for source in self.mixed for judge in source.judges(ctx, job))]

    @property
    def sampled(self) -> float:
        """Rough work of writing one pair, in responses sampled and judged twice; 0 where nothing is written."""
        arm = self.arm
        if arm.behavior == "policy":
            pairs = arm.candidates / 2 if arm.grouped else 1
            return arm.candidates * (arm.candidates - 1) * (1.5 if arm.mix_reference else 1.0) / arm.reuse / pairs
        return max((s.sampled for s in self.mixed), default=2.0 * arm.unlabelled)

    @property
    def unlabelled(self) -> bool:
        """Whether some of the pairs may be unlabelled."""
        replayed = self.recording is not None and self.recording.source.unlabelled
        return self.arm.unlabelled > 0 or replayed or any(s.unlabelled for s in self.mixed)


class Align(Step):
    """One run: a policy starts at the SFT policy and is fitted on its arm's stream, recorded pair by pair.

    With `start` it begins at that run's checkpoint `start_at` instead, which is then also the reference of its loss.
    """

    version: ClassVar[int] = 3  # 2 multiplied T5's padding, 1 sampled and attended by transformers
    kind: Literal["align"] = "align"
    data: Data
    sft: Sft
    source: ArmStream
    loss: LossSpec
    optimization: Optimization
    checkpoints: list[int]
    limits: Limits
    seed: int
    label_smoothing: float = 0.0
    start: Align | None = None
    start_at: int | None = None
    on_policy_kl: float = 0.0
    rollouts: RolloutSpec = Field(default_factory=RolloutSpec)
    reference_every: int | None = None
    writer_logps: bool = False
    correction: LossSpec | None = None
    code: str = ""  # of the source of a loss, or of what writes, that is not aligngap's own

    @cached_property
    def configuration(self) -> Any:
        found = configuration_of(self)
        if found.pop("rollouts", None) and self.engine_writes:
            found["rollouts"] = {"engine": self.rollouts.engine}  # its memory and tolerance change no result
        return found

    @property
    def engine_writes(self) -> bool:
        """Whether another engine than the policy's own model generates its responses."""
        return self.rollouts.engine != RolloutSpec().engine

    @property
    def label(self) -> str:
        return f"align ({self.source.arm.behavior})"

    @property
    def measured_steps(self) -> list[int]:
        last = self.optimization.steps
        return [*(s for s in self.checkpoints if s < last), last]

    def run(self, ctx: Context, job: Job) -> dict[str, Any]:
        from aligngap.fit import Trainer, pair_objective
        from aligngap.models.flops import Flops
        from aligngap.models.pair_logps import check_start, with_reference
        from aligngap.models.rollout import Following, opened
        from aligngap.pipeline.training import mismatch, train
        from aligngap.streams import Stopwatch

        reference, key, adapter = self.start_policy(ctx), f"{self.name}@step0", self.optimization.lora
        if adapter is None:
            policy = reference.copy(key)
        else:
            policy, reference = reference.adapted(adapter, key, derive(self.seed, "adapter")), reference.frozen()
        check_start(policy, reference, self.data.pairs(ctx, "train")[:4])
        stream = Stopwatch(self.source.stream(ctx, job, self, derive(self.seed, "data order"), reference))
        moving = reference.copy(reference.key) if self.reference_every else reference
        beside = {"reference": moving.model} if self.reference_every else {}
        trainer = Trainer(policy.model, self.optimization, self.seed, job.world, beside)
        measured = set(self.measured_steps)

        def after(step: int) -> None:
            policy.key = f"{self.name}@step{step}"
            if self.reference_every and step % self.reference_every == 0:
                moving.model.load_state_dict(policy.model.state_dict())
            if step in measured:
                with trainer.layout.gather_weights() as writes:
                    if writes:
                        policy.save(job.work / checkpoint_at(step))

        def prepare(pairs: Sequence[Pair]) -> list[Pair]:
            # Log-probabilities that come with the data are the SFT policy's.
            return with_reference(moving, pairs, anew=self.start is not None or bool(self.reference_every))

        own = [("losses", self.loss.name)]
        own += [("corrections", self.correction.name)] if self.correction is not None else []
        own += [("rollouts", self.rollouts.engine)] if self.source.sampled else []
        registry.use_source(self.code, *own)
        objective = pair_objective(
            policy, recipe_loss(self.loss, self.label_smoothing, self.on_policy_kl, self.correction)
        )
        with opened(self.rollouts, policy, self.limits.prompt_tokens) as sampler, Flops() as flops:
            for computing in (policy, moving, *self.source.judges(ctx, job)):
                flops.watch(computing)
            outcome = train(
                job, trainer, stream, objective, sampler=sampler, prepare=prepare, after=after, record_pairs=True,
                spent=flops.taken,
            )  # fmt: skip
        about = {"outcome": outcome, "last_step": trainer.step, "draw_seconds": round(stream.seconds, 3)}
        if stream.dropped[0]:
            pairs, tokens = stream.dropped
            about["dropped"] = {"pairs": pairs, "length_tokens": tokens / (2 * pairs)}
        if isinstance(sampler, Following):
            about["rollouts"] = {"written_by": sampler.written_by, **mismatch(job.work / "log.parquet")}
        return about

    def policy(self, ctx: Context, checkpoint: int | None = None) -> Policy:
        """The run's policy at a checkpoint, its last by default; RunFailed if the run never reached it."""
        from aligngap.models.policy import Policy

        at = self.optimization.steps if checkpoint is None else checkpoint
        key = f"{self.name}@step{at}"
        if not self.reached(ctx, at):
            outcome = ctx.store.manifest(self.name)["result"]["outcome"]
            raise RunFailed(f"needs step {at} of {self.name}, which it never reached: {outcome}")
        folder, adapter = self.made(ctx, checkpoint_at(at)), self.optimization.lora
        if adapter is not None:  # on the weights it started from, which are in memory
            adapted: Policy = self.start_policy(ctx).adapted(adapter, key, 0, folder)
            return adapted
        tokens, start = self.limits.response_tokens, self.start_policy(ctx)
        policy = Policy.load(folder, response_tokens=tokens, key=key, spec=self.sft.model, alike=start)
        policy.to(ctx.device)
        return policy

    def start_policy(self, ctx: Context) -> Policy:
        """The policy that the run starts from and is held against: the SFT policy, or another run's checkpoint."""
        other, at = self.start, self.start_at
        if other is None:
            return self.sft.policy(ctx)

        def load() -> Policy:
            policy = other.policy(ctx, at)
            return policy if policy.adapter is None else policy.copy(policy.key).merge()

        return ctx.cached(("start", other.name, at), load)

    def recorded(self, ctx: Context) -> list[Pair]:
        """The pairs the run trained on, in order; RunFailed if it ended before its last step."""
        from aligngap.storage.pairs import read_pairs

        outcome = ctx.store.manifest(self.name)["result"]["outcome"]
        if outcome != "ok":
            raise RunFailed(f"replays {self.name}, which has no whole recording: {outcome}")
        return read_pairs(self.made(ctx, "recording.parquet"))

    def reached(self, ctx: Context, step: int) -> bool:
        """Whether the finished run got as far as this checkpoint."""
        return ctx.store.holds(self.name, checkpoint_at(step))

    @property
    def training(self) -> Optimization | None:
        return self.optimization

    def units(self) -> float:
        return (6.0 + 3.0 * self.source.sampled) * self.optimization.steps * self.optimization.batch


def checkpoint_at(step: int) -> str:
    """The folder of a checkpoint in a run's artifact."""
    return f"checkpoints/step-{step:06d}"
