"""The `tldr` task: OpenAI's human comparisons of summaries of Reddit posts (Stiennon et al., arXiv 2009.01325).

A row is `info` (a post), `summaries` (two) and `choice` (which one was preferred). Rows about news articles, which the
validation split mixes in, are left out and counted. Data already in the form prompt, chosen, rejected is read too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field

from aligngap.tasks._common import FileSource, Sources, file_sources
from aligngap.tasks._files import expand, fail, inside, is_folder
from aligngap.tasks._hub import NamedTask, hub_sources
from aligngap.tasks._layouts import GENERAL, Layout
from aligngap.tasks._prompts import Raw
from aligngap.tasks._rows import Row, Skip, json_type

NOT_REDDIT = "not a Reddit post"
REMEDY = "give the original rows (info, summaries, choice), or rows of prompt, chosen, rejected"


class TldrTask(NamedTask):
    """Summaries of Reddit posts, from a local copy or the hub.

    A local copy is a file, a folder with `train.*`, or the original folder of `batch*.json` files. Rows that name their
    split (`split`) are kept in it.
    """

    hub: str = Field(default="openai/summarize_from_feedback", description="the data set's name on the hub")

    def local_sources(self, path: str) -> Sources:
        folder = expand(path)
        batches = sorted(folder.glob("batch*.json*")) if is_folder(folder) else []
        if not batches:
            return file_sources(folder)
        return Sources([FileSource(inside(folder, batch)) for batch in batches])

    def hub_sources(self) -> Sources:
        return hub_sources(self.hub, name="comparisons", revision=self.revision)

    def layouts(self) -> Sequence[Layout]:
        return (COMPARISONS, *GENERAL)


def read_comparison(row: Row) -> list[Raw]:
    """A row of the original layout. A post whose text is missing is an article, not a Reddit post."""
    info, summaries, choice = (row.get(field, REMEDY) for field in ("info", "summaries", "choice"))
    if not isinstance(info, dict):
        raise fail(row.where, f"field 'info' is {json_type(info)}, not an object", REMEDY)
    texts = [_summary(row, number, summary) for number, summary in enumerate(_two(row, summaries))]
    if isinstance(choice, bool) or choice not in (0, 1):
        raise fail(row.where, f"field 'choice' is {str(choice)[:40]!r}, not 0 or 1", REMEDY)
    split = row.values.get("split")
    where = None if split is None else "train" if split == "train" else "test"
    return [Raw(render_post(row, info), texts[int(choice)], texts[1 - int(choice)], where)]


def render_post(row: Row, info: dict[str, Any]) -> str:
    """A post as the prompt of the original work: subreddit, title, post, then "TL;DR:"."""
    if info.get("post") is None:
        raise Skip(NOT_REDDIT)
    parts = [("SUBREDDIT: r/", "subreddit"), ("TITLE: ", "title"), ("POST: ", "post")]
    given = [(label, row.check_text(info[name], f"info.{name}")) for label, name in parts if info.get(name) is not None]
    if not given[-1][1].strip():
        return ""
    return "\n\n".join([label + text.strip() for label, text in given] + ["TL;DR:"])


def _two(row: Row, summaries: object) -> list[object]:
    if not isinstance(summaries, list) or len(summaries) != 2:
        found = f"a list of {len(summaries)}" if isinstance(summaries, list) else json_type(summaries)
        raise fail(row.where, f"field 'summaries' is {found}, not a list of two", REMEDY)
    return summaries


def _summary(row: Row, number: int, summary: object) -> str:
    if not isinstance(summary, dict) or "text" not in summary:
        raise fail(row.where, f"'summaries[{number}]' has no field 'text'", REMEDY)
    return row.check_text(summary["text"], f"summaries[{number}].text")


COMPARISONS = Layout(
    "info, summaries, choice",
    "`info`, `summaries`, `choice`",
    "A post, two summaries of it and the number of the better one, 0 or 1; `split` says where the row belongs.",
    lambda values: "info" in values or "summaries" in values,
    read_comparison,
)
