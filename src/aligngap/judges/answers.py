"""Answers that were paid for, by content, and what each step used of them: one SQLite file in the store.

An answer and the step that paid for it are written together, each pair a step has had judged once: what a step is told
to have spent is counted from the file, so no kill loses any of it, and nothing that is done again counts twice.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aligngap.storage.checksums import seal
from aligngap.types import Damaged

COUNTS = ("answers", "refused", "truncated", "unreadable", "orders_disagree", "suspicious")  # of each pair
TABLES = (
    "CREATE TABLE IF NOT EXISTS answers (question TEXT PRIMARY KEY, answer TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS paid (judge TEXT, step TEXT, question TEXT, PRIMARY KEY (judge, step, question))"
    " WITHOUT ROWID",
    f"CREATE TABLE IF NOT EXISTS judged (judge TEXT, step TEXT, pair TEXT, {', '.join(f'{c} INT' for c in COUNTS)},"
    " PRIMARY KEY (judge, step, pair)) WITHOUT ROWID",
)


class Answers:
    """The file, or without a path a memory of this process. Safe for threads, and for processes that share it."""

    def __init__(self, path: Path | None) -> None:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self._lock = path, threading.Lock()
        with self._told():
            self._base = sqlite3.connect(path or ":memory:", timeout=60.0, check_same_thread=False)
            for table in TABLES:
                self._base.execute(table)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What SQLite says of a file that it cannot read, as one line."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError) and "malformed" not in str(error):
                raise  # busy, or a full disk
            what = f"cannot be read ({error}); move it away, then repeat the command, which asks and pays anew"
            raise Damaged(f"{self.path}: {what}") from error

    def get(self, question: str) -> dict[str, Any] | None:
        """The answer to a question, by its hash, if there is one that is what was written."""
        with self._lock, self._told():
            row = self._base.execute("SELECT answer FROM answers WHERE question = ?", (question,)).fetchone()
        try:
            found: dict[str, Any] | None = json.loads(row[0]) if row else None
        except ValueError:
            return None
        if found is None or "checksum" not in found:  # of before answers were sealed
            return found
        checksum = found.pop("checksum")
        return found if seal(found | {"question": question})["checksum"] == checksum else None

    def put(self, judge: str, step: str, question: str, answer: Mapping[str, Any]) -> dict[str, Any]:
        """Keep an answer that `step` has paid for; gives what holds: another process's, if that was first."""
        sealed = json.dumps({**answer, "checksum": seal({**answer, "question": question})["checksum"]})
        torn = self.get(question) is None  # what is there and is not what was written is written anew
        with self._lock, self._told(), self._base:
            how = "REPLACE" if torn else "IGNORE"
            self._base.execute(f"INSERT OR {how} INTO answers VALUES (?, ?)", (question, sealed))
            self._base.execute("INSERT OR IGNORE INTO paid VALUES (?, ?, ?)", (judge, step, question))
        return self.get(question) or dict(answer)

    def judged(self, judge: str, step: str, pairs: Mapping[str, Mapping[str, int]]) -> None:
        """Note the pairs, by their hash, that `step` has had judged, with `COUNTS` of each (0 where left out)."""
        rows = [(judge, step, pair, *(counts.get(c, 0) for c in COUNTS)) for pair, counts in pairs.items()]
        with self._lock, self._told(), self._base:
            marks = ", ".join("?" * (3 + len(COUNTS)))
            self._base.executemany(f"INSERT OR IGNORE INTO judged VALUES ({marks})", rows)

    def spent(self, judge: str, step: str) -> dict[str, int]:
        """What a step used of a judge: distinct `pairs` with the sums of their `COUNTS`, and what it paid for of it."""
        sums = ", ".join(f"coalesce(sum({c}), 0)" for c in COUNTS)
        tokens = ", ".join(f"coalesce(sum(json_extract(answer, '$.tokens_{w}')), 0)" for w in ("in", "out"))
        where = "WHERE judge = ? AND step = ?"
        with self._lock, self._told():
            used = self._base.execute(f"SELECT count(*), {sums} FROM judged {where}", (judge, step)).fetchone()
            paid = self._base.execute(
                f"SELECT count(*), {tokens} FROM paid JOIN answers USING (question) {where}", (judge, step)
            ).fetchone()
        return dict(zip(("pairs", *COUNTS, "asked", "tokens_in", "tokens_out"), (*used, *paid), strict=True))
