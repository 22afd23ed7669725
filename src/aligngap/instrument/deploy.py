"""A measured checkpoint as a folder to deploy: weights, tokenizer and a card with what was measured, and nothing else.

A trainer's optimiser states and logs stay behind; an adapter is added to its base, so that the folder stands alone.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aligngap import __version__
from aligngap.report.folder import REMEDY, read_study
from aligngap.storage.files import whole_folder
from aligngap.storage.listing import STUDY
from aligngap.types import AligngapError

#: what of a checkpoint's folder is a model's and not its trainer's
KEPT = ("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", "*.jinja")
TOKENIZER = ("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "*.model")


def write_checkpoint(out: Path, place: Mapping[str, Any], to: Path, said: Sequence[str], name: str) -> Path:
    """Write the checkpoint into the folder `to`, whole or not at all. AligngapError if it is no longer what was
    measured."""
    from aligngap.models.checkpoint import has_tokenizer, is_adapter, load_any, tokenizer_of

    measured = read_measured(out)
    path, base = str(place["path"]), measured.get("base")
    folder = Path(path)
    if wrong := changed(place, base, name):
        raise AligngapError(wrong)
    with whole_folder(to) as beside:
        if folder.is_dir() and not is_adapter(folder):
            copy_files(folder, beside, (*KEPT, *TOKENIZER))
        else:
            load_any(path, base).save_pretrained(str(beside))
        if not has_tokenizer(beside):
            tokenizer_of(str(measured["reference"]), base).save_pretrained(str(beside))
        (beside / "README.md").write_text(card(name, said, measured), encoding="utf-8")
    return to


def changed(place: Mapping[str, Any], base: str | None, name: str) -> str:
    """What is wrong with a measured checkpoint where it lies, in one line; "" if its weights are those measured."""
    from aligngap.models.checkpoint import identity_of

    path = str(place["path"])
    if not Path(path).exists() and not path.startswith("package:"):
        return f"{path}: is no longer there; put {name} back, or measure it where it lies now"
    try:
        found = identity_of(path, base)
    except AligngapError as error:
        return f"{error}; it is not what was measured as {name}"
    if place["content"] and found != place["content"]:
        return f"{path}: has changed since {name} was measured; measure it again"
    return ""


def copy_files(folder: Path, to: Path, patterns: Sequence[str]) -> None:
    """Copy the files of a folder that one of the patterns names."""
    for file in sorted({f for pattern in patterns for f in folder.glob(pattern) if f.is_file()}):
        shutil.copy2(file, to / file.name)


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
