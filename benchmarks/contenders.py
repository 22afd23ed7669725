"""What is compared: the same model, data, loss and optimiser in aligngap, TRL and a plain transformers loop.

`python benchmarks/contenders.py NAME` runs one of them under `meter.Meter`; `speed.py` does that. All start from the
same weights (a function of a seed), see the same pairs in the same order, and take AdamW steps at a constant rate with
gradients clipped at 1. Prompts have 64 tokens and responses 32, EOS included; T5's have 512 and 64.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from meter import Meter, quiet_libraries
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from aligngap.fit import Trainer, fit, pair_objective
from aligngap.losses import IPO
from aligngap.models.loading import build_model
from aligngap.models.pair_logps import with_reference
from aligngap.models.policy import Policy
from aligngap.settings import ModelSpec, Optimization
from aligngap.streams import OnPolicy, Replay
from aligngap.types import Judgement, Pair, Prompt, Response

SPECIAL = ("<pad>", "</s>", "<unk>")
VOCABULARY = 2048
LLAMA = ModelSpec(
    model_type="llama",
    config={
        "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 4, "max_position_embeddings": 256, "tie_word_embeddings": True,
    },
)  # fmt: skip
T5 = ModelSpec(
    model_type="t5",
    config={"d_model": 128, "d_kv": 32, "d_ff": 512, "num_layers": 3, "num_decoder_layers": 3, "num_heads": 4},
)
BATCH, PROMPT, RESPONSE = 32, 64, 32
T5_BATCH, T5_PROMPT, T5_RESPONSE = 8, 512, 64
BETA, RATE, BATCHES = 0.1, 1e-5, 64
DEVICE = "cpu"  # `gpu.py` sets this, and larger models, batches and texts


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, so that text and token ids are the same thing for every library."""
    words = [*SPECIAL, *(f"w{i}" for i in range(VOCABULARY - len(SPECIAL)))]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(list(SPECIAL))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", padding_side="left"
    )


def text_of(ids: Sequence[int]) -> str:
    return " ".join(f"w{i - len(SPECIAL)}" for i in ids if i >= len(SPECIAL))


def make_pairs(count: int, prompt_tokens: int, response_tokens: int) -> list[Pair]:
    """Random pairs, responses closed by EOS: what the tokens are does not matter to how long a step takes."""
    rng = np.random.default_rng(0)
    pairs = []
    for number in range(count):
        ids = rng.integers(len(SPECIAL), VOCABULARY, prompt_tokens + 2 * (response_tokens - 1)).tolist()
        prompt = Prompt(str(number), text_of(ids[:prompt_tokens]), tuple(ids[:prompt_tokens]))
        sides = ids[prompt_tokens : prompt_tokens + response_tokens - 1], ids[prompt_tokens + response_tokens - 1 :]
        chosen, rejected = (Response((*side, 1), True, text_of(side)) for side in sides)
        pairs.append(Pair(prompt, chosen, rejected, 1.0, 1.0, 0.0, "data"))
    return pairs


def make_policy(spec: ModelSpec | None = None, response_tokens: int | None = None) -> Policy:
    tokenizer, spec = word_tokenizer(), spec or LLAMA
    model = build_model(spec, tokenizer, 0).to(DEVICE)
    return Policy(model, tokenizer, response_tokens=response_tokens or RESPONSE, key="benchmark", spec=spec)


class FreeJudge:
    """A judge that costs nothing to speak of: the response with the larger sum of word numbers wins."""

    key = "free"

    def judge(self, prompts: Sequence[Prompt], a: Sequence[Response], b: Sequence[Response]) -> Judgement:
        first, second = (np.array([self.score(r.text) for r in side]) for side in (a, b))
        forward = (np.sign(first - second) + 1.0) / 2.0
        return Judgement(forward, 1.0 - forward)

    @staticmethod
    def score(text: str) -> int:
        return sum(int(word[1:]) for word in text.split())


def preference_model() -> Any:
    """A pairwise preference model with a backbone of the policy's size; it judges both orders."""
    from aligngap.judges.preference_model import PreferenceModel

    tokenizer = word_tokenizer()
    return PreferenceModel(build_model(LLAMA, tokenizer, 1), tokenizer, key="pairwise")


def recipe(batch: int) -> Optimization:
    return Optimization(steps=10_000_000, batch=batch, learning_rate=RATE, schedule="constant")


# ------------------------------------------------------------------------------------------------------- aligngap


class Timed:
    """The policy as a stream sees it, and a judge, with the time they take."""

    def __init__(self, meter: Meter, policy: Policy, judge: Any = None) -> None:
        self.meter, self.policy, self.judged_by, self.key = meter, policy, judge, policy.key

    def sample(self, prompts: Sequence[Prompt], n: int, seed: int) -> list[list[Response]]:
        with self.meter.part("sampling"):
            return self.policy.sample(prompts, n, seed)

    def judge(self, prompts: Sequence[Prompt], a: Sequence[Response], b: Sequence[Response]) -> Judgement:
        with self.meter.part("judging"):
            found: Judgement = self.judged_by.judge(prompts, a, b)
            return found


def stored(policy: Policy, pairs: Sequence[Pair], batch: int) -> list[Pair]:
    """Pairs with the reference's log-probabilities, as a study stores them once."""
    return [p for i in range(0, len(pairs), batch) for p in with_reference(policy, pairs[i : i + batch])]


def train(meter: Meter, policy: Policy, stream: Any, batch: int, loss: Any, sampler: Any = None) -> None:
    reference = policy.copy("reference")

    def prepare(items: Sequence[Pair]) -> list[Pair]:
        with meter.part("reference"):
            return with_reference(reference, items)

    objective = pair_objective(policy, loss)

    def timed(items: Sequence[Any]) -> Any:
        with meter.part("forward"):
            return objective(items)

    meter.start(parameters=policy.model.num_parameters())
    for step in fit(Trainer(policy.model, recipe(batch), 0), stream, timed, sampler, prepare):
        meter.update(loss=step.loss, tokens=sum(len(p.chosen.ids) + len(p.rejected.ids) for p in step.items))


def aligngap_offline(meter: Meter, precomputed: bool = True) -> None:
    policy, pairs = make_policy(), make_pairs(BATCHES * BATCH, PROMPT, RESPONSE)
    pairs = stored(policy, pairs, BATCH) if precomputed else pairs
    stream = Replay(pairs, order="in-order", batch=BATCH, seed=0)
    # TRL's form of the loss, so that the losses of the two can be compared number by number.
    train(meter, policy, stream, BATCH, IPO(beta=BETA, form="target", reduction="mean"))


def aligngap_online(meter: Meter, judge: Callable[[], Any] = FreeJudge) -> None:
    policy = make_policy()
    prompts = [p.prompt for p in make_pairs(BATCHES * BATCH, PROMPT, RESPONSE)]
    timed = Timed(meter, policy, judge())
    train(meter, policy, OnPolicy(prompts, timed, seed=0), BATCH, IPO(beta=BETA, form="target"), timed)


def aligngap_t5(meter: Meter) -> None:
    policy = make_policy(T5, T5_RESPONSE)
    stream = Replay(make_pairs(BATCHES * T5_BATCH, T5_PROMPT, T5_RESPONSE), order="in-order", batch=T5_BATCH, seed=0)
    train(meter, policy, stream, T5_BATCH, IPO(beta=BETA, form="target"))


def aligngap_t5_online(meter: Meter) -> None:
    policy = make_policy(T5, T5_RESPONSE)
    prompts = [p.prompt for p in make_pairs(BATCHES * T5_BATCH, T5_PROMPT, T5_RESPONSE)]
    timed = Timed(meter, policy, FreeJudge())
    train(meter, policy, OnPolicy(prompts, timed, seed=0), T5_BATCH, IPO(beta=BETA, form="target"), timed)


def aligngap_preference_model(meter: Meter) -> None:
    from aligngap.judges.preference_model import Shown
    from aligngap.streams import Epochs

    judge = preference_model()
    pairs = make_pairs(BATCHES * BATCH, PROMPT, RESPONSE)
    items = [Shown(p.prompt.ids, p.chosen.ids, p.rejected.ids, 1.0) for p in pairs]
    meter.start(parameters=sum(p.numel() for p in judge.module.parameters()))
    for step in fit(Trainer(judge.module, recipe(BATCH), 0), Epochs(items, 0), judge.objective):
        meter.update(loss=step.loss, tokens=sum(len(s.first) + len(s.second) for s in step.items))


# ------------------------------------------------------------------------------------------------------------ TRL


def trl_settings(folder: str, caching: bool) -> dict[str, Any]:
    """What both trainers are told: equal work, products in the model's precision, and nothing written or logged."""
    settings: dict[str, Any] = {
        "output_dir": folder, "per_device_train_batch_size": BATCH, "max_steps": 1_000_000, "learning_rate": RATE,
        "lr_scheduler_type": "constant", "beta": BETA, "bf16": LLAMA.dtype == "bfloat16", "use_cpu": DEVICE == "cpu",
        "save_strategy": "no",
        "report_to": "none", "disable_tqdm": True, "logging_strategy": "no", "weight_decay": 0.0, "max_grad_norm": 1.0,
    }  # fmt: skip
    return settings | ({"gradient_checkpointing": False} if caching else {})


def stepping(meter: Meter, trainer: Any, counted: Callable[[], int], parameters: int) -> None:
    """Run a transformers Trainer; the meter waits inside its loop, between two steps."""
    from transformers import TrainerCallback

    losses: list[float] = []
    inner = trainer.training_step

    def training_step(*args: Any, **kwargs: Any) -> Any:
        loss = inner(*args, **kwargs)
        losses.append(float(loss))
        return loss

    class Stop(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            meter.update(loss=losses.pop(), tokens=counted())

        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            meter.start(parameters=parameters)

    trainer.training_step = training_step
    trainer.add_callback(Stop())
    trainer.train()


def trl_offline(meter: Meter, caching: bool = False, precomputed: bool = False) -> None:
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from trl import DPOConfig, DPOTrainer

    class InOrder(DPOTrainer):  # type: ignore[misc]
        def _get_train_sampler(self, dataset: Any = None) -> Any:
            return SequentialSampler(dataset if dataset is not None else self.train_dataset)

    pairs = make_pairs(BATCHES * BATCH, PROMPT, RESPONSE)
    rows = [{"prompt": p.prompt.text, "chosen": " " + p.chosen.text, "rejected": " " + p.rejected.text} for p in pairs]
    policy = make_policy()
    policy.tokenizer.split_special_tokens = False
    counted = [0]

    with tempfile.TemporaryDirectory() as folder:
        settings = trl_settings(folder, caching)
        config = DPOConfig(**settings, loss_type=["ipo"], precompute_ref_log_probs=precomputed)
        trainer = InOrder(
            model=policy.model, ref_model=None if precomputed else make_policy().model, args=config,
            train_dataset=Dataset.from_list(rows), processing_class=policy.tokenizer,
        )  # fmt: skip
        collator = trainer.data_collator

        def counting(examples: Any) -> Any:
            batch = collator(examples)
            counted[0] = int(batch["completion_mask"].sum())  # the loader is a batch ahead; all are of one size
            return batch

        trainer.data_collator = counting
        stepping(meter, trainer, lambda: counted[0], policy.model.num_parameters())


def trl_online(meter: Meter, caching: bool = False, judge: Callable[[], Any] = FreeJudge) -> None:
    from datasets import Dataset
    from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

    asked = judge()

    def reward(prompts: Sequence[str], completions: Sequence[str], **rest: Any) -> list[float]:
        """A pairwise judge squeezed into one score a completion: the batch holds all first, then all second ones."""
        half = len(prompts) // 2
        sides = [Response((), True, text) for text in completions]
        texts = [Prompt(t, t, ()) for t in prompts[:half]]
        first = asked.judge(texts, sides[:half], sides[half:]).p_win
        return [*first, *(1.0 - first)]

    counted = [0]

    class Counting(OnlineDPOTrainer):  # type: ignore[misc]
        def _generate(self, *args: Any, **kwargs: Any) -> Any:
            made = super()._generate(*args, **kwargs)
            counted[0] = int(made[3].sum())
            return made

    pairs = make_pairs(BATCHES * BATCH, PROMPT, RESPONSE)
    policy = make_policy()
    policy.tokenizer.split_special_tokens = False
    with tempfile.TemporaryDirectory() as folder:
        sampling = {"max_new_tokens": RESPONSE, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
        config = OnlineDPOConfig(**trl_settings(folder, caching), loss_type="ipo", **sampling)
        trainer = Counting(
            model=policy.model, reward_funcs=reward, args=config, processing_class=policy.tokenizer,
            train_dataset=Dataset.from_list([{"prompt": p.prompt.text} for p in pairs]),
        )  # fmt: skip
        stepping(meter, trainer, lambda: counted[0], policy.model.num_parameters())


# ------------------------------------------------------------------------------------------------ a plain T5 loop


def plain_t5(meter: Meter, online: bool = False) -> None:
    """The loop most people write: chosen and rejected in one batch, the prompt beside each, whole logits.

    Online the model writes both by `generate`, with its cache, and the one with the larger sum of ids is chosen.
    """
    model, reference = (make_policy(T5, T5_RESPONSE).model for _ in range(2))
    pairs = make_pairs(BATCHES * T5_BATCH, T5_PROMPT, T5_RESPONSE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)

    def logps(network: Any, prompts: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        logits = network(input_ids=prompts, attention_mask=torch.ones_like(prompts), labels=labels).logits
        real = labels != 0
        return (torch.log_softmax(logits, -1).gather(-1, labels[..., None])[..., 0] * real).sum(-1)

    def written(prompts: torch.Tensor) -> torch.Tensor:
        model.eval()
        answers = model.generate(
            input_ids=prompts, attention_mask=torch.ones_like(prompts), do_sample=True, top_k=0,
            num_return_sequences=2, max_new_tokens=T5_RESPONSE,
        )[:, 1:]  # fmt: skip
        model.train()
        first, second = answers[::2], answers[1::2]
        better = (first.sum(-1) >= second.sum(-1))[:, None]
        return torch.cat([torch.where(better, first, second), torch.where(better, second, first)])

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        while True:
            for start in range(0, len(pairs), T5_BATCH):
                part = pairs[start : start + T5_BATCH]
                prompts = torch.tensor([p.prompt.ids for p in part])
                labels = torch.tensor([p.chosen.ids for p in part] + [p.rejected.ids for p in part])
                yield torch.cat([prompts, prompts]), written(prompts) if online else labels

    meter.start(parameters=model.num_parameters())
    model.train()
    for prompts, labels in batches():
        with torch.no_grad():
            ref = logps(reference, prompts, labels)
        ratio = logps(model, prompts, labels) - ref
        h = ratio[:T5_BATCH] - ratio[T5_BATCH:]
        loss = ((h - 1 / (2 * BETA)) ** 2).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        meter.update(loss=float(loss), tokens=int((labels != 0).sum()))


CONTENDERS: dict[str, Callable[[Meter], None]] = {
    "offline/aligngap": aligngap_offline,
    "offline/aligngap, reference in the step": lambda m: aligngap_offline(m, precomputed=False),
    "offline/TRL": trl_offline,
    "offline/TRL, no gradient checkpointing": lambda m: trl_offline(m, caching=True),
    "offline/TRL, no gradient checkpointing, reference stored": lambda m: trl_offline(m, True, precomputed=True),
    "online/aligngap": aligngap_online,
    "online/TRL": trl_online,
    "online/TRL, no gradient checkpointing": lambda m: trl_online(m, caching=True),
    "online-judged/aligngap": lambda m: aligngap_online(m, preference_model),
    "online-judged/TRL, no gradient checkpointing": lambda m: trl_online(m, True, preference_model),
    "t5/aligngap": aligngap_t5,
    "t5/plain loop": plain_t5,
    "t5-online/aligngap": aligngap_t5_online,
    "t5-online/plain loop": lambda m: plain_t5(m, online=True),
    "preference-model/aligngap": aligngap_preference_model,
}


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[2]))
    meter_ = Meter()
    quiet_libraries()
    CONTENDERS[sys.argv[1]](meter_)
