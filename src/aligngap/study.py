"""Studies: read YAML, refuse what is wrong in one line, expand arms and sweeps into steps, collect the records.

A study is data. `load` finds a packaged study or a YAML file, `expand` turns it into runs (arm x hyper-parameters x
seed) whose steps share whatever is equal, `collect` gathers the finished measurements into the record tables.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from . import registry
from .seeding import derive
from .settings import Arm, JudgeSpec, LossSpec, ModelSpec, Optimization, Study, TokenizerSpec
from .steps import (
    Align,
    Data,
    FitJudge,
    Measure,
    OracleJudge,
    Relabel,
    Responses,
    Sft,
    Source,
    Step,
    build_task,
    explain,
)
from .types import AligngapError


def packaged() -> dict[str, Any]:
    """Every packaged study by name, for instance `opening` or `real/helpful-tiny`."""
    root = resources.files("aligngap") / "studies"
    found: dict[str, Any] = {}

    def look(folder: Any, prefix: str) -> None:
        for entry in sorted(folder.iterdir(), key=lambda e: str(e.name)):
            if entry.is_dir():
                look(entry, f"{prefix}{entry.name}/")
            elif entry.name.endswith(".yaml"):
                found[prefix + entry.name.removesuffix(".yaml")] = entry

    look(root, "")
    return found


def load(name: str, overrides: Sequence[str] = ()) -> Study:
    """A study by packaged name or YAML path, with `--set key=value` overrides; one clear error, or a valid study."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise AligngapError(f"{name}: no such study file")
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise AligngapError(f"{name}: cannot be read ({error})") from error
    else:
        studies = packaged()
        if name not in studies:
            hint = registry.did_you_mean(name, studies)
            raise AligngapError(f"no packaged study `{name}`{hint}; a study of your own is a path ending in .yaml")
        text = studies[name].read_text(encoding="utf-8")
    raw = parse_yaml(text, name)
    for override in overrides:
        apply_override(raw, override)
    return validate(raw, name)


def parse_yaml(text: str, name: str) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not YAML"
        raise AligngapError(f"{name}{where}: {problem}") from error
    except (RecursionError, ValueError) as error:
        raise AligngapError(f"{name}: not a study ({type(error).__name__})") from error
    if not isinstance(raw, dict):
        raise AligngapError(f"{name}: a study is a mapping of keys to values, this is {type(raw).__name__}")
    return raw


def apply_override(raw: dict[str, Any], override: str) -> None:
    """Set `a.b.c=value` in a nested mapping; the value is YAML."""
    key, equals, value = override.partition("=")
    if not equals or not key.strip():
        raise AligngapError(f"--set {override}: must read key=value, for instance seeds=3 or task.path=pairs.jsonl")
    *parents, last = key.strip().split(".")
    place = raw
    for parent in parents:
        place = place.setdefault(parent, {})
        if not isinstance(place, dict):
            raise AligngapError(f"--set {key}: `{parent}` is not a section")
    try:
        place[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise AligngapError(f"--set {key}: `{value}` is not a YAML value") from error


def validate(raw: Mapping[str, Any], name: str) -> Study:
    """The study, checked without any compute: keys, values, arms, loss and task settings."""
    from .steps import build_loss

    try:
        study = Study.model_validate(raw)
    except ValidationError as error:
        raise AligngapError(f"{name}: {explain(error)}") from error
    try:
        build_loss(study.recipe.loss)
        for arm in study.arms:
            for _, loss, _ in settings_of(study, arm):
                build_loss(loss)
        task = build_task(study.task)
        for arm, spec in study.arms.items():
            if spec.judge == "oracle" and not has_oracle(task):
                raise AligngapError(f"arms.{arm}.judge: task `{study.task['name']}` has no oracle; use golden or proxy")
        for grid in study.sweep:
            if "beta" in grid.axes and "beta" not in study.recipe.loss.options:
                raise AligngapError(f"sweep: axis `beta`, but recipe.loss `{study.recipe.loss.name}` sets no beta")
    except AligngapError as error:
        raise AligngapError(f"{name}: {error}") from error
    return study


def has_oracle(task: Any) -> bool:
    return hasattr(task, "world")


# -------------------------------------------------------------------------------------------------------- expansion


@dataclass(frozen=True)
class Run:
    """One run: arm x hyper-parameters x seed, with the steps that make it."""

    name: str
    arm: str
    config: str
    seed: int
    beta: float
    learning_rate: float
    align: Align
    measure: Measure


@dataclass(frozen=True)
class Plan:
    """Everything a study needs: its runs, and per seed the measurement of the SFT policy (step 0 of every run)."""

    study: Study
    runs: list[Run]
    start: dict[int, Measure]

    def steps(self) -> list[Step]:
        """Every step once, needs before what needs them."""
        wanted = [*self.start.values(), *(r.measure for r in self.runs)]
        return list({s.name: s for w in wanted for s in w.walk()}.values())


def settings_of(study: Study, arm: str) -> Iterator[tuple[str, Any, Any]]:
    """(config, loss, optimization) of each run of an arm: the recipe, or the recipe at each point of its sweep."""
    grid = next((g for g in study.sweep if arm in g.arms), None)
    axes: dict[str, list[float]] = {**grid.axes} if grid else {}  # type: ignore[dict-item]
    for point in itertools.product(*axes.values()):
        values = dict(zip(axes, point, strict=True))
        loss, how = study.recipe.loss, study.recipe.optimization
        if "beta" in values:
            loss = type(loss).model_validate({"name": loss.name, **loss.options, "beta": values["beta"]})
        if "learning_rate" in values:
            how = how.model_copy(update={"learning_rate": values["learning_rate"]})
        if "steps" in values:
            how = how.model_copy(update={"steps": int(values["steps"])})
        beta = f"beta={loss.options['beta']:g} " if "beta" in loss.options else ""
        steps = f" steps={how.steps}" if "steps" in values else ""
        yield f"{beta}learning_rate={how.learning_rate:g}{steps}", loss, how


class Pipeline:
    """One seed's steps up to the arms: data, SFT policy, golden model, D_golden, proxy, golden policy, opponents."""

    def __init__(self, study: Study, task: Any, fingerprint: str, seed: int) -> None:
        self.study, self.seed = study, seed
        # A pretrained policy brings its own tokenizer.
        tokenizer = study.tokenizer if study.policy.path is None else TokenizerSpec(path=study.policy.path)
        family = study.policy.model_copy(update={"config": {}, "dropout": 0.0})
        self.data = Data(
            task=study.task, fingerprint=fingerprint, tokenizer=tokenizer, family=family, limits=study.limits, seed=seed
        )
        self.sft = self.tuned(study.policy, study.sft)
        self.golden = self.judge(study.golden, "golden", None)
        self.d_golden = self.relabel(self.golden)
        self.proxy = self.judge(study.proxy, "proxy", self.d_golden)
        self.oracle = OracleJudge(task=study.task, seed=seed) if has_oracle(task) else None
        self.judges = {"golden": self.golden, "proxy": self.proxy, "oracle": self.oracle}
        self.opponents = {"sft": self.responses(self.sft)}
        if "golden_policy" in study.measurement.opponents:
            arm = Arm(behavior="policy", judge="golden")
            self.opponents["golden_policy"] = self.responses(self.recipe_run(arm, "golden policy"))

    def tuned(self, model: ModelSpec, how: Optimization) -> Sft:
        return Sft(
            data=self.data, model=model, optimization=how, limits=self.study.limits, seed=derive(self.seed, "sft")
        )

    def judge(self, spec: JudgeSpec, role: str, labels: Relabel | None) -> FitJudge:
        backbone = self.tuned(spec.model or self.study.policy, spec.pretrain or self.study.sft)
        return FitJudge(data=self.data, labels=labels, backbone=backbone, spec=spec, seed=derive(self.seed, role))

    def relabel(self, judge: FitJudge | OracleJudge, soft: bool = False) -> Relabel:
        return Relabel(data=self.data, judge=judge, reference=self.sft, soft=soft)

    def source(self, arm: Arm) -> Source:
        """The arm's stream, with the artifacts it draws on."""
        judge = self.judges[arm.judge] if arm.judge else None
        if arm.mix is not None:
            return Source(arm=arm, mixed=[self.source(self.study.arms[part]) for part in arm.mix])
        if arm.of is not None:
            return Source(arm=arm, judge=judge, recording=self.recipe_run(self.study.arms[arm.of], "run"))
        if arm.behavior == "policy" or judge is None:
            return Source(arm=arm, judge=judge)
        return Source(arm=arm, dataset=self.relabel(judge, arm.soft_labels))

    def recipe_run(self, arm: Arm, role: str) -> Align:
        """The arm's run at the recipe as it stands."""
        return self.align(arm, self.study.recipe.loss, self.study.recipe.optimization, role)

    def align(self, arm: Arm, loss: LossSpec, how: Optimization, role: str) -> Align:
        study = self.study
        return Align(
            data=self.data, sft=self.sft, source=self.source(arm), loss=loss, optimization=how,
            checkpoints=study.measurement.checkpoints, limits=study.limits, seed=derive(self.seed, role),
        )  # fmt: skip

    def responses(self, policy: Sft | Align) -> Responses:
        return Responses(
            data=self.data, policy=policy, measurement=self.study.measurement, limits=self.study.limits,
            seed=derive(self.seed, "opponents"),
        )  # fmt: skip

    def measure(self, run: Align | None) -> Measure:
        return Measure(
            data=self.data, sft=self.sft, run_=run, golden=self.golden, proxy=self.proxy, oracle=self.oracle,
            held_out=self.d_golden, opponents=self.opponents, measurement=self.study.measurement,
            seed=derive(self.seed, "measure"),
        )  # fmt: skip


def expand(study: Study) -> Plan:
    """The study's runs. The whole pipeline, task and judges included, is repeated per seed."""
    task = build_task(study.task)
    fingerprint = task.fingerprint()
    runs: list[Run] = []
    start: dict[int, Measure] = {}
    for seed in study.seed_list:
        made = Pipeline(study, task, fingerprint, seed)
        start[seed] = made.measure(None)
        for name, arm in study.arms.items():
            for config, loss, how in settings_of(study, name):
                run = made.align(arm, loss, how, "run")
                full = f"{name} {config} seed={seed}"
                beta = float(loss.options.get("beta", float("nan")))
                runs.append(Run(full, name, config, seed, beta, how.learning_rate, run, made.measure(run)))
    return Plan(study, runs, start)


def arm_diff(study: Study, left: str, right: str) -> list[tuple[str, str, str]]:
    """(setting, left, right) wherever two arms differ; by construction only in their stream and their sweep."""
    for side in (left, right):
        if side not in study.arms:
            raise AligngapError(f"no arm `{side}`{registry.did_you_mean(side, study.arms)}")
    rows = []
    a, b = study.arms[left].model_dump(), study.arms[right].model_dump()
    rows += [(key, str(a[key]), str(b[key])) for key in a if a[key] != b[key]]
    sweeps = [", ".join(config for config, _, _ in settings_of(study, side)) for side in (left, right)]
    if sweeps[0] != sweeps[1]:
        rows.append(("sweep", sweeps[0], sweeps[1]))
    return rows
