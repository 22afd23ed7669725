"""Two folders of checkpoints as TRL's trainers leave them, small enough to try `aligngap measure` on in five minutes.

    cd examples/trl
    python checkpoints.py --out out/runs
    aligngap measure --reference out/runs/sft --prompts out/runs/prompts.txt --response-tokens 16 \\
        --policy 'online=out/runs/online-seed*' --policy 'offline=out/runs/offline-seed*' \\
        --judge sandbox_judge:prefer --kl 1.5

It fine-tunes a tiny Llama on the sandbox's responses (SFTTrainer), then trains it by DPOTrainer on the sandbox's pairs
and by OnlineDPOTrainer on responses of its own, for each seed, with a checkpoint every so many steps. Nothing of
aligngap runs while they train. Needs aligngap[trl].
"""

from __future__ import annotations

import argparse
from pathlib import Path


def main() -> None:
    """Train both arms for each seed from one reference, and write the prompts that both are to be measured on."""
    words = argparse.ArgumentParser(description="checkpoints of TRL's offline and online trainer")
    words.add_argument("--out", type=Path, required=True, help="folder of the reference, the runs and the prompts")
    words.add_argument("--seeds", type=int, default=5, help="runs of each arm (default: 5)")
    words.add_argument("--steps", type=int, default=100, help="optimiser steps of a run (default: 100)")
    words.add_argument("--every", type=int, default=20, help="steps from one checkpoint to the next (default: 20)")
    words.add_argument("--sft-steps", type=int, default=600, help="default: 600")
    args = words.parse_args()

    from confounds import fine_tuned, make_trainer, quiet_down  # with torch, for which --help need not wait

    from aligngap.judges.oracle import SandboxOracle
    from aligngap.tasks.sandbox import Sandbox

    quiet_down()
    task = Sandbox(train_pairs=4096)
    oracle, data = SandboxOracle(task, 0), task.load(0)
    sft = fine_tuned(data.train, 0, args.out / "sft", args.sft_steps)
    for seed in range(args.seeds):
        for arm in ("offline", "online"):
            run = args.out / f"{arm}-seed{seed}"
            trainer = make_trainer(arm, oracle, data.train, sft, run, args.steps, seed=seed, every=args.every)
            trainer.train()
            print(run, flush=True)
    prompts = dict.fromkeys(c.prompt for c in data.test)
    (args.out / "prompts.txt").write_text("\n".join(prompts) + "\n")


if __name__ == "__main__":
    main()
