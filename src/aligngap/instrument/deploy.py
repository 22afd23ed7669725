"""A measured checkpoint as a folder to deploy: weights, tokenizer and a card with what was measured, and nothing else.

A trainer's optimiser states and logs stay behind; an adapter is added to its base, so that the folder stands alone.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aligngap import __version__
from aligngap.pipeline.checkpoints import Weights
from aligngap.report.folder import REMEDY, read_provenance, read_study
from aligngap.storage.content import hash_of
from aligngap.storage.files import whole_folder
from aligngap.storage.listing import STUDY
from aligngap.types import AligngapError

#: what of a checkpoint's folder is a model's and not its trainer's
BESIDE = ("generation_config.json", "*.jinja")
KEPT = ("*.safetensors", "*.safetensors.index.json", "config.json", *BESIDE)
TOKENIZER = ("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "*.model")


def told_of(weights: Weights) -> dict[str, Any]:
    """What a measured folder's provenance says of a checkpoint or the reference, by which it is known again.

    `path`, and the `base` of an adapter, as from the working directory; `content`, the hash of weights and
    configuration; `beside`, the hash of each other file that is deployed with them.
    """
    from aligngap.models.checkpoint import base_path, is_adapter

    folder, base = Path(weights.path), weights.base
    if folder.is_dir() and is_adapter(folder):
        base = base_path(folder, base)
    beside = beside_of(weights.path, base) if folder.is_dir() else None
    return {"path": weights.path, "base": base, "content": weights.content, "beside": beside}


def beside_of(path: str, base: str | None) -> dict[str, str]:
    """The hash of each file, by name, that is deployed with a checkpoint's weights; also of those of its base."""
    from aligngap.models.checkpoint import is_adapter

    folder = Path(path)
    if not folder.is_dir():
        return {}
    found = {f.name: hash_of(f) for f in files_of(folder, (*BESIDE, *TOKENIZER))}
    if base is not None and is_adapter(folder):
        found |= {f"base: {name}": value for name, value in beside_of(base, None).items()}
    return found


def placed(told: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """What a folder's provenance says of weights, its paths as from here and not as from where they were measured."""
    directory = read_provenance(out).get("directory")
    base = told.get("base") or read_measured(out).get("base")
    if directory is None or Path(directory) == Path.cwd() or not Path(directory).is_dir():  # or moved elsewhere
        return {**told, "base": base}

    path, base_there = Path(directory, str(told["path"])), Path(directory, base or "")
    if base and base_there.exists():  # and no name on the hub
        base = str(base_there)
    return {**told, "path": str(told["path"]) if ":" in str(told["path"]) else str(path), "base": base}


def write_checkpoint(out: Path, place: Mapping[str, Any], to: Path, said: Sequence[str], name: str) -> Path:
    """Write the checkpoint at a place of `placed` into the folder `to`, whole or not at all.

    AligngapError if it is no longer what was measured.
    """
    from aligngap.models.checkpoint import has_tokenizer, is_adapter, load_any, tokenizer_of

    measured = read_measured(out)
    path, base = str(place["path"]), place["base"]
    folder = Path(path)
    if wrong := changed(place, name):
        raise AligngapError(wrong)
    with whole_folder(to) as beside:
        if folder.is_dir() and not is_adapter(folder):
            for file in files_of(folder, (*KEPT, *TOKENIZER)):
                shutil.copy2(file, beside / file.name)
        else:
            load_any(path, base).save_pretrained(str(beside))
        if not has_tokenizer(beside):
            told = read_provenance(out).get("reference") or {"path": measured["reference"]}
            reference = placed(told, out)
            tokenizer_of(str(reference["path"]), reference["base"]).save_pretrained(str(beside))
        (beside / "README.md").write_text(card(name, said, measured), encoding="utf-8")
    return to


def changed(place: Mapping[str, Any], name: str) -> str:
    """What is wrong with a measured checkpoint where it lies, in one line; "" if it is what was measured."""
    from aligngap.models.checkpoint import identity_of

    path, base = str(place["path"]), place["base"]
    if not is_there(path):
        return f"{path}: is no longer there; put {name} back, or measure it where it lies now"
    try:
        found = identity_of(path, base)
    except AligngapError as error:
        return f"{error}; it is not what was measured as {name}"
    if place["content"] and found != place["content"]:
        return f"{path}: has changed since {name} was measured; measure it again"
    if other := changed_beside(place):
        return f"{path}: {other} changed since {name} was measured; put back what was there, or measure it again"
    return ""


def changed_beside(place: Mapping[str, Any]) -> str:
    """The files beside the weights that are others than when they were measured; "" where none is, or none is known."""
    known = place.get("beside")
    found = {} if known is None else beside_of(str(place["path"]), place["base"])
    apart = sorted(name for name in {*(known or {}), *found} if (known or {}).get(name) != found.get(name))
    return f"{', '.join(apart)} {'has' if len(apart) == 1 else 'have'}" if apart else ""


def changed_reference(out: Path) -> str:
    """What is wrong with the reference of a measured folder where it lies, in one line; "" if it is what it was."""
    from aligngap.models.checkpoint import identity_of, reads_of

    told = read_provenance(out).get("reference")
    if not told:
        return ""
    place = placed(told, out)
    path, base = str(place["path"]), place["base"]
    what = f"{path}: the reference, against which everything was measured,"
    if not is_there(path):
        return f"{what} is no longer there; put it back"
    try:
        found = {"content": identity_of(path, base), "reads": reads_of(path, base)}
    except AligngapError as error:
        return f"{error}; it is not the reference against which everything was measured"
    same = all(not place[key] or found[key] == place[key] for key in found)
    return "" if same else f"{what} has changed since; put back what was there, or measure again"


def is_there(path: str) -> bool:
    """Whether something lies at a path, or it names a file of a package."""
    return Path(path).exists() or path.startswith("package:")


def files_of(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """The files of a folder that one of the patterns names."""
    return sorted({f for pattern in patterns for f in folder.glob(pattern) if f.is_file()})


def read_measured(out: Path) -> dict[str, Any]:
    """What a measured folder's `study.yaml` says of its reference, prompts and judges."""
    found: dict[str, Any] | None = read_study(out).get("measured")
    if found is None:
        raise AligngapError(f"{out / STUDY}: does not say what `aligngap measure` was given; {REMEDY}")
    return found


def plain(judge: Mapping[str, Any]) -> str:
    """A judge's kind and settings in a few words."""
    return " ".join([str(judge["kind"]), *(f"{k}={v}" for k, v in judge.items() if k != "kind")])


def card(name: str, said: Sequence[str], measured: Mapping[str, Any]) -> str:
    """README.md of a picked checkpoint, in the form of the Hugging Face hub."""
    from huggingface_hub import ModelCard, ModelCardData

    data = ModelCardData(library_name="transformers", tags=["aligngap", "preference-alignment"])
    judges = "; ".join(map(plain, measured.get("judges", []))) or "nobody"
    lines = [
        f"# {name}",
        "",
        f"Picked by aligngap {__version__} among measured checkpoints.",
        "",
        *[f"- {line}" for line in said],
        "",
        f"Measured from the reference `{Path(str(measured['reference'])).name}` on prompts of "
        f"`{Path(str(measured['prompts'])).name}`, responses of at most {measured['response_tokens']} tokens at "
        f"temperature 1; judged by {judges}. The KL is exact per token along the policy's own responses.",
        "",
        "No licence is granted by this card: that of the starting model and that of its data hold for these weights. "
        "It was compared by a judge that stands in for people, and was not tested for safety.",
        "",
    ]
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(lines)))
