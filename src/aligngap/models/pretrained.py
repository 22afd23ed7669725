"""Where a pretrained model lies: a folder, a hub name, something inside an installed package, or a GGUF file.

A GGUF file (llama.cpp's format, quantised) is converted once to an ordinary Hugging Face folder in float32, in a cache
directory named by the hash of its content: `ALIGNGAP_CACHE`, else `~/.cache/aligngap`. Converting needs
`aligngap[smollm]`. What cannot be found or reached ends in one line with its remedy.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import json
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

from aligngap.storage.checksums import check_files, list_files
from aligngap.storage.content import cache_folder, hash_of
from aligngap.storage.files import discard
from aligngap.storage.store import digest
from aligngap.types import AligngapError, Damaged, RunFailed, first_line

PACKAGE = "package:"
CONVERTED = 1  #: raised when conversion changes, so that old folders are not taken for new ones


def locate(path: str | Path) -> str:
    """What transformers can load for a `path` of a study: a folder, or a hub name as it is."""
    found = str(path)
    if found.startswith(PACKAGE):
        found = str(inside_package(found))
    if found.endswith(".gguf"):
        return str(convert_once(Path(found)))
    local = Path(found)
    if not local.exists() and (local.is_absolute() or found.startswith((".", "~")) or len(local.parts) > 2):
        raise AligngapError(
            f"{path}: cannot be loaded: no such folder; give one that exists, or a hub name (OWNER/NAME)"
        )
    if (local / "adapter_config.json").is_file() and not (local / "config.json").is_file():
        remedy = "add it to its model with PEFT's merge_and_unload, save that, and give its folder"
        raise AligngapError(f"{path}: holds a low-rank adapter and no whole model; {remedy}")
    if local.is_dir() and not (local / "config.json").is_file() and not (local / "tokenizer_config.json").is_file():
        raise AligngapError(f"{path}: holds no config.json; give the folder that save_pretrained has written")
    return found


#: suffixes of weights, and of files in a model's folder that are never read
WEIGHTS = (".safetensors", ".gguf")
UNREAD = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".ot", ".md", ".py", ".pyc", ".png", ".lock")


def content_of(path: str | None, weights: bool = True) -> str:
    """The hash of what lies at a `path` of a study: 20 hex digits that change whenever a file that is read does.

    Without `weights` it is the hash of all else: tokenizer, templates and configuration. Of a hub name that is no
    folder here it is the commit (`commit_of`). "" where there is no path, or where nothing is here yet.
    """
    try:
        place = inside_package(path) if path and path.startswith(PACKAGE) else Path(path or "")
    except AligngapError:
        return ""
    if not path or not place.exists():
        return commit_of(path or "")
    if place.is_file():
        return hash_of(place)[:20]
    found = {}
    for file in sorted(place.rglob("*")):
        parts = file.relative_to(place).parts
        skipped = any(part.startswith((".", "checkpoint-")) for part in parts) or file.suffix.lower() in UNREAD
        if not skipped and (weights or file.suffix.lower() not in WEIGHTS) and file.is_file():
            found["/".join(parts)] = hash_of(file)
    for index in place.glob("*.index.json") if weights else ():
        with suppress(OSError, ValueError):  # which loading it says better
            outside = {name for name in shards_in(index) if isinstance(name, str)} - set(found)
            found |= {name: hash_of(place / name) for name in outside if (place / name).is_file()}
    return digest(found)


def shards_in(index: Path) -> set[str]:
    """The files of weights that an index names, as from its folder, outside of which they may lie.

    ValueError where it is no index.
    """
    try:
        return set(json.loads(index.read_bytes())["weight_map"].values())
    except (RecursionError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index}: names no files of weights") from error


def commit_of(name: str) -> str:
    """The commit of a hub model that would be loaded now: the hub's, or where it is out of reach the cache's; or ""."""
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        return ""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    try:
        return str(get_hf_file_metadata(hf_hub_url(name, "config.json"), timeout=10).commit_hash or "")[:20]
    except Exception:  # whatever the hub's client raises: no such model, no network, told to be offline
        found = try_to_load_from_cache(name, "config.json")
        return Path(found).parent.name[:20] if isinstance(found, str) else ""


def check_content(path: str | None, content: str, weights: bool = True) -> None:
    """Refuse a model whose files are others than when the step was planned."""
    if content and content_of(path, weights) != content:
        raise RunFailed(f"{path}: its files have changed since the command began; repeat the command")


def inside_package(path: str) -> Path:
    """The file or folder that `package:NAME/FILE` names; the package is looked up and never imported."""
    name, _, rest = path.removeprefix(PACKAGE).partition("/")
    try:
        spec = importlib.util.find_spec(name) if name.isidentifier() else None
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise AligngapError(f"{path}: no Python package `{name}` is installed; docs/models.md says how to get it")
    file = Path(next(iter(spec.submodule_search_locations))) / rest
    if not file.exists():
        raise AligngapError(f"{path}: the package `{name}` has no {rest}")
    return file


def convert_once(file: Path) -> Path:
    """The Hugging Face folder of a GGUF file, made on first use; the same content is never converted twice.

    It is held against its checksums once a process; what is not what was written is converted again, and said.
    """
    if not file.is_file():
        raise AligngapError(f"{file}: no such file; a GGUF file must be here, download it first")
    name = hash_of(file)[:20]
    folder = cache_folder() / f"gguf-{CONVERTED}-{name}"
    if is_whole(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not is_whole(folder):
                if folder.is_dir():
                    print(f"aligngap: {folder}: is not what was written; converting {file} again", file=sys.stderr)
                    discard(folder)
                convert(file, folder)
                _known_whole.add(folder)
    except OSError as error:
        what = f"cannot be written ({error.strerror or error}); name another folder in ALIGNGAP_CACHE"
        raise AligngapError(f"{folder.parent}: {what}") from error
    return folder


_known_whole: set[Path] = set()  #: conversions that this process has held against their checksums


def is_whole(folder: Path) -> bool:
    """Whether a converted folder is there and is what was written."""
    if folder not in _known_whole:
        try:
            check_files(folder)
        except (OSError, Damaged):
            return False
        _known_whole.add(folder)
    return True


def convert(file: Path, folder: Path) -> None:
    """Write the model and tokenizer of a GGUF file as a folder, whole or not at all; weights in float32."""
    for needed in ("gguf", "accelerate"):
        try:
            importlib.import_module(needed)
        except ImportError as error:
            raise AligngapError(f"{file}: reading GGUF needs {needed}: pip install 'aligngap[smollm]'") from error
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where, name = str(file.parent), file.name
    try:
        loaded = AutoModelForCausalLM.from_pretrained(where, gguf_file=name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=name)
    except Exception as error:
        raise AligngapError(f"{file}: not a GGUF file that transformers reads ({first_line(error)})") from error
    # A model that came out of GGUF refuses to be saved: its weights go into one made from the plain configuration.
    config = copy.deepcopy(loaded.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.name_or_path = ""
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(loaded.state_dict())
    beside = folder.with_name(folder.name + ".writing")
    shutil.rmtree(beside, ignore_errors=True)
    plain.save_pretrained(str(beside))
    tokenizer.save_pretrained(str(beside))
    list_files(beside)
    beside.replace(folder)


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what caused it, the outermost first."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__


def refusal(what: str, path: str | Path, error: BaseException) -> AligngapError:
    """The one line for a model or tokenizer that cannot be loaded, by what the hub's client has raised."""
    kinds = {type(e).__name__ for e in causes(error)}
    where = f"{what} {path}"
    if "GatedRepoError" in kinds:
        return AligngapError(f"{where}: gated; accept its terms on the hub, then set HF_TOKEN to a token of yours")
    if "RepositoryNotFoundError" in kinds:
        return AligngapError(
            f"{where}: no such folder here, no such model on the hub, or a private one without HF_TOKEN"
        )
    if kinds & {"LocalEntryNotFoundError", "ConnectError", "ConnectionError", "OfflineModeIsEnabled", "ConnectTimeout"}:
        remedy = "give a local folder, or download it where the hub can be reached"
        return AligngapError(f"{where}: cannot be loaded: no such folder here, and the hub cannot be reached; {remedy}")
    remedy = "give a local folder or a reachable hub name"
    return AligngapError(f"{where}: cannot be loaded ({first_line(error)}); {remedy}")
