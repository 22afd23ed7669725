"""What stands beside equal KL, as sentences and tables: one list of sections for the page and for `summary.md`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from aligngap.report import words
from aligngap.report.analysis import Analysis
from aligngap.report.power import DETECT, SMALL, count_seeds, power_as_text, say_needed
from aligngap.stats.axes import COMPUTE, PAIRS
from aligngap.stats.budgets import at_budgets
from aligngap.stats.compare import Comparison
from aligngap.stats.power import power
from aligngap.types import Estimate

Row = tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """A titled table; `more` holds rows that only some readers want."""

    name: str
    title: str
    notes: tuple[str, ...]
    header: Row
    rows: tuple[Row, ...]
    more_title: str = ""
    more: tuple[Row, ...] = ()


def tables(analysis: Analysis) -> list[Table]:
    """Every section that the records allow."""
    found = (
        best_configurations(analysis),
        None if analysis.given else protocol(analysis),
        ranking(analysis),
        length(analysis),
        best_of_n(analysis),
        seeds_and_prompts(analysis),
    )
    return [t for t in found if t]


# --------------------------------------------------------------------------------------------------- other axes

IN_STEP = "Every run trains on equally many pairs a step, so equal pairs are equal steps."
COMPUTED = (
    "Training compute is counted while a run trains: tokens times weights of policy, reference and judge. Left out are "
    "what an engine or an endpoint computes elsewhere, and what it took to make the judges and the data."
)
CHI_SQUARED = (
    "The chi-squared divergence is not among them: its sampled estimator averages exp(log-ratio) over whole responses, "
    "with a variance that has no bound, so it is not estimated here (why it would matter: Huang et al. 2024, arXiv "
    "2407.13399)."
)


def best_configurations(analysis: Analysis) -> Table | None:
    """Each arm at its best configuration of the grid that both ran, chosen on other seeds; None with one of either."""
    a, b = analysis.pairs[0]
    view = analysis.view
    if len(analysis.main.configs) < 2 or len(analysis.main.seeds) < 2:
        return None
    weights = {a: 1.0, b: -1.0}
    found = at_budgets(analysis.clouds[analysis.opponent], weights, view.budgets, chosen=True, spent=view.spent)
    if not found.judged:
        return None
    where = "the spent seeds" if view.spent else "the seeds that are not scored"
    notes = (
        f"{a} − {b} at each KL budget with each arm at its best of the {len(found.configs)} configurations that both "
        f"ran, chosen on {where}. No verdict rests on it: by luck the arms may choose different configurations, which "
        "no number of judged seeds averages out.",
    )
    rows = tuple(
        (words.kl(x.kl), f"{words.number(x.mean.value, 3, True)} ± {words.number(x.mean.se)}", words.span(x.interval))
        for x in found.judged
    )
    header = ("KL, nats", "difference ± se", "95% interval, all budgets at once")
    return Table("best-configurations", "Each arm at its best configuration", notes, header, rows)


POOLED = (
    "A second view, and no verdict rests on it: each arm is the best of what it ran, chosen on three quarters of the "
    "prompts and scored on the rest, averaged over the log-KL range that both reached from 0.1 nats. Where one arm ran "
    "more configurations than the other that is not the same question for both."
)


def protocol(analysis: Analysis) -> Table:
    """The paper's protocol: pooled frontiers averaged over log KL, with what it says where there is nothing."""
    bias = analysis.bias
    note = ""
    if bias is not None and bias.defined:
        note = (
            f"What it says where there is nothing: {bias.a} minus all of {bias.b}'s is {difference(bias)} "
            f"({words.span(bias.average_interval)}) by the same average, so {bias.b} is ahead of itself by that much."
            if bias.average.value < 0
            else f"What it says where there is nothing: {bias.a} minus all of {bias.b}'s is {difference(bias)} "
            f"({words.span(bias.average_interval)}) by the same average."
        )
    found = [c for o in analysis.opponents for c in analysis.comparisons[o]]
    rows = tuple(
        (
            words.SHORT.get(c.opponent, c.opponent),
            f"{c.a} − {c.b}",
            difference(c) if c.defined else "–",
            words.span(c.average_interval) if c.defined else "not comparable",
            f"{words.kl(c.common[0])} to {words.kl(c.common[1])}" if c.defined else "none in common",
            words.effect(c.peak.value, c.peak_interval),
            controlled,
            str(len(c.seeds)),
        )
        for c, controlled in zip(found, controlled_cells(analysis), strict=True)
    )
    header = (
        "opponent", "comparison", "average difference ± se", "95% interval", "KL range, nats", "peaks",
        "length-controlled", "seeds",
    )  # fmt: skip
    return Table("protocol", "The paper's protocol", (POOLED, note), header, rows)


def ranking(analysis: Analysis) -> Table | None:
    """x-axis by opponent: the difference of pooled frontiers and its interval."""
    main = analysis.comparisons[analysis.opponent][0]
    found = analysis.robust.axes
    mine = [c for c in found if (c.a, c.b) == (main.a, main.b)]
    others = [c for c in found if (c.a, c.b) != (main.a, main.b)]
    notes = (
        f"{main.a} − {main.b} in win rate at equal KL, and at equal everything else that could have been the budget, "
        "by pooled frontiers averaged over the range both reached: exploratory, no verdict rests on such an average. "
        "Optimisers spend KL differently (Gao et al. 2023), so a ranking that holds on one axis need not on another.",
        say_survival(main, [c for c in mine if c is not main]),
        *([] if any(c.axis == PAIRS for c in found) or not analysis.records["pairs_seen"].any() else [IN_STEP]),
        *([COMPUTED] if any(c.axis == COMPUTE for c in found) else []),
        CHI_SQUARED,
    )
    header = ("x-axis", "opponent", "difference ± se", "95% interval", "common range", "the interval", "seeds")
    more = tuple((f"{c.a} − {c.b}, {c.axis.name}", *axis_row(c)[1:]) for c in sort(others))
    rows = tuple(axis_row(c) for c in sort(mine))
    return Table("ranking", "Does the ranking survive?", notes, header, rows, "The other pairs of arms", more)


def sort(found: list[Comparison]) -> list[Comparison]:
    """By axis, then by opponent, in the order they came."""
    names = list(dict.fromkeys(c.axis.name for c in found))
    return sorted(found, key=lambda c: names.index(c.axis.name))


def axis_row(c: Comparison) -> Row:
    """A comparison on one axis as the cells of a table."""
    ahead = SIDES[side(c)]
    opponent = words.SHORT.get(c.opponent, c.opponent)
    if not c.defined:
        return (c.axis.name, opponent, "–", "–", c.warnings[-1] if c.warnings else "none in common", ahead, "–")
    return (
        c.axis.name,
        opponent,
        difference(c),
        words.span(c.average_interval),
        c.axis.span(*c.common),
        ahead,
        str(len(c.seeds)),
    )


#: what an average's interval does, in words
SIDES = {"above": "above 0", "below": "below 0", "holds": "holds 0", "undefined": "not comparable"}


def side(c: Comparison) -> str:
    """Where the interval of a pooled average lies: above 0, below, or around it. No verdict."""
    low, high = c.average_interval
    if not c.defined or not math.isfinite(low):
        return "undefined"
    return "above" if low > 0 else "below" if high < 0 else "holds"


def say_survival(first: Comparison, rest: list[Comparison]) -> str:
    """One sentence: how often the other axes and opponents say the same as KL against the main opponent."""
    states = [side(c) for c in rest]
    above, below, holds, none = (states.count(s) for s in SIDES)
    tail = f"; {none} cannot be compared" if none else ""
    return (
        f"At equal {first.axis.name} the interval of {first.a} − {first.b}: {SIDES[side(first)]}. Of the {len(rest)} "
        f"other combinations of axis and opponent it lies above 0 in {above} and below in {below}; {holds} hold "
        f"0{tail}."
    )


# ------------------------------------------------------------------------------------------------------- length


def length(analysis: Analysis) -> Table | None:
    """Plain and length-controlled win rate of each arm at its best checkpoint."""
    if not any(p.controlled for p in analysis.robust.peaks):
        return None
    notes = (
        "The win rate a policy would have if its responses were as long as the opponent's: a logistic regression of "
        "the win on the difference in length, at no difference (Dubois et al. 2024, arXiv 2404.04475, without their "
        "term for the prompt). Each arm at its best checkpoint, chosen on three quarters of the prompts and scored on "
        f"the rest, against {words.opponent(analysis.opponent)}. The control also removes what longer responses "
        "deserve.",
        *analysis.robust.warnings,
    )
    header = ("arm", "win rate ± se", "length-controlled ± se", "change")
    rows = []
    for p in analysis.robust.peaks:
        change = words.number(p.controlled.value - p.plain.value, 3, True) if p.controlled else "–"
        rows.append((p.arm, words.pm(p.plain), words.pm(p.controlled) if p.controlled else "–", change))
    return Table("length", "At equal length", notes, header, tuple(rows))


def controlled_cells(analysis: Analysis) -> Iterator[str]:
    """The length-controlled difference and interval for each row of the comparison table, in its order."""
    for opponent in analysis.opponents:
        for c in analysis.robust.length[opponent]:
            known = math.isfinite(c.average_interval[0])
            yield words.effect(c.average.value, c.average_interval) if known else "–"


# ---------------------------------------------------------------------------------------------------- best-of-n


def best_of_n(analysis: Analysis) -> Table | None:
    """Best-of-n of the SFT policy for each n, and each arm against it at equal KL."""
    points = analysis.reference
    if not len(points):
        return None
    notes = (
        "The SFT policy answers n times and the proxy picks: no training. KL is the analytic ln n − (n − 1)/n, an "
        "upper bound. Win rates are averages over all subsets of n of the sampled responses, mean over seeds, against "
        f"{words.opponent(analysis.opponent)}.",
        *say_nearness(analysis),
        *say_unbeaten(analysis),
    )
    rows = []
    for p in points.to_dict("records"):
        golden = Estimate(p["win_rate"], p["win_rate_se"], int(p["seeds"]))
        proxy = Estimate(p["proxy_win_rate"], p["proxy_win_rate_se"], int(p["seeds"]))
        rows.append(
            (f"best of {p['n']:.0f}", words.kl(p["kl_nats"]), words.pm(golden), words.pm(proxy), str(int(p["seeds"])))
        )
    header = ("", "KL, nats", "win rate ± se", "proxy's win rate ± se", "seeds")
    more = tuple(
        (
            f"{c.a} − {c.b}, {words.SHORT.get(c.opponent, c.opponent)}",
            f"{words.kl(c.common[0])} to {words.kl(c.common[1])}" if c.defined else "none in common",
            difference(c) if c.defined else "–",
            words.span(c.average_interval) if c.defined else " ".join(c.warnings),
            str(len(c.seeds)),
        )
        for c in analysis.robust.against
    )
    more_title = "Arms minus best-of-n at equal KL (range, difference ± se, 95% interval, seeds)"
    return Table("best-of-n", "Best-of-n of the SFT policy", notes, header, tuple(rows), more_title, more)


def say_nearness(analysis: Analysis) -> list[str]:
    """A sentence on how far best-of-n moves the golden win rate per nat: the geometry of this task."""
    gain = analysis.robust.gain
    if gain is None:
        return []
    return [
        f"Against the SFT policy the largest n gains {words.pm(gain)} of golden win rate per nat: the less, the "
        "farther what is good lies from what the SFT policy writes (or the worse the proxy picks)."
    ]


def say_unbeaten(analysis: Analysis) -> list[str]:
    """A sentence if no arm is shown to beat best-of-n at equal KL against the main opponent; [] otherwise."""
    found = [c for c in analysis.robust.against if c.opponent == analysis.opponent and c.defined]
    if not found or any(side(c) == "above" for c in found):
        return []
    worse = [c.a for c in found if side(c) == "below"]
    low, high = min(c.common[0] for c in found), max(c.common[1] for c in found)
    tail = f" {', '.join(worse)} {'lies' if len(worse) == 1 else 'lie'} below it." if worse else ""
    return [
        "No arm is shown to beat best-of-n of the SFT policy, which needs no training, on average over the KL where "
        f"both exist ({words.kl(low)} to {words.kl(high)} nats; pooled frontiers, exploratory).{tail}"
    ]


# -------------------------------------------------------------------------------------------------------- power


def seeds_and_prompts(analysis: Analysis) -> Table | None:
    """How large a study would have to be to see a difference of a stated size."""
    s = analysis.robust.spread
    if s is None:
        return None
    a, b = analysis.pairs[0]
    intro = (
        f"From this study's variances of {a} − {b}, at the largest KL budget that is judged: seeds needed to find "
        "a difference with 80% power by the report's own rule. In brackets the number if the seeds differ as much as "
        "the upper 80% limit of what these few can tell (Browne 1995)."
    )
    if not math.isfinite(s.between):
        return Table("power", "What it would take", (intro, say_needed(s)), ("",), ())
    counts = sorted({max(s.prompts // 2, 2), s.prompts, 2 * s.prompts, 4 * s.prompts})
    header = ("difference to see", *(f"{p:,} prompts" for p in counts), f"power of this study, {words.seeds(s.seeds)}")
    rows = tuple(
        (
            f"{d:g}",
            *(f"{count_seeds(s, d, p)} ({count_seeds(s, d, p, True)})" for p in counts),
            f"{power_as_text(power(s, d, s.seeds, s.prompts))}",
        )
        for d in (SMALL, DETECT, 0.1)
    )
    return Table("power", "What it would take", (intro,), header, rows)


def difference(c: Comparison) -> str:
    """A comparison's average with its standard error."""
    return f"{words.number(c.average.value, 3, True)} ± {words.number(c.average.se)}"


#: heading -> the count that a judge keeps under that name
COUNTS = {
    "pairs": "pairs",
    "answers used": "answers",
    "refused": "refused",
    "cut off": "truncated",
    "unreadable": "unreadable",
    "orders disagree": "orders_disagree",
    "suspicious texts": "suspicious",
    "paid for": "asked",
    "tokens in": "tokens_in",
    "tokens out": "tokens_out",
}


NOTE = (
    "Summed over the study's finished steps. A refusal, an answer cut off and one that cannot be read are ties, as is "
    "a pair whose two orders disagree. What was answered before, for another step or another study on the same store, "
    "is used and not paid for again; the cost is by the prices that the study names."
)


def judge_answers(analysis: Analysis) -> list[Table]:
    """The table, where a judge counted what it was asked; else nothing."""
    rows = tuple(row(key, counts) for key, counts in analysis.asked.items() if isinstance(counts, Mapping))
    header = ("judge", *COUNTS, "cost")
    return [Table("judges", "What the judges were asked and cost", (NOTE,), header, rows)] if rows else []


def row(key: str, counts: Mapping[str, Any]) -> Row:
    """What one judge was asked and cost, as the cells of a table."""

    def count(name: str) -> str:
        value = counts.get(name, 0)
        return f"{value:,.0f}" if isinstance(value, int | float) else "–"

    cost = counts.get("cost", 0.0)
    return (key, *map(count, COUNTS.values()), f"{cost:,.4g}" if isinstance(cost, int | float) else "–")
