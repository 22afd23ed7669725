"""What stands on the x-axis when two arms are compared "at equal something": KL by default, and what could replace it.

Gao et al. (2023, arXiv 2210.10760, section 5) warn that optimisers spend KL differently, so a ranking that holds on
one budget need not hold on another. An axis is a column of the records, on a log or a plain scale, with a floor below
which every arm is the SFT policy for every purpose.

Leaves out chi-squared(policy || SFT), which bounds reward error where KL does not (Huang et al. 2024, arXiv
2407.13399): its sampled estimator is a mean of exp(log-ratio) over whole responses, whose variance is the divergence of
the next order and unbounded here (a log-ratio of 20 nats on one sample in 10^5 outweighs all others), and unlike KL it
does not split into exact per-token terms along a sample. Nothing is estimated rather than what only looks stable.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from aligngap.stats.estimate import FloatArray

#: the log grid: 16 points an octave, so that budgets of 2^k lie on it; the plain grid: half a point of win rate
STEPS_PER_OCTAVE, PLAIN_STEP = 16, 0.005
#: below this KL both arms are the SFT policy for every purpose; averaging there would only dilute a difference
MIN_KL_NATS = 0.1
TINY = 1e-9


def say_nats(*kls: float, digits: str = "g") -> str:
    """KLs with their unit, each written by `digits`: "1 nat", "1, 2 and 4 nats"."""
    shown = [format(kl, digits) for kl in kls]
    listed = " and ".join(filter(None, (", ".join(shown[:-1]), shown[-1])))
    return f"{listed} nat{'s' * (listed != '1')}"


@dataclass(frozen=True)
class Axis:
    """One x-axis. `u` is the position on it: ln x on a log axis, x itself on a plain one."""

    name: str
    column: str  # of records
    unit: str = ""
    log: bool = True
    floor: float = -np.inf
    se: str = ""  # column of its standard error; "" if it is exact
    by_prompt: str = ""  # column of per_prompt, where it is also known prompt by prompt
    budgets: tuple[float, ...] = ()

    @property
    def narrow(self) -> float:
        """A common range shorter than this in u is no range to compare on: a quarter octave, or two points."""
        return float(np.log(2.0) / 4) if self.log else 0.02

    @property
    def short(self) -> tuple[float, str]:
        """A common range shorter than this in u is a doubt to be said, and how it is said."""
        return (float(np.log(2.0)), "less than a doubling") if self.log else (0.05, "less than five points")

    @property
    def step(self) -> float:
        """The distance in u between two positions of the grid."""
        return float(np.log(2.0) / STEPS_PER_OCTAVE) if self.log else PLAIN_STEP

    def u(self, x: npt.ArrayLike) -> FloatArray:
        values = np.asarray(x, dtype=np.float64)
        return np.log(np.maximum(values, TINY)) if self.log else values

    def x(self, u: npt.ArrayLike) -> FloatArray:
        values = np.asarray(u, dtype=np.float64)
        return np.exp(values) if self.log else values

    def usable(self, x: FloatArray) -> np.ndarray:
        """Where an x has a place on this axis (mask)."""
        return np.asarray(np.isfinite(x) & (x >= self.floor) & ((x > TINY) if self.log else True))

    def grid(self, low: float, high: float) -> FloatArray:
        """Positions u inside [low, high] of x."""
        if not self.log:
            return multiples(self.step, low, high)
        if not (np.isfinite(low) and np.isfinite(high) and 0 < low <= high):
            return np.zeros(0)
        return multiples(self.step, np.log(low), np.log(high))

    def shown(self, x: float) -> str:
        """A value for reading, three significant digits at most where it is small, with its unit."""
        if not np.isfinite(x):
            return "–"
        text = f"{x:.2g}" if not 10 <= abs(x) < 1e7 else f"{x:,.0f}"
        return f"{text} {self.unit}".strip()

    def span(self, low: float, high: float) -> str:
        """A range for reading: the unit stands once."""
        return f"{self.shown(low).removesuffix(self.unit).strip()} to {self.shown(high)}"


def multiples(step: float, low: float, high: float) -> FloatArray:
    """The multiples of `step` in [low, high]."""
    if not (np.isfinite(low) and np.isfinite(high) and low <= high):
        return np.zeros(0)
    return step * np.arange(np.ceil(low / step - 1e-9), np.floor(high / step + 1e-9) + 1, dtype=np.float64)


KL = Axis(
    "KL", "kl_nats", "nats", True, MIN_KL_NATS, "kl_nats_se", "kl_nats",
    (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0),
)  # fmt: skip
STEPS = Axis("steps", "step", "steps", True, 1.0)
PAIRS = Axis("pairs trained on", "pairs_seen", "pairs", True, 1.0)
COMPUTE = Axis("training compute", "flops", "FLOP", True, 1.0)
AXES = (
    KL,
    Axis("forward KL", "forward_kl_nats", "nats", True, MIN_KL_NATS, "forward_kl_nats_se"),
    Axis("proxy win rate", "proxy_win_rate", "", False, se="proxy_win_rate_se", by_prompt="proxy_win"),
    STEPS,
    PAIRS,
    Axis("fresh samples", "responses_sampled", "responses", True, 1.0),
    COMPUTE,
)
