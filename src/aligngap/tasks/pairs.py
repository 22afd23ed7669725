"""The `pairs` task: a user's own preference file, in any of the layouts that people keep comparisons in.

`LAYOUTS` is the table of them all. JSON Lines, JSON, CSV, TSV (each also gzipped) and Parquet are read. Lengths are not
judged here, since only a tokenizer knows them.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field, model_validator

from aligngap.tasks._hub import NamedTask
from aligngap.tasks._layouts import GENERAL, Layout, PairColumns
from aligngap.tasks.arena import Votes
from aligngap.tasks.tldr import COMPARISONS

LAYOUTS = (*Votes().layouts(), COMPARISONS, *GENERAL)  #: the first that fits a row reads it
NAMED = ("prompt_field", "chosen_field", "rejected_field")


class PairsTask(NamedTask):
    """Comparisons of your own: a file, a folder with `train.*` and, if you have one, `test.*`, or a hub data set.

    `path` may hold `${NAME}`, taken from the environment. Without test rows given, `test_share` of the conversations is
    held out. Without names of columns the layout of each row is recognised; with them, they alone are read.
    """

    path: str | None = Field(
        default=None, description="a data file, or a folder with train.* and optionally test.*; this or `hub` is needed"
    )
    prompt_field: str = Field(default="prompt", min_length=1, description="the column of the prompt")
    chosen_field: str = Field(default="chosen", min_length=1, description="the column of the preferred response")
    rejected_field: str = Field(default="rejected", min_length=1, description="the column of the other response")

    @model_validator(mode="after")
    def _some_place(self) -> PairsTask:
        if self.path is None and not self.hub:
            raise ValueError("give task.path (a data file or a folder) or task.hub (the name of a data set)")
        return self

    @model_validator(mode="after")
    def _fields_differ(self) -> PairsTask:
        if len({self.prompt_field, self.chosen_field, self.rejected_field}) < 3:
            raise ValueError("prompt_field, chosen_field and rejected_field must be three different names")
        return self

    def layouts(self) -> Sequence[Layout]:
        if not self.model_fields_set & set(NAMED):
            return LAYOUTS
        prompt = self.prompt_field if "prompt_field" in self.model_fields_set else None
        return PairColumns(prompt, self.chosen_field, self.rejected_field).layouts()
