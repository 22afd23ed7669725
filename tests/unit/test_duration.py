"""What `plan` counts: a model's size is read from wherever the study takes it, and the work grows with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from aligngap.pipeline.duration import SANDBOX, products_of, sizes_at
from aligngap.settings import Limits, ModelSpec
from aligngap.study.load import load

LIMITS = Limits(prompt_tokens=16, response_tokens=16)
LLAMA = {
    "hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 512,
}  # fmt: skip
T5 = {"d_model": 32, "d_ff": 96, "d_kv": 8, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4, "vocab_size": 512}


def test_the_sandbox_is_the_unit() -> None:
    assert products_of(load("opening").policy, LIMITS) == pytest.approx(SANDBOX, rel=0.02)


def test_a_token_meets_every_weight_once() -> None:
    """A multiplication per weight and token: the count is the model's own number of parameters, embeddings aside."""
    config = AutoConfig.for_model("llama", **LLAMA)
    weights = AutoModelForCausalLM.from_config(config).num_parameters(exclude_embeddings=True)
    counted = products_of(ModelSpec(model_type="llama", config=LLAMA), LIMITS)
    assert counted == pytest.approx(32 * (weights - 512 * 32) + 16 * 512 * 32, rel=0.02)


def test_t5_reads_the_prompt_once_and_writes_with_both_attentions() -> None:
    config = AutoConfig.for_model("t5", **T5)
    model = AutoModelForSeq2SeqLM.from_config(config)
    inside = {
        part: sum(p.numel() for n, p in model.named_parameters() if n.startswith(f"{part}.block"))
        for part in ("encoder", "decoder")
    }
    counted = products_of(ModelSpec(model_type="t5", config=T5), LIMITS)
    assert counted == pytest.approx(16 * inside["encoder"] + 16 * inside["decoder"] + 16 * 512 * 32, rel=0.02)


def test_where_sizes_are_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"} | LLAMA))
    scratch = products_of(ModelSpec(model_type="llama", config=LLAMA), LIMITS)
    assert products_of(ModelSpec(path=str(tmp_path)), LIMITS) == pytest.approx(scratch)
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"\0" * 6000)
    assert sizes_at(str(gguf)) == pytest.approx(10_000)
    assert sizes_at("somebody/not-here") is None
    assert sizes_at("package:no_such_package/x.gguf") is None
