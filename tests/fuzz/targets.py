"""What the fuzzers call: bytes in; data, or the one-line error that is meant for a person. Anything else is a crash."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from aligngap.storage.records import read_records
from aligngap.study.load import validate
from aligngap.study.yaml_file import parse_yaml, resolve_extends
from aligngap.tasks.pairs import PairsTask
from aligngap.types import AligngapError


def study(raw: bytes) -> None:
    """A study's file, from its text to a checked study."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        return  # `study.read` refuses it by the same exception
    _allowed(lambda: validate(resolve_extends(parse_yaml(text, "fuzz.yaml"), "fuzz.yaml"), "fuzz.yaml"))


def data(raw: bytes) -> None:
    """A data file of any kind: the first byte chooses which."""
    names = ("a.jsonl", "a.jsonl.gz", "a.json", "a.csv", "a.csv.gz", "a.parquet")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / names[raw[0] % len(names) if raw else 0]
        path.write_bytes(raw[1:])
        _allowed(lambda: PairsTask(path=str(path)).load(0))


def records(raw: bytes) -> None:
    """A records table."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "records.parquet"
        path.write_bytes(raw)
        _allowed(lambda: read_records(path))


def _allowed(call: Callable[[], object]) -> None:
    with suppress(AligngapError):
        call()


TARGETS = {"study": study, "data": data, "records": records}
