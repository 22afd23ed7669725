"""Files and folders are written whole or not at all, and trouble with a disk is told in one line.

Leaves out what the files hold: artifacts (`store.py`), pairs (`pairs.py`) and record tables (`records.py`).
"""

from __future__ import annotations

import glob
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from aligngap.types import AligngapError

STALE_SECONDS = 3600.0  #: a file half-written so long ago is a killed command's


@contextmanager
def whole_file(path: Path, durable: bool = True) -> Iterator[BinaryIO]:
    """A file to write to, which becomes `path` at the end: whole or not at all; `durable`: on the disk before it does.

    It has a name of its own that nobody can foresee. What killed commands have left of the same file is removed. An
    error of the operating system names the file.
    """
    try:
        for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
            with suppress(OSError):
                if time.time() - left.lstat().st_mtime > STALE_SECONDS:
                    left.unlink()
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as out:
                yield out
                if durable:
                    out.flush()
                    os.fsync(out.fileno())
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        if error.errno is not None and (error.filename is None or str(error.filename).endswith(".tmp")):
            error.filename, error.filename2 = str(path), None
        raise


def write_text(path: Path, text: str, durable: bool = False) -> None:
    """Write a file whole or not at all; `durable`: and wait until it is on the disk."""
    with whole_file(path, durable) as out:
        out.write(text.encode("utf-8"))


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
    if isinstance(error, OSError) and error.errno is not None:  # pyarrow raises it of files that it cannot read, too
        return error
    found = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(found[1]), os.strerror(int(found[1]))) if found else None


def disk_line(error: OSError, where: object) -> str:
    """What the operating system complains of, and the remedy; `where` if it names no file."""
    return f"{error.filename or where}: {error.strerror or error}; free space or fix access, then repeat"


def check_writable(folder: Path, option: str = "--out") -> None:
    """Make a folder and try to write in it: one clear line that names the option, before any compute, if not."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / ".writable", "yes\n")
        (folder / ".writable").unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise AligngapError(f"{folder}: cannot be written ({reason}); choose another folder with {option}") from error
