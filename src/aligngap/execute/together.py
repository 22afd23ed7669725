"""Run steps on several processes that train each model together, one GPU each: for a run larger than a device.

Every process goes through the same steps in the same order. A model is trained by all of them (`world.py` says who does
what), and the first one's files are the artifact; steps without training go to one process each. What a worker of
`local.py` promises of keys, locks, saved states and resuming holds here too. An error nobody foresaw, in any process,
ends the command: the others would wait for it for ever.

What this module leaves out: several hosts, which a launcher starts (`accelerate launch`, docs/scale.md).
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aligngap.execute.agenda import Agenda, Answer, Event, position, this_machine
from aligngap.execute.local import importance
from aligngap.execute.worker import attempt, keep_compiled, leave_with, make, make_or_set_aside, work_on
from aligngap.parallel.world import ALONE, Released, World
from aligngap.pipeline.base import Step
from aligngap.pipeline.context import Context, Job, never
from aligngap.storage.store import Store
from aligngap.storage.tracking import Tracking
from aligngap.types import AligngapError, RunFailed

if TYPE_CHECKING:
    from aligngap.parallel.distributed import Parallel
    from aligngap.pipeline.plan import Plan
    from aligngap.settings import Optimization


def trained_by(step: Step) -> Optimization | None:
    """How a step trains a model; None where it does not."""
    return step.training if step.training is not None and step.training.steps else None


def check_batches(made: Plan, processes: int, parallel: Parallel) -> None:
    """Refuse a study whose batches cannot be split evenly, or whose training cannot be sharded."""
    for step in made.steps():
        how = trained_by(step)
        if how is None:
            continue
        what = f"--processes {processes}: {step.label} trains on batches of {how.batch}"
        if how.batch % processes:
            raise AligngapError(f"{what}, which do not divide among {processes}; choose a multiple or a divisor")
        if getattr(getattr(step, "correction", None), "name", "") == "second-moment":
            raise AligngapError(f"--processes {processes}: `second-moment` reads a batch as a whole; leave one out")
        if parallel == "fsdp" and getattr(step, "reference_every", None):
            raise AligngapError("--parallel fsdp: `recipe.reference` moves to whole weights; use --parallel ddp")
        if parallel == "fsdp" and how.lora is not None:
            raise AligngapError("--parallel fsdp: `lora` shares its weights with the reference; use --parallel ddp")
        if parallel == "fsdp" and how.optimizer == "adafactor":
            raise AligngapError("--parallel fsdp: the moments of adafactor have no shards; use adamw or --parallel ddp")


def launch(words: Sequence[str], processes: int, threads: int) -> int:
    """Start this very command as so many processes of this machine, by PyTorch's elastic launcher; its exit code."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    said = logging.getLogger("torch.distributed")  # the command has its own words
    said.addHandler(logging.NullHandler())
    said.propagate = False
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # DDP warns of what `distributed.py` has reasons for
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=processes, run_id="aligngap", rdzv_backend="c10d", max_restarts=0,
        rdzv_endpoint="localhost:0", local_addr="localhost", monitor_interval=0.2,
        logs_specs=DefaultLogsSpecs(os.devnull),
    )  # fmt: skip
    try:
        elastic_launch(config, sys.executable)("-m", "aligngap.cli", *words)
    except SignalException:
        return 130
    except ChildFailedError as error:
        codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
        for rank, code in codes.items():
            if code < 0:
                what = f"process {rank} was killed (signal {-code})"
                raise RunFailed(f"{what}; the same command goes on from where it was") from None
        return codes.get(0) or error.get_first_failure()[1].exitcode
    return 0


class Together:
    """This process among those that a launcher started, each on a device of its own."""

    def __init__(
        self, store: Store, *, parallel: Parallel, device: str, threads: int = 1, save_seconds: float = 30.0,
        tracking: Tracking | None = None,
    ) -> None:  # fmt: skip
        import torch

        from aligngap.models.loading import quiet
        from aligngap.parallel.distributed import Processes

        leave_with(os.getppid())
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        quiet()
        keep_compiled(store)
        self.store, self.threads = store, threads
        torch.set_num_threads(threads)
        self.world = Processes(parallel, device)
        self.ctx = Context(store, self.world.device)
        self.save_seconds, self.tracking = save_seconds, tracking or Tracking()
        self.stopped: Callable[[], bool] = never
        self.machine = this_machine(device, threads, self.world.size)

    def slots(self) -> int:
        """One model is trained at a time."""
        return 1

    def run(
        self, steps: Sequence[Step], stopped: Callable[[], bool] = lambda: False
    ) -> Iterator[tuple[Event, Step, str]]:
        """Work through the steps until done or `stopped`; yields (event, step, message), the same
        in all processes."""
        there = set(self.world.broadcast([s.name for s in steps if self.store.has(s.name)]))
        for step in steps:
            if step.name in there:
                yield Event.FOUND, step, ""
        todo = [s for s in steps if s.name not in there]
        agenda, ready = Agenda(todo, importance(todo)), list[Step]()
        self.stopped = stopped
        while agenda.waiting or ready:
            if any(self.world.any(stopped())):
                self.world.leave()
                raise KeyboardInterrupt
            for step, why in agenda.lost():
                yield Event.LOST, step, why
            ready += agenda.ready()
            turn = self._turn(ready)
            if not turn:
                continue
            ready = [s for s in ready if s not in turn]
            for step in turn:
                yield Event.START, step, ""
            work = _in_thread(partial(self._work, turn))
            while not work.done():
                time.sleep(0.05)
                yield Event.TICK, turn[0], ""
            for step, (event, message) in zip(turn, work.result(), strict=True):
                if event == Event.STOPPED:
                    self.world.leave()
                    raise KeyboardInterrupt
                agenda.end(step, event, message)
                yield event, step, message
        self.world.leave()

    def _turn(self, ready: Sequence[Step]) -> list[Step]:
        """What is done next: a model trained by all, or up to a step for each process."""
        single = [s for s in ready if trained_by(s) is None]
        wide = [s for s in ready if trained_by(s) is not None]
        return wide[:1] if wide and len(single) < self.world.size else single[: self.world.size]

    def _work(self, turn: Sequence[Step]) -> list[Answer]:
        """What became of the steps of one turn; the same in all processes."""
        import torch

        torch.set_num_threads(self.threads)  # a thread's own setting
        if len(turn) == 1 and trained_by(turn[0]) is not None:
            return [self.world.broadcast(self._attempt(turn[0], self._train))]
        own = turn[self.world.rank] if self.world.rank < len(turn) else None
        told = self.world.gather(self._attempt(own, self._make) if own is not None else (Event.TICK, ""))
        return told[: len(turn)]

    def _job(self, step: Step, world: World) -> Job:
        return Job(
            world=world, track=self.tracking.of(step.name), stopping=self.stopped, save_seconds=self.save_seconds
        )

    def _make(self, step: Step) -> bool:
        return make(step, self.ctx, self._job(step, ALONE))

    def _train(self, step: Step) -> bool:
        """One process's part in training a model; all but the first work in a folder that is thrown away."""
        if self.world.rank == 0:
            with self.store.making(step.name) as work:
                if self.world.broadcast(work is not None) and work is not None:
                    work_on(step, self.ctx, replace(self._job(step, self.world), work=work))
                return work is not None
        if self.world.broadcast(False):
            with tempfile.TemporaryDirectory(prefix="aligngap-") as folder:
                job = Job(Path(folder), self.world, stopping=self.stopped, save_seconds=self.save_seconds)
                try:
                    step.run(self.ctx, job)
                except Released:
                    return True
        return False

    def _attempt(self, step: Step, making: Callable[[Step], bool]) -> Answer:
        """What became of a step; where all processes train it, an error nobody foresaw ends the command."""
        crash = None if trained_by(step) is None else self._crash
        return attempt(step, lambda: make_or_set_aside(partial(making, step), self.store), self.store, crash)

    def _crash(self, line: str) -> None:
        """End this process, and with it the others that train the same model: they would wait for it for ever."""
        print(f"aligngap: process {self.world.rank}: {line}", file=sys.stderr, flush=True)
        os._exit(1)

    def position(self, step: Step) -> tuple[float, str]:
        """(fraction done, note) of a running step."""
        return position(self.store, step)


def _in_thread(work: Callable[[], Any]) -> Future[Any]:
    """The result of work done in a thread, while this one shows how far it is and hears of signals."""
    found: Future[Any] = Future()

    def do() -> None:
        try:
            found.set_result(work())
        except BaseException as error:
            found.set_exception(error)

    threading.Thread(target=do, daemon=True).start()
    return found
