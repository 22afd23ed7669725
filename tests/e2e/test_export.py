"""A policy leaves as an ordinary Hugging Face folder: it loads without aligngap, with the same logits."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from conftest import TINY_STUDY, complaint, tiny_policy
from huggingface_hub import ModelCard
from instruct_model import chat_tokenizer, write_gguf, write_instruct
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from aligngap.cli import main
from aligngap.exchange.export import find_run, write_policy
from aligngap.execute.collect import collect
from aligngap.execute.worker import make
from aligngap.models.policy import Policy
from aligngap.pipeline.align import checkpoint_at
from aligngap.pipeline.context import Context
from aligngap.pipeline.plan import expand
from aligngap.settings import LoraSpec
from aligngap.storage.store import Store
from aligngap.study.load import validate
from aligngap.types import AligngapError


def test_an_exported_policy_is_the_checkpoint_and_names_itself(finished: Path, tmp_path: Path) -> None:
    assert main(["export", str(finished / "out"), "online@4", "--to", str(tmp_path / "policy")]) == 0
    [checkpoint] = [
        p / "checkpoints" / "step-000004"
        for p in (finished / "store").glob("align-*")
        if "online" in run_of(finished, p)
    ]
    ids = torch.tensor([[5, 6, 7, 1]])
    logits = []
    for folder in (checkpoint, tmp_path / "policy"):
        model = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
        with torch.no_grad():
            logits.append(model(input_ids=ids, labels=ids).logits)
    assert torch.equal(*logits)
    text = "w1 w2"
    assert AutoTokenizer.from_pretrained(tmp_path / "policy").encode(text) == AutoTokenizer.from_pretrained(
        checkpoint
    ).encode(text)
    card = ModelCard.load(tmp_path / "policy" / "README.md")
    assert card.data.library_name == "transformers"
    assert "online" in card.data.tags
    records = pd.read_parquet(finished / "out" / "records.parquet")
    row = records[(records["arm"] == "online") & (records["step"] == 4) & (records["opponent"] == "sft")].iloc[0]
    for said in (
        "`tiny`", "name ipo, beta 0.1", "learning_rate 0.003", f"{row['kl_nats']:.3f} ± {row['kl_nats_se']:.3f}",
        f"{row['win_rate']:.3f} ± {row['win_rate_se']:.3f}", "Licence", "sandbox", "commit",
    ):  # fmt: skip
        assert said in card.text, said


def run_of(folder: Path, artifact: Path) -> str:
    """The names of the runs whose policy an artifact is."""
    import json

    about = json.loads((folder / "out" / "provenance.json").read_text())
    return " ".join(name for name, run in about["runs"].items() if run["align"] == artifact.name)


def test_the_last_checkpoint_is_the_default(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert main(["export", str(finished / "out"), "offline", "--to", str(tmp_path / "empty")]) == 0
    assert "step 8" in (tmp_path / "empty" / "README.md").read_text()
    assert not list(tmp_path.glob(".*"))


def test_the_card_says_that_the_folder_was_edited(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished / "out", out)
    (out / "study.yaml").write_text((out / "study.yaml").read_text().replace("question: ", "question: not ", 1))
    words = ["--store", str(finished / "store"), "--to", str(tmp_path / "to")]
    assert main(["export", str(out), "online", *words]) == 0
    assert "Doubt: study.yaml was changed after aligngap wrote it" in (tmp_path / "to" / "README.md").read_text()


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["onlin", "--to", "x"], "onlin"),
        (["seed=0", "--to", "x"], "2 runs"),
        (["online@5", "--to", "x"], "4, 8"),
        (["online@last", "--to", "x"], "4, 8"),
        (["online", "--to", "full"], "full"),
        (["online", "--to", "x", "--store", "elsewhere"], "--store"),
    ],
)
def test_what_cannot_be_exported(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    words: list[str], name: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "kept").write_text("mine")
    assert main(["export", str(finished / "out"), *words]) == 2
    assert name in complaint(capsys.readouterr().err)
    assert not (tmp_path / "x").exists()
    assert (tmp_path / "full" / "kept").read_text() == "mine"


def test_a_folder_without_a_study(tmp_path: Path, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(finished / "out" / "records.parquet", tmp_path)
    assert main(["export", str(tmp_path), "online", "--to", str(tmp_path / "x")]) == 2
    assert "provenance.json" in capsys.readouterr().err


def test_an_adapter_is_added_to_the_weights_it_started_from(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    store, spec = Store(tmp_path / "store"), LoraSpec(r=2, alpha=4)
    base = tiny_policy("t5", response_tokens=6)
    store.prepare()
    base.save(store.partial("sft-x") / "policy")
    store.finish("sft-x", {})
    tuned = base.adapted(spec, "tuned", seed=3)
    with torch.no_grad():
        for parameter in tuned.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    tuned.save(tmp_path / "checkpoint")
    manifest = {"configuration": {"optimization": {"lora": {"r": 2, "alpha": 4}}}, "inputs": {"sft": "sft-x"}}
    write_policy(tmp_path / "checkpoint", tmp_path / "out", store, manifest)
    items = [(4, 5, 6, 1)], [(7, 8, 1)]
    whole = Policy.load(tmp_path / "out", response_tokens=6)
    assert whole.logps_of(*items).item() == pytest.approx(tuned.logps_of(*items).item(), abs=1e-4)
    assert whole.logps_of(*items).item() != pytest.approx(base.logps_of(*items).item(), abs=1e-2)


def test_an_adapter_on_a_gguf_model_leaves_as_an_ordinary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A study that trains a low-rank adapter on a model out of a GGUF file, up to the folder that others load."""
    peft = pytest.importorskip("peft")
    monkeypatch.setenv("ALIGNGAP_CACHE", str(tmp_path / "cache"))
    write_gguf(tmp_path / "tiny.gguf", write_instruct(tmp_path / "instruct"))
    raw = yaml.safe_load(TINY_STUDY)
    del raw["tokenizer"]
    raw["task"] |= {"train_pairs": 60, "test_pairs": 20}
    raw["policy"] = {"path": str(tmp_path / "tiny.gguf"), "chat": True}
    raw["limits"] = {"prompt_tokens": 80, "response_tokens": 48}
    for part in (raw["sft"], raw["golden"]["optimization"], raw["proxy"]["optimization"]):
        part |= {"steps": 1, "batch": 2}
    raw["recipe"]["optimization"] = {"steps": 2, "batch": 4, "learning_rate": 0.05, "lora": {"r": 2, "alpha": 4}}
    raw["measurement"] |= {
        "checkpoints": [1], "prompts": 4, "kl_prompts": 2, "pairs": 4, "samples": 1, "opponents": ["sft"],
        "best_of_n": 0,
    }  # fmt: skip
    made, store, out = expand(validate(raw, "tiny")), Store(tmp_path / "store"), tmp_path / "out"
    store.prepare()
    ctx = Context(store)
    for step in made.steps():
        make(step, ctx)
    out.mkdir()
    assert collect(made, store, out) == 2
    assert main(["export", str(out), "online", "--to", str(tmp_path / "policy")]) == 0

    align = made.runs[0].align
    checkpoint, sft = ctx.store.path(align.name) / checkpoint_at(2), store.path(align.sft.name) / "policy"
    base = AutoModelForCausalLM.from_pretrained(sft).eval()
    ids = torch.arange(3, 40).unsqueeze(0)
    with torch.no_grad():
        before = base(input_ids=ids).logits
        tuned = peft.PeftModel.from_pretrained(base, checkpoint).eval()(input_ids=ids).logits
        alone = AutoModelForCausalLM.from_pretrained(tmp_path / "policy").eval()(input_ids=ids).logits
    torch.testing.assert_close(alone, tuned, atol=1e-5, rtol=1e-5)
    assert (tuned - before).abs().max() > 1e-3
    said = [{"role": "user", "content": "how do I bake"}]
    tokenizers = AutoTokenizer.from_pretrained(tmp_path / "policy"), chat_tokenizer()
    ours, theirs = (t.apply_chat_template(said, add_generation_prompt=True, return_dict=False) for t in tokenizers)
    assert ours == theirs
    card = ModelCard.load(tmp_path / "policy" / "README.md").text
    records = pd.read_parquet(out / "records.parquet")
    row = records[(records["arm"] == "online") & (records["step"] == 2)].iloc[0]
    for words in (
        "`tiny`", "`online`", "name ipo", "tiny.gguf", f"{row['kl_nats']:.3f} ± ", f"{row['win_rate']:.3f} ± ", "lora",
    ):  # fmt: skip
        assert words in card, words


def test_a_run_is_named_by_words_that_only_it_has() -> None:
    runs = ["online beta=0.1 seed=0", "online beta=0.1 seed=1", "offline beta=0.1 seed=0"]
    assert find_run("online seed=1", runs) == runs[1]
    assert find_run(runs[0], runs) == runs[0]
    for wrong in ("online", "onlin", ""):
        with pytest.raises(AligngapError):
            find_run(wrong, runs)
