"""The `arena` task: votes of Chatbot Arena's users for one of two models' answers (Chiang et al., arXiv 2403.04132).

Two layouts are read: the CSV with `prompt`, `response_a`, `response_b` (JSON lists of turns) and `winner_*`; and the
rows with `conversation_a`, `conversation_b` and `winner`. Rows of prompt, chosen, rejected are read too.
"""

from __future__ import annotations

import hashlib
from typing import Literal

from pydantic import Field

from aligngap.tasks._common import EMPTY, PROMPTS_DIFFER, Converter, Raw, Skip
from aligngap.tasks._dialogue import parse_messages
from aligngap.tasks._files import fail
from aligngap.tasks._hub import NamedTask
from aligngap.tasks._rows import Row, is_unicode, json_type, parse_cell
from aligngap.tasks.pairs import PairReader

TIE, BOTH_BAD = "tie", "tie (both bad)"
MULTI_TURN = "more than one turn"
BROKEN_TEXT = "lone surrogate in the text"
CSV_FIELDS = ("prompt", "response_a", "response_b")
WINNER_FIELDS = ("winner_model_a", "winner_model_b", "winner_tie")
Turns = list[str | None]
LAYOUT = (
    "give the original columns (prompt, response_a, response_b, winner_*; or conversation_a, conversation_b, winner),"
    " or prompt, chosen, rejected"
)


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

    def converter(self, first: Row) -> Converter:
        if "conversation_a" in first.values or "conversation_b" in first.values:
            return self._conversations
        if "response_a" in first.values or "response_b" in first.values:
            return self._columns
        return PairReader(remedy=LAYOUT).converter(first)

    def _columns(self, row: Row) -> Raw:
        prompts, a, b = (_turns(row, field) for field in CSV_FIELDS)
        flags = [str(row.get(field, LAYOUT)).strip()[:40] for field in WINNER_FIELDS]
        if sorted(flags) != ["0", "0", "1"]:
            raise fail(row.where, f"{', '.join(WINNER_FIELDS)} are {', '.join(flags)}, not one 1 and two 0", LAYOUT)
        return self._pair(prompts, a, b, ("model_a", "model_b", TIE)[flags.index("1")])

    def _conversations(self, row: Row) -> Raw:
        winner = row.text("winner", LAYOUT)
        if winner not in ("model_a", "model_b", "tie", "tie (bothbad)"):
            raise fail(row.where, f"unknown winner '{winner[:40]}'", "use model_a, model_b, tie or tie (bothbad)")
        one, two = (parse_messages(row, f, row.get(f, LAYOUT)) for f in ("conversation_a", "conversation_b"))
        if _said(one, "user") != _said(two, "user"):
            raise Skip(PROMPTS_DIFFER)
        winner = BOTH_BAD if winner == "tie (bothbad)" else winner
        return self._pair(_said(one, "user"), _said(one, "assistant"), _said(two, "assistant"), winner)

    def _pair(self, prompts: Turns, a: Turns, b: Turns, winner: str) -> Raw:
        """One comparison by this task's rules for ties and turns."""
        if len(prompts) > 1 and self.multi_turn == "drop":
            raise Skip(MULTI_TURN)
        prompt, first, second = (turns[0] if turns else None for turns in (prompts, a, b))
        if prompt is None or first is None or second is None:
            raise Skip(EMPTY)
        if not all(map(is_unicode, (prompt, first, second))):
            raise Skip(BROKEN_TEXT)
        if winner in (TIE, BOTH_BAD):
            if self.ties == "drop":
                raise Skip(winner)
            winner = _coin(prompt, first, second)
        return Raw(prompt, first, second) if winner == "model_a" else Raw(prompt, second, first)


def _said(messages: list[tuple[str, str]], role: str) -> Turns:
    return [content for who, content in messages if who == role]


def _turns(row: Row, field: str) -> Turns:
    """A cell's JSON list of turns; a model that gave no answer stands there as null."""
    value = row.get(field, LAYOUT)
    if isinstance(value, str):
        try:
            value = parse_cell(value)
        except ValueError as error:
            raise fail(row.where, f"field '{field}' is not a JSON list of turns", LAYOUT) from error
    if not isinstance(value, list) or not all(turn is None or isinstance(turn, str) for turn in value):
        raise fail(row.where, f"field '{field}' is {json_type(value)}, not a list of texts", LAYOUT)
    return value


def _coin(*texts: str) -> str:
    """model_a or model_b with equal chance, by a hash of the texts in no order: swapping the models changes nothing."""
    prompt, first, second = texts
    digest = hashlib.sha256("\0".join([prompt, *sorted((first, second))]).encode()).digest()
    return "model_a" if (digest[0] % 2 == 0) == (first < second) else "model_b"
