"""Run steps as jobs of a Slurm cluster, by submitit: each a job of its own, its artifact in a store that nodes share.

A job that dies, or whose node Slurm takes away, is handed over again and goes on from its newest saved state; one that
reaches its time limit is put back into the queue by submitit. Jobs outlive a command that is killed: the same command
finds what they have made, and waits for what they are making.

What this module leaves out: one run over several devices or nodes (`--processes`, docs/scale.md).
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

from aligngap.execute.agenda import Answer, Event, Machine
from aligngap.execute.cluster import Cluster
from aligngap.execute.local import progress_of
from aligngap.execute.worker import WorkerSettings, work
from aligngap.pipeline.base import Step
from aligngap.storage.store import Store
from aligngap.types import AligngapError

JOBS = 16  #: at once, where --workers does not say
DEATHS = 3  #: of a step's jobs at the same place before it has failed
CLUSTERS = ("slurm", "local")  #: of submitit: a Slurm cluster, or processes of this machine that stand in for one
#: what the command says itself, by the names under which submitit would be told
OWN = {"cpus_per_task": "--threads", "gpus_per_node": "--gpus", "tasks_per_node": "--processes", "nodes": "--processes"}


class Work:
    """What a job does; submitit puts it back into the queue, as it is, where the job has reached its time limit."""

    def __call__(self, settings: WorkerSettings, step: str) -> Answer:
        """Make the step that a JSON text describes."""
        return work(settings, step)

    def checkpoint(self, settings: WorkerSettings, step: str) -> Any:
        """The same job once more: the step goes on from its newest saved state."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, settings, step)


def parse_options(options: Sequence[str]) -> dict[str, Any]:
    """KEY=VALUE texts as submitit's parameters; whole numbers are numbers. AligngapError where one is no such text."""
    found: dict[str, Any] = {}
    for option in options:
        name, equals, value = option.partition("=")
        if not equals or not name or not value:
            raise AligngapError(f"--slurm {option}: must be KEY=VALUE, for instance partition=gpu or timeout_min=240")
        if name in OWN:
            raise AligngapError(f"--slurm {name}: is said by {OWN[name]}; leave it out")
        found[name] = int(value) if value.isdecimal() else value
    return found


class Slurm(Cluster[Any]):
    """The cluster's jobs. `gpus` is a whole number of GPUs of a step, 0 for CPUs; `workers` how many jobs at once.

    `options` are submitit's parameters of a job: `partition`, `account`, `timeout_min` and the like, with or without
    submitit's prefix `slurm_`; and `cluster`, slurm by default: `local` has processes of this machine stand in.
    """

    def __init__(
        self, store: Store, *, options: Sequence[str] = (), gpus: float | None = None, workers: int | None = None,
        threads: int = 1, save_seconds: float = 30.0,
    ) -> None:  # fmt: skip
        super().__init__(store)
        self.gpus = int(gpus or 0)
        if gpus is not None and (gpus != self.gpus or gpus < 0):
            raise AligngapError(f"--gpus {gpus:g}: a job of Slurm has a whole number of GPUs; 0 runs on CPUs")
        self.workers, self.threads, self.save_seconds = workers or JOBS, threads, save_seconds
        given = parse_options(options)
        cluster = str(given.pop("cluster", "slurm"))
        if cluster not in CLUSTERS:
            raise AligngapError(f"--slurm cluster={cluster}: must be one of {', '.join(CLUSTERS)}")
        self.submitit = self._connect(cluster, given)
        self.machine = Machine(f"{cluster} gpus={self.gpus} x{threads}", None, threads)
        self.deaths: dict[str, tuple[str, int]] = {}

    def _connect(self, cluster: str, given: dict[str, Any]) -> Any:
        """submitit's executor of jobs; AligngapError where it, the cluster or a parameter is not there."""
        try:
            import submitit
        except ImportError as error:
            raise AligngapError("--executor slurm: submitit is not installed; pip install 'aligngap[slurm]'") from error
        self.errors = (submitit.core.utils.UncompletedJobError,)
        folder = self.store.root / "partial" / "slurm"
        try:
            executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
        except RuntimeError as error:
            remedy = "start the command where `srun` can be found, or add --slurm cluster=local"
            raise AligngapError(f"--executor slurm: no Slurm on this machine; {remedy}") from error
        plain = {"timeout_min", "mem_gb", "name", "stderr_to_stdout"}
        named = {n if n in plain or n.startswith("slurm_") else f"slurm_{n}": value for n, value in given.items()}
        own = {"cpus_per_task": self.threads} | ({"gpus_per_node": self.gpus} if self.gpus else {})
        try:
            executor.update_parameters(**({"name": "aligngap", "timeout_min": 240} | named | own))
        except (NameError, TypeError, ValueError) as error:
            first = str(error).splitlines()[0]
            raise AligngapError(
                f"--slurm: submitit does not know such a parameter ({first}); see docs/cluster.md"
            ) from error
        return executor

    def slots(self) -> int:
        """How many jobs are in the queue or at work at once."""
        return self.workers

    def open(self) -> None:
        """Describe the worker that a job opens; each job says itself what its node lacks."""
        device = "cuda" if self.gpus else "cpu"
        self.settings = WorkerSettings(str(self.store.root), os.getcwd(), device, self.threads, self.save_seconds)

    def submit(self, step: Step) -> Any:
        """The job of a step, in the queue."""
        return self.submitit.submit(Work(), self.settings, step.model_dump_json())

    def wait(self, tasks: Sequence[Any], seconds: float) -> Sequence[Any]:
        """Those of the jobs that have ended; looked at once, after so many seconds if none has."""
        finished = [job for job in tasks if job.done()]
        if not finished:
            time.sleep(seconds)
        return finished

    def answer(self, step: Step, task: Any) -> Answer | None:
        """What became of a step whose job has ended; None, to be handed over again, where the job has died."""
        try:
            event, message = task.result()
            return Event(event), str(message)
        except self.errors as error:
            at = progress_of(self.store, step)
            before, count = self.deaths.get(step.name, ("", 0))
            count = count + 1 if before == at else 1
            self.deaths[step.name] = at, count
            if count < DEATHS:
                return None
            last = next((line for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
            what = f"its job died {count} times at the same place ({last.strip()[:120]})"
            return Event.FAILED, f"{what}; its output is in {task.paths.folder}"

    def cancel(self, tasks: Sequence[Any]) -> None:
        """End jobs where they are; what they have saved stays."""
        for job in tasks:
            job.cancel(check=False)
