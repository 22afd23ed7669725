"""Chat templates: a prompt of the data as the token ids that an instruct model was trained to answer.

A dialogue of "Human:" and "Assistant:" turns becomes chat messages, any other prompt one message of the user; the
tokenizer's own template writes them down. Nobody's text can write a special token: the template alone decides which
ones there are, and where a text holds the spelling of one, that is encoded as the plain text it is.

What this module leaves out: a message that itself holds "\\n\\nAssistant:" reads as a turn, since the data's dialogues
are text (`tasks/_dialogue.py`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from .types import AligngapError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = list[dict[str, str]]

ROLES = {"Human": "user", "Assistant": "assistant", "System": "system"}
TURN = re.compile(r"\n\n(Human|Assistant|System):")
MARK = re.compile("\ue000(\\d+)\ue001")  # stands for the text of message number n while a template is filled in


class TemplateRefused(AligngapError):
    """A tokenizer's template cannot write this prompt down, for instance since roles do not alternate."""


def messages_of(prompt: str) -> Messages:
    """Chat messages of a prompt: its turns, if it is a dialogue that ends where the assistant is to speak."""
    text = prompt if prompt.startswith("\n\n") else f"\n\n{prompt}"
    _, *parts = TURN.split(text)
    turns = list(zip(parts[::2], parts[1::2], strict=True))
    dialogue = TURN.match(text) and turns[-1][0] == "Assistant" and not turns[-1][1].strip() and len(turns) > 1
    if not dialogue:
        return [{"role": "user", "content": prompt}]
    return [{"role": ROLES[who], "content": said.strip()} for who, said in turns[:-1]]


def check_template(tokenizer: PreTrainedTokenizerBase, where: str) -> None:
    """Refuse a tokenizer without a chat template."""
    if not tokenizer.chat_template:
        what = "`chat` is set, but its tokenizer has no chat template"
        raise AligngapError(f"{where}: {what}; leave `chat` out, or name an instruct model")


def render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]]) -> str:
    """The template filled in, up to where the assistant speaks."""
    try:
        text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    except Exception as error:
        raise TemplateRefused(f"the chat template refuses a prompt ({first_line(error, 120)})") from error
    return str(text)


def encode(
    tokenizer: PreTrainedTokenizerBase, prompt: str, plain: Callable[[PreTrainedTokenizerBase, str], Sequence[int]]
) -> list[int]:
    """Token ids of a prompt by the tokenizer's template, as `apply_chat_template` gives them; `plain` encodes text.

    If the text of a message adds a special token to those of the template, or takes one away, the special tokens are
    taken from the template only, and everything between two of them is encoded as text.
    """
    messages = messages_of(prompt)
    special = set(tokenizer.all_special_ids) | {i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    marked = render(tokenizer, [m | {"content": f"\ue000{i}\ue001"} for i, m in enumerate(messages)])
    skeleton = pieces(tokenizer, marked, special)
    ids: list[int] = tokenizer(
        render(tokenizer, messages), add_special_tokens=False, split_special_tokens=False
    ).input_ids
    if [i for i in ids if i in special] == [i for i in skeleton if isinstance(i, int)]:
        return ids
    found: list[int] = []
    for piece in skeleton:
        if isinstance(piece, int):
            found.append(piece)
        else:
            found += plain(tokenizer, MARK.sub(lambda m: messages[int(m[1])]["content"], piece))
    return found


def pieces(tokenizer: PreTrainedTokenizerBase, text: str, special: set[int]) -> list[int | str]:
    """Text cut at its special tokens: their ids, and what stands between them."""
    spelled = {str(tokenizer.convert_ids_to_tokens(i)): i for i in special}
    cut = "|".join(re.escape(s) for s in sorted(spelled, key=len, reverse=True))
    return [spelled.get(part, part) for part in re.split(f"({cut})", text) if part]
