"""`aligngap compare`, the real command: a saved policy and a preference file in, a recommendation out; and bad input.

The policies are a tiny T5 and a tiny Llama, saved as any Hugging Face folder with a tokenizer of their own; the pairs
are the sandbox's, as text in a file.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import COMMAND, SPECS
from safetensors.torch import load_file
from test_cli import refused
from test_resume import kill_when
from transformers import BertConfig, BertForMaskedLM
from warm import Warm

from aligngap.cli import main
from aligngap.models.loading import build_model
from aligngap.models.policy import Policy
from aligngap.models.tokenizer import make_tokenizer
from aligngap.settings import TokenizerSpec
from aligngap.study.build import build_task

__all__ = ["refused"]  # a fixture

SHORT = (
    "seeds=1", "limits={prompt_tokens: 16, response_tokens: 12}", "golden.optimization={steps: 4, batch: 8}",
    "proxy.optimization={steps: 4, batch: 8}", "recipe.optimization={steps: 4, batch: 4, learning_rate: 3.0e-3}",
    "sweep=[]", "measurement={checkpoints: [1, 2], prompts: 16, kl_prompts: 8, pairs: 16, samples: 1, "
    "opponents: [sft], split: test, best_of_n: 0}",
)  # fmt: skip
STEPS, BATCH = 4, 4


def bring(folder: Path, family: str) -> None:
    """A policy and a preference file as somebody might bring them."""
    data = build_task({"name": "sandbox", "train_pairs": 120, "test_pairs": 20, "distinct_prompts": 60}).load(0)
    rows = [{"prompt": c.prompt, "chosen": c.chosen, "rejected": c.rejected} for c in (*data.train, *data.test)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    tokenizer = make_tokenizer(TokenizerSpec(kind="word", vocabulary=300), data)
    Policy(build_model(SPECS[family], tokenizer, 0), tokenizer, response_tokens=12).save(folder / "policy")


def words(*more: str) -> list[str]:
    found = [COMMAND, "compare", "--policy", "policy", "--task", "pairs.jsonl", "--out", "out", "--device", "cpu"]
    return [*found, "--workers", "1", *more, *(w for s in SHORT for w in ("--set", s))]


@pytest.fixture(scope="module", params=["t5", "llama"])
def compared(request: pytest.FixtureRequest, warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder in which the command has run to its end, and what it printed; the T5's was killed on the way."""
    folder = tmp_path_factory.mktemp(f"compare-{request.param}")
    bring(folder, request.param)
    if request.param == "t5":
        partial = folder / "store" / "partial"
        kill_when(words("--save-seconds", "0.01"), folder, lambda: any(partial.glob("align-*/state-*")))
    code, out, said = warm.run(words()[1:], folder)
    assert code == 0, said[-2000:]
    assert "Traceback" not in said
    return folder, out


def test_the_recommendation_comes_first_everywhere(
    compared: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, said = compared
    first = said.splitlines()[0]
    assert first.startswith(("Offline is enough: ", "Train ", "Cannot tell yet: "))
    summary = (folder / "out" / "summary.md").read_text()
    assert summary.splitlines()[2] == f"**{first}**"
    assert said.splitlines()[-1].startswith("next, for ")
    assert "aligngap " in said.splitlines()[-1]
    page = folder / "out" / "report.html"
    assert first.split(":")[0] in page.read_text().split("<h1")[1].split("</h1>")[0]
    page.unlink()
    assert main(["report", str(folder / "out")]) == 0
    text = page.read_text()
    assert 'id="options"' in text
    assert text.index('<details class="paper">') < text.index('id="claims"') < text.index('id="why"')
    capsys.readouterr()
    assert main(["show", str(folder / "out")]) == 0
    assert first in capsys.readouterr().out


def test_what_online_generated_is_counted(compared: tuple[Path, str]) -> None:
    costs = json.loads((compared[0] / "out" / "provenance.json").read_text())["costs"]
    by_arm = {c["arm"]: c for c in costs.values()}
    assert set(by_arm) == {"online", "semi-8", "semi-32", "offline"}
    assert (by_arm["offline"]["responses"], by_arm["offline"]["tokens"]) == (0, 0)
    assert by_arm["online"]["responses"] == 2 * STEPS * BATCH
    assert by_arm["semi-8"]["responses"] == 2 * 8 * BATCH  # written ahead, though the run is shorter
    for arm in ("online", "semi-8", "semi-32"):
        assert 2 * STEPS * BATCH <= by_arm[arm]["tokens"] <= 2 * STEPS * BATCH * 12
        assert by_arm[arm]["seconds"] > 0


def test_the_provenance_says_where_every_row_went(compared: tuple[Path, str]) -> None:
    told = json.loads((compared[0] / "out" / "provenance.json").read_text())["pipeline"]
    read, kept, dropped = (
        next(row["value"] for row in told if (row["part"], row["what"]) == ("data", what))
        for what in ("read", "rows", "dropped")
    )
    assert read["rows"] == sum(read["layouts"].values()) > 0
    assert read["rows"] + read["more"] == sum(kept.values()) + sum(dropped.values())


def test_no_prompt_is_judged_from_and_trained_on(compared: tuple[Path, str]) -> None:
    folder = compared[0]
    [data] = folder.glob("store/data-*/data.parquet")
    rows = pd.read_parquet(data)
    parts = {split: set(rows["prompt_id"][rows["split"] == split]) for split in ("train", "judge", "test")}
    assert all(len(p) > 4 for p in parts.values())
    assert not parts["train"] & parts["judge"]
    assert not parts["test"] & (parts["train"] | parts["judge"])
    recordings = list(folder.glob("store/align-*/recording.parquet"))
    assert len(recordings) == 4
    for recording in recordings:
        assert set(pd.read_parquet(recording)["prompt_id"]) <= parts["train"]
    assert set(pd.read_parquet(folder / "out" / "per_prompt.parquet")["prompt_id"]) <= parts["test"]


def test_the_policy_is_taken_as_it_is(compared: tuple[Path, str]) -> None:
    folder = compared[0]
    [stored] = folder.glob("store/sft-*/policy/model.safetensors")
    ours, theirs = load_file(stored), load_file(folder / "policy" / "model.safetensors")
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


# -------------------------------------------------------------------------------------------------------- bad input


@pytest.fixture(scope="module")
def brought(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("brought")
    bring(folder, "t5")
    lines = (folder / "pairs.jsonl").read_text().splitlines()
    (folder / "three.jsonl").write_text("\n".join(lines[:3]) + "\n")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertForMaskedLM(BertConfig(vocab_size=40, **sizes)).save_pretrained(folder / "bert")
    return folder


@pytest.mark.parametrize(
    ("policy", "task", "names"),
    [
        ("policy", "three.jsonl", ["three.jsonl", "3 usable prompts", "at least 40"]),
        ("policy", "missing.jsonl", ["missing.jsonl", "no such file"]),
        ("no/such-model", "pairs.jsonl", ["no/such-model", "cannot be loaded"]),
        ("bert", "pairs.jsonl", ["bert", "BertForMaskedLM", "ForCausalLM"]),
    ],
)
def test_bad_input_is_one_line_before_anything_is_written(
    refused: Callable[..., str], brought: Path, policy: str, task: str, names: list[str]
) -> None:
    where = policy if policy.startswith("no/") else str(brought / policy)
    refused(["compare", "--policy", where, "--task", str(brought / task), "--out", "out", "--device", "cpu"], *names)


def test_wrong_arguments(refused: Callable[..., str], brought: Path) -> None:
    known = ["--policy", str(brought / "policy"), "--task", str(brought / "pairs.jsonl")]
    refused(["compare", "--policy", "x"], "--task")
    refused(["compare", *known, "--budget", "huge"], "--budget", "huge")
    refused(["compare", *known, "--seeds", "0"], "seeds")
    refused(["compare", *known, "--set", "decision_margin=2"], "decision_margin")
    refused(["compare", *known, "--set", "judge_share=1"], "judge_share")


def test_a_plan_names_every_arm_and_writes_nothing(
    brought: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    known = ["--policy", str(brought / "policy"), "--task", str(brought / "pairs.jsonl")]
    for budget in ("small", "medium"):
        assert main(["compare", *known, "--budget", budget, "--plan"]) == 0
        said = capsys.readouterr().out
        for arm in ("online", "semi-8", "semi-32", "offline"):
            assert f"{arm} beta" in said
    assert not list(tmp_path.iterdir())
