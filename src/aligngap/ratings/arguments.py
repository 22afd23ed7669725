"""The arguments of `aligngap ratings`, in a file that loads nothing, so that the command line starts quickly."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The two subcommands, `export` and `import`, with their arguments."""
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="export|import", parser_class=type(parser))
    out = verbs.add_parser("export", help="write a blind sheet of pairs", description="write a blind sheet of pairs")
    out.add_argument("out", type=Path, help="output folder of a run")
    out.add_argument("--arms", nargs=2, metavar="ARM", help="the two arms (default: those that the study compares)")
    out.add_argument("--kl", type=float, required=True, metavar="NATS", help="the KL at which both are taken")
    out.add_argument("--pairs", type=int, default=100, metavar="N", help="how many pairs (default: 100)")
    out.add_argument("--to", type=Path, required=True, help="the folder to write; it holds nothing that tells the arms")
    out.add_argument("--seed", type=int, default=0, help="draws pairs, sides and order (default: 0)")
    back = verbs.add_parser(
        "import", help="read sheets that people filled in", description="read sheets that people filled in"
    )
    back.add_argument("out", type=Path, help="the output folder from which the sheet was written")
    back.add_argument("sheets", type=Path, nargs="+", metavar="SHEET.csv", help="a sheet, one of each rater")
    for sub in (out, back):
        sub.add_argument("--debug", action="store_true", help="show tracebacks")
