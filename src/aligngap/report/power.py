"""What a study can see, in sentences: its power, what a difference would take, what would change the answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from aligngap.hypotheses.decision import prompts_needed
from aligngap.report import words
from aligngap.report.analysis import OPPONENT_ORDER, Analysis, order_names
from aligngap.stats.budgets import BUDGETS, LEAST_SEEDS, at_budgets
from aligngap.stats.clouds import make_clouds
from aligngap.stats.power import MAX_SEEDS, POWER, Spread, power, seeds_needed, spread_of

#: the difference in win rate that a study should be able to see, unless another is asked for
DETECT = 0.05
#: and a smaller one, for studies that are large enough for that
SMALL = 0.02


def change_of_mind(analysis: Analysis) -> list[tuple[str, str]]:
    """What more seeds, prompts or KL could change of the answer: pairs of a heading and a sentence."""
    found, (a, b) = analysis.main, analysis.pairs[0]
    s = analysis.robust.spread
    out = [("seeds", say_seeds(s)), ("prompts", say_prompts(s))] if s is not None else []
    if not found.judged:
        return [*out, ("KL", f"Nothing is judged yet. {found.why}")]
    top = found.judged[-1].kl
    beyond = [x for x in found.budgets if not x.judged and x.kl > top]
    if not beyond:
        named = "--kl" if analysis.given else "the study"
        where = f"Nothing is known above {words.budget(top)}, the largest budget that {named} names."
        return [*out, ("KL", where)]
    short = [arm for arm in (a, b) if beyond[0].short.get(arm)]
    farther = "Later checkpoints" if analysis.given else "More steps or a smaller beta"
    return [
        *out,
        (
            "KL",
            f"Nothing is judged above {words.budget(top)}: runs of {' and '.join(short) or 'both arms'} ended before "
            f"{words.budget(beyond[0].kl)}. {farther} would show whether {a} and {b} part there.",
        ),
    ]


def say_seeds(s: Spread) -> str:
    """What this many seeds can see, and how many would see the difference, and a smaller one."""
    if not math.isfinite(s.between):
        return say_needed(s)
    seen = power(s, DETECT, s.seeds, s.prompts)
    verdict = f" There is no verdict below {LEAST_SEEDS}: run at least so many." if s.seeds < LEAST_SEEDS else ""
    has = f"These {s.seeds} see a difference of {DETECT:g} with {power_as_text(seen)} power."
    return f"{has} {say_needed(s, SMALL if seen >= POWER else DETECT)}{verdict}"


def say_prompts(s: Spread) -> str:
    """What more prompts would bring at the seeds that were run."""
    if not math.isfinite(s.between):
        return f"More than these {s.prompts:,} narrow the interval of this one training run, and say nothing of others."
    if s.seeds < LEAST_SEEDS:
        return f"No number of prompts gives a verdict with {s.seeds} seeds: it takes {LEAST_SEEDS}."
    size = SMALL if power(s, DETECT, s.seeds, s.prompts) >= POWER else DETECT
    n, end = prompts_needed(s, size, s.seeds), f"a difference of {size:g} with 80% power"
    if n is None:
        return f"With these {s.seeds} seeds no number of prompts would show {end}."
    return f"With these {s.seeds} seeds about {n:,} prompts ({s.prompts:,} now) would show {end}."


def power_as_text(p: float) -> str:
    """A power for reading; never quite certain."""
    return "–" if not math.isfinite(p) else "over 99%" if p > 0.99 else f"{p:.0%}"


def count_seeds(s: Spread, difference: float, prompts: int, cautious: bool = False) -> str:
    """The number of seeds that a difference takes, or that it is more than anybody will run."""
    n = seeds_needed(s, difference, prompts, cautious)
    return f"> {MAX_SEEDS}" if n is None else str(n)


def say_needed(s: Spread, detect: float = DETECT) -> str:
    """One sentence for the first screen and for `aligngap plan`."""
    if not math.isfinite(s.between):
        return "One seed cannot tell how much seeds differ, so it cannot say how many would be needed; run two or more."
    n, cautious = (seeds_needed(s, detect, s.prompts, c) for c in (False, True))
    if n is None:
        return (
            f"More than {MAX_SEEDS} seeds of {s.prompts:,} prompts would be needed to see a difference of {detect:g} "
            "with 80% power."
        )
    upper = f"up to {cautious}" if cautious else f"or more than {MAX_SEEDS}"
    return (
        f"About {n} seeds × {s.prompts:,} prompts would be needed to see a difference of {detect:g} with 80% power "
        f"({upper}, if seeds differ as much as these {s.seeds} leave possible)."
    )


def say_planned(
    records: pd.DataFrame,
    per_prompt: pd.DataFrame,
    arms: tuple[str, str],
    seeds: int,
    prompts: int,
    detect: float,
    budgets: Sequence[float] = BUDGETS,
) -> str:
    """For `aligngap plan --pilot`: the power of a study of this size, and what the difference would take."""
    opponents = order_names([str(o) for o in records["opponent"].unique()], OPPONENT_ORDER)
    clouds = {o: make_clouds(records, per_prompt, o) for o in opponents}
    opponent = next((o for o in opponents if clouds[o].items), opponents[0])
    found = at_budgets(clouds[opponent], {arms[0]: 1.0, arms[1]: -1.0}, budgets)
    s = spread_of(found)
    if s is None:
        why = found.why or "The pilot's wins are not recorded prompt by prompt."
        return f"The pilot cannot say what a study would see. {why}"
    said = [
        f"pilot: {arms[0]} − {arms[1]} at {words.budget(found.judged[-1].kl)} against {words.opponent(opponent)}, "
        f"{words.seeds(s.seeds)} × {s.prompts:,} "
        f"prompts; standard deviation {words.number(math.sqrt(s.prompt / s.prompts))} from the prompts of a seed, "
        + (
            f"{words.number(math.sqrt(s.between))} between seeds"
            if math.isfinite(s.between)
            else "between seeds unknown"
        )
    ]
    if seeds > 1 and math.isfinite(s.between):
        sure, careful = (power(s, detect, seeds, prompts, c) for c in (False, True))
        said.append(
            f"this study, {words.seeds(seeds)} × {prompts:,} prompts: {power_as_text(sure)} power to see a difference "
            f"of {detect:g} ({power_as_text(careful)} if seeds differ as much as the pilot leaves possible)"
        )
    elif seeds == 1:
        said.append("this study has one seed: whatever it sees, it cannot tell from one training run's luck")
    return "\n".join([*said, say_needed(replace(s, prompts=prompts), detect)])
