"""A ready reward model from a folder or the hub: any sequence classifier with one logit, as a point-wise judge.

Its own tokenizer reads the text. With a chat template, prompt and response are a user's and an assistant's turn; else
they are joined by `template`. It is not trained here, and its reward is taken as log-odds (Bradley-Terry).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from aligngap.judges.pointwise import Read, Scores, judge_by
from aligngap.models.batch import pad
from aligngap.models.encoding import encode_text
from aligngap.models.loading import LOADING, load_tokenizer
from aligngap.models.pretrained import refusal
from aligngap.types import AligngapError, Judgement, Prompt, Response, chunks, first_line


def check_path(path: str) -> None:
    """Refuse what is no reward model, before anything is computed."""
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except Exception as error:
        raise refusal("reward model", path, error) from error
    kinds = config.architectures or []
    if config.num_labels != 1 or not any("ForSequenceClassification" in k for k in kinds):
        what = f"{', '.join(kinds) or 'a model'} with {config.num_labels} outputs"
        raise AligngapError(f"reward model {path}: {what}; a reward model is a sequence classifier with one")
    load_tokenizer(path)


class RewardModelJudge:
    """Reward = the one logit of (prompt, response); texts over `max_tokens` are cut at the front of the prompt."""

    def __init__(self, path: str, template: str, max_tokens: int, batch: int, device: torch.device) -> None:
        self.key, self.template, self.max_tokens, self.batch = f"reward-model {path}", template, max_tokens, batch
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(path)
        try:
            model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(path, **LOADING)
        except Exception as error:
            raise AligngapError(f"reward model {path}: cannot be loaded ({first_line(error)})") from error
        model.config.pad_token_id = self.tokenizer.pad_token_id
        model.to(device)  # type: ignore[arg-type]
        self.model, self.device = model.eval(), device

    def ids(self, prompt: str, response: str) -> list[int]:
        """Token ids of the whole; special tokens inside the data are read as text."""
        if self.tokenizer.chat_template is not None:
            hold = "\u241eprompt\u241e", "\u241eresponse\u241e"
            turns = [{"role": "user", "content": hold[0]}, {"role": "assistant", "content": hold[1]}]
            frame = str(self.tokenizer.apply_chat_template(turns, tokenize=False))
            before, _, rest = frame.partition(hold[0])
            between, _, after = rest.partition(hold[1])
            split, self.tokenizer.split_special_tokens = self.tokenizer.split_special_tokens, False
            try:
                marks = [self.tokenizer.encode(part, add_special_tokens=False) for part in (before, between, after)]
            finally:
                self.tokenizer.split_special_tokens = split
            whole = [*marks[0], *encode_text(self.tokenizer, prompt), *marks[1]]
            whole += [*encode_text(self.tokenizer, response), *marks[2]]
        else:
            values = {"prompt": prompt, "response": response}
            text = re.sub(r"\{(prompt|response)\}", lambda m: values[m[1]], self.template)
            whole = [*encode_text(self.tokenizer, text), int(self.tokenizer.eos_token_id)]
        return whole[-self.max_tokens :]

    @torch.no_grad()
    def score(self, read: Sequence[Read]) -> Scores:
        rows = [self.ids(prompt, response) for prompt, response, _ in read]
        out = np.empty(len(rows))
        for part in chunks(sorted(range(len(rows)), key=lambda i: (len(rows[i]), i)), self.batch):
            ids, mask = (t.to(self.device) for t in pad([rows[i] for i in part], int(self.tokenizer.pad_token_id)))
            out[list(part)] = self.model(input_ids=ids, attention_mask=mask).logits[:, 0].double().cpu().numpy()
        if not np.isfinite(out).all():
            raise AligngapError(f"{self.key}: a reward is not a number")
        return out

    def judge(self, prompts: Sequence[Prompt], a: Sequence[Response], b: Sequence[Response]) -> Judgement:
        """sigmoid(r_a - r_b) [B] and its complement."""
        return judge_by(self.score, prompts, a, b)
