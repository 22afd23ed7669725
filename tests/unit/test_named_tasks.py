"""The published tasks: original layouts (hand-made rows, and real ones where ALIGNGAP_DATA is set) and the hub."""

from __future__ import annotations

import csv
import gzip
import json
import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from aligngap.tasks._hub import NamedTask
from aligngap.tasks.arena import ArenaTask
from aligngap.tasks.hh import HarmlessTask, HelpfulTask
from aligngap.tasks.pairs import PairsTask
from aligngap.tasks.tldr import TldrTask
from aligngap.types import AligngapError, TaskData

Rows = list[dict[str, Any]]


def jsonl(path: Path, rows: Rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


def texts(data: TaskData) -> set[tuple[str, str, str]]:
    return {(c.prompt, c.chosen, c.rejected) for c in [*data.train, *data.test]}


def refuse(task: NamedTask, *words: str) -> str:
    with pytest.raises(AligngapError) as caught:
        task.load(0)
    message = str(caught.value)
    assert message.isprintable()
    assert all(word in message for word in words), message
    return message


# -------------------------------------------------------------------------------------------------------------- tldr


def post(i: int, choice: Any = 0, split: str | None = None, **info: Any) -> dict[str, Any]:
    row: dict[str, Any] = {
        "info": {"id": f"t3_{i}", "post": f"post {i}", "title": f"title {i}", "subreddit": "AskReddit", **info},
        "summaries": [{"text": f" short {i}", "policy": "sup4", "note": ""}, {"text": f" long {i}", "policy": "ref"}],
        "choice": choice,
        "worker": "w",
    }
    return row if split is None else {**row, "split": split}


def test_tldr_original_rows(tmp_path: Path) -> None:
    rows = [post(0), post(1, choice=1), post(2, title=None), post(3, post=None, article="news"), post(4, post=" ")]
    data = TldrTask(path=str(jsonl(tmp_path / "mine.jsonl", rows))).load(0)
    assert texts(data) == {
        ("SUBREDDIT: r/AskReddit\n\nTITLE: title 0\n\nPOST: post 0\n\nTL;DR:", " short 0", " long 0"),
        ("SUBREDDIT: r/AskReddit\n\nTITLE: title 1\n\nPOST: post 1\n\nTL;DR:", " long 1", " short 1"),
        ("SUBREDDIT: r/AskReddit\n\nPOST: post 2\n\nTL;DR:", " short 2", " long 2"),
    }
    assert data.dropped == {"not a Reddit post": 1, "empty prompt or response": 1}


def test_tldr_rows_that_name_their_split_keep_it(tmp_path: Path) -> None:
    jsonl(tmp_path / "batch3.json", [post(i, split="train") for i in range(3)])
    jsonl(
        tmp_path / "batch4.json", [post(3, split="valid1"), post(4, split="valid2"), post(0, choice=1, split="valid1")]
    )
    data = TldrTask(path=str(tmp_path)).load(0)
    assert [c.chosen for c in data.train] == [" short 1", " short 2"]
    assert [c.chosen for c in data.test] == [" short 3", " short 4", " long 0"]
    assert data.dropped == {"prompt is also in test": 1}
    assert data.source == "batch3.json, batch4.json"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"choice": 2}, "'choice' is '2', not 0 or 1"),
        ({"choice": True}, "'choice' is 'True'"),
        ({"choice": None}, "'choice' is 'None'"),
        ({"choice": [0]}, "'choice' is '[0]'"),
        ({"info": "x"}, "'info' is text, not an object"),
        ({"summaries": [{"text": "x"}]}, "'summaries' is a list of 1"),
        ({"summaries": None}, "'summaries' is null"),
        ({"summaries": ["a", "b"]}, "'summaries[0]' has no field 'text'"),
        ({"summaries": [{"text": "a"}, {"text": 3}]}, "'summaries[1].text' is a number"),
        ({"info": {"post": 3}}, "'info.post' is a number"),
    ],
)
def test_tldr_bad_rows(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    refuse(TldrTask(path=str(jsonl(tmp_path / "a.jsonl", [post(0), {**post(1), **change}]))), "line 2", words)


def test_tldr_rows_of_another_layout(tmp_path: Path) -> None:
    refuse(TldrTask(path=str(jsonl(tmp_path / "a.jsonl", [{"text": "x"}]))), "line 1", "info, summaries, choice")


# ---------------------------------------------------------------------------------------------------------------- hh


def dialogue(i: int, first: str = "hi", **change: str) -> dict[str, str]:
    start = f"\n\nHuman: {first}\n\nAssistant: hello\n\nHuman: question {i}\n\nAssistant:"
    return {"chosen": f"{start} yes {i}", "rejected": f"{start} no {i}", **change}


def test_hh_dialogues_and_a_conversation_is_never_in_two_splits(tmp_path: Path) -> None:
    rows = [dialogue(i, first=f"hi {i % 7}") for i in range(70)]
    data = HelpfulTask(path=str(jsonl(tmp_path / "a.jsonl.gz", rows)), test_share=0.4).load(0)
    first = "Human: hi 0\n\nAssistant: hello\n\nHuman: question 0\n\nAssistant:"
    assert (first, "yes 0", "no 0") in texts(data)
    assert len(texts(data)) == 70

    def openings(comparisons: Any) -> set[str]:
        return {c.prompt.split("\n\nAssistant:")[0] for c in comparisons}

    assert not openings(data.train) & openings(data.test)
    assert len(openings(data.train) | openings(data.test)) == 7


def test_hh_subsets_of_the_original_folder(tmp_path: Path) -> None:
    for number, name in enumerate(["helpful-base", "helpful-online", "harmless-base"]):
        jsonl(tmp_path / name / "train.jsonl.gz", [dialogue(10 * number + i) for i in range(4)])
        jsonl(tmp_path / name / "test.jsonl.gz", [dialogue(10 * number + i) for i in range(4, 6)])
    path = str(tmp_path)
    base = HelpfulTask(path=path)
    assert (len(base.load(0).train), len(base.load(0).test)) == (4, 2)
    both = HelpfulTask(path=path, subsets=("base", "online"))
    assert (len(both.load(0).train), len(both.load(0).test)) == (8, 4)
    assert "yes 20" in {c.chosen for c in HarmlessTask(path=path).load(0).train}
    assert len({task.fingerprint() for task in (base, both, HarmlessTask(path=path))}) == 3
    refuse(HelpfulTask(path=path, subsets=("rejection-sampled",)), "no folder helpful-rejection-sampled")
    with pytest.raises(ValidationError):
        HarmlessTask(path=path, subsets=("online",))  # type: ignore[arg-type]
    with pytest.raises(ValidationError):
        HelpfulTask(path=path, subsets=())


def test_hh_rows_of_another_layout(tmp_path: Path) -> None:
    refuse(HelpfulTask(path=str(jsonl(tmp_path / "a.jsonl", [{"chosen": "a", "rejected": "b"}]))), "no field 'prompt'")


# ------------------------------------------------------------------------------------------------------------- arena

ARENA_COLUMNS = ["id", "model_a", "model_b", "prompt", "response_a", "response_b"]
WINNERS = ["winner_model_a", "winner_model_b", "winner_tie"]


def arena_csv(path: Path, rows: list[tuple[Any, Any, Any, str]]) -> str:
    """Rows (prompt, response_a, response_b, flags as "100") in the columns of the 55k file."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(ARENA_COLUMNS + WINNERS)
        for i, (*cells, flags) in enumerate(rows):
            cells = [c if isinstance(c, str) else json.dumps(c) for c in cells]
            writer.writerow([i, "m1", "m2", *cells, *flags])
    return str(path)


ARENA: list[tuple[Any, Any, Any, str]] = [
    (["q0"], ["a0"], ["b0"], "100"),
    (["q1"], ["a1"], ["b1"], "010"),
    (["q2"], ["a2"], ["b2"], "001"),
    (["q3", "more"], ["a3", "x"], ["b3", "y"], "100"),
    (["q4"], [None], ["b4"], "010"),
    (["q5\ud83d"], ["a5"], ["b5"], "010"),
    ([], [], [], "010"),
]


def test_arena_columns(tmp_path: Path) -> None:
    data = ArenaTask(path=arena_csv(tmp_path / "arena.csv", ARENA)).load(0)
    assert texts(data) == {("q0", "a0", "b0"), ("q1", "b1", "a1")}
    assert data.dropped == {
        "tie": 1,
        "more than one turn": 1,
        "empty prompt or response": 2,
        "lone surrogate in the text": 1,
    }


def test_arena_first_turns_and_ties_by_a_coin(tmp_path: Path) -> None:
    path = arena_csv(tmp_path / "arena.csv", ARENA)
    assert ("q3", "a3", "b3") in texts(ArenaTask(path=path, multi_turn="first").load(0))
    ties = [([f"q{i}"], [f"a{i}"], [f"b{i}"], "001") for i in range(400)]
    data = ArenaTask(path=arena_csv(tmp_path / "ties.csv", ties), ties="coin").load(0)
    wins = sum(chosen.startswith("a") for _, chosen, _ in texts(data))
    assert len(texts(data)) == 400
    assert abs(wins - 200) < 50
    swapped = arena_csv(tmp_path / "swapped.csv", [(q, b, a, flags) for q, a, b, flags in ties])
    assert texts(ArenaTask(path=swapped, ties="coin").load(0)) == texts(data), "the coin knows no sides"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ((["q"], ["a"], ["b"], "110"), "winner_tie are 1, 1, 0"),
        ((["q"], ["a"], ["b"], "000"), "not one 1 and two 0"),
        ((["q"], ["a"], ["b"], ["1", "0", "x"]), "winner_tie are 1, 0, x"),
        (("q", ["a"], ["b"], "100"), "'prompt' is not a JSON list of turns"),
        ((["q"], '"a"', ["b"], "100"), "'response_a' is text, not a list of texts"),
        ((["q"], ["a"], [3], "100"), "'response_b' is a list, not a list of texts"),
        ((["q"], "[" * 100_000, ["b"], "100"), "'response_a' is not a JSON list"),
    ],
)
def test_arena_bad_columns(tmp_path: Path, row: Any, words: str) -> None:
    refuse(ArenaTask(path=arena_csv(tmp_path / "arena.csv", [ARENA[0], row])), "row 2 (line 3)", words)


def turns(*contents: str) -> list[dict[str, str]]:
    return [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(contents)]


def vote(a: Any, b: Any, winner: Any) -> dict[str, Any]:
    return {"question_id": "x", "model_a": "m1", "conversation_a": a, "conversation_b": b, "winner": winner}


def test_arena_conversations(tmp_path: Path) -> None:
    rows = [
        vote(turns("q0", "a0"), turns("q0", "b0"), "model_a"),
        vote(turns("q1", "a1"), turns("q1", "b1"), "model_b"),
        vote(turns("q2", "a2"), turns("q2", "b2"), "tie"),
        vote(turns("q3", "a3"), turns("q3", "b3"), "tie (bothbad)"),
        vote(turns("q4", "a4", "more", "x"), turns("q4", "b4", "more", "y"), "model_b"),
        vote(turns("q5", "a5"), turns("other", "b5"), "model_b"),
    ]
    path = str(jsonl(tmp_path / "arena.jsonl", rows))
    data = ArenaTask(path=path).load(0)
    assert texts(data) == {("q0", "a0", "b0"), ("q1", "b1", "a1")}
    assert data.dropped == {"tie": 1, "tie (both bad)": 1, "more than one turn": 1, "prompts differ": 1}
    assert len(texts(ArenaTask(path=path, ties="coin", multi_turn="first").load(0))) == 5


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (vote(turns("q", "a"), turns("q", "b"), "nobody"), "unknown winner 'nobody'"),
        (vote(turns("q", "a"), turns("q", "b"), 3), "'winner' is a number"),
        (vote("q", turns("q", "b"), "model_a"), "'conversation_a' is text"),
        (vote(turns("q", "a"), [{"role": "user"}], "model_a"), "message 1 of field 'conversation_b'"),
        ({"conversation_a": turns("q", "a"), "winner": "model_a"}, "no field 'conversation_b'"),
    ],
)
def test_arena_bad_conversations(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    good = vote(turns("q", "a"), turns("q", "b"), "model_a")
    refuse(ArenaTask(path=str(jsonl(tmp_path / "arena.jsonl", [good, row]))), "line 2", words)


# --------------------------------------------------------------------------------------------------------------- hub

ALL_TASKS = [TldrTask, HelpfulTask, HarmlessTask, ArenaTask]


class FakeHub:
    """Stands in for the `datasets` library and remembers what it was asked for."""

    def __init__(self, splits: Mapping[str, Rows] | Exception) -> None:
        self.splits, self.asked = splits, list[tuple[str, dict[str, Any]]]()

    def load_dataset(self, hub: str, **where: Any) -> Mapping[str, Rows]:
        self.asked.append((hub, where))
        if isinstance(self.splits, Exception):
            raise self.splits
        return self.splits


def use_hub(monkeypatch: pytest.MonkeyPatch, splits: Mapping[str, Rows] | Exception) -> FakeHub:
    hub = FakeHub(splits)
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=hub.load_dataset))
    return hub


def test_the_hub_and_a_local_copy_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = [post(i, split="train") for i in range(5)], [post(i, split="valid1") for i in range(5, 8)]
    hub = use_hub(monkeypatch, {"train": train, "validation": test})
    jsonl(tmp_path / "train.jsonl", train)
    jsonl(tmp_path / "test.jsonl", test)
    there, here = TldrTask(revision="abc"), TldrTask(path=str(tmp_path))
    assert (there.load(0).train, there.load(0).test) == (here.load(0).train, here.load(0).test)
    assert hub.asked[0] == ("openai/summarize_from_feedback", {"name": "comparisons", "revision": "abc"})
    name = "openai/summarize_from_feedback@abc"
    assert there.load(0).source == f"{name} (train), {name} (validation)", "which revision it was is in the records"
    before = there.fingerprint()
    assert before == there.fingerprint()
    test[0]["choice"] = 1
    assert before != there.fingerprint(), "what the hub holds is part of the key"


def test_a_hub_data_set_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = use_hub(monkeypatch, {"train": [{"prompt": f"q {i}", "chosen": "a", "rejected": "b"} for i in range(40)]})
    data = PairsTask(hub="me/mine", revision="v2").load(0)
    assert hub.asked == [("me/mine", {"revision": "v2"})]
    assert len(data.train) + len(data.test) == data.rows == 40
    with pytest.raises(ValidationError, match=r"give task\.path"):
        PairsTask()


def test_hub_subsets(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = use_hub(monkeypatch, {"train": [dialogue(i) for i in range(3)], "test": [dialogue(i) for i in range(3, 5)]})
    data = HelpfulTask(subsets=("base", "online")).load(0)
    assert [where["data_dir"] for _, where in hub.asked] == ["helpful-base", "helpful-online"]
    assert len(data.train) == 3
    assert data.dropped == {"duplicate of an earlier pair": 5}


def test_arena_from_the_hub_is_split_here(monkeypatch: pytest.MonkeyPatch) -> None:
    use_hub(monkeypatch, {"train": [vote(turns(f"q{i}", "a"), turns(f"q{i}", "b"), "model_a") for i in range(50)]})
    data = ArenaTask().load(0)
    assert len(data.train) + len(data.test) == 50
    assert data.test


@pytest.mark.parametrize("task", ALL_TASKS)
@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ConnectionError("Couldn't reach\n'x' on the Hub"), "ConnectionError: Couldn't reach 'x' on the Hub"),
        (RuntimeError("401 Client Error: gated repo"), "set HF_TOKEN"),
    ],
)
def test_a_hub_that_cannot_be_reached(
    monkeypatch: pytest.MonkeyPatch, task: type[NamedTask], error: Exception, words: str
) -> None:
    use_hub(monkeypatch, error)
    refuse(task(), words, "task.path")
    with pytest.raises(AligngapError, match=r"task\.path"):
        task().fingerprint()


@pytest.mark.parametrize("task", ALL_TASKS)
def test_without_the_datasets_library(monkeypatch: pytest.MonkeyPatch, task: type[NamedTask]) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    refuse(task(), "needs the datasets library", "task.path")


def test_a_hub_data_set_without_a_train_split(monkeypatch: pytest.MonkeyPatch) -> None:
    use_hub(monkeypatch, {"validation": []})
    refuse(ArenaTask(hub="some/thing"), "'some/thing' has no train split (it has: validation)", "task.path")


@pytest.mark.parametrize("task", ALL_TASKS)
def test_settings_of_named_tasks(task: type[NamedTask]) -> None:
    for options in ({"path": "x", "hub": "y"}, {"path": "x", "revision": "y"}, {"colour": 1}, {"max_rows": 0}):
        with pytest.raises(ValidationError):
            task(**options)
    with pytest.raises(AligngapError, match="no such file"):
        task(path="none.jsonl").load(0)


def test_a_local_copy_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_socket(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket, "socket", no_socket)
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert TldrTask(path=str(jsonl(tmp_path / "a.jsonl", [post(0), post(1)]))).load(0).train


# --------------------------------------------------------------------------------------------------------- real data

DATA = os.environ.get("ALIGNGAP_DATA", "")
needs_data = pytest.mark.skipif(not DATA, reason="ALIGNGAP_DATA is not set: no real preference data at hand")


@needs_data
@pytest.mark.parametrize(
    ("task", "folder", "train", "test"),
    [
        (TldrTask, "tldr", 142, 42),
        (TldrTask, "summarisation", 2758, 1004),
        (HelpfulTask, "helpfulness", 1674, 381),
        (HarmlessTask, "harmlessness", 1707, 402),
        (ArenaTask, "chat", 1791, 337),
    ],
)
def test_real_prepared_data(task: type[NamedTask], folder: str, train: int, test: int) -> None:
    data = task(path="${ALIGNGAP_DATA}/" + folder).load(0)
    assert (len(data.train), len(data.test), dict(data.dropped)) == (train, test, {})


@needs_data
def test_real_arena_original() -> None:
    path = "${ALIGNGAP_DATA}/chat/arena_100_original.csv"
    data = ArenaTask(path=path).load(0)
    assert len(texts(data)) + sum(data.dropped.values()) == 100
    # The file has 36 ties and 16 conversations of more than one turn; a row that is both counts as the latter.
    assert data.dropped["more than one turn"] == 16
    first = ArenaTask(path=path, multi_turn="first").load(0)
    assert first.dropped["tie"] == 36
    assert len(texts(ArenaTask(path=path, multi_turn="first", ties="coin").load(0))) >= 98


@needs_data
@pytest.mark.parametrize(("task", "folder"), [(HelpfulTask, "helpfulness"), (HarmlessTask, "harmlessness")])
def test_real_dialogues(task: type[NamedTask], folder: str) -> None:
    data = task(path="${ALIGNGAP_DATA}/" + folder + "/original_sample.jsonl").load(0)
    assert len(texts(data)) + sum(data.dropped.values()) == 50
    assert data.test
