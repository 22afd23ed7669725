"""From responses to labels: a judge asked in both orders, and its round robin among several responses."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from aligngap.types import Judge, Pair, Prompt, Response, chunks


def label(
    prompts: Sequence[Prompt],
    first: Sequence[Response],
    second: Sequence[Response],
    judge: Judge,
    *,
    writer: str,
    soft: bool = False,
) -> list[Pair]:
    """Pairs [B] labelled by the judge in both orders; hard sign labels (a tie is kept with p = 1/2) unless `soft`."""
    judged = judge.judge(prompts, first, second).checked(judge.key, prompts)
    p = judged.soft if soft else judged.hard
    pairs = []
    for i, prompt in enumerate(prompts):
        swap = bool(p[i] < 0.5)
        chosen, rejected = (second[i], first[i]) if swap else (first[i], second[i])
        forward, backward = float(judged.forward[i]), float(judged.backward[i])
        if swap:
            forward, backward = backward, forward
        pairs.append(Pair(prompt, chosen, rejected, float(1 - p[i] if swap else p[i]), forward, backward, writer))
    return pairs


#: prompts whose round robins are judged at once: bounds memory, changes no result beyond a judge's own batching
PROMPTS_AT_ONCE = 32


def round_robin(judge: Judge, prompts: Sequence[Prompt], answers: Sequence[Sequence[Response]]) -> np.ndarray:
    """Score [P, n] of each of n responses to a prompt: its mean probability of beating the others, in both orders.

    n = 1 has nobody to beat: one half.
    """
    beats = judge_pairs(judge, prompts, answers)
    n = beats.shape[1]
    total: np.ndarray = beats.sum(axis=2) - 0.5
    return total / (n - 1) if n > 1 else np.full((len(prompts), n), 0.5)


def standardise(scores: np.ndarray) -> np.ndarray:
    """Advantage [P, n] of each score in its row: its distance from the mean in standard deviations, 0 if all are equal.

    The group-relative advantage of GRPO, Shao et al. 2024, arXiv 2402.03300, section 4.1.
    """
    around: np.ndarray = scores - scores.mean(axis=1, keepdims=True)
    spread = scores.std(axis=1, keepdims=True)
    return np.where(spread > 1e-9, around / np.where(spread > 1e-9, spread, 1.0), 0.0)


def judge_pairs(judge: Judge, prompts: Sequence[Prompt], answers: Sequence[Sequence[Response]]) -> np.ndarray:
    """Probability [P, n, n] that response i to a prompt beats response j; one half on the diagonal.

    Every unordered pair is judged once; the judge itself asks both orders.
    """
    n = len(answers[0]) if answers else 0
    pairs = list(combinations(range(n), 2))
    beats = np.full((len(prompts), n, n), 0.5)
    if not pairs:
        return beats
    for part in chunks(range(len(prompts)), PROMPTS_AT_ONCE):
        asked = [prompts[i] for i in part for _ in pairs]
        first = [answers[i][a] for i in part for a, _ in pairs]
        second = [answers[i][b] for i in part for _, b in pairs]
        p = judge.judge(asked, first, second).checked(judge.key, asked).p_win.reshape(len(part), len(pairs))
        for k, (a, b) in enumerate(pairs):
            beats[list(part), a, b] = p[:, k]
            beats[list(part), b, a] = 1.0 - p[:, k]
    return beats
