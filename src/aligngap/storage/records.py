"""Tables of an output folder: records, per-prompt wins, samples, the best-of-n reference and the classifiers' probe.

The columns are declared once, in `columns.py`. A table carries the format's number in its schema metadata, is
written beside its place and renamed, and NaN (null on disk) means undefined. Nothing here imports torch.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from aligngap.storage.columns import (
    BEST_OF_N_COLUMNS,
    CROSSED_COLUMNS,
    GAP_COLUMNS,
    PER_PROMPT_COLUMNS,
    PROBE_COLUMNS,
    RATING_COLUMNS,
    RECORD_COLUMNS,
    RECORDS_FORMAT,
    SAMPLE_COLUMNS,
)
from aligngap.storage.files import whole_file, write_text
from aligngap.storage.listing import find_faults, read_listing, read_steadily, tell, writing
from aligngap.types import AligngapError, first_line

FORMAT_KEY = b"aligngap_records_format"
RECORDS, PER_PROMPT, SAMPLES = "records.parquet", "per_prompt.parquet", "samples.parquet"
BEST_OF_N, PROBE, RATINGS = "best_of_n.parquet", "probe.parquet", "ratings.parquet"
CROSSED = "crossed.parquet"
FAILURES = "failures.json"

#: columns that tables written before they were declared lack, and what such a table then holds
STALENESS = ("age", "age_max", "lag_kl_nats", "dropped", "dropped_length_tokens", "trained_length_tokens")
ADDED: dict[str, Any] = {"variant": ""} | dict.fromkeys(("flops", "log_ratio", *STALENESS, *GAP_COLUMNS), np.nan)

Columns = Mapping[str, tuple[str, str]]
_ARROW = {"str": pa.string(), "int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}
_CODED = pa.dictionary(pa.int32(), pa.string())


@dataclass(frozen=True)
class Tables:
    """The tables of an output folder; all but `records` may be empty, never missing columns."""

    records: pd.DataFrame
    per_prompt: pd.DataFrame
    samples: pd.DataFrame
    best_of_n: pd.DataFrame
    probe: pd.DataFrame
    failures: Mapping[str, str] = field(default_factory=dict)
    ratings: pd.DataFrame = field(default_factory=lambda: empty(RATING_COLUMNS))
    crossed: pd.DataFrame = field(default_factory=lambda: empty(CROSSED_COLUMNS))
    doubts: tuple[str, ...] = ()  # sentences about files of the folder that are not what aligngap wrote


def schema(columns: Columns, coded: Collection[str] = ()) -> pa.Schema:
    """The Arrow schema of a table, the format's number in its metadata; columns `coded` as dictionaries of texts."""
    return pa.schema(
        [pa.field(name, _CODED if name in coded else _ARROW[kind]) for name, (kind, _) in columns.items()],
        metadata={FORMAT_KEY: str(RECORDS_FORMAT).encode()},
    )


def write_table(path: Path | str, rows: pd.DataFrame | Sequence[Mapping[str, Any]], columns: Columns) -> Path:
    """Write rows under the declared columns, atomically: a reader sees the old table or the new one, never a part."""
    path = Path(path)
    target = schema(columns)
    names = list(rows.columns) if isinstance(rows, pd.DataFrame) else sorted({k for row in rows for k in row})
    missing = [name for name in columns if name not in names]
    if missing and len(rows):
        raise AligngapError(f"{path}: cannot write, rows lack the column(s) {', '.join(missing)}")
    extra = [name for name in names if name not in columns]
    if extra:
        raise AligngapError(f"{path}: cannot write, undeclared column(s) {', '.join(map(str, extra))}")
    try:
        if isinstance(rows, pd.DataFrame) and len(rows):
            table = pa.Table.from_pandas(rows[list(columns)], schema=target, preserve_index=False)
        else:
            data = [] if isinstance(rows, pd.DataFrame) else rows
            arrays = [pa.array([row[f.name] for row in data], type=f.type, from_pandas=True) for f in target]
            table = pa.Table.from_arrays(arrays, schema=target)
    except (pa.ArrowInvalid, pa.ArrowTypeError, KeyError) as error:
        what = f"cannot write, a value does not fit its column: {first_line(error, 300)}"
        raise AligngapError(f"{path}: {what}") from error
    table = table.replace_schema_metadata(target.metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as stream:
        pq.write_table(table, stream, compression="zstd")
    return path


def read_table(path: Path | str, columns: Columns, coded: Collection[str] = ()) -> pd.DataFrame:
    """Read a table and check it: the file, its format's number, its columns and their kinds; one clear line if not.

    Texts of the columns `coded` come as categories in alphabetical order, by which rows are quickly picked.
    """
    path, coded = Path(path), [name for name in columns if name in coded]
    if not path.is_file():
        raise AligngapError(f"{path}: no such file; run the study first, or give the folder that holds it")
    try:  # pre_buffer would hold the whole compressed file as well
        file = pq.ParquetFile(path, pre_buffer=False, read_dictionary=coded)
    except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: a column's name is not UTF-8
        raise AligngapError(f"{path}: not a readable Parquet file: {first_line(error, 300)}") from error
    with file:
        found = file.schema_arrow
        raw = (found.metadata or {}).get(FORMAT_KEY)
        if raw is None:
            raise AligngapError(f"{path}: not written by aligngap (its metadata has no {FORMAT_KEY.decode()})")
        if not raw.isdigit():
            raise AligngapError(f"{path}: unreadable {FORMAT_KEY.decode()} {raw!r}")
        if int(raw) > RECORDS_FORMAT:
            raise AligngapError(
                f"{path}: records format {int(raw)} is newer than this aligngap reads ({RECORDS_FORMAT}); upgrade"
            )
        added = [name for name in columns if name in ADDED and name not in found.names]
        missing = [name for name in columns if name not in (*found.names, *added)]
        if missing:
            raise AligngapError(f"{path}: missing column(s) {', '.join(missing)}; was it written by another tool?")
        try:
            table = file.read(columns=[name for name in columns if name not in added])
            for name in added:
                table = table.append_column(name, pa.array([ADDED[name]] * len(table), _ARROW[columns[name][0]]))
            table = table.select(list(columns)).cast(schema(columns, coded))
        except (pa.ArrowException, OSError, ValueError) as error:
            raise AligngapError(f"{path}: a column has the wrong type: {first_line(error, 300)}") from error
    for name, (kind, _) in columns.items():
        if kind in ("int", "bool") and table.column(name).null_count:
            raise AligngapError(f"{path}: column {name} holds {table.column(name).null_count} empty value(s)")
    try:
        frame: pd.DataFrame = table.to_pandas(split_blocks=True, self_destruct=True)
    except (pa.ArrowException, ValueError) as error:
        raise AligngapError(f"{path}: holds text that is not UTF-8: {first_line(error, 300)}") from error
    for name in coded:
        frame[name] = frame[name].cat.reorder_categories(frame[name].cat.categories.sort_values())
    for name, (kind, _) in columns.items():
        if kind == "float" and np.isinf(frame[name].to_numpy()).any():
            frame[name] = frame[name].replace([np.inf, -np.inf], np.nan)
    return frame


def read_records(path: Path | str, coded: Collection[str] = ()) -> pd.DataFrame:
    """`records.parquet`, given the file or the folder that holds it: one row a checkpoint and opponent."""
    return read_table(_inside(path, RECORDS), RECORD_COLUMNS, coded)


def read_per_prompt(path: Path | str, coded: Collection[str] = ()) -> pd.DataFrame:
    """`per_prompt.parquet`: one row a checkpoint, opponent and prompt."""
    return read_table(_inside(path, PER_PROMPT), PER_PROMPT_COLUMNS, coded)


def read_samples(path: Path | str) -> pd.DataFrame:
    """`samples.parquet`: texts of a few prompts a checkpoint."""
    return read_table(_inside(path, SAMPLES), SAMPLE_COLUMNS)


def read_best_of_n(path: Path | str) -> pd.DataFrame:
    """`best_of_n.parquet`: the SFT policy's best-of-n, one row a seed, opponent and n."""
    return read_table(_inside(path, BEST_OF_N), BEST_OF_N_COLUMNS)


def read_probe(path: Path | str) -> pd.DataFrame:
    """`probe.parquet`: classifiers along a recorded run, one row a seed, checkpoint and classifier."""
    return read_table(_inside(path, PROBE), PROBE_COLUMNS)


def read_ratings(path: Path | str) -> pd.DataFrame:
    """`ratings.parquet`: what people said, one row a rated pair and rater."""
    return read_table(_inside(path, RATINGS), RATING_COLUMNS)


def read_crossed(path: Path | str) -> pd.DataFrame:
    """`crossed.parquet`: win rates by every golden judge of the study, one row a checkpoint, opponent and judge."""
    return read_table(_inside(path, CROSSED), CROSSED_COLUMNS)


def read_folder(out_dir: Path | str, coded: Collection[str] = ()) -> Tables:
    """All tables of an output folder. Records must exist; a missing other table is an empty one.

    Files that were changed or removed after they were written are told on stderr and under `doubts`, and what is there
    is read all the same. Where another command writes to the folder meanwhile, what it has written is read.

    `coded` names columns of the two large tables, records and prompt by prompt, that come as categories (`read_table`).
    """
    folder = Path(out_dir)
    if not folder.is_dir():
        raise AligngapError(f"{folder}: no such folder")
    found = read_steadily(folder, lambda: _read_tables(folder, coded))
    for sentence in found.doubts:
        tell(folder, sentence)
    return found


def _read_tables(folder: Path, coded: Collection[str]) -> Tables:
    records = read_records(folder, coded)
    if not len(records):
        raise AligngapError(f"{folder / RECORDS}: holds no rows, so there is nothing to report")
    per_prompt = read_per_prompt(folder, coded) if (folder / PER_PROMPT).exists() else empty(PER_PROMPT_COLUMNS)
    samples = read_samples(folder) if (folder / SAMPLES).exists() else empty(SAMPLE_COLUMNS)
    best_of_n = read_best_of_n(folder) if (folder / BEST_OF_N).exists() else empty(BEST_OF_N_COLUMNS)
    probe = read_probe(folder) if (folder / PROBE).exists() else empty(PROBE_COLUMNS)
    ratings = read_ratings(folder) if (folder / RATINGS).exists() else empty(RATING_COLUMNS)
    crossed = read_crossed(folder) if (folder / CROSSED).exists() else empty(CROSSED_COLUMNS)
    failures = read_failures(folder)
    doubts = find_faults(folder).sentences()
    return Tables(records, per_prompt, samples, best_of_n, probe, failures, ratings, crossed, doubts)


def write_failures(folder: Path, failures: Mapping[str, str]) -> None:
    """Keep what became of the steps that failed (name -> one line), or that none did."""
    path = folder / FAILURES
    if not failures and not path.exists() and FAILURES not in read_listing(folder).files:
        return
    with writing(folder, [FAILURES]):
        if failures:
            write_text(path, json.dumps(dict(failures), indent=1) + "\n")
        else:
            path.unlink(missing_ok=True)


def read_failures(folder: Path) -> dict[str, str]:
    """The steps that failed when the study was last run, and why; empty if none did."""
    path = folder / FAILURES
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        what = f"cannot be read ({first_line(error, 300)}); remove it, or run the study again"
        raise AligngapError(f"{path}: {what}") from error
    if not isinstance(found, dict):
        raise AligngapError(f"{path}: must map steps to messages; remove it, or run the study again")
    return {str(name): str(message) for name, message in found.items()}


def empty(columns: Columns) -> pd.DataFrame:
    """A table with the declared columns and no rows."""
    frame: pd.DataFrame = schema(columns).empty_table().to_pandas()
    return frame


def _inside(path: Path | str, name: str) -> Path:
    path = Path(path)
    return path / name if path.is_dir() or not path.suffix else path
