"""Measurement: policy + reference + judges -> numbers with their errors, on the same prompts for every arm.

KL is the exact per-token divergence over the full vocabulary along the policy's own fresh samples (temperature 1,
nothing truncated), summed over a response, in nats. Win rates are shares of prompts, ties one half. Everything is per
prompt first and averaged last, so that arms can be paired on prompts. Dropout is off: models are in eval mode.

What this module leaves out: which checkpoints and opponents (`pipeline/measure.py`), and every comparison (`stats/`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aligngap.models.backbone import LOGITS_BUDGET
from aligngap.models.batch import Ids, collate
from aligngap.models.pair_logps import compare_logps
from aligngap.models.policy import Policy
from aligngap.stats.quantities import ReferenceWins, against_reference, split_at
from aligngap.storage.columns import GAP_COLUMNS, REACH
from aligngap.types import Estimate, Judge, Judgement, Pair, Prompt, Response, chunks


@dataclass(frozen=True)
class Scores:
    """Per response [N], sums over its tokens in nats; `tokens` counts them, EOS included."""

    logp: np.ndarray
    other_logp: np.ndarray
    kl: np.ndarray
    entropy: np.ndarray
    tokens: np.ndarray


@torch.no_grad()
def score(
    policy: Policy, other: Policy, prompts: Sequence[Prompt], responses: Sequence[Response], batch_size: int = 128
) -> Scores:
    """log-probabilities under both, and KL(policy || other) exact per token along the given responses.

    It is an unbiased estimate of the KL of whole responses if they were sampled from `policy`
    (arXiv 2405.08448, App. D).
    """
    n = len(prompts)
    logp, other_logp, kl, entropy = (np.zeros(n) for _ in range(4))
    order = sorted(range(n), key=lambda i: (len(prompts[i].ids) + len(responses[i].ids), i))
    for part in chunks(order, batch_size):
        batch = collate([prompts[i].ids for i in part], [responses[i].ids for i in part]).to(policy.device)
        hidden, hidden_other = policy.hidden(batch), other.hidden(batch)
        size = max(1, LOGITS_BUDGET // policy.model.config.vocab_size)
        columns: list[list[torch.Tensor]] = [[], [], [], []]
        for h, g, t in zip(hidden.split(size), hidden_other.split(size), batch.targets.split(size), strict=True):
            p, q = (torch.log_softmax(logits, -1) for logits in (policy.logits(h), other.logits(g)))
            columns[0].append(p.gather(-1, t[:, None])[:, 0])
            columns[1].append(q.gather(-1, t[:, None])[:, 0])
            weights = p.exp()
            columns[2].append(_kl(weights, p, q))
            columns[3].append(-(weights * p).sum(-1))
        for out, column in zip((logp, other_logp, kl, entropy), columns, strict=True):
            out[list(part)] = batch.sum_rows(torch.cat(column).double()).cpu().numpy()
    return Scores(logp, other_logp, kl, entropy, np.array([len(r.ids) for r in responses]))


@dataclass(frozen=True)
class Opponent:
    """An opponent's responses to the measured prompts, one each, in order."""

    name: str
    responses: Sequence[Response]


@dataclass(frozen=True)
class ReferenceSet:
    """Samples of the reference to the first K of the measured prompts, and what each evaluator says of them."""

    ids: Sequence[Sequence[Ids]]  # [K, r], those whose log-ratio is taken
    logps: np.ndarray  # [K, r] under the reference, nats
    wins: Mapping[str, ReferenceWins]  # by judge, of n >= r samples a prompt


def wins(judged: Judgement | None, n: int) -> np.ndarray:
    """[P] 1 win, 0 loss, 0.5 tie; nan without a judge."""
    return judged.hard if judged is not None else np.full(n, np.nan)


@dataclass(frozen=True)
class Measured:
    """One checkpoint: columns of `records.parquet` per opponent, of `per_prompt.parquet`, and some text."""

    rows: list[dict[str, Any]]
    per_prompt: list[dict[str, Any]]
    samples: list[dict[str, Any]]


def measure(
    policy: Policy,
    reference: Policy,
    *,
    prompts: Sequence[Prompt],
    opponents: Sequence[Opponent],
    judges: Mapping[str, Judge],
    held_out: Sequence[Pair],
    reference_samples: Sequence[Response],
    seed: int,
    reference_set: ReferenceSet | None = None,
    samples: int = 8,
    batch: int = 128,
) -> Measured:
    """Measure one checkpoint.

    `judges` holds "golden", "proxy" and, where the task has a true preference, "oracle". `held_out` are golden-labelled
    pairs with reference log-probabilities. `reference_samples` are the reference's own responses to the first prompts,
    for the forward KL. `reference_set` is what rho and the ceiling stand on; without it they are nan. Same seed,
    same prompts and same weights give the same numbers.
    """
    own = [r[0] for r in policy.sample(prompts, 1, seed)]
    scores = score(policy, reference, prompts, own, batch)
    first = list(prompts[: len(reference_samples)])
    forward = score(reference, policy, first, reference_samples, batch).kl
    margins = classify(policy, held_out, batch)
    log_ratios = scores.logp - scores.other_logp

    def both(name: str, values: np.ndarray) -> dict[str, float]:
        e = Estimate.mean(values)
        return {name: e.value, f"{name}_se": e.se}

    common: dict[str, Any] = {
        **both("kl_nats", scores.kl),
        "kl_k1_nats": float(np.mean(log_ratios)),
        **both("forward_kl_nats", forward),
        **margins,
        "prompts": len(prompts),
        "length_tokens": float(scores.tokens.mean()),
        "entropy_nats": float(scores.entropy.sum() / scores.tokens.sum()),
        "unended": float(np.mean([not r.ended for r in own])),
    }
    away = reference_set is not None and common["kl_nats"] > 0  # the reference itself has no direction
    moved = log_ratios_of(policy, prompts, reference_set, batch) if reference_set and away else None
    rows: list[dict[str, Any]] = []
    per_prompt: list[dict[str, Any]] = []
    for opponent in opponents:
        won = {
            name: wins(j.judge(prompts, own, opponent.responses).checked(j.key, prompts), len(prompts))
            for name, j in judges.items()
        }
        golden, proxy = won["golden"], won["proxy"]
        oracle = won.get("oracle", np.full(len(prompts), np.nan))
        opponent_lengths = [len(r.ids) for r in opponent.responses]
        rows.append({
            "opponent": opponent.name, **common,
            **both("win_rate", golden), **both("proxy_win_rate", proxy), **both("oracle_win_rate", oracle),
            "ties": int((golden == 0.5).sum()),
            "proxy_agreement": float(np.mean(golden == proxy)),
            "opponent_length_tokens": float(np.mean(opponent_lengths)),
            **dict.fromkeys(GAP_COLUMNS, float("nan")),
        })  # fmt: skip
        if opponent.name == REFERENCE:
            rows[-1] |= quantities(won, rows[-1]["kl_nats"], log_ratios, moved, reference_set)
        per_prompt.extend(
            {
                "opponent": opponent.name, "prompt_id": p.id, "win": float(golden[i]), "proxy_win": float(proxy[i]),
                "oracle_win": float(oracle[i]), "kl_nats": float(scores.kl[i]), "log_ratio": float(log_ratios[i]),
                "length_tokens": int(scores.tokens[i]), "opponent_length_tokens": opponent_lengths[i],
            }
            for i, p in enumerate(prompts)
        )  # fmt: skip
    text = [
        {"prompt_id": p.id, "prompt": p.text, "response": r.text, "ended": r.ended}
        for p, r in list(zip(prompts, own, strict=True))[:samples]
    ]
    return Measured(rows, per_prompt, text)


#: the opponent that is the reference, against which the gap's quantities are measured
REFERENCE = "sft"


def log_ratios_of(policy: Policy, prompts: Sequence[Prompt], of: ReferenceSet, batch: int) -> np.ndarray:
    """g [K, r] = log policy - log reference of the reference's samples to the first K prompts, nats."""
    asked = [prompts[k].ids for k, row in enumerate(of.ids) for _ in row]
    logps = policy.logps_of(asked, [ids for row in of.ids for ids in row], batch)
    ratios: np.ndarray = logps.double().numpy().reshape(of.logps.shape) - of.logps
    return ratios


def quantities(
    won: Mapping[str, np.ndarray],
    kl: float,
    log_ratios: np.ndarray,
    moved: np.ndarray | None,
    reference_set: ReferenceSet | None,
) -> dict[str, float]:
    """The columns of the gap's three quantities, by each evaluator; those that cannot be computed are left out.

    won: by judge the wins [P] of the policy's own samples against the reference's, of which golden and oracle are read.
    log_ratios [P] are of those samples, `moved` [K, r] of the reference's (None: the policy is the reference).
    """
    found: dict[str, Estimate] = {}
    for who, judge in (("", "golden"), ("oracle_", "oracle")):
        if judge not in won:
            continue
        parts = split_at(won[judge], log_ratios, REACH)
        if reference_set is not None and moved is not None and judge in reference_set.wins:
            parts |= against_reference(won[judge], kl, moved, reference_set.wins[judge])
        found |= {name if name.startswith("share_") else who + name: e for name, e in parts.items()}
    return {f"{name}{end}": v for name, e in found.items() for end, v in (("", e.value), ("_se", e.se))}


@torch.no_grad()
def classify(policy: Policy, pairs: Sequence[Pair], batch: int = 128) -> dict[str, Any]:
    """The policy as a pairwise classifier by the sign of h (arXiv 2405.08448, App. E), and log-ratios of both sides.

    Ties of the label (p = 1/2) are left out of the accuracy.
    """
    h, chosen, rejected, p_chosen = (np.zeros(len(pairs)) for _ in range(4))
    order = sorted(range(len(pairs)), key=lambda i: (len(pairs[i].prompt.ids), len(pairs[i].chosen.ids), i))
    for part in chunks(order, max(1, batch // 2)):
        x = compare_logps(policy, [pairs[i] for i in part])
        index = list(part)
        h[index] = x.margin().cpu().numpy()
        chosen[index] = (x.policy_chosen - x.ref_chosen).cpu().numpy()
        rejected[index] = (x.policy_rejected - x.ref_rejected).cpu().numpy()
        p_chosen[index] = x.p_chosen.cpu().numpy()
    right = ((np.sign(h) + 1) / 2)[p_chosen != 0.5]
    accuracy, won, lost = Estimate.mean(right), Estimate.mean(chosen), Estimate.mean(rejected)
    return {
        "accuracy": accuracy.value, "accuracy_se": accuracy.se, "accuracy_pairs": accuracy.n,
        "chosen_log_ratio": won.value, "chosen_log_ratio_se": won.se,
        "rejected_log_ratio": lost.value, "rejected_log_ratio_se": lost.se,
    }  # fmt: skip


def kl_from_logits(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """KL(p || q) [N] of categorical distributions with logits [N, V]; sum of p (log p - log q), never below 0."""
    p, q = torch.log_softmax(p_logits.float(), -1), torch.log_softmax(q_logits.float(), -1)
    return _kl(p.exp(), p, q)


def _kl(weights: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """Sum of p (log p - log q) [N] from probabilities and log-probabilities [N, V]."""
    return (weights * (p - q)).sum(-1).clamp_min(0.0)  # clamps rounding of order 1e-8 only


def entropy_from_logits(logits: Tensor) -> Tensor:
    """Entropy [N] in nats of categorical distributions with logits [N, V]."""
    log_p = torch.log_softmax(logits.float(), -1)
    return -(log_p.exp() * log_p).sum(-1)
