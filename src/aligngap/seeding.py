"""Seeds by role: each source of randomness in a run has its own, all derived from the run's one seed.

Randomness is an argument here, never a global state: `derive` turns (seed, role, counter …) into an independent
63-bit seed, so that adding a consumer of randomness in one place does not move the numbers drawn in another.
"""

from __future__ import annotations

import hashlib


def derive(seed: int, *role: str | int) -> int:
    """A seed for `role`, for instance `derive(0, "sampling", step)`: a pure function, uniform over [0, 2**63)."""
    text = "\x1f".join([str(seed), *map(str, role)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
