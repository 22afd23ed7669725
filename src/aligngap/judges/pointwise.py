"""What judges with one number per response share: each response is scored once, preferences are differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from aligngap.models.batch import Ids
from aligngap.types import Judgement, Pair, Prompt, Response

if TYPE_CHECKING:
    from aligngap.models.backbone import Backbone

#: a prompt's text, a response's text, and whether it ended
Read = tuple[str, str, bool]
Scores = NDArray[np.float64]


class Labelled(NamedTuple):
    """A pair as token ids and the probability that the first response is better."""

    prompt: Ids
    first: Ids
    second: Ids
    p_first: float


def encode_labelled(encoder: Backbone, pairs: Sequence[Pair]) -> list[Labelled]:
    """What a point-wise judge learns from: each pair once, since its loss is the same in both orders."""
    return [
        Labelled(
            encoder.encode_prompt(p.prompt.text),
            encoder.encode_response(p.chosen.text, p.chosen.ended, p.prompt.text),
            encoder.encode_response(p.rejected.text, p.rejected.ended, p.prompt.text),
            p.p_chosen,
        )
        for p in pairs
    ]


def bradley_terry(difference: Scores) -> Judgement:
    """p(a beats b) = sigmoid(r_a - r_b) [B]: Bradley and Terry 1952. Antisymmetric: backward is 1 - forward."""
    p = 1.0 / (1.0 + np.exp(-np.clip(difference, -700.0, 700.0)))
    # Two sigmoids, so that swapping a and b swaps the two numbers to the last bit; equal rewards tie exactly.
    return Judgement(forward=p, backward=1.0 / (1.0 + np.exp(np.clip(difference, -700.0, 700.0))))


def judge_by(
    score: Callable[[Sequence[Read]], Scores],
    prompts: Sequence[Prompt],
    a: Sequence[Response],
    b: Sequence[Response],
) -> Judgement:
    """Judge by rewards: `score` is asked once for each distinct (prompt, response), so equal responses tie exactly."""
    left = [(p.text, y.text, y.ended) for p, y in zip(prompts, a, strict=True)]
    right = [(p.text, y.text, y.ended) for p, y in zip(prompts, b, strict=True)]
    distinct = sorted({*left, *right})  # in an order of its own: swapping a and b changes no batch
    reward = dict(zip(distinct, score(distinct), strict=True))
    return bradley_terry(np.array([reward[x] - reward[y] for x, y in zip(left, right, strict=True)], dtype=np.float64))
