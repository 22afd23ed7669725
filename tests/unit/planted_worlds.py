"""Tabular worlds in which the cause of the gap is known by construction, run through the real pipeline at tiny size.

There is one prompt under many ids and a response is one word, so a policy is one table: KL is exact, the true
preference is the order of `WORDS`, and what a stream can teach is which pairs of words it holds and who labels them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from aligngap.execute.collect import collect
from aligngap.execute.worker import make
from aligngap.pipeline.context import Context
from aligngap.pipeline.plan import expand
from aligngap.storage.records import read_folder
from aligngap.storage.store import Store
from aligngap.study.load import validate
from aligngap.types import Comparison, TaskData

WORDS = ("best", "fair", "poor")  # from good to bad
PROMPTS = 160
IPO = {"name": "ipo", "beta": 0.1}

#: pairs of words in the data and how often each occurs; equal words teach the SFT policy to write them and nothing else
BLIND = {("best", "best"): 0.3, ("fair", "poor"): 0.7}
OPEN = {("best", "fair"): 0.35, ("best", "poor"): 0.35, ("fair", "poor"): 0.3}
TWO = {("best", "poor"): 1.0}


@dataclass(frozen=True)
class Planted:
    """A task: which pairs of words the data hold, and whether their rater says the truth or its opposite.

    With `two` words a policy is one number, and at a given KL there are two policies, one better and one worse than the
    SFT policy: arms at equal KL are the same policy, or they went opposite ways.
    """

    blind: bool = False
    two: bool = False
    wrong_rater: bool = False

    def fingerprint(self) -> str:
        return f"planted-{self.blind}-{self.two}-{self.wrong_rater}"

    def load(self, seed: int) -> TaskData:
        rng = np.random.default_rng([seed, 11])
        shares = BLIND if self.blind else TWO if self.two else OPEN
        kinds = list(shares)
        rows = []
        for i, k in enumerate(rng.choice(len(kinds), size=2 * PROMPTS, p=list(shares.values()))):
            first, second = kinds[int(k)][:: -1 if self.wrong_rater else 1]
            rows.append(Comparison(f"p{i % PROMPTS}", "say", first, second))
        held_out = [Comparison(f"t{i}", "say", r.chosen, r.rejected) for i, r in enumerate(rows[:64])]
        return TaskData(rows, held_out, "planted")

    def world(self, seed: int) -> Planted:
        return self

    def reward(self, prompts: Sequence[str], responses: Sequence[str], ended: Any = None) -> np.ndarray:
        return np.array([-WORDS.index(r) if r in WORDS else -len(WORDS) for r in responses], dtype=np.float64)

    def preference(
        self, prompts: Sequence[str], a: Sequence[str], b: Sequence[str], a_ended: Any = None, b_ended: Any = None
    ) -> np.ndarray:
        result: np.ndarray = (1 + np.sign(self.reward(prompts, a) - self.reward(prompts, b))) / 2
        return result


def train(
    arms: dict[str, Any],
    seeds: int,
    folder: Path,
    judge_steps: int = 2,
    loss: dict[str, Any] = IPO,
    variants: dict[str, Any] | None = None,
    **world: bool,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Records and wins of a study in a planted world, win rates being those by the true preference.

    The learned judges are trained for `judge_steps` steps: 40 where an arm is labelled by one, else as few as can be.
    """
    judge = {"optimization": {"steps": judge_steps, "batch": 32, "learning_rate": 1e-2}}
    raw = {
        "name": "planted", "question": "Is the planted cause found?", "task": {"name": "planted", **world},
        "tokenizer": {"kind": "word"}, "limits": {"prompt_tokens": 4, "response_tokens": 1},
        "policy": {"model_type": "t5", "config": {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1,
                                                  "num_decoder_layers": 1, "num_heads": 2}},
        "sft": {"steps": 60, "batch": 64, "learning_rate": 1e-2}, "golden": judge,
        "proxy": {"optimization": judge["optimization"] | {"steps": 2}},  # no arm is labelled by it
        "recipe": {"loss": loss,
                   "optimization": {"steps": 24, "batch": 32, "learning_rate": 3e-3}},
        "measurement": {"checkpoints": [3, 6, 12], "prompts": PROMPTS, "kl_prompts": 8, "pairs": 16,
                        "reference_samples": 0, "opponents": ["sft"], "best_of_n": 0, "samples": 0},
        "arms": arms, "variants": variants or {}, "seeds": seeds,
    }  # fmt: skip
    plan = expand(validate(raw, "planted"))
    store = Store(folder / "store")
    store.prepare()
    ctx = Context(store)
    for step in plan.steps():
        make(step, ctx)
    collect(plan, store, folder)
    tables = read_folder(folder)
    records, wins = tables.records, tables.per_prompt
    truth = {"win_rate": records["oracle_win_rate"], "win_rate_se": records["oracle_win_rate_se"]}
    return records.assign(**truth), wins.assign(win=wins["oracle_win"])
