"""From data to judges: SFT, the judges that learn, and the data as a judge labels them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from aligngap import registry
from aligngap.seeding import derive
from aligngap.settings import JudgeSpec, Limits, ModelSpec, Optimization, Settings
from aligngap.steps.base import Step, _plain
from aligngap.steps.data import Data, explain
from aligngap.types import AligngapError, Judge, Pair, RunFailed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from aligngap.context import Context


class Sft(Step):
    """Fine-tune on both responses of every pair: wide coverage of the data, not quality (arXiv 2405.08448, 4.1).

    With no steps it is the given model as it is; `split` says whose prompts it learns from.
    """

    version: ClassVar[int] = 2  # 1 attended by transformers
    kind: Literal["sft"] = "sft"
    data: Data
    model: ModelSpec
    optimization: Optimization
    limits: Limits
    seed: int
    split: Literal["train", "judge"] = "train"

    def run(self, ctx: Context) -> dict[str, Any]:
        import torch

        from aligngap.fit import Trainer
        from aligngap.models.batch import Ids, collate
        from aligngap.models.loading import build_model
        from aligngap.models.policy import Policy
        from aligngap.streams import Epochs
        from aligngap.training import train

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
            trainer = Trainer(policy.model, self.optimization, self.seed, ctx.world)
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
    """Train a judge that learns on the rater's labels (golden) or on a relabelled set (proxy)."""

    version: ClassVar[int] = 2  # 1 attended by transformers
    kind: Literal["judge"] = "judge"
    data: Data
    labels: Relabel | None = None
    backbone: Sft
    spec: JudgeSpec
    seed: int
    split: Literal["train", "judge"] = "train"

    def run(self, ctx: Context) -> dict[str, Any]:
        import numpy as np

        from aligngap.fit import Trainer
        from aligngap.streams import Epochs
        from aligngap.training import train

        source = self.labels or self.data
        pairs, held_out = source.pairs(ctx, self.split), source.pairs(ctx, "test")
        if self.spec.labels is not None:
            keep = np.random.default_rng(derive(self.seed, "labels")).permutation(len(pairs))[: self.spec.labels]
            pairs = [pairs[int(i)] for i in sorted(keep)]
        folder = ctx.path(self.backbone) / "policy"
        spec, how = self.backbone.model, self.spec.optimization
        assert how is not None  # `build_judge` has checked it
        tokenizer = ctx.tokenizer(self.data, spec)
        judge = build_judge(self.spec).start(folder, spec, tokenizer, key=self.name, seed=derive(self.seed, "head"))
        judge.to(ctx.device)
        if how.lora is not None:
            judge.attach(how.lora, derive(self.seed, "adapter"))
        items = judge.items(pairs, np.random.default_rng(derive(self.seed, "shown order")))
        trainer = Trainer(judge.module, how, self.seed, ctx.world)
        outcome = train(ctx, trainer, Epochs(items, derive(self.seed, "judge order")), judge.objective)
        if outcome != "ok":
            raise RunFailed(f"{self.spec.kind} judge: {outcome}; lower its learning_rate")
        judge.merge().save(ctx.work / "model")
        about, _ = held_against(judge, held_out)
        return about | {"training_pairs": len(pairs)}

    def units(self) -> float:
        how = self.spec.optimization
        return 3.0 * how.steps * how.batch if how else 1.0


class ReadyJudge(Step):
    """A judge that does not learn, held against the labels: the rater's (golden) or those of a relabelled set (proxy).

    `identity` is what makes its answers; how it is asked (batch, concurrency, a key's variable) is no part of the key.
    """

    kind: Literal["ready-judge"] = "ready-judge"
    data: Data
    labels: Relabel | None = None
    spec: JudgeSpec
    identity: dict[str, Any]

    @cached_property
    def configuration(self) -> Any:
        found = _plain(self, {})
        return found | {"spec": {"kind": self.spec.kind}}

    def run(self, ctx: Context) -> dict[str, Any]:
        about, right = held_against(ctx.judge(self), (self.labels or self.data).pairs(ctx, "test"))
        return about | {"held_out_ties": int((right == 0.5).sum())}


def held_against(judge: Judge, pairs: Sequence[Pair]) -> tuple[dict[str, Any], NDArray[np.float64]]:
    """How a judge does on pairs whose labels are no ties, and per pair 1, 1/2 or 0: right, a tie or wrong."""
    hard = [p for p in pairs if p.p_chosen != 0.5]
    judged = judge.judge([p.prompt for p in hard], [p.chosen for p in hard], [p.rejected for p in hard])
    about = {
        "held_out_accuracy": float(judged.hard.mean()), "held_out_pairs": len(hard),
        "first_position_share": float(((judged.forward > 0.5).mean() + (judged.backward > 0.5).mean()) / 2),
    }  # fmt: skip
    return about, judged.hard


class Relabel(Step):
    """The task's pairs as a judge orders them (both orders, ties kept), with the reference's log-probabilities."""

    version: ClassVar[int] = 2  # 1 attended by transformers
    kind: Literal["relabel"] = "relabel"
    data: Data
    judge: FitJudge | ReadyJudge | OracleJudge
    reference: Sft
    soft: bool = False

    def run(self, ctx: Context) -> dict[str, Any]:
        from aligngap.models.pair_logps import store_reference
        from aligngap.storage.pairs import write_pairs
        from aligngap.streams import label

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
                pairs = store_reference(reference, pairs, ctx.progress)
            write_pairs(ctx.work / f"{split}.parquet", pairs)
            agree = sum(p.chosen.ids == g.chosen.ids for p, g in zip(pairs, given, strict=True))
            ties = sum(p.judged_forward == p.judged_backward for p in pairs)
            about[split] = {"pairs": len(pairs), "ties": ties, "agreement_with_rater": agree / len(pairs)}
        return about

    def pairs(self, ctx: Context, split: str) -> list[Pair]:
        return stored_pairs(ctx, self, split)

    def units(self) -> float:
        return self.data.expected


def stored_pairs(ctx: Context, step: Step, split: str) -> list[Pair]:
    """The pairs a step has written, read once per process."""
    from aligngap.storage.pairs import read_pairs

    found: list[Pair] = ctx.cached((step.name, "pairs", split), lambda: read_pairs(ctx.path(step) / f"{split}.parquet"))
    return found


LEARNS = ("model", "pretrain", "optimization", "labels")  # settings of a judge that are for kinds that learn


def build_judge(spec: JudgeSpec, where: str = "judge") -> Any:
    """The kind of judge a study names, with its settings; unknown names and keys are refused in one line."""
    from dataclasses import fields, is_dataclass

    from pydantic import ValidationError

    maker = registry.get("judges", spec.kind)
    if spec.kind == "oracle":
        raise AligngapError(f"{where}.kind: the oracle is the true preference beside golden and proxy; an arm names it")
    try:
        kind = maker(**spec.options)
    except ValidationError as error:
        raise AligngapError(explain(error, prefix=f"{where}.")) from error
    except TypeError as error:
        known = {f.name for f in fields(maker)} if is_dataclass(maker) else set[str]()
        unknown = next((o for o in spec.options if o not in known), "")
        what = f".{unknown}: unknown key" if unknown else f": {error}"
        raise AligngapError(f"{where}{what} (a judge of kind `{spec.kind}`)") from error
    learns = hasattr(kind, "start")
    if learns and spec.optimization is None:
        raise AligngapError(f"{where}.optimization: Field required")
    given = [name for name in LEARNS if getattr(spec, name) is not None]
    if given and not learns:
        raise AligngapError(f"{where}.{given[0]}: a judge of kind `{spec.kind}` does not learn; leave it out")
    return kind


def identity_of(spec: JudgeSpec, where: str) -> dict[str, Any]:
    """What makes a ready judge's answers: its own `identity()`, or its settings."""
    kind = build_judge(spec, where)
    try:
        found: dict[str, Any] = kind.identity() if hasattr(kind, "identity") else spec.options
    except AligngapError as error:
        raise AligngapError(f"{where}.{error}") from error
    return found
