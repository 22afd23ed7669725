"""Answers that were paid for, by content, and what each step used of them: one SQLite file in the store.

An answer and the step that paid for it are written together, each pair a step has had judged once: what a step is told
to have spent is counted from the file, so no kill loses any of it, and nothing that is done again counts twice. Every
answer and every row of the account is sealed with a checksum, and so is how many rows a step has: an answer that is not
what was written is asked again, and an account that is not is an error, since what was spent is not known. Files of
before there were checksums are read as they are.
"""

from __future__ import annotations

import json
import sqlite3
import sys
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
    "CREATE TABLE IF NOT EXISTS totals (judge TEXT, step TEXT, account TEXT, count INT, checksum TEXT,"
    " PRIMARY KEY (judge, step, account)) WITHOUT ROWID",
)
SEALED = 1  #: `user_version` of a file of which every row was sealed from its first on
#: what is wrong with the machine and not with the file
TROUBLE = (
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_INTERRUPT,
)  # fmt: skip
REMEDY = "move the file away, then repeat the command, which asks and pays anew"
LATER = {"paid": ("tokens_in INT", "tokens_out INT", "checksum TEXT"), "judged": ("checksum TEXT",)}  # than the first


class Answers:
    """The file, or without a path a memory of this process. Safe for threads, and for processes that share it."""

    def __init__(self, path: Path | None) -> None:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self._lock, self._told_again = path, threading.Lock(), False
        with self._told():
            self._base = sqlite3.connect(path or ":memory:", timeout=60.0, check_same_thread=False)
            if self._is_new():
                with self._base:
                    self._base.execute("BEGIN IMMEDIATE")
                    if self._is_new():  # no other process has begun it meanwhile
                        self._base.execute(f"PRAGMA user_version = {SEALED}")
                        self._base.execute(TABLES[0])
            self._sealed = self._base.execute("PRAGMA user_version").fetchone()[0] >= SEALED
            for table in TABLES:
                self._base.execute(table)
            for table, columns in LATER.items():
                there = {row[1] for row in self._base.execute(f"PRAGMA table_info({table})")}
                for column in columns:
                    if column.split()[0] not in there:
                        self._base.execute(f"ALTER TABLE {table} ADD COLUMN {column}")

    def _is_new(self) -> bool:
        return self._base.execute("SELECT 1 FROM sqlite_master").fetchone() is None

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What SQLite says of a file that it cannot read, as one line."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in TROUBLE:
                raise
            what = f"cannot be read ({error}); {REMEDY.replace('the file', 'it')}"
            raise Damaged(f"{self.path}: {what}") from error

    def get(self, question: str) -> dict[str, Any] | None:
        """The answer to a question, by its hash, if there is one that is what was written."""
        with self._lock, self._told():
            row = self._base.execute("SELECT answer FROM answers WHERE question = ?", (question,)).fetchone()
        try:
            found = json.loads(row[0]) if row else None
        except (TypeError, ValueError):
            return None
        if not isinstance(found, dict) or not {"better", "what"} <= set(found):
            return None
        if "checksum" not in found:  # of before answers were sealed
            return None if self._sealed else found
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
            paid = self._base.execute("INSERT OR IGNORE INTO paid VALUES (?, ?, ?, ?, ?, ?)", (*row, sealed_row(row)))
            self._count("paid", judge, step, paid.rowcount)
        if torn and not paid.rowcount:
            self._tell_again()
        return self.get(question) or dict(answer)

    def judged(self, judge: str, step: str, pairs: Mapping[str, Mapping[str, int]]) -> None:
        """Note the pairs, by their hash, that `step` has had judged, with `COUNTS` of each (0 where left out)."""
        rows = [(judge, step, pair, *(counts.get(c, 0) for c in COUNTS)) for pair, counts in pairs.items()]
        with self._lock, self._told(), self._base:
            marks = ", ".join("?" * (4 + len(COUNTS)))
            sealed = [(*row, sealed_row(row)) for row in rows]
            before = self._base.total_changes
            self._base.executemany(f"INSERT OR IGNORE INTO judged VALUES ({marks})", sealed)
            self._count("judged", judge, step, self._base.total_changes - before)

    def _count(self, account: str, judge: str, step: str, more: int) -> None:
        """Note, within a transaction, that a step has so many rows more in an account."""
        if more < 1:
            return
        count, sealed = self._total(account, judge, step)
        if count is None:  # the first ones, or a file of before rows were counted
            asked = f"SELECT COUNT(*) FROM {account} WHERE judge = ? AND step = ?"
            count = self._base.execute(asked, (judge, step)).fetchone()[0]
        elif sealed:
            count += more
        else:
            return  # `spent` says so
        row = (judge, step, account, count)
        self._base.execute("INSERT OR REPLACE INTO totals VALUES (?, ?, ?, ?, ?)", (*row, sealed_row(row)))

    def _total(self, account: str, judge: str, step: str) -> tuple[int | None, bool]:
        """How many rows of an account a step is said to have, if anything is said, and whether that was written so."""
        asked = "SELECT count, checksum FROM totals WHERE judge = ? AND step = ? AND account = ?"
        found = self._base.execute(asked, (judge, step, account)).fetchone()
        return (None, False) if found is None else (found[0], found[1] == sealed_row((judge, step, account, found[0])))

    def _tell_again(self) -> None:
        """Say on stderr, once, that what was paid for is paid for again, which no account counts."""
        if not self._told_again:
            what = "answers that were paid for are gone or not what was written; they are asked and paid for again"
            print(f"aligngap: {self.path}: {what}", file=sys.stderr, flush=True)
            self._told_again = True

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
            count, sealed = self._total(table, judge, step)
        uncounted = count is None and (not rows or not self._sealed)
        if not uncounted and (count != len(rows) or not sealed):
            raise Damaged(f"{self.path}: rows of what {step} was judged are not those that were written; {REMEDY}")
        found = []
        for name, *values, checksum in rows:
            if checksum is None and not self._sealed:  # of before the account was sealed
                if table == "paid":
                    values = [int((self.get(name) or {}).get(way, 0)) for way in counts]
            elif checksum != sealed_row((judge, step, name, *values)):
                raise Damaged(f"{self.path}: a row of what {step} was judged is not what was written; {REMEDY}")
            found.append(tuple(values))
        return found


def sealed_row(row: Sequence[object]) -> str:
    """The checksum of a row of the account."""
    plain = [repr(value) if isinstance(value, bytes) else value for value in row]  # which nobody has written
    return str(seal({"row": plain})["checksum"])


def totals(rows: Sequence[Sequence[int]], columns: Sequence[str]) -> list[int]:
    """The sum of each column of rows."""
    return [sum(row[at] for row in rows) for at in range(len(columns))]
