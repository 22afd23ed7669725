"""aligngap: online and offline alignment that share every line but where the pairs come from.

Importing this package pulls in no torch, transformers, ray or matplotlib; each room is imported when it is used.
"""

from typing import Any

__version__ = "0.1.0"

#: what can be had as `aligngap.NAME`, each loaded when it is first asked for
LAZY = dict.fromkeys(("kl", "measure", "Gauge"), "aligngap.instrument")


def __getattr__(name: str) -> Any:
    """What the package gives by its own name, loaded when it is first asked for."""
    if name not in LAZY:
        raise AttributeError(f"module `aligngap` has no attribute `{name}`")
    import importlib

    return getattr(importlib.import_module(LAZY[name]), name)
