"""The layouts in which people keep comparisons: one entry each, and how a row of it becomes a prompt and two responses.

`LAYOUTS` is the whole table; a row is read by the first entry whose columns it has. What stands before an answer is the
prompt, from wherever the row gives it; two accounts that contradict each other leave the row out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from aligngap.tasks._dialogue import (
    NO_ANSWER,
    PREFILLED,
    Context,
    Turn,
    is_dialogue,
    opens_dialogue,
    parse_messages,
    read_messages,
    spelled_list,
    split_dialogue,
    squash,
)
from aligngap.tasks._files import fail
from aligngap.tasks._rows import EMPTY, Row, Skip, is_missing

PROMPTS_DIFFER = "prompts differ"
TIE = "tie"
REVERSED = "scores say that the rejected response is better"
NO_VOTE = "no vote"
ONE_SCORED = "fewer than two scored responses"
JOINED = "response of a comparison that another row of its prompt makes"
NEEDS_TOOLS = "tools are offered to the model"
NEEDS_IMAGES = "an image stands beside the prompt"
SPELLED = "text that may be one response or spell a list of them"
TWO_PROMPTS = "columns `{}` and `{}` both hold a prompt and differ (task.prompt_field names the right one)"
NO_CONTEXT = "column `{}` beside the prompt is neither text nor messages"

WHOLE_PROMPTS = ("prompt", "instruction", "question", "query")
PARTS = ("input", "context", "history")  #: what stands beside a prompt as a part of it, and alone is the prompt
PROMPTS = (*WHOLE_PROMPTS, *PARTS)
CONVERSATIONS = ("messages", "conversations", "conversation")
SYSTEMS = ("system", "system_prompt")
LABELS = ("better_response_id", "label", "preference", "preferred", "winner", "choice", "chosen", "better")
STRENGTHS = ("preference_strength", "overall_preference")
TIES = ("tie", "draw", "equal", "both", "neither", "both_bad", "bothbad", "tie (bothbad)")
STEMS = ("response", "answer", "output", "completion")
SCORED_LISTS = ("completions", "responses", "answers", "generations")
TEXTS = ("response", "content", "text", "answer", "completion", "output")
SCORES = ("overall_score", "score", "rating", "fine-grained_score")
SCORE_LISTS = ("scores", "ratings", "rating", "score", "overall_scores")
RANKS = ("rank", "ranks")
ROW_SCORES = ("helpfulness", "overall_score", "score", "rating")
IMAGES = ("image", "images", "image_url", "image_path")
SPLITS = {"train", "test", "validation", "data", "rows"}
FEW_WORDS = 3  #: a prompt of fewer words may stand at the beginning of both responses by chance

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Raw:
    """What a row says: a prompt and two responses; `split` is "train" or "test" where the row itself says so."""

    prompt: str
    chosen: str
    rejected: str
    split: str | None = None


@dataclass(frozen=True)
class Rated:
    """What a row of one response says; rows of the same prompt that follow each other make one comparison."""

    prompt: str
    response: str
    score: float


@dataclass(frozen=True)
class Layout:
    """One way to lay out comparisons: its name, the columns it needs, and how its rows are read."""

    name: str
    columns: str
    meaning: str
    fits: Callable[[Values], bool]
    read: Callable[[Row], Sequence[Raw | Rated | Skip]]


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


# ----------------------------------------------------------------------------------- prompt, chosen and rejected


@dataclass(frozen=True)
class PairColumns:
    """The names of the columns of prompt, chosen and rejected; None: whatever column usually holds the prompt."""

    prompt: str | None = None
    chosen: str = "chosen"
    rejected: str = "rejected"
    remedy: str | None = None  #: what an error advises, where it is not to name the right column

    def layouts(self) -> tuple[Layout, Layout]:
        """The two layouts of rows that say themselves which response is better, by these names of the columns."""
        prompt, pair = self.prompt or "prompt", (self.chosen, self.rejected)

        def fits(values: Values) -> bool:
            return all(name in values for name in pair) and prompt_column(values, self.prompt) in values

        return (
            Layout(
                "prompt, chosen, rejected",
                f"{', '.join(f'`{n}`' for n in (prompt, *PROMPTS[1:]))} or `messages` …; `chosen`, `rejected`",
                "Text, messages, or text that spells them. What stands before the answer is the prompt: in the prompt "
                "column, in `chosen` and `rejected`, in a `system`, `history`, `input` or `context` column. A list of "
                "rejected texts, in a table also one that is spelled, makes a comparison each. Scores (`score_chosen`, "
                "`score_rejected`; `chosen_score` …) leave out ties and rows that they contradict.",
                fits,
                self.read_with_prompt,
            ),
            Layout(
                "chosen, rejected",
                "`chosen`, `rejected`",
                "Two whole conversations, as messages or as `Human:` and `Assistant:` text, cut at the last answer.",
                lambda values: all(name in values for name in pair),
                self.read_dialogues,
            ),
        )

    def read_with_prompt(self, row: Row) -> list[Raw | Skip]:
        """A row with a prompt of its own; of several rejected responses, each makes a comparison or is left out."""
        column = prompt_column(row.values, self.prompt)
        if column is None or column not in row.values:
            row.get(self.prompt or "prompt", self._advise("prompt"))
        check_scores(row, self.chosen, self.rejected)
        better = read_side(row, self.chosen, row.get(self.chosen, self._advise("chosen")), True)
        value = self._rejected(row)
        several = value if isinstance(value, list) and value and not isinstance(value[0], dict) else [value]
        named = self.prompt is not None
        made: list[Raw | Skip] = []
        for worse in several:
            try:
                made.append(make_raw(row, column, (better, read_side(row, self.rejected, worse, True)), named))
            except Skip as reason:
                made.append(reason)
        return made

    def _rejected(self, row: Row) -> object:
        """The rejected responses: one, or a list of them, which in a table of plain text is spelled.

        Where the row cannot tell whether a text is an answer or spells a list of answers, it is left out: in a table
        both responses may be answers in the form of a list; elsewhere a list would stand there as one.
        """
        value = row.get(self.rejected, self._advise("rejected"))
        spelled, better = (spells_texts(v) for v in (value, row.values[self.chosen]))
        if spelled is None or (row.typed and better is not None):
            return value
        if row.typed or better is not None:
            raise Skip(SPELLED)
        return spelled

    def read_dialogues(self, row: Row) -> list[Raw]:
        """A row of two whole conversations, which must agree up to the last answer."""
        values = [row.get(self.chosen, self._advise("chosen")), row.get(self.rejected, self._advise("rejected"))]
        if any(isinstance(value, str) and not is_dialogue(value) for value in values) or self.prompt is not None:
            names = f"'{self.chosen}' and '{self.rejected}'"
            what = f"no field '{self.prompt or 'prompt'}', and {names} are not whole dialogues"
            if not all(value.strip() for value in values if isinstance(value, str)):
                raise Skip(EMPTY)
            raise fail(row.where, what, self._advise("prompt"))
        check_scores(row, self.chosen, self.rejected)
        better, worse = (read_side(row, n, v, False) for n, v in zip((self.chosen, self.rejected), values, strict=True))
        return [make_raw(row, None, (better, worse))]

    def _advise(self, role: str) -> str:
        return self.remedy or f"add it, or name the right one in task.{role}_field"


def spells_texts(value: object) -> list[str] | None:
    """The texts of a list that a text spells; None where it spells no list of texts."""
    found = spelled_list(value) if isinstance(value, str) else None
    return found if found and all(isinstance(text, str) for text in found) else None


@cache
def score_columns(chosen: str, rejected: str) -> tuple[tuple[str, str], ...]:
    """The pairs of columns in which the two responses may have scores."""
    forms = ("score_{}", "{}_score", "{}_rating", "{}-rating", "rating_{}")
    return tuple((form.format(chosen), form.format(rejected)) for form in forms)


def check_scores(row: Row, chosen: str, rejected: str) -> None:
    """Leave out a row whose own scores say that its responses are equal, or that they stand the wrong way round."""
    for names in score_columns(chosen, rejected):
        if all(name in row.values for name in names):
            better, worse = (number_of(row.values[name]) for name in names)
            if better is not None and worse is not None and better <= worse:
                raise Skip(TIE if better == worse else REVERSED)


def number_of(value: object) -> float | None:
    """The value as a finite number, also where a table holds it as text; None where it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if abs(number) < float("inf") else None


# --------------------------------------------------------------------------------------- two responses and a vote


def two_columns(values: Values) -> tuple[str, str, str, str] | None:
    """The columns of two responses, and by which endings a label may call them ("0" and "1", "a" and "b" …)."""
    for stem in STEMS:
        for first, second in (("0", "1"), ("1", "2"), ("a", "b"), ("A", "B")):
            for between in ("_", ""):
                names = stem + between + first, stem + between + second
                if all(name in values for name in names):
                    return (*names, first, second)
    return None


def has_vote(values: Values) -> bool:
    """Whether a row has a prompt, two responses and a vote between them."""
    columns = two_columns(values)
    if columns is None or prompt_column(values) is None:
        return False
    scores = all(f"score_{ending}" in values for ending in columns[2:])
    return scores or first_of(values, (*LABELS, *STRENGTHS)) is not None


def read_vote(row: Row) -> list[Raw]:
    """Two responses, of which a label, a signed strength or two scores say which is better."""
    columns, column = two_columns(row.values), prompt_column(row.values)
    if columns is None or column is None:
        raise fail(row.where, "no two responses beside a prompt", "name them prompt, response_0 and response_1")
    first, second, *endings = columns
    label = first_of(row.values, (*STRENGTHS, *LABELS))
    if label is None:
        scores = [number_of(row.get(f"score_{ending}", "")) for ending in endings]
        better = None if None in scores else sign(scores[1] - scores[0])  # type: ignore[operator]
    elif label in STRENGTHS:
        strength = number_of(row.values[label])
        better = None if strength is None else sign(strength)
    else:
        better = _voted(row, label, (first, second), (endings[0], endings[1]))
    if better is None:
        raise Skip(NO_VOTE)
    if better == 0:
        raise Skip(TIE)
    sides = [read_side(row, name, row.values[name], True) for name in (first, second)]
    return [make_raw(row, column, (sides[better > 0], sides[better < 0]))]


def sign(number: float) -> int:
    """-1, 0 or 1."""
    return (number > 0) - (number < 0)


def _voted(row: Row, label: str, names: tuple[str, str], endings: tuple[str, str]) -> int | None:
    """-1 if the label says the first response, 1 if the second, 0 for a tie, None where it says nothing."""
    value = row.values[label]
    number = number_of(value)
    said = f"{number:g}" if number is not None else "" if value is None else str(value).strip().lower()
    if said in ("", "-1", "nan", "none"):
        return None
    if said in TIES:
        return 0
    for better, name, ending in zip((-1, 1), names, endings, strict=True):
        if said in (name.lower(), ending.lower(), f"model_{ending.lower()}", f"response_{ending.lower()}"):
            return better
    words = ", ".join([*endings, *names, "tie"])
    raise fail(row.where, f"field '{label}' is {str(value)[:40]!r}, which names neither response", f"use {words}")


def read_better_first(row: Row) -> list[Raw]:
    """Two responses of which the first column holds the better one."""
    sides = [read_side(row, name, row.values[name], True) for name in ("response_j", "response_k")]
    return [make_raw(row, prompt_column(row.values), (sides[0], sides[1]))]


def read_shp(row: Row) -> list[Raw]:
    """Two people's answers; `labels` is 1 where the first got more votes."""
    vote = number_of(row.values["labels"])
    if vote not in (0, 1):
        raise fail(row.where, f"field 'labels' is {str(row.values['labels'])[:40]!r}, not 0 or 1", "give 1 for A")
    names = ("human_ref_A", "human_ref_B") if vote == 1 else ("human_ref_B", "human_ref_A")
    better, worse = (read_side(row, name, row.values[name], True) for name in names)
    return [make_raw(row, "history", (better, worse))]


# ------------------------------------------------------------------------------------------------ scored responses


def scored_list(values: Values) -> str | None:
    """The column of a list of responses with scores or ranks: objects that hold both, or texts beside a second list."""
    for name in SCORED_LISTS:
        found = values.get(name)
        if isinstance(found, list) and found:
            first = found[0]
            if isinstance(first, dict) and first_of(first, TEXTS) and first_of(first, (*SCORES, *RANKS)):
                return name
            scores = first_of(values, (*SCORE_LISTS, *RANKS))
            if isinstance(first, str) and scores is not None and isinstance(values[scores], list):
                return name
    return None


def read_scored(row: Row) -> list[Raw]:
    """The best and the worst of several scored responses, the first one of equals."""
    name, column = scored_list(row.values), prompt_column(row.values)
    if name is None or column is None:
        raise fail(row.where, "no list of scored responses beside a prompt", "give completions with response and score")
    scored = []
    for response, score in _scores(row, name):
        if score is not None:
            scored.append((score, read_side(row, name, response, True)))
    if len(scored) < 2:
        raise Skip(ONE_SCORED)
    best, worst = (pick(scored, key=lambda pair: pair[0]) for pick in (max, min))
    if best[0] == worst[0]:
        raise Skip(TIE)
    return [make_raw(row, column, (best[1], worst[1]))]


def _scores(row: Row, name: str) -> list[tuple[object, float | None]]:
    """Each response with its score, the higher the better; None where it has none."""
    found = row.values[name]
    if isinstance(found[0], dict):
        pairs = []
        for item in found:
            text, score = (first_of(item, names) if isinstance(item, dict) else None for names in (TEXTS, SCORES))
            if text is None:
                raise fail(
                    row.where, f"an entry of '{name}' has no response", "give completions with response and score"
                )
            rank = first_of(item, RANKS)
            worth = number_of(item[score]) if score else _negative(number_of(item[rank])) if rank else None
            pairs.append((item[text], worth))
        return pairs
    scores = str(first_of(row.values, (*SCORE_LISTS, *RANKS)))
    numbers = [number_of(value) for value in row.values[scores]]
    if len(numbers) != len(found):
        raise fail(row.where, f"'{scores}' has {len(numbers)} entries, '{name}' {len(found)}", "give one a response")
    return list(zip(found, [_negative(n) if scores in RANKS else n for n in numbers], strict=True))


def _negative(number: float | None) -> float | None:
    return None if number is None else -number


def read_rated(row: Row) -> list[Rated]:
    """One response and its score; the rows of a prompt that follow each other are compared when all are read."""
    column, score = prompt_column(row.values), first_of(row.values, ROW_SCORES)
    if column is None or score is None:
        raise fail(row.where, "no score beside prompt and response", f"give one of {', '.join(ROW_SCORES)}")
    rating, side = number_of(row.values[score]), read_side(row, "response", row.values["response"], True)
    if rating is None:
        raise Skip(NO_VOTE)
    context = place_side(read_context(row, column, [side.answer]), side)
    if context.begun is not None:
        raise Skip(PREFILLED)
    return [Rated(context.text, side.answer, rating)]


def compare_rated(rated: Sequence[Rated]) -> Raw:
    """The best against the worst of one prompt's rated responses."""
    best, worst = (pick(rated, key=lambda one: one.score) for pick in (max, min))
    if len(rated) < 2:
        raise Skip(ONE_SCORED)
    if best.score == worst.score:
        raise Skip(TIE)
    return Raw(best.prompt, best.response, worst.response)


# -------------------------------------------------------------------------------------------------- rows of tables

LISTS = ("history", "summaries", "info", *SCORED_LISTS, *SCORE_LISTS, *RANKS)  #: columns that may hold a list


def as_meant(row: Row, seen: set[str]) -> Row:
    """The row with null where a value is missing and, in a table of plain text, with the lists that cells spell.

    The names of the columns that are read of it are added to `seen`.
    """
    values: dict[str, Any] = {}
    for name, value in row.values.items():
        if is_missing(value):
            value = None
        elif not row.typed and name in LISTS and isinstance(value, str):
            value = value if (found := spelled_list(value)) is None else found
        values[name] = value
    return Row(row.where, Columns(values, seen), row.typed)


class Columns(dict[str, Any]):
    """A row's values by column, which note the names of those that are read."""

    def __init__(self, values: Values, seen: set[str]) -> None:
        super().__init__(values)
        self.seen = seen

    def __getitem__(self, name: str) -> Any:
        self.seen.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        """The value of a column, or the default where there is none."""
        if name not in self:
            return default
        return self[name]


# ------------------------------------------------------------------------------------------------------- the table

PAIRS, DIALOGUES = PairColumns().layouts()
VOTE = Layout(
    "two responses and a vote",
    "a prompt; `response_0`, `response_1` (or `_1`, `_2`; `_a`, `_b`; `answer_`, `output_` …); a label or scores",
    "The label (`label`, `preference`, `better_response_id`, `winner` …) names a response by its column or its ending, "
    "or says tie. `preference_strength` and `overall_preference` are below 0 where the first one is better. Without a "
    "label `score_0` and `score_1` decide.",
    has_vote,
    read_vote,
)
BETTER_FIRST = Layout(
    "response_j, response_k",
    "a prompt, `response_j`, `response_k`",
    "`response_j` is the better one.",
    lambda values: {"response_j", "response_k"} <= set(values) and prompt_column(values) is not None,
    read_better_first,
)
SHP = Layout(
    "history, human_ref_A, human_ref_B",
    "`history`, `human_ref_A`, `human_ref_B`, `labels`",
    "`labels` is 1 where A is the better one, and 0 where B is.",
    lambda values: {"history", "human_ref_A", "human_ref_B", "labels"} <= set(values),
    read_shp,
)
SCORED = Layout(
    "several scored responses",
    "a prompt; `completions`, `responses`, `answers` or `generations`, with scores or ranks inside or in a second list",
    "The best against the worst, one comparison a row; all equal is a tie.",
    lambda values: scored_list(values) is not None and prompt_column(values) is not None,
    read_scored,
)
RATED = Layout(
    "one rated response a row",
    "a prompt, `response`, and `helpfulness`, `overall_score`, `score` or `rating`",
    "Rows of one prompt that follow each other make one comparison, of the best against the worst.",
    lambda v: "response" in v and prompt_column(v) is not None and first_of(v, ROW_SCORES) is not None,
    read_rated,
)
GENERAL = (PAIRS, DIALOGUES, VOTE, BETTER_FIRST, SHP, SCORED, RATED)


def find_layout(layouts: Sequence[Layout], row: Row) -> Layout | None:
    """The first of the layouts whose columns the row has."""
    return next((layout for layout in layouts if layout.fits(row.values)), None)


def refuse_row(layouts: Sequence[Layout], row: Row, first: Layout | None) -> Layout:
    """The layout whose reading of the row says best what it lacks: that of the file's first row, or the nearest.

    An error that names the layouts there are, where the row is like none of them.
    """
    if first is not None:
        return first
    if {"prompt", "chosen", "rejected"} & set(row.values):
        return next((layout for layout in layouts if layout.name == PAIRS.name), layouts[0])
    has = ", ".join(list(map(str, row.values))[:12])[:200] or "none"
    known = "; ".join(layout.name for layout in layouts)
    raise fail(row.where, f"of no known layout (fields: {has})", f"known are: {known}")


def refuse_columns(row: Row) -> None:
    """Raise the error of a file that is one object of columns or of splits, and not rows."""
    values = list(row.values.values())
    indexed = all(isinstance(value, dict) and "0" in value for value in values)
    lists = all(isinstance(value, list) and value and isinstance(value[0], str) for value in values)
    if values and (indexed or lists or set(row.values) <= SPLITS):
        what = f"holds columns or splits, not rows (fields: {', '.join(row.values)[:200]})"
        raise fail(row.where, what, "write one object a row, as `to_json(orient='records', lines=True)` does")
