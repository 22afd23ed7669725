"""Low-rank adapters by PEFT, put into a transformers model and taken out again: LoRA, Hu et al. 2021, arXiv 2106.09685.

A layer W x becomes W x + (alpha / r) B A x. W is frozen; B starts at 0, so at step 0 the model with its adapter is the
model without, to the last bit. `sharing` makes the one out of the other without a second copy of the weights.
PEFT is imported where it is used: only a study that says `lora` needs it.
"""

from __future__ import annotations

import copy
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from safetensors.torch import load_file, save_file
from torch import nn

from aligngap.settings import LoraSpec
from aligngap.types import AligngapError

if TYPE_CHECKING:
    from peft import PeftModel

Module = TypeVar("Module", bound=nn.Module)

WEIGHTS = "adapter_model.safetensors"


def check_peft() -> Any:
    """PEFT, or one line that says how to get it."""
    try:
        return importlib.import_module("peft")
    except ImportError as error:
        raise AligngapError(f"`lora` needs PEFT ({error}): pip install 'aligngap[peft]'") from error


def sharing(model: Module) -> Module:
    """A second model on the same weights in memory, frozen: what is put into it later is not in the first one."""
    memo: dict[int, Any] = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
    memo |= {id(b): b for b in model.buffers()}
    return copy.deepcopy(model, memo)


def attach(model: nn.Module, spec: LoraSpec) -> PeftModel:
    """Put a fresh adapter into `model`, in place, and freeze the rest; A is drawn from torch's random state."""
    peft = check_peft()
    config = peft.LoraConfig(
        r=spec.r, lora_alpha=spec.alpha, lora_dropout=spec.dropout, target_modules=spec.target_modules
    )
    try:
        adapter: PeftModel = peft.get_peft_model(model, config)
    except ValueError as error:
        known = sorted({n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, nn.Linear)})
        what = f"optimization.lora.target_modules: {spec.target_modules} is not in the model"
        raise AligngapError(f"{what}; its linear layers are {', '.join(known)}") from error
    return adapter


def save(adapter: PeftModel, folder: Path, base: str) -> None:
    """Write the adapter alone, in PEFT's own layout; `base` says what it belongs to."""
    peft = check_peft()
    folder.mkdir(parents=True, exist_ok=True)
    state = peft.get_peft_model_state_dict(adapter, save_embedding_layers=False)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, str(folder / WEIGHTS))
    config = copy.copy(adapter.peft_config["default"])
    config.base_model_name_or_path, config.inference_mode = base, True
    config.save_pretrained(str(folder))


def fill(adapter: PeftModel, folder: Path) -> None:
    """Give an adapter the weights of a saved one."""
    found = check_peft().set_peft_model_state_dict(adapter, load_file(str(folder / WEIGHTS)))
    wrong = [*(name for name in found.missing_keys if "lora_" in name), *found.unexpected_keys]
    if wrong:
        raise AligngapError(f"{folder}: not an adapter of this model ({wrong[0]})")


def merge(adapter: PeftModel) -> nn.Module:
    """The model as it was, in place, with the update added to its weights."""
    merged: nn.Module = adapter.merge_and_unload()
    return merged
