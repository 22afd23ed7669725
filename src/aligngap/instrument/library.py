"""`aligngap measure` from Python, in this process: the same steps, the same store, the same tables and page.

import aligngap
tables = aligngap.measure("sft", {"dpo": "runs/dpo-seed*"}, "prompts.jsonl", ["my_rules:prefer"])
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from aligngap.settings import JudgeSpec
from aligngap.stats.budgets import BUDGETS
from aligngap.storage.records import Tables
from aligngap.types import AligngapError


def measure(
    reference: str | Path,
    policies: Mapping[str, str | Path | Sequence[str | Path]],
    prompts: str | Path | Sequence[Any],
    judges: Sequence[str | JudgeSpec] = (),
    *,
    out: str | Path = "out/measured",
    store: str | Path | None = None,
    compare: tuple[str, str] | None = None,
    kl: Sequence[float] = BUDGETS,
    device: str = "auto",
    **settings: Any,
) -> Tables:
    """The record tables of measured checkpoints, which are also written to `out`, with a report if there are judges.

    `policies` names each policy's checkpoints: a pattern of folders, a trainer's output folder, a hub name, or several
    of them. `prompts` are a file, or texts and lists of messages. `judges`, `compare` and `kl` are as the command's
    `--judge`, `--compare` and `--kl`, and `settings` the fields of `survey.Setting`. What is in the store is not done
    again. For models in memory and judges that are objects, see `Gauge`.
    """
    from aligngap.execute.checks import pick_device
    from aligngap.execute.worker import make_sound
    from aligngap.instrument.ceilings import write_ceilings
    from aligngap.instrument.command import say
    from aligngap.instrument.folders import find_checkpoints
    from aligngap.instrument.judging import parse_judge
    from aligngap.instrument.survey import Setting, check_judges, plan_survey
    from aligngap.instrument.tables import collect, matches, write_matches
    from aligngap.pipeline.context import Context, Job
    from aligngap.report import build_report
    from aligngap.storage.files import check_writable
    from aligngap.storage.records import read_folder, write_failures
    from aligngap.storage.store import Store

    start, words = check_path(reference, "reference"), words_of(policies)
    place = Path(out)
    check_writable(place, "out=")
    for judge in judges:
        if not isinstance(judge, str | JudgeSpec):
            raise AligngapError(f"judges: {type(judge).__name__} is no name of a judge; give such an object to a Gauge")
    specs = tuple(j if isinstance(j, JudgeSpec) else parse_judge(j) for j in judges)
    if len(specs) > 2:
        raise AligngapError(f"judges: {len(specs)} of them; the records hold two, the second as a check on the first")
    asked = prompts if isinstance(prompts, str | Path) else write_prompts(place, prompts)
    setting = Setting(start, str(asked), judges=specs, **settings)
    survey = plan_survey(place.name, setting, find_checkpoints(words, say), say)
    kept = Store(Path(store) if store is not None else place.parent / "store")
    check_judges(survey, kept)
    kept.prepare()
    ctx = Context(kept, pick_device(device))
    for step in survey.steps():
        make_sound(step, ctx, Job())
    found = matches(survey, ctx, kl)
    for match in found:
        make_sound(match.step, ctx, Job())
    collect(survey, ctx, place, "aligngap.measure(…)", compare or (), kl)
    write_failures(place, {})
    write_matches(found, ctx, place)
    write_ceilings(survey, ctx, place)
    if specs:
        build_report(place)
    return read_folder(place)


def words_of(policies: Mapping[str, str | Path | Sequence[str | Path]]) -> list[list[str]]:
    """The words that follow `--policy` on the command line."""
    if not policies:
        raise AligngapError("policies: none is named; give {'dpo': 'runs/dpo-seed*'}")
    found = []
    for name, given in policies.items():
        many: Iterable[Any] = [given] if isinstance(given, str | Path) or not isinstance(given, Iterable) else given
        several = [check_path(path, f"policies: {name}") for path in many]
        if not several:
            raise AligngapError(f"policies: {name} has no checkpoint; give {{'{name}': 'runs/{name}-seed*'}}")
        found.append([f"{name}={several[0]}", *several[1:]])
    return found


def check_path(given: Any, what: str) -> str:
    """A path as text. AligngapError for anything else, as a model in memory, which the store could not know again."""
    if not isinstance(given, str | Path):
        remedy = "measure keeps what it finds by the content of files; save it, or give it to aligngap.Gauge"
        raise AligngapError(f"{what}: {type(given).__name__} is no path; {remedy}")
    return str(given)


def write_prompts(out: Path, prompts: Sequence[Any]) -> Path:
    """Prompts of a list as a file in the output folder."""
    from aligngap.storage.files import write_text

    path = out / "prompts.jsonl"
    write_text(path, "".join(json.dumps({"prompt": prompt}, ensure_ascii=False) + "\n" for prompt in prompts))
    return path
