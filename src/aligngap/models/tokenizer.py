"""A study's tokenizer: a pretrained one, or one trained on the task's own training text.

What this module leaves out: how a prompt or a response is closed, which is `encoding.py`'s business.
"""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from aligngap.models.loading import load_tokenizer
from aligngap.settings import TokenizerSpec
from aligngap.types import TaskData

SPECIAL_TOKENS = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "sep_token": "<sep>"}


def make_tokenizer(spec: TokenizerSpec, data: TaskData) -> PreTrainedTokenizerBase:
    """Load `spec.path`, or train on the training split's text; special-token strings inside data stay plain text."""
    if spec.path is not None:
        return load_tokenizer(spec.path)
    special = list(SPECIAL_TOKENS.values())
    text = (t for c in data.train for t in (c.prompt, c.chosen, c.rejected))
    trainer: Any
    if spec.kind == "word":
        tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        trainer = trainers.WordLevelTrainer(vocab_size=spec.vocabulary, special_tokens=special, show_progress=False)
    else:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=spec.vocabulary, special_tokens=special, show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )  # fmt: skip
    tokenizer.train_from_iterator(text, trainer=trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, split_special_tokens=True, **SPECIAL_TOKENS)


def stand_in() -> PreTrainedTokenizerBase:
    """A tokenizer of a few words, to try a model from scratch with before the data are read."""
    words = [*SPECIAL_TOKENS.values(), *"abcdefgh"]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, split_special_tokens=True, **SPECIAL_TOKENS)
