"""A command that is repeated with nothing left to do: what it said is said again, and no table or page made anew.

An output folder keeps what the command said, beside what that rests on: the study, the artifacts, the tables and pages
that lie there, the source of aligngap and of hypotheses from elsewhere, and the versions of the packages. If any of it
is another, everything is made.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import aligngap
from aligngap import registry
from aligngap.pipeline.plan import Plan
from aligngap.storage.checksums import checksum_of, unseal, write_sealed
from aligngap.storage.listing import Faults, find_faults
from aligngap.storage.provenance import packages
from aligngap.storage.store import Store, digest
from aligngap.types import Damaged

FILE = ".said.json"


def said(plan: Plan, store: Store, out: Path, command: str) -> str | None:
    """What a command said when it made all that lies in an output folder; None if something of it is another.

    The measurements and logs that the tables were made of are held against their checksums.
    """
    try:
        found = unseal(out / FILE)
        text: str = found.pop("said", "")
        if find_faults(out) != Faults() or not all(store.has(step.name) for step in plan.steps()):
            return None
        if found != rests_on(plan, store, out, command):
            return None
        for run in plan.runs:
            store.open(run.measure.name)
            store.open(run.align.name, "log.parquet")
    except (Damaged, OSError):  # what cannot be read or written is told where everything is made
        return None
    return text


def keep(plan: Plan, store: Store, out: Path, command: str, text: str) -> None:
    """Keep what a command says of an output folder that it has made, with what that rests on."""
    write_sealed(out / FILE, rests_on(plan, store, out, command) | {"said": text})


def rests_on(plan: Plan, store: Store, out: Path, command: str) -> dict[str, Any]:
    """What an output folder and the words about it are a function of, and the checksums of what lies there."""
    source = Path(aligngap.__file__).parent
    code = [(str(p.relative_to(source)), p.stat().st_size, p.stat().st_mtime_ns) for p in source.rglob("*.[pj]*")]
    lies = [p for p in (*out.glob("[!.]*"), *out.glob("figures/[!.]*")) if p.is_file()]
    return {
        "command": command, "packages": packages(), "code": digest(sorted(code)),
        "hypotheses": {name: registry.source_of("hypotheses", name) for name in registry.names("hypotheses")},
        "study": digest(plan.study.model_dump(mode="json")),
        "artifacts": digest({s.name: store.content(s.name) for s in plan.steps() if store.has(s.name)}),
        "files": {str(p.relative_to(out)): checksum_of(p) for p in sorted(lies)},
    }  # fmt: skip
