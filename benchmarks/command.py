"""The aligngap command in a process of its own, with one BLAS thread; what fails ends the benchmark with its words."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable


def command(*words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "aligngap.cli", *words],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"aligngap {' '.join(words)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def settings(overrides: Iterable[str]) -> list[str]:
    """Overrides as words of the command."""
    return [word for override in overrides for word in ("--set", override)]
