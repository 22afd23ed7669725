"""Conversations: chat messages and "Human: ... Assistant:" text, read, merged and written as one prompt.

A prompt is text. A conversation is written as "\\n\\nHuman: ...\\n\\nAssistant:" turns, in which one blank after each
colon is form and everything else is content. Chat templates of models are not applied here; they belong to the policy
that reads the prompt.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aligngap.tasks._files import fail
from aligngap.tasks._rows import Row, Skip, json_type, parse_cell

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
SPEAKERS = {"user": "Human", "assistant": "Assistant", "system": "System"}
ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
}  #: what data sets call the speakers, in small letters
WHO, WHAT = ("role", "from"), ("content", "value")

NO_ANSWER = "dialogue does not end with an answer"
PREFILLED = "conversation ends with an answer that the responses neither begin with nor are told to go on from"
OTHER_ROLE = "message of a tool, or of another unknown role"
NO_TEXT = "message that is not text"
TURN_INSIDE = "message that itself holds the beginning of a turn"
UNREADABLE = "messages written as text that cannot be read back"
CONTRADICTION = "prompt contradicts the conversation"

_TURN = re.compile(r"\n\n(Human|Assistant|System):")
_OPENS = re.compile(r"\s*(Human|System):")
_MESSAGES_AS_TEXT = re.compile(r"\s*\[?\s*\{\s*['\"](role|from|content|value)['\"]\s*:")
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff]")

Turn = tuple[str, str]  #: role ("user", "assistant" or "system") and content


@dataclass(frozen=True)
class Context:
    """A conversation up to where the assistant is to speak: its turns, and the prompt text that stands for it.

    Where the last turn is the assistant's, the answer goes on from it.
    """

    turns: tuple[Turn, ...]
    text: str

    @property
    def begun(self) -> str | None:
        """What the conversation gives of the answer itself; None where the answer is a turn of its own."""
        return self.turns[-1][1] if self.turns and self.turns[-1][0] == "assistant" else None

    @property
    def plain(self) -> bool:
        """Whether it is one text of the user's, and no dialogue."""
        return self.turns == (("user", self.text),)

    @classmethod
    def of_turns(cls, turns: Sequence[Turn]) -> Context:
        """The conversation of these turns, written as a dialogue; no text at all if there are none."""
        return cls(tuple(turns), render_messages(turns) if turns else "")

    @classmethod
    def of_text(cls, text: str) -> Context:
        """The conversation that a prompt is: its turns if it is written as a dialogue, else one turn of the user."""
        _, *parts = _TURN.split("\n\n" + text.lstrip("\r\n"))
        turns = list(zip(parts[::2], parts[1::2], strict=True))
        if _OPENS.match(text) and len(turns) > 1 and turns[-1][0] == "Assistant":
            roles = {speaker: role for role, speaker in SPEAKERS.items()}
            turns = turns if turns[-1][1].strip() else turns[:-1]
            return cls(tuple((roles[who], said.removeprefix(" ")) for who, said in turns), text)
        return cls((("user", text),), text)

    def holds(self, other: Context) -> bool:
        """Whether the other's turns stand in this conversation, one after the other; blanks do not matter."""
        whole, part = ([(role, squash(said)) for role, said in c.turns] for c in (self, other))
        return any(whole[at : at + len(part)] == part for at in range(len(whole) - len(part) + 1))

    def merged(self, other: Context) -> Context:
        """The longer of two accounts of one conversation; Skip where they contradict each other."""
        if self.holds(other):
            return self
        if other.holds(self):
            return other
        raise Skip(CONTRADICTION)


def squash(text: str) -> str:
    """The text with every run of blanks made one blank."""
    return " ".join(text.split())


def render_messages(turns: Sequence[Turn]) -> str:
    """Turns as one HH-style prompt that ends where the assistant is to speak; contents are kept as they are.

    Where the last turn is the assistant's, the prompt ends with it: the answer goes on from there.
    """
    if any(_TURN.search(said) for _, said in turns):
        raise Skip(TURN_INSIDE)
    text = "".join(f"\n\n{SPEAKERS[role]}: {said}" for role, said in turns)
    return text if turns[-1][0] == "assistant" else text + ASSISTANT


def without_form(prompt: str) -> str:
    """A prompt without what is form and no content: the line breaks before the first turn of a dialogue."""
    return prompt if Context.of_text(prompt).plain else prompt.lstrip("\r\n")


# ------------------------------------------------------------------------------------------------------- messages


def read_messages(value: object) -> list[Any] | None:
    """The value as a list of message objects if that is what it is meant to be, else None.

    A list may stand there as one message, as an object of two lists, or as text in JSON or as Python or numpy print it.
    """
    if isinstance(value, str):
        if not _MESSAGES_AS_TEXT.match(value):
            return None
        value = _parse_printed(value)
    if isinstance(value, dict):
        for who, what in zip(WHO, WHAT, strict=True):
            if who in value and what in value:
                whos, whats = value[who], value[what]
                if isinstance(whos, list) and isinstance(whats, list) and len(whos) == len(whats):
                    return [{who: w, what: said} for w, said in zip(whos, whats, strict=True)]
                return [value]
        return None
    return value if isinstance(value, list) else None


def _parse_printed(text: str) -> object:
    """The list or object that the text spells, or the text itself where it spells something else than messages."""
    try:
        found = parse_cell(text)
    except ValueError:
        try:
            found = ast.literal_eval(re.sub(r"\}\s*\n\s*\{", "}, {", text.strip()))
        except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
            if all(re.search(f"['\"]({'|'.join(names)})['\"]", text) for names in (WHO, WHAT)):
                raise Skip(UNREADABLE) from error
            return text
    messages = found if isinstance(found, list) else [found]
    named = [isinstance(m, dict) and any(w in m for w in WHO) and any(w in m for w in WHAT) for m in messages]
    if any(named) and not all(named):
        raise Skip(UNREADABLE)
    return found if any(named) else text


def spelled_list(text: str) -> list[Any] | None:
    """The list that a text spells, in JSON or as Python and numpy print it; None where it spells none."""
    if not text.lstrip().startswith("["):
        return None
    try:
        found = parse_cell(text)
    except ValueError:
        found = _printed_texts(text)
    if found is None:
        try:
            found = ast.literal_eval(re.sub(r"\}\s*\n\s*\{", "}, {", text.strip()))
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return None
    return found if isinstance(found, list) else None


def _printed_texts(text: str) -> list[str] | None:
    """A list of texts as Python or numpy prints it; numpy parts them by blanks, where Python would join them."""
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(text.strip()).readline))
    except (tokenize.TokenError, SyntaxError, ValueError):
        return None
    said = [t for t in tokens if t.type not in (tokenize.NEWLINE, tokenize.NL, tokenize.ENDMARKER)]
    inside, ends = said[1:-1], (said[0].string, said[-1].string)
    if ends != ("[", "]") or not all(t.type == tokenize.STRING or t.string == "," for t in inside):
        return None
    texts = [ast.literal_eval(t.string) for t in inside if t.type == tokenize.STRING]
    return texts if all(isinstance(t, str) for t in texts) else None


def parse_messages(row: Row, field: str, value: object) -> list[Turn]:
    """The field's messages as turns; an error where it is no list of messages, Skip where one of them is no text."""
    remedy = "give a list of {role, content} objects with text in both"
    messages = read_messages(value)
    if not messages:
        raise fail(row.where, f"field '{field}' is {'an empty list' if value == [] else json_type(value)}", remedy)
    turns: list[Turn] = []
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict):
            raise fail(row.where, f"message {number} of field '{field}' is {json_type(message)}", remedy)
        who, what = (next((n for n in names if n in message), None) for names in (WHO, WHAT))
        if who is None or what is None:
            raise fail(row.where, f"message {number} of field '{field}' has no role or content", remedy)
        role = ROLES.get(row.check_text(message[who], f"{field}[{number}].{who}").strip().lower())
        if role is None:
            raise Skip(OTHER_ROLE)
        content = _content(row, f"{field}[{number}].{what}", message[what])
        if role != "system" or content.strip():
            turns.append((role, content))
    return turns


def _content(row: Row, name: str, content: object) -> str:
    """A message's text; of a list of parts, which all have to be text, all of them."""
    if content is None:
        raise Skip(NO_TEXT)
    if isinstance(content, list):
        texts = [part.get("text") if isinstance(part, dict) else part for part in content]
        if not all(isinstance(text, str) for text in texts):
            raise Skip(NO_TEXT)
        content = "".join(map(str, texts))
    return row.check_text(content, name)


# ------------------------------------------------------------------------------------------------------ dialogues


def is_dialogue(value: object) -> bool:
    """Whether the value is HH-style text with at least one assistant turn, or a message list."""
    return read_messages(value) is not None or (isinstance(value, str) and ASSISTANT in value)


def opens_dialogue(text: str) -> bool:
    """Whether the text is a whole HH-style dialogue, from its first turn on."""
    return ASSISTANT in text and _OPENS.match(text) is not None


def split_dialogue(text: str) -> tuple[Context, str]:
    """The conversation and the answer of an HH-style dialogue, cut at the last assistant turn."""
    at = text.rfind(ASSISTANT)
    if at < 0 or HUMAN in text[at:]:
        raise Skip(NO_ANSWER)
    at += len(ASSISTANT)
    return Context.of_text(text[:at]), text[at:].removeprefix(" ")


# ---------------------------------------------------------------------------------------------------- same prompt


def conversation_keys(prompts: Sequence[str]) -> list[str]:
    """For each prompt what must not be in two splits: the conversation that it is cut out of, as a person sees it.

    That is the first turn in one Unicode form, one case, and single blanks: the same for every prompt of a
    conversation, and for its first question asked alone. Where all prompts begin with the same turn it is an
    instruction and no conversation; the whole prompt decides then.
    """
    keys = [_fold(prompt.split(ASSISTANT, 1)[0]) for prompt in prompts]
    return keys if len(set(keys)) > 1 else [_fold(prompt) for prompt in prompts]


def _fold(text: str) -> str:
    if not text.isascii():
        text = unicodedata.normalize("NFKC", _INVISIBLE.sub("", text).casefold())
    return squash(text.casefold()).removeprefix("human:").lstrip()
