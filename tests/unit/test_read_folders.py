"""`study.yaml` and `provenance.json` of an output folder after somebody's edit: one line with the key, or a doubt."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from synthetic_records import make
from test_survey import write_planted

from aligngap.cli import main
from aligngap.storage.columns import PER_PROMPT_COLUMNS, RECORD_COLUMNS, SAMPLE_COLUMNS
from aligngap.storage.files import write_text
from aligngap.storage.listing import writing
from aligngap.storage.records import PER_PROMPT, RECORDS, SAMPLES, write_table
from aligngap.storage.reuse import write_provenance

ARMS = {name: {"behavior": "policy", "sync_every": 1} for name in ("online", "offline")}
STUDY = {
    "name": "tiny", "question": "Which?", "arms": ARMS, "compare": ["online", "offline"], "budgets": [1.0, 2.0],
    "spent_seeds": [], "primary": [], "decision_margin": 0.05, "decision_kl": None, "variants": {}, "task": {},
    "policy": {"path": None}, "recipe": {"loss": {"name": "ipo"}},
}  # fmt: skip
MEASURED = {
    "name": "mine", "arms": {"online": {"behavior": "given"}}, "compare": ["online", "online"], "budgets": [1.0],
    "measured": {"reference": "sft", "prompts": "p.txt", "response_tokens": 8, "judges": [{"kind": "r:prefer"}]},
}  # fmt: skip
RUN = "online beta=0.1 learning_rate=1e-05 seed=0"
ORIGIN = {
    "command": "aligngap run tiny", "artifacts": {"align-1": {"seconds": 1.5, "commit": "abc"}},
    "runs": {RUN: {"align": "align-1", "outcome": "ok"}}, "costs": {},
    "pipeline": [{"seed": 0, "part": "data", "what": "rows", "value": 3}], "judges": {"judge m": {"asked": 2}},
}  # fmt: skip


def write(out: Path, study: dict[str, Any], origin: dict[str, Any]) -> None:
    write_text(out / "study.yaml", yaml.safe_dump(study, sort_keys=False))
    write_provenance(out, origin)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of `run` and one of `measure`, with their lists."""
    made = {kind: tmp_path_factory.mktemp(kind) / "out" for kind in ("run", "measure")}
    files = ["study.yaml", "provenance.json", RECORDS, PER_PROMPT, SAMPLES]
    for out in made.values():
        out.mkdir()
    with writing(made["run"], files):
        columns = (RECORD_COLUMNS, PER_PROMPT_COLUMNS, SAMPLE_COLUMNS)
        frames = make(prompts=12, seeds=(0, 1), opponents=("sft",), checkpoints=3)
        for name, frame, of in zip((RECORDS, PER_PROMPT, SAMPLES), frames, columns, strict=True):
            write_table(made["run"] / name, frame, of)
        write(made["run"], STUDY, ORIGIN)
    with writing(made["measure"], files):
        write_planted(made["measure"], {"online": [(10, 0.5, 0.6), (20, 1.0, 0.7)]}, prompts=40)
        lies = {"checkpoints": {"10": {"path": "a", "content": "b"}, "20": {"path": "a", "content": "b"}}}
        write(made["measure"], MEASURED, ORIGIN | {"runs": {"online seed=0": lies}})
    return made


@pytest.fixture
def out(folders: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    def copy(kind: str) -> Path:
        shutil.copytree(folders[kind], tmp_path / "out")
        return tmp_path / "out"

    return copy


WRONG: dict[str, dict[str, list[Any]]] = {
    "study.yaml": {
        "name": [1, ["x"]], "question": [{}], "compare": [1, "x", ["a"], ["a", 1], None], "budgets": [1.0, [], [-1.0],
        ["x"], [float("nan")]], "spent_seeds": [3, ["x"], [0.5]], "primary": ["R2", [1]], "decision_margin": ["x", 0.7,
        True], "decision_kl": [-1.0, float("inf")], "arms": [[1], {"a": 1}, {"a": {"sync_every": "x"}}, {1: {}}],
        "variants": [["x"], {"v": [1]}, {"v": {"set": 1}}], "task": [1], "policy": ["x", {"path": 1}], "recipe": [[]],
        "measured": [[1], "x", {"reference": "a"}, {"reference": 1, "prompts": "p", "response_tokens": 8}],
    },
    "provenance.json": {
        "command": [1, ["x"]], "artifacts": [[1], {"a": 1}, {"a": {"seconds": "x"}}], "runs": [[1], {"a": 1},
        {"a": {"align": 1}}, {"a": {"checkpoints": [1]}}, {"a": {"checkpoints": {"1": {"path": 1, "content": ""}}}}],
        "pipeline": [1, [1], [{"seed": "x", "part": "a", "what": "b", "value": 1}], [{"seed": 0}]],
        "costs": [[1], {"a": {"arm": "a", "responses": "x", "tokens": 1, "seconds": 1}}], "judges": [1, {"a": 1}],
        "missing": [1, [1]], "replaced": [1, {"a": 1}],
    },
}  # fmt: skip


def cases() -> Iterator[tuple[str, str, Any]]:
    for file, keys in WRONG.items():
        for key, values in keys.items():
            yield from ((file, key, value) for value in values)


def change(path: Path, key: str, value: Any) -> None:
    """Edit one key of a file as a person would, in an editor."""
    if path.suffix == ".yaml":
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {key: value}))
    else:
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))


def refusal(said: str) -> str:
    """The line in which a command refuses, after those that say what it does and which file was changed."""
    begun, changed, last = said.splitlines()
    assert begun.endswith(" …")
    assert "was changed after aligngap wrote it" in changed
    return last


@pytest.mark.parametrize(("file", "key", "value"), list(cases()))
def test_a_value_of_another_kind_is_one_line_with_its_key(
    out: Callable[[str], Path], file: str, key: str, value: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = out("run")
    change(folder / file, key, value)
    assert main(["report", str(folder)]) == 2
    told = refusal(capsys.readouterr().err)
    assert told.startswith(f"aligngap: {folder / file}: {key}")
    assert told.endswith("repeat the command that made this folder, which writes it anew")


BROKEN = {
    "study.yaml": ["[1]", "a: [", "\0", "- " * 2000, "3"],
    "provenance.json": ["[1]", "{", "", "null}", "[" * 100_000, "3"],
}


@pytest.mark.parametrize(("file", "text"), [(file, text) for file, texts in BROKEN.items() for text in texts])
def test_what_is_no_such_file_is_one_line(
    out: Callable[[str], Path], file: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = out("run")
    (folder / file).write_text(text)
    assert main(["report", str(folder)]) == 2
    assert refusal(capsys.readouterr().err).startswith(f"aligngap: {folder / file}: ")


def test_a_file_that_is_no_text_is_one_line(out: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder = out("run")
    (folder / "study.yaml").write_bytes(b"\xff\xfe")
    assert main(["show", str(folder)]) == 2
    assert refusal(capsys.readouterr().err).startswith(f"aligngap: {folder / 'study.yaml'}: is no text in UTF-8")


def test_the_measured_part_of_a_study_is_read_by_nobody_before_it_is_looked_at(
    out: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = out("measure")
    change(folder / "study.yaml", "measured", [1])
    assert main(["pick", str(folder), "--best"]) == 2
    assert refusal(capsys.readouterr().err).startswith(f"aligngap: {folder / 'study.yaml'}: measured: must be keys")


def test_what_can_be_read_and_was_edited_is_a_doubt_everywhere(
    out: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = out("measure")
    study = yaml.safe_load((folder / "study.yaml").read_text())
    change(folder / "study.yaml", "measured", study["measured"] | {"prompts": "other.txt"})
    change(folder / "provenance.json", "command", "aligngap measure something else")
    said = "provenance.json and study.yaml were changed after aligngap wrote them"
    assert main(["pick", str(folder), "--best"]) == 0
    told = capsys.readouterr()
    assert f"doubt: {said}" in told.out
    assert f"aligngap: {folder}: {said}" in told.err
    assert main(["show", str(folder)]) == 0
    assert said in capsys.readouterr().out
    assert main(["report", str(folder)]) == 0
    assert said in (folder / "report.html").read_text()
    assert said in (folder / "summary.md").read_text()


@pytest.mark.parametrize("file", ["study.yaml", "provenance.json"])
def test_a_pick_without_what_says_where_it_lies_is_one_line(
    out: Callable[[str], Path], file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = out("measure")
    (folder / file).unlink()
    assert main(["pick", str(folder), "--best"]) == 2
    err = capsys.readouterr().err
    assert f"{file} was removed after aligngap wrote it" in err
    assert f"{folder / file}: does not say " in err.splitlines()[-1]


def test_an_export_says_what_is_wrong_with_the_folder_before_it_looks_for_anything(
    out: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = out("run")
    for file, key, value, said in (
        ("study.yaml", "recipe", {}, "has no `recipe`, as a study that was run has"),
        ("provenance.json", "runs", {RUN: {}}, "names no artifact of"),
        ("provenance.json", "runs", {}, "names no runs"),
    ):
        shutil.copytree(folder, tmp_path / "copy", dirs_exist_ok=True)
        change(tmp_path / "copy" / file, key, value)
        assert main(["export", str(tmp_path / "copy"), "online", "--to", str(tmp_path / "to")]) == 2
        assert said in capsys.readouterr().err.splitlines()[-1]
