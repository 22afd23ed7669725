"""Killed again and again, at random instants of its whole life, a study ends as if nobody had disturbed it.

The command (see `warm.py`) runs a small study and is ended by SIGKILL: at an instant drawn uniformly over what is left
of the run, or at a change to the file system drawn uniformly over those that are left, so that kills fall between any
two steps of a save. Either the whole group dies (a machine that is taken away), or the command alone (its workers must
leave by themselves, and may still hold locks when it comes back), or a worker. The same command is repeated until the
study ends; then its records, recordings, logs and weights are compared, byte for byte, with an undisturbed run's.

    ALIGNGAP_CHAOS_KILLS=100 pytest tests/chaos        the full count; 8 without
    ALIGNGAP_CHAOS_SEED=1 …                            other instants
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import psutil
import yaml
from conftest import TINY_STUDY
from warm import Running, Warm

from aligngap.storage.listing import Faults, find_faults

KILLS = int(os.environ.get("ALIGNGAP_CHAOS_KILLS", "8"))
PATIENCE_SECONDS = 3600.0  # for a whole study on a busy machine
SEED = int(os.environ.get("ALIGNGAP_CHAOS_SEED", "0"))
WORDS = ["run", "tiny.yaml", "--out", "out", "--device", "cpu", "--workers", "1", "--save-seconds", "0.05"]


def folder_of(parent: Path, name: str) -> Path:
    """A folder with the tiny study, made smaller, and an arm that writes ahead: its queue is part of a state."""
    raw = yaml.safe_load(TINY_STUDY)
    raw["limits"]["response_tokens"] = 6
    raw["task"] |= {"train_pairs": 80, "test_pairs": 20}
    raw["measurement"] |= {
        "best_of_n": 2,
        "reference_samples": 2,
        "best_of_n_prompts": 4,
        "prompts": 8,
        "kl_prompts": 4,
        "opponents": ["sft"],
    }
    raw["arms"] = {
        "online": {"behavior": "policy", "judge": "proxy", "sync_every": 3},
        "offline": {"behavior": "recording", "of": "online", "order": "shuffled"},
    }
    folder = parent / name
    folder.mkdir()
    (folder / "tiny.yaml").write_text(yaml.safe_dump(raw))
    return folder


def result(folder: Path) -> dict[str, bytes]:
    """Everything that must not depend on kills: tables, and every file of every artifact but clocks."""
    found = {}
    for path in sorted((folder / "store").rglob("*")):
        inside = path.relative_to(folder)
        if path.is_file() and inside.parts[1] != "partial":
            content = path.read_bytes()
            if path.name == "manifest.json":
                about = json.loads(content)
                del about["provenance"], about["checksum"]
                about["result"].pop("draw_seconds", None)
                content = json.dumps(about, sort_keys=True).encode()
            found[str(inside)] = content
    for table in ("records", "per_prompt", "samples", "best_of_n"):
        found[table] = (folder / "out" / f"{table}.parquet").read_bytes()
    return found


def made(folder: Path) -> int:
    return len(list((folder / "store").glob("*/manifest.json")))


def kill(running: Running, victim: str) -> int:
    """The exit code of a command of which the group, the command itself or a worker was killed."""
    workers = psutil.Process(running.pid).children(recursive=True) if victim == "worker" else []
    if not workers:
        return running.kill(group=victim != "command")
    workers[0].kill()
    code = running.wait(PATIENCE_SECONDS)
    assert code == 0, running.stderr.read_text()
    return 0


def test_kills_change_nothing(warm: Warm, tmp_path: Path) -> None:
    rng, done, studies = random.Random(SEED), dict.fromkeys(("time", "write"), 0), 0
    whole = folder_of(tmp_path, "whole")
    started = time.monotonic()
    code, said, trouble = warm.run(WORDS, whole, die_at=0)
    seconds = time.monotonic() - started
    assert code == 0, trouble
    expected, artifacts = result(whole), made(whole)
    changes = int(said.rpartition("changes: ")[2])
    assert changes > 100
    while sum(done.values()) < KILLS:
        studies += 1
        folder = folder_of(tmp_path, f"study-{studies}")
        ended = False
        while not ended:
            enough = sum(done.values()) >= KILLS
            left = 1.0 - 0.8 * made(folder) / artifacts  # the last part is the report's
            how = rng.choice(["time", "write"])
            at = rng.randrange(1, int(changes * left) + 1) if how == "write" and not enough else None
            running = warm.start(WORDS, folder, die_at=at)
            code = running.wait(PATIENCE_SECONDS if enough or at else rng.uniform(0.0, seconds * left))
            alive = code is None
            if code is None:
                code = kill(running, rng.choice(["group", "group", "command", "worker"]))
            found = find_faults(folder / "out")
            assert not found.changed, found  # a kill accuses nobody
            assert not found.removed, found
            ended = code != -signal.SIGKILL
            assert not ended or code == 0, running.stderr.read_text()
            assert "Traceback" not in running.stderr.read_text(), running.stderr.read_text()
            done[how] += alive or not ended
        ends = result(folder)
        assert ends.keys() == expected.keys()
        assert [name for name in ends if ends[name] != expected[name]] == []
        assert find_faults(folder / "out") == Faults()
        assert not [p for p in (folder / "store" / "partial").iterdir() if p.is_dir()]
        print(f"{sum(done.values())} kills over {studies} studies so far, all ended alike", file=sys.stderr)
    print(f"{sum(done.values())} kills ({done}) over {studies} studies, all ended alike", file=sys.stderr)
