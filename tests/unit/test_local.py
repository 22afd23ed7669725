"""Workers of this machine, where a command is stopped."""

from __future__ import annotations

import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from aligngap.execute.local import Slot, dismiss
from aligngap.execute.worker import WorkerSettings
from aligngap.storage.tracking import Tracking


def sleeping(tmp_path: Path) -> Slot:
    """A slot whose worker sleeps, and loads nothing."""
    slot = Slot(WorkerSettings(str(tmp_path), os.getcwd(), "cpu", 1, 30.0, Tracking()))
    slot.pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
    slot.pool.submit(time.sleep, 600)
    slot.process = next(iter(slot.pool._processes.values()))
    return slot


def test_a_stopped_command_leaves_no_thread_that_the_interpreter_would_complain_of(tmp_path: Path) -> None:
    slots = [sleeping(tmp_path), sleeping(tmp_path)]
    threads = [slot.pool._executor_manager_thread for slot in slots]
    processes = [slot.process for slot in slots]
    assert all(thread is not None and thread.is_alive() for thread in threads)
    dismiss(slots)
    assert not any(thread is not None and thread.is_alive() for thread in threads)
    assert not any(process.is_alive() for process in processes)
