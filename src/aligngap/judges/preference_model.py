"""The pairwise preference model r(x, y1, y2): it reads both responses in one context and assumes no Bradley-Terry.

The backbone (any policy family) reads the prompt, then y1 and y2 one after the other; a head compares the states of
the two responses. Since y2 is read after y1, the answer depends on the order: training shows a random order
(arXiv 2405.08448, Eq. 5), and judging asks both orders (App. A.2). Text is the boundary: responses are encoded by this
model's own tokenizer, with EOS only where the response ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aligngap.judges.headed import HeadedJudge, ScoringHead
from aligngap.models.batch import Ids, collate
from aligngap.models.loading import seeded
from aligngap.types import Judgement, Pair, Prompt, Response, chunks


@dataclass(frozen=True)
class Shown:
    """A pair in the order in which the model is shown it; `p_first` is the label: the first response is better."""

    prompt: Ids
    first: Ids
    second: Ids
    p_first: float


class PairHead(ScoringHead):
    """Logit [N] that the first response wins, from pooled states [N, 2d] of each: g(first) - g(second) + linear."""

    def __init__(self, width: int, seed: int) -> None:
        super().__init__(width, seed)
        with seeded(seed, torch.device("cpu")):  # what is drawn is replaced by zeros; nobody's random state moves
            self.position = nn.Linear(4 * width, 1)
        nn.init.zeros_(self.position.weight)
        nn.init.zeros_(self.position.bias)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        first, second = self.norm(first), self.norm(second)
        out: Tensor = (
            self.scored(first) - self.scored(second) + self.position(torch.cat([first, second], -1)).squeeze(-1)
        )
        return out


class PreferenceModel(HeadedJudge):
    """A judge that learns: it reads both responses in one context."""

    kind = "pairwise preference model"
    new_head = PairHead

    def logits(self, shown: Sequence[Shown]) -> Tensor:
        """Logit [N] that the first response is better; one prompt is encoded once however often it is shown."""
        prompts = list(dict.fromkeys(tuple(s.prompt) for s in shown))
        index = {p: i for i, p in enumerate(prompts)}
        close = (self.separator,)
        # The state at a column has read everything before it, so the states of a response are one column later.
        completions = [tuple(s.first) + close + tuple(s.second) + close for s in shown]
        batch = collate(prompts, completions, [index[tuple(s.prompt)] for s in shown]).to(self.device)
        states = self.hidden(batch).float()
        starts = torch.tensor([len(s.first) + 2 for s in shown], device=self.device)
        ends = batch.lengths - 1
        pooled = []
        for begin, end in ((torch.ones_like(starts), starts - 2), (starts, ends)):
            begin = torch.minimum(begin, end)  # an empty response still has its separator's state
            inside = (batch.columns >= begin[batch.rows]) & (batch.columns <= end[batch.rows])
            total = batch.sum_rows(states * inside.unsqueeze(-1))
            last = batch.sum_rows(states * (batch.columns == end[batch.rows]).unsqueeze(-1))
            pooled.append(torch.cat([total / (end - begin + 1).unsqueeze(-1), last], -1))
        out: Tensor = self.head(pooled[0], pooled[1]).float()
        return out

    def items(self, pairs: Sequence[Pair], rng: np.random.Generator) -> list[Shown]:
        """Each pair in both orders: over epochs the order is random and balanced, Eq. 5's two halves."""

        def shown(p: Pair, swap: bool) -> Shown:
            prompt = self.encode_prompt(p.prompt.text)
            a, b = (self.encode_response(r.text, r.ended, p.prompt.text) for r in (p.chosen, p.rejected))
            return Shown(prompt, b, a, 1.0 - p.p_chosen) if swap else Shown(prompt, a, b, p.p_chosen)

        return [shown(p, bool(s)) for p in pairs for s in rng.permutation([False, True])]

    def objective(self, shown: Sequence[Shown]) -> tuple[Tensor, dict[str, Tensor]]:
        """Negative log-likelihood of the label in the order shown: arXiv 2405.08448, Eq. 5. [N] unreduced."""
        logits = self.logits(shown)
        labels = torch.tensor([s.p_first for s in shown], device=logits.device)
        losses = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
        return losses, {"accuracy": ((logits > 0) == (labels > 0.5)).float()}

    @torch.no_grad()
    def judge(self, prompts: Sequence[Prompt], a: Sequence[Response], b: Sequence[Response]) -> Judgement:
        """Both orders of every pair, in batches of neighbours in length."""
        n = len(prompts)
        forward, backward = torch.empty(n), torch.empty(n)
        encoded = {p.text: self.encode_prompt(p.text) for p in prompts}
        ids_a, ids_b = (
            [self.encode_response(r.text, r.ended, p.text) for p, r in zip(prompts, side, strict=True)]
            for side in (a, b)
        )
        order = sorted(range(n), key=lambda i: (len(encoded[prompts[i].text]), len(ids_a[i]) + len(ids_b[i]), i))
        for part in chunks(order, max(1, self.batch_size // 2)):
            ab = [Shown(encoded[prompts[i].text], ids_a[i], ids_b[i], 0.5) for i in part]
            ba = [Shown(s.prompt, s.second, s.first, 0.5) for s in ab]
            p = torch.sigmoid(self.logits(ab + ba)).cpu()
            forward[torch.tensor(part)], backward[torch.tensor(part)] = p[: len(part)], p[len(part) :]
        same = torch.tensor([x == y for x, y in zip(ids_a, ids_b, strict=True)], dtype=torch.bool)
        backward[same] = forward[same]  # equal responses tie exactly, and not by the last bit of a matrix product
        return Judgement(forward.double().numpy(), backward.double().numpy())
