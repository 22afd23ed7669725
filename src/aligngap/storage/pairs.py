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


def write_pairs(path: Path, pairs: Sequence[Pair]) -> None:
    """Write pairs as a Parquet file."""
    write_rows(path, [pair_to_row(p) for p in pairs], PAIR_SCHEMA)


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
    return row | {name: getattr(pair, name) for name in rest}


def pair_from_row(row: Mapping[str, Any]) -> Pair:
    """The inverse of `pair_to_row`, exactly. A row of before there were unlabelled pairs is a labelled one."""
    sides = [
        Response(tuple(map(int, row[f"{s}_ids"])), bool(row[f"{s}_ended"]), row[s]) for s in ("chosen", "rejected")
    ]
    prompt = Prompt(row["prompt_id"], row["prompt"], tuple(int(t) for t in row["prompt_ids"]))
    refs = [None if row[k] is None or row[k] != row[k] else float(row[k]) for k in ("ref_chosen", "ref_rejected")]
    return Pair(
        prompt, sides[0], sides[1], float(row["p_chosen"]), float(row["judged_forward"]),
        float(row["judged_backward"]), row["writer"], refs[0], refs[1], row.get("labelled") is not False,
    )  # fmt: skip
