"""Prompts that the judges learn from and prompts that policies learn from: never the same ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import TINY_STUDY
from hypothesis import given, settings
from hypothesis import strategies as st

from aligngap.execute.worker import make
from aligngap.pipeline.align import Align
from aligngap.pipeline.context import Context
from aligngap.pipeline.data import Data, kept_for_judges
from aligngap.pipeline.judges import FitJudge, Relabel
from aligngap.pipeline.plan import Plan, expand
from aligngap.pipeline.sft import Sft
from aligngap.storage.store import Store
from aligngap.streams import Stopwatch
from aligngap.study.load import validate
from aligngap.tasks._common import prompt_id
from aligngap.tasks._dialogue import conversation_keys
from aligngap.types import AligngapError, Pair


def planned(**more: Any) -> Plan:
    return expand(validate(yaml.safe_load(TINY_STUDY) | more, "tiny"))


def of_kind(plan: Plan, kind: type) -> list[Any]:
    return [s for s in plan.steps() if isinstance(s, kind)]


@settings(max_examples=20)
@given(st.lists(st.text("abAB \n", max_size=4), min_size=2, max_size=60), st.floats(0.05, 0.95), st.integers(0, 5))
def test_the_share_is_exact_by_conversation_and_a_function_of_the_seed(
    texts: list[str], share: float, seed: int
) -> None:
    prompts = {prompt_id(text): text for text in texts}
    kept = kept_for_judges(prompts, share, seed)
    key = dict(zip(prompts, conversation_keys(list(prompts.values())), strict=True))
    assert len({key[i] for i in kept}) == max(1, round(share * len(set(key.values()))))
    assert {key[i] for i in kept}.isdisjoint(key[i] for i in prompts if i not in kept)
    assert kept == kept_for_judges(dict(reversed(prompts.items())), share, seed)


def test_without_a_share_every_key_is_what_it_was() -> None:
    plain, zero = planned(), planned(judge_share=0.0)
    assert [s.name for s in plain.steps()] == [s.name for s in zero.steps()]
    assert "judge_share" not in of_kind(plain, Data)[0].configuration
    assert all("split" not in s.configuration for s in plain.steps() if isinstance(s, Sft | FitJudge))


def test_no_prompt_is_in_two_parts_and_none_is_lost(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.prepare()
    ctx = Context(store)
    parts: dict[float, dict[str, set[str]]] = {}
    for share in (0.0, 0.4):
        data = of_kind(planned(judge_share=share), Data)[0]
        make(data, ctx)
        parts[share] = {split: {p.prompt.id for p in data.pairs(ctx, split)} for split in data.splits}
    apart = parts[0.4]
    assert set(apart) == {"train", "judge", "test"}
    for one, other in (("train", "judge"), ("train", "test"), ("judge", "test")):
        assert not apart[one] & apart[other]
    assert apart["train"] | apart["judge"] == parts[0.0]["train"]
    assert len(apart["judge"]) == round(0.4 * len(parts[0.0]["train"]))


def test_judges_read_their_own_part_and_policies_the_other() -> None:
    """By what each step asks the data for; a judge's backbone included."""
    plan = planned(judge_share=0.4)
    for judge in of_kind(plan, FitJudge):
        assert judge.split == "judge"
        assert judge.backbone.split == "judge"
    for run in of_kind(plan, Align):
        assert run.sft.split == "train"
    assert {s.split for s in of_kind(plan, Sft)} == {"train", "judge"}
    assert all(r.data.splits == ("train", "judge", "test") for r in of_kind(plan, Relabel))


def test_a_policy_as_it_is_is_one_artifact_for_policy_and_judges() -> None:
    plan = planned(judge_share=0.4, sft={"steps": 0})
    assert len(of_kind(plan, Sft)) == 1


@pytest.mark.parametrize("section", ["recipe", "golden", "proxy"])
def test_only_sft_may_take_no_steps(section: str) -> None:
    raw = yaml.safe_load(TINY_STUDY)
    raw[section]["optimization"]["steps"] = 0
    with pytest.raises(AligngapError, match=r"steps.*at least 1"):
        validate(raw, "tiny")


class Counting:
    """A stream whose state is a counter."""

    responses_sampled = 7

    def __init__(self) -> None:
        self.drawn = 0

    def draw(self, n: int, sampler: Any) -> list[Pair]:
        self.drawn += n
        return []

    def state_dict(self) -> dict[str, Any]:
        return {"drawn": self.drawn}

    def load_state_dict(self, state: Any) -> None:
        assert set(state) == {"drawn"}
        self.drawn = state["drawn"]


def test_a_stopwatch_changes_nothing_and_goes_on_counting() -> None:
    watch = Stopwatch(Counting())
    watch.draw(3, None)  # type: ignore[arg-type]
    assert watch.responses_sampled == 7
    state = watch.state_dict()
    assert state["drawn"] == 3
    assert state["draw_seconds"] == watch.seconds > 0
    again = Stopwatch(Counting())
    again.load_state_dict(state)
    again.draw(2, None)  # type: ignore[arg-type]
    assert again.state_dict()["drawn"] == 5
    assert again.seconds > state["draw_seconds"]
    again.load_state_dict({"drawn": 1})  # a state saved before draws were timed
    assert again.seconds == 0.0
