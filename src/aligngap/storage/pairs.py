"""Pairs and encoded comparisons as Parquet files: the one place that knows their columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from aligngap.types import Pair, Prompt, Response

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

#: columns that a file of pairs has only where some pair has the value
MORE = ("writer_chosen", "writer_rejected", "advantage_chosen", "advantage_rejected")


def write_pairs(path: Path, pairs: Sequence[Pair]) -> None:
    """Write pairs as a Parquet file."""
    write_pair_rows(path, [pair_to_row(p) for p in pairs])


def write_pair_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows of pairs as a Parquet file, with those of the columns `MORE` that any of them has."""
    schema = PAIR_SCHEMA
    for name in MORE:
        if any(name in row for row in rows):
            schema = schema.append(pa.field(name, pa.float64()))
    write_rows(path, rows, schema)


def read_pairs(path: Path) -> list[Pair]:
    """The pairs in a Parquet file, in their order."""
    return [pair_from_row(row) for row in read_rows(path)]


def write_rows(path: Path, rows: Sequence[dict[str, Any]], schema: pa.Schema | None = None) -> None:
    """Write rows of JSON values as a Parquet file."""
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), path, compression="zstd")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a Parquet file as JSON values."""
    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return rows


def pair_to_row(pair: Pair) -> dict[str, Any]:
    """A flat row of JSON values: token ids, order, labels in both orders, ended flags, writer, reference log-probs."""
    row: dict[str, Any] = {"prompt_id": pair.prompt.id, "prompt": pair.prompt.text, "prompt_ids": list(pair.prompt.ids)}
    for side, response in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        row |= {side: response.text, f"{side}_ids": list(response.ids), f"{side}_ended": response.ended}
    rest = ("p_chosen", "judged_forward", "judged_backward", "writer", "ref_chosen", "ref_rejected", "labelled")
    more = {name: value for name in MORE if (value := getattr(pair, name)) is not None}
    return row | {name: getattr(pair, name) for name in rest} | more


def pair_from_row(row: Mapping[str, Any]) -> Pair:
    """The inverse of `pair_to_row`, exactly. A row of before there were unlabelled pairs is a labelled one."""
    sides = [
        Response(tuple(map(int, row[f"{s}_ids"])), bool(row[f"{s}_ended"]), row[s]) for s in ("chosen", "rejected")
    ]
    prompt = Prompt(row["prompt_id"], row["prompt"], tuple(int(t) for t in row["prompt_ids"]))
    found = [row.get(name) for name in ("ref_chosen", "ref_rejected", *MORE)]
    refs = [None if value is None or value != value else float(value) for value in found]
    return Pair(
        prompt, sides[0], sides[1], float(row["p_chosen"]), float(row["judged_forward"]),
        float(row["judged_backward"]), row["writer"], refs[0], refs[1], row.get("labelled") is not False,
        *refs[2:],
    )  # fmt: skip
