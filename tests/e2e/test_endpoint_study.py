"""`aligngap run` with a language model over an endpoint as golden judge: killed, refused, answered with rubbish.

One study runs undisturbed and once more with two kills and an endpoint that fails in between. Nothing that was answered
is asked again, both end with the same records and the same account, and the key is written nowhere.
"""

from __future__ import annotations

import json
import signal
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from conftest import TINY_STUDY
from endpoint_server import Server, serving
from warm import Running, Warm

pytest.importorskip("openai")
SECRET = "sk-test-0987654321"
CONCURRENCY = 3
WORDS = [
    "run", "judged.yaml", "--out", "out", "--store", "store", "--device", "cpu", "--workers", "1",
    "--save-seconds", "0.01",
]  # fmt: skip
PLAIN = '"prompt": "Say hello."'  # the one question before each start


def trouble(data: dict[str, str]) -> str:
    """What is wrong with the answer to a question: the same whenever it is asked."""
    number = zlib.crc32(json.dumps(data).encode())
    kinds = ((41, "refuse"), (43, "rubbish"), (47, "truncate"), (53, "html"))
    return "" if data["prompt"] == "Say hello." else next((what for n, what in kinds if number % n == 0), "")


def study(url: str) -> str:
    raw = yaml.safe_load(TINY_STUDY)
    raw["golden"] = {
        "kind": "endpoint", "base_url": url, "served_model": "m", "key_variable": "JUDGE_KEY", "retries": 0,
        "concurrency": CONCURRENCY, "bad_share": 0.5, "price_in": 2.0, "price_out": 10.0,
    }  # fmt: skip
    raw["task"] |= {"train_pairs": 80, "test_pairs": 20}
    raw["limits"]["response_tokens"] = 6
    raw["measurement"] |= {"best_of_n": 0, "reference_samples": 0, "prompts": 8, "kl_prompts": 4, "opponents": ["sft"]}
    raw["arms"]["online"]["judge"] = "golden"
    return yaml.safe_dump(raw)


@dataclass
class Judged:
    """A folder in which the study has run to its end, and how often the server answered each question meanwhile."""

    folder: Path
    answered: dict[str, int]
    said: str

    @property
    def account(self) -> dict[str, Any]:
        [found] = json.loads((self.folder / "out" / "provenance.json").read_text())["judges"].values()
        return dict(found)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as made:
        made.rule = trouble
        yield made


@pytest.fixture(scope="module")
def both(warm: Warm, server: Server, tmp_path_factory: pytest.TempPathFactory) -> tuple[Judged, Judged]:
    """The study undisturbed, and killed and refused on the way."""
    whole = to_the_end(server, start(warm, server, tmp_path_factory.mktemp("whole") / "study"), "")
    total = sum(whole.answered.values())
    folder, said = tmp_path_factory.mktemp("killed") / "study", ""
    for share, how in ((0.3, "503"), (0.65, "kill"), (0.9, "kill")):
        running = start(warm, server, folder)
        limit = time.monotonic() + 300
        while server.answered.total() < share * total:
            assert running.wait(0.005) is None, running.stderr.read_text()
            assert time.monotonic() < limit
        if how == "kill":
            assert running.kill() == -signal.SIGKILL
        else:
            server.always = how
            code, _, error = running.finish()
            assert code == 1
            assert "HTTP 503" in error
            assert "repeat the command" in error
            assert "Traceback" not in error
            server.always = ""
        said += running.stdout.read_text() + running.stderr.read_text()
        assert not (folder / "out" / "records.parquet").exists()
    return whole, to_the_end(server, start(warm, server, folder), said)


def start(warm: Warm, server: Server, folder: Path) -> Running:
    folder.mkdir(exist_ok=True)
    (folder / "judged.yaml").write_text(study(server.url))
    return warm.start(WORDS, folder, env={"JUDGE_KEY": SECRET})


def to_the_end(server: Server, running: Running, said: str) -> Judged:
    code, out, error = running.finish()
    assert code == 0, error
    answered = {q: n for q, n in server.answered.items() if PLAIN not in q}
    server.answered.clear()
    return Judged(running.folder, answered, said + out + error)


def test_nothing_that_was_answered_is_paid_for_again(both: tuple[Judged, Judged]) -> None:
    whole, killed = both
    assert set(whole.answered.values()) == {1}
    assert set(killed.answered) == set(whole.answered)
    under_way = sum(n - 1 for n in killed.answered.values())
    assert under_way <= 2 * CONCURRENCY  # answered, but the process that asked was dead by then


@pytest.mark.parametrize("table", ["records", "per_prompt", "samples"])
def test_the_records_are_those_of_an_undisturbed_study(both: tuple[Judged, Judged], table: str) -> None:
    left, right = (pd.read_parquet(j.folder / "out" / f"{table}.parquet") for j in both)
    assert len(left) > 0
    pd.testing.assert_frame_equal(left, right, check_exact=True)


def test_the_account_is_whole_in_spite_of_kills(both: tuple[Judged, Judged]) -> None:
    whole, killed = both
    account = whole.account
    assert account == killed.account
    questions = [json.loads(q) for q in whole.answered]
    with_tokens = sum(trouble(q) != "html" for q in questions)
    assert account["asked"] == len(questions)
    assert (account["tokens_in"], account["tokens_out"]) == (10 * with_tokens, 2 * with_tokens)
    assert account["cost"] == pytest.approx((20 * with_tokens + 20 * with_tokens) / 1e6)
    for counted, kinds in (("refused", {"refuse"}), ("truncated", {"truncate"}), ("unreadable", {"rubbish", "html"})):
        once = sum(trouble(q) in kinds for q in questions)
        assert account[counted] >= once > 0  # a pair that two steps use counts in both
    assert account["answers"] >= account["asked"]


def test_the_account_is_in_the_report(both: tuple[Judged, Judged]) -> None:
    account, out = both[1].account, both[1].folder / "out"
    for page in ("summary.md", "report.html"):
        text = (out / page).read_text()
        assert "What the judges were asked and cost" in text
        assert f"{account['tokens_in']:,}" in text
    [row] = [line for line in (out / "summary.md").read_text().splitlines() if line.startswith("| endpoint m ")]
    cells = [c.strip() for c in row.strip("|").split("|")]
    wanted = ("pairs", "answers", "refused", "truncated", "unreadable", "orders_disagree", "suspicious", "asked")
    assert cells[1:9] == [f"{account[name]:,}" for name in wanted]
    assert float(cells[-1]) == pytest.approx(account["cost"], rel=1e-3)


def test_the_key_is_nowhere(both: tuple[Judged, Judged], server: Server) -> None:
    assert server.keys == {f"Bearer {SECRET}"}  # it was sent
    for judged in both:
        assert SECRET not in judged.said  # though the endpoint sent it back in an error
        files = [f for f in judged.folder.parent.rglob("*") if f.is_file()]
        assert len(files) > 30
        assert [f for f in files if SECRET.encode() in f.read_bytes()] == []
