"""Pairs and encoded comparisons as Parquet files: the one place that knows their columns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from aligngap.streams import pair_from_row, pair_to_row
from aligngap.types import Pair

IDS = pa.list_(pa.int32())
PAIR_SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()), ("prompt", pa.string()), ("prompt_ids", IDS),
        ("chosen", pa.string()), ("chosen_ids", IDS), ("chosen_ended", pa.bool_()),
        ("rejected", pa.string()), ("rejected_ids", IDS), ("rejected_ended", pa.bool_()),
        ("p_chosen", pa.float64()), ("judged_forward", pa.float64()), ("judged_backward", pa.float64()),
        ("writer", pa.string()), ("ref_chosen", pa.float64()), ("ref_rejected", pa.float64()),
        ("labelled", pa.bool_()),
    ]
)  # fmt: skip


def write_pairs(path: Path, pairs: Sequence[Pair]) -> None:
    write_rows(path, [pair_to_row(p) for p in pairs], PAIR_SCHEMA)


def read_pairs(path: Path) -> list[Pair]:
    return [pair_from_row(row) for row in read_rows(path)]


def write_rows(path: Path, rows: Sequence[dict[str, Any]], schema: pa.Schema | None = None) -> None:
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), path, compression="zstd")


def read_rows(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return rows
