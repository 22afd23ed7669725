"""The one training loop: SFT, preference models and every arm of every study go through `fit`, line for line.

`fit` draws items from a stream and steps down an objective. It knows neither what the items are nor where they come
from: it imports no streams, judges, tasks or study, and that wall is the science. It is a generator: the caller owns
the stopping rule, the recording and the checkpoints, and can stop at any step.

What it leaves out: what several processes do to train one model (`world.py` is the role), and every name of an arm.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor, nn

from aligngap.losses import Loss, classified_right
from aligngap.models.loading import seeded
from aligngap.models.pair_logps import compare_logps
from aligngap.models.policy import Policy
from aligngap.parallel.world import ALONE, World, writing
from aligngap.seeding import derive
from aligngap.settings import Optimization
from aligngap.types import AligngapError, Pair, Sampler

#: Per-item losses [B] of a batch of items, and per-item metrics [B] to report, none of them named "loss".
Objective = Callable[[Sequence[Any]], tuple[Tensor, dict[str, Tensor]]]


class Stream(Protocol):
    """What the trainer draws items from, in the state of which nothing is hidden from a checkpoint."""

    def draw(self, n: int, sampler: Any) -> Sequence[Any]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


@dataclass(frozen=True)
class Update:
    """What happened in one optimiser step; `items` are those trained on, as the objective saw them."""

    number: int
    loss: float
    metrics: dict[str, float]
    grad_norm: float
    learning_rate: float
    items: Sequence[Any]

    @property
    def finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


class Trainer:
    """Model, optimiser and counters: the state that `fit` advances and that a checkpoint holds.

    The processes of a `world` advance one such state together: each takes its share of a step's items.
    """

    def __init__(
        self,
        model: nn.Module,
        how: Optimization,
        seed: int,
        world: World = ALONE,
        beside: Mapping[str, nn.Module] | None = None,
    ) -> None:
        self.model, self.how, self.seed, self.step = model, how, seed, 0
        self.beside = dict(beside or {})  # whole models that the caller changes, part of the state
        self.world, self.layout = world, world.lay_out(model)
        self.optimizer = build_optimizer([p for p in model.parameters() if p.requires_grad], how)

    def learning_rate(self, step: int) -> float:
        """The rate of step number `step` (from 0): linear warm-up, then constant, linear to 0 or cosine to 0."""
        how = self.how
        if step < how.warmup_steps:
            return how.learning_rate * (step + 1) / how.warmup_steps
        left = (step - how.warmup_steps) / max(1, how.steps - how.warmup_steps)
        factor = {"constant": 1.0, "linear": 1.0 - left, "cosine": 0.5 * (1.0 + math.cos(math.pi * left))}
        return how.learning_rate * factor[how.schedule]

    def advance(self, items: Sequence[Any], objective: Objective) -> Update:
        """One optimiser step on the mean loss of `items`, in micro-batches that do not change the mean."""
        rate = self.learning_rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        self.model.train()
        device = next(self.model.parameters()).device
        first, end = self.world.share_of(len(items))
        width = self.how.micro_batch or end - first
        sums = {"loss": 0.0}
        with seeded(self.world.own_seed(derive(self.seed, "dropout", self.step)), device):
            for start in range(first, end, width):
                with self.layout.microbatch(last=start + width >= end):
                    losses, metrics = self.layout(objective, items[start : min(start + width, end)])
                    loss = losses.sum() / len(items)
                    (loss * self.world.size).backward()  # the processes' gradients are averaged
                sums["loss"] += float(loss.detach())
                for name, values in metrics.items():
                    sums[name] = sums.get(name, 0.0) + float(values.detach().sum())
        self.model.eval()
        sums = self.world.sum(sums)
        total = sums.pop("loss")
        clip = self.how.grad_clip or math.inf
        norm = self.layout.scalar(nn.utils.clip_grad_norm_(self.model.parameters(), clip))
        if math.isfinite(total) and math.isfinite(norm):
            self.optimizer.step()
        self.step += 1
        return Update(self.step, total, {k: v / len(items) for k, v in sums.items()}, norm, rate, items)

    # ------------------------------------------------------------------------------------------- saving, exactly

    def _trained(self) -> dict[str, Tensor]:
        """The parameters saved one by one: those that move beside frozen ones, or shards; empty for a whole model."""
        every = dict(self.model.named_parameters())
        trained = {name: p for name, p in every.items() if p.requires_grad}
        return {} if len(trained) == len(every) and self.layout.shards == 1 else dict(trained)

    def _save_weights(self, file: Path) -> None:
        if trained := self._trained():
            local = self.layout.local_part
            save_file({name: local(p.detach()).contiguous() for name, p in trained.items()}, str(file))
        else:
            save_model(self.model, str(file))

    def _load_weights(self, file: Path) -> None:
        if trained := self._trained():
            saved = load_file(str(file))
            if saved.keys() != trained.keys():
                raise ValueError(f"{file}: holds other parameters than those that are trained")
            with torch.no_grad():
                for name, p in trained.items():
                    self.layout.local_part(p).copy_(saved[name])
        else:
            load_model(self.model, str(file))

    def save(self, folder: Path, stream: Stream) -> None:
        """Write the whole state into `folder`, atomically: beside it first, then renamed."""
        layout = self.layout
        with writing(folder, self.world, everyone=layout.shards > 1) as beside:
            if beside is None:
                return
            self._save_weights(beside / layout.file_name("model.safetensors"))
            for name, model in self.beside.items():
                save_model(model, str(beside / f"{name}.safetensors"))
            state = self.optimizer.state_dict()
            tensors, scalars = dict[str, Tensor](), dict[str, Any]()
            for index, slots in state["state"].items():
                for name, value in slots.items():
                    if isinstance(value, Tensor):
                        tensors[f"{index}/{name}"] = layout.local_part(value).contiguous()
                    else:
                        scalars[f"{index}/{name}"] = value
            save_file(tensors, str(beside / layout.file_name("optimizer.safetensors")))
            if self.world.rank == 0:
                about = {"step": self.step, "stream": stream.state_dict(), "scalars": scalars}
                about["shards"] = layout.shards
                (beside / "state.json").write_text(json.dumps(about))

    def load(self, folder: Path, stream: Stream) -> None:
        """Go on exactly from `folder`; AligngapError if its state is split among another number of processes."""
        about: dict[str, Any] = json.loads((folder / "state.json").read_text())
        layout, shards = self.layout, about.get("shards", 1)
        if shards != layout.shards:
            of = f"{shards} processes with --parallel fsdp" if shards > 1 else "a run without --parallel fsdp"
            raise AligngapError(f"{folder}: a state of {of}; go on as it began, or remove the folder to train anew")
        self._load_weights(folder / layout.file_name("model.safetensors"))
        for name, model in self.beside.items():
            load_model(model, str(folder / f"{name}.safetensors"))
        moved = [p for group in self.optimizer.param_groups for p in group["params"]]
        slots: dict[int, dict[str, Any]] = {}
        for source in (load_file(str(folder / layout.file_name("optimizer.safetensors"))), about["scalars"]):
            for name, value in source.items():
                index, _, slot = name.partition("/")
                laid = layout.join_part(value, moved[int(index)]) if isinstance(value, Tensor) else value
                slots.setdefault(int(index), {})[slot] = laid
        state = self.optimizer.state_dict()
        self.optimizer.load_state_dict({"state": slots, "param_groups": state["param_groups"]})
        stream.load_state_dict(about["stream"])
        self.step = int(about["step"])


def fit(
    trainer: Trainer,
    stream: Stream,
    objective: Objective,
    sampler: Sampler | None = None,
    prepare: Callable[[Sequence[Any]], Sequence[Any]] | None = None,
) -> Iterator[Update]:
    """Draw, prepare, step; yield after each of the `how.steps` steps. The whole of training, for every arm."""
    while trainer.step < trainer.how.steps:
        items = stream.draw(trainer.how.batch, sampler)
        if prepare is not None:
            items = prepare(items)
        yield trainer.advance(items, objective)


# ------------------------------------------------------------------------------------------------------ on pairs


def pair_objective(policy: Policy, loss: Loss) -> Objective:
    """The objective of every arm: `loss` on the pairs, with the training metrics of the field."""

    def objective(pairs: Sequence[Pair]) -> tuple[Tensor, dict[str, Tensor]]:
        x = compare_logps(policy, pairs)
        metrics = {
            "margin": x.margin(),
            "accuracy": classified_right(x),
            "chosen_log_ratio": x.policy_chosen - x.ref_chosen,
            "rejected_log_ratio": x.policy_rejected - x.ref_rejected,
            "lag_kl_nats": x.lag(),  # 0 where the writer's log-probabilities are not stored; the log divides by the
            "writer_known": x.writer_known(),  # share where they are
        }
        return loss(x), metrics

    return objective


def build_optimizer(parameters: Iterable[nn.Parameter], how: Optimization) -> torch.optim.Optimizer:
    """AdamW; or Adafactor at the given learning rate, without its relative step and its scaling by the parameters."""
    if how.optimizer == "adafactor":
        from transformers.optimization import Adafactor

        return Adafactor(
            parameters, lr=how.learning_rate, scale_parameter=False, relative_step=False, warmup_init=False,
            weight_decay=how.weight_decay,
        )  # fmt: skip
    moved = list(parameters)
    plain = all(p.device.type == "cpu" and not hasattr(p, "placements") for p in moved)  # not in shards
    return torch.optim.AdamW(
        moved, lr=how.learning_rate, betas=how.betas, eps=how.eps, weight_decay=how.weight_decay, fused=plain or None
    )
