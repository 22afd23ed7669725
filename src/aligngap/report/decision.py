"""The recommendation as a person reads it: a sentence with its reason, what it rests on, a table of the options."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aligngap.hypotheses.decision import OFFLINE, ONLINE, RULE, SEMI, WEAK, Decision, Option
from aligngap.report import words

HEADER = ("option", "online − it at this KL", "share of online's gain kept", "fresh responses", "tokens", "seconds")
#: the classes of the page's first line
STATES = {OFFLINE: "undecided", ONLINE: "ahead", SEMI: "ahead"}


@dataclass(frozen=True)
class Cost:
    """What one arm generated for training, mean over its runs; seconds (writing and labelling) nan if not recorded."""

    responses: float
    tokens: float
    seconds: float


def costs_of(rows: Mapping[str, Any]) -> dict[str, Cost]:
    """Per arm, from the `costs` that `collect` writes into the provenance; an entry of another shape is left out."""
    found: dict[str, list[tuple[float, float, float]]] = {}
    for row in rows.values():
        if isinstance(row, Mapping) and {"arm", "responses", "tokens", "seconds"} <= set(row):
            values = (row["responses"], row["tokens"], row["seconds"])
            found.setdefault(str(row["arm"]), []).append(
                tuple(math.nan if v is None else float(v) for v in values)  # type: ignore[arg-type]
            )
    return {arm: Cost(*(sum(column) / len(runs) for column in zip(*runs, strict=True))) for arm, runs in found.items()}


def cheaper_arms(arms: Mapping[str, Any]) -> list[str]:
    """The semi-online arms of a study, the one with the most steps between syncs first."""
    every = {name: int(arm.get("sync_every", 1)) for name, arm in arms.items() if isinstance(arm, Mapping)}
    return sorted((name for name, sync in every.items() if sync > 1), key=lambda name: -every[name])


def sentence(d: Decision, costs: Mapping[str, Cost]) -> str:
    """The recommendation with its reason."""
    gap = d.gap
    gain = (
        f"{words.number(gap.value.value, 3, True)} in win rate at {words.nats(gap.kl)} of KL (95% interval "
        f"{words.span(gap.interval)}; {words.seeds(gap.seeds)})"
    )
    if d.outcome == OFFLINE:
        return (
            f"Offline is enough: {gap.a} gains {gain}, and a gain of {d.margin:g} or more over {gap.b} is excluded (it "
            f"lies below {words.number(gap.upper, 3, True)} with 95% confidence)"
            f"{', so ' + say_saved(costs[gap.a]) if gap.a in costs else ''}."
        )
    if d.outcome == SEMI:
        o = next(o for o in d.options if o.arm == d.choose)
        return (
            f"Train {o.arm}: {gap.a} gains {gain} over {gap.b}, and {o.arm} keeps {share(o)} of it, less than "
            f"{d.margin:g} behind {gap.a} ({words.span(o.interval)}) with fewer syncs of the policy that writes."
        )
    if d.outcome == ONLINE:
        rest = f", and no cheaper option is shown to lie less than {d.margin:g} behind" if d.options else ""
        spent = f"; it takes {say_amount(costs[gap.a])}" if gap.a in costs else ""
        return f"Train {gap.a}: it gains {gain} over {gap.b}{rest}{spent}."
    if d.doubt == "judge":
        return (
            f"Cannot tell yet: golden, which stands in for your raters, agrees with {percent(d.agreement.value)} of "
            f"their held-out labels ({interval_percent(d.agreement_interval)}), which is not told from chance: needs "
            "more labelled pairs, a longer training of the judges, or a stronger model for them."
        )
    if d.doubt == "undefined":
        return f"Cannot tell yet: {gap.a} and {gap.b} are not comparable at equal KL. {gap.why}".rstrip()
    if d.doubt == "one seed":
        return (
            f"Cannot tell yet: one seed does not show how much another training run would differ, so run at least two "
            f"(--seeds 3); so far {gap.a} gains {gain}."
        )
    if d.doubt == "reach":
        short = gap.b if gap.beyond == gap.a else gap.a
        return (
            f"Cannot tell yet: the best checkpoint is {gap.beyond}'s, at {words.nats(gap.best)}, and {short} ended at "
            f"{words.nats(gap.kl)}: train {short} longer, or name the KL that you will deploy (--kl); so far {gap.a} "
            f"gains {gain}."
        )
    return f"Cannot tell yet: needs {more(d)}; so far {gap.a} gains {gain}, and the margin is {d.margin:g}."


def more(d: Decision) -> str:
    """How many more prompts or seeds."""
    need = d.need
    if need is None or (need.prompts is None and need.seeds is None):
        what = "prompts and seeds" if need is None else "a change of plan: no number of prompts or up to 200 seeds"
        return f"more {what}" if need is None else f"{what} would tell"
    ways = []
    if need.prompts is not None:
        ways.append(f"about {need.prompts:,} more prompts to measure on")
    if need.seeds is not None:
        ways.append(f"about {need.seeds} more seed{'s' if need.seeds > 1 else ''}")
    return " or ".join(ways)


def next_command(d: Decision, command: Sequence[str], out: str, study: Mapping[str, Any]) -> tuple[str, list[str]]:
    """What to run after a decision: what it is for, and its words.

    Where an arm is recommended, that is `pick`, which names the checkpoint; else it is `command`, that of the decision,
    with what it lacked. `study` is the study as resolved, of which numbers of steps are taken.
    """
    if d.choose:
        pick = ["aligngap", "pick", out, "--kl", f"{d.gap.kl:.3g}", "--policy", d.choose]
        return f"the checkpoint of {d.choose} to deploy at {words.nats(d.gap.kl)}", pick
    need, judges = d.need, [name for name in ("golden", "proxy") if read_at(study, f"{name}.optimization.steps")]
    why, sets = "runs twice as long", [double(study, "recipe.optimization.steps")]
    if d.doubt == "judge" and judges:
        why, sets = "judges that learn twice as long", [double(study, f"{name}.optimization.steps") for name in judges]
    elif d.gap.remedy:
        why, sets = "arms that move", list(d.gap.remedy)
    elif d.doubt == "one seed":
        why, sets = "training noise, which takes seeds", ["seeds=3"]
    elif need is not None and need.seeds is not None:
        why, sets = f"{need.seeds} more seeds", [f"seeds={d.gap.seeds + need.seeds}"]
    elif need is not None and need.prompts is not None and d.gap.spread is not None:
        prompts = d.gap.spread.prompts + need.prompts
        why, sets = "more prompts to measure on, if your file has them", [f"measurement.prompts={prompts}"]
    return why, [*command, *(word for setting in sets for word in ("--set", setting))]


def read_at(study: Mapping[str, Any], key: str) -> Any:
    """The value that a resolved study has at a dotted key; None where it has none."""
    value: Any = study
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def double(study: Mapping[str, Any], key: str) -> str:
    """`key=value` with twice the value that a resolved study has at a dotted key."""
    return f"{key}={2 * int(read_at(study, key))}"


def details(d: Decision) -> list[str]:
    """What stands under the sentence: what golden is worth, and what power the number of prompts or seeds is for."""
    out = []
    if not math.isfinite(d.agreement.value):
        out.append("How often golden agrees with your labels was not recorded.")
    else:
        said = (
            f"Golden, which stands in for your raters, agrees with {percent(d.agreement.value)} of their labels on "
            f"prompts it has not seen ({interval_percent(d.agreement_interval)})."
        )
        weak = is_weak(d.agreement.value, d.agreement_interval)
        out.append(
            said + (" That is near chance, or not told from it: what golden prefers may not be theirs." if weak else "")
        )
    if d.need is not None:
        out.append(f"Such a study would see a difference of {d.need.difference:g} with 80% power.")
    if math.isfinite(d.gap.best):
        out.append(
            "No KL was given (--kl). The best checkpoint of either arm, chosen on spent seeds or for each seed on the "
            f"others, lies at {words.nats(d.gap.best)}"
            + (
                f"; the other arm ended before that, so {words.nats(d.gap.kl)} is where they are compared."
                if d.gap.beyond
                else ", and it is decided there."
            )
        )
    return out


def is_weak(agreement: float, interval: tuple[float, float]) -> bool:
    """Whether golden agrees with labels so seldom that it is near chance, or not told from it."""
    return agreement < WEAK or not interval[0] > 0.5


def rows(d: Decision, costs: Mapping[str, Cost]) -> list[tuple[str, ...]]:
    """Online, the cheaper arms and offline, each with what it keeps and what it generated per run."""
    gap = d.gap
    offline = words.effect(gap.value.value, gap.interval)
    out: list[tuple[str, ...]] = [(gap.a, "–", "100%", *cost_cells(costs.get(gap.a)))]
    for o in reversed(d.options):
        behind = words.effect(o.behind.value, o.interval)
        out.append((o.arm, behind if math.isfinite(o.behind.value) else "–", share(o), *cost_cells(costs.get(o.arm))))
    out.append((gap.b, offline if gap.defined else "–", "0%", *cost_cells(costs.get(gap.b))))
    return out


def notes(d: Decision) -> list[str]:
    """The rule and how to read the table."""
    return [
        f"Margin {d.margin:g}. {RULE}",
        "Fresh responses, the tokens of those that were trained on, and the seconds of writing and labelling are means "
        "over an arm's runs, as measured on the machine that ran them. A share is undefined where the gap is not told "
        "from 0.",
    ]


def share(o: Option) -> str:
    """The share of online's gain that an option keeps, with its interval."""
    if not math.isfinite(o.kept.value):
        return "undefined"
    ends = (percent(x) if math.isfinite(x) else "unbounded" for x in o.kept_interval)
    return f"{percent(o.kept.value)} ({' to '.join(ends)})"


def cost_cells(c: Cost | None) -> tuple[str, str, str]:
    """Responses, tokens and seconds that an option generated, as cells of a table."""
    if c is None:
        return "–", "–", "–"
    return f"{c.responses:,.0f}", f"{c.tokens:,.0f}", f"{c.seconds:,.1f}" if math.isfinite(c.seconds) else "–"


def say_amount(c: Cost) -> str:
    """What an option generates per run, in words."""
    seconds = f", {c.seconds:,.0f} seconds" if math.isfinite(c.seconds) else ""
    return f"{c.responses:,.0f} fresh responses a run ({c.tokens:,.0f} tokens{seconds})"


def say_saved(c: Cost) -> str:
    """What is saved where online is not needed, in words."""
    return f"online's {say_amount(c)} are saved"


def percent(x: float) -> str:
    """A share as a percentage."""
    return f"{words.number(100 * x, 0)}%"


def interval_percent(interval: tuple[float, float]) -> str:
    """An interval of shares as percentages, cut to 0 and 100."""
    return f"95% interval {percent(max(interval[0], 0.0))} to {percent(min(interval[1], 1.0))}"


def state(d: Decision) -> str:
    """The outcome of a decision in a word or two."""
    return STATES.get(d.outcome, "undefined")


__all__: Sequence[str] = [
    "HEADER", "Cost", "cheaper_arms", "costs_of", "details", "next_command", "notes", "rows", "sentence", "state",
]  # fmt: skip
