"""What measuring a checkpoint costs beside what it cannot do without: `python benchmarks/measure.py [--response 32]`.

A reference and a checkpoint of SmolLM2-135M's size (Llama, 30 layers, 576 wide, 49,152 tokens), drawn at random, are
written to a folder. What cannot be done without is to sample the checkpoint on 64 prompts and to read the samples once
with each model. Against that stands all of `aligngap measure`'s work on one checkpoint, in this process: its files are
hashed, it is loaded, sampled, its KL and forward KL are taken, a judge that costs nothing compares it in both orders,
and everything is stored. The ratio is of CPU seconds on one thread, which a busy machine disturbs less than wall time.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import torch

os.environ["ALIGNGAP_CACHE"] = tempfile.mkdtemp()  # so that nothing is known of the files before
sys.path.insert(0, str(Path(__file__).parent))

from machine import versions, words

from aligngap.execute.worker import make
from aligngap.instrument.folders import find_checkpoints
from aligngap.instrument.judging import parse_judge
from aligngap.instrument.survey import Setting, plan_survey
from aligngap.models.batch import collate
from aligngap.models.checkpoint import open_policy
from aligngap.models.loading import build_model
from aligngap.models.policy import Policy
from aligngap.models.tokenizer import stand_in
from aligngap.pipeline.context import Context
from aligngap.seeding import derive
from aligngap.settings import ModelSpec
from aligngap.storage.store import Store

SIZES = {
    "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True, "max_position_embeddings": 2048,
}  # fmt: skip
PROMPTS = 64


def prefer(prompts: list[str], a: list[str], b: list[str]) -> list[float]:
    """A judge that costs nothing."""
    return [0.5] * len(prompts)


def write_models(folder: Path) -> None:
    """A reference, and a checkpoint a little beside it."""
    tokenizer = stand_in()
    spec = ModelSpec(model_type="llama", config={k: v for k, v in SIZES.items() if k != "vocab_size"})
    model = build_model(spec, tokenizer, 0)
    model.resize_token_embeddings(SIZES["vocab_size"])
    Policy(model, tokenizer, response_tokens=1).save(folder / "sft")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(1e-3 * torch.randn(weight.shape, generator=generator))
    Policy(model, tokenizer, response_tokens=1).save(folder / "run" / "checkpoint-1")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--response", type=int, default=32, help="tokens of each response")
    parser.add_argument("--prompt", type=int, default=32, help="tokens of each prompt")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_models(folder)
        generator = torch.Generator().manual_seed(2)
        drawn = torch.randint(0, 8, (PROMPTS, args.prompt), generator=generator).tolist()
        (folder / "p.txt").write_text("\n".join(" ".join("abcdefgh"[i] for i in row) for row in drawn))
        setting = Setting(
            str(folder / "sft"), str(folder / "p.txt"), judges=[parse_judge("measure:prefer")], count=PROMPTS,
            response_tokens=args.response, reference_samples=0,
        )  # fmt: skip
        survey = plan_survey("measured", setting, find_checkpoints([[f"dpo={folder / 'run'}"]]))
        store = Store(folder / "store")
        store.prepare()
        ctx = Context(store)
        for step in (survey.prompts, survey.start):  # once for all checkpoints
            make(step, ctx)
        prompts, reference = survey.prompts.prompts(ctx), survey.prompts.policy(ctx)
        (checkpoint,) = survey.readings.values()
        (verdict,) = survey.verdicts.values()
        policy = open_policy(str(folder / "run" / "checkpoint-1"), reference)
        bare = []
        began = time.process_time()
        own = [r[0] for r in policy.sample(prompts, 1, derive(0, "measurement"), batch_size=64)]
        bare.append(time.process_time() - began)
        with torch.no_grad():
            for model in (policy, reference):
                began = time.process_time()
                model.logps(collate([p.ids for p in prompts], [r.ids for r in own]))
                bare.append(time.process_time() - began)
        del policy
        began = time.process_time()
        make(checkpoint, ctx)
        read = time.process_time() - began
        began = time.process_time()
        make(verdict, ctx)
        judged = time.process_time() - began
        assert [r.ids for r in checkpoint.read(ctx).responses] == [r.ids for r in own]  # the same work was done
    sampling, *passes = bare
    print(f"{words(1)}; {versions('torch', 'transformers')}")
    print(
        f"{PROMPTS} prompts of {args.prompt} tokens, responses of at most {args.response}, CPU seconds on one thread:"
    )
    print(f"  sampling {sampling:.1f}, forward passes {passes[0]:.1f} and {passes[1]:.1f}: {sum(bare):.1f} in all")
    print(f"  aligngap measure, one checkpoint: {read:.1f} for the reading, {judged:.2f} for the verdict")
    print(f"  ratio {(read + judged) / sum(bare):.2f}")


if __name__ == "__main__":
    main()
