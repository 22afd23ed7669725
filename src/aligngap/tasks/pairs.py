"""The `pairs` task: a user's own preference file, one comparison a row.

A row is `prompt`, `chosen`, `rejected` (text, or lists of chat messages); or only `chosen` and `rejected` as whole
dialogues, which are split at the last answer. JSON Lines, JSON, CSV (each also gzipped) and Parquet are read.
Lengths are not judged here, since only a tokenizer knows them.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field, model_validator

from aligngap.tasks._common import PROMPTS_DIFFER, Converter, FileTask, Raw, Skip, Sources, file_sources
from aligngap.tasks._dialogue import is_dialogue, parse_messages, render_messages, split_dialogue, split_messages
from aligngap.tasks._files import expand, fail
from aligngap.tasks._rows import Row


class PairsTask(FileTask):
    """Comparisons out of your own file, or out of a folder that holds `train.*` and, if you have one, `test.*`.

    `path` may hold `${NAME}`, taken from the environment. Without a test file, `test_share` of the prompts is held out.
    """

    path: str = Field(description="a data file, or a folder with train.* and optionally test.*")
    prompt_field: str = Field(default="prompt", min_length=1, description="the column of the prompt")
    chosen_field: str = Field(default="chosen", min_length=1, description="the column of the preferred response")
    rejected_field: str = Field(default="rejected", min_length=1, description="the column of the other response")

    @model_validator(mode="after")
    def _fields_differ(self) -> PairsTask:
        if len({self.prompt_field, self.chosen_field, self.rejected_field}) < 3:
            raise ValueError("prompt_field, chosen_field and rejected_field must be three different names")
        return self

    def sources(self) -> Sources:
        return file_sources(expand(self.path))

    def converter(self, first: Row) -> Converter:
        reader = PairReader(self.prompt_field, self.chosen_field, self.rejected_field)
        return reader.converter(first, need_prompt="prompt_field" in self.model_fields_set)


@dataclass(frozen=True)
class PairReader:
    """How a row of prompt, chosen and rejected is read; the other tasks use it for data already in this form."""

    prompt: str = "prompt"
    chosen: str = "chosen"
    rejected: str = "rejected"
    remedy: str | None = None

    def converter(self, first: Row, need_prompt: bool = False) -> Converter:
        """The first row decides whether the file has prompts or whole dialogues."""
        values = [first.get(field, self._remedy(field)) for field in (self.chosen, self.rejected)]
        if self.prompt in first.values or need_prompt:
            return self.with_prompt
        if any(isinstance(value, str) and not is_dialogue(value) for value in values):
            what = f"no field '{self.prompt}', and '{self.chosen}' and '{self.rejected}' are not whole dialogues"
            raise fail(first.where, what, self._remedy(self.prompt))
        return self.without_prompt

    def with_prompt(self, row: Row) -> Raw:
        """A row with a prompt of its own. Of chosen and rejected given as message lists, the answer counts."""
        value = row.get(self.prompt, self._remedy(self.prompt))
        if isinstance(value, list):
            prompt = render_messages(parse_messages(row, self.prompt, value)) if value else ""
        else:
            prompt = row.check_text(value, self.prompt, "text or a list of messages")
        before_chosen, chosen = self._answer(row, self.chosen)
        before_rejected, rejected = self._answer(row, self.rejected)
        if before_chosen is not None and before_rejected is not None and before_chosen != before_rejected:
            raise Skip(PROMPTS_DIFFER)
        return Raw(prompt, chosen, rejected)

    def without_prompt(self, row: Row) -> Raw:
        """A row of two whole dialogues, which must agree up to the last answer."""
        if self.prompt in row.values:
            what = f"has a field '{self.prompt}', which the first row has not"
            raise fail(row.where, what, "give it in every row or in none")
        chosen_prompt, chosen = self._dialogue(row, self.chosen)
        rejected_prompt, rejected = self._dialogue(row, self.rejected)
        if chosen_prompt.strip() != rejected_prompt.strip():
            raise Skip(PROMPTS_DIFFER)
        return Raw(chosen_prompt, chosen, rejected)

    def _answer(self, row: Row, field: str) -> tuple[str | None, str]:
        value = row.get(field, self._remedy(field))
        if isinstance(value, list):
            return split_messages(parse_messages(row, field, value))
        return None, row.check_text(value, field, "text or a list of messages")

    def _dialogue(self, row: Row, field: str) -> tuple[str, str]:
        value = row.get(field, self._remedy(field))
        if isinstance(value, list):
            return split_messages(parse_messages(row, field, value))
        return split_dialogue(row.check_text(value, field, "a dialogue"))

    def _remedy(self, field: str) -> str:
        if self.remedy is not None:
            return self.remedy
        role = {self.prompt: "prompt", self.chosen: "chosen", self.rejected: "rejected"}[field]
        return f"add it, or name the right one in task.{role}_field"
