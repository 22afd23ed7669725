"""`aligngap inspect`: where every row of a file went, and its first rows as text and as the tokens of a study."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import TINY_STUDY, complaint
from instruct_model import chat_tokenizer, write_instruct

from aligngap.cli import main
from aligngap.execute.inspect import inspect_tokens
from aligngap.study.load import validate


def chat(question: str, answer: str) -> list[dict[str, str]]:
    roles = ("system", "user", "assistant")
    return [{"role": r, "content": c} for r, c in zip(roles, ("be brief", question, answer), strict=True)]


@pytest.fixture
def pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sixty conversations, two rows that say nothing, and one of several rejected responses."""
    monkeypatch.chdir(tmp_path)
    rows: list[dict[str, Any]] = [
        {
            "prompt": f"bake bread {i}",
            "chosen": chat(f"bake bread {i}", "yes"),
            "rejected": chat(f"bake bread {i}", " no"),
        }
        for i in range(60)
    ]
    rows += [{"prompt": "x", "chosen": "a", "rejected": None}, {"chosen": chat("x", "a"), "rejected": chat("y", "b")}]
    rows += [{"prompt": "bake what", "chosen": "yes", "rejected": ["no", "never\n"]}]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def said(words: list[str], capfd: pytest.CaptureFixture[str]) -> str:
    capfd.readouterr()
    assert main(words) == 0
    return "\n".join(line.rstrip() for line in capfd.readouterr().out.splitlines())


def count(text: str, what: str) -> int:
    return int(next(line for line in text.splitlines() if line.strip().startswith(what)).split()[-1])


def test_columns_of_other_names_need_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"q": f"bake bread {i}", "good": "yes", "bad": "no"} for i in range(40)]
    Path("mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    names = ("prompt_field=q", "chosen_field=good", "rejected_field=bad")
    text = said(["inspect", "mine.jsonl", *(w for n in names for w in ("--set", f"task.{n}"))], capfd)
    assert count(text, "kept in train") + count(text, "kept in test") == 40
    for words, line in ((["--set", "seeds=3"], "--set seeds: says nothing"), (["--set", "task.pth=x"], "task.pth")):
        assert main(["inspect", "mine.jsonl", *words]) == 2
        assert line in capfd.readouterr().err


def test_as_text(pairs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text = said(["inspect", str(pairs)], capfd)
    assert count(text, "rows read") == 63
    assert count(text, "laid out as prompt, chosen, rejected") == 62
    assert count(text, "laid out as chosen, rejected") == 1
    assert count(text, "comparisons beyond one a row") == 1
    assert count(text, "kept in train") + count(text, "kept in test") == 62
    assert count(text, "left out: empty prompt or response") == 1
    assert count(text, "left out: prompts differ") == 1
    assert text.count("  prompt   [System: be brief\\n\\nHuman: bake bread ") == 3
    assert "  rejected [ no]" in text
    assert "tokens" not in text


def test_as_the_tokens_of_a_policy(pairs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_instruct(pairs.parent / "model")
    words = ["inspect", str(pairs), "--policy", "model", "--set", "policy.chat=true"]
    text = said([*words, "--set", "limits.prompt_tokens=64", "--set", "limits.response_tokens=32"], capfd)
    assert count(text, "rows read") == 63
    kept = sum(count(text, f"kept in {split}") for split in ("train", "judge", "test"))
    assert kept + sum(int(line.split()[-1]) for line in text.splitlines() if line.startswith("left out")) == 64
    tokens = next(line for line in text.splitlines() if line.strip().startswith("tokens")).split()
    boundary = tokens.index("‖")
    assert tokens[boundary - 1] == "Ċ", "the template's line break is the prompt's last token"
    template = chat_tokenizer()
    assert tokens[boundary + 1 :][: len(template.tokenize("yes"))] == template.tokenize("yes")
    assert "<|im_end|>" in tokens[boundary + 1 :]


def test_as_the_tokens_of_a_study_whose_data_step_makes_them(pairs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    raw = yaml.safe_load(TINY_STUDY) | {"task": {"name": "pairs", "path": str(pairs)}}
    (pairs.parent / "mine.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    text = said(["inspect", str(pairs), "--study", "mine.yaml"], capfd)
    found = inspect_tokens(validate(raw, "mine"))
    assert (found.rows, found.more, sum(found.layouts.values())) == (63, 1, 63)
    assert len(found.kept) + sum(found.dropped.values()) == 64
    row = found.kept[0]
    last = found.tokenizer.convert_ids_to_tokens(list(row["prompt_ids"]))[-1]
    first = found.tokenizer.convert_ids_to_tokens(list(row["chosen_ids"]))[0]
    assert f"{last} ‖ {first}" in text


def test_what_cannot_be_shown_is_refused_in_one_line(pairs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for words, name in (
        (["inspect", "none.jsonl"], "no such file"),
        (["inspect", str(pairs), "--set", "seeds=1"], "--study or --policy"),
        (["inspect", str(pairs), "--policy", "a", "--study", "b"], "leave one of them out"),
        (["inspect", str(pairs), "--policy", "nowhere"], "nowhere"),
        (["inspect", str(pairs), "--study", "opening"], "task.path"),
    ):
        assert main(words) == 2
        assert name in complaint(capfd.readouterr().err)


def test_a_plan_says_what_the_data_hold_and_what_was_not_looked_at(
    pairs: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    raw = yaml.safe_load(TINY_STUDY) | {"task": {"name": "pairs", "path": str(pairs)}, "seeds": 2}
    (pairs.parent / "mine.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    text = said(["plan", "mine.yaml"], capfd)
    assert "63 rows (62 laid out as prompt, chosen, rejected; 1 laid out as chosen, rejected); " in text
    assert text.count("63 rows") == 1, "a file is read once for all seeds"
