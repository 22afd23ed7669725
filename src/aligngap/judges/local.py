"""The local reward model: a policy whose log-ratio to its reference is the reward, r(x, y) = beta log pi/pi_ref.

Rafailov et al. 2023, arXiv 2305.18290, Eq. 5: every Bradley-Terry reward is, up to a function of the prompt, that of
some policy; DPO (Eq. 7) fits it. The reference is the backbone that the policy starts at. It differs from the
point-wise reward model in what carries the number, not in the loss: the control that arXiv 2405.08448 names in 5.3 and
does not run.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from aligngap.judges.pointwise import Labelled, Read, Scores, encode_labelled, judge_by
from aligngap.losses import DPO, PairLogps
from aligngap.models.batch import Ids, collate
from aligngap.models.loading import PLAIN, load_model, load_tokenizer
from aligngap.models.policy import Policy
from aligngap.settings import LoraSpec, ModelSpec
from aligngap.types import Judgement, Pair, Prompt, Response


class LocalReward:
    """A judge that learns: a policy and the frozen reference beside it, saved as an ordinary policy's folder."""

    def __init__(
        self,
        model: PreTrainedModel,
        reference: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        key: str,
        beta: float,
        batch: int = 128,
        spec: ModelSpec = PLAIN,
    ) -> None:
        self.key, self.batch_size = key, batch
        # Neither policy ever samples, so the longest response is nobody's business here.
        self.policy, self.reference = (Policy(m, tokenizer, response_tokens=1, spec=spec) for m in (model, reference))
        self.policy.check_head()
        self.reference.shares = self.policy.shares
        self.loss = DPO(beta)
        self.module = model

    def to(self, device: torch.device) -> LocalReward:
        self.policy.to(device)
        self.reference.to(device)
        return self

    def attach(self, spec: LoraSpec, seed: int) -> LocalReward:
        self.policy.attach(spec, seed)
        return self

    def merge(self) -> LocalReward:
        self.policy.merge()
        return self

    def save(self, path: Path) -> None:
        self.policy.save(path)
        (path / "judge.json").write_text(json.dumps({"kind": "local reward model", "key": self.key}))

    @classmethod
    def load(
        cls, path: Path, reference: Path, *, beta: float, batch: int = 128, spec: ModelSpec = PLAIN
    ) -> LocalReward:
        key = json.loads((path / "judge.json").read_text())["key"]
        models = load_model(path, spec), load_model(reference, spec)
        return cls(*models, load_tokenizer(path), key=key, beta=beta, batch=batch, spec=spec)

    def items(self, pairs: Sequence[Pair], rng: np.random.Generator) -> list[Labelled]:
        return encode_labelled(self.policy, pairs)

    def objective(self, items: Sequence[Labelled]) -> tuple[Tensor, dict[str, Tensor]]:
        """The DPO loss of the labels, [B] unreduced."""
        n = len(items)
        sides: list[Ids] = [*(x.first for x in items), *(x.second for x in items)]
        batch = collate([x.prompt for x in items], sides, [*range(n), *range(n)])
        ours = self.policy.logps(batch)
        with torch.no_grad():
            theirs = self.reference.logps(batch)
        x = PairLogps(
            policy_chosen=ours[:n], policy_rejected=ours[n:], ref_chosen=theirs[:n], ref_rejected=theirs[n:],
            p_chosen=torch.tensor([x.p_first for x in items], device=ours.device),
            chosen_length=torch.tensor([len(x.first) for x in items], device=ours.device),
            rejected_length=torch.tensor([len(x.second) for x in items], device=ours.device),
        )  # fmt: skip
        return self.loss(x), {"accuracy": ((x.margin() > 0) == (x.p_chosen > 0.5)).float()}

    def score(self, read: Sequence[Read]) -> Scores:
        """beta log pi(y|x)/pi_ref(y|x) [N]."""
        prompts = [self.policy.encode_prompt(p) for p, _, _ in read]
        responses = [self.policy.encode_response(y, ended, p) for p, y, ended in read]
        ours, theirs = (m.logps_of(prompts, responses, self.batch_size) for m in (self.policy, self.reference))
        found: Scores = self.loss.beta * (ours - theirs).double().numpy()
        return found

    def judge(self, prompts: Sequence[Prompt], a: Sequence[Response], b: Sequence[Response]) -> Judgement:
        """sigmoid(r_a - r_b) [B] and its complement."""
        return judge_by(self.score, prompts, a, b)
