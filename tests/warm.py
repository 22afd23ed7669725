"""The command as a process of its own that does not pay for its imports: a process that has imported them forks.

`Warm.start(words, folder)` is `aligngap WORDS` in a fresh process group with its own workers, which are forks too; only
the start of the interpreter is shared. It can be killed like any other, and three things can be asked of it that a
shell cannot: to die at the n-th change it makes to the file system, to live with a limit on the size of files, and to
run a line of Python before it begins. The fixture `warm` is one such process for all tests; what the start of an
interpreter or of a spawned worker may spoil is seen by the tests that start the installed command (`conftest.COMMAND`).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SERVER = """
import json, mmap, multiprocessing, os, resource, signal, sys, time
import torch, transformers, matplotlib.figure, matplotlib.backends.backend_agg
import aligngap.cli, aligngap.execute.collect, aligngap.execute.console, aligngap.execute.local, aligngap.measurement
import aligngap.judges.preference_model, aligngap.judges.oracle, aligngap.report.page, aligngap.report.paper
import aligngap.report.summary, aligngap.pipeline.context, aligngap.pipeline.plan, aligngap.pipeline.training
import aligngap.models.policy, aligngap.models.tokenizer

def watch_changes(folder, at):
    "Count changes to files below the folder, over all processes of the command, and kill them all at number `at`."
    counter = mmap.mmap(-1, 8)
    writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT

    def hook(event, args):
        if event == "open":
            if not (isinstance(args[2], int) and args[2] & writes):
                return
        elif event not in ("os.rename", "os.remove", "os.rmdir", "os.mkdir"):
            return
        if isinstance(args[0], (str, os.PathLike)) and os.path.abspath(args[0]).startswith(folder):
            count = int.from_bytes(counter[:8], "little") + 1
            counter[:8] = count.to_bytes(8, "little")
            if count == at:
                os.killpg(0, signal.SIGKILL)

    sys.addaudithook(hook)
    return lambda: int.from_bytes(counter[:8], "little")

def child(job):
    os.setsid()
    os.chdir(job["folder"])
    for number, name in ((1, "stdout"), (2, "stderr")):
        handle = os.open(job[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, number)
    if job["file_bytes"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["file_bytes"], resource.RLIM_INFINITY))
    fork = multiprocessing.get_context("fork")
    multiprocessing.get_context = lambda method=None: fork
    os.environ.update(job["env"])
    exec(job["before"], {})
    changes = watch_changes(job["folder"], job["die_at"]) if job["die_at"] is not None else None
    code = aligngap.cli.main(job["words"])
    if changes is not None:
        print("changes:", changes())
    sys.stdout.flush(), sys.stderr.flush()
    return code

print("ready", flush=True)
for line in sys.stdin:
    job = json.loads(line)
    if "words" in job:
        pid = os.fork()
        if pid == 0:
            code = 70
            try:
                code = child(job)
            except BaseException:
                import traceback
                traceback.print_exc()
            finally:
                os._exit(code)
        print(pid, flush=True)
    else:
        limit = time.monotonic() + job["seconds"]
        while (status := os.waitpid(job["wait"], os.WNOHANG))[0] == 0 and time.monotonic() < limit:
            time.sleep(0.005)
        print(json.dumps(None if status[0] == 0 else os.waitstatus_to_exitcode(status[1])), flush=True)
"""


@dataclass
class Running:
    """A command that has been started; `stderr` and `stdout` are files."""

    server: Warm
    pid: int
    folder: Path
    stdout: Path
    stderr: Path

    def wait(self, seconds: float) -> int | None:
        """The exit code (negative: the signal), or None if it still runs after so many seconds."""
        return self.server.ask({"wait": self.pid, "seconds": seconds})

    def finish(self, seconds: float = 600) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of a command that ends by itself."""
        code = self.wait(seconds)
        assert code is not None, f"still running after {seconds} s"
        return code, self.stdout.read_text(), self.stderr.read_text()

    def kill(self, how: signal.Signals = signal.SIGKILL, group: bool = True) -> int:
        """End it and its workers (`group`), or it alone; the exit code."""
        (os.killpg if group else os.kill)(self.pid, how)
        code = self.wait(60)
        assert code is not None
        return code


class Warm:
    """The process that has imported everything and forks."""

    def __init__(self) -> None:
        env = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "NO_COLOR": "1",
            "COLUMNS": "120",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def ask(self, job: dict[str, Any]) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(
        self, words: list[str], folder: Path, *, die_at: int | None = None, file_bytes: int | None = None,
        env: dict[str, str] | None = None, before: str = "",
    ) -> Running:  # fmt: skip
        """`aligngap WORDS` in `folder`, with these variables beside the others and after a line of Python, `before`.

        `die_at`: killed at that change to the file system (0: only count them).
        """
        out, err = (folder.parent / f"{folder.name}.{time.monotonic_ns()}.{n}" for n in ("out", "err"))
        job = {"words": words, "folder": str(folder), "stdout": str(out), "stderr": str(err)}
        more = {"die_at": die_at, "file_bytes": file_bytes, "env": env or {}, "before": before}
        return Running(self, self.ask(job | more), folder, out, err)

    def run(self, words: list[str], folder: Path, **how: Any) -> tuple[int, str, str]:
        return self.start(words, folder, **how).finish()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
