"""Study files: read as YAML, laid over the packaged studies that they extend, changed by `--set`, parsed into settings.

Leaves out whether the settings can work together (`load.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from aligngap import registry
from aligngap.settings import Study, explain
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


def read_study(name: str) -> dict[str, Any]:
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


def resolve_extends(raw: dict[str, Any], name: str, path: tuple[str, ...] = ()) -> dict[str, Any]:
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
        below = resolve_extends(read_study(base), base, (*path, name))
        merged = overlay(merged, {k: v for k, v in below.items() if k not in ("name", "question")})
    merged = overlay(merged, {k: v for k, v in raw.items() if k != "extends"})
    for section in ("arms", "variants"):
        if isinstance(merged.get(section), dict):
            merged[section] = {k: v for k, v in merged[section].items() if v is not None}
    return merged


def overlay(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
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
            out[key] = overlay(mine, value)
    return out


class UniqueKeyLoader(yaml.SafeLoader):
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
    """The mapping that a YAML text holds; AligngapError with the line where it is no study."""
    try:
        raw = UniqueKeyLoader(text).get_single_data()
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


def parse_study(raw: Mapping[str, Any], label: str) -> Study:
    """The study that nested keys and values say, each of its kind; errors begin with `label`, a file or a place."""
    try:
        return Study.model_validate(raw)
    except ValidationError as error:
        raise AligngapError(f"{label}: {explain(error, model=Study)}") from error
    except UnicodeEncodeError as error:
        raise AligngapError(f"{label}: {error.object!a} holds a lone surrogate, which is no character") from error
