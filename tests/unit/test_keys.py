"""What is in an artifact's key, and what is not: settings at their default are left out, so that stored work outlives
new settings; a default that changes needs a new `version` of the steps that read it."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic_core import PydanticUndefined

from aligngap.pipeline.align import Align
from aligngap.pipeline.plan import expand
from aligngap.settings import (
    Arm,
    JudgeSpec,
    Limits,
    LossSpec,
    MeasurementSpec,
    ModelSpec,
    Optimization,
    Recipe,
    RolloutSpec,
    TokenizerSpec,
)
from aligngap.study.load import load

#: The defaults that keys of stored artifacts stand for. Add to it; change nothing in it without raising versions.
DEFAULTS: dict[type, dict[str, Any]] = {
    ModelSpec: {"path": None, "model_type": "t5", "config": {}, "dropout": 0.0},
    TokenizerSpec: {"path": None, "kind": "bpe", "vocabulary": 2048},
    Limits: {"prompt_tokens": 256, "response_tokens": 128},
    Optimization: {
        "batch": 32, "micro_batch": None, "learning_rate": 1e-5, "schedule": "constant", "warmup_steps": 0,
        "optimizer": "adamw", "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "grad_clip": 1.0,
    },
    JudgeSpec: {"kind": "pairwise", "model": None, "pretrain": None, "optimization": None, "labels": None},
    LossSpec: {"name": "ipo"},
    Arm: {
        "judge": None, "sync_every": 1, "soft_labels": False, "of": None, "order": "in-order", "writers": None,
        "mix": None, "share": 0.5, "reuse": 1, "candidates": 2, "mix_reference": 0.0, "temperature": 1.0,
        "unlabelled": 0.0,
    },
    RolloutSpec: {"engine": "transformers"},
    Recipe: {"label_smoothing": 0.0, "start": "sft", "on_policy_kl": 0.0, "rollouts": RolloutSpec()},
    Align: {
        "label_smoothing": 0.0, "start": None, "start_at": None, "on_policy_kl": 0.0, "rollouts": RolloutSpec(),
    },
    MeasurementSpec: {
        "checkpoints": [10, 20, 40, 80, 160, 320, 640], "prompts": 512, "kl_prompts": 256, "pairs": 1024,
        "opponents": ["golden_policy", "sft", "chosen"], "split": "train", "best_of_n": 16, "best_of_n_prompts": 256,
        "samples": 8, "batch": 128,
    },
}  # fmt: skip


@pytest.mark.parametrize("settings", DEFAULTS, ids=lambda s: s.__name__)
def test_the_defaults_that_keys_stand_for_are_what_they_were(settings: Any) -> None:
    found = {n: f.get_default(call_default_factory=True) for n, f in settings.model_fields.items()}
    given = {n: v for n, v in found.items() if v is not PydanticUndefined}
    for name, value in DEFAULTS[settings].items():
        assert given[name] == value, name


def align(*overrides: str) -> Align:
    return expand(load("opening", list(overrides))).runs[0].align


def test_a_setting_at_its_default_is_no_part_of_a_key() -> None:
    assert align("recipe.optimization.eps=1e-8", "arms.online.sync_every=1").name == align().name
    assert "eps" not in align().configuration["optimization"]


def test_any_other_value_is() -> None:
    names = {align(o).name for o in ("recipe.optimization.eps=1e-7", "arms.online.sync_every=2", "seeds=[1]")}
    assert len(names | {align().name}) == 4


def test_the_engine_is_part_of_a_key_where_the_policy_writes_and_its_memory_and_tolerance_are_not() -> None:
    def named(*overrides: str) -> dict[str, str]:
        found = load("opening", ["policy.model_type=llama", "policy.config={hidden_size: 32}", *overrides])
        return {r.arm: r.align.name for r in expand(found).runs}

    plain, engine = named(), named("recipe.rollouts.engine=vllm")
    other = named("recipe.rollouts={engine: vllm, cache_gib: 7, tolerance_nats: 0.5}")
    assert other == engine
    assert named("recipe.rollouts.tolerance_nats=0.5") == plain
    assert {arm for arm in plain if plain[arm] != engine[arm]} == {"online", "online-golden"}
