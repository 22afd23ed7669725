"""The walls of the package that import-linter cannot see: what the trainer's words say, and what an import pulls in.

Who may import whom stands in `pyproject.toml` and is checked by `make check`.
"""

from __future__ import annotations

import ast
import io
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

import aligngap

ROOT = Path(aligngap.__file__).parent
MODULES = {
    ".".join(("aligngap", *p.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): p
    for p in ROOT.rglob("*.py")
}


def code_words(path: Path) -> set[str]:
    """Names, attributes and strings of the code itself: docstrings and comments left out."""
    tree = ast.parse(path.read_text())
    docs = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            docs.add(node.body[0].value)  # type: ignore[attr-defined]
    words = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            words.add(node.id)
        elif isinstance(node, ast.Attribute):
            words.add(node.attr)
        elif isinstance(node, ast.arg | ast.keyword):
            words.add(str(node.arg))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docs:
            words.add(node.value)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            words.add(node.name)
    return words


@pytest.mark.parametrize(
    "module",
    [
        "fit",
        "losses",
        "measurement",
        "pipeline.training",
        "models.batch",
        "models.loading",
        "models.policy",
        "models.backbone",
    ],
)
def test_the_trainer_never_asks_which_arm_it_is_in(module: str) -> None:
    text = " ".join(code_words(MODULES[f"aligngap.{module}"])).lower()
    for word in ("online", "offline", "on_policy", "onpolicy", "arm ", "behavior", "isinstance(stream"):
        assert word not in text


def test_fit_and_training_do_not_look_at_a_streams_class() -> None:
    for module in ("fit", "pipeline.training"):
        for node in ast.walk(ast.parse(MODULES[f"aligngap.{module}"].read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("isinstance", "type"):
                assert "stream" not in ast.dump(node.args[0]).lower()


HEAVY = ("torch", "transformers", "ray", "matplotlib", "scipy", "safetensors")


def modules_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint('\\n'.join(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    return {line.split(".")[0] for line in done.stderr.splitlines()}


def test_importing_aligngap_is_light() -> None:
    """Wall (d)."""
    assert not modules_after("import aligngap") & set(HEAVY)


def test_help_and_lists_are_light() -> None:
    code = """
from aligngap.cli import main
try:
    main(["--help"])
except SystemExit:
    pass
main(["list", "losses"])
main(["list", "studies"])
"""
    assert not modules_after(code) & {"torch", "transformers", "ray", "matplotlib"}


def test_planning_is_light() -> None:
    planned = """
from aligngap.pipeline.plan import expand
from aligngap.study.load import load
expand(load('opening')).steps()
"""
    assert not modules_after(planned) & {"torch", "transformers", "matplotlib", "ray"}


def test_the_reading_side_runs_without_torch() -> None:
    code = "import aligngap.report, aligngap.storage.records, aligngap.hypotheses.opening, aligngap.stats.compare"
    assert not modules_after(code) & {"torch", "transformers", "ray"}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_nothing_is_unpickled(module: str) -> None:
    """No torch.load anywhere; YAML is read safely."""
    tokens = [
        t
        for t in tokenize.generate_tokens(io.StringIO(MODULES[module].read_text()).readline)
        if t.type == tokenize.NAME
    ]
    source = " ".join(t.string for t in tokens)
    assert "torch load" not in source
    assert "read_pickle" not in source
    assert "yaml load" not in source
    assert "allow_pickle" not in source
    called = {n.func for n in ast.walk(ast.parse(MODULES[module].read_text())) if isinstance(n, ast.Call)}
    assert not {f.id for f in called if isinstance(f, ast.Name)} & {"eval", "exec"}  # model.eval() is another thing


TREE = ROOT.parents[1]
CODE = sorted(
    p for room in ("src", "tests", "benchmarks", "docs", "examples") for p in (TREE / room).rglob("*.py")
)  # fmt: skip
UNPICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"}


def calls(tree: ast.AST) -> set[str]:
    return {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}


def keywords(tree: ast.AST) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg:
            found.setdefault(node.arg, set()).add(ast.unparse(node.value))
    return found


@pytest.mark.parametrize("path", CODE, ids=lambda p: str(p.relative_to(TREE)))
def test_nothing_in_the_tree_unpickles_or_runs_what_it_reads(path: Path) -> None:
    """Sources, tests, benchmarks, docs and examples: no pickle, no torch.load, no unsafe YAML, no remote code."""
    tree = ast.parse(path.read_text())
    modules = {a.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    modules |= {n.module.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module}
    assert not modules & UNPICKLES
    assert not calls(tree) & {"torch.load", "yaml.load", "yaml.unsafe_load", "pd.read_pickle", "eval"}
    given = keywords(tree)
    assert "True" not in given.get("allow_pickle", set()) | given.get("trust_remote_code", set())


def test_weights_load_from_safetensors_only(tmp_path: Path) -> None:
    """Whoever loads a model says so: nothing in a folder or on the hub can make it unpickle or import code."""
    from conftest import tiny_policy

    from aligngap.models.loading import LOADING, load_model
    from aligngap.types import AligngapError

    tiny_policy("t5").save(tmp_path)
    load_model(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(AligngapError, match="safetensors"):
        load_model(tmp_path)
    assert LOADING["use_safetensors"] is True
    assert LOADING["trust_remote_code"] is False
    for room in ("models.loading", "models.tokenizer", "models.sampling", "judges.reward_model"):
        for node in ast.walk(ast.parse(MODULES[f"aligngap.{room}"].read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("from_pretrained"):
                told = ast.unparse(node)
                assert "trust_remote_code=False" in told or "**LOADING" in told, told
