"""Valid files for the fuzzers to start from."""

from __future__ import annotations

import gzip
import io
import json
from importlib import resources

import pyarrow as pa
import pyarrow.parquet as pq

from aligngap.storage.columns import RECORD_COLUMNS
from aligngap.storage.records import schema

ROWS = [{"prompt": f"say {i}", "chosen": f"river {i}", "rejected": f"lamp, {i}"} for i in range(4)]


def studies() -> list[bytes]:
    folder = resources.files("aligngap") / "studies"
    return [(folder / f"{name}.yaml").read_bytes() for name in ("tabular", "opening", "quality", "scaling")]


def data() -> list[bytes]:
    lines = "".join(json.dumps(r) + "\n" for r in ROWS).encode()
    table = "prompt,chosen,rejected\n" + "".join(f'{r["prompt"]},{r["chosen"]},"{r["rejected"]}"\n' for r in ROWS)
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), buffer)
    kinds = [
        lines, gzip.compress(lines), json.dumps(ROWS).encode(), table.encode(), gzip.compress(table.encode()),
        buffer.getvalue(),
    ]  # fmt: skip
    return [bytes([number]) + raw for number, raw in enumerate(kinds)]


def records() -> list[bytes]:
    values = {"str": "a", "int": 1, "float": 0.5, "bool": True}
    row = {name: values[kind] for name, (kind, _) in RECORD_COLUMNS.items()}
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([row, row], schema=schema(RECORD_COLUMNS)), buffer)
    return [buffer.getvalue()]


SEEDS = {"study": studies, "data": data, "records": records}
