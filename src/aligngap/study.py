"""Studies: read YAML, refuse what is wrong in one line, expand arms and sweeps into steps, collect the records.

A study is data. `load` finds a packaged study or a YAML file, `expand` turns it into runs (arm x hyper-parameters x
seed) whose steps share whatever is equal, `collect` gathers the finished measurements into the record tables.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ValidationError

from . import registry
from .seeding import derive
from .settings import Arm, JudgeSpec, LossSpec, ModelSpec, Optimization, Study, TokenizerSpec
from .steps import (
    Align,
    BestOfN,
    Data,
    FitJudge,
    JudgesProbe,
    Measure,
    OracleJudge,
    Probe,
    ReadyJudge,
    Relabel,
    Responses,
    Sft,
    Source,
    Step,
    Written,
    build_judge,
    build_task,
    explain,
    identity_of,
)
from .streams import order_of
from .types import AligngapError

MAX_NODES = 100_000  #: values in a study's file, aliases written out


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
    raw = extended(read(name), name)
    for override in overrides:
        apply_override(raw, override)
    return validate(raw, name)


def read(name: str) -> dict[str, Any]:
    """The keys that a study's own file gives, by packaged name or YAML path."""
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
    return parse_yaml(text, name)


def extended(raw: dict[str, Any], name: str, path: tuple[str, ...] = ()) -> dict[str, Any]:
    """The study with the packaged studies it `extends` filled in below its own keys (a name, or a list: the later win).

    Sections are merged key by key, everything else is replaced; an arm or a variant set to null is taken out. `name`
    and `question` are never inherited.
    """
    given = raw.get("extends", [])
    bases = [given] if isinstance(given, str) else given
    if not isinstance(bases, list) or not all(isinstance(b, str) for b in bases):
        raise AligngapError(f"{name}: extends: must be a packaged study's name or a list of them")
    merged: dict[str, Any] = {}
    for base in bases:
        if base in (*path, name):
            raise AligngapError(f"{name}: extends: a circle, {' -> '.join((*path, name, base))}")
        if base not in packaged():
            raise AligngapError(f"{name}: extends: no packaged study `{base}`{registry.did_you_mean(base, packaged())}")
        below = extended(read(base), base, (*path, name))
        merged = overlaid(merged, {k: v for k, v in below.items() if k not in ("name", "question")})
    merged = overlaid(merged, {k: v for k, v in raw.items() if k != "extends"})
    for section in ("arms", "variants"):
        if isinstance(merged.get(section), dict):
            merged[section] = {k: v for k, v in merged[section].items() if v is not None}
    return merged


def overlaid(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings merged, what is above winning; an arm or a variant is replaced whole by its namesake."""
    out = dict(below)
    for key, value in above.items():
        if isinstance(out.get(key), dict) and isinstance(value, dict):
            out[key] = {**out[key], **value} if key in ("arms", "variants") else overlaid(out[key], value)
        else:
            out[key] = value
    return out


class _OneKeyOnce(yaml.SafeLoader):
    """Safe YAML in which a key that stands twice is a mistake, where YAML would quietly take the second."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key `{key.value}` stands twice", key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def expanded_size(value: Any) -> float:
    """How many values there are once every alias is written out; infinite where one holds itself."""
    sizes: dict[int, float] = {}

    def size(value: Any) -> float:
        if not isinstance(value, dict | list):
            return 1
        if id(value) not in sizes:
            sizes[id(value)] = math.inf  # until it is known: met again inside itself, it has no end
            inside = value.values() if isinstance(value, dict) else value
            sizes[id(value)] = 1 + sum(size(v) for v in inside)
        return sizes[id(value)]

    return size(value)


def parse_yaml(text: str, name: str) -> dict[str, Any]:
    try:
        raw = _OneKeyOnce(text).get_single_data()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not YAML"
        raise AligngapError(f"{name}{where}: {problem}") from error
    except (RecursionError, ValueError) as error:
        raise AligngapError(f"{name}: not a study ({type(error).__name__})") from error
    if expanded_size(raw) > MAX_NODES:
        raise AligngapError(f"{name}: more than {MAX_NODES} values once its aliases are written out; make it smaller")
    if not isinstance(raw, dict):
        raise AligngapError(f"{name}: a study is a mapping of keys to values, this is {type(raw).__name__}")
    return raw


def apply_override(raw: dict[str, Any], override: str) -> None:
    """Set `a.b.c=value` in a nested mapping; the value is YAML."""
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise AligngapError(f"--set {override}: must read key=value, for instance seeds=3 or task.path=pairs.jsonl")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise AligngapError(f"--set {key}: `{text}` is not a YAML value") from error
    set_value(raw, key.strip(), value, "--set")


def set_value(raw: dict[str, Any], key: str, value: Any, where: str) -> None:
    """Set a dotted key in a nested mapping, making sections that are not there."""
    *parents, last = key.split(".")
    place = raw
    for parent in parents:
        if place.get(parent) is None:
            place[parent] = {}
        place = place[parent]
        if not isinstance(place, dict):
            raise AligngapError(f"{where} {key}: `{parent}` is not a section")
    place[last] = value


def validate(raw: Mapping[str, Any], name: str) -> Study:
    """The study, checked without any compute: keys, values, arms, loss and task settings."""
    from .steps import build_loss

    try:
        study = Study.model_validate(raw)
    except ValidationError as error:
        raise AligngapError(f"{name}: {explain(error)}") from error
    except UnicodeEncodeError as error:
        raise AligngapError(f"{name}: {error.object!a} holds a lone surrogate, which is no character") from error
    try:
        build_loss(study.recipe.loss)
        for role in ("golden", "proxy"):
            build_judge(getattr(study, role), role)
        for arm in study.arms:
            for _, loss, _ in settings_of(study, arm):
                build_loss(loss)
        task = build_task(study.task)
        for arm, spec in study.arms.items():
            if spec.judge == "oracle" and not has_oracle(task):
                raise AligngapError(f"arms.{arm}.judge: task `{study.task['name']}` has no oracle; use golden or proxy")
            try:
                order_of(spec.order, 1, 0, 1)
            except AligngapError as error:
                raise AligngapError(f"arms.{arm}.order: {error}") from error
        if not name.startswith("variants."):
            check_labels(study, study.arms, "arms")
        for variant, its in study.variants.items():
            check_labels(varied(study, variant), its.arms or study.arms, f"variants.{variant}")
        for grid in study.sweep:
            if "beta" in grid.axes and "beta" not in study.recipe.loss.options and not name.startswith("variants."):
                raise AligngapError(f"sweep: axis `beta`, but recipe.loss `{study.recipe.loss.name}` sets no beta")
    except AligngapError as error:
        raise AligngapError(f"{name}: {error}") from error
    return study


def needs_probabilities(study: Study) -> bool:
    """Whether the recipe's loss reads the judge's probabilities, so that hard labels would mislead it."""
    from .steps import build_loss

    return bool(getattr(build_loss(study.recipe.loss), "needs_probabilities", False))


def check_labels(study: Study, arms: Iterable[str], where: str) -> None:
    """Refuse arms with hard labels under a loss that reads probabilities."""

    def soft(arm: Arm) -> bool:
        if arm.mix is not None:
            return all(soft(study.arms[part]) for part in arm.mix)
        return soft(study.arms[arm.of]) if arm.of is not None and arm.judge is None else arm.soft_labels

    for arm in arms if needs_probabilities(study) else ():
        if arm in study.arms and not soft(study.arms[arm]):
            loss = study.recipe.loss.name
            raise AligngapError(f"{where}: loss `{loss}` reads probabilities, so arm `{arm}` needs `soft_labels: true`")


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
    loss: str
    beta: float
    learning_rate: float
    align: Align
    measure: Measure


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
        """Every step once, needs before what needs them."""
        wanted = [*self.start.values(), *self.references.values(), *self.probes.values(), *self.judges_probes.values()]
        wanted += [r.measure for r in self.runs]
        return list({s.name: s for w in wanted for s in w.walk()}.values())


def settings_of(study: Study, arm: str) -> Iterator[tuple[str, Any, Any]]:
    """(config, loss, optimization) of each run of an arm: the recipe, or the recipe at each point of its sweep."""
    grid = next((g for g in study.sweep if arm in g.arms), None)
    axes: dict[str, list[float]] = {**grid.axes} if grid else {}  # type: ignore[dict-item]
    if "beta" not in study.recipe.loss.options:
        axes.pop("beta", None)  # under a variant whose loss has none
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

    def __init__(self, study: Study, seed: int, base: Pipeline | None = None) -> None:
        task = build_task(study.task)
        self.study, self.seed = study, seed
        # A pretrained policy brings its own tokenizer.
        tokenizer = study.tokenizer if study.policy.path is None else TokenizerSpec(path=study.policy.path)
        self.data = Data(
            task=study.task, fingerprint=fingerprint_of(study), tokenizer=tokenizer, family=study.policy.family,
            limits=study.limits, seed=seed, judge_share=study.judge_share,
        )  # fmt: skip
        self.sft = self.tuned(study.policy, study.sft)
        self.golden = self.judge(study.golden, "golden", None)
        self.d_golden = self.relabel(self.golden)
        # A variant with the same golden judge has the study's own labels, whatever its reference says of them beside.
        own = base if base is not None and base.golden.name == self.golden.name else self
        self.proxy = self.judge(study.proxy, "proxy", own.d_golden)
        self.oracle = OracleJudge(task=study.task, seed=seed) if has_oracle(task) else None
        self.judges = {"golden": self.golden, "proxy": self.proxy, "oracle": self.oracle}
        self.reference_samples = self.responses(self.sft)
        self.opponents: dict[str, Responses] = {}
        if "sft" in study.measurement.opponents:
            self.opponents["sft"] = self.reference_samples
        if "golden_policy" in study.measurement.opponents:
            # And it meets the study's own golden policy.
            arm = Arm(behavior="policy", judge="golden", soft_labels=needs_probabilities(own.study))
            self.opponents["golden_policy"] = own.responses(own.recipe_run(arm, "golden policy"))

    def tuned(self, model: ModelSpec, how: Optimization, split: Literal["train", "judge"] = "train") -> Sft:
        return Sft(
            data=self.data, model=model, optimization=how, limits=self.study.limits, seed=derive(self.seed, "sft"),
            split=split if how.steps else "train",  # a model as it is has learned from neither
        )  # fmt: skip

    def judge(self, spec: JudgeSpec, role: str, labels: Relabel | None) -> FitJudge | ReadyJudge:
        if not hasattr(build_judge(spec, role), "start"):
            return ReadyJudge(data=self.data, labels=labels, spec=spec, identity=identity_of(spec, role))
        split = self.data.judges_learn_from
        backbone = self.tuned(spec.model or self.study.policy, spec.pretrain or self.study.sft, split)
        own = spec.model_copy(update={"model": None, "pretrain": None})  # the backbone says both: equal ones are shared
        seed = derive(self.seed, role)
        return FitJudge(data=self.data, labels=labels, backbone=backbone, spec=own, seed=seed, split=split)

    def relabel(self, judge: FitJudge | ReadyJudge | OracleJudge, soft: bool = False) -> Relabel:
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
        if arm.writers is not None:
            writers, at = zip(*(self.writer(w) for w in arm.writers), strict=True)
            written = Written(
                data=self.data, writers=list(writers), at=list(at), judge=judge, reference=self.sft,
                soft=arm.soft_labels, temperature=arm.temperature, seed=derive(self.seed, "written"),
            )  # fmt: skip
            return Source(arm=arm, dataset=written)
        return Source(arm=arm, dataset=self.relabel(judge, arm.soft_labels))

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
        return Align(
            data=self.data, sft=self.sft, source=source, loss=loss, optimization=how,
            checkpoints=study.measurement.checkpoints, limits=study.limits, seed=derive(self.seed, role),
            label_smoothing=study.recipe.label_smoothing, start=start, start_at=at,
            on_policy_kl=study.recipe.on_policy_kl if source.unlabelled else 0.0,
        )  # fmt: skip

    def responses(self, policy: Sft | Align) -> Responses:
        return Responses(
            data=self.data, policy=policy, measurement=self.study.measurement, limits=self.study.limits,
            seed=derive(self.seed, "opponents"),
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

    def measure(self, run: Align | None) -> Measure:
        return Measure(
            data=self.data, sft=self.sft, run_=run, golden=self.golden, proxy=self.proxy, oracle=self.oracle,
            held_out=self.d_golden, reference_samples=self.reference_samples, opponents=self.opponents,
            measurement=self.study.measurement, seed=derive(self.seed, "measure"),
        )  # fmt: skip


@cache
def _fingerprint(task: str) -> str:
    found: str = build_task(json.loads(task)).fingerprint()
    return found


def fingerprint_of(study: Study) -> str:
    """The hash of what the study's task would load; files are read once, however many seeds and variants there are."""
    return _fingerprint(json.dumps(study.task, sort_keys=True))


def varied(study: Study, name: str) -> Study:
    """The study under one of its variants."""
    raw = study.model_dump(mode="json", exclude={"variants"}, exclude_unset=True)
    for key, value in study.variants[name].set.items():
        if key.split(".")[0] in ("arms", "sweep", "measurement", "seeds", "name", "variants", "compare"):
            raise AligngapError(
                f"variants.{name}: `{key}` may not vary: arms, sweep and measurement are the study's own"
            )
        set_value(raw, key, value, f"variants.{name}")
    if study.sweep:
        raw["sweep"] = [{**grid, "arms": arms} for grid, arms in zip(raw["sweep"], swept(study, name), strict=True)]
    return validate(raw, f"variants.{name}")


def swept(study: Study, variant: str) -> list[list[str]]:
    """Per grid the arms it holds for under a variant: those it names as "ARM[VARIANT]", and the bare ones that no grid
    names so."""
    end = f"[{variant}]"
    named = {arm.removesuffix(end) for grid in study.sweep for arm in grid.arms if arm.endswith(end)}
    return [
        [a.removesuffix(end) for a in grid.arms if a.endswith(end) or ("[" not in a and a not in named)]
        for grid in study.sweep
    ]


def expand(study: Study) -> Plan:
    """The study's runs. The whole pipeline, task and judges included, is repeated per seed.

    Under a variant an arm is named "ARM[VARIANT]"; what the variant does not touch is shared with the study.
    """
    _fingerprint.cache_clear()  # files may have changed since this process last looked
    runs: list[Run] = []
    start: dict[str, Measure] = {}
    references: dict[tuple[int, str], BestOfN] = {}
    probes: dict[int, Probe] = {}
    judges_probes: dict[int, JudgesProbe] = {}
    settings = {"": study, **{name: varied(study, name) for name in study.variants}}
    for seed in study.seed_list:
        base: Pipeline | None = None
        proxies: dict[str, FitJudge | ReadyJudge] = {}
        for variant, its in settings.items():
            made = Pipeline(its, seed, base)
            if base is None:
                base = made
                if study.probe:
                    probes[seed] = made.probe()
            elif made.golden.name == base.golden.name and made.proxy.name != base.proxy.name:
                proxies[variant] = made.proxy
            if study.measurement.best_of_n and (not variant or its.task != study.task):
                references[seed, variant] = made.best_of_n()
            sft_measured = made.measure(None)
            chosen = study.variants[variant].arms if variant else None
            for name, arm in its.arms.items():
                if chosen is not None and name not in chosen:
                    continue
                for config, loss, how in settings_of(its, name):
                    run = made.run(arm, loss, how)
                    shown = f"{name}[{variant}]" if variant else name
                    full = f"{shown} {config} seed={seed}"
                    beta = float(loss.options.get("beta", float("nan")))
                    measured = made.measure(run)
                    start[full] = sft_measured
                    runs.append(Run(full, shown, config, seed, loss.name, beta, how.learning_rate, run, measured))
        if study.probe and base is not None and proxies:
            judges_probes[seed] = base.judges_probe(proxies)
    return Plan(study, runs, start, references, probes, judges_probes)


def arm_diff(study: Study, left: str, right: str) -> list[tuple[str, str, str]]:
    """(setting, left, right) wherever two arms differ; in one study by construction only in stream and sweep.

    A side may be "ARM[VARIANT]"; then what the variants set is compared as well, under its dotted key.
    """
    sides = [side_of(study, side) for side in (left, right)]
    rows: list[tuple[str, str, str]] = []

    def compare(key: str, values: Sequence[str]) -> None:
        if values[0] != values[1]:
            rows.append((key, values[0], values[1]))

    arms = [its.arms[arm].model_dump() for its, arm, _ in sides]
    for key in arms[0]:
        compare(key, [str(a[key]) for a in arms])
    compare("sweep", [", ".join(config for config, _, _ in settings_of(its, arm)) for its, arm, _ in sides])
    for key in dict.fromkeys(k for _, _, variant in sides if variant for k in study.variants[variant].set):
        compare(key, [str(dotted(its, key)) for its, _, _ in sides])
    return rows


def side_of(study: Study, name: str) -> tuple[Study, str, str]:
    """The study an arm is run under, the arm, and the variant ("" for the study as it stands)."""
    arm, bracket, variant = name.partition("[")
    variant = variant.removesuffix("]")
    if arm not in study.arms:
        raise AligngapError(f"no arm `{arm}`{registry.did_you_mean(arm, study.arms)}")
    if not bracket:
        return study, arm, ""
    if variant not in study.variants:
        raise AligngapError(f"no variant `{variant}`{registry.did_you_mean(variant, study.variants)}")
    if arm not in (study.variants[variant].arms or study.arms):
        raise AligngapError(f"arm `{arm}` is not run under variant `{variant}`")
    return varied(study, variant), arm, variant


def dotted(study: Study, key: str) -> Any:
    """The value of a dotted key of a study; None where a section is not there."""
    value: Any = study.model_dump(mode="json")
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value
