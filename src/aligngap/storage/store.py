"""Artifacts: each step's result is a folder named by the hash of what it is, written beside and renamed when whole.

`<store>/<kind>-<key>/` exists only with its `manifest.json`, so a folder with a manifest is complete. Work in progress
lives in `<store>/partial/<kind>-<key>/` under a file lock that dies with its process; a killed step goes on from the
newest checkpoint there. Keys come from configuration, version and the inputs' keys, never from device, path or workers.

A manifest is sealed and holds the checksum of every file; what is read of an artifact is first held against it, once a
process. What is not what was written moves to `<store>/damaged/` and is made again. Manifests of before there were
checksums are read as they are: nothing vouches for them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from aligngap.storage.checksums import checksums, difference, names_of, read_object, unseal, write_sealed
from aligngap.storage.files import check_writable, discard, sync
from aligngap.types import AligngapError, Damaged

FORMAT = 2  #: of manifests. 1 had neither seal nor checksums; in every later one `format` and `checksum` mean the same
SEALED = {"format", "files", "artifact", "checksum"}  #: what `finish` adds to a manifest
#: What a step keeps in its work folder until it is finished and no longer: training states, journals, parts.
SCRATCH = ("state-*", "kept-*.json", "log", "recording", "measured-*.json", ".*")


def digest(value: Any) -> str:
    """20 hex digits of the SHA-256 of canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def scratch(work: Path) -> list[Path]:
    """What lies in a work folder and is no part of the artifact."""
    return sorted({p for pattern in SCRATCH for p in work.glob(pattern)})


def tidy(work: Path) -> None:
    """Remove what a step needed only while it was at work."""
    for left in scratch(work):
        discard(left)


class Store:
    """A folder of artifacts. Several commands may share it: each artifact is made by one process at a time."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._manifests: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {}  # with what shows that a file changed
        self._sound: set[tuple[str, str, tuple[int, ...]]] = set()

    def prepare(self) -> None:
        """Make the folder, and notice a disk that cannot be written before any work."""
        check_writable(self.root / "partial", "--store")

    def path(self, name: str) -> Path:
        """Where an artifact lies, whether or not it is there; to read it, `open` it."""
        return self.root / name

    def has(self, name: str) -> bool:
        """Whether the artifact is there with a manifest that can be believed."""
        try:
            self.manifest(name)
        except Damaged:
            return False
        return True

    def manifest(self, name: str) -> dict[str, Any]:
        """The artifact's manifest. Damaged if it is missing or not what was written, AligngapError if it is too new."""
        stamp = self._stamp(name)
        known = self._manifests.get(name)
        if known is None or known[0] != stamp:
            known = self._manifests[name] = stamp, read_manifest(self.path(name), name)
        return known[1]

    def _stamp(self, name: str) -> tuple[int, ...]:
        try:
            found = (self.path(name) / "manifest.json").stat()
        except (FileNotFoundError, NotADirectoryError):
            raise Damaged(f"{self.path(name)}: is missing", name) from None
        return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino

    def holds(self, name: str, part: str) -> bool:
        """Whether the artifact was written with this file or folder, be it still there or not."""
        listed = self.manifest(name).get("files")
        if listed is None:
            return (self.path(name) / part).exists()
        return any(within(file, part) for file in listed)

    def open(self, name: str, part: str = "") -> Path:
        """A file or folder of an artifact (or all of it), to be read: once a process it is held against its checksums.

        Raises Damaged, which names the file and what to do, if it is not what was written.
        """
        seen = (name, part, self._stamp(name))
        if seen not in self._sound:
            if wrong := self.damage(name, part):
                raise Damaged(f"{self.path(name)}: {wrong}; remove this folder and repeat the command", name)
            self._sound.add(seen)
        return self.path(name) / part

    def damage(self, name: str, part: str = "") -> str:
        """What is wrong with an artifact, or a part of it, in a few words; "" if nothing is or none vouches for it."""
        try:
            listed = self.manifest(name).get("files")
        except Damaged as error:
            return str(error).removeprefix(f"{self.path(name)}: ").removeprefix(f"{self.path(name)}{os.sep}")
        if listed is None:
            return ""
        folder = self.path(name)
        wanted = {file: checksum for file, checksum in listed.items() if within(file, part)}
        if not wanted and part:
            return f"{part} is no part of it"
        if wrong := difference(folder, wanted):
            return wrong
        there = {file for file in names_of(folder, [folder / "manifest.json"]) if within(file, part)}
        return "".join(f"{file} was not written with it" for file in sorted(there - set(wanted))[:1])

    def content(self, name: str) -> str:
        """The hash of all files of an artifact, from its manifest; "" if that has none."""
        listed = self.manifest(name).get("files")
        return "" if listed is None else digest(listed)

    def unvouched(self, names: Iterable[str]) -> list[str]:
        """Those of some artifacts that are there and have no checksums, being made before there were any."""
        return sorted(name for name in set(names) if self.has(name) and "files" not in self.manifest(name))

    def replaced(self, names: Iterable[str]) -> dict[str, str]:
        """Those of some artifacts that were made from other bytes than an input holds now, each with that input."""
        found: dict[str, str] = {}
        for name in sorted(set(names)):
            made_from = self.manifest(name).get("made_from", {}) if self.has(name) else {}
            for need, content in made_from.items():
                if content and self.has(need) and self.content(need) not in ("", content):
                    found.setdefault(name, need)
        return found

    def set_aside(self, name: str) -> None:
        """Move an artifact that is damaged out of the way, so that it is made again, and say so on stderr."""
        with self._lock(name).acquire():
            if wrong := self.damage(name):
                self._move_aside(name, wrong)

    def _move_aside(self, name: str, wrong: str) -> None:
        folder, number = self.root / "damaged", 0
        folder.mkdir(exist_ok=True)
        while (to := folder / (f"{name}-{number}" if number else name)).exists():
            number += 1
        try:
            os.replace(self.path(name), to)
        except FileNotFoundError:
            what = "to be made again"
        else:
            what = f"moved to {to}, to be made again"
        print(f"aligngap: {self.path(name)}: {wrong}; {what}", file=sys.stderr, flush=True)

    def _lock(self, name: str) -> FileLock:
        return FileLock(str(self.root / "partial" / f"{name}.lock"))

    def partial(self, name: str) -> Path:
        return self.root / "partial" / name

    @contextmanager
    def making(self, name: str, wait_seconds: float = -1) -> Iterator[Path | None]:
        """The folder to work in, held by this process alone; None if somebody else has made the artifact meanwhile."""
        try:
            with self._lock(name).acquire(timeout=wait_seconds):
                if not self.has(name):
                    self._publish_whole(name)
                if self.has(name):
                    yield None
                    return
                if (self.path(name) / "manifest.json").is_file():
                    self._move_aside(name, self.damage(name))
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
        own = {"format": FORMAT, "artifact": name, "files": checksums(work, scratch(work))}
        write_sealed(work / "manifest.json", {**manifest, **own}, durable=True)
        return self._publish(name)

    def _publish_whole(self, name: str) -> None:
        """Publish work that was killed between its manifest and the rename; a manifest torn since is none."""
        work = self.partial(name)
        try:
            read_manifest(work, name)
        except Damaged:
            (work / "manifest.json").unlink(missing_ok=True)
        else:
            self._publish(name)

    def _publish(self, name: str) -> Path:
        work, final = self.partial(name), self.path(name)
        tidy(work)
        if (final / "manifest.json").is_file():
            self._move_aside(name, self.damage(name))
        elif final.exists():
            shutil.rmtree(final)  # a folder without manifest cannot be an artifact
        os.replace(work, final)
        return final


def within(file: str, part: str) -> bool:
    """Whether a path in an artifact is a part of it or lies below that."""
    return not part or file == part or file.startswith(part + "/")


def read_manifest(folder: Path, name: str) -> dict[str, Any]:
    """The manifest in an artifact's folder. Damaged if it is not what was written, AligngapError if it is too new."""
    path = folder / "manifest.json"
    try:
        found = read_object(path)
        if not SEALED & set(found):
            return _old_manifest(found, path, name)
        found = unseal(path)
    except Damaged as error:
        raise Damaged(str(error), name) from None
    if found.get("format") != FORMAT:
        what = f"is of format {found.get('format')}, and this aligngap reads up to {FORMAT}"
        raise AligngapError(f"{path}: {what}; upgrade aligngap, or name another folder with --store")
    if found.get("artifact") != name:
        raise Damaged(f"{path}: is that of {found.get('artifact')}", name)
    return found


def _old_manifest(found: dict[str, Any], path: Path, name: str) -> dict[str, Any]:
    """A manifest of before there were checksums, if it is of the artifact that its folder is called after.

    One that says what it was made from is younger than checksums, and has lost its own.
    """
    if "made_from" in found:
        raise Damaged(f"{path}: has lost its checksums")
    key = digest({"version": found.get("version"), "configuration": found.get("configuration")})
    if f"{found.get('kind')}-{key}" != name or not isinstance(found.get("result"), dict):
        raise Damaged(f"{path}: is not what was written")
    return found
