"""Judges that do not learn: a function, a reward model in a folder, a plug-in; and what every kind promises."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import DECODER, word_tokenizer
from transformers import LlamaConfig, LlamaForSequenceClassification

from aligngap import registry
from aligngap.judges.function import FunctionJudge
from aligngap.judges.kinds import RewardModel
from aligngap.pipeline.judges import ReadyJudge
from aligngap.settings import JudgeSpec, Optimization
from aligngap.study.build import build_judge
from aligngap.types import AligngapError, Prompt, Response

RULES = """
def longer(prompts, a, b):
    return [0.5 + 0.5 * ((len(x) > len(y)) - (len(x) < len(y))) for x, y in zip(a, b)]
def nan(prompts, a, b): return [float("nan")] * len(a)
def short(prompts, a, b): return [0.5]
def large(prompts, a, b): return [2.0] * len(a)
def words(prompts, a, b): return ["yes"] * len(a)
value = 3
"""


@pytest.fixture
def rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    sys.modules.pop("my_rules", None)  # another test's
    (tmp_path / "my_rules.py").write_text(RULES)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path / "my_rules.py"
    sys.modules.pop("my_rules", None)


def sides(*texts: str) -> list[Response]:
    return [Response((), True, t) for t in texts]


PROMPTS = [Prompt("0", "river", ()), Prompt("1", "lamp", ())]


def test_a_function_whose_helper_was_edited_is_another_judge(rules: Path) -> None:
    rules.write_text("import helper_of_my_rules\n" + rules.read_text())
    helper = rules.parent / "helper_of_my_rules.py"
    found = []
    for text in ("SIGN = 1\n", "SIGN = -1\n"):
        helper.write_text(text)
        found.append(FunctionJudge(object="my_rules:longer").identity())
    assert found[0] != found[1]


def test_a_function_judges(rules: Path) -> None:
    judge = FunctionJudge(object="my_rules:longer")
    judge.check(rules.parent)
    found = judge.judge(PROMPTS, sides("old river", "a"), sides("old", "a"))
    assert found.hard.tolist() == [1.0, 0.5]
    before = judge.identity()
    rules.write_text(RULES + "\n# another\n")
    assert judge.identity() == before  # the source that this process runs, and not what lies there since
    del sys.modules["my_rules"]
    assert judge.identity() != before


@pytest.mark.parametrize(("name", "says"), [
    ("nan", "nan for pair 0"), ("short", r"shape \(1,\) for 2 pairs"), ("large", "2.0 for pair 0"),
    ("words", "not numbers"), ("value", "is not a function"), ("absent", "cannot be imported"),
])  # fmt: skip
def test_what_is_no_probability_is_one_error(rules: Path, name: str, says: str) -> None:
    with pytest.raises(AligngapError, match=says):
        FunctionJudge(object=f"my_rules:{name}").judge(PROMPTS, sides("a", "b"), sides("c", "d"))


def test_an_unknown_module_is_refused() -> None:
    with pytest.raises(AligngapError, match="no module `not_there_at_all`"):
        FunctionJudge(object="not_there_at_all:f").identity()


@pytest.fixture(scope="module")
def reward_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reward")
    tokenizer = word_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(**DECODER, vocab_size=len(tokenizer), pad_token_id=0, num_labels=1)
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_reward_model_by_its_folder(reward_folder: Path) -> None:
    kind = RewardModel(path=str(reward_folder))
    kind.check(reward_folder)
    judge = kind.open(reward_folder, torch.device("cpu"))
    a, b = sides("old lamp", "bread"), sides("stone", "bread")
    ab, ba = judge.judge(PROMPTS, a, b), judge.judge(PROMPTS, b, a)
    assert (ab.forward == ba.backward).all()
    assert ab.hard[1] == 0.5
    model = LlamaForSequenceClassification.from_pretrained(reward_folder).eval()
    tokenizer = word_tokenizer()
    with torch.no_grad():
        r = [float(model(torch.tensor([[*tokenizer.encode(f"river {t}", add_special_tokens=False), 1]])).logits)
             for t in ("old lamp", "stone")]  # fmt: skip
    assert ab.forward[0] == pytest.approx(1 / (1 + np.exp(r[1] - r[0])), abs=1e-5)


def test_a_folder_that_is_no_reward_model(reward_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(AligngapError, match=r"holds no config\.json"):
        RewardModel(path=str(tmp_path)).check(tmp_path)
    config = LlamaConfig(**DECODER, vocab_size=20, num_labels=2)
    LlamaForSequenceClassification(config).save_pretrained(tmp_path)
    with pytest.raises(AligngapError, match="with 2 outputs"):
        RewardModel(path=str(tmp_path)).check(tmp_path)


HOW = Optimization(steps=1)
NEEDED: dict[str, dict[str, Any]] = {
    "reward-model": {"path": "x"}, "function": {"object": "m:f"},
    "endpoint": {"base_url": "http://127.0.0.1:9/v1", "served_model": "m"},
}  # fmt: skip


def test_every_kind_of_the_shelf_either_learns_or_is_ready() -> None:
    kinds = [k for k in registry.SHELVES["judges"] if k != "oracle"]
    assert len(kinds) == 6
    for name in kinds:
        options = NEEDED.get(name, {})
        learns = name not in NEEDED
        kind = build_judge(JudgeSpec(kind=name, optimization=HOW if learns else None, **options), "golden")
        assert hasattr(kind, "start") == hasattr(kind, "load") == learns
        assert hasattr(kind, "judge") or hasattr(kind, "open") or learns
        with pytest.raises(AligngapError, match=r"golden\.colour: unknown key"):
            build_judge(JudgeSpec(kind=name, optimization=HOW, colour=1, **options), "golden")
        with pytest.raises(AligngapError, match=r"golden\.optimization"):
            build_judge(JudgeSpec(kind=name, optimization=None if learns else HOW, **options), "golden")
    for wrong in ("oracle", "pairwize"):
        with pytest.raises(AligngapError, match=wrong):
            build_judge(JudgeSpec(kind=wrong), "golden")


def test_a_plug_in_is_named_by_a_study(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples" / "aligngap-extras"))
    monkeypatch.setattr(
        registry, "entry_points", lambda group: [EntryPoint("shorter", "aligngap_extras:Shorter", group)]
    )
    judge = build_judge(JudgeSpec(kind="shorter", margin=1), "golden")
    found = judge.judge(PROMPTS, sides("lamp", "old"), sides("a bread", "bold"))
    assert found.hard.tolist() == [1.0, 0.5]
    with pytest.raises(AligngapError, match=r"golden\.margin"):
        build_judge(JudgeSpec(kind="shorter", margin=-1), "golden")


def test_how_an_endpoint_is_asked_is_no_part_of_a_key() -> None:
    from aligngap.pipeline.plan import Pipeline
    from aligngap.study.load import load

    def key(**more: Any) -> str:
        base = load("tabular")
        study = base.model_copy(update={"golden": JudgeSpec(kind="endpoint", **NEEDED["endpoint"], **more)})
        golden = Pipeline(study, 0).golden
        assert isinstance(golden, ReadyJudge)
        return golden.name

    assert key() == key(concurrency=2, key_variable="MY_KEY", price_in=1.0)
    assert key() != key(criterion="Say which is shorter.")
