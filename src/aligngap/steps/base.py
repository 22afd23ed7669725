"""What a step is: its configuration and the steps it needs, nested; its key is the hash of both."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel

from aligngap.settings import Settings
from aligngap.storage.store import digest

if TYPE_CHECKING:
    from aligngap.context import Context


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
        return _plain(self, {})

    @cached_property
    def inputs(self) -> dict[str, Step]:
        """The steps this one needs, by the place where its settings name them."""
        found: dict[str, Step] = {}
        _plain(self, found)
        return found

    @cached_property
    def name(self) -> str:
        """Folder of the artifact: kind and key."""
        return f"{self.kind}-{digest({'version': self.version, 'configuration': self.configuration})}"

    @property
    def label(self) -> str:
        """A few words for a progress line."""
        return self.kind

    def units(self) -> float:
        """Rough amount of work, in forward passes of one response or so; see `forecast.py`."""
        return 1.0

    @abstractmethod
    def run(self, ctx: Context) -> dict[str, Any]:
        """Do the work in `ctx.work`; what is returned goes into the manifest."""

    def walk(self) -> Iterator[Step]:
        """This step and all it needs, needs first; a step needed twice comes twice."""
        for step in self.inputs.values():
            yield from step.walk()
        yield self


def _plain(value: Any, found: dict[str, Step], place: str = "") -> Any:
    """JSON values of settings; a step below the top becomes its name and is added to `found` under its place."""
    if isinstance(value, Step) and place:
        found[place] = value
        return value.name
    if isinstance(value, BaseModel):
        extra = value.model_extra or {}
        fields = {name: getattr(value, name) for name in type(value).model_fields}
        defaults = {
            name: field.get_default(call_default_factory=True) for name, field in type(value).model_fields.items()
        }
        fields = {name: v for name, v in fields.items() if v != defaults[name]} | extra
        return {k: _plain(v, found, f"{place}.{k}" if place else k) for k, v in fields.items()}
    if isinstance(value, dict):
        return {str(k): _plain(v, found, f"{place}.{k}") for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v, found, f"{place}.{i}") for i, v in enumerate(value)]
    return value
