"""Studies: read YAML, lay one over another, refuse what is wrong in one line, set a study under sweeps and variants.

A study is data. `load` finds a packaged study or a YAML file and checks it; which runs and steps it needs is laid out
in `plan.py`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from aligngap import registry
from aligngap.settings import Arm, Study
from aligngap.steps import build_judge, build_task, explain
from aligngap.streams import order_of
from aligngap.types import AligngapError

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
    """Nested mappings merged, what is above winning; an arm or a variant is replaced whole by its namesake, a task by
    one of another name."""
    out = dict(below)
    for key, value in above.items():
        mine = out.get(key)
        if not isinstance(mine, dict) or not isinstance(value, dict):
            out[key] = value
        elif key in ("arms", "variants"):
            out[key] = {**mine, **value}
        elif key == "task" and value.get("name", mine.get("name")) != mine.get("name"):
            out[key] = value  # the settings of one task are none of another's
        else:
            out[key] = overlaid(mine, value)
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
    from aligngap.steps import build_loss

    try:
        study = Study.model_validate(raw)
    except ValidationError as error:
        raise AligngapError(f"{name}: {explain(error)}") from error
    except UnicodeEncodeError as error:
        raise AligngapError(f"{name}: {error.object!a} holds a lone surrogate, which is no character") from error
    try:
        build_loss(study.recipe.loss)
        known = registry.names("rollouts")
        if study.recipe.rollouts.engine not in known:
            hint = registry.did_you_mean(study.recipe.rollouts.engine, known)
            raise AligngapError(f"recipe.rollouts.engine: no `{study.recipe.rollouts.engine}`{hint}")
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
    from aligngap.steps import build_loss

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
