"""The learning rate: is the lead of online at equal KL the same at a small and at a large step size?

arXiv 2405.08448 compares arms at the learning rate that was best for each. At equal KL a large step size may hurt one
arm and not the other, which would make the gap one of optimisers. Both arms of a study run the same learning rates;
each rule reads the largest or the smallest of them, or the difference of the two leads, within a seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from aligngap.hypotheses.base import Hypothesis
from aligngap.hypotheses.rules import BY, SIGN, Rule, judge_sign
from aligngap.hypotheses.view import Contrast, View
from aligngap.stats.budgets import at_budgets
from aligngap.stats.clouds import Clouds, split_by_setting
from aligngap.types import Verdict

SETTING = "learning_rate"
AT_RATES = (
    "at the KL budgets that every seed reached in both arms at the rates named, within a seed and the rest of the "
    "configuration (t intervals over seeds, 95% for all budgets at once)"
)


def _judge(view: View, rule: Rule, score: str, rates: Mapping[str, float]) -> Verdict:
    """The lead of online at the `large` rate and at the `small` one, each with its weight."""
    by_rate = list(split_by_setting(view.clouds(score), SETTING).items())
    if len(by_rate) < 2:
        return rule.leave_undefined("The arms ran fewer than two learning rates.")
    ends = {"large": by_rate[-1], "small": by_rate[0]}
    items, weights, said = [], {}, []
    for end, sign in rates.items():
        value, clouds = ends[end]
        for arm, side in ((view.online, 1.0), (view.offline, -1.0)):
            name = f"{arm} at {SETTING}={value:g}"
            items += [replace(c, arm=name) for c in clouds.arm(arm)]
            weights[name] = sign * side
        said.append(f"{SETTING}={value:g}")
    found = at_budgets(Clouds(tuple(items)), weights, view.budgets, spent=view.spent)
    lead = f"{view.online} − {view.offline}"
    what = f"{lead} at {said[0]}" + (f", minus that at {said[1]}," if len(said) > 1 else "")
    return judge_sign(view, rule, Contrast(found), what)


def _has_rates(view: View) -> bool:
    """Whether both compared arms ran more than one learning rate."""
    rows = view.records[view.records["step"] > 0]
    return all(rows.loc[rows["arm"] == arm, SETTING].nunique() > 1 for arm in (view.online, view.offline))


def _rule(name: str, text: str, rates: Mapping[str, float], score: str = "win") -> Rule:
    told = f"{text}{BY[score]} {AT_RATES}. {SIGN}"
    column = "" if score == "win" else "oracle_win_rate"
    return Rule(name, "", told, (), lambda view, rule: _judge(view, rule, score, rates), column)


APART, LARGE, SMALL = {"large": 1.0, "small": -1.0}, {"large": 1.0}, {"small": 1.0}

STEP_SIZE = Hypothesis(
    name="step-size",
    question="Is online's lead at equal KL the same at a small and at a large learning rate?",
    claim="Not tested: each arm at the learning rate that was best for it (section 4.1).",
    study="long",
    applies=_has_rates,
    rules=(
        _rule("rate", "Online - offline at the largest learning rate minus the same at the smallest", APART),
        _rule(
            "rate truth", "Online - offline at the largest learning rate minus the same at the smallest", APART,
            "oracle_win",
        ),
        _rule("large rate", "Online - offline at the largest learning rate", LARGE),
        _rule("large rate truth", "Online - offline at the largest learning rate", LARGE, "oracle_win"),
        _rule("small rate", "Online - offline at the smallest learning rate", SMALL),
        _rule("small rate truth", "Online - offline at the smallest learning rate", SMALL, "oracle_win"),
    ),
)  # fmt: skip
