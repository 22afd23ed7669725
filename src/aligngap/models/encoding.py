"""From text to token ids: plain text, prompts and responses, and prompts by a chat template.

Nobody's text can write a special token: where a text holds the spelling of one, that is encoded as the plain text it
is, and in a chat the template alone decides which ones there are.

What this module leaves out: what a template writes (`chat.py`).
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING

from aligngap.models import chat

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MARK = re.compile("\ue000(\\d+)\ue001")  # stands for the text of message number n while a template is filled in


@lru_cache(maxsize=4096)  # a measurement's prompts and opponents are read by every judge at every checkpoint
def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    """Ids of plain text. A vocabulary may hold "</s>" as a word of its own: inside data it is read in two parts."""
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    if not set(ids) & (set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}):
        return tuple(ids)
    inside = "|".join(f"(?<={re.escape(t[0])})(?={re.escape(t[1:])})" for t in tokenizer.all_special_tokens if t[1:])
    return tuple(i for part in re.split(inside, text) for i in tokenizer.encode(part, add_special_tokens=False))


def opening(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The BOS token, where the tokenizer begins every text of a decoder with it by itself, as Llama's does."""
    begin: list[int] = tokenizer("", add_special_tokens=True).input_ids[:1]
    return begin if begin == [tokenizer.bos_token_id] and begin != [tokenizer.eos_token_id] else []


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The tokens that end a response, distinct: the tokenizer's EOS first, then those of the model's own generation.

    A checkpoint says them in `generation_config.json`, for instance `<end_of_turn>` beside `<eos>`. Where it does not,
    transformers copies what the configuration of the family has by default, which counts only if it is a token that
    the tokenizer keeps apart from text and has no other use for.
    """
    said = model.generation_config
    given = getattr(said, "eos_token_id", None)
    every = [given] if isinstance(given, int) else list(given or ())
    if getattr(said, "_from_model_config", False):
        used = {tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id, tokenizer.sep_token_id}
        apart = set(tokenizer.added_tokens_decoder) - used
        every = [i for i in every if i in apart]
    return tuple(dict.fromkeys([int(tokenizer.eos_token_id), *(i for i in every if i < len(tokenizer))]))


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, encoder_decoder: bool, text: str, by_template: bool = False
) -> tuple[int, ...]:
    """Prompt ids: closed by EOS for an encoder (as T5 does), by the separator, if there is one, for a decoder.

    With `by_template` the chat template writes them, and opens and closes a decoder's prompt itself.
    """
    if by_template:
        written = encode_chat(tokenizer, text)
        return (*written, tokenizer.eos_token_id) if encoder_decoder else tuple(written)
    plain = encode_text(tokenizer, text)
    ids = plain if encoder_decoder else (*opening(tokenizer), *plain)
    close = tokenizer.eos_token_id if encoder_decoder else tokenizer.sep_token_id
    return (*ids, close) if close is not None else ids


def encode_response(tokenizer: PreTrainedTokenizerBase, text: str, ended: bool = True) -> tuple[int, ...]:
    """Response ids, closed by EOS if it `ended`."""
    ids = encode_text(tokenizer, text)
    return (*ids, tokenizer.eos_token_id) if ended else ids


def encode_chat(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """Token ids of a prompt by the tokenizer's template, as `apply_chat_template` gives them.

    If the text of a message adds a special token to those of the template, or takes one away, the special tokens are
    taken from the template only, and everything between two of them is encoded as text.
    """
    messages = chat.messages_of(prompt)
    special = set(tokenizer.all_special_ids) | {i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    marked = chat.render(tokenizer, [m | {"content": f"\ue000{i}\ue001"} for i, m in enumerate(messages)])
    skeleton = pieces(tokenizer, marked, special)
    ids: list[int] = tokenizer(
        chat.render(tokenizer, messages), add_special_tokens=False, split_special_tokens=False
    ).input_ids
    if [i for i in ids if i in special] == [i for i in skeleton if isinstance(i, int)]:
        return ids
    found: list[int] = []
    for piece in skeleton:
        if isinstance(piece, int):
            found.append(piece)
        else:
            found += encode_text(tokenizer, MARK.sub(lambda m: messages[int(m[1])]["content"], piece))
    return found


def pieces(tokenizer: PreTrainedTokenizerBase, text: str, special: set[int]) -> list[int | str]:
    """Text cut at its special tokens: their ids, and what stands between them."""
    spelled = {str(tokenizer.convert_ids_to_tokens(i)): i for i in special}
    cut = "|".join(re.escape(s) for s in sorted(spelled, key=len, reverse=True))
    return [spelled.get(part, part) for part in re.split(f"({cut})", text) if part]
