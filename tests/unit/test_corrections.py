"""What answers staleness, each against numbers worked out by hand, a finite difference, and what it is made for."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import TINY_STUDY, TableJudge, pair, prompt, response, tiny_policy
from test_closed_forms import every_pair, random_world
from test_losses import logps
from torch import Tensor

from aligngap.corrections import Importance, Perceptual, Proximal, SecondMoment
from aligngap.losses import DPO, GRPO, IPO, RLOO, Loss, PairLogps, SquaredPO
from aligngap.models.pair_logps import compare_logps, with_reference
from aligngap.pipeline.plan import expand
from aligngap.streams import OnPolicy, label
from aligngap.study.load import validate
from aligngap.types import AligngapError, Prompt, Response


def with_writer(x: PairLogps, chosen: Any, rejected: Any, **more: Any) -> PairLogps:
    def column(v: Any) -> Tensor:
        return v if isinstance(v, Tensor) else torch.tensor(v, dtype=torch.float64).reshape(-1)

    return replace(
        x, writer_chosen=column(chosen), writer_rejected=column(rejected), **{k: column(v) for k, v in more.items()}
    )


# One pair by hand: log-ratios to the reference 2 and -1, so h = 3 and IPO(0.1) is 0.04; to the writer 0.5 and -0.25, so
# since it was written its margin has moved by 0.75.
HAND = with_writer(logps(-10.0, -9.0, -12.0, -8.0), -10.5, -8.75)
CUT = math.log(1.2)


@pytest.mark.parametrize(
    ("loss", "value"),
    [
        (Importance(IPO(0.1), 2.0), math.exp(0.25) * 0.04),
        (Importance(IPO(0.1), 1.1), 1.1 * 0.04),
        (Perceptual(IPO(0.1), -0.5, 1.0), (0.1 * 1.5 - 0.5) ** 2),
        (Perceptual(IPO(0.1), -4.0, 4.0), 0.04),
        (Proximal(IPO(0.1), 0.2), (0.1 * (3 - 0.75 + CUT) - 0.5) ** 2),  # 2.25 at the writer, at most CUT beyond
        (Proximal(IPO(0.1), 2.0), 0.04),
        (SecondMoment(IPO(0.1), 0.2), 0.04),  # (0.5^2 + 0.25^2) / 2 = 0.15625
        (SecondMoment(IPO(0.1), 0.1), 0.0),
        (SquaredPO(0.1), math.log(1 + math.exp(-0.1 * (2 * math.exp(-2) + math.exp(1))))),
        (GRPO(0.1, 0.2), (-1.2 + 0.8 + 0.1 * (math.exp(-2) + 2 - 1 + math.exp(1) - 1 - 1)) / 2),
    ],
)
def test_by_hand(loss: Loss, value: float) -> None:
    assert loss(HAND).item() == pytest.approx(value, rel=1e-12)


ALL: list[Loss] = [
    Importance(DPO(0.1)), Perceptual(IPO(0.1), -1.0, 1.5), Proximal(IPO(0.1)), Proximal(DPO(0.5), 0.05),
    SecondMoment(IPO(0.1), 0.3), SquaredPO(0.2), GRPO(0.1), GRPO(0.02, 0.1),
]  # fmt: skip


def random_pairs(seed: int, n: int = 40) -> PairLogps:
    rng = np.random.default_rng(seed)
    c, r, rc, rr = (torch.tensor(rng.normal(-5, 1, n)) for _ in range(4))
    x = logps(c, r, rc, rr, torch.tensor(rng.choice([0.5, 0.8, 1.0], n)))
    writer = [v + torch.tensor(rng.normal(0, 0.3, n)) for v in (c, r)]
    advantages = [torch.tensor(np.where(rng.random(n) < 0.5, rng.normal(size=n), np.nan)) for _ in range(2)]
    return with_writer(x, *writer, advantage_chosen=advantages[0], advantage_rejected=advantages[1])


@pytest.mark.parametrize("loss", ALL, ids=str)
@pytest.mark.parametrize("side", ["policy_chosen", "policy_rejected"])
def test_the_gradient_is_the_finite_difference(loss: Loss, side: str) -> None:
    """The weights of `Importance` are held as they are, since no gradient flows through them."""
    x, eps = random_pairs(3), 1e-6
    at = getattr(x, side).clone().requires_grad_()
    (found,) = torch.autograd.grad(loss(replace(x, **{side: at})).sum(), at)
    inner = loss.loss if isinstance(loss, Importance) else loss
    ends = [inner(replace(x, **{side: getattr(x, side) + d})) for d in (eps, -eps)]
    expected = (ends[0] - ends[1]) / (2 * eps)
    if isinstance(loss, Importance):
        expected = expected * (loss(x) / loss.loss(x))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("inner", [IPO(0.3), DPO(0.5), RLOO(0.2, "win")], ids=str)
def test_unclipped_importance_gives_the_gradient_on_the_policys_own_pairs(inner: Loss, seed: int) -> None:
    """Exactly, over every pair of five responses: pairs by another policy, weighed, are as good as its own."""
    k = 5
    ref, mu, p = random_world(k, seed)
    logits = torch.tensor(np.random.default_rng(seed + 50).normal(size=k)).requires_grad_()
    pi = torch.softmax(logits, -1).detach()
    x = every_pair(logits, ref, p)
    i, j = (v.flatten() for v in torch.meshgrid(torch.arange(k), torch.arange(k), indexing="ij"))
    log_mu = torch.tensor(np.log(mu))
    stale = replace(x, writer_chosen=log_mu[i], writer_rejected=log_mu[j])
    own, weighed = torch.outer(pi, pi).flatten(), torch.outer(log_mu.exp(), log_mu.exp()).flatten()
    gradients = [
        torch.autograd.grad((w * loss).sum(), logits, retain_graph=True)[0]
        for w, loss in ((own, inner(x)), (weighed, Importance(inner, 1e12)(stale)), (weighed, inner(x)))
    ]
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-9, rtol=1e-9)
    assert (gradients[0] - gradients[2]).abs().max() > 1e-3  # unweighed it is another


def test_where_no_writer_is_known_the_reference_stands_for_it() -> None:
    data = logps(-10.0, -9.0, -12.0, -8.0)
    assert [r.item() for r in data.ratios()] == [2.0, -1.0]
    mixed = with_writer(
        logps([-10.0, -10.0], [-9.0, -9.0], [-12.0] * 2, [-8.0] * 2), [-10.5, math.nan], [-8.75, math.nan]
    )
    assert [r.tolist() for r in mixed.ratios()] == [[0.5, 2.0], [-0.25, -1.0]]
    assert mixed.writer_known().tolist() == [1, 0]
    assert mixed.lag().tolist() == [-0.125, 0.0]
    assert Importance(IPO(0.1), 100.0)(data).item() == pytest.approx(math.exp(1) * 0.04)


@pytest.mark.parametrize(("moved", "pulled"), [(0.0, True), (0.1, True), (0.3, False), (-0.3, True)])
def test_a_pair_that_has_gone_far_enough_is_left_alone_and_one_that_went_back_is_not(
    moved: float, pulled: bool
) -> None:
    """IPO's margin is below its target, so its loss falls as the margin grows; epsilon 0.2 allows 0.18 nats."""
    chosen = torch.tensor([-10.0 + moved], dtype=torch.float64, requires_grad=True)
    x = with_writer(logps(chosen, -9.0, -12.0, -8.0), -10.0, -9.0)
    (gradient,) = torch.autograd.grad(Proximal(IPO(0.1))(x).sum(), chosen)
    whole = torch.autograd.grad(IPO(0.1)(x).sum(), chosen)[0]
    assert gradient.item() == pytest.approx(whole.item() if pulled else 0.0, abs=1e-12)


def test_the_furthest_pairs_are_left_out_until_the_rest_is_near() -> None:
    """Moments 0.01, 0.04, 0.09 and 4: their running means are 0.01, 0.025, 0.0467 and 1.035."""
    zeros = [-5.0] * 4
    ratios = [0.3, 2.0, 0.1, 0.2]
    x = with_writer(logps(zeros, zeros, zeros, zeros), [-5.0 - r for r in ratios], [-5.0 + r for r in ratios])
    for threshold, stays in ((0.005, []), (0.01, [2]), (0.03, [2, 3]), (0.05, [0, 2, 3]), (2.0, [0, 1, 2, 3])):
        found = SecondMoment(IPO(0.1), threshold)(x)
        assert torch.nonzero(found).flatten().tolist() == stays
        assert found[stays].tolist() == pytest.approx([0.25] * len(stays))


@pytest.mark.parametrize(
    "loss", [Importance(IPO(0.1)), Proximal(IPO(0.1)), SecondMoment(IPO(0.1)), Perceptual(IPO(0.1))]
)
def test_on_pairs_of_the_policy_as_it_stands_nothing_is_corrected(loss: Any) -> None:
    x = random_pairs(5)
    x = replace(x, ref_chosen=x.policy_chosen + 0.1, ref_rejected=x.policy_rejected - 0.2)
    fresh = replace(x, writer_chosen=x.policy_chosen, writer_rejected=x.policy_rejected)
    torch.testing.assert_close(loss(fresh), loss.loss(fresh))


def test_squared_po_no_longer_pulls_a_winner_beyond_e_times_its_reference() -> None:
    """Where DPO pulls on: the link u e^-u of a log-ratio u has its top at 1."""
    for at, sign in ((0.5, -1), (1.0, 0), (1.5, 1)):
        chosen = torch.tensor([at], dtype=torch.float64, requires_grad=True)
        x = logps(chosen, 0.0)
        assert np.sign(round(torch.autograd.grad(SquaredPO(0.5)(x).sum(), chosen)[0].item(), 12)) == sign
        assert torch.autograd.grad(DPO(0.5)(x).sum(), chosen)[0].item() < 0


@pytest.mark.parametrize("n", [2, 4, 6])
def test_a_group_gives_grpos_gradient_whatever_its_size(n: int) -> None:
    """On fresh pairs: minus the mean over the group of advantage times the gradient of the log-probability."""
    judge = TableJudge(1 / (1 + np.exp((np.arange(n)[None, :] - np.arange(n)[:, None]) * 0.4)))

    class Numbered:
        key = "w@step0"

        def sample(self, prompts: list[Prompt], n: int, seed: int) -> list[list[Response]]:
            return [[response((i, 1)) for i in np.random.default_rng(seed).permutation(n)] for _ in prompts]

    pairs = OnPolicy([prompt((4,))], judge, seed=0, candidates=n, grouped=True).draw(n // 2, Numbered())
    assert sorted(r.ids[0] for p in pairs for r in (p.chosen, p.rejected)) == list(range(n))  # every one, once
    logits = torch.tensor(np.random.default_rng(1).normal(size=n)).requires_grad_()
    log_pi = torch.log_softmax(logits, -1)
    chosen, rejected = (log_pi[[getattr(p, side).ids[0] for p in pairs]] for side in ("chosen", "rejected"))
    advantages = {
        f"advantage_{side}": torch.tensor([getattr(p, f"advantage_{side}") for p in pairs])
        for side in ("chosen", "rejected")
    }
    x = with_writer(
        logps(chosen, rejected, chosen.detach(), rejected.detach()), chosen.detach(), rejected.detach(), **advantages
    )
    (found,) = torch.autograd.grad(GRPO(0.1)(x).mean(), logits)
    beats = judge.table.sum(axis=1) - 0.5
    a = torch.tensor((beats - beats.mean()) / beats.std())
    (expected,) = torch.autograd.grad(-(a * torch.log_softmax(logits, -1)).mean(), logits)
    torch.testing.assert_close(found, expected)


def test_a_pair_without_a_group_is_a_group_of_two() -> None:
    one, two = with_writer(logps(-3.0, -4.0, -3.0, -4.0), -3.0, -4.0), logps(-3.0, -4.0, -3.0, -4.0, 0.5)
    assert GRPO(0.1)(one).item() == pytest.approx(0.0)  # (-1 + 1) / 2, and no KL
    chosen = torch.tensor([-3.0], dtype=torch.float64, requires_grad=True)
    for x, expected in ((one, -0.5), (two, 0.0)):
        (gradient,) = torch.autograd.grad(GRPO(0.1)(replace(x, policy_chosen=chosen)).sum(), chosen)
        assert gradient.item() == pytest.approx(expected)


def test_stored_numbers_reach_the_loss() -> None:
    policy = tiny_policy("t5", key="w@step0")
    sides, even = ([response((6, 1))] * 2, [response((7, 1))] * 2), TableJudge(np.full((9, 9), 0.5))
    pairs = label([prompt((4, 5))] * 2, *sides, even, writer="w@step0")
    known = replace(pairs[0], writer_chosen=-2.0, writer_rejected=-3.0, advantage_chosen=0.5, advantage_rejected=-0.5)
    with torch.no_grad():
        x = compare_logps(policy, with_reference(policy, [known, pairs[1]]))
    for stored, value in ((x.writer_chosen, -2.0), (x.writer_rejected, -3.0), (x.advantage_rejected, -0.5)):
        assert stored is not None
        assert stored[0].item() == value
        assert stored[1].isnan()
    with torch.no_grad():
        assert compare_logps(policy, with_reference(policy, pairs)).writer_chosen is None
    assert pair(prompt((4,)), (4, 1), (5, 1)).written_at is None


# -------------------------------------------------------------------------------------------------------- in a study


def study(**recipe: Any) -> dict[str, Any]:
    raw: dict[str, Any] = yaml.safe_load(TINY_STUDY)
    raw["recipe"] |= recipe
    return raw


def test_a_study_stores_the_writers_log_probabilities_where_something_reads_them() -> None:
    for recipe, stored in (
        ({}, False), ({"correction": {"name": "perceptual"}}, False), ({"correction": {"name": "importance"}}, True),
        ({"loss": {"name": "grpo"}}, True), ({"writer_logps": True}, True),
    ):  # fmt: skip
        runs = {r.arm: r.align for r in expand(validate(study(**recipe), "tiny")).runs}
        assert (runs["online"].writer_logps, runs["offline"].writer_logps) == (stored, False), recipe
    plain, corrected = (
        expand(validate(study(**r), "tiny")).runs[0].align.name for r in ({}, {"correction": {"name": "perceptual"}})
    )
    assert plain != corrected


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"correction": {"name": "importnce"}}, "corrections: no `importnce`; did you mean `importance`"),
        ({"correction": {"name": "importance", "bond": 2.0}}, r"correction\.bond: not a setting of `importance`"),
        ({"correction": {"name": "importance", "loss": 2.0}}, r"recipe\.correction\.loss: not a setting"),
        ({"correction": {"name": "importance", "bound": "x"}}, r"recipe\.correction\.bound: .*number"),
        ({"correction": {"name": "importance", "bound": -1.0}}, "must be a positive number"),
        ({"correction": {"name": "perceptual", "low": 1.0}}, "0 must lie between them"),
        ({"correction": {"name": "second-moment"}, "optimization": {"steps": 8, "batch": 8, "micro_batch": 4}},
         "`second-moment` reads a batch as a whole"),
        ({"loss": {"name": "grpo", "epsilon": 1.5}}, "between 0 and 1"),
    ],
)  # fmt: skip
def test_what_is_refused(recipe: dict[str, Any], message: str) -> None:
    with pytest.raises(AligngapError, match=message):
        validate(study(**recipe), "tiny")


def test_a_mixed_writer_has_nothing_to_correct_for() -> None:
    raw = study(correction={"name": "proximal"})
    raw["arms"]["near"] = {"behavior": "policy", "judge": "proxy", "mix_reference": 0.5}
    with pytest.raises(AligngapError, match=r"arms\.near\.mix_reference"):
        validate(raw, "tiny")
