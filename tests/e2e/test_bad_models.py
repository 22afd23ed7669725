"""Models, data sets and judges that cannot be used: one line with the remedy, before anything is trained or written.

The command's own `main`; what the hub would say is said by a server on this machine that its client is sent to.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from conftest import COMMAND_ENV, TINY_STUDY, tiny_policy
from endpoint_server import Server, serving
from test_cli import refused
from transformers import BertConfig, BertForMaskedLM

from aligngap.cli import main
from aligngap.models.loading import load_tokenizer

__all__ = ["refused"]  # a fixture


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders as somebody might bring them: a T5 and a Llama, an encoder, a T5 that does not say how it starts."""
    folder = tmp_path_factory.mktemp("models")
    for family in ("t5", "llama"):
        tiny_policy(family, response_tokens=12).save(folder / family)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertForMaskedLM(BertConfig(vocab_size=40, **sizes)).save_pretrained(folder / "bert")
    tiny_policy("t5", response_tokens=12).save(folder / "startless")
    about = json.loads((folder / "startless" / "config.json").read_text())
    del about["decoder_start_token_id"]
    (folder / "startless" / "config.json").write_text(json.dumps(about))
    load_tokenizer(folder / "llama").save_pretrained(folder / "adapter")  # as PEFT leaves one beside an adapter
    (folder / "adapter" / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    rows = [{"prompt": f"say {i}", "chosen": "river", "rejected": "lamp"} for i in range(60)]
    for name, kept in (("pairs", rows), ("three", rows[:3])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in kept))
    return folder


def words(folder: Path, **changes: Any) -> list[str]:
    """A command line for the tiny study with these sections in place of its own (None: left out)."""
    raw = {k: v for k, v in (yaml.safe_load(TINY_STUDY) | changes).items() if v is not None}
    (folder / "study.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    return ["run", "study.yaml", "--out", "out", "--device", "cpu", "--workers", "1"]


@pytest.mark.parametrize(("policy", "names"), [
    ("bert", ["bert", "BertForMaskedLM", "ForCausalLM"]),
    ("nowhere", ["nowhere", "no such folder"]),
    ("adapter", ["adapter", "low-rank adapter and no whole model", "merge_and_unload"]),
    ("startless", ["startless", "decoder_start_token_id", "pad token"]),
])  # fmt: skip
@pytest.mark.parametrize("plan", [False, True])
def test_a_policy_that_is_none(
    refused: Callable[..., str], models: Path, tmp_path: Path, policy: str, names: list[str], plan: bool
) -> None:
    path, pairs = str(models / policy), str(models / "pairs.jsonl")
    compare = ["compare", "--policy", path, "--task", pairs, "--out", "out", "--device", "cpu"]
    line = refused([*compare, *(["--plan"] if plan else [])], *names)
    assert line == refused(words(tmp_path, policy={"path": path}, tokenizer=None), *names)


def test_chat_data_and_a_tokenizer_without_a_template(
    refused: Callable[..., str], models: Path, tmp_path: Path
) -> None:
    policy = {"path": str(models / "llama"), "chat": True}
    refused(words(tmp_path, policy=policy, tokenizer=None), str(models / "llama"), "no chat template", "instruct model")


def test_a_model_without_a_padding_token_can_be_used(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """GPT-2, Llama and others have none: it is not refused, since responses are masked by their length."""
    tiny_policy("llama", response_tokens=12).save(tmp_path / "padless")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        file = tmp_path / "padless" / name
        if file.is_file():
            file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "pad_token"}))
    about = json.loads((tmp_path / "padless" / "config.json").read_text())
    (tmp_path / "padless" / "config.json").write_text(json.dumps(about | {"pad_token_id": None}))
    monkeypatch.chdir(tmp_path)
    task = str(models / "pairs.jsonl")
    short = ["--set", "limits={prompt_tokens: 16, response_tokens: 12}"]
    assert main(["compare", "--policy", "./padless", "--task", task, "--plan", *short]) == 0, capsys.readouterr().err
    assert load_tokenizer("./padless").pad_token == "</s>"


def test_a_preference_file_with_three_rows(refused: Callable[..., str], models: Path, tmp_path: Path) -> None:
    task = {"name": "pairs", "path": str(models / "three.jsonl")}
    refused(words(tmp_path, task=task), "three.jsonl", "usable", "bring more rows")


@pytest.mark.parametrize(("said", "names"), [
    ("Dataset 'no/such' doesn't exist on the Hub or cannot be accessed.", ["check the name", "HF_TOKEN"]),
    ("Dataset 'no/such' is a gated dataset on the Hub. You must be authenticated", ["accept its terms", "HF_TOKEN"]),
])  # fmt: skip
def test_a_data_set_that_the_hub_does_not_give(
    refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, names: list[str]
) -> None:
    def load_dataset(hub: str, **where: str) -> None:
        raise FileNotFoundError(said)

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    refused(words(tmp_path, task={"name": "helpful", "hub": "no/such"}), "no/such", "task.path", *names)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[Server]:
    pytest.importorskip("openai")
    with serving() as made:
        yield made


@pytest.mark.parametrize(("what", "names"), [
    ("gone", ["127.0.0.1:9/v1", "cannot be reached"]), ("stall", ["no answer within 0.3 seconds", "timeout_seconds"]),
    ("503", ["HTTP 503"]), ("401", ["HTTP 401"]), ("rubbish", ["no verdict to a plain question", "answer_format"]),
])  # fmt: skip
def test_a_judge_that_does_not_answer(
    refused: Callable[..., str], endpoint: Server, tmp_path: Path, what: str, names: list[str]
) -> None:
    endpoint.always = what
    url = "http://127.0.0.1:9/v1" if what == "gone" else endpoint.url
    judge = {"kind": "endpoint", "base_url": url, "served_model": "m", "retries": 0, "timeout_seconds": 0.3}
    refused(words(tmp_path, golden=judge), url, *names)


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub does where it lets nobody in: `GatedRepo` below /gated/, `RepoNotFound` elsewhere."""

    def log_message(self, *words: Any) -> None:
        """Quiet."""

    def do_HEAD(self) -> None:
        self.send_response(401)
        self.send_header("X-Error-Code", "GatedRepo" if "/gated/" in self.path else "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD


def test_models_that_the_hub_does_not_give(tmp_path: Path) -> None:
    """The hub's own client asks; it reads where the hub is as it is imported, hence a process of its own."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    lines = []
    for name in ("gated/model", "no/such-model"):
        lines.append(words(tmp_path, policy={"path": name}, tokenizer=None))
        (tmp_path / "study.yaml").rename(tmp_path / f"{name.replace('/', '-')}.yaml")
        lines[-1][1] = f"{name.replace('/', '-')}.yaml"
    script = "import json, sys; from aligngap.cli import main; print([main(w) for w in json.loads(sys.argv[1])])"
    env = {k: v for k, v in COMMAND_ENV.items() if k not in ("HF_TOKEN", "HF_HUB_OFFLINE")}
    env |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "home")}
    env |= {"HF_HUB_DISABLE_TELEMETRY": "1"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", script, json.dumps(lines)], cwd=tmp_path, env=env, capture_output=True, text=True,
            timeout=300,
        )  # fmt: skip
    finally:
        server.shutdown()
        server.server_close()
    assert done.stdout.strip() == "[2, 2]", done.stderr
    gated, unknown = (line for line in done.stderr.splitlines() if not line.endswith(" …"))
    assert "gated/model: gated; accept its terms on the hub, then set HF_TOKEN" in gated
    assert "no/such-model: no such folder here, no such model on the hub" in unknown
    assert not {"out", "store"} & set(os.listdir(tmp_path))
