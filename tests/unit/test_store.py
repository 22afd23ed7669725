"""Artifacts: whole or absent, made by one process at a time, named by what they are and never by where they lie."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import TINY_STUDY

from aligngap.pipeline.plan import expand
from aligngap.storage import provenance as origin
from aligngap.storage.files import check_writable, write_text
from aligngap.storage.store import Store, digest
from aligngap.study.load import validate
from aligngap.types import AligngapError


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "store")
    made.prepare()
    return made


# --------------------------------------------------------------------------------------------------------- atomicity


def test_an_artifact_appears_whole(store: Store) -> None:
    with store.making("kind-1") as work:
        assert work is not None
        (work / "data.txt").write_text("x")
        assert not store.has("kind-1")
        final = store.finish("kind-1", {"a": 1})
    assert store.has("kind-1")
    assert not work.exists()
    assert store.manifest("kind-1")["a"] == 1
    assert (final / "data.txt").read_text() == "x"
    with store.making("kind-1") as again:
        assert again is None  # somebody made it: nothing to do


def test_work_left_by_a_kill_is_found_again(store: Store) -> None:
    class Killed(BaseException):
        pass

    def half() -> None:
        with store.making("kind-1") as work:
            assert work is not None
            (work / "state").write_text("half")
            raise Killed

    with pytest.raises(Killed):
        half()
    assert not store.has("kind-1")
    with store.making("kind-1") as work:
        assert work is not None
        assert (work / "state").read_text() == "half"


@pytest.mark.parametrize("where", ["before the manifest", "before the rename"])
def test_a_kill_inside_finish_leaves_no_artifact(store: Store, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    class Killed(BaseException):
        pass

    original = os.replace

    def replace(source: Any, target: Any) -> None:
        if where == "before the manifest" or Path(target) == store.path("kind-1"):
            raise Killed
        original(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(Killed), store.making("kind-1"):
        store.finish("kind-1", {"a": 1})
    assert not store.has("kind-1")
    monkeypatch.setattr(os, "replace", original)
    with store.making("kind-1") as work:
        if where == "before the rename":  # whole already: nothing is made again
            assert work is None
        else:
            assert work is not None
            store.finish("kind-1", {"a": 2})
    assert store.manifest("kind-1")["a"] == (1 if where == "before the rename" else 2)


def test_a_folder_without_manifest_is_not_an_artifact(store: Store) -> None:
    store.path("kind-1").mkdir()
    (store.path("kind-1") / "junk").write_text("copied by hand, torn")
    assert not store.has("kind-1")
    with store.making("kind-1") as work:
        assert work is not None
        store.finish("kind-1", {})
    assert store.has("kind-1")
    assert not (store.path("kind-1") / "junk").exists()


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "a", "old")

    def full(source: Any, target: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        write_text(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_what_a_killed_write_has_left_is_removed_by_a_later_one(tmp_path: Path) -> None:
    old, young = tmp_path / ".table.aaa.tmp", tmp_path / ".table.bbb.tmp"  # the second may be another command's
    for left in (old, young):
        left.write_text("half")
    os.utime(old, (1, 1))
    write_text(tmp_path / "table", "whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".table.bbb.tmp", "table"]


def test_a_link_in_the_place_of_a_file_half_written_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / ".report.html.tmp").symlink_to(tmp_path / "mine")
    write_text(tmp_path / "report.html", "page")
    assert (tmp_path / "mine").read_text() == "mine"
    assert (tmp_path / "report.html").read_text() == "page"


def test_a_disk_that_is_full_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space") as caught:
        write_text(tmp_path / "report.html", "page", durable=True)
    assert caught.value.filename == str(tmp_path / "report.html")


# -------------------------------------------------------------------------------------------------------------- locks

HOLD = """
import sys, time
from pathlib import Path
from aligngap.storage.store import Store
with Store(Path(sys.argv[1])).making("kind-1") as work:
    (work / "state").write_text("mine")
    print("held", flush=True)
    time.sleep(120)
"""


def test_the_lock_of_a_dead_process_is_free(store: Store) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(store.root)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(AligngapError, match="another process"), store.making("kind-1", wait_seconds=0.2):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    started = time.monotonic()
    with store.making("kind-1", wait_seconds=10) as work:
        assert work is not None
        assert (work / "state").read_text() == "mine"
    assert time.monotonic() - started < 5


def add_one(root: str, name: str) -> None:
    store = Store(Path(root))
    with store.making(name) as work:
        if work is not None:
            with (store.root / "log").open("a") as log:
                log.write("made\n")
            time.sleep(0.05)
            store.finish(name, {})


def test_two_processes_make_one_artifact_once(store: Store) -> None:
    spawn = multiprocessing.get_context("fork")
    workers = [spawn.Process(target=add_one, args=(str(store.root), "kind-1")) for _ in range(4)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
        assert w.exitcode == 0
    assert (store.root / "log").read_text() == "made\n"
    assert store.has("kind-1")


# ------------------------------------------------------------------------------------------------- what is not writable


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "under", Path("/proc/aligngap")):
        with pytest.raises(AligngapError) as caught:
            check_writable(folder)
        assert str(folder) in str(caught.value)
        assert "\n" not in str(caught.value)
        with pytest.raises(AligngapError, match="--store"):
            Store(folder).prepare()


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_read_only_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(AligngapError, match="cannot be written"):
        check_writable(tmp_path)


def test_checking_leaves_nothing(tmp_path: Path) -> None:
    check_writable(tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


# --------------------------------------------------------------------------------------------------------------- keys


def test_digest_is_of_the_value() -> None:
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})
    assert digest({"a": 1}) != digest({"a": "1"})
    assert len(digest(None)) == 20
    with pytest.raises(ValueError, match="JSON"):
        digest(float("nan"))


def raw() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(TINY_STUDY)
    return found


def names(study: dict[str, Any]) -> dict[str, str]:
    """Artifact of every step, by what it is for."""
    plan = expand(validate(study, "test"))
    run = {r.arm: r for r in plan.runs}
    start = next(iter(plan.start.values()))
    found = {"data": start.data.name, "sft": start.sft.name, "golden": start.golden.name, "proxy": start.proxy.name}
    for arm, r in run.items():
        found |= {f"align {arm}": r.align.name, f"measure {arm}": r.measure.name}
    return found


def pairs_file(folder: Path, text: str = "river") -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"prompt": f"say {i}", "chosen": f"{text} {i}", "rejected": f"lamp {i}"} for i in range(30)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return raw() | {"task": {"name": "pairs", "path": str(folder / "pairs.jsonl")}}


def test_keys_follow_the_content_of_data_and_not_its_path(tmp_path: Path) -> None:
    here = pairs_file(tmp_path / "a")
    there = pairs_file(tmp_path / "b" / "deeper")
    shutil.copy(tmp_path / "a" / "pairs.jsonl", tmp_path / "renamed.jsonl")
    renamed = raw() | {"task": {"name": "pairs", "path": str(tmp_path / "renamed.jsonl")}}
    assert names(here) == names(there) == names(renamed)
    before = names(here)
    os.utime(tmp_path / "a" / "pairs.jsonl", (1, 1))
    assert names(here) == before
    changed = pairs_file(tmp_path / "a", text="rivers")
    assert all(names(changed)[k] != before[k] for k in before)


def test_keys_do_not_know_device_workers_or_the_name_of_the_study() -> None:
    assert names(raw()) == names(raw() | {"name": "other", "question": "Another?"})
    text = json.dumps([s.model_dump(mode="json") for s in expand(validate(raw(), "t")).steps()])
    assert "cuda" not in text
    assert "workers" not in text
    assert '"device"' not in text


def test_a_setting_moves_what_depends_on_it_and_nothing_else() -> None:
    before = names(raw())

    def moved(change: Any) -> set[str]:
        study = raw()
        change(study)
        after = names(study)
        return {k for k in before if after[k] != before[k]}

    everything = set(before)
    runs = {k for k in before if k.startswith(("align", "measure"))}
    assert moved(lambda s: s["task"].update(train_pairs=170)) == everything
    assert moved(lambda s: s["sft"].update(steps=11)) == everything - {"data"}
    assert moved(lambda s: s["golden"]["optimization"].update(steps=7)) == everything - {"data", "sft"}
    assert moved(lambda s: s["proxy"]["optimization"].update(steps=7)) == {
        "proxy",
        "align online",
        "measure online",
        "measure offline",
    }
    assert moved(lambda s: s["recipe"]["loss"].update(beta=0.2)) >= runs
    assert moved(lambda s: s["recipe"]["loss"].update(beta=0.2)) == runs
    assert moved(lambda s: s["measurement"].update(prompts=17)) == {k for k in runs if k.startswith("measure")}
    assert moved(lambda s: s["arms"]["online"].update(sync_every=2)) == {"align online", "measure online"}


def test_seeds_share_nothing_and_equal_work_is_shared() -> None:
    plan = expand(validate(raw() | {"seeds": 2}, "t"))
    steps = plan.steps()
    assert len({s.name for s in steps}) == len(steps)
    for kind in ("data", "sft", "judge"):
        count = {"data": 2, "sft": 2, "judge": 4}[kind]
        assert sum(s.kind == kind for s in steps) == count
    assert len({derived.align.seed for derived in plan.runs}) == 2


def test_the_commit_of_an_edited_clone_has_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`+changes` where a tracked file differs from HEAD, whether or not a step's version was raised."""

    def git(*words: str) -> None:
        subprocess.run(["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e", *words], check=True)

    source = tmp_path / "provenance.py"
    source.write_text("x = 1\n")
    git("init", "-q")
    git("add", "-A")
    git("commit", "-qm", "first")
    monkeypatch.setattr(origin, "__file__", str(source))
    clean = origin.commit.__wrapped__()
    assert len(clean) == 12
    source.write_text("x = 2\n")
    assert origin.commit.__wrapped__() == f"{clean}+changes"
