"""From data to judges: SFT, the pairwise preference models, and the data as a judge labels them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from ..seeding import derive
from ..settings import (
    JudgeSpec,
    Limits,
    ModelSpec,
    Optimization,
    Settings,
)
from ..types import Pair, RunFailed
from .base import Step
from .data import Data

if TYPE_CHECKING:
    from ..context import Context


class Sft(Step):
    """Fine-tune on both responses of every pair: wide coverage of the data, not quality (arXiv 2405.08448, 4.1).

    With no steps it is the given model as it is; `split` says whose prompts it learns from.
    """

    kind: Literal["sft"] = "sft"
    data: Data
    model: ModelSpec
    optimization: Optimization
    limits: Limits
    seed: int
    split: Literal["train", "judge"] = "train"

    def run(self, ctx: Context) -> dict[str, Any]:
        import torch

        from ..batch import Ids, collate
        from ..fit import Trainer
        from ..policy import Policy, build_model
        from ..streams import Epochs
        from ..training import train

        tokenizer = ctx.tokenizer(self.data, self.model)
        model = build_model(self.model, tokenizer, derive(self.seed, "initialisation"))
        policy = Policy(model, tokenizer, response_tokens=self.limits.response_tokens, spec=self.model)
        policy.to(ctx.device)
        policy.check_head()
        if self.optimization.lora is not None:
            policy.attach(self.optimization.lora, derive(self.seed, "adapter"))
        examples, held_out = (
            [
                (policy.encode_prompt(p.prompt.text), policy.encode_response(r.text, r.ended))
                for p in pairs
                for r in (p.chosen, p.rejected)
            ]
            for pairs in (self.data.pairs(ctx, self.split), self.data.pairs(ctx, "test")[:256])
        )
        mean_length = sum(len(r) for _, r in examples) / len(examples)

        def objective(items: Sequence[tuple[Ids, Ids]]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            logps = policy.logps(collate([p for p, _ in items], [r for _, r in items]))
            return -logps / mean_length, {}  # nats per token of an average response

        if self.optimization.steps:
            trainer = Trainer(policy.model, self.optimization, self.seed)
            outcome = train(ctx, trainer, Epochs(examples, derive(self.seed, "sft order")), objective)
            if outcome != "ok":
                raise RunFailed(f"sft: {outcome}; lower sft.learning_rate")
        policy.merge().save(ctx.work / "policy")
        nll = -policy.logps_of([p for p, _ in held_out], [r for _, r in held_out]).sum()
        tokens = sum(len(r) for _, r in held_out)
        return {"held_out_nats_per_token": float(nll) / tokens, "parameters": policy.model.num_parameters()}

    def units(self) -> float:
        return 3.0 * self.optimization.steps * self.optimization.batch


class OracleJudge(Settings):
    """The task's own true preference, where it has one."""

    kind: Literal["oracle"] = "oracle"
    task: dict[str, Any]
    seed: int


class FitJudge(Step):
    """Train a pairwise preference model on the rater's labels (golden) or on a relabelled set (proxy)."""

    kind: Literal["judge"] = "judge"
    data: Data
    labels: Relabel | None = None
    backbone: Sft
    spec: JudgeSpec
    seed: int
    split: Literal["train", "judge"] = "train"

    def run(self, ctx: Context) -> dict[str, Any]:

        import numpy as np

        from ..fit import Trainer
        from ..judges.preference_model import PreferenceModel, Shown
        from ..policy import load_model
        from ..streams import Epochs
        from ..training import train

        source = self.labels or self.data
        pairs, held_out = source.pairs(ctx, self.split), source.pairs(ctx, "test")
        if self.spec.labels is not None:
            keep = np.random.default_rng(derive(self.seed, "labels")).permutation(len(pairs))[: self.spec.labels]
            pairs = [pairs[int(i)] for i in sorted(keep)]
        folder = ctx.path(self.backbone) / "policy"
        spec = self.backbone.model
        tokenizer = ctx.tokenizer(self.data, spec)
        judge = PreferenceModel(
            load_model(folder, spec), tokenizer, key=self.name, seed=derive(self.seed, "head"), spec=spec
        ).to(ctx.device)
        if self.spec.optimization.lora is not None:
            judge.attach(self.spec.optimization.lora, derive(self.seed, "adapter"))
        swaps = np.random.default_rng(derive(self.seed, "shown order"))

        def shown(p: Pair, swap: bool) -> Shown:
            prompt = judge.encode_prompt(p.prompt.text)
            a, b = (judge.encode_response(r.text, r.ended) for r in (p.chosen, p.rejected))
            return Shown(prompt, b, a, 1.0 - p.p_chosen) if swap else Shown(prompt, a, b, p.p_chosen)

        # Each pair in both orders: over epochs the order is random and balanced, Eq. 5's two halves.
        items = [shown(p, bool(s)) for p in pairs for s in swaps.permutation([False, True])]
        trainer = Trainer(judge.module, self.spec.optimization, self.seed)
        outcome = train(ctx, trainer, Epochs(items, derive(self.seed, "judge order")), judge.objective)
        if outcome != "ok":
            raise RunFailed(f"preference model: {outcome}; lower its learning_rate")
        judge.merge().save(ctx.work / "model")
        hard = [p for p in held_out if p.p_chosen != 0.5]
        judged = judge.judge([p.prompt for p in hard], [p.chosen for p in hard], [p.rejected for p in hard])
        return {
            "held_out_accuracy": float(judged.hard.mean()), "held_out_pairs": len(hard), "training_pairs": len(pairs),
            "first_position_share": float(((judged.forward > 0.5).mean() + (judged.backward > 0.5).mean()) / 2),
        }  # fmt: skip

    def units(self) -> float:
        return 3.0 * self.spec.optimization.steps * self.spec.optimization.batch


class Relabel(Step):
    """The task's pairs as a judge orders them (both orders, ties kept), with the reference's log-probabilities."""

    kind: Literal["relabel"] = "relabel"
    data: Data
    judge: FitJudge | OracleJudge
    reference: Sft
    soft: bool = False

    def run(self, ctx: Context) -> dict[str, Any]:
        from ..streams import label
        from ..tables import write_pairs

        judge = ctx.judge(self.judge)
        reference = ctx.policy(self.reference)
        about: dict[str, Any] = {}
        for number, split in enumerate(self.data.splits):
            given = self.data.pairs(ctx, split)
            ctx.progress(number, len(self.data.splits), split)
            pairs = label(
                [p.prompt for p in given], [p.chosen for p in given], [p.rejected for p in given], judge,
                writer="data", soft=self.soft,
            )  # fmt: skip
            if split != "judge":  # from which no policy learns
                pairs = ctx.with_stored_reference(reference, pairs)
            write_pairs(ctx.work / f"{split}.parquet", pairs)
            agree = sum(p.chosen.ids == g.chosen.ids for p, g in zip(pairs, given, strict=True))
            ties = sum(p.judged_forward == p.judged_backward for p in pairs)
            about[split] = {"pairs": len(pairs), "ties": ties, "agreement_with_rater": agree / len(pairs)}
        return about

    def pairs(self, ctx: Context, split: str) -> list[Pair]:
        return stored_pairs(ctx, self, split)

    def units(self) -> float:
        return 2.0e4


def stored_pairs(ctx: Context, step: Step, split: str) -> list[Pair]:
    """The pairs a step has written, read once per process."""
    from ..tables import read_pairs

    found: list[Pair] = ctx.cached((step.name, "pairs", split), lambda: read_pairs(ctx.path(step) / f"{split}.parquet"))
    return found
