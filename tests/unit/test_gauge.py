"""Checkpoints of other trainers measured from Python: KL against what is enumerated, models in memory, rows, judges."""

from __future__ import annotations

import copy
import itertools
import json
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import WORDS, every_response, tiny_policy

import aligngap
from aligngap.instrument import Gauge, add_rows
from aligngap.models.batch import collate
from aligngap.models.checkpoint import base_of
from aligngap.models.policy import Policy
from aligngap.storage.records import read_folder
from aligngap.types import AligngapError, Judgement, Prompt, Response

PROMPTS = [f"{a} {b}" for a, b in itertools.product(WORDS[:8], WORDS[8:12])]
FEW = WORDS[:2]  # a vocabulary of six tokens, so that every response can be written down


def saved(policy: Policy, folder: Path) -> str:
    policy.save(folder)
    return str(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A reference and a policy of the same vocabulary, as folders of `save_pretrained`."""
    place = tmp_path_factory.mktemp("folders")
    return saved(tiny_policy("llama", seed=0), place / "sft"), saved(tiny_policy("llama", seed=1), place / "dpo")


def expected_kl(policy: Policy, reference: Policy, prompt: tuple[int, ...], tokens: int) -> tuple[float, float]:
    """(KL of whole responses by enumeration, the mean under the policy of what a measurement sums along a sample)."""
    size = policy.model.config.vocab_size
    rows = every_response(policy.end_ids, size, tokens)
    batch = collate([prompt], rows, [0] * len(rows))
    p, q = (m.logps(batch).double() for m in (policy, reference))
    whole = float((p.exp() * (p - q)).sum())
    from aligngap.measurement import score

    prompts = [Prompt("p", "p", prompt)] * len(rows)
    along = score(policy, reference, prompts, [Response(r, r[-1] in policy.end_ids, "") for r in rows]).kl
    return whole, float((p.exp().numpy() * along).sum())


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_the_kl_of_a_checkpoint_is_the_enumerated_one(family: str, tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"words": FEW, "response_tokens": 3}
    for name, seed in (("sft", 0), ("dpo", 1)):
        saved(tiny_policy(family, seed=seed, spread=3.0, **sizes), tmp_path / name)
    gauge = Gauge(tmp_path / "sft", [" ".join(p) for p in itertools.product(FEW, FEW)], response_tokens=3)
    from aligngap.models.checkpoint import open_policy

    policy = open_policy(str(tmp_path / "dpo"), gauge.reference)
    for prompt in gauge.prompts:
        with torch.no_grad():
            whole, along = expected_kl(policy, gauge.reference, prompt.ids, 3)
        assert whole > 0.05
        assert along == pytest.approx(whole, abs=1e-6)
    reading = gauge.read(tmp_path / "dpo")
    again = gauge.read(policy)
    np.testing.assert_array_equal(reading.kl, again.kl)
    own = [
        float(gauge_kl(policy, gauge.reference, p.ids, r.ids))
        for p, r in zip(gauge.prompts, reading.responses, strict=True)
    ]
    np.testing.assert_allclose(reading.kl, own, atol=1e-6)


def gauge_kl(policy: Policy, reference: Policy, prompt: tuple[int, ...], response: tuple[int, ...]) -> float:
    """KL along one response from each model's plain forward pass, position by position."""
    total = 0.0
    with torch.no_grad():
        for t in range(len(response)):
            rows = []
            for model in (policy.model, reference.model):
                if policy.encoder_decoder:
                    start = model.config.decoder_start_token_id
                    given = {"input_ids": [list(prompt)], "decoder_input_ids": [[start, *response[:t]]]}
                else:
                    given = {"input_ids": [[*prompt, *response[:t]]]}
                logits = model(**{k: torch.tensor(v) for k, v in given.items()}).logits[0, -1]
                rows.append(torch.log_softmax(logits.double(), -1))
            total += float((rows[0].exp() * (rows[0] - rows[1])).sum())
    return total


def test_kl_is_had_in_one_call(folders: tuple[str, str]) -> None:
    found = aligngap.kl(folders[1], folders[0], PROMPTS, response_tokens=6)
    assert found.reverse.n == len(PROMPTS)
    assert found.forward.n == len(PROMPTS) // 2
    assert found.reverse.value > 5 * found.reverse.se > 0
    assert 0 < found.ended <= 1
    same = aligngap.kl(folders[0], folders[0], PROMPTS, response_tokens=6)
    assert same.reverse.value == 0.0
    assert same.forward.value == 0.0


def state_of(model: torch.nn.Module) -> dict[str, Any]:
    return {
        "weights": {n: p.clone() for n, p in model.named_parameters()},
        "trained": {n: p.requires_grad for n, p in model.named_parameters()},
        "training": [m.training for m in model.modules()],
        "attention": model.config._attn_implementation,
        "generation": model.generation_config.to_dict(),
        "hooks": [len(m._forward_hooks) for m in model.modules()],
    }


def test_measure_refuses_what_is_not_in_files(folders: tuple[str, str], tmp_path: Path) -> None:
    model: Any = torch.nn.Linear(1, 1)
    for policies, said in [
        ({"p": model}, "policies: p: Linear is no path"),
        ({"p": [folders[1], model]}, "policies: p: Linear is no path"),
        ({"p": []}, "policies: p has no checkpoint"), ({}, "policies: none is named"),
    ]:  # fmt: skip
        with pytest.raises(AligngapError, match=said):
            aligngap.measure(folders[0], policies, PROMPTS, out=tmp_path / "out")
    with pytest.raises(AligngapError, match=r"reference: Linear is no path; .* or give it to aligngap\.Gauge"):
        aligngap.measure(model, {"p": folders[1]}, PROMPTS, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_in_memory_is_left_as_it_is(folders: tuple[str, str]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folders[1]).train()
    model.get_input_embeddings().register_forward_hook(lambda *given: None)
    tokenizer = AutoTokenizer.from_pretrained(folders[0])
    before, random = state_of(model), torch.get_rng_state()
    gauge = Gauge(
        AutoModelForCausalLM.from_pretrained(folders[0]), PROMPTS, tokenizer=tokenizer, response_tokens=6, chat=False
    )
    found = gauge.read(model)
    after = state_of(model)
    assert torch.equal(torch.get_rng_state(), random)
    for name, weight in before.pop("weights").items():
        assert torch.equal(weight, after["weights"][name])
    after.pop("weights")
    assert before == after
    np.testing.assert_array_equal(found.kl, Gauge(folders[0], PROMPTS, response_tokens=6).read(folders[1]).kl)
    half = gauge.read(copy.deepcopy(model).to(torch.bfloat16))
    assert half.kl.mean() == pytest.approx(found.kl.mean(), rel=0.2)


def test_an_adapter_is_added_to_its_base_and_taken_off_again(folders: tuple[str, str], tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folders[0])
    torch.manual_seed(0)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.5)
    adapted.save_pretrained(str(tmp_path / "adapter"))
    gauge = Gauge(folders[0], PROMPTS, response_tokens=6)
    by_folder = gauge.read(tmp_path / "adapter").kl
    assert by_folder.mean() > 0.1
    np.testing.assert_allclose(gauge.read(adapted).kl, by_folder, rtol=1e-3, atol=1e-4)
    assert gauge.read(base_of(adapted)).kl.max() < 1e-6
    tokenizer = AutoTokenizer.from_pretrained(folders[0])
    alone = Gauge(base_of(adapted), PROMPTS, tokenizer=tokenizer, response_tokens=6, chat=False)
    np.testing.assert_allclose(alone.read(adapted).kl, by_folder, rtol=1e-3, atol=1e-4)
    (tmp_path / "adapter" / "adapter_config.json").write_text(
        (tmp_path / "adapter" / "adapter_config.json").read_text().replace(folders[0], "/nowhere/sft")
    )
    with pytest.raises(AligngapError, match="its base model /nowhere/sft is not here; say where it lies with --base"):
        gauge.read(tmp_path / "adapter")
    np.testing.assert_array_equal(gauge.read(tmp_path / "adapter", base=folders[0]).kl, by_folder)


class Longer:
    """A judge that prefers the longer response."""

    key = "longer"

    def judge(self, prompts: Sequence[Prompt], a: Sequence[Response], b: Sequence[Response]) -> Judgement:
        ahead = np.array([float(np.sign(len(x.ids) - len(y.ids)) + 1) / 2 for x, y in zip(a, b, strict=True)])
        return Judgement(ahead, 1 - ahead)


def test_rows_are_those_of_a_study_and_are_added_to_a_folder(folders: tuple[str, str], tmp_path: Path) -> None:
    gauge = Gauge(folders[0], PROMPTS, [Longer()], response_tokens=6)
    start, measured = gauge.measure_reference(), gauge.measure(folders[1])
    row = measured.rows[0]
    assert row["opponent"] == "sft"
    assert row["win_rate"] == pytest.approx(np.mean([p["win"] for p in measured.per_prompt]))
    assert start.rows[0]["win_rate"] == 0.5
    assert start.rows[0]["kl_nats"] == 0.0
    for step, found in ((0, start), (10, measured), (10, measured)):
        add_rows(tmp_path, found, study="mine", arm="dpo", seed=0, step=step)
    tables = read_folder(tmp_path)
    assert tables.records["step"].tolist() == [0, 10]
    assert tables.records["run"].unique().tolist() == ["dpo seed=0"]
    assert len(tables.per_prompt) == 2 * len(PROMPTS)
    assert tables.records["win_rate"].tolist() == [0.5, row["win_rate"]]


def test_what_cannot_be_measured_is_one_line(folders: tuple[str, str], tmp_path: Path) -> None:
    gauge = Gauge(folders[0], PROMPTS, response_tokens=6)
    other = saved(tiny_policy("llama", words=WORDS[:5]), tmp_path / "other")
    with pytest.raises(AligngapError, match="its tokenizer is not that of the reference"):
        gauge.kl(other)
    resized = tiny_policy("llama", seed=3)
    resized.model.resize_token_embeddings(32)
    resized.model.save_pretrained(str(tmp_path / "resized"))
    with pytest.raises(AligngapError, match="its output is over 32 tokens and the reference's over 20"):
        gauge.kl(tmp_path / "resized")
    with pytest.raises(AligngapError, match="is an encoder-decoder, and the reference a decoder"):
        gauge.kl(saved(tiny_policy("t5"), tmp_path / "t5"))
    with pytest.raises(AligngapError, match="1 usable prompts; at least 2 are needed"):
        Gauge(folders[0], ["river lamp", "river lamp"])
    with pytest.raises(AligngapError, match="needs `tokenizer` beside it"):
        Gauge(resized.model, PROMPTS)


def test_the_python_of_the_page_runs(
    folders: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "measure.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("ALIGNGAP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("aligngap.instrument.survey.SETTLED_SECONDS", 0.0)
    shutil.copytree(folders[0], "sft")
    for step in (100, 200, 300, 400):
        shutil.copytree(folders[1], f"runs/dpo/checkpoint-{step}")
    Path("prompts.jsonl").write_text("".join(json.dumps({"prompt": p}) + "\n" for p in PROMPTS[:6]))
    monkeypatch.delitem(sys.modules, "my_rules", raising=False)  # another test's
    Path("my_rules.py").write_text("def prefer(prompts, a, b):\n    return [0.75 for _ in prompts]\n")
    names: dict[str, Any] = {}
    blocks = re.findall(r"^```py\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    for text in blocks:
        exec(compile(text, "measure.md", "exec"), names)
    assert len(blocks) == 3
    assert names["found"].reverse.n == 6
    assert names["tables"].records["step"].tolist() == [0, 100, 200, 300, 400]
    assert "0.5" in capsys.readouterr().out  # a judge that likes whatever stands first says tie
    assert Path("out/measured/report.html").is_file()
