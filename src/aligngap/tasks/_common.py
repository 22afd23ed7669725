"""What all file-backed tasks share: cleaning, counting, splitting by prompt, and the fingerprint.

A task's own module only says how a row becomes a prompt and two responses. Rows of poor quality are left out and
counted (`TaskData.dropped`); rows of the wrong shape are an error that names the row.
"""

from __future__ import annotations

import hashlib
import json
import random
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field

from aligngap.tasks._files import SUFFIXES, content_hash, fail, file_format, find_in_folder, is_folder
from aligngap.tasks._rows import Row, read_rows
from aligngap.types import Comparison, TaskData

FORMAT = 1  #: raised when cleaning or splitting changes, so that old artifacts are not taken for new ones

IDENTICAL = "identical responses"
EMPTY = "empty prompt or response"
DUPLICATE = "duplicate of an earlier pair"
CONTRADICTION = "contradicts an earlier pair"
PROMPTS_DIFFER = "prompts differ"
NO_ANSWER = "dialogue does not end with an answer"
IN_TEST = "prompt is also in test"
OVER_MAX_ROWS = "beyond max_rows"


class Skip(Exception):
    """Raised by a converter to leave a row out; its text is the reason under which the row is counted."""


@dataclass(frozen=True)
class Raw:
    """What a converter makes of a row; `split` is "train" or "test" where the row itself says so."""

    prompt: str
    chosen: str
    rejected: str
    split: str | None = None


Converter = Callable[[Row], Raw]


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
    def converter(self, first: Row) -> Converter:
        """How this source's rows are read: decided by its first row, and then the same for all of them."""

    def split_key(self, prompt: str) -> str:
        """What must not be in two splits: by default the prompt itself."""
        return prompt

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
        """The comparisons, clean and split by prompt; the seed only draws which ones stay under `max_rows`."""
        sources, dropped = self.sources(), Counter[str]()
        usable = _collect(sources, self.converter, dropped)
        test = [comparison for comparison, split in usable if split == "test"]
        train = [comparison for comparison, split in usable if split != "test"]
        if sources.test and not test:
            raise fail(sources.test[0].name, f"no usable row{_because(dropped)}", "repair the test file or remove it")
        _need_two_prompts(sources.name, train + test, dropped)
        if test:
            train = _without_prompts_of(train, test, dropped)
        else:
            train, test = split_by_prompt(train, self.test_share, self.split_key)
        if not train:
            raise fail(sources.name, f"no row left to train on{_because(dropped)}", "give more prompts")
        train = _draw(train, self.max_rows, f"{seed}/train", dropped)
        test = _draw(test, self.max_rows, f"{seed}/test", dropped)
        return TaskData(train=train, test=test, source=sources.name, dropped=dict(dropped))


def prompt_id(prompt: str) -> str:
    """A prompt's stable id: the same text has the same id in every file, split and run."""
    return hashlib.sha256(prompt.encode("utf-8")).hexdigest()[:16]


def clean(raw: Raw) -> Comparison:
    """A comparison without outer blanks, or Skip. Control characters inside the text are data and stay."""
    prompt, chosen, rejected = raw.prompt.lstrip("\r\n"), raw.chosen.strip(), raw.rejected.strip()
    if not prompt.strip() or not chosen or not rejected:
        raise Skip(EMPTY)
    if chosen == rejected:
        raise Skip(IDENTICAL)
    return Comparison(prompt_id(prompt), prompt, chosen, rejected)


def split_by_prompt(
    comparisons: Sequence[Comparison], test_share: float, key: Callable[[str], str] = str
) -> tuple[list[Comparison], list[Comparison]]:
    """(train, test) by a hash of each prompt's key, so that more rows move no prompt; neither side is left empty."""
    place = {k: _unit_hash(k) for k in {key(c.prompt) for c in comparisons}}
    held_out = {k for k, at in place.items() if at < test_share}
    if not held_out:
        held_out = {min(place, key=place.__getitem__)}
    elif len(held_out) == len(place):
        held_out.remove(max(place, key=place.__getitem__))
    test = [c for c in comparisons if key(c.prompt) in held_out]
    return [c for c in comparisons if key(c.prompt) not in held_out], test


def _unit_hash(text: str) -> float:
    """The text's place in [0, 1), the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:6], "big") / 2**48


def _collect(
    sources: Sources, converter: Callable[[Row], Converter], dropped: Counter[str]
) -> list[tuple[Comparison, str | None]]:
    """Every usable comparison with its split ("train", "test" or None: not said); the rest is counted in `dropped`."""
    usable: list[tuple[Comparison, str | None]] = []
    seen: set[tuple[str | None, str, str, str]] = set()
    train_split = "train" if sources.test else None
    for source, split in chain(((s, train_split) for s in sources.train), ((s, "test") for s in sources.test)):
        convert: Converter | None = None
        for row in source.rows():
            convert = convert or converter(row)
            try:
                raw = convert(row)
                comparison = clean(raw)
                where = raw.split or split
                _refuse_repeats(comparison, where, seen)
            except Skip as reason:
                dropped[str(reason)] += 1
                continue
            usable.append((comparison, where))
    return usable


def _refuse_repeats(c: Comparison, split: str | None, seen: set[tuple[str | None, str, str, str]]) -> None:
    if (split, c.prompt, c.chosen, c.rejected) in seen:
        raise Skip(DUPLICATE)
    if (split, c.prompt, c.rejected, c.chosen) in seen:
        raise Skip(CONTRADICTION)
    seen.add((split, c.prompt, c.chosen, c.rejected))


def _without_prompts_of(
    train: Sequence[Comparison], test: Sequence[Comparison], dropped: Counter[str]
) -> list[Comparison]:
    held_out = {c.prompt_id for c in test}
    kept = [c for c in train if c.prompt_id not in held_out]
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
    prompts = len({c.prompt_id for c in comparisons})
    if prompts < 2:
        remedy = "give at least 2, one to train on and one to test on"
        raise fail(where, f"only {prompts} usable prompt{'' if prompts == 1 else 's'}{_because(dropped)}", remedy)


def _because(dropped: Counter[str]) -> str:
    return f" (left out: {', '.join(f'{reason} {n}' for reason, n in dropped.items())})" if dropped else ""
