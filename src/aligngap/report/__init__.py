"""Records in, pages out: `report.html`, `summary.md` and `figures/` of an output folder. Nothing here imports torch."""

from __future__ import annotations

import gc
import json
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aligngap.types import Progress, silent

if TYPE_CHECKING:
    from aligngap.report.analysis import Analysis
    from aligngap.storage.records import Tables

#: name, time of change and size of each table of a folder
Stamps = tuple[tuple[str, int, int], ...]
#: columns of text that many rows share, which are read as numbers
NAMES = ("study", "arm", "run", "config", "loss", "opponent", "outcome", "prompt_id")

__all__ = ["build_report", "headline", "planned_power"]


def build_report(out_dir: Path, *, command: str = "", progress: Progress = silent) -> Path:
    """Rebuild figures, `summary.md` and `report.html` from the tables in `out_dir`; returns the page's path."""
    collecting = gc.isenabled()
    # A tenth of the time goes into looking for cycles among objects that are soon gone without it; and in the copy that
    # draws it would write to every object, and so copy the memory that both hold.
    gc.disable()
    try:
        return _build(Path(out_dir), command, progress)
    finally:
        if collecting:
            gc.freeze()  # what was made counts as old from now on: else all of it is looked through here
            gc.unfreeze()
            gc.enable()


def _build(folder: Path, command: str, progress: Progress) -> Path:
    progress(0, 4, "reading records")
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(_tables, folder, _stamps(folder))
        import matplotlib.pyplot  # noqa: F401  imported while the tables are read, the copy that draws has it already

        from aligngap.report.beside import beside
        from aligngap.report.figures import drawings
        from aligngap.report.html import write_page
        from aligngap.report.summary import write_summary

        reading.result()
    progress(1, 4, "comparing arms")
    analysis = _analysis(folder)
    progress(2, 4, "drawing figures, comparing arms otherwise")
    figures = beside(drawings(analysis, folder / "figures"))
    command = command or f"aligngap report {folder}"
    write_summary(analysis, folder / "summary.md", command)
    progress(3, 4, "writing the page")
    page = write_page(
        analysis,
        folder / "report.html",
        command=command,
        provenance=_json(folder / "provenance.json"),
        study=_text(folder / "study.yaml"),
        figures=lambda: [path for paths in figures() for path in paths],
    )
    progress(4, 4, "done")
    return page


def _analysis(folder: Path) -> Analysis:
    """The analysis of a folder's tables; made once for the page and the terminal, anew when a table has changed."""
    return _analysed(folder, _stamps(folder))


def _stamps(folder: Path) -> Stamps:
    return tuple(sorted((p.name, p.stat().st_mtime_ns, p.stat().st_size) for p in folder.glob("*.[pyj]*")))


@lru_cache(maxsize=1)
def _tables(folder: Path, stamps: Stamps) -> Tables:
    import pyarrow as pa

    from aligngap.storage.records import read_folder

    usual = pa.default_memory_pool()
    if "jemalloc" in pa.supported_memory_backends():  # the usual pool's huge pages are zeroed whole, half a second here
        pa.set_memory_pool(pa.jemalloc_memory_pool())
    try:
        return read_folder(folder, NAMES)
    finally:
        pa.set_memory_pool(usual)


@lru_cache(maxsize=1)
def _analysed(folder: Path, stamps: Stamps) -> Analysis:
    from aligngap.report.analysis import analyse
    from aligngap.report.decision import cheaper_arms

    tables = _tables(folder, stamps)
    online, offline = compared(folder)
    study, provenance = _study(folder), _json(folder / "provenance.json")
    return analyse(
        tables.records,
        tables.per_prompt,
        tables.samples,
        online,
        offline,
        pipeline=_pipeline(provenance),
        best_of_n=tables.best_of_n,
        probe=tables.probe,
        failures=tables.failures,
        margin=_margin(folder, study),
        cheaper=cheaper_arms(_section(study, "arms")),
        costs=_section(provenance, "costs"),
        asked=_section(provenance, "judges"),
        runs=_section(provenance, "runs"),
    )


def headline(out_dir: Path) -> str:
    """The numbers for the terminal: the answer, its doubts, the comparison table and the verdicts."""
    from aligngap.report.summary import terminal

    return terminal(_analysis(Path(out_dir)))


def planned_power(pilot: Path, arms: tuple[str, str], seeds: int, prompts: int, detect: float | None = None) -> str:
    """What a planned study can see, from the variances of a finished one: its power, and the seeds it would take."""
    from aligngap.report.robust_tables import DETECT, planned
    from aligngap.storage.records import read_folder

    tables = read_folder(pilot)
    return planned(tables.records, tables.per_prompt, arms, seeds, prompts, DETECT if detect is None else detect)


def compared(folder: Path) -> tuple[str, str]:
    """The two arms that the study in `folder` compares first: its `compare`, else online and offline."""
    from aligngap.types import AligngapError

    try:
        first, second = _study(folder).get("compare", ("online", "offline"))
    except (TypeError, ValueError) as error:
        raise AligngapError(f"{folder / 'study.yaml'}: `compare` must name two arms ({error})") from error
    return str(first), str(second)


def _study(folder: Path) -> dict[str, Any]:
    """The resolved study that `collect` wrote beside the records; empty if it is not there."""
    import yaml

    from aligngap.types import AligngapError, first_line

    try:
        found = yaml.safe_load(_text(folder / "study.yaml")) or {}
    except yaml.YAMLError as error:
        raise AligngapError(f"{folder / 'study.yaml'}: not YAML ({first_line(error, 120)})") from error
    if not isinstance(found, dict):
        raise AligngapError(f"{folder / 'study.yaml'}: not a study; run it again, or take the file away")
    return found


def _margin(folder: Path, study: dict[str, Any]) -> float | None:
    from aligngap.types import AligngapError

    margin = study.get("decision_margin")
    if margin is not None and not (isinstance(margin, float) and 0 < margin < 0.5):
        raise AligngapError(f"{folder / 'study.yaml'}: `decision_margin` must lie between 0 and 0.5, not be {margin!r}")
    return margin


def _section(of: dict[str, Any], key: str) -> dict[str, Any]:
    found = of.get(key)
    return found if isinstance(found, dict) else {}


def _json(path: Path) -> dict[str, Any]:
    from aligngap.types import AligngapError

    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise AligngapError(f"{path}: not valid JSON: {error}") from error
    return found if isinstance(found, dict) else {"provenance": found}


def _pipeline(provenance: dict[str, Any]) -> list[dict[str, Any]]:
    """What the steps before the arms found, as `collect` writes it; rows of another shape are left out."""
    rows = provenance.get("pipeline", [])
    return [r for r in rows if isinstance(r, dict) and {"seed", "part", "what", "value"} <= set(r)]


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""
