"""The point-wise Bradley-Terry reward model: a backbone and a head that gives each response one number r(x, y).

It is fitted by -log sigmoid(r_w - r_l) (Bradley and Terry 1952; Ouyang et al. 2022, arXiv 2203.02155, Eq. 1) on the
labels the pairwise model would learn from. It cannot express a preference that depends on what stands beside, and has
no position bias. Text is the boundary: responses are encoded by this model's own tokenizer, with EOS where they ended.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from aligngap.judges.headed import HeadedJudge, ScoringHead
from aligngap.judges.pointwise import Labelled, Read, Scores, encode_labelled, judge_by
from aligngap.models.batch import Ids, collate
from aligngap.types import Judgement, Pair, Prompt, Response, chunks


class RewardHead(ScoringHead):
    """Reward [N] from pooled states [N, 2d] of a response: the pairwise model's head for one side."""

    def forward(self, pooled: Tensor) -> Tensor:
        return self.scored(self.norm(pooled))


class BradleyTerryModel(HeadedJudge):
    """A reward model that learns: one number a response, from the states the backbone has over it."""

    kind = "Bradley-Terry reward model"
    new_head = RewardHead

    def rewards(self, prompts: Sequence[Ids], responses: Sequence[Ids]) -> Tensor:
        """r(x, y) [N], differentiable; one prompt is encoded once however many responses it has."""
        distinct = list(dict.fromkeys(map(tuple, prompts)))
        index = {p: i for i, p in enumerate(distinct)}
        # The state at a column has read everything before it: the closing separator's has read the whole response.
        completions = [(*r, self.separator) for r in responses]
        batch = collate(distinct, completions, [index[tuple(p)] for p in prompts]).to(self.device)
        states = self.hidden(batch).float()
        last = batch.lengths - 1
        begin = last.clamp_max(1)  # an empty response still has its separator's state
        inside = batch.columns >= begin[batch.rows]
        mean = batch.sum_rows(states * inside.unsqueeze(-1)) / (last - begin + 1).unsqueeze(-1)
        end = batch.sum_rows(states * (batch.columns == last[batch.rows]).unsqueeze(-1))
        out: Tensor = self.head(torch.cat([mean, end], -1)).float()
        return out

    def items(self, pairs: Sequence[Pair], rng: np.random.Generator) -> list[Labelled]:
        return encode_labelled(self, pairs)

    def objective(self, items: Sequence[Labelled]) -> tuple[Tensor, dict[str, Tensor]]:
        """Logistic loss of the labels on the difference of rewards, [B] unreduced; ties are labels of one half."""
        prompts = [x.prompt for x in items]
        rewards = self.rewards([*prompts, *prompts], [*(x.first for x in items), *(x.second for x in items)])
        difference = rewards[: len(items)] - rewards[len(items) :]
        labels = torch.tensor([x.p_first for x in items], device=difference.device)
        losses = F.binary_cross_entropy_with_logits(difference, labels, reduction="none")
        return losses, {"accuracy": ((difference > 0) == (labels > 0.5)).float()}

    @torch.no_grad()
    def score(self, read: Sequence[Read]) -> Scores:
        """Rewards [N] of texts, in batches of neighbours in length, in the order given."""
        prompts = [self.encode_prompt(p) for p, _, _ in read]
        responses = [self.encode_response(y, ended, p) for p, y, ended in read]
        order = sorted(range(len(read)), key=lambda i: (len(prompts[i]), len(responses[i]), i))
        out = np.empty(len(read))
        for part in chunks(order, self.batch_size):
            found = self.rewards([prompts[i] for i in part], [responses[i] for i in part])
            out[list(part)] = found.double().cpu().numpy()
        return out

    def judge(self, prompts: Sequence[Prompt], a: Sequence[Response], b: Sequence[Response]) -> Judgement:
        """sigmoid(r_a - r_b) [B] and its complement."""
        return judge_by(self.score, prompts, a, b)
