"""What a step is: its configuration and the steps it needs, nested; its key is the hash of both."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel

from aligngap.settings import Optimization, Settings
from aligngap.storage.store import digest

if TYPE_CHECKING:
    from aligngap.pipeline.context import Context, Job


class Step(Settings):
    """Configuration, inputs and work of one artifact.

    Raise `version` when the same configuration gives other results. A setting that stands at its default is no part
    of the key: a new setting whose default does what was done before leaves every stored artifact as it is, and a
    default that changes is a change of version.
    """

    version: ClassVar[int] = 1
    kind: str

    @cached_property
    def configuration(self) -> Any:
        """The step's settings as JSON values, each step it needs replaced by that step's name."""
        return configuration_of(self)

    @cached_property
    def inputs(self) -> dict[str, Step]:
        """The steps this one needs, by the place where its settings name them."""
        return dict(_needed(self, ""))

    @cached_property
    def name(self) -> str:
        """Folder of the artifact: kind and key."""
        return f"{self.kind}-{digest({'version': self.version, 'configuration': self.configuration})}"

    def made(self, ctx: Context, part: str) -> Path:
        """A file or folder of the finished step's artifact, found to be what was written; see `Store.open`."""
        return ctx.store.open(self.name, part)

    @property
    def label(self) -> str:
        """A few words for a progress line."""
        return self.kind

    @property
    def training(self) -> Optimization | None:
        """How the step trains a model; None where it trains none."""
        return None

    def units(self) -> float:
        """Rough amount of work, in forward passes of one response or so; see `duration.py`."""
        return 1.0

    @abstractmethod
    def run(self, ctx: Context, job: Job) -> dict[str, Any]:
        """Do the work in the job's folder; what is returned goes into the manifest."""

    def walk(self) -> Iterator[Step]:
        """This step and all it needs, needs first; a step needed twice comes twice."""
        for step in self.inputs.values():
            yield from step.walk()
        yield self


def configuration_of(step: Step) -> dict[str, Any]:
    """The settings of a step that are not at their defaults, as JSON values; each step it needs as that step's name."""
    return {name: _described(value) for name, value in _list_given(step).items()}


def _list_given(model: BaseModel) -> dict[str, Any]:
    """The fields of a settings object that are not at their defaults."""
    defaults = _defaults(type(model))
    values = {name: getattr(model, name) for name in defaults}
    return {name: v for name, v in values.items() if v != defaults[name]} | (model.model_extra or {})


@cache
def _defaults(kind: Any) -> dict[str, Any]:
    """What the fields of a class of settings are where nobody says; to be compared with, not to be changed."""
    return {n: field.get_default(call_default_factory=True) for n, field in kind.model_fields.items()}


def _described(value: Any) -> Any:
    """JSON values of settings; a step becomes its name."""
    if isinstance(value, Step):
        return value.name
    if isinstance(value, BaseModel):
        return {k: _described(v) for k, v in _list_given(value).items()}
    if isinstance(value, dict):
        return {str(k): _described(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_described(v) for v in value]
    return value


def _needed(value: Any, place: str) -> Iterator[tuple[str, Step]]:
    """The steps inside a value, each with its place; a step below the top is not looked into."""
    if isinstance(value, Step) and place:
        yield place, value
        return
    parts: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, BaseModel):
        parts = _list_given(value).items()
    elif isinstance(value, dict):
        parts = value.items()
    elif isinstance(value, list | tuple):
        parts = enumerate(value)
    for name, part in parts:
        yield from _needed(part, f"{place}.{name}" if place else str(name))
