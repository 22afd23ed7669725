"""Not a test: a study of many tiny runs on a Ray cluster whose workers, and whose head, are killed at random instants.

    python tests/chaos/many.py FOLDER --runs 200 --kills 20 --seed 0

The study is run by local processes first, undisturbed. Then on the cluster: `kills` times a worker is killed that has a
step in its hands, at instants that depend on how many artifacts there are by then, so that they lie all over the study;
once, half-way, all of the cluster is killed and started anew, and the command repeated. `test_many.py` runs a few.

Asserted is what an interrupted study promises: no finished step was made again (its manifest is the file that was first
seen, and its log says `finished` once), and records, samples and weights are the undisturbed study's, bit for bit.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import psutil
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conftest import COMMAND, COMMAND_ENV, TINY_STUDY
from ray_cluster import Head

TABLES = ("records", "per_prompt", "samples")


@dataclass
class Disturbed:
    """What became of a study that was disturbed."""

    workers: int = 0  # killed at work
    heads: int = 0
    commands: int = 0
    seconds: float = 0.0
    manifests: dict[str, tuple[int, int]] = field(default_factory=dict)  # by artifact: inode and time, when first seen


def write_study(folder: Path, runs: int) -> int:
    """The tiny study with about so many runs in `folder`; how many there are."""
    raw = yaml.safe_load(TINY_STUDY)
    side = max(1, round(math.sqrt(runs / 2)))
    raw["limits"]["response_tokens"] = 6
    raw["task"] |= {"train_pairs": 80, "test_pairs": 20}
    raw["recipe"]["optimization"] |= {"steps": 6, "batch": 4}
    raw["measurement"] |= {"checkpoints": [3], "prompts": 6, "kl_prompts": 4, "pairs": 8, "opponents": ["sft"]}
    raw["measurement"] |= {"best_of_n": 2, "best_of_n_prompts": 4}
    rates, betas = ([round(low * 1.07**i, 8) for i in range(side)] for low in (1e-3, 0.05))
    axes = {"beta": betas, "learning_rate": rates}
    raw["sweep"] = [{"axes": axes, "arms": ["online", "offline"], "why": "many runs"}]
    folder.mkdir(parents=True)
    (folder / "many.yaml").write_text(yaml.safe_dump(raw))
    return 2 * side**2


def words(*more: str) -> list[str]:
    return [COMMAND, "run", "many.yaml", "--out", "out", "--save-seconds", "0.02", *more]


def manifests(folder: Path) -> dict[str, tuple[int, int]]:
    """Each artifact's manifest as a file: inode and time."""
    found = {}
    for path in (folder / "store").glob("*-*/manifest.json"):
        about = path.stat()
        found[path.parent.name] = about.st_ino, about.st_mtime_ns
    return found


def undisturbed(folder: Path) -> int:
    """The study by local processes; how many artifacts it has."""
    local = words("--device", "cpu", "--workers", "2")
    done = subprocess.run(local, cwd=folder, env=COMMAND_ENV, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return len(manifests(folder))


def disturb(folder: Path, artifacts: int, kills: int, seed: int) -> Disturbed:
    """The study on a cluster of this machine, disturbed; it ends well, or AssertionError."""
    rng, told, started = random.Random(seed), Disturbed(), time.monotonic()
    # The head dies at one half; workers anywhere between the first artifact and the last but one.
    due = sorted(rng.randrange(1, max(2, artifacts - 1)) for _ in range(kills))
    head = Head(folder)
    try:
        while True:
            told.commands += 1
            with (folder / f"said-{told.commands}").open("w") as out:
                command = subprocess.Popen(
                    words("--executor", "ray", "--workers", "2"), cwd=folder, env=head.env, stdout=out, stderr=out
                )
            while command.poll() is None:
                now = manifests(folder)
                for name, file in now.items():
                    told.manifests.setdefault(name, file)
                if not told.heads and len(now) >= artifacts // 2:
                    head.kill()
                    told.heads += 1
                    break
                try:
                    if due and len(now) >= due[0] and kill_worker(head, rng, told):
                        due.pop(0)
                except psutil.NoSuchProcess:
                    pass  # it had ended by itself: the next look finds another
                time.sleep(0.02 + 0.1 * rng.random())
            try:
                code = command.wait(180)
            except subprocess.TimeoutExpired:
                command.kill()
                code = command.wait()
            if told.heads and head.process.poll() is not None:
                head.start()
                continue
            assert code == 0, (folder / f"said-{told.commands}").read_text()[-3000:]
            break
    finally:
        head.stop()
    told.seconds = time.monotonic() - started
    return told


def kill_worker(head: Head, rng: random.Random, told: Disturbed) -> bool:
    """Kill one of the cluster's workers that has a step in its hands; whether there was any."""
    at_work = [worker for worker in head.workers() if worker.name() != "ray::IDLE"]
    if not at_work:
        return False
    rng.choice(at_work).kill()
    told.workers += 1
    return True


def hold(undisturbed: Path, disturbed: Path, told: Disturbed) -> None:
    """Assert that nothing finished was made again and that every record and weight is the undisturbed study's."""
    last = manifests(disturbed)
    assert last.keys() == manifests(undisturbed).keys()
    for name, file in told.manifests.items():
        assert last[name] == file, f"{name} was made again"
    for name in last:
        log = (disturbed / "store" / "partial" / f"{name}.log.jsonl").read_text().splitlines()
        assert sum(json.loads(line)["event"] == "finished" for line in log) <= 1, name
    for table in TABLES:
        left, right = (pd.read_parquet(f / "out" / f"{table}.parquet") for f in (undisturbed, disturbed))
        assert len(left) > 0
        pd.testing.assert_frame_equal(left, right, check_exact=True)
    files = sorted((undisturbed / "store").glob("*-*/**/*.safetensors"))
    assert files
    for file in files:
        assert file.read_bytes() == (disturbed / file.relative_to(undisturbed)).read_bytes(), file


def play(folder: Path, runs: int, kills: int, seed: int) -> Disturbed:
    """Both studies, and what became of the disturbed one; AssertionError where it is not as the undisturbed one."""
    whole, broken = folder / "whole", folder / "broken"
    write_study(whole, runs)
    write_study(broken, runs)
    artifacts = undisturbed(whole)
    told = disturb(broken, artifacts, kills, seed)
    hold(whole, broken, told)
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    told = play(args.folder, args.runs, args.kills, args.seed)
    print(
        f"{told.workers} workers and {told.heads} head killed, {told.commands} commands, {told.seconds:.0f} s, "
        f"{len(told.manifests)} of the artifacts seen before the end; nothing made again, all records and weights equal"
    )


if __name__ == "__main__":
    main()
