"""Records in, pages out: `report.html`, `summary.md` and `figures/` of an output folder. Nothing here imports torch."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from aligngap.report.folder import (
    Stamps,
    are_given,
    find_command,
    read_compared,
    read_declared,
    read_provenance,
    read_study,
    read_tables,
    read_text,
    stamps_of,
)
from aligngap.storage.listing import STUDY
from aligngap.types import Progress, silent

if TYPE_CHECKING:
    from aligngap.report.analysis import Analysis

__all__ = ["answer", "build_report", "headline", "next_command", "people_say", "planned_power"]


def build_report(out_dir: Path, *, command: str = "", progress: Progress = silent) -> Path:
    """Rebuild figures, `summary.md` and `report.html` from the tables in `out_dir`; returns the page's path.

    They name the command that made the records: `command`, or what the folder itself says of it. Where another command
    has written records there meanwhile, they are of those.
    """
    folder = Path(out_dir)
    before = stamps_of(folder)
    page = _build(folder, command, progress)
    return page if stamps_of(folder) == before else _build(folder, command, progress)


def _build(folder: Path, command: str, progress: Progress) -> Path:
    progress(0, 4, "reading records")
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read_tables, folder, stamps_of(folder))
        # Of a home that cannot be written it says much, and draws all the same.
        logging.getLogger("matplotlib").setLevel(logging.ERROR)
        import matplotlib.pyplot  # noqa: F401  imported while the tables are read, the copy that draws has it already

        from aligngap.report.figures import make_charts
        from aligngap.report.page import write_page
        from aligngap.report.paper import draw_all
        from aligngap.report.summary import write_summary

        reading.result()
    progress(1, 4, "comparing arms")
    analysis = _analysis(folder)
    progress(2, 4, "comparing arms otherwise")
    charts = make_charts(analysis)
    provenance = read_provenance(folder)
    command = command or find_command(folder, provenance)
    write_summary(analysis, folder / "summary.md", command)
    study = read_text(folder / STUDY)
    page = write_page(
        analysis, charts, folder / "report.html", command=command, provenance=provenance, study=study
    )  # fmt: skip
    progress(3, 4, "drawing figures for papers")
    draw_all(charts, folder / "figures")
    progress(4, 4, "done")
    return page


def _analysis(folder: Path) -> Analysis:
    """The analysis of a folder's tables; made once for the page and the terminal, anew when a table has changed."""
    return _analyse(folder, stamps_of(folder))


@lru_cache(maxsize=1)
def _analyse(folder: Path, stamps: Stamps) -> Analysis:
    from aligngap.report.analysis import Background, Question, analyse
    from aligngap.report.decision import cheaper_arms
    from aligngap.report.words import say_replaced

    tables = read_tables(folder, stamps)
    online, offline = read_compared(folder)
    study, provenance = read_study(folder), read_provenance(folder)
    arms = study.get("arms", {})
    asks = Question(
        online, offline, **read_declared(study), margin=study.get("decision_margin"),
        decision_kl=study.get("decision_kl"), cheaper=cheaper_arms(arms), given=are_given(arms),
    )  # fmt: skip
    costs, judges, runs = (provenance.get(key, {}) for key in ("costs", "judges", "runs"))
    pipeline, missing = (provenance.get(key, []) for key in ("pipeline", "missing"))
    found = analyse(tables, asks, Background(pipeline, costs, judges, runs, missing))
    return replace(found, doubts=(*found.doubts, *say_replaced(provenance.get("replaced", {}))))


def headline(out_dir: Path) -> str:
    """The numbers for the terminal: the answer, its doubts, the comparison table and the verdicts."""
    from aligngap.report.summary import terminal

    return terminal(_analysis(Path(out_dir)))


def next_command(out_dir: Path, command: Sequence[str]) -> str:
    """A line with the command to run after the decision that a folder's records make; "" where they make none.

    `command` is that of the decision itself.
    """
    from aligngap.report import decision

    folder, found = Path(out_dir), _analysis(Path(out_dir)).decision
    if found is None:
        return ""
    why, words = decision.next_command(found, command, str(out_dir), read_study(folder))
    return f"next, for {why}: {shlex.join(words)}"


def people_say(out_dir: Path) -> list[str]:
    """What people said of pairs of a folder, a sentence a comparison."""
    from aligngap.report.people import say_people

    return say_people(_analysis(Path(out_dir)))


def answer(out_dir: Path) -> str:
    """The first sentence of a folder's report: which arm is ahead at equal KL, and how sure that is."""
    from aligngap.report import words

    return words.answer(_analysis(Path(out_dir)))


def planned_power(pilot: Path, arms: tuple[str, str], seeds: int, prompts: int, detect: float | None = None) -> str:
    """What a planned study can see, from the variances of a finished one: its power, and the seeds it would take."""
    from aligngap.report.power import DETECT, say_planned
    from aligngap.storage.records import read_folder

    tables, size = read_folder(pilot), DETECT if detect is None else detect
    budgets = read_declared(read_study(pilot))["budgets"]
    return say_planned(tables.records, tables.per_prompt, arms, seeds, prompts, size, budgets)
