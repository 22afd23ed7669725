"""What people said of pairs, and the gap corrected by it: a sentence for the first screen and a table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from aligngap.report import words
from aligngap.report.analysis import Analysis
from aligngap.report.tables import Table
from aligngap.stats.budgets import at_budgets
from aligngap.stats.ppi import Agreement, Corrected, agreement, correct
from aligngap.stats.seedwise import mean_over_seeds
from aligngap.types import Estimate

#: rated pairs below which nothing is corrected
LEAST_PAIRS = 10
NOTES = (
    "People say which of the two arms' responses is better; their number is the share of pairs that the first arm "
    "wins, a tie one half, less one half. The judge compares each with the opponent; its number is the difference of "
    "their win rates. The corrected gap is people's number, with the judge's verdicts on all prompts to make it "
    "sharper (prediction-powered inference, arXiv 2301.09633, 2311.01453): whatever the judge's bias, it is taken out.",
    "Agreement is over three answers: first better, second better, tie. The judge says tie where both won or both lost "
    "against the opponent, so it falls short of 100% even for a judge that is right; the share of pairs that both "
    "decide does not suffer from that.",
)


@dataclass(frozen=True)
class People:
    """What people said of one pair of arms at one KL; several raters of a pair are averaged."""

    first: str
    second: str
    kl: float
    opponent: str
    pairs: int
    raters: int
    gap: Estimate  # the judge's, over all prompts
    gap_interval: tuple[float, float]
    corrected: Corrected
    agreement: Agreement
    between_raters: Agreement  # pairs of ratings of one pair by two raters
    left: Estimate  # how often the left one was chosen, of ratings that are no tie

    @property
    def enough(self) -> bool:
        return self.pairs >= LEAST_PAIRS


def list_people(analysis: Analysis) -> list[People]:
    """Every comparison that people rated."""
    if not len(analysis.ratings):
        return []
    return list(_people(analysis))


def _people(analysis: Analysis) -> Iterator[People]:
    named = ["first", "second", "opponent"]
    for _, rows in analysis.ratings.groupby([*named, "budget_nats"], sort=False):
        first, second, opponent = (str(rows[name].iloc[0]) for name in named)
        kl = float(rows["budget_nats"].iloc[0])
        if opponent not in analysis.clouds:
            continue
        found = at_budgets(analysis.clouds[opponent], {first: 1.0, second: -1.0}, [kl], spent=analysis.view.spent)
        gap, interval = Estimate(np.nan, np.nan, 0), (np.nan, np.nan)
        if found.values is not None:
            mean = mean_over_seeds(found.values)
            gap, interval = Estimate(mean.value, mean.se, mean.n), mean.interval()
        each = rows.groupby(["key", "pair"], sort=False).agg(
            human=("human", "mean"), judge=("judge", "first"), prompt=("prompt_id", "first"), seed=("seed", "first")
        )
        h, g = each["human"].to_numpy(np.float64) - 0.5, each["judge"].to_numpy(np.float64)
        asked = rows[rows["rater"] != ""]
        chose = asked[asked["human"] != 0.5]
        yield People(
            first, second, kl, opponent, len(each), asked["rater"].nunique(), gap, interval,
            correct(gap.value, gap.se, (interval[1] - interval[0]) / 2, g, h, list(each["prompt"]), list(each["seed"])),
            agreement(g, h), _between(asked),
            Estimate.mean(((chose["human"] == 1.0) == chose["first_left"]).to_numpy(np.float64)),
        )  # fmt: skip


def _between(asked: pd.DataFrame) -> Agreement:
    """How far raters agree with each other, over every two ratings of one pair."""
    one, other = [], []
    for _, rows in asked.groupby(["key", "pair"], sort=False):
        said = rows["human"].to_numpy(np.float64) - 0.5
        for i in range(len(said)):
            for j in range(i + 1, len(said)):
                one.append(said[i])
                other.append(said[j])
    return agreement(one, other)


def say_people(analysis: Analysis) -> list[str]:
    """What the first screen says of people."""
    return [say_person(p) for p in list_people(analysis)]


def say_person(p: People) -> str:
    """The corrected gap beside the judge's, and how far both agree."""
    pairs = f"{p.pairs} rated pair{'s' if p.pairs > 1 else ''}"
    head = f"People, by {pairs} at {words.nats(p.kl)}: {p.first} − {p.second} "
    if not p.enough:
        return f"{head}is not corrected below {LEAST_PAIRS} rated pairs. {say_agreement(p.agreement)}"
    judge = f"judge alone {words.number(p.gap.value, 3, True)}, {words.span(p.gap_interval)}"
    corrected = f"{words.number(p.corrected.value, 3, True)} ({words.span(p.corrected.interval)}; {judge})"
    return f"{head}{corrected}. {say_agreement(p.agreement)}"


def say_agreement(a: Agreement) -> str:
    """How far judge and people agree, in a sentence."""
    kappa = f", kappa {words.number(a.kappa, 2)}" if np.isfinite(a.kappa) else ""
    both = f"; of the {a.decided} that both decide, {a.share_decided:.0%}" if a.decided else ""
    return f"Judge and people say the same of {a.share:.0%} of the pairs{kappa}{both}."


HEADER = (
    "comparison",
    "KL, nats",
    "rated pairs (raters)",
    "judge's gap (95%)",
    "people's gap, without the judge (95%)",
    "corrected gap (95%)",
    "weight of the judge",
    "same answer",
    "kappa ± se",
    "where both decide",
    "raters with each other",
    "left chosen",
)


def table_ratings(analysis: Analysis) -> list[Table]:
    """The table of what people said, where they said anything."""
    rows = tuple(row(p) for p in list_people(analysis))
    return [Table("people", "What people say, and the judge corrected by it", NOTES, HEADER, rows)] if rows else []


def row(p: People) -> tuple[str, ...]:
    """One comparison as cells of text."""
    a, b = p.agreement, p.between_raters
    return (
        f"{p.first} − {p.second}",
        words.kl(p.kl),
        f"{p.pairs} ({p.raters})",
        words.effect(p.gap.value, p.gap_interval),
        words.effect(p.corrected.people.value, p.corrected.people_interval),
        words.effect(p.corrected.value, p.corrected.interval) if p.enough else f"needs {LEAST_PAIRS} pairs",
        words.number(p.corrected.weight, 2),
        f"{a.share:.0%}",
        f"{words.number(a.kappa, 2)} ± {words.number(a.kappa_se, 2)}",
        f"{a.share_decided:.0%} of {a.decided}" if a.decided else "–",
        f"{b.share:.0%} of {b.pairs}, kappa {words.number(b.kappa, 2)}" if b.pairs else "–",
        f"{p.left.value:.0%} of {p.left.n}" if p.left.n else "–",
    )
