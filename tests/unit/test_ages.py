"""How old a pair is when it is trained on, against schedules written by hand; and arms that cannot be what they say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import TINY_STUDY, pair, prompt, response
from hypothesis import given
from hypothesis import strategies as st
from test_streams import PAIRS, PROMPTS, Writer, ranks

from aligngap.streams import Buffer, Dataset, Mixture, OnPolicy, Retrained, standardise
from aligngap.study.load import validate
from aligngap.types import AligngapError, Judge, Pair, Prompt, Response, step_of


def ages(stream: Any, steps: int, n: int = 2, writer: Any = None) -> list[list[int]]:
    """The ages of the pairs of each step, in the order served."""
    writer, out = writer or Writer(), []
    for step in range(steps):
        writer.step = step
        out.append([step - (p.written_at or 0) for p in stream.draw(n, writer)])
    return out


@pytest.mark.parametrize(
    ("key", "step"),
    [("online-0@step40", 40), ("a@step0", 0), ("data", None), ("a@step1 vs b@step2", None), ("sft vs a@step8", None),
     ("a@step", None), ("@step3", None)],
)  # fmt: skip
def test_the_name_of_some_weights_says_their_step(key: str, step: int | None) -> None:
    assert step_of(key) == step


@given(st.integers(0, 6), st.integers(1, 5), st.integers(1, 20))
def test_a_lag_is_exact_and_the_batches_are_onlines(lag: int, batch: int, steps: int) -> None:
    writer = Writer()
    stream = OnPolicy(PROMPTS, ranks(), seed=0, lag=lag)
    assert ages(stream, steps, batch, writer) == [[min(step, lag)] * batch for step in range(steps)]
    online = Writer()
    ages(OnPolicy(PROMPTS, ranks(), seed=0), steps, batch, online)
    assert [seed for *_, seed in writer.calls][:steps] == [seed for *_, seed in online.calls]
    assert stream.responses_sampled == 2 * batch * (steps + lag)


class Lengths:
    """A sampler whose responses to a prompt of one id k have k tokens."""

    def __init__(self) -> None:
        self.step = 0

    @property
    def key(self) -> str:
        return f"w@step{self.step}"

    def sample(self, prompts: Sequence[Prompt], n: int, seed: int) -> list[list[Response]]:
        return [[response([2 + i] * p.ids[0]) for i in range(n)] for p in prompts]


def test_pairs_in_flight_are_served_when_their_longer_response_is_finished() -> None:
    """Lengths 1, 3 and 5 at 2 tokens a step: ready 0, 1 and 2 steps after they were begun; two batches ahead.

    By hand: nine are begun at step 0, three of each, and one of each at every step after; three are served at each.
    Step 1 finds three of length 3 ready and serves them before the one of length 1 that it begins; step 2 serves that
    and two of the three of length 5, step 3 the third; from then on one of each is ready and a step late.
    """
    prompts = [prompt((k,), id=str(k)) for k in (1, 3, 5)]
    served: list[list[tuple[int, int]]] = []
    stream, writer = OnPolicy(prompts, ranks(), seed=0, lag=2, tokens_per_step=2), Lengths()
    for step in range(6):
        writer.step = step
        served.append([(step - (p.written_at or 0), len(p.chosen.ids)) for p in stream.draw(3, writer)])
    assert [sorted(batch) for batch in served] == [
        [(0, 1)] * 3, [(1, 3)] * 3, [(1, 1), (2, 5), (2, 5)], *[[(1, 1), (2, 3), (3, 5)]] * 3,
    ]  # fmt: skip


def test_what_is_older_than_the_limit_is_discarded_and_counted() -> None:
    """Blocks of four batches of which nothing older than one step is kept: the other two are discarded, at once."""
    stream = OnPolicy(PROMPTS, ranks(), seed=0, sync_every=4, drop_stale=1)
    assert ages(stream, 6) == [[0, 0], [1, 1]] * 3
    assert stream.dropped[0] == 2 * 2 * 2  # two batches of two pairs, at steps 2 and 4
    again = OnPolicy(PROMPTS, ranks(), seed=0, sync_every=4, drop_stale=1)
    again.load_state_dict(stream.state_dict())
    assert again.dropped == stream.dropped


def test_a_buffer_holds_the_last_batches_and_is_asked_on_schedule() -> None:
    writer = Writer()
    stream = Buffer(OnPolicy(PROMPTS, ranks(), seed=0), size=3, seed=0, every=2)
    held = []
    for step in range(9):
        writer.step = step
        drawn = stream.draw(4, writer)
        held.append([batch[0].written_at for batch in stream.batches])
        keys = [id(p) for batch in stream.batches for p in batch]
        assert len({id(p) for p in drawn}) == 4
        assert {id(p) for p in drawn} <= set(keys)
    assert held == [[0], [0], [0, 2], [0, 2], [0, 2, 4], [0, 2, 4], [2, 4, 6], [2, 4, 6], [4, 6, 8]]


def test_a_buffer_of_one_batch_is_online_and_a_frozen_one_stays() -> None:
    assert ages(Buffer(OnPolicy(PROMPTS, ranks(), seed=0), size=1, seed=0), 5) == [[0, 0]] * 5
    frozen = ages(Buffer(OnPolicy(PROMPTS, ranks(), seed=0), size=1, seed=0, until=2), 5)
    assert frozen == [[0, 0], [0, 0], [1, 1], [2, 2], [3, 3]]


def test_a_buffer_draws_by_age_as_it_says() -> None:
    """Ages 0, 1, 2 and 3 with one pair each: drawn in proportion to 1, 1/2, 1/3 and 1/4."""
    source = OnPolicy(PROMPTS, ranks(), seed=0)
    counts = np.zeros(4)
    for seed in range(3000):
        stream, writer = Buffer(source, size=4, seed=seed, pick="recent"), Writer()
        stream.batches = [[pair(PROMPTS[0], (4, 1), (5, 1), writer=f"w@step{k}")] for k in range(3)]
        writer.step = 3
        stream.draws = 0
        counts[3 - (stream.draw(1, writer)[0].written_at or 0)] += 1
    expected = np.array([1, 1 / 2, 1 / 3, 1 / 4])
    np.testing.assert_allclose(counts / 3000, expected / expected.sum(), atol=0.03)


def test_a_frozen_writer_writes_the_rest_at_once() -> None:
    writer = Writer()
    stream = OnPolicy(PROMPTS, ranks(), seed=0, freeze_writer_at=(2, 6))
    assert ages(stream, 6, writer=writer) == [[0, 0], [0, 0], [0, 0], [1, 1], [2, 2], [3, 3]]
    assert [step for step, *_ in writer.calls] == [0, 1, 2, 2, 2, 2]
    assert not stream.queue


def test_a_share_goes_in_a_straight_line() -> None:
    mixed = Mixture(Dataset(PAIRS, 0), Dataset(PAIRS, 1), share=0.2, seed=0, until=(1.0, 5))
    shares = []
    for _ in range(7):
        shares.append(mixed.share_now)
        mixed.draw(2, Writer())
    assert shares == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0])
    with pytest.raises(AligngapError, match="share"):
        Mixture(Dataset(PAIRS, 0), Dataset(PAIRS, 1), share=0.2, seed=0, until=(1.5, 5))


def test_a_judge_is_retrained_on_golden_labels_of_the_last_pairs_drawn() -> None:
    asked: list[list[Pair]] = []

    def refit(pairs: Sequence[Pair]) -> Judge:
        asked.append(list(pairs))
        return ranks()

    golden = ranks()
    stream = Retrained(OnPolicy(PROMPTS, ranks(), seed=0), golden, refit, every=2, pairs=3)
    drawn = [stream.draw(2, Writer()) for _ in range(5)]
    assert [len(pairs) for pairs in asked] == [3, 6]  # before the third and the fifth draw
    assert {p.key for p in asked[0]} <= {p.key for p in drawn[0] + drawn[1]}
    assert asked[1][:3] == asked[0]
    again = Retrained(OnPolicy(PROMPTS, ranks(), seed=0), golden, refit, every=2, pairs=3)
    again.load_state_dict(stream.state_dict())
    assert asked[2] == asked[1]  # the same judge, made anew from what the state holds
    assert again.state_dict() == stream.state_dict()


@given(st.integers(2, 6), st.integers(1, 4), st.integers(0, 9))
def test_advantages_are_standardised_in_each_group(n: int, groups: int, seed: int) -> None:
    scores = np.random.default_rng(seed).random((groups, n))
    found = standardise(scores)
    np.testing.assert_allclose(found.mean(axis=1), 0, atol=1e-9)
    np.testing.assert_allclose(found.std(axis=1), 1, atol=1e-9)
    assert (standardise(np.full((groups, n), 0.3)) == 0).all()


# -------------------------------------------------------------------------------------------------------- bad input

ON = {"behavior": "policy", "judge": "proxy"}
WRONG: list[tuple[dict[str, Any], str]] = [
    (ON | {"buffer": 9}, r"arms\.x\.buffer: 9 is beyond a run of 8 steps; at most 8"),
    (ON | {"lag": 8}, r"arms\.x\.lag: 8 is beyond a run of 8 steps; at most 7"),
    (ON | {"freeze_writer_at": 8}, r"arms\.x\.freeze_writer_at: 8 is beyond a run of 8 steps"),
    (ON | {"retrain": {"every": 8, "pairs": 4, "steps": 2}}, r"arms\.x\.retrain\.every: 8 is beyond"),
    (ON | {"pick": "recent"}, "`pick` is how a buffer is drawn from"),
    (ON | {"tokens_per_step": 2}, "`tokens_per_step` needs `lag`"),
    (ON | {"drop_stale": 2}, "`drop_stale` needs `lag`"),
    (ON | {"drop_stale": 2, "buffer": 4, "lag": 2}, "`drop_stale` and `buffer` both"),
    (ON | {"freeze_writer_at": 2, "lag": 2}, "`freeze_writer_at` goes with"),
    (ON | {"grouped": True, "candidates": 3}, "3 `candidates` are odd"),
    (ON | {"grouped": True, "candidates": 6}, "groups of 6, which do not fill a batch of 8"),
    (ON | {"judge": "golden", "retrain": {"every": 2, "pairs": 4, "steps": 2}}, "`retrain` is of the proxy"),
    (ON | {"share_to": 0.4}, "`share_to` does not belong to"),
    ({"behavior": "dataset", "judge": "golden", "lag": 2}, "`lag` does not belong to"),
    (ON | {"buffer": 0}, "buffer"),
]


@pytest.mark.parametrize(("arm", "message"), WRONG)
def test_an_arm_that_cannot_be_is_refused_in_one_line(arm: dict[str, Any], message: str) -> None:
    raw = yaml.safe_load(TINY_STUDY)
    raw["arms"]["x"] = arm
    with pytest.raises(AligngapError, match=message) as error:
        validate(raw, "tiny")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipe": {"reference": {"every": 0}}}, r"recipe\.reference\.every"),
        ({"recipe": {"reference": {"every": 2}, "optimization": {"steps": 8, "lora": {}}}}, "with `lora`"),
        ({"recipe": {"writer_logps": True}, "arms": {"x": ON | {"mix_reference": 0.5}}}, "no log-probabilities"),
        ({"arms": {"x": ON | {"lag": 2}, "y": {"behavior": "mixture", "mix": ["x", "offline"]}}}, "whole batches"),
        (
            {"arms": {"x": ON | {"lag": 2}}, "variants": {"v": {"set": {"recipe.optimization.steps": 2}}}},
            r"arms\.x\.lag",
        ),
    ],
)
def test_a_study_that_cannot_be_is_refused_in_one_line(change: dict[str, Any], message: str) -> None:
    raw = yaml.safe_load(TINY_STUDY)
    for section, values in change.items():
        raw[section] = raw.get(section, {}) | values
    with pytest.raises(AligngapError, match=message):
        validate(raw, "tiny")
