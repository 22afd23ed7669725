"""Streams: orders, labels, what is written ahead, and states that go on exactly where they stopped."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TableJudge, pair, prompt, response
from hypothesis import given, settings
from hypothesis import strategies as st

from aligngap.storage.pairs import pair_from_row, pair_to_row, read_pairs, write_pairs
from aligngap.streams import Buffer, Dataset, Epochs, Mixture, OnPolicy, Replay, label, order_of
from aligngap.types import AligngapError, Judgement, Pair, Prompt, Response

PROMPTS = [prompt((4, i)) for i in range(11)]
PAIRS = [pair(p, (4, i, 1), (5, 1)) for i, p in enumerate(PROMPTS)]


class Writer:
    """A sampler whose responses say which weights and which seed wrote them."""

    def __init__(self) -> None:
        self.step, self.calls = 0, list[tuple[int, int, int]]()

    @property
    def key(self) -> str:
        return f"w@step{self.step}"

    def sample(self, prompts: Sequence[Prompt], n: int, seed: int) -> list[list[Response]]:
        self.calls.append((self.step, len(prompts), seed))
        rng = np.random.default_rng(seed)
        return [[response((int(rng.integers(2, 9)), 10 + self.step, *p.ids)) for _ in range(n)] for p in prompts]


def ranks(k: int = 12) -> TableJudge:
    i = np.arange(k)
    return TableJudge(1 / (1 + np.exp((i[None, :] - i[:, None]) * 0.3)))


# ------------------------------------------------------------------------------------------------------------ orders

ORDERS = st.one_of(
    st.sampled_from(["in-order", "reversed", "shuffled"]),
    st.tuples(st.sampled_from(["window", "blocks"]), st.integers(1, 9)).map(lambda x: f"{x[0]}:{x[1]}"),
)


@given(ORDERS, st.integers(1, 70), st.integers(0, 5), st.integers(1, 9))
def test_an_order_is_a_permutation_and_a_function_of_its_seed(name: str, n: int, seed: int, batch: int) -> None:
    order = order_of(name, n, seed, batch)
    assert sorted(order) == list(range(n))
    assert order == order_of(name, n, seed, batch)
    if name == "in-order":
        assert order == list(range(n))


@given(st.integers(1, 6), st.integers(1, 70), st.integers(0, 5), st.integers(1, 9))
def test_a_window_keeps_pairs_inside(k: int, n: int, seed: int, batch: int) -> None:
    """Windows of k batches are disjoint and consecutive: arXiv 2405.08448, App. G."""
    order, width = order_of(f"window:{k}", n, seed, batch), k * batch
    for start in range(0, n, width):
        assert sorted(order[start : start + width]) == list(range(start, min(n, start + width)))


@given(st.integers(1, 6), st.integers(1, 70), st.integers(0, 5), st.integers(1, 9))
def test_blocks_keep_the_order_inside(k: int, n: int, seed: int, batch: int) -> None:
    """A block's pairs stay together and in order; only whole blocks of k batches change places."""
    order, width = order_of(f"blocks:{k}", n, seed, batch), k * batch
    starts = [i for i in order if i % width == 0]
    assert order == [i for start in starts for i in range(start, min(n, start + width))]


def test_orders_differ() -> None:
    found = {name: tuple(order_of(name, 40, 0, 4)) for name in ("in-order", "reversed", "shuffled", "window:2")}
    assert len(set(found.values())) == 4
    assert order_of("shuffled", 40, 0, 4) != order_of("shuffled", 40, 1, 4)
    assert order_of("reversed", 8, 0, 4) == [7, 6, 5, 4, 3, 2, 1, 0]
    assert order_of("window:10", 40, 0, 4) != list(range(40))
    assert order_of("blocks:2", 40, 0, 4) != list(range(40))
    assert order_of("blocks:10", 40, 0, 4) == list(range(40))


@pytest.mark.parametrize(
    "name", ["window:0", "window:", "window:-1", "window:x", "window:1.5", "blocks:0", "random", "", "In-order"]
)
def test_an_unknown_order_is_refused(name: str) -> None:
    with pytest.raises(AligngapError, match="order"):
        order_of(name, 4, 0, 2)


# --------------------------------------------------------------------------------------------------- data sets, epochs


@given(st.integers(1, 12), st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(0, 3))
def test_every_epoch_serves_everything_once_whatever_the_batches(n: int, sizes: list[int], seed: int) -> None:
    one, many = Epochs(list(range(n)), seed), Epochs(list(range(n)), seed)
    whole = one.draw(sum(sizes))
    assert [x for size in sizes for x in many.draw(size)] == whole
    for start in range(0, len(whole) - n + 1, n):
        assert sorted(whole[start : start + n]) == list(range(n))


def test_epochs_differ_from_one_another_and_by_seed() -> None:
    drawn = Epochs(list(range(30)), 0).draw(60)
    assert drawn[:30] != drawn[30:]
    assert drawn[:30] != Epochs(list(range(30)), 1).draw(30)


def test_an_empty_stream_is_refused() -> None:
    with pytest.raises(AligngapError, match="empty"):
        Dataset([], 0)


def test_a_data_set_ignores_the_sampler() -> None:
    writer = Writer()
    assert Dataset(PAIRS, 3).draw(5, writer) == Dataset(PAIRS, 3).draw(5, None)  # type: ignore[arg-type]
    assert writer.calls == []


@given(st.integers(0, 9), st.integers(1, 5), st.integers(1, 6))
def test_online_and_offline_see_the_same_prompts_in_the_same_order(seed: int, batch: int, draws: int) -> None:
    data, online = Dataset(PAIRS, seed), OnPolicy(PROMPTS, ranks(), seed=seed)
    for _ in range(draws):
        assert [p.prompt for p in data.draw(batch, Writer())] == [p.prompt for p in online.draw(batch, Writer())]


# ------------------------------------------------------------------------------------------------------------ online


@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 15))
def test_sync_every_k_writes_k_batches_with_the_policy_as_it_stands(k: int, batch: int, steps: int) -> None:
    writer, stream = Writer(), OnPolicy(PROMPTS, ranks(), seed=0, sync_every=k)
    for step in range(steps):
        writer.step = step
        drawn = stream.draw(batch, writer)
        assert [p.writer for p in drawn] == [f"w@step{step // k * k}"] * batch
        assert all(10 + step // k * k in p.chosen.ids for p in drawn)
    rounds = -(-steps // k)
    assert [(step, n) for step, n, _ in writer.calls] == [(r * k, batch) for r in range(rounds) for _ in range(k)]
    assert len({seed for *_, seed in writer.calls}) == len(writer.calls)  # a fresh seed for every batch
    assert stream.responses_sampled == 2 * batch * k * rounds


def test_the_same_batches_are_written_whatever_the_interval() -> None:
    """Prompts and sampling seeds depend on the batch's number only, so arms differ in the weights and nothing else."""
    seen = []
    for k in (1, 3, 6):
        writer, stream = Writer(), OnPolicy(PROMPTS, ranks(), seed=0, sync_every=k)
        prompts = [p.prompt for _ in range(6) for p in stream.draw(4, writer)]
        seen.append((prompts, [seed for *_, seed in writer.calls]))
    assert seen[0] == seen[1] == seen[2]


def test_a_bad_interval_is_refused() -> None:
    with pytest.raises(AligngapError, match="sync_every"):
        OnPolicy(PROMPTS, ranks(), seed=0, sync_every=0)


# ----------------------------------------------------------------------------------------------------------- states


def streams(kind: str) -> Any:
    online = OnPolicy(PROMPTS, ranks(), seed=4, sync_every=3, soft_labels=True)
    made = {
        "online": lambda: online,
        "reused": lambda: OnPolicy(PROMPTS, ranks(), seed=4, sync_every=2, reuse=3),
        "best-of-4": lambda: OnPolicy(PROMPTS, ranks(), seed=4, candidates=4),
        "data": lambda: Dataset(PAIRS, 4),
        "replay": lambda: Replay(PAIRS * 9, order="window:2", batch=4, seed=4),
        "mixture": lambda: Mixture(online, Dataset(PAIRS, 5), share=0.4, seed=6),
        "lagging": lambda: OnPolicy(PROMPTS, ranks(), seed=4, lag=3, drop_stale=2, sync_every=2),
        "in-flight": lambda: OnPolicy(PROMPTS, ranks(), seed=4, lag=2, tokens_per_step=1),
        "buffer": lambda: Buffer(OnPolicy(PROMPTS, ranks(), seed=4), size=3, seed=1, pick="recent", every=2),
        "blend": lambda: Mixture(online, Dataset(PAIRS, 5), share=0.1, seed=6, until=(0.9, 9)),
    }
    return made[kind]()


@pytest.mark.parametrize(
    "kind",
    ["online", "reused", "best-of-4", "data", "replay", "mixture", "lagging", "in-flight", "buffer", "blend"],
)
@given(st.integers(0, 9), st.integers(1, 5), st.integers(0, 9))
@settings(max_examples=30)
def test_a_state_goes_on_exactly_even_mid_queue(kind: str, before: int, batch: int, after: int) -> None:
    writer = Writer()
    first = streams(kind)

    def draw(stream: Any, step: int) -> list[Pair]:
        writer.step = step
        return stream.draw(batch, writer)  # type: ignore[no-any-return]

    for step in range(before):
        draw(first, step)
    state = json.loads(json.dumps(first.state_dict()))  # JSON values only, as it is saved
    second = streams(kind)
    second.load_state_dict(state)
    assert second.state_dict() == first.state_dict()
    for step in range(before, before + after):
        if kind == "replay" and (step + 1) * batch > 99:
            break
        assert draw(first, step) == draw(second, step)
    assert first.responses_sampled == second.responses_sampled


def test_replay_serves_a_recording_once() -> None:
    replay = Replay(PAIRS[:6], order="in-order", batch=2, seed=0)
    assert replay.draw(4, Writer()) == PAIRS[:4]
    assert replay.draw(2, Writer()) == PAIRS[4:6]
    with pytest.raises(AligngapError, match="6 pairs and 7"):
        replay.draw(1, Writer())


@given(st.floats(0, 1), st.integers(0, 9))
def test_a_mixture_draws_the_right_share_from_each(share: float, seed: int) -> None:
    left, right = [pair(PROMPTS[0], (6, 1), (7, 1))], [pair(PROMPTS[1], (8, 1), (7, 1))]
    mixed = Mixture(Dataset(left, 0), Dataset(right, 0), share=share, seed=seed).draw(400, Writer())
    count = sum(p == left[0] for p in mixed)
    assert abs(count - 400 * share) <= 4 * np.sqrt(400 * share * (1 - share)) + 1e-9


def test_a_mixture_of_one_is_that_one() -> None:
    whole = Mixture(Dataset(PAIRS, 3), Dataset(PAIRS, 4), share=1.0, seed=0)
    assert [whole.draw(4, Writer()) for _ in range(3)] == [
        d for s in [Dataset(PAIRS, 3)] for d in (s.draw(4), s.draw(4), s.draw(4))
    ]
    with pytest.raises(AligngapError, match="share"):
        Mixture(Dataset(PAIRS, 3), Dataset(PAIRS, 4), share=1.2, seed=0)


# ----------------------------------------------------------------------------------------------------------- labels


class Fixed:
    key = "fixed"

    def __init__(self, forward: Sequence[float], backward: Sequence[float]) -> None:
        self.forward, self.backward = np.array(forward), np.array(backward)

    def judge(self, prompts: Sequence[Prompt], a: Sequence[Response], b: Sequence[Response]) -> Judgement:
        return Judgement(self.forward, self.backward)


FIRST, SECOND = [response((4, 1))] * 4, [response((5, 1))] * 4
#          first wins, second wins, tie with position bias, second wins though both answers favour the first place
ANSWERS = Fixed([0.9, 0.2, 0.7, 0.6], [0.3, 0.8, 0.7, 0.8])


def test_hard_labels_by_the_sign_rule() -> None:
    pairs = label(PROMPTS[:4], FIRST, SECOND, ANSWERS, writer="me")
    assert [p.chosen.ids[0] for p in pairs] == [4, 5, 4, 5]
    assert [p.p_chosen for p in pairs] == [1.0, 1.0, 0.5, 1.0]
    # The raw answers are kept, as about (chosen, rejected).
    assert [(p.judged_forward, p.judged_backward) for p in pairs] == [(0.9, 0.3), (0.8, 0.2), (0.7, 0.7), (0.8, 0.6)]
    assert [p.prompt for p in pairs] == PROMPTS[:4]
    assert {p.writer for p in pairs} == {"me"}
    assert all(p.ref_chosen is None and p.ref_rejected is None for p in pairs)


def test_soft_labels_are_the_antisymmetric_part() -> None:
    pairs = label(PROMPTS[:4], FIRST, SECOND, ANSWERS, writer="me", soft=True)
    assert [p.chosen.ids[0] for p in pairs] == [4, 5, 4, 5]
    np.testing.assert_allclose([p.p_chosen for p in pairs], [0.820871, 0.8, 0.5, 0.620204], atol=1e-6)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=8), st.booleans())
def test_swapping_the_responses_gives_the_same_pairs(answers: list[tuple[float, float]], soft: bool) -> None:
    n = len(answers)
    forward, backward = [a for a, _ in answers], [b for _, b in answers]
    first, second = [response((4, i, 1)) for i in range(n)], [response((5, i, 1)) for i in range(n)]
    left = label(PROMPTS[:n], first, second, Fixed(forward, backward), writer="x", soft=soft)
    right = label(PROMPTS[:n], second, first, Fixed(backward, forward), writer="x", soft=soft)
    for p, q in zip(left, right, strict=True):
        assert p.p_chosen >= 0.5
        assert p.p_chosen == pytest.approx(q.p_chosen, abs=1e-12)
        if p.p_chosen != 0.5 and q.p_chosen != 0.5:
            assert (p.chosen, p.rejected) == (q.chosen, q.rejected)
            assert (p.judged_forward, p.judged_backward) == (q.judged_forward, q.judged_backward)


# ------------------------------------------------------------------------------------------------------------- rows

ids = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=5).map(tuple)
words = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
answers = st.builds(Response, ids, st.booleans(), words)
shares = st.floats(0, 1)
logs = st.one_of(st.none(), st.floats(-1e6, 0))
any_pair = st.builds(
    Pair, st.builds(Prompt, words, words, ids), answers, answers, shares, shares, shares, words, logs, logs,
    st.booleans(), logs, logs, logs, logs,
)  # fmt: skip


@given(any_pair)
def test_a_row_is_a_pair_exactly(p: Pair) -> None:
    assert pair_from_row(pair_to_row(p)) == p
    assert pair_from_row(json.loads(json.dumps(pair_to_row(p)))) == p


@given(st.lists(any_pair, max_size=6))
@settings(max_examples=40)
def test_a_file_of_pairs_is_the_pairs_exactly(tmp_path_factory: pytest.TempPathFactory, pairs: list[Pair]) -> None:
    path: Path = tmp_path_factory.mktemp("rows") / "pairs.parquet"
    write_pairs(path, pairs)
    assert read_pairs(path) == pairs


def test_the_key_of_a_pair_ignores_the_label() -> None:
    p = pair(PROMPTS[0], (4, 1), (5, 1))
    q = pair(PROMPTS[0], (5, 1), (4, 1), 0.5)
    assert p.key == q.key
    assert Counter([p.key, q.key])[p.key] == 2
    assert p.key != pair(PROMPTS[1], (4, 1), (5, 1)).key


def test_soft_labels_undo_a_bias_for_the_first_place_in_logits() -> None:
    """A judge that adds a constant to its logit for whoever stands first: the soft label is the unbiased answer."""
    truth, bias = np.array([-6.0, -1.0, 0.0, 0.5, 4.0]), 1.5
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    judged = Judgement(sigmoid(truth + bias), sigmoid(-truth + bias))
    assert judged.soft == pytest.approx(sigmoid(truth))
    assert np.abs(judged.p_win - sigmoid(truth)).max() > 0.02  # the mean of probabilities is not
    turned = Judgement(judged.backward, judged.forward)
    assert judged.soft + turned.soft == pytest.approx(1.0)
    assert ((judged.soft > 0.5) == (judged.hard > 0.5)).all()


def test_answers_without_a_logit_are_averaged_as_probabilities() -> None:
    judged = Judgement(np.array([1.0, 1.0, 0.0, 1.0, 0.5]), np.array([0.0, 1.0, 0.0, 0.5, 0.5]))
    assert judged.soft == pytest.approx([1.0, 0.5, 0.5, 0.75, 0.5])
