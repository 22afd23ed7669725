"""The sandbox: deterministic, honest about its knobs, and judged without contradiction by its oracle."""

from __future__ import annotations

from itertools import combinations
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from aligngap.judges.oracle import SandboxOracle
from aligngap.tasks.sandbox import ENTITIES, VOCABULARY, Sandbox
from aligngap.types import AligngapError, Comparison, Judge, Judgement, Prompt, Response, Task

SMALL = Sandbox(train_pairs=600, test_pairs=200)
PROMPT = "garden medium plain river lamp bread"


def responses(*texts: str, ended: bool = True) -> list[Response]:
    return [Response((), ended, text) for text in texts]


def prompts(*texts: str) -> list[Prompt]:
    return [Prompt(text, text, ()) for text in texts]


def judged(oracle: SandboxOracle, rows: list[Comparison]) -> Judgement:
    chosen, rejected = responses(*(r.chosen for r in rows)), responses(*(r.rejected for r in rows))
    return oracle.judge(prompts(*(r.prompt for r in rows)), chosen, rejected)


def reward(text: str, prompt: str = PROMPT, ended: bool = True, **knobs: Any) -> float:
    return float(SandboxOracle(Sandbox(**knobs), 0).reward(prompts(prompt), responses(text, ended=ended))[0])


# ---------------------------------------------------------------------------------------------------- the data


def test_a_seed_decides_everything() -> None:
    task: Task = SMALL
    assert task.load(3) == Sandbox(train_pairs=600, test_pairs=200).load(3)
    assert {c.prompt for c in SMALL.load(3).test} != {c.prompt for c in SMALL.load(4).test}
    a, b = SMALL.world(3), SMALL.world(4)
    for table in ("kind", "native", "habit", "taste", "phase"):
        assert not np.array_equal(getattr(a, table), getattr(b, table)), table


def test_fingerprint_follows_the_settings() -> None:
    assert SMALL.fingerprint() == Sandbox(train_pairs=600, test_pairs=200).fingerprint()
    assert len({SMALL.fingerprint(), Sandbox().fingerprint(), Sandbox(taste=0.7).fingerprint()}) == 3


def test_default_data_are_as_promised() -> None:
    data = Sandbox().load(0)
    assert (len(data.train), len(data.test)) == (16000, 1024)
    assert not {c.prompt for c in data.train} & {c.prompt for c in data.test}
    rows = [*data.train, *data.test]
    assert len({c.prompt_id for c in rows}) == len({c.prompt for c in rows})
    assert all(c.chosen != c.rejected for c in rows)
    texts = [text for c in rows for text in (c.chosen, c.rejected)]
    lengths = [len(text.split()) for text in texts]
    assert min(lengths) >= 1
    assert max(lengths) <= 14
    assert {word for text in texts for word in text.split()} <= set(VOCABULARY)
    assert {word for c in rows for word in c.prompt.split()} <= set(VOCABULARY)
    assert len(VOCABULARY) == len(set(VOCABULARY)) == 63


def test_distinct_prompts_are_used_equally_often() -> None:
    rows = Sandbox(train_pairs=200, test_pairs=10, distinct_prompts=8).load(0).train
    counts = [sum(c.prompt == prompt for c in rows) for prompt in {c.prompt for c in rows}]
    assert counts == [25] * 8


def test_hard_labels_are_the_oracles() -> None:
    rows = [*SMALL.load(0).train]
    assert (judged(SandboxOracle(SMALL, 0), rows).hard == 1).all()


def test_bradley_terry_labels_are_drawn_from_the_oracles_probabilities() -> None:
    task = Sandbox(train_pairs=4000, test_pairs=1, rater="bradley_terry", temperature=2.0)
    p = judged(SandboxOracle(task, 0), [*task.load(0).train]).p_win
    right = float(np.maximum(p, 1 - p).mean())  # how often the better response should have been chosen
    assert 0.55 < right < 0.8
    assert abs((p > 0.5).mean() - right) < 0.03  # 4 standard errors of a share of 4,000


def test_rater_noise_flips_its_share_of_labels_and_nothing_else() -> None:
    clean, noisy = (Sandbox(train_pairs=4000, test_pairs=1, rater_noise=x).load(0).train for x in (0.0, 0.2))
    flipped = [(c.chosen, c.rejected) == (n.rejected, n.chosen) for c, n in zip(clean, noisy, strict=True)]
    assert abs(np.mean(flipped) - 0.2) < 0.026
    assert {c.prompt + c.chosen for c, f in zip(clean, flipped, strict=True) if not f} <= {
        n.prompt + n.chosen for n in noisy
    }


# --------------------------------------------------------------------------------------------------- the oracle


def test_oracle_is_a_judge_of_one_world() -> None:
    judge: Judge = SandboxOracle(SMALL, 0)
    assert isinstance(judge, Judge)
    assert len({judge.key, SandboxOracle(SMALL, 1).key, SandboxOracle(Sandbox(), 0).key}) == 3


TEXT = st.lists(st.sampled_from([*VOCABULARY, "<unk>", "Zürich", "</s>"]), max_size=18).map(" ".join)
SIDES = st.lists(st.tuples(TEXT, st.booleans(), TEXT, st.booleans()), min_size=1, max_size=6)


@settings(max_examples=100, deadline=None)
@given(SIDES, st.sampled_from(["hard", "bradley_terry"]), st.sampled_from([0.0, 0.4, 1.0]))
def test_preference_is_antisymmetric_on_any_text(
    rows: list[tuple[str, bool, str, bool]], rater: Literal["hard", "bradley_terry"], cyclic: float
) -> None:
    oracle = SandboxOracle(Sandbox(rater=rater, cyclic=cyclic), 0)
    x = prompts(*[PROMPT] * len(rows))
    a, b = [Response((), r[1], r[0]) for r in rows], [Response((), r[3], r[2]) for r in rows]
    ab, ba = oracle.judge(x, a, b), oracle.judge(x, b, a)
    assert np.isfinite(oracle.reward(x, a)).all()
    np.testing.assert_allclose(ab.forward + ba.forward, 1, atol=1e-12)
    np.testing.assert_allclose(ab.forward, ba.backward, atol=1e-12)
    np.testing.assert_array_equal(ab.hard, 1 - ba.hard)
    assert ((ab.forward >= 0) & (ab.forward <= 1)).all()
    np.testing.assert_array_equal(oracle.judge(x, a, a).forward, 0.5)
    one = [oracle.judge(x[:1], [u], [v]).forward[0] for u, v in zip(a, b, strict=True)]
    np.testing.assert_array_equal(one, ab.forward)  # whoever else is in the batch


def test_dialects_mean_the_same() -> None:
    oracle = SandboxOracle(Sandbox(), 0)
    a, b = responses("old river and lamp"), responses("zoold zoriver zoand zolamp")
    assert oracle.judge(prompts(PROMPT), a, b).forward[0] == 0.5


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ("river and lamp", "river and river"),
        ("river and lamp", "river and lamp and lamp"),
        ("river", "garden"),
        ("river", ""),
        ("old river", "river old"),
        ("old river and warm lamp", "old river and warm lamp really"),
        ("old river and warm lamp", "perhaps old river and warm lamp"),
        ("river", "<unk> <unk>"),
    ],
)
def test_the_reward_orders_what_should_be_plain(better: str, worse: str) -> None:
    for seed in range(5):  # without taste, so that the order is by rule
        oracle = SandboxOracle(Sandbox(taste=0), seed)
        x = prompts("garden short plain river lamp")
        assert oracle.judge(x, responses(better), responses(worse)).hard[0] == 1, seed


def test_reward_terms() -> None:
    careful = "garden medium careful river lamp bread"
    assert reward("perhaps river", careful, taste=0) - reward("river", careful, taste=0) > 0.5
    assert reward("river") - reward("river", ended=False) == pytest.approx(1.5)
    native = SMALL.world(0).native[0]
    unasked = [e for e in ENTITIES if e not in PROMPT.split()]
    true = {e: reward(f"river and {e}", taste=0) for e in unasked if native[ENTITIES.index(e)]}
    false = {e: reward(f"river and {e}", taste=0) for e in unasked if not native[ENTITIES.index(e)]}
    assert min(true.values()) > max(false.values())


def test_repetition_costs_ever_more() -> None:
    def penalty(count: int) -> float:
        text = " ".join(["river"] * count)
        return reward(text, repetition=0) - reward(text, repetition=0.3)

    costs = [penalty(count) for count in range(1, 6)]
    np.testing.assert_allclose(costs, [0, 0.3, 1.2, 2.7, 4.8], atol=1e-9)


def test_a_foreign_prompt_is_refused_in_one_line() -> None:
    with pytest.raises(AligngapError, match="not one of its prompts"):
        reward("river", prompt="write me a poem")


# ---------------------------------------------------------------------------------------------------- the knobs


def high_share(task: Sandbox, threshold: float) -> float:
    """Share of the SFT-like writer's responses above a reward, over four seeds."""
    shares = []
    for seed in range(4):
        x = [c.prompt for c in Sandbox(train_pairs=2000, test_pairs=1).load(seed).train]
        world = task.world(seed)
        text = world.write(x, np.ones(len(x), dtype=bool), np.random.default_rng(seed))
        shares.append((world.reward(x, text) > threshold).mean())
    return float(np.mean(shares))


@pytest.mark.parametrize(("words", "threshold"), [(14, 3.0), (1, 1.2)])
def test_peak_in_support_moves_what_is_liked_to_what_is_written(words: int, threshold: float) -> None:
    out, neither, inside = (
        high_share(Sandbox(peak_in_support=x, response_words=words), threshold) for x in (0.0, 0.5, 1.0)
    )
    assert 1.5 * out < neither < inside / 1.3
    spread = [Sandbox(peak_in_support=x).world(0).taste.std() for x in (0.0, 0.5, 1.0)]
    assert max(spread) < 1.15 * min(spread)  # the geometry moves, not the strength


def test_skill_raises_reward_and_taste_its_spread() -> None:
    assert high_share(Sandbox(writer_skill=0.9), 2.0) > high_share(Sandbox(writer_skill=0.3), 2.0) + 0.1
    assert Sandbox(taste=1.2).world(0).taste == pytest.approx(2 * Sandbox(taste=0.6).world(0).taste)


def second_dialect(text: str) -> bool:
    return any(word.startswith("zo") for word in text.split())


@pytest.mark.parametrize(("crossed", "mixed"), [(0.0, 0.0), (1.0, 0.42)])
def test_writers_differ_in_dialect(crossed: float, mixed: float) -> None:
    """By share .7: pairs of both kinds are 2 x .7 x .3 = .42 of the pairs whose second writer is drawn anew."""
    task = Sandbox(
        train_pairs=4000, test_pairs=1, sft_like_share=0.7, crossed_pairs=crossed, writer_skill=1, other_skill=1
    )
    kinds = [(second_dialect(c.chosen), second_dialect(c.rejected)) for c in task.load(0).train]
    assert np.mean(kinds) == pytest.approx(0.3, abs=0.03)
    assert np.mean([a != b for a, b in kinds]) == pytest.approx(mixed, abs=0.03)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"taste": -1}, "greater than or equal to 0"),
        ({"taste": float("inf")}, "finite"),
        ({"rater": "soft"}, "'hard' or 'bradley_terry'"),
        ({"tast": 1}, "Extra inputs are not permitted"),
        ({"response_words": 0}, "greater than or equal to 1"),
        ({"distinct_prompts": 6000}, "less than or equal to 5835"),
        ({"distinct_prompts": 50, "train_pairs": 10}, "lower the one or raise the other"),
        ({"temperature": 0}, "greater than 0"),
        ({"cyclic": 1.1}, "less than or equal to 1"),
    ],
)
def test_a_bad_setting_gives_one_clear_error(bad: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says) as caught:
        Sandbox(**bad)
    assert caught.value.error_count() == 1


def test_impossible_worlds_and_seeds_say_so() -> None:
    with pytest.raises(AligngapError, match="raise taste"):
        Sandbox.tabular(train_pairs=50, taste=0, writer_skill=1, other_skill=1).load(0)
    with pytest.raises(AligngapError, match="seed"):
        SMALL.load(-1)


# --------------------------------------------------------------------------------------------- the tabular world


def test_tabular_world_has_one_word_responses() -> None:
    task = Sandbox.tabular(train_pairs=500, test_pairs=100)
    data = task.load(0)
    assert all(len(text.split()) == 1 for c in [*data.train, *data.test] for text in (c.chosen, c.rejected))
    assert len({c.prompt for c in data.train}) == 16
    assert (
        Sandbox(response_words=1, distinct_prompts=16, rater="bradley_terry", train_pairs=500, test_pairs=100) == task
    )


@pytest.mark.parametrize("cyclic", [0.0, 0.5])
def test_preference_matrix_is_what_the_oracle_says(cyclic: float) -> None:
    task = Sandbox.tabular(cyclic=cyclic)
    words, p = task.preference_matrix(PROMPT, 0)
    assert words == VOCABULARY
    assert p.shape == (63, 63)
    np.testing.assert_allclose(p + p.T, 1)
    i, j = np.divmod(np.arange(63 * 63), 63)
    a, b = responses(*(words[k] for k in i)), responses(*(words[k] for k in j))
    answer = SandboxOracle(task, 0).judge(prompts(*[PROMPT] * len(i)), a, b)
    np.testing.assert_array_equal(answer.forward.reshape(63, 63), p)


def cycles(p: np.ndarray) -> int:
    beats = p > 0.5
    return sum(
        (beats[i, j] and beats[j, k] and beats[k, i]) or (beats[j, i] and beats[k, j] and beats[i, k])
        for i, j, k in combinations(range(len(p)), 3)
    )


def test_cyclic_preferences_are_intransitive() -> None:
    plain, mixed, pure = (Sandbox.tabular(cyclic=c).preference_matrix(PROMPT, 0)[1] for c in (0.0, 0.5, 1.0))
    logits = np.log(plain / (1 - plain))
    np.testing.assert_allclose(logits[0] - logits[5], logits[0, 5], atol=1e-6)  # Bradley-Terry: differences of rewards
    assert cycles(plain) == 0
    assert 0 < cycles(mixed) < cycles(pure)
    assert not (np.delete(pure, 0, axis=1) > 0.5).all(axis=1).any()
    assert (pure > 0.5).any(axis=0).all()  # everything is beaten by something: no best response


def test_text_preferences_can_be_cyclic_too() -> None:
    world = Sandbox(cyclic=1, rater="bradley_terry").world(0)
    text = world.write([PROMPT] * 30, np.ones(30, dtype=bool), np.random.default_rng(0))
    p = np.array([world.preference([PROMPT] * 30, [a] * 30, text) for a in text])
    assert cycles(p) > 0
