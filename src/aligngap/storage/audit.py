"""A whole store held against its checksums: what is sound, what is not, what nothing vouches for, and what to do.

Reads only. What a run reads of an artifact is held against its checksums anyway (`Store.open`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from aligngap.storage.store import Store
from aligngap.types import AligngapError, Damaged


class State(StrEnum):
    """What is found of an artifact."""

    SOUND = "sound"
    UNVOUCHED = "not vouched for"  # made before there were checksums
    REPLACED = "stands on what has been made again"  # an input holds other bytes than when this was made from it
    DAMAGED = "damaged"
    TOO_NEW = "too new"


@dataclass(frozen=True)
class Finding:
    """One artifact by name, its state, and what to know or do about it."""

    name: str
    state: State
    remedy: str = ""


def audit(store: Store) -> Iterator[Finding]:
    """Every artifact of a store, by name, held against its checksums as a whole. AligngapError if it is no store."""
    if not store.root.is_dir():
        raise AligngapError(f"{store.root}: no such folder; give the folder of a study's artifacts (store/ by default)")
    for folder in sorted(store.root.iterdir()):
        if (folder / "manifest.json").is_file():
            yield look_at(store, folder.name)


def look_at(store: Store, name: str) -> Finding:
    """One artifact held against its checksums as a whole."""
    again = "; remove the folder, or run the study again, which makes it anew"
    try:
        if wrong := store.damage(name):
            return Finding(name, State.DAMAGED, wrong + again)
        manifest = store.manifest(name)
    except Damaged as error:
        return Finding(name, State.DAMAGED, f"{error}{again}")
    except AligngapError as error:
        return Finding(name, State.TOO_NEW, str(error))
    if "files" not in manifest:
        return Finding(name, State.UNVOUCHED, "made before there were checksums; remove the folder to make it anew")
    if need := store.replaced([name]).get(name):
        what = f"{need} holds other bytes than when this was made from it"
        return Finding(name, State.REPLACED, f"{what}; remove both folders to make them alike")
    return Finding(name, State.SOUND)
