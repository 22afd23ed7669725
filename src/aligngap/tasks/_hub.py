"""Tasks with a name of their own: read from `path`, or else from the Hugging Face hub through `datasets`.

`datasets` is imported only when it is needed. Whatever stops the hub from answering becomes one line that names the
`task.path` setting. Nothing here runs code that a data set brings along.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field, model_validator

from aligngap.tasks._common import FileTask, Sources, file_sources
from aligngap.tasks._files import expand, fail
from aligngap.tasks._rows import Row

TEST_SPLITS = ("test", "validation", "validation1", "validation2")


@dataclass(frozen=True)
class HubSource:
    """The rows of one split of a data set that `datasets` has loaded."""

    hub: str
    split: str
    data: Any

    @property
    def name(self) -> str:
        return f"{self.hub} ({self.split})"

    def rows(self) -> Iterator[Row]:
        for number, values in enumerate(self.data, start=1):
            yield Row(f"{self.hub}, split {self.split}, row {number}", values)

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for values in self.data:
            digest.update(json.dumps(values, sort_keys=True, default=str).encode("ascii"))
            digest.update(b"\n")
        return digest.hexdigest()


def hub_sources(hub: str, **where: str | None) -> Sources:
    """The data set's train and test (or validation) splits; `where` is passed on (`name`, `data_dir`, `revision`)."""
    remedy = "set task.path to a local copy (a file, or a folder with train.* in it)"
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as error:
        raise fail("task.hub", f"'{hub}' needs the datasets library ({error})", f"install it, or {remedy}") from error
    try:
        splits = datasets.load_dataset(hub, **{key: value for key, value in where.items() if value is not None})
        found = [str(split) for split in splits]
    except Exception as error:  # whatever the hub client raises: no network, no such data set, no access
        said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        if "gated" in said.lower() or "401" in said or "403" in said:
            remedy = f"accept its terms on the hub and set HF_TOKEN, or {remedy}"
        elif "doesn't exist" in said:
            remedy = f"check the name (a private one needs HF_TOKEN), or {remedy}"
        raise fail("task.hub", f"'{hub}' could not be loaded ({said})", remedy) from error
    if "train" not in found:
        raise fail("task.hub", f"'{hub}' has no train split (it has: {', '.join(found)[:120]})", remedy)
    name = hub if where.get("revision") is None else f"{hub}@{where['revision']}"
    test = [HubSource(name, split, splits[split]) for split in found if split in TEST_SPLITS]
    return Sources([HubSource(name, "train", splits["train"])], test)


def merge(parts: Sequence[Sources]) -> Sources:
    """Several sources as one."""
    return Sources([s for part in parts for s in part.train], [s for part in parts for s in part.test])


class NamedTask(FileTask):
    """A published task: a local copy when `path` is set, else the hub's data set `hub`."""

    path: str | None = Field(
        default=None, description="a local copy: a file, or a folder with train.* and optionally test.*"
    )
    hub: str = Field(default="", description="the data set's name on the hub")
    revision: str | None = Field(
        default=None, description="the hub data set's commit or branch; pin it for a lasting result"
    )

    @model_validator(mode="after")
    def _one_place(self) -> NamedTask:
        hub_is_set = {"hub", "revision"} & self.model_fields_set
        if self.path is not None and hub_is_set:
            raise ValueError("give either path (a local copy) or hub and revision, not both")
        return self

    def sources(self) -> Sources:
        return self.hub_sources() if self.path is None else self.local_sources(self.path)

    def local_sources(self, path: str) -> Sources:
        """What `path` holds."""
        return file_sources(expand(path))

    def hub_sources(self) -> Sources:
        """What the hub holds."""
        return hub_sources(self.hub, revision=self.revision)

    def settings(self) -> dict[str, object]:
        """Where the rows came from does not matter, only what they hold."""
        return self.model_dump(mode="json", exclude={"path", "hub", "revision"})
