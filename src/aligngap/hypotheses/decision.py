"""Is offline enough? The decision of `aligngap compare`, by a rule fixed before any run, from records alone.

The rule weighs the gap online - offline at equal KL against a margin, the gain in win rate that online must bring to be
worth its generation (`decision_margin` of the study). Leaves out: what the arms cost, which the report sets beside it,
and whether golden, which is trained on the user's labels, prefers what the user prefers beyond how often they agree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import special

from aligngap.hypotheses.view import View
from aligngap.stats.compare import Comparison
from aligngap.stats.estimate import NAN
from aligngap.stats.power import MAX_SEEDS, POWER, Spread, power, seeds_needed, spread_of
from aligngap.types import Estimate

OFFLINE, ONLINE, SEMI, OPEN = "offline is enough", "online", "semi-online", "cannot tell"
#: below this agreement with the user's own labels golden is called a weak stand-in, whatever its interval
WEAK = 0.6
MAX_PROMPTS = 1_000_000
Z = float(special.ndtri(0.975))

RULE = (
    "G is the win rate of online minus that of offline at equal KL, averaged over the log-KL range that both reached, "
    "with its 95% interval over seeds, then prompts; m is the margin. Offline is enough if the whole interval of G "
    "lies below m. Online is worth it if the interval lies above 0 and reaches m; the recommendation is then the "
    "semi-online arm with the most steps between syncs for which the whole interval of (online minus it) lies below m "
    "and whose kept share of G is above one half, or else online. Otherwise, or if G is undefined, or if the 95% "
    "interval of golden's agreement with the user's held-out labels is not above one half, it cannot be told."
)


@dataclass(frozen=True)
class Option:
    """A cheaper arm than online: how far online is ahead of it, and the share of online's gap that it keeps."""

    arm: str
    behind: Estimate  # online - arm at equal KL
    interval: tuple[float, float]
    kept: Estimate  # (arm - offline) / (online - offline)
    kept_interval: tuple[float, float]
    why: str  # where the share is undefined
    enough: bool


@dataclass(frozen=True)
class Need:
    """What a decision would take beyond what was run; None where no number up to the limits does it."""

    prompts: int | None  # further prompts to measure on, at the seeds that were run
    seeds: int | None  # further seeds, at the prompts that were measured
    difference: float  # which these would see, with power 80%


@dataclass(frozen=True)
class Decision:
    """A recommendation and what it rests on. `choose` names an arm, or is "" where it cannot be told."""

    outcome: str
    choose: str
    margin: float
    gap: Comparison
    options: tuple[Option, ...]
    agreement: Estimate  # golden with the user's held-out labels
    agreement_interval: tuple[float, float]
    doubt: str  # "judge", "undefined", "noise" or ""
    need: Need | None


def decide(view: View, margin: float, cheaper: Sequence[str] = ()) -> Decision:
    """Decide by `RULE`. `cheaper` are the semi-online arms, the one with the most steps between syncs first."""
    gap = view.compare(view.online, view.offline)
    options = tuple(option(view, arm, margin) for arm in cheaper if view.has(arm))
    agreement, agrees = judge_agreement(view)
    low, high = gap.average_interval
    outcome, choose, doubt = OPEN, "", ""
    if math.isfinite(agreement.value) and not agrees[0] > 0.5:
        doubt = "judge"
    elif not gap.defined or not (math.isfinite(low) and math.isfinite(high)):
        doubt = "undefined"
    elif high < margin:
        outcome, choose = OFFLINE, view.offline
    elif low > 0:
        good = next((o for o in options if o.enough), None)
        outcome, choose = (SEMI, good.arm) if good else (ONLINE, view.online)
    else:
        doubt = "noise"
    need = needed(gap, margin) if doubt == "noise" else None
    return Decision(outcome, choose, margin, gap, options, agreement, agrees, doubt, need)


def option(view: View, arm: str, margin: float) -> Option:
    behind = view.contrast({view.online: 1.0, arm: -1.0})
    kept, interval, why = view.share({arm: 1.0, view.offline: -1.0})
    enough = bool(behind.interval[1] < margin and kept.value > 0.5)
    return Option(arm, behind.effect, behind.interval, kept, interval, behind.why or why, enough)


def judge_agreement(view: View) -> tuple[Estimate, tuple[float, float]]:
    """How often golden prefers what the user preferred, on pairs whose prompts it has not seen; nan if not recorded."""
    right = view.part("golden judge", "held out accuracy")
    pairs = view.part("golden judge", "held out pairs")
    known = [(p, pairs[s]) for s, p in right.items() if pairs.get(s, 0) > 0]
    if not known:
        return Estimate(NAN, NAN, 0, "not recorded"), (NAN, NAN)
    values = [p for p, _ in known]
    mean = sum(values) / len(values)
    noise = max(math.sqrt(max(mean * (1 - mean), 0.25 / n) / n) for _, n in known)
    seeds = Estimate.mean(values).se
    se = max(noise, seeds) if math.isfinite(seeds) else noise
    said = (
        "golden's agreement with the held-out labels, mean over seeds; the seeds may share these, so more seeds do not "
    )
    return Estimate(mean, se, len(known), said + "narrow it"), (mean - Z * se, mean + Z * se)


def needed(gap: Comparison, margin: float) -> Need | None:
    """What would see a difference of the margin with power 80%; half the margin, where the runs already see that."""
    s = spread_of(gap)
    if s is None:
        return None
    seeds, prompts = len(gap.seeds), gap.prompts
    difference = margin if not power(s, margin, seeds, prompts) >= POWER else margin / 2
    more = prompts_needed(s, difference, seeds)
    total = seeds_needed(s, difference, prompts) if seeds > 1 else None
    return Need(
        prompts=None if more is None else max(more - prompts, 1),
        seeds=None if total is None else max(total - seeds, 1),
        difference=difference,
    )


def prompts_needed(s: Spread, difference: float, seeds: int, goal: float = POWER) -> int | None:
    """The least number of prompts with which that many seeds see the difference; None: no number does."""
    if seeds == 1:
        return math.ceil(s.prompt * ((Z + float(special.ndtri(goal))) / difference) ** 2)
    low, high = 2, MAX_PROMPTS
    if not power(s, difference, seeds, high) >= goal:
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if power(s, difference, seeds, middle) >= goal else (middle + 1, high)
    return low


__all__ = ["MAX_SEEDS", "RULE", "Decision", "Need", "Option", "decide"]
