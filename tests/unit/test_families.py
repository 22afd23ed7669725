"""One check for each family of models: read in batches, sampled, and at its reference before the first step.

Sizes are tiny and weights random; what is held against our own is the family's own forward pass on one row at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from conftest import pair, prompt, word_tokenizer
from scipy import stats
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from aligngap.models.backbone import alike
from aligngap.models.batch import collate
from aligngap.models.loading import TESTED, set_dropout
from aligngap.models.pair_logps import check_start
from aligngap.models.policy import Policy, try_family
from aligngap.models.sampling import Share, generate
from aligngap.settings import ModelSpec
from aligngap.types import AligngapError

SIZE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
HEADS = {**SIZE, "num_key_value_heads": 1, "head_dim": 8}
LINEAR = {
    "num_experts": 0, "layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2,
    "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip
MAMBA = {"mamba_n_heads": 4, "mamba_d_state": 8}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": HEADS, "mistral": {**HEADS, "sliding_window": 4}, "gemma2": {**HEADS, "sliding_window": 4},
    "gemma3_text": {**HEADS, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    "qwen2": {**SIZE, "num_key_value_heads": 1}, "qwen3": HEADS, "phi3": {**SIZE, "num_key_value_heads": 1},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}, "gpt_neox": SIZE,
    "gpt_neo": {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]],
                "window_size": 4},
    "opt": {"hidden_size": 16, "ffn_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
            "word_embed_proj_dim": 16, "layerdrop": 0.5},
    "bloom": {"hidden_size": 16, "n_layer": 2, "n_head": 2}, "falcon": {**SIZE, "alibi": True},
    "mpt": {"d_model": 16, "n_layers": 2, "n_heads": 2, "max_seq_len": 64}, "phi": SIZE,
    "granite": {**SIZE, "num_key_value_heads": 1, "logits_scaling": 8.0}, "cohere": {**SIZE, "num_key_value_heads": 1},
    "olmo2": SIZE, "mixtral": {**SIZE, "num_key_value_heads": 1, "num_local_experts": 2},
    "llama4_text": {**HEADS, "num_local_experts": 2, "intermediate_size_mlp": 32, "attention_chunk_size": 4},
    "smollm3": {**SIZE, "num_key_value_heads": 1}, "seed_oss": HEADS,
    "gptj": {"n_embd": 16, "n_layer": 2, "n_head": 2, "rotary_dim": 4},
    "mamba": {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4},
    "lfm2": {**SIZE, "num_key_value_heads": 1, "layer_types": ["conv", "full_attention"]},
    "qwen3_next": {**HEADS, **LINEAR},
    "granitemoehybrid": {**SIZE, **MAMBA, "num_key_value_heads": 1, "layer_types": ["mamba", "attention"],
                         "mamba_d_head": 8, "shared_intermediate_size": 32, "num_local_experts": 0},
    "falcon_h1": {**SIZE, **MAMBA, "num_key_value_heads": 1, "mamba_d_ssm": 32, "mamba_d_head": 8},
    "recurrent_gemma": {**SIZE, "num_key_value_heads": 1, "attention_window_size": 4, "lru_width": 16},
    "rwkv": {"hidden_size": 16, "num_hidden_layers": 2, "attention_hidden_size": 16},
    "t5": {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "is_encoder_decoder": True},
}  # fmt: skip
NOTHING_KEPT = ("mamba", "lfm2", "qwen3_next", "granitemoehybrid", "falcon_h1", "recurrent_gemma", "rwkv")


def made(family: str, words: Sequence[str] = ("a", "b", "c", "d", "e", "f", "g"), **more: Any) -> Policy:
    """A policy of the family whose weights are large enough for its distributions to be far from uniform."""
    return built(family, word_tokenizer(words), **more)


def built(family: str, tokenizer: Any, **more: Any) -> Policy:
    """A tiny policy of the family that reads and writes by a tokenizer."""
    ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1, "decoder_start_token_id": 0}
    config = AutoConfig.for_model(family, vocab_size=len(tokenizer), **ids, **FAMILIES[family])
    set_dropout(config, 0.0)
    maker: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    torch.manual_seed(0)
    model = maker.from_config(config)
    with torch.no_grad():
        for weights in model.parameters():
            if weights.dim() > 1 and weights.std() < 0.1:
                weights.mul_(4.0)
    return Policy(model, tokenizer, **{"response_tokens": 5, **more})


def test_there_are_twenty_families_and_t5() -> None:
    assert len(FAMILIES) > 20
    assert set(FAMILIES) == set(TESTED)


def test_a_family_that_no_test_knows_is_tried_before_anything_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    stablelm = ModelSpec(model_type="stablelm", config={**SIZE, "num_key_value_heads": 1})
    try_family(stablelm)
    monkeypatch.setattr(Policy, "logits", lambda self, hidden: self.model.get_output_embeddings()(hidden) * 2.0)
    with pytest.raises(AligngapError, match="model family `stablelm`: log-probabilities differ"):
        try_family(stablelm)
    try_family(ModelSpec(model_type="llama", config=HEADS))  # one that they know is not


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_reads_and_samples_as_its_own_forward_pass(family: str) -> None:
    policy = made(family)
    policy.check_head()
    assert policy.keeps == (family not in NOTHING_KEPT)
    prompts = [(4, 5, 6, 7, 8, 9), (7, 8), (10, 4, 5)]
    answers = [(4, 6, 1), (5, 5, 8, 9, 1), (7, 1), (9, 1), (6, 6, 6, 1), (8, 4)]
    owners = [0, 1, 2, 0, 1, 2]
    ours = policy.token_logps(collate(prompts, answers, owners)).detach()
    own = []
    for owner, answer in zip(owners, answers, strict=True):
        asked, target = torch.tensor([prompts[owner]]), torch.tensor([answer])
        with torch.no_grad():
            if policy.encoder_decoder:
                logits = policy.model(input_ids=asked, labels=target).logits[0]
            else:
                whole = torch.cat([asked, target], -1)
                logits = policy.model(input_ids=whole, use_cache=False).logits[0, asked.shape[1] - 1 : -1]
        own.append(torch.log_softmax(logits.float(), -1)[range(len(answer)), list(answer)])
    torch.testing.assert_close(ours, torch.cat(own), atol=1e-4, rtol=1e-5)
    written = policy.sample([prompt(p) for p in prompts], 2, seed=0)
    assert [len(rows) for rows in written] == [2, 2, 2]
    pairs = [pair(prompt(p), (4, 6, 1), (5, 5, 1)) for p in prompts]
    check_start(policy.copy("student"), policy, pairs)


@pytest.mark.parametrize("family", ["mamba", "lfm2"])
@pytest.mark.parametrize("shared", [False, True])
def test_what_is_read_anew_is_sampled_from_its_log_probabilities(family: str, shared: bool) -> None:
    """Chi-square of first tokens, for prompts of ragged lengths, alone and as a share of a larger batch."""
    policy = made(family, ("a", "b", "c"))
    policy.check_head()
    assert not policy.keeps
    prompts = [(4, 5, 6, 6, 5), (6, 4)] * 600
    share = Share(5, 0, 2 * len(prompts), 1.0, policy.device) if shared else None
    torch.manual_seed(3)
    with torch.no_grad():
        rows = generate(policy, prompts, 2, 1, share=share)
    for number in (0, 1):
        seen = np.bincount([rows[2 * i + k][0] for i in range(number, 1200, 2) for k in (0, 1)], minlength=7)
        expected = 1200 * np.exp(policy.logps_of([prompts[number]] * 7, [(t,) for t in range(7)]).double().numpy())
        assert stats.chisquare(seen, expected * seen.sum() / expected.sum()).pvalue > 1e-4


def test_a_family_that_reads_padding_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = made("llama")
    own = policy.model.model.forward

    def wrong(*given: Any, **more: Any) -> Any:
        out = own(*given, **more)
        out.last_hidden_state = out.last_hidden_state + out.last_hidden_state.mean(1, keepdim=True)
        return out

    monkeypatch.setattr(policy.model.model, "forward", wrong)
    with pytest.raises(AligngapError, match="model family `llama`: the states of a padded batch"):
        policy.check_head()


def test_a_family_that_fails_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = made("llama")
    monkeypatch.setattr(policy.model.model, "forward", lambda *a, **k: (_ for _ in ()).throw(ValueError("no\nway")))
    with pytest.raises(AligngapError, match="cannot be read here \\(no way\\); choose another family"):
        policy.check_head()


def test_noise_in_training_under_an_unknown_name_stops_a_run() -> None:
    """h must be 0 before the first step; a dropout that nobody has switched off makes it anything."""
    reference = made("llama")
    policy = reference.copy("student")
    policy.model.lm_head = torch.nn.Sequential(torch.nn.Dropout(0.5), policy.model.lm_head)
    pairs = [pair(prompt((4, 5)), (4, 6, 1), (5, 5, 1))]
    with pytest.raises(AligngapError, match=r"h = .*not 0.*dropout or another noise"):
        check_start(policy, reference, pairs)
    assert not policy.model.training


def test_dropout_is_off_under_every_name() -> None:
    config = AutoConfig.for_model("bart", attention_dropout=0.3, activation_dropout=0.2, encoder_layerdrop=0.4)
    set_dropout(config, 0.0)
    assert not any(v for k, v in config.to_dict().items() if "drop" in k and isinstance(v, float))
    set_dropout(config, 0.1)
    assert (config.attention_dropout, config.dropout, config.encoder_layerdrop) == (0.1, 0.1, 0.0)
    seed_oss = AutoConfig.for_model("seed_oss")
    assert seed_oss.residual_dropout > 0
    set_dropout(seed_oss, 0.0)
    assert seed_oss.residual_dropout == 0.0


def test_agreement_is_by_the_spread_of_the_numbers() -> None:
    numbers = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    assert alike(numbers * (1 + 1e-5), numbers)
    assert not alike(numbers + 0.1, numbers)
    assert not alike(0.001 * numbers.flip(0), 0.001 * numbers)  # small numbers may be wrong as well
