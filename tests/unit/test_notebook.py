"""What `tests/notebook.py --write` leaves in a notebook."""

from __future__ import annotations

import pytest

pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")

from notebook import clean, keep  # noqa: E402


def test_a_kept_output_has_no_colors_bars_and_paths() -> None:
    said = (
        "\x1b[1m400 rows\x1b[0m of /tmp/x/pairs.jsonl\r\nfitting 1\rfitting 2\n"
        " 45%|####   | 3/4 [00:01<00:02, 3.2it/s]\n"
        "Writing model shards: 100%|██████████| 1/1 [00:00<00:00,  6.11it/s]\n45% of the pairs agree\n"
    )
    assert clean(said, {"/tmp": "elsewhere", "/tmp/x": "."}) == (
        "400 rows of ./pairs.jsonl\nfitting 2\n45% of the pairs agree\n"
    )


def test_a_kept_cell_has_no_errors_widgets_and_times() -> None:
    new = nbformat.v4.new_output
    widget = {"application/vnd.jupyter.widget-view+json": {}, "text/plain": "  0%|"}
    outputs = [
        new("stream", name="stderr", text="a warning"),
        new("stream", name="stdout", text="100%|██| 1/1 [00:00<00:00, 6.11it/s]\n"),
        new("display_data", data=widget),
        new("stream", name="stdout", text="the "),
        new("stream", name="stderr", text="another"),
        new("stream", name="stdout", text="answer\n"),
        new("execute_result", data={"text/plain": "/tmp/x/out", "image/png": "aGk="}),
    ]
    cell = nbformat.v4.new_code_cell("1", outputs=outputs, metadata={"execution": {"iopub.status.busy": "08:00"}})
    keep(cell, {"/tmp/x": "."})
    assert "execution" not in cell.metadata
    assert [o.output_type for o in cell.outputs] == ["stream", "execute_result"]
    assert (cell.outputs[0].text, cell.outputs[1].data["text/plain"]) == ("the answer\n", "./out")
    assert cell.outputs[1].data["image/png"] == "aGk="
