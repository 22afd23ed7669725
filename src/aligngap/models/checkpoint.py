"""Checkpoints that somebody else has trained, opened as policies that read and end as a given reference does.

A checkpoint is a folder of `save_pretrained` or of a trainer, a hub name, a GGUF file or a PEFT adapter, which is added
to its base; or a model in memory, which is viewed and never changed. The tokenizer, the chat template and the tokens at
which a response ends are the reference's: policies that read or end otherwise would not be compared. What cannot be
opened ends in one line with the command that makes it so. Leaves out: which folders there are (`instrument/`).
"""

from __future__ import annotations

import copy
import json
import struct
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from aligngap.models import lora
from aligngap.models.loading import PLAIN, load_model, load_tokenizer
from aligngap.models.policy import Policy
from aligngap.models.pretrained import content_of, refusal, shards_in
from aligngap.settings import ModelSpec
from aligngap.storage.content import hash_of
from aligngap.storage.store import digest
from aligngap.types import AligngapError, first_line

ADAPTER = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
INDEX = "model.safetensors.index.json"
MOST_HEADER = 100 << 20  #: bytes of a safetensors file's header, the format's own limit


class Unfinished(AligngapError):
    """A checkpoint that is not whole, as while a trainer is writing it."""


# ------------------------------------------------------------------------------------------------------ on the disk


def weights_of(folder: Path) -> list[Path]:
    """The weight files of a checkpoint's folder, each there and whole; Unfinished where one is not.

    Raises AligngapError, with the command that converts them, where the weights are in a form that is not read here.
    """
    if (folder / ADAPTER).is_file() and not (folder / "config.json").is_file():
        if not (folder / ADAPTER_WEIGHTS).is_file():
            refuse_form(folder)
            raise Unfinished(f"{folder}: holds no {ADAPTER_WEIGHTS} yet")
        files = [folder / ADAPTER_WEIGHTS]
    elif (folder / INDEX).is_file():
        try:
            files = [folder / name for name in sorted(shards_in(folder / INDEX))]
        except (ValueError, TypeError) as error:
            raise Unfinished(f"{folder}: {INDEX} is not whole") from error
    else:
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            refuse_form(folder)
            raise Unfinished(f"{folder}: holds no weights (*.safetensors) yet")
    for file in files:
        if not file.is_file():
            raise Unfinished(f"{folder}: {file.name} is missing")
        if not is_whole(file):
            raise Unfinished(f"{file}: is shorter than it says, as while it is being written")
    if not (folder / ADAPTER).is_file() and not (folder / "config.json").is_file():
        raise Unfinished(f"{folder}: holds no config.json yet")
    return files


def is_whole(file: Path) -> bool:
    """Whether a safetensors file is as long as its header says."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        head = opened.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        if not 2 <= length <= min(size, MOST_HEADER):
            return False
        try:
            entries = json.loads(opened.read(length))
            ends = [int(entry["data_offsets"][1]) for name, entry in entries.items() if name != "__metadata__"]
        except (ValueError, RecursionError, AttributeError, KeyError, TypeError, IndexError):  # no such header
            return False
    return size == 8 + length + max(ends, default=0)


def refuse_form(folder: Path) -> None:
    """Raise AligngapError for weights in another tool's form, with that tool's command that converts them."""

    def some(*patterns: str) -> bool:
        return any(next(folder.glob(pattern), None) is not None for pattern in patterns)

    form = command = ""
    if some("model_world_size_*_rank_*.pt", "actor/model_world_size_*_rank_*.pt"):
        form = "verl's shards of FSDP"
        command = "python -m verl.model_merger merge --backend fsdp --local_dir {0}{1} --target_dir OUT"
        command = command.replace("{1}", "/actor" if (folder / "actor").is_dir() else "")
    elif some("pytorch_model_fsdp_*", "*.distcp", "*/*.distcp"):
        form, command = "shards of FSDP", "accelerate merge-weights {0}/pytorch_model_fsdp_0 OUT"
    elif some("zero_to_fp32.py", "*/mp_rank_*_model_states.pt", "*_optim_states.pt", "*/*_optim_states.pt"):
        form, command = "DeepSpeed's shards", "python {0}/zero_to_fp32.py {0} OUT --safe_serialization"
    elif some("adapter_model.bin"):
        form, command = "an adapter as pickles", "PeftModel.from_pretrained(base, '{0}').save_pretrained('OUT')"
    elif some("pytorch_model*.bin", "consolidated*.pth", "*_model_*.pt", "*.bin"):
        form = "weights as pickles"
        command = "AutoModelForCausalLM.from_pretrained('{0}').save_pretrained('OUT')"
    elif some("iter_*/mp_rank_*", "mp_rank_*", "common.pt", "iter_*/common.pt"):
        form, command = "Megatron's shards", "the converter to Hugging Face of the trainer that wrote them"
    elif some("checkpoint", "*.msgpack"):
        form, command = "a checkpoint of T5X or Flax", "aligngap import-t5x {0} --to OUT"
    if form:
        raise AligngapError(f"{folder}: holds {form}; convert it: {command.format(folder)}, then give OUT")


def identity_of(path: str, base: str | None = None) -> str:
    """The hash of a checkpoint's weights and configuration, wherever they lie; with those of an adapter's base.

    "" for a hub name of which nothing is known here. Raises Unfinished, or AligngapError for a form not read here.
    """
    folder = Path(path)
    if not folder.is_dir():
        return content_of(path)
    own = [name for name in ("config.json", ADAPTER) if (folder / name).is_file()]
    found = {file.name: hash_of(file) for file in [*weights_of(folder), *(folder / name for name in own)]}
    if is_adapter(folder):
        place = base_path(folder, base)
        found["base"] = identity_of(place) or place
    return digest(found)


def weights_identity(path: str, base: str | None = None) -> str:
    """The hash of a checkpoint's weights alone, whatever its configuration says; with those of an adapter's base."""
    folder = Path(path)
    if not folder.is_dir():
        return content_of(path)
    found = sorted(hash_of(file) for file in weights_of(folder))
    if is_adapter(folder):
        place = base_path(folder, base)
        found.append(weights_identity(place) or place)
    return digest(found)


def reads_of(path: str, base: str | None = None) -> str:
    """The hash of how a reference reads: its tokenizer, templates and configuration, and not its weights."""
    folder = Path(path)
    if folder.is_dir() and is_adapter(folder) and not has_tokenizer(folder):
        return content_of(base_path(folder, base), weights=False)
    return content_of(path, weights=False)


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds a PEFT adapter and no whole model."""
    return (folder / ADAPTER).is_file() and not (folder / "config.json").is_file()


def base_path(folder: Path, base: str | None = None) -> str:
    """Where the model lies that an adapter belongs to: `base`, else what its configuration names."""
    if base is not None:
        return base
    try:
        named = json.loads((folder / ADAPTER).read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (ValueError, RecursionError, AttributeError) as error:
        raise Unfinished(f"{folder / ADAPTER}: is not whole") from error
    if not named:
        raise AligngapError(f"{folder}: its {ADAPTER} names no base model; give it with --base")
    place = Path(str(named))
    if place.is_absolute() or str(named).startswith((".", "~")) or len(place.parts) > 2:
        if not place.is_dir():
            raise AligngapError(f"{folder}: its base model {named} is not here; say where it lies with --base")
    elif not place.is_dir() and (folder / place).is_dir():
        return str(folder / place)
    return str(named)


def load_any(path: str, base: str | None = None, spec: ModelSpec = PLAIN) -> PreTrainedModel:
    """The model at a path in float32; an adapter is added to its base. Bad input is one line."""
    folder = Path(path)
    if folder.is_dir():
        _refuse_quantised(folder)
        weights_of(folder)
        if is_adapter(folder):
            return _merged(folder, base, spec)
    return load_model(path, spec)


def _refuse_quantised(folder: Path) -> None:
    try:
        about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    if isinstance(about, dict) and about.get("quantization_config"):
        how = about["quantization_config"]
        kind = how.get("quant_method", "of some kind") if isinstance(how, dict) else "of some kind"
        raise AligngapError(
            f"{folder}: its weights are quantised ({kind}), and KL is of the weights themselves; give the folder of "
            "before they were, or one that `model.dequantize()` and `save_pretrained` have written"
        )


def _merged(folder: Path, base: str | None, spec: ModelSpec) -> PreTrainedModel:
    peft = lora.check_peft()
    place = base_path(folder, base)
    model = load_any(place, None, spec)
    try:
        merged: PreTrainedModel = peft.PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    except Exception as error:
        what = f"its adapter cannot be added to {place} ({first_line(error, 160)})"
        raise AligngapError(f"{folder}: {what}; name the model it was trained on with --base") from error
    whole: PreTrainedModel = merged.float()
    return whole


# ----------------------------------------------------------------------------------------------- as the reference is


def open_reference(
    path: str, *, response_tokens: int, spec: ModelSpec, base: str | None = None, key: str = ""
) -> Policy:
    """The reference: a model with a tokenizer of its own (an adapter's, else its base's), held against its own forward
    pass."""
    model = load_any(path, base, spec)
    policy = Policy(model, tokenizer_of(path, base), response_tokens=response_tokens, key=key, spec=spec)
    policy.check_head()
    return policy


def tokenizer_of(path: str, base: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer at a path; of an adapter without one, its base's."""
    folder = Path(path)
    if folder.is_dir() and is_adapter(folder) and not has_tokenizer(folder):
        return load_tokenizer(base_path(folder, base))
    return load_tokenizer(path)


def has_tokenizer(folder: Path) -> bool:
    """Whether a checkpoint's folder holds a tokenizer."""
    return any(
        (folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json")
    )


def open_policy(path: str, reference: Policy, *, base: str | None = None, key: str = "") -> Policy:
    """A checkpoint as a policy that reads and ends as the reference does; refused where its vocabulary is another."""
    return as_reference(load_any(path, base, reference.spec), reference, path, key)


def as_reference(model: PreTrainedModel, reference: Policy, name: str, key: str = "") -> Policy:
    """A model as a policy with the reference's tokenizer, template and ends."""
    check_size(model.config, reference.model.config, name)
    policy = Policy(model, reference.tokenizer, response_tokens=reference.response_tokens, key=key, spec=reference.spec)
    policy.end_ids = reference.end_ids
    policy.model.generation_config = reference.model.generation_config
    if model.config.model_type == reference.model.config.model_type:
        policy.shares, policy.keeps = reference.shares, reference.keeps
    else:
        policy.check_head()
    return policy.to(reference.device)  # type: ignore[no-any-return]


def check_size(config: Any, reference: Any, name: str) -> None:
    """Refuse a model whose output is over another number of tokens than the reference's, or of another kind."""
    if config.is_encoder_decoder != reference.is_encoder_decoder:
        kinds = ["a decoder", "an encoder-decoder"]
        own, other = kinds[config.is_encoder_decoder], kinds[reference.is_encoder_decoder]
        raise AligngapError(f"{name}: is {own}, and the reference {other}; give the model that it was trained from")
    own, other = (c.get_text_config().vocab_size for c in (config, reference))
    if own != other:
        remedy = "give the model that it was trained from, resized in the same way (resize_token_embeddings)"
        what = f"its output is over {own} tokens and the reference's over {other}, so that no KL is defined"
        raise AligngapError(f"{name}: {what}; {remedy}")


def check_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerBase, reference: str) -> str:
    """Refuse a checkpoint whose own tokenizer has other tokens than the reference's; a warning about its template.

    "" where it has no tokenizer of its own, or one that reads alike.
    """
    if not folder.is_dir() or not has_tokenizer(folder):
        return ""
    own = load_tokenizer(folder, ends=False)
    mine, theirs = own.get_vocab(), tokenizer.get_vocab()
    if mine != theirs:
        apart = sorted(t for t in {*mine, *theirs} if mine.get(t) != theirs.get(t))
        what = (
            f"its tokenizer is not that of the reference {reference} ({len(apart)} tokens differ, such as {apart[0]!r})"
        )
        raise AligngapError(f"{folder}: {what}, so that no KL is defined; give the model that it was trained from")
    if own.chat_template and own.chat_template != tokenizer.chat_template:
        return f"{folder}: its chat template is not the reference's, which writes the prompts for both"
    return ""


# -------------------------------------------------------------------------------------------------------- in memory


def is_model(thing: Any) -> bool:
    """Whether something is a model in memory: of transformers, or PEFT's around one."""
    return isinstance(thing, torch.nn.Module)


def view(model: Any) -> PreTrainedModel:
    """A second model on a given one's weights in memory, in eval mode, with hooks and settings of its own.

    The given model is left as it is, be it in training or not; an adapter stays in place. One whose weights are not
    float32 is copied to float32, since log-probabilities are.
    """
    inner = model.get_base_model() if hasattr(model, "peft_config") and hasattr(model, "get_base_model") else model
    found: PreTrainedModel = _float(_shared(inner))
    return found


def base_of(model: Any) -> PreTrainedModel:
    """A PEFT model without its adapter, on the same weights in memory: the reference of a run that trains one."""
    if not hasattr(model, "peft_config"):
        raise AligngapError("a reference in memory: the model has no adapter to take off; give its SFT model itself")
    found: PreTrainedModel = _float(_shared(model).unload())
    return found


def _shared(model: Any) -> Any:
    found = lora.sharing(model)
    for module in found.modules():
        module.__dict__.pop("forward", None)  # a trainer's wrapper, which would call the given model
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    return found.eval()


def _float(model: Any) -> Any:
    half = any(p.is_floating_point() and p.dtype != torch.float32 for p in model.parameters())
    return copy.deepcopy(model).float() if half else model


# ---------------------------------------------------------------------------------------------------------- the hub

#: what a measurement reads of a model on the hub
READ = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.model", "*.txt")


def fetched(path: str) -> str:
    """A folder of this machine for a path: the path itself, or the hub's OWNER/NAME or OWNER/NAME@REVISION, fetched."""
    name, _, revision = path.partition("@")
    if Path(path).exists() or path.endswith(".gguf") or ":" in path or name.count("/") != 1 or path[:1] in "./~":
        return path
    from huggingface_hub import snapshot_download

    try:
        return str(snapshot_download(name, revision=revision or None, allow_patterns=list(READ)))
    except Exception as error:  # whatever the hub's client raises: no such model or revision, no network
        raise refusal("model", path, error) from error
