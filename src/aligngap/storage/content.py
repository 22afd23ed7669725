"""The content of users' files as a hash that is kept: a large folder is read once, and again when a file has changed.

What is kept of a file stands for it as long as its path, size, times of change and inode are the same; a file that
changed a moment ago is read anew, since a second change could leave the same times. The hashes lie in `hashes.json` in
the cache directory (`ALIGNGAP_CACHE`, else `~/.cache/aligngap`); where that cannot be written, each command reads anew.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from aligngap.storage.checksums import unseal, write_sealed
from aligngap.types import Damaged

SETTLED_SECONDS = 2.0  #: a file that changed later than this before it was read is not remembered
KEPT = 20_000  #: files remembered


def cache_folder() -> Path:
    """The folder of what this machine keeps for its user: `ALIGNGAP_CACHE`, else `~/.cache/aligngap`."""
    named = os.environ.get("ALIGNGAP_CACHE")
    return Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aligngap"


class Hashes:
    """Hashes of files by path, read from the cache when first asked for and written back by `save`."""

    def __init__(self, path: Path) -> None:
        self.path, self.changed = path, False
        try:
            self.known: dict[str, Any] = unseal(path)
        except (OSError, Damaged):
            self.known = {}

    def of(self, file: Path) -> str:
        """SHA-256 of a file's bytes, in hexadecimal digits."""
        place, at = str(file.resolve()), file.stat()
        stamp = [at.st_size, at.st_mtime_ns, at.st_ctime_ns, at.st_ino]
        known = self.known.get(place)
        if isinstance(known, list) and len(known) == 2 and known[0] == stamp:
            return str(known[1])
        with file.open("rb") as opened:
            found = hashlib.file_digest(opened, "sha256").hexdigest()
        if time.time() - max(at.st_mtime, at.st_ctime) > SETTLED_SECONDS:
            self.known.pop(place, None)  # the newest come last
            self.known[place] = [stamp, found]
            self.changed = True
        return found

    def save(self) -> None:
        """Write the hashes where the next command finds them, if that can be done."""
        if self.changed:
            with suppress(OSError):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                write_sealed(self.path, dict(list(self.known.items())[-KEPT:]))
                self.changed = False


_open: dict[Path, Hashes] = {}


def open_hashes() -> Hashes:
    """The hashes that this process reads and, when it ends, writes back."""
    path = cache_folder() / "hashes.json"
    if path not in _open:
        _open[path] = Hashes(path)
        atexit.register(_open[path].save)
    return _open[path]


def hash_of(file: Path) -> str:
    """SHA-256 of a file's bytes, from the cache where the file has not changed since."""
    return open_hashes().of(file)
