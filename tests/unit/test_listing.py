"""The files of an output folder: what was edited, removed or left half-written there is told, and nothing else is."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from synthetic_records import make

from aligngap.instrument.rows import OfRun, add_rows
from aligngap.measurement import Measured
from aligngap.ratings.command import export as export_sheet
from aligngap.ratings.command import take_in
from aligngap.report import build_report
from aligngap.report.forecast import FORECAST
from aligngap.storage.checksums import write_sealed
from aligngap.storage.columns import (
    BEST_OF_N_COLUMNS,
    PER_PROMPT_COLUMNS,
    RATING_COLUMNS,
    RECORD_COLUMNS,
    SAMPLE_COLUMNS,
)
from aligngap.storage.files import write_text
from aligngap.storage.listing import FORMAT, LIST, Faults, copy_list, find_faults, lock_of, read_listing, writing
from aligngap.storage.records import (
    BEST_OF_N,
    FAILURES,
    PER_PROMPT,
    RATINGS,
    RECORDS,
    SAMPLES,
    empty,
    read_folder,
    write_failures,
    write_table,
)
from aligngap.storage.reuse import begin_folder, write_provenance, writing_records
from aligngap.types import AligngapError

FRAMES = {seed: make(prompts=12, seeds=(seed, seed + 1), opponents=("sft",), checkpoints=4) for seed in (0, 4)}
OUT = ("study.yaml", "provenance.json", RECORDS, PER_PROMPT, SAMPLES, FORECAST, FAILURES)


def write(out: Path, seed: int = 0, name: str = "tiny") -> Path:
    """What a command that makes records does, with those of a seed."""
    records, per_prompt, samples = FRAMES[seed]
    with writing_records(out):
        begin_folder(out, f"name: {name}\n", samples)
        write_table(out / RECORDS, records, RECORD_COLUMNS)
        write_table(out / PER_PROMPT, per_prompt, PER_PROMPT_COLUMNS)
        write_table(out / SAMPLES, samples, SAMPLE_COLUMNS)
        write_provenance(out, {"command": f"aligngap run {name}"})
    return out


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the records of a study, a forecast and the failures of its last run."""
    out = write(tmp_path_factory.mktemp("whole") / "out")
    with writing(out, [FORECAST]):
        write_text(out / FORECAST, "kl_nats\n1\n")
    write_failures(out, {"align-1": "out of memory"})
    return out


@pytest.fixture
def out(whole: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    shutil.copytree(whole, tmp_path / "out")
    return tmp_path / "out"


def edit(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b" ")


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file: Path) -> None:
    content, at = bytearray(file.read_bytes()), file.stat()
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(at.st_atime_ns, at.st_mtime_ns))


def replace(file: Path) -> None:
    file.write_bytes(b"{}")


@pytest.mark.parametrize("damage", [edit, truncate, flip, replace])
@pytest.mark.parametrize("file", OUT)
def test_a_file_that_was_changed_is_named(out: Path, file: str, damage: Callable[[Path], None]) -> None:
    assert find_faults(out) == Faults()
    damage(out / file)
    assert find_faults(out) == Faults(changed=(file,))
    (said,) = find_faults(out).sentences()
    assert said == f"{file} was changed after aligngap wrote it; what is said here rests on the change."


@pytest.mark.parametrize("file", OUT)
def test_a_file_that_was_removed_is_named(out: Path, file: str) -> None:
    (out / file).unlink()
    assert find_faults(out) == Faults(removed=(file,))
    assert find_faults(out).sentences()[0].startswith(f"{file} was removed after aligngap wrote it; what is said here")


def test_a_table_that_was_removed_is_told_on_the_screen_and_on_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with writing_records(out):
        begin_folder(out, "name: tiny\n", FRAMES[0][2])
        for name, frame, columns in zip((RECORDS, PER_PROMPT, SAMPLES), FRAMES[0], COLUMNS, strict=True):
            write_table(out / name, frame, columns)
        write_table(out / BEST_OF_N, empty(BEST_OF_N_COLUMNS), BEST_OF_N_COLUMNS)
    (out / BEST_OF_N).unlink()
    page = build_report(out).read_text()
    assert f"{BEST_OF_N} was removed after aligngap wrote it" in page
    assert capsys.readouterr().err.count(f"{BEST_OF_N} was removed after aligngap wrote it") == 1


COLUMNS = (RECORD_COLUMNS, PER_PROMPT_COLUMNS, SAMPLE_COLUMNS)


@pytest.mark.parametrize("damage", [truncate, flip, replace])
def test_a_list_that_is_not_what_was_written_vouches_for_nothing_until_all_is_written_anew(
    out: Path, damage: Callable[[Path], None]
) -> None:
    damage(out / LIST)
    (said,) = find_faults(out).sentences()
    assert "is not what was written, so nothing vouches for the files beside it" in said
    write_failures(out, {})  # one file of them: it makes no list anew that would be silent of the others
    assert find_faults(out).sentences() == (said,)
    write(out)
    assert find_faults(out) == Faults()


def test_a_list_that_is_gone_or_of_a_later_format_is_told(out: Path) -> None:
    (out / LIST).unlink()
    assert "was removed, so nothing vouches for the files beside it" in find_faults(out).sentences()[0]
    write_failures(out, {"align-2": "diverged"})
    assert "was removed, so nothing vouches for the files beside it" in find_faults(out).sentences()[0]
    write_sealed(out / LIST, {"format": FORMAT + 1, "files": []})
    assert "upgrade aligngap" in find_faults(out).sentences()[0]


def test_a_folder_of_before_there_were_lists_is_read_as_it_is(out: Path) -> None:
    (out / LIST).unlink()
    (out / "provenance.json").write_text('{"command": "aligngap run tiny"}')
    assert find_faults(out) == Faults()
    assert read_folder(out).doubts == ()


def test_a_list_of_the_first_format_says_what_was_changed_and_not_what_was_removed(out: Path) -> None:
    """It kept the names of tables that a later command had removed."""
    files = read_listing(out).files
    write_sealed(out / LIST, {"files": {RECORDS: files[RECORDS], SAMPLES: "0" * 32, BEST_OF_N: "0" * 32}})
    assert find_faults(out) == Faults(changed=(SAMPLES,), doubt=find_faults(out).doubt)
    write(out)
    assert find_faults(out) == Faults()


def test_a_failure_that_is_over_is_not_missed(out: Path) -> None:
    write_failures(out, {})
    assert not (out / FAILURES).exists()
    assert find_faults(out) == Faults()
    write_failures(out, {"align-1": "again"})
    (out / FAILURES).unlink()
    write_failures(out, {})
    assert find_faults(out) == Faults()


# ------------------------------------------------------------------------------------------------------------ kills


class Killed(BaseException):
    """The command ends at once."""


@pytest.fixture
def killing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int, bool], None]]:
    """Has the command killed at a change to a folder's names, before or after it; without a number, at none."""
    left, after = [0], [False]
    ways: dict[str, Callable[..., Any]] = {"replace": os.replace, "unlink": Path.unlink}

    def dying(name: str) -> Callable[..., Any]:
        def change(*given: Any, **more: Any) -> Any:
            left[0] -= 1
            if left[0] == 0 and not after[0]:
                raise Killed
            found = ways[name](*given, **more)
            if left[0] == 0 and after[0]:
                raise Killed
            return found

        return change

    def at(number: int, afterwards: bool = False) -> None:
        left[0], after[0] = number, afterwards

    monkeypatch.setattr("aligngap.storage.files.os.replace", dying("replace"))
    monkeypatch.setattr(Path, "unlink", dying("unlink"))
    yield at
    at(0)


def killed_copies(
    out: Path, killing: Callable[..., None], afterwards: bool, change: Callable[[Path], object]
) -> Iterator[Path]:
    """Copies of a folder, of which each was changed by a command that was killed at the next change of a name."""
    for number in range(1, 100):
        place = out.with_name(f"killed-{number}")
        shutil.copytree(out, place)
        killing(number, afterwards)
        with suppress(Killed):
            change(place)
            killing(0)
            return
        killing(0)
        yield place


@pytest.mark.parametrize("afterwards", [False, True])
def test_a_kill_while_records_are_written_accuses_nobody(
    out: Path, killing: Callable[..., None], afterwards: bool
) -> None:
    """At every change to the folder's names: what is there is of one state, or said to be unfinished."""
    killed = 0
    for place in killed_copies(out, killing, afterwards, lambda copy: write(copy, 4, "other")):
        killed += 1
        found = find_faults(place)
        assert found.changed == found.removed == ()
        if not found.unfinished:
            assert find_faults(place) == Faults()
            seeds = {min(pd.read_parquet(place / name)["seed"]) for name in (RECORDS, PER_PROMPT, SAMPLES)}
            assert len(seeds) == 1
        else:
            assert found.sentences()[0].startswith("A command was stopped while it wrote ")
            assert "they may be of two states; repeat that command" in found.sentences()[0]
        write(place, 4, "other")
        assert find_faults(place) == Faults()
    assert killed >= 8


@pytest.mark.parametrize("afterwards", [False, True])
def test_a_kill_while_a_checkpoint_is_added_accuses_nobody(
    out: Path, killing: Callable[..., None], afterwards: bool
) -> None:
    killed = 0
    for place in killed_copies(out, killing, afterwards, lambda copy: add(copy, 10)):
        killed += 1
        found = find_faults(place)
        assert found.changed == found.removed == ()
        add(place, 20)  # of what another addition has not finished it is no end
        assert set(find_faults(place).unfinished) == set(found.unfinished) - {"study.yaml", RATINGS}
        add(place, 10)
        assert find_faults(place) == Faults()
        assert {10, 20} <= set(read_folder(place).records["step"])
    assert killed >= 5


def add(out: Path, step: int) -> None:
    """Add a checkpoint of a run of its own."""
    row = dict.fromkeys(RECORD_COLUMNS, 0.0) | {"opponent": "sft", "prompts": 2, "ties": 0, "accuracy_pairs": 0}
    each = dict.fromkeys(PER_PROMPT_COLUMNS, 0.0)
    each |= {"opponent": "sft", "prompt_id": "p", "length_tokens": 1, "opponent_length_tokens": 1}
    text = {"prompt_id": "p", "prompt": "a", "response": "b", "ended": True}
    add_rows(out, Measured([row], [each], [text]), study="mine", arm="dpo", seed=0, step=step)


# --------------------------------------------------------------------------------------- what is added to a folder


def test_what_was_changed_stays_told_where_rows_are_added_to_it(tmp_path: Path) -> None:
    out = tmp_path / "out"
    add(out, 10)
    rows = pd.read_parquet(out / RECORDS)
    write_table(out / RECORDS, rows.assign(win_rate=0.99), RECORD_COLUMNS)
    (out / "study.yaml").write_text("name: x\n")
    assert find_faults(out) == Faults(changed=(RECORDS, "study.yaml"))
    add(out, 20)
    assert find_faults(out) == Faults(changed=(RECORDS,))  # the other was written whole
    (out / SAMPLES).unlink()
    add(out, 30)
    assert find_faults(out) == Faults(changed=(RECORDS, SAMPLES))


def test_a_key_that_was_edited_is_not_believed(out: Path, tmp_path: Path) -> None:
    """It says which arm stood on the left: turned round, people would have said the opposite."""
    records = read_folder(out).records
    kl = float(records["kl_nats"][records["step"] > 0].median())
    export_sheet(out, ("online", "offline"), kl, 4, tmp_path / "sheet")
    assert find_faults(out) == Faults()
    sheet = tmp_path / "sheet" / "sheet.csv"
    filled = pd.read_csv(sheet).assign(choice="left")
    filled.to_csv(sheet, index=False)
    take_in(out, [sheet])
    assert find_faults(out) == Faults()
    write_table(out / RATINGS, pd.read_parquet(out / RATINGS).assign(human=1.0), RATING_COLUMNS)
    take_in(out, [shutil.copy(sheet, sheet.with_name("another.csv"))])
    assert find_faults(out) == Faults(changed=(RATINGS,))  # what the first rater said is still edited
    (key,) = (out / "ratings").iterdir()
    told = json.loads(key.read_text())
    for asked in told["pairs"]:
        asked["first_left"] = not asked["first_left"]
    key.write_text(json.dumps(told))
    with pytest.raises(AligngapError, match=r"was changed after aligngap wrote it, and tells the arms; export"):
        take_in(out, [sheet])


def test_what_is_not_made_again_is_missed_once(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (out / FORECAST).unlink()
    write(out)
    assert f"aligngap: {out}: {FORECAST} was removed after aligngap wrote it" in capsys.readouterr().err
    assert find_faults(out) == Faults()


def test_what_another_study_leaves_is_moved_and_not_missed(out: Path) -> None:
    write(out, 4, "other")
    assert (out / "earlier" / FORECAST).is_file()
    assert find_faults(out) == Faults()


def test_a_list_that_is_copied_with_some_of_its_files_misses_none(out: Path, tmp_path: Path) -> None:
    to = tmp_path / "copied"
    to.mkdir()
    for name in (RECORDS, "study.yaml", "provenance.json"):
        shutil.copy(out / name, to)
    copy_list(out, to)
    assert find_faults(to) == Faults()
    edit(to / RECORDS)
    assert find_faults(to) == Faults(changed=(RECORDS,))


# ------------------------------------------------------------------------------------------------- several at once


def test_commands_write_to_a_folder_one_after_another_and_readers_wait(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun, go_on, order = threading.Event(), threading.Event(), list[str]()

    def first() -> None:
        with writing_records(out):
            begun.set()
            begin_folder(out, "name: other\n", FRAMES[4][2])
            go_on.wait(10)
            for name, frame, columns in zip((RECORDS, PER_PROMPT, SAMPLES), FRAMES[4], COLUMNS, strict=True):
                write_table(out / name, frame, columns)
            write_provenance(out, {})
            order.append("first")

    def second() -> None:
        write(out, 0)
        order.append("second")

    def reader() -> None:
        tables = read_folder(out)
        seeds.append({min(frame["seed"]) for frame in (tables.records, tables.per_prompt, tables.samples)})
        doubts.append(tables.doubts)

    seeds: list[set[int]] = []
    doubts: list[tuple[str, ...]] = []
    writes = threading.Thread(target=first)
    writes.start()
    assert begun.wait(10)
    others = [threading.Thread(target=second), threading.Thread(target=reader)]
    for thread in others:
        thread.start()
    go_on.set()
    for thread in (writes, *others):
        thread.join(30)
        assert not thread.is_alive()
    assert order == ["first", "second"]
    assert seeds in ([{0}], [{4}])
    assert doubts == [()]
    assert "A command was stopped" not in capsys.readouterr().err
    assert find_faults(out) == Faults()


def test_who_has_to_wait_is_told_and_does_not_wait_for_ever(
    out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As behind a command that was suspended."""
    monkeypatch.setattr("aligngap.storage.listing.NOTICE_SECONDS", 0.01)
    monkeypatch.setattr("aligngap.storage.listing.WAIT_SECONDS", 0.01)
    held, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        with lock_of(out):
            held.set()
            go_on.wait(30)

    other = threading.Thread(target=hold)
    other.start()
    assert held.wait(10)
    try:
        with pytest.raises(AligngapError, match="another command writes to this folder; wait until it has ended, or"):
            write(out)
    finally:
        go_on.set()
        other.join(30)
    assert (
        capsys.readouterr().err
        == f"aligngap: {out}: another command writes to this folder; waiting until it has ended\n"
    )
    write(out)
    assert find_faults(out) == Faults()


def test_a_page_is_of_the_records_that_were_written_last(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another command writes records, and its own page, while this one still draws that of the earlier records."""
    from aligngap.report import page as pages

    own, written = pages.write_page, []

    def slow(*given: Any, **more: Any) -> Path:
        if not written:
            written.append(write(out, 4, "other"))
        return own(*given, **more)

    monkeypatch.setattr(pages, "write_page", slow)
    text = build_report(out).read_text()
    assert "name: other" in text
    assert "was changed" not in text


def test_of_a_run_of_an_own_name_and_step_rows_are_replaced(tmp_path: Path) -> None:
    add(tmp_path / "out", 10)
    add(tmp_path / "out", 10)
    assert len(read_folder(tmp_path / "out").records) == 1
    assert OfRun("mine", "dpo", 0, 10).run == read_folder(tmp_path / "out").records["run"].iloc[0]
