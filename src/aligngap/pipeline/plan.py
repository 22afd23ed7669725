"""What a study needs, before any of it is done: its runs, seed by seed, and the steps that make each.

A `Pipeline` is one seed's steps up to the arms; `expand` lays out every run of every arm, grid and variant. Equal steps
have equal keys, so what arms share is there once. Leaves out: doing it (`execute/`), and what a study may say
(`settings/`, `study/`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Literal

from aligngap.judges.kinds import LearningKind
from aligngap.models.pretrained import content_of
from aligngap.pipeline.align import Align, ArmStream, Written
from aligngap.pipeline.base import Step
from aligngap.pipeline.best_of_n import BestOfN
from aligngap.pipeline.crossed import CrossJudge
from aligngap.pipeline.data import Data
from aligngap.pipeline.judges import FitJudge, OracleJudge, ReadyJudge, Relabel
from aligngap.pipeline.measure import Measure, Responses
from aligngap.pipeline.probe import JudgesProbe, Probe
from aligngap.pipeline.reference import ReferenceSamples
from aligngap.pipeline.sft import Sft
from aligngap.pipeline.teaching import HeadStart
from aligngap.registry import source_of
from aligngap.seeding import derive
from aligngap.settings import Arm, JudgeSpec, LossSpec, ModelSpec, Optimization, RolloutSpec, Study, TokenizerSpec
from aligngap.source import begin
from aligngap.study.build import asks, build_judge, build_task, has_oracle, identity_of, needs_probabilities
from aligngap.study.variants import apply_variant, grid_of
from aligngap.types import AligngapError


@dataclass(frozen=True)
class Run:
    """One run: arm x hyper-parameters x seed, with the steps that make it."""

    name: str
    arm: str
    config: str
    seed: int
    loss: str
    beta: float
    learning_rate: float
    align: Align
    measure: Measure
    crossed: CrossJudge | None = None  # by every golden judge of the study, where it asks for that


@dataclass(frozen=True)
class Plan:
    """Everything a study needs: its runs, for each the measurement of its SFT policy (step 0 of the run), and per
    seed the best-of-n reference (once more where a variant changes the task) and the classifiers' probe."""

    study: Study
    runs: list[Run]
    start: dict[str, Measure]
    references: dict[tuple[int, str], BestOfN]  # by seed and variant
    probes: dict[int, Probe]
    judges_probes: dict[int, JudgesProbe] = field(default_factory=dict)

    def steps(self) -> list[Step]:
        """Every step once, needs before what needs them; of the runs' measurements those of the compared arms first."""
        wanted = [*self.start.values(), *self.references.values(), *self.probes.values(), *self.judges_probes.values()]
        wanted += [r.measure for r in sorted(self.runs, key=lambda r: r.arm not in self.study.compare)]
        wanted += [r.crossed for r in self.runs if r.crossed is not None]
        return list({s.name: s for w in wanted for s in w.walk()}.values())


class Pipeline:
    """One seed's steps up to the arms: data, SFT policy, golden model, D_golden, proxy, golden policy, opponents."""

    def __init__(self, study: Study, seed: int, base: Pipeline | None = None) -> None:
        task = build_task(study.task)
        self.study, self.seed = study, seed
        # A pretrained policy brings its own tokenizer.
        tokenizer = study.tokenizer if study.policy.path is None else TokenizerSpec(path=study.policy.path)
        self.data = Data(
            task=study.task, fingerprint=fingerprint_of(study), tokenizer=tokenizer, family=study.policy.family,
            limits=study.limits, seed=seed, judge_share=study.judge_share, template=template_of(study.policy),
            content=_content(tokenizer.path, weights=False), code=source_of("tasks", str(study.task["name"])),
        )  # fmt: skip
        self.sft = self.tuned(study.policy, study.sft)
        self.golden = self.judge(study.golden, "golden", None)
        self.d_golden = self.relabel(self.golden)
        # A variant with the same golden judge has the study's own labels, whatever its reference says of them beside.
        same = base is not None and base.golden.name == self.golden.name
        own = base if base is not None and same and base.study.golden_labels == study.golden_labels else self
        self.proxy = self.judge(study.proxy, "proxy", own.d_golden)
        self.oracle = OracleJudge(task=study.task, seed=seed, code=self.data.code) if has_oracle(task) else None
        self.judges = {"golden": self.golden, "proxy": self.proxy, "oracle": self.oracle}
        self.reference_samples = self.responses(self.sft)
        self.opponents: dict[str, Responses] = {}
        if "sft" in study.measurement.opponents:
            self.opponents["sft"] = self.reference_samples
        if "golden_policy" in study.measurement.opponents:
            # And it meets the study's own golden policy.
            arm = Arm(behavior="policy", judge="golden", soft_labels=needs_probabilities(own.study))
            self.opponents["golden_policy"] = own.responses(own.recipe_run(arm, "golden policy"))
        if "best_of_n" in study.measurement.opponents:  # as the study's own proxy picks them
            self.opponents["best_of_n"] = own.responses(own.sft, own.proxy, study.measurement.opponent_best_of)

    def tuned(self, model: ModelSpec, how: Optimization, split: Literal["train", "judge"] = "train") -> Sft:
        return Sft(
            data=self.data, model=model, optimization=how, limits=self.study.limits, seed=derive(self.seed, "sft"),
            split=split if how.steps else "train",  # a model as it is has learned from neither
            content=_content(model.path),
        )  # fmt: skip

    def judge(self, spec: JudgeSpec, role: str, labels: Relabel | None) -> FitJudge | ReadyJudge:
        kind, code = build_judge(spec, role), source_of("judges", spec.kind)
        if not isinstance(kind, LearningKind):
            return ReadyJudge(data=self.data, labels=labels, spec=spec, identity=identity_of(spec, role), code=code)
        split = self.data.judges_learn_from
        backbone = self.tuned(spec.model or self.study.policy, spec.pretrain or self.study.sft, split)
        # The backbone and the head start say the rest: equal ones are shared.
        own = spec.model_copy(update={"model": None, "pretrain": None, "head_start": None})
        seed = derive(self.seed, role)
        taught = None
        if (before := spec.head_start) is not None:
            if not has_oracle(build_task(self.study.task)):
                name = self.study.task["name"]
                raise AligngapError(f"{role}.head_start: the task `{name}` has no sibling worlds; leave it out")
            how = before.optimization or spec.optimization
            taught = HeadStart(
                data=self.data, backbone=backbone, task=self.study.task, worlds=before.worlds, pairs=before.pairs,
                spec=own.model_copy(update={"optimization": how, "labels": None, "stop_every": None}), seed=seed,
                code=code,
            )  # fmt: skip
        return FitJudge(
            data=self.data, labels=labels, backbone=backbone, spec=own, seed=seed, split=split, code=code, taught=taught
        )  # fmt: skip

    def relabel(self, judge: FitJudge | ReadyJudge | OracleJudge, soft: bool = False) -> Relabel:
        scarce = judge is self.golden or isinstance(judge, OracleJudge)  # what a proxy says costs nothing
        keep = self.study.golden_labels if scarce else None
        return Relabel(data=self.data, judge=judge, reference=self.sft, soft=soft, keep=keep)

    def source(self, arm: Arm) -> ArmStream:
        """The arm's stream, with the artifacts it draws on."""
        judge = self.judges[arm.judge] if arm.judge else None
        if arm.mix is not None:
            return ArmStream(arm=arm, mixed=[self.source(self.study.arms[part]) for part in arm.mix])
        if arm.of is not None:
            return ArmStream(arm=arm, judge=judge, recording=self.recipe_run(self.study.arms[arm.of], "run"))
        if arm.behavior == "policy" or judge is None:
            return ArmStream(arm=arm, judge=judge, golden=self.golden if arm.retrain is not None else None)
        if arm.writers is not None:
            writers, at = zip(*(self.writer(w) for w in arm.writers), strict=True)
            written = Written(
                data=self.data, writers=list(writers), at=list(at), judge=judge, reference=self.sft,
                soft=arm.soft_labels, temperature=arm.temperature, seed=derive(self.seed, "written"),
            )  # fmt: skip
            return ArmStream(arm=arm, dataset=written)
        return ArmStream(arm=arm, dataset=self.relabel(judge, arm.soft_labels))

    def writer(self, name: str) -> tuple[Sft | Align, int | None]:
        """The policy that `sft`, `ARM@STEP` or `ARM@last` names, and its checkpoint."""
        if name == "sft":
            return self.sft, None
        arm, _, step = name.partition("@")
        run = self.recipe_run(self.study.arms[arm], "run")
        return run, run.optimization.steps if step == "last" else int(step)

    def recipe_run(self, arm: Arm, role: str) -> Align:
        """The arm's run at the recipe as it stands, from the SFT policy: what writes, is recorded or is an opponent."""
        return self.align(arm, self.study.recipe.loss, self.study.recipe.optimization, role)

    def run(self, arm: Arm, loss: LossSpec, how: Optimization) -> Align:
        """One of the study's own runs, from the policy that the recipe says."""
        start, at = self.writer(self.study.recipe.start)
        return self.align(arm, loss, how, "run", *((start, at) if isinstance(start, Align) else ()))

    def align(
        self, arm: Arm, loss: LossSpec, how: Optimization, role: str, start: Align | None = None, at: int | None = None
    ) -> Align:
        study, source = self.study, self.source(arm)
        written_by = study.recipe.rollouts.engine
        return Align(
            data=self.data, sft=self.sft, source=source, loss=loss, optimization=how,
            checkpoints=study.measurement.checkpoints, limits=study.limits, seed=derive(self.seed, role),
            label_smoothing=study.recipe.label_smoothing, start=start, start_at=at,
            on_policy_kl=study.recipe.on_policy_kl if source.unlabelled else 0.0,
            rollouts=study.recipe.rollouts if source.sampled else RolloutSpec(),
            reference_every=study.recipe.reference.every if study.recipe.reference is not None else None,
            writer_logps=source.sampled > 0
            and ((study.recipe.writer_logps and role == "run") or asks(study, "writer")),
            correction=study.recipe.correction,
            code=source_of("losses", loss.name)
            + (source_of("corrections", study.recipe.correction.name) if study.recipe.correction else "")
            + (source_of("rollouts", written_by) if source.sampled else ""),
        )  # fmt: skip

    def responses(self, policy: Sft | Align, picked_by: FitJudge | ReadyJudge | None = None, of: int = 1) -> Responses:
        return Responses(
            data=self.data, policy=policy, measurement=self.study.measurement, limits=self.study.limits,
            seed=derive(self.seed, "opponents", *(("best of", of) if picked_by is not None else ())),
            picked_by=picked_by, of=of,
        )  # fmt: skip

    def best_of_n(self) -> BestOfN:
        return BestOfN(
            data=self.data, sft=self.sft, golden=self.golden, proxy=self.proxy, opponents=self.opponents,
            labelled=self.d_golden, measurement=self.study.measurement, seed=self.seed,
        )  # fmt: skip

    def probe(self) -> Probe:
        """The two compared arms' policies and the proxy as classifiers along the first one's recording."""
        recipe, arms = self.study.recipe, self.study.arms
        runs = {name: self.run(arms[name], recipe.loss, recipe.optimization) for name in self.study.compare}
        return Probe(recording=runs[self.study.compare[0]], policies=runs, golden=self.golden, pairs=self.study.probe)

    def judges_probe(self, proxies: dict[str, FitJudge | ReadyJudge]) -> JudgesProbe:
        """The variants' proxies as classifiers along the same recording."""
        recipe = self.study.recipe
        run = self.run(self.study.arms[self.study.compare[0]], recipe.loss, recipe.optimization)
        return JudgesProbe(recording=run, judges=proxies, golden=self.golden, pairs=self.study.probe)

    def reference_set(self) -> ReferenceSamples | None:
        """The reference's samples behind rho and the ceiling; None where the study wants none."""
        measurement = self.study.measurement
        if not measurement.reference_samples:
            return None
        return ReferenceSamples(
            data=self.data, sft=self.sft, golden=self.golden, oracle=self.oracle, measurement=measurement,
            limits=self.study.limits, seed=derive(self.seed, "reference"),
        )  # fmt: skip

    def measure(self, run: Align | None) -> Measure:
        return Measure(
            data=self.data, sft=self.sft, run_=run, golden=self.golden, proxy=self.proxy, oracle=self.oracle,
            held_out=self.d_golden, reference_samples=self.reference_samples, opponents=self.opponents,
            reference_set=self.reference_set(), measurement=self.study.measurement, seed=derive(self.seed, "measure"),
        )  # fmt: skip


@cache
def _content(path: str | None, weights: bool = True) -> str:
    """`content_of`, looked up once however many steps of a plan ask."""
    return content_of(path, weights)


@cache
def _fingerprint(task: str) -> str:
    found: str = build_task(json.loads(task)).fingerprint()
    return found


def fingerprint_of(study: Study) -> str:
    """The hash of what the study's task would load; files are read once, however many seeds and variants there are."""
    return _fingerprint(json.dumps(study.task, sort_keys=True))


@cache
def _template(path: str) -> str:
    from aligngap.models.chat import check_template, fingerprint
    from aligngap.models.loading import load_tokenizer

    try:
        tokenizer = load_tokenizer(path)
        check_template(tokenizer, path)
    except AligngapError:
        return ""  # nothing is made with it: the check of the study's models says why
    return fingerprint(tokenizer)


def template_of(model: ModelSpec) -> str:
    """The hash of the chat template that writes a model's prompts, or nothing if none does."""
    return _template(model.path) if model.chat and model.path is not None else ""


def expand(study: Study) -> Plan:
    """The study's runs. The whole pipeline, task and judges included, is repeated per seed.

    Under a variant an arm is named "ARM[VARIANT]"; what the variant does not touch is shared with the study.
    """
    begin()
    _content.cache_clear()
    _fingerprint.cache_clear()  # files may have changed since this process last looked
    _template.cache_clear()
    runs: list[Run] = []
    start: dict[str, Measure] = {}
    references: dict[tuple[int, str], BestOfN] = {}
    probes: dict[int, Probe] = {}
    judges_probes: dict[int, JudgesProbe] = {}
    settings = {"": study, **{name: apply_variant(study, name) for name in study.variants}}
    for seed in study.seed_list:
        base: Pipeline | None = None
        proxies: dict[str, FitJudge | ReadyJudge] = {}
        goldens: dict[str, FitJudge | ReadyJudge] = {}
        first = len(runs)
        for variant, its in settings.items():
            made = Pipeline(its, seed, base)
            if base is None:
                base = made
                if study.probe:
                    probes[seed] = made.probe()
            elif made.golden.name == base.golden.name and made.proxy.name != base.proxy.name:
                proxies[variant] = made.proxy
            goldens[variant or "golden"] = made.golden
            if study.measurement.best_of_n and (not variant or its.task != study.task):
                references[seed, variant] = made.best_of_n()
            sft_measured = made.measure(None)
            chosen = study.variants[variant].arms if variant else None
            for name, arm in its.arms.items():
                if chosen is not None and name not in chosen:
                    continue
                for config, loss, how in grid_of(its, name):
                    run = made.run(arm, loss, how)
                    shown = f"{name}[{variant}]" if variant else name
                    full = f"{shown} {config} seed={seed}"
                    beta = float(loss.options.get("beta", float("nan")))
                    measured = made.measure(run)
                    start[full] = sft_measured
                    runs.append(Run(full, shown, config, seed, loss.name, beta, how.learning_rate, run, measured))
        if study.crossed_judges:
            distinct = {j.name: (name, j) for name, j in reversed(goldens.items())}
            judges = dict(sorted(distinct.values()))
            runs[first:] = [replace(r, crossed=CrossJudge(measured=r.measure, judges=judges)) for r in runs[first:]]
        if study.probe and base is not None and proxies:
            judges_probes[seed] = base.judges_probe(proxies)
    return Plan(study, runs, start, references, probes, judges_probes)
