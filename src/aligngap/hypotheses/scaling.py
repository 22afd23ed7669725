"""H5, scale: does a larger policy close the gap, with proxy, golden model and opponent held fixed?

arXiv 2405.08448, section 5.5, Figures 10, 11 and 14: the best result of an arm is the 90% quantile over all its
checkpoints, divided by online's at the same size. KL is not comparable across sizes, so nothing here is at equal KL.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from aligngap.hypotheses.base import Dial, Figure, Hypothesis, Point
from aligngap.hypotheses.rules import Rule
from aligngap.hypotheses.verdicts import decide, one_seed, p_value
from aligngap.hypotheses.view import View, under
from aligngap.stats.estimate import FloatArray, TwoLevel, two_level
from aligngap.stats.ratio import slope_weights
from aligngap.types import Estimate, Verdict

SIZES = ("small", "", "large")
SMALL, LARGE = "small", "large"
ARMS = ("online", "shuffled", "offline")
QUANTILE = 0.9
BEST = "The best of an arm is the 90% quantile of the win rates of all its checkpoints, its ratio that over online's."
RULE_PEAK = (
    "Win rate of each configuration's best checkpoint (chosen on the other seeds) of online, large minus small policy. "
    "Supported if the 95% t interval lies above 0; contradicted if below 0; else inconclusive."
)
RULE_FIX = (
    f"{BEST} Supported if the 95% two-level interval of offline's ratio at the largest size lies below 1 (size has not "
    "closed the gap); contradicted if it lies above 1; else inconclusive."
)
RULE_SHRINKS = (
    f"{BEST} Supported if the 95% two-level interval of the slope of offline's ratio over log2 of the policy's "
    "parameters lies above 0; contradicted if below 0; else inconclusive."
)
RULE_TANDEM = (
    f"{BEST} Supported if the 95% two-level interval of the slope of shuffled's ratio over log2 of the policy's "
    "parameters minus that of offline's lies above 0; contradicted if below 0; else inconclusive."
)

Ratio = tuple[tuple[int, ...], FloatArray, FloatArray]  # seeds, [S], [S, B]


def ratio_to_online(view: View, arm: str, size: str) -> Ratio:
    """An arm's best over online's best at one size, per seed and replicate."""
    top, bottom = view.upper(under(arm, size), QUANTILE), view.upper(under("online", size), QUANTILE)
    seeds = tuple(s for s in top if s in bottom and bottom[s][0] > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        point = np.array([top[s][0] / bottom[s][0] for s in seeds])
        reps = np.array([top[s][1] / bottom[s][1] for s in seeds]).reshape(len(seeds), -1 if seeds else 0)
    return seeds, point, reps


def parameters(view: View, size: str) -> float:
    """Parameters of the policy at one size; nan where the provenance does not say."""
    found = view.part("SFT policy", "parameters", size)
    return float(np.mean(list(found.values()))) if found else float("nan")


def slope(view: View, arm: str, minus: str = "") -> TwoLevel | str:
    """Slope of an arm's ratio over log2 of the parameters (minus another arm's), or why there is none."""
    sizes = np.array([parameters(view, s) for s in SIZES])
    if not np.isfinite(sizes).all():
        return "The number of parameters is not in the provenance of these records."
    weights = slope_weights(np.log2(sizes))
    terms = [(w * sign, ratio_to_online(view, a, s))
             for a, sign in ((arm, 1.0), (minus, -1.0)) if a
             for w, s in zip(weights, SIZES, strict=True)]  # fmt: skip
    seeds = [s for s in terms[0][1][0] if all(s in t[1][0] for t in terms)]
    if not seeds:
        return "No seed has every size, prompt by prompt."
    point, reps = np.zeros(len(seeds)), np.zeros((len(seeds), terms[0][1][2].shape[1]))
    for weight, (found, value, draws) in terms:
        at = [found.index(s) for s in seeds]
        point, reps = point + weight * value[at], reps + weight * draws[at]
    return two_level(point, reps)


def judge_slope(view: View, rule: Rule, arm: str, minus: str = "") -> Verdict:
    """How an arm's ratio to online changes per doubling of the policy, beyond that of another arm if one is named."""
    found = slope(view, arm, minus)
    if isinstance(found, str):
        return rule.leave_undefined(found)
    what = f"{arm}'s ratio to online" + (f" beyond {minus}'s" if minus else "")
    reason = f"Per doubling of the policy {what} changes by {found.value[0]:+.3f}."
    interval = found.interval()
    effect = found.estimate("change of the ratio per doubling of the parameters")
    return rule.found(decide(interval), effect, interval, reason + one_seed(found.n), p=p_value(found))


def peak(view: View, rule: Rule) -> Verdict:
    """R11: online's best checkpoint at the largest policy minus that at the smallest."""
    found = view.peak({under("online", LARGE): 1.0, under("online", SMALL): -1.0})
    if isinstance(found, str):
        return rule.leave_undefined(found)
    mean, seeds = found
    reason = f"Online's best checkpoint gains {mean.value:+.3f} from the smallest to the largest policy."
    effect = Estimate(mean.value, mean.se, mean.n, "difference of best checkpoints, chosen on other seeds")
    return rule.found(decide(mean.interval()), effect, mean.interval(), reason + one_seed(len(seeds)), p=mean.p())


def fix(view: View, rule: Rule) -> Verdict:
    """The share of online's best that offline reaches at the largest policy."""
    seeds, point, reps = ratio_to_online(view, "offline", LARGE)
    if not seeds:
        return rule.leave_undefined("Wins prompt by prompt are not recorded for the largest policy.")
    found = two_level(point, reps)
    low, high = found.interval()
    reason = f"At the largest size offline reaches {found.value[0]:.2f} of online's best ({low:.2f} to {high:.2f})."
    effect = found.estimate("offline's best over online's best at the largest size")
    outcome = decide((1 - high, 1 - low))
    return rule.found(outcome, effect, (low, high), reason + one_seed(len(seeds)))


def against_size(view: View, y: str, best: Callable[[str, str], Ratio]) -> Dial | None:
    """An arm's best against log2 of the relative number of parameters, by `best` of an arm and a size."""
    sizes = {s: parameters(view, s) for s in view.variants("online")}
    known = [(s, n) for s, n in sizes.items() if np.isfinite(n)]
    sizes = dict(sorted(known, key=lambda item: item[1]))
    series: dict[str, tuple[Point, ...]] = {}
    for arm in ARMS:
        points = []
        for size, n in sizes.items():
            seeds, point, reps = best(arm, size)
            if seeds:
                found = two_level(point, reps)
                x = float(np.log2(n / min(sizes.values())))
                points.append(Point(x, float(found.value[0]), *found.interval(), f"{n:,.0f} parameters"))
        if points:
            series[arm] = tuple(points)
    return Dial("log2 of the parameters over the smallest", y, series) if series else None


def ratios(view: View) -> Dial | None:
    """Figure 11: ratio to online."""
    return against_size(view, "best, as a ratio to online's", lambda arm, size: ratio_to_online(view, arm, size))


def bests(view: View) -> Dial | None:
    """Figure 14: the same, absolute."""

    def best(arm: str, size: str) -> Ratio:
        found = view.upper(under(arm, size), QUANTILE)
        point = np.array([value for value, _ in found.values()])
        reps = np.array([reps for _, reps in found.values()]).reshape(len(found), -1 if found else 0)
        return tuple(found), point, reps

    return against_size(view, "best win rate", best)


def of_two_sizes(view: View) -> tuple[str, ...] | None:
    """Figure 10: the frontiers of the policy as opened and of the larger one."""
    found = tuple(under(arm, size) for size in ("", LARGE) for arm in ARMS)
    return tuple(arm for arm in found if view.has(arm)) if view.has(under("online", LARGE)) else None


def arms(*names: str) -> tuple[str, ...]:
    """The named arms under each size of the policy."""
    return tuple(under(n, s) for n in names for s in SIZES)


SCALING = Hypothesis(
    name="scaling",
    question="Is size the fix? Does a larger policy close the gap, with proxy, judge and opponent held fixed?",
    claim="Not a fix: the gap shrinks slowly with size and may level off; with size coverage explains more (Fig. 11).",
    study="scaling",
    rules=(
        Rule("H5", "Size does not close the gap (Fig. 11).", RULE_FIX, arms("online", "offline"), fix),
        Rule("R11 peak", "A larger policy peaks higher (Fig. 10).", RULE_PEAK, arms("online"), peak),
        Rule("R11 gap", "The gap shrinks with size, slowly (Fig. 11).", RULE_SHRINKS, arms("online", "offline"),
            lambda view, rule: judge_slope(view, rule, "offline")),
        Rule("R11 tandem", "The gap to shuffled online data closes faster (Fig. 11).", RULE_TANDEM,
            arms("online", "shuffled", "offline"), lambda view, rule: judge_slope(view, rule, "shuffled", "offline")),
    ),
    dial=ratios,
    more=(
        Figure("frontiers", "Frontiers of the policy as opened and of the larger one (Fig. 10)", of_two_sizes),
        Figure("absolute", "Best win rate against size (Fig. 14)", bests),
    ),
)  # fmt: skip
