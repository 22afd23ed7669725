"""Tokenizers of every kind that language models have, trained on a few lines, and chat templates as they are published.

No vocabulary is downloaded: what matters is how each kind treats the beginning of a text, blanks and special tokens.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = [
    "Human: which tea is best in the morning\n\nAssistant: green tea with a slice of lemon",
    "user assistant system model the kettle is hot and the cup is small .",
    "if x > 0:\n    return x + 1\n\n", "TL;DR: it is so, is it?  (yes!)",
    "a b c d e f g h i j k l m n o p q r s t u v w",
    "ABCDEFGHIJKLMNOPQRSTUVWXYZ 0123456789 <|>_#/[]{}=+-*'\"&%$@^~`\\;:.,!?",
] * 4  # fmt: skip
MARKS = (
    "<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>", "<|user|>", "<|assistant|>", "<|end|>",
    "<|header|>", "<|eot|>", "[INST]", "[/INST]", "<|channel|>", "<|message|>", "<|return|>",
)  # fmt: skip
KINDS = (
    "byte-level", "byte-level, bos", "metaspace first", "metaspace always", "metaspace never", "llama-2", "unigram",
    "wordpiece",
)  # fmt: skip
LINES = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"  # as Llama 3 cuts

#: as published with models, up to spelling; the token that closes a turn stands beside each
TEMPLATES: dict[str, tuple[str, str]] = {
    "chatml": (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        "<|im_end|>",
    ),
    "gemma": (
        "{{ bos_token }}{% for m in messages %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else "
        "m['role']) + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
        "<end_of_turn>",
    ),
    "zephyr": (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}",
        "</s>",
    ),
    "llama-2": (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ ' ' + m['content'] | trim + ' ' + eos_token }}"
        "{% else %}{{ bos_token + '[INST] ' + m['content'] | trim + ' [/INST]' }}{% endif %}{% endfor %}",
        "</s>",
    ),
    "mistral": (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}{{ m['content'] + eos_token }}"
        "{% else %}{{ '[INST]' + m['content'] + '[/INST]' }}{% endif %}{% endfor %}",
        "</s>",
    ),
    "llama-3": (
        "{{ bos_token }}{{ '<|header|>system<|header|>\n\nToday Date: ' + strftime_now('%d %b %Y') + '<|eot|>' }}"
        "{% for m in messages %}{{ '<|header|>' + m['role'] + '<|header|>\n\n' + m['content'] | trim + '<|eot|>' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|header|>assistant<|header|>\n\n' }}{% endif %}",
        "<|eot|>",
    ),
    "phi-3": (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}",
        "<|end|>",
    ),
    "thinking": (
        "{% for m in messages %}{% if m['role'] == 'assistant' and loop.last %}{{ '<|im_start|>assistant\n<think>\n\n"
        "</think>\n\n' + m['content'] + '<|im_end|>\n' }}{% else %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] "
        "+ '<|im_end|>\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
        "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
        "{% endif %}",
        "<|im_end|>",
    ),
    "channels": (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ '<|im_start|>assistant<|channel|>final<|message|>' "
        "+ m['content'] + ('<|return|>' if loop.last else '<|end|>') }}{% else %}{{ '<|im_start|>' + m['role'] + "
        "'<|message|>' + m['content'] + '<|end|>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}",
        "<|return|>",
    ),
    "words": (  # no token of its own closes a turn, so that EOS does
        "{% for m in messages %}{{ ('ASSISTANT: ' if m['role'] == 'assistant' else 'USER: ') + m['content'] + '\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}",
        "</s>",
    ),
}


@cache
def tokenizer_of(kind: str, template: str | None = None) -> PreTrainedTokenizerFast:
    """A tokenizer of the kind, with the template if one is named; every one has `<s>`, `</s>` and all of the marks."""
    special = ["<unk>", "<s>", "</s>", "<pad>", *MARKS]
    trainer: Any
    if kind == "wordpiece":
        inner = Tokenizer(models.WordPiece(unk_token="<unk>"))
        inner.normalizer = normalizers.BertNormalizer(lowercase=False)
        inner.pre_tokenizer, inner.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece(cleanup=False)
        trainer = trainers.WordPieceTrainer(vocab_size=450, special_tokens=special, show_progress=False)
    elif kind == "unigram":
        inner = Tokenizer(models.Unigram())
        inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
        inner.decoder = decoders.Metaspace(prepend_scheme="always")
        trainer = trainers.UnigramTrainer(
            vocab_size=400, special_tokens=special, unk_token="<unk>", show_progress=False
        )
    elif kind.startswith("byte-level"):
        inner = Tokenizer(models.BPE())
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        if kind == "byte-level, bos":
            inner.pre_tokenizer = pre_tokenizers.Sequence(
                [pre_tokenizers.Split(Regex(LINES), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
            )
        inner.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=420, special_tokens=special, show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )  # fmt: skip
    else:
        inner = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
        if kind == "llama-2":  # words are cut in training only
            inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
            parts: list[Any] = [
                decoders.Replace("▁", " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Strip(" ", 1, 0),
            ]
        else:
            scheme = kind.removeprefix("metaspace ")
            inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=True)
            parts = [decoders.Metaspace(prepend_scheme=scheme), decoders.ByteFallback(), decoders.Fuse()]
        inner.decoder = decoders.Sequence(parts)
        special += [f"<0x{i:02X}>" for i in range(256)]
        trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special, show_progress=False)
    inner.train_from_iterator(TEXTS, trainer)
    if kind == "llama-2":
        inner.pre_tokenizer = None
        inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    if kind not in ("byte-level", "wordpiece", "unigram"):
        inner.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", inner.token_to_id("<s>"))]
        )
    marks = [AddedToken(m, special=True, normalized=False, rstrip=m == "<|assistant|>") for m in MARKS]
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>",
        additional_special_tokens=marks,
    )  # fmt: skip
    if template is not None:
        made.chat_template = TEMPLATES[template][0]
    return made
