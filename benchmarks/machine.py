"""What this machine can do at most, measured in the same run: matrix multiplication and memory bandwidth."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from statistics import median

import torch


def cpu_seconds(work: Callable[[], object], repeats: int = 5) -> float:
    """Median CPU seconds of one call after a warm-up; on an idle machine with one thread this is wall time."""
    work()
    taken = []
    for _ in range(repeats):
        begin = time.process_time()
        work()
        taken.append(time.process_time() - begin)
    return median(taken)


def matmul_flops(size: int = 1024) -> float:
    """Floating-point operations a CPU second of a float32 product of square matrices: the practical peak."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    return 2.0 * size**3 / cpu_seconds(lambda: a @ b)


def copy_bytes(megabytes: int = 128) -> float:
    """Bytes read and written a CPU second by a copy that no cache holds."""
    source = torch.zeros(megabytes * 2**18)
    target = torch.empty_like(source)
    return 2.0 * source.numel() * 4 / cpu_seconds(lambda: target.copy_(source))


def words(threads: int) -> str:
    """The machine in words."""
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as about:
            model = next(line.split(":", 1)[1].strip() for line in about if line.startswith("model name"))
        with open("/proc/meminfo") as about:
            memory = f", {int(about.readline().split()[1]) / 2**20:.0f} GiB"
    except (OSError, StopIteration, IndexError, ValueError):
        memory = ""
    return f"{model}, {os.cpu_count()} CPU cores{memory}; {threads} thread{'s' * (threads > 1)} a contender, float32"


def versions(*packages: str) -> str:
    return f"Python {platform.python_version()}, " + ", ".join(f"{p} {version(p)}" for p in packages)
