"""How a model is run: bfloat16 matrix products on float32 weights, and activations computed twice to save memory."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import BOTH, FAMILIES, SPECS, pair, prompt, response, tiny_policy, word_tokenizer
from scipy import stats

from aligngap.fit import Trainer, pair_objective
from aligngap.judges.preference_model import PreferenceModel, Shown
from aligngap.losses import DPO
from aligngap.measurement import score
from aligngap.models.batch import collate
from aligngap.models.loading import as_told
from aligngap.models.pair_logps import compare_logps, with_reference
from aligngap.models.policy import Policy
from aligngap.settings import ModelSpec, Optimization
from aligngap.types import AligngapError

ITEMS = [prompt((4, 5, 6, 1)), prompt((7, 1)), prompt((8, 9, 10, 11, 12, 1))]
PAIRS = [pair(p, (4, 5, 1), (6, 7, 8, 9)) for p in ITEMS]
HOW = Optimization(steps=4, batch=3, learning_rate=1e-2)
LOW = ModelSpec(dtype="bfloat16")


def run_as(policy: Policy, spec: ModelSpec) -> Policy:
    as_told(policy.model, spec)
    return Policy(policy.model, policy.tokenizer, response_tokens=policy.response_tokens, key="told", spec=spec)


def train(policy: Policy, reference: Policy) -> Trainer:
    trainer = Trainer(policy.model, HOW, seed=0)
    for _ in range(4):
        step = trainer.advance(with_reference(reference, PAIRS), pair_objective(policy, DPO(beta=0.5)))
        assert step.finite
    return trainer


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_checkpointing_changes_no_result(family: str, dropout: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss and gradients to 1e-6; a decoder's to the last bit under dropout, where no prompt is shared."""
    monkeypatch.setitem(SPECS, family, SPECS[family].model_copy(update={"dropout": dropout}))
    losses, gradients, calls = [], [], []
    original = torch.utils.checkpoint.checkpoint
    monkeypatch.setattr("transformers.modeling_utils.checkpoint", lambda *a, **k: calls.append(1) or original(*a, **k))
    for on in (False, True):
        policy, reference = tiny_policy(family), tiny_policy(family, seed=1)
        policy = run_as(policy, ModelSpec(gradient_checkpointing=on, dropout=dropout))
        trainer = Trainer(policy.model, HOW, seed=0)
        step = trainer.advance(with_reference(reference, PAIRS), pair_objective(policy, DPO(beta=0.5)))
        losses.append(step.loss)
        gradients.append({n: p.grad for n, p in policy.model.named_parameters() if p.grad is not None})
        assert bool(calls) == on  # it was really used, and only where it was asked for
    exact = dropout > 0 and not family.startswith("t5")  # T5's attention takes another kernel
    assert losses[0] == (losses[1] if exact else pytest.approx(losses[1], abs=1e-6, rel=1e-6))
    assert gradients[0].keys() == gradients[1].keys()
    for name, value in gradients[0].items():
        torch.testing.assert_close(value, gradients[1][name], atol=2e-6, rtol=1e-5)
        assert torch.equal(value, gradients[1][name]) or not exact


@pytest.mark.parametrize("family", BOTH)
def test_a_folder_is_loaded_and_run_as_told(family: str, tmp_path: Path) -> None:
    policy = tiny_policy(family)
    policy.save(tmp_path)
    spec = ModelSpec(dtype="bfloat16", gradient_checkpointing=True)
    loaded = Policy.load(tmp_path, response_tokens=6, spec=spec)
    told = run_as(policy, spec)
    assert torch.equal(loaded.logps_of([(4, 5, 1)], [(6, 1)]), told.logps_of([(4, 5, 1)], [(6, 1)]))


def test_a_copy_and_an_adapted_policy_are_run_alike() -> None:
    spec = ModelSpec(dtype="bfloat16", gradient_checkpointing=True)
    policy = run_as(tiny_policy("llama"), spec)
    for other in (policy.copy("other"), policy.frozen()):
        assert other.spec == spec
        assert any(getattr(m, "gradient_checkpointing", False) for m in other.model.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_is_near_float32_and_returns_float32(family: str) -> None:
    exact = tiny_policy(family, spread=1.0)
    low = run_as(tiny_policy(family, spread=1.0), LOW)
    batch = collate([p.ids for p in ITEMS], [(4, 5, 1), (6, 1), (7, 8, 9)])
    a, b = exact.token_logps(batch), low.token_logps(batch)
    assert b.dtype == torch.float32
    assert not torch.equal(a, b)  # it is in use
    torch.testing.assert_close(a, b, atol=0.1, rtol=0.02)
    assert all(p.dtype == torch.float32 for p in low.model.parameters())
    head = low.logits(low.hidden(batch))
    assert head.dtype == torch.float32
    assert not torch.equal(head, head.bfloat16().float())  # the output layer itself is in float32


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_trains_float32_weights_from_a_margin_of_exactly_zero(family: str) -> None:
    reference = run_as(tiny_policy(family, spread=1.0), LOW)
    policy = reference.copy("student")
    assert (compare_logps(policy, with_reference(reference, PAIRS)).margin() == 0).all()
    answers = [response((4, 5, 1)), response((6, 1)), response((7, 8, 9))]
    assert (score(policy, reference, ITEMS, answers).kl == 0).all()
    trainer = train(policy, reference)
    assert all(p.dtype == torch.float32 for p in policy.model.parameters())
    slots = trainer.optimizer.state_dict()["state"].values()
    assert all(s["exp_avg"].dtype == torch.float32 for s in slots)
    assert (score(policy, reference, ITEMS, answers).kl > 0).all()


@pytest.mark.parametrize("family", BOTH)
def test_bfloat16_samples_are_distributed_as_their_log_probabilities(family: str) -> None:
    policy = run_as(tiny_policy(family, words=["a", "b", "c"], response_tokens=2, spread=1.0), LOW)
    p = prompt((4, 5, 6, 1) if family == "t5" else (4, 5, 6))
    cells = [(1,), *itertools.product((0, 2, 3, 4, 5, 6), range(7))]
    rows = [r[0].ids for r in policy.sample([p] * 2000, 1, seed=1, batch_size=10**6)]
    expected = 2000 * np.exp(policy.logps_of([p.ids] * len(cells), cells).double().numpy())
    large = expected >= 5
    seen = np.array([rows.count(c) for c in cells], dtype=float)
    seen, expected = np.append(seen[large], seen[~large].sum()), np.append(expected[large], expected[~large].sum())
    keep = expected > 0
    assert stats.chisquare(seen[keep], expected[keep] * seen.sum() / expected[keep].sum()).pvalue > 1e-4


def test_a_judge_in_bfloat16_answers_in_float32() -> None:
    policy = tiny_policy("llama", spread=1.0)
    shown = [Shown((4, 5), (6, 7, 1), (8, 1), 1.0)]
    logits: list[Any] = []
    for spec in (ModelSpec(), LOW):
        judge = PreferenceModel(policy.model, word_tokenizer(), key="k", spec=spec)
        logits.append(judge.logits(shown))
    assert logits[1].dtype == torch.float32
    assert logits[0] != logits[1]
    torch.testing.assert_close(logits[0], logits[1], atol=0.1, rtol=0.05)


def test_a_family_without_gradient_checkpointing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_policy("llama")
    monkeypatch.setattr(type(policy.model), "supports_gradient_checkpointing", False)
    with pytest.raises(AligngapError, match=r"llama.*no gradient checkpointing"):
        as_told(policy.model, ModelSpec(gradient_checkpointing=True))
