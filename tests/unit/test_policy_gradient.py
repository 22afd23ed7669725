"""Losses whose gradient on pairs of the policy's own is a policy gradient: RLOO with two samples, and HyPO's KL term.

The tabular world: K responses of one token, every pair enumerated under its probability, so expectations are exact and
are held against automatic differentiation of the objective itself. Then the same through the real streams, and what a
study may not ask for.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import TINY_STUDY
from test_closed_forms import every_pair, random_world
from test_streams import PAIRS, PROMPTS, Writer, ranks
from torch import Tensor

from aligngap.losses import IPO, RLOO, Loss, UnlabelledKL
from aligngap.pipeline.align import Align
from aligngap.pipeline.plan import expand
from aligngap.seeding import derive
from aligngap.storage.pairs import pair_from_row, pair_to_row
from aligngap.streams import Dataset, Mixture, OnPolicy, Relabelled
from aligngap.study.build import needs_probabilities
from aligngap.study.load import validate
from aligngap.study.variants import apply_variant
from aligngap.study.yaml_file import parse_yaml
from aligngap.types import AligngapError

K = 5


def world(seed: int) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """Logits of a policy away from its reference, the reference, and a preference matrix."""
    ref, _, p = random_world(K, seed)
    logits = torch.tensor(np.random.default_rng(seed + 100).normal(size=K)).requires_grad_()
    return logits, ref, p


def expected_gradient(loss: Loss, logits: Tensor, ref: np.ndarray, p: np.ndarray, labelled: bool = True) -> Tensor:
    """E over both responses ~ pi (no gradient through the sampling) of the loss's gradient in the logits."""
    pi = torch.softmax(logits, -1).detach()
    x = replace(every_pair(logits, ref, p), labelled=torch.full((K * K,), labelled))
    (found,) = torch.autograd.grad((torch.outer(pi, pi).flatten() * loss(x)).sum(), logits)
    return found


def divergence(logits: Tensor, ref: np.ndarray) -> Tensor:
    log_pi = torch.log_softmax(logits, -1)
    return (log_pi.exp() * (log_pi - torch.tensor(np.log(ref)))).sum()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("beta", [0.05, 1.0])
def test_rloo_ascends_reward_minus_kl(seed: int, beta: float) -> None:
    logits, ref, _ = world(seed)
    reward = np.random.default_rng(seed).normal(size=K)
    p = 1 / (1 + np.exp(reward[None, :] - reward[:, None]))
    objective = (torch.softmax(logits, -1) * torch.tensor(reward)).sum() - beta * divergence(logits, ref)
    (truth,) = torch.autograd.grad(objective, logits)
    torch.testing.assert_close(-expected_gradient(RLOO(beta), logits, ref, p), truth, atol=1e-9, rtol=1e-7)
    assert float(truth.abs().max()) > 0.01


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("beta", [0.05, 1.0])
def test_rloo_on_wins_ascends_the_win_rate_against_itself_minus_kl(seed: int, beta: float) -> None:
    """Whatever the preference, transitive or not; the opponent is the policy as it stands, without gradient."""
    logits, ref, p = world(seed)
    pi = torch.softmax(logits, -1)
    objective = pi @ torch.tensor(p) @ pi.detach() - beta * divergence(logits, ref)
    (truth,) = torch.autograd.grad(objective, logits)
    found = expected_gradient(RLOO(beta, "win"), logits, ref, p)
    torch.testing.assert_close(-found, truth, atol=1e-12, rtol=1e-9)
    ipo = expected_gradient(IPO(beta), logits, ref, p)  # the same direction, pair by pair
    torch.testing.assert_close(found, ipo / (4 * beta), atol=1e-12, rtol=1e-9)


def test_off_policy_rloo_is_no_policy_gradient() -> None:
    """Pairs of another writer: importance is not corrected, and the expected gradient is another one."""
    logits, ref, p = world(0)
    mu = torch.tensor(np.random.default_rng(9).dirichlet(np.ones(K)))
    loss = RLOO(0.1, "win")(every_pair(logits, ref, p))
    (found,) = torch.autograd.grad((torch.outer(mu, mu).flatten() * loss).sum(), logits)
    assert not torch.allclose(found, expected_gradient(RLOO(0.1, "win"), logits, ref, p), atol=1e-2)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("weight", [0.01, 2.0])
def test_unlabelled_pairs_descend_the_kl(seed: int, weight: float) -> None:
    logits, ref, p = world(seed)
    (truth,) = torch.autograd.grad(weight * divergence(logits, ref), logits)
    hypo = UnlabelledKL(IPO(0.1), weight)
    torch.testing.assert_close(expected_gradient(hypo, logits, ref, p, False), truth, atol=1e-12, rtol=1e-9)
    ours, plain = expected_gradient(hypo, logits, ref, p, True), expected_gradient(IPO(0.1), logits, ref, p)
    assert torch.equal(ours, plain)  # bit by bit: the KL term leaves no trace on labelled pairs


def test_without_the_term_an_unlabelled_pair_is_a_tie() -> None:
    """Under IPO a tie on the policy's own pairs is that KL term too, of weight 4 beta^2."""
    logits, ref, _ = world(1)
    tie = np.full((K, K), 0.5)
    found = expected_gradient(IPO(0.3), logits, ref, tie, False)
    kl = expected_gradient(UnlabelledKL(IPO(0.3), 4 * 0.3**2), logits, ref, tie, False)
    torch.testing.assert_close(found, kl, atol=1e-12, rtol=1e-9)


# ------------------------------------------------------------------------------------------------------- the streams


def test_a_policy_without_a_judge_writes_unlabelled_pairs() -> None:
    stream = OnPolicy(PROMPTS, None, seed=derive(0, "x"))
    for p in stream.draw(5, Writer()):
        assert (p.labelled, p.p_chosen, p.judged_forward, p.judged_backward, p.writer) == (
            False,
            0.5,
            0.5,
            0.5,
            "w@step0",
        )
        assert pair_from_row(pair_to_row(p)) == p
    with pytest.raises(AligngapError, match="judge"):
        OnPolicy(PROMPTS, None, seed=0, candidates=3)


def test_unlabelled_pairs_are_of_the_policy_as_it_stands_at_every_step() -> None:
    writer = Writer()
    stream = Mixture(OnPolicy(PROMPTS, None, seed=1), Dataset(PAIRS, 2), share=0.5, seed=3)
    data = Dataset(PAIRS, 2)
    for step in range(12):
        writer.step = step
        drawn = stream.draw(6, writer)
        assert {p.writer for p in drawn if not p.labelled} <= {f"w@step{step}"}
        labelled = [p for p in drawn if p.labelled]
        assert labelled == data.draw(len(labelled))


def test_relabelling_leaves_unlabelled_pairs_alone() -> None:
    def mixed() -> Mixture:
        return Mixture(OnPolicy(PROMPTS, None, seed=1), Dataset(PAIRS, 2), share=0.5, seed=3)

    given, new = mixed().draw(20, Writer()), Relabelled(mixed(), ranks(20)).draw(20, Writer())
    assert [p for p in given if not p.labelled] == [p for p in new if not p.labelled]
    assert sum(p.labelled for p in new) not in (0, 20)


def test_a_row_of_before_there_were_unlabelled_pairs_is_a_labelled_one() -> None:
    row = pair_to_row(PAIRS[0])
    assert pair_from_row(row | {"labelled": None}) == PAIRS[0]
    del row["labelled"]
    assert pair_from_row(row) == PAIRS[0]


# ----------------------------------------------------------------------------------------------------------- studies


def study(**changes: object) -> dict[str, object]:
    raw = parse_yaml(TINY_STUDY, "tiny")
    raw["arms"]["soft"] = {"behavior": "policy", "judge": "proxy", "soft_labels": True}
    for key, value in changes.items():
        *sections, last = key.split("__")
        place = raw
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    return raw


RLOO_LOSS = {"name": "rloo", "beta": 0.1}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"recipe__loss": RLOO_LOSS}, ["rloo", "`online`", "soft_labels: true"]),
        ({"variants": {"v": {"set": {"recipe.loss": RLOO_LOSS}, "arms": ["soft", "offline"]}}},
         ["variants.v", "rloo", "`offline`", "soft_labels: true"]),
        ({"arms__hypo": {"behavior": "dataset", "judge": "golden", "unlabelled": 0.5}}, ["`hypo`", "on_policy_kl"]),
        ({"arms__x": {"behavior": "policy", "judge": "proxy", "unlabelled": 0.5}}, ["unlabelled", "behavior: policy"]),
        ({"arms__x": {"behavior": "dataset", "judge": "proxy", "reuse": 2}}, ["reuse", "behavior: dataset"]),
        ({"arms__x": {"behavior": "dataset", "judge": "proxy", "mix_reference": 0.1}}, ["mix_reference"]),
        ({"arms__x": {"behavior": "policy", "judge": "proxy", "mix_reference": 1.1}}, ["mix_reference", "1.1"]),
        ({"arms__x": {"behavior": "policy", "judge": "proxy", "candidates": 1}}, ["candidates", "1"]),
        ({"recipe__label_smoothing": 0.6}, ["recipe.label_smoothing", "0.6"]),
    ],
)  # fmt: skip
def test_what_a_study_may_not_ask_for(changes: dict[str, object], named: list[str]) -> None:
    with pytest.raises(AligngapError) as error:
        validate(study(**changes), "tiny.yaml")
    assert "\n" not in str(error.value)
    for name in ("tiny.yaml", *named):
        assert name in str(error.value)


def test_rloo_on_probabilities_and_on_wins_is_allowed() -> None:
    allowed = validate(study(variants={"v": {"set": {"recipe.loss": RLOO_LOSS}, "arms": ["soft"]}}), "tiny")
    assert needs_probabilities(apply_variant(allowed, "v"))
    assert not needs_probabilities(validate(study(recipe__loss=RLOO_LOSS | {"reward": "win"}), "tiny"))


def test_the_golden_policy_under_rloo_hears_probabilities() -> None:
    arms = {side: {"behavior": "policy", "judge": side, "soft_labels": True} for side in ("proxy", "golden")}
    raw = study(
        recipe__loss=RLOO_LOSS, arms=arms, compare=["proxy", "golden"], measurement__opponents=["golden_policy"]
    )
    start = next(iter(expand(validate(raw, "tiny")).start.values()))
    opponent = start.opponents["golden_policy"].policy
    assert isinstance(opponent, Align)
    assert opponent.source.arm.soft_labels


def test_the_kl_term_is_part_of_a_run_with_unlabelled_pairs_and_of_no_other() -> None:
    """Arms without any keep their keys, whatever the weight; a replay of such a run has the term too."""
    arms = {
        "online": {"behavior": "policy", "judge": "proxy"}, "offline": {"behavior": "dataset", "judge": "golden"},
        "hypo": {"behavior": "dataset", "judge": "golden", "unlabelled": 0.5},
        "replay": {"behavior": "recording", "of": "hypo"},
        "mixed": {"behavior": "mixture", "mix": ["online", "hypo"]},
    }  # fmt: skip
    plans = [
        {r.arm: r.align for r in expand(validate(study(arms=arms, recipe__on_policy_kl=w), "tiny")).runs}
        for w in (0.1, 0.2)
    ]
    assert {arm for arm in arms if plans[0][arm].name != plans[1][arm].name} == {"hypo", "replay", "mixed"}
    assert {arm: a.on_policy_kl for arm, a in plans[0].items()} == {
        "online": 0.0, "offline": 0.0, "hypo": 0.1, "replay": 0.1, "mixed": 0.1
    }  # fmt: skip
