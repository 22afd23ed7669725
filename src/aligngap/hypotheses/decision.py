"""Is offline enough? The decision of `aligngap compare`, by a rule fixed before any run, from records alone.

The rule weighs the gap online - offline at one KL, that of the policy that will be deployed, against a margin: the gain
in win rate that online must bring to be worth its generation (`decision_margin` of the study). Nothing is averaged over
KL: an average from a tenth of a nat up mixes in the first steps of both arms, where there is nothing to gain.
Leaves out: what the arms cost, which the report sets beside it, and whether golden, which is trained on the user's
labels, prefers what the user prefers beyond how often they agree.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import special

from aligngap.hypotheses.view import View
from aligngap.stats.axes import MIN_KL_NATS
from aligngap.stats.budgets import EQUIVALENCE_LEVEL, AtBudgets, Budget, common_range
from aligngap.stats.estimate import NAN
from aligngap.stats.power import MAX_SEEDS, POWER, Spread, power, seeds_needed, spread_of
from aligngap.stats.seedwise import Seedwise, mean_over_seeds
from aligngap.types import Estimate

OFFLINE, ONLINE, SEMI, OPEN = "offline is enough", "online", "semi-online", "cannot tell"
#: below this agreement with the user's own labels golden is called a weak stand-in, whatever its interval
WEAK = 0.6
MAX_PROMPTS = 1_000_000
#: seeds below which training noise is not seen at all, and nothing is decided
LEAST_SEEDS = 2
Z = float(special.ndtri(0.975))

RULE = (
    "G is the win rate of online minus that of offline at the KL that will be deployed (`decision_kl`; where none is "
    "given, that of the best checkpoint of either arm by its mean over the spent seeds, or, where none is spent, seed "
    "by seed over the other seeds), over the configurations in which both reached it in every seed, with t intervals "
    "over seeds; m is the margin. Offline is enough if a one-sided test at 5% puts G below "
    "m (the upper end of its 90% interval). Online is worth it if the 95% interval of G lies above 0 and reaches m; "
    "the recommendation is then the semi-online arm with the most steps between syncs for which a one-sided test at 5% "
    "puts (online minus it) below m and whose kept share of G is above one half, or else online. Otherwise it cannot "
    "be told; so also with one seed, where G is undefined, where the other arm ended below the KL of the best "
    "checkpoint (then only the arm whose it is can be recommended, and that only if it is online, at the largest KL "
    "that both reached), or where the 95% interval "
    "of golden's agreement with the user's held-out labels is not above one half."
)


@dataclass(frozen=True)
class Gap:
    """Online minus offline at the KL of the decision."""

    a: str
    b: str
    kl: float  # nats; nan where the arms share none
    best: float  # nats of the best checkpoint of either arm, chosen on other seeds; nan where a KL was asked for
    beyond: str  # the arm whose best checkpoint lies farther than the other went; "" where both went as far
    value: Estimate
    interval: tuple[float, float]  # 95%
    upper: float  # that of the 90% interval: G lies below it with 95%
    seeds: int
    spread: Spread | None
    why: str = ""  # what is missing, where it is undefined
    remedy: tuple[str, ...] = ()  # settings, as key=value, with which it would be defined

    @property
    def defined(self) -> bool:
        return math.isfinite(self.value.value)


@dataclass(frozen=True)
class Option:
    """A cheaper arm than online: how far online is ahead of it, and the share of online's gap that it keeps."""

    arm: str
    behind: Estimate  # online - arm at the decision's KL
    interval: tuple[float, float]
    kept: Estimate  # (arm - offline) / (online - offline)
    kept_interval: tuple[float, float]
    why: str  # where the share is undefined
    enough: bool
    gain: Estimate  # arm - offline at the decision's KL
    gain_interval: tuple[float, float]


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
    gap: Gap
    options: tuple[Option, ...]
    agreement: Estimate  # golden with the user's held-out labels
    agreement_interval: tuple[float, float]
    doubt: str  # "judge", "undefined", "one seed", "reach", "noise" or ""
    need: Need | None


def decide(view: View, margin: float, cheaper: Sequence[str] = (), kl: float | None = None) -> Decision:
    """Decide by `RULE` at a KL in nats. `cheaper` are the semi-online arms, the one with the most steps between syncs
    first."""
    gap = gap_at(view, kl)
    here = view.at(gap.kl)
    options = tuple(option(here, arm, margin) for arm in cheaper if view.has(arm)) if gap.defined else ()
    agreement, agrees = judge_agreement(view)
    outcome, choose, doubt = OPEN, "", ""
    if math.isfinite(agreement.value) and not agrees[0] > 0.5:
        doubt = "judge"
    elif not gap.defined or not math.isfinite(gap.upper):
        doubt = "undefined"
    elif gap.seeds < LEAST_SEEDS:
        doubt = "one seed"
    elif gap.upper < margin and not gap.beyond:
        outcome, choose = OFFLINE, view.offline
    elif gap.interval[0] > 0 and gap.interval[1] >= margin and gap.beyond != view.offline:
        good = next((o for o in options if o.enough), None)
        outcome, choose = (SEMI, good.arm) if good else (ONLINE, view.online)
    else:
        doubt = "reach" if gap.beyond else "noise"
    need = needed(gap, margin) if doubt in ("noise", "one seed") else None
    return Decision(outcome, choose, margin, gap, options, agreement, agrees, doubt, need)


def gap_at(view: View, kl: float | None) -> Gap:
    """Online minus offline at a KL, or where the best checkpoint of either arm lies, or as near as both went.

    That checkpoint is chosen on spent seeds or, where there are none, for each seed on the other seeds, so that no seed
    is weighed at a KL that its own luck has picked. The KL is then the geometric mean of the seeds' own.
    """
    a, b = view.online, view.offline
    weights = {a: 1.0, b: -1.0}
    nothing = Gap(a, b, NAN, NAN, "", Estimate(NAN, NAN, 0, "undefined"), (NAN, NAN), NAN, 0, None)
    still, remedy = stood_still(view)
    if still:
        return replace(nothing, why=still, remedy=remedy)
    if kl is not None:
        found = view.at(kl).contrast(weights)
        if found.last is None:
            return replace(nothing, why=found.why)
        return _gap(nothing, found.found, found.last, kl)
    low, high = common(view)
    picked = {s: best_kl(view, s) for s in judged_seeds(view)}
    bests = {s: best for s, (best, _) in picked.items() if math.isfinite(best)}
    if not (bests and len(bests) == len(picked) and low <= high):
        found = view.contrast(weights)
        return replace(nothing, why=found.why or f"{a} and {b} reached no KL in common in every seed.")
    asked = {s: min(max(best, low), high) for s, best in bests.items()}
    farther = {picked[s][1] for s, best in bests.items() if best > asked[s] * (1 + 1e-6)}
    nothing = replace(nothing, best=_middle(bests.values()), beyond=b if b in farther else next(iter(farther), ""))
    places = sorted(set(asked.values()))
    whole = view.at(*places).contrast(weights).found
    if whole.values is None or len(whole.judged) < len(places) or set(whole.seeds) != set(asked):
        return replace(nothing, why=whole.why or f"{a} and {b} reached no KL in common in every seed.")
    own = _each_at(whole.values, [places.index(asked[s]) for s in whole.seeds])
    mean = mean_over_seeds(own)
    at = replace(
        whole.budgets[0], mean=Estimate(mean.value, mean.se, mean.n, "each seed at the KL that the others chose"),
        kl=_middle(asked.values()), interval=mean.interval(), equivalence=mean.interval(EQUIVALENCE_LEVEL), p=mean.p(),
        by_seed=tuple(float(v) for v in own.value[:, 0]),
    )  # fmt: skip
    return _gap(nothing, replace(whole, budgets=(at,), values=own), at, at.kl)


def _gap(of: Gap, found: AtBudgets, at: Budget, kl: float) -> Gap:
    """The gap with what was found at the one budget of a decision."""
    spread = spread_of(found)
    return replace(
        of, kl=kl, value=at.mean, interval=at.interval, upper=at.equivalence[1], seeds=at.mean.n, spread=spread
    )  # fmt: skip


def _middle(kls: Iterable[float]) -> float:
    """The geometric mean of KLs in nats."""
    return float(np.exp(np.mean([math.log(x) for x in kls])))


def _each_at(values: Seedwise, places: Sequence[int]) -> Seedwise:
    """Each seed's number at a place of its own, as numbers at one place."""
    rows, at = np.arange(len(places)), np.asarray(places)
    picked = (values.value[rows, at], values.influence[rows, at], values.extra[rows, at])
    value, influence, extra = (x[:, None] for x in picked)
    return replace(values, value=value, influence=influence, extra=extra)


def judged_seeds(view: View) -> tuple[int, ...]:
    """The seeds that both arms have and that are not spent."""
    by = [{c.seed for c in view.clouds().items if c.arm == arm} for arm in (view.online, view.offline)]
    return tuple(sorted(set.intersection(*by) - set(view.spent)))


def stood_still(view: View) -> tuple[str, tuple[str, ...]]:
    """What to say where an arm of the two never came to the KL from which arms are compared, and settings to try.

    The text is "" where both came there.
    KL grows about as the square of the learning rate and of the number of steps, as long as it is small: the remedy
    would bring the arm that went least to about 1 nat, by ten times as much at most.
    """
    records = view.records
    if records.empty or not {"kl_nats", "learning_rate", "step"} <= set(records.columns):
        return "", ()
    went = {arm: float(records.loc[records["arm"] == arm, "kl_nats"].max()) for arm in (view.online, view.offline)}
    still = [arm for arm, kl in went.items() if kl < MIN_KL_NATS]
    if not still:
        return "", ()
    least = min(went[arm] for arm in still)
    more = min(10.0, math.sqrt(1.0 / max(least, 1e-3)))
    rate, steps = float(records["learning_rate"].max()), int(records["step"].max())
    who = "No arm" if len(still) == len(went) else f"{still[0]} never"
    ends = ", ".join(f"{arm} {kl:.2g}" for arm, kl in went.items())
    faster = float(f"{rate * more:.1g}")
    remedy = ("sweep=[]", f"recipe.optimization.learning_rate={faster:.1e}")
    return (
        f"{who} moved {MIN_KL_NATS:g} nats from your model (largest KL: {ends}): raise the learning rate, "
        f"{' '.join(f'--set {shlex.quote(word)}' for word in remedy)}, or the steps, --set "
        f"recipe.optimization.steps={round(steps * more)}."
    ), remedy


def best_kl(view: View, seed: int) -> tuple[float, str]:
    """The KL of the checkpoint with the highest mean win rate over the seeds that choose for `seed`, and its arm.

    Those are the spent seeds, else all but this one; a single seed chooses for itself, and decides nothing. The KL is
    the geometric mean over them.
    """
    choosing = set(view.spent) or ({*judged_seeds(view)} - {seed} or {seed})
    found: dict[tuple[str, str, int], list[tuple[float, float]]] = {}
    for c in view.clouds().items:
        if c.arm not in (view.online, view.offline) or c.seed not in choosing:
            continue
        for run, step, x, win in zip(c.run, c.step, c.x, c.win, strict=True):
            if math.isfinite(win) and math.isfinite(x):
                found.setdefault((c.arm, c.configs[run], int(step)), []).append((float(win), float(x)))
    most = max((len(v) for v in found.values()), default=0)
    whole = [(arm, v) for (arm, _, _), v in found.items() if len(v) == most]
    if not whole:
        return NAN, ""
    owner, top = max(whole, key=lambda one: sum(win for win, _ in one[1]))
    return _middle(x for _, x in top), owner


def common(view: View) -> tuple[float, float]:
    """The range of KL that some shared configuration covers in both arms in every seed; (inf, 0) if there is none."""
    arms = (view.online, view.offline)
    clouds = view.clouds()
    seeds = {c.seed for c in clouds.items if c.arm in arms} - set(view.spent)
    return common_range(clouds, arms, seeds)


def option(view: View, arm: str, margin: float) -> Option:
    """A cheaper arm beside online, at the one KL of the view."""
    behind = view.contrast({view.online: 1.0, arm: -1.0})
    kept, interval, why = view.share({arm: 1.0, view.offline: -1.0})
    near = behind.last is not None and behind.last.mean.n >= LEAST_SEEDS and behind.last.equivalence[1] < margin
    gain = view.contrast({arm: 1.0, view.offline: -1.0})
    return Option(
        arm, behind.effect, behind.interval, kept, interval, behind.why or why, near and kept.value > 0.5,
        gain.effect, gain.interval,
    )  # fmt: skip


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


def needed(gap: Gap, margin: float) -> Need | None:
    """What would see a difference of the margin with power 80%; half the margin, where the runs already see that.

    One seed tells nothing of training noise, so it cannot say what further seeds would see.
    """
    s = gap.spread
    if s is None or gap.seeds < LEAST_SEEDS:
        return None
    difference = margin if not power(s, margin, gap.seeds, s.prompts) >= POWER else margin / 2
    more = prompts_needed(s, difference, gap.seeds)
    total = seeds_needed(s, difference, s.prompts)
    return Need(
        prompts=None if more is None else max(more - s.prompts, 1),
        seeds=None if total is None else max(total - gap.seeds, 1),
        difference=difference,
    )


def prompts_needed(s: Spread, difference: float, seeds: int, goal: float = POWER) -> int | None:
    """The least number of prompts with which that many seeds see the difference; None: no number does."""
    low, high = 2, MAX_PROMPTS
    if not power(s, difference, seeds, high) >= goal:
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if power(s, difference, seeds, middle) >= goal else (middle + 1, high)
    return low


__all__ = ["MAX_SEEDS", "RULE", "Decision", "Gap", "Need", "Option", "decide"]
