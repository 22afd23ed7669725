"""The user's own preference file: every format, every kind of bad input, and real data where it is at hand.

`ALIGNGAP_DATA` names a folder that holds helpfulness/ harmlessness/ chat/ tldr/ summarisation/; without it the tests on
real data are skipped.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import re
import string
import time
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from aligngap.tasks import _files, _rows
from aligngap.tasks._dialogue import conversation_keys, render_messages
from aligngap.tasks._layouts import spells_texts
from aligngap.tasks._rows import is_missing
from aligngap.tasks.pairs import PairsTask
from aligngap.types import AligngapError, Comparison, TaskData

Rows = list[dict[str, Any]]
GOOD: Rows = [{"prompt": f"question {i}?", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(6)]
FORMATS = [".jsonl", ".jsonl.gz", ".json", ".json.gz", ".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet"]


def encode(rows: Rows, suffix: str) -> bytes:
    """The rows as a file of this format."""
    kind = suffix.removesuffix(".gz")
    if kind == ".parquet":
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), buffer)
        return buffer.getvalue()
    if kind in (".csv", ".tsv"):
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), quoting=csv.QUOTE_ALL, delimiter="\t" if kind == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
        raw = text.getvalue().encode()
    elif kind == ".json":
        raw = json.dumps(rows).encode()
    else:
        raw = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    return gzip.compress(raw, mtime=0) if suffix.endswith(".gz") else raw


def write(folder: Path, rows: Rows, name: str = "mine.jsonl") -> Path:
    path = folder / name
    path.write_bytes(encode(rows, name[name.index(".") :]))
    return path


def load(path: Path, **options: Any) -> TaskData:
    return PairsTask(path=str(path), **options).load(seed=0)


def texts(data: TaskData) -> set[tuple[str, str, str]]:
    return {(c.prompt, c.chosen, c.rejected) for c in [*data.train, *data.test]}


def refuse(path: Path, *words: str, **options: Any) -> str:
    """The one line that loading this file ends in; it must hold the words."""
    with pytest.raises(AligngapError) as caught:
        load(path, **options)
    message = str(caught.value)
    assert message.isprintable(), "one line, nothing that a terminal would act on"
    assert "; " in message, "a remedy"
    for word in words:
        assert word in message, message
    return message


# ------------------------------------------------------------------------------------------------- what is read


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_gives_the_same_comparisons(tmp_path: Path, suffix: str) -> None:
    data = load(write(tmp_path, GOOD, f"mine{suffix}"))
    assert texts(data) == {(r["prompt"], r["chosen"], r["rejected"]) for r in GOOD}
    assert data.train
    assert data.test
    assert data.dropped == {}
    assert data.source == f"mine{suffix}"


def same_question(prompt: str) -> str:
    """What makes two prompts one question, whatever else is in the file."""
    return conversation_keys([prompt])[0]


any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
solid = any_text.filter(lambda s: s.strip() != "" and not is_missing(s) and spells_texts(s) is None)
good_rows = st.lists(
    st.tuples(solid, solid, solid).filter(lambda r: r[1].strip() != r[2].strip()),
    min_size=2,
    max_size=6,
    unique_by=lambda r: same_question(r[0]),
)


@pytest.mark.parametrize("suffix", FORMATS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(triples=good_rows)
def test_any_text_survives_any_format(tmp_path: Path, suffix: str, triples: list[tuple[str, str, str]]) -> None:
    rows = [dict(zip(("prompt", "chosen", "rejected"), triple, strict=True)) for triple in triples]
    data = load(write(tmp_path, rows, f"mine{suffix}"))
    assert texts(data) == set(triples)
    assert data.dropped == {}


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=st.binary(max_size=200), suffix=st.sampled_from(FORMATS))
def test_any_bytes_end_in_data_or_in_one_line(tmp_path: Path, raw: bytes, suffix: str) -> None:
    path = tmp_path / f"mine{suffix}"
    path.write_bytes(raw)
    refuse(path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "x"]), inner),
    max_leaves=5,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.dictionaries(st.sampled_from(["prompt", "chosen", "rejected"]), json_values), max_size=4))
def test_any_json_ends_in_data_or_in_one_line(tmp_path: Path, rows: Rows) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(rows))
    try:
        loaded = texts(load(path))
    except AligngapError as error:
        message = str(error)
    else:
        assert len(loaded) >= 2
        return
    assert message.isprintable()


def test_blanks_are_content_but_for_line_ends_before_a_dialogue(tmp_path: Path) -> None:
    plain, other = "\n\n  hi \n", "\n\nUser: hi\n\nBot:"
    pair = {"chosen": "    a\n", "rejected": "\tb\u00a0"}
    rows = [{"prompt": prompt, **pair} for prompt in (plain, other, "\n\nHuman: \n hi\n\nAssistant:")]
    kept = texts(load(write(tmp_path, [*rows, *GOOD])))
    for prompt in (plain, other, "Human: \n hi\n\nAssistant:"):
        assert (prompt, "    a\n", "\tb\u00a0") in kept


def test_control_characters_markers_and_script_are_data(tmp_path: Path) -> None:
    hostile = "a\x00\x1b[31m\u202e<script>alert(1)</script></s><pad><|im_start|>\u2028z"
    rows = [{"prompt": hostile, "chosen": hostile, "rejected": "no"}, *GOOD]
    assert (hostile, hostile, "no") in texts(load(write(tmp_path, rows)))


def test_a_byte_order_mark_and_windows_line_ends_and_blank_lines_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + encode(GOOD, ".jsonl").replace(b"\n", b"\r\n\r\n"))
    assert len(texts(load(path))) == 6
    table = tmp_path / "mine.csv"
    table.write_bytes(b"\xef\xbb\xbf" + encode(GOOD, ".csv"))
    assert len(texts(load(table))) == 6


def test_a_json_file_with_one_object_a_line_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_bytes(encode(GOOD, ".jsonl"))
    assert len(texts(load(path))) == 6


def test_other_field_names(tmp_path: Path) -> None:
    rows = [{"q": r["prompt"], "win": r["chosen"], "lose": r["rejected"], "extra": 3} for r in GOOD]
    data = load(write(tmp_path, rows), prompt_field="q", chosen_field="win", rejected_field="lose")
    assert len(texts(data)) == 6


def test_a_line_of_ten_megabytes_is_read_and_one_beyond_the_limit_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    big = "x" * (10 << 20)
    for suffix in (".jsonl", ".csv"):
        path = write(tmp_path, [{"prompt": "p", "chosen": big, "rejected": "b"}, *GOOD], f"big{suffix}")
        assert big in {chosen for _, chosen, _ in texts(load(path))}
        with monkeypatch.context() as patch:
            patch.setattr(_rows, "MAX_LINE_BYTES", 1 << 20)
            refuse(path, "line", "longer than 1 MiB")


def test_the_csv_field_limit_of_the_process_is_left_alone(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    load(write(tmp_path, GOOD, "mine.csv"))
    assert csv.field_size_limit() == before


# ---------------------------------------------------------------------------------------- messages and dialogues

ASK = [("user", "hi"), ("assistant", "hello"), ("user", "why?")]


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def chat(*answer: str) -> list[dict[str, str]]:
    return [message(role, content) for role, content in [*ASK, *(("assistant", a) for a in answer)]]


RENDERED = "Human: hi\n\nAssistant: hello\n\nHuman: why?\n\nAssistant:"


def test_messages_are_rendered_as_one_dialogue() -> None:
    assert render_messages(ASK) == f"\n\n{RENDERED}"
    assert render_messages([("system", "be kind"), ("user", " hi\n")]) == (
        "\n\nSystem: be kind\n\nHuman:  hi\n\n\nAssistant:"
    ), "one blank after a colon is form, the others are the message's own"


@pytest.mark.parametrize("suffix", [".jsonl", ".json.gz", ".parquet"])
@pytest.mark.parametrize("with_prompt", [True, False])
def test_message_lists(tmp_path: Path, suffix: str, with_prompt: bool) -> None:
    rows: Rows = [{"chosen": chat(f"because {i}"), "rejected": chat("no")} for i in range(2)]
    rows.append({"chosen": [message("user", "x"), *chat("a")], "rejected": [message("user", "x"), *chat("b")]})
    if with_prompt:
        rows = [{"prompt": row["chosen"][:-1], **row} for row in rows]
    assert (RENDERED, "because 1", "no") in texts(load(write(tmp_path, rows, f"mine{suffix}")))


def hh(prompt: str, answer: str) -> str:
    return f"\n\nHuman: hi\n\nAssistant: hello\n\nHuman: {prompt}\n\nAssistant: {answer}"


@pytest.mark.parametrize("suffix", FORMATS)
def test_dialogues_without_a_prompt_are_split_at_the_last_answer(tmp_path: Path, suffix: str) -> None:
    rows = [
        {"chosen": hh(f"why {i}?", "yes"), "rejected": hh(f"why {i}?", " no " if i == 1 else "no")} for i in range(4)
    ]
    rows.append({"chosen": hh("a", "yes"), "rejected": hh("b", "no")})
    rows.append({"chosen": hh("a", "yes") + "\n\nHuman: thanks", "rejected": hh("a", "no")})
    data = load(write(tmp_path, rows, f"mine{suffix}"))
    assert ("Human: hi\n\nAssistant: hello\n\nHuman: why 2?\n\nAssistant:", "yes", "no") in texts(data)
    assert len(texts(data)) == 4
    assert data.dropped == {"prompts differ": 1, "dialogue does not end with an answer": 1}
    assert ("Human: hi\n\nAssistant: hello\n\nHuman: why 1?\n\nAssistant:", "yes", " no ") in texts(data)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ([{"role": "user"}], ["message 1 of field 'prompt' has no role or content"]),
        (["hi"], ["message 1 of field 'prompt' is text"]),
        ([{"role": 3, "content": "x"}], ["'prompt[1].role' is a number"]),
        ([{"role": "user", "content": 3}], ["'prompt[1].content' is a number"]),
        ({"text": "hi"}, ["'prompt' is an object, not text or a list of messages"]),
    ],
)
def test_bad_messages(tmp_path: Path, bad: Any, words: list[str]) -> None:
    refuse(write(tmp_path, [GOOD[0], {**GOOD[1], "prompt": bad}]), "line 2", *words)


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ([], "empty prompt or response"),
        ([{"role": "user", "content": None}], "message that is not text"),
        ([message("tool", "x")], "message of a tool, or of another unknown role"),
        ([{"role": "user", "content": [{"type": "image", "url": "x"}]}], "message that is not text"),
        ([message("user", "x\n\nHuman: y")], "message that itself holds the beginning of a turn"),
        ("[{'role': 'user', 'content': 'x'}, ...]", "messages written as text that cannot be read back"),
    ],
)
def test_messages_that_no_prompt_can_be_made_of_are_counted(tmp_path: Path, prompt: Any, reason: str) -> None:
    assert load(write(tmp_path, [*GOOD, {**GOOD[1], "prompt": prompt}])).dropped == {reason: 1}


# ------------------------------------------------------------------------------------------ left out and counted


def test_rows_of_poor_quality_are_counted(tmp_path: Path) -> None:
    rows = [
        *GOOD,
        {"prompt": "p", "chosen": "same ", "rejected": " same"},
        {"prompt": " \n", "chosen": "a", "rejected": "b"},
        {"prompt": "p", "chosen": "", "rejected": "b"},
        GOOD[0],
        {**GOOD[1], "chosen": GOOD[1]["chosen"] + " "},
        {"prompt": GOOD[1]["prompt"], "chosen": GOOD[1]["rejected"], "rejected": GOOD[1]["chosen"]},
        {"prompt": GOOD[2]["prompt"], "chosen": GOOD[2]["rejected"], "rejected": GOOD[2]["chosen"]},
    ]
    data = load(write(tmp_path, rows))
    assert len(texts(data)) == len(data.train) + len(data.test) == 5
    assert ("question 1?", "good 1", "bad 1") in texts(data), "two rows against one"
    assert data.dropped == {
        "identical responses": 1,
        "empty prompt or response": 2,
        "duplicate of an earlier pair": 2,
        "contradicted by as many or more rows": 3,
    }


def test_only_identical_responses_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path, [{**row, "rejected": row["chosen"]} for row in GOOD])
    refuse(path, "only 0 usable prompts", "identical responses 6")


@pytest.mark.parametrize("rows", [GOOD[:1], [GOOD[0], {**GOOD[0], "rejected": "worse"}]])
def test_one_prompt_is_too_few(tmp_path: Path, rows: Rows) -> None:
    refuse(write(tmp_path, rows), "mine.jsonl", "only 1 usable prompt", "at least 2")


# ----------------------------------------------------------------------------------------------------- bad input


def line(n: int, **change: Any) -> bytes:
    rows: Rows = [dict(row) for row in GOOD]
    rows[n - 1].update(change)
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


MISSING = encode(GOOD[:2], ".jsonl") + b'{"prompt": "p", "rejected": "r"}\n'
BAD_FILES: list[tuple[str, bytes, list[str]]] = [
    ("a.jsonl", b"", ["is empty"]),
    ("a.jsonl", b"\n \n", ["holds no rows"]),
    ("a.json", b"[]", ["holds no rows"]),
    ("a.json", b" ", ["holds no rows"]),
    ("a.csv", b"prompt,chosen,rejected\n", ["holds no rows"]),
    ("a.jsonl.gz", gzip.compress(b""), ["holds no rows"]),
    ("a.jsonl", MISSING, ["line 3", "no field 'chosen' (it has: prompt, rejected)", "task.chosen_field"]),
    ("a.jsonl", MISSING.replace(b"chosen", b"best"), ["line 1", "no field 'chosen'"]),
    ("a.jsonl", b'{"text": "a", "label": 1}\n', ["line 1", "of no known layout (fields: text, label)"]),
    ("a.json", b'{"prompt": {"0": "a"}, "chosen": {"0": "b"}}', ["line 1", "holds columns", "orient='records'"]),
    ("a.json", b'{"prompt": ["a"], "chosen": ["b"], "rejected": ["c"]}', ["line 1", "holds columns"]),
    ("a.json", b'{"train": [{"prompt": "a"}]}', ["line 1", "splits, not rows (fields: train)"]),
    ("a.jsonl", b'{"chosen": "a", "rejected": "b"}\n' * 2, ["line 1", "no field 'prompt'", "task.prompt_field"]),
    ("a.jsonl", line(4, chosen=3), ["line 4", "'chosen' is a number"]),
    ("a.jsonl", line(4, prompt=True), ["line 4", "'prompt' is a truth value"]),
    ("a.jsonl", line(4, rejected={}), ["line 4", "'rejected' is an object"]),
    ("a.jsonl", line(4, rejected="x\ud83d"), ["line 4", "'rejected'", "lone surrogate"]),
    ("a.jsonl", line(2) + b'{"prompt": "p", "cho', ["line 7", "broken JSON"]),
    ("a.jsonl", b"[1]\n", ["line 1", "is a list, not an object"]),
    ("a.jsonl", b'{"prompt": "p"} {"x": 1}\n', ["line 1", "more than one value"]),
    ("a.jsonl", b'{"prompt": "p", "prompt": "q"}\n', ["line 1", "'prompt' is there twice"]),
    ("a.jsonl", b'{"x": ' + b"[" * 100_000, ["line 1", "nested too deeply"]),
    ("a.jsonl", b'{"x": ' + b"9" * 10_000 + b"}", ["line 1", "broken JSON"]),
    ("a.jsonl", b"\xff\xfe{\x00", ["line 1", "not UTF-8 (byte 0xff)"]),
    ("a.jsonl", line(1) + b'{"prompt": "caf\xe9"}', ["line 7", "not UTF-8 (byte 0xe9)"]),
    ("a.jsonl", gzip.compress(line(1)), ["not UTF-8", ".gz"]),
    ("a.jsonl.gz", line(1), ["not a whole gzip file"]),
    ("a.jsonl.gz", gzip.compress(os.urandom(9999))[:5000], ["gzip|UTF-8"]),
    ("a.jsonl.gz", gzip.compress(line(1))[:-9], ["not a whole gzip file"]),
    ("a.json", b'{"data": [\n{"prompt": "p"}]}', ["line 1", "broken JSON"]),
    ("a.json", b'"text"', ["not a JSON list"]),
    ("a.json", b'[{"prompt": "p", "chosen": "a", "rejected": "b"} {}]', ["a.json", "broken JSON", "column 50"]),
    ("a.json", json.dumps(GOOD).encode()[:-1], ["a.json", "broken JSON", "column 408"]),
    ("a.json", json.dumps(GOOD, indent=1).encode().replace(b",", b"", 1), ["broken JSON", "at line 4 column 3"]),
    ("a.json", json.dumps(GOOD).encode() + b"x", ["more than one value, or text after it"]),
    ("a.json", b"[1, 2]", ["row 1", "is a number, not an object"]),
    ("a.csv", b"prompt,chosen,rejected\na,b,c\na,b\n", ["row 2 (line 3)", "no field 'rejected'"]),
    ("a.csv", b"prompt,chosen,rejected\na,b,c,d\n", ["row 1 (line 2)", "4 fields where the header names 3"]),
    ("a.csv", b"prompt,chosen,chosen\na,b,c\n", ["column 'chosen' is there twice"]),
    ("a.csv", b'prompt,chosen,rejected\na,b,"c\n', ["broken CSV"]),
    ("a.csv", b"prompt|chosen|rejected\na|b|c\n", ["of no known layout (fields: prompt|chosen|rejected)"]),
    ("a.parquet", b"PAR1 not really PAR1", ["not a readable Parquet file"]),
    ("a.parquet", encode(GOOD, ".parquet")[:-20], ["not a readable Parquet file"]),
    ("a.parquet", encode([{**GOOD[0], "chosen": 1}], ".parquet"), ["row 1", "'chosen' is a number"]),
    ("a.txt", b"hello", ["unknown kind of file", ".jsonl.gz"]),
    ("a.parquet.gz", b"hello", ["unknown kind of file"]),
    ("a", b"hello", ["unknown kind of file"]),
]


@pytest.mark.parametrize(("name", "raw", "words"), BAD_FILES, ids=range(len(BAD_FILES)))
def test_bad_files_end_in_one_line(tmp_path: Path, name: str, raw: bytes, words: list[str]) -> None:
    path = tmp_path / name
    path.write_bytes(raw)
    message = refuse(path, name)
    assert all(any(option in message for option in word.split("|")) for word in words), message


def test_each_row_is_read_in_its_own_layout(tmp_path: Path) -> None:
    rows: Rows = [{"chosen": hh("a", "x"), "rejected": hh("a", "y")}, {"prompt": "p", "chosen": "x", "rejected": "y"}]
    data = load(write(tmp_path, rows))
    assert data.layouts == {"chosen, rejected": 1, "prompt, chosen, rejected": 1}
    assert data.rows == 2


def test_a_prompt_field_that_was_named_must_be_there(tmp_path: Path) -> None:
    rows = [{"chosen": hh("a", "x"), "rejected": hh("a", "y")}]
    refuse(write(tmp_path, rows), "no field 'question'", prompt_field="question")


def test_missing_files_and_things_that_are_no_files(tmp_path: Path) -> None:
    refuse(tmp_path / "none.jsonl", "none.jsonl", "no such file", "task.path")
    refuse(tmp_path, "holds no train file")
    (tmp_path / "folder.jsonl").mkdir()
    refuse(tmp_path / "folder.jsonl", "holds no train file")
    refuse(Path("/dev/null"), "unknown kind of file")
    os.mkfifo(tmp_path / "pipe.jsonl")
    refuse(tmp_path / "pipe.jsonl", "not a plain file")
    device = tmp_path / "device.jsonl"
    device.symlink_to("/dev/zero")
    refuse(device, "not a plain file")
    refuse(Path("a\0b.jsonl"), "cannot be read")
    refuse(Path("x" * 300 + ".jsonl"), "cannot be read")
    refuse(Path("evil\n\x1b[31m\u202e.jsonl"), "no such file")


def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read every file")
    refuse(path, "cannot be read")


@pytest.mark.parametrize("name", ["bomb.jsonl.gz", "bomb.json.gz", "bomb.csv.gz"])
@pytest.mark.parametrize("inside", [b"\0", b"\n", b'{"prompt": "p", "chosen": "a", "rejected": "b"}\n', b"a,b\n", b"["])
def test_a_zip_bomb_is_refused_soon(tmp_path: Path, name: str, inside: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(inside * ((20 << 20) // len(inside)), 1) + gzip.compress(bytes(30 << 20), 1))
    before = time.monotonic()
    refuse(path, name)
    assert time.monotonic() - before < 3


def test_a_bomb_in_the_fingerprint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.jsonl.gz"
    path.write_bytes(gzip.compress(bytes(40 << 20), 6))
    with pytest.raises(AligngapError, match="as a zip bomb does"):
        PairsTask(path=str(path)).fingerprint()


def test_the_limits_on_whole_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{**r, "chosen": r["chosen"] + "x" * 999} for r in GOOD * 100]
    monkeypatch.setattr(_files, "MAX_FILE_BYTES", 1 << 19)
    for suffix in (".jsonl", ".jsonl.gz", ".csv"):
        refuse(write(tmp_path, rows, f"mine{suffix}"), "holds more than 0 MiB")
    distinct = [{**r, "chosen": f"{i}" + "x" * 999} for i, r in enumerate(GOOD * 100)]
    refuse(write(tmp_path, distinct, "mine.parquet"), "holds more than 0 MiB")
    monkeypatch.setattr(_rows, "MAX_JSON_BYTES", 1 << 18)
    refuse(write(tmp_path, rows, "mine.json"), "a list of more than 0 MiB")


# ------------------------------------------------------------------------------------------ settings and the path


def test_the_path_may_hold_environment_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, GOOD)
    monkeypatch.setenv("MY_DATA", str(tmp_path))
    assert len(texts(load(Path("${MY_DATA}/mine.jsonl")))) == 6
    for value in ("", None):
        if value is None:
            monkeypatch.delenv("MY_DATA")
        else:
            monkeypatch.setenv("MY_DATA", value)
        refuse(Path("${MY_DATA}/mine.jsonl"), "task.path", "environment variable MY_DATA", "is not set")


@pytest.mark.parametrize(
    "options",
    [
        {"colour": 1},
        {"test_share": 0},
        {"test_share": 1.0},
        {"test_share": "many"},
        {"max_rows": 1},
        {"chosen_field": "rejected"},
        {"prompt_field": ""},
        {"path": 3},
    ],
)
def test_settings_that_cannot_work_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PairsTask(**{"path": "x.jsonl", **options})


def test_an_empty_path_is_refused() -> None:
    with pytest.raises(AligngapError, match=r"task\.path: is empty"):
        PairsTask(path=" ").load(0)


# ---------------------------------------------------------------------------------------------- folders and splits


def test_a_folder_with_train_and_test(tmp_path: Path) -> None:
    write(tmp_path, [*GOOD[:4], {**GOOD[4], "chosen": "another"}], "train.jsonl.gz")
    write(tmp_path, GOOD[4:], "test.csv")
    write(tmp_path, GOOD, "train.meta.jsonl.gz")
    data = load(tmp_path)
    assert [c.chosen for c in data.train] == ["good 0", "good 1", "good 2", "good 3"]
    assert [c.chosen for c in data.test] == ["good 4", "good 5"]
    assert data.dropped == {"prompt is also in test": 1}
    assert data.source == "train.jsonl.gz, test.csv"


def test_a_folder_that_is_not_clear(tmp_path: Path) -> None:
    write(tmp_path, GOOD, "test.jsonl")
    refuse(tmp_path, "holds no train file")
    write(tmp_path, GOOD, "train.jsonl")
    refuse(tmp_path, "no row left to train on", "prompt is also in test 6")
    write(tmp_path, GOOD, "train.csv")
    refuse(tmp_path, "holds train.csv and train.jsonl")


def test_a_test_file_without_a_usable_row(tmp_path: Path) -> None:
    write(tmp_path, GOOD, "train.jsonl")
    write(tmp_path, [{**GOOD[0], "chosen": ""}], "test.jsonl")
    refuse(tmp_path, "test.jsonl", "no usable row")


def test_links_in_a_folder_are_not_followed_out(tmp_path: Path) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "folder"
    outside.mkdir()
    folder.mkdir()
    target = write(outside, GOOD, "secret.jsonl")
    (folder / "train.jsonl").symlink_to(target)
    refuse(folder, "leads out of its folder")
    (folder / "train.jsonl").unlink()
    write(folder, GOOD, "real.jsonl")
    (folder / "train.jsonl").symlink_to(folder / "real.jsonl")
    assert len(texts(load(folder))) == 6
    assert len(texts(load(folder / "train.jsonl"))) == 6


rows_with_repeated_prompts = st.lists(
    st.tuples(st.sampled_from(string.ascii_letters), st.text("ab", min_size=1, max_size=9)), min_size=2, max_size=60
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=rows_with_repeated_prompts, share=st.floats(0.01, 0.99), seed=st.integers(0, 9))
def test_no_prompt_is_in_both_splits(tmp_path: Path, rows: list[tuple[str, str]], share: float, seed: int) -> None:
    made = [{"prompt": prompt, "chosen": answer, "rejected": "c"} for prompt, answer in rows]
    path = write(tmp_path, made)
    if len({prompt.lower() for prompt, _ in rows}) < 2:
        refuse(path, "only 1 usable prompt")
        return
    data = PairsTask(path=str(path), test_share=share).load(seed)
    assert data.train
    assert data.test
    assert not {c.prompt.lower() for c in data.train} & {c.prompt.lower() for c in data.test}
    assert len(data.train) + len(data.test) + sum(data.dropped.values()) == len(rows)
    assert data == PairsTask(path=str(path), test_share=share).load(seed + 1), "the seed moves no prompt"


def test_more_rows_move_no_prompt_and_the_share_is_kept(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i}", "chosen": "a", "rejected": "b"} for i in range(2000)]
    few = load(write(tmp_path, rows[:1000], "few.jsonl"), test_share=0.2)
    many = load(write(tmp_path, rows, "many.jsonl"), test_share=0.2)
    assert set(few.test) <= set(many.test)
    assert set(few.train) <= set(many.train)
    assert abs(len(many.test) / 2000 - 0.2) < 0.03


def test_max_rows_draws_by_the_seed_and_keeps_the_order(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i:03}", "chosen": "a", "rejected": "b"} for i in range(200)]
    task = PairsTask(path=str(write(tmp_path, rows)), max_rows=30)
    data, other = task.load(0), task.load(1)
    assert len(data.train) == 30
    assert len(data.test) <= 30
    assert [c.prompt for c in data.train] == sorted(c.prompt for c in data.train)
    assert data == task.load(0)
    assert data.train != other.train
    assert data.dropped["beyond max_rows"] == 200 - len(data.train) - len(data.test)


def test_prompt_ids_are_stable_and_short(tmp_path: Path) -> None:
    sha_of_question_0 = "91bd6a70e42ae66d"  # printf 'question 0?' | sha256sum | head -c 16
    data = load(write(tmp_path, GOOD))
    assert {c.prompt: c.prompt_id for c in [*data.train, *data.test]}["question 0?"] == sha_of_question_0
    assert all(re.fullmatch("[0-9a-f]{16}", c.prompt_id) for c in data.train)


# ----------------------------------------------------------------------------------------------------- fingerprint


def test_the_fingerprint_is_of_contents_and_settings_not_of_the_path(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    here = PairsTask(path=str(write(tmp_path, GOOD))).fingerprint()
    assert re.fullmatch("[0-9a-f]{64}", here)
    assert here == PairsTask(path=str(write(tmp_path / "elsewhere", GOOD, "other.jsonl"))).fingerprint()
    assert here == PairsTask(path=str(write(tmp_path, GOOD, "packed.jsonl.gz"))).fingerprint()
    others = {
        PairsTask(path=str(write(tmp_path, GOOD[:5], "fewer.jsonl"))).fingerprint(),
        PairsTask(path=str(tmp_path / "mine.jsonl"), test_share=0.2).fingerprint(),
        PairsTask(path=str(tmp_path / "mine.jsonl"), max_rows=3).fingerprint(),
        PairsTask(path=str(tmp_path / "mine.jsonl"), chosen_field="rejected", rejected_field="chosen").fingerprint(),
    }
    assert len(others) == 4
    assert here not in others


def test_the_fingerprint_of_a_folder(tmp_path: Path) -> None:
    write(tmp_path, GOOD[:3], "train.jsonl")
    write(tmp_path, GOOD[3:], "test.jsonl")
    first = PairsTask(path=str(tmp_path)).fingerprint()
    assert first == PairsTask(path=str(tmp_path), test_share=0.5).fingerprint(), "there is nothing to split"
    write(tmp_path, GOOD[4:], "test.jsonl")
    assert first != PairsTask(path=str(tmp_path)).fingerprint()


def test_the_fingerprint_of_bad_input_is_one_line_too(tmp_path: Path) -> None:
    with pytest.raises(AligngapError, match="no such file"):
        PairsTask(path=str(tmp_path / "none.jsonl")).fingerprint()
    (tmp_path / "bad.jsonl.gz").write_bytes(b"nothing")
    with pytest.raises(AligngapError, match="not a whole gzip file"):
        PairsTask(path=str(tmp_path / "bad.jsonl.gz")).fingerprint()


# -------------------------------------------------------------------------------------------------------- real data

DATA = os.environ.get("ALIGNGAP_DATA", "")
needs_data = pytest.mark.skipif(not DATA, reason="ALIGNGAP_DATA is not set: no real preference data at hand")
COUNTS = {
    "helpfulness": (1674, 381),
    "harmlessness": (1707, 402),
    "summarisation": (2758, 1004),
    "tldr": (142, 42),
    "chat": (1791, 337),
}


@needs_data
@pytest.mark.parametrize("task", COUNTS)
def test_real_tasks(task: str) -> None:
    data = load(Path("${ALIGNGAP_DATA}", task))
    assert (len(data.train), len(data.test)) == COUNTS[task]
    assert data.dropped == {}
    assert not {c.prompt_id for c in data.train} & {c.prompt_id for c in data.test}
    everything: list[Comparison] = [*data.train, *data.test]
    assert len({c.prompt_id for c in everything}) == len({c.prompt for c in everything})
    assert all(c.chosen.strip() != c.rejected.strip() for c in everything)


@needs_data
@pytest.mark.parametrize("name", ["helpfulness/original_sample.jsonl", "harmlessness/original_sample.jsonl"])
def test_real_dialogues_without_a_prompt(name: str) -> None:
    data = load(Path("${ALIGNGAP_DATA}", name))
    everything = [*data.train, *data.test]
    assert len(everything) >= 45
    assert len(everything) + sum(data.dropped.values()) == 50
    assert all(c.prompt.startswith("Human:") and c.prompt.endswith("\n\nAssistant:") for c in everything)


@needs_data
def test_a_real_dialogue_is_cut_as_the_prepared_data_was() -> None:
    original = load(Path("${ALIGNGAP_DATA}/harmlessness/original_sample.jsonl.gz"))
    prepared = load(Path("${ALIGNGAP_DATA}/harmlessness"))
    known = texts(prepared)
    assert len([c for c in texts(original) if c in known]) >= 40, "the rest was too long for the prepared data"
