"""Where a result comes from: versions, commit, device, seconds. Never part of a key."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from aligngap import __version__

PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "scipy", "pyarrow", "safetensors")


@cache
def commit() -> str:
    """The source's git commit, "+changes" if the tree differs from it, "unknown" for an installed package."""
    here = Path(__file__).resolve().parent

    def git(*words: str) -> str:
        out = subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, timeout=10, check=True)
        return out.stdout.strip()

    try:
        head = git("rev-parse", "--short=12", "HEAD")
        return head + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


@cache
def packages() -> dict[str, str]:
    """The installed version of each package that a result may depend on."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def provenance(device: str, seconds: float) -> dict[str, Any]:
    """Where a result comes from: versions, commit, device, machine and the seconds that it took."""
    return {
        "aligngap": __version__, "commit": commit(), "python": platform.python_version(), "packages": packages(),
        "device": device, "machine": f"{platform.system()} {platform.machine()}", "seconds": round(seconds, 3),
    }  # fmt: skip
