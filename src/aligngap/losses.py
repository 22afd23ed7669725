"""Losses on pairs: a contrastive loss is one line in the margin h, and never knows where its pairs came from.

Let h = [log pi(y_w|x) - log pi_ref(y_w|x)] - [log pi(y_l|x) - log pi_ref(y_l|x)], of shape [B], in nats.
A soft label p mixes `p * l(h) + (1 - p) * l(-h)`, so ties (p = 1/2), label smoothing and soft labels are properties
of the label and not options of each loss. Losses are per pair and unreduced; their hyper-parameters are frozen.

What this module leaves out: how log-probabilities are computed (`models/policy.py`) and how they are averaged over a
batch (`fit.py`). To add a loss, write a frozen dataclass with `__call__` and name it in `registry.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from aligngap.types import AligngapError

if TYPE_CHECKING:  # a study is read and checked without torch
    from torch import Tensor

Reduction = Literal["sum", "mean"]


@dataclass(frozen=True)
class PairLogps:
    """What a loss may look at. Every tensor has shape [B]; log-probabilities are sums over tokens, in nats.

    `*_length` counts the tokens of each response (EOS included), for losses that use the token mean. An unlabelled pair
    has p_chosen 0.5: to a loss that does not ask, it is a tie.
    """

    policy_chosen: Tensor
    policy_rejected: Tensor
    ref_chosen: Tensor
    ref_rejected: Tensor
    p_chosen: Tensor
    chosen_length: Tensor
    rejected_length: Tensor
    labelled: Tensor | None = None  # [B] of bool; None: all are
    writer_chosen: Tensor | None = None  # log-probabilities by who wrote them, nan where not stored; None: none are
    writer_rejected: Tensor | None = None
    advantage_chosen: Tensor | None = None  # in the group each was written in, nan where there is none; None: nowhere
    advantage_rejected: Tensor | None = None

    def margin(self, reduction: Reduction = "sum") -> Tensor:
        """h [B]: the log-ratio of the chosen minus that of the rejected response.

        "sum" is the log-ratio of whole responses, as in arXiv 2405.08448, section 2. "mean" divides each response's
        log-ratio by its own length, as some libraries do for IPO; at equal beta it regularises differently by about
        the response length.
        """
        chosen = self.policy_chosen - self.ref_chosen
        rejected = self.policy_rejected - self.ref_rejected
        if reduction == "mean":
            return chosen / self.chosen_length - rejected / self.rejected_length
        return chosen - rejected

    def ratios(self) -> tuple[Tensor, Tensor]:
        """log(policy / writer) [B] of the chosen and of the rejected responses.

        Where the writer's log-probabilities are not stored (a data set), the reference stands for the writer, as in
        arXiv 2506.08681: the SFT policy imitates the data.
        """
        writer = []
        for stored, ref in ((self.writer_chosen, self.ref_chosen), (self.writer_rejected, self.ref_rejected)):
            writer.append(ref if stored is None else stored.where(~stored.isnan(), ref))
        return self.policy_chosen - writer[0], self.policy_rejected - writer[1]

    def writer_known(self) -> Tensor:
        """[B] 1 where the writer's log-probabilities are stored, else 0."""
        stored = self.writer_chosen
        return self.p_chosen * 0 if stored is None else (~stored.isnan()).to(self.p_chosen.dtype)

    def lag(self) -> Tensor:
        """[B] log(writer / policy), mean of the two responses, nats; 0 where the writer's are not stored."""
        chosen, rejected = self.ratios()
        known = self.writer_known()
        return known * -(chosen + rejected).detach() / 2


@runtime_checkable
class ReadsProbabilities(Protocol):
    """A loss that may read the judge's probabilities, so that hard labels would mislead it."""

    @property
    def needs_probabilities(self) -> bool:
        """Whether it does, at its settings: a study then refuses arms without `soft_labels`."""
        ...


def logsigmoid(z: Tensor) -> Tensor:
    """log(1 / (1 + exp(-z))), elementwise, without overflow."""
    from torch.nn import functional

    return functional.logsigmoid(z)


class Loss(Protocol):
    """Frozen hyper-parameters with `__call__`: [B] losses, unreduced."""

    def __call__(self, x: PairLogps) -> Tensor: ...


def _check_beta(beta: float) -> None:
    number = isinstance(beta, int | float) and not isinstance(beta, bool)
    if not number or not 0 < beta < math.inf:
        raise AligngapError(f"loss.beta is {beta!r}: the regularisation strength must be a positive number")


def _check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise AligngapError(f"loss.{name} is {value!r}: must be {' or '.join(known)}")


@dataclass(frozen=True)
class IPO:
    """Squared distance of the margin from its target 1/(2 beta): Azar et al. 2023, arXiv 2310.12036.

    `form="beta_h"` is (beta h - 1/2)^2, the form of arXiv 2405.08448, App. B, and the default; `form="target"` is
    (h - 1/(2 beta))^2, the same up to the factor beta^2, which matters to optimisers that are not scale-invariant and
    to gradient clipping. Equation 1 of 2405.08448 prints a target of beta/2, which contradicts its own closed form.
    """

    beta: float = 0.1
    form: Literal["beta_h", "target"] = "beta_h"
    reduction: Reduction = "sum"

    def __post_init__(self) -> None:
        _check_beta(self.beta)
        _check_choice("form", self.form, ("beta_h", "target"))
        _check_choice("reduction", self.reduction, ("sum", "mean"))

    def __call__(self, x: PairLogps) -> Tensor:
        z = self.beta * x.margin(self.reduction)
        loss = x.p_chosen * (z - 0.5) ** 2 + (1 - x.p_chosen) * (-z - 0.5) ** 2
        return loss if self.form == "beta_h" else loss / self.beta**2


@dataclass(frozen=True)
class DPO:
    """log(1 + exp(-beta h)): Rafailov et al. 2023, arXiv 2305.18290, Eq. 7."""

    beta: float = 0.1
    reduction: Reduction = "sum"

    def __post_init__(self) -> None:
        _check_beta(self.beta)
        _check_choice("reduction", self.reduction, ("sum", "mean"))

    def __call__(self, x: PairLogps) -> Tensor:
        z = self.beta * x.margin(self.reduction)
        return -x.p_chosen * logsigmoid(z) - (1 - x.p_chosen) * logsigmoid(-z)


@dataclass(frozen=True)
class SLiC:
    """max(0, 1 - beta h): the ranking loss of SLiC-HF (Zhao et al. 2023, arXiv 2305.10425) on the log-ratio margin.

    The form of GPO (arXiv 2402.05749); SLiC-HF itself compares log-probabilities without a reference.
    """

    beta: float = 0.1
    reduction: Reduction = "sum"

    def __post_init__(self) -> None:
        _check_beta(self.beta)
        _check_choice("reduction", self.reduction, ("sum", "mean"))

    def __call__(self, x: PairLogps) -> Tensor:
        return _mixed(GPO_FUNCTIONS["hinge"], self.beta * x.margin(self.reduction), x.p_chosen)


#: the functions of GPO's table: Tang et al. 2024, arXiv 2402.05749
GPO_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "logistic": lambda z: -logsigmoid(z),
    "squared": lambda z: (z - 1) ** 2,
    "hinge": lambda z: (1 - z).relu(),
    "exponential": lambda z: (-z).exp(),
    "truncated-quadratic": lambda z: (1 - z).relu() ** 2,
    "savage": lambda z: (-z).sigmoid() ** 2,  # 1/(1 + e^z)^2, the one that is not convex
}


@dataclass(frozen=True)
class GPO:
    """f(beta h) for a function f by name: generalised preference optimisation, Tang et al. 2024, arXiv 2402.05749.

    `f`: logistic (DPO), squared ((z - 1)^2, so its beta is twice IPO's), hinge (SLiC), exponential,
    truncated-quadratic or savage. Its tails decide how strongly far margins are still pulled.
    """

    beta: float = 0.1
    f: Literal["logistic", "squared", "hinge", "exponential", "truncated-quadratic", "savage"] = "exponential"
    reduction: Reduction = "sum"

    def __post_init__(self) -> None:
        _check_beta(self.beta)
        _check_choice("f", self.f, tuple(GPO_FUNCTIONS))
        _check_choice("reduction", self.reduction, ("sum", "mean"))

    def __call__(self, x: PairLogps) -> Tensor:
        return _mixed(GPO_FUNCTIONS[self.f], self.beta * x.margin(self.reduction), x.p_chosen)


@dataclass(frozen=True)
class ChiPO:
    """DPO with the link phi(r) = r + log r in place of log r: Huang et al. 2024, arXiv 2407.13399, Algorithm 1.

    -log sigmoid(clip(beta [phi(r_w) - phi(r_l)], -2R, 2R)) with r = pi/pi_ref: it regularises by chi-squared
    divergence beside KL. `bound` is the paper's R, the largest reward (null: no clip). A ratio counts as at most e^20,
    so that r stays finite; its logarithm is not cut.
    """

    beta: float = 0.1
    bound: float | None = None

    def __post_init__(self) -> None:
        _check_beta(self.beta)
        if self.bound is not None and not 0 < self.bound < math.inf:
            raise AligngapError(f"loss.bound is {self.bound!r}: the largest reward must be a positive number or null")

    def __call__(self, x: PairLogps) -> Tensor:
        chosen, rejected = x.policy_chosen - x.ref_chosen, x.policy_rejected - x.ref_rejected
        link = chosen.clamp_max(20.0).exp() + chosen - rejected.clamp_max(20.0).exp() - rejected
        z = self.beta * link
        if self.bound is not None:
            z = z.clamp(-2 * self.bound, 2 * self.bound)
        return _mixed(GPO_FUNCTIONS["logistic"], z, x.p_chosen)


@dataclass(frozen=True)
class SquaredPO:
    """DPO with the link f'(r) = (log r) / r in place of log r: Pipano et al. 2026, arXiv 2602.06788.

    -log sigmoid(beta [f'(r_w) - f'(r_l)]) with r = pi/pi_ref, the loss of f-DPO for f(r) = (log r)^2 / 2, which is
    not convex and has its least value at r = 1: the probability of the winner need not fall, as under DPO it may. The
    link is largest at r = e, beyond which a winner is no longer pulled up. 1/r counts as at most e^20.
    """

    beta: float = 0.1

    def __post_init__(self) -> None:
        _check_beta(self.beta)

    def __call__(self, x: PairLogps) -> Tensor:
        chosen, rejected = x.policy_chosen - x.ref_chosen, x.policy_rejected - x.ref_rejected
        link = chosen * (-chosen).clamp_max(20.0).exp() - rejected * (-rejected).clamp_max(20.0).exp()
        return _mixed(GPO_FUNCTIONS["logistic"], self.beta * link, x.p_chosen)


def _mixed(f: Callable[[Tensor], Tensor], z: Tensor, p_chosen: Tensor) -> Tensor:
    """p f(z) + (1 - p) f(-z), [B]."""
    return p_chosen * f(z) + (1 - p_chosen) * f(-z)


@dataclass(frozen=True)
class BestOfTwo:
    """Maximum likelihood on the winner of the pair: arXiv 2405.08448, Eq. 3 (its printed sign is a slip).

    Non-contrastive: no reference term and no loser term, so it has no beta; `reduction="mean"` divides by length.
    A tie gives both responses half the weight.
    """

    reduction: Reduction = "sum"

    def __post_init__(self) -> None:
        _check_choice("reduction", self.reduction, ("sum", "mean"))

    def __call__(self, x: PairLogps) -> Tensor:
        chosen, rejected = x.policy_chosen, x.policy_rejected
        if self.reduction == "mean":
            chosen, rejected = chosen / x.chosen_length, rejected / x.rejected_length
        return -(x.p_chosen * chosen + (1 - x.p_chosen) * rejected)


#: a preference nearer to 0 or 1 than this counts as this: reward differences then lie within 13.8
SURE = 1e-6


@dataclass(frozen=True)
class RLOO:
    """Policy gradient from two samples, each the other's baseline: RLOO, Ahmadian et al. 2024, arXiv 2402.14740, k = 2.

    With R = r - beta log(pi/pi_ref) the estimate is 1/2 (R_1 - R_2) (grad log pi_1 - grad log pi_2): only differences
    count, and it is minus the gradient of this loss, (d - beta h)^2 / (4 beta) with d = r_chosen - r_rejected.

    `reward="logit"`: d = log(p / (1 - p)), the reward difference of Bradley-Terry; the policy ascends
    E[r] - beta KL(pi || pi_ref). It reads probabilities, so its arms need `soft_labels`.
    `reward="win"`: d = p - 1/2; it ascends E[p(y beats y')] - beta KL with y' by the policy as it stands. Pair by pair
    that is the gradient of IPO divided by 4 beta (compare arXiv 2403.08635): under an optimiser that does not see the
    scale, online IPO by another name.

    Importance is not corrected. On pairs that the policy as it stands did not write (a data set, a recording,
    `sync_every` or `reuse` above 1, `mix_reference`) it is no policy gradient but a regression of reward differences
    (REBEL, Gao et al. 2024, arXiv 2404.16767).
    """

    beta: float = 0.1
    reward: Literal["logit", "win"] = "logit"

    def __post_init__(self) -> None:
        _check_beta(self.beta)
        _check_choice("reward", self.reward, ("logit", "win"))

    @property
    def needs_probabilities(self) -> bool:
        """Whether hard labels would be read as all but sure: a study refuses arms without `soft_labels`."""
        return self.reward == "logit"

    def __call__(self, x: PairLogps) -> Tensor:
        d = x.p_chosen.logit(SURE) if self.reward == "logit" else x.p_chosen - 0.5
        return (d - self.beta * x.margin()) ** 2 / (4 * self.beta)


@dataclass(frozen=True)
class GRPO:
    """Clipped policy gradient on group-relative advantages: Shao et al. 2024, arXiv 2402.03300, section 4.1.

    The mean over the two responses of -min(rho A, clip(rho, 1 - epsilon, 1 + epsilon) A) + beta (r - log r - 1), with
    rho = pi/mu, mu who wrote it, and r = pi_ref/pi, at most e^20. A is the response's advantage in its group, of as
    many `candidates` as an arm with `grouped` writes; a pair that knows no group is one of two: A is 1 for the winner,
    -1 for the loser and 0 in a tie. Ratios are of whole responses, as in arXiv 2507.18071 but undivided by length; on
    pairs that the policy as it stands has written they are 1.
    """

    beta: float = 0.04
    epsilon: float = 0.2

    reads_writer = True

    def __post_init__(self) -> None:
        _check_beta(self.beta)
        if not 0 < self.epsilon < 1:
            raise AligngapError(f"loss.epsilon is {self.epsilon!r}: must lie between 0 and 1")

    def __call__(self, x: PairLogps) -> Tensor:
        chosen, rejected = x.ratios()
        ahead = (x.p_chosen - 0.5).sign()
        terms = (
            (chosen, x.advantage_chosen, ahead, x.ref_chosen - x.policy_chosen),
            (rejected, x.advantage_rejected, -ahead, x.ref_rejected - x.policy_rejected),
        )
        total = x.p_chosen * 0
        for ratio, stored, of_two, to_ref in terms:
            a = of_two if stored is None else stored.where(~stored.isnan(), of_two)
            rho = ratio.exp()
            gain = (rho * a).minimum(rho.clamp(1 - self.epsilon, 1 + self.epsilon) * a)
            total = total - gain + self.beta * (to_ref.clamp_max(20.0).exp() - to_ref - 1)
        return total / 2


@dataclass(frozen=True)
class Smoothed:
    """Any loss under smoothed labels: p becomes (1 - epsilon) p + epsilon (1 - p); at `epsilon` = 1/2 all are ties.

    With DPO it is conservative DPO (E. Mitchell, "A note on DPO with noisy preferences and relationship to IPO", 2023):
    a label is right with probability 1 - epsilon. A property of the labels, so the same for every arm and loss of a
    study (`recipe.label_smoothing`); recordings keep the labels as the judge gave them.
    """

    loss: Loss
    epsilon: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.epsilon <= 0.5:
            raise AligngapError(f"label_smoothing is {self.epsilon!r}: must lie between 0 and 0.5")

    def __call__(self, x: PairLogps) -> Tensor:
        return self.loss(replace(x, p_chosen=(1 - 2 * self.epsilon) * x.p_chosen + self.epsilon))


@dataclass(frozen=True)
class UnlabelledKL:
    """Any loss where pairs are labelled, and `weight` KL(pi || pi_ref) where they are not: HyPO, arXiv 2406.01462.

    Song et al. 2024 add to an offline loss a KL term, estimated on unlabelled responses of the policy itself. From two
    of them, with l = log(pi/pi_ref), 1/2 (l_1 - l_2) (grad log pi_1 - grad log pi_2) is an unbiased estimate of the
    gradient of KL (RLOO with no reward), and it is the gradient of h^2 / 4. The value of the loss is not the KL.
    """

    loss: Loss
    weight: float

    def __post_init__(self) -> None:
        if not 0 <= self.weight < math.inf:
            raise AligngapError(f"weight of the KL term is {self.weight!r}: must not be negative")

    def __call__(self, x: PairLogps) -> Tensor:
        if x.labelled is None:
            return self.loss(x)
        return self.loss(x).where(x.labelled, self.weight * x.margin() ** 2 / 4)


def classified_right(x: PairLogps) -> Tensor:
    """[B] 1 where the policy, as a classifier by the sign of h, prefers the chosen response; ties count one half."""
    return (x.margin().sign() + 1) / 2
