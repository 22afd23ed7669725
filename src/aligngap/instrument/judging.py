"""Judges of a measurement: `--judge` words, settings or objects become judges that are ready, or one line why not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from aligngap import registry
from aligngap.judges.kinds import IdentifiedKind, LearningKind, OpenedKind
from aligngap.settings import JudgeSpec, explain
from aligngap.study.build import build_judge
from aligngap.types import AligngapError, Judge, first_line

FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def parse_judge(text: str) -> JudgeSpec:
    """The judge that a word after `--judge` names.

    Either `KIND` or `KIND: {settings}` in YAML with a registered kind that is ready, or `module:function`, or a path of
    a reward model.
    """
    if FUNCTION.fullmatch(text):
        return _checked(JudgeSpec.model_validate({"kind": "function", "object": text}), text)
    if Path(text).is_dir():
        return _checked(JudgeSpec.model_validate({"kind": "reward-model", "path": text}), text)
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise AligngapError(
            f"--judge {text}: not YAML ({first_line(error, 120)}); write 'KIND: {{key: value}}'"
        ) from error
    if isinstance(raw, str):
        if raw not in (known := registry.names("judges")):
            kind = "" if "/" in raw else f", nor a kind of judge of that name{registry.did_you_mean(raw, known)}"
            raise AligngapError(
                f"--judge {text}: no such folder{kind}; give the folder of a reward model, module:function, or a kind"
            )
        raw = {raw: {}}
    if not isinstance(raw, dict) or (len(raw) != 1 and "kind" not in raw):
        raise AligngapError(f"--judge {text}: write one kind with its settings, as 'reward-model: {{path: FOLDER}}'")
    if "kind" not in raw:
        kind, settings = next(iter(raw.items()))
        if settings is not None and not isinstance(settings, dict):
            settings = {_only(str(kind)): settings}
        raw = {"kind": str(kind), **(settings or {})}
    try:
        spec = JudgeSpec.model_validate(raw)
    except ValidationError as error:
        raise AligngapError(explain(error, prefix=f"--judge {text}: ")) from error
    return _checked(spec, text)


def _only(kind: str) -> str:
    """The setting that `KIND: VALUE` gives: the one that says which model or function it is."""
    return {"reward-model": "path", "function": "object", "endpoint": "base_url"}.get(kind, "value")


def _checked(spec: JudgeSpec, text: str) -> JudgeSpec:
    try:
        ready = spec.kind != "oracle" and _is_ready(spec.kind)
    except AligngapError as error:
        raise AligngapError(
            f"--judge {text}: {error}; or give module:function, or the folder of a reward model"
        ) from error
    if not ready:
        kinds = ", ".join(n for n in registry.names("judges") if n != "oracle" and _is_ready(n))
        what = "is the sandbox's own truth" if spec.kind == "oracle" else "has to be trained on labels first"
        raise AligngapError(f"--judge {text}: a judge of kind `{spec.kind}` {what}; ready kinds: {kinds}")
    build_judge(spec, f"--judge {text}")
    return spec


def _is_ready(name: str) -> bool:
    """Whether a registered kind of judge answers without learning first."""
    kind = registry.get("judges", name)
    return not all(hasattr(kind, does) for does in ("start", "load"))


def open_judge(given: Any, device: Any, folder: Path | None = None) -> Judge:
    """A judge in this process: the object itself, or the one that words or settings name."""
    if isinstance(given, Judge):
        return given
    spec = given if isinstance(given, JudgeSpec) else parse_judge(str(given))
    kind = build_judge(spec)
    if isinstance(kind, LearningKind):
        raise AligngapError(f"judge `{spec.kind}`: has to be trained on labels first; give one that is ready")
    if isinstance(kind, OpenedKind):
        from aligngap.storage.content import cache_folder

        place = folder or cache_folder()
        place.mkdir(parents=True, exist_ok=True)
        opened: Judge = kind.open(place, device)
        return opened
    judge: Judge = kind
    return judge


def identity_of(spec: JudgeSpec) -> dict[str, Any]:
    """What makes a judge's answers, as JSON values."""
    kind = build_judge(spec)
    found: dict[str, Any] = kind.identity() if isinstance(kind, IdentifiedKind) else spec.options
    return found
