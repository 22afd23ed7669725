"""Best-of-n of the SFT policy: the average over subsets is exact, the round robin finds the best, KL is a bound."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from conftest import TableJudge, prompt, response

from aligngap.measurement import Opponent
from aligngap.models.policy import Policy
from aligngap.pipeline import best_of_n as pipeline_best_of_n
from aligngap.pipeline.best_of_n import best_of_n, shares_of_best, sizes
from aligngap.pipeline.measure import best_of
from aligngap.stats.reference import gain_per_nat
from aligngap.stats.scaling_law import best_of_n_kl
from aligngap.storage.columns import BEST_OF_N_COLUMNS
from aligngap.storage.records import BEST_OF_N, read_best_of_n, write_table
from aligngap.streams import PROMPTS_AT_ONCE, judge_pairs, round_robin
from aligngap.types import Judgement, Prompt, Response

QUALITY = np.random.default_rng(0).normal(size=40)  # by first token: what the golden judge sees
LOOKS = QUALITY + np.random.default_rng(1).normal(size=40)  # what the proxy sees


class Writer:
    """A sampler that answers with one token, uniformly."""

    key = "writer"

    def sample(self, prompts: Sequence[Prompt], n: int, seed: int) -> list[list[Response]]:
        rng = np.random.default_rng(seed)
        return [[response([int(t)]) for t in rng.integers(0, 40, n)] for _ in prompts]


class ScoreJudge:
    """p(a beats b) = sigmoid(score difference), with a position bias that both orders cancel."""

    def __init__(self, score: np.ndarray, bias: float = 0.3) -> None:
        self.score, self.bias, self.key, self.asked = score, bias, "score", 0

    def judge(self, prompts: Sequence[Prompt], a: Sequence[Response], b: Sequence[Response]) -> Judgement:
        self.asked += len(prompts)
        gap = self.score[[r.ids[0] for r in a]] - self.score[[r.ids[0] for r in b]]
        return Judgement(1 / (1 + np.exp(-gap - self.bias)), 1 / (1 + np.exp(gap - self.bias)))


PROMPTS = [prompt([i]) for i in range(PROMPTS_AT_ONCE + 9)]
OPPONENTS = [
    Opponent("sft", [response([i % 40]) for i in range(len(PROMPTS))]),
    Opponent("chosen", [response([int(QUALITY.argmax())])] * len(PROMPTS)),
]


def run(n: int, seed: int = 3) -> pd.DataFrame:
    return pd.DataFrame(best_of_n(Writer(), ScoreJudge(LOOKS), ScoreJudge(QUALITY), PROMPTS, OPPONENTS, n=n, seed=seed))


def test_win_rates_are_the_average_over_all_subsets() -> None:
    from aligngap.seeding import derive

    rows = run(6)
    answers = Writer().sample(PROMPTS, 6, derive(3, "best of n"))
    beats = judge_pairs(ScoreJudge(LOOKS), PROMPTS, answers)
    for opponent in OPPONENTS:
        for m in (1, 2, 4, 6):
            by_prompt = []
            for i, row in enumerate(answers):
                other = QUALITY[opponent.responses[i].ids[0]]
                won = [(np.sign(QUALITY[r.ids[0]] - other) + 1) / 2 for r in row]
                best = []
                for subset in combinations(range(6), m):
                    score = {j: sum(beats[i][j][k] for k in subset if k != j) for j in subset}
                    top = max(score.values())
                    best.append(np.mean([won[j] for j in subset if score[j] >= top - 1e-9]))
                by_prompt.append(np.mean(best))
            found = rows[(rows["opponent"] == opponent.name) & (rows["n"] == m)].iloc[0]
            assert found["win_rate"] == pytest.approx(np.mean(by_prompt), abs=1e-9)
            assert found["win_rate_se"] == pytest.approx(np.std(by_prompt, ddof=1) / np.sqrt(len(PROMPTS)), rel=0.05)


def test_the_opponent_is_the_response_that_the_round_robin_ranks_first() -> None:
    drawn = Writer().sample(PROMPTS, 5, 0)
    chosen = best_of(ScoreJudge(LOOKS), PROMPTS, drawn)
    for row, (best,) in zip(drawn, chosen, strict=True):  # one score a response: the best beats each of the others
        assert LOOKS[best.ids[0]] == max(LOOKS[r.ids[0]] for r in row)


def test_a_subset_is_ranked_by_its_own_members() -> None:
    """Of four, c beats a and b narrowly and loses to d surely: by all four b is ahead of c, among a, b, c it is c."""
    beats = np.full((1, 4, 4), 0.5)
    for (i, j), p in {(0, 1): 0.45, (0, 2): 0.4, (1, 2): 0.45, (0, 3): 0.5, (1, 3): 0.9, (2, 3): 0.0}.items():
        beats[0, i, j], beats[0, j, i] = p, 1 - p
    assert beats[0, 1].sum() > beats[0, 2].sum()
    assert beats[0][np.ix_((0, 1, 2), (0, 1, 2))].sum(axis=1).argmax() == 2
    for m in (1, 2, 3, 4):
        shares = shares_of_best(beats, m)[0]
        want = np.zeros(4)
        for subset in combinations(range(4), m):
            score = beats[0][np.ix_(subset, subset)].sum(axis=1)
            best = np.flatnonzero(score >= score.max() - 1e-9)
            want[np.array(subset)[best]] += 1 / len(best)
        assert shares == pytest.approx(want / want.sum())
        assert shares.sum() == pytest.approx(1)


def test_many_subsets_are_drawn_and_agree_with_all(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    strength = rng.normal(size=(5, 10))
    beats = 1 / (1 + np.exp(strength[:, None, :] - strength[:, :, None]))
    whole = shares_of_best(beats, 4)  # 210 subsets
    monkeypatch.setattr(pipeline_best_of_n, "MOST_SUBSETS", 150)
    drawn = shares_of_best(beats, 4)
    assert np.abs(drawn - whole).max() < 0.15
    assert np.array_equal(drawn, shares_of_best(beats, 4))


def test_rows_are_the_declared_columns_and_come_back(tmp_path) -> None:  # type: ignore[no-untyped-def]
    rows = run(5).assign(variant="")[list(BEST_OF_N_COLUMNS)]  # the variant is known to who collects
    assert set(run(5).columns) == set(rows.columns) - {"variant"}
    assert list(rows["n"]) == [1, 2, 4, 5] * 2
    assert set(rows["seed"]) == {3}
    np.testing.assert_allclose(rows["kl_nats"], best_of_n_kl(rows["n"]))
    write_table(tmp_path / BEST_OF_N, rows, BEST_OF_N_COLUMNS)
    pd.testing.assert_frame_equal(read_best_of_n(tmp_path), rows, check_dtype=False)
    old = {k: v for k, v in BEST_OF_N_COLUMNS.items() if k != "variant"}  # as tables without variants were written
    write_table(tmp_path / BEST_OF_N, rows.drop(columns="variant"), old)
    pd.testing.assert_frame_equal(read_best_of_n(tmp_path), rows, check_dtype=False)


def test_gain_per_nat_by_hand() -> None:
    rows = pd.DataFrame({
        "variant": "", "seed": 0, "opponent": "sft", "n": [1, 4, 16], "kl_nats": best_of_n_kl(np.array([1, 4, 16])),
        "win_rate": [0.5, 0.6, 0.7], "win_rate_se": [0.03, 0.01, 0.04],
    })  # fmt: skip
    kl = np.log(16) - 15 / 16
    assert gain_per_nat(rows) == {0: (pytest.approx(0.2 / kl), pytest.approx(0.05 / kl))}
    assert gain_per_nat(rows, variant="other") == gain_per_nat(rows, "chosen") == {}
    assert gain_per_nat(rows[rows["n"] == 1]) == {}


def test_more_responses_help_and_the_proxy_flatters_itself() -> None:
    rows = run(16)
    sft = rows[rows["opponent"] == "sft"]
    assert sft["win_rate"].is_monotonic_increasing
    assert (sft["proxy_win_rate"].iloc[1:] > sft["win_rate"].iloc[1:]).all()
    assert sft["win_rate"].iloc[0] == pytest.approx(0.5, abs=0.1)


def test_round_robin_ranks_as_the_scores_do_whatever_the_position_bias() -> None:
    answers = Writer().sample(PROMPTS, 8, 0)
    judge = ScoreJudge(LOOKS, bias=1.0)
    score = round_robin(judge, PROMPTS, answers)
    assert judge.asked == len(PROMPTS) * 28  # each pair once
    for row, found in zip(answers, score, strict=True):
        truth = np.array([LOOKS[r.ids[0]] for r in row])
        assert truth[found.argmax()] == truth.max()
        assert found.mean() == pytest.approx(0.5)


def test_a_function_of_the_seed() -> None:
    pd.testing.assert_frame_equal(run(4), run(4))
    assert not run(4, seed=4)["win_rate"].equals(run(4)["win_rate"])
    assert sizes(1) == [1]
    assert sizes(6) == [1, 2, 4, 6]
    with pytest.raises(ValueError, match="at least 1"):
        run(0)
    one = run(1)
    assert list(one["n"]) == [1, 1]
    assert (one["kl_nats"] == 0).all()


def test_kl_is_an_upper_bound_for_a_round_robin_over_few_distinct_responses() -> None:
    """Exact law of best-of-3 by a cyclic pairwise judge over four responses: enumerate all 4^3 samples."""
    p = np.array([0.4, 0.3, 0.2, 0.1])
    beats = np.array([[0.5, 0.9, 0.2, 0.6], [0.1, 0.5, 0.8, 0.7], [0.8, 0.2, 0.5, 0.9], [0.4, 0.3, 0.1, 0.5]])
    law = np.zeros(4)
    for index in np.ndindex(4, 4, 4):
        score = [sum(beats[a, index[j]] for j in range(3) if j != i) for i, a in enumerate(index)]
        top = np.isclose(score, max(score))
        for i in np.flatnonzero(top):
            law[index[i]] += np.prod(p[list(index)]) / top.sum()
    kl = float(np.sum(law * np.log(law / p)))
    assert 0 < kl <= float(best_of_n_kl(3))


def test_a_real_policy_is_a_sampler(policies: Callable[..., Policy]) -> None:
    policy = policies("t5")
    table = np.full((20, 20), 0.5) + np.triu(np.full((20, 20), 0.4), 1) - np.tril(np.full((20, 20), 0.4), -1)
    prompts = [prompt([i, i + 1]) for i in range(4, 10)]
    opponents = [Opponent("sft", [r[0] for r in policy.sample(prompts, 1, 9)])]
    rows = pd.DataFrame(best_of_n(policy, TableJudge(table), TableJudge(table), prompts, opponents, n=4, seed=0))
    assert rows["win_rate"].is_monotonic_increasing
