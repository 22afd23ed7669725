"""The options of `aligngap measure` and `aligngap pick`; nothing heavy is imported for them."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_measure(to: argparse.ArgumentParser) -> None:
    """The options of `aligngap measure`."""
    add = to.add_argument
    add("--reference", required=True, help="what KL is measured from, your SFT model: a folder, adapter or hub name")
    add(
        "--policy", required=True, nargs="+", action="append", metavar="NAME=CHECKPOINTS",
        help="checkpoints of one policy: folders, adapters, a trainer's output folder, a pattern as "
        "'online=runs/online-seed*/checkpoint-*', or hub names; may be repeated",
    )  # fmt: skip
    add("--prompts", required=True, help="a file of prompts: .txt (one a line), .jsonl, .csv, .parquet, or preferences")
    add("--prompt-column", help="the column that holds the prompts (default: one of the usual names)")
    add(
        "--judge", action="append", default=[], metavar="KIND",
        help="who compares with the reference: 'reward-model: {path: FOLDER}', 'endpoint: {…}', module:function; the "
        "second one is a check on the first (default: nobody, and only KL is measured)",
    )  # fmt: skip
    add("--base", help="the model that adapters were trained on, where it no longer lies where they say")
    add("--count", type=int, default=256, help="prompts, drawn by the seed if the file has more (default: 256)")
    add(
        "--prompt-tokens", type=int,
        help="longer prompts are left out (default: 512, or what the model reads beside a response)",
    )  # fmt: skip
    add("--response-tokens", type=int, default=128, help="longest response (default: 128)")
    chat = to.add_mutually_exclusive_group()
    chat.add_argument("--chat", action="store_true", default=None, help="the chat template writes the prompts")
    chat.add_argument("--plain", dest="chat", action="store_false", help="prompts are plain text, template or not")
    add("--dtype", choices=["float32", "bfloat16"], default="float32", help="of matrix products (default: float32)")
    add("--forward", type=int, help="prompts behind the forward KL; 0: leave it out (default: half of them)")
    add(
        "--reference-samples", type=int, metavar="N",
        help="further samples of the reference to a quarter of the prompts, behind rho and efficiency, which takes "
        "about 150 e^KL of them; 0: leave both out (default: 4, and 0 where the judge is an endpoint)",
    )  # fmt: skip
    add("--kl", type=float, nargs="+", metavar="NATS", help="KLs at which policies are compared (default: 1 2 4 8)")
    add("--compare", nargs=2, metavar="NAME", help="the two policies that the report is about (default: the first two)")
    add("--seed", type=int, default=0, help="of the drawing of prompts and the sampling (default: 0)")
    add("--batch", type=int, default=64, help="responses at once (default: 64)")
    add("--samples", type=int, default=8, help="responses kept as text, a checkpoint (default: 8)")
    add("--name", default="measured", help="what the measurement is called (default: measured)")
    add("--out", type=Path, help="output folder (default: out/NAME)")
    add("--store", type=Path, help="folder of shared artifacts (default: store/ beside the outputs)")
    add("--workers", type=int, help="worker processes (default: one on a GPU, else as cores and memory allow)")
    add("--threads", type=int, help="threads per worker on a CPU (default: the cores shared among the workers)")
    add("--device", default="auto", help="cpu, cuda, cuda:1 … (default: a GPU if there is one)")
    add("--plan", action="store_true", help="only say what would be measured, and what is there already")


def add_pick(to: argparse.ArgumentParser) -> None:
    """The options of `aligngap pick`."""
    to.add_argument("out", type=Path, help="output folder of `aligngap measure`, or of a run")
    which = to.add_mutually_exclusive_group(required=True)
    which.add_argument("--kl", type=float, metavar="NATS", help="the most KL from the reference that you accept")
    which.add_argument("--best", action="store_true", help="the highest win rate, at whatever KL")
    to.add_argument("--policy", metavar="NAME", help="only checkpoints of this policy")
    to.add_argument("--to", type=Path, help="also write it as a Hugging Face folder; must not exist or be empty")
    to.add_argument(
        "--store", type=Path, help="of a run: folder of shared artifacts (default: store/ beside the outputs)"
    )
