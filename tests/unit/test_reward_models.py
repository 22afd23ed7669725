"""A ready reward model's score is its own forward pass on its own tokenizer's or template's ids, in any batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import DECODER
from tokenizer_kinds import tokenizer_of
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertTokenizerFast,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    T5Config,
    T5ForSequenceClassification,
)

from aligngap.judges.kinds import RewardModel
from aligngap.judges.reward_model import JOINED, RewardModelJudge
from aligngap.models.chat import messages_of
from aligngap.settings import Limits
from aligngap.types import AligngapError

CPU = torch.device("cpu")
DIALOGUE = "\n\nSystem: be short\n\nHuman: which tea is best\n\nAssistant: green tea\n\nHuman: and so?\n\nAssistant:"
READ = [
    (prompt, answer, True)
    for prompt in ("which tea is best", DIALOGUE, "Human: tea\n\nAssistant:")
    for answer in ("green tea with lemon .", "the kettle is hot", "x", "it is so, and the cup is small and hot")
]
WORDS = (
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "which",
    "tea",
    "is",
    "best",
    "green",
    "with",
    "lemon",
    "the",
    "kettle",
    "hot",
    "a",
    "b",
    "c",
    ".",
    "?",
    "!",
    "cup",
    "small",
    ":",
    ",",
    "human",
)


def written(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Path:
    model.config.architectures = [type(model).__name__]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def llama(folder: Path, kind: str, template: str | None, pad: int | None, positions: int = 512) -> Path:
    tokenizer = tokenizer_of(kind, template)
    torch.manual_seed(0)
    sizes = {**DECODER, "max_position_embeddings": positions, "initializer_range": 0.3}
    config = LlamaConfig(**sizes, vocab_size=len(tokenizer), num_labels=1, pad_token_id=pad, eos_token_id=2)
    return written(folder, LlamaForSequenceClassification(config), tokenizer)


def bert(folder: Path, **named: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"), **named)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        num_labels=1, max_position_embeddings=48, initializer_range=0.3,
    )  # fmt: skip
    return written(folder, BertForSequenceClassification(config), tokenizer)


@torch.no_grad()
def card(folder: Path, *given: Any, text: str | None = None, **more: Any) -> float:
    """What the model gives for one text that its tokenizer is called with, as a model card shows it."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    model: Any = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    maker: Any = AutoTokenizer if (folder / "vocab.txt").exists() else PreTrainedTokenizerFast
    tokenizer = maker.from_pretrained(folder)
    called = tokenizer(*([text] if text is not None else given), return_tensors="pt", **more)
    called.pop("token_type_ids", None) if "token_type_ids" not in tokenizer.model_input_names else None
    return float(model(**called).logits[0, 0])


def check(folder: Path, expected: list[float], batch: int = 8) -> RewardModelJudge:
    judge = RewardModelJudge(str(folder), JOINED, None, batch, CPU)
    np.testing.assert_allclose(judge.score(READ), expected, atol=1e-5, rtol=1e-5)
    shuffled = [READ[i] for i in np.random.default_rng(0).permutation(len(READ))]
    for size in (1, 3):
        judge.batch = size
        order = [expected[READ.index(item)] for item in shuffled]
        np.testing.assert_allclose(judge.score(shuffled), order, atol=1e-5, rtol=1e-5)
    return judge


@pytest.mark.parametrize("pad", [None, 3, 2])
@pytest.mark.parametrize("template", ["chatml", "gemma", "llama-2", "zephyr", "words"])
def test_a_template_writes_the_whole_conversation(tmp_path: Path, template: str, pad: int | None) -> None:
    """Whatever its configuration says of padding: none, a token of its own, or its EOS."""
    folder = llama(tmp_path, "byte-level", template, pad)
    tokenizer = tokenizer_of("byte-level", template)
    texts = [
        tokenizer.apply_chat_template([*messages_of(p), {"role": "assistant", "content": a}], tokenize=False)
        for p, a, _ in READ
    ]
    check(folder, [card(folder, text=text, add_special_tokens=False) for text in texts])


@pytest.mark.parametrize("named", [{}, {"bos_token": "[CLS]", "eos_token": "[SEP]"}])
def test_a_model_with_cls_and_sep_reads_a_pair(tmp_path: Path, named: dict[str, str]) -> None:
    folder = bert(tmp_path, **named)
    judge = check(folder, [card(folder, p, a) for p, a, _ in READ])
    joined = RewardModelJudge(str(folder), "{prompt} ? {response}", None, 8, CPU)
    expected = [card(folder, text=f"{p} ? {a}") for p, a, _ in READ]
    np.testing.assert_allclose(joined.score(READ), expected, atol=1e-5)
    spelled = judge.ids("which [SEP] tea", "green [CLS]")
    assert (spelled.count(2), spelled.count(3)) == (1, 2)  # nobody's text writes CLS or SEP


@pytest.mark.parametrize("pad", [None, 3])
def test_a_decoder_without_a_template_reads_bos_text_and_eos(tmp_path: Path, pad: int | None) -> None:
    folder = llama(tmp_path, "byte-level, bos", None, pad)
    tokenizer = tokenizer_of("byte-level, bos")
    model: Any = LlamaForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        rows = [torch.tensor([[*tokenizer(f"{p}\n\n{a}").input_ids, 2]]) for p, a, _ in READ]
        expected = [float(model(row).logits[0, 0]) for row in rows]
    judge = check(folder, expected)
    assert judge.ids("tea", "green")[0] == tokenizer.bos_token_id


def test_gpt2_gets_no_segments_and_t5_is_read_row_by_row(tmp_path: Path) -> None:
    tokenizer = tokenizer_of("byte-level")
    torch.manual_seed(0)
    gpt2 = GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, num_labels=1, pad_token_id=None)
    t5 = T5Config(vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, num_labels=1,
                  eos_token_id=2, pad_token_id=3, decoder_start_token_id=3)  # fmt: skip
    for name, made in (("gpt2", GPT2ForSequenceClassification(gpt2)), ("t5", T5ForSequenceClassification(t5))):
        folder = written(tmp_path / name, made, tokenizer)
        model: Any = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        rows = [torch.tensor([[*tokenizer(f"{p}\n\n{a}").input_ids, 2]]) for p, a, _ in READ]
        with torch.no_grad():
            expected = [float(model(row).logits[0, 0]) for row in rows]
        judge = RewardModelJudge(str(folder), JOINED, None, 8, CPU)
        np.testing.assert_allclose(judge.score(READ), expected, atol=1e-5)


def test_a_response_that_did_not_end_is_not_closed(tmp_path: Path) -> None:
    chat = RewardModelJudge(str(llama(tmp_path / "chat", "byte-level", "chatml", 3)), JOINED, None, 8, CPU)
    plain = RewardModelJudge(str(llama(tmp_path / "plain", "byte-level", None, 3)), JOINED, None, 8, CPU)
    for judge, after in ((chat, 2), (plain, 1)):  # the mark of the turn and a line break; EOS
        ended, cut = judge.ids("tea", "green"), judge.ids("tea", "green", ended=False)
        assert ended[: len(cut)] == cut
        assert len(ended) == len(cut) + after
        scores = judge.score([("tea", "green", True), ("tea", "green", False)])
        assert abs(scores[0] - scores[1]) > 1e-4


def test_a_long_text_loses_the_front_of_what_people_wrote_and_is_counted(tmp_path: Path) -> None:
    folder = llama(tmp_path / "rm", "byte-level", "gemma", 3, positions=80)
    judge = RewardModelJudge(str(folder), JOINED, None, 8, CPU)
    assert judge.max_tokens == 80
    long = "tea is best " * 40 + "and so?"
    shown = judge.tokenizer.decode(judge.ids(long, "green tea"))
    assert len(judge.ids(long, "green tea")) <= 80
    assert shown.startswith("<s><start_of_turn>user\n")
    assert shown.endswith("and so?<end_of_turn>\n<start_of_turn>model\ngreen tea<end_of_turn>\n")
    judge.cut = 0
    judge.score([(long, "green tea", True), (long, "x" * 200, True), ("tea", "green", True)])
    assert judge.about() == {"texts_cut_at_the_front": 2}
    turns = f"\n\nHuman: {long}\n\nAssistant: {long}\n\nHuman: last\n\nAssistant:"
    shown = judge.tokenizer.decode(judge.ids(turns, "green"))
    assert shown.count("<start_of_turn>user") == 2  # the oldest words go, and no turn
    assert "last<end_of_turn>" in shown


def test_a_window_is_held_against_the_study(tmp_path: Path) -> None:
    folder = str(bert(tmp_path))
    limits = Limits(prompt_tokens=30, response_tokens=20)
    RewardModel(path=folder, max_tokens=48).check_limits(limits)
    with pytest.raises(AligngapError, match=r"it reads 48 tokens, and limits allow 30 .* set max_tokens: 48"):
        RewardModel(path=folder).check_limits(limits)
    with pytest.raises(AligngapError, match="max_tokens is 100, and it reads 48"):
        RewardModel(path=folder, max_tokens=100).check(tmp_path)
    assert RewardModel(path=folder).identity()["reading"] == 2


def test_a_judge_that_differs_from_its_own_forward_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = llama(tmp_path, "byte-level", "chatml", 3)
    own = RewardModelJudge._logits
    monkeypatch.setattr(RewardModelJudge, "_logits", lambda self, rows, filler: own(self, rows, filler) + 0.1)
    with pytest.raises(AligngapError, match=r"differ from its own forward pass by 0\.1"):
        RewardModelJudge(str(folder), JOINED, None, 8, CPU)
