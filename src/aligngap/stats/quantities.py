"""The gap's three quantities at one checkpoint, from arrays: ceiling and efficiency, first-order law, split at reach.

Each is by one evaluator and against one opponent, the reference itself, whose win rate against itself is one half.
P prompts, the first K of them with n samples of the reference each. What each quantity is stands in `ceiling.py`,
`first_order.py` and `reach.py`; where the arrays come from, in `measure.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from aligngap.stats.ceiling import ceiling, efficiency
from aligngap.stats.estimate import FloatArray
from aligngap.stats.first_order import first_order
from aligngap.stats.reach import split
from aligngap.types import Estimate


@dataclass(frozen=True)
class ReferenceWins:
    """Win rates [K, n] of the reference's samples by one evaluator, against each half of their opponents."""

    first: FloatArray
    second: FloatArray

    @property
    def q(self) -> FloatArray:
        """Win rates [K, n] against all opponents."""
        return np.asarray((self.first + self.second) / 2.0)


def split_at(wins: npt.ArrayLike, log_ratios: npt.ArrayLike, thresholds: Sequence[int]) -> dict[str, Estimate]:
    """The split of the gain over one half at every threshold c in nats, from the policy's own samples.

    wins and log_ratios [P]: one sample a prompt. Of each c, by names that end in it: within and beyond, which sum to
    the gain, the share beyond, and the mean of win - 1/2 on either side.
    """
    won, g = np.asarray(wins, dtype=np.float64), np.asarray(log_ratios, dtype=np.float64)
    found: dict[str, Estimate] = {}
    for c in thresholds:
        parts = split(won[:, None], np.full(len(won), 0.5), g[:, None], c)
        near = parts.share_within
        found |= {
            f"share_beyond_{c}": Estimate(1.0 - near.value, near.se, near.n, near.how),
            f"within_{c}": parts.within, f"beyond_{c}": parts.beyond,
            f"mean_within_{c}": parts.mean_within, f"mean_beyond_{c}": parts.mean_beyond,
        }  # fmt: skip
    return found


def against_reference(
    wins: npt.ArrayLike, kl: float, log_ratios: npt.ArrayLike, reference: ReferenceWins
) -> dict[str, Estimate]:
    """`rho` and `slope` of the first-order law, `ceiling` and `efficiency` at `kl` nats, as far as they exist.

    wins [P] of the policy's own samples; log_ratios [K, r] of the first r samples of the reference to each prompt.
    """
    g = np.asarray(log_ratios, dtype=np.float64)
    found: dict[str, Estimate] = {}
    if not kl > 0:
        return found  # the reference itself has no direction
    law = first_order(g, reference.q[:, : g.shape[1]])
    found |= {"rho": law.rho, "slope": law.slope}
    best = ceiling(reference.first, reference.second, kl)
    if best is not None:
        found |= {"ceiling": best.gain, "efficiency": efficiency(np.asarray(wins, dtype=np.float64) - 0.5, best)}
    return found
