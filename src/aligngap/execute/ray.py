"""Run steps on a Ray cluster: each is a task on some node, its artifact goes through a store that all nodes share.

Keys, bytes and resuming are those of local processes, since a task does what a local worker does. Ray starts a task
anew whose worker was killed or whose node has died, and it goes on from its newest saved state in the store; what is
finished is in the store and lost with no node.

What this module leaves out: starting a cluster (`ray start`, docs/cluster.md), and one run over several devices.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aligngap import __version__
from aligngap.execute.agenda import Answer, Event, Machine
from aligngap.execute.cluster import Cluster
from aligngap.execute.worker import WorkerSettings, work
from aligngap.pipeline.base import Step
from aligngap.storage.files import write_text
from aligngap.storage.store import Store
from aligngap.types import AligngapError, RunFailed

#: seconds in which a head that does not answer may come back; after 60 Ray ends the process without a word of ours
AWAY_SECONDS = 30.0
RETRIES = 5  # times a step is started anew after its worker or its node has died


def connect() -> Any:
    """The ray module, connected to a running cluster: that of RAY_ADDRESS, or of this machine."""
    try:
        import ray
    except ImportError as error:
        raise AligngapError("--executor ray: Ray is not installed; pip install 'aligngap[ray]'") from error
    if not ray.is_initialized():
        given = os.environ.get("RAY_ADDRESS", "")
        try:
            host, _, port = given.rpartition(":")
            if host and port.isdecimal() and not answers(given):  # Ray ends the process where nobody answers
                raise ConnectionError(given)
            ray.init("auto", log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, RuntimeError, ValueError) as error:
            remedy = "start one with `ray start --head`, or set RAY_ADDRESS to HOST:PORT of its head"
            raise AligngapError(f"--executor ray: no Ray cluster at {given or 'this machine'}; {remedy}") from error
    return ray


def answers(address: str) -> bool:
    """Whether anybody listens at HOST:PORT."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, ValueError):
        return False
    return True


def _look(root: str, folder: str, token: str, version: str) -> tuple[str, str]:
    """Runs on every node: (its name, what is wrong with it: "" if nothing)."""
    host = socket.gethostname()
    try:
        shared = (Path(root) / "partial" / ".cluster").read_text() == token
    except OSError:
        shared = False
    if not shared:
        return host, f"does not see {root}; put --store on a folder that all nodes share"
    if not Path(folder).is_dir():
        return host, f"has no folder {folder}; start the command in a folder that all nodes share"
    if __version__ != version:
        return host, f"has aligngap {__version__}, the command {version}; install one version on all nodes"
    return host, ""


class Ray(Cluster[Any]):
    """The cluster's workers. `gpus` is a step's share of a GPU (1/4: four small runs on each), 0 runs on CPUs, and None
    takes a whole one where the cluster has any.

    Like `workers` of local processes, neither `gpus` nor the number of nodes changes a result on the same kind of
    device; at most `workers` steps run at once (None: as many as the cluster has room for).
    """

    def __init__(
        self, store: Store, *, gpus: float | None = None, workers: int | None = None, threads: int = 1,
        save_seconds: float = 30.0,
    ) -> None:  # fmt: skip
        if gpus is not None and not 0 <= gpus < math.inf:
            raise AligngapError(f"--gpus {gpus:g}: must be 0 or more")
        super().__init__(store)
        self.ray = connect()
        self.have: dict[str, float] = self.ray.cluster_resources()
        self.gpus = float(self.have.get("GPU", 0.0) > 0) if gpus is None else gpus
        self.workers, self.threads, self.save_seconds = workers, threads, save_seconds
        self.machine = Machine(f"Ray gpus={self.gpus:g} x{threads}", None, threads)
        self.head, self.answered = str(self.ray.get_runtime_context().gcs_address), time.monotonic()
        self.watched = answers(self.head)  # where it cannot be asked from here, that it is silent says nothing
        self._check_room()

    def _check_room(self) -> None:
        """Refuse what no node of the cluster could ever run."""
        nodes = [n["Resources"] for n in self.ray.nodes() if n["Alive"]]
        most = max((n.get("GPU", 0.0) for n in nodes), default=0.0)
        if self.gpus > most:
            remedy = "take fewer with --gpus, or 0 to run on CPUs"
            raise AligngapError(f"--gpus {self.gpus:g}: no node of the Ray cluster has more than {most:g}; {remedy}")
        if self.gpus > 1 and self.gpus != int(self.gpus):
            raise AligngapError(f"--gpus {self.gpus:g}: a share of one GPU, or a whole number of them")
        cores = max((n.get("CPU", 0.0) for n in nodes), default=0.0)
        if self.threads > cores:
            raise AligngapError(f"--threads {self.threads}: no node of the Ray cluster has more than {cores:g} cores")

    def check_nodes(self) -> None:
        """Ask every node, before any work, whether it sees the store and the folder of the command."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as OnNode

        token = secrets.token_hex(8)
        write_text(self.store.root / "partial" / ".cluster", token)
        look = self.ray.remote(num_cpus=0)(_look)
        nodes = [n["NodeID"] for n in self.ray.nodes() if n["Alive"]]
        told = (str(self.store.root), os.getcwd(), token, __version__)
        asked = [look.options(scheduling_strategy=OnNode(n, soft=False)).remote(*told) for n in nodes]
        try:
            answers = self.ray.get(asked, timeout=120)
        except Exception as error:  # whatever kept a node from importing aligngap, or from answering
            first = next(iter(str(error).strip().splitlines()[-1:]), type(error).__name__)
            raise AligngapError(f"--executor ray: a node cannot run aligngap ({first}); install it on all") from error
        for host, wrong in answers:
            if wrong:
                raise AligngapError(f"--executor ray: node {host} {wrong}")

    def open(self) -> None:
        """Ask every node whether it can work on the store, and describe the task that a step becomes."""
        self.check_nodes()
        device = "cuda" if self.gpus > 0 else "cpu"
        self.settings = WorkerSettings(str(self.store.root), os.getcwd(), device, self.threads, self.save_seconds)
        self.task = self.ray.remote(num_cpus=self.threads, num_gpus=self.gpus, max_retries=RETRIES)(work)

    def submit(self, step: Step) -> Any:
        """The task of a step, queued on the cluster."""
        return self.task.remote(self.settings, step.model_dump_json())

    def wait(self, tasks: Sequence[Any], seconds: float) -> Sequence[Any]:
        """Those of the tasks that have ended, after so many seconds at most."""
        self._head_answers()
        finished: Sequence[Any] = self.ray.wait(list(tasks), timeout=seconds)[0]
        return finished

    def _head_answers(self) -> bool:
        """Whether the head answers; RunFailed once it has not for so long that nobody waits for it any longer."""
        if not self.watched or answers(self.head):
            self.answered = time.monotonic()
            return True
        if self.gone():
            remedy = "start it again, and the same command goes on from where it was"
            raise RunFailed(f"--executor ray: the head of the cluster at {self.head} does not answer; {remedy}")
        return False

    def gone(self) -> bool:
        """Whether the head has not answered for so long that nothing more is asked of it."""
        return time.monotonic() - self.answered > AWAY_SECONDS

    def cancel(self, tasks: Sequence[Any]) -> None:
        """End tasks where they are; what they have saved stays. Where the head has gone, they end by themselves."""
        for reference in () if self.gone() else tasks:
            self.ray.cancel(reference, force=True)

    def slots(self) -> int:
        """Steps that the cluster as it stands can run at once; at least one, so that one waits for a node to come."""
        if self.workers is not None:
            return self.workers
        if self._head_answers():  # Ray itself would wait for it
            self.have = self.ray.cluster_resources()
        room = self.have.get("CPU", 0.0) / self.threads
        return max(1, int(min(room, self.have.get("GPU", 0.0) / self.gpus) if self.gpus else room))

    def answer(self, step: Step, task: Any) -> Answer | None:
        """What became of a step whose task has ended; Ray itself starts anew what has died."""
        try:
            event, message = self.ray.get(task)
            return Event(event), str(message)
        except self.ray.exceptions.RayError as error:
            what = f"its worker died {RETRIES + 1} times, or its node or the cluster has ({type(error).__name__})"
            return Event.FAILED, f"{what}; the same command goes on from where it was"
