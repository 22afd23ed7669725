"""Settings of a model, of a tokenizer, and of how long texts may be."""

from __future__ import annotations

import datetime
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from aligngap.settings.base import DAY, Settings


class LoraSpec(Settings):
    """Low-rank adapters in place of all the weights (Hu et al. 2021, arXiv 2106.09685); needs `aligngap[peft]`.

    Each chosen linear layer W gets an update (alpha / r) B A of rank r, with B = 0 at the start; W itself stays.
    """

    r: int = Field(default=16, ge=1, description="rank of the update")
    alpha: float = Field(default=32.0, gt=0, description="its scale is alpha / r")
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0, description="dropout before A, in training only")
    target_modules: str | list[str] = Field(
        default="all-linear", description="names of the linear layers; all-linear: every one but the output layer"
    )


class ModelSpec(Settings):
    """Either `path` (a pretrained model) or `model_type` with `config`, any settings of that family.

    `path` is a local folder, a hub name, a file that ends in `.gguf`, or `package:NAME/FILE`, something inside an
    installed Python package. `config` takes the field names of the transformers configuration class (for `t5`: d_model,
    d_kv, d_ff, num_layers, num_decoder_layers, num_heads …); the vocabulary size comes from the tokenizer. Weights and
    optimiser are in float32 whatever `dtype` says, and so are log-probabilities and KL.
    """

    path: str | None = Field(
        default=None, description="a folder, hub name, .gguf file or package:NAME/FILE; null: a model from scratch"
    )
    model_type: str = Field(default="t5", description="transformers' name of the family, if from scratch")
    config: dict[str, Any] = Field(default_factory=dict, description="sizes of a model from scratch, by field name")
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0, description="dropout in training; always off in measurement")
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="of matrix products; bfloat16 is autocast, on float32 weights"
    )
    gradient_checkpointing: bool = Field(
        default=False, description="compute activations again in the backward pass: less memory, same result"
    )
    compile: bool = Field(
        default=False, description="compile norms and feed-forward parts for gradient steps; needs a C++ compiler"
    )
    chat: bool = Field(default=False, description="write prompts by the tokenizer's chat template")
    template: dict[str, Any] = Field(
        default_factory=dict, description="arguments of the chat template, for instance {enable_thinking: false}"
    )
    date: str = Field(default=DAY, description="the day that a chat template is told which asks for today's date")

    @model_validator(mode="after")
    def _one_source(self) -> ModelSpec:
        if self.path is not None and self.config:
            raise ValueError("give either `path` (a pretrained model) or `config` (a model from scratch), not both")
        if not self.chat and (self.template or self.date != DAY):
            raise ValueError("`template` and `date` are for a chat template: set `chat: true`, or leave them out")
        return self

    @field_validator("date", mode="before")
    @classmethod
    def _day(cls, day: object) -> str:
        try:
            return datetime.date.fromisoformat(str(day)).isoformat()
        except ValueError as error:
            raise ValueError(f"must be a day, written as {DAY}") from error

    @property
    def family(self) -> ModelSpec:
        """What of the model changes how data are encoded: how it is run, and its sizes, do not."""
        return ModelSpec(
            path=self.path, model_type=self.model_type, chat=self.chat, template=self.template, date=self.date
        )


class TokenizerSpec(Settings):
    """A pretrained tokenizer by `path`, or one trained on the task's own training text.

    "word" splits on white space (the sandbox); "bpe" is byte-level BPE with `vocabulary` entries.
    """

    path: str | None = Field(default=None, description="a local folder or a hub name; null: train one on the task")
    kind: Literal["word", "bpe"] = Field(default="bpe", description="what is trained: words, or byte-level BPE")
    vocabulary: int = Field(default=2048, ge=260, le=500_000, description="most entries of a trained tokenizer")


class Limits(Settings):
    """Longest prompt and response in tokens, EOS included. Longer rows of a data set are dropped and counted."""

    prompt_tokens: int = Field(default=256, ge=1, description="longest prompt")
    response_tokens: int = Field(default=128, ge=1, description="longest response, of the data and of the policy")
