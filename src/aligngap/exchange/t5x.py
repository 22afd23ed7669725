"""Read a T5X checkpoint of a T5 1.1 model into the transformers T5 of the same size.

T5X's native format (version 3) is a folder: `checkpoint` is a msgpack file with the tree of parameters, in which small
arrays stand as they are and large ones as a TensorStore specification, whose zarr array lies in a folder beside it.
Only `optimizer/target`, the parameters, is read. Sizes come from a gin model configuration where one is given, and are
checked against the arrays; without one they are read off the arrays. Needs the `t5x` extra (tensorstore, msgpack,
gin-config). Leaves out: T5 1.0 (tied embeddings, ReLU), scanned layers, optimiser states, checkpoints in a bucket.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from aligngap.storage.files import check_free, whole_folder
from aligngap.types import AligngapError

if TYPE_CHECKING:
    from transformers import T5Config

Arrays = dict[str, npt.NDArray[np.float32]]

#: T5X's name of a part, and transformers': encoder layers, then decoder layers; {i} is the layer
ENCODER = {
    "pre_attention_layer_norm/scale": "layer.0.layer_norm",
    "attention/query/kernel": "layer.0.SelfAttention.q",
    "attention/key/kernel": "layer.0.SelfAttention.k",
    "attention/value/kernel": "layer.0.SelfAttention.v",
    "attention/out/kernel": "layer.0.SelfAttention.o",
    "pre_mlp_layer_norm/scale": "layer.1.layer_norm",
    "mlp/wi_0/kernel": "layer.1.DenseReluDense.wi_0",
    "mlp/wi_1/kernel": "layer.1.DenseReluDense.wi_1",
    "mlp/wo/kernel": "layer.1.DenseReluDense.wo",
}
DECODER = {
    "pre_self_attention_layer_norm/scale": "layer.0.layer_norm",
    "self_attention/query/kernel": "layer.0.SelfAttention.q",
    "self_attention/key/kernel": "layer.0.SelfAttention.k",
    "self_attention/value/kernel": "layer.0.SelfAttention.v",
    "self_attention/out/kernel": "layer.0.SelfAttention.o",
    "pre_cross_attention_layer_norm/scale": "layer.1.layer_norm",
    "encoder_decoder_attention/query/kernel": "layer.1.EncDecAttention.q",
    "encoder_decoder_attention/key/kernel": "layer.1.EncDecAttention.k",
    "encoder_decoder_attention/value/kernel": "layer.1.EncDecAttention.v",
    "encoder_decoder_attention/out/kernel": "layer.1.EncDecAttention.o",
    "pre_mlp_layer_norm/scale": "layer.2.layer_norm",
    "mlp/wi_0/kernel": "layer.2.DenseReluDense.wi_0",
    "mlp/wi_1/kernel": "layer.2.DenseReluDense.wi_1",
    "mlp/wo/kernel": "layer.2.DenseReluDense.wo",
}

#: gin's names of the sizes, and transformers'
SIZES = {
    "vocab_size": "vocab_size", "emb_dim": "d_model", "num_heads": "num_heads", "head_dim": "d_kv",
    "mlp_dim": "d_ff", "num_encoder_layers": "num_layers", "num_decoder_layers": "num_decoder_layers",
}  # fmt: skip


def import_checkpoint(checkpoint: Path, to: Path, gin: Path | None, tokenizer: str | None) -> T5Config:
    """Write `checkpoint` as an ordinary Hugging Face folder `to`, with a tokenizer if one is named; return its sizes.

    Raises `AligngapError` where the checkpoint is not T5X's native format or not a T5 1.1, where an array is missing or
    left over, and where the gin file says other sizes than the arrays have.
    """
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    from aligngap.models.loading import load_tokenizer

    check_free(to)
    chosen = None if tokenizer is None else load_tokenizer(tokenizer)
    said = {} if gin is None else gin_sizes(gin)
    arrays = read_arrays(checkpoint)
    found = sizes(arrays, checkpoint)
    for name, value in said.items():
        if found[name] != value:
            raise AligngapError(f"{gin}: {name} is {value}, but the arrays of {checkpoint} have {found[name]}")
    options: dict[str, Any] = {**found, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    buckets = arrays["encoder/relpos_bias/rel_embedding"].shape[1]
    config = T5Config(**options, relative_attention_num_buckets=buckets, dropout_rate=0.0)
    config.decoder_start_token_id = config.pad_token_id  # T5 starts decoding from padding
    with torch.device("meta"):
        model = T5ForConditionalGeneration(config)
    state = {n: torch.from_numpy(np.ascontiguousarray(a)) for n, a in renamed(arrays, found, checkpoint).items()}
    model.load_state_dict(state, strict=True, assign=True)
    with whole_folder(to) as beside:
        model.save_pretrained(beside)
        if chosen is not None:
            chosen.save_pretrained(str(beside))
    return config


def read_arrays(checkpoint: Path) -> Arrays:
    """The parameters of a T5X checkpoint folder as float32, by their names joined with "/"."""
    msgpack = extra("msgpack")
    index = checkpoint / "checkpoint"
    if not index.is_file():
        raise AligngapError(f"{checkpoint}: no file `checkpoint` in it; name the folder checkpoint_STEP of a T5X run")
    try:
        tree = msgpack.unpackb(index.read_bytes(), ext_hook=inline_array, strict_map_key=False)
        target = tree["optimizer"]["target"]
    except (ValueError, KeyError, TypeError, msgpack.exceptions.UnpackException) as error:
        raise AligngapError(f"{index}: not a T5X checkpoint of version 3 (no optimizer/target in it)") from error
    return {name: load(leaf, name, checkpoint) for name, leaf in leaves(target, ())}


def leaves(tree: Any, place: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """The arrays of a nested checkpoint index, each with its place joined by slashes."""
    if isinstance(tree, Mapping) and "kvstore" not in tree:
        for key, below in tree.items():
            yield from leaves(below, (*place, str(key)))
    else:
        yield "/".join(place), tree


def inline_array(code: int, data: bytes) -> Any:
    """flax's own msgpack types: 1 is an array as (shape, dtype's name, bytes in C order), 3 a scalar in that form."""
    if code not in (1, 3):
        raise ValueError(f"unknown msgpack type {code}")
    shape, dtype, raw = extra("msgpack").unpackb(data)
    name = dtype if isinstance(dtype, str) else dtype.decode()
    kind = np.dtype(extra("ml_dtypes").bfloat16) if name == "bfloat16" else np.dtype(name)
    return np.frombuffer(raw, kind).reshape(shape)


def load(leaf: Any, name: str, checkpoint: Path) -> npt.NDArray[np.float32]:
    """An array that stands in the tree, or the zarr array inside the checkpoint's folder that it names."""
    if isinstance(leaf, np.ndarray):
        return leaf.astype(np.float32)
    if not isinstance(leaf, Mapping):
        raise AligngapError(f"{checkpoint}: `{name}` is neither an array nor a TensorStore specification")
    store = leaf["kvstore"]
    path = str(store.get("path", leaf.get("path", ""))).rstrip("/")
    folder = (checkpoint / path).resolve()
    if not path or not folder.is_relative_to(checkpoint.resolve()):
        raise AligngapError(f"{checkpoint}: `{name}` lies outside the checkpoint's folder")
    if not folder.is_dir():
        raise AligngapError(f"{checkpoint}: `{name}`: its folder `{path}` is missing; copy the whole checkpoint")
    spec = {"driver": leaf.get("driver", "zarr"), "kvstore": {"driver": "file", "path": str(folder)}}
    try:
        array = extra("tensorstore").open(spec, read=True).result().read().result()
    except (ValueError, OSError) as error:
        raise AligngapError(f"{checkpoint}: `{name}` cannot be read: {error}") from error
    return np.asarray(array).astype(np.float32)


def sizes(arrays: Arrays, checkpoint: Path) -> dict[str, int]:
    """The model's sizes, read off its arrays."""
    if "decoder/logits_dense/kernel" not in arrays or "encoder/layers_0/mlp/wi_0/kernel" not in arrays:
        raise AligngapError(
            f"{checkpoint}: not a T5 1.1 (no decoder/logits_dense or gated encoder/layers_0/mlp); T5 1.0, decoder-only "
            "models and scanned layers are not read"
        )
    query = needed(arrays, "encoder/layers_0/attention/query/kernel", checkpoint)
    heads = needed(arrays, "encoder/relpos_bias/rel_embedding", checkpoint).shape[0]
    return {
        "vocab_size": needed(arrays, "token_embedder/embedding", checkpoint).shape[0],
        "d_model": query.shape[0],
        "num_heads": heads,
        "d_kv": query.size // query.shape[0] // heads,
        "d_ff": arrays["encoder/layers_0/mlp/wi_0/kernel"].shape[1],
        "num_layers": layers(arrays, "encoder"),
        "num_decoder_layers": layers(arrays, "decoder"),
    }


def layers(arrays: Arrays, side: str) -> int:
    """How many layers the encoder or the decoder (`side`) has by the names of its arrays."""
    return len({m[1] for m in (re.match(rf"{side}/layers_(\d+)/", name) for name in arrays) if m})


def needed(arrays: Arrays, name: str, checkpoint: Path) -> npt.NDArray[np.float32]:
    """An array that every T5 1.1 checkpoint has; AligngapError where it is missing."""
    if name not in arrays:
        raise AligngapError(f"{checkpoint}: no array `{name}`; is it a whole T5 1.1 checkpoint?")
    return arrays[name]


def renamed(arrays: Arrays, found: Mapping[str, int], checkpoint: Path) -> Arrays:
    """The arrays under transformers' names, matrices the other way round (flax multiplies from the left)."""
    names = {
        "token_embedder/embedding": "shared.weight",
        "decoder/logits_dense/kernel": "lm_head.weight",
        "encoder/encoder_norm/scale": "encoder.final_layer_norm.weight",
        "decoder/decoder_norm/scale": "decoder.final_layer_norm.weight",
    }
    depth = {"encoder": found["num_layers"], "decoder": found["num_decoder_layers"]}
    for side, parts in (("encoder", ENCODER), ("decoder", DECODER)):
        bias = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        names[f"{side}/relpos_bias/rel_embedding"] = bias
        for i in range(depth[side]):
            names |= {f"{side}/layers_{i}/{a}": f"{side}.block.{i}.{b}.weight" for a, b in parts.items()}
    left = sorted(set(arrays) - set(names))
    if left:
        raise AligngapError(f"{checkpoint}: unknown array `{left[0]}` (and {len(left) - 1} more): not a plain T5 1.1")
    new: Arrays = {}
    for old, name in names.items():
        array = needed(arrays, old, checkpoint)
        if old == "token_embedder/embedding":
            new[name] = new["encoder.embed_tokens.weight"] = new["decoder.embed_tokens.weight"] = array
        elif old.endswith("/scale"):
            new[name] = array
        else:
            # DenseGeneral may keep heads as an axis of their own: (d_model, heads, d_kv), or (heads, d_kv, d_model).
            flat = array.reshape(array.shape[0], -1) if not old.endswith("/out/kernel") else array
            new[name] = flat.reshape(-1, flat.shape[-1]).T
    return new


def gin_sizes(path: Path) -> dict[str, int]:
    """The sizes a gin model configuration binds to `T5Config`, under transformers' names; macros are looked up.

    The file is parsed, not run: nothing it imports is needed, and what it includes is not read.
    """
    parser = extra("gin.config_parser")

    class Delegate(parser.ParserDelegate):  # type: ignore[misc, name-defined]
        def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> Any:
            return None

        def macro(self, macro_name: str) -> Any:
            return ("macro", macro_name)

    macros: dict[str, Any] = {}
    bound: dict[str, Any] = {}
    try:
        text = path.read_text(encoding="utf-8")
        for statement in parser.ConfigParser(text, Delegate()):
            if isinstance(statement, parser.BindingStatement):
                if not statement.arg_name:
                    macros[statement.selector] = statement.value
                elif statement.selector.split(".")[-1] == "T5Config":
                    bound[statement.arg_name] = statement.value
    except OSError as error:
        raise AligngapError(f"{path}: {error.strerror}") from error
    except (SyntaxError, ValueError) as error:
        raise AligngapError(f"{path}: not a gin file: {error}") from error
    found: dict[str, int] = {}
    for name, ours in SIZES.items():
        value = bound.get(name)
        if isinstance(value, tuple) and value[0] == "macro":
            value = macros.get(value[1])
        if value is not None:
            if not isinstance(value, int) or value < 1:
                raise AligngapError(f"{path}: T5Config.{name} is {value!r}, not a positive whole number")
            found[ours] = value
    if not found:
        raise AligngapError(f"{path}: binds none of T5Config's sizes ({', '.join(SIZES)})")
    return found


def extra(module: str) -> Any:
    """A module of the `t5x` extra."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise AligngapError(f"T5X checkpoints need {module.split('.')[0]}: pip install 'aligngap[t5x]'") from error
