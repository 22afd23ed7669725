"""Losses against numbers worked out by hand, their derivatives, their optima for two answers, and their symmetries."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from aligngap import registry
from aligngap.losses import (
    DPO,
    GPO,
    GPO_FUNCTIONS,
    GRPO,
    IPO,
    RLOO,
    BestOfTwo,
    ChiPO,
    Loss,
    PairLogps,
    SLiC,
    Smoothed,
    SquaredPO,
    UnlabelledKL,
    classified_right,
)
from aligngap.types import AligngapError

CONTRASTIVE: list[Loss] = [
    IPO(0.1), IPO(0.5, "target"), IPO(0.3, "beta_h", "mean"), IPO(0.3, "target", "mean"), DPO(0.1), DPO(1.0, "mean"),
    SLiC(0.1), SLiC(0.3, "mean"), *(GPO(0.1, f) for f in GPO_FUNCTIONS), GPO(0.3, "savage", "mean"),  # type: ignore[arg-type]
]  # fmt: skip
LOSSES: list[Loss] = [
    *CONTRASTIVE, BestOfTwo(), BestOfTwo("mean"), ChiPO(0.05), ChiPO(0.02, 1.0), UnlabelledKL(IPO(0.1), 0.3),
    RLOO(0.1), RLOO(0.5, "win"), SquaredPO(0.1), GRPO(0.1),
]  # fmt: skip
MIXING = [loss for loss in LOSSES if not isinstance(loss, RLOO | GRPO)]  # those that mix p l(h) + (1 - p) l(-h)


def logps(
    chosen: Any,
    rejected: Any,
    ref_chosen: Any = 0.0,
    ref_rejected: Any = 0.0,
    p: Any = 1.0,
    lengths: tuple[Any, Any] = (1.0, 1.0),
) -> PairLogps:
    def column(value: Any) -> Tensor:
        return value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64).reshape(-1)

    return PairLogps(*map(column, (chosen, rejected, ref_chosen, ref_rejected, p, *lengths)))


# One pair by hand: log-ratios -10 - (-12) = 2 and -9 - (-8) = -1, so h = 3; lengths 4 and 2, so the mean margin is
# 2/4 - (-1)/2 = 1.
HAND = logps(-10.0, -9.0, -12.0, -8.0, 1.0, (4.0, 2.0))


def test_margin_by_hand() -> None:
    assert HAND.margin().item() == 3.0
    assert HAND.margin("mean").item() == 1.0
    assert classified_right(HAND).item() == 1.0
    assert classified_right(logps(-9.0, -10.0, -8.0, -12.0)).item() == 0.0
    assert classified_right(logps(-1.0, -1.0)).item() == 0.5


@pytest.mark.parametrize(
    ("loss", "value"),
    [
        (IPO(0.1), (0.3 - 0.5) ** 2),  # 0.04
        (IPO(0.1, "target"), (3 - 5) ** 2),  # 4
        (IPO(0.1, "beta_h", "mean"), (0.1 - 0.5) ** 2),  # 0.16
        (IPO(0.1, "target", "mean"), (1 - 5) ** 2),  # 16
        (IPO(1.0), (3 - 0.5) ** 2),
        (DPO(0.1), math.log(1 + math.exp(-0.3))),
        (DPO(0.1, "mean"), math.log(1 + math.exp(-0.1))),
        (SLiC(0.1), 0.7),
        (SLiC(0.5), 0.0),  # 1 - 1.5 < 0
        (GPO(0.1, "logistic"), math.log(1 + math.exp(-0.3))),
        (GPO(0.1, "squared"), 0.49),
        (GPO(0.1, "hinge"), 0.7),
        (GPO(0.1, "exponential"), math.exp(-0.3)),
        (GPO(0.1, "truncated-quadratic"), 0.49),
        (GPO(0.5, "truncated-quadratic"), 0.0),
        (GPO(0.1, "savage"), (1 + math.exp(0.3)) ** -2),
        (ChiPO(0.1), math.log(1 + math.exp(-0.1 * (math.exp(2) + 2 - math.exp(-1) + 1)))),
        (ChiPO(0.1, 0.25), math.log(1 + math.exp(-0.5))),  # 0.1 * 10.02 is cut at 2 * 0.25
        (BestOfTwo(), 10.0),
        (BestOfTwo("mean"), 2.5),
        (RLOO(0.1, "win"), (0.5 - 0.3) ** 2 / 0.4),
        (RLOO(0.1), (math.log((1 - 1e-6) / (1 - (1 - 1e-6))) - 0.3) ** 2 / 0.4),  # a hard label is all but sure
        (UnlabelledKL(IPO(0.1), 0.3), 0.04),
    ],
)
def test_by_hand(loss: Loss, value: float) -> None:
    assert loss(HAND).item() == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    ("loss", "value"),
    [
        (IPO(0.1), 0.75 * 0.04 + 0.25 * 0.64),  # 3/4 (.3 - .5)^2 + 1/4 (-.3 - .5)^2
        (IPO(0.1, "target"), 0.75 * 4 + 0.25 * 64),
        (DPO(0.1), 0.75 * math.log(1 + math.exp(-0.3)) + 0.25 * math.log(1 + math.exp(0.3))),
        (SLiC(0.1), 0.75 * 0.7 + 0.25 * 1.3),
        (GPO(0.1, "exponential"), 0.75 * math.exp(-0.3) + 0.25 * math.exp(0.3)),
        (ChiPO(0.1, 0.25), 0.75 * math.log(1 + math.exp(-0.5)) + 0.25 * math.log(1 + math.exp(0.5))),
        (BestOfTwo(), 0.75 * 10 + 0.25 * 9),
        (BestOfTwo("mean"), 0.75 * 2.5 + 0.25 * 4.5),
        (RLOO(0.1), (math.log(3) - 0.3) ** 2 / 0.4),  # 3 to 1 is log 3 of reward
        (RLOO(0.1, "win"), (0.25 - 0.3) ** 2 / 0.4),
    ],
)
def test_soft_labels_by_hand(loss: Loss, value: float) -> None:
    soft = logps(-10.0, -9.0, -12.0, -8.0, 0.75, (4.0, 2.0))
    assert loss(soft).item() == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("beta", [0.01, 0.1, 0.5, 1.0])
def test_step_zero(beta: float) -> None:
    """Policy equal to reference: h = 0 exactly, DPO ln 2, IPO 1/4 (or (1/(2 beta))^2 in the target form)."""
    x = logps([-3.7, -100.123], [-8.1, -1e-3], [-3.7, -100.123], [-8.1, -1e-3], [1.0, 0.0], ([3.0, 9.0], [1.0, 2.0]))
    for reduction in ("sum", "mean"):
        assert (x.margin(reduction) == 0).all()  # type: ignore[arg-type]
    assert DPO(beta)(x).tolist() == pytest.approx([math.log(2)] * 2, rel=1e-15)
    assert (IPO(beta)(x) == 0.25).all()
    assert IPO(beta, "target")(x).tolist() == pytest.approx([(1 / (2 * beta)) ** 2] * 2, rel=1e-14)


def test_step_zero_of_the_paper() -> None:
    assert IPO(0.1, "target")(logps(-5.0, -6.0, -5.0, -6.0)).item() == pytest.approx(25.0, rel=1e-14)


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_gradients_agree_with_finite_differences(loss: Loss) -> None:
    generator = torch.Generator().manual_seed(0)
    draw = lambda: torch.randn(5, dtype=torch.float64, generator=generator) * 3 - 8  # noqa: E731
    p = torch.tensor([1.0, 0.0, 0.5, 0.9, 0.3], dtype=torch.float64)
    lengths = (
        torch.tensor([1.0, 2, 3, 4, 5], dtype=torch.float64),
        torch.tensor([5.0, 1, 2, 8, 3], dtype=torch.float64),
    )
    chosen, rejected, ref_chosen, ref_rejected = draw().requires_grad_(), draw().requires_grad_(), draw(), draw()
    torch.autograd.gradcheck(lambda c, r: loss(logps(c, r, ref_chosen, ref_rejected, p, lengths)), (chosen, rejected))


@pytest.mark.parametrize("loss", MIXING, ids=str)
@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.5])
def test_smoothed_labels(loss: Loss, epsilon: float) -> None:
    """(1 - e) of the loss as labelled and e of the loss of the reversed label; for DPO that is conservative DPO."""
    smooth = Smoothed(loss, epsilon)
    for p in (1.0, 0.8, 0.5):
        sides = [loss(replace(HAND, p_chosen=torch.tensor([q], dtype=torch.float64))) for q in (p, 1 - p)]
        mixed = (1 - epsilon) * sides[0] + epsilon * sides[1]
        x = replace(HAND, p_chosen=torch.tensor([p], dtype=torch.float64))
        torch.testing.assert_close(smooth(x), mixed, atol=1e-12, rtol=1e-12)
    if epsilon == 0.5:
        assert smooth(HAND).item() == pytest.approx(smooth(replace(HAND, p_chosen=1 - HAND.p_chosen)).item())


def test_smoothing_bounds_the_margin_that_dpo_wants() -> None:
    assert optimum(Smoothed(DPO(0.1), 0.1), 1.0) == pytest.approx(math.log(0.9 / 0.1) / 0.1, rel=1e-9)
    with pytest.raises(AligngapError, match="label_smoothing"):
        Smoothed(DPO(0.1), 0.6)


def optimum(loss: Loss, p: float) -> float:
    """The margin that minimises the loss of one pair with label p, by Newton steps in float64."""
    h = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    for _ in range(200):
        value = loss(logps(h, torch.zeros(1, dtype=torch.float64), p=p)).sum()
        (slope,) = torch.autograd.grad(value, h, create_graph=True)
        (curve,) = torch.autograd.grad(slope.sum(), h)
        h = (h - (slope / curve).clamp(-2, 2)).detach().requires_grad_()
    return h.item()


@pytest.mark.parametrize("p", [0.55, 0.75, 0.9])
@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_two_answer_optima(beta: float, p: float) -> None:
    """IPO h* = (2p - 1)/(2 beta) in both forms; DPO h* = logit(p)/beta."""
    assert optimum(IPO(beta), p) == pytest.approx((2 * p - 1) / (2 * beta), rel=1e-9)
    assert optimum(IPO(beta, "target"), p) == pytest.approx((2 * p - 1) / (2 * beta), rel=1e-9)
    assert optimum(DPO(beta), p) == pytest.approx(math.log(p / (1 - p)) / beta, rel=1e-9)


@pytest.mark.parametrize(
    ("loss", "p", "h"),
    [(IPO(0.1), 0.75, 2.5), (DPO(0.1), 0.75, 10.986), (IPO(1.0), 0.75, 0.25), (DPO(1.0), 0.75, 1.0986),
     (IPO(0.1), 0.9, 4.0), (DPO(0.1), 0.9, 21.97), (IPO(0.1), 1.0, 5.0), (IPO(0.5), 1.0, 1.0)],
)  # fmt: skip
def test_two_answer_optima_printed_numbers(loss: Loss, p: float, h: float) -> None:
    assert optimum(loss, p) == pytest.approx(h, rel=1e-3)


numbers = st.floats(-40, 0)
pairs = st.tuples(numbers, numbers, numbers, numbers, st.floats(0, 1), st.integers(1, 60), st.integers(1, 60))


@pytest.mark.parametrize("loss", LOSSES, ids=str)
@given(pairs)
def test_swapping_the_pair_and_the_label_changes_nothing(loss: Loss, x: tuple[float, ...]) -> None:
    c, r, rc, rr, p, nc, nr = x
    left = loss(logps(c, r, rc, rr, p, (float(nc), float(nr)))).item()
    right = loss(logps(r, c, rr, rc, 1 - p, (float(nr), float(nc)))).item()
    assert left == pytest.approx(right, rel=1e-9, abs=1e-9)
    assert math.isfinite(left)


@pytest.mark.parametrize("loss", LOSSES, ids=str)
@given(pairs)
def test_a_tie_does_not_know_which_is_chosen(loss: Loss, x: tuple[float, ...]) -> None:
    c, r, rc, rr, _, nc, nr = x
    left = loss(logps(c, r, rc, rr, 0.5, (float(nc), float(nr)))).item()
    right = loss(logps(r, c, rr, rc, 0.5, (float(nr), float(nc)))).item()
    assert left == pytest.approx(right, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("loss", MIXING, ids=str)
@given(pairs)
def test_a_soft_label_mixes_the_two_hard_ones(loss: Loss, x: tuple[float, ...]) -> None:
    c, r, rc, rr, p, nc, nr = x
    of = lambda label: loss(logps(c, r, rc, rr, label, (float(nc), float(nr)))).item()  # noqa: E731
    assert of(p) == pytest.approx(p * of(1.0) + (1 - p) * of(0.0), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("loss", CONTRASTIVE, ids=str)
@given(pairs, st.floats(-50, 50))
def test_contrastive_losses_see_only_the_margin(loss: Loss, x: tuple[float, ...], shift: float) -> None:
    """Moving both log-ratios of equally long responses by one amount changes nothing: a loss is a line in h."""
    c, r, rc, rr, p, n, _ = x
    lengths = (float(n), float(n))
    left, right = (
        loss(logps(c, r, rc, rr, p, lengths)).item(),
        loss(logps(c + shift, r + shift, rc, rr, p, lengths)).item(),
    )
    assert left == pytest.approx(right, rel=1e-6, abs=1e-6)


@given(pairs, st.floats(-50, 50))
def test_best_of_two_sees_no_reference_and_no_loser(x: tuple[float, ...], shift: float) -> None:
    c, r, rc, rr, *_ = x
    assert (
        BestOfTwo()(logps(c, r, rc, rr)).item() == BestOfTwo()(logps(c, r + shift, rc + shift, rr - shift)).item() == -c
    )


@given(pairs, st.floats(0.01, 2))
def test_the_two_forms_of_ipo_differ_by_beta_squared(x: tuple[float, ...], beta: float) -> None:
    c, r, rc, rr, p, nc, nr = x
    y = logps(c, r, rc, rr, p, (float(nc), float(nr)))
    assert IPO(beta)(y).item() == pytest.approx(beta**2 * IPO(beta, "target")(y).item(), rel=1e-9)


@given(pairs, st.floats(0.01, 2))
def test_gpo_holds_dpo_slic_and_ipo(x: tuple[float, ...], beta: float) -> None:
    """IPO's (beta h - 1/2)^2 is a quarter of GPO's squared loss at twice the beta."""
    c, r, rc, rr, p, *_ = x
    y = logps(c, r, rc, rr, p)
    assert GPO(beta, "logistic")(y).item() == pytest.approx(DPO(beta)(y).item(), rel=1e-12, abs=1e-12)
    assert GPO(beta, "hinge")(y).item() == SLiC(beta)(y).item()
    assert GPO(2 * beta, "squared")(y).item() / 4 == pytest.approx(IPO(beta)(y).item(), rel=1e-9)


@pytest.mark.parametrize("ratio", [-1e-6, 0.0, 1e-6])
def test_chi_po_is_dpo_at_twice_the_beta_near_the_reference(ratio: float) -> None:
    """phi(r) = r + log r has slope 2 in log r at r = 1."""
    x = logps(-5 + ratio, -6.0, -5.0, -6.0)
    assert ChiPO(0.1)(x).item() == pytest.approx(DPO(0.2)(x).item(), rel=1e-12)


def test_chi_po_holds_a_large_ratio_back() -> None:
    """At the same margin a winner far above the reference has more reward under chi-PO, so less pull is left."""
    far, near = (logps(-5.0 + a, -6.0 - b, -5.0, -6.0) for a, b in ((4.0, 0.0), (0.0, 4.0)))
    assert DPO(0.1)(far).item() == pytest.approx(DPO(0.1)(near).item())
    assert ChiPO(0.1)(far).item() < ChiPO(0.1)(near).item()


def test_losses_are_per_pair_and_keep_the_batch() -> None:
    x = logps([-1.0, -2.0, -3.0], [-2.0] * 3, [-1.0] * 3, [-1.0] * 3, [1.0, 0.5, 0.0], ([1.0] * 3, [2.0] * 3))
    for loss in LOSSES:
        assert loss(x).shape == (3,)


def test_large_margins_stay_finite_in_float32() -> None:
    for h in (-1e4, 1e4):
        x = PairLogps(*(torch.tensor([v]) for v in (h, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0)))
        assert math.isfinite(DPO(0.5)(x).item())


@pytest.mark.parametrize("beta", [0.0, -0.1, float("nan"), "0.1", None, True, float("inf")])
@pytest.mark.parametrize("name", ["ipo", "dpo", "slic", "gpo", "chi-po"])
def test_a_bad_beta_is_refused(name: str, beta: Any) -> None:
    with pytest.raises(AligngapError, match="beta"):
        registry.get("losses", name)(beta=beta)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ipo", {"form": "beta"}),
        ("ipo", {"reduction": "max"}),
        ("dpo", {"reduction": "avg"}),
        ("best-of-two", {"reduction": 3}),
        ("slic", {"reduction": "max"}),
        ("gpo", {"f": "cubic"}),
        ("chi-po", {"bound": -1.0}),
    ],
)
def test_a_bad_choice_is_refused(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(AligngapError, match=next(iter(options))):
        registry.get("losses", name)(**options)


def test_hyper_parameters_are_frozen() -> None:
    with pytest.raises(AttributeError):
        IPO().beta = 3.0  # type: ignore[misc]


def test_a_loss_named_by_its_module_is_told_how_ones_own_is_named() -> None:
    with pytest.raises(AligngapError, match="named by an entry point of its package"):
        registry.get("losses", "my_hinge:MarginHinge")
