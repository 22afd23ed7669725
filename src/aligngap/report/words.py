"""The sentences of a report: what was found, with its uncertainty, and what cannot be concluded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from aligngap.report.analysis import Analysis
from aligngap.stats.compare import Comparison
from aligngap.storage.columns import OPPONENTS
from aligngap.types import Estimate

SHORT = {"golden_policy": "golden policy", "sft": "SFT policy", "chosen": "chosen responses"}


def number(x: float, digits: int = 3, sign: bool = False) -> str:
    """A number for reading, with fewer decimals once it is large; an undefined one is a dash."""
    if not math.isfinite(x):
        return "–"
    digits = max(digits - len(f"{abs(x):.0f}") + (abs(x) < 10), 0) if abs(x) >= 2 else digits
    if not round(x, digits):
        x, sign = 0.0, False  # neither +0.000 nor −0.000
    return f"{x:+.{digits}f}".replace("-", "−") if sign else f"{x:.{digits}f}".replace("-", "−")


def kl(x: float) -> str:
    """A KL in nats, three significant digits at most."""
    return "–" if not math.isfinite(x) else f"{x:.2g}" if x < 10 else f"{x:.0f}"


def nats(x: float) -> str:
    """A KL with its unit."""
    return f"{kl(x)} nat{'s' * (kl(x) != '1')}"


def pm(e: Estimate, digits: int = 3) -> str:
    """value ± standard error."""
    return f"{number(e.value, digits)} ± {number(e.se, digits)}"


def span(interval: tuple[float, float], digits: int = 3, sign: bool = True) -> str:
    return f"{number(interval[0], digits, sign)} to {number(interval[1], digits, sign)}"


def seeds(n: int) -> str:
    return "one seed" if n == 1 else f"{n} seeds"


def opponent(name: str) -> str:
    return OPPONENTS.get(name, name)


def kl_ranges(ranges: tuple[tuple[float, float], ...]) -> str:
    return ", ".join(f"{kl(a)} to {kl(b)}" for a, b in ranges)


def verdict(c: Comparison) -> str:
    """ahead, behind, undecided or undefined, for arm a by the average over the common range."""
    low, high = c.average_interval
    if not c.defined or not math.isfinite(low):
        return "undefined"
    return "ahead" if low > 0 else "behind" if high < 0 else "undecided"


def answer(c: Comparison) -> str:
    """The first sentence: which arm is ahead at equal KL, by how much, how sure."""
    a, b = c.a.capitalize(), c.b
    if not c.defined:
        return f"{a} and {b} cannot be compared at equal KL here. {' '.join(c.warnings)}"
    size = f"{number(abs(c.average.value))} in win rate"
    between = f"from {kl(c.common[0])} to {kl(c.common[1])} nats"
    low, high = c.average_interval
    state = verdict(c)
    if state == "ahead":
        return (
            f"At equal KL, {c.a} beats {b} by {size} (95% interval {span((low, high), sign=False)}), averaged over the "
            f"KL range both reached, {between}; {seeds(len(c.seeds))}."
        )
    if state == "behind":
        return (
            f"At equal KL, {b} beats {c.a} by {size} (95% interval {span((-high, -low), sign=False)}), averaged over "
            f"the KL range both reached, {between}; {seeds(len(c.seeds))}."
        )
    if state == "undecided":
        return (
            f"These runs do not decide between {c.a} and {b}: at equal KL the difference in win rate is "
            f"{number(c.average.value, 3, True)} (95% interval {span((low, high))}), averaged over the KL range both "
            f"reached, {between}; {seeds(len(c.seeds))}."
        )
    return f"At equal KL {c.a} − {b} is {number(c.average.value, 3, True)}, with no defined error."


def details(c: Comparison) -> list[str]:
    """What stands under the first sentence."""
    out: list[str] = []
    if c.budgets:
        middle = math.sqrt(c.common[0] * c.common[1])
        at = min(c.budgets, key=lambda x: abs(math.log(x.x / middle)))
        out.append(
            f"At {nats(at.x)} {c.a} wins {pm(at.a)} against {opponent(c.opponent)}, {c.b} {pm(at.b)} "
            f"(difference {number(at.difference.value, 3, True)}, 95% interval {span(at.interval)})."
        )
    if c.defined:
        parts = []
        if c.a_ahead:
            parts.append(f"{c.a} is ahead from {kl_ranges(c.a_ahead)} nats ({c.share_a_ahead:.0%} of the log-KL range)")
        if c.b_ahead:
            parts.append(f"{c.b} is ahead from {kl_ranges(c.b_ahead)} nats ({c.share_b_ahead:.0%})")
        out.append(
            "With 95% confidence for the whole range at once, "
            + ("; ".join(parts) or "neither arm is ahead anywhere")
            + "."
        )
    if math.isfinite(c.peak.value):
        out.append(
            f"Best checkpoints: {c.a} {pm(c.peak_a)}, {c.b} {pm(c.peak_b)}; difference "
            f"{number(c.peak.value, 3, True)} (95% interval {span(c.peak_interval)})."
        )
    return out


def naive(c: Comparison) -> str:
    """What the difference would be with the sweep's best scored on the prompts that chose it."""
    if not c.defined:
        return ""
    return (
        f" Scored on the prompts that chose, the difference would be {number(c.average_naive, 3, True)} instead of "
        f"{number(c.average.value, 3, True)}."
    )


def caveats(analysis: Analysis) -> list[str]:
    """Doubts, the weightiest first."""
    out = list(analysis.main.warnings) + warnings(analysis)
    lost = [n for n in (analysis.online, analysis.offline) if n not in analysis.arms]
    if lost:
        out.insert(0, f"The study has no arm named {' or '.join(lost)}, so the opening question stays open.")
    curves = analysis.curves[analysis.opponent]
    sweeps = {n: curves[n].configs for n in (analysis.online, analysis.offline) if n in curves}
    if len(set(sweeps.values())) > 1:
        what = ", ".join(f"{n} {k}" for n, k in sweeps.items())
        out.append(
            f"The arms pool different numbers of configurations ({what}). A pooled arm's best is chosen on three "
            "quarters of the prompts and scored on the rest, so it is not flattered, if anything a little understated; "
            f"a larger sweep is still a larger effort.{naive(analysis.main)}"
        )
    out.append(
        "Equal KL is not equal compute, data or labels: an online arm draws fresh pairs, labelled by the proxy; an "
        "offline arm repeats a fixed set, labelled by the golden model."
    )
    out.append("The golden judge stands in for people; the golden policy as opponent may resemble one arm more.")
    return list(dict.fromkeys(out))


def warnings(analysis: Analysis) -> list[str]:
    """What the whole report must say of rows dropped, runs that stopped and steps that failed."""
    dropped = [w for o in analysis.opponents for w in analysis.clouds[o].warnings]
    found = dropped + stopped(analysis.records) + failed(analysis.failures) + apart(analysis.runs)
    return list(dict.fromkeys(found))


def stopped(records: pd.DataFrame) -> list[str]:
    """Sentences about runs that did not end well."""
    mask = ~records["outcome"].isin(["ok"]) & records["outcome"].notna()
    bad = records[["run", "outcome"]][mask].drop_duplicates("run", keep="last")
    if not len(bad):
        return []
    reasons = ", ".join(f"{r} ({n})" for r, n in bad["outcome"].astype(str).value_counts().head(4).items())
    return [f"{len(bad)} run(s) did not end well: {reasons}."]


def failed(failures: Mapping[str, str]) -> list[str]:
    """Sentences about steps that failed, so that what needs them is missing here."""
    if not failures:
        return []
    told = "; ".join(f"{name}: {message}" for name, message in list(failures.items())[:4])
    return [f"{len(failures)} step(s) failed, and what needs them is missing: {told.rstrip('.')}."]


def apart(runs: Mapping[str, Any]) -> list[str]:
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
