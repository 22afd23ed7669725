"""Records in, pages out: `report.html`, `summary.md` and `figures/` of an output folder. Nothing here imports torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["build_report", "headline", "planned_power"]


def build_report(out_dir: Path, *, command: str = "") -> Path:
    """Rebuild figures, `summary.md` and `report.html` from the tables in `out_dir`; returns the page's path."""
    from aligngap.records import read_folder
    from aligngap.report.analysis import analyse
    from aligngap.report.figures import make_figures
    from aligngap.report.html import write_page
    from aligngap.report.summary import write_summary

    folder = Path(out_dir)
    tables = read_folder(folder)
    online, offline = compared(folder)
    provenance = _json(folder / "provenance.json")
    analysis = analyse(
        tables.records,
        tables.per_prompt,
        tables.samples,
        online,
        offline,
        pipeline=_pipeline(provenance),
        best_of_n=tables.best_of_n,
    )
    figures = make_figures(analysis, folder / "figures")
    command = command or f"aligngap report {folder}"
    write_summary(analysis, folder / "summary.md", command)
    return write_page(
        analysis,
        folder / "report.html",
        command=command,
        provenance=provenance,
        study=_text(folder / "study.yaml"),
        figures=figures,
    )


def headline(out_dir: Path) -> str:
    """The numbers for the terminal: the answer, its doubts, the comparison table and the verdicts."""
    from aligngap.records import read_folder
    from aligngap.report.analysis import analyse
    from aligngap.report.summary import terminal

    tables = read_folder(out_dir)
    online, offline = compared(Path(out_dir))
    pipeline = _pipeline(_json(Path(out_dir) / "provenance.json"))
    found = analyse(
        tables.records, tables.per_prompt, None, online, offline, pipeline=pipeline, best_of_n=tables.best_of_n
    )
    return terminal(found)


def planned_power(pilot: Path, arms: tuple[str, str], seeds: int, prompts: int, detect: float | None = None) -> str:
    """What a planned study can see, from the variances of a finished one: its power, and the seeds it would take."""
    from aligngap.records import read_folder
    from aligngap.report.robust_tables import DETECT, planned

    tables = read_folder(pilot)
    return planned(tables.records, tables.per_prompt, arms, seeds, prompts, DETECT if detect is None else detect)


def compared(folder: Path) -> tuple[str, str]:
    """The two arms that the study in `folder` compares first: its `compare`, else online and offline."""
    import yaml

    from aligngap.types import AligngapError

    try:
        study = yaml.safe_load(_text(folder / "study.yaml")) or {}
        first, second = study.get("compare", ("online", "offline"))
    except (yaml.YAMLError, AttributeError, TypeError, ValueError) as error:
        raise AligngapError(f"{folder / 'study.yaml'}: `compare` must name two arms ({error})") from error
    return str(first), str(second)


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
