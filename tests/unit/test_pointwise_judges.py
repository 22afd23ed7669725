"""Judges with one number per response: the closed form, learning by the one trainer, and a policy as reward model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import BOTH, FAMILIES, WORDS, tiny_policy
from hypothesis import given, settings
from hypothesis import strategies as st

from aligngap import registry
from aligngap.fit import Trainer, fit
from aligngap.judges.bradley_terry import BradleyTerryModel
from aligngap.judges.kinds import Local
from aligngap.judges.local import LocalReward
from aligngap.judges.pointwise import bradley_terry
from aligngap.models.batch import collate
from aligngap.models.loading import PLAIN
from aligngap.settings import Optimization
from aligngap.streams import Epochs
from aligngap.types import Judge, Pair, Prompt, Response

GOOD = ("river", "bread", "clock", "apple")
Makes = Callable[[str], BradleyTerryModel | LocalReward]


def make_bradley_terry(family: str) -> BradleyTerryModel:
    policy = tiny_policy(family, spread=1.0)
    judge = BradleyTerryModel(policy.model, policy.tokenizer, key=f"{family}-judge")
    judge.module.eval()
    return judge


def make_local(family: str) -> LocalReward:
    policy, reference = tiny_policy(family, spread=2.0, seed=1), tiny_policy(family, spread=1.0, seed=0)
    return LocalReward(policy.model, reference.model, policy.tokenizer, key="local", beta=0.3)


MAKERS: dict[str, Makes] = {"bradley-terry": make_bradley_terry, "local": make_local}


@pytest.fixture(scope="module", params=[(k, f) for k in MAKERS for f in BOTH], ids="-".join)
def judge(request: pytest.FixtureRequest) -> BradleyTerryModel | LocalReward:
    kind, family = request.param
    return MAKERS[kind](family)


def text(words: str, ended: bool = True) -> Response:
    return Response((99,), ended, words)


def ask(words: str) -> Prompt:
    return Prompt(words, words, (99,))


sentences = st.lists(st.sampled_from(WORDS), min_size=1, max_size=5).map(" ".join)
rows = st.lists(st.tuples(sentences, sentences, sentences, st.booleans(), st.booleans()), min_size=1, max_size=6)


def test_bradley_terry_in_closed_form() -> None:
    d = np.array([0.0, np.log(3.0), -np.log(3.0), 800.0, -800.0])
    judged = bradley_terry(d)
    np.testing.assert_allclose(judged.forward, [0.5, 0.75, 0.25, 1.0, 0.0], atol=1e-12)
    np.testing.assert_allclose(judged.forward + judged.backward, 1.0, atol=1e-12)
    assert judged.hard.tolist() == [0.5, 1.0, 0.0, 1.0, 0.0]


@given(rows)
@settings(max_examples=15)
def test_antisymmetric_transitive_and_alone_as_together(
    judge: BradleyTerryModel | LocalReward, batch: list[tuple[str, str, str, bool, bool]]
) -> None:
    prompts = [ask(p) for p, *_ in batch]
    a, b = [text(x, e) for _, x, _, e, _ in batch], [text(y, e) for _, _, y, _, e in batch]
    ab, ba = judge.judge(prompts, a, b), judge.judge(prompts, b, a)
    assert (ab.forward == ba.backward).all()
    assert (ab.backward == ba.forward).all()
    np.testing.assert_allclose(ab.forward + ab.backward, 1.0, atol=1e-12)
    alone = judge.judge(prompts[:1], a[:1], b[:1])
    assert alone.forward[0] == pytest.approx(ab.forward[0], abs=1e-5)
    # One number a response: the log-odds of a over b is that of a over c plus that of c over b.
    c = [text("old lamp")] * len(batch)
    odds = [np.log(j.forward / j.backward) for j in (ab, judge.judge(prompts, a, c), judge.judge(prompts, c, b))]
    np.testing.assert_allclose(odds[0], odds[1] + odds[2], atol=1e-4)


def test_equal_responses_tie_and_empty_ones_are_judged(judge: BradleyTerryModel | LocalReward) -> None:
    a = [text("lamp", False), text("", True), text("")]
    judged = judge.judge([ask("river")] * 3, a, list(a))
    assert (judged.hard == 0.5).all()
    empty = judge.judge([ask("river")], [text("", False)], [text("lamp")])
    assert np.isfinite(empty.forward).all()


def test_whether_a_response_ended_is_visible(judge: BradleyTerryModel | LocalReward) -> None:
    assert judge.judge([ask("river")], [text("lamp", True)], [text("lamp", False)]).hard[0] != 0.5


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_can_be_a_reward_model(family: str) -> None:
    judge = make_bradley_terry(family)
    assert isinstance(judge, Judge)
    assert 0 < judge.judge([ask("river")], [text("lamp")], [text("bread old")]).forward[0] < 1


def pairs(count: int, seed: int) -> list[Pair]:
    """The response with more good words is better; the other has none."""
    rng = np.random.default_rng(seed)
    bad = [w for w in WORDS if w not in GOOD]
    out = []
    for _ in range(count):
        good, poor = (text(" ".join(rng.choice(words, 3))) for words in (GOOD, bad))
        out.append(Pair(ask(str(rng.choice(WORDS))), good, poor, 1.0, 1.0, 0.0, "data"))
    return out


@pytest.mark.parametrize("kind", MAKERS)
def test_it_learns_a_rule_by_the_same_trainer(kind: str) -> None:
    if kind == "local":
        start = [tiny_policy("t5", spread=0.5) for _ in range(2)]
        judge: BradleyTerryModel | LocalReward = LocalReward(
            start[0].model, start[1].model, start[0].tokenizer, key="k", beta=0.3
        )
    else:
        judge = make_bradley_terry("t5")
    items = judge.items(pairs(64, 0), np.random.default_rng(0))
    how = Optimization(steps=40, batch=16, learning_rate=1e-2)
    steps = list(fit(Trainer(judge.module, how, seed=0), Epochs(items, 0), judge.objective))
    assert steps[0].loss == pytest.approx(np.log(2), abs=0.3)
    held = pairs(64, 1)
    judged = judge.judge([p.prompt for p in held], [p.chosen for p in held], [p.rejected for p in held])
    assert judged.hard.mean() > 0.95
    if isinstance(judge, LocalReward):  # the reference beside it has not moved
        for mine, started in zip(judge.reference.model.parameters(), tiny_policy("t5", spread=0.5).model.parameters(),
                                 strict=True):  # fmt: skip
            assert torch.equal(mine, started)


def test_a_tie_teaches_equal_rewards() -> None:
    """Labels of one half: the loss is smallest, ln 2, where rewards are equal; swapping a pair changes nothing."""
    judge = make_bradley_terry("t5")
    [item] = judge.items(
        [Pair(ask("river"), text("lamp"), text("bread"), 0.5, 0.5, 0.5, "data")], np.random.default_rng(0)
    )
    [turned] = judge.items(
        [Pair(ask("river"), text("bread"), text("lamp"), 0.5, 0.5, 0.5, "data")], np.random.default_rng(0)
    )
    loss, other = judge.objective([item])[0].detach(), judge.objective([turned])[0].detach()
    assert float(loss) >= np.log(2)
    assert float(loss) == pytest.approx(float(other), abs=1e-6)


@pytest.mark.parametrize("family", BOTH)
def test_local_reward_is_the_log_ratio(family: str) -> None:
    """r(x, y) = beta (log pi - log pi_ref), each by a policy's own log-probabilities."""
    judge = make_local(family)
    a, b = text("lamp old"), text("bread", False)
    found = judge.judge([ask("river")], [a], [b])
    reward = []
    for y in (a, b):
        batch = collate([judge.policy.encode_prompt("river")], [judge.policy.encode_response(y.text, y.ended)])
        with torch.no_grad():
            reward.append(0.3 * float(judge.policy.logps(batch) - judge.reference.logps(batch)))
    assert found.forward[0] == pytest.approx(1 / (1 + np.exp(reward[1] - reward[0])), abs=1e-5)


def test_before_training_a_local_reward_knows_nothing() -> None:
    start = [tiny_policy("t5") for _ in range(2)]
    judge = LocalReward(start[0].model, start[1].model, start[0].tokenizer, key="k", beta=0.1)
    held = pairs(16, 2)
    judged = judge.judge([p.prompt for p in held], [p.chosen for p in held], [p.rejected for p in held])
    assert (judged.hard == 0.5).all()


@pytest.mark.parametrize("family", BOTH)
def test_saved_and_loaded_is_the_same_judge(family: str, tmp_path: Path) -> None:
    made, kind = make_local(family), Local(beta=0.3)
    (tmp_path / "judge").mkdir()
    made.save(tmp_path / "judge")
    made.reference.save(tmp_path / "backbone")
    bt = make_bradley_terry(family)
    bt.save(tmp_path / "bt")
    loaded = registry.get("judges", "bradley-terry")().load(tmp_path / "bt", tmp_path / "backbone", PLAIN)
    args = ([ask("river")] * 2, [text("lamp"), text("old apple")], [text("bread"), text("bread", False)])
    for old, new in ((made, kind.load(tmp_path / "judge", tmp_path / "backbone", PLAIN)), (bt, loaded)):
        # a decoder's products with few rows round by where the weights lie in memory, and those of a file lie elsewhere
        rtol = 0.0 if family == "t5" else 1e-6
        np.testing.assert_allclose(new.judge(*args).forward, old.judge(*args).forward, rtol=rtol)
        assert new.key == old.key
    assert not [f for f in tmp_path.rglob("*") if f.suffix in (".bin", ".pt", ".pkl")]
