"""How a judge is taught: on labels, for so many steps or until held-out labels say stop; and before, on sibling worlds.

A judge from scratch knows as little of a world as the policy does. Judges of the field know more: their backbones have
read much of what people like elsewhere. `HeadStart` is that in a task which draws a world from every seed: comparisons
of other seeds' worlds, each with its own rater, before a label of the study's world is seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any, Literal

from aligngap.pipeline.base import Step
from aligngap.pipeline.data import Data
from aligngap.pipeline.sft import Sft, tokenizer_of
from aligngap.registry import use_source
from aligngap.seeding import derive
from aligngap.settings import JudgeSpec, Optimization
from aligngap.study.build import build_judge, build_task
from aligngap.types import Pair, Prompt, Response, RunFailed

if TYPE_CHECKING:
    from aligngap.pipeline.context import Context, Job

#: one label in so many is kept apart to say when a judge is to stop
HELD_OUT = 5


class Taught(Step):
    """A step that trains a judge, as its specification says."""

    spec: JudgeSpec

    @property
    def training(self) -> Optimization | None:
        return self.spec.optimization

    def units(self) -> float:
        how = self.spec.optimization
        return 3.0 * how.steps * how.batch if how else 1.0


class HeadStart(Taught):
    """A judge that has learned from sibling worlds: the same task at seeds of its own, none of them the study's."""

    kind: Literal["head-start"] = "head-start"
    data: Data
    backbone: Sft
    task: dict[str, Any]
    worlds: int
    pairs: int
    seed: int
    code: str = ""  # of the source of a kind of judge that is not aligngap's own

    def run(self, ctx: Context, job: Job) -> dict[str, Any]:
        folder, how = self.backbone.made(ctx, "policy"), self.spec.optimization
        assert how is not None  # `build_judge` has checked it
        tokenizer = tokenizer_of(ctx, self.data, self.backbone.model)
        use_source(self.code, ("judges", self.spec.kind))
        use_source(self.data.code, ("tasks", str(self.task["name"])))
        kind = build_judge(self.spec)
        judge = kind.start(folder, self.backbone.model, tokenizer, key=self.name, seed=derive(self.seed, "head"))
        judge.to(ctx.device)
        pairs = self.siblings()
        teach(job, judge, pairs, how, self.seed)
        judge.save(job.work / "model")
        return {"comparisons": len(pairs), "worlds": self.worlds}

    def siblings(self) -> list[Pair]:
        """The comparisons of every sibling world, as its own rater labels them."""
        enough = {"train_pairs": self.pairs} if "train_pairs" in self.task else {}  # no more are written than are read
        task, out = build_task(self.task | enough), list[Pair]()
        for number in range(self.worlds):
            for c in task.load(derive(self.seed, "sibling", number)).train[: self.pairs]:
                chosen, rejected = (Response((), self.data.closed, text) for text in (c.chosen, c.rejected))
                prompt = Prompt(c.prompt_id, c.prompt, ())
                out.append(Pair(prompt, chosen, rejected, 1.0, 1.0, 0.0, "sibling"))
        return out


def teach(
    job: Job, judge: Any, pairs: Sequence[Pair], how: Optimization, seed: int, stop_every: int | None = None
) -> dict[str, Any]:
    """Train a learner on labelled pairs; RunFailed if it diverges. What is returned says where it was stopped.

    With `stop_every` one pair in `HELD_OUT` is kept apart, and the loss on these is looked at before the first step,
    every so many steps and after the last; the judge ends as it was where that loss was least, the earlier of equals.
    """
    import numpy as np

    from aligngap.fit import Trainer
    from aligngap.pipeline.training import train
    from aligngap.streams import Epochs

    apart = pairs[::HELD_OUT] if stop_every else []
    kept = [p for i, p in enumerate(pairs) if i % HELD_OUT] if stop_every else pairs
    if not kept:
        raise RunFailed("judge: one label cannot be parted into those it learns from and those it stops by")
    items = judge.items(kept, np.random.default_rng(derive(seed, "shown order")))
    stopping = Stopping(judge, apart, how.batch, seed) if stop_every else None
    trainer = Trainer(judge.module, how, seed, job.world, {} if stopping is None else {"best": stopping.best})

    def after(step: int) -> None:
        if stopping is not None and stop_every and (step % stop_every == 0 or step == how.steps):
            stopping.look(step)

    after(0)
    outcome = train(job, trainer, Epochs(items, derive(seed, "judge order")), judge.objective, after=after)
    if outcome != "ok":
        raise RunFailed(f"judge: {outcome}; lower its learning_rate")
    return {} if stopping is None else stopping.finish()


class Stopping:
    """The judge as it was where its loss on pairs kept apart was least: part of the state that training saves."""

    def __init__(self, judge: Any, pairs: Sequence[Pair], batch: int, seed: int) -> None:
        import numpy as np
        import torch

        self.judge, self.batch = judge, batch
        self.items = judge.items(pairs, np.random.default_rng(derive(seed, "held-out order")))
        self.loss, self.step = torch.tensor(float("inf"), dtype=torch.float64), torch.tensor(0)
        self.best = torch.nn.ModuleDict({"judge": deepcopy(judge.module)})
        self.best.register_buffer("loss", self.loss)
        self.best.register_buffer("step", self.step)

    def look(self, step: int) -> None:
        """Keep the weights if the loss of the pairs kept apart is less than at every look before."""
        import torch

        self.judge.module.eval()
        with torch.no_grad():
            parts = range(0, len(self.items), self.batch)
            losses = [self.judge.objective(self.items[i : i + self.batch])[0] for i in parts]
        loss = torch.cat(losses).double().mean().cpu()
        if loss < self.loss:
            self.best["judge"].load_state_dict(self.judge.module.state_dict())
            self.loss.copy_(loss)
            self.step.fill_(step)

    def finish(self) -> dict[str, Any]:
        """Put the best weights back into the judge, and say when that was."""
        self.judge.module.load_state_dict(self.best["judge"].state_dict())
        return {"stopped_at": int(self.step), "loss_kept_apart": float(self.loss)}
