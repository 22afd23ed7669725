"""The `helpful` and `harmless` tasks: Anthropic's human comparisons of dialogues (Bai et al., arXiv 2204.05862).

A row is two whole dialogues, `chosen` and `rejected`, which differ in the assistant's last answer. The harmless data
holds offensive text by design: its chosen answer is only the less harmful of two.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from aligngap.tasks._common import Sources, file_sources
from aligngap.tasks._files import expand, fail, inside, is_folder
from aligngap.tasks._hub import NamedTask, hub_sources, merge
from aligngap.tasks._layouts import Layout, PairColumns

REMEDY = "give the original rows (chosen, rejected: dialogues with Human: and Assistant: turns), or add a prompt"


class _DialogueTask(NamedTask):
    """What the two tasks share. A local copy is a file, a folder with `train.*`, or the original folder of subsets."""

    kind: ClassVar[str]
    hub: str = Field(default="Anthropic/hh-rlhf", description="the data set's name on the hub")
    subsets: tuple[str, ...]

    @property
    def folders(self) -> list[str]:
        """The subsets' names in the original repository, for instance `helpful-base`."""
        return [f"{self.kind}-{subset}" for subset in dict.fromkeys(self.subsets)]

    def local_sources(self, path: str) -> Sources:
        folder = expand(path)
        present = [name for name in self.folders if is_folder(folder / name)]
        if not present and "subsets" not in self.model_fields_set:
            return file_sources(folder)
        missing = [name for name in self.folders if name not in present]
        if missing:
            raise fail(str(folder), f"has no folder {missing[0]}", "leave task.subsets out, or add the folder")
        return merge([file_sources(inside(folder, Path(folder, name))) for name in self.folders])

    def hub_sources(self) -> Sources:
        return merge([hub_sources(self.hub, data_dir=name, revision=self.revision) for name in self.folders])

    def layouts(self) -> Sequence[Layout]:
        return PairColumns(remedy=REMEDY).layouts()


class HelpfulTask(_DialogueTask):
    """Which answer is more helpful, from a local copy or the hub.

    `subsets` are the publisher's: `base`, `rejection-sampled` (answers picked by an early preference model) and
    `online` (answers of models that were being trained).
    """

    kind: ClassVar[str] = "helpful"
    subsets: tuple[Literal["base", "online", "rejection-sampled"], ...] = Field(
        default=("base",), min_length=1, description="which of the publisher's subsets are read"
    )


class HarmlessTask(_DialogueTask):
    """Which answer is less harmful, from a local copy or the hub; the publisher gives the base subset only."""

    kind: ClassVar[str] = "harmless"
    subsets: tuple[Literal["base"], ...] = Field(
        default=("base",), min_length=1, description="which of the publisher's subsets are read"
    )
