"""Low-rank adapters: exact at step 0, frozen elsewhere, saved alone, merged without a trace, twins and resumes."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from conftest import BOTH, FAMILIES, TINY_STUDY, pair, prompt, response, tiny_policy
from safetensors.torch import load_file

from aligngap.execute.worker import make
from aligngap.fit import Trainer, pair_objective
from aligngap.losses import IPO
from aligngap.measurement import score
from aligngap.models.pair_logps import compare_logps, with_reference
from aligngap.models.policy import Policy
from aligngap.pipeline.align import checkpoint_at
from aligngap.pipeline.context import Context
from aligngap.pipeline.plan import expand
from aligngap.settings import LoraSpec, Optimization
from aligngap.storage.store import Store
from aligngap.streams import Dataset
from aligngap.study.load import validate
from aligngap.types import AligngapError

peft = pytest.importorskip("peft")

LORA = LoraSpec(r=4, alpha=8)
ITEMS = [prompt((4, 5, 6, 1)), prompt((7, 1)), prompt((8, 9, 10, 11, 12, 1))]
PAIRS = [pair(p, (4, 5, 1), (6, 7, 8, 9)) for p in ITEMS]
HOW = Optimization(steps=6, batch=3, learning_rate=1e-2)


def trained(reference: Policy, steps: int = 6) -> tuple[Policy, Trainer]:
    policy = reference.adapted(LORA, "student", seed=3)
    trainer = Trainer(policy.model, HOW, seed=0)
    for _ in range(steps):
        trainer.advance(with_reference(reference, PAIRS), pair_objective(policy, IPO()))
    return policy, trainer


@pytest.mark.parametrize("family", FAMILIES)
def test_a_fresh_adapter_changes_nothing_to_the_last_bit(family: str) -> None:
    """Step 0: h = 0 and KL = 0 exactly, with the policy in training mode as the trainer has it."""
    reference = tiny_policy(family)
    policy = reference.adapted(LORA, "student", seed=0)
    policy.model.train()
    x = compare_logps(policy, with_reference(reference.frozen(), PAIRS))
    assert (x.margin() == 0).all()
    policy.model.eval()
    answers = [response((4, 5, 1)), response((6, 1)), response((7, 8, 9))]
    assert (score(policy, reference, ITEMS, answers).kl == 0).all()
    assert policy.sample(ITEMS, 2, seed=0) == reference.sample(ITEMS, 2, seed=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_training_moves_the_adapter_and_nothing_else(family: str) -> None:
    reference = tiny_policy(family)
    before = {k: v.clone() for k, v in reference.model.state_dict().items()}
    policy, _ = trained(reference)
    after = reference.model.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert all("lora_" in n for n, p in policy.model.named_parameters() if p.requires_grad)
    assert (score(policy, reference, ITEMS, [response((4, 5, 1))] * 3).kl > 1e-6).all()
    assert all(p.requires_grad for p in reference.model.parameters())  # a full copy of it can still be trained


@pytest.mark.parametrize("family", BOTH)
def test_the_reference_is_no_second_copy(family: str) -> None:
    reference = tiny_policy(family)
    policy = reference.adapted(LORA, "student", seed=0)
    base = {p.data_ptr() for p in reference.model.parameters()}
    assert {p.data_ptr() for p in reference.frozen().model.parameters()} == base
    own = [p for p in policy.model.parameters() if p.data_ptr() not in base]
    assert [id(p) for p in own] == [id(p) for p in policy.model.parameters() if p.requires_grad]
    assert sum(p.numel() for p in own) < sum(p.numel() for p in reference.model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_weights_give_the_same_log_probabilities(family: str, tmp_path: Path) -> None:
    """And a merged policy is an ordinary folder, while the adapted one it was made from stays."""
    reference = tiny_policy(family)
    policy, _ = trained(reference)
    prompts, rows = [p.ids for p in ITEMS], [(4, 5, 1), (6, 1), (7, 8, 9)]
    merged = policy.copy("merged").merge()
    assert merged.adapter is None
    torch.testing.assert_close(merged.logps_of(prompts, rows), policy.logps_of(prompts, rows), atol=1e-5, rtol=1e-5)
    merged.save(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    loaded = Policy.load(tmp_path, response_tokens=6)
    assert torch.equal(loaded.logps_of(prompts, rows), merged.logps_of(prompts, rows))
    assert policy.adapter is not None
    assert not torch.allclose(policy.logps_of(prompts, rows), reference.logps_of(prompts, rows), atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_is_the_adapter_alone_and_peft_reads_it(family: str, tmp_path: Path) -> None:
    reference = tiny_policy(family)
    policy, _ = trained(reference)
    policy.save(tmp_path)
    assert {f.name for f in tmp_path.iterdir()} == {"adapter_model.safetensors", "adapter_config.json"}
    about = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (about["r"], about["base_model_name_or_path"]) == (4, "tiny")
    assert all("lora_" in name for name in load_file(tmp_path / "adapter_model.safetensors"))
    prompts, rows = [p.ids for p in ITEMS], [(4, 5, 1), (6, 1), (7, 8, 9)]
    again = reference.adapted(LORA, "again", 0, tmp_path)
    assert torch.equal(again.logps_of(prompts, rows), policy.logps_of(prompts, rows))
    theirs = peft.PeftModel.from_pretrained(tiny_policy(family).model, tmp_path).get_base_model()
    other = Policy(theirs, reference.tokenizer, response_tokens=6)
    assert torch.equal(other.logps_of(prompts, rows), policy.logps_of(prompts, rows))


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    policy, _ = trained(tiny_policy("t5"))
    policy.save(tmp_path)
    with pytest.raises(AligngapError, match="not an adapter of this model"):
        tiny_policy("llama").adapted(LORA, "wrong", 0, tmp_path)


def test_layers_that_are_not_there_are_refused() -> None:
    with pytest.raises(AligngapError, match=r"target_modules.*not in the model; its linear layers are .*q_proj"):
        tiny_policy("llama").adapted(LoraSpec(target_modules=["q"]), "wrong", 0)


@pytest.mark.parametrize("family", BOTH)
def test_a_saved_state_goes_on_exactly(family: str, tmp_path: Path) -> None:
    reference = tiny_policy(family)
    whole, _ = trained(reference)
    half, trainer = trained(reference, steps=3)
    stream = Dataset(PAIRS, 0)
    trainer.save(tmp_path / "state", stream)
    assert all("lora_" in name for name in load_file(tmp_path / "state" / "model.safetensors"))
    fresh = reference.adapted(LORA, "student", seed=99)
    other = Trainer(fresh.model, HOW, seed=0)
    other.load(tmp_path / "state", stream)
    for _ in range(3):
        other.advance(with_reference(reference, PAIRS), pair_objective(fresh, IPO()))
    left, right = ({n: p for n, p in m.model.named_parameters() if p.requires_grad} for m in (whole, fresh))
    assert left.keys() == right.keys()
    assert all(torch.equal(left[n], right[n]) for n in left)
    del half


# ------------------------------------------------------------------------------------------------- in a whole study


@pytest.fixture(scope="module", params=["t5", "llama"])
def study(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Context, dict[str, object]]:
    """Every stage by adapters: SFT and the judges merge theirs, the arms keep theirs."""
    raw = yaml.safe_load(TINY_STUDY)
    if request.param == "llama":
        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        raw["policy"] = {"model_type": "llama", "config": sizes | {"num_key_value_heads": 2}}
    adapter = {"r": 2, "alpha": 4, "dropout": 0.1}
    raw["sft"]["lora"] = raw["recipe"]["optimization"]["lora"] = adapter
    raw["golden"]["optimization"]["lora"] = adapter
    raw["arms"]["twin"] = {"behavior": "recording", "of": "online"}
    raw["measurement"] |= {"best_of_n": 2, "best_of_n_prompts": 4, "opponents": ["sft", "golden_policy"]}
    raw["probe"] = 8
    raw["variants"] = {"moved": {"set": {"recipe.start": "online@last"}, "arms": ["online"]}}
    plan = expand(validate(raw, "lora"))
    store = Store(tmp_path_factory.mktemp("lora") / "store")
    store.prepare()
    ctx = Context(store)
    for step in plan.steps():
        make(step, ctx)
    return ctx, {r.arm: r for r in plan.runs}


def test_the_twin_holds_with_adapters(study: tuple[Context, dict[str, object]]) -> None:
    ctx, runs = study
    for step in (4, 8):
        left, right = (
            load_file(ctx.store.path(runs[a].align.name) / checkpoint_at(step) / "adapter_model.safetensors")
            for a in ("online", "twin")
        )
        assert left.keys() == right.keys()
        assert all(torch.equal(left[n], right[n]) for n in left)
    rows = [pd.read_parquet(ctx.store.path(runs[a].measure.name) / "rows.parquet") for a in ("online", "twin")]
    pd.testing.assert_frame_equal(rows[0], rows[1], check_exact=True)
    assert (rows[0]["kl_nats"] > 0).all()


def test_artifacts_hold_adapters_for_arms_and_whole_models_elsewhere(study: tuple[Context, dict[str, object]]) -> None:
    ctx, runs = study
    align = runs["online"].align
    folder = ctx.store.path(align.name) / checkpoint_at(8)
    assert {f.name for f in folder.iterdir()} == {"adapter_model.safetensors", "adapter_config.json"}
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == align.sft.name
    assert not [n for n in load_file(ctx.store.path(align.sft.name) / "policy" / "model.safetensors") if "lora" in n]
    judge = runs["online"].measure.golden
    assert not [n for n in load_file(ctx.store.path(judge.name) / "model" / "model.safetensors") if "lora" in n]
    assert (ctx.store.path(judge.name) / "model" / "head.safetensors").is_file()


def test_a_run_may_start_from_an_adapted_one(study: tuple[Context, dict[str, object]]) -> None:
    """Which is merged first, on a copy: the SFT policy beneath it stays what it was."""
    ctx, runs = study
    moved = runs["online[moved]"].align
    start, again = moved.start_policy(ctx), runs["online"].align.policy(ctx)
    rows = [p.ids for p in ITEMS], [(4, 5, 1), (6, 1), (7, 8, 9)]
    assert start.adapter is None
    torch.testing.assert_close(start.logps_of(*rows), again.logps_of(*rows), atol=1e-5, rtol=1e-5)
    stored = load_file(ctx.store.path(moved.sft.name) / "policy" / "model.safetensors")
    kept = moved.sft.policy(ctx).model.state_dict()
    assert all(torch.equal(kept[name], value) for name, value in stored.items())
    assert pd.read_parquet(ctx.store.path(moved.name) / "log.parquet")["margin"].iloc[0] == 0.0


def test_the_first_margin_of_a_study_is_exactly_zero(study: tuple[Context, dict[str, object]]) -> None:
    """Although LoRA's dropout is on: it acts before A, and B is 0."""
    ctx, runs = study
    log = pd.read_parquet(ctx.store.path(runs["online"].align.name) / "log.parquet")
    assert log["margin"].iloc[0] == 0.0
    assert log["margin"].iloc[-1] != 0.0
