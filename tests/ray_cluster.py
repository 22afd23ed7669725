"""Not a test: a Ray cluster of this machine, as `ray start --head` starts it, and the command that runs on it."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
from conftest import COMMAND_ENV, run_command

PORT = 6_397  # below those that Ray gives to workers
STARTS = 3  # Ray gives up on a node that is not there after 30 s, which no setting of its changes
#: what a node waits for, 15 s each, before it gives up on itself: on a busy machine its agents take longer
AGENTS = ("dashboard_agent_listen_port", "metrics_agent_port", "metrics_export_port")


class Head:
    """A head with two cores, in a process group of its own; `env` is what a command that finds it has beside others."""

    def __init__(self, folder: Path) -> None:
        self.log, self.env = folder / "head.log", {"RAY_ADDRESS": f"127.0.0.1:{PORT}"}
        self.start()

    def start(self) -> None:
        """Start the cluster and wait until it answers; a start that Ray gave up on is made again."""
        for _ in range(STARTS):
            seen: set[psutil.Process] = set()  # what a start that fails leaves behind, the port in its hands
            if self._start(seen):
                return
            self.stop()
            for process in seen:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        raise AssertionError(self.log.read_text()[-2000:])

    def _start(self, seen: set[psutil.Process]) -> bool:
        """Start it once; whether it came up. Its processes are added to `seen`."""
        command = Path(sys.executable).with_name("ray")
        words = [
            str(command), "start", "--head", "--block", f"--port={PORT}", "--num-cpus=2", "--num-gpus=0",
            "--include-dashboard=false", "--disable-usage-stats", "--object-store-memory=80000000",
            "--runtime-env-agent-port=6398", "--no-monitor", "--include-log-monitor=false",
        ]  # fmt: skip
        patient = {
            "RAY_health_check_failure_threshold": "200", "RAY_raylet_start_wait_time_s": "240",
            "RAY_agent_register_timeout_ms": "240000",
        }  # fmt: skip
        env = {**COMMAND_ENV, **patient, "RAY_worker_niceness": "0"}  # steps are what the cluster is there for
        with self.log.open("w") as out:
            self.process = subprocess.Popen(words, stdout=out, stderr=out, start_new_session=True, env=env)
        limit = time.monotonic() + 300
        while "Ray runtime started" not in self.log.read_text():
            seen.update(self.processes())
            self._go_without_agents()
            if self.process.poll() is not None or time.monotonic() > limit:
                return False
            time.sleep(0.2)
        return True

    def _go_without_agents(self) -> None:
        """Tell the node what an installation without the dashboard tells it: that there are no agents to wait for."""
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                given = dict(word[2:].split("=", 1) for word in process.cmdline() if word[:2] == "--" and "=" in word)
                if "node_id" in given and "session_dir" in given:
                    for name in AGENTS:
                        (Path(given["session_dir"]) / f"{name}_{given['node_id']}").write_text("-1")

    def processes(self) -> list[psutil.Process]:
        """The head's processes: the store of objects, the node, its workers."""
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def workers(self) -> list[psutil.Process]:
        """Those of its processes that steps run in; Ray names them after what they do."""
        return [process for process in self.processes() if process.name() in ("ray::work", "ray::IDLE")]

    def kill(self) -> None:
        """Kill what `ray start` has started but the workers, which must notice by themselves."""
        workers = {worker.pid for worker in self.workers()}
        for process in [psutil.Process(self.process.pid), *self.processes()]:
            if process.pid not in workers:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        self.process.wait(60)

    def stop(self) -> None:
        """End it as `ray stop` does; what stays is killed."""
        children = self.processes()
        if self.process.poll() is None:
            self.process.terminate()
        for process in psutil.wait_procs(children, timeout=20)[1]:
            process.kill()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        self.process.kill()
        self.process.wait(60)


def ray_command(folder: Path, *more: str, save_seconds: float = 30.0) -> list[str]:
    """The installed command on the tiny study, on the cluster."""
    words = run_command(folder, workers=2, save_seconds=save_seconds)
    place = words.index("--device")
    return [*words[:place], *words[place + 2 :], "--executor", "ray", *more]
