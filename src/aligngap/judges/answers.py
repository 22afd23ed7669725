"""Answers that were paid for, by content, and what each step used of them: one SQLite file in the store.

An answer and the step that paid for it are written together, each pair a step has had judged once: what a step is told
to have spent is counted from the file, so no kill loses any of it, and nothing that is done again counts twice. Every
row of the account is sealed with a checksum; one that is not what was written is an error: what was spent is not known.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aligngap.storage.checksums import seal
from aligngap.types import Damaged

COUNTS = ("answers", "refused", "truncated", "unreadable", "orders_disagree", "suspicious")  # of each pair
TABLES = (
    "CREATE TABLE IF NOT EXISTS answers (question TEXT PRIMARY KEY, answer TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS paid (judge TEXT, step TEXT, question TEXT, tokens_in INT, tokens_out INT,"
    " checksum TEXT, PRIMARY KEY (judge, step, question)) WITHOUT ROWID",
    f"CREATE TABLE IF NOT EXISTS judged (judge TEXT, step TEXT, pair TEXT, {', '.join(f'{c} INT' for c in COUNTS)},"
    " checksum TEXT, PRIMARY KEY (judge, step, pair)) WITHOUT ROWID",
)
LATER = {"paid": ("tokens_in INT", "tokens_out INT", "checksum TEXT"), "judged": ("checksum TEXT",)}  # than the first


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
            for table, columns in LATER.items():
                there = {row[1] for row in self._base.execute(f"PRAGMA table_info({table})")}
                for column in columns:
                    if column.split()[0] not in there:
                        self._base.execute(f"ALTER TABLE {table} ADD COLUMN {column}")

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
            row = (judge, step, question, *(int(answer.get(f"tokens_{way}", 0)) for way in ("in", "out")))
            self._base.execute("INSERT OR IGNORE INTO paid VALUES (?, ?, ?, ?, ?, ?)", (*row, sealed_row(row)))
        return self.get(question) or dict(answer)

    def judged(self, judge: str, step: str, pairs: Mapping[str, Mapping[str, int]]) -> None:
        """Note the pairs, by their hash, that `step` has had judged, with `COUNTS` of each (0 where left out)."""
        rows = [(judge, step, pair, *(counts.get(c, 0) for c in COUNTS)) for pair, counts in pairs.items()]
        with self._lock, self._told(), self._base:
            marks = ", ".join("?" * (4 + len(COUNTS)))
            sealed = [(*row, sealed_row(row)) for row in rows]
            self._base.executemany(f"INSERT OR IGNORE INTO judged VALUES ({marks})", sealed)

    def spent(self, judge: str, step: str) -> dict[str, int]:
        """What a step used of a judge: distinct `pairs` with the sums of their `COUNTS`, and what it paid for of it."""
        used = self._account("judged", judge, step, COUNTS)
        paid = self._account("paid", judge, step, ("tokens_in", "tokens_out"))
        names = ("pairs", *COUNTS, "asked", "tokens_in", "tokens_out")
        return dict(
            zip(names, (len(used), *totals(used, COUNTS), len(paid), *totals(paid, ("in", "out"))), strict=True)
        )

    def _account(self, table: str, judge: str, step: str, counts: Sequence[str]) -> list[tuple[int, ...]]:
        """The counts of a step's rows in a table. Damaged where a row is not what was written."""
        key = {"judged": "pair", "paid": "question"}[table]
        asked = f"SELECT {key}, {', '.join(counts)}, checksum FROM {table} WHERE judge = ? AND step = ?"
        with self._lock, self._told():
            rows = self._base.execute(asked, (judge, step)).fetchall()
        found = []
        for name, *values, checksum in rows:
            if checksum is None and table == "paid":  # of before the account was sealed
                values = [int((self.get(name) or {}).get(way, 0)) for way in counts]
            elif checksum is not None and checksum != sealed_row((judge, step, name, *values)):
                what = f"a row of what {step} was judged is not what was written"
                remedy = "move the file away, then repeat the command, which asks and pays anew"
                raise Damaged(f"{self.path}: {what}; {remedy}")
            found.append(tuple(values))
        return found


def sealed_row(row: Sequence[object]) -> str:
    """The checksum of a row of the account."""
    return str(seal({"row": list(row)})["checksum"])


def totals(rows: Sequence[Sequence[int]], columns: Sequence[str]) -> list[int]:
    """The sum of each column of rows."""
    return [sum(row[at] for row in rows) for at in range(len(columns))]
