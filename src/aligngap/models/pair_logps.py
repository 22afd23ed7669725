"""Log-probabilities of pairs of responses, by a policy and by its reference: what losses and measurements read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from aligngap.losses import PairLogps
from aligngap.models.batch import collate
from aligngap.models.loading import seeded
from aligngap.models.policy import Policy
from aligngap.types import AligngapError, Pair, Progress, silent


def pair_logps(policy: Policy, pairs: Sequence[Pair]) -> tuple[Tensor, Tensor]:
    """log pi of chosen and rejected, [B] each: one forward pass, each prompt encoded once for both."""
    n = len(pairs)
    batch = collate(
        [p.prompt.ids for p in pairs],
        [p.chosen.ids for p in pairs] + [p.rejected.ids for p in pairs],
        [*range(n), *range(n)],
    )
    logps = policy.logps(batch)
    return logps[:n], logps[n:]


def with_reference(reference: Policy, pairs: Sequence[Pair], anew: bool = False) -> list[Pair]:
    """Pairs with the reference's log-probabilities filled in where they are not stored yet.

    `anew`: everywhere, since those stored are another reference's.
    """
    if anew:
        pairs = [replace(p, ref_chosen=None, ref_rejected=None) for p in pairs]
    if all(p.ref_chosen is not None and p.ref_rejected is not None for p in pairs):
        return list(pairs)
    # Where kernels differ with gradient and without, as the policy's forward is: else h would not be 0 at the start.
    with torch.set_grad_enabled(not reference.alike_without_gradient):
        chosen, rejected = (logps.detach() for logps in pair_logps(reference, pairs))
    return [
        p if p.ref_chosen is not None else replace(p, ref_chosen=float(c), ref_rejected=float(r))
        for p, c, r in zip(pairs, chosen.cpu(), rejected.cpu(), strict=True)
    ]


def store_reference(reference: Policy, pairs: Sequence[Pair], progress: Progress = silent) -> list[Pair]:
    """The pairs, in their order, with the reference's log-probabilities, computed batch by batch with progress."""
    order = sorted(range(len(pairs)), key=lambda i: (len(pairs[i].prompt.ids) + len(pairs[i].chosen.ids), i))
    out = list(pairs)
    for start in range(0, len(order), 64):
        part = order[start : start + 64]
        for i, pair in zip(part, with_reference(reference, [pairs[i] for i in part]), strict=True):
            out[i] = pair
        progress(min(start + 64, len(order)), len(order), "reference log-probabilities")
    return out


def compare_logps(policy: Policy, pairs: Sequence[Pair]) -> PairLogps:
    """What a loss looks at, for pairs that carry their reference log-probabilities."""
    chosen, rejected = pair_logps(policy, pairs)

    def column(values: list[Any]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=chosen.device)

    return PairLogps(
        policy_chosen=chosen,
        policy_rejected=rejected,
        ref_chosen=column([p.ref_chosen for p in pairs]),
        ref_rejected=column([p.ref_rejected for p in pairs]),
        p_chosen=column([p.p_chosen for p in pairs]),
        chosen_length=column([len(p.chosen.ids) for p in pairs]),
        rejected_length=column([len(p.rejected.ids) for p in pairs]),
        labelled=torch.tensor([p.labelled for p in pairs], dtype=torch.bool, device=chosen.device),
        **{f"{who}_{side}": column(values) for who, side, values in _stored(pairs)},
    )


def _stored(pairs: Sequence[Pair]) -> Iterator[tuple[str, str, list[float]]]:
    """What only some studies store with a pair, where any of these pairs has it; nan for those that have not."""
    for who in ("writer", "advantage"):
        if any(getattr(p, f"{who}_chosen") is not None for p in pairs):
            for side in ("chosen", "rejected"):
                found = [getattr(p, f"{who}_{side}") for p in pairs]
                yield who, side, [math.nan if value is None else value for value in found]


def check_start(policy: Policy, reference: Policy, pairs: Sequence[Pair]) -> None:
    """Refuse a run whose policy, as it is trained, does not start at its reference: h is 0 before the first step.

    Both have the same weights, so anything else is noise in training that nobody asked for. Where the study sets
    dropout there is such noise, and nothing to check.
    """
    if policy.spec.dropout > 0:
        return
    training, specs = policy.model.training, (policy.spec, reference.spec)
    policy.model.train()
    try:
        for model in (policy, reference):  # in bfloat16 another kernel would be another number
            model.spec = model.spec.model_copy(update={"dtype": "float32"})
        with seeded(0, policy.device):
            h = compare_logps(policy, with_reference(reference, pairs, anew=True)).margin().detach()
    finally:
        policy.model.train(training)
        policy.spec, reference.spec = specs
    worst = float(h.abs().max())
    if not worst <= 1e-3:  # nan too
        what = (
            f"in training its log-probabilities are not its reference's before the first step (h = {worst:.2g}, not 0)"
        )
        remedy = "it has a dropout or another noise of a name that is not known here; choose another family"
        raise AligngapError(f"model family `{policy.model.config.model_type}`: {what}: {remedy}")
