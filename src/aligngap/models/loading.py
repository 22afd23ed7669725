"""Models and tokenizers as a study names them: built from scratch or loaded, in float32, and refused in one line.

Weights come from safetensors only, and no code comes with them. What does not fit what a study says of it is refused
before anything is computed. What this module leaves out: where a `path` lies (`pretrained.py`), and what a model is
then used for (`policy.py`, `judges/`).
"""

from __future__ import annotations

import json
import logging
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

from aligngap.models import chat
from aligngap.models.compiled import check_compiler
from aligngap.models.pretrained import locate, refusal
from aligngap.settings import ModelSpec
from aligngap.types import AligngapError, first_line

#: how weights are loaded: no pickled ones, and no code that comes with them
LOADING: dict[str, Any] = {"dtype": torch.float32, "use_safetensors": True, "trust_remote_code": False}
PLAIN = ModelSpec()  # float32, no dropout, no template: how a model is run unless a study says otherwise
WRITES_TEXT = ("ForCausalLM", "LMHeadModel", "LMHead", "ForConditionalGeneration", "DoubleHeadsModel")

#: families that the tests hold against their own forward pass; any other is tried before anything is computed
TESTED = (
    "bloom", "cohere", "falcon", "falcon_h1", "gemma2", "gemma3_text", "gpt2", "gpt_neo", "gpt_neox", "gptj", "granite",
    "granitemoehybrid", "lfm2", "llama", "llama4_text", "mamba", "mistral", "mixtral", "mpt", "olmo2", "opt", "phi",
    "phi3", "qwen2", "qwen3", "qwen3_next", "recurrent_gemma", "rwkv", "seed_oss", "smollm3", "t5",
)  # fmt: skip


@contextmanager
def seeded(seed: int, device: torch.device) -> Any:
    """Torch's global random state set to `seed` inside the block and restored after it: nobody else's is disturbed."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed % 2**63)
        yield


def quiet() -> None:
    """Silence transformers' warnings and progress bars in this process: the command shows its own progress."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    for name in ("huggingface_hub", "httpx"):
        logging.getLogger(name).setLevel(logging.ERROR)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def load_tokenizer(path: str | Path, ends: bool = True) -> PreTrainedTokenizerBase:
    """A tokenizer from wherever a study's `path` may name; with `ends` it must have an EOS token."""
    place = locate(path)
    try:
        about = Path(place) / "tokenizer_config.json"
        own = json.loads(about.read_text()).get("tokenizer_class") if about.is_file() else None
        # A tokenizer that names no family is loaded as it is: beside a Qwen2 model, Auto would make it Qwen2's.
        plain = own in ("TokenizersBackend", "PreTrainedTokenizerFast")
        tokenizer = (PreTrainedTokenizerFast if plain else AutoTokenizer).from_pretrained(
            place, trust_remote_code=False
        )
    except Exception as error:
        raise refusal("tokenizer", path, error) from error
    if tokenizer.eos_token_id is None and ends:
        raise AligngapError(f"tokenizer {path}: has no EOS token; a response could never end")
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is not None:
        tokenizer.pad_token = tokenizer.eos_token  # responses are masked by length, never by `!= pad`
    tokenizer.split_special_tokens = True  # "</s>" inside data is text, not the end of a response
    return tokenizer


def build_model(spec: ModelSpec, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    """A model from scratch (a function of spec, tokenizer size and seed) or loaded from `spec.path`; in float32."""
    if spec.path is not None:
        return load_model(spec.path, spec)
    config = config_of(spec, vocab_size=len(tokenizer))
    config.pad_token_id, config.eos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id
    if config.is_encoder_decoder:
        config.decoder_start_token_id = tokenizer.pad_token_id
    maker = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    try:
        with seeded(seed, torch.device("cpu")):
            model: PreTrainedModel = maker.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
            return as_told(model, spec)
    except Exception as error:
        raise AligngapError(f"model.config: transformers refuses it ({first_line(error)})") from error


def load_model(path: str | Path, spec: ModelSpec = PLAIN) -> PreTrainedModel:
    """A model from wherever a study's `path` may name, encoder-decoder or decoder-only by its own configuration.

    `spec` says how it is run; which model it is, `path` says.
    """
    place = locate(path)
    try:
        config = AutoConfig.from_pretrained(place, trust_remote_code=False)
        set_dropout(config, spec.dropout)
        maker = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        loaded: Any = maker.from_pretrained(place, config=config, output_loading_info=True, **LOADING)
    except Exception as error:
        raise refusal("model", path, error) from error
    model, found = loaded
    if missing := sorted(found["missing_keys"]):  # transformers would draw them at random
        what = f"its files lack {len(missing)} of the weights of a `{config.model_type}` model, such as {missing[0]}"
        raise AligngapError(f"model {path}: {what}; give a whole checkpoint of the architecture that config.json names")
    return as_told(model, spec)


def as_told(model: PreTrainedModel, spec: ModelSpec) -> PreTrainedModel:
    """The model, set to compute its activations again in the backward pass if the specification says so."""
    if spec.gradient_checkpointing:
        if not model.supports_gradient_checkpointing:
            what = f"model family `{model.config.model_type}` has no gradient checkpointing"
            raise AligngapError(f"{what}; leave gradient_checkpointing out and lower micro_batch")
        # transformers 5 renames it, and 6 will drop the old name
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    return model


def config_of(spec: ModelSpec, **settings: Any) -> Any:
    """The transformers configuration a specification names, with its settings; a wrong one is refused in one line."""
    place = locate(spec.path) if spec.path else None
    try:
        config = (
            AutoConfig.from_pretrained(place, trust_remote_code=False)
            if place
            else AutoConfig.for_model(spec.model_type)
        )
    except Exception as error:
        if spec.path:
            raise refusal("model", spec.path, error) from error
        what = f"cannot be loaded ({first_line(error)}); name a family transformers knows"
        raise AligngapError(f"model.model_type `{spec.model_type}`: {what}") from error
    for name in spec.config:
        if not hasattr(config, name):
            raise AligngapError(f"model.config.{name}: not a setting of a `{spec.model_type}` model")
    if spec.path is None:
        try:
            # Made from the given settings only, so that what a family derives (head_dim, gated layers) follows them.
            config = AutoConfig.for_model(spec.model_type, **{**spec.config, **settings})
        except Exception as error:
            raise AligngapError(f"model.config: transformers refuses it ({first_line(error)})") from error
    set_dropout(config, spec.dropout)
    return config


def check_spec(spec: ModelSpec) -> None:
    """Refuse a model that cannot be named, built, read or used as the study says, before anything is computed."""
    config = config_of(spec)
    if spec.compile:
        check_compiler()
    if spec.path is not None and "model_type" in spec.model_fields_set and spec.model_type != config.model_type:
        what = f"is a `{config.model_type}` model, and the study says model_type `{spec.model_type}`"
        raise AligngapError(f"model {spec.path}: {what}; leave model_type out, or name another model")
    _check_architecture(spec, config)
    if config.is_encoder_decoder and spec.path is not None and getattr(config, "decoder_start_token_id", None) is None:
        what = "its config.json has no decoder_start_token_id"
        raise AligngapError(f"model {spec.path}: {what}; put it there (a T5 starts at its pad token)")
    if not config.is_encoder_decoder and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise AligngapError(f"model family `{config.model_type}`: neither encoder-decoder nor a causal language model")


def _check_architecture(spec: ModelSpec, config: Any) -> None:
    """Refuse a stored model whose head is not one that writes text."""
    named = config.architectures or []
    if spec.path is not None and named and not any(n.endswith(WRITES_TEXT) for n in named):
        raise AligngapError(
            f"model {spec.path}: its architecture is {', '.join(named)}, which writes no text; give a causal or an "
            "encoder-decoder language model (…ForCausalLM, …LMHeadModel, …ForConditionalGeneration)"
        )


def check_tokenizer(spec: ModelSpec) -> None:
    """Refuse a pretrained model whose own tokenizer it cannot read, or that has no template where `chat` is set."""
    if spec.path is None:
        return
    tokenizer, config = load_tokenizer(spec.path), config_of(spec)
    if len(tokenizer) > config.vocab_size:
        what = f"its tokenizer has {len(tokenizer)} tokens and the model {config.vocab_size}"
        raise AligngapError(f"model {spec.path}: {what}; put the tokenizer that belongs to it into its folder")
    if spec.chat:
        chat.check_template(tokenizer, f"model {spec.path}")


def window(config: Any) -> int | None:
    """The most tokens that a model of this transformers configuration reads at once, or None where it has no limit."""
    config = config.get_text_config()
    if hasattr(config, "relative_attention_num_buckets"):  # T5 knows distances and no positions
        return None
    names = ("n_positions", "max_position_embeddings", "max_seq_len", "n_ctx")
    found = next((v for v in (getattr(config, name, None) for name in names) if isinstance(v, int) and v > 0), None)
    counted_from_padding = config.model_type in ("roberta", "xlm-roberta", "camembert", "longformer", "mpnet")
    return found - config.pad_token_id - 1 if found and counted_from_padding else found


def is_encoder_decoder(spec: ModelSpec) -> bool:
    """Whether the model a specification names reads the prompt with an encoder."""
    return bool(config_of(spec).is_encoder_decoder)


def set_dropout(config: Any, dropout: float) -> None:
    """Set every dropout of a transformers configuration, under whatever name its family has for it.

    Whole layers or paths are never dropped, nor is noise added to a router: that is no dropout and has no other use
    here. The check that a run starts at a margin of 0 (`pair_logps.check_start`) finds what has yet another name.
    """
    for part in (config, *(getattr(config, name, None) for name in getattr(config, "sub_configs", {}))):
        for name, value in list(vars(part).items()) if part is not None else []:
            if isinstance(value, int | float) and not isinstance(value, bool):
                if "layer_drop" in name or "layerdrop" in name or "drop_path" in name or "jitter" in name:
                    setattr(part, name, type(value)(0))
                elif "dropout" in name or "pdrop" in name:
                    setattr(part, name, type(value)(0) if dropout == 0 else dropout)
