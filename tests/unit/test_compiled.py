"""`torch.compile` as an option: the same losses to 1e-5, artifacts of its own, and one line where nothing compiles."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from conftest import complaint, pair, prompt, tiny_policy

from aligngap.cli import main
from aligngap.execute.worker import COMPILED as COMPILED_AT
from aligngap.execute.worker import Worker, WorkerSettings, keep_compiled
from aligngap.fit import Trainer, pair_objective
from aligngap.losses import IPO
from aligngap.models.pair_logps import check_start, with_reference
from aligngap.models.policy import Policy
from aligngap.pipeline.align import Align
from aligngap.pipeline.plan import expand
from aligngap.pipeline.sft import Sft
from aligngap.settings import ModelSpec, Optimization
from aligngap.storage.store import Store
from aligngap.study.load import load

COMPILER = shutil.which(os.environ.get("CXX", "g++"))
COMPILED = ModelSpec(compile=True)
#: two batches of other lengths each
BATCHES = [
    [pair(p, (4, 5, 1), (6, 7, 8, 9)) for p in (prompt((4, 5, 6, 1)), prompt((7, 1)), prompt((8, 9, 10, 11, 1)))],
    [pair(p, (4, 1), (6, 7, 8, 9, 5, 1)) for p in (prompt((4, 1)), prompt((9, 7, 1)))],
]


def losses(policy: Policy) -> list[float]:
    """Of four steps."""
    reference = policy.copy("reference")
    check_start(policy, reference, BATCHES[0])
    trainer = Trainer(policy.model, Optimization(steps=4, batch=3, learning_rate=1e-2), seed=0)
    objective = pair_objective(policy, IPO(beta=0.5))
    return [trainer.advance(with_reference(reference, items), objective).loss for items in BATCHES * 2]


@pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")
@pytest.mark.slow
def test_a_compiled_policy_has_the_same_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To 1e-5; what is compiled lies in the store, parts of the model are really compiled, and sampling is plain."""
    monkeypatch.delenv(COMPILED_AT, raising=False)
    keep_compiled(Store(tmp_path))
    plain = tiny_policy("t5")
    told = Policy(
        tiny_policy("t5").model, plain.tokenizer, response_tokens=plain.response_tokens, key="told", spec=COMPILED
    )
    prompts = [p.prompt for p in BATCHES[0]]
    assert told.sample(prompts, 2, 0) == plain.sample(prompts, 2, 0)
    assert told.score(prompts, [p.chosen for p in BATCHES[0]]) == plain.score(prompts, [p.chosen for p in BATCHES[0]])
    assert not list(tmp_path.rglob("*.so"))
    assert losses(told) == pytest.approx(losses(plain), abs=1e-5)
    assert list((tmp_path / "partial" / "compiled").rglob("*.so"))


def test_a_worker_keeps_what_is_compiled_in_its_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = WorkerSettings(str(tmp_path / "store"), str(tmp_path), "cpu", 1, 30.0)
    monkeypatch.setenv(COMPILED_AT, "mine")
    Worker(settings)
    assert os.environ[COMPILED_AT] == "mine"
    monkeypatch.delenv(COMPILED_AT)
    Worker(settings)
    assert os.environ[COMPILED_AT] == str(tmp_path / "store" / "partial" / "compiled")
    monkeypatch.setenv(COMPILED_AT, "")  # what `monkeypatch` undoes


def test_a_compiled_study_has_artifacts_of_its_own() -> None:
    """What is trained has another key; data, and a study that does not ask for it, have the keys that they had."""
    plain, other = (expand(load("opening", sets)).steps() for sets in ([], ["policy.compile=true"]))
    names = {s.name for s in plain}
    assert all((s.name in names) == (s.kind == "data") for s in other)
    assert not any("compile" in str(s.configuration) for s in plain)
    sft = next(s for s in other if isinstance(s, Sft))
    assert sft.configuration["model"]["compile"] is True
    assert any(isinstance(s, Align) for s in other)


def test_without_a_compiler_it_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is computed, with the fallback named."""
    from torch._inductor import config, cpp_builder

    monkeypatch.delenv(COMPILED_AT, raising=False)
    monkeypatch.setenv("CXX", "no-such-compiler")
    cpp_builder.cpp_compiler_search.cache_clear()
    with config.patch({"cpp.cxx": (None, "no-such-compiler")}):
        assert main(["run", "opening", "--compile", "--out", str(tmp_path / "out"), "--workers", "1"]) == 2
    line = complaint(capsys.readouterr().err)
    assert line.startswith("aligngap: model.compile: torch finds no C++ compiler (`no-such-compiler`); ")
    assert line.endswith("leave --compile (`compile: true`) out, and the model runs uncompiled")
    assert not list(tmp_path.rglob("*-*"))
    assert os.environ[COMPILED_AT] == str(tmp_path / "store" / "partial" / "compiled")
