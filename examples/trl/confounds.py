"""TRL's offline and online trainer on one chart, at equal KL: what their defaults change, and what is left of it.

    python examples/trl/confounds.py --out out/trl --arms offline online
    aligngap report out/trl

A tiny Llama is fine-tuned (SFTTrainer) on the sandbox's responses, then trained by DPOTrainer on its pairs and by
OnlineDPOTrainer on its own responses. The labels of both are the sandbox's true preference, and so are the win rates:
the arms differ in who wrote the responses, and in nothing else but what the table ARMS says. FrontierCallback measures
them all on the same prompts. A seed has a world, a reference and runs of its own. Needs aligngap[trl].
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from datasets.utils.logging import disable_progress_bar as disable_progress_bars
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    PrinterCallback,
    set_seed,
)
from transformers.utils import logging
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer
from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

from aligngap.integrations.trl import FrontierCallback
from aligngap.judges.oracle import SandboxOracle
from aligngap.tasks.sandbox import VOCABULARY, Sandbox
from aligngap.types import Comparison

#: DPOTrainer's default learning rate, 1e-6, is for models of billions of weights; this one has a tenth of a million
SCALE = 500
RATE = 1e-6 * SCALE
#: tokens of the longest response of the sandbox, EOS included
TOKENS = 16
ONLINE: dict[str, Any] = {"temperature": 1.0, "max_new_tokens": TOKENS, "loss_type": "sigmoid"}
#: arm -> (trainer, what it is told beyond TOLD)
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "offline": ("dpo", {}),
    "online": ("online", ONLINE),
    # each in turn as OnlineDPOConfig has it where DPOConfig has not
    "online half rate": ("online", ONLINE | {"learning_rate": RATE / 2}),  # 5e-7 for 1e-6
    "online T=0.9": ("online", ONLINE | {"temperature": 0.9}),
    "online cut": ("online", ONLINE | {"max_new_tokens": 8}),  # a limit below the data's length, as 64 is for 1024
    "online defaults": (
        "online", ONLINE | {"learning_rate": RATE / 2, "temperature": 0.9, "max_new_tokens": 8}
    ),
    # IPO is over the mean of a response's tokens in one trainer and over their sum in the other
    "offline IPO": ("dpo", {"loss_type": ["ipo"]}),
    "online IPO": ("online", ONLINE | {"loss_type": "ipo"}),
}  # fmt: skip
BATCH = 32


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word of the sandbox."""
    special = ["<pad>", "</s>", "<unk>"]
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*special, *VOCABULARY])}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.add_special_tokens(special)
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", padding_side="left"
    )


def told(folder: Path, steps: int, seed: int) -> dict[str, Any]:
    """What every trainer is told: the same work, in float32, nothing saved."""
    return {
        "output_dir": str(folder), "max_steps": steps, "per_device_train_batch_size": BATCH, "seed": seed,
        "bf16": False, "use_cpu": True, "gradient_checkpointing": False, "save_strategy": "no", "report_to": "none",
        "lr_scheduler_type": "constant", "logging_steps": 5, "disable_tqdm": True,
    }  # fmt: skip


def fine_tuned(pairs: Sequence[Comparison], seed: int, path: Path, steps: int) -> Path:
    """The reference: a folder with a tiny Llama that SFTTrainer has trained on both responses of every pair."""
    if (path / "config.json").exists():
        return path
    set_seed(seed)
    tokenizer = word_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=64, tie_word_embeddings=True, pad_token_id=0, eos_token_id=1,
        bos_token_id=None,
    )  # fmt: skip
    rows = [{"prompt": c.prompt, "completion": f" {text}"} for c in pairs for text in (c.chosen, c.rejected)]
    args = SFTConfig(**told(path, steps, seed) | {"learning_rate": 3e-3, "lr_scheduler_type": "linear"})
    trainer = SFTTrainer(
        LlamaForCausalLM(config), args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trainer.save_model(str(path))
    return path


def reward(oracle: SandboxOracle, end: int) -> Callable[..., list[float]]:
    """The sandbox's true reward as TRL asks for it, of the same preference by which the pairs are labelled."""

    def asked(prompts: list[str], completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        ended = np.array([end in ids for ids in completion_ids])
        return [float(r) for r in oracle.world.reward(prompts, completions, ended)]

    return asked


def make_trainer(
    arm: str,
    oracle: SandboxOracle,
    pairs: Sequence[Comparison],
    sft: Path,
    folder: Path,
    steps: int,
    *,
    seed: int,
    every: int = 0,
) -> Any:
    """TRL's trainer of an arm; it saves a checkpoint `every` so many steps, if that is not 0."""
    kind, own = ARMS[arm]
    tokenizer = PreTrainedTokenizerFast.from_pretrained(sft)
    rows = [{"prompt": c.prompt, "chosen": f" {c.chosen}", "rejected": f" {c.rejected}"} for c in pairs]
    settings = told(folder, steps, seed) | {"learning_rate": RATE, "beta": 0.1} | own
    if every:
        settings |= {"save_strategy": "steps", "save_steps": every, "save_only_model": True}
    model = AutoModelForCausalLM.from_pretrained(sft)
    trainer: Any
    if kind == "dpo":
        data = Dataset.from_list(rows)
        trainer = DPOTrainer(model, args=DPOConfig(**settings), train_dataset=data, processing_class=tokenizer)
    else:
        trainer = OnlineDPOTrainer(
            model, reward_funcs=reward(oracle, tokenizer.eos_token_id), args=OnlineDPOConfig(**settings),
            train_dataset=Dataset.from_list([{"prompt": r["prompt"]} for r in rows]), processing_class=tokenizer,
        )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    return trainer


def train(
    arm: str,
    oracle: SandboxOracle,
    pairs: Sequence[Comparison],
    seed: int,
    out: Path,
    sft: Path,
    steps: int,
    count: int,
) -> dict[str, float]:
    """One run of one arm, measured on the way; what it reached."""
    trainer = make_trainer(arm, oracle, pairs, sft, out / "trainer", steps, seed=seed)
    prompts = list(dict.fromkeys(c.prompt for c in pairs))[:count]
    callback = FrontierCallback(
        trainer, out, prompts, [oracle], arm=arm, seed=seed, config="", compare=("online", "offline"),
        every=[s for s in (4, 8, 16, 32, 64, 125, 250, 500) if s < steps], count=count, response_tokens=TOKENS,
    )  # fmt: skip
    trainer.add_callback(callback)
    trainer.train()
    found = [row for row in trainer.state.log_history if "kl_nats" in row][-1]
    said = [row["objective/kl"] for row in trainer.state.log_history if "objective/kl" in row]
    return found | {"objective/kl": said[-1] if said else float("nan")}


def quiet_down() -> None:
    """One thread, and no bars or warnings between the lines."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    disable_progress_bars()


def main() -> None:
    """Train the arms for each seed, one after another."""
    words = argparse.ArgumentParser(description="TRL's offline and online trainer on one chart, at equal KL")
    words.add_argument("--out", type=Path, required=True, help="output folder, for `aligngap report`")
    words.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="default: all")
    words.add_argument("--seeds", type=int, default=3, help="default: 3")
    words.add_argument("--first-seed", type=int, default=0, help="default: 0")
    words.add_argument("--steps", type=int, default=125, help="optimiser steps of a run (default: 125)")
    words.add_argument("--sft-steps", type=int, default=600, help="default: 600")
    words.add_argument("--prompts", type=int, default=256, help="measured prompts (default: 256)")
    args = words.parse_args()
    quiet_down()
    task = Sandbox(train_pairs=max(args.steps, 8) * BATCH)
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        oracle, pairs = SandboxOracle(task, seed), task.load(seed).train
        sft = fine_tuned(pairs, seed, args.out / f"sft-{seed}", args.sft_steps)
        for arm in args.arms:
            began = time.process_time()
            found = train(arm, oracle, pairs, seed, args.out, sft, args.steps, args.prompts)
            print(
                f"seed {seed}, {arm}: {found['kl_nats']:.2f} nats (TRL's objective/kl {found['objective/kl']:.2f}), "
                f"win rate {found['win_rate']:.3f}, {time.process_time() - began:.0f} s of CPU time", flush=True,
            )  # fmt: skip


if __name__ == "__main__":
    main()
