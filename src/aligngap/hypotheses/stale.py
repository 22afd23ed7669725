"""How old is too old: the staleness of an asynchronous trainer, at equal KL and at equal wall clock.

Arms named `age-K` train on pairs that the policy wrote exactly K steps ago, `buffer-K` on pairs drawn from the last K
batches, `replay-K` likewise with one new batch every four steps. Noukhovitch et al. 2024 (arXiv 2410.18252) find one
win-rate-KL curve however stale, and a slower run; Zheng et al. 2025 (arXiv 2510.01161) that data 256 updates old are as
good as fresh ones under a trust region that fits, and not without; Arnal et al. 2026 (arXiv 2604.08706) that replay
costs a little a step and saves compute. The wall clock is a model (`stats.wall_clock`) whose numbers are inputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from aligngap.hypotheses.base import Dial, Figure, Hypothesis, Point
from aligngap.hypotheses.rules import AT_BUDGETS, BY, MARGIN, Rule, ahead, contrast, same
from aligngap.hypotheses.verdicts import (
    CONTRADICTED,
    INCONCLUSIVE,
    SUPPORTED,
    Ends,
    arms_difference,
    decide,
    no_values,
    one_seed,
    p_value,
)
from aligngap.hypotheses.view import Contrast, View, under
from aligngap.stats.axes import say_nats
from aligngap.stats.wall_clock import System, steps_by
from aligngap.types import Verdict

CLIPPED, WEIGHTED = "clipped", "weighted"
TRUTH = "oracle_win"
#: systems in which wall clock is compared: writing takes as long as training, or four times as long
SYSTEMS = (System("writing takes as long as training", 1.0, 1.0), System("writing takes four times as long", 4.0, 1.0))
REPLAY_EVERY = 4  # steps of `replay-16` to a new batch
STEPS_TEXT = "age of the pairs, in optimiser steps"
OLD = (
    f"age-K - online {AT_BUDGETS}, for each K, from the oldest on. An age is too old while an interval lies below 0 "
    "and none above; the first that is not ends the search, so that looking at many ages finds no more by chance than "
    f"looking at one. Supported if some age is too old; contradicted if the oldest is within {MARGIN} of online at "
    "every budget by two one-sided tests at 5%; else inconclusive."
)


def by_age(view: View, variant: str = "", score: str = "win") -> dict[int, Contrast]:
    """Each age that was run under a variant, the youngest first, and its difference to online as it is."""
    ages = {age: under(arm, variant) for arm, age in view.numbered("age-").items()}
    return {age: view.contrast({arm: 1.0, "online": -1.0}, score) for age, arm in ages.items() if arm in view.arms}


def falls(found: Contrast) -> bool:
    """Whether an arm lies surely below online at some budget and surely above it at none."""
    judged = found.found.judged
    return any(b.interval[1] < 0 for b in judged) and not any(b.interval[0] > 0 for b in judged)


def alike(found: Contrast) -> bool:
    """Whether an arm is within the margin of online at every budget."""
    judged = found.found.judged
    return bool(judged) and all(b.equivalence[0] > -MARGIN and b.equivalence[1] < MARGIN for b in judged)


def too_old(view: View, rule: Rule) -> Verdict:
    """From which age on pairs cost win rate at equal KL, in a sentence for a team with an asynchronous trainer."""
    found = {age: c for age, c in by_age(view).items() if c.defined}
    if not found:
        return rule.leave_undefined("No age can be compared with online at equal KL.")
    old: list[int] = []
    for age in sorted(found, reverse=True):
        if not falls(found[age]):
            break
        old.append(age)
    oldest, fine = max(found), [age for age in found if alike(found[age])]
    outcome = SUPPORTED if old else CONTRADICTED if oldest in fine else INCONCLUSIVE
    age = min(old) if old else oldest
    judged = found[age].found.judged
    at = min(judged, key=lambda b: b.interval[1]) if old else judged[-1]  # where it is surest that something is lost
    low, high = at.interval
    said = [
        f"From {age} steps on pairs are too old here: at {say_nats(at.kl)} {-at.mean.value:.3f} of win rate lost "
        f"({-high:.3f} to {-low:.3f})."
        if old
        else f"No age up to {oldest} steps is told to be too old."
    ]
    said += by_truth(view, age, at.kl)
    young = [age for age in fine if not old or age < min(old)]
    said.append(
        f"Up to {max(young)} steps they are as good as fresh ones, to within {MARGIN}." if young
        else f"No age is told to be as good as fresh, to within {MARGIN}."
    )  # fmt: skip
    bought = view.contrast({under(f"age-{oldest}", CLIPPED): 1.0, f"age-{oldest}": -1.0})
    if under(f"age-{oldest}", CLIPPED) in view.arms and bought.defined:
        low, high = bought.interval
        where = f" at {say_nats(bought.kl)}"
        said.append(f"At age {oldest} clipping buys {bought.effect.value:+.3f}{where} ({low:+.3f} to {high:+.3f}).")
    reason = " ".join(said) + one_seed(len(found[age].seeds))
    return rule.found(outcome, at.mean, at.interval, reason, p=found[age].found.p if old else float("nan"))


def by_truth(view: View, age: int, kl: float) -> list[str]:
    """What the true preference says of the difference that the judge has told; nothing where there is none."""
    if not view.records["oracle_win_rate"].notna().any():
        return []
    found = view.contrast({f"age-{age}": 1.0, "online": -1.0}, TRUTH)
    return [
        f"By the true preference, which no arm saw, the difference there is {b.mean.value:+.3f} ({b.interval[0]:+.3f} "
        f"to {b.interval[1]:+.3f})."
        for b in found.found.judged
        if b.kl == kl
    ]


def frontier(view: View, score: str = "win") -> Dial | None:
    """Each arm's difference to online at one KL, against the age of its pairs.

    The KL is the largest budget at which every age, as it is, can be judged. The intervals are those that cover all
    judged budgets of an arm at once.
    """
    plain = [c for c in by_age(view, "", score).values() if c.defined]
    shared = set.intersection(*({b.kl for b in c.found.judged} for c in plain)) if plain else set()
    if not shared:
        return None
    kl = max(shared)
    series: dict[str, tuple[Point, ...]] = {}
    for name, variant in (("as it is", ""), ("clipped", CLIPPED), ("weighted", WEIGHTED)):
        against = by_age(view, variant, score)
        series[name] = tuple(Point(float(age), *b, f"age-{age}") for age, c in against.items() for b in _at(c, kl))
    for name, prefix in (("buffer, mean age", "buffer-"), ("replay, mean age", "replay-")):
        ages = {arm: mean_age(view, arm) for arm in view.numbered(prefix)}
        beside = {arm: view.contrast({arm: 1.0, "online": -1.0}, score) for arm, age in ages.items() if age > 0}
        series[name] = tuple(Point(ages[arm], *b, arm) for arm, c in beside.items() for b in _at(c, kl))
    y = f"difference to online{BY[score]} at {say_nats(kl)}"
    return Dial(STEPS_TEXT, y, {n: p for n, p in series.items() if p}, log_x=True, reference=0.0)


def _at(found: Contrast, kl: float) -> list[tuple[float, float, float]]:
    """The difference at a KL with its interval; nothing where it is not judged."""
    return [(b.mean.value, *b.interval) for b in found.found.judged if b.kl == kl]


def frontier_by_truth(view: View) -> Dial | None:
    """The same figure by the true preference; None where the records have none."""
    return frontier(view, TRUTH) if view.records["oracle_win_rate"].notna().any() else None


def mean_age(view: View, arm: str) -> float:
    """The mean age of an arm's pairs at its last checkpoint; nan where the records do not say."""
    rows = view.records[(view.records["arm"] == arm) & (view.records["step"] > 0)].sort_values("step")
    return float(rows.drop_duplicates("run", keep="last")["age"].mean()) if len(rows) else float("nan")


def at_step(view: View, arm: str, step: float) -> Ends:
    """Per seed an arm's win rate and its error at a step, between two checkpoints in a straight line over log step."""
    rows = view.records[(view.records["arm"] == arm) & (view.records["step"] > 0)]
    out: Ends = {}
    for seed, mine in rows[~rows["seed"].isin(view.spent)].groupby("seed"):
        each = mine.groupby("step")[["win_rate", "win_rate_se"]].mean()
        steps = each.index.to_numpy(np.float64)
        if len(steps) and steps[0] <= step <= steps[-1]:
            value, se = (float(np.interp(np.log(step), np.log(steps), each[c].to_numpy(np.float64))) for c in each)
            out[int(str(seed))] = (value, se)
    return out


def clocked(view: View, arm: str, system: System) -> tuple[Ends, Ends]:
    """An arm's win rates at its end, and online's at the step that it has reached by then in a system; per seed."""
    last = view.records["step"][view.records["arm"] == arm].max()
    online = view.records["step"][view.records["arm"] == "online"].max()
    age = view.numbered("age-").get(arm, 1)
    time = system.ends(int(last), age, REPLAY_EVERY if arm.startswith("replay-") else 1)[-1]
    return at_step(view, arm, float(last)), at_step(view, "online", steps_by(system.ends(int(online), 0), time))


def at_equal_time(view: View) -> Dial | None:
    """Each arm's difference to online when both have taken the same time, against the age of its pairs."""
    series = {}
    for system in SYSTEMS:
        points = []
        for arm, age in (*view.numbered("age-").items(), *((a, mean_age(view, a)) for a in view.numbered("replay-"))):
            found = arms_difference(*clocked(view, arm, system)) if "online" in view.arms and age > 0 else None
            if found is not None:
                points.append(Point(float(age), float(found.value[0]), *found.interval(), arm))
        if points:
            series[system.name] = tuple(sorted(points, key=lambda p: p.x))
    return Dial(STEPS_TEXT, "difference to online at equal time", series, log_x=True, reference=0.0) if series else None


def sooner(name: str, arm: str, system: System, claim: str) -> Rule:
    """The rule that asks whether an arm is ahead of online when both have taken the same time."""
    text = (
        f"Win rate of {arm} at its end minus online's at the step that online has reached by then, if writing a batch "
        f"takes {system.write:g} and training on it {system.train:g}: online does one after the other, {arm} both at "
        "once. Between checkpoints in a straight line over log step. Supported if the 95% two-level interval lies "
        "above 0; contradicted if it lies below 0; else inconclusive."
    )

    def judge(view: View, rule: Rule) -> Verdict:
        ends = clocked(view, arm, system)
        found = arms_difference(*ends)
        if found is None:
            return rule.leave_undefined(
                no_values("win rate at that time", dict(zip((arm, "online"), ends, strict=True)))
            )
        means = [float(np.mean([v for v, _ in e.values()])) for e in ends]
        reason = (
            f"If writing a batch takes {system.write:g} and training on it {system.train:g}, {arm}, which does both at "
            f"once, is at {means[0]:.3f} at its end, and online at {means[1]:.3f} by then." + one_seed(found.n)
        )
        interval = found.interval()
        return rule.found(decide(interval), found.estimate(f"{arm} - online"), interval, reason, p=p_value(found))

    return Rule(name, claim, text, (arm, "online"), judge)


def _bought(variant: str, ages: Sequence[int]) -> tuple[Rule, ...]:
    return tuple(
        contrast(
            f"{variant} at {age}", {under(f"age-{age}", variant): 1.0, f"age-{age}": -1.0},
            f"what {variant} pairs of age {age} gain on the same as they are",
        )
        for age in ages
    )  # fmt: skip


STALE = Hypothesis(
    name="stale",
    question="How old may the pairs be before the win rate at equal KL falls, and what does clipping buy?",
    claim="Stale data are as good as fresh ones under a trust region that fits (arXiv 2510.01161), or up to some age.",
    study="stale",
    rules=(
        Rule("too old", "Beyond some age they cost (arXiv 2510.01161).", OLD, ("online", "age-256"), too_old),
        same("one step", "age-1", "online", "One step off-policy costs nothing (arXiv 2410.18252)."),
        same("sixteen steps", "age-16", "online", "One frontier for 1 to 64 batches a round (arXiv 2410.18252)."),
        ahead("oldest", "online", "age-256", "Without a trust region very old data cost (arXiv 2510.01161)."),
        same(
            "oldest clipped", under("age-256", CLIPPED), under("online", CLIPPED),
            "Under a trust region data 256 updates old match fresh ones (arXiv 2510.01161).",
        ),
        *_bought(CLIPPED, (16, 64, 256)),
        *_bought(WEIGHTED, (64, 256)),
        same("buffer", "buffer-16", "online", "A buffer that fits costs little a step (arXiv 2604.08706)."),
        ahead("large buffer", "online", "buffer-64", "Larger buffers learn more slowly (arXiv 2604.08706)."),
        *(sooner(f"sooner, {s.write:g} to {s.train:g}", "age-1", s, "Side by side is sooner (arXiv 2410.18252).")
          for s in SYSTEMS),
        sooner("replay sooner", "replay-16", SYSTEMS[1], "Replay saves compute (arXiv 2604.08706)."),
    ),
    dial=frontier,
    shows=("age-4", "age-64"),
    more=(
        Figure("truth", "By the true preference, which no arm saw", frontier_by_truth),
        Figure("clock", "At equal wall clock, by a model of the system", at_equal_time),
    ),
    leads=("too old", *(f"sooner, {s.write:g} to {s.train:g}" for s in SYSTEMS)),
)  # fmt: skip
