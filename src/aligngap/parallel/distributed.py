"""One model trained by several processes: DDP (gradients averaged) by Accelerate, FSDP (state sharded) by PyTorch.

Both see a model's forward pass through one module whose call is the objective's, whatever parts of the model that
uses. FSDP is PyTorch's `fully_shard` itself: Accelerate's wrapper of it knows no CPU, and nothing here needs more.
Small Python objects (responses, labels, sums) go through gloo, in the order of the ranks, to the same bits everywhere.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from importlib.util import find_spec
from typing import Any, Literal, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from aligngap.parallel.world import Layout, Released, Undivided
from aligngap.seeding import derive
from aligngap.types import AligngapError, Judge, Judgement, PaidJudge, Prompt, Response, RunFailed

T = TypeVar("T")
Item = TypeVar("Item")
Parallel = Literal["ddp", "fsdp"]

#: The first process may work on a step alone for long; that a process died is noticed by whoever started them.
PATIENCE = timedelta(days=7)


def check_parallel(parallel: Parallel, processes: int, device: str, here: int) -> None:
    """Refuse what cannot be had on this machine, which runs `here` of the processes: AligngapError with the remedy."""
    where = f"--processes {processes}"
    if find_spec("accelerate") is None:
        raise AligngapError(f"{where}: Accelerate is not installed; pip install 'aligngap[accelerate]'")
    if device.startswith("cuda:"):
        raise AligngapError(f"{where}: --device {device} is one GPU; say --device cuda, each process takes its own")
    if device.startswith("cuda") and here > torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise AligngapError(f"{where}: this machine has {found} GPUs; at most --processes {found}, or --device cpu")
    if parallel == "fsdp" and not hasattr(_fsdp().FSDPModule, "reset_iter_state"):
        raise AligngapError(f"--parallel fsdp: torch {torch.__version__} is too old for it; update torch, or use ddp")


def _fsdp() -> Any:
    return importlib.import_module("torch.distributed.fsdp")


class Processes:
    """The processes that a launcher (`--processes`, `accelerate launch`, `torchrun`) started, joined by Accelerate."""

    def __init__(self, parallel: Parallel, device: str) -> None:
        accelerate = importlib.import_module("accelerate")
        cpu = device == "cpu"
        handlers = [
            accelerate.InitProcessGroupKwargs(backend="gloo" if cpu else "cpu:gloo,cuda:nccl", timeout=PATIENCE),
            # A judge's backbone has an output layer that no loss reads.
            accelerate.DistributedDataParallelKwargs(find_unused_parameters=True),
        ]
        self.accelerator = accelerate.Accelerator(cpu=cpu, mixed_precision="no", kwargs_handlers=handlers)
        self.parallel, self.device = parallel, "cpu" if cpu else str(self.accelerator.device)
        self.rank, self.size = int(self.accelerator.process_index), int(self.accelerator.num_processes)

    def leave(self) -> None:
        """The end of this world."""
        self.accelerator.end_training()

    def about(self) -> dict[str, Any]:
        return {"processes": self.size, "parallel": self.parallel}

    def share_of(self, n: int) -> tuple[int, int]:
        return n * self.rank // self.size, n * (self.rank + 1) // self.size

    def gather(self, value: T) -> list[T]:
        """Every process's value, in the order of the ranks."""
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def _gather_or_raise(self, work: Callable[[], T]) -> list[T]:
        """What `work` gave in each process; what fails in one, as bad input or a failed run, fails in all."""
        try:
            own: tuple[T | None, Exception | None] = work(), None
        except (AligngapError, RunFailed) as error:
            own = None, error
        told = self.gather(own)
        for _, failure in told:
            if failure is not None:
                raise failure
        return [value for value, _ in told]  # type: ignore[misc]

    def each(self, items: Sequence[Item], work: Callable[[Sequence[Item]], Sequence[T]]) -> list[T]:
        start, stop = self.share_of(len(items))
        parts = self._gather_or_raise(lambda: list(work(items[start:stop])) if stop > start else [])
        return [result for part in parts for result in part]

    def broadcast(self, value: T) -> T:
        return self.gather(value)[0]

    def any(self, *flags: bool) -> tuple[bool, ...]:
        return tuple(map(any, zip(*self.gather(flags), strict=True)))

    def sum(self, values: Mapping[str, float]) -> dict[str, float]:
        told = self.gather(dict(values))
        return {name: sum(t[name] for t in told) for name in values}

    def own_seed(self, seed: int) -> int:
        return derive(seed, "process", self.rank) if self.rank else seed

    def share_judge(self, judge: Judge) -> Judge:
        return SharedJudge(judge, self)

    def lay_out(self, model: nn.Module) -> Layout:
        return Sharded(model, self) if self.parallel == "fsdp" else Replicated(model, self)


@dataclass(frozen=True)
class SharedJudge:
    """A judge that each process asks for its share; one that is paid for is asked by the first process only."""

    asked: Judge
    world: Processes

    @property
    def key(self) -> str:
        return self.asked.key

    def judge(self, prompts: Sequence[Prompt], a: Sequence[Response], b: Sequence[Response]) -> Judgement:
        rows = list(zip(prompts, a, b, strict=True))
        if isinstance(self.asked, PaidJudge):
            found = self.world._gather_or_raise(lambda: self._answers(rows) if self.world.rank == 0 else [])[0]
        else:
            found = self.world.each(rows, self._answers)
        return Judgement(np.array([f for f, _ in found]), np.array([b for _, b in found]))

    def _answers(self, rows: Sequence[tuple[Prompt, Response, Response]]) -> list[tuple[float, float]]:
        judged = self.asked.judge([r[0] for r in rows], [r[1] for r in rows], [r[2] for r in rows])
        return list(zip(judged.forward.tolist(), judged.backward.tolist(), strict=True))


@dataclass(frozen=True)
class Writer:
    """A policy as a stream's sampler: each process writes its share, of the draws that one process would make."""

    policy: Any
    layout: Replicated | Sharded

    @property
    def key(self) -> str:
        return str(self.policy.key)

    def sample(self, prompts: Sequence[Prompt], n: int, seed: int, **more: Any) -> list[list[Response]]:
        with self.layout.gather_weights():
            found: list[list[Response]] = self.policy.sample(prompts, n, seed, world=self.layout.world, **more)
        return found

    def score(self, prompts: Sequence[Prompt], responses: Sequence[Response]) -> list[float]:
        with self.layout.gather_weights():
            found: list[float] = self.policy.score(prompts, responses)
        return found


class CalledModule(nn.Module):
    """A model whose forward pass is a given call that uses it: what DDP and FSDP put their hooks on."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, call: Callable[[], T]) -> T:
        return call()


class Replicated(Undivided):
    """DDP: the whole model in each process, gradients averaged while the backward pass runs."""

    def __init__(self, model: nn.Module, world: Processes) -> None:
        self.world = world
        self.module = world.accelerator.prepare_model(CalledModule(model))

    def __call__(self, objective: Callable[[Sequence[Any]], T], items: Sequence[Any]) -> T:
        found: T = self.module(lambda: objective(items))
        return found

    def microbatch(self, last: bool) -> AbstractContextManager[Any]:
        found: AbstractContextManager[Any] = nullcontext() if last else self.world.accelerator.no_sync(self.module)
        return found

    def gather_weights(self) -> AbstractContextManager[bool]:
        return nullcontext(self.world.rank == 0)

    def sampler(self, sampler: Any) -> Any:
        return sampler and Writer(sampler, self)

    def finish(self) -> None:
        self.world.accelerator.free_memory()  # it keeps every model that it prepares
        if self.world.rank:
            raise Released


class Sharded:
    """FSDP: weights, gradients and moments in parts; layers are gathered one at a time in forward and backward passes.

    Weights are whole in each process while responses are written and checkpoints saved.
    """

    def __init__(self, model: nn.Module, world: Processes) -> None:
        self.world, self.shards = world, world.size
        fully_shard = _fsdp().fully_shard
        mesh = dist.device_mesh.init_device_mesh(torch.device(world.device).type, (world.size,))
        names = {n for m in model.modules() for n in getattr(m, "_no_split_modules", None) or ()}
        for layer in [m for m in model.modules() if type(m).__name__ in names]:
            fully_shard(layer, mesh=mesh)
        self.root: Any = fully_shard(CalledModule(model), mesh=mesh)
        self.parts = [m for m in self.root.modules() if isinstance(m, _fsdp().FSDPModule)]
        self.root(lambda: None)  # the first call says which module is the root,
        self.root.reset_iter_state()  # and leaves its weights whole
        for module in self.root.modules():
            module._state_dict_pre_hooks.clear()  # they shard again whole weights that are about to be saved

    def __call__(self, objective: Callable[[Sequence[Any]], T], items: Sequence[Any]) -> T:
        found: T = self.root(lambda: objective(items))
        return found

    def microbatch(self, last: bool) -> AbstractContextManager[Any]:
        return nullcontext()  # gradients are averaged part by part in every pass: whole ones would not fit

    @contextmanager
    def gather_weights(self) -> Iterator[bool]:
        self._gather()
        yield self.world.rank == 0
        # Shards again, and no trace of forward passes without a backward pass, of which each process has made its own.
        self.root.reset_iter_state()
        for part in self.parts:
            part.set_reshard_after_forward(part is not self.root, recurse=False)

    def _gather(self) -> None:
        for part in self.parts:
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()

    def sampler(self, sampler: Any) -> Any:
        return sampler and Writer(sampler, self)

    def file_name(self, name: str, shard: int | None = None) -> str:
        stem, _, end = name.rpartition(".")
        return f"{stem}-{(self.world.rank if shard is None else shard) + 1:05d}-of-{self.shards:05d}.{end}"

    def scalar(self, value: Tensor) -> float:
        laid: Any = value
        return float(laid.full_tensor() if hasattr(laid, "full_tensor") else laid)

    def local_part(self, value: Tensor) -> Tensor:
        part: Tensor = value.to_local() if hasattr(value, "to_local") else value
        return part

    def join_part(self, part: Tensor, like: Tensor) -> Tensor:
        laid: Any = like
        if part.dim() == 0 or not hasattr(like, "placements"):
            return part
        from torch.distributed.tensor import DTensor

        found: Tensor = DTensor.from_local(
            part, laid.device_mesh, laid.placements, shape=like.shape, stride=like.stride()
        )
        return found

    def finish(self) -> None:
        self._gather()
        if self.world.rank:
            raise Released
