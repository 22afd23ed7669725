"""The layouts in which people keep comparisons: one entry each, and how a row of it becomes a prompt and two responses.

`LAYOUTS` is the whole table; a row is read by the first entry whose columns it has. What stands before an answer is the
prompt, from wherever the row gives it; two accounts that contradict each other leave the row out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from aligngap.tasks._dialogue import (
    PREFILLED,
    is_dialogue,
    spelled_list,
)
from aligngap.tasks._files import fail
from aligngap.tasks._prompts import (
    PROMPTS,
    Raw,
    Values,
    first_of,
    make_raw,
    place_side,
    prompt_column,
    read_context,
    read_side,
)
from aligngap.tasks._rows import EMPTY, Row, Skip, is_missing

TIE = "tie"
REVERSED = "scores say that the rejected response is better"
NO_VOTE = "no vote"
ONE_SCORED = "fewer than two scored responses"
JOINED = "response of a comparison that another row of its prompt makes"
SPELLED = "text that may be one response or spell a list of them"
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
SPLITS = {"train", "test", "validation", "data", "rows"}


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
        better = _read_vote(row, label, (first, second), (endings[0], endings[1]))
    if better is None:
        raise Skip(NO_VOTE)
    if better == 0:
        raise Skip(TIE)
    sides = [read_side(row, name, row.values[name], True) for name in (first, second)]
    return [make_raw(row, column, (sides[better > 0], sides[better < 0]))]


def sign(number: float) -> int:
    """-1, 0 or 1."""
    return (number > 0) - (number < 0)


def _read_vote(row: Row, label: str, names: tuple[str, str], endings: tuple[str, str]) -> int | None:
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
