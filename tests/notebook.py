"""Run a notebook from top to bottom in a folder of its own: `python tests/notebook.py NOTEBOOK [--write]`.

With ALIGNGAP_SHORT=1, which `make notebook` sets, it is a minute's run whose answer means nothing: what is tested is
that every cell runs. `--write` keeps the outputs in the notebook, after a whole run.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError


def complains(text: str) -> bool:
    """Whether a command's output has more of its own words than the line with which every command begins."""
    own = [line for line in text.splitlines() if line.startswith("aligngap: ") and not line.endswith(" …")]
    return bool(own) or "Traceback" in text


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
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)  # times of day
        nbformat.write(notebook, args.notebook)
    print(f"{int(not wrong)} passed, {int(bool(wrong))} failed")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
