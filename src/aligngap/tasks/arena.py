"""The `arena` task: votes of Chatbot Arena's users for one of two models' answers (Chiang et al., arXiv 2403.04132).

Two layouts are its own: the CSV with `prompt`, `response_a`, `response_b` (JSON lists of turns) and `winner_*`; and the
rows with `conversation_a`, `conversation_b` and `winner`, as MT-bench has them too. Every other layout is read as well.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from aligngap.tasks._dialogue import Context, Turn, parse_messages, squash
from aligngap.tasks._files import fail
from aligngap.tasks._hub import NamedTask
from aligngap.tasks._layouts import GENERAL, NO_VOTE, TIE, Layout, number_of
from aligngap.tasks._prompts import PROMPTS_DIFFER, Raw
from aligngap.tasks._rows import EMPTY, Row, Skip, is_unicode, json_type, parse_cell

BOTH_BAD = "tie (both bad)"
MULTI_TURN = "more than one turn"
BROKEN_TEXT = "lone surrogate in the text"
CSV_FIELDS = ("prompt", "response_a", "response_b")
WINNER_FIELDS = ("winner_model_a", "winner_model_b", "winner_tie")
WINNERS = {
    "model_a": "model_a", "model_b": "model_b", "tie": TIE, "tie (bothbad)": BOTH_BAD, "bothbad": BOTH_BAD,
    "both_bad": BOTH_BAD,
}  # fmt: skip
Turns = list[str | None]
REMEDY = (
    "give the original columns (prompt, response_a, response_b, winner_*; or conversation_a, conversation_b, winner),"
    " or prompt, chosen, rejected"
)


@dataclass(frozen=True)
class Votes:
    """How rows of votes are read: what becomes of ties and of conversations of several turns."""

    ties: Literal["drop", "coin"] = "drop"
    multi_turn: Literal["drop", "first"] = "drop"

    def layouts(self) -> tuple[Layout, Layout]:
        """The two layouts of arena votes."""
        return (
            Layout(
                "conversation_a, conversation_b, winner",
                "`conversation_a`, `conversation_b`, `winner`",
                "Two conversations of messages and a vote; with MT-bench's `turn: 1` the vote is about the first turn."
                " Ties and conversations of several turns are left out; the `arena` task can keep them.",
                lambda values: "conversation_a" in values or "conversation_b" in values,
                self.read_conversations,
            ),
            Layout(
                "prompt, response_a, response_b, winner_*",
                "`prompt`, `response_a`, `response_b`, `winner_model_a`, `winner_model_b`, `winner_tie`",
                "Lists of turns (or JSON of them) and a vote as one 1 and two 0.",
                lambda values: "response_a" in values and WINNER_FIELDS[0] in values,
                self.read_columns,
            ),
        )

    def read_columns(self, row: Row) -> list[Raw]:
        """A row of the CSV: lists of what was asked and answered, and three flags."""
        prompts, a, b = (_turns(row, field) for field in CSV_FIELDS)
        flags = [number_of(flag) for flag in (row.get(field, REMEDY) for field in WINNER_FIELDS)]
        if sorted(-1 if flag is None else flag for flag in flags) != [0, 0, 1]:
            said = ", ".join(str(row.values[field]).strip()[:40] for field in WINNER_FIELDS)
            raise fail(row.where, f"{', '.join(WINNER_FIELDS)} are {said}, not one 1 and two 0", REMEDY)
        if len(prompts) > 1 and self.multi_turn == "drop":
            raise Skip(MULTI_TURN)
        prompt, first, second = (turns[0] if turns else None for turns in (prompts, a, b))
        return self._vote(prompt, first, second, ("model_a", "model_b", TIE)[flags.index(1)])

    def read_conversations(self, row: Row) -> list[Raw]:
        """A row of two whole conversations, whose prompt is all that stands before the answers."""
        if row.get("winner", REMEDY) is None:
            raise Skip(NO_VOTE)
        said = row.text("winner", REMEDY)
        winner = WINNERS.get(said.strip().lower())
        if winner is None:
            raise fail(row.where, f"unknown winner '{said[:40]}'", f"use {', '.join(WINNERS)}")
        both = [_messages(row, field) for field in ("conversation_a", "conversation_b")]
        if _join_said(both[0], "user") != _join_said(both[1], "user") or _join_said(both[0], "system") != _join_said(
            both[1], "system"
        ):
            raise Skip(PROMPTS_DIFFER)
        asked = len(_join_said(both[0], "user"))
        if asked > 1 and self.multi_turn == "drop" and number_of(row.values.get("turn")) != 1:
            raise Skip(MULTI_TURN)
        if any("assistant" not in [role for role, _ in turns] for turns in both):
            raise Skip(EMPTY)
        (before, first), (_, second) = map(_first_turn, both)
        prompt = before[0][1] if [role for role, _ in before] == ["user"] else Context.of_turns(before).text
        return self._vote(prompt, first, second, winner)

    def _vote(self, prompt: str | None, first: str | None, second: str | None, winner: str) -> list[Raw]:
        """One comparison, by this task's rule for ties."""
        if prompt is None or first is None or second is None:
            raise Skip(EMPTY)
        if not all(map(is_unicode, (prompt, first, second))):
            raise Skip(BROKEN_TEXT)
        if winner in (TIE, BOTH_BAD):
            if self.ties == "drop":
                raise Skip(winner)
            winner = _coin(prompt, first, second)
        return [Raw(prompt, first, second) if winner == "model_a" else Raw(prompt, second, first)]


class ArenaTask(NamedTask):
    """Which of two models' answers a user voted for, from a local copy or the hub.

    `ties`: `drop` leaves them out and counts them; `coin` keeps them with a preference drawn by a hash of the row, the
    same in every run. `multi_turn`: `drop` leaves out conversations of more than one turn, because the two models'
    earlier answers differ and there is no common prompt; `first` keeps their first turn only, though the vote was about
    the whole conversation.
    """

    hub: str = Field(default="lmsys/chatbot_arena_conversations", description="the data set's name on the hub")
    ties: Literal["drop", "coin"] = Field(default="drop", description="left out, or ordered by a coin")
    multi_turn: Literal["drop", "first"] = Field(default="drop", description="left out, or cut to their first turn")

    def layouts(self) -> Sequence[Layout]:
        return (*Votes(self.ties, self.multi_turn).layouts(), *GENERAL)


def _messages(row: Row, field: str) -> list[Turn]:
    value: Any = row.get(field, REMEDY)
    return parse_messages(row, field, value)


def _join_said(messages: list[Turn], role: str) -> list[str]:
    return [squash(content) for who, content in messages if who == role]


def _first_turn(turns: list[Turn]) -> tuple[list[Turn], str]:
    """What stands before the assistant's first answer, and that answer."""
    at = [role for role, _ in turns].index("assistant")
    return turns[:at], turns[at][1]


def _turns(row: Row, field: str) -> Turns:
    """A cell's JSON list of turns; a model that gave no answer stands there as null."""
    value = row.get(field, REMEDY)
    if value is None:
        raise Skip(EMPTY)
    if isinstance(value, str):
        try:
            value = parse_cell(value)
        except ValueError as error:
            raise fail(row.where, f"field '{field}' is not a JSON list of turns", REMEDY) from error
    if not isinstance(value, list) or not all(turn is None or isinstance(turn, str) for turn in value):
        raise fail(row.where, f"field '{field}' is {json_type(value)}, not a list of texts", REMEDY)
    return value


def _coin(*texts: str) -> str:
    """model_a or model_b with equal chance, by a hash of the texts in no order: swapping the models changes nothing."""
    prompt, first, second = texts
    digest = hashlib.sha256("\0".join([prompt, *sorted((first, second))]).encode()).digest()
    return "model_a" if (digest[0] % 2 == 0) == (first < second) else "model_b"
