"""The one training loop: gradients, schedules, states that go on bit for bit, and what happens when numbers break."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import BOTH, TableJudge, pair, prompt, tiny_policy

from aligngap.fit import Trainer, fit, pair_objective
from aligngap.losses import DPO, IPO, BestOfTwo
from aligngap.models.pair_logps import compare_logps, with_reference
from aligngap.models.policy import Policy
from aligngap.pipeline.context import Job
from aligngap.pipeline.training import train
from aligngap.settings import Optimization
from aligngap.storage.store import tidy
from aligngap.streams import Dataset, OnPolicy
from aligngap.types import Pair

rng = np.random.default_rng(0)


def ids(low: int, high: int) -> tuple[int, ...]:
    return tuple(int(t) for t in rng.integers(4, 20, rng.integers(low, high)))


PROMPTS = [prompt((*ids(1, 7), 1)) for _ in range(20)]
PAIRS = [pair(p, (*ids(1, 6), 1), ids(2, 7), (1.0, 0.5, 0.8)[i % 3]) for i, p in enumerate(PROMPTS)]


def judge() -> TableJudge:
    i = np.arange(20)
    return TableJudge((np.sign(i[:, None] - i[None, :]) + 1) / 2)


def how(**options: Any) -> Optimization:
    return Optimization(**{"steps": 6, "batch": 8, "learning_rate": 3e-3, **options})


def setting(family: str = "t5", dropout: bool = False, **options: Any) -> tuple[Policy, Policy, Trainer]:
    """(reference, policy, trainer) that start equal."""
    reference = tiny_policy(family, spread=1.0)
    policy = reference.copy("student")
    if dropout:
        for module in policy.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.2
    return reference, policy, Trainer(policy.model, how(**options), seed=5)


def weights(policy: Policy) -> dict[str, torch.Tensor]:
    return {k: v.detach().clone() for k, v in policy.model.state_dict().items()}


def equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def steps(reference: Policy, policy: Policy, trainer: Trainer, stream: Any, loss: Any = None) -> Iterator[Any]:
    objective = pair_objective(policy, loss or IPO(0.1))
    return fit(trainer, stream, objective, policy, lambda pairs: with_reference(reference, pairs))


# --------------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("family", BOTH)
@pytest.mark.parametrize("width", [1, 3, 7])
def test_micro_batches_do_not_change_the_gradient(family: str, width: int) -> None:
    """The mean is over the batch, not over micro-batches, also when they do not divide it."""
    seen: list[tuple[dict[str, torch.Tensor], Any]] = []
    for micro in (None, width):
        _, policy, trainer = setting(family, micro_batch=micro, grad_clip=None)
        other = tiny_policy(family, seed=5)  # no margin is 0, where rounding would decide what is classified right
        step = trainer.advance(with_reference(other, PAIRS[:8]), pair_objective(policy, IPO(0.1)))
        seen.append(({n: p.grad.clone() for n, p in policy.model.named_parameters() if p.grad is not None}, step))
    (whole, a), (parts, b) = seen
    assert whole.keys() == parts.keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, atol=1e-6, rtol=1e-4)
    assert b.loss == pytest.approx(a.loss, rel=1e-5)
    assert b.grad_norm == pytest.approx(a.grad_norm, rel=1e-4)
    assert b.metrics == pytest.approx(a.metrics, rel=1e-3, abs=1e-5)


def test_the_gradient_is_that_of_the_mean_loss() -> None:
    """Against autograd on the plain formula, pair by pair without padding."""
    reference, policy, trainer = setting("llama", grad_clip=None)
    pairs = with_reference(reference, PAIRS[:4])
    trainer.advance(pairs, pair_objective(policy, DPO(0.5)))
    other = reference.copy("again")
    losses = [DPO(0.5)(compare_logps(other, [p])) for p in pairs]
    torch.cat(losses).mean().backward()
    ours = dict(policy.model.named_parameters())
    for name, parameter in other.model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(ours[name].grad, parameter.grad, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("family", BOTH)
def test_step_zero_through_the_trainer(family: str) -> None:
    for loss, value in ((DPO(0.1), math.log(2)), (IPO(0.1), 0.25), (IPO(0.1, "target"), 25.0)):
        reference, policy, trainer = setting(family)
        step = next(steps(reference, policy, trainer, Dataset(PAIRS, 0), loss))
        assert step.loss == pytest.approx(value, rel=2e-7)
        assert step.metrics["margin"] == 0.0
        assert step.metrics["accuracy"] == 0.5
    reference, policy, trainer = setting(family)
    step = next(steps(reference, policy, trainer, Dataset(PAIRS, 0), BestOfTwo()))
    assert step.loss > 1


def test_clipping_is_by_the_total_norm() -> None:
    reference, policy, trainer = setting(grad_clip=1e-3)
    step = trainer.advance(with_reference(reference, PAIRS[:8]), pair_objective(policy, IPO(0.1, "target")))
    assert step.grad_norm > 1e-3  # reported as it was
    total = math.sqrt(sum(float((p.grad**2).sum()) for p in policy.model.parameters() if p.grad is not None))
    assert total == pytest.approx(1e-3, rel=1e-3)


# --------------------------------------------------------------------------------------------------------- schedules


def rates(**options: Any) -> list[float]:
    trainer = Trainer(torch.nn.Linear(1, 1), how(learning_rate=1.0, **options), seed=0)
    return [trainer.learning_rate(step) for step in range(trainer.how.steps)]


def test_schedules() -> None:
    assert rates(steps=4) == [1, 1, 1, 1]
    assert rates(steps=4, schedule="linear") == [1, 0.75, 0.5, 0.25]
    assert rates(steps=6, schedule="linear", warmup_steps=2) == [0.5, 1, 1, 0.75, 0.5, 0.25]
    assert rates(steps=4, schedule="cosine") == pytest.approx(
        [1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]
    )
    assert rates(steps=3, warmup_steps=10) == pytest.approx([0.1, 0.2, 0.3])
    assert all(r > 0 for r in rates(steps=7, schedule="cosine", warmup_steps=3))


def test_the_rate_reaches_the_optimizer() -> None:
    reference, policy, trainer = setting(schedule="linear", warmup_steps=2)
    seen = [
        (s.learning_rate, trainer.optimizer.param_groups[0]["lr"])
        for s in steps(reference, policy, trainer, Dataset(PAIRS, 0))
    ]
    assert [a for a, _ in seen] == [b for _, b in seen]
    assert [a for a, _ in seen] == pytest.approx([3e-3 * x for x in (0.5, 1, 1, 0.75, 0.5, 0.25)])


# ------------------------------------------------------------------------------------------------------------ states


@pytest.mark.parametrize("kind", ["dataset", "online"])
@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
@pytest.mark.parametrize("family", BOTH)
def test_a_saved_run_goes_on_bit_for_bit(tmp_path: Path, family: str, optimizer: str, kind: str) -> None:
    """Weights, optimiser, dropout's random numbers, stream and queue: all of it, after a save in mid-run."""

    def make() -> tuple[Policy, Policy, Trainer, Any]:
        parts = setting(family, dropout=True, optimizer=optimizer, schedule="cosine", weight_decay=0.01)
        stream = Dataset(PAIRS, 1) if kind == "dataset" else OnPolicy(PROMPTS, judge(), seed=1, sync_every=4)
        return (*parts, stream)

    reference, policy, trainer, stream = make()
    losses = []
    for step in steps(reference, policy, trainer, stream):
        losses.append(step.loss)
        if step.number == 3:
            trainer.save(tmp_path / "state", stream)
    reference, again, trainer, stream = make()
    torch.manual_seed(99)
    trainer.load(tmp_path / "state", stream)
    assert trainer.step == 3
    rest = [s.loss for s in steps(reference, again, trainer, stream)]
    assert rest == losses[3:]
    assert equal(weights(policy), weights(again))
    assert not equal(weights(policy), weights(reference))


def test_a_state_is_replaced_whole(tmp_path: Path) -> None:
    _, _, trainer = setting()
    stream = Dataset(PAIRS, 0)
    (tmp_path / "state.writing").mkdir()
    (tmp_path / "state.writing" / "junk").write_text("torn by a kill")
    trainer.save(tmp_path / "state", stream)
    assert sorted(f.name for f in (tmp_path / "state").iterdir()) == [
        "checksums.json",
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
    ]
    assert json.loads((tmp_path / "state" / "state.json").read_text())["step"] == 0


def test_nobodys_random_state_is_disturbed() -> None:
    reference, policy, trainer = setting(dropout=True)
    torch.manual_seed(7)
    np.random.seed(7)
    before, numpy_before = torch.random.get_rng_state(), np.random.get_state()[1].tolist()
    for _ in steps(reference, policy, trainer, OnPolicy(PROMPTS, judge(), seed=1)):
        pass
    assert torch.equal(before, torch.random.get_rng_state())
    assert np.random.get_state()[1].tolist() == numpy_before


def test_the_caller_owns_the_stopping_rule() -> None:
    reference, policy, trainer = setting()
    for step in steps(reference, policy, trainer, Dataset(PAIRS, 0)):
        if step.number == 2:
            break
    assert trainer.step == 2
    assert [s.number for s in steps(reference, policy, trainer, Dataset(PAIRS, 0))] == [3, 4, 5, 6]
    assert list(steps(reference, policy, trainer, Dataset(PAIRS, 0))) == []


def test_a_model_is_in_eval_mode_outside_a_step() -> None:
    reference, policy, trainer = setting(dropout=True)
    modes = []
    objective = pair_objective(policy, IPO(0.1))

    def watching(items: Sequence[Any]) -> Any:
        modes.append(policy.model.training)
        return objective(items)

    trainer.advance(with_reference(reference, PAIRS[:4]), watching)
    assert modes == [True]
    assert not policy.model.training


def test_reference_log_probabilities_are_kept_where_stored() -> None:
    reference, _, _ = setting()
    filled = with_reference(reference, PAIRS[:3])
    assert with_reference(tiny_policy("t5", seed=3), filled) == filled
    assert all(isinstance(p.ref_chosen, float) for p in filled)
    given = [pair(PROMPTS[0], (4, 1), (5, 1), ref_chosen=-1.0, ref_rejected=-2.0), PAIRS[1]]
    assert with_reference(reference, given)[0] == given[0]
    assert with_reference(reference, given)[1].ref_chosen is not None


# ------------------------------------------------------------------------------------------------------------ driver


def driver(tmp_path: Path, save_seconds: float = 1e9) -> Job:
    work = tmp_path / "work"
    work.mkdir(parents=True, exist_ok=True)
    return Job(work, save_seconds=save_seconds)


def run(
    job: Job, objective: Callable[[Policy], Any] | None = None, after: Callable[[int], None] = lambda step: None
) -> tuple[str, Policy, Trainer]:
    reference, policy, trainer = setting(dropout=True)
    stream = OnPolicy(PROMPTS, judge(), seed=1, sync_every=2)
    outcome = train(
        job, trainer, stream, (objective or (lambda p: pair_objective(p, IPO(0.1))))(policy), sampler=policy,
        prepare=lambda pairs: with_reference(reference, pairs), after=after, record_pairs=True,
    )  # fmt: skip
    return outcome, policy, trainer


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours may catch it."""


@pytest.mark.parametrize("at", [1, 2, 4, 5, 6])
def test_a_killed_run_ends_with_the_same_bytes(tmp_path: Path, at: int) -> None:
    whole = driver(tmp_path / "a")
    outcome, policy, _ = run(whole)
    assert outcome == "ok"

    killed = driver(tmp_path / "b", save_seconds=0.0)  # a state after every step

    def stop(step: int) -> None:
        if step == at:
            raise Killed

    with pytest.raises(Killed):
        run(killed, after=stop)
    outcome, again, trainer = run(killed)
    assert (outcome, trainer.step) == ("ok", 6)
    assert equal(weights(policy), weights(again))
    for name in ("log.parquet", "recording.parquet"):
        pd.testing.assert_frame_equal(
            pd.read_parquet(whole.work / name), pd.read_parquet(killed.work / name), check_exact=True
        )
    tidy(killed.work)
    assert sorted(f.name for f in killed.work.iterdir()) == ["log.parquet", "recording.parquet"]


@pytest.mark.parametrize("number", range(10))
def test_a_kill_while_tidying_up_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Killed at any removal or half-way through it, also after the last step, the same command ends the same."""
    whole = driver(tmp_path / "a")
    _, policy, _ = run(whole)
    killed = driver(tmp_path / "b", save_seconds=0.0)
    original, count = shutil.rmtree, [0]

    def torn(path: Any, *args: Any, **kwargs: Any) -> None:
        path = Path(path)
        if not path.exists():
            return
        count[0] += 1
        if count[0] > number:
            for file in sorted(f for f in path.iterdir() if f.is_file())[:1]:
                file.unlink()
            raise Killed
        original(path, *args, **kwargs)

    monkeypatch.setattr(shutil, "rmtree", torn)
    try:
        run(killed)
    except Killed:
        pass
    else:
        return  # fewer removals than `number`
    monkeypatch.setattr(shutil, "rmtree", original)
    outcome, again, _ = run(killed)
    assert outcome == "ok"
    tidy(killed.work)
    assert sorted(f.name for f in killed.work.iterdir()) == ["log.parquet", "recording.parquet"]
    assert equal(weights(policy), weights(again))
    for name in ("log.parquet", "recording.parquet"):
        pd.testing.assert_frame_equal(
            pd.read_parquet(whole.work / name), pd.read_parquet(killed.work / name), check_exact=True
        )


def test_what_a_run_leaves_behind(tmp_path: Path) -> None:
    job = driver(tmp_path)
    run(job)
    log, recording = (pd.read_parquet(job.work / f"{n}.parquet") for n in ("log", "recording"))
    assert log["step"].tolist() == [1, 2, 3, 4, 5, 6]
    assert log["pairs_seen"].tolist() == [8, 16, 24, 32, 40, 48]
    assert (log["pairs_distinct"] <= log["pairs_seen"]).all()
    assert log["responses_sampled"].tolist() == [32, 32, 64, 64, 96, 96]  # sync_every = 2: two batches at a time
    assert len(recording) == 48
    assert recording["ref_chosen"].notna().all()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run_and_says_so(tmp_path: Path, value: float) -> None:
    job = driver(tmp_path)
    kept: list[dict[str, torch.Tensor]] = []

    def breaking(policy: Policy) -> Any:
        objective, count = pair_objective(policy, IPO(0.1)), [0]

        def call(items: Sequence[Pair]) -> Any:
            losses, metrics = objective(items)
            count[0] += 1
            if count[0] == 3:
                kept.append(weights(policy))
                return losses * value, metrics
            return losses, metrics

        return call

    outcome, policy, trainer = run(job, breaking)
    assert outcome.startswith("diverged at step 3")
    assert trainer.step == 3
    assert equal(kept[0], weights(policy))  # the broken step changed nothing
    log = pd.read_parquet(job.work / "log.parquet")
    assert log["step"].tolist() == [1, 2, 3]
    assert len(pd.read_parquet(job.work / "recording.parquet")) == 24
