"""Artifacts: each step's result is a folder named by the hash of what it is, written beside and renamed when whole.

`<store>/<kind>-<key>/` exists only with its `manifest.json`, so a folder with a manifest is complete. Work in progress
lives in `<store>/partial/<kind>-<key>/` under a file lock that dies with its process; a killed step goes on from the
newest checkpoint there. Keys come from configuration, version and the inputs' keys, never from device, path or workers.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from aligngap.storage.files import check_writable, discard, sync, write_text
from aligngap.types import AligngapError

#: What a step keeps in its work folder until it is finished and no longer: training states, journals, parts.
SCRATCH = ("state-*", "log", "recording", "measured-*.json", ".*")


def digest(value: Any) -> str:
    """20 hex digits of the SHA-256 of canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def tidy(work: Path) -> None:
    """Remove what a step needed only while it was at work."""
    for left in sorted({p for pattern in SCRATCH for p in work.glob(pattern)}):
        discard(left)


class Store:
    """A folder of artifacts. Several commands may share it: each artifact is made by one process at a time."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def prepare(self) -> None:
        """Make the folder, and notice a disk that cannot be written before any work."""
        check_writable(self.root / "partial")

    def path(self, name: str) -> Path:
        return self.root / name

    def has(self, name: str) -> bool:
        return (self.path(name) / "manifest.json").is_file()

    def manifest(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.path(name) / "manifest.json").read_text())
        return found

    def partial(self, name: str) -> Path:
        return self.root / "partial" / name

    @contextmanager
    def making(self, name: str, wait_seconds: float = -1) -> Iterator[Path | None]:
        """The folder to work in, held by this process alone; None if somebody else has made the artifact meanwhile."""
        lock = FileLock(str(self.root / "partial" / f"{name}.lock"))
        try:
            with lock.acquire(timeout=wait_seconds):
                if not self.has(name) and (self.partial(name) / "manifest.json").is_file():
                    self._publish(name)  # killed between the two
                if self.has(name):
                    yield None
                    return
                work = self.partial(name)
                work.mkdir(parents=True, exist_ok=True)
                yield work
        except Timeout as error:
            what = "another process is making this; wait for it or stop it"
            raise AligngapError(f"{self.partial(name)}: {what}") from error

    def finish(self, name: str, manifest: Mapping[str, Any]) -> Path:
        """Turn the work folder into the artifact: everything on the disk, the manifest, then one rename.

        From the manifest on the work is whole: a kill then costs only the tidying up.
        """
        work = self.partial(name)
        sync(work)
        write_text(work / "manifest.json", json.dumps(manifest, indent=1, sort_keys=True) + "\n", durable=True)
        return self._publish(name)

    def _publish(self, name: str) -> Path:
        work, final = self.partial(name), self.path(name)
        tidy(work)
        if final.exists():
            shutil.rmtree(final)  # a folder without manifest cannot be an artifact
        os.replace(work, final)
        return final
