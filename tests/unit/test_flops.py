"""Operations counted by tokens and weights, against torch's own count of every matrix product."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import DECODER, T5, pair, prompt, response, tiny_policy
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from aligngap.fit import Trainer, pair_objective
from aligngap.judges.bradley_terry import BradleyTerryModel
from aligngap.judges.local import LocalReward
from aligngap.judges.preference_model import PreferenceModel
from aligngap.losses import IPO
from aligngap.models import policy as policy_module
from aligngap.models.flops import Flops
from aligngap.models.policy import Policy
from aligngap.settings import LoraSpec, ModelSpec, Optimization

PROMPTS = [prompt((4, 5, 6, 7)), prompt((8, 9, 10, 11))]
FIRST, SECOND = [(5, 6, 7), (7, 8, 9)], [(6, 7, 8), (9, 10, 11)]
#: wide beside the length of the texts and a few layers deep: what the count leaves out is small, as it is at full size
SPECS = {
    "t5": ModelSpec(model_type="t5", config=T5 | {"d_model": 48, "d_ff": 96, "num_layers": 3, "num_decoder_layers": 3}),
    "llama": ModelSpec(
        model_type="llama", config=DECODER | {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 4}
    ),
}


@pytest.fixture(params=SPECS)
def policy(request: pytest.FixtureRequest) -> Policy:
    return tiny_policy(SPECS[request.param])


def judged(judge: Any) -> Any:
    return lambda: judge.judge(PROMPTS, [response(ids) for ids in FIRST], [response(ids) for ids in SECOND])


def gradient(policy: Policy) -> None:
    asked = zip(PROMPTS, FIRST, SECOND, strict=True)
    pairs = [pair(p, a, b, ref_chosen=-1.0, ref_rejected=-1.0) for p, a, b in asked]
    trainer = Trainer(policy.model, Optimization(steps=1, batch=2, learning_rate=1e-3), 0)
    trainer.advance(pairs, pair_objective(policy, IPO(beta=0.1)))


def both(holder: Any, do: Callable[[], object]) -> tuple[float, float]:
    """Operations by this count and by torch's own."""
    with Flops() as flops, FlopCounterMode(display=False) as theirs:
        flops.watch(holder)
        flops.watch(holder)  # counted once for all that
        do()
    return flops.taken(), float(theirs.get_total_flops())


@pytest.mark.parametrize("way", ["logps", "samples", "gradient", "adapter"])
def test_operations_agree_with_torchs_count(policy: Policy, way: str) -> None:
    if way == "adapter":
        targets = ["q", "v"] if policy.encoder_decoder else ["q_proj", "v_proj"]
        policy = policy.adapted(LoraSpec(r=2, target_modules=targets), "ours", 0)
    do = {
        "logps": lambda: policy.logps_of([p.ids for p in PROMPTS], FIRST),
        "samples": lambda: policy.sample(PROMPTS, 3, seed=0),
    }.get(way, lambda: gradient(policy))
    ours, theirs = both(policy, do)
    assert 0.9 * theirs < ours < 1.1 * theirs


@pytest.mark.parametrize("kind", ["pairwise", "bradley-terry", "local"])
def test_a_judges_operations_are_counted(policy: Policy, kind: str) -> None:
    judge = {
        "pairwise": lambda: PreferenceModel(policy.model, policy.tokenizer, key="j"),
        "bradley-terry": lambda: BradleyTerryModel(policy.model, policy.tokenizer, key="j"),
        "local": lambda: LocalReward(policy.model, policy.copy("o").model, policy.tokenizer, key="j", beta=0.1),
    }[kind]()
    ours, theirs = both(judge, judged(judge))
    assert 0.9 * theirs < ours < 1.1 * theirs


def test_logits_computed_again_are_not_counted_again(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, computed = both(policy, lambda: gradient(policy))
    monkeypatch.setattr(policy_module, "LOGITS_BUDGET", 1)
    in_chunks, computed_in_chunks = both(policy, lambda: gradient(policy))
    assert in_chunks == whole
    assert computed_in_chunks > computed


def test_a_model_is_as_before_and_what_has_none_costs_nothing(policy: Policy) -> None:
    with Flops() as flops:
        flops.watch(policy)
        flops.watch(lambda: None)
        flops.watch(SimpleNamespace(model=nn.Linear(2, 1)))  # a judge of somebody's own
        policy.sample(PROMPTS, 1, seed=0)
        assert flops.taken() > 0 == flops.taken()
    policy.sample(PROMPTS, 1, seed=0)
    assert flops.taken() == 0
