"""Not a test: a study of many tiny runs on a Ray cluster whose workers, and whose head, are killed at random instants.

    python tests/chaos/many.py FOLDER --runs 200 --kills 20 --head-kills 1 --seed 0

The study is run by local processes, undisturbed, and beside it on a cluster of this machine: so many times a worker is
killed that has a step in its hands, and so many times all that `ray start --head` has started but the workers; the
cluster is then started again and the same command repeated. The instants are drawn from the seed: a number of finished
steps, between the first and the last but one, and a wait after it. `test_ray.py` runs a few.

Asserted is what docs/cluster.md promises: no finished step is made again (its manifest stays the file that was first
seen, and its log says `finished` once), and records, samples and weights are those of one machine, bit for bit.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import psutil
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conftest import TINY_STUDY
from ray_cluster import Head
from warm import Running, Warm

from aligngap.pipeline.plan import expand
from aligngap.study.load import load

TABLES = ("records", "per_prompt", "samples", "best_of_n")
WORDS = ["run", "many.yaml", "--out", "out", "--save-seconds", "0.02", "--workers", "2"]
PATIENCE_SECONDS = 600  # for a command whose cluster has died
#: a dead head is not waited for as long as one of a real cluster, which may come back
SOON = "from aligngap.execute import ray; ray.AWAY_SECONDS = 10.0"


@dataclass
class Chaos:
    """What became of a study that was disturbed; `seen` holds each manifest as a file, as it was first found."""

    killed: Counter[str] = field(default_factory=Counter)  # "worker" (with a step in its hands) or "head"
    commands: int = 0
    seconds: float = 0.0
    artifacts: int = 0
    starts: int = 0  # of steps, those that were killed and started again included
    finished_at_kills: list[int] = field(default_factory=list)
    seen: dict[str, tuple[int, int]] = field(default_factory=dict)


def write_study(folder: Path, runs: int) -> None:
    """The tiny study in `folder`, made smaller, with so many runs: half of them online, half offline."""
    raw = yaml.safe_load(TINY_STUDY)
    raw["limits"]["response_tokens"] = 6
    raw["task"] |= {"train_pairs": 80, "test_pairs": 20}
    raw["recipe"]["optimization"] |= {"steps": 4, "batch": 4}
    raw["measurement"] |= {"checkpoints": [2], "prompts": 6, "kl_prompts": 4, "pairs": 8, "opponents": ["sft"]}
    raw["measurement"] |= {"best_of_n": 2, "best_of_n_prompts": 4}
    betas = [round(0.05 * 1.05**i, 6) for i in range(runs // 2)]
    raw["sweep"] = [{"axes": {"beta": betas}, "arms": ["online", "offline"], "why": "many runs"}]
    folder.mkdir(parents=True)
    (folder / "many.yaml").write_text(yaml.safe_dump(raw))


def manifests(folder: Path) -> dict[str, tuple[int, int]]:
    """Each finished artifact's manifest as a file: inode and time of change."""
    found = {}
    for path in (folder / "store").glob("*-*/manifest.json"):
        about = path.stat()
        found[path.parent.name] = about.st_ino, about.st_mtime_ns
    return found


def artifacts_of(folder: Path) -> int:
    """The number of the study's artifacts, by its plan."""
    return len(expand(load(str(folder / "many.yaml"))).steps())


def run_disturbed(warm: Warm, head: Head, folder: Path, artifacts: int, kills: int, heads: int, seed: int) -> Chaos:
    """Run the study on the cluster and kill what the seed says; it ends well, or AssertionError."""
    rng, told, started = random.Random(seed), Chaos(), time.monotonic()
    victims = ["worker"] * kills + ["head"] * heads
    due = sorted((rng.randrange(1, artifacts - 1), victim) for victim in victims)
    while True:
        told.commands += 1
        running = warm.start([*WORDS, "--executor", "ray"], folder, env=head.env, before=SOON)
        code, head_died = None, False
        while code is None:
            for name, file in manifests(folder).items():
                told.seen.setdefault(name, file)
            if due and len(told.seen) >= due[0][0]:
                time.sleep(rng.uniform(0, 0.3))
                if due[0][1] == "head":
                    head.kill()
                    head_died = True
                elif not kill_worker(head, rng):
                    continue
                told.finished_at_kills.append(len(manifests(folder)))
                told.killed[due.pop(0)[1]] += 1
                if head_died:
                    break
            code = running.wait(0.2)
        if head_died:
            end_without_cluster(running)
            head.start()
            continue
        assert code == 0, running.stderr.read_text()[-3000:]
        assert not due, f"the study ended before {len(due)} of its kills"
        told.seconds = time.monotonic() - started
        return told


def end_without_cluster(running: Running) -> None:
    """A command whose cluster has died ends by itself, in a line that says what to do."""
    code = running.wait(PATIENCE_SECONDS)
    said = running.stderr.read_text()
    assert code == 1, f"exit code {code}: {said[-3000:]}"
    assert "Traceback" not in said, said[-3000:]
    assert "does not answer; start it again, and the same command goes on" in said, said[-3000:]


def kill_worker(head: Head, rng: random.Random) -> bool:
    """Kill one of the cluster's workers that has a step in its hands; False if none has."""
    try:
        at_work = [worker for worker in head.workers() if worker.name() == "ray::work"]
        if at_work:
            rng.choice(at_work).kill()
        return bool(at_work)
    except psutil.NoSuchProcess:  # it had just ended by itself
        return False


def compare(whole: Path, broken: Path, told: Chaos) -> None:
    """Assert that nothing finished was made again, and that every record and weight is the undisturbed study's."""
    last = manifests(broken)
    assert last.keys() == manifests(whole).keys()
    assert {name: last[name] for name in told.seen} == told.seen, "a finished step was made again"
    told.artifacts = len(last)
    for name in last:
        log = (broken / "store" / "partial" / f"{name}.log.jsonl").read_text().splitlines()
        events = [json.loads(line)["event"] for line in log]
        assert events.count("finished") <= 1, f"{name}: {events}"
        told.starts += events.count("started")
    for table in TABLES:
        left, right = (pd.read_parquet(f / "out" / f"{table}.parquet") for f in (whole, broken))
        assert len(left) > 0
        pd.testing.assert_frame_equal(left, right, check_exact=True)
    files = sorted((whole / "store").glob("*-*/**/*.safetensors"))
    assert files
    for file in files:
        assert file.read_bytes() == (broken / file.relative_to(whole)).read_bytes(), file


def play(warm: Warm, head: Head, folder: Path, runs: int, kills: int, heads: int, seed: int) -> Chaos:
    """Run both studies and compare them; what became of the disturbed one."""
    whole, broken = folder / "whole", folder / "broken"
    write_study(whole, runs)
    write_study(broken, runs)
    undisturbed = warm.start([*WORDS, "--device", "cpu"], whole)
    told = run_disturbed(warm, head, broken, artifacts_of(broken), kills, heads, seed)
    code, _, said = undisturbed.finish(3_600)
    assert code == 0, said[-3000:]
    compare(whole, broken, told)
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="an empty or new folder for both studies")
    parser.add_argument("--runs", type=int, default=200, help="an even number of them, two at least")
    parser.add_argument("--kills", type=int, default=20, help="of workers")
    parser.add_argument("--head-kills", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    head, warm = Head(args.folder), Warm()
    try:
        told = play(warm, head, args.folder, args.runs, args.kills, args.head_kills, args.seed)
    finally:
        warm.close()
        head.stop()
    at = ", ".join(map(str, told.finished_at_kills))
    print(
        f"{args.runs} runs, {told.artifacts} steps: {told.killed['worker']} workers and {told.killed['head']} heads "
        f"killed when {at} steps were finished; {told.commands} commands, {told.seconds:.0f} s, {told.starts} starts "
        "of steps. No finished step was made again; records, samples and weights are those of one machine, bit for bit."
    )


if __name__ == "__main__":
    main()
