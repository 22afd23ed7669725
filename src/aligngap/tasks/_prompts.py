"""Where a row holds its prompt and its two responses: in one column or in several, as text or as messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aligngap.tasks._dialogue import (
    NO_ANSWER,
    PREFILLED,
    Context,
    Turn,
    opens_dialogue,
    parse_messages,
    read_messages,
    split_dialogue,
    squash,
)
from aligngap.tasks._rows import EMPTY, Row, Skip, is_missing

PROMPTS_DIFFER = "prompts differ"
NEEDS_TOOLS = "tools are offered to the model"
NEEDS_IMAGES = "an image stands beside the prompt"
TWO_PROMPTS = "columns `{}` and `{}` both hold a prompt and differ (task.prompt_field names the right one)"
NO_CONTEXT = "column `{}` beside the prompt is neither text nor messages"

WHOLE_PROMPTS = ("prompt", "instruction", "question", "query")
PARTS = ("input", "context", "history")  #: what stands beside a prompt as a part of it, and alone is the prompt
PROMPTS = (*WHOLE_PROMPTS, *PARTS)
CONVERSATIONS = ("messages", "conversations", "conversation")
SYSTEMS = ("system", "system_prompt")
IMAGES = ("image", "images", "image_url", "image_path")
FEW_WORDS = 3  #: a prompt of fewer words may stand at the beginning of both responses by chance

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Raw:
    """What a row says: a prompt and two responses; `split` is "train" or "test" where the row itself says so."""

    prompt: str
    chosen: str
    rejected: str
    split: str | None = None


# --------------------------------------------------------------------------------------------------------- prompts


def first_of(values: Values, names: Iterable[str]) -> str | None:
    """The first of the names that is a column of the row."""
    return next((name for name in names if name in values), None)


def prompt_column(values: Values, named: str | None = None) -> str | None:
    """The column that holds the prompt: the one the study names, or the first that usually does."""
    return named if named is not None else first_of(values, (*PROMPTS, *CONVERSATIONS))


def read_context(row: Row, column: str, answers: Sequence[str] | None = (), named: bool = False) -> Context:
    """The conversation before the answer, from the prompt's column and all the others that hold a part of it.

    `answers` are the row's responses: a conversation that ends with one of them ends before it; None: with whatever
    answer it ends. `named`: the study says that this column is the prompt, so that no other can be.
    """
    context = _conversation(row, column, answers)
    for other in () if named else WHOLE_PROMPTS:
        if other != column and _says(row.values, other):
            context = _one_prompt(column, context, other, _conversation(row, other, answers))
    for name in PARTS:
        if name != column and _says(row.values, name):
            context = _with_part(row, name, context)
    for other in CONVERSATIONS:
        if other != column and row.values.get(other):
            context = context.merged(_conversation(row, other, None))
    return read_beside(row, context)


def read_beside(row: Row, context: Context) -> Context:
    """The conversation with what its row's other columns say of it: a system message; Skip where they offer more."""
    values = row.values
    for name in SYSTEMS:
        if _says(values, name):
            system = ("system", row.text(name, ""))
            if context.turns[0][0] == "system":
                context = context.merged(Context((system,), ""))
            else:
                context = Context.of_turns([system, *context.turns])
    if _says(values, "tools"):
        raise Skip(NEEDS_TOOLS)
    if any(_says(values, name) for name in IMAGES):
        raise Skip(NEEDS_IMAGES)
    return context


def _says(values: Values, name: str) -> bool:
    """Whether a column holds something."""
    value = values.get(name)
    return not is_missing(value) and value not in ([], {}) and str(value).strip() not in ("", "[]", "{}")


def _one_prompt(column: str, context: Context, other: str, second: Context) -> Context:
    """The longer of two columns that both hold the prompt; Skip where neither holds the other."""
    for longer, shorter in ((context, second), (second, context)):
        if longer.holds(shorter) or squash(shorter.text) in squash(longer.text):
            return longer
    raise Skip(TWO_PROMPTS.format(column, other))


def _with_part(row: Row, name: str, context: Context) -> Context:
    """The conversation with what stands in another column as a part of it: earlier turns, or text before or after."""
    value = row.values[name]
    if isinstance(value, list) and (name == "history" or isinstance(value[0], dict)):
        earlier = _history(row) if name == "history" else parse_messages(row, name, value)
        whole = Context.of_turns(earlier) if earlier else context
        return context if context.holds(whole) else Context.of_turns([*earlier, *context.turns])
    if not isinstance(value, str):
        raise Skip(NO_CONTEXT.format(name))
    if squash(value) in squash(context.text):
        return context
    if context.plain:
        return Context.of_text("\n\n".join([context.text, value] if name == "input" else [value, context.text]))
    asked = [number for number, (role, _) in enumerate(context.turns) if role == "user"]
    if not asked:
        raise Skip(NO_CONTEXT.format(name))
    at = asked[-1] if name == "input" else asked[0]
    said = context.turns[at][1]
    said = f"{said}\n\n{value}" if name == "input" else f"{value}\n\n{said}"
    return Context.of_turns([*context.turns[:at], ("user", said), *context.turns[at + 1 :]])


def _conversation(row: Row, column: str, answers: Sequence[str] | None) -> Context:
    """A column's text or messages; without the answer at its end, if it is one of `answers` (None: whatever it is)."""
    value = row.get(column, "")
    if isinstance(value, dict) and isinstance(value.get("full_text"), str):  # as WebGPT has its questions
        value = value["full_text"]
    if value == []:
        raise Skip(EMPTY)
    if read_messages(value) is None:
        found = Context.of_text(_solid(row.check_text(value, column, "text or a list of messages")))
        answered = found.begun is not None and answers is not None and squash(found.begun) in map(squash, answers)
        return Context.of_turns(found.turns[:-1]) if answered else found
    turns = parse_messages(row, column, value)
    if turns and turns[-1][0] == "assistant" and (answers is None or squash(turns[-1][1]) in map(squash, answers)):
        turns = turns[:-1]
    if not turns:
        raise Skip(EMPTY)
    return Context.of_turns(turns)


def _solid(text: str) -> str:
    if not text.strip():
        raise Skip(EMPTY)
    return text


def _history(row: Row) -> list[Turn]:
    """Earlier turns as a list of [question, answer] pairs, or as messages."""
    value = row.values["history"]
    if all(isinstance(pair, list) and len(pair) == 2 for pair in value):
        said = [row.check_text(text, "history") for pair in value for text in pair]
        return [("assistant" if number % 2 else "user", text) for number, text in enumerate(said)]
    return parse_messages(row, "history", value)


# --------------------------------------------------------------------------------------------------------- answers


@dataclass(frozen=True)
class Side:
    """One response, and what its own field says of the conversation: all of it (`before`), or what came `after`."""

    answer: str
    before: Context | None = None
    after: tuple[Turn, ...] = ()


def read_side(row: Row, field: str, value: object, has_prompt: bool) -> Side:
    """A response given as text, as a whole dialogue, as messages, or as one message."""
    if value is None or value == []:
        raise Skip(EMPTY)
    if read_messages(value) is not None:
        turns = parse_messages(row, field, value)
        if not turns or turns[-1][0] != "assistant":
            raise Skip(NO_ANSWER)
        *before, (_, answer) = turns
        if not before and not has_prompt:
            raise Skip(EMPTY)
        goes_on = turns[0][0] == "assistant"  # after the prompt's last turn
        return Side(answer, None, tuple(before)) if goes_on else Side(answer, Context.of_turns(before))
    text = row.check_text(value, field, "text or a list of messages" if has_prompt else "a dialogue")
    if opens_dialogue(text) or not has_prompt:
        if has_prompt and not text.strip():
            raise Skip(EMPTY)
        context, answer = split_dialogue(text)
        return Side(answer, context)
    return Side(text)


def place_side(context: Context | None, side: Side) -> Context:
    """The conversation before this response, from the row's prompt and from the response's own field."""
    if side.before is not None:
        return side.before if context is None else context.merged(side.before)
    if context is None:
        raise Skip(PREFILLED)
    return Context.of_turns([*context.turns, *side.after]) if side.after else context


def make_raw(row: Row, column: str | None, sides: tuple[Side, Side], named: bool = False) -> Raw:
    """The comparison of two responses (the better one first) to the prompt in `column`, or in both responses.

    Where the prompt ends inside the assistant's turn, the responses go on from there: as they stand, or, if both begin
    with what it gives of the answer, without that.
    """
    answers = [side.answer for side in sides]
    context = None if column is None else read_context(row, column, answers, named)
    chosen, rejected = (place_side(context, side) for side in sides)
    if chosen is not rejected and not (chosen.holds(rejected) and rejected.holds(chosen)):
        raise Skip(PROMPTS_DIFFER)
    if column is None:
        chosen = read_beside(row, chosen)
    if chosen.begun is None:
        return Raw(chosen.text, *_without_prompt(chosen.text, *answers))
    if context is None or context.begun != chosen.begun or any(side.after for side in sides):
        raise Skip(PREFILLED)
    begun = chosen.begun
    if all(answer.startswith(begun) for answer in answers):
        answers = [answer.removeprefix(begun) for answer in answers]
    elif column in CONVERSATIONS or any(side.before and side.before.begun is None for side in sides):
        raise Skip(PREFILLED)  # it is as well another answer, of which the two are no continuations
    return Raw(chosen.text, *_without_prompt(chosen.text, *answers))


def _without_prompt(prompt: str, chosen: str, rejected: str) -> tuple[str, str]:
    """The responses without the prompt, if both begin with it and go on, and it is too long for that to be chance."""
    if len(prompt.split()) >= FEW_WORDS and all(a.startswith(prompt) and a != prompt for a in (chosen, rejected)):
        return chosen[len(prompt) :], rejected[len(prompt) :]
    return chosen, rejected
