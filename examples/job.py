# /// script
# requires-python = ">=3.11"
# dependencies = ["aligngap[accelerate,peft]"]
# ///
"""A study as a job on a rented machine, which is gone when the job is over: `uv run job.py STUDY --push OWNER/NAME`.

uv makes the environment from the lines on top; nothing else has to be there. The study runs, then records and page go
to the Hugging Face hub (HF_TOKEN has to be set; that the hub can be reached is tried before anything else). The same
command on the same disk goes on with a study that was stopped.

    uv run job.py opening --push me/opening -- --set seeds=3 --device cuda

What stands behind `--` is given to `aligngap run`. Without `--push` nothing leaves the machine.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from aligngap.cli import main as aligngap
from aligngap.exchange.hub import find_hub
from aligngap.types import AligngapError


def main() -> int:
    """Run, then send: the exit code of `aligngap run`, or of what came after it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("study", help="a packaged study's name or a YAML file")
    parser.add_argument("--out", type=Path, help="output folder, on a disk that stays if there is one")
    parser.add_argument("--push", metavar="OWNER/NAME", help="send records and page to the hub at the end")
    parser.add_argument("more", nargs="*", help="behind `--`: options of `aligngap run`")
    args = parser.parse_args()
    out = args.out or Path("out") / Path(args.study).stem
    if args.push:
        try:
            find_hub(args.push)
        except AligngapError as error:
            print(f"job: {error}", file=sys.stderr)
            return 2
    code = aligngap(["run", args.study, "--out", str(out), *args.more])
    if args.push and (out / "records.parquet").is_file():  # of a study that failed in part, what is there
        sent = aligngap(["report", str(out), "--push", args.push])
        code = code or sent
    return code


if __name__ == "__main__":
    sys.exit(main())
