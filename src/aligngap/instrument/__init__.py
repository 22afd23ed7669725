"""Checkpoints that somebody else has trained, measured as a study's own are: KL, wins, records, a page.

Nothing here imports torch before something is measured.
"""

from aligngap.instrument.gauge import KL, Gauge, kl
from aligngap.instrument.rows import add_rows

__all__ = ["KL", "Gauge", "add_rows", "kl"]
