"""How a preference file is read, shown before anything is trained: counts, and a few rows as text and as tokens.

The tokens are those of the data step itself, run into a folder that is thrown away. What this module leaves out: how
rows are recognised (`tasks/`), and how text becomes tokens (`models/encoding.py`).
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aligngap.execute.console import print_rows
from aligngap.types import TaskData, escape

if TYPE_CHECKING:
    from aligngap.settings import Study

SHOWN_ROWS = 3
SHOWN_CHARACTERS = 400  #: of a long text, one half from its beginning and one from its end
SHOWN_TOKENS = 8  #: on each side of the boundary
SIDES = ("chosen", "rejected")


@dataclass(frozen=True)
class Inspection:
    """What came of a file: its rows by layout, what was left out and why, and the comparisons that are kept.

    `kept` has a mapping for each comparison: `split`, `prompt_id`, the three texts and, if a `tokenizer` is given, the
    ids of each. rows + more = kept + everything in `dropped`. `noted` is what else the data step counted, and `unread`
    are the columns that nothing was read of.
    """

    source: str
    rows: int
    more: int
    layouts: Mapping[str, int]
    dropped: Mapping[str, int]
    kept: Sequence[Mapping[str, Any]]
    tokenizer: Any = None
    noted: Mapping[str, int] = field(default_factory=dict)
    unread: Sequence[str] = ()


def inspect_texts(data: TaskData) -> Inspection:
    """What came of a task's files, as text."""
    kept = [
        {"split": split, "prompt_id": c.prompt_id, "prompt": c.prompt, "chosen": c.chosen, "rejected": c.rejected}
        for split, comparisons in (("train", data.train), ("test", data.test))
        for c in comparisons
    ]
    return Inspection(data.source, data.rows, data.more, data.layouts, data.dropped, kept, unread=data.unread)


def inspect_tokens(study: Study) -> Inspection:
    """What came of a study's files, as text and as the tokens that its data step makes of it."""
    from aligngap.models.loading import load_tokenizer, quiet
    from aligngap.pipeline.context import Context, Job
    from aligngap.pipeline.data import Data
    from aligngap.pipeline.plan import expand
    from aligngap.storage.pairs import read_rows
    from aligngap.storage.store import Store

    quiet()
    step = next(s for s in expand(study).steps() if isinstance(s, Data))
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        found = step.run(Context(Store(work / "store")), Job(work))
        kept = read_rows(work / "data.parquet")
        tokenizer = load_tokenizer(work / "tokenizer")
    read = found.get("read", {"rows": len(kept) + sum(found["dropped"].values()), "more": 0, "layouts": {}})
    noted = {what: n for what, n in found.items() if isinstance(n, int) and what != "vocabulary"}
    return Inspection(found["source"], **read, dropped=found["dropped"], kept=kept, tokenizer=tokenizer, noted=noted)


def print_inspection(found: Inspection) -> None:
    """Print where every row went, and the first comparisons as text and, if there is a tokenizer, as tokens."""
    counts = [("rows read", found.rows), *((f"  laid out as {name}", n) for name, n in found.layouts.items())]
    counts += [("comparisons beyond one a row", found.more)] if found.more else []
    counts += [(f"kept in {split}", n) for split, n in Counter(row["split"] for row in found.kept).items()]
    counts += [(f"left out: {reason}", n) for reason, n in found.dropped.items()]
    counts += list(found.noted.items())
    print_rows([found.source, "count"], [(name, str(n)) for name, n in counts])
    if found.unread:
        print(f"columns that nothing is read of: {', '.join(map(escape, found.unread))}")
    for row in found.kept[:SHOWN_ROWS]:
        print(f"\n{row['split']}, prompt {row['prompt_id']}")
        print(f"  prompt   {shorten(row['prompt'])}")
        for side in SIDES:
            print(f"  {side:9}{shorten(row[side])}")
            if found.tokenizer is not None:
                print(f"    tokens {mark_boundary(found.tokenizer, row['prompt_ids'], row[f'{side}_ids'])}")


def shorten(text: str) -> str:
    """The text on one line between brackets, with its middle left out if it is long."""
    if len(text) <= SHOWN_CHARACTERS:
        return f"[{escape(text)}]"
    half = SHOWN_CHARACTERS // 2
    return f"[{escape(text[:half])} … {escape(text[-half:])}] ({len(text)} characters)"


def mark_boundary(tokenizer: Any, prompt: Sequence[int], response: Sequence[int]) -> str:
    """The last tokens of the prompt, the boundary, and the first and last tokens of the response, with both lengths."""
    before, after = ([escape(str(t)) for t in tokenizer.convert_ids_to_tokens(list(i))] for i in (prompt, response))
    if len(before) > SHOWN_TOKENS:
        before = ["…", *before[-SHOWN_TOKENS:]]
    if len(after) > SHOWN_TOKENS:
        after = [*after[: SHOWN_TOKENS - 2], "…", *after[-2:]]
    return f"{' '.join(before)} ‖ {' '.join(after)}   ({len(prompt)} + {len(response)} tokens)"
