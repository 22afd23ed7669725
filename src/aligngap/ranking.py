"""Rank several responses to one prompt by a pairwise judge, which gives no scores: a round robin.

Leaves out what is done with the ranking: best-of-n as a reference (`best_of_n.py`), pairs of a best and a worst
response (`streams.OnPolicy`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from aligngap.types import Judge, Prompt, Response, chunks

#: prompts whose round robins are judged at once: bounds memory, changes no result beyond a judge's own batching
PROMPTS_AT_ONCE = 32


def round_robin(judge: Judge, prompts: Sequence[Prompt], answers: Sequence[Sequence[Response]]) -> np.ndarray:
    """Score [P, n] of each of n responses to a prompt: its mean probability of beating the others, in both orders.

    Every unordered pair is judged once; the judge itself asks both orders. n = 1 has nobody to beat: one half.
    """
    n = len(answers[0]) if answers else 0
    pairs = list(combinations(range(n), 2))
    score = np.full((len(prompts), n), 0.5)
    if not pairs:
        return score
    for part in chunks(range(len(prompts)), PROMPTS_AT_ONCE):
        asked = [prompts[i] for i in part for _ in pairs]
        first = [answers[i][a] for i in part for a, _ in pairs]
        second = [answers[i][b] for i in part for _, b in pairs]
        p = judge.judge(asked, first, second).checked(judge.key, asked).p_win.reshape(len(part), len(pairs))
        total = np.zeros((len(part), n))
        for k, (a, b) in enumerate(pairs):
            total[:, a] += p[:, k]
            total[:, b] += 1.0 - p[:, k]
        score[list(part)] = total / (n - 1)
    return score
