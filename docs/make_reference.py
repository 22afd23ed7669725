"""Fill in the generated tables of the documentation: `python docs/make_reference.py`, or `make docs`.

Each table stands between `<!-- generated: NAME -->` and `<!-- end -->` and comes from the code that it describes: the
settings classes, the registry, the columns of the record tables. A test compares the pages with what this would write.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from aligngap import registry, settings
from aligngap.exact.capacity import RUN_COLUMNS
from aligngap.exact.skewed import SKEWED_COLUMNS
from aligngap.hypotheses.base import Hypothesis
from aligngap.storage import columns as stored
from aligngap.storage import pairs as tables
from aligngap.tasks.pairs import LAYOUTS

DOCS = Path(__file__).resolve().parent
BLOCK = re.compile(r"(<!-- generated: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [" | ".join(header), " | ".join("---" for _ in header)]
    lines += [" | ".join(cell.replace("|", "\\|") for cell in row) for row in rows]
    return "".join(f"| {line} |\n" for line in lines)


def shown(value: Any) -> str:
    """A default as YAML would spell it."""
    if value is None:
        return "`null`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, BaseModel):
        return "its defaults"
    if isinstance(value, list | tuple):
        return "`[" + ", ".join(shown(v).strip("`") for v in value) + "]`"
    text = str(value).replace("\n", "\\n")  # a cell is one line
    return f"`{text}`"


def default_of(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    return "required" if value is PydanticUndefined else shown(value)


def keys_of(model: type[BaseModel]) -> str:
    rows = [(f"`{name}`", default_of(f), f.description or "") for name, f in model.model_fields.items()]
    return table(["key", "default", "meaning"], rows) if rows else "No settings.\n"


SECTIONS: Mapping[type[BaseModel], str] = {
    settings.Study: "The study",
    settings.ModelSpec: "A model: `policy`, `golden.model`, `proxy.model`",
    settings.LoraSpec: "`lora`, in how steps are taken",
    settings.TokenizerSpec: "`tokenizer`",
    settings.Limits: "`limits`",
    settings.Optimization: (
        "How steps are taken: `sft`, `recipe.optimization`, `optimization` and `pretrain` of `golden` and `proxy`"
    ),
    settings.JudgeSpec: "A judge: `golden`, `proxy`",
    settings.Recipe: "`recipe`",
    settings.LossSpec: "`recipe.loss`",
    settings.RolloutSpec: "`recipe.rollouts`",
    settings.ReferenceSpec: "`recipe.reference`",
    settings.Arm: "An arm, under `arms`",
    settings.HeadStartSpec: "`head_start` of a judge",
    settings.RetrainSpec: "`retrain` of an arm",
    settings.Sweep: "A grid, in the list `sweep`",
    settings.Variant: "The same arms under other settings, under `variants`",
    settings.MeasurementSpec: "`measurement`",
}


def study_keys() -> str:
    parts = [f"### {title}\n\n{prose(model)}\n\n{keys_of(model)}" for model, title in SECTIONS.items()]
    return "\n" + "\n".join(parts) + "\n"


def prose(thing: Any) -> str:
    return inspect.cleandoc(thing.__doc__ or "")


def first_paragraph(thing: Any) -> str:
    if isinstance(thing, Hypothesis):
        return thing.question
    return " ".join(prose(thing).split("\n\n")[0].split())


def names() -> str:
    """Every built-in name of every shelf; plug-ins that happen to be installed are left out."""
    parts = []
    for shelf, found in registry.SHELVES.items():
        rows = [
            (f"`{name}`", f"`{where}`", first_paragraph(registry.get(shelf, name))) for name, where in found.items()
        ]
        parts.append(f"### {shelf}\n\n{table(['name', 'object', 'what it is'], rows)}")
    return "\n" + "\n".join(parts) + "\n"


def loss_settings() -> str:
    found = [
        (name, registry.get(shelf, name)) for shelf in ("losses", "corrections") for name in registry.SHELVES[shelf]
    ]
    rows = [
        (f"`{n}`", f"`{f.name}`", shown(f.default))
        for n, thing in found
        for f in dataclasses.fields(thing)
        if f.name != "loss"
    ]
    return "\n" + table(["loss", "setting", "default"], rows)


def task_settings() -> str:
    parts = [f"### `{n}`\n\n{keys_of(registry.get('tasks', n))}" for n in registry.SHELVES["tasks"]]
    return "\n" + "\n".join(parts) + "\n"


def layouts() -> str:
    """Every layout that rows are recognised in, in the order in which they are tried."""
    rows = [(layout.name, layout.columns, layout.meaning) for layout in LAYOUTS]
    return "\n" + table(["layout", "columns", "how a row is read"], rows)


def judge_settings() -> str:
    kinds = {n: registry.get("judges", n) for n in registry.SHELVES["judges"] if n != "oracle"}
    return "\n" + "\n".join(f"### `{n}`\n\n{keys_of(kind)}" for n, kind in kinds.items()) + "\n"


def columns(declared: Mapping[str, tuple[str, str]]) -> str:
    return "\n" + table(["column", "type", "meaning"], [(f"`{n}`", k, meaning) for n, (k, meaning) in declared.items()])


def pair_columns() -> str:
    rows = [(f"`{f.name}`", f"`{f.type}`") for f in tables.PAIR_SCHEMA]
    return "\n" + table(["column", "type"], [*rows, *((f"`{n}`", "`double`, where stored") for n in tables.MORE)])


def hypotheses() -> str:
    """Every built-in hypothesis: question, the paper's claim, the study that tests it, its arms and its rules."""
    parts = []
    for name in registry.SHELVES["hypotheses"]:
        h = registry.get("hypotheses", name)
        arms = ", ".join(f"`{a}`" for a in h.arms) or "the two arms that the study compares"
        lines = [
            f"### `{h.name}`",
            f"**{h.question}**",
            f"The paper: {h.claim}",
            f"Runs: `{h.command(1)}`. Arms: {arms}.",
        ]
        rules = [f"- *{r.name}*{': ' + r.claim if r.claim else '.'} {r.text}" for r in h.rules]
        parts.append("\n\n".join(lines) + "\n\n" + "\n".join(rules) + "\n")
    return "\n" + "\n".join(parts) + "\n"


MAKERS: Mapping[str, Callable[[], str]] = {
    "study-keys": study_keys,
    "names": names,
    "hypotheses": hypotheses,
    "loss-settings": loss_settings,
    "task-settings": task_settings,
    "judge-settings": judge_settings,
    "layouts": layouts,
    "records": lambda: columns({n: c for n, c in stored.RECORD_COLUMNS.items() if n not in stored.GAP_COLUMNS}),
    "records-gap": lambda: (
        "\n" + table(["columns", "meaning"], [(f"`{n}`", m) for n, m in stored.GAP_QUANTITIES.items()])
    ),
    "per-prompt": lambda: columns(stored.PER_PROMPT_COLUMNS),
    "samples": lambda: columns(stored.SAMPLE_COLUMNS),
    "best-of-n": lambda: columns(stored.BEST_OF_N_COLUMNS),
    "probe": lambda: columns(stored.PROBE_COLUMNS),
    "ratings": lambda: columns(stored.RATING_COLUMNS),
    "pairs": pair_columns,
    "exact-runs": lambda: columns(RUN_COLUMNS),
    "exact-skewed": lambda: columns(SKEWED_COLUMNS),
}


def render(text: str) -> str:
    """The page with each generated table made anew."""
    return BLOCK.sub(lambda m: m[1] + MAKERS[m[2]]() + m[3], text)


def main() -> int:
    for page in sorted(DOCS.glob("*.md")):
        old = page.read_text(encoding="utf-8")
        new = render(old)
        if new != old:
            page.write_text(new, encoding="utf-8")
            print(f"wrote {page.relative_to(DOCS.parent)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
