"""The sentences of a report: what was found, with its uncertainty, and what cannot be concluded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from aligngap.hypotheses.verdicts import CONTRADICTED, SUPPORTED, decide_anywhere
from aligngap.report.analysis import Analysis
from aligngap.stats.axes import say_nats
from aligngap.stats.budgets import LEAST_SEEDS, AtBudgets, Budget, above
from aligngap.stats.peaks import kl_to_reach, peaks_of
from aligngap.stats.seedwise import mean_over_seeds
from aligngap.storage.columns import OPPONENTS
from aligngap.types import Estimate, Verdict

#: runs that are named where some are missing
SOME = 6
SHORT = {
    "golden_policy": "golden policy", "sft": "SFT policy", "chosen": "chosen responses", "best_of_n": "best-of-n",
}  # fmt: skip


def number(x: float, digits: int = 3, sign: bool = False) -> str:
    """A number for reading, with fewer decimals once it is large; an undefined one is a dash."""
    if not math.isfinite(x):
        return "–"
    digits = max(digits - len(f"{abs(x):.0f}") + (abs(x) < 10), 0) if abs(x) >= 2 else digits
    if not round(x, digits):
        x, sign = 0.0, False  # neither +0.000 nor −0.000
    return f"{x:+.{digits}f}".replace("-", "−") if sign else f"{x:.{digits}f}".replace("-", "−")


def kl(x: float) -> str:
    """A measured KL in nats, two significant digits below 10."""
    return "–" if not math.isfinite(x) else f"{x:.2g}" if x < 10 else f"{x:.0f}"


def nats(x: float) -> str:
    """A KL with its unit."""
    return f"{kl(x)} nat{'s' * (kl(x) != '1')}"


def budget(*kls: float) -> str:
    """KL budgets with their unit, three significant digits at most: what somebody named is told as it was named."""
    return say_nats(*kls, digits=".3g")


def pm(e: Estimate, digits: int = 3) -> str:
    """value ± standard error."""
    return f"{number(e.value, digits)} ± {number(e.se, digits)}"


def span(interval: tuple[float, float], digits: int = 3, sign: bool = True) -> str:
    """An interval as "low to high"."""
    return f"{number(interval[0], digits, sign)} to {number(interval[1], digits, sign)}"


def effect(value: float, interval: tuple[float, float]) -> str:
    """A difference with its sign, and its interval behind it."""
    return f"{number(value, 3, True)} ({span(interval)})"


def seeds(n: int) -> str:
    """A number of seeds in words."""
    return "one seed" if n == 1 else f"{n} seeds"


def opponent(name: str) -> str:
    """What an opponent is called in a sentence."""
    return OPPONENTS.get(name, name)


def verdict(found: AtBudgets) -> str:
    """ahead, behind, undecided, few (seeds) or undefined, for the first arm, by its judged budgets together."""
    if not found.judged:
        return "undefined"
    if len(found.seeds) < LEAST_SEEDS:
        return "few"
    return {SUPPORTED: "ahead", CONTRADICTED: "behind"}.get(decide_anywhere(found)[0], "undecided")


def at(b: Budget, sign: float = 1.0) -> str:
    """One budget's difference, with the interval that holds for all budgets at once where it is judged."""
    low, high = sorted((sign * b.interval[0], sign * b.interval[1]))
    ends = f" ({span((low, high))})" if math.isfinite(low) else ""
    return f"{number(sign * b.mean.value, 3, True)}{ends} at {budget(b.kl)}"


def claim(analysis: Analysis) -> str:
    """Which arm is ahead at equal KL, or why that is not said: a line of words, without its full stop."""
    (a, b), few = analysis.pairs[0], seeds(len(analysis.main.seeds)).capitalize()
    if a == b:
        return f"One policy was measured, {a}, so nothing is compared"
    give = "gives" if len(analysis.main.seeds) == 1 else "give"
    return {
        "ahead": f"At equal KL, {a} beats {b} in win rate",
        "behind": f"At equal KL, {b} beats {a} in win rate",
        "undecided": f"These runs do not decide between {a} and {b}",
        "few": f"{few} {give} an estimate of {a} − {b} and no verdict, which takes {LEAST_SEEDS}",
        "undefined": f"The policies {a} and {b} cannot be compared at equal KL here",
    }[verdict(analysis.main)]


def numbers(analysis: Analysis) -> str:
    """The differences behind the claim, with how they were taken; what is missing, where there are none."""
    found, (a, b), state = analysis.main, analysis.pairs[0], verdict(analysis.main)
    if a == b:
        return "Its win rate stands against its KL in the chart."
    if state == "undefined":
        return found.why
    each = ", ".join(at(x, -1.0 if state == "behind" else 1.0) for x in found.judged)
    how = f"same configurations in both arms, {seeds(len(found.seeds))}, 95% intervals for all budgets at once"
    subject = "" if state in ("ahead", "behind") else f"At equal KL, {a} − {b} in win rate is "
    return f"{subject}{each} ({how})."


def answer(analysis: Analysis) -> str:
    """The first sentences: which arm is ahead at equal KL, by how much, how sure."""
    joint = ": " if verdict(analysis.main) in ("ahead", "behind") else ". "
    return f"{claim(analysis)}{joint}{numbers(analysis)}".rstrip()


def details(analysis: Analysis) -> list[str]:
    """What stands under the first sentence."""
    found, (a, b) = analysis.main, analysis.pairs[0]
    out: list[str] = say_unreached(found)
    family = [v for v in analysis.verdicts if v.primary]
    if family:
        told = "; ".join(f"{v.name}: {v.outcome}{f' ({p})' if (p := p_adjusted(v)) else ''}" for v in family)
        out.append(f"The primary family, named before the runs and held to 5% as a whole by Holm: {told}.")
    best = peaks_of(analysis.clouds[analysis.opponent], (a, b), spent=analysis.view.spent)
    if not isinstance(best, str):
        gap = mean_over_seeds(best[a].values.plus(best[b].values, -1.0))
        each = [mean_over_seeds(best[arm].values).value for arm in (a, b)]
        where = [math.exp(sum(map(math.log, best[arm].kl)) / len(best[arm].kl)) for arm in (a, b)]
        out.append(
            f"Best checkpoints of each configuration, chosen on other seeds: {a} {number(each[0])} at "
            f"{nats(where[0])}, {b} {number(each[1])} at {nats(where[1])}; difference {number(gap.value, 3, True)} "
            f"({span(gap.interval())}). They lie at different KL."
        )
        out += say_reach(analysis)
    return out


def p_adjusted(v: Verdict) -> str:
    """A verdict's adjusted p-value in words; "" where the rule has no test."""
    return f"adjusted p {v.p_adjusted:.3f}" if math.isfinite(v.p_adjusted) else ""


def say_unreached(found: AtBudgets) -> list[str]:
    """What is not judged since an arm did not get there, or was past it; runs that ended are not missing at random."""
    lost = [b for b in found.budgets if not b.judged]
    if not lost or not found.judged:
        return []
    ended = {budget(b.kl): ", ".join(f"{n} of {arm}" for arm, n in b.short.items() if n) for b in lost}
    runs, passed = "; ".join(f"{at_kl}: {who}" for at_kl, who in ended.items() if who), above(lost)
    said = f"Not judged at {budget(*(b.kl for b in lost))}, where not every seed can be read in both arms."
    if runs:
        said += f" Runs that ended below ({runs}) moved less than the others and are not missing at random."
    if passed:
        said += f" Earlier checkpoints are missing: {passed}."
    return [said]


def say_reach(analysis: Analysis) -> list[str]:
    """The KL that each arm's best configuration needs to reach the other's best: censored, and secondary."""
    a, b = analysis.pairs[0]
    clouds, spent = analysis.clouds[analysis.opponent], analysis.view.spent
    out = []
    for arm, other in ((a, b), (b, a)):
        found = kl_to_reach(clouds, arm, other, spent)
        if isinstance(found, str):
            return []
        known = [x for x in found if math.isfinite(x)]
        middle = sorted(found)[(len(found) - 1) // 2]
        at_most = f", in the median at {nats(middle)}" if math.isfinite(middle) else ""
        out.append(f"{arm} reaches {other}'s best in {len(known)} of {len(found)} runs{at_most}")
    return [f"{'; '.join(out)} (the others ended below it: censored)."]


def say_missing(analysis: Analysis) -> list[str]:
    """A sentence about the runs of an unfinished study; none where every run that was planned is measured."""
    if not analysis.missing:
        return []
    there, some = analysis.records["run"].nunique(), list(analysis.missing[:SOME])
    more = f" and {len(analysis.missing) - SOME} more" if len(analysis.missing) > SOME else ""
    return [
        f"Unfinished: {there} of {there + len(analysis.missing)} runs are measured, and what is said here is of these "
        f"alone. Missing: {'; '.join(some)}{more}. The same command goes on."
    ]


def caveats(analysis: Analysis) -> list[str]:
    """Doubts, the weightiest first."""
    out = warnings(analysis)
    lost = [n for n in (analysis.online, analysis.offline) if n not in analysis.arms]
    if lost and not analysis.given:
        out.insert(0, f"The study has no arm named {' or '.join(lost)}, so the opening question stays open.")
    curves = analysis.curves[analysis.opponent]
    sweeps = {n: curves[n].configs for n in (analysis.online, analysis.offline) if n in curves}
    if len(set(sweeps.values())) > 1:
        what = ", ".join(f"{n} {k}" for n, k in sweeps.items())
        out.append(
            f"The arms ran different numbers of configurations ({what}). They are compared over those that both ran; "
            "their frontiers in the figure pool all that each ran, and the arm with more has the better chance."
        )
    exploratory = [v for v in analysis.verdicts if not v.primary and math.isfinite(v.p)]
    if exploratory:
        out.append(
            f"{len(exploratory)} verdicts are exploratory: their p-values are adjusted together (Benjamini and "
            "Hochberg), their outcomes are not."
        )
    if analysis.given:
        out.append(
            "Equal KL is not equal compute, data or labels; how these policies were trained is not known here, so a "
            "difference between them may come from anything in which their trainings differed."
        )
        out.append("The judge stands in for people.")
        return list(dict.fromkeys(out))
    out.append(
        "Equal KL is not equal compute, data or labels: an online arm draws fresh pairs, an offline arm repeats a "
        "fixed set; and who labels may differ between them."
    )
    alike = "; the golden policy as opponent may resemble one arm more" if "golden_policy" in analysis.opponents else ""
    out.append(f"The golden judge stands in for people{alike}.")
    return list(dict.fromkeys(out))


def warnings(analysis: Analysis) -> list[str]:
    """What the whole report must say of rows dropped, runs that stopped and steps that failed."""
    dropped = [w for o in analysis.opponents for w in analysis.clouds[o].warnings]
    found = (
        list(analysis.doubts)
        + dropped
        + warn_stopped(analysis.records)
        + warn_failed(analysis.failures)
        + warn_apart(analysis.runs)
    )
    return list(dict.fromkeys(found))


def say_replaced(replaced: Mapping[str, str]) -> list[str]:
    """A sentence about artifacts that were made from other bytes than their inputs hold now."""
    if not replaced:
        return []
    name, need = next(iter(replaced.items()))
    return [
        f"{len(replaced)} artifact(s) of the store were made from other bytes than an input of theirs holds now, "
        f"such as {name} from {need}: what is said here rests on both; `aligngap check` names them."
    ]


def warn_stopped(records: pd.DataFrame) -> list[str]:
    """Sentences about runs that did not end well."""
    mask = ~records["outcome"].isin(["ok"]) & records["outcome"].notna()
    bad = records[["run", "outcome"]][mask].drop_duplicates("run", keep="last")
    if not len(bad):
        return []
    reasons = ", ".join(f"{r} ({n})" for r, n in bad["outcome"].astype(str).value_counts().head(4).items())
    return [f"{len(bad)} run(s) did not end well: {reasons}."]


def warn_failed(failures: Mapping[str, str]) -> list[str]:
    """Sentences about steps that failed, so that what needs them is missing here."""
    if not failures:
        return []
    told = "; ".join(f"{name}: {message}" for name, message in list(failures.items())[:4])
    return [f"{len(failures)} step(s) failed, and what needs them is missing: {told.rstrip('.')}."]


def warn_apart(runs: Mapping[str, Any]) -> list[str]:
    """A sentence about runs whose engine's log-probabilities are further from the trainer's than the study allows.

    `runs` is what `collect` writes of each run; entries of another shape are passed over.
    """
    told = {run: about["rollouts"] for run, about in runs.items() if isinstance(about, Mapping) and "rollouts" in about}
    wanted = ("mismatch_nats", "mismatch_max_nats", "tolerance_nats")
    far: dict[str, list[float]] = {}
    for run, about in told.items():
        numbers: list[Any] = [about.get(k) for k in wanted] if isinstance(about, Mapping) else []
        if numbers and all(isinstance(x, int | float) for x in numbers) and not numbers[0] <= numbers[2]:  # nan too
            far[run] = numbers
    if not far:
        return []
    run = max(far, key=lambda name: (far[name][0], name))
    mean, most, tolerance = far[run]
    writer = told[run].get("written_by", "unnamed")
    return [
        f"{len(far)} run(s) trained on responses of an engine ({writer}) whose log-probability of a token "
        f"differs from the trainer's by {mean:.2g} nats on average and {most:.2g} at most ({run}), above "
        f"recipe.rollouts.tolerance_nats, {tolerance:g}: what they call online is slightly off-policy; run them with "
        "policy.dtype float32 or recipe.rollouts.engine transformers."
    ]
