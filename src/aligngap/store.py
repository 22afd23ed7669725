"""Artifacts: each step's result is a folder named by the hash of what it is, written beside and renamed when whole.

`<store>/<kind>-<key>/` exists only with its `manifest.json`, so a folder with a manifest is complete. Work in progress
lives in `<store>/partial/<kind>-<key>/` under a file lock that dies with its process; a killed step goes on from the
newest checkpoint there. Keys come from configuration, version and the inputs' keys, never from device, path or workers.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from aligngap.types import AligngapError

#: What a step keeps in its work folder until it is finished and no longer: training states, journals, parts.
SCRATCH = ("state-*", "log", "recording", "measured-*.json", ".*")


def digest(value: Any) -> str:
    """20 hex digits of the SHA-256 of canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def write_text(path: Path, text: str, durable: bool = False) -> None:
    """Write a file whole or not at all; `durable`: and wait until it is on the disk."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            out.write(text)
            if durable:
                out.flush()
                os.fsync(out.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def sync(folder: Path) -> None:
    """Wait until a folder and all in it are on the disk: what is renamed afterwards is whole even if power fails."""
    for place, _, files in os.walk(folder):
        for name in (*files, "."):
            handle = os.open(os.path.join(place, name), os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def discard(path: Path) -> None:
    """Remove a file or a folder; a kill half-way never leaves a part of a folder under its own name."""
    if not path.is_dir() or path.is_symlink():
        path.unlink()
        return
    if not path.name.startswith("."):
        beside = path.with_name(f".{path.name}.removed")
        shutil.rmtree(beside, ignore_errors=True)
        path = path.replace(beside)
    shutil.rmtree(path)


def tidy(work: Path) -> None:
    """Remove what a step needed only while it was at work."""
    for left in sorted({p for pattern in SCRATCH for p in work.glob(pattern)}):
        discard(left)


def check_free(to: Path) -> None:
    """Refuse a folder to be written that is there already and not empty."""
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise AligngapError(f"{to}: is there already and not an empty folder; choose another with --to")


@contextmanager
def whole_folder(to: Path) -> Iterator[Path]:
    """A folder to write in, which becomes `to` at the end: whole or not at all. AligngapError if it cannot be."""
    check_free(to)
    beside = to.with_name(f".{to.name}.writing")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        yield beside
        os.replace(beside, to)
    except OSError as error:
        raise AligngapError(f"{to}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def disk_trouble(error: BaseException) -> OSError | None:
    """The operating system's complaint behind an error, if there is one; compiled libraries wrap it in their own."""
    if isinstance(error, OSError):
        return error
    found = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(found[1]), os.strerror(int(found[1]))) if found else None


def disk_line(error: OSError, where: object) -> str:
    """What the operating system complains of, and the remedy; `where` if it names no file."""
    return f"{error.filename or where}: {error.strerror or error}; free space or fix access, then repeat"


def check_writable(folder: Path) -> None:
    """Make a folder and try to write in it: one clear line, before any compute, if that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / ".writable", "yes\n")
        (folder / ".writable").unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise AligngapError(f"{folder}: cannot be written ({reason}); choose another folder with --out") from error


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
