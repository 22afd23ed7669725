"""A T5X checkpoint, written here with TensorStore, read into transformers: its logits equal those of T5X's own network,
written out in numpy after the T5 paper (arXiv 1910.10683) and Shazeer 2020 (gated GELU, arXiv 2002.05202)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import complaint, word_tokenizer

from aligngap.cli import main
from aligngap.exchange.t5x import gin_sizes, read_arrays
from aligngap.models.policy import Policy
from aligngap.types import AligngapError, Prompt

tensorstore = pytest.importorskip("tensorstore")
msgpack = pytest.importorskip("msgpack")
pytest.importorskip("gin")

VOCABULARY, WIDTH, HEADS, HEAD, HIDDEN, BUCKETS = 40, 12, 3, 4, 20, 32
GIN = """
from __gin__ import dynamic_registration
import seqio
from t5x.examples.t5 import network
include 't5x/configs/runs/finetune.gin'
DEPTH = 2
VOCABULARY = @seqio.SentencePieceVocabulary()
network.T5Config:
  vocab_size = 40  # a comment
  emb_dim = 12
  num_heads = 3
  num_encoder_layers = %DEPTH
  num_decoder_layers = 1
  head_dim = 4
  mlp_dim = 20
  mlp_activations = ('gelu', 'linear')
  dropout_rate = %DROPOUT
"""


def parameters(seed: int = 0) -> dict[str, np.ndarray]:
    """Random parameters under T5X's names: two encoder layers, one decoder layer."""
    random = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return random.normal(size=shape).astype(np.float32) / math.sqrt(shape[0])

    def scale() -> np.ndarray:
        return (1 + 0.1 * random.normal(size=WIDTH)).astype(np.float32)

    def attention(place: str) -> dict[str, np.ndarray]:
        made = {f"{place}/{n}/kernel": normal(WIDTH, HEADS * HEAD) for n in ("query", "key", "value")}
        return made | {f"{place}/out/kernel": normal(HEADS * HEAD, WIDTH)}

    def mlp(place: str) -> dict[str, np.ndarray]:
        made = {f"{place}/mlp/{n}/kernel": normal(WIDTH, HIDDEN) for n in ("wi_0", "wi_1")}
        return made | {f"{place}/mlp/wo/kernel": normal(HIDDEN, WIDTH), f"{place}/pre_mlp_layer_norm/scale": scale()}

    found = {
        "token_embedder/embedding": random.normal(size=(VOCABULARY, WIDTH)).astype(np.float32),
        "decoder/logits_dense/kernel": normal(WIDTH, VOCABULARY),
    }
    for side in ("encoder", "decoder"):
        found[f"{side}/{side}_norm/scale"] = scale()
        found[f"{side}/relpos_bias/rel_embedding"] = normal(HEADS, BUCKETS)
    for i in range(2):
        place = f"encoder/layers_{i}"
        found |= attention(f"{place}/attention") | mlp(place) | {f"{place}/pre_attention_layer_norm/scale": scale()}
    place = "decoder/layers_0"
    found |= attention(f"{place}/self_attention") | attention(f"{place}/encoder_decoder_attention") | mlp(place)
    return found | {f"{place}/pre_{n}_attention_layer_norm/scale": scale() for n in ("self", "cross")}


def write(folder: Path, arrays: dict[str, np.ndarray], inline: tuple[str, ...] = (), dtype: str = "float32") -> Path:
    """A checkpoint folder in T5X's native layout: arrays in zarr, but for those named `inline`."""
    tree: dict[str, Any] = {}
    folder.mkdir()
    for name, array in arrays.items():
        leaf: Any
        if name in inline:
            leaf = msgpack.ExtType(1, msgpack.packb((array.shape, array.dtype.name, array.tobytes())))
        else:
            path = "target." + name.replace("/", ".")
            spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": str(folder / path)}}
            made = tensorstore.open(spec, create=True, dtype=dtype, shape=array.shape).result()
            made.write(array.astype(made.dtype.numpy_dtype)).result()
            leaf = {"driver": "zarr", "kvstore": {"driver": "gfile", "path": path}, "metadata": {"shape": array.shape}}
        *parents, last = name.split("/")
        place = tree
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = leaf
    state = {"step": msgpack.ExtType(3, msgpack.packb(((), "int32", np.int32(7).tobytes())))}
    content = {"version": 3, "optimizer": {"state": state, "target": tree}}
    (folder / "checkpoint").write_bytes(msgpack.packb(content))
    return folder


def norm(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale


def bucket(distance: int, both: bool) -> int:
    """T5's bucket of key minus query: half of them exact, the rest logarithmic up to 128."""
    count, start = BUCKETS, 0
    if both:
        count //= 2
        start = count if distance > 0 else 0
        distance = abs(distance)
    else:
        distance = max(-distance, 0)
    exact = count // 2
    if distance < exact:
        return start + distance
    far = exact + int(math.log(distance / exact) / math.log(128 / exact) * (count - exact))
    return start + min(far, count - 1)


def attend(
    p: dict[str, np.ndarray], place: str, x: np.ndarray, of: np.ndarray, bias: np.ndarray | float = 0.0
) -> np.ndarray:
    """Dot-product attention without a scale (T5 keeps it in the initialisation)."""
    q, k, v = (
        (y @ p[f"{place}/{n}/kernel"]).reshape(len(y), HEADS, HEAD).swapaxes(0, 1)
        for n, y in (("query", x), ("key", of), ("value", of))
    )
    scores = q @ k.swapaxes(1, 2) + bias
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return (weights @ v).swapaxes(0, 1).reshape(len(x), -1) @ p[f"{place}/out/kernel"]


def mlp(p: dict[str, np.ndarray], place: str, x: np.ndarray) -> np.ndarray:
    x = norm(x, p[f"{place}/pre_mlp_layer_norm/scale"])
    gate = x @ p[f"{place}/mlp/wi_0/kernel"]
    gate = 0.5 * gate * (1 + np.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)))
    return (gate * (x @ p[f"{place}/mlp/wi_1/kernel"])) @ p[f"{place}/mlp/wo/kernel"]


def position_bias(p: dict[str, np.ndarray], side: str, length: int) -> np.ndarray:
    table = p[f"{side}/relpos_bias/rel_embedding"]
    both = side == "encoder"
    bias = np.array([[table[:, bucket(k - q, both)] for k in range(length)] for q in range(length)])
    if not both:
        bias = bias + np.triu(np.full((length, length), -1e9), 1)[:, :, None]
    return bias.transpose(2, 0, 1)


def logits(p: dict[str, np.ndarray], source: list[int], target: list[int]) -> np.ndarray:
    """T5 1.1: pre-norm blocks, one position bias for all layers of a side, logits by a matrix of their own."""
    p = {n: a.astype(np.float64) for n, a in p.items()}
    x = p["token_embedder/embedding"][source]
    bias = position_bias(p, "encoder", len(source))
    for i in range(2):
        place = f"encoder/layers_{i}"
        y = norm(x, p[f"{place}/pre_attention_layer_norm/scale"])
        x = x + attend(p, f"{place}/attention", y, y, bias)
        x = x + mlp(p, place, x)
    memory = norm(x, p["encoder/encoder_norm/scale"])
    x = p["token_embedder/embedding"][target]
    place = "decoder/layers_0"
    y = norm(x, p[f"{place}/pre_self_attention_layer_norm/scale"])
    x = x + attend(p, f"{place}/self_attention", y, y, position_bias(p, "decoder", len(target)))
    y = norm(x, p[f"{place}/pre_cross_attention_layer_norm/scale"])
    x = x + attend(p, f"{place}/encoder_decoder_attention", y, memory)
    x = x + mlp(p, place, x)
    return norm(x, p["decoder/decoder_norm/scale"]) @ p["decoder/logits_dense/kernel"]


@pytest.mark.parametrize("with_gin", [True, False])
def test_logits_are_those_of_the_network_that_was_written(tmp_path: Path, with_gin: bool) -> None:
    from transformers import T5ForConditionalGeneration

    arrays = parameters()
    inline = ("encoder/encoder_norm/scale", "decoder/relpos_bias/rel_embedding")
    checkpoint = write(tmp_path / "checkpoint_7", arrays, inline)
    (tmp_path / "model.gin").write_text(GIN)
    words = ["--gin", str(tmp_path / "model.gin")] if with_gin else []
    assert main(["import-t5x", str(checkpoint), "--to", str(tmp_path / "hf"), *words]) == 0
    model = T5ForConditionalGeneration.from_pretrained(tmp_path / "hf")
    source, target = [5, 9, 3, 3, 30, 1, *range(2, 30)], [0, 7, 8, 21, 39]
    with torch.no_grad():
        found = model(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([target])).logits[0]
    np.testing.assert_allclose(found.numpy(), logits(arrays, source, target), atol=2e-5)


def test_with_a_tokenizer_it_is_a_policy(tmp_path: Path) -> None:
    word_tokenizer().save_pretrained(str(tmp_path / "tokenizer"))
    words = ["--to", str(tmp_path / "hf"), "--tokenizer", str(tmp_path / "tokenizer")]
    assert main(["import-t5x", str(write(tmp_path / "c", parameters())), *words]) == 0
    policy = Policy.load(tmp_path / "hf", response_tokens=4)
    [[answer]] = policy.sample([Prompt("p", "", (5, 9, 1))], 1, seed=0)
    assert 1 <= len(answer.ids) <= 4
    again = main(["import-t5x", str(tmp_path / "c"), *words])
    assert again == 2  # the folder is not empty any more


def test_bfloat16_is_read_as_float32(tmp_path: Path) -> None:
    arrays = parameters()
    found = read_arrays(write(tmp_path / "c", arrays, dtype="bfloat16"))
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], array, rtol=2**-8)


def test_kernels_that_keep_heads_apart_are_the_same(tmp_path: Path) -> None:
    arrays = parameters()
    apart = {
        n: a.reshape(WIDTH, HEADS, HEAD) if n.endswith(("query/kernel", "key/kernel", "value/kernel"))
        else a.reshape(HEADS, HEAD, WIDTH) if n.endswith("out/kernel") else a
        for n, a in arrays.items()
    }  # fmt: skip
    for name, made in (("together", arrays), ("apart", apart)):
        assert main(["import-t5x", str(write(tmp_path / f"c-{name}", made)), "--to", str(tmp_path / name)]) == 0
    one, other = (tmp_path / n / "model.safetensors" for n in ("together", "apart"))
    assert one.read_bytes() == other.read_bytes()


def test_gin_sizes_come_from_blocks_lines_and_macros(tmp_path: Path) -> None:
    path = tmp_path / "m.gin"
    path.write_text(GIN)
    assert gin_sizes(path) == {
        "vocab_size": 40, "d_model": 12, "num_heads": 3, "d_kv": 4, "d_ff": 20, "num_layers": 2,
        "num_decoder_layers": 1,
    }  # fmt: skip
    path.write_text("network.T5Config.emb_dim = 2048\n")
    assert gin_sizes(path) == {"d_model": 2048}


def without(name: str) -> dict[str, np.ndarray]:
    return {n: a for n, a in parameters().items() if n != name}


BAD: dict[str, tuple[Any, str, str]] = {
    "tied": (without("decoder/logits_dense/kernel"), GIN, "not a T5 1.1"),
    "missing": (without("decoder/layers_0/mlp/wo/kernel"), GIN, "no array `decoder/layers_0/mlp/wo/kernel`"),
    "left over": (
        parameters() | {"decoder/layers_0/adapter/kernel": np.zeros((2, 2), np.float32)},
        GIN,
        "unknown array",
    ),
    "other sizes": (parameters(), GIN.replace("emb_dim = 12", "emb_dim = 16"), "d_model is 16"),
    "not whole": (parameters(), GIN.replace("emb_dim = 12", "emb_dim = 'big'"), "not a positive whole number"),
    "no sizes": (parameters(), "x = 1\n", "binds none"),
    "no gin": (parameters(), "network.T5Config: (\n", "not a gin file"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_said_in_a_line(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arrays, gin, expected = BAD[case]
    (tmp_path / "m.gin").write_text(gin)
    checkpoint = write(tmp_path / "c", arrays)
    words = ["import-t5x", str(checkpoint), "--to", str(tmp_path / "hf"), "--gin", str(tmp_path / "m.gin")]
    assert main(words) == 2
    assert expected in complaint(capsys.readouterr().err)
    assert not (tmp_path / "hf").exists()


def test_no_array_is_read_from_outside_the_checkpoint(tmp_path: Path) -> None:
    write(tmp_path / "other", parameters())
    leaf = {"driver": "zarr", "kvstore": {"driver": "file", "path": "../other/target.token_embedder.embedding"}}
    (tmp_path / "c").mkdir()
    content = {"optimizer": {"target": {"token_embedder": {"embedding": leaf}}}}
    (tmp_path / "c" / "checkpoint").write_bytes(msgpack.packb(content))
    with pytest.raises(AligngapError, match="outside"):
        read_arrays(tmp_path / "c")


@pytest.mark.parametrize("content", [b"", b"junk", msgpack.packb({"optimizer": {}})])
def test_a_file_that_is_no_checkpoint_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "checkpoint").write_bytes(content)
    with pytest.raises(AligngapError, match="not a T5X checkpoint"):
        read_arrays(tmp_path)
    with pytest.raises(AligngapError, match="no file `checkpoint`"):
        read_arrays(tmp_path / "nowhere")
