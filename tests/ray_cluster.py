"""Not a test: a Ray cluster of this machine, as `ray start --head` starts it, and the command that runs on it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil
from conftest import COMMAND_ENV, run_command

PORT = 6_397  # below those that Ray gives to workers


class Head:
    """A head with two cores, in a process group of its own; `env` is that of a command that finds it."""

    def __init__(self, folder: Path) -> None:
        self.log, self.env = folder / "head.log", {**COMMAND_ENV, "RAY_ADDRESS": f"127.0.0.1:{PORT}"}
        self.start()

    def start(self) -> None:
        """Start the cluster and wait until it answers."""
        command = Path(sys.executable).with_name("ray")
        words = [
            str(command), "start", "--head", "--block", f"--port={PORT}", "--num-cpus=2", "--num-gpus=0",
            "--include-dashboard=false", "--disable-usage-stats", "--object-store-memory=80000000",
        ]  # fmt: skip
        patient = {**COMMAND_ENV, "RAY_health_check_failure_threshold": "200", "RAY_raylet_start_wait_time_s": "240"}
        with self.log.open("w") as out:
            self.process = subprocess.Popen(words, stdout=out, stderr=out, start_new_session=True, env=patient)
        limit = time.monotonic() + 300
        while "Ray runtime started" not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()[-2000:]
            assert time.monotonic() < limit, self.log.read_text()[-2000:]
            time.sleep(0.2)

    def processes(self) -> list[psutil.Process]:
        """The head's processes: the store of objects, the node, its workers."""
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def stop(self) -> None:
        """End it as `ray stop` does; what stays is killed."""
        children = self.processes()
        if self.process.poll() is None:
            self.process.terminate()
        for process in psutil.wait_procs(children, timeout=20)[1]:
            process.kill()
        self.process.wait(60)


def ray_command(folder: Path, *more: str, save_seconds: float = 30.0) -> list[str]:
    """The installed command on the tiny study, on the cluster."""
    words = run_command(folder, workers=2, save_seconds=save_seconds)
    place = words.index("--device")
    return [*words[:place], *words[place + 2 :], "--executor", "ray", *more]
