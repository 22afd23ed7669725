"""The cost model of docs/scale.md counts what PyTorch counts, and the page's tables are what its script prints."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
scale = pytest.importorskip("scale")

PROMPT, RESPONSE, VOCABULARY = 96, 16, 320


def test_a_pair_of_an_encoder_decoder() -> None:
    """One encoder pass, two decoder passes; attention of a decoder is counted whole by PyTorch, half of it here."""
    config = T5Config(
        vocab_size=VOCABULARY, d_model=64, d_kv=64, num_heads=2, d_ff=128, num_layers=3, num_decoder_layers=3,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False, decoder_start_token_id=0,
    )  # fmt: skip
    model = T5ForConditionalGeneration(config)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        states = model.get_encoder()(input_ids=torch.ones(1, PROMPT, dtype=torch.long)).last_hidden_state
        model(encoder_outputs=(states.expand(2, -1, -1),), decoder_input_ids=torch.ones(2, RESPONSE, dtype=torch.long))
    mine = scale.Model("tiny", 0, True, 3, 64, 128, 128, 128, VOCABULARY, 1, PROMPT, RESPONSE)
    assert mine.forward() == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_a_pair_of_a_decoder() -> None:
    """The prompt once, and both responses going on from its keys and values."""
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=160, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, attn_implementation="eager",
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        cache = model(torch.ones(1, PROMPT, dtype=torch.long), logits_to_keep=1, use_cache=True).past_key_values
        cache.batch_repeat_interleave(2)
        model(torch.ones(2, RESPONSE, dtype=torch.long), past_key_values=cache)
    mine = scale.Model("tiny", 0, False, 3, 64, 64, 32, 160, VOCABULARY, 1, PROMPT, RESPONSE)
    assert mine.forward() == pytest.approx(counter.get_total_flops(), rel=0.03)


def test_the_page_has_what_the_script_prints() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "scale.py")], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() in (ROOT / "docs" / "scale.md").read_text()
