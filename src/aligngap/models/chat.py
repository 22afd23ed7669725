"""Chat templates: a prompt of the data as an instruct model was trained to be asked.

A dialogue of "Human:" and "Assistant:" turns becomes chat messages, any other prompt one message of the user; the
tokenizer's own template writes them down.

What this module leaves out: token ids (`encoding.py`); a message that itself holds "\\n\\nAssistant:" reads as a turn,
since the data's dialogues are text (`tasks/_dialogue.py`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from aligngap.types import AligngapError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = list[dict[str, str]]

ROLES = {"Human": "user", "Assistant": "assistant", "System": "system"}
TURN = re.compile(r"\n\n(Human|Assistant|System):")


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
