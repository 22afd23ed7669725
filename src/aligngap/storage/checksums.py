"""Checksums: whether a file still is what was written, and one line about what is wrong with it where it is not.

A checksum is the first 32 hex digits of the SHA-256 of a file's bytes. A JSON object that is sealed holds, under
`checksum`, that of all its other values. Leaves out where checksums are kept: of artifacts in their manifests
(`store.py`), of training states beside them (`pipeline/training.py`), of users' files in a cache (`content.py`).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from aligngap.storage.files import write_text
from aligngap.types import Damaged

#: the sealed list of a folder's files, written into that folder
LIST = "checksums.json"


def checksum_of(path: Path) -> str:
    """The checksum of a file's bytes."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()[:32]


def checksums(folder: Path, leave_out: Collection[Path] = ()) -> dict[str, str]:
    """The checksum of every file below a folder by its path there, read once a process; of `leave_out`, nothing."""
    found = {}
    for name in sorted(names_of(folder, leave_out)):
        at = (folder / name).stat()
        found[name] = _remembered(folder / name, (at.st_size, at.st_mtime_ns, at.st_ctime_ns, at.st_ino))
    return found


@lru_cache(maxsize=4096)
def _remembered(path: Path, stamp: tuple[int, ...]) -> str:
    """A checksum that is asked for at every saved state, of a file that its stamp says has not changed."""
    return checksum_of(path)


def names_of(folder: Path, leave_out: Collection[Path] = ()) -> set[str]:
    """The paths in the folder of all files below it; hidden ones are nobody's work and left out."""
    left, found = {os.fspath(p) for p in leave_out}, set()
    for place, folders, files in os.walk(folder):
        at = [(name, os.path.join(place, name)) for name in files if not name.startswith(".")]
        inside = os.path.relpath(place, folder).replace(os.sep, "/") + "/" if place != os.fspath(folder) else ""
        found |= {inside + name for name, path in at if path not in left and os.path.isfile(path)}
        folders[:] = [f for f in folders if not f.startswith(".") and os.path.join(place, f) not in left]
    return found


def difference(folder: Path, listed: Mapping[str, str]) -> str:
    """What is wrong with the listed files of a folder, a few words with the first one's name; "" if nothing is."""
    for name, checksum in listed.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if checksum_of(path) != checksum:
            return f"{name} is not what was written"
    return ""


def seal(value: Mapping[str, Any]) -> dict[str, Any]:
    """The values as JSON gives them back, with their checksum."""
    plain: dict[str, Any] = json.loads(json.dumps(dict(value)))
    return plain | {"checksum": _checksum_of_json(plain)}


def unseal(path: Path) -> dict[str, Any]:
    """The values of a JSON file that `seal` made, without the checksum. Damaged if it is not what was written."""
    found = read_object(path)
    if found.pop("checksum", None) != _checksum_of_json(found):
        raise Damaged(f"{path}: is not what was written")
    return found


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Damaged if the file is missing or holds something else."""
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise Damaged(f"{path}: is missing") from None
    except (ValueError, RecursionError):  # cut short, or bytes that are no text
        raise Damaged(f"{path}: is not whole (no JSON)") from None
    if not isinstance(found, dict):
        raise Damaged(f"{path}: is not what was written")
    return found


def write_sealed(path: Path, value: Mapping[str, Any], durable: bool = False) -> None:
    """Write values and their checksum as JSON, whole or not at all."""
    write_text(path, json.dumps(seal(value), indent=1) + "\n", durable)


def list_files(folder: Path) -> None:
    """Write the sealed list of a folder's files into it."""
    write_sealed(folder / LIST, {"files": checksums(folder, [folder / LIST])})


def check_files(folder: Path) -> None:
    """Hold a folder against the list that `list_files` wrote. Damaged, which names the file, if it differs."""
    listed = listed_in(folder / LIST)
    if set(listed) != names_of(folder, [folder / LIST]):
        raise Damaged(f"{folder / LIST}: is not that of this folder")
    if wrong := difference(folder, listed):
        raise Damaged(f"{folder}: {wrong}")


def listed_in(path: Path) -> dict[str, str]:
    """The checksums that a sealed list holds. Damaged if it is none."""
    found = unseal(path).get("files")
    if not isinstance(found, dict):
        raise Damaged(f"{path}: is no list of files")
    return found


def _checksum_of_json(value: Mapping[str, Any]) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]
