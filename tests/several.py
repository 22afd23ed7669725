"""Not a test: what `unit/test_world.py` runs, the same training by one process and by two.

One interpreter imports everything once and forks three processes: one alone, and two that are a world over gloo. Each
goes through the same cases and leaves what came of them in a folder: `alone.json`, `0.json` and `1.json`.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conftest import TableJudge, pair, prompt, tiny_policy

from aligngap.fit import Trainer, pair_objective
from aligngap.losses import IPO
from aligngap.models.batch import collate
from aligngap.models.pair_logps import with_reference
from aligngap.models.policy import Mixed, Policy
from aligngap.parallel.distributed import Processes
from aligngap.parallel.world import ALONE, Released, World
from aligngap.pipeline.context import Job
from aligngap.pipeline.training import train
from aligngap.settings import Optimization
from aligngap.storage.pairs import read_rows
from aligngap.streams import Dataset, Epochs, OnPolicy
from aligngap.types import AligngapError, Stopped

rng = np.random.default_rng(0)


def ids(low: int, high: int) -> tuple[int, ...]:
    return tuple(int(t) for t in rng.integers(4, 20, rng.integers(low, high)))


PROMPTS = [prompt((*ids(1, 7), 1)) for _ in range(20)]
PAIRS = [pair(p, (*ids(1, 6), 1), ids(2, 7), (1.0, 0.5, 0.8)[i % 3]) for i, p in enumerate(PROMPTS)]
STEPS = 4


def judge() -> TableJudge:
    """Nearer to a middle word is better, with a preference for the first position."""
    i = np.abs(np.arange(20) - 10.0)
    return TableJudge(1 / (1 + np.exp(0.3 * (i[:, None] - i[None, :]) - 0.1)))


class Case:
    """A tiny policy trained in a work folder of its own by the processes of a world."""

    def __init__(self, folder: Path, world: World, family: str, stream: str, **options: Any) -> None:
        # As for a real step: all but the first process work in a folder that is thrown away.
        work = folder if world.rank == 0 else folder / f"thrown-away-{world.rank}"
        work.mkdir(parents=True, exist_ok=True)
        self.job = Job(work, world, save_seconds=1e6)
        self.reference = tiny_policy(family, spread=1.0)
        self.policy = self.reference.copy("student")
        how = Optimization(**{"steps": STEPS, "batch": 8, "learning_rate": 3e-3, **options})
        self.trainer = Trainer(self.policy.model, how, seed=5, world=world)
        self.name, self.world = stream, world

    def train(self, stop_at: int = -1) -> dict[str, Any]:
        """Losses, recorded pairs and final weights: what the first process returns with, empty in the others."""
        policy, trainer, world = self.policy, self.trainer, self.world
        self.job.stopping = lambda: trainer.step == stop_at
        prepare: Callable[[Any], Any] | None = lambda pairs: with_reference(self.reference, pairs)  # noqa: E731
        objective: Any = pair_objective(policy, IPO(0.1))
        stream: Any
        if self.name == "sft":
            stream, prepare = Epochs([(p.prompt.ids, p.chosen.ids) for p in PAIRS], 3), None

            def objective(items: Sequence[Any]) -> Any:
                return -policy.logps(collate([p for p, _ in items], [r for _, r in items])), {}

        elif self.name == "offline":
            stream = Dataset(PAIRS, 3)
        else:
            through = (lambda p: Mixed(p, self.reference, 0.5)) if self.name == "mixed" else None
            stream = OnPolicy(PROMPTS, world.share_judge(judge()), seed=3, soft_labels=True, through=through)
        checkpoint, last = self.job.work / "checkpoint", self.job.work / "last"

        def after(step: int) -> None:
            policy.key = f"step{step}"
            if step == 2:
                with trainer.layout.gather_weights() as writes:
                    if writes:
                        policy.save(checkpoint)

        try:
            record = self.name != "sft"
            outcome = train(
                self.job, trainer, stream, objective, sampler=policy, prepare=prepare, after=after, record_pairs=record
            )
        except Stopped:
            return {"outcome": "stopped"}
        except Released:
            return {}
        policy.save(last)
        saved = [weights(Policy.load(f, response_tokens=4)) for f in (checkpoint, last)]
        rows = read_rows(self.job.work / "log.parquet")
        pairs = read_rows(self.job.work / "recording.parquet") if record else []
        again = Policy(policy.model, policy.tokenizer, response_tokens=4)  # an ordinary model once more
        said = [r.ids for row in again.sample(PROMPTS[:3], 1, 0) for r in row]
        assert weights(policy) == saved[1]
        return {"outcome": outcome, "log": rows, "pairs": pairs, "saved": saved, "said": said}


def weights(policy: Policy) -> dict[str, Any]:
    """Every parameter as nested lists of exact float32 values."""
    return {n: p.tolist() for n, p in policy.model.named_parameters()}


CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "sft": ("t5", "sft", {"micro_batch": 2}),
    "offline": ("t5", "offline", {}),
    "online": ("llama", "online", {"weight_decay": 0.1, "micro_batch": 3}),
    "mixed": ("t5-v1.1", "mixed", {}),
}


def through_all(folder: Path, world: World, kind: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, (family, stream, options) in CASES.items():
        found[f"{kind} {name}"] = Case(folder / kind / name, world, family, stream, **options).train()
    if world.size > 1:
        family, stream, options = CASES["online"]
        for stop in (2, -1):  # stopped, then gone on with by new objects from the saved state
            found[f"{kind} again"] = Case(folder / kind / "again", world, family, stream, **options).train(stop)
    return found


def refused(folder: Path, world: World) -> str:
    """A sharded state under a world that is not sharded."""
    case = Case(folder / "fsdp" / "refused", world, "llama", "offline")
    case.train(2)
    other = Case(folder / "fsdp" / "refused", Processes("ddp", "cpu"), "llama", "offline")
    try:
        other.train()
    except AligngapError as error:
        return str(error)
    return ""


def work(folder: Path, rank: int | None, port: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    if rank is None:
        return through_all(folder, ALONE, "alone")
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    found = through_all(folder, Processes("ddp", "cpu"), "ddp")
    sharded = Processes("fsdp", "cpu")
    found |= through_all(folder, sharded, "fsdp")
    return found | {"refused": refused(folder, sharded)}


def main(folder: Path) -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in (None, 0, 1):
        child = os.fork()
        if child == 0:
            try:
                (folder / f"{'alone' if rank is None else rank}.json").write_text(json.dumps(work(folder, rank, port)))
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        children.append(child)
    return max(os.waitstatus_to_exitcode(os.waitpid(c, 0)[1]) != 0 for c in children)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
