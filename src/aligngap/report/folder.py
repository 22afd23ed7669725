"""What is read of an output folder: its tables, the resolved study and the provenance; what is none is refused.

The tables are kept while no file of the folder changes. Nothing here imports torch.
"""

from __future__ import annotations

import json
from contextlib import suppress
from functools import lru_cache
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError

from aligngap.settings import explain
from aligngap.storage.listing import PROVENANCE, STUDY
from aligngap.types import AligngapError, first_line

if TYPE_CHECKING:
    from aligngap.storage.records import Tables

#: what stands before the command in a summary
MADE_BY = "Made by:"
#: of each file that is read: its name, its times of change, its size and its inode
Stamps = tuple[tuple[str, int, int, int, int], ...]
#: columns of text that many rows share, which are read as numbers
NAMES = ("study", "arm", "run", "config", "loss", "opponent", "outcome", "prompt_id")


class Told(BaseModel):
    """What one of the files must hold so that it can be read; what it says beside is nobody's here."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


class ToldArm(Told):
    """An arm of a study."""

    behavior: str = ""
    sync_every: PositiveInt = 1


class ToldVariant(Told):
    """A variant of a study."""

    set: dict[str, Any] = {}


class ToldJudge(Told):
    """A judge that a measurement asked."""

    kind: str


class ToldMeasurement(Told):
    """What `aligngap measure` was given."""

    reference: str
    prompts: str
    response_tokens: int
    base: str | None = None
    judges: list[ToldJudge] = []


class ToldModel(Told):
    """The model that a study aligns."""

    path: str | None = None


class ToldStudy(Told):
    """The resolved study, of `run` and `compare` or of `measure`."""

    name: str = ""
    question: str = ""
    compare: list[str] = Field(default=["online", "offline"], min_length=2, max_length=2)
    budgets: list[PositiveFloat] = Field(default=[1.0], min_length=1)
    spent_seeds: list[int] = []
    primary: list[str] = []
    decision_margin: float | None = Field(default=None, gt=0.0, lt=0.5)
    decision_kl: PositiveFloat | None = None
    arms: dict[str, ToldArm] = {}
    variants: dict[str, ToldVariant] = {}
    measured: ToldMeasurement | None = None
    policy: ToldModel = ToldModel()
    task: dict[str, Any] = {}
    recipe: dict[str, Any] = {}


class ToldPart(Told):
    """What a step before the arms found."""

    seed: int
    part: str
    what: str
    value: Any


class ToldCost(Told):
    """What a run generated for training."""

    arm: str
    responses: float
    tokens: float
    seconds: float | None


class ToldCheckpoint(Told):
    """Where a measured checkpoint, or the reference, lay, and the hashes of what lay there."""

    path: str
    content: str
    base: str | None = None
    beside: dict[str, str] | None = None
    reads: str = ""


class ToldRun(Told):
    """A run's artifacts, or its checkpoints where somebody else has trained it."""

    align: str = ""
    checkpoints: dict[str, ToldCheckpoint] = {}


class ToldArtifact(Told):
    """How an artifact was made."""

    seconds: float = 0.0


class ToldProvenance(Told):
    """Where the records come from."""

    command: str = ""
    directory: str | None = None
    reference: ToldCheckpoint | None = None
    artifacts: dict[str, ToldArtifact] = {}
    runs: dict[str, ToldRun] = {}
    pipeline: list[ToldPart] = []
    costs: dict[str, ToldCost] = {}
    judges: dict[str, dict[str, Any]] = {}
    missing: list[str] = []
    replaced: dict[str, str] = {}


def stamps_of(folder: Path) -> Stamps:
    """What changes when a table, the study or the provenance of a folder does."""
    found = []
    for path in folder.glob("*.[pyj]*"):
        with suppress(FileNotFoundError):  # which another command has just removed
            at = path.stat()
            found.append((path.name, at.st_mtime_ns, at.st_ctime_ns, at.st_size, at.st_ino))
    return tuple(sorted(found))


@lru_cache(maxsize=1)
def read_tables(folder: Path, stamps: Stamps) -> Tables:
    """The record tables of a folder; read anew when `stamps`, those of `stamps_of`, are others."""
    from aligngap.storage.records import read_folder

    return read_folder(folder, NAMES)


def read_compared(folder: Path) -> tuple[str, str]:
    """The two arms that the study in `folder` compares first: its `compare`, else online and offline."""
    first, second = read_study(folder).get("compare", ("online", "offline"))
    return first, second


def read_study(folder: Path) -> dict[str, Any]:
    """The resolved study beside the records; empty if it is not there. AligngapError for what is no such study."""
    import yaml

    path = folder / STUDY
    try:
        found = yaml.safe_load(read_text(path))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise AligngapError(f"{path}: not YAML ({first_line(error, 120)}); {REMEDY}") from error
    return check(path, found, ToldStudy)


def read_provenance(folder: Path) -> dict[str, Any]:
    """Where the records of a folder come from; empty if it does not say. AligngapError for what cannot be read."""
    path = folder / PROVENANCE
    text = read_text(path)
    try:
        found = json.loads(text) if text or path.is_file() else None
    except (RecursionError, ValueError) as error:
        raise AligngapError(f"{path}: not valid JSON ({first_line(error, 120)}); {REMEDY}") from error
    return check(path, found, ToldProvenance)


REMEDY = "repeat the command that made this folder, which writes it anew"


def check(path: Path, found: Any, form: type[Told]) -> dict[str, Any]:
    """What a file holds, if it has the form that is read; {} of an empty one. Else AligngapError with the key."""
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise AligngapError(f"{path}: must be keys with values, not {type(found).__name__}; {REMEDY}")
    try:
        form.model_validate(found)
    except ValidationError as error:
        raise AligngapError(f"{path}: {explain(error)}; {REMEDY}") from error
    return found


def are_given(arms: dict[str, Any]) -> bool:
    """Whether the arms of a folder are policies that somebody else has trained, as a measurement writes them."""
    return bool(arms) and all(arm.get("behavior") == "given" for arm in arms.values())


def read_declared(study: dict[str, Any]) -> dict[str, Any]:
    """What the study declared of its statistics: KL `budgets`, `spent` seeds and the rules of the `primary` family."""
    from aligngap.stats.budgets import BUDGETS

    return {
        "budgets": study.get("budgets", list(BUDGETS)),
        "spent": study.get("spent_seeds", []),
        "primary": study.get("primary", []),
    }


def find_command(folder: Path, provenance: dict[str, Any]) -> str:
    """The command that made a folder's records: of its provenance, or of an earlier summary where that is too old."""
    if found := provenance.get("command"):
        return str(found)
    lines = read_text(folder / "summary.md").partition(f"\n{MADE_BY}\n\n")[2].splitlines()
    own = [line[4:] for line in takewhile(lambda line: line.startswith("    "), lines)]
    return "\n".join(own) or f"aligngap report {folder}"


def read_text(path: Path) -> str:
    """The text of a file; empty where there is none."""
    try:
        return path.read_text(encoding="utf-8") if path.is_file() else ""
    except ValueError as error:
        raise AligngapError(f"{path}: is no text in UTF-8; {REMEDY}") from error
