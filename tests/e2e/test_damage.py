"""Stored work that was damaged: it is found before it is used, named, and made again; nothing is used in silence.

Every kind of file that a store holds against every kind of damage: the table in `docs/reliability.md`. One store is
made, in this process, and each test damages a copy of it.
"""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_survive import small

from aligngap.cli import main
from aligngap.execute.checks import tell_unvouched
from aligngap.execute.collect import collect
from aligngap.execute.ray import work as ray_work
from aligngap.execute.worker import make, make_or_set_aside, make_sound, work
from aligngap.judges.answers import Answers
from aligngap.pipeline.context import Context, Job
from aligngap.pipeline.measure import whole as measured_part
from aligngap.pipeline.plan import Plan, expand
from aligngap.pipeline.training import is_whole, kept_at
from aligngap.report import build_report
from aligngap.storage.audit import State, audit, look_at
from aligngap.storage.checksums import checksum_of, seal, write_sealed
from aligngap.storage.store import SEALED, Store
from aligngap.study.load import validate
from aligngap.types import AligngapError, Damaged, RunFailed

#: an artifact's kind and a file of it, by the kind of file
FILES = {
    "manifest": ("sft", "manifest.json"),
    "weights": ("sft", "policy/model.safetensors"),
    "configuration": ("sft", "policy/config.json"),
    "tokenizer": ("data", "tokenizer/tokenizer.json"),
    "checkpoint": ("align", "checkpoints/step-000004/model.safetensors"),
    "judge's head": ("judge", "model/head.safetensors"),
    "pairs": ("relabel", "train.parquet"),
    "recording": ("align", "recording.parquet"),
    "log": ("align", "log.parquet"),
    "measurement": ("measure", "rows.parquet"),
}


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 16
    file.write_bytes(content)


def remove(file: Path) -> None:
    file.unlink()


def replace(file: Path) -> None:
    """Another file of the same kind and form, as whole as the right one."""
    if file.name == "manifest.json":
        other = next(p for p in file.parent.parent.glob("align-*") if p != file.parent)
        shutil.copy(other / "manifest.json", file)
    else:
        file.write_bytes(file.read_bytes() + b" ")


DAMAGES: dict[str, Callable[[Path], None]] = {
    "truncated": truncate, "bit flipped": flip, "removed": remove, "replaced": replace,
}  # fmt: skip


@pytest.fixture(scope="module")
def plan() -> Plan:
    return expand(validate(yaml.safe_load(small()), "small"))


@pytest.fixture(scope="module")
def whole(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with every step of a tiny study."""
    ctx = Context(Store(tmp_path_factory.mktemp("whole") / "store"))
    ctx.store.prepare()
    for step in plan.steps():
        make(step, ctx)
    return ctx.store.root


@pytest.fixture
def store(whole: Path, tmp_path: Path) -> Store:
    """A copy to be damaged."""
    shutil.copytree(whole, tmp_path / "store")
    return Store(tmp_path / "store")


def artifact(store: Store, kind: str, file: str) -> str:
    return min(p.parent.name for p in store.root.glob(f"{kind}-*/manifest.json") if (p.parent / file).exists())


def step_named(plan: Plan, name: str) -> Any:
    return next(s for s in plan.steps() if s.name == name)


def test_a_sound_store_is_said_to_be_sound(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert {found.state for found in audit(store)} == {State.SOUND}
    assert main(["check", str(store.root)]) == 0
    assert "sound" in capsys.readouterr().out


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", FILES)
def test_damage_is_found_before_the_artifact_is_used(store: Store, kind: str, damage: str) -> None:
    """`Store.open`, through which every step reads, refuses it in one line; `check` names it; other artifacts stand."""
    of, file = FILES[kind]
    name = artifact(store, of, file)
    DAMAGES[damage](store.path(name) / file)
    part = "" if file == "manifest.json" else file
    with pytest.raises(Damaged) as caught:
        store.open(name, part)
    assert caught.value.name == name
    assert file in str(caught.value) or (file == "manifest.json" and name in str(caught.value))
    assert "\n" not in str(caught.value)
    found = look_at(store, name) if store.path(name).joinpath("manifest.json").exists() else None
    assert found is None or found.state == State.DAMAGED
    others = [f for f in audit(store) if f.name != name]
    assert {f.state for f in others} == {State.SOUND}


@pytest.mark.parametrize("kind", FILES)
def test_what_a_later_aligngap_has_written_is_one_line_and_stays(
    store: Store, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    of, file = FILES[kind]
    name = artifact(store, of, file)
    path = store.path(name) / "manifest.json"
    about = json.loads(path.read_text())
    del about["checksum"]
    path.write_text(json.dumps(seal(about | {"format": 99})))
    for ask in (store.has, store.open):
        with pytest.raises(AligngapError, match=r"format 99.*upgrade"):
            ask(name)
    assert look_at(store, name).state == State.TOO_NEW
    assert path.is_file()


@pytest.mark.parametrize(
    ("kind", "damage"),
    [("weights", "bit flipped"), ("manifest", "truncated"), ("pairs", "removed"), ("weights", "replaced")],
)
def test_what_a_step_stands_on_is_made_again_and_the_step_ends_the_same(
    store: Store, whole: Path, plan: Plan, kind: str, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    of, file = FILES[kind]
    name = artifact(store, of, file)
    DAMAGES[damage](store.path(name) / file)
    run = next(r for r in plan.runs if r.arm == "offline")
    for gone in (run.align.name, run.measure.name):
        shutil.rmtree(store.path(gone))
    ctx = Context(store)
    for step in (run.align, run.measure):
        make_sound(step, ctx, Job())
    said = capsys.readouterr().err
    assert name in said
    assert "to be made again" in said
    assert store.damage(name) == ""
    for gone in (run.align.name, run.measure.name):
        for path in (whole / gone).rglob("*.*"):
            if path.is_file() and path.name != "manifest.json":
                assert path.read_bytes() == (store.path(gone) / path.relative_to(whole / gone)).read_bytes(), path


def test_processes_that_work_together_move_damage_aside_for_the_same_command(store: Store, plan: Plan) -> None:
    """`--processes N`: one line, and what the repeated command finds is not there; a Ray task makes it as a worker."""
    run = next(r for r in plan.runs if r.arm == "offline")
    name = artifact(store, "sft", "policy/model.safetensors")
    flip(store.path(name) / "policy" / "model.safetensors")
    shutil.rmtree(store.path(run.align.name))
    ctx = Context(store)
    with pytest.raises(RunFailed, match=r"model\.safetensors.*moved aside, and the same command makes it again"):
        make_or_set_aside(lambda: make(run.align, ctx), store)
    assert not store.has(name)
    assert (store.root / "damaged" / name).is_dir()
    assert ray_work is work


def test_a_checkpoint_that_is_gone_is_not_taken_for_one_that_was_never_reached(store: Store, plan: Plan) -> None:
    run = plan.runs[0]
    shutil.rmtree(store.path(run.align.name) / "checkpoints" / "step-000004")
    assert run.align.reached(Context(store), 4)
    with pytest.raises(Damaged, match="is missing"):
        run.align.policy(Context(store), 4)


def test_dependants_say_on_what_they_stand(
    store: Store, plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An artifact that was made again with other bytes, as on another device: what was made from the first says so."""
    run, out = plan.runs[0], tmp_path / "out"
    name = run.align.name
    assert collect(plan, store, out) == len(plan.runs)
    tell_unvouched(plan.steps(), store)
    assert capsys.readouterr().err == ""
    edit_consistently(store, name, "checkpoints/step-000004/model.safetensors")
    found = look_at(store, run.measure.name)
    assert found.state == State.REPLACED
    assert name in found.remedy
    tell_unvouched(plan.steps(), store)
    said = capsys.readouterr().err
    assert run.measure.name in said
    assert "stand on an input that has been made again, or brought in, with other bytes" in said
    assert collect(plan, store, out) == len(plan.runs)
    said = f"{store.path(name)}: holds other bytes than when the records in {out} were last written"
    assert said in capsys.readouterr().err
    assert name in json.loads((out / "provenance.json").read_text())["replaced"].values()
    page = build_report(out).read_text()
    assert f"such as {run.measure.name} from {name}: what is said here rests on both" in page
    assert collect(plan, store, out) == len(plan.runs)
    assert capsys.readouterr().err == ""


def edit_consistently(store: Store, name: str, file: str, gone: bool = False) -> None:
    """Change a file of an artifact, or remove it, and seal a manifest that says so: no checksum finds it."""
    path = store.path(name) / file
    about = json.loads((store.path(name) / "manifest.json").read_text())
    del about["checksum"]
    if gone:
        path.unlink()
        del about["files"][file]
    else:
        flip(path)
        about["files"][file] = checksum_of(path)
    (store.path(name) / "manifest.json").write_text(json.dumps(seal(about)))
    assert store.damage(name) == ""


@pytest.mark.parametrize("table", ["rows", "per_prompt"])
def test_a_measurement_whose_list_was_shortened_is_not_passed_over(
    store: Store, plan: Plan, tmp_path: Path, table: str
) -> None:
    """The table is gone and its entry too, under a right seal: its run must not be missing from the records."""
    name = plan.runs[0].measure.name
    edit_consistently(store, name, f"{table}.parquet", gone=True)
    with pytest.raises(Damaged, match=rf"{name}: {table}\.parquet is no part of it, .*; remove this folder and repeat"):
        collect(plan, store, tmp_path / "out")


def test_an_old_artifact_is_read_and_nothing_vouches_for_it(store: Store) -> None:
    name = artifact(store, "sft", "policy/model.safetensors")
    path = store.path(name) / "manifest.json"
    about = json.loads(path.read_text())
    for key in ("format", "artifact", "files", "checksum", "made_from"):
        del about[key]
    path.write_text(json.dumps(about))
    assert store.open(name, "policy") == store.path(name) / "policy"
    assert look_at(store, name).state == State.UNVOUCHED
    about["configuration"]["seed"] = 12
    path.write_text(json.dumps(about))
    assert not store.has(name)


def strip(store: Store, name: str, *more: str) -> None:
    """Take the checksums out of a manifest, as if it were of before there were any."""
    path = store.path(name) / "manifest.json"
    about = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in about.items() if k not in (*SEALED, *more)}))


def test_a_manifest_that_has_lost_its_checksums_is_damaged(store: Store, plan: Plan) -> None:
    """It says what it was made from, which manifests of before checksums do not: named, set aside, made again."""
    name = artifact(store, "sft", "policy/model.safetensors")
    flip(store.path(name) / "policy/model.safetensors")
    strip(store, name)
    assert look_at(store, name).state == State.DAMAGED
    with pytest.raises(Damaged, match=r"manifest.json: has lost its checksums"):
        store.open(name, "policy")
    assert make(step_named(plan, name), Context(store))
    assert look_at(store, name).state == State.SOUND
    assert (store.root / "damaged" / name).is_dir()


def test_what_nothing_vouches_for_is_told_and_named_in_the_provenance(
    store: Store, plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = [run.align.name for run in plan.runs][:2]
    tell_unvouched(plan.steps(), store)
    assert capsys.readouterr().err == ""
    for name in old:
        strip(store, name, "made_from")
    assert collect(plan, store, tmp_path / "out") == len(plan.runs)
    assert json.loads((tmp_path / "out" / "provenance.json").read_text())["unvouched"] == sorted(old)
    tell_unvouched(plan.steps(), store)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"aligngap: {store.root}: 2 artifacts (")
    assert "were made before there were checksums, and nothing vouches for them" in line
    assert all(name in line for name in old)


def test_bit_flips_anywhere_are_found_or_change_nothing(store: Store) -> None:
    """50 flips at random places of random files; harmless is only what leaves a manifest's values as they were."""
    rng = random.Random(0)
    files = sorted(p for p in store.root.glob("*-*/**/*") if p.is_file())
    found = 0
    for _ in range(50):
        file = rng.choice(files)
        before = file.read_bytes()
        content = bytearray(before)
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        file.write_bytes(content)
        name = file.relative_to(store.root).parts[0]
        state = look_at(Store(store.root), name).state
        if state == State.SOUND:
            assert file.name == "manifest.json"
            assert json.loads(bytes(content)) == json.loads(before)
        else:
            assert state == State.DAMAGED
            found += 1
        file.write_bytes(before)
    assert found >= 45


# ----------------------------------------------------------------------------------------------- unfinished work


@pytest.fixture(scope="module")
def halted(whole: Path, plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A store in which a run was stopped between two states, and that run's name."""
    root = tmp_path_factory.mktemp("halted") / "store"
    run = next(r for r in plan.runs if r.arm == "online")
    shutil.copytree(whole, root)
    for gone in (run.align.name, run.measure.name):
        shutil.rmtree(root / gone)
    asked = iter([False] * 10 + [True])

    class Killed(BaseException):
        pass

    def stopping() -> bool:
        if next(asked):
            raise Killed
        return False

    with pytest.raises(Killed):
        make(run.align, Context(Store(root)), Job(save_seconds=0.0, stopping=stopping))
    return root, run.align.name


PARTS = {
    "weights of a state": "state-*/model.safetensors", "moments of a state": "state-*/optimizer.safetensors",
    "counters of a state": "state-*/state.json", "list of a state": "state-*/checksums.json",
    "list beside a state": "kept-*.json", "part of a log": "log/until-*.parquet",
    "part of a recording": "recording/until-*.parquet",
    "checkpoint before a state": "checkpoints/step-000004/model.safetensors",
}  # fmt: skip


def replace_part(file: Path) -> None:
    """A file of another state, sealed as it should be where it is a list."""
    if file.name == "checksums.json":
        write_sealed(file, {"files": {"state.json": "0" * 32}})
    elif file.name.startswith("kept-"):
        write_sealed(file, {"of": "state-000001", "files": {}})
    else:
        replace(file)


def from_the_future(file: Path) -> None:
    """What a later version might write: a list of another form; other files say nothing of versions."""
    if file.name == "checksums.json" or file.name.startswith("kept-"):
        write_sealed(file, {"format": 99, "parts": []})
    else:
        replace(file)


OF_PARTS = DAMAGES | {"replaced": replace_part, "from the future": from_the_future}


@pytest.mark.parametrize("damage", OF_PARTS)
@pytest.mark.parametrize("part", PARTS)
def test_damaged_unfinished_work_is_not_gone_on_from(
    halted: tuple[Path, str], tmp_path: Path, part: str, damage: str
) -> None:
    root, name = halted
    shutil.copytree(root / "partial" / name, tmp_path / name)
    (state,) = (tmp_path / name).glob("state-*")
    assert is_whole(state)
    assert kept_at(state).is_file()
    OF_PARTS[damage](sorted((tmp_path / name).glob(PARTS[part]))[0])
    assert not is_whole(state)


def test_a_run_whose_unfinished_work_was_damaged_ends_the_same(
    halted: tuple[Path, str], whole: Path, plan: Plan, tmp_path: Path
) -> None:
    root, name = halted
    shutil.copytree(root, tmp_path / "store")
    store = Store(tmp_path / "store")
    flip(sorted((store.partial(name)).glob("recording/until-*.parquet"))[0])
    make(step_named(plan, name), Context(store))
    for path in (whole / name).rglob("*.*"):
        if path.is_file() and path.name != "manifest.json":
            assert path.read_bytes() == (store.path(name) / path.relative_to(whole / name)).read_bytes(), path


def test_a_manifest_torn_before_the_rename_is_none(halted: tuple[Path, str], tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    store.prepare()
    with store.making("kind-1") as work:
        assert work is not None
        (work / "manifest.json").write_text('{"format": 2,')
    with store.making("kind-1") as work:
        assert work is not None
        assert not (work / "manifest.json").exists()


PART_OF = "measure-x step 8"


@pytest.mark.parametrize("damage", [*DAMAGES, "of another checkpoint", "from the future"])
def test_a_damaged_part_of_a_measurement_is_measured_again(tmp_path: Path, damage: str) -> None:
    part = tmp_path / "measured-000008.json"
    tables = {"rows": [{"win_rate": 0.5}], "per_prompt": [], "samples": []}
    write_sealed(part, {"of": PART_OF, **tables})
    assert measured_part(part, PART_OF) == {"of": PART_OF, **tables}
    if damage == "of another checkpoint":
        write_sealed(part, {"of": "measure-x step 4", **tables})
    elif damage == "from the future":
        write_sealed(part, {"format": 99, "tables": tables})
    elif damage == "replaced":
        part.write_text('{"rows": []}')
    else:
        DAMAGES[damage](part)
    assert measured_part(part, PART_OF) is None


# ------------------------------------------------------------------------------------------------------ answers

ANSWER = {"better": "first", "what": "ok", "tokens_in": 12, "tokens_out": 3}


def test_an_answer_that_is_not_what_was_written_is_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "answers.sqlite"
    Answers(path).put("judge", "step", "q", ANSWER)
    content = path.read_bytes()
    assert content.count(b'"tokens_in": 12') == 1
    path.write_bytes(content.replace(b'"tokens_in": 12', b'"tokens_in": 92'))
    again = Answers(path)
    assert again.get("q") is None
    assert again.put("judge", "step", "q", ANSWER) == ANSWER
    assert again.get("q") == ANSWER


def test_answers_that_were_removed_are_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "answers.sqlite"
    Answers(path).put("judge", "step", "q", ANSWER)
    path.unlink()
    assert Answers(path).get("q") is None
    assert Answers(path).spent("judge", "step")["asked"] == 0


@pytest.mark.parametrize(
    "torn",
    ["[1]", "5", '{"better": "first"}', '{"better": "second", "what": "ok", "tokens_in": 12, "tokens_out": 3}', None],
)
def test_an_answer_that_is_edited_or_has_lost_its_checksum_is_asked_again(
    tmp_path: Path, torn: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """And where this very step has paid for it before, the account counts one payment of two: that is told."""
    path = tmp_path / "answers.sqlite"
    answers = Answers(path)
    answers.put("judge", "step", "q", ANSWER)
    assert capsys.readouterr().err == ""
    change(path, "DELETE FROM answers" if torn is None else "UPDATE answers SET answer = ?", *([torn] if torn else []))
    assert answers.get("q") is None
    assert answers.put("judge", "step", "q", ANSWER) == ANSWER
    assert answers.get("q") == ANSWER
    said = "answers that were paid for are gone or not what was written; they are asked and paid for again"
    assert capsys.readouterr().err == f"aligngap: {path}: {said}\n"


def test_an_answer_to_another_question_is_no_answer(tmp_path: Path) -> None:
    path = tmp_path / "answers.sqlite"
    answers = Answers(path)
    answers.put("judge", "step", "q", ANSWER)
    answers.put("judge", "step", "other", ANSWER | {"better": "second"})
    change(path, "UPDATE answers SET answer = (SELECT answer FROM answers WHERE question = 'q')")
    assert Answers(path).get("q") == ANSWER
    assert Answers(path).get("other") is None


def change(path: Path, *statement: str) -> None:
    """Change a file of answers behind its back."""
    with sqlite3.connect(path) as base:
        base.execute(statement[0], statement[1:])
    base.close()


@pytest.mark.parametrize("damage", ["truncated", "replaced"])
def test_a_file_of_answers_that_cannot_be_read_is_one_line(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "answers.sqlite"
    path.write_bytes(b"no database at all" * 100 if damage == "replaced" else b"SQLite format 3\0" + b"\1" * 50)
    with pytest.raises(Damaged, match=r"answers\.sqlite: cannot be read .*move it away"):
        Answers(path)


COUNTED = {"answers": 2, "truncated": 1}


@pytest.mark.parametrize("column", ["judged.answers", "judged.pair", "judged.checksum", "paid.tokens_in"])
def test_an_account_that_is_not_what_was_written_is_one_line(tmp_path: Path, column: str) -> None:
    path = tmp_path / "answers.sqlite"
    answers = Answers(path)
    answers.put("judge", "step", "q", ANSWER)
    answers.judged("judge", "step", {"pair": COUNTED})
    spent = answers.spent("judge", "step")
    assert (spent["pairs"], spent["answers"], spent["asked"], spent["tokens_in"]) == (1, 2, 1, 12)
    table, name = column.split(".")
    change(path, f"UPDATE {table} SET {name} = ?", "9")
    with pytest.raises(Damaged, match=r"answers\.sqlite: a row of what step was judged is not what was written; move"):
        Answers(path).spent("judge", "step")


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM judged WHERE pair = 'pair'", "DELETE FROM paid", "DELETE FROM totals",
        "UPDATE totals SET count = count + 1", "UPDATE totals SET count = x'ff'",
        "INSERT INTO paid VALUES ('judge', 'step', 'more', 1, 1, 'none')", "UPDATE judged SET checksum = NULL",
        "UPDATE judged SET answers = x'ff'", "DROP TABLE judged", "ALTER TABLE paid RENAME COLUMN tokens_in TO other",
    ],
)  # fmt: skip
def test_an_account_that_lacks_rows_or_has_others_is_one_line(tmp_path: Path, statement: str) -> None:
    path = tmp_path / "answers.sqlite"
    answers = Answers(path)
    for question in ("q", "r"):
        answers.put("judge", "step", question, ANSWER)
    for pair in ("pair", "another"):
        answers.judged("judge", "step", {pair: COUNTED, "third": COUNTED})
    assert (answers.spent("judge", "step")["pairs"], answers.spent("judge", "step")["asked"]) == (3, 2)
    change(path, statement)
    with pytest.raises(Damaged, match=r"answers\.sqlite: .*; move (it|the file) away, then repeat the command"):
        Answers(path).spent("judge", "step")
    assert Answers(path).spent("judge", "another step")["asked"] == 0


def test_an_account_of_before_there_were_checksums_is_read(tmp_path: Path) -> None:
    path = tmp_path / "answers.sqlite"
    with sqlite3.connect(path) as base:
        base.execute("CREATE TABLE paid (judge TEXT, step TEXT, question TEXT, PRIMARY KEY (judge, step, question))")
        base.execute("INSERT INTO paid VALUES ('judge', 'step', 'q')")
    base.close()
    old = Answers(path)
    old.put("judge", "another step", "q", ANSWER)
    assert old.spent("judge", "step")["tokens_in"] == 12
    assert old.spent("judge", "another step")["tokens_in"] == 12
