"""The documentation is held against the code: generated tables, studies, Python blocks, links and names."""

from __future__ import annotations

import importlib.util
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, get_args

import pytest
from conftest import TINY_STUDY
from pydantic import BaseModel

from aligngap import registry, settings
from aligngap.study.build import build_loss, build_task
from aligngap.study.load import validate
from aligngap.study.yaml_file import parse_yaml

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXTRAS = ROOT / "examples" / "aligngap-extras"


def blocks(page: Path, kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def make_reference() -> Any:
    spec = importlib.util.spec_from_file_location("make_reference", ROOT / "docs" / "make_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def extras(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The example package as if it were installed: importable, its entry points visible to the registry."""
    monkeypatch.syspath_prepend(str(EXTRAS))
    declared = tomllib.loads((EXTRAS / "pyproject.toml").read_text())["project"]["entry-points"]

    def entry_points(group: str) -> list[EntryPoint]:
        return [EntryPoint(name, value, group) for name, value in declared.get(group, {}).items()]

    monkeypatch.setattr(registry, "entry_points", entry_points)
    yield
    sys.modules.pop("aligngap_extras", None)


@pytest.mark.parametrize("page", [p for p in PAGES if p.parent.name == "docs"], ids=lambda p: p.name)
def test_generated_tables_are_current(page: Path, make_reference: Any) -> None:
    text = page.read_text(encoding="utf-8")
    assert make_reference.render(text) == text, "run `make docs`"


def test_every_generated_table_is_in_a_page(make_reference: Any) -> None:
    found = {name for page in PAGES for _, name, _ in make_reference.BLOCK.findall(page.read_text(encoding="utf-8"))}
    assert found == set(make_reference.MAKERS)


def test_every_section_and_every_key_of_a_study_has_a_meaning(make_reference: Any) -> None:
    sections = {
        c for c in vars(settings).values()
        if isinstance(c, type) and issubclass(c, BaseModel) and c.__module__.startswith(settings.__name__)
    }  # fmt: skip
    assert sections - {settings.Settings} == set(make_reference.SECTIONS)
    tasks = [registry.get("tasks", name) for name in registry.SHELVES["tasks"]]
    for model in [*make_reference.SECTIONS, *tasks]:
        for key, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{key}"


def test_every_study_in_the_pages_is_valid() -> None:
    found = [(page, text) for page in PAGES for text in blocks(page, "yaml study")]
    assert len(found) == 3
    for page, text in found:
        validate(parse_yaml(text, page.name), page.name)


def test_the_study_to_try_a_loss_in_is_the_one_that_the_tests_run() -> None:
    assert blocks(ROOT / "docs" / "adding.md", "yaml study") == [TINY_STUDY.lstrip()]


def test_every_registry_name_is_in_the_pages() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    missing = [
        f"{shelf}: {name}" for shelf, known in registry.SHELVES.items() for name in known if f"`{name}`" not in text
    ]
    assert not missing


@pytest.mark.usefixtures("extras")
def test_python_blocks_run() -> None:
    count = 0
    for page in PAGES:
        names: dict[str, Any] = {}
        for text in blocks(page, "python"):
            exec(compile(text, str(page), "exec"), names)
            count += 1
    assert count == 7


@pytest.mark.usefixtures("extras")
def test_the_example_package_is_usable_by_name() -> None:
    assert "hinge" in registry.names("losses")
    assert build_loss(settings.LossSpec(name="hinge", beta=0.5)).beta == 0.5
    task = build_task({"name": "sorted-letters", "letters": 3, "pairs": 40})
    data = task.load(0)
    assert (len(data.train), len(data.test)) == (32, 8)
    assert task.load(0) == data
    assert task.load(1) != data


def test_a_plug_in_does_not_take_a_built_in_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "entry_points", lambda group: [EntryPoint("ipo", "elsewhere:IPO", group)])
    assert registry.names("losses")["ipo"] == registry.SHELVES["losses"]["ipo"]
    assert registry.every("losses") == [registry.get("losses", name) for name in registry.SHELVES["losses"]]


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"(?<!!)\[[^\]]*\]\(([^)#\s]+)\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_behavior_of_an_arm_has_its_stream_in_the_registry() -> None:
    assert set(get_args(settings.Arm.model_fields["behavior"].annotation)) == set(registry.SHELVES["behaviors"])
