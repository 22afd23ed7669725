"""The arguments of `aligngap exact`, in a file that loads nothing, so that the command line starts quickly."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

#: the first of the seeds on which betas are chosen; they are spent and never judged
SPENT = 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("world", choices=["capacity", "skewed"], help="which world (see docs/theory.md)")
    parser.add_argument("--seeds", type=int, default=10, help="judged seeds, from 0 (default: 10)")
    parser.add_argument("--first-seed", type=int, default=0, help="the first judged seed (default: 0)")
    parser.add_argument(
        "--spent", type=int, default=5, help=f"seeds from {SPENT} on which betas are chosen (default: 5)"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: one per core)")
    parser.add_argument("--out", type=Path, required=True, help="output folder; must not exist or be empty")
    for dial, of, what in (
        ("labels", str, "numbers of golden labels, `all` for the whole distribution"),
        ("sees", int, "features that the judge sees, 0 for a judge that knows names only"),
        ("betas", float, "regularisation strengths, in falling order"),
        ("budgets", float, "KL in nats at which the arms are compared"),
    ):
        parser.add_argument(f"--{dial}", type=of, nargs="+", help=f"capacity: {what} (default: the study's)")
    for dial in ("steps", "prompts", "responses"):
        parser.add_argument(f"--{dial}", type=int, help="capacity: as it says (default: the study's)")
