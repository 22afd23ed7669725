"""A ready reward model from a folder or the hub: any sequence classifier with one logit, as a point-wise judge.

It is shown what it was trained on: its score is its own forward pass on the ids of its own tokenizer or chat template,
BOS, CLS and SEP included, in any batch. With a template the turns of the prompt and the response are a conversation; a
model with CLS and SEP reads prompt and response as a pair, unless the study joins them; else they are joined by
`template` and closed by EOS. A response that did not end is not closed. The reward is taken as log-odds
(Bradley-Terry).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from aligngap.judges.pointwise import Read, Scores, judge_by
from aligngap.models import chat
from aligngap.models.batch import pad
from aligngap.models.encoding import Encoding, special_tokens
from aligngap.models.loading import LOADING, load_tokenizer, window
from aligngap.models.pretrained import locate, refusal
from aligngap.settings import Limits, ModelSpec
from aligngap.types import AligngapError, Judgement, Prompt, Response, chunks, first_line

JOINED = "{prompt}\n\n{response}"
LONGEST = 2048  #: texts are cut at so many tokens where neither the study nor the model says how many
PROBES = (("which is best", "this one", True), ("Human: what is it\n\nAssistant:", "it is so, and so it is.", True))


class Row(NamedTuple):
    """A text as the model reads it: token ids, and the segment of each."""

    ids: list[int]
    segments: list[int]


def check_path(path: str, max_tokens: int | None, limits: Limits | None = None) -> None:
    """Refuse what is no reward model, or what cannot read texts of the study's lengths, before anything is computed."""
    try:
        config = AutoConfig.from_pretrained(locate(path), trust_remote_code=False)
    except AligngapError:
        raise
    except Exception as error:
        raise refusal("reward model", path, error) from error
    kinds = config.architectures or []
    if config.num_labels != 1 or not any("ForSequenceClassification" in k for k in kinds):
        what = f"{', '.join(kinds) or 'a model'} with {config.num_labels} outputs"
        raise AligngapError(f"reward model {path}: {what}; a reward model is a sequence classifier with one")
    load_tokenizer(path, ends=False)
    most = window(config)
    if most is not None and max_tokens is not None and max_tokens > most:
        raise AligngapError(f"reward model {path}: max_tokens is {max_tokens}, and it reads {most} tokens; lower it")
    if most is not None and limits is not None and max_tokens is None:
        longest = limits.prompt_tokens + limits.response_tokens
        if longest > most:
            raise AligngapError(
                f"reward model {path}: it reads {most} tokens, and limits allow {limits.prompt_tokens} of a prompt and "
                f"{limits.response_tokens} of a response; lower them, or set max_tokens: {most} to have longer prompts "
                "cut at the front, and counted"
            )


class RewardModelJudge:
    """Reward = the one logit of (prompt, response); texts over `max_tokens` lose the front of their prompt.

    Of a text that is too long only what people wrote is cut, never BOS or the marks of a turn; `cut` counts them.
    """

    def __init__(self, path: str, template: str, max_tokens: int | None, batch: int, device: torch.device) -> None:
        self.key, self.template, self.batch = f"reward-model {path}", template, batch
        self.cut = 0
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(path, ends=False)
        try:
            model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(locate(path), **LOADING)
        except Exception as error:
            raise AligngapError(f"reward model {path}: cannot be loaded ({first_line(error)})") from error
        most = window(model.config) or max_tokens or LONGEST
        self.max_tokens = most
        model.to(device)  # type: ignore[arg-type]
        self.model, self.device = model.eval(), device
        self.pad_id: int | None = model.config.get_text_config().pad_token_id
        tokens = self.tokenizer
        self.encoding = Encoding(tokens, False, ModelSpec(chat=True)) if tokens.chat_template is not None else None
        self.pairs = template == JOINED and tokens.cls_token_id is not None and tokens.sep_token_id is not None
        spelled = sorted(special_tokens(tokens), key=len, reverse=True)
        self._spelled = re.compile("|".join(re.escape(s) for s in spelled if len(s) > 1))
        self.check()
        self.max_tokens, self.cut = min(max_tokens or most, most), 0

    # ----------------------------------------------------------------------------------------------------------- text

    def ids(self, prompt: str, response: str, ended: bool = True) -> list[int]:
        """Token ids of the whole; special tokens inside the data are read as text."""
        return self._row(prompt, response, ended).ids

    def _row(self, prompt: str, response: str, ended: bool) -> Row:
        messages = chat.messages_of(prompt) if self.encoding is not None else [{"role": "user", "content": prompt}]
        whole = self._encoded(messages, response, ended)
        if len(whole.ids) <= self.max_tokens:
            return whole
        self.cut += 1
        contents = sum(len(m["content"]) for m in messages)
        shorter = self._longest(contents, lambda n: self._encoded(last_of(messages, n), response, ended))
        if shorter is None:
            bare = last_of(messages, 0)
            shorter = self._longest(len(response), lambda n: self._encoded(bare, response[:n], False))
        if shorter is None:
            raise AligngapError(f"{self.key}: its template alone is longer than {self.max_tokens} tokens")
        return shorter

    def _longest(self, most: int, encoded: Callable[[int], Row]) -> Row | None:
        """The row that keeps as many characters as there is room for, or None where even none do not fit."""
        low, high = -1, most  # `low` fits, `high` does not
        found: Row | None = None
        while high - low > 1:
            middle = (low + high) // 2
            row = encoded(middle)
            if len(row.ids) <= self.max_tokens:
                low, found = middle, row
            else:
                high = middle
        return found

    def _encoded(self, messages: chat.Messages, response: str, ended: bool) -> Row:
        if self.encoding is not None:
            ids = self.encoding.conversation(messages, response, ended)
            return Row(ids, [0] * len(ids))
        prompt = messages[0]["content"]
        if self.pairs:
            return self._called(prompt, response)
        values = {"prompt": prompt, "response": response}
        text = re.sub(r"\{(prompt|response)\}", lambda m: values[m[1]], self.template)
        row, end = self._called(text), self.tokenizer.eos_token_id
        closes = end is not None and end not in (self.tokenizer.cls_token_id, self.tokenizer.sep_token_id)
        if closes and ended and row.ids[-1:] != [end]:
            return Row([*row.ids, int(end)], [*row.segments, 0])
        if closes and not ended and row.ids[-1:] == [end]:
            return Row(row.ids[:-1], row.segments[:-1])
        return row

    def _called(self, *texts: str) -> Row:
        """What the tokenizer's own call gives, special tokens of its own included and none of the text's."""
        safe = [self._spelled.sub(lambda m: f"{m[0][0]} {m[0][1:]}", text) for text in texts]
        found = self.tokenizer(*safe, add_special_tokens=True, return_token_type_ids=True)
        return Row(list(found.input_ids), list(found.token_type_ids))

    # --------------------------------------------------------------------------------------------------------- scores

    @torch.no_grad()
    def score(self, read: Sequence[Read]) -> Scores:
        rows = [self._row(prompt, response, ended) for prompt, response, ended in read]
        out = np.empty(len(rows))
        for part in chunks(sorted(range(len(rows)), key=lambda i: (len(rows[i].ids), i)), self.batch):
            out[list(part)] = self._forward([rows[i] for i in part]).double().cpu().numpy()
        if not np.isfinite(out).all():
            raise AligngapError(f"{self.key}: a reward is not a number")
        return out

    def _forward(self, rows: Sequence[Row]) -> Tensor:
        """Rewards [N] of one padded batch.

        Classifiers read the logit at the last token that is not the padding of their configuration. Where it names
        none, rows are padded with a token in which none of them ends, so that the last one is read.
        """
        ends = {row.ids[-1] for row in rows}
        filler = self.pad_id if self.pad_id is not None else next(i for i in range(len(ends) + 1) if i not in ends)
        self.model.config.get_text_config().pad_token_id = filler
        try:
            return self._logits(rows, filler)
        finally:
            self.model.config.get_text_config().pad_token_id = self.pad_id

    def _logits(self, rows: Sequence[Row], filler: int) -> Tensor:
        ids, mask = pad([row.ids for row in rows], filler)
        given = {"input_ids": ids, "attention_mask": mask}
        if self.pairs and "token_type_ids" in self.tokenizer.model_input_names:
            given["token_type_ids"] = pad([row.segments for row in rows], 0)[0]
        logits: Tensor = self.model(**{name: t.to(self.device) for name, t in given.items()}).logits[:, 0]
        return logits

    @torch.no_grad()
    def check(self) -> None:
        """Hold scores against the model's own forward pass on its tokenizer's own call, once, when it is loaded.

        A model that cannot be read in batches is read row by row.
        """
        own = torch.stack([self.model(**self._own_call(*probe[:2])).logits[0, 0] for probe in PROBES]).cpu()
        for batch in (self.batch, 1):
            try:
                self.batch = batch
                ours = torch.tensor(self.score(PROBES), dtype=own.dtype)
                worst = float((ours - own).abs().max())
            except Exception as error:
                if batch == 1:
                    what = f"cannot be read here ({first_line(error, 120)})"
                    raise AligngapError(f"{self.key}: {what}; choose another reward model") from error
                continue
            if worst <= 1e-5 + 1e-5 * float(own.abs().max()):
                return
        raise AligngapError(
            f"{self.key}: its scores differ from its own forward pass by {worst:.2g}; choose another reward model"
        )

    def _own_call(self, prompt: str, response: str) -> dict[str, Tensor]:
        """One text as its model card has it read: by the template or the tokenizer's own call, without padding."""
        if self.encoding is not None:
            turns = [*chat.messages_of(prompt), {"role": "assistant", "content": response}]
            assert self.encoding.template is not None
            text = self.encoding.template.render(turns, reply=False)
            found = self.tokenizer(text, add_special_tokens=False, split_special_tokens=False, return_tensors="pt")
        elif self.pairs:
            found = self.tokenizer(prompt, response, return_tensors="pt")
        else:
            ids = self._encoded([{"role": "user", "content": prompt}], response, True).ids
            return {"input_ids": torch.tensor([ids], device=self.device)}
        return {name: t.to(self.device) for name, t in found.items()}

    def judge(self, prompts: Sequence[Prompt], a: Sequence[Response], b: Sequence[Response]) -> Judgement:
        """sigmoid(r_a - r_b) [B] and its complement."""
        return judge_by(self.score, prompts, a, b)

    def about(self) -> dict[str, Any]:
        """What a step that asks it says of it in its manifest."""
        return {"texts_cut_at_the_front": self.cut} if self.cut else {}


def last_of(messages: chat.Messages, characters: int) -> chat.Messages:
    """The messages with so many characters left of what they say, the last ones."""
    kept: chat.Messages = []
    for message in reversed(messages):
        said = message["content"]
        kept.insert(0, message | {"content": said[max(0, len(said) - characters) :] if characters > 0 else ""})
        characters -= min(len(said), max(0, characters))
    return kept
