"""Chat templates: a prompt of the data as an instruct model was trained to be asked.

A dialogue of "Human:" and "Assistant:" turns becomes chat messages, any other prompt one message of the user; the
tokenizer's own template writes them down, with the arguments and on the day that the study names. A dialogue may end
inside the assistant's turn: the answer goes on from there.

What this module leaves out: token ids (`encoding.py`), and the reading of message lists (`tasks/_dialogue.py`).
"""

from __future__ import annotations

import datetime
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aligngap.settings import ModelSpec
from aligngap.types import AligngapError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = list[dict[str, str]]

ROLES = {"Human": "user", "Assistant": "assistant", "System": "system"}
TURN = re.compile(r"\n\n(Human|Assistant|System):")
TODAY = re.compile(r"""\bstrftime_now\(\s*(["'])(.*?)\1\s*\)""")  # what a template calls to be told today's date


class TemplateRefused(AligngapError):
    """A tokenizer's template cannot write this prompt down, for instance since roles do not alternate."""


def turns_of(prompt: str) -> Messages | None:
    """Chat messages of a dialogue that ends where the assistant is to speak or to go on, or None for any other prompt.

    The last message is the assistant's where the answer goes on from what stands there. Exactly one blank after the
    colon is the dialogue's form; every other character of a turn is its content.
    """
    text = "\n\n" + prompt.lstrip("\r\n")
    _, *parts = TURN.split(text)
    turns = list(zip(parts[::2], parts[1::2], strict=True))
    opens = TURN.match(text) is not None and turns[0][0] != "Assistant"
    if not opens or len(turns) < 2 or turns[-1][0] != "Assistant":
        return None
    said = turns if turns[-1][1].strip() else turns[:-1]
    return [{"role": ROLES[who], "content": text.removeprefix(" ")} for who, text in said]


def messages_of(prompt: str) -> Messages:
    """Chat messages of a prompt: its turns if it is a dialogue, else one message of the user."""
    return turns_of(prompt) or [{"role": "user", "content": prompt}]


def split_begun(messages: Messages) -> tuple[Messages, str]:
    """The messages before the answer, and the beginning of the answer that the prompt gives ("" if it gives none)."""
    if len(messages) > 1 and messages[-1]["role"] == "assistant":
        return messages[:-1], messages[-1]["content"]
    return messages, ""


def check_template(tokenizer: PreTrainedTokenizerBase, where: str) -> None:
    """Refuse a tokenizer without a chat template."""
    if not tokenizer.chat_template:
        what = "`chat` is set, but its tokenizer has no chat template"
        raise AligngapError(f"{where}: {what}; leave `chat` out, or name an instruct model")
    if "strftime_now(" in TODAY.sub("", tokenizer.get_chat_template()):
        what = "its chat template asks for today's date in a form that cannot be fixed"
        raise AligngapError(f"{where}: {what}; write strftime_now('...') with a text in its chat_template.jinja")


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of what the template says, which is part of the key of everything that it has written."""
    return hashlib.sha256(tokenizer.get_chat_template().encode("utf-8")).hexdigest()[:20]


class Template:
    """A tokenizer's chat template with its arguments, such as `enable_thinking`, and the day that it is told.

    A template that asks for today's date is told the same day at every call, so that no prompt changes overnight.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, arguments: Mapping[str, Any], day: datetime.date) -> None:
        self.tokenizer, self.arguments = tokenizer, arguments
        self.text = TODAY.sub(lambda m: json.dumps(day.strftime(m[2])), tokenizer.get_chat_template())

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, spec: ModelSpec) -> Template:
        return cls(tokenizer, spec.template, datetime.date.fromisoformat(spec.date))

    def render(self, messages: Sequence[Mapping[str, str]], reply: bool = True) -> str:
        """The template filled in: with `reply` up to where the assistant speaks, else to the end of the last turn."""
        try:
            text = self.tokenizer.apply_chat_template(
                [dict(m) for m in messages], chat_template=self.text, tokenize=False, add_generation_prompt=reply,
                **self.arguments,
            )  # fmt: skip
        except Exception as error:
            raise TemplateRefused(f"the chat template refuses a prompt ({first_line(error, 120)})") from error
        return str(text)
