"""`benchmarks/gpu.py` in miniature, so that no time on a GPU is spent on a typo; and what a part that fails costs."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState

from aligngap.pipeline.plan import expand
from aligngap.study.load import load

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
#: parts that a test's process runs itself; studies are below, and TRL is looked for and left out where it is not there
ALONE = ("card", "smollm", "t5-large", "memory", "sampling", "together")


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, Any]]:
    """The benchmark's modules, importable for as long as they are used."""
    names = ("gpu", "gpu_parts", "contenders", "deviation", "command", "machine", "memory", "meter")
    before = {name: sys.modules.pop(name, None) for name in names}
    sys.path.insert(0, str(BENCHMARKS))
    yield {name: importlib.import_module(name) for name in ("gpu", "gpu_parts", "deviation", "memory")}
    sys.path.remove(str(BENCHMARKS))
    for name, module in before.items():
        sys.modules.pop(name, None)
        if module is not None:
            sys.modules[name] = module


@pytest.mark.parametrize("part", ALONE)
def test_a_part_in_miniature(
    scripts: dict[str, Any], part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    parts = scripts["gpu_parts"]
    for name in ("DEVICE", "VOCABULARY", "LLAMA", "BATCH", "PROMPT", "RESPONSE", "BATCHES", "make_policy"):
        monkeypatch.setattr(parts.c, name, getattr(parts.c, name))  # put back at the end
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
        monkeypatch.delenv(name)
    AcceleratorState._reset_state(reset_partial_state=True)  # another test may have left one of its own
    parts.PARTS[part](parts.SMALL, "cpu", tmp_path)
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    values = {result["what"]: result["value"] for result in told}
    assert len(values) == len(told) >= 2
    numbers = [v for v in values.values() if isinstance(v, float)]
    assert all(v >= 0 for v in numbers)
    assert any(v > 0 for v in numbers)
    if part == "together":
        apart = [value for what, value in values.items() if "difference" in what]
        assert len(apart) == 3
        assert max(apart) < 1e-5
    if part == "t5-large":
        shares = [value for what, value in values.items() if "matrix peak" in what]
        assert len(shares) == 2
        assert all(0 < share < 100 for share in shares)
    if part == "sampling":
        assert all(value > 0 for value in values.values())


@pytest.mark.parametrize("part", ["deviation", "opening"])
def test_what_a_part_makes_of_a_study(
    scripts: dict[str, Any], part: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The study itself is the tiny one, which other tests have run already."""

    def run(*words: str) -> None:
        shutil.copytree(finished / "out", words[words.index("--out") + 1])
        (Path(words[words.index("--out") + 1]) / "figures" / "opening.png").touch()

    monkeypatch.setattr(scripts["deviation"], "command", run)
    monkeypatch.setattr(scripts["gpu_parts"], "command", run)
    scripts["gpu_parts"].PARTS[part](scripts["gpu_parts"].SMALL, "cpu", tmp_path)
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    values = {result["what"]: result["value"] for result in told}
    if part == "deviation":
        assert {value for what, value in values.items() if "difference" in what} == {0.0}
        assert any(what.startswith("online: largest standard error of kl_nats") for what in values)
    else:
        assert {p.name for p in tmp_path.iterdir()} == {
            "opening-records.parquet", "opening-summary.md", "opening-opening.png",
        }  # fmt: skip
        assert "seconds of align" in values


@pytest.mark.parametrize("size", ["FULL", "SMALL"])
def test_the_studies_are_valid(scripts: dict[str, Any], size: str) -> None:
    parts = scripts["gpu_parts"]
    at = getattr(parts, size)
    for sets in (at.deviation or scripts["deviation"].SHORT, parts.cut_of(at)):
        assert expand(load("opening", list(sets))).runs


def test_the_parts_fit_into_nine_minutes(scripts: dict[str, Any]) -> None:
    gpu = scripts["gpu"]
    assert list(gpu.BUDGETS) == list(scripts["gpu_parts"].PARTS)
    assert sum(gpu.BUDGETS.values()) + gpu.CLOSING <= gpu.DEADLINE <= 540


PARTS = """
import json, subprocess, sys, time
part = sys.argv[-1]
print("a library's own words", flush=True)
print(json.dumps({"what": part + " has begun", "value": 0.5, "unit": "steps/s"}), flush=True)
if part == "wrong":
    raise ValueError("out of memory")
if part == "slow":
    subprocess.run([sys.executable, "-c", "import time; time.sleep(60)"])
"""


def test_a_part_that_fails_or_hangs_costs_only_itself(
    scripts: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "parts.py").write_text(PARTS)
    out = tmp_path / "out"
    out.mkdir()
    budgets = {"wrong": 30.0, "slow": 2.0, "good": 30.0, "late": 30.0}
    gpu = scripts["gpu"]
    words = [sys.executable, str(tmp_path / "parts.py")]
    ended = gpu.run_all(words, {k: budgets[k] for k in ("wrong", "good")}, 70.0, out)
    ended.append(gpu.run_part(words, "slow", 3.0, out))
    assert [e.part for e in ended if not e.trouble] == ["good"]
    wrong, _, slow = ended
    assert "ValueError: out of memory" in wrong.trouble
    assert "stopped after its 3 seconds" in slow.trouble
    assert slow.seconds < 30  # what it had started is gone too
    assert {p.name for p in out.iterdir()} == {"results.jsonl", "wrong.log", "slow.log"}
    kept = [json.loads(line)["what"] for line in (out / "results.jsonl").read_text().splitlines()]
    assert kept == ["wrong has begun", "good has begun", "slow has begun"]
    page = gpu.page(ended, "make gpu", 12.0)
    assert "Parts that failed: wrong, slow." in page
    assert "| good has begun | 0.5 | steps/s |" in page
    [none] = gpu.run_all(words, {"late": 30.0}, gpu.CLOSING + 0.5, out)
    assert none.trouble == "no time was left for it"
    said = capsys.readouterr().out
    assert "good has begun: 0.5 steps/s" in said
    assert "FAILED: ValueError: out of memory" in said
