"""What all file-backed tasks share: reading by layout, cleaning, counting, splitting, and the fingerprint.

A task's own module only says which layouts it reads (`_layouts.py`). Rows of poor quality are left out and counted
(`TaskData.dropped`); rows of the wrong shape are an error that names the row.
"""

from __future__ import annotations

import hashlib
import json
import random
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field

from aligngap.tasks._dialogue import conversation_keys, without_form
from aligngap.tasks._files import SUFFIXES, content_hash, fail, file_format, find_in_folder, is_folder
from aligngap.tasks._layouts import (
    JOINED,
    Layout,
    Rated,
    as_meant,
    compare_rated,
    find_layout,
    refuse_columns,
    refuse_row,
)
from aligngap.tasks._prompts import Raw
from aligngap.tasks._rows import EMPTY, Row, Skip, is_missing, read_rows
from aligngap.types import Comparison, TaskData

FORMAT = 3  #: raised when reading, cleaning or splitting changes, so that old artifacts are not taken for new ones

IDENTICAL = "identical responses"
DUPLICATE = "duplicate of an earlier pair"
OUTVOTED = "contradicted by as many or more rows"
IN_TEST = "prompt is also in test"
OVER_MAX_ROWS = "beyond max_rows"


class Source(Protocol):
    """Where rows come from: a file, or a split of a hub data set."""

    @property
    def name(self) -> str: ...

    def rows(self) -> Iterator[Row]: ...

    def fingerprint(self) -> str: ...


@dataclass(frozen=True)
class FileSource:
    """The rows of one file."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    def rows(self) -> Iterator[Row]:
        return read_rows(self.path)

    def fingerprint(self) -> str:
        return f"{file_format(self.path)[0]} {content_hash(self.path)}"


@dataclass(frozen=True)
class Sources:
    """What a task reads: its training rows, and its test rows where the publisher gives them apart."""

    train: Sequence[Source]
    test: Sequence[Source] = ()

    @property
    def name(self) -> str:
        return ", ".join(source.name for source in chain(self.train, self.test))


def file_sources(path: Path) -> Sources:
    """A data file; or a folder's `train.*` and, if there, `test.*`."""
    if not is_folder(path):
        return Sources([FileSource(path)])
    train, test = find_in_folder(path, "train"), find_in_folder(path, "test")
    if train is None:
        remedy = f"name the file train{'|'.join(SUFFIXES)}, or set task.path to the file"
        raise fail(str(path), "the folder holds no train file of a known kind", remedy)
    return Sources([FileSource(train)], [FileSource(test)] if test else [])


class FileTask(BaseModel):
    """A task that is read from files: subclasses say how a row becomes a prompt and two responses."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    test_share: float = Field(
        default=0.1, gt=0, lt=1, description="share of prompts held out where there is no test file"
    )
    max_rows: int | None = Field(
        default=None, ge=2, description="at most so many comparisons per split, drawn by the seed"
    )

    @abstractmethod
    def sources(self) -> Sources:
        """Where the rows come from."""

    @abstractmethod
    def layouts(self) -> Sequence[Layout]:
        """The layouts that rows may have; a row is read by the first that fits it."""

    def settings(self) -> dict[str, object]:
        """The settings that change what is loaded. Never the path: moved data is the same data."""
        return self.model_dump(mode="json", exclude={"path"})

    def fingerprint(self) -> str:
        """SHA-256 of the contents and of the settings that change what is loaded."""
        sources, settings = self.sources(), self.settings()
        if sources.test:
            settings.pop("test_share")
        parts = {
            "format": FORMAT,
            "task": type(self).__name__,
            "settings": settings,
            "train": [source.fingerprint() for source in sources.train],
            "test": [source.fingerprint() for source in sources.test],
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def load(self, seed: int) -> TaskData:
        """The comparisons, clean and split by conversation; the seed only draws which ones stay under `max_rows`."""
        sources, tally = self.sources(), Tally()
        usable = _collect(sources, self.layouts(), tally)
        dropped = tally.dropped
        test = [comparison for comparison, split in usable if split == "test"]
        train = [comparison for comparison, split in usable if split != "test"]
        if sources.test and not test:
            raise fail(sources.test[0].name, f"no usable row{_because(dropped)}", "repair the test file or remove it")
        _need_two_prompts(sources.name, train + test, dropped)
        if test:
            train = _without_conversations_of(train, test, dropped)
        else:
            train, test = split_by_conversation(train, self.test_share)
        if not train:
            raise fail(sources.name, f"no row left to train on{_because(dropped)}", "give more prompts")
        train = _draw(train, self.max_rows, f"{seed}/train", dropped)
        test = _draw(test, self.max_rows, f"{seed}/test", dropped)
        return TaskData(
            train=train, test=test, source=sources.name, dropped=dict(dropped),
            rows=tally.rows, layouts=dict(tally.layouts), more=tally.more, unread=tally.unread,
        )  # fmt: skip


@dataclass
class Tally:
    """What became of every row that was read: rows + more = comparisons kept + all that is in `dropped`.

    `layouts` counts the rows by the layout they were recognised in; `more` the comparisons beyond one a row. `columns`
    are the names of all columns that hold something, `seen` of those that were read.
    """

    rows: int = 0
    more: int = 0
    layouts: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    columns: dict[str, None] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)

    @property
    def unread(self) -> list[str]:
        """The columns that nothing was read of, in the order of the file."""
        return [name for name in self.columns if name not in self.seen]


def prompt_id(prompt: str) -> str:
    """A prompt's stable id: the same text has the same id in every file, split and run."""
    return hashlib.sha256(prompt.encode("utf-8")).hexdigest()[:16]


def clean(raw: Raw) -> Comparison:
    """A comparison, or Skip where it says nothing. Blanks and control characters in the texts are data and stay."""
    prompt = without_form(raw.prompt)
    if not prompt.strip() or not raw.chosen.strip() or not raw.rejected.strip():
        raise Skip(EMPTY)
    if raw.chosen.strip() == raw.rejected.strip():
        raise Skip(IDENTICAL)
    return Comparison(prompt_id(prompt), prompt, raw.chosen, raw.rejected)


def split_by_conversation(
    comparisons: Sequence[Comparison], test_share: float
) -> tuple[list[Comparison], list[Comparison]]:
    """(train, test) by a hash of each prompt's conversation; more rows move none, and neither side is left empty."""
    keys = conversation_keys([c.prompt for c in comparisons])
    place = {key: _unit_hash(key) for key in keys}
    held_out = {key for key, at in place.items() if at < test_share}
    if not held_out:
        held_out = {min(place, key=place.__getitem__)}
    elif len(held_out) == len(place):
        held_out.remove(max(place, key=place.__getitem__))
    split: tuple[list[Comparison], list[Comparison]] = ([], [])
    for comparison, key in zip(comparisons, keys, strict=True):
        split[key in held_out].append(comparison)
    return split


def _unit_hash(text: str) -> float:
    """The text's place in [0, 1), the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:6], "big") / 2**48


Usable = list[tuple[Comparison, str | None]]


def _collect(sources: Sources, layouts: Sequence[Layout], tally: Tally) -> Usable:
    """Every usable comparison with its split ("train", "test" or None: not said); the rest is counted in the tally."""
    votes: dict[tuple[str | None, str, str, str], list[tuple[Comparison, str | None]]] = {}

    def keep(raw: Raw, split: str | None) -> None:
        try:
            comparison, where = clean(raw), raw.split or split
        except Skip as reason:
            tally.dropped[str(reason)] += 1
        else:
            one, other = sorted((comparison.chosen.strip(), comparison.rejected.strip()))
            votes.setdefault((where, comparison.prompt, one, other), []).append((comparison, where))

    def compare(rated: list[Rated], split: str | None) -> None:
        """Make one comparison of the rated rows of a prompt; the other rows are counted as its parts."""
        if rated:
            tally.dropped[JOINED] += len(rated) - 1
            try:
                keep(compare_rated(rated), split)
            except Skip as reason:
                tally.dropped[str(reason)] += 1
            rated.clear()

    train_split = "train" if sources.test else None
    for source, split in chain(((s, train_split) for s in sources.train), ((s, "test") for s in sources.test)):
        rated: list[Rated] = []
        for found in _read(source, layouts, tally):
            if isinstance(found, Rated) and rated and rated[0].prompt == found.prompt:
                rated.append(found)
                continue
            compare(rated, split)
            if isinstance(found, Rated):
                rated.append(found)
            elif isinstance(found, Raw):
                keep(found, split)
            else:
                tally.dropped[str(found)] += 1
        compare(rated, split)
    usable = [kept for same in votes.values() for kept in _elect(same, tally.dropped)]
    tally.dropped = +tally.dropped
    return usable


def _read(source: Source, layouts: Sequence[Layout], tally: Tally) -> Iterator[Raw | Rated | Skip]:
    """What the layouts make of the source's rows, each row counted under its layout."""
    first: Layout | None = None
    for row in source.rows():
        if first is None:
            refuse_columns(row)
        tally.columns |= dict.fromkeys(name for name, value in row.values.items() if not is_missing(value))
        row = as_meant(row, tally.seen)
        layout = find_layout(layouts, row)
        tally.rows += 1
        if layout is None:
            layout = refuse_row(layouts, row, first)
        tally.layouts[layout.name] += 1
        first = first or layout
        try:
            made = layout.read(row)
        except Skip as reason:
            yield reason
            continue
        tally.more += len(made) - 1
        yield from made


def _elect(same: Usable, dropped: Counter[str]) -> Usable:
    """Of rows that compare the same two responses to the same prompt one that most of them agree with, if most do."""
    first = same[0][0].chosen.strip()
    agree = [row for row in same if row[0].chosen.strip() == first]
    differ = [row for row in same if row[0].chosen.strip() != first]
    if len(agree) == len(differ):
        dropped[OUTVOTED] += len(same)
        return []
    most, least = sorted((agree, differ), key=len, reverse=True)
    dropped[DUPLICATE] += len(most) - 1
    dropped[OUTVOTED] += len(least)
    return most[:1]


def _without_conversations_of(
    train: Sequence[Comparison], test: Sequence[Comparison], dropped: Counter[str]
) -> list[Comparison]:
    keys = conversation_keys([c.prompt for c in (*test, *train)])
    held_out, in_train = set(keys[: len(test)]), keys[len(test) :]
    kept = [c for c, key in zip(train, in_train, strict=True) if key not in held_out]
    if len(kept) < len(train):
        dropped[IN_TEST] += len(train) - len(kept)
    return kept


def _draw(rows: list[Comparison], max_rows: int | None, seed: str, dropped: Counter[str]) -> list[Comparison]:
    """At most `max_rows` of the rows, drawn by the seed, in their old order."""
    if max_rows is None or len(rows) <= max_rows:
        return rows
    dropped[OVER_MAX_ROWS] += len(rows) - max_rows
    return [rows[i] for i in sorted(random.Random(seed).sample(range(len(rows)), max_rows))]


def _need_two_prompts(where: str, comparisons: Sequence[Comparison], dropped: Counter[str]) -> None:
    prompts = {c.prompt_id: c.prompt for c in comparisons}
    different = len(set(conversation_keys(list(prompts.values()))))
    if different < 2:
        alike = f", {len(prompts)} ways of writing it" if len(prompts) > 1 else ""
        what = f"only {different} usable prompt{'' if different == 1 else 's'}{alike}{_because(dropped)}"
        raise fail(where, what, "give at least 2, one to train on and one to test on")


def _because(dropped: Counter[str]) -> str:
    return f" (left out: {', '.join(f'{reason} {n}' for reason, n in dropped.items())})" if dropped else ""
