"""What a step did and when, one JSON object a line, appended as it happens: for people and their tools.

`<store>/partial/<kind>-<key>.log.jsonl` holds the story of one artifact over all its attempts: started, resumed, step
(at most one a second, with loss, gradient norm and seconds), saved, finished, stopped, failed. It is never read back
and is no part of the artifact, whose own `log.parquet` has every step and no clock.
"""

from __future__ import annotations

import json
import math
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

EVERY_SECONDS = 1.0


class RunLog:
    """Appends events to a file; without a file it is silent."""

    def __init__(self, path: Path | None = None) -> None:
        self.path, self.started, self.last = path, time.monotonic(), -math.inf

    def note(self, event: str, **values: Any) -> None:
        """One line: the time (UTC), the event, seconds since this attempt began, and what else is known of it."""
        if self.path is None:
            return
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        row = {"time": now, "event": event, "seconds": round(time.monotonic() - self.started, 3)} | values
        plain = {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        with self.path.open("a", encoding="utf-8") as out:
            out.write(json.dumps(plain, ensure_ascii=True) + "\n")

    def step(self, number: int, **values: Any) -> None:
        """A training step, at most one line a second."""
        now = time.monotonic()
        if now - self.last >= EVERY_SECONDS:
            self.last = now
            self.note("step", step=number, **values)
