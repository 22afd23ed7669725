"""Prompts alone, for a measurement: out of a text file, a data file with a column of prompts, or a preference file.

A `.txt` file has a prompt a line. In JSON Lines, JSON, CSV, TSV and Parquet a prompt is text or messages, in a column
of one of the usual names or of a given one; an answer at the end of messages is left out. Rows of a preference file, in
any layout of the task `pairs`, give their prompt. Each distinct prompt is kept once, in the order of the file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aligngap.tasks._common import prompt_id
from aligngap.tasks._dialogue import PREFILLED
from aligngap.tasks._files import SUFFIXES, expand, fail, find_in_folder, is_folder
from aligngap.tasks._layouts import find_layout
from aligngap.tasks._prompts import PROMPTS, prompt_column, read_context
from aligngap.tasks._rows import EMPTY, Row, Skip, is_unicode, read_rows
from aligngap.tasks.pairs import LAYOUTS
from aligngap.types import AligngapError

DUPLICATE = "duplicate of an earlier prompt"
MOST_BYTES = 1 << 30  #: of a text file


@dataclass(frozen=True)
class Prompts:
    """Distinct prompts as text by their ids, what they were read from, and the rows that gave none, by reason."""

    texts: Mapping[str, str]
    source: str
    rows: int
    dropped: Mapping[str, int] = field(default_factory=dict)


def read_prompts(path: str | Path, column: str | None = None) -> Prompts:
    """The distinct prompts of a file; AligngapError, one line, where it has none or cannot be read as one."""
    place = _find(str(path))
    if place.suffix.lower() == ".txt":
        if column is not None:
            raise AligngapError(f"{place}: a text file has no columns; leave --prompt-column out")
        return _collect(_lines(place), place.name)
    return _collect((_prompt_of(row, column) for row in read_rows(place)), place.name)


def given_prompts(prompts: Sequence[Any]) -> Prompts:
    """The distinct prompts of a list of texts or of lists of messages (`{role, content}`)."""
    rows = (Row(f"prompt {i}", {"prompt": prompt}) for i, prompt in enumerate(prompts))
    return _collect((_prompt_of(row, "prompt") for row in rows), "the prompts given")


def _find(path: str) -> Path:
    """The file that a path names: itself, or a folder's `test.*` or `train.*`."""
    place = expand(path)
    if is_folder(place):
        inside = find_in_folder(place, "test") or find_in_folder(place, "train")
        if inside is None:
            raise fail(str(place), "the folder holds no test.* or train.* of a known kind", "give the file of prompts")
        return inside
    if not place.is_file():
        raise fail(str(place), "no such file of prompts", f"give one that ends in .txt, {', '.join(SUFFIXES)}")
    return place


def _lines(path: Path) -> Iterator[str | Skip]:
    """A prompt a line; blank lines say nothing."""
    if path.stat().st_size > MOST_BYTES:
        raise fail(str(path), f"holds more than {MOST_BYTES >> 20} MiB", "give fewer prompts")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise fail(str(path), f"not UTF-8 (byte {error.start})", "save the file as UTF-8") from error
    for line in text.split("\n"):
        said = line.rstrip("\r")
        if said.strip():
            yield said


def _prompt_of(row: Row, column: str | None) -> str | Skip:
    """A row's prompt, or why it has none."""
    try:
        return _read(row, column)
    except Skip as reason:
        return reason


def _read(row: Row, column: str | None) -> str:
    if column is not None:
        row.get(column, "name the column that holds the prompts with --prompt-column")
    else:
        column = prompt_column(row.values)
    if column is None:
        layout = find_layout(LAYOUTS, row)
        made = layout.read(row) if layout is not None else ()
        if layout is None:
            has = ", ".join(list(map(str, row.values))[:12])[:200] or "none"
            remedy = f"call it {', '.join(PROMPTS[:4])} or messages, or name it with --prompt-column"
            raise fail(row.where, f"no column of prompts (it has: {has})", remedy)
        if isinstance(made[0], Skip):
            raise made[0]
        text = made[0].prompt
    else:
        context = read_context(row, column, None)
        if context.turns[-1][0] == "assistant":
            raise Skip(PREFILLED)
        text = context.text
    text = text.lstrip("\r\n")
    if not text.strip():
        raise Skip(EMPTY)
    if not is_unicode(text):
        raise fail(row.where, "its prompt holds a lone surrogate, which is no character", "repair the text")
    return text


def _collect(found: Iterator[str | Skip], source: str) -> Prompts:
    texts: dict[str, str] = {}
    dropped: Counter[str] = Counter()
    rows = 0
    for prompt in found:
        rows += 1
        if isinstance(prompt, Skip):
            dropped[str(prompt)] += 1
        elif texts.setdefault(prompt_id(prompt), prompt) and len(texts) + dropped.total() < rows:
            dropped[DUPLICATE] += 1
    if not texts:
        why = f" ({', '.join(f'{reason} {n}' for reason, n in dropped.items())})" if dropped else ""
        raise fail(source, f"holds no prompts in its {rows} rows{why}", "give one a line, or a column of prompts")
    return Prompts(texts, source, rows, dict(dropped))
