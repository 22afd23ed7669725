"""From text to token ids and back: prompts, responses, and where the one ends and the other begins.

The ids of a prompt followed by those of its response are the ids of the whole text, as the model's own tokenizer or
chat template writes it. A response therefore has the ids that follow the prompt's when both are encoded together. Where
a token would cross the boundary, the prompt keeps its ids and the response is encoded as text that goes on after a line
break; `Encoding.joined` says so, and such rows are counted. An encoder-decoder's response is a text of its own.

A prompt may give the beginning of the answer. It is then written as the template writes an answer, without its end, and
the response is what follows.

Nobody's text can write a special token: where a text holds the spelling of one, that is encoded as the plain text it
is, and in a chat the template alone decides which ones there are.

What this module leaves out: what a template writes (`chat.py`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from aligngap.models import chat
from aligngap.models.chat import Template, TemplateRefused
from aligngap.settings import ModelSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MARK = re.compile("\ue000(\\d+)\ue001")  # stands for the text of message number n while a template is filled in
BREAKS = ("\n", ".", "a")  # what a continuation is encoded after; the first one that no token merges with


@lru_cache(maxsize=4096)  # a measurement's prompts and opponents are read by every judge at every checkpoint
def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    """Ids of plain text. A vocabulary may hold "</s>" as a word of its own: inside data it is read in two parts."""
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    if not set(ids) & (set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}):
        return tuple(ids)
    inside = "|".join(f"(?<={re.escape(t[0])})(?={re.escape(t[1:])})" for t in tokenizer.all_special_tokens if t[1:])
    return tuple(i for part in re.split(inside, text) for i in tokenizer.encode(part, add_special_tokens=False))


def encode_further(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    """Ids of plain text that goes on inside a longer one: without the blank that some tokenizers begin a text with."""
    for before in BREAKS:
        start = encode_text(tokenizer, before)
        whole = encode_text(tokenizer, before + text)
        if whole[: len(start)] == start:
            return whole[len(start) :]
    return encode_text(tokenizer, text)


def opening(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The BOS token, where the tokenizer begins every text of a decoder with it by itself, as Llama's does."""
    begin: list[int] = tokenizer("", add_special_tokens=True).input_ids[:1]
    return begin if begin == [tokenizer.bos_token_id] and begin != [tokenizer.eos_token_id] else []


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """The spelling and id of every token that is kept apart from text and controls the model."""
    special = set(tokenizer.all_special_ids) | {i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    return {str(tokenizer.convert_ids_to_tokens(i)): i for i in special}


def generation_ends(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens at which the checkpoint's own generation ends, for instance `<end_of_turn>` beside `<eos>`.

    A checkpoint says them in `generation_config.json`. Where it does not, transformers copies what the configuration of
    the family has by default, which counts only if it is a token that the tokenizer keeps apart from text and has no
    other use for.
    """
    said = model.generation_config
    given = getattr(said, "eos_token_id", None)
    every = [given] if isinstance(given, int) else list(given or ())
    if getattr(said, "_from_model_config", False):
        used = {tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id, tokenizer.sep_token_id}
        apart = set(tokenizer.added_tokens_decoder) - used
        every = [i for i in every if i in apart]
    return [int(i) for i in every if i < len(tokenizer)]


def begins_answer(prompt: str) -> bool:
    """Whether a prompt gives the beginning of the answer, which goes on from there."""
    return chat.split_begun(chat.turns_of(prompt) or [])[1] != ""


class Encoding:
    """How the text of one model's prompts and responses becomes token ids, and its ids text.

    `spec` says whether the chat template writes the prompts. A decoder without one reads the prompt's text, closed by
    the tokenizer's separator if it has one; an encoder reads the prompt closed by EOS.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, encoder_decoder: bool, spec: ModelSpec) -> None:
        self.tokenizer, self.encoder_decoder = tokenizer, encoder_decoder
        self.eos_id = int(tokenizer.eos_token_id)
        self.template = Template.of(tokenizer, spec) if spec.chat else None
        self.special = special_tokens(tokenizer)
        self._cut = re.compile("|".join(re.escape(s) for s in sorted(self.special, key=len, reverse=True)))
        after = self._ids(f"{tokenizer.eos_token}x")[1:]
        self._alone = after == list(encode_text(tokenizer, "x"))  # a text after a special token is as one on its own
        #: what the template writes before an answer and after it, and as much of that as closes a turn
        self.lead, self.trail, self.close = self._frame()
        marks = [found.end() for found in self._cut.finditer(self.lead)]
        self._lead_ids = self._ids(self.lead[: marks[-1]]) if marks else []
        self._lead_text = self.lead[marks[-1] :] if marks else self.lead
        ends = [self.special[s] for s in self._cut.findall(self.close)] if self.close else []
        self.close_id: int = ends[-1] if ends else self.eos_id  #: the token that closes a response of the data
        hidden = {tokenizer.pad_token_id, tokenizer.sep_token_id, tokenizer.unk_token_id}
        self._hidden = hidden - {self.eos_id, self.close_id}
        self._decodes_alone = self._inverts(alone=True) or not self._inverts(alone=False)

    # ------------------------------------------------------------------------------------------------------- prompts

    @property
    def _separated(self) -> bool:
        """Whether a token that is no text stands between prompt and response, or they are two texts."""
        return self.encoder_decoder or self.tokenizer.sep_token_id is not None

    def prompt(self, text: str) -> tuple[int, ...]:
        """Prompt ids: closed by EOS for an encoder (as T5 does), by the separator, if there is one, for a decoder.

        A chat template writes them where there is one, and opens and closes a decoder's prompt itself; raises
        `TemplateRefused` where it will not.
        """
        if self.template is not None:
            written = tuple(self._rendered(text))
            return (*written, self.eos_id) if self.encoder_decoder else written
        if self._separated:
            plain = encode_text(self.tokenizer, text)
            ids = plain if self.encoder_decoder else (*opening(self.tokenizer), *plain)
            return (*ids, self.eos_id if self.encoder_decoder else int(self.tokenizer.sep_token_id))
        return (*opening(self.tokenizer), *encode_text(self.tokenizer, self._plain(text)[0]))

    def holds_marks(self, text: str) -> bool:
        """Whether a text spells a special token, as a prompt does that a template has already written."""
        return self._cut.search(text) is not None

    # ----------------------------------------------------------------------------------------------------- responses

    def response(self, text: str, ended: bool = True, prompt: str = "") -> tuple[int, ...]:
        """Response ids after a prompt, closed as the template closes a turn, or by EOS, if it `ended`."""
        return self.joined(text, ended, prompt)[0]

    def joined(self, text: str, ended: bool = True, prompt: str = "") -> tuple[tuple[int, ...], bool]:
        """Response ids, and whether a token would cross the boundary, were prompt and response encoded together."""
        close, begun = (self.eos_id,) if ended else (), begins_answer(prompt)
        if self.encoder_decoder:
            return (*encode_text(self.tokenizer, text), *close), False
        if self.template is not None:
            head, whole = map(tuple, self._chat(text, ended, prompt))
            close = close if not self.close else ()
        elif self._separated:
            return (*(encode_text if self._alone else encode_further)(self.tokenizer, text), *close), False
        else:
            before, lead = self._plain(prompt)
            text = lead + text
            head, whole = encode_text(self.tokenizer, before), encode_text.__wrapped__(self.tokenizer, before + text)
        if whole[: len(head)] == head:
            return (*whole[len(head) :], *close), False
        if self.template is not None:
            lead = "" if begun else self.lead
            found = self._pieces(lead + "\ue0000\ue001" + (self.close if ended else ""), [text], first=True)
            return (*found, *close), True
        return (*encode_further(self.tokenizer, text), *close), True

    def text(self, ids: Sequence[int], prompt: str = "") -> str:
        """The text of a response that a model wrote, without the token that ended it: what a judge is shown.

        Special tokens inside it, such as the marks of a further turn, are text here; those that say nothing (padding,
        separator, unknown) are left out. What the form of the prompt writes before every answer is no part of it.
        """
        begun = not self._separated and begins_answer(prompt)
        alone = self._decodes_alone and not begun
        lead = "" if begun else self._lead_text if self.template is not None else self._plain(prompt)[1]
        text = self._shown(ids, alone, begun).removeprefix(lead)
        if text.startswith(" ") and alone:  # decoding may take one of several blanks for a text's own
            longer = f" {text}"
            if self.response(longer, False, prompt) == tuple(ids) != self.response(text, False, prompt):
                return longer
        return text

    # -------------------------------------------------------------------------------------------------------- inside

    def _plain(self, prompt: str) -> tuple[str, str]:
        """A plain prompt, and what stands before the answer.

        A dialogue is written as published ones are: an empty line before its first turn as before every other, and the
        blank after the last "Assistant:" with the answer.
        """
        if self._separated or chat.turns_of(prompt) is None:
            return prompt, ""
        whole = "\n\n" + prompt.lstrip("\r\n")
        return (whole, "") if begins_answer(prompt) else (whole.rstrip(" "), " ")

    def _ids(self, text: str) -> list[int]:
        """Ids of text in which special tokens are themselves."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, split_special_tokens=False).input_ids
        return ids

    def _shown(self, ids: Sequence[int], alone: bool, begun: bool = False) -> str:
        """The text of a response's ids, as one that stands alone or as one that goes on after another."""
        if self._lead_ids and not begun and list(ids[: len(self._lead_ids)]) == self._lead_ids:
            ids = ids[len(self._lead_ids) :]
        ids = [i for i in ids if i not in self._hidden]
        start = () if alone else encode_text(self.tokenizer, "a")
        given: dict[str, bool] = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
        before, whole = (str(self.tokenizer.decode([*start, *more], **given)) for more in ((), ids))
        return whole.removeprefix(before)

    def _inverts(self, alone: bool) -> bool:
        """Whether decoding in this way gives the text that was encoded, blanks at its beginning included."""
        for probe in ("x y", " x y"):
            ids = self.response(probe, ended=False, prompt="x")
            if self._shown(ids, alone).removeprefix(self._lead_text) != probe:
                return False
        return True

    def _frame(self) -> tuple[str, str, str]:
        """What the template writes between its prompt and an answer, after the answer, and up to the turn's end."""
        if self.template is None or self.encoder_decoder:
            return "", "", ""
        asked = [{"role": "user", "content": "x"}]
        try:
            before = self.template.render(asked)
            whole = self.template.render([*asked, {"role": "assistant", "content": "\ue0000\ue001"}], reply=False)
        except TemplateRefused:
            return "", "", ""
        begin, found, trail = whole.partition("\ue0000\ue001")
        lead = begin[len(before) :] if found and begin.startswith(before) else ""
        end = self._cut.search(trail) if found else None
        return lead, trail, trail[: end.end()] if end else ""

    def _rendered(self, prompt: str) -> list[int]:
        """Ids of a prompt by the template, as `apply_chat_template` gives them.

        If the text of a message adds a special token to those of the template, or takes one away, the special tokens
        are taken from the template only, and everything between two of them is encoded as text.
        """
        messages = chat.messages_of(prompt)
        return self._guarded(*self._up_to_answer(messages), [m["content"] for m in messages])

    def _up_to_answer(self, messages: chat.Messages) -> tuple[str, str]:
        """What the template writes before what is to be written, and the same with marks for the contents."""
        marks = [m | {"content": f"\ue000{i}\ue001"} for i, m in enumerate(messages)]
        return self._opened(messages), self._opened(marks)

    def _opened(self, messages: chat.Messages) -> str:
        """The messages by the template, up to where the assistant speaks, or goes on from what its message says."""
        assert self.template is not None
        asked, begun = chat.split_begun(messages)
        before = self.template.render(asked)
        if not begun:
            return before
        try:
            whole = self.template.render([*asked, {"role": "assistant", "content": f"{begun}\ue002"}], reply=False)
        except TemplateRefused:
            whole = ""
        head, found, _ = whole.partition("\ue002")
        return head if found and head.startswith(before) else before + self.lead + begun

    def _chat(self, answer: str, ended: bool, prompt: str) -> tuple[list[int], list[int]]:
        """Ids of the prompt, and of the prompt with its answer, by the template."""
        assert self.template is not None
        messages = chat.messages_of(prompt or "x")
        asked, begun = chat.split_begun(messages)
        contents = [*(m["content"] for m in messages), answer]
        before, marked = self._up_to_answer(messages)
        try:
            whole = self.template.render([*asked, {"role": "assistant", "content": begun + answer}], reply=False)
        except TemplateRefused:
            whole = ""
        lead = "" if begun else self.lead
        body = lead + answer
        if whole.startswith(before) and whole.endswith(self.trail):
            body = whole[len(before) : len(whole) - len(self.trail)]
        close = self.close if ended else ""
        frame = f"{marked}{lead}\ue000{len(messages)}\ue001{close}"
        return self._guarded(before, marked, contents), self._guarded(before + body + close, frame, contents)

    def conversation(self, messages: chat.Messages, answer: str, ended: bool = True) -> list[int]:
        """Ids of a whole conversation by the template, as it writes one down; up to the answer if that has no end."""
        assert self.template is not None
        messages, begun = chat.split_begun(messages)
        answer = begun + answer
        contents = [*(m["content"] for m in messages), answer]
        roles = [*(m["role"] for m in messages), "assistant"]
        marks = [{"role": role, "content": f"\ue000{i}\ue001"} for i, role in enumerate(roles)]
        texts = [{"role": role, "content": said} for role, said in zip(roles, contents, strict=True)]
        text, marked = (self.template.render(turns, reply=False) for turns in (texts, marks))
        if not ended:
            text, marked = text.removesuffix(self.trail), marked.removesuffix(self.trail)
        return self._guarded(text, marked, contents)

    def _guarded(self, text: str, marked: str, contents: Sequence[str]) -> list[int]:
        """Ids of a filled-in template whose special tokens are the template's; `marked` has marks for the contents."""
        ids = self._ids(text)
        special = set(self.special.values())
        if [i for i in ids if i in special] == [self.special[s] for s in self._cut.findall(marked)]:
            return ids
        return self._pieces(marked, contents)

    def _pieces(self, marked: str, contents: Sequence[str], first: bool = False) -> list[int]:
        """Ids of a marked template piece by piece: its special tokens, and the text between two of them.

        `first`: the first piece goes on after another text.
        """
        found: list[int] = []
        for part in re.split(f"({self._cut.pattern})", marked):
            if part in self.special:
                found.append(self.special[part])
            elif part:
                text = MARK.sub(lambda m: contents[int(m[1])], part)
                inside = bool(found) or first
                found += (encode_further if inside and not self._alone else encode_text)(self.tokenizer, text)
        return found
