"""What is in an artifact's key, and what is not: settings at their default are left out, so that stored work outlives
new settings; a default that changes needs a new `version` of the steps that read it."""

from __future__ import annotations

import importlib
import json
import os
import py_compile
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic_core import PydanticUndefined

from aligngap import registry
from aligngap.execute.worker import make
from aligngap.models.pretrained import check_content, content_of
from aligngap.pipeline.align import Align
from aligngap.pipeline.context import Context, Job
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
from aligngap.source import begin, check_used, source_hash
from aligngap.storage import content
from aligngap.storage.store import Store
from aligngap.study.build import identity_of, open_judge
from aligngap.study.load import load
from aligngap.tasks.pairs import PairsTask
from aligngap.types import AligngapError, RunFailed

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
    for name in ("special_tokens_map.json", "generation_config.json"):
        (folder / name).write_text("{ }")
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
        ("special_tokens_map.json", {"data", "sft", "golden", "online"}),
        ("generation_config.json", {"data", "sft", "golden", "online"}),
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


def test_a_clock_that_goes_back_lets_no_old_hash_stand(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are then of the future: none is remembered, and what is read is what lies there."""
    first = content_of(str(model))
    with monkeypatch.context() as back:
        back.setattr(content.time, "time", lambda: 0.0)
        assert content_of(str(model)) == first
        content.open_hashes().save()
        assert not content.open_hashes().known
        (model / "tokenizer.json").write_text("[]")
        assert content_of(str(model)) != first


def test_a_data_file_of_the_same_size_and_time_is_another(tmp_path: Path) -> None:
    path, row = tmp_path / "pairs.jsonl", '{"prompt": "p", "chosen": "yes", "rejected": "no!"}\n'
    path.write_text(row * 2)
    at, before = path.stat(), PairsTask(path=str(path)).fingerprint()
    path.write_text(row.replace("yes", "no?") * 2)
    os.utime(path, ns=(at.st_atime_ns, at.st_mtime_ns))
    assert path.stat().st_size == at.st_size
    assert PairsTask(path=str(path)).fingerprint() != before


def test_shards_that_an_index_names_outside_of_the_folder_are_in_the_hash(model: Path) -> None:
    shard = model.parent / "shared.safetensors"
    index = model / "model.safetensors.index.json"
    shard.write_bytes(b"one")
    index.write_text(json.dumps({"weight_map": {"a": "../shared.safetensors", "b": "model.safetensors", "c": 1}}))
    before = content_of(str(model)), content_of(str(model), weights=False)
    shard.write_bytes(b"two")
    assert content_of(str(model)) != before[0]
    assert content_of(str(model), weights=False) == before[1]
    index.write_text('{"weight_map": ["a"]}')
    assert content_of(str(model))


def test_a_model_that_changes_under_a_command_is_refused(model: Path) -> None:
    planned_as = content_of(str(model))
    check_content(str(model), planned_as)
    (model / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(RunFailed, match="changed since the command began"):
        check_content(str(model), planned_as)


def begin_anew(*modules: str) -> None:
    """Let this process forget modules and what it knows of their files, as the next command's process does."""
    for name in list(sys.modules):
        if name.partition(".")[0] in modules:
            del sys.modules[name]
    importlib.invalidate_caches()


@pytest.fixture(autouse=True)
def anew() -> Iterator[None]:
    """Each test with modules of its own: what it imported is forgotten, and so is what it used."""
    before = set(sys.modules)
    yield
    mine = ("_mine", "_alone", "_against", "_others", "_later")
    begin_anew(*(name for name in set(sys.modules) - before if name.endswith(mine)))
    begin()


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
    with pytest.raises(AligngapError, match=r"helper.py: has changed since this process loaded it"):
        align("recipe.loss={name: mine, beta: 0.1}")
    begin_anew("losses_of_mine")
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
    found = [source_hash(["loss_alone"])]
    for file in (formula, constant):
        file.write_text(file.read_text() + "# an edit\n")
        found.append(source_hash(["loss_alone"]))
    assert len(set(found)) == 3
    (tmp_path / "unused_alone.py").write_text("# an edit\n")
    assert source_hash(["loss_alone"]) == found[-1]


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
    begin_anew("things_of_mine")
    after = names("golden.kind=mine"), names("task.name=mine")
    assert before[0]["data"] == after[0]["data"]
    assert before[0]["golden"] != after[0]["golden"]
    assert before[1]["data"] != after[1]["data"]


def test_source_that_changes_while_a_command_runs_is_refused_by_whoever_loads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that loads another source than was planned refuses it; one that has loaded the planned one goes on."""
    source = tmp_path / "judge_of_mine.py"
    source.write_text("def prefer(prompts, a, b):\n    return [0.5 for _ in a]\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    spec = JudgeSpec.model_validate({"kind": "function", "object": "judge_of_mine:prefer"})
    planned = identity_of(spec, "golden")
    open_judge(spec, planned, "", tmp_path, None)
    source.write_text("def prefer(prompts, a, b):\n    return [1.0 for _ in range(len(a))]\n")
    check_used()  # what this process runs is what was planned
    begin_anew("judge_of_mine")  # and a worker that begins now is not
    with pytest.raises(AligngapError, match="judge `judge_of_mine:prefer`: has changed while the command ran; repeat"):
        open_judge(spec, planned, "", tmp_path, None)
    open_judge(spec, identity_of(spec, "golden"), "", tmp_path, None)


@pytest.mark.parametrize(("shelf", "name"), [("losses", "Mine"), ("tasks", "Task"), ("judges", "Judge")])
def test_the_source_of_every_kind_of_thing_of_ones_own_is_held_against_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shelf: str, name: str
) -> None:
    source = tmp_path / "held_against.py"
    source.write_text("from lazy_alone import NUMBER\nclass Mine: ...\nclass Task: ...\nclass Judge: ...\n")
    (tmp_path / "lazy_alone.py").write_text("NUMBER = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(registry.SHELVES[shelf], "mine", f"held_against:{name}")
    code = registry.source_of(shelf, "mine")
    registry.use_source(code, (shelf, "mine"))
    begin_anew("held_against", "lazy_alone")
    (tmp_path / "lazy_alone.py").write_text("NUMBER = 1 + 1\n")
    with pytest.raises(AligngapError, match=f"{shelf}: `mine`: its source has changed while the command ran; repeat"):
        registry.use_source(code, (shelf, "mine"))


def test_what_a_step_loads_on_its_way_is_held_against_the_key_when_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A helper that the function imports only when it is called, edited between the two."""
    (tmp_path / "calls_later.py").write_text(
        "def prefer(p, a, b):\n    import called_later\n    return called_later.x\n"
    )
    (tmp_path / "called_later.py").write_text("x = [0.5]\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    spec = JudgeSpec.model_validate({"kind": "function", "object": "calls_later:prefer"})
    judge = open_judge(spec, identity_of(spec, "golden"), "", tmp_path, None)
    check_used()
    (tmp_path / "called_later.py").write_text("x = [0.5 + 0.25]\n")
    assert judge.function()([], [], []) == [0.75]  # type: ignore[attr-defined]
    with pytest.raises(AligngapError, match="has changed while the command ran; repeat it"):
        check_used()


def test_helpers_found_by_the_python_path_and_in_namespaces_are_in_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A judge's helper elsewhere on the path, in a folder without __init__.py, and one that hides Python's own."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b" / "space_of_mine").mkdir(parents=True)
    files = [
        tmp_path / "b" / "elsewhere_alone.py",
        tmp_path / "b" / "space_of_mine" / "rules.py",
        tmp_path / "colorsys.py",
    ]
    (tmp_path / "a" / "asks_others.py").write_text(
        "import elsewhere_alone\nfrom space_of_mine.rules import RULE\nimport colorsys, json, torch\n"
    )
    for file in files:
        file.write_text("RULE = 1\n")
    for folder in (tmp_path / "a", tmp_path / "b", tmp_path):
        monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    found = [source_hash(["asks_others"])]
    for file in files:
        file.write_text("RULE = 2\n")
        found.append(source_hash(["asks_others"]))
    assert len(set(found)) == 4
    assert len({source_hash([f"space_of_mine.{name}"]) for name in ("rules", "other")} - {""}) == 1


def test_what_a_judge_declares_to_read_is_in_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, words = tmp_path / "reads_words.py", tmp_path / "words.txt"
    source.write_text('reads_files = ["words.txt"]\nreads_environment = ["WORDS_OF_MINE"]\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(AligngapError, match=r"reads_words.py: reads_files names words.txt, which is not there"):
        source_hash(["reads_words"])
    words.write_text("good\n")
    found = [source_hash(["reads_words"])]
    words.write_text("better\n")
    found.append(source_hash(["reads_words"]))
    monkeypatch.setenv("WORDS_OF_MINE", "1")
    found.append(source_hash(["reads_words"]))
    assert len(set(found)) == 3
    source.write_text("reads_files = [__file__]\n")
    with pytest.raises(AligngapError, match="must be one plain list of names"):
        source_hash(["reads_words"])


@pytest.mark.parametrize("kind", ["data", "ready-judge"])
def test_a_step_that_was_planned_with_other_source_makes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The worker's own way: the step is opened with the source that lies there now, and its key names another."""
    (tmp_path / "planned_of_mine.py").write_text(
        "from aligngap.tasks.sandbox import Sandbox\nfrom aligngap.judges.function import FunctionJudge\n"
        "class Task(Sandbox): ...\nclass Judge(FunctionJudge): ...\ndef prefer(p, a, b):\n    return [0.5 for _ in a]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(registry.SHELVES["tasks"], "mine", "planned_of_mine:Task")
    monkeypatch.setitem(registry.SHELVES["judges"], "mine", "planned_of_mine:Judge")
    golden = "golden={kind: mine, object: 'planned_of_mine:prefer'}"
    plan = expand(load("opening", ["task={name: mine, train_pairs: 40, test_pairs: 20}", golden]))
    found = next(step for step in plan.steps() if step.kind == kind)
    assert getattr(found, "code", "")
    store = Store(tmp_path / "store")
    store.prepare()
    other = found.model_copy(update={"code": "0" * 20})
    with pytest.raises(AligngapError, match="its source has changed while the command ran; repeat it"):
        other.open(Context(store), Job()) if kind == "ready-judge" else make(other, Context(store))  # type: ignore[attr-defined]
    assert not store.has(other.name)


def test_the_compiled_form_of_other_source_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    source = tmp_path / "stale_helper.py"
    source.write_text("SIGN = +1\n")
    compiled = Path(py_compile.compile(str(source)) or "")
    before, first = source.stat(), source_hash({"stale_helper"})
    source.write_text("SIGN = -1\n")
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(AligngapError, match="is compiled from other source"):
        source_hash({"stale_helper"})
    compiled.unlink()
    assert source_hash({"stale_helper"}) != first


def test_an_unchecked_compiled_form_of_other_source_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    source = tmp_path / "unchecked_helper.py"
    source.write_text("SIGN = +1\n")
    py_compile.compile(str(source), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    assert source_hash({"unchecked_helper"})
    source.write_text("SIGN = -10\n")
    with pytest.raises(AligngapError, match="is compiled from other source"):
        source_hash({"unchecked_helper"})
    py_compile.compile(str(source), invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH)
    source.write_text("SIGN = -100\n")  # Python holds the hash against the source, and compiles it anew
    assert source_hash({"unchecked_helper"})


@pytest.mark.parametrize(
    "text",
    ["reads_files = []\nreads_files += ['w.txt']\n", "reads_files = []\nreads_files.append('w.txt')\n",
     "reads_files, reads_environment = ['w.txt'], []\n"],
)  # fmt: skip
def test_a_declaration_that_is_put_together_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "puts_together.py").write_text(text)
    with pytest.raises(AligngapError, match="reads_files must be one plain list of names"):
        source_hash(["puts_together"])


def test_what_lies_behind_links_to_folders_and_in_archives_is_in_the_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    package, shared, rules = (tmp_path / name for name in ("links_of_mine", "shared", "rules"))
    for folder in (package, shared, rules):
        folder.mkdir()
    (package / "__init__.py").write_text("reads_files = ['../rules']\nimport zipped_of_others\n")
    (package / "sub").symlink_to(shared)
    (shared / "round").symlink_to(package)  # a circle
    (rules / "now").symlink_to(shared)
    archive = tmp_path / "archive.zip"
    monkeypatch.syspath_prepend(str(archive))
    found = []
    for number in range(3):
        (shared / ("core.py", "words.txt")[number % 2]).write_text(f"RULE = {number}\n")
        with zipfile.ZipFile(archive, "w") as written:
            written.writestr("zipped_of_others.py", f"RULE = {max(number, 1)}\n")
        importlib.invalidate_caches()
        found.append(source_hash(["links_of_mine"]))
    before = source_hash(["links_of_mine"])
    with zipfile.ZipFile(archive, "w") as written:
        written.writestr("zipped_of_others.py", "RULE = 9\n")
    assert len({*found, source_hash(["links_of_mine"])}) == 4
    assert before == found[-1]


def test_which_object_of_a_module_a_name_means_is_in_its_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "two_of_mine.py").write_text("class A: ...\nclass B: ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = []
    for name in "ABA":
        monkeypatch.setitem(registry.SHELVES["losses"], "mine", f"two_of_mine:{name}")
        found.append(registry.source_of("losses", "mine"))
    assert found[0] == found[2] != found[1]


def test_a_helper_that_is_loaded_anew_while_another_module_holds_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a notebook: the judge has imported a function, and the helper alone is reloaded after an edit."""
    monkeypatch.syspath_prepend(str(tmp_path))
    helper, judge = tmp_path / "helps_later.py", tmp_path / "judges_later.py"
    helper.write_text("def score():\n    return 1\n")
    judge.write_text("from helps_later import score\n")
    import judges_later  # type: ignore[import-not-found]

    source_hash(["judges_later"])
    begin()
    helper.write_text("def score():\n    return -1\n")
    importlib.reload(sys.modules["helps_later"])
    for _ in range(2):
        with pytest.raises(AligngapError, match=r"judges_later.py: .*helps_later.py was changed and loaded anew"):
            begin()
    assert judges_later.score() == 1
    begin_anew("helps_later", "judges_later")
    begin()
