"""The real command on two processes that train each model together: sharded, killed in the middle, gone on with.

What it ends with is held against the same study by one process: the same pairs, and losses to float tolerance.
"""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
from conftest import COMMAND_ENV, finish, run_command


def words(folder: Path) -> list[str]:
    given = run_command(folder, workers=1, save_seconds=0.01)
    place = given.index("--workers")
    return [*given[:place], *given[place + 2 :], "--processes", "2", "--parallel", "fsdp"]


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, str]:
    """The folder, and how the command ended whose second process was killed in alignment, past a saved state."""
    folder = tmp_path_factory.mktemp("together")
    with subprocess.Popen(
        words(folder), cwd=folder, env=COMMAND_ENV, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as command:
        limit = time.monotonic() + 600
        while not any((folder / "store" / "partial").glob("align-*/state-*/state.json")):
            assert command.poll() is None, command.communicate()[1][-3000:]
            assert time.monotonic() < limit
            time.sleep(0.005)
        workers = {p.environ().get("RANK"): p for p in psutil.Process(command.pid).children()}
        workers["1"].send_signal(signal.SIGKILL)
        said = command.communicate(timeout=120)[1]
    finish(words(folder), folder)
    return folder, command.returncode, said


def test_a_killed_process_ends_the_command_in_one_line(killed: tuple[Path, int, str]) -> None:
    _, code, said = killed
    assert code == 1
    assert "process 1 was killed (signal 9); the same command goes on from where it was" in said
    assert "Traceback" not in said


def test_it_ends_with_the_artifacts_of_one_process(finished: Path, killed: tuple[Path, int, str]) -> None:
    folder = killed[0]
    names = [{p.name for p in (f / "store").iterdir() if p.name != "partial"} for f in (finished, folder)]
    assert names[0] == names[1]
    for name in names[0]:
        one, two = ({p.relative_to(f / "store") for p in (f / "store" / name).rglob("*")} for f in (finished, folder))
        assert one == two
        made = json.loads((folder / "store" / name / "manifest.json").read_text())["provenance"]
        trained = name.startswith(("sft-", "judge-", "align-"))
        assert (made.get("processes"), made.get("parallel")) == ((2, "fsdp") if trained else (None, None))
    assert not list((folder / "store").rglob("state-*"))


@pytest.mark.parametrize("kind", ["sft", "judge", "align"])
def test_the_losses_are_those_of_one_process(finished: Path, killed: tuple[Path, int, str], kind: str) -> None:
    logs = sorted((finished / "store").glob(f"{kind}-*/log.parquet"))
    assert len(logs) >= (1 if kind == "sft" else 2)
    for log in logs:
        one, two = (pd.read_parquet(f / log.relative_to(finished)) for f in (finished, killed[0]))
        if kind == "align":
            more = two["flops"] / one["flops"]  # sharded it multiplies the padding too, of shorter batches
            assert more.between(0.85, 1.6).all(), more
            # At step 0 margins are 0 but for rounding, whose sign is nobody's.
            one, two = (rows.drop(columns=["accuracy", "flops"]) for rows in (one, two))
        pd.testing.assert_frame_equal(one, two, check_exact=False, rtol=1e-4, atol=2e-5)
    if kind == "align":
        for file in (finished / "store").glob("align-*/recording.parquet"):
            one, two = (pd.read_parquet(f / file.relative_to(finished)) for f in (finished, killed[0]))
            assert [r.tolist() for r in one["chosen_ids"]] == [r.tolist() for r in two["chosen_ids"]]
