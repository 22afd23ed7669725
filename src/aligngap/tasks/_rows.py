"""Rows out of a user's data file, one at a time, each knowing where it stands.

JSON Lines, JSON, CSV (each also .gz) and Parquet, told apart by the file's name. Broken syntax is an error that names
the line; what a row should hold is not known here.
"""

from __future__ import annotations

import csv
import importlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from aligngap.tasks import _files
from aligngap.tasks._files import check_unpacks, fail, file_format, open_bounded, plain_file

MAX_JSON_BYTES = 256 << 20  #: of one .json list, which has to be held whole
MAX_LINE_BYTES = 32 << 20  #: of one line, or of one CSV field
MAX_BLANK_LINES = 100_000  #: in a row


EMPTY = "empty prompt or response"
MISSING = ("nan", "NaN", "<NA>")  #: how a missing value is printed where a table is made into text


class Skip(Exception):
    """Raised where a row is to be left out; its text is the reason under which the row is counted."""


@dataclass(frozen=True)
class Row:
    """One row of a file (or of a hub data set) and the words that name it in an error."""

    where: str
    values: Mapping[str, Any]
    typed: bool = True  #: False in a table of plain text (CSV, TSV), whose cells can only spell a list

    def get(self, field: str, remedy: str) -> Any:
        """The field's value, whatever it is; an error where the row has no such field."""
        if field not in self.values:
            has = ", ".join(list(map(str, self.values))[:12])[:200] or "none"
            raise fail(self.where, f"no field '{field}' (it has: {has})", remedy)
        return self.values[field]

    def text(self, field: str, remedy: str) -> str:
        """The field's value, which must be text."""
        return self.check_text(self.get(field, remedy), field)

    def check_text(self, value: object, field: str, allowed: str = "text") -> str:
        """The value if it is text that UTF-8 can hold; Skip if it is missing; an error that names the row otherwise."""
        if is_missing(value):
            raise Skip(EMPTY)
        if isinstance(value, bytes):  # as some Parquet files hold text
            value = value.decode("utf-8", errors="surrogateescape")
        if not isinstance(value, str):
            raise fail(self.where, f"field '{field}' is {json_type(value)}, not {allowed}", "make it a string")
        if not is_unicode(value):
            raise fail(self.where, f"field '{field}' holds a lone surrogate, which is no character", "repair the text")
        return value


def is_missing(value: object) -> bool:
    """Whether nothing stands there: null, not a number, or what pandas and numpy print in the place of either."""
    return (
        value is None or (isinstance(value, str) and value in MISSING) or (isinstance(value, float) and value != value)
    )


def is_unicode(text: str) -> bool:
    """Whether the text can be written as UTF-8, which a lone surrogate out of a JSON escape cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def json_type(value: object) -> str:
    """What a reader of the file would call this value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a truth value"
    if isinstance(value, (int, float)):
        return "a number"
    names: dict[type, str] = {str: "text", list: "a list", dict: "an object"}
    return names.get(type(value), f"of type {type(value).__name__}")


# ----------------------------------------------------------------------------------------------------------- rows


def read_rows(path: Path) -> Iterator[Row]:
    """Every row of the file in order; the format follows from its name. Fields and their types are not judged here."""
    kind, gzipped = file_format(path)
    plain_file(path)
    if gzipped:
        check_unpacks(path)
    rows = READERS[kind](path)
    some = False
    for row in rows:
        some = True
        yield row
    if not some:
        raise fail(str(path), "holds no rows", "give a file with at least two rows")


def _lines(path: Path, old_line_ends: bool = False) -> Iterator[tuple[int, str]]:
    """The file's lines with their numbers, line ends kept; a byte-order mark is skipped.

    With `old_line_ends` a file whose lines end in a carriage return alone is read too.
    """
    with open_bounded(path) as stream:
        number, blank = 0, 0
        while raw := stream.readline(MAX_LINE_BYTES + 1):
            number += 1
            blank = 0 if raw.strip() else blank + 1
            if blank > MAX_BLANK_LINES:
                raise fail(f"{path}, line {number}", f"{MAX_BLANK_LINES} blank lines before it", "remove them")
            if len(raw) > MAX_LINE_BYTES:
                what = f"longer than {MAX_LINE_BYTES >> 20} MiB"
                raise fail(f"{path}, line {number}", what, "shorten or remove the line")
            if number == 1:
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            text = _decode(f"{path}, line {number}", raw)
            if old_line_ends and number == 1 and "\r" in text.rstrip("\r\n"):
                yield from enumerate(re.split(r"(?<=\r)", text), start=1)
            else:
                yield number, text


def _decode(where: str, raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        packed = raw[:2] == b"\x1f\x8b"
        remedy = "it is gzipped: let its name end in .gz" if packed else "save the file as UTF-8"
        raise fail(where, f"not UTF-8 (byte 0x{raw[error.start]:02x})", remedy) from error


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twin = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the field '{twin[:60]}' is there twice")
    return values


_DECODER = json.JSONDecoder(object_pairs_hook=_no_twins)


def _parse(where: str, text: str) -> Any:
    """The JSON value that the text is."""
    try:
        return _DECODER.decode(text)
    except RecursionError as error:
        raise fail(where, "broken JSON: nested too deeply", "repair or remove the row") from error
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            raise fail(where, "broken JSON: more than one value, or text after it", "give one value") from error
        at = f"line {error.lineno} column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        raise fail(where, f"broken JSON: {error.msg} at {at}", "repair or remove the row") from error
    except ValueError as error:
        raise fail(where, f"broken JSON: {str(error)[:120]}", "repair or remove the row") from error


def _object(where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise fail(where, f"is {json_type(value)}, not an object with fields", "give an object for each row")
    return value


def parse_cell(text: str) -> Any:
    """A JSON value held in a text cell; ValueError where it is not one."""
    try:
        return _DECODER.decode(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _jsonl_rows(path: Path) -> Iterator[Row]:
    for number, line in _lines(path):
        if line := line.strip(" \t\r\n"):
            where = f"{path}, line {number}"
            yield Row(where, _object(where, _parse(where, line)))


def _json_rows(path: Path) -> Iterator[Row]:
    """A list of objects; a .json file that begins with an object is read as JSON Lines, as many publish it."""
    with open_bounded(path) as stream:
        raw = stream.read(MAX_JSON_BYTES + 1)
    if len(raw) > MAX_JSON_BYTES:
        raise fail(str(path), f"a list of more than {MAX_JSON_BYTES >> 20} MiB", "store it as .jsonl")
    text = _decode(str(path), raw.removeprefix(b"\xef\xbb\xbf")).strip(" \t\r\n")
    del raw
    if text.startswith("{"):
        yield from _jsonl_rows(path)
    elif text:
        values = _parse(str(path), text)
        if not isinstance(values, list):
            raise fail(
                str(path), "not a JSON list of objects", "write [{...}, {...}], or one object a line in a .jsonl"
            )
        for number, value in enumerate(values, start=1):
            where = f"{path}, row {number}"
            yield Row(where, _object(where, value))


def _csv_rows(path: Path) -> Iterator[Row]:
    """Rows of a table whose header names the columns; ";" or a tab parts them if the header has one and no comma."""
    kind, _ = file_format(path)
    lines = (line for _, line in _lines(path, old_line_ends=True))
    first = next(lines, "")
    delimiter = "\t" if kind == ".tsv" else next((c for c in ",;\t" if c in first), ",")
    reader = csv.reader(chain([first], lines), strict=True, delimiter=delimiter)
    header = _csv_next(path, reader)
    if header is None:
        return
    twins = [name for name in header if header.count(name) > 1]
    if twins:
        raise fail(f"{path}, line 1", f"the column '{twins[0]}' is there twice", "rename one of them")
    number = 0
    while (cells := _csv_next(path, reader)) is not None:
        number += 1
        where = f"{path}, row {number} (line {reader.line_num})"
        if len(cells) > len(header):
            what = f"{len(cells)} fields where the header names {len(header)}"
            raise fail(where, what, "put fields that hold the delimiter between quotation marks")
        yield Row(where, dict(zip(header, cells, strict=False)), typed=False)


def _csv_next(path: Path, reader: Any) -> list[str] | None:
    """The next row that is not blank. The field limit belongs to the whole process, so it is set and put back."""
    before = csv.field_size_limit(MAX_LINE_BYTES)
    try:
        while (cells := next(reader, None)) == []:
            pass
        return cells
    except csv.Error as error:
        raise fail(f"{path}, line {reader.line_num}", f"broken CSV: {error}", "repair the line") from error
    finally:
        csv.field_size_limit(before)


def _parquet_rows(path: Path) -> Iterator[Row]:
    arrow, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    number, size = 0, 0
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if len(set(names)) < len(names):
                raise fail(str(path), "has two columns of the same name", "rename one of them")
            groups = (file.metadata.row_group(i) for i in range(file.metadata.num_row_groups))
            declared = sum(group.total_byte_size for group in groups)
            for batch in file.iter_batches(batch_size=256) if declared <= _files.MAX_FILE_BYTES else ():
                size += batch.nbytes
                if size > _files.MAX_FILE_BYTES:
                    break
                for values in batch.to_pylist():
                    number += 1
                    yield Row(f"{path}, row {number}", values)
    except UnicodeDecodeError as error:
        raise fail(f"{path}, after row {number}", "text that is not UTF-8", "write the file again as UTF-8") from error
    except (arrow.ArrowException, OSError, OverflowError) as error:
        detail = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise fail(str(path), f"not a readable Parquet file ({detail})", "write it again") from error
    if max(declared, size) > _files.MAX_FILE_BYTES:
        raise fail(str(path), f"holds more than {_files.MAX_FILE_BYTES >> 20} MiB of data", "split the file")


READERS = {
    ".jsonl": _jsonl_rows, ".json": _json_rows, ".csv": _csv_rows, ".tsv": _csv_rows, ".parquet": _parquet_rows,
}  # fmt: skip
