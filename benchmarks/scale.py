"""What runs would cost on large GPUs, computed, not measured: `python benchmarks/scale.py [--mfu .3] [--decode .3]`.

Floating-point operations (two per multiply-add) follow from the shapes, and count what the code does:

- a pair's gradient: forward and twice that backward, over the prompt once and both responses; logits at response
  positions only (under `--parallel fsdp` or gradient checkpointing a decoder-only policy reads the prompt twice, which
  is not counted here);
- the reference: one such forward; an offline arm stores it with the data, an online one needs it at each step;
- sampling: the prompt once for both responses, then a forward a token; every token reads the decoder's weights, the
  output matrix and the caches of all responses from memory, and takes the longer of that and of its arithmetic;
- judging: a T5 Large preference model, both orders of a pair in one pass, the prompt encoded once.

Seconds are operations over `mfu` x the card's matrix peak, or bytes over `decode` x its bandwidth. Bytes of a run's
state: float32 weights, gradients and optimiser moments (AdamW 16 bytes a parameter, Adafactor about 8), a bfloat16
reference; activations are in `memory.py`.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from memory import SIZES, VOCABULARY, parameters

PEAK, BANDWIDTH, CARD = 989e12, 3.35e12, 80e9  # H100 SXM, from its data sheet: dense bfloat16, HBM3
RESULT_STEPS, OFFLINE_STEPS, OFFLINE_RUNS = 4_000, 20_000, 9  # the paper's sweep: 3 betas x 3 learning rates


@dataclass(frozen=True)
class Model:
    """What the cost of a policy follows from: its shape, and the pairs and tokens of a step."""

    name: str
    parameters: float
    encoder: bool
    layers: int
    width: int
    inner: int
    kv: int
    ff: int
    vocabulary: int
    batch: int
    prompt: int
    response: int

    @property
    def block(self) -> float:
        """Weights of a layer that a token passes in its own stack: queries, outputs, keys, values and a gated MLP."""
        return 2 * self.width * self.inner + 2 * self.width * self.kv + 3 * self.width * self.ff

    @property
    def cross(self) -> float:
        """Weights of cross-attention that a response token passes (queries and outputs)."""
        return 2.0 * self.width * self.inner if self.encoder else 0.0

    def attention(self, tokens: float, keys: float) -> float:
        """Scores and weighted sums of one layer."""
        return 4.0 * tokens * keys * self.inner

    def read(self) -> float:
        """Operations of a forward pass over one prompt."""
        return self.layers * (2 * self.block * self.prompt + self.attention(self.prompt, self.prompt))

    def answer(self, tokens: float) -> float:
        """Operations of a forward pass over `tokens` response tokens whose prompt was read."""
        own = 2 * (self.block + self.cross) * tokens + self.attention(tokens, tokens / 2 + self.prompt)
        keys = 2 * 2 * self.width * self.kv * self.prompt if self.encoder else 0.0  # cross-attention's, of the prompt
        return self.layers * (own + keys) + 2.0 * self.width * self.vocabulary * tokens

    def forward(self) -> float:
        """Operations of a forward pass over a pair, as the training step makes it."""
        return self.read() + 2 * self.answer(self.response)

    def decode_bytes(self) -> float:
        """Bytes read for one token of each of the 2 x batch responses, in bfloat16: weights and caches."""
        weights = self.layers * (self.block + self.cross) + self.width * self.vocabulary
        cached = 2 * self.batch * self.layers * 2 * self.kv * (self.prompt + self.response / 2)
        return 2.0 * (weights + cached)

    def state(self, optimizer: float) -> float:
        """Bytes of weights, gradients, moments and reference."""
        return self.parameters * (8 + optimizer + 2)


def t5(size: str, batch: int, prompt: int = 1024, response: int = 128) -> Model:
    s = SIZES[size]
    inner = 64 * s["num_heads"]
    return Model(
        f"T5 1.1 {size}", parameters(size), True, s["num_layers"], s["d_model"], inner, inner, s["d_ff"], VOCABULARY,
        batch, prompt, response,
    )  # fmt: skip


JUDGE = t5("Large", 32)
#: the paper's batches for T5; the decoder-only shape is that of Llama 3 8B
MODELS = [
    t5("Large", 32), t5("XL", 16), t5("XXL", 8),
    Model("decoder-only 8B", 8.03e9, False, 32, 4096, 4096, 1024, 14336, 128256, 32, 1024, 128),
]  # fmt: skip


@dataclass(frozen=True)
class Seconds:
    """Of one step, on one card."""

    sampling: float
    judging: float
    reference: float
    gradient: float

    @property
    def online(self) -> float:
        return self.sampling + self.judging + self.reference + self.gradient


def step_seconds(m: Model, mfu: float, decode: float) -> Seconds:
    peak = mfu * PEAK
    one_token = 2 * m.batch * m.answer(m.response) / m.response / peak
    tokens = m.response * max(one_token, m.decode_bytes() / (decode * BANDWIDTH))
    judged = m.batch * (JUDGE.read() + 2 * JUDGE.answer(2 * m.response)) / peak
    return Seconds(
        m.batch * m.read() / peak + tokens, judged, m.batch * m.forward() / peak, 3 * m.batch * m.forward() / peak
    )


def steps_table(mfu: float, decode: float) -> list[str]:
    out = [
        "| policy | pairs a step | PFLOP a step (gradient) | sampling | judging | reference | gradient | online step "
        "| state, AdamW | state, Adafactor |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for m in MODELS:
        s = step_seconds(m, mfu, decode)
        parts = " | ".join(f"{x:.2f} s" for x in (s.sampling, s.judging, s.reference, s.gradient, s.online))
        state = " | ".join(f"{m.state(o) / 1e9:.0f} GB{'' if m.state(o) < 0.7 * CARD else ' (†)'}" for o in (8.0, 0.0))
        out.append(f"| {m.name} | {m.batch} | {3 * m.batch * m.forward() / 1e15:.2f} | {parts} | {state} |")
    return out


def study_table(mfu: float, decode: float) -> list[str]:
    """One online run against the paper's pooled offline sweep, runs layout over cards; three seeds."""
    out = [
        "| policy | card-hours, one online run | one offline run | study, three seeds | on 1 card | 8 | 64 |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for m in MODELS:
        s = step_seconds(m, mfu, decode)
        online, offline = RESULT_STEPS * s.online / 3600, OFFLINE_STEPS * s.gradient / 3600
        whole = 3 * (online + OFFLINE_RUNS * offline)
        longest = max(online, offline)
        days = " | ".join(f"{max(whole / cards, longest) / 24:.1f} days" for cards in (1, 8, 64))
        out.append(f"| {m.name} | {online:.1f} | {offline:.1f} | {whole:,.0f} | {days} |")
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mfu", type=float, default=0.3, help="share of the matrix peak that a step reaches")
    parser.add_argument("--decode", type=float, default=0.3, help="share of the bandwidth that decoding reaches")
    args = parser.parse_args()
    print("\n".join([*steps_table(args.mfu, args.decode), "", *study_table(args.mfu, args.decode)]))


if __name__ == "__main__":
    main()
