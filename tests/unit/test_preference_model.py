"""The pairwise judge: it learns a rule, its answers do not depend on who stands beside, and swapping swaps them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import BOTH, FAMILIES, WORDS, tiny_policy
from hypothesis import given, settings
from hypothesis import strategies as st

from aligngap.fit import Trainer, fit
from aligngap.judges.preference_model import PreferenceModel, Shown
from aligngap.settings import Optimization
from aligngap.streams import Epochs
from aligngap.types import Judge, Judgement, Prompt, Response

GOOD = ("river", "bread", "clock", "apple")


def judge_of(family: str, seed: int = 0) -> PreferenceModel:
    policy = tiny_policy(family, spread=1.0)
    judge = PreferenceModel(policy.model, policy.tokenizer, key=f"{family}-judge", seed=seed)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():  # a head with a bias for the first place, as training may leave it
        for parameter in judge.head.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    judge.module.eval()
    return judge


@pytest.fixture(scope="module", params=BOTH)
def judge(request: pytest.FixtureRequest) -> PreferenceModel:
    return judge_of(request.param)


def text(words: Sequence[str], ended: bool = True) -> Response:
    """What the judge reads is text; the ids are the writer's and none of its business."""
    return Response((99,) * (len(words) + ended), ended, " ".join(words))


def ask(words: Sequence[str]) -> Prompt:
    return Prompt(" ".join(words), " ".join(words), (99,))


sentences = st.lists(st.sampled_from(WORDS), min_size=1, max_size=6)
rows = st.lists(st.tuples(sentences, sentences, sentences, st.booleans(), st.booleans()), min_size=1, max_size=6)


def sides(
    batch: list[tuple[list[str], list[str], list[str], bool, bool]],
) -> tuple[list[Prompt], list[Response], list[Response]]:
    return (
        [ask(p) for p, *_ in batch],
        [text(a, ea) for _, a, _, ea, _ in batch],
        [text(b, eb) for _, _, b, _, eb in batch],
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_can_judge(family: str) -> None:
    judged = judge_of(family).judge(*sides([(["river"], ["lamp"], ["bread", "old"], True, False)]))
    assert judged.forward.shape == (1,)
    assert 0 < judged.forward[0] < 1


@given(rows)
@settings(max_examples=30)
def test_swapping_the_responses_swaps_the_answers(
    judge: PreferenceModel, batch: list[tuple[list[str], list[str], list[str], bool, bool]]
) -> None:
    prompts, a, b = sides(batch)
    ab, ba = judge.judge(prompts, a, b), judge.judge(prompts, b, a)
    np.testing.assert_allclose(ab.forward, ba.backward, atol=1e-6)
    np.testing.assert_allclose(ab.backward, ba.forward, atol=1e-6)
    np.testing.assert_allclose(ab.p_win + ba.p_win, 1.0, atol=1e-6)


@given(rows)
@settings(max_examples=30)
def test_answers_do_not_depend_on_the_batch(
    judge: PreferenceModel, batch: list[tuple[list[str], list[str], list[str], bool, bool]]
) -> None:
    prompts, a, b = sides(batch)
    together = judge.judge(prompts, a, b)
    for i in range(len(batch)):
        alone = judge.judge(prompts[i : i + 1], a[i : i + 1], b[i : i + 1])
        assert alone.forward[0] == pytest.approx(together.forward[i], abs=1e-5)
        assert alone.backward[0] == pytest.approx(together.backward[i], abs=1e-5)


@given(st.lists(st.tuples(sentences, sentences, st.booleans()), min_size=1, max_size=40))
@settings(max_examples=30)
def test_equal_responses_are_a_tie(judge: PreferenceModel, batch: list[tuple[list[str], list[str], bool]]) -> None:
    """Exactly, whatever the position bias and whoever stands beside: an identical answer must never win."""
    prompts, a = [ask(p) for p, _, _ in batch], [text(w, e) for _, w, e in batch]
    judged = judge.judge(prompts, a, list(a))
    assert (judged.forward == judged.backward).all()
    assert (judged.hard == 0.5).all()


def test_both_orders_are_asked_and_differ(judge: PreferenceModel) -> None:
    """The answer to (b, a) is not one minus the answer to (a, b): there is a bias, and it cancels in p_win only."""
    judged = judge.judge(
        [ask(["river"])] * 2, [text(["lamp", "old"]), text(["old"])], [text(["bread"]), text(["clock"])]
    )
    assert (np.abs(judged.forward + judged.backward - 1) > 1e-3).all()


def test_the_order_asked_for_is_the_order_answered(judge: PreferenceModel) -> None:
    """Rows sorted by length inside come back in their places."""
    rng = np.random.default_rng(0)
    batch = [
        (
            list(rng.choice(WORDS, rng.integers(1, 7))),
            list(rng.choice(WORDS, rng.integers(1, 7))),
            list(rng.choice(WORDS, 3)),
            True,
            bool(i % 2),
        )
        for i in range(150)
    ]
    prompts, a, b = sides(batch)
    whole = judge.judge(prompts, a, b)
    turned = judge.judge(prompts[::-1], a[::-1], b[::-1])
    np.testing.assert_allclose(whole.forward, turned.forward[::-1], atol=1e-6)
    np.testing.assert_allclose(whole.backward, turned.backward[::-1], atol=1e-6)


def test_whether_a_response_ended_is_visible(judge: PreferenceModel) -> None:
    p, other = [ask(["river", "old"])], [text(["lamp", "bread"])]
    ended, cut = (judge.judge(p, [text(["apple", "clock"], e)], other) for e in (True, False))
    assert abs(ended.forward[0] - cut.forward[0]) > 1e-4
    assert abs(ended.backward[0] - cut.backward[0]) > 1e-4


def test_prompt_and_both_responses_are_read(judge: PreferenceModel) -> None:
    base = judge.judge([ask(["river"])], [text(["lamp"])], [text(["bread"])]).forward[0]
    for p, a, b in (
        (["old"], ["lamp"], ["bread"]),
        (["river"], ["clock"], ["bread"]),
        (["river"], ["lamp"], ["clock"]),
    ):
        assert abs(judge.judge([ask(p)], [text(a)], [text(b)]).forward[0] - base) > 1e-5


def test_empty_text_is_judged(judge: PreferenceModel) -> None:
    judged = judge.judge([ask(["river"])] * 2, [text([], False), text([], True)], [text(["lamp"]), text([], False)])
    assert np.isfinite(judged.forward).all()
    assert np.isfinite(judged.backward).all()


def test_no_random_numbers_and_no_gradient(judge: PreferenceModel) -> None:
    before = torch.random.get_rng_state()
    args = ([ask(["river"])], [text(["lamp"])], [text(["bread"])])
    assert judge.judge(*args).forward[0] == judge.judge(*args).forward[0]
    assert torch.equal(before, torch.random.get_rng_state())


def test_special_strings_of_a_policy_cannot_close_a_response(judge: PreferenceModel) -> None:
    """A policy that writes "</s>" as text does not look ended to the judge."""
    p, other = [ask(["river"])], [text(["lamp"])]
    cheat = judge.judge(p, [Response((9,), False, "apple </s>")], other)
    honest = judge.judge(p, [text(["apple"], True)], other)
    assert cheat.forward[0] != honest.forward[0]


def test_saved_and_loaded_is_the_same_judge(judge: PreferenceModel, tmp_path: Path) -> None:
    judge.save(tmp_path)
    loaded = PreferenceModel.load(tmp_path)
    args = (
        [ask(["river"])] * 3,
        [text(["lamp"]), text(["old", "apple"]), text(["bread"], False)],
        [text(["bread"])] * 3,
    )
    left, right = judge.judge(*args), loaded.judge(*args)
    assert loaded.key == judge.key
    # a decoder's products with few rows round by where the weights lie in memory, and those of a file lie elsewhere
    rtol = 0.0 if judge.encoder_decoder else 1e-5
    np.testing.assert_allclose(right.forward, left.forward, rtol=rtol)
    np.testing.assert_allclose(right.backward, left.backward, rtol=rtol)
    assert isinstance(loaded, Judge)
    assert not [f for f in tmp_path.iterdir() if f.suffix in (".bin", ".pt", ".pkl")]


def test_a_head_is_a_function_of_its_seed() -> None:
    policy = tiny_policy("t5")
    state = torch.random.get_rng_state()
    heads = [PreferenceModel(policy.model, policy.tokenizer, key="k", seed=s).head.state_dict() for s in (1, 1, 2)]
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(heads[0][k], heads[1][k]) for k in heads[0])
    assert any(not torch.equal(heads[0][k], heads[2][k]) for k in heads[0])


def test_labels_follow_the_sign_rule() -> None:
    judged = Judgement(np.array([0.9, 0.6, 0.5, 0.2]), np.array([0.2, 0.7, 0.5, 0.1]))
    assert judged.hard.tolist() == [1.0, 0.0, 0.5, 1.0]
    np.testing.assert_allclose(judged.p_win, [0.85, 0.45, 0.5, 0.55])


def good(words: Sequence[str]) -> int:
    return sum(w in GOOD for w in words)


@pytest.mark.parametrize("family", BOTH)
def test_training_on_a_simple_rule_is_learnt(family: str) -> None:
    """The response with more of four good words wins; over nine in ten pairs never seen before are judged right."""
    rng = np.random.default_rng(1)

    def draw(n: int) -> list[tuple[list[str], list[str], list[str]]]:
        out: list[tuple[list[str], list[str], list[str]]] = []
        while len(out) < n:
            p, a, b = (list(rng.choice(WORDS, k)) for k in (2, rng.integers(2, 6), rng.integers(2, 6)))
            if good(a) != good(b):
                out.append((p, a, b))
        return out

    policy = tiny_policy(family, spread=0.5)
    judge = PreferenceModel(policy.model, policy.tokenizer, key="k")
    items = []
    for p, a, b in draw(1500):
        ids = judge.encode_prompt(" ".join(p)), judge.encode_response(" ".join(a)), judge.encode_response(" ".join(b))
        p_first = float(good(a) > good(b))
        items += [Shown(ids[0], ids[1], ids[2], p_first), Shown(ids[0], ids[2], ids[1], 1 - p_first)]
    how = Optimization(steps=150, batch=64, learning_rate=1e-2, warmup_steps=10, schedule="linear")
    for step in fit(Trainer(judge.module, how, seed=0), Epochs(items, 0), judge.objective):
        assert step.finite
    held_out = draw(300)
    judged = judge.judge(
        [ask(p) for p, _, _ in held_out], [text(a) for _, a, _ in held_out], [text(b) for _, _, b in held_out]
    )
    truth = np.array([float(good(a) > good(b)) for _, a, b in held_out])
    assert (judged.hard == truth).mean() > 0.9
    first = ((judged.forward > 0.5).mean() + (judged.backward > 0.5).mean()) / 2
    assert abs(first - 0.5) < 0.1  # no strong bias for a place after training in both orders


def test_the_objective_is_the_likelihood_of_the_order_shown(judge: PreferenceModel) -> None:
    shown = [Shown((4, 3), (5, 1), (6, 7, 1), p) for p in (1.0, 0.0, 0.5)]
    losses, metrics = judge.objective(shown)
    p = torch.sigmoid(judge.logits(shown[:1]))
    want = torch.cat([-p.log(), -(1 - p).log(), -(p.log() + (1 - p).log()) / 2])
    torch.testing.assert_close(losses, want, atol=1e-5, rtol=1e-5)
    assert set(metrics) >= {"accuracy"}
