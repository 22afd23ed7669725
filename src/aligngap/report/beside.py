"""Jobs done by two processes: a copy of this one begins them, and this one helps with what is left when it is free.

The copy is a fork, so jobs are not handed over; which job is next travels through a pipe from which both read, and what
the copy made comes back through another. Leaves out: processes that last (`execute/`).
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from multiprocessing import Pipe
from typing import TypeVar

T = TypeVar("T")

PATIENCE = 300  #: seconds that the copy may take
DIGITS = 4  #: of a job's number in the pipe


def beside(jobs: Sequence[Callable[[], T]]) -> Callable[[], list[T]]:
    """Begin the jobs in a copy of this process; what is returned helps, waits, and gives the results in their order.

    Where the copy fails, and where a fork is not safe (not Linux; torch's threads do not live on in a copy), they are
    done here, where an error is raised as any other.
    """
    if not jobs or sys.platform != "linux" or "torch" in sys.modules:
        return lambda: [job() for job in jobs]
    todo, offer = os.pipe()
    os.write(offer, b"".join(b"%*d" % (DIGITS, number) for number in range(len(jobs))))
    os.close(offer)
    told, tell = Pipe(duplex=False)
    copy = os.fork()
    if not copy:
        signal.alarm(PATIENCE)  # a copy that hangs ends, and what it had is done here
        made: dict[int, T] = {}
        try:
            while taken := os.read(todo, DIGITS):
                made[int(taken)] = jobs[int(taken)]()
        finally:
            try:
                tell.send(made)
            finally:
                os._exit(0)
    tell.close()

    @cache
    def finish() -> list[T]:
        found: dict[int, T] = {}
        while taken := os.read(todo, DIGITS):
            found[int(taken)] = jobs[int(taken)]()
        os.close(todo)
        with told, suppress(EOFError, OSError):  # it ended before it could say what it made
            found |= told.recv()
        os.waitpid(copy, 0)
        return [found[n] if n in found else job() for n, job in enumerate(jobs)]

    return finish
