"""The sealed list of an output folder: whether the files that a later command reads there are what aligngap wrote.

`.tables.json` holds the checksum of every such file and, while a command writes, the names of those that it has not
finished: one that is killed there leaves files of which the list says so, and none that seem to have been changed. One
command at a time writes to a folder. A folder of before there were lists is read as it is. Leaves out what the files
hold (`records.py`), and which of them stay in a folder that is written anew (`reuse.py`).
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from filelock import AcquireReturnProxy, BaseFileLock, FileLock, Timeout

from aligngap.storage.checksums import checksum_of, unseal, write_sealed
from aligngap.types import AligngapError, Damaged

Read = TypeVar("Read")

LIST = ".tables.json"
FORMAT = 2  #: of lists; the first was of tables alone, and kept the names of tables that had been removed
STUDY, PROVENANCE = "study.yaml", "provenance.json"
HAS_LIST = "listed"  #: key of the provenance that says that a list lies beside it
WAIT_SECONDS, LOOK_SECONDS = 600.0, 10.0  #: how long who writes, and who reads, waits for another who writes
NOTICE_SECONDS = 5.0  #: after which who waits to write says so
MOVED = "moved"  #: of an unfinished file: it is moved out of the folder, or stays there as it is
TRIES = 3  #: readings of a folder that another command writes to


@dataclass(frozen=True)
class Listing:
    """What a folder's list says: the checksum of each file, and by file what the command did that has not finished it.

    `doubt` is what is wrong with the list itself, a sentence.
    """

    files: dict[str, str] = field(default_factory=dict)
    unfinished: dict[str, str] = field(default_factory=dict)
    doubt: str = ""
    first: bool = False  # of the first format


@dataclass(frozen=True)
class Faults:
    """The files of a folder that are not what aligngap wrote, and those that a command has not finished."""

    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    unfinished: tuple[str, ...] = ()
    doubt: str = ""

    def sentences(self) -> tuple[str, ...]:
        """What a report must say of it, the weightiest first."""
        out = [self.doubt] if self.doubt else []
        if self.unfinished:
            names = _join(self.unfinished)
            what = f"A command was stopped while it wrote {names}, or it is still at work"
            out.append(f"{what}: they may be of two states; repeat that command.")
        if self.changed:
            was, it = ("were", "them") if len(self.changed) > 1 else ("was", "it")
            what = f"{_join(self.changed)} {was} changed after aligngap wrote {it}"
            out.append(f"{what}; what is said here rests on the change.")
        if self.removed:
            was, it = ("were", "them") if len(self.removed) > 1 else ("was", "it")
            what = f"{_join(self.removed)} {was} removed after aligngap wrote {it}"
            out.append(f"{what}; what is said here lacks {it}, and the command that wrote {it} does so again.")
        return tuple(out)


def lock_of(folder: Path) -> BaseFileLock:
    """The lock of who writes to a folder; whoever holds it may take it again in the same thread."""
    return FileLock(str(folder / ".tables.lock"), is_singleton=True)


@contextmanager
def writing(
    folder: Path,
    names: Collection[str],
    *,
    moves: Collection[str] = (),
    onto: Collection[str] = (),
    what: str = "",
    anew: bool = False,
) -> Iterator[None]:
    """Files of a folder are written or removed within, by this command alone; then the list holds what they are.

    `moves` are files that may be moved out of the folder, and are not written. Those of the files in `onto` are made of
    what was there: one that was changed or removed before stays told as that, and one that another addition than
    `what` has not finished as unfinished. `anew`: the files are all that a command makes there, so that a list that
    cannot be read is replaced; else it is left as it is, and told.
    """
    with _alone(folder):
        before = read_listing(folder)
        if before.doubt and not anew:
            yield
            return
        files = {} if before.doubt else before.files
        found = find_faults(folder) if onto else Faults()
        others = {name for name, of in before.unfinished.items() if of != what}
        stay = {*found.changed, *found.removed, *others} & set(onto)
        here = {name for name in files if (folder / name).exists()}
        moved = {name for name, of in before.unfinished.items() if of == MOVED}  # by a command that was stopped
        if before.first or anew:
            lost = tuple(sorted(set(files) - here - moved - set(names)))
            if lost and anew and not before.first:
                tell(folder, *Faults(removed=lost).sentences())  # for the last time
            files = {name: checksum for name, checksum in files.items() if name not in lost}
        ours = {name for name in names if name not in stay}
        begun = dict.fromkeys(moves, MOVED) | before.unfinished | dict.fromkeys(ours, what)
        _write(folder, files, begun)
        yield
        gone = {name for name in (here | moved) - stay if not (folder / name).exists()}
        kept = {name: checksum for name, checksum in files.items() if name not in ours and name not in gone}
        made = {name: checksum_of(folder / name) for name in sorted(ours) if (folder / name).is_file()}
        left = {n: of for n, of in begun.items() if n not in ours and of != MOVED}
        _write(folder, kept | made, left)


def _alone(folder: Path) -> AcquireReturnProxy[BaseFileLock]:
    """The lock of a folder, held; who has to wait for it long is told."""
    lock, busy = lock_of(folder), "another command writes to this folder"
    with suppress(Timeout):
        return lock.acquire(timeout=NOTICE_SECONDS)
    tell(folder, f"{busy}; waiting until it has ended")
    try:
        return lock.acquire(timeout=WAIT_SECONDS)
    except Timeout as error:
        raise AligngapError(f"{folder}: {busy}; wait until it has ended, or stop it") from error


def read_listing(folder: Path) -> Listing:
    """The list of a folder; an empty one where there is none."""
    path = folder / LIST
    try:
        found = unseal(path) if path.exists() else {}
    except Damaged:
        found = {"files": None}
    except OSError as error:
        return Listing(doubt=f"{LIST} cannot be read ({error.strerror}), so nothing vouches for the files beside it.")
    if int_of(found.get("format")) > FORMAT:
        what = f"{LIST} is of format {found['format']}, and this aligngap reads up to {FORMAT}"
        return Listing(doubt=f"{what}: nothing vouches for the files beside it; upgrade aligngap.")
    files, unfinished = found.get("files", {}), found.get("unfinished", {})
    if not isinstance(files, dict) or not isinstance(unfinished, dict):
        what = f"{LIST} is not what was written, so nothing vouches for the files beside it"
        return Listing(doubt=f"{what}; the command that made them writes it again.")
    return Listing(files, unfinished, first=bool(files) and "format" not in found)


def int_of(value: Any) -> int:
    """A whole number as it is, and 0 for anything else."""
    return value if isinstance(value, int) else 0


def find_faults(folder: Path) -> Faults:
    """What is wrong with the files of a folder by its list; of one that has none, whether it should have one."""
    listed = read_listing(folder)
    if listed.doubt:
        return Faults(doubt=listed.doubt)
    done = {name: checksum for name, checksum in sorted(listed.files.items()) if name not in listed.unfinished}
    there = {name for name in done if (folder / name).is_file()}
    changed = tuple(name for name in done if name in there and checksum_of(folder / name) != done[name])
    removed = () if listed.first else tuple(name for name in done if name not in there)
    doubt = ""
    if PROVENANCE not in {**listed.files, **listed.unfinished} and _should_have_list(folder):
        what = f"{LIST}, the list of what aligngap wrote here, was removed"
        doubt = f"{what}, so nothing vouches for the files beside it; the command that made them writes it again."
    unfinished = tuple(n for n in sorted(listed.unfinished) if n in listed.files or (folder / n).exists())
    return Faults(changed, removed, unfinished, doubt)


def copy_list(folder: Path, to: Path) -> None:
    """Write into a folder what the list of another says of the files that were copied from it; nothing without one."""
    listed = read_listing(folder)
    if listed.doubt:
        shutil.copy(folder / LIST, to / LIST)
    elif (folder / LIST).is_file():
        there = {name for name in {**listed.files, **listed.unfinished} if (to / name).is_file()}
        _write(
            to,
            {name: checksum for name, checksum in listed.files.items() if name in there},
            {name: of for name, of in listed.unfinished.items() if name in there},
        )


@cache
def tell(folder: Path, sentence: str) -> None:
    """Say on stderr, once a process, what is wrong with the files of a folder."""
    print(f"aligngap: {folder}: {sentence.rstrip('.')}", file=sys.stderr, flush=True)


def read_steadily(folder: Path, read: Callable[[], Read]) -> Read:
    """What `read` gives of a folder's files, read again where another command has written to it meanwhile."""
    left = TRIES
    while True:
        left -= 1
        if read_listing(folder).unfinished:
            with suppress(OSError, Timeout), lock_of(folder).acquire(timeout=LOOK_SECONDS):
                pass  # who was at work there has ended
        before = _stamp(folder)
        try:
            found = read()
        except AligngapError:
            if not left or _stamp(folder) == before:
                raise
        else:
            if not left or _stamp(folder) == before:
                return found


def _stamp(folder: Path) -> tuple[int, ...]:
    try:
        at = (folder / LIST).stat()
    except OSError:
        return ()
    return at.st_mtime_ns, at.st_ctime_ns, at.st_size, at.st_ino


def _should_have_list(folder: Path) -> bool:
    try:
        found = json.loads((folder / PROVENANCE).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and bool(found.get(HAS_LIST))


def _write(folder: Path, files: dict[str, str], unfinished: dict[str, str]) -> None:
    value = {"format": FORMAT, "files": dict(sorted(files.items()))}
    if unfinished:
        value["unfinished"] = dict(sorted(unfinished.items()))
    write_sealed(folder / LIST, value, durable=True)


def _join(names: Collection[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
