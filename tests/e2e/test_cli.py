"""The command as people mistype it: one line that names the thing, exit code 2, nothing written; and as they mean it.

Most cases call the command's own `main` in this process; a few start the installed command, to see the same from
outside.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import TINY_STUDY, complaint, tiny_policy

from aligngap.cli import BEGINS, main
from aligngap.execute.worker import make
from aligngap.pipeline.context import Context
from aligngap.pipeline.plan import expand
from aligngap.storage.columns import PROBE_COLUMNS
from aligngap.storage.records import PROBE, write_table
from aligngap.storage.store import Store
from aligngap.study.load import validate
from aligngap.types import AligngapError

COMMAND = str(Path(sys.executable).with_name("aligngap"))
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1", "COLUMNS": "120"}


def study(**changes: Any) -> dict[str, Any]:
    """The tiny study with values at dotted keys (`__` for a dot)."""
    raw: dict[str, Any] = yaml.safe_load(TINY_STUDY)
    for key, value in changes.items():
        *parents, last = key.split("__")
        place = raw
        for parent in parents:
            place = place[parent]
        if value is None:
            place.pop(last)
        else:
            place[last] = value
    return raw


def everything(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*")}


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`refused(words, *names)`: the command ends with 2, one line that holds every name, and leaves no file."""
    monkeypatch.chdir(tmp_path)

    def check(words: list[str], *names: str) -> str:
        before = everything(tmp_path)
        code = main(words)
        out, err = capfd.readouterr()
        assert code == 2, err
        line = complaint(err)
        assert line.startswith("aligngap: ")
        assert "Traceback" not in err
        for name in names:
            assert name in line
        assert "report:" not in out
        assert everything(tmp_path) == before
        return line

    return check


@pytest.fixture
def refused_by_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """What only reading the data can tell: the same one line and code, before anything is trained or kept."""
    monkeypatch.chdir(tmp_path)

    def check(words: list[str], *names: str) -> str:
        code = main(words)
        out, err = capfd.readouterr()
        assert code == 2, err
        line = complaint(err)
        assert line.startswith("aligngap: ")
        for name in names:
            assert name in line
        assert "report:" not in out
        assert (
            {p.name for p in (tmp_path / "store").iterdir()} <= {"partial"} if (tmp_path / "store").exists() else True
        )
        assert not (tmp_path / "out" / "report.html").exists()
        return line

    return check


def run_words(tmp_path: Path, raw: Any, *more: str) -> list[str]:
    text = raw if isinstance(raw, str) else yaml.safe_dump(raw, sort_keys=False)
    (tmp_path / "bad.yaml").write_text(text)
    return ["run", "bad.yaml", "--out", "out", "--device", "cpu", *more]


# -------------------------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ([], ["COMMAND"]),
        (["runn", "opening"], ["runn"]),
        (["run"], ["study"]),
        (["run", "opening", "--bogus"], ["--bogus"]),
        (["run", "openning"], ["openning", "opening"]),
        (["run", "missing.yaml"], ["missing.yaml"]),
        (["run", "."], ["."]),
        (["plan", "opening", "--set", "seeds"], ["--set seeds", "key=value"]),
        (["plan", "opening", "--set", "=3"], ["key=value"]),
        (["plan", "opening", "--set", "seeds=[1"], ["seeds", "[1"]),
        (["plan", "opening", "--set", "seeds.x=1"], ["seeds"]),
        (["plan", "opening", "--set", "seeds=0"], ["seeds"]),
        (["plan", "opening", "--set", "seeds=[1,1]"], ["seeds"]),
        (["plan", "opening", "--set", "sedes=3"], ["sedes"]),
        (["plan", "opening", "--set", "task.train_pair=3"], ["train_pair"]),
        (["plan", "opening", "--set", "recipe.optimization.steps=many"], ["recipe.optimization.steps", "many"]),
        (["plan", "opening", "--set", "arms.online.judge=gold"], ["arms.online.judge", "gold"]),
        (["run", "opening", "--workers", "two"], ["--workers", "two"]),
        (["run", "opening", "--workers", "0"], ["--workers"]),
        (["run", "opening", "--workers", "-1"], ["--workers"]),
        (["run", "opening", "--save-seconds", "0"], ["--save-seconds"]),
        (["run", "opening", "--save-seconds", "nan"], ["--save-seconds"]),
        (["run", "opening", "--device", "tpu"], ["--device", "tpu"]),
        (["run", "opening", "--device", "cuda:77"], ["--device", "cuda:77"]),
        (["list", "loss"], ["loss"]),
        (["list"], ["shelf"]),
        (["diff", "opening", "online"], ["right"]),
        (["diff", "opening", "online", "ofline"], ["ofline", "offline"]),
        (["show", "nowhere"], ["nowhere"]),
        (["report", "nowhere"], ["nowhere"]),
    ],
)
def test_wrong_arguments(refused: Callable[..., str], words: list[str], names: list[str]) -> None:
    refused(words, *names)


# ---------------------------------------------------------------------------------------------------------- studies


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"recipes": {}}, ["recipes"]),
        ({"recipe__optimization__lr": 1e-3}, ["recipe.optimization.lr", "unknown key"]),
        ({"name": None}, ["name"]),
        ({"name": "My Study!"}, ["name"]),
        ({"task": None}, ["task"]),
        ({"task__name": "sandbx"}, ["sandbx", "sandbox"]),
        ({"task__name": None}, ["task.name"]),
        ({"task__train_pairs": 0}, ["task.train_pairs"]),
        ({"task__train_pairs": "lots"}, ["task.train_pairs"]),
        ({"recipe__loss__name": "dpoo"}, ["dpoo", "dpo"]),
        ({"recipe__loss__beta": -0.1}, ["beta", "-0.1"]),
        ({"recipe__loss__beta": "big"}, ["beta", "big"]),
        ({"recipe__loss__betta": 0.1}, ["betta", "beta"]),
        ({"recipe__loss__form": "squared"}, ["form", "squared"]),
        ({"recipe__optimization__learning_rate": 0}, ["learning_rate"]),
        ({"recipe__optimization__learning_rate": float("nan")}, ["learning_rate"]),
        ({"recipe__optimization__batch": 0}, ["batch"]),
        ({"recipe__optimization__schedule": "step"}, ["schedule"]),
        ({"arms": {}}, ["arms"]),
        ({"arms__third": {"behavior": "dataset"}}, ["third", "judge"]),
        ({"arms__third": {"behavior": "dataset", "judge": "golden", "sync_every": 4}}, ["third", "sync_every"]),
        ({"arms__third": {"behavior": "recording", "of": "nobody"}}, ["third", "nobody"]),
        ({"arms__third": {"behavior": "recording"}}, ["third", "of"]),
        ({"arms__third": {"behavior": "recording", "of": "online", "order": "sideways"}}, ["third", "sideways"]),
        ({"arms__third": {"behavior": "recording", "of": "online", "order": "window:0"}}, ["third", "window:0"]),
        ({"arms__third": {"behavior": "policy", "judge": "proxy", "learning_rate": 1.0}}, ["third", "learning_rate"]),
        ({"arms__third": {"behavior": "magic", "judge": "proxy"}}, ["third", "behavior"]),
        ({"arms__online": None}, ["online"]),
        ({"compare": ["online", "ofline"]}, ["ofline"]),
        ({"sweep": [{"axes": {"beta": []}, "arms": ["offline"], "why": "x"}]}, ["beta"]),
        ({"sweep": [{"axes": {"beta": [-1.0]}, "arms": ["offline"], "why": "x"}]}, ["beta"]),
        ({"sweep": [{"axes": {"learning_rate": [0.0]}, "arms": ["offline"], "why": "x"}]}, ["learning_rate"]),
        ({"sweep": [{"axes": {"steps": [2.5]}, "arms": ["offline"], "why": "x"}]}, ["steps"]),
        ({"sweep": [{"axes": {"gamma": [1.0]}, "arms": ["offline"], "why": "x"}]}, ["gamma"]),
        ({"sweep": [{"axes": {"beta": [0.1]}, "arms": ["ofline"], "why": "x"}]}, ["ofline"]),
        ({"measurement__checkpoints": [8, 4]}, ["checkpoints"]),
        ({"measurement__kl_prompts": 999}, ["kl_prompts"]),
        ({"measurement__opponents": ["gpt"]}, ["opponents"]),
        ({"limits__response_tokens": 0}, ["response_tokens"]),
        ({"policy": {"path": "x", "config": {"d_model": 16}}}, ["policy", "not both"]),
        ({"policy__dropout": 1.5}, ["dropout"]),
        ({"policy__model_type": "t55"}, ["t55", "model_type"]),
        ({"policy__config__d_modell": 3}, ["d_modell"]),
        ({"policy": {"path": "no/such-model"}, "tokenizer": None}, ["no/such-model"]),
        ({"tokenizer": {"path": "no/such-tokenizer"}}, ["no/such-tokenizer"]),
        ({"golden__model": {"path": "no/such-judge"}}, ["no/such-judge"]),
        ({"tokenizer__vocabulary": 3}, ["vocabulary"]),
    ],
    ids=lambda x: "-".join(x) if isinstance(x, dict) else "",
)
def test_bad_studies(refused: Callable[..., str], tmp_path: Path, changes: dict[str, Any], names: list[str]) -> None:
    about_the_model = names[0] in ("t55", "d_modell") or "no/such" in names[0]  # said without the file
    refused(run_words(tmp_path, study(**changes)), *([] if about_the_model else ["bad.yaml"]), *names)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", ["bad.yaml", "mapping"]),
        ("- 1\n- 2\n", ["bad.yaml", "mapping"]),
        ("name: [tiny\narms: {", ["bad.yaml", "line"]),
        ("name: tiny\n\ttask: x\n", ["bad.yaml line 2"]),
        ("name: !!python/object/apply:os.system ['true']\n", ["bad.yaml"]),
        ("name: tiny\nname: twice\n" + TINY_STUDY.replace("name: tiny\n", ""), ["bad.yaml", "name"]),
    ],
)
def test_bad_yaml(refused: Callable[..., str], tmp_path: Path, text: str, names: list[str]) -> None:
    refused(run_words(tmp_path, text), *names)


def test_a_file_that_is_not_text(refused: Callable[..., str], tmp_path: Path) -> None:
    words = run_words(tmp_path, "")
    (tmp_path / "bad.yaml").write_bytes(b"\xff\xfe\x00name")
    refused(words, "bad.yaml")


# --------------------------------------------------------------------------------------------------- data and places


def rows(n: int, **more: Any) -> list[dict[str, Any]]:
    return [{"prompt": f"say {i}", "chosen": f"river {i}", "rejected": f"lamp {i}", **more} for i in range(n)]


def write(path: Path, items: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(r) + "\n" for r in items))


@pytest.mark.parametrize(
    ("items", "names"),
    [
        ([], ["pairs.jsonl"]),
        (rows(1), ["pairs.jsonl"]),
        ([{"prompt": "a", "chosen": "b"}] * 20, ["pairs.jsonl", "rejected"]),
        (rows(20, chosen=3), ["pairs.jsonl", "chosen"]),
        ([{"prompt": f"p {i}", "chosen": "same", "rejected": "same"} for i in range(20)], ["pairs.jsonl"]),
    ],
    ids=["empty", "one row", "a field missing", "not text", "chosen is rejected"],
)
def test_bad_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, items: list[dict[str, Any]], names: list[str]
) -> None:
    """By the step that reads them, which is every study's first."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "pairs.jsonl", items)
    first_step_refuses(study(task={"name": "pairs", "path": "pairs.jsonl"}), *names)


def first_step_refuses(raw: dict[str, Any], *names: str) -> None:
    store = Store(Path("store"))
    store.prepare()

    def read() -> None:
        data = expand(validate(raw, "bad.yaml")).steps()[0]
        assert data.kind == "data"
        make(data, Context(store))

    with pytest.raises(AligngapError) as caught:
        read()
    assert "\n" not in str(caught.value)
    for name in names:
        assert name in str(caught.value)
    assert not [p for p in Path().glob("store/*") if p.name != "partial"]


def test_one_row_by_the_command(refused_by_the_data: Callable[..., str], tmp_path: Path) -> None:
    write(tmp_path / "pairs.jsonl", rows(1))
    refused_by_the_data(
        run_words(tmp_path, study(task={"name": "pairs", "path": "pairs.jsonl"})), "pairs.jsonl", "1 usable"
    )


def test_data_that_are_not_there(refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(run_words(tmp_path, study(task={"name": "pairs", "path": "nothing.jsonl"})), "nothing.jsonl")
    refused(run_words(tmp_path, study(task={"name": "pairs"})), "task.path")
    monkeypatch.delenv("ALIGNGAP_NO_SUCH", raising=False)
    refused(
        run_words(tmp_path, study(task={"name": "pairs", "path": "${ALIGNGAP_NO_SUCH}/x.jsonl"})), "ALIGNGAP_NO_SUCH"
    )


def test_a_broken_line_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "pairs.jsonl", rows(20))
    with (tmp_path / "pairs.jsonl").open("a") as file:
        file.write('{"prompt": "torn\n')
    first_step_refuses(study(task={"name": "pairs", "path": "pairs.jsonl"}), "pairs.jsonl", "21")


def test_every_row_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "pairs.jsonl", [r | {"chosen": f"{i} " + "word " * 50} for i, r in enumerate(rows(40))])
    raw = study(task={"name": "pairs", "path": "pairs.jsonl"})
    first_step_refuses(raw, "pairs", "limits.response_tokens")


def test_places_that_cannot_be_written(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    words = run_words(tmp_path, study())
    refused([*words[:2], "--out", "file", "--store", "file/store", "--device", "cpu"], "file")
    refused([*words[:2], "--out", "/proc/aligngap/out", "--device", "cpu"], "/proc/aligngap")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_read_only_place(refused: Callable[..., str], tmp_path: Path) -> None:
    words = run_words(tmp_path, study())
    (tmp_path / "locked").mkdir(mode=0o500)
    refused([*words[:2], "--out", "locked/out", "--device", "cpu"], "locked")


def test_a_model_folder_that_is_torn(
    refused: Callable[..., str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tiny_policy("t5").save(tmp_path / "model")
    capfd.readouterr()
    (tmp_path / "model" / "config.json").write_text("{")
    refused(
        run_words(tmp_path, study(policy={"path": str(tmp_path / "model")}, tokenizer=None)),
        "model",
        "cannot be loaded",
    )


def test_records_that_are_none(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    refused(["report", "out"], "records.parquet")
    (tmp_path / "out" / "records.parquet").write_text("not parquet")
    refused(["show", "out"], "records.parquet")


# ------------------------------------------------------------------------------------------ the installed command


def outside(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([COMMAND, *words], cwd=cwd, env=ENV, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("words", [("run", "missing.yaml"), ("plan", "opening", "--set", "sedes=3"), ("list", "loss")])
def test_seen_from_outside(tmp_path: Path, words: tuple[str, ...]) -> None:
    done = outside(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    complaint(done.stderr)
    assert "Traceback" not in done.stderr
    assert everything(tmp_path) == set()


FIRST = """
import os, sys
from aligngap.cli import main

class Screen:
    def write(self, text):
        print(text.rstrip(), *sys.modules, sep="\\n")
        sys.stdout.flush()
        os._exit(0)

sys.stderr = Screen()
main(sys.argv[1:])
"""
COMMANDS = [
    ["run", "study.yaml"], ["plan", "study.yaml"], ["forecast", "study.yaml"], ["diff", "study.yaml", "a", "b"],
    ["compare", "--policy", "sft", "--task", "pairs.jsonl"], ["inspect", "pairs.jsonl"], ["check", "store"],
    ["measure", "--reference", "sft", "--policy", "a=b", "--prompts", "prompts.txt"], ["pick", "out", "--best"],
    ["report", "out"], ["show", "out"], ["export", "out", "online", "--to", "folder"], ["import-t5x", "c", "--to", "d"],
    ["ratings", "export", "out", "--kl", "1", "--to", "d"], ["exact", "skewed", "--out", "d"], ["list", "losses"],
]  # fmt: skip


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])
def test_every_command_says_something_before_it_loads_anything_heavy(words: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", FIRST, *words], capture_output=True, text=True, env=ENV, timeout=120)
    said, *loaded = done.stdout.splitlines()
    assert said.startswith("aligngap: ")
    assert said.endswith(" …")
    heavy = {"torch", "transformers", "ray", "matplotlib", "scipy", "pandas", "pyarrow", "pydantic", "yaml", "rich"}
    assert "aligngap.cli" in loaded
    assert not heavy & set(loaded)


def test_no_command_is_without_its_first_words() -> None:
    assert {words[0] for words in COMMANDS} == set(BEGINS)


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = outside("plan", "missing.yaml", "--debug", cwd=tmp_path)
    assert done.returncode != 0
    assert "Traceback" in done.stderr
    assert "missing.yaml" in done.stderr


def test_a_closed_pipe_is_no_error(tmp_path: Path) -> None:
    done = subprocess.run(
        f"{COMMAND} plan opening | head -1",
        shell=True,
        cwd=tmp_path,
        env=ENV,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "Traceback" not in done.stderr


# ------------------------------------------------------------------------------------------------- what should work


@pytest.mark.parametrize("shelf", ["losses", "judges", "tasks", "behaviors", "hypotheses", "studies"])
def test_list(shelf: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", shelf]) == 0
    known = {"losses": "best-of-two", "judges": "bradley-terry", "tasks": "sandbox", "behaviors": "policy",
             "hypotheses": "opening", "studies": "opening"}  # fmt: skip
    assert known[shelf] in capsys.readouterr().out


def test_plan_writes_nothing_and_names_every_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    words = run_words(tmp_path, study())
    before = everything(tmp_path)
    assert main(["plan", words[1], "--out", "out"]) == 0
    said = capsys.readouterr().out
    for word in ("data seed=0", "sft seed=0", "golden judge seed=0", "proxy judge seed=0", "online beta=0.1", "steps"):
        assert word in said
    assert everything(tmp_path) == before


def test_packaged_studies_plan(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "opening"]) == 0
    assert main(["plan", "opening", "--set", "seeds=3", "--set", "recipe.loss.beta=0.2"]) == 0
    assert "seed=2" in capsys.readouterr().out


def test_diff_names_the_stream_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = run_words(tmp_path, study())
    assert main(["diff", words[1], "online", "offline"]) == 0
    said = capsys.readouterr().out
    assert "behavior" in said
    assert "judge" in said
    assert "learning_rate" not in said
    assert main(["diff", words[1], "online", "online"]) == 0
    assert "same stream" in capsys.readouterr().out


def test_a_run_leaves_what_the_design_says(finished: Path) -> None:
    out = {p.name for p in (finished / "out").iterdir()}
    assert {
        "records.parquet",
        "per_prompt.parquet",
        "samples.parquet",
        "study.yaml",
        "provenance.json",
        "report.html",
        "figures",
    } <= out
    resolved = yaml.safe_load((finished / "out" / "study.yaml").read_text())
    assert resolved["recipe"]["loss"] == {"name": "ipo", "beta": 0.1}
    assert resolved["measurement"]["prompts"] == 16
    about = json.loads((finished / "out" / "provenance.json").read_text())
    assert all({"commit", "packages", "seconds", "device"} <= set(a) for a in about["artifacts"].values())


def test_a_command_with_nothing_left_to_do_makes_no_table_and_no_page(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(finished / "tiny.yaml", tmp_path)
    shutil.copytree(finished / "store", tmp_path / "store")
    monkeypatch.chdir(tmp_path)
    words = ["run", "tiny.yaml", "--out", "out", "--store", "store", "--device", "cpu", "--workers", "1"]
    assert main(words) == 0
    first = capsys.readouterr().out
    page = (tmp_path / "out" / "report.html").stat()
    with monkeypatch.context() as closed:
        closed.setattr("aligngap.execute.collect.collect", lambda *given: pytest.fail("collected"))
        assert main(words) == 0
    assert capsys.readouterr().out == first
    assert (tmp_path / "out" / "report.html").stat().st_mtime_ns == page.st_mtime_ns
    (tmp_path / "out" / "report.html").unlink()
    assert main(words) == 0
    assert capsys.readouterr().out == first
    assert (tmp_path / "out" / "report.html").is_file()
    of_another_study = write_table(tmp_path / "out" / PROBE, [], PROBE_COLUMNS)
    assert main(words) == 0
    assert capsys.readouterr().out == first
    assert not of_another_study.exists()


def test_data_that_change_while_the_command_runs_are_not_taken_for_those_that_were_planned(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(finished / "tiny.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("aligngap.pipeline.plan._fingerprint", cache(lambda task: "of the file as it was"))
    assert main(["run", "tiny.yaml", "--store", "store", "--device", "cpu", "--workers", "1"]) != 0
    assert "has changed while the command ran; repeat it" in capsys.readouterr().err
    assert not list((tmp_path / "store").glob("data-*/manifest.json"))


def test_show_and_report_of_a_finished_run(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(finished)
    assert main(["show", "out"]) == 0
    said = capsys.readouterr().out
    assert "online" in said
    assert "offline" in said
    page = finished / "out" / "report.html"
    page.unlink()
    assert main(["report", "out"]) == 0
    assert page.stat().st_size > 10_000
