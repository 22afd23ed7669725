"""Memory of one optimiser step at the paper's sizes, computed, not measured: `python benchmarks/memory.py`.

Parameters are counted exactly, on models without storage. Activations follow from the shapes:

- gradient checkpointing keeps one hidden state per layer, B x T x d, and recomputes one layer at a time; that layer's
  peak is its attention scores (scores, probabilities and their gradients: 4 x B x heads x T x T') and its gated MLP
  (4 x B x T x d_ff), beside the four projections;
- log-probabilities need logits, log-softmax and their gradient, 3 x rows x vocabulary in float32, in chunks of at most
  LOGITS_BUDGET elements.

The prompt is encoded once for both responses; chosen and rejected are one decoder batch of 2 B rows. Weights and
gradients are float32 with forward passes in bfloat16, the reference is kept in bfloat16, Adafactor's factored moments
are left out as below one part in a hundred, and so are the allocator's gaps: leave 10% of the card free.
"""

from __future__ import annotations

import torch
from transformers import T5Config, T5ForConditionalGeneration

from aligngap.models.backbone import LOGITS_BUDGET

SIZES = {
    "Base": {"d_model": 768, "d_ff": 2048, "num_layers": 12, "num_heads": 12},
    "Large": {"d_model": 1024, "d_ff": 2816, "num_layers": 24, "num_heads": 16},
    "XL": {"d_model": 2048, "d_ff": 5120, "num_layers": 24, "num_heads": 32},
    "XXL": {"d_model": 4096, "d_ff": 10240, "num_layers": 24, "num_heads": 64},
}
ROWS = [
    ("Base", 32, 512, 64), ("Large", 32, 1024, 128), ("Large", 8, 1024, 128), ("XL", 4, 1024, 128),
    ("XXL", 1, 1024, 128),
]  # fmt: skip
VOCABULARY = 32128
GB = 1e9


def t5(size: str) -> T5Config:
    """T5 1.1 of a size."""
    return T5Config(
        vocab_size=VOCABULARY, d_kv=64, feed_forward_proj="gated-gelu", tie_word_embeddings=False, **SIZES[size]
    )  # type: ignore[arg-type]


def parameters(size: str) -> int:
    """Of a T5 1.1: transformers makes a new one with one matrix for embedding and logits, the checkpoints have two."""
    with torch.device("meta"):
        made = sum(p.numel() for p in T5ForConditionalGeneration(t5(size)).parameters())
    return made + VOCABULARY * SIZES[size]["d_model"]


def activations(size: str, pairs: int, prompt: int, response: int, *, checkpointing: bool) -> float:
    """Bytes of activations at the peak of a step on `pairs` pairs; bfloat16 but for the logits."""
    s = SIZES[size]
    d, ff, layers, heads = s["d_model"], s["d_ff"], s["num_layers"], s["num_heads"]
    inner = 64 * heads
    rows = 2 * pairs

    def layer(n: int, t: int, keys: list[int]) -> float:
        attention = sum(4 * n * heads * t * k + n * inner * (2 * t + 2 * k) for k in keys)
        return 2.0 * (attention + 4 * n * t * ff + 3 * n * t * d)

    encoder, decoder = layer(pairs, prompt, [prompt]), layer(rows, response, [response, prompt])
    kept = 2.0 * layers * d * (pairs * prompt + rows * response)
    body = kept + max(encoder, decoder) if checkpointing else layers * (encoder + decoder)
    return body + 3 * 4.0 * min(rows * response * VOCABULARY, LOGITS_BUDGET)


def table() -> str:
    lines = [
        "| policy | parameters | pairs per backward pass | prompt / response tokens | weights, gradients, reference "
        "| activations, checkpointed | step, Adafactor | step, AdamW | activations, not checkpointed |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for size, pairs, prompt, response in ROWS:
        n = parameters(size)
        fixed = n * (4 + 4 + 2)
        checked = activations(size, pairs, prompt, response, checkpointing=True)
        plain = activations(size, pairs, prompt, response, checkpointing=False)
        cells = [fixed, checked, fixed + checked, fixed + checked + 8 * n, plain]
        numbers = " | ".join(f"{c / GB:.1f} GB" for c in cells)
        lines.append(f"| T5 1.1 {size} | {n / 1e6:,.0f} M | {pairs} | {prompt} / {response} | {numbers} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
