"""A tiny instruct model: Llama with ChatML and no padding token, as a Hugging Face folder and as a GGUF file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from aligngap.models.loading import build_model
from aligngap.settings import ModelSpec

CHATML = (
    "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SIZES = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip


def chat_tokenizer(template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """Byte-level BPE with ChatML's tokens and no padding token, as instruct models have it."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    inner.train_from_iterator(["how do I bake bread", "user assistant system", "the bread is baked"] * 4, trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<|im_end|>", bos_token="<|im_start|>", unk_token="<|endoftext|>"
    )
    made.chat_template = template
    return made


def write_instruct(folder: Path) -> Path:
    """The model as a folder."""
    tokenizer = chat_tokenizer()
    tokenizer.pad_token = "<|im_end|>"
    build_model(ModelSpec(model_type="llama", config=SIZES), tokenizer, 0).save_pretrained(folder)
    chat_tokenizer().save_pretrained(folder)
    return folder


def write_gguf(file: Path, folder: Path) -> None:
    """The tiny model of a folder as a GGUF file of Llama's architecture, weights in float32."""
    gguf = pytest.importorskip("gguf")
    pytest.importorskip("accelerate")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), chat_tokenizer()
    c = model.config
    out = gguf.GGUFWriter(str(file), "llama")
    out.add_context_length(c.max_position_embeddings)
    out.add_embedding_length(c.hidden_size)
    out.add_block_count(c.num_hidden_layers)
    out.add_feed_forward_length(c.intermediate_size)
    out.add_head_count(c.num_attention_heads)
    out.add_head_count_kv(c.num_key_value_heads)
    out.add_layer_norm_rms_eps(c.rms_norm_eps)
    out.add_rope_dimension_count(c.hidden_size // c.num_attention_heads)
    out.add_rope_freq_base(10000.0)
    out.add_vocab_size(c.vocab_size)
    inner = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)  # type: ignore[arg-type]
    out.add_tokenizer_model("gpt2")
    out.add_token_list(tokens)
    out.add_token_types([3 if t.startswith("<|") else 1 for t in tokens])
    out.add_token_merges([" ".join(m) if isinstance(m, list) else m for m in inner["merges"]])
    out.add_eos_token_id(tokenizer.eos_token_id)
    out.add_bos_token_id(tokenizer.bos_token_id)
    out.add_chat_template(CHATML)
    names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    parts = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    heads = {"attn_q": c.num_attention_heads, "attn_k": c.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        stem = name.removesuffix(".weight")
        if stem in names:
            short = names[stem]
        else:
            _, _, layer, part = stem.split(".", 3)
            short = f"blk.{layer}.{parts[part]}"
        kind = short.rpartition(".")[2]
        if kind in heads:  # llama.cpp keeps the halves of each rotary pair next to each other
            rows, width = tensor.shape
            tensor = tensor.view(heads[kind], 2, rows // heads[kind] // 2, width).swapaxes(1, 2).reshape(rows, width)
        out.add_tensor(f"{short}.weight", tensor.contiguous().numpy())
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
