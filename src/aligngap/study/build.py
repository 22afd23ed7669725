"""The objects that a study names: its task, judges and loss, each built with its settings or refused in one line."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from aligngap import registry
from aligngap.judges.kinds import IdentifiedKind, LearningKind, OpenedKind
from aligngap.losses import ReadsProbabilities
from aligngap.settings import JudgeSpec, LossSpec, Study, explain
from aligngap.settings.base import say_wrong
from aligngap.source import use
from aligngap.storage.store import digest
from aligngap.types import AligngapError, Judge, OracleTask


def build_task(section: dict[str, Any]) -> Any:
    """The task a `task:` section names, built with its settings; unknown names and keys are refused in one line."""
    if "name" not in section:
        raise AligngapError(f"task.name: missing; known tasks: {', '.join(registry.names('tasks'))}")
    try:
        maker = registry.get("tasks", str(section["name"]))
    except AligngapError as error:
        raise AligngapError(f"task.name: {error}") from error
    try:
        return maker(**{k: v for k, v in section.items() if k != "name"})
    except ValidationError as error:
        raise AligngapError(explain(error, "task.", maker)) from error


LEARNS = (
    "model",
    "pretrain",
    "optimization",
    "labels",
    "stop_every",
    "head_start",
)  # settings of a judge that are for kinds that learn


def build_judge(spec: JudgeSpec, where: str = "judge") -> Any:
    """The kind of judge a study names, with its settings; unknown names and keys are refused in one line."""
    maker = registry.get("judges", spec.kind)
    if spec.kind == "oracle":
        raise AligngapError(f"{where}.kind: the oracle is the true preference beside golden and proxy; an arm names it")
    try:
        kind = maker(**spec.options)
    except ValidationError as error:
        raise AligngapError(explain(error, f"{where}.", maker)) from error
    except TypeError as error:
        known = {f.name for f in fields(maker)} if is_dataclass(maker) else set[str]()
        unknown = next((o for o in spec.options if o not in known), "")
        what = f".{unknown}: unknown key" if unknown else f": {error}"
        raise AligngapError(f"{where}{what} (a judge of kind `{spec.kind}`)") from error
    learns = isinstance(kind, LearningKind)
    if learns and spec.optimization is None:
        raise AligngapError(f"{where}.optimization: Field required")
    given = [name for name in LEARNS if getattr(spec, name) is not None]
    if given and not learns:
        raise AligngapError(f"{where}.{given[0]}: a judge of kind `{spec.kind}` does not learn; leave it out")
    return kind


def identity_of(spec: JudgeSpec, where: str) -> dict[str, Any]:
    """What makes a ready judge's answers: its own `identity()`, or its settings."""
    kind = build_judge(spec, where)
    try:
        found: dict[str, Any] = kind.identity() if isinstance(kind, IdentifiedKind) else spec.options
    except AligngapError as error:
        raise AligngapError(f"{where}.{error}") from error
    return found


def open_judge(spec: JudgeSpec, identity: dict[str, Any], code: str, folder: Path, device: Any) -> Judge:
    """A ready judge, opened and found to be the one whose `identity` and source stand in the key of a step.

    `folder` is the store, where it may keep files. AligngapError if it has changed since the step was planned.
    """
    registry.use_source(code, ("judges", spec.kind))
    kind = build_judge(spec)
    judge: Judge = kind.open(folder, device) if isinstance(kind, OpenedKind) else kind
    what = f"judge `{spec.options.get('object', spec.kind)}`"
    if digest(identity_of(spec, what)) != digest(identity):
        raise AligngapError(f"{what}: has changed while the command ran; repeat it")
    if isinstance(source := identity.get("source"), str):
        use(what, lambda: str(identity_of(spec, what).get("source")), source)
    return judge


def recipe_loss(spec: LossSpec, label_smoothing: float, on_policy_kl: float, correction: LossSpec | None = None) -> Any:
    """The loss of a recipe: the one it names under its label smoothing and its correction for who wrote the pairs, with
    the KL term for unlabelled pairs."""
    from aligngap.losses import Smoothed, UnlabelledKL

    loss = build_loss(spec)
    if label_smoothing:
        loss = Smoothed(loss, label_smoothing)
    if correction is not None:
        loss = build_correction(correction, loss)
    return UnlabelledKL(loss, on_policy_kl) if on_policy_kl else loss


def build_loss(spec: LossSpec) -> Any:
    """The loss a study names, with its hyper-parameters; a wrong one is refused in one line."""
    maker = registry.get("losses", spec.name)
    check_options(spec, maker, "recipe.loss")
    return maker(**spec.options)


def build_correction(spec: LossSpec, loss: Any) -> Any:
    """The correction a study names around a loss; a wrong one is refused in one line."""
    maker = registry.get("corrections", spec.name)
    check_options(spec, maker, "recipe.correction")
    return maker(loss=loss, **spec.options)


def check_options(spec: LossSpec, maker: Any, where: str) -> None:
    """Refuse a setting that a loss or a correction does not have, or that is of the wrong type."""
    known = [name for name in getattr(maker, "__dataclass_fields__", {}) if name != "loss"]
    types = get_type_hints(maker, localns={"Loss": Any, "Tensor": Any})
    for option, value in spec.options.items():
        if option not in known:
            hint = registry.did_you_mean(option, known)
            raise AligngapError(f"{where}.{option}: not a setting of `{spec.name}`{hint}")
        try:
            TypeAdapter(types[option]).validate_python(value, strict=True)
        except ValidationError as error:
            what = say_wrong(error.errors(include_url=False)[0])
            raise AligngapError(f"{where}.{option}: {what} (given: {value!r})") from error


def asks(study: Study, what: str) -> bool:
    """Whether the recipe's loss or its correction says that it reads the `writer`, or the `batch` as a whole."""
    recipe = study.recipe
    named = [build_loss(recipe.loss)]
    named += [build_correction(recipe.correction, named[0])] if recipe.correction is not None else []
    return any(getattr(thing, f"reads_{what}", False) for thing in named)


def needs_probabilities(study: Study) -> bool:
    """Whether the recipe's loss reads the judge's probabilities, so that hard labels would mislead it."""
    loss = build_loss(study.recipe.loss)
    return isinstance(loss, ReadsProbabilities) and loss.needs_probabilities


def has_oracle(task: Any) -> bool:
    """Whether a task has a true preference of its own, as the sandbox does."""
    return isinstance(task, OracleTask)
