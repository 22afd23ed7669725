"""More than 300 malformed studies, data files and command lines, most of them made from valid ones by mutation.

Each ends the command with 2 and one line that names the file and the key or row, in under 3 seconds, with nothing
written and no traceback. The cases call the command's own `main` here; `test_cli.py` has some from outside.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import TINY_STUDY, complaint

from aligngap.cli import main

VALID: dict[str, Any] = yaml.safe_load(TINY_STUDY)
MORE: dict[str, Any] = {  # every section that the tiny study leaves at its default, spelled out
    "sft": {"micro_batch": 4, "warmup_steps": 1, "weight_decay": 0.1, "grad_clip": 1.0, "eps": 1e-8, "batch": 16},
    "golden": {"labels": 20},
    "measurement": {"best_of_n": 2, "best_of_n_prompts": 4, "batch": 8, "split": "train"},
    "policy": {"dropout": 0.1},
}
NAN, INF = float("nan"), float("inf")


def full() -> dict[str, Any]:
    raw = deepcopy(VALID)
    for section, values in MORE.items():
        raw[section] |= values
    return raw


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, inside in value.items():
        if isinstance(inside, dict):
            yield from leaves(inside, (*path, key))
        else:
            yield (*path, key), inside


def sections(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    for key, inside in value.items():
        if isinstance(inside, dict):
            yield from sections(inside, (*path, key))


def put(raw: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    out = deepcopy(raw)
    place = out
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return out


def mutated() -> Iterator[tuple[str, dict[str, Any], str]]:
    """(what was done, the study, the key that the line must name), systematically over every key of a valid study."""
    anything = ("policy", "config")  # sizes of a model: judged by transformers, when models are looked at
    for path, value in leaves(full()):
        if path[:2] == anything:
            continue
        where, key = ".".join(path), path[-1]
        yield f"{where}: a mapping", put(full(), path, {"a": {"b": 1}}), key
        yield f"{where}: a list of lists", put(full(), path, [["x"], []]), key
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        for wrong in ("many", NAN, -INF, INF, -3, "1; rm -rf /"):
            yield f"{where}: {wrong!r}", put(full(), path, wrong), key
        if isinstance(value, int):
            yield f"{where}: a fraction", put(full(), path, value + 0.5), key
    for path in sections(full()):
        if path[:2] != anything:
            where = ".".join(path) or "study"
            for extra in ("lerning_rate", "\u202egnorw", "a\nb", "<script>"):
                yield (
                    f"{where}: unknown key {extra!r}",
                    put(full(), (*path, extra), 1),
                    extra.split("\n")[0].lstrip("\u202e"),
                )
    for path in sections(full()):
        if path and path[:2] != anything and path not in (("arms", "online"), ("arms", "offline")):
            where = ".".join(path)
            for wrong in (3, "text", [1, 2]):
                yield f"{where}: {wrong!r} for a section", put(full(), path, wrong), path[-1]
    for key in ("name", "question", "task", "policy", "sft", "golden", "proxy", "recipe", "arms"):
        yield f"{key} left out", {k: v for k, v in full().items() if k != key}, key


def hand_made() -> Iterator[tuple[str, str, str]]:
    """(what it is, the file's text, what the line must name)."""
    text = TINY_STUDY
    yield (
        "billion laughs",
        "a0: &a0 [x, x]\n"
        + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}, *a{i - 1}, *a{i - 1}]\n" for i in range(1, 30)),
        "aliases",
    )
    yield "an alias of itself", text + "more: &m {inside: *m}\n", "aliases"
    yield "an alias of nothing", text + "more: *nobody\n", "nobody"
    yield "python objects", text + "more: !!python/object/new:os.system ['true']\n", "line"
    yield "a binary tag", text + "more: !!binary '@@@'\n", ""
    yield "a key that is a list", text + "? [a, b]\n: 1\n", ""
    yield "a key that is a mapping", text + "? {a: 1}\n: 1\n", ""
    yield "a key that is a number", text + "3: 1\n", "3"
    yield "a key that is null", text + "~: 1\n", ""
    yield "two documents", text + "---\nname: b\n", "line"
    yield "a merge key of nothing", text + "<<: 3\n", ""
    yield "a tab", text.replace("name:", "\tname:"), "line"
    yield "an open quote", text + 'more: "open\n', "line"
    yield "deep", text + "more: " + "[" * 5000 + "]" * 5000 + "\n", ""
    yield "a control character", text + "more: \x07\n", ""
    yield "a null character", text + "more: a\x00b\n", ""
    yield "a date", text.replace("name: tiny", "name: 2024-01-01"), "name"
    yield "a name of its own folder", text.replace("name: tiny", "name: ../../x"), "name"
    yield "a name that is absolute", text.replace("name: tiny", "name: /etc/x"), "name"
    yield "a name with a line end", text.replace("name: tiny", 'name: "tiny\\n"'), "name"
    yield "a name with a null", text.replace("name: tiny", 'name: "ti\\0ny"'), "name"
    for name in ("../up", "a/b", "a[b]", "a@4", "", ".hidden", "\\u202eenilno", "a\\nb", "\\ud800"):
        yield f"an arm called {name!r}", text + f'  "{name}": {{behavior: dataset, judge: golden}}\n', ""
        variant = f'variants:\n  "{name}": {{set: {{recipe.loss.beta: 0.2}}}}\n'
        yield f"a variant called {name!r}", text + variant, ""
    for key in ("arms.online", "name", "seeds", "sweep", "measurement.prompts", "compare", "variants"):
        yield f"a variant of {key}", text + f"variants:\n  v: {{set: {{{key}: 1}}}}\n", "variants.v"
    for key in ("recipe.loss.betta", "policy.d_model", "task.train_pair", "sft.steps.x", "nothing"):
        yield f"a variant of {key}, which is not there", text + f"variants:\n  v: {{set: {{{key}: 1}}}}\n", "variants.v"
    for base in ("nowhere", "3", "[opening, nowhere]", "{a: 1}", "[[opening]]", "../opening", "bad.yaml"):
        yield f"extends {base}", f"extends: {base}\n" + text, "extends"


STUDIES = [(what, yaml.safe_dump(raw, sort_keys=False, allow_unicode=True), key) for what, raw, key in mutated()]
STUDIES += list(hand_made())
GOOD = [{"prompt": f"say {i}", "chosen": f"river {i}", "rejected": f"lamp {i}"} for i in range(12)]


def lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(r) + "\n" for r in rows).encode()


def data() -> Iterator[tuple[str, str, bytes, str]]:
    """(what it is, the file's name, its bytes, what the line must name): a good file with row 7 broken, and others."""
    for field in ("prompt", "chosen", "rejected"):
        for what, value in (
            ("a number", 3), ("true", True), ("an object", {"text": "x"}), ("a list of numbers", [1]),
            ("a lone surrogate", "\ud800"), ("an empty message", [{}]), ("a message of no role", [{"content": "x"}]),
            ("a message of a number", [{"role": "user", "content": 3}]),
        ):  # fmt: skip
            rows = deepcopy(GOOD)
            rows[6][field] = value
            yield f"{field} is {what}", "pairs.jsonl", lines(rows), "line 7"
            yield f"{field} is {what}, in a list", "pairs.json", json.dumps(rows).encode(), "row 7"
        rows = deepcopy(GOOD)
        del rows[6][field]
        yield f"no {field}", "pairs.jsonl", lines(rows), "line 7"
        rows = [{("text" if k == field else k): v for k, v in r.items()} for r in GOOD]
        yield f"{field} under another name", "pairs.jsonl", lines(rows), field
    good = lines(GOOD)
    for what, broken in (
        ("cut in a row", good[:-20]), ("a row that is a list", good + b"[1]\n"),
        ("a row that is text", good + b'"a"\n'),
        ("two rows on a line", good + b'{"a":1}{"b":2}\n'), ("NaN where a row is", good + b"NaN\n"),
        ("a key twice", good + b'{"prompt":"a","prompt":"b","chosen":"c","rejected":"d"}\n'),
        ("not UTF-8", good + b'{"prompt":"\xff"}\n'), ("UTF-16", good.decode().encode("utf-16")),
        ("nested too deeply", good + b"[" * 100_000 + b"\n"),
        ("a line that is too long", good + b'{"prompt": "' + b"x" * (33 << 20) + b'"}\n'),
        ("gzip without the name", gzip.compress(good)),
        ("a null byte", good + b"\x00\n"), ("only blanks", b" \n" * 50), ("nothing", b""),
        ("one prompt", lines([r | {"prompt": "p"} for r in GOOD])), ("a page", b"<html><body>404</body></html>"),
        ("all the same", lines([r | {"chosen": "x", "rejected": "x"} for r in GOOD])),
        ("all empty", lines([r | {"chosen": " "} for r in GOOD])),
    ):  # fmt: skip
        yield what, "pairs.jsonl", broken, "pairs.jsonl"
        if broken and not what.startswith(("gzip", "only")):
            yield f"{what}, gzipped", "pairs.jsonl.gz", gzip.compress(broken), "pairs.jsonl.gz"
    packed = gzip.compress(good)
    for cut in (1, 5, 12, len(packed) // 2, len(packed) - 4):
        yield f"gzip cut at {cut}", "pairs.jsonl.gz", packed[:cut], "pairs.jsonl.gz"
    yield "gzip with a wrong sum", "pairs.jsonl.gz", packed[:-6] + b"\0\0" + packed[-4:], "pairs.jsonl.gz"
    yield "no gzip", "pairs.csv.gz", b"prompt,chosen,rejected\n", "pairs.csv.gz"
    yield "a zip bomb", "pairs.jsonl.gz", gzip.compress(b"\n" * (80 << 20), 9), "zip bomb"
    head = b"prompt,chosen,rejected\n"
    for what, broken in (
        ("a row too wide", head + b"a,b,c\nd,e,f,g\n"), ("a column twice", b"prompt,chosen,chosen\na,b,c\n"),
        ("an open quote", head + b'a,"b,c\n'), ("a quote inside", head + b'a,"b"x,c\n'), ("no rows", head),
        ("no such column", b"prompt,chosen\na,b\nc,d\n"), ("bars", b"prompt|chosen|rejected\na|b|c\nd|e|f\n"),
        ("not UTF-8", head + b"\xff,b,c\n"), ("a short row", head + b"a,b,c\nd,e\nf,g,h\n"),
    ):  # fmt: skip
        yield f"csv: {what}", "pairs.csv", broken, "pairs.csv"
    for what, broken in (("no parquet", b"PAR1 no PAR1"), ("nothing in it", b"PAR1PAR1"), ("text", good)):
        yield f"parquet: {what}", "pairs.parquet", broken, "pairs.parquet"
    for what, broken in (
        ("an object of lists", b'{"prompt": ["a"], "chosen": ["b"], "rejected": ["c"]}'), ("a number", b"3"),
        ("no comma", b'[{"a":1} {"b":2}]'), ("no end", b'[{"prompt":"a","chosen":"b","rejected":"c"}'),
        ("more after the end", json.dumps(GOOD).encode() + b"x"), ("an empty list", b"[]"), ("text", b"rows"),
    ):  # fmt: skip
        yield f"json: {what}", "pairs.json", broken, "pairs.json"
    for name in ("pairs.txt", "pairs", "pairs.jsonl.zip", "pairs.tar.gz", "pairs.jsonl.bz2", "pairs.pkl", "pairs.pt"):
        yield f"a file called {name}", name, good, name


DATA = list(data())
WORDS = [
    ["--out", "x"], ["run"], ["run", ""], ["run", "opening", "extra"], ["run", "opening.yaml"], ["run", "a\nb"],
    ["run", "opening", "--out"], ["run", "opening", "--set"], ["run", "opening", "--set", ""],
    ["run", "opening", "--set", "="], ["run", "opening", "--set", "seeds=-1"], ["run", "opening", "--set", "seeds=[]"],
    ["run", "opening", "--set", "seeds={a: 1}"], ["run", "opening", "--set", "seeds=&a [*a]"],
    ["run", "opening", "--set", "seeds=!!python/name:os.system"], ["run", "opening", "--set", "name=../x"],
    ["run", "opening", "--set", "arms=3"], ["run", "opening", "--set", "arms.online=3"],
    ["run", "opening", "--set", "arms.online.behavior=none"], ["run", "opening", "--set", "recipe.loss.name=3"],
    ["run", "opening", "--set", "recipe.loss.beta=.inf"], ["run", "opening", "--set", "recipe..loss=1"],
    ["run", "opening", "--set", ".=1"], ["run", "opening", "--set", "\u202eseeds=1"],
    ["run", "opening", "--workers", "1.5"], ["run", "opening", "--workers", "-2"],
    ["run", "opening", "--save-seconds", "soon"], ["run", "opening", "--save-seconds", "-1"],
    ["run", "opening", "--threads", "x"], ["run", "opening", "--threads", "0"], ["run", "opening", "--device", ""],
    ["run", "opening", "--device", "cuda:-1"], ["run", "opening", "--device", "/dev/null"],
    ["run", "opening", "--track", "tensorboard", "--executor", "ray"], ["run", "opening", "--track", "ledger"],
    ["plan"], ["plan", "--pilot"], ["plan", "opening", "--detect", "x"], ["plan", "opening", "--detect", "0.1"],
    ["plan", "opening", "--pilot", "nowhere"], ["report"], ["report", ""], ["report", "a", "b"],
    ["report", "no\0where"],
    ["show"], ["show", "--failures"], ["show", "nowhere", "--failures"], ["diff", "opening"],
    ["diff", "opening", "a", "b"], ["diff", "nothing", "online", "offline"], ["list", ""], ["list", "losses", "x"],
    ["run", "tabular", "--processes", "0"], ["run", "tabular", "--processes", "-2"],
    ["run", "tabular", "--processes", "x"], ["run", "tabular", "--processes", "7"],
    ["run", "tabular", "--parallel", "fsdp"], ["run", "tabular", "--processes", "2", "--parallel", "tp"],
    ["run", "tabular", "--processes", "2", "--workers", "2"],
    ["run", "tabular", "--processes", "2", "--executor", "ray"],
    ["run", "tabular", "--processes", "2", "--parallel", "fsdp", "--set", "sft.optimizer=adafactor"],
    ["run", "tabular", "--processes", "2", "--parallel", "fsdp", "--set", "recipe.optimization.lora={}"],
    ["nonsense"], ["run", "--help-me"], ["\x1b[31mrun"], ["-"], ["--"],
]  # fmt: skip


def everything(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*")}


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    monkeypatch.chdir(tmp_path)
    capfd.readouterr()

    def check(words: list[str], *names: str) -> str:
        before = everything(tmp_path)
        code = main(words)
        out, err = capfd.readouterr()
        assert code == 2, (code, out[-300:], err)
        assert complaint(err).startswith("aligngap: ")
        assert "Traceback" not in err
        assert err.replace("\n", "").isprintable()  # no control character or right-to-left mark reaches the terminal
        assert len(err) < 2000
        for name in names:
            assert name in err, err
        assert everything(tmp_path) == before  # no step was begun
        return err

    return check


def test_there_are_enough() -> None:
    assert len(STUDIES) + len(DATA) + len(WORDS) >= 300
    assert len({what for what, _, _ in STUDIES}) == len(STUDIES)
    assert math.isnan(yaml.safe_load(yaml.safe_dump(NAN)))


BATCH = 40


@pytest.mark.parametrize("part", range(0, len(STUDIES), BATCH))
def test_studies(refused: Callable[..., str], tmp_path: Path, part: int) -> None:
    wrong = []
    for what, text, key in STUDIES[part : part + BATCH]:
        (tmp_path / "bad.yaml").write_text(text, encoding="utf-8", errors="surrogatepass")
        try:
            refused(["run", "bad.yaml", "--out", "out", "--device", "cpu"], "bad.yaml", key)
        except Exception as error:  # all of a part are told at once
            wrong.append(f"{what}: {type(error).__name__} {error}"[:700])
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("part", range(0, len(DATA), BATCH))
def test_data(refused: Callable[..., str], tmp_path: Path, part: int) -> None:
    wrong = []
    for what, name, content, where in DATA[part : part + BATCH]:
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        (folder / name).write_bytes(content)
        study = deepcopy(VALID) | {"task": {"name": "pairs", "path": str(folder / name)}}
        (tmp_path / "good.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
        try:
            said = [refused([verb, "good.yaml", "--out", "out"], name, where) for verb in ("plan", "run")]
            assert said[0] == said[1], "a plan is refused as a run is"
        except Exception as error:
            wrong.append(f"{what}: {type(error).__name__} {error}"[:700])
    assert not wrong, "\n".join(wrong)


def test_stored_log_probabilities_and_a_moving_reference(refused: Callable[..., str], tmp_path: Path) -> None:
    stored = {"ref_chosen_logps": -3.0, "ref_rejected_logps": -4.5}
    rows = [{name: f"{text} {i}" for name, text in GOOD[0].items()} | stored for i in range(60)]
    (tmp_path / "data.jsonl").write_bytes(lines(rows))
    study = deepcopy(VALID) | {"task": {"name": "pairs", "path": str(tmp_path / "data.jsonl")}}
    (tmp_path / "good.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    named = ("data.jsonl: `ref_chosen_logps` and `ref_rejected_logps`", "leave `recipe.reference` out")
    for verb in ("plan", "run"):
        refused([verb, "good.yaml", "--out", "out", "--set", "recipe.reference={every: 2}"], *named)
    assert main(["plan", "good.yaml", "--out", "out"]) == 0  # with a reference that stays they are in nobody's way


def test_command_lines(refused: Callable[..., str]) -> None:
    wrong = []
    for words in WORDS:
        try:
            refused(words)
        except Exception as error:
            wrong.append(f"{words}: {type(error).__name__} {error}"[:700])
    assert not wrong, "\n".join(wrong)
