"""A command with nothing left to do: it says again what it said, and only while all that this rests on is as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import BaseModel

from aligngap.execute import repeat
from aligngap.storage.checksums import names_of
from aligngap.storage.listing import LIST
from aligngap.storage.store import Store

COMMAND = "aligngap run tiny"


class Named(BaseModel):
    """A study, of which only what it says counts here."""

    name: str


def finish(store: Store, name: str, text: str) -> None:
    with store.making(name) as work:
        assert work is not None
        for part in ("rows.parquet", "log.parquet"):
            (work / part).write_text(text)
        store.finish(name, {"kind": "fake", "result": {}})


@pytest.fixture
def made(tmp_path: Path) -> tuple[Any, Store, Path]:
    """A plan of one run, its store, and the output folder of a command that has said something."""
    store, out = Store(tmp_path / "store"), tmp_path / "out"
    store.prepare()
    (out / "figures").mkdir(parents=True)
    for name in ("records.parquet", "report.html", "figures/frontier.svg"):
        (out / name).write_text(name)
    steps = [SimpleNamespace(name=name) for name in ("align-1", "measure-1", "data-1")]
    for step in steps:
        finish(store, step.name, step.name)
    plan = SimpleNamespace(
        study=Named(name="tiny"), runs=[SimpleNamespace(align=steps[0], measure=steps[1])], steps=lambda: steps
    )
    repeat.keep(plan, store, out, COMMAND, "online is ahead")
    return plan, store, out


def test_it_says_again_what_it_said(made: tuple[Any, Store, Path]) -> None:
    plan, store, out = made
    assert repeat.said(plan, store, out, COMMAND) == "online is ahead"
    assert repeat.said(plan, Store(store.root), out, COMMAND) == "online is ahead"


def change_artifact(plan: Any, store: Store, out: Path) -> None:
    store._move_aside("data-1", "test")
    finish(store, "data-1", "other")


CHANGES: dict[str, Callable[[Any, Store, Path], object]] = {
    "a table is another": lambda plan, store, out: (out / "records.parquet").write_text("x"),
    "the page is gone": lambda plan, store, out: (out / "report.html").unlink(),
    "a figure is gone": lambda plan, store, out: (out / "figures" / "frontier.svg").unlink(),
    "people have rated": lambda plan, store, out: (out / "ratings.parquet").write_text("x"),
    "the study is another": lambda plan, store, out: setattr(plan, "study", Named(name="other")),
    "an artifact was made again": change_artifact,
    "the list of its files is torn": lambda plan, store, out: (out / LIST).write_text("{"),
    "what it said is torn": lambda plan, store, out: (out / repeat.FILE).write_text("{"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_it_is_silent_where_something_is_another(made: tuple[Any, Store, Path], change: str) -> None:
    plan, store, out = made
    CHANGES[change](plan, store, out)
    assert repeat.said(plan, store, out, COMMAND) is None


def test_another_command_and_other_source_are_others(
    made: tuple[Any, Store, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plan, store, out = made
    assert repeat.said(plan, store, out, f"{COMMAND} --workers 2") is None
    with monkeypatch.context() as edited:  # a hypothesis of one's own, in its own module
        edited.setattr(repeat.registry, "source_of", lambda shelf, name: "0123456789abcdef0123")
        assert repeat.said(plan, store, out, COMMAND) is None
    assert repeat.said(plan, store, out, COMMAND) is not None
    monkeypatch.setattr(repeat.aligngap, "__file__", str(tmp_path / "elsewhere" / "__init__.py"))
    assert repeat.said(plan, store, out, COMMAND) is None


@pytest.mark.parametrize("part", ["align-1/log.parquet", "measure-1/rows.parquet", "data-1/manifest.json"])
def test_it_is_silent_where_the_store_is_damaged(made: tuple[Any, Store, Path], part: str) -> None:
    plan, store, out = made
    (store.root / part).write_text("x")
    assert repeat.said(plan, Store(store.root), out, COMMAND) is None


def test_files_of_a_folder_are_named_by_their_paths_in_it(tmp_path: Path) -> None:
    for name in ("a.txt", "deep/er/b.txt", ".hidden/c.txt", "deep/.d.txt", "left/e.txt", "deep/left.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "empty").mkdir()
    (tmp_path / "to").symlink_to(tmp_path / "deep")
    (tmp_path / "b.link").symlink_to(tmp_path / "a.txt")
    (tmp_path / "broken").symlink_to(tmp_path / "nothing")
    every = {"a.txt", "deep/er/b.txt", "left/e.txt", "deep/left.txt", "b.link"}
    assert names_of(tmp_path) == every
    assert names_of(tmp_path, [tmp_path / "left", tmp_path / "deep" / "left.txt"]) == every - {
        "left/e.txt", "deep/left.txt",
    }  # fmt: skip
