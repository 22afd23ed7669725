"""What is in an artifact's key, and what is not: settings at their default are left out, so that stored work outlives
new settings; a default that changes needs a new `version` of the steps that read it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from pydantic_core import PydanticUndefined

from aligngap import registry
from aligngap.models.pretrained import check_content, content_of
from aligngap.pipeline.align import Align
from aligngap.pipeline.plan import expand
from aligngap.settings import (
    Arm,
    JudgeSpec,
    Limits,
    LossSpec,
    MeasurementSpec,
    ModelSpec,
    Optimization,
    Recipe,
    RolloutSpec,
    TokenizerSpec,
)
from aligngap.storage import content
from aligngap.study.load import load
from aligngap.types import RunFailed

#: The defaults that keys of stored artifacts stand for. Add to it; change nothing in it without raising versions.
DEFAULTS: dict[type, dict[str, Any]] = {
    ModelSpec: {"path": None, "model_type": "t5", "config": {}, "dropout": 0.0},
    TokenizerSpec: {"path": None, "kind": "bpe", "vocabulary": 2048},
    Limits: {"prompt_tokens": 256, "response_tokens": 128},
    Optimization: {
        "batch": 32, "micro_batch": None, "learning_rate": 1e-5, "schedule": "constant", "warmup_steps": 0,
        "optimizer": "adamw", "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "grad_clip": 1.0,
    },
    JudgeSpec: {"kind": "pairwise", "model": None, "pretrain": None, "optimization": None, "labels": None},
    LossSpec: {"name": "ipo"},
    Arm: {
        "judge": None, "sync_every": 1, "soft_labels": False, "of": None, "order": "in-order", "writers": None,
        "mix": None, "share": 0.5, "reuse": 1, "candidates": 2, "mix_reference": 0.0, "temperature": 1.0,
        "unlabelled": 0.0, "lag": 0, "tokens_per_step": None, "drop_stale": None, "buffer": None, "pick": "uniform",
        "freeze_writer_at": None, "retrain": None, "grouped": False, "share_to": None,
    },
    RolloutSpec: {"engine": "transformers"},
    Recipe: {
        "label_smoothing": 0.0, "start": "sft", "on_policy_kl": 0.0, "rollouts": RolloutSpec(),
        "reference": None, "writer_logps": False, "correction": None,
    },
    Align: {
        "label_smoothing": 0.0, "start": None, "start_at": None, "on_policy_kl": 0.0, "rollouts": RolloutSpec(),
        "reference_every": None, "writer_logps": False, "correction": None,
    },
    MeasurementSpec: {
        "checkpoints": [10, 20, 40, 80, 160, 320, 640], "prompts": 512, "kl_prompts": 256, "pairs": 1024,
        "opponents": ["golden_policy", "sft", "chosen"], "split": "train", "best_of_n": 16, "best_of_n_prompts": 256,
        "samples": 8, "batch": 128, "reference_samples": 16, "reference_prompts": 64, "reference_opponents": 8,
        "reference_ratios": 16,
    },
}  # fmt: skip


@pytest.mark.parametrize("settings", DEFAULTS, ids=lambda s: s.__name__)
def test_the_defaults_that_keys_stand_for_are_what_they_were(settings: Any) -> None:
    found = {n: f.get_default(call_default_factory=True) for n, f in settings.model_fields.items()}
    given = {n: v for n, v in found.items() if v is not PydanticUndefined}
    for name, value in DEFAULTS[settings].items():
        assert given[name] == value, name


def align(*overrides: str) -> Align:
    return expand(load("opening", list(overrides))).runs[0].align


def test_a_setting_at_its_default_is_no_part_of_a_key() -> None:
    assert align("recipe.optimization.eps=1e-8", "arms.online.sync_every=1").name == align().name
    assert "eps" not in align().configuration["optimization"]


def test_any_other_value_is() -> None:
    names = {align(o).name for o in ("recipe.optimization.eps=1e-7", "arms.online.sync_every=2", "seeds=[1]")}
    assert len(names | {align().name}) == 4


def test_the_engine_is_part_of_a_key_where_the_policy_writes_and_its_memory_and_tolerance_are_not() -> None:
    def named(*overrides: str) -> dict[str, str]:
        found = load("opening", ["policy.model_type=llama", "policy.config={hidden_size: 32}", *overrides])
        return {r.arm: r.align.name for r in expand(found).runs}

    plain, engine = named(), named("recipe.rollouts.engine=vllm")
    other = named("recipe.rollouts={engine: vllm, cache_gib: 7, tolerance_nats: 0.5}")
    assert other == engine
    assert named("recipe.rollouts.tolerance_nats=0.5") == plain
    assert {arm for arm in plain if plain[arm] != engine[arm]} == {"online", "online-golden"}


# ------------------------------------------------------------------------------------------------ content of files


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files of a model, which planning reads and nothing loads."""
    monkeypatch.setenv("ALIGNGAP_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "t5"}')
    (folder / "tokenizer.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "model.safetensors").write_bytes(bytes(4096))
    (folder / "README.md").write_text("about it")
    return folder


def planned(folder: Path) -> dict[str, str]:
    plan = expand(load("compare", [f"policy.path={folder}", "task={name: sandbox}"]))
    run = next(r for r in plan.runs if r.arm == "online")
    start = plan.start[run.name]
    return {"data": start.data.name, "sft": start.sft.name, "golden": start.golden.name, "online": run.align.name}


@pytest.mark.parametrize(
    ("file", "moved"),
    [
        ("model.safetensors", {"sft", "golden", "online"}),
        ("tokenizer.json", {"data", "sft", "golden", "online"}),
        ("chat_template.jinja", {"data", "sft", "golden", "online"}),
        ("config.json", {"data", "sft", "golden", "online"}),
        ("README.md", set()),
    ],
)
def test_a_key_holds_the_content_of_the_models_files(model: Path, file: str, moved: set[str]) -> None:
    before, content = planned(model), (model / file).read_bytes()
    at = (model / file).stat()
    (model / file).write_bytes(content[:-1] + b"!")  # the same size, and below the same time
    os.utime(model / file, ns=(at.st_atime_ns, at.st_mtime_ns))
    after = planned(model)
    assert {step for step in before if before[step] != after[step]} == moved
    (model / file).write_bytes(content)
    assert planned(model) == before


def test_the_content_of_a_large_folder_is_read_once(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = time.time() - 60
    for file in model.iterdir():
        os.utime(file, (old, old))
    monkeypatch.setattr(content, "SETTLED_SECONDS", -1.0)  # the files were made just now
    first = content_of(str(model))
    content.open_hashes().save()
    monkeypatch.setattr(content, "_open", {})  # as the next command does
    monkeypatch.setattr(content.hashlib, "file_digest", lambda *_: pytest.fail("was read again"))
    assert content_of(str(model)) == first


def test_a_file_that_has_just_changed_is_not_remembered(model: Path) -> None:
    first = content_of(str(model))
    assert not content.open_hashes().known
    (model / "model.safetensors").write_bytes(bytes(4095) + b"1")
    assert content_of(str(model)) != first


def test_a_model_that_changes_under_a_command_is_refused(model: Path) -> None:
    planned_as = content_of(str(model))
    check_content(str(model), planned_as)
    (model / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(RunFailed, match="changed since the command began"):
        check_content(str(model), planned_as)


PLUGIN = """
from dataclasses import dataclass
from helper_of_mine import SCALE
@dataclass(frozen=True)
class Mine:
    beta: float = 0.1
    def __call__(self, x):
        return SCALE * self.beta * x.p_chosen
"""


def test_editing_the_source_of_a_loss_of_ones_own_moves_the_runs_that_use_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "losses_of_mine"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "mine.py").write_text(PLUGIN.replace("helper_of_mine", "losses_of_mine.helper"))
    (package / "helper.py").write_text("SCALE = 1.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(registry.SHELVES["losses"], "mine", "losses_of_mine.mine:Mine")
    before, builtin = align("recipe.loss={name: mine, beta: 0.1}"), align()
    assert builtin.code == ""
    assert before.code
    assert align("recipe.loss={name: mine, beta: 0.1}").name == before.name
    (package / "helper.py").write_text("SCALE = 2.0\n")
    after = align("recipe.loss={name: mine, beta: 0.1}")
    assert after.name != before.name
    assert after.inputs["sft"].name == before.inputs["sft"].name
    assert align().name == builtin.name


def test_the_source_that_a_module_of_ones_own_imports_from_beside_it_is_in_its_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loss in one file, its formula in another, which imports a package: editing either moves the key."""
    (tmp_path / "loss_alone.py").write_text("import json\nimport torch\nfrom formula_alone import SCALE\n")
    formula, constant = tmp_path / "formula_alone.py", tmp_path / "constants_alone" / "numbers.py"
    constant.parent.mkdir()
    (constant.parent / "__init__.py").write_text("")
    formula.write_text("from constants_alone.numbers import TWO\nSCALE = TWO\n")
    constant.write_text("TWO = 2\n")
    (tmp_path / "unused_alone.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = [registry.source_hash(["loss_alone"])]
    for file in (formula, constant):
        file.write_text(file.read_text() + "# an edit\n")
        found.append(registry.source_hash(["loss_alone"]))
    assert len(set(found)) == 3
    (tmp_path / "unused_alone.py").write_text("# an edit\n")
    assert registry.source_hash(["loss_alone"]) == found[-1]


def test_the_source_of_judges_and_tasks_of_ones_own_is_in_their_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "things_of_mine.py"
    source.write_text(
        "from aligngap.tasks.sandbox import Sandbox\nfrom aligngap.judges.kinds import Pairwise\n"
        "class Mine(Sandbox): ...\nclass Judge(Pairwise): ...\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(registry.SHELVES["tasks"], "mine", "things_of_mine:Mine")
    monkeypatch.setitem(registry.SHELVES["judges"], "mine", "things_of_mine:Judge")

    def names(*overrides: str) -> dict[str, str]:
        plan = expand(load("opening", list(overrides)))
        start = next(iter(plan.start.values()))
        return {"data": start.data.name, "golden": start.golden.name, "proxy": start.proxy.name}

    before = names("golden.kind=mine"), names("task.name=mine")
    source.write_text(source.read_text() + "# an edit\n")
    after = names("golden.kind=mine"), names("task.name=mine")
    assert before[0]["data"] == after[0]["data"]
    assert before[0]["golden"] != after[0]["golden"]
    assert before[1]["data"] != after[1]["data"]
