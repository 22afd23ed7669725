"""The layouts that people keep comparisons in: rows as they are published, read or counted under one reason."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aligngap.tasks.arena import ArenaTask
from aligngap.tasks.pairs import LAYOUTS, PairsTask
from aligngap.types import AligngapError, TaskData

Row = dict[str, Any]
N = 6


def user(text: str) -> Row:
    return {"role": "user", "content": text}


def assistant(text: str) -> Row:
    return {"role": "assistant", "content": text}


def system(text: str) -> Row:
    return {"role": "system", "content": text}


def human(text: str) -> Row:
    return {"from": "human", "value": text}


def gpt(text: str) -> Row:
    return {"from": "gpt", "value": text}


def load(
    folder: Path, rows: list[Row], task: type[PairsTask] | type[ArenaTask] = PairsTask, **options: Any
) -> TaskData:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = task(path=str(path), **options).load(0)
    assert data.rows == len(rows)
    assert sum(data.layouts.values()) == data.rows
    assert data.rows + data.more == len(data.train) + len(data.test) + sum(data.dropped.values())
    return data


def texts(data: TaskData) -> set[tuple[str, str, str]]:
    return {(c.prompt, c.chosen, c.rejected) for c in (*data.train, *data.test)}


SAID = "Human: boil 0\n\nAssistant: use a kettle\n\nHuman: and then?\n\nAssistant:"
ASKED = "Human: boil 0\n\nAssistant:"
FRENCH = "System: answer in French\n\nHuman: boil 0\n\nAssistant:"
PAIR, DIALOGUE, VOTE = "prompt, chosen, rejected", "chosen, rejected", "two responses and a vote"

#: what it is, a row by its number, the layout, the prompt that row 0 gives; its responses are "yes" and "no"
LAID_OUT: list[tuple[str, Callable[[int], Row], str, str]] = [
    ("texts", lambda i: {"prompt": f"boil {i}", "chosen": "yes", "rejected": "no"}, PAIR, "boil 0"),
    (
        "conversations beside the first question (UltraFeedback binarised)",
        lambda i: {
            "prompt": f"boil {i}",
            "prompt_id": "x",
            "messages": [user(f"boil {i}"), assistant("yes")],
            "chosen": [user(f"boil {i}"), assistant("yes")],
            "rejected": [user(f"boil {i}"), assistant("no")],
            "score_chosen": 8.0,
            "score_rejected": 4.5,
        },
        PAIR,
        "boil 0",
    ),
    (
        "a conversation of several turns beside its first question",
        lambda i: {
            "prompt": f"boil {i}",
            "chosen": [user(f"boil {i}"), assistant("use a kettle"), user("and then?"), assistant("yes")],
            "rejected": [user(f"boil {i}"), assistant("use a kettle"), user("and then?"), assistant("no")],
        },
        PAIR,
        SAID,
    ),
    (
        "a system message in the conversations only (Orca)",
        lambda i: {
            "prompt": f"boil {i}",
            "chosen": [system("answer in French"), user(f"boil {i}"), assistant("yes")],
            "rejected": [system("answer in French"), user(f"boil {i}"), assistant("no")],
        },
        PAIR,
        FRENCH,
    ),
    (
        "a system column",
        lambda i: {"system": "answer in French", "question": f"boil {i}", "chosen": "yes", "rejected": "no"},
        PAIR,
        FRENCH,
    ),
    (
        "prompt and answers as messages (TRL, explicit prompt)",
        lambda i: {"prompt": [user(f"boil {i}")], "chosen": [assistant("yes")], "rejected": [assistant("no")]},
        PAIR,
        ASKED,
    ),
    (
        "answers that go on for several turns",
        lambda i: {
            "prompt": [user(f"boil {i}")],
            "chosen": [assistant("use a kettle"), user("and then?"), assistant("yes")],
            "rejected": [assistant("use a kettle"), user("and then?"), assistant("no")],
        },
        PAIR,
        SAID,
    ),
    (
        "the prompt inside both conversations (TRL, implicit prompt)",
        lambda i: {"chosen": [user(f"boil {i}"), assistant("yes")], "rejected": [user(f"boil {i}"), assistant("no")]},
        DIALOGUE,
        ASKED,
    ),
    (
        "the prompt at the beginning of both texts",
        lambda i: {
            "prompt": f"the kettle {i} is",
            "chosen": f"the kettle {i} isyes",
            "rejected": f"the kettle {i} isno",
        },
        PAIR,
        "the kettle 0 is",
    ),
    (
        "dialogues as text (HH)",
        lambda i: {
            "chosen": f"\n\nHuman: boil {i}\n\nAssistant: yes",
            "rejected": f"\n\nHuman: boil {i}\n\nAssistant: no",
        },
        DIALOGUE,
        ASKED,
    ),
    (
        "dialogues as text beside their prompt",
        lambda i: {
            "prompt": f"\n\nHuman: boil {i}\n\nAssistant:",
            "chosen": f"\n\nHuman: boil {i}\n\nAssistant: yes",
            "rejected": f"\n\nHuman: boil {i}\n\nAssistant: no",
        },
        PAIR,
        ASKED,
    ),
    (
        "ShareGPT, one message a response",
        lambda i: {"conversations": [human(f"boil {i}")], "chosen": gpt("yes"), "rejected": gpt("no")},
        PAIR,
        ASKED,
    ),
    (
        "ShareGPT, whole conversations",
        lambda i: {"chosen": [human(f"boil {i}"), gpt("yes")], "rejected": [human(f"boil {i}"), gpt("no")]},
        DIALOGUE,
        ASKED,
    ),
    (
        "messages and two answers",
        lambda i: {"messages": [user(f"boil {i}")], "chosen": "yes", "rejected": "no"},
        PAIR,
        ASKED,
    ),
    (
        "messages that end with the chosen answer",
        lambda i: {"messages": [user(f"boil {i}"), assistant("yes")], "chosen": "yes", "rejected": "no"},
        PAIR,
        ASKED,
    ),
    (
        "roles in capitals and contents as parts",
        lambda i: {
            "prompt": [{"role": "User", "content": [{"type": "text", "text": f"boil {i}"}]}],
            "chosen": "yes",
            "rejected": "no",
        },
        PAIR,
        ASKED,
    ),
    (
        "messages as two lists (a sequence of features)",
        lambda i: {
            "prompt": f"boil {i}",
            "chosen": {"role": ["user", "assistant"], "content": [f"boil {i}", "yes"]},
            "rejected": {"role": ["user", "assistant"], "content": [f"boil {i}", "no"]},
        },
        PAIR,
        "boil 0",
    ),
    (
        "messages as JSON text",
        lambda i: {
            "prompt": f"boil {i}",
            "chosen": json.dumps([user(f"boil {i}"), assistant("yes")]),
            "rejected": json.dumps([user(f"boil {i}"), assistant("no")]),
        },
        PAIR,
        "boil 0",
    ),
    (
        "messages as Python prints them",
        lambda i: {
            "chosen": str([user(f"boil {i}"), assistant("yes")]),
            "rejected": str([user(f"boil {i}"), assistant("no")]),
        },
        DIALOGUE,
        ASKED,
    ),
    (
        "an instruction with an input (Alpaca)",
        lambda i: {"instruction": "translate", "input": f"boil {i}", "chosen": "yes", "rejected": "no"},
        PAIR,
        "translate\n\nboil 0",
    ),
    (
        "earlier turns in a history",
        lambda i: {
            "instruction": "and then?",
            "input": "",
            "history": [[f"boil {i}", "use a kettle"]],
            "chosen": "yes",
            "rejected": "no",
        },
        PAIR,
        SAID,
    ),
    (
        "two responses and the number of the better (SafeRLHF)",
        lambda i: {
            "prompt": f"boil {i}",
            "response_0": "yes" if i % 2 == 0 else "no",
            "response_1": "no" if i % 2 == 0 else "yes",
            "is_response_0_safe": True,
            "better_response_id": i % 2,
            "safer_response_id": 1,
        },
        VOTE,
        "boil 0",
    ),
    (
        "outputs 1 and 2 and a preference (AlpacaFarm)",
        lambda i: {"instruction": f"boil {i}", "input": "", "output_1": "no", "output_2": "yes", "preference": 2},
        VOTE,
        "boil 0",
    ),
    (
        "a signed strength (HelpSteer 2)",
        lambda i: {"prompt": f"boil {i}", "response_1": "yes", "response_2": "no", "preference_strength": -2},
        VOTE,
        "boil 0",
    ),
    (
        "a conversation and a signed preference (HelpSteer 3)",
        lambda i: {"context": [user(f"boil {i}")], "response1": "no", "response2": "yes", "overall_preference": 3},
        VOTE,
        ASKED,
    ),
    (
        "two answers with scores (WebGPT)",
        lambda i: {
            "question": {"dataset": "eli5", "full_text": f"boil {i}"},
            "answer_0": "no",
            "answer_1": "yes",
            "score_0": -0.5,
            "score_1": 0.5,
        },
        VOTE,
        "boil 0",
    ),
    (
        "the better first (StackExchange)",
        lambda i: {"qid": i, "question": f"boil {i}", "response_j": "yes", "response_k": "no"},
        "response_j, response_k",
        "boil 0",
    ),
    (
        "people's answers (SHP)",
        lambda i: {"history": f"boil {i}", "human_ref_A": "no", "human_ref_B": "yes", "labels": 0, "score_A": 3},
        "history, human_ref_A, human_ref_B",
        "boil 0",
    ),
    (
        "completions with scores (UltraFeedback)",
        lambda i: {
            "instruction": f"boil {i}",
            "models": ["a", "b", "c"],
            "completions": [
                {"response": "so so", "overall_score": 5.0, "annotations": {}},
                {"response": "no", "overall_score": 2.0},
                {"response": "yes", "overall_score": 9.0},
            ],
        },
        "several scored responses",
        "boil 0",
    ),
    (
        "answers with ranks (Nectar)",
        lambda i: {
            "prompt": f"\n\nHuman: boil {i}\n\nAssistant: ",
            "answers": [{"answer": "no", "rank": 3}, {"answer": "yes", "rank": 1}, {"answer": "so so", "rank": 2}],
        },
        "several scored responses",
        ASKED + " ",
    ),
    (
        "texts beside a list of ratings",
        lambda i: {"input": f"boil {i}", "generations": ["no", "yes"], "rating": [1.0, 4.0]},
        "several scored responses",
        "boil 0",
    ),
    (
        "votes on two conversations (arena)",
        lambda i: {
            "conversation_a": [user(f"boil {i}"), assistant("no")],
            "conversation_b": [user(f"boil {i}"), assistant("yes")],
            "winner": "model_b",
            "turn": 1,
        },
        "conversation_a, conversation_b, winner",
        "boil 0",
    ),
    (
        "votes on two conversations with a system message",
        lambda i: {
            "conversation_a": [system("answer in French"), user(f"boil {i}"), assistant("yes")],
            "conversation_b": [system("answer in French"), user(f"boil {i}"), assistant("no")],
            "winner": "model_a",
        },
        "conversation_a, conversation_b, winner",
        FRENCH,
    ),
    (
        "a vote on the first of two turns (MT-bench)",
        lambda i: {
            "conversation_a": [user(f"boil {i}"), assistant("yes"), user("more"), assistant("a")],
            "conversation_b": [user(f"boil {i}"), assistant("no"), user("more"), assistant("b")],
            "winner": "model_a",
            "turn": 1,
        },
        "conversation_a, conversation_b, winner",
        "boil 0",
    ),
    (
        "votes as flags, as a table holds them",
        lambda i: {
            "prompt": json.dumps([f"boil {i}"]),
            "response_a": '["yes"]',
            "response_b": '["no"]',
            "winner_model_a": "1.0",
            "winner_model_b": 0,
            "winner_tie": 0.0,
        },
        "prompt, response_a, response_b, winner_*",
        "boil 0",
    ),
    (
        "comparisons of summaries (TL;DR)",
        lambda i: {
            "info": {"post": f"boil {i}", "subreddit": "tea"},
            "summaries": [{"text": "no"}, {"text": "yes"}],
            "choice": 1,
        },
        "info, summaries, choice",
        "SUBREDDIT: r/tea\n\nPOST: boil 0\n\nTL;DR:",
    ),
]


@pytest.mark.parametrize(("make", "layout", "prompt"), [t[1:] for t in LAID_OUT], ids=[t[0] for t in LAID_OUT])
def test_rows_as_they_are_published(tmp_path: Path, make: Callable[[int], Row], layout: str, prompt: str) -> None:
    data = load(tmp_path, [make(i) for i in range(N)])
    assert (prompt, "yes", "no") in texts(data)
    assert len(texts(data)) == N
    assert data.layouts == {layout: N}
    assert data.dropped == {}


def test_rated_rows_of_a_prompt_make_one_comparison(tmp_path: Path) -> None:
    rows: list[Row] = []
    for i in range(N):
        rows += [
            {"prompt": f"boil {i}", "response": "so so", "helpfulness": 2, "verbosity": 1},
            {"prompt": f"boil {i}", "response": "yes", "helpfulness": 4, "verbosity": 3},
            {"prompt": f"boil {i}", "response": "no", "helpfulness": 0, "verbosity": 2},
        ]
    rows += [{"prompt": "alone", "response": "x", "helpfulness": 1}]
    rows += [{"prompt": "equal", "response": f"{i}", "helpfulness": 1} for i in range(2)]
    data = load(tmp_path, rows)
    assert texts(data) == {(f"boil {i}", "yes", "no") for i in range(N)}
    assert data.layouts == {"one rated response a row": len(rows)}
    assert data.dropped == {
        "response of a comparison that another row of its prompt makes": 2 * N + 1,
        "fewer than two scored responses": 1,
        "tie": 1,
    }


def test_the_table_is_tested_whole() -> None:
    tested = {layout for _, _, layout, _ in LAID_OUT} | {"one rated response a row"}
    assert {layout.name for layout in LAYOUTS} == tested


def test_several_rejected_responses_make_a_comparison_each(tmp_path: Path) -> None:
    data = load(tmp_path, [{"prompt": f"q {i}", "chosen": "a", "rejected": ["b", "c", "a"]} for i in range(N)])
    assert data.more == 2 * N
    assert len(texts(data)) == 2 * N
    assert data.dropped == {"identical responses": N}


BASE = {"prompt": "q", "chosen": "a", "rejected": "b"}
SPLIT = [system("x"), user("q")]
LEFT_OUT: list[tuple[Row, str]] = [
    ({**BASE, "chosen": None}, "empty prompt or response"),
    ({**BASE, "prompt": None}, "empty prompt or response"),
    ({**BASE, "rejected": []}, "empty prompt or response"),
    ({**BASE, "score_chosen": 7.0, "score_rejected": 7}, "tie"),
    ({**BASE, "chosen_score": "3", "rejected_score": "9"}, "scores say that the rejected response is better"),
    ({**BASE, "chosen-rating": 2, "rejected-rating": 3}, "scores say that the rejected response is better"),
    ({**BASE, "chosen": [user("another"), assistant("a")], "rejected": [user("another"), assistant("b")]},
     "prompt contradicts the conversation"),
    ({**BASE, "rejected": [user("q"), assistant("x"), user("y"), assistant("b")]},
     "prompts differ"),
    ({**BASE, "messages": [user("another"), assistant("a")]}, "prompt contradicts the conversation"),
    ({**BASE, "prompt": SPLIT, "system": "y"}, "prompt contradicts the conversation"),
    ({**BASE, "tools": [{"name": "search"}]}, "tools are offered to the model"),
    ({"chosen": [assistant("a")], "rejected": [assistant("b")]}, "empty prompt or response"),
    ({**BASE, "chosen": [user("q")]}, "dialogue does not end with an answer"),
    ({"prompt": "q", "response_0": "a", "response_1": "b", "label": "tie"}, "tie"),
    ({"prompt": "q", "response_0": "a", "response_1": "b", "label": None}, "no vote"),
    ({"prompt": "q", "response_0": "a", "response_1": "b", "overall_preference": 0}, "tie"),
    ({"prompt": "q", "responses": ["a", "b"], "scores": [1, 1]}, "tie"),
    ({"prompt": "q", "responses": ["a", "b"], "scores": [1, "N/A"]}, "fewer than two scored responses"),
    ({"prompt": "q", "response": "a", "score": None}, "no vote"),
    ({"conversation_a": [user("q"), assistant("a")], "conversation_b": [system("x"), user("q"), assistant("b")],
      "winner": "model_a"}, "prompts differ"),
    ({"conversation_a": [user("q"), assistant("a"), user("r"), assistant("c")],
      "conversation_b": [user("q"), assistant("b"), user("r"), assistant("d")], "winner": "model_a", "turn": 2},
     "more than one turn"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "reason"), LEFT_OUT, ids=range(len(LEFT_OUT)))
def test_rows_that_say_nothing_are_counted_under_one_reason(tmp_path: Path, row: Row, reason: str) -> None:
    data = load(tmp_path, [*({**BASE, "prompt": f"good {i}"} for i in range(3)), row])
    assert data.dropped == {reason: 1}
    assert len(texts(data)) == 3


# -------------------------------------------------------------------------- the conversation before the answer, whole

BEGUN = [user("boil"), assistant("Sure:")]
BEGUN_TEXT = "Human: boil\n\nAssistant: Sure:"
GOES_ON: dict[str, Row] = {
    "answers that go on from the prompt's last message": {"prompt": BEGUN, "chosen": " yes", "rejected": " no"},
    "the same as messages": {"prompt": BEGUN, "chosen": [assistant(" yes")], "rejected": [assistant(" no")]},
    "answers that begin with it": {"prompt": BEGUN, "chosen": "Sure: yes", "rejected": "Sure: no"},
    "whole conversations beside it": {
        "prompt": BEGUN, "chosen": [user("boil"), assistant("Sure: yes")],
        "rejected": [user("boil"), assistant("Sure: no")],
    },
    "conversations of two messages beside it": {
        "prompt": BEGUN, "chosen": [*BEGUN, assistant(" yes")], "rejected": [*BEGUN, assistant(" no")],
    },
    "messages that both answers begin with": {"messages": BEGUN, "chosen": "Sure: yes", "rejected": "Sure: no"},
    "a dialogue as text": {"prompt": "\n\n" + BEGUN_TEXT, "chosen": " yes", "rejected": " no"},
    "two responses and a vote": {"prompt": BEGUN, "response_0": " yes", "response_1": " no", "label": 0},
}  # fmt: skip


@pytest.mark.parametrize("what", GOES_ON)
def test_answers_go_on_from_what_the_prompt_gives_of_them(tmp_path: Path, what: str) -> None:
    data = load(tmp_path, [*({**BASE, "prompt": f"good {i}"} for i in range(3)), GOES_ON[what]])
    assert data.dropped == {}
    assert (BEGUN_TEXT, " yes", " no") in texts(data)


OTHER_ANSWER = "conversation ends with an answer that the responses neither begin with nor are told to go on from"
BESIDE: list[tuple[Row, str | tuple[str, str, str]]] = [
    ({"messages": BEGUN, "chosen": "a", "rejected": "b"}, OTHER_ANSWER),
    ({"prompt": BEGUN, "chosen": [user("boil"), assistant("a")], "rejected": [user("boil"), assistant("b")]},
     OTHER_ANSWER),
    ({"prompt": BEGUN, "response": "a", "score": 1}, OTHER_ANSWER),
    ({"prompt": [user("q"), assistant("a")], "chosen": "a", "rejected": "b"}, ("Human: q\n\nAssistant:", "a", "b")),
    ({"prompt": "Human: q\n\nAssistant: a", "chosen": "a", "rejected": "b"}, ("\n\nHuman: q\n\nAssistant:", "a", "b")),
    ({**BASE, "question": "another"}, "columns `prompt` and `question` both hold a prompt and differ "
     "(task.prompt_field names the right one)"),
    ({**BASE, "instruction": "q"}, ("q", "a", "b")),
    ({**BASE, "prompt": "answer this: what is tea?", "question": "what is  tea?"},
     ("answer this: what is tea?", "a", "b")),
    ({**BASE, "prompt": "what is tea?", "instruction": "be brief: what is tea?"}, ("be brief: what is tea?", "a", "b")),
    ({**BASE, "question": [user("q")]}, ("q", "a", "b")),
    ({**BASE, "question": ""}, ("q", "a", "b")),
    ({"question": "q", "response_0": "a", "response_1": "b", "label": 0, "prompt": "another"},
     "columns `prompt` and `question` both hold a prompt and differ (task.prompt_field names the right one)"),
    ({**BASE, "history": "we spoke of tea"}, ("we spoke of tea\n\nq", "a", "b")),
    ({**BASE, "context": [user("x"), assistant("y")]},
     ("Human: x\n\nAssistant: y\n\nHuman: q\n\nAssistant:", "a", "b")),
    ({**BASE, "context": {"title": ["x"]}}, "column `context` beside the prompt is neither text nor messages"),
    ({**BASE, "input": 3}, "column `input` beside the prompt is neither text nor messages"),
    ({**BASE, "prompt": [user("q")], "input": "x"}, ("Human: q\n\nx\n\nAssistant:", "a", "b")),
    ({**BASE, "prompt": [user("q"), assistant("r"), user("s")], "context": "x"},
     ("Human: x\n\nq\n\nAssistant: r\n\nHuman: s\n\nAssistant:", "a", "b")),
    ({"system": "be brief", "chosen": [user("q"), assistant("a")], "rejected": [user("q"), assistant("b")]},
     ("System: be brief\n\nHuman: q\n\nAssistant:", "a", "b")),
    ({"tools": [{"name": "x"}], "chosen": [user("q"), assistant("a")], "rejected": [user("q"), assistant("b")]},
     "tools are offered to the model"),
    ({**BASE, "images": [{"bytes": "x"}]}, "an image stands beside the prompt"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "expected"), BESIDE, ids=range(len(BESIDE)))
def test_what_stands_beside_the_prompt_is_a_part_of_it_or_the_row_is_counted(
    tmp_path: Path, row: Row, expected: str | tuple[str, str, str]
) -> None:
    data = load(tmp_path, [*({**BASE, "prompt": f"good {i}"} for i in range(3)), row])
    if isinstance(expected, str):
        assert data.dropped == {expected: 1}
    else:
        assert data.dropped == {}
        assert (expected[0].lstrip("\n"), *expected[1:]) in texts(data)


def test_a_prompt_that_the_study_names_is_the_prompt_whatever_stands_beside_it(tmp_path: Path) -> None:
    rows = [{**BASE, "prompt": f"p {i}", "question": f"q {i}"} for i in range(N)]
    for name in ("prompt", "question"):
        assert texts(load(tmp_path, rows, prompt_field=name)) == {(f"{name[0]} {i}", "a", "b") for i in range(N)}


def test_columns_that_nothing_is_read_of_are_named(tmp_path: Path) -> None:
    rows = [{**BASE, "prompt": f"p {i}", "passage": "x", "empty": None, "system": "", "source": 3} for i in range(N)]
    assert load(tmp_path, rows).unread == ["passage", "source"]


# ------------------------------------------------------------------------------------------------- what a cell may hold

MISSING = ["nan", "NaN", "<NA>"]


@pytest.mark.parametrize("missing", [*MISSING, float("nan")])
@pytest.mark.parametrize("column", ["prompt", "chosen", "rejected", "system", "score_chosen"])
def test_a_missing_value_that_was_made_text_is_missing(tmp_path: Path, column: str, missing: Any) -> None:
    rows = [{**BASE, "prompt": f"p {i}", "system": "", "score_chosen": 3, "score_rejected": 2} for i in range(N)]
    data = load(tmp_path, [*rows, {**rows[0], "prompt": "q", column: missing}])
    left_out = column in BASE
    assert data.dropped == ({"empty prompt or response": 1} if left_out else {})
    assert (("q", "a", "b") in texts(data)) is not left_out
    frame = pd.DataFrame([*rows, {**rows[0], "prompt": "q", column: missing}])
    frame.astype(str).to_csv(tmp_path / "t.csv", index=False)
    frame[["prompt", "chosen", "rejected"]].to_parquet(tmp_path / "t.parquet")
    assert texts(PairsTask(path=str(tmp_path / "t.csv")).load(0)) == texts(data)
    assert texts(PairsTask(path=str(tmp_path / "t.parquet")).load(0)) == texts(data)


def test_words_that_could_be_answers_are_text(tmp_path: Path) -> None:
    rows = [{**BASE, "prompt": f"p {i}", "chosen": word} for i, word in enumerate(("None", "null", "N/A", "nan."))]
    assert {c for _, c, _ in texts(load(tmp_path, rows))} == {"None", "null", "N/A", "nan."}


def spell_as_numpy(texts_: list[str]) -> str:
    return str(np.array(texts_, dtype=object))


@pytest.mark.parametrize("spell", [json.dumps, str, spell_as_numpy])
@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_several_rejected_responses_that_a_cell_spells_make_a_comparison_each(
    tmp_path: Path, spell: Callable[[list[str]], str], suffix: str
) -> None:
    rows = [{"prompt": f"q {i}", "chosen": "[1] a", "rejected": spell(["it's b", "c, 'd'"])} for i in range(N)]
    both = {"prompt": "q", "chosen": spell(["a"]), "rejected": spell(["b", "c"])}
    text = {"prompt": "r", "chosen": "a", "rejected": "[b] is a text, ['c']"}
    path = tmp_path / f"rows.{suffix}"
    pd.DataFrame([*rows, both, text]).to_csv(path, index=False, sep="," if suffix == "csv" else "\t")
    data = PairsTask(path=str(path)).load(0)
    expected = {(f"q {i}", "[1] a", worse) for i in range(N) for worse in ("it's b", "c, 'd'")}
    assert texts(data) == expected | {("r", "a", text["rejected"])}
    assert data.more == N
    assert data.dropped == {"text that may be one response or spell a list of them": 1}


def test_a_text_that_spells_a_list_is_text_where_the_file_has_lists_and_both_are_such(tmp_path: Path) -> None:
    rows = [{"prompt": f"q {i}", "chosen": '["a"]', "rejected": '["b", "c"]'} for i in range(N)]
    data = load(tmp_path, [*rows, {**BASE, "rejected": '["b", "c"]'}])
    assert texts(data) == {(f"q {i}", '["a"]', '["b", "c"]') for i in range(N)}
    assert data.dropped == {"text that may be one response or spell a list of them": 1}


def test_lists_of_scored_responses_are_read_out_of_tables(tmp_path: Path) -> None:
    scored = [{"response": "no", "overall_score": 1.0}, {"response": "yes", "overall_score": 9.0}]
    kinds = {
        "objects": [{"instruction": f"q {i}", "completions": scored} for i in range(N)],
        "lists": [{"prompt": f"q {i}", "responses": ["no", "yes"], "scores": [1, 4]} for i in range(N)],
        "history": [{"prompt": f"q {i}", "history": [["x", "y"]], "chosen": "yes", "rejected": "no"} for i in range(N)],
    }
    for name, rows in kinds.items():
        pd.DataFrame(rows).to_csv(tmp_path / f"{name}.csv", index=False)
        plain = load(tmp_path, rows)
        assert texts(PairsTask(path=str(tmp_path / f"{name}.csv")).load(0)) == texts(plain)
        assert len(texts(plain)) == N


def test_labels_and_lists_that_make_no_sense_are_errors_that_name_the_row(tmp_path: Path) -> None:
    for row, words in (
        ({"prompt": "q", "response_0": "a", "response_1": "b", "label": "maybe"}, "'label' is 'maybe'"),
        ({"prompt": "q", "response_0": "a", "response_1": "b", "label": 2}, "names neither response; use 0, 1,"),
        ({"prompt": "q", "responses": ["a", "b"], "scores": [1]}, "'scores' has 1 entries, 'responses' 2"),
        ({"history": "q", "human_ref_A": "a", "human_ref_B": "b", "labels": 3}, "'labels' is '3', not 0 or 1"),
    ):
        with pytest.raises(AligngapError, match=r"rows.jsonl, line 2") as caught:
            load(tmp_path, [BASE, row])
        assert words in str(caught.value)


def test_a_table_of_message_lists_as_pandas_and_numpy_write_it(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"b {i}", "chosen": [user(f"b {i}"), assistant("it's\n{1} ok")], "rejected": "no"} for i in range(N)
    ]
    frame = pd.DataFrame(rows)
    frame.to_csv(tmp_path / "list.csv", index=False)
    frame.to_parquet(tmp_path / "list.parquet")
    pd.read_parquet(tmp_path / "list.parquet").to_csv(tmp_path / "printed.csv", index=False)
    for name in ("list.csv", "list.parquet", "printed.csv"):
        data = PairsTask(path=str(tmp_path / name)).load(0)
        assert ("b 0", "it's\n{1} ok", "no") in texts(data)
        assert len(texts(data)) == N


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_tables_of_every_delimiter_and_line_end(tmp_path: Path, delimiter: str, end: str) -> None:
    table = [["prompt", "chosen", "rejected"], *([f"q {i}", "a", "b"] for i in range(N)), ["q", "", "b"]]
    path = tmp_path / "table.csv"
    path.write_bytes(end.join(delimiter.join(row) for row in table).encode())
    data = PairsTask(path=str(path)).load(0)
    assert texts(data) == {(f"q {i}", "a", "b") for i in range(N)}
    assert data.dropped == {"empty prompt or response": 1}


# ---------------------------------------------------------------------------------------------- no prompt in two splits


def openings(comparisons: Any) -> set[str]:
    return {c.prompt.split("\n\nAssistant:")[0].lower() for c in comparisons}


@pytest.mark.parametrize("seed", range(3))
def test_a_conversation_cut_at_several_turns_is_in_one_split(tmp_path: Path, seed: int) -> None:
    rows = []
    for i in range(40):
        said = [user(f"clean kettle {i}")]
        for k in range(3):
            rows.append({"prompt": list(said), "chosen": f"good {k}", "rejected": "bad"})
            said += [assistant(f"good {k}"), user(f"and step {k}?")]
    rows += [{"prompt": f"Clean  kettle {i}", "chosen": "alone", "rejected": "bad"} for i in range(40)]
    first = load(tmp_path, rows, test_share=0.3)
    shown = {side: {k.removeprefix("human: ") for k in openings(getattr(first, side))} for side in ("train", "test")}
    assert not {" ".join(k.split()) for k in shown["train"]} & {" ".join(k.split()) for k in shown["test"]}
    random.Random(seed).shuffle(rows)
    again = load(tmp_path, rows, test_share=0.3)
    assert texts(first) == texts(again)
    assert set(first.test) == set(again.test), "the order of the rows moves nothing"


FORMS = [
    lambda s: f"{s} ", lambda s: f"{s}\n", lambda s: f" {s}", lambda s: s.replace("é", "e\u0301"),
    lambda s: s.replace(" ", "\u00a0", 1), lambda s: s.upper(), lambda s: s.replace("a", "\uff41"),
    lambda s: s.replace("k", "k\u200b"), lambda s: f"Human: {s}\n\nAssistant:",
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(FORMS)))
def test_a_question_in_another_form_is_the_same_question(tmp_path: Path, number: int) -> None:
    plain = [f"why is the café kettle {i} slow?" for i in range(30)]
    rows = [{"prompt": q, "chosen": "yes", "rejected": "no"} for q in plain]
    rows += [{"prompt": FORMS[number](q), "chosen": "yes", "rejected": "or"} for q in plain]
    data = load(tmp_path, rows, test_share=0.3)
    test = {c.rejected for c in data.test}
    assert len([c for c in data.test if c.rejected == "no"]) == len([c for c in data.test if c.rejected == "or"])
    assert test == {"no", "or"}


def test_what_a_given_test_file_holds_is_left_out_of_train_and_counted(tmp_path: Path) -> None:
    def write(name: str, rows: list[Row]) -> None:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    cut = [user("a 0"), assistant("x"), user("more")]
    write("train.jsonl", [{**BASE, "prompt": f"a {i}"} for i in range(5)] + [{**BASE, "prompt": cut}])
    write("test.jsonl", [{**BASE, "prompt": " A  0 "}, {**BASE, "prompt": "other"}])
    data = PairsTask(path=str(tmp_path)).load(0)
    assert [c.prompt for c in data.train] == ["a 1", "a 2", "a 3", "a 4"]
    assert [c.prompt for c in data.test] == [" A  0 ", "other"]
    assert data.dropped == {"prompt is also in test": 2}


def test_prompts_that_all_begin_with_one_instruction_are_told_apart(tmp_path: Path) -> None:
    rows = [{**BASE, "prompt": [user("be brief"), assistant("ok"), user(f"q {i}")]} for i in range(20)]
    data = load(tmp_path, rows, test_share=0.3)
    assert data.train
    assert data.test


# --------------------------------------------------------------------------------------------------- read or counted

words = st.text("ab \n:{}[]'\"", max_size=6)
roles = st.sampled_from(["user", "assistant", "system", "human", "gpt", "tool", "User"])
contents = words | st.none() | st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": words}), max_size=2)
message = st.builds(lambda r, c: {"role": r, "content": c}, roles, contents) | st.builds(
    lambda r, c: {"from": r, "value": c}, roles, words
)
talk = st.lists(message, min_size=1, max_size=3)
cell = words | st.none() | talk | message | talk.map(json.dumps) | talk.map(str) | st.lists(words, max_size=3)
number = st.none() | st.integers(-2, 2) | st.sampled_from(["1.0", "N/A", "tie", "model_a", "response_1"])
scored = st.lists(st.fixed_dictionaries({"response": words, "score": number}), max_size=3)
COLUMNS: dict[str, st.SearchStrategy[Any]] = {
    "prompt": cell, "question": words, "messages": talk, "system": words | st.none(), "history": words | st.none(),
    "input": words, "chosen": cell, "rejected": cell, "score_chosen": number, "score_rejected": number,
    "response_0": cell, "response_1": cell, "label": number, "response": words, "helpfulness": number,
    "completions": scored, "conversation_a": talk, "conversation_b": talk, "winner": st.just("model_a"),
    "response_j": words, "response_k": words, "overall_preference": number,
}  # fmt: skip
KINDS = [
    ("prompt", "chosen", "rejected"), ("chosen", "rejected"), ("messages", "chosen", "rejected", "system"),
    ("prompt", "messages", "chosen", "rejected", "score_chosen", "score_rejected"),
    ("question", "response_0", "response_1", "label"),
    ("prompt", "response", "helpfulness"), ("prompt", "completions"), ("conversation_a", "conversation_b", "winner"),
    ("question", "response_j", "response_k"), ("prompt", "response_0", "response_1", "overall_preference"),
    ("question", "input", "history", "chosen", "rejected"),
]  # fmt: skip
any_row = st.sampled_from(KINDS).flatmap(lambda kind: st.fixed_dictionaries({name: COLUMNS[name] for name in kind}))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(any_row, min_size=1, max_size=8))
def test_every_row_is_read_or_counted_under_one_reason_or_the_file_is_refused(tmp_path: Path, rows: list[Row]) -> None:
    good = [{**BASE, "prompt": f"good {i}"} for i in range(3)]
    try:
        load(tmp_path, [*good, *rows])  # which checks the sum
    except AligngapError as error:
        message = str(error)
    else:
        return
    assert "rows.jsonl, line " in message
    assert message.isprintable()
