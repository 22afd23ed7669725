"""What every test of the science stands on: a word tokenizer and tiny policies of each family, from configuration.

Nothing here reaches the network; every number is a function of a seed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import psutil
import pytest
import torch
from filelock import FileLock
from hypothesis import HealthCheck, settings
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from warm import Warm

from aligngap.models.loading import build_model
from aligngap.models.policy import Policy
from aligngap.settings import ModelSpec
from aligngap.types import Judgement, Pair, Prompt, Response

torch.set_num_threads(1)
settings.register_profile("aligngap", deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
settings.load_profile("aligngap")

SPECIAL = ("<pad>", "</s>", "<unk>", "<sep>")
WORDS = (
    "river", "lamp", "bread", "stone", "clock", "horse", "apple", "drum", "ladder", "rope", "mirror", "candle",
    "old", "bright", "small", "quiet",
)  # fmt: skip

T5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 2}
DECODER = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 64,
}  # fmt: skip
SPECS = {
    "t5": ModelSpec(model_type="t5", config=T5),
    "t5-v1.1": ModelSpec(
        model_type="t5", config=T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "num_layers": 2}
    ),
    "llama": ModelSpec(model_type="llama", config=DECODER),
    "gpt2": ModelSpec(model_type="gpt2", config={"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}),
    "qwen2": ModelSpec(model_type="qwen2", config=DECODER | {"num_hidden_layers": 2}),
    "qwen3": ModelSpec(model_type="qwen3", config=DECODER | {"head_dim": 8, "num_hidden_layers": 2}),
    "smollm": ModelSpec(  # Llama with tied embeddings and three query heads to a key
        model_type="llama",
        config=DECODER | {"hidden_size": 24, "num_attention_heads": 3, "head_dim": 8, "tie_word_embeddings": True},
    ),
}
FAMILIES = tuple(SPECS)
BOTH = ("t5", "llama")  # one encoder-decoder and one decoder-only


#: files whose tests train models, start processes, or repeat a study's statistics: `make test-quick` leaves them out
SLOW = {
    "test_attention", "test_boundary", "test_decision", "test_decoding", "test_exact", "test_families",
    "test_family_tokens", "test_fit", "test_gauge", "test_gpu_script", "test_hypotheses", "test_lora",
    "test_null_studies", "test_planted_worlds", "test_policy", "test_precision", "test_preference_model",
    "test_pretrained", "test_report", "test_reward_models", "test_robust", "test_stats_budgets", "test_stats_compare",
    "test_stats_frontier", "test_stats_reach", "test_survey", "test_t5x", "test_trl", "test_turns", "test_walls",
    "test_world",
}  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.stem in SLOW:
            item.add_marker(pytest.mark.slow)


def word_tokenizer(words: Sequence[str] = WORDS) -> PreTrainedTokenizerFast:
    """One id a word: the four special tokens first, then `words`."""
    vocabulary = {w: i for i, w in enumerate((*SPECIAL, *words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(list(SPECIAL))
    named = dict(zip(("pad_token", "eos_token", "unk_token", "sep_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, split_special_tokens=True, **named)


def tiny_policy(
    family: str | ModelSpec,
    *,
    words: Sequence[str] = WORDS,
    response_tokens: int = 6,
    seed: int = 0,
    spread: float = 6.0,
    key: str = "tiny",
) -> Policy:
    """A policy of `family` whose next-token distributions are far from uniform: weights grown by noise of the seed."""
    tokenizer = word_tokenizer(words)
    model = build_model(SPECS[family] if isinstance(family, str) else family, tokenizer, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                scale = spread * 0.05
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return Policy(model, tokenizer, response_tokens=response_tokens, key=key)


@pytest.fixture(scope="session")
def policies() -> Callable[..., Policy]:
    """`policies(family, **options)`: a tiny policy, made once per session for each set of options; do not train it."""
    made: dict[Any, Policy] = {}

    def get(family: str, **options: Any) -> Policy:
        key = (family, repr(sorted(options.items())))
        if key not in made:
            made[key] = tiny_policy(family, **options)
        return made[key]

    return get


def every_response(ends: Sequence[int], size: int, tokens: int) -> list[tuple[int, ...]]:
    """Every response there is: up to its first end, or cut at the limit."""
    found: list[tuple[int, ...]] = []
    open_ = [()]
    for _ in range(tokens):
        longer = [(*row, t) for row in open_ for t in range(size)]
        found += [row for row in longer if row[-1] in ends]
        open_ = [row for row in longer if row[-1] not in ends]
    return found + open_


def prompt(ids: Sequence[int], id: str | None = None) -> Prompt:
    return Prompt(id or "-".join(map(str, ids)), " ".join(map(str, ids)), tuple(ids))


def response(ids: Sequence[int], ended: bool | None = None) -> Response:
    return Response(tuple(ids), ids[-1:] == (1,) if ended is None else ended, " ".join(map(str, ids)))


def pair(p: Prompt, chosen: Sequence[int], rejected: Sequence[int], p_chosen: float = 1.0, **more: Any) -> Pair:
    forward = more.pop("judged_forward", p_chosen)
    backward = more.pop("judged_backward", 1 - p_chosen)
    sides = response(tuple(chosen)), response(tuple(rejected))
    return Pair(p, *sides, p_chosen, forward, backward, **{"writer": "data", **more})


class TableJudge:
    """A judge by a table of preferences over the first token of each response: `table[i, j]` = p(i beats j)."""

    key = "table"

    def __init__(self, table: np.ndarray) -> None:
        self.table, self.calls = table, 0

    def judge(self, prompts: Sequence[Prompt], a: Sequence[Response], b: Sequence[Response]) -> Judgement:
        self.calls += 1
        first, second = [r.ids[0] for r in a], [r.ids[0] for r in b]
        return Judgement(self.table[first, second], self.table[second, first])


#: a browser for the tests of pages, if there is one
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

#: a judge of one's own that raises at its third call
BREAKS_AT_THE_THIRD_CALL = (
    "calls, most = [], [2]\n"
    "def prefer(prompts, a, b):\n"
    "    if len(calls) == most[0]:\n"
    "        raise OSError('the line is dead')\n"
    "    calls.append(len(prompts))\n"
    "    return [0.75] * len(prompts)\n"
)

TINY_STUDY = """
name: tiny
question: Does the same stream give the same policy?
task: {name: sandbox, train_pairs: 160, test_pairs: 40}
tokenizer: {kind: word, vocabulary: 300}
limits: {prompt_tokens: 16, response_tokens: 12}
policy:
  model_type: t5
  config: {d_model: 16, d_kv: 8, d_ff: 32, num_layers: 1, num_decoder_layers: 1, num_heads: 2}
sft: {steps: 10, batch: 16, learning_rate: 1.0e-2}
golden:
  optimization: {steps: 6, batch: 16, learning_rate: 1.0e-3}
proxy:
  optimization: {steps: 6, batch: 16, learning_rate: 1.0e-3}
recipe:
  loss: {name: ipo, beta: 0.1}
  optimization: {steps: 8, batch: 8, learning_rate: 3.0e-3}
measurement: {checkpoints: [4], prompts: 16, kl_prompts: 8, pairs: 16, samples: 2, reference_prompts: 4,
  opponents: [sft, chosen]}
arms:
  online: {behavior: policy, judge: proxy}
  offline: {behavior: dataset, judge: golden}
"""


COMMAND = str(Path(sys.executable).with_name("aligngap"))
COMMAND_ENV = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "NO_COLOR": "1", "COLUMNS": "120"}


def run_command(folder: Path, workers: int, save_seconds: float = 30.0) -> list[str]:
    """The installed command on the tiny study, in `folder`."""
    (folder / "tiny.yaml").write_text(TINY_STUDY)
    return [
        COMMAND, "run", "tiny.yaml", "--out", "out", "--device", "cpu",
        "--workers", str(workers), "--save-seconds", str(save_seconds),
    ]  # fmt: skip


def finish(words: list[str], folder: Path, warm: Warm | None = None) -> str:
    """Run a command to its good end, by itself or forked from `warm`; what it said on stderr."""
    if warm is None:
        done = subprocess.run(words, cwd=folder, env=COMMAND_ENV, capture_output=True, text=True, timeout=300)
        code, out, said = done.returncode, done.stdout, done.stderr
    else:
        code, out, said = warm.run(words[1:], folder)
    assert code == 0, said[-2000:]
    assert "Traceback" not in said
    assert "report: out/report.html" in out
    return said


def complaint(said: str) -> str:
    """The one line in which a command refuses, after the line with which it began."""
    begun, *rest = said.splitlines()
    if not begun.endswith(" …"):  # its arguments were refused
        rest = [begun, *rest]
    assert len(rest) == 1, said
    return rest[0]


@pytest.fixture(scope="session")
def warm() -> Iterator[Warm]:
    """The process that the commands of tests are forked from; see `warm.py`."""
    server = Warm()
    yield server
    server.close()


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the installed command has run the tiny study undisturbed, with two workers.

    Of several processes of pytest the first one runs it, and each has a copy of its own.
    """
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    once = shared / "finished-once"
    with FileLock(shared / "finished-once.lock"):
        if not (once / "out" / "report.html").exists():
            shutil.rmtree(once, ignore_errors=True)
            once.mkdir()
            finish(run_command(once, workers=2), once)
    return Path(shutil.copytree(once, tmp_path_factory.mktemp("finished"), dirs_exist_ok=True))


def holder_of(work: Path) -> psutil.Process | None:
    """The process that has a step's work folder locked, by the lock that it holds open."""
    lock = work.parent / f"{work.name}.lock"
    if not lock.exists():
        return None
    for process in psutil.process_iter(["name"]):
        try:
            if any(f.path == str(lock) for f in process.open_files()):
                return process
        except psutil.Error:
            continue
    return None
