"""Run a notebook from top to bottom in a folder of its own: `python tests/notebook.py NOTEBOOK [--write]`.

With ALIGNGAP_SHORT=1, which `make notebook` sets, it is a minute's run whose answer means nothing: what is tested is
that every cell runs. `--write` keeps the outputs in the notebook, after a whole run, without progress bars, colors and
paths of the machine.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode


def complains(text: str) -> bool:
    """Whether a command's output has more of its own words than the line with which every command begins."""
    own = [line for line in text.splitlines() if line.startswith("aligngap: ") and not line.endswith(" …")]
    return bool(own) or "Traceback" in text


#: what colors and moves a terminal's cursor
ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07")
#: a line of tqdm or rich: a percentage, and a bar or a rate behind it
BAR = re.compile(r"\d+%\s*(\||[━╸╺█])|\d(it|s)/(s|it)\]")


def clean(text: str, hidden: Mapping[str, str]) -> str:
    """A command's output as it is read: the last state of each line, no colors and no bars, `hidden` paths by name."""
    lines = [line.rpartition("\r")[2] for line in ANSI.sub("", text).replace("\r\n", "\n").split("\n")]
    kept = "\n".join(line for line in lines if not BAR.search(line))
    for path, name in sorted(hidden.items(), key=lambda pair: -len(pair[0])):
        kept = kept.replace(path, name)
    return kept


def keep(cell: NotebookNode, hidden: Mapping[str, str]) -> None:
    """Leave in a cell what a reader is to see: neither errors' stream, nor widgets, nor times of day."""
    cell.metadata.pop("execution", None)
    kept = []
    for output in cell.get("outputs", []):
        if output.get("name") == "stderr" or "application/vnd.jupyter.widget-view+json" in output.get("data", {}):
            continue
        if "text" in output:
            output.text = clean(output.text, hidden)
            if not output.text.strip():
                continue
            if kept and kept[-1].get("name") == output.get("name"):
                kept[-1].text += output.text
                continue
        for kind, value in output.get("data", {}).items():
            if kind.startswith("text/"):
                output.data[kind] = clean(value, hidden)
        kept.append(output)
    if "outputs" in cell:
        cell.outputs = kept


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("notebook", type=Path)
    parser.add_argument("--write", action="store_true", help="keep the outputs")
    args = parser.parse_args()
    notebook = nbformat.read(args.notebook, as_version=4)
    os.environ |= {"NO_COLOR": "1", "COLUMNS": "120", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as folder:
        try:
            NotebookClient(
                notebook, timeout=3600, kernel_name="python3", resources={"metadata": {"path": folder}}
            ).execute()
        except CellExecutionError as error:
            print(error, file=sys.stderr)
            print("0 passed, 1 failed")
            return 1
    wrong = [o for cell in notebook.cells for o in cell.get("outputs", []) if complains(o.get("text", ""))]
    for output in wrong:
        print(output["text"], file=sys.stderr)
    if args.write and not wrong:
        hidden = {folder: ".", str(Path(folder).resolve()): ".", sys.prefix: "…", str(Path.home()): "~"}
        for cell in notebook.cells:
            keep(cell, hidden)
        notebook.metadata.pop("widgets", None)
        nbformat.write(notebook, args.notebook)
    print(f"{int(not wrong)} passed, {int(bool(wrong))} failed")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
