"""Every decoder family and T5, with the kind of tokenizer and the template that it is published with: 200 dialogues.

Prompt ids followed by response ids are those of the whole text, as the tokenizer or the template writes it, and what a
policy of the family reads back of a response's text are the tokens that it wrote. Weights are tiny and random: what a
family decides here is whether it is an encoder-decoder, which tokenizer it has, and at which tokens it ends.
"""

from __future__ import annotations

import random

import pytest
from test_boundary import TRIMS, by_template, some_prompt, some_text
from test_families import FAMILIES, built
from tokenizer_kinds import KINDS, TEMPLATES, tokenizer_of

from aligngap.models.policy import Policy
from aligngap.settings import ModelSpec

DIALOGUES = 200
#: the kind of tokenizer and the template of checkpoints of each family, as they are published, the nearest there is
PUBLISHED = {
    "llama": ("byte-level, bos", "llama-3"), "mistral": ("metaspace first", "mistral"),
    "gemma2": ("metaspace never", "gemma"), "gemma3_text": ("metaspace never", "gemma"),
    "qwen2": ("byte-level", "chatml"), "qwen3": ("byte-level", "thinking"), "phi3": ("llama-2", "phi-3"),
    "gpt2": ("byte-level", "words"), "gpt_neox": ("byte-level", "chatml"), "gpt_neo": ("byte-level", "words"),
    "opt": ("byte-level, bos", "words"), "bloom": ("byte-level", "zephyr"), "falcon": ("byte-level", "chatml"),
    "mpt": ("byte-level", "chatml"), "phi": ("byte-level", "words"), "granite": ("byte-level", "phi-3"),
    "cohere": ("byte-level, bos", "zephyr"), "olmo2": ("byte-level", "zephyr"), "mixtral": ("llama-2", "llama-2"),
    "llama4_text": ("byte-level, bos", "llama-3"), "smollm3": ("byte-level", "thinking"),
    "seed_oss": ("byte-level", "zephyr"), "gptj": ("byte-level", "words"), "mamba": ("byte-level", "zephyr"),
    "lfm2": ("byte-level, bos", "chatml"), "qwen3_next": ("byte-level", "thinking"),
    "granitemoehybrid": ("byte-level", "channels"), "falcon_h1": ("metaspace always", "chatml"),
    "recurrent_gemma": ("metaspace never", "gemma"), "rwkv": ("wordpiece", "words"), "t5": ("unigram", "chatml"),
}  # fmt: skip


def test_every_family_kind_of_tokenizer_and_template_is_there() -> None:
    assert set(PUBLISHED) == set(FAMILIES)
    assert {kind for kind, _ in PUBLISHED.values()} == set(KINDS)
    assert {template for _, template in PUBLISHED.values()} == set(TEMPLATES)


def whole_ids(policy: Policy, prompt: str, answer: str, template: str | None) -> tuple[list[int], list[int]]:
    """What the family's own tokenizer or template gives for a prompt, and for prompt and answer with the turn's end."""
    tokenizer, end = policy.tokenizer, policy.encoding.close_id
    eos = [tokenizer.eos_token_id]
    if policy.encoder_decoder:
        asked = by_template(tokenizer, prompt) if template else tokenizer(prompt, add_special_tokens=False).input_ids
        said = tokenizer(answer, add_special_tokens=False).input_ids
        return [*asked, *eos], [*asked, *eos, *said, *eos]
    if template is None:
        lead = " " if prompt.endswith("\n\nAssistant:") else ""
        return tokenizer(prompt).input_ids, [*tokenizer(prompt + lead + answer).input_ids, *eos]
    asked, whole = by_template(tokenizer, prompt), by_template(tokenizer, prompt, answer)
    after = whole[len(asked) :]
    return asked, whole[: len(asked) + after.index(end) + 1] if end in after else [*whole, end]


@pytest.mark.parametrize("chat", [True, False], ids=["template", "plain"])
@pytest.mark.parametrize("family", FAMILIES)
def test_prompt_and_response_are_the_tokens_of_the_whole(family: str, chat: bool) -> None:
    kind, template = PUBLISHED[family]
    tokenizer = tokenizer_of(kind, template if chat else None)
    policy = built(family, tokenizer, spec=ModelSpec(chat=chat), response_tokens=400)
    rng = random.Random(f"{family} {chat}")
    merged = 0
    for _ in range(DIALOGUES):
        prompt, answer = some_prompt(rng), some_text(rng, 8)
        if chat and template in TRIMS:
            answer = answer.strip()
        asked, (given, merges) = policy.encode_prompt(prompt), policy.encoding.joined(answer, prompt=prompt)
        own_asked, own = whole_ids(policy, prompt, answer, template if chat else None)
        if not (prompt.startswith("\n\nHuman:") and policy.encoder_decoder and not chat):
            assert list(asked) == own_asked
        merged += merges
        if not merges:
            assert [*asked, *given] == own
            read = policy.response(given, prompt)
            assert read.ended
            if kind != "wordpiece":  # whose text has lost its blanks
                assert policy.encode_response(read.text, prompt=prompt) == given
    assert merged <= DIALOGUES * (0.6 if template == "llama-3" or kind == "byte-level" else 0.35)
