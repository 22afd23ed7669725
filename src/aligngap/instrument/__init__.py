"""Checkpoints that somebody else has trained, measured as a study's own are: KL, wins, records, a page.

Nothing here is imported before it is used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aligngap.instrument.gauge import KL, Gauge, kl
    from aligngap.instrument.library import measure
    from aligngap.instrument.rows import add_rows

__all__ = ["KL", "Gauge", "add_rows", "kl", "measure"]
PLACES = {"add_rows": "rows", "measure": "library"}  #: of the names that are not in `gauge`


def __getattr__(name: str) -> Any:
    """What the room gives by its own name, loaded when it is first asked for."""
    import importlib

    if name not in __all__:
        raise AttributeError(f"module `aligngap.instrument` has no attribute `{name}`")
    return getattr(importlib.import_module(f"aligngap.instrument.{PLACES.get(name, 'gauge')}"), name)
