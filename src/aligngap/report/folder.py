"""What a report reads of an output folder: its tables, the resolved study and the provenance.

The tables are kept while no file of the folder changes. Nothing here imports torch.
"""

from __future__ import annotations

import json
from functools import lru_cache
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aligngap.types import AligngapError, first_line

if TYPE_CHECKING:
    from aligngap.storage.records import Tables

#: what stands before the command in a summary
MADE_BY = "Made by:"
#: name, time of change and size of each table of a folder
Stamps = tuple[tuple[str, int, int], ...]
#: columns of text that many rows share, which are read as numbers
NAMES = ("study", "arm", "run", "config", "loss", "opponent", "outcome", "prompt_id")


def stamps_of(folder: Path) -> Stamps:
    """Name, time of change and size of each table of a folder: what changes when a table does."""
    return tuple(sorted((p.name, p.stat().st_mtime_ns, p.stat().st_size) for p in folder.glob("*.[pyj]*")))


@lru_cache(maxsize=1)
def read_tables(folder: Path, stamps: Stamps) -> Tables:
    """The record tables of a folder; read anew when `stamps`, those of `stamps_of`, are others."""
    from aligngap.storage.records import read_folder

    return read_folder(folder, NAMES)


def read_compared(folder: Path) -> tuple[str, str]:
    """The two arms that the study in `folder` compares first: its `compare`, else online and offline."""
    try:
        first, second = read_study(folder).get("compare", ("online", "offline"))
    except (TypeError, ValueError) as error:
        raise AligngapError(f"{folder / 'study.yaml'}: `compare` must name two arms ({error})") from error
    return str(first), str(second)


def read_study(folder: Path) -> dict[str, Any]:
    """The resolved study that `collect` wrote beside the records; empty if it is not there."""
    import yaml

    try:
        found = yaml.safe_load(read_text(folder / "study.yaml")) or {}
    except yaml.YAMLError as error:
        raise AligngapError(f"{folder / 'study.yaml'}: not YAML ({first_line(error, 120)})") from error
    if not isinstance(found, dict):
        raise AligngapError(f"{folder / 'study.yaml'}: not a study; run it again, or take the file away")
    return found


def margin_of(folder: Path, study: dict[str, Any]) -> float | None:
    """The margin by which a decision calls two arms alike, in win rate; None where the study declares none."""
    margin = study.get("decision_margin")
    if margin is not None and not (isinstance(margin, float) and 0 < margin < 0.5):
        raise AligngapError(f"{folder / 'study.yaml'}: `decision_margin` must lie between 0 and 0.5, not be {margin!r}")
    return margin


def decision_kl_of(folder: Path, study: dict[str, Any]) -> float | None:
    """The KL in nats at which a decision is made; None where the study leaves it to the best checkpoint."""
    kl = study.get("decision_kl")
    if kl is not None and not (isinstance(kl, int | float) and kl > 0):
        raise AligngapError(f"{folder / 'study.yaml'}: `decision_kl` must be above 0 nats, not be {kl!r}")
    return None if kl is None else float(kl)


def are_given(arms: dict[str, Any]) -> bool:
    """Whether the arms of a folder are policies that somebody else has trained, as a measurement writes them."""
    return bool(arms) and all(isinstance(arm, dict) and arm.get("behavior") == "given" for arm in arms.values())


def read_declared(folder: Path, study: dict[str, Any]) -> dict[str, Any]:
    """What the study declared of its statistics: KL `budgets`, `spent` seeds and the rules of the `primary` family."""
    from aligngap.stats.budgets import BUDGETS

    found = {
        "budgets": study.get("budgets", list(BUDGETS)),
        "spent": study.get("spent_seeds", []),
        "primary": study.get("primary", []),
    }
    for key, kind in (("budgets", (int, float)), ("spent", (int,)), ("primary", (str,))):
        if not isinstance(found[key], list) or not all(isinstance(v, kind) for v in found[key]):
            raise AligngapError(f"{folder / 'study.yaml'}: `{key}` must be a list, not {found[key]!r}")
    return found


def find_command(folder: Path, provenance: dict[str, Any]) -> str:
    """The command that made a folder's records: of its provenance, or of an earlier summary where that is too old."""
    found = provenance.get("command")
    if isinstance(found, str) and found:
        return found
    lines = read_text(folder / "summary.md").partition(f"\n{MADE_BY}\n\n")[2].splitlines()
    own = [line[4:] for line in takewhile(lambda line: line.startswith("    "), lines)]
    return "\n".join(own) or f"aligngap report {folder}"


def section(of: dict[str, Any], key: str) -> dict[str, Any]:
    """The value of a key if it is a mapping, else an empty one."""
    found = of.get(key)
    return found if isinstance(found, dict) else {}


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is no file."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise AligngapError(f"{path}: not valid JSON: {error}") from error
    return found if isinstance(found, dict) else {"provenance": found}


def pipeline_of(provenance: dict[str, Any]) -> list[dict[str, Any]]:
    """What the steps before the arms found, as `collect` writes it; rows of another shape are left out."""
    rows = provenance.get("pipeline", [])
    return [r for r in rows if isinstance(r, dict) and {"seed", "part", "what", "value"} <= set(r)]


def missing_of(provenance: dict[str, Any]) -> list[str]:
    """The runs that `collect` found planned and not measured; none in the folder of a finished study."""
    found = provenance.get("missing", [])
    return [str(name) for name in found] if isinstance(found, list) else []


def read_text(path: Path) -> str:
    """The text of a file; empty where there is none."""
    return path.read_text(encoding="utf-8") if path.is_file() else ""
