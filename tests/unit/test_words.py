"""What docstrings and pages name in back-ticks exists: files, modules, names of the code, keys of a study."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

TREE = Path(__file__).resolve().parents[2]
SOURCES = sorted((TREE / "src").rglob("*.py"))
PAGES = sorted([TREE / "README.md", *(TREE / "docs").rglob("*.md"), *(TREE / "benchmarks").rglob("*.md")])
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*")
FILE = re.compile(r"[\w./-]+\.py")
#: words of other tools and of other people's files, which nothing here can vouch for
FOREIGN = {"PIP_FIND_LINKS", "DPOTrainer", "OnlineDPOTrainer", "torchrun", "torchvision", "torchaudio"}


@cache
def files() -> set[str]:
    """Every Python file of the tree, by each way to end its path."""
    found = set()
    for path in (p for room in ("src", "tests", "benchmarks", "docs", "examples") for p in (TREE / room).rglob("*.py")):
        parts = path.relative_to(TREE).parts
        found |= {"/".join(parts[i:]) for i in range(len(parts))}
    return found


@cache
def known() -> set[str]:
    """Every word that the code, the packaged studies or the declared dependencies use as a name or inside a text."""
    words = {part for file in files() for part in file.removesuffix(".py").split("/")}
    for path in [*SOURCES, *(TREE / "tests").rglob("*.py"), *(TREE / "examples").rglob("*.py")]:
        tree = ast.parse(path.read_text())
        docs = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
                docs.add(node.body[0].value)  # type: ignore[attr-defined]
        for node in ast.walk(tree):
            if isinstance(node, ast.Name):
                words.add(node.id)
            elif isinstance(node, ast.Attribute):
                words.add(node.attr)
            elif isinstance(node, ast.arg | ast.keyword) and node.arg:
                words.add(node.arg)
            elif isinstance(node, ast.FunctionDef | ast.ClassDef):
                words.add(node.name)
            elif isinstance(node, ast.alias):
                words |= set(node.name.split("."))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docs:
                words |= set(re.findall(r"\w+", node.value))
    for path in [
        TREE / "pyproject.toml",
        TREE / "Makefile",
        *(TREE / "src").rglob("*.yaml"),
        *(TREE / "src").rglob("*.j2"),
    ]:
        words |= set(re.findall(r"\w+", path.read_text()))
    return words


def missing(text: str) -> list[str]:
    """The back-ticked names and files of a text that do not exist."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    found = []
    for said in re.findall(r"`([^`\n]+)`", text):
        word = said.removesuffix("()")
        if FILE.fullmatch(word):
            if word.removeprefix("src/aligngap/") not in files() and word not in files():
                found.append(said)
        elif NAME.fullmatch(word) and not set(word.split(".")) <= known() | FOREIGN:
            found.append(said)
    return found


@pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(TREE)))
def test_what_a_page_names_exists(path: Path) -> None:
    assert missing(path.read_text()) == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(TREE / "src")))
def test_what_a_docstring_names_exists(path: Path) -> None:
    tree = ast.parse(path.read_text())
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef
    texts = [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, kinds)]
    assert missing("\n".join(texts)) == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(TREE / "src")))
def test_every_public_name_begins_with_a_sentence(path: Path) -> None:
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            first = (ast.get_docstring(node) or "").split("\n\n")[0]
            assert re.search(r"[.:;)]$", first.strip()), f"{node.name}: {first!r}"
