"""The opening hypothesis: is online alignment better than offline at equal KL, and do both over-optimise?

Tests assertions R1, R2, R7 and R8 of arXiv 2405.08448 (Figures 1, 7, 8) on records. Each rule is a string here, fixed
before any run, and printed with its verdict. Rules judge with 95% two-level intervals (seeds, then prompts or pairs).
Leaves out: a correction for judging four assertions at once; each verdict stands for itself.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping

import numpy as np
import pandas as pd

from aligngap.stats.clouds import make_clouds
from aligngap.stats.compare import Comparison, compare, curves_for, hump
from aligngap.stats.estimate import NAN, FloatArray, TwoLevel, two_level
from aligngap.stats.frontier import MIN_KL_NATS, ArmCurves
from aligngap.types import Estimate, Verdict

SUPPORTED, CONTRADICTED, INCONCLUSIVE = "supported", "contradicted", "inconclusive"

#: a fall smaller than this (two points of win rate) is no fall worth the name
NO_FALL = 0.02

RULE_R1 = (
    "Fall = win rate of the arm's best checkpoint (chosen on three quarters of the prompts, scored on the rest) minus "
    "that of its largest-KL checkpoint. Supported if the 95% two-level interval of the fall lies above 0; contradicted "
    f"if it lies below {NO_FALL}; else inconclusive."
)
RULE_R2 = (
    "Supported if the 95% two-level interval of the difference online - offline, averaged over the common log-KL range "
    f"(from {MIN_KL_NATS} nats), lies above 0; contradicted if it lies below 0; else inconclusive."
)
RULE_R7 = (
    "Accuracy on held-out D_golden at each run's last checkpoint, mean over an arm's runs. Supported if the 95% "
    "two-level interval of offline - online lies above 0; contradicted if below 0; else inconclusive."
)
RULE_R8 = (
    "Log-ratio of held-out D_golden winners at each run's last checkpoint, mean over an arm's runs. Supported if the "
    "95% two-level intervals lie below 0 in both arms and that of online - offline above 0; contradicted if the "
    "interval of either arm lies above 0 or that of online - offline below 0; else inconclusive."
)

#: what the paper says, to stand beside what was found
CLAIMS: Mapping[str, str] = {
    "R1": "In both arms the win rate first rises and then falls as KL grows (Fig. 1).",
    "R2": "At equal KL online is generally higher, and its peak is higher, on all four tasks (Fig. 1).",
    "R7": "As a classifier of D_golden the offline policy reaches 60–70%, the online policy about 50% (Figs 7, 8).",
    "R8": "The log-probability of D_golden's winners falls in every arm, most for offline (Fig. 8).",
}


def judge_opening(
    records: pd.DataFrame,
    per_prompt: pd.DataFrame,
    online: str = "online",
    offline: str = "offline",
    opponent: str = "golden_policy",
) -> list[Verdict]:
    """Verdicts on R1 (each arm), R2, R7 and R8. Never raises for thin data: the reason says what is missing."""
    curves = curves_for(make_clouds(records, per_prompt, opponent))
    return judge_curves(curves, compare(curves, online, offline, opponent), records, online, offline)


def judge_curves(
    curves: Mapping[str, ArmCurves], comparison: Comparison, records: pd.DataFrame, online: str, offline: str
) -> list[Verdict]:
    """The same from curves that are already made."""
    verdicts = [_r1(curves.get(arm), arm) for arm in (online, offline)]
    return [*verdicts, _r2(comparison), _r7(records, online, offline), _r8(records, online, offline)]


def decide(interval: tuple[float, float], below: float = 0.0) -> str:
    """Supported above 0, contradicted below `below`, inconclusive otherwise or when undefined."""
    low, high = interval
    if not (np.isfinite(low) and np.isfinite(high)):
        return INCONCLUSIVE
    if low > 0:
        return SUPPORTED
    return CONTRADICTED if high < below else INCONCLUSIVE


def _r1(curve: ArmCurves | None, arm: str) -> Verdict:
    name = f"R1 {arm}"
    if curve is None:
        return _undefined(name, RULE_R1, f"No usable checkpoint of {arm}.")
    effect, interval = hump(curve)
    outcome = decide(interval, NO_FALL)
    largest, top = float(np.mean(curve.end_kl)), float(np.exp(np.mean(np.log(curve.peak_kl))))
    text = (
        f"{arm} peaks near {top:.2g} nats; at its largest KL ({largest:.3g} nats) the win rate is {effect.value:.3f} "
        f"below that peak."
    )
    if outcome != SUPPORTED:
        text += " A fall beyond the KL that was reached is not excluded."
    return _verdict(name, outcome, RULE_R1, effect, interval, text + _one_seed(len(curve.seeds)))


def _r2(c: Comparison) -> Verdict:
    if not c.defined:
        return _undefined("R2", RULE_R2, " ".join(c.warnings))
    text = (
        f"{c.a} − {c.b} is {c.average.value:+.3f} over {c.common_kl[0]:.2g} to {c.common_kl[1]:.2g} nats; of the "
        f"peaks {c.peak.value:+.3f} ({c.peak_interval[0]:+.3f} to {c.peak_interval[1]:+.3f})."
    )
    outcome = decide(c.average_interval)
    return _verdict("R2", outcome, RULE_R2, c.average, c.average_interval, text + _one_seed(len(c.seeds)))


def _r7(records: pd.DataFrame, online: str, offline: str) -> Verdict:
    ends = {arm: last_values(records, arm, "accuracy") for arm in (online, offline)}
    found = arms_difference(ends[offline], ends[online])
    if found is None:
        return _undefined("R7", RULE_R7, _no_values("accuracy on held-out D_golden", ends))
    each = {arm: over_seeds(values) for arm, values in ends.items()}
    text = f"At the end {offline} classifies {each[offline].value[0]:.3f} and {online} {each[online].value[0]:.3f}."
    interval = found.interval()
    effect = found.estimate("offline - online accuracy at the end, arms as independent samples of pairs")
    return _verdict("R7", decide(interval), RULE_R7, effect, interval, text + _one_seed(found.n))


def _r8(records: pd.DataFrame, online: str, offline: str) -> Verdict:
    ends = {arm: last_values(records, arm, "chosen_log_ratio") for arm in (online, offline)}
    found = arms_difference(ends[online], ends[offline])
    if found is None:
        return _undefined("R8", RULE_R8, _no_values("log-ratio of the winners", ends))
    each = {arm: over_seeds(values) for arm, values in ends.items()}
    rises = any(e.lower[0] > 0 for e in each.values())
    falls = all(e.upper[0] < 0 for e in each.values())
    interval = found.interval()
    order = decide(interval)
    outcome = INCONCLUSIVE
    if rises or order == CONTRADICTED:
        outcome = CONTRADICTED
    elif falls and order == SUPPORTED:
        outcome = SUPPORTED
    text = (
        f"At the end the winners' log-ratio is {each[online].value[0]:+.1f} nats in {online} and "
        f"{each[offline].value[0]:+.1f} in {offline}."
    )
    effect = found.estimate("online - offline log-ratio of winners at the end, nats")
    return _verdict("R8", outcome, RULE_R8, effect, interval, text + _one_seed(found.n))


Ends = dict[int, tuple[float, float]]


def last_values(records: pd.DataFrame, arm: str, column: str) -> Ends:
    """Per seed (value, standard error) at the last checkpoint of an arm's runs, mean over its runs.

    The runs share the held-out pairs, so the standard error of their mean is taken as their mean standard error.
    """
    rows = records[(records["arm"] == arm) & records[column].notna() & (records["step"] > 0)]
    if not len(rows):
        return {}
    rows = rows.sort_values("step", kind="stable").drop_duplicates("run", keep="last")
    grouped = rows.groupby("seed")[[column, f"{column}_se"]].mean()
    seeds, values = grouped.index.to_numpy(np.int64), grouped[column].to_numpy(np.float64)
    errors = grouped[f"{column}_se"].to_numpy(np.float64)
    return {int(s): (float(v), float(e)) for s, v, e in zip(seeds, values, errors, strict=True)}


def over_seeds(ends: Ends) -> TwoLevel:
    """Mean over seeds of `last_values` with a two-level interval; the pairs' noise from the standard errors."""
    point = np.array([v for v, _ in ends.values()])
    return two_level(point, _noise(point, np.array([e for _, e in ends.values()]), tuple(ends)))


def arms_difference(a: Ends, b: Ends) -> TwoLevel | None:
    """a - b over the seeds that both have; None if they share none."""
    seeds = sorted(set(a) & set(b))
    if not seeds:
        return None
    point = np.array([a[s][0] - b[s][0] for s in seeds])
    error = np.array([float(np.hypot(a[s][1], b[s][1])) for s in seeds])
    return two_level(point, _noise(point, error, tuple(seeds)))


def _noise(point: FloatArray, error: FloatArray, seeds: tuple[int, ...], draws: int = 2000) -> FloatArray:
    """Replicates [S, B] with exactly the given standard errors; an undefined error leaves the interval undefined."""
    rng = np.random.default_rng(zlib.crc32(repr(seeds).encode()))
    z = rng.normal(size=(len(point), draws))
    z = (z - z.mean(axis=1, keepdims=True)) / z.std(axis=1, ddof=1, keepdims=True)
    return np.asarray(point[:, None] + error[:, None] * z)


def _no_values(what: str, ends: Mapping[str, Ends]) -> str:
    empty = [arm for arm, values in ends.items() if not values]
    return f"No {what} for {' and '.join(empty)}." if empty else "The arms share no seed."


def _verdict(
    name: str, outcome: str, rule: str, effect: Estimate, interval: tuple[float, float], reason: str
) -> Verdict:
    """A verdict whose negative numbers have a minus sign."""
    return Verdict(name, outcome, rule, effect, interval, re.sub(r"(?<![\w−])-(?=\d)", "−", reason))


def _undefined(name: str, rule: str, reason: str) -> Verdict:
    return Verdict(name, INCONCLUSIVE, rule, Estimate(NAN, NAN, 0, "undefined"), (NAN, NAN), reason)


def _one_seed(n: int) -> str:
    return " One seed: run-to-run variation is not covered." if n == 1 else ""
