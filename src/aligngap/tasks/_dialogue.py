"""Dialogues as text: chat messages rendered as "Human: ... Assistant:" turns, and a dialogue cut at its last answer.

The text of a message is data: one that itself holds "\\n\\nAssistant:" is kept as it is, and looks like a turn. Chat
templates of models are not applied here; they belong to the policy that reads the prompt.
"""

from __future__ import annotations

from aligngap.tasks._common import NO_ANSWER, Skip
from aligngap.tasks._files import fail
from aligngap.tasks._rows import Row, json_type

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
SPEAKERS = {"user": "Human", "human": "Human", "assistant": "Assistant", "system": "System"}


def render_messages(messages: list[tuple[str, str]]) -> str:
    """Chat messages (role, content) as one HH-style prompt that ends where the assistant is to speak."""
    return "".join(f"\n\n{SPEAKERS[role]}: {content.strip()}" for role, content in messages) + ASSISTANT


def parse_messages(row: Row, field: str, value: object) -> list[tuple[str, str]]:
    """The field's list of {role, content} objects as (role, content) tuples; an error where it is anything else."""
    remedy = "give a list of {role, content} objects with text in both"
    if not isinstance(value, list) or not value:
        raise fail(row.where, f"field '{field}' is {'an empty list' if value == [] else json_type(value)}", remedy)
    messages = []
    for number, message in enumerate(value, start=1):
        name = f"{field}[{number}]"
        if not isinstance(message, dict) or "role" not in message or "content" not in message:
            raise fail(row.where, f"message {number} of field '{field}' has no role or content", remedy)
        role = row.check_text(message["role"], f"{name}.role")
        if role not in SPEAKERS:
            raise fail(row.where, f"unknown role '{role[:40]}' in field '{field}'", f"use {', '.join(SPEAKERS)}")
        messages.append((role, row.check_text(message["content"], f"{name}.content")))
    return messages


def split_messages(messages: list[tuple[str, str]]) -> tuple[str, str]:
    """(prompt, answer) of a message list: the last message is the answer, what precedes it the prompt."""
    if messages[-1][0] != "assistant":
        raise Skip(NO_ANSWER)
    return render_messages(messages[:-1]) if messages[:-1] else "", messages[-1][1]


def is_dialogue(value: object) -> bool:
    """Whether the value is HH-style text with at least one assistant turn, or a message list."""
    return isinstance(value, list) or (isinstance(value, str) and ASSISTANT in value)


def split_dialogue(text: str) -> tuple[str, str]:
    """(prompt, answer) of an HH-style dialogue, cut at the last assistant turn; the prompt keeps "\\n\\nAssistant:"."""
    at = text.rfind(ASSISTANT)
    if at < 0 or HUMAN in text[at:]:
        raise Skip(NO_ANSWER)
    at += len(ASSISTANT)
    return text[:at], text[at:]


def first_human_turn(prompt: str) -> str:
    """What the human said first: the same for every prompt cut out of one conversation."""
    return prompt.split(ASSISTANT, 1)[0].strip()
