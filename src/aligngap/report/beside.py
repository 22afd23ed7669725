"""Jobs done by two processes: a copy of this one begins them, and this one helps with what is left when it is free.

The copy is a fork, so nothing is handed over and nothing pickled; which job is next travels through a pipe from which
both read. Leaves out: processes that last (`execute/`).
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path

Job = Callable[[], list[Path]]

PATIENCE = 300  #: seconds that the copy may take
DIGITS = 4  #: of a job's number in the pipe


def beside(jobs: Sequence[Job]) -> Job:
    """Begin the jobs in a copy of this process; what is returned helps, waits, and gives all files in the jobs' order.

    Where the copy fails, and where a fork is not safe (not Linux; torch's threads do not live on in a copy), they are
    done here, where an error is raised as any other.
    """
    if sys.platform != "linux" or "torch" in sys.modules:
        return lambda: list(chain.from_iterable(job() for job in jobs))
    todo, offer = os.pipe()
    os.write(offer, b"".join(b"%*d" % (DIGITS, number) for number in range(len(jobs))))
    os.close(offer)
    told, tell = os.pipe()
    copy = os.fork()
    if not copy:
        signal.alarm(PATIENCE)  # a copy that hangs ends, and what it had is done here
        try:
            while taken := os.read(todo, DIGITS):
                made = jobs[int(taken)]()
                os.write(tell, ("\0".join([str(int(taken)), *map(str, made)]) + "\n").encode())
        finally:
            os._exit(0)
    os.close(tell)

    def finish() -> list[Path]:
        found: dict[int, list[Path]] = {}
        while taken := os.read(todo, DIGITS):
            found[int(taken)] = jobs[int(taken)]()
        os.close(todo)
        with open(told, encoding="utf-8") as lines:
            for line in lines:
                number, *names = line.rstrip("\n").split("\0")
                found[int(number)] = [Path(name) for name in names]
        os.waitpid(copy, 0)
        return list(chain.from_iterable(found[n] if n in found else job() for n, job in enumerate(jobs)))

    return finish
