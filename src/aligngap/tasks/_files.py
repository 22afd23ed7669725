"""A user's data file as a bounded stream of bytes, and the one-line error that everything about it ends in.

The only place that opens a data file. It bounds what it unpacks, so that a zip bomb ends in one line of error instead
of an exhausted machine. Plain files only: no archives, devices, pipes or remote addresses.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import re
import stat
import zlib
from pathlib import Path
from typing import Any, BinaryIO

from aligngap.types import AligngapError, escape

MAX_FILE_BYTES = 1 << 30  #: of one file, after decompression
MAX_GZIP_RATIO = 200  #: of decompressed to compressed bytes, once GZIP_GRACE_BYTES are passed (text reaches about 10)
GZIP_GRACE_BYTES = 16 << 20
SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet")


def fail(where: str, what: str, remedy: str) -> AligngapError:
    """The error to raise: one line that says where, what is wrong and the remedy."""
    return AligngapError(escape(f"{where}: {what}; {remedy}"))


# ---------------------------------------------------------------------------------------------------------- paths


def expand(path: str) -> Path:
    """The path with every `${NAME}` taken from the environment, and a leading `~` from the home folder."""
    if not path.strip():
        raise fail("task.path", "is empty", "set it to a data file or folder")

    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        found = os.environ.get(name, "")
        if not found:
            remedy = f"set {name}, or give the path itself with --set task.path=..."
            raise fail("task.path", f"the environment variable {name} in '{path}' is not set", remedy)
        return found

    expanded = re.sub(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}", value, path)
    try:
        return Path(expanded).expanduser()
    except RuntimeError as error:  # "~nobody"
        raise fail("task.path", f"'{path}': {error}", "give the whole path") from error


def file_format(path: Path) -> tuple[str, bool]:
    """The format a file's name claims (`.jsonl`, `.json`, `.csv`, `.tsv` or `.parquet`) and whether it is gzipped."""
    name = path.name.lower()
    for suffix in SUFFIXES:
        if name.endswith(suffix):
            return suffix.removesuffix(".gz"), suffix.endswith(".gz")
    raise fail(str(path), "unknown kind of file", f"its name must end in {', '.join(SUFFIXES)}")


def plain_file(path: Path) -> os.stat_result:
    """The file's stat, if it is a plain, readable, non-empty file; a link the user named is followed."""
    try:
        found = os.stat(path)
    except FileNotFoundError as error:
        raise fail(str(path), "no such file or folder", "check task.path") from error
    except (OSError, ValueError) as error:
        raise fail(str(path), f"cannot be read ({reason(error)})", "check task.path") from error
    if not stat.S_ISREG(found.st_mode):
        raise fail(str(path), "not a plain file", "set task.path to a data file, or a folder with train.* in it")
    if found.st_size == 0:
        raise fail(str(path), "is empty", "give a file with at least two rows")
    return found


def is_folder(path: Path) -> bool:
    """Whether the path is a folder; False for names that no file system takes."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def find_in_folder(folder: Path, stem: str) -> Path | None:
    """The one data file `stem.*` of a known format in the folder, or None. A link that leads out is refused."""
    found = sorted(path for path in _entries(folder) if path.name.lower() in {stem + suffix for suffix in SUFFIXES})
    if len(found) > 1:
        names = " and ".join(path.name for path in found[:3])
        raise fail(str(folder), f"holds {names}", f"keep one {stem} file, or set task.path to the file")
    return inside(folder, found[0]) if found else None


def inside(folder: Path, path: Path) -> Path:
    """The path, if it lies in the folder even after links are followed."""
    if not path.resolve().is_relative_to(folder.resolve()):
        raise fail(str(path), "is a link that leads out of its folder", "set task.path to the file it points at")
    return path


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise fail(str(folder), f"cannot be listed ({reason(error)})", "check task.path") from error


def reason(error: Exception) -> str:
    """What the operating system complains of, in its words."""
    return getattr(error, "strerror", None) or str(error)


# ---------------------------------------------------------------------------------------------------------- bytes


class _Bounded(io.RawIOBase):
    """A byte stream that counts what it gives and stops at the limits; trouble underneath becomes one line."""

    def __init__(self, path: Path, source: BinaryIO, compressed_bytes: int | None) -> None:
        self._path, self._source, self._compressed, self._given = path, source, compressed_bytes, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._source.read(len(buffer))
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise fail(str(self._path), f"not a whole gzip file ({error})", "compress it again") from error
        except OSError as error:
            raise fail(str(self._path), f"cannot be read ({reason(error)})", "check the file") from error
        self._given += len(data)
        if self._given > MAX_FILE_BYTES:
            raise fail(str(self._path), f"holds more than {MAX_FILE_BYTES >> 20} MiB of data", "split the file")
        if self._compressed and self._given > max(GZIP_GRACE_BYTES, MAX_GZIP_RATIO * self._compressed):
            what = f"unpacks to more than {MAX_GZIP_RATIO} times its size, as a zip bomb does"
            raise fail(str(self._path), what, "unpack it yourself if you trust it")
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._source.close()
        super().close()


def open_bounded(path: Path) -> io.BufferedReader:
    """The file's bytes, unpacked if gzipped, within the limits above."""
    _, gzipped = file_format(path)
    size = plain_file(path).st_size
    try:
        source: Any = (gzip.open if gzipped else open)(path, "rb")  # closed by the stream
    except OSError as error:
        raise fail(str(path), f"cannot be read ({reason(error)})", "check its permissions") from error
    return io.BufferedReader(_Bounded(path, source, size if gzipped else None), 1 << 18)


def check_unpacks(path: Path) -> None:
    """Unpack the file once and keep nothing, so that of a bomb or a broken archive no row is ever parsed."""
    with open_bounded(path) as stream:
        while stream.read(1 << 20):
            pass


def content_hash(path: Path) -> str:
    """SHA-256 of the file's bytes; a gzipped file hashes as what it unpacks to."""
    digest = hashlib.sha256()
    with open_bounded(path) as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
