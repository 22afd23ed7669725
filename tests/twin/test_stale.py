"""Arms whose pairs are older than the policy: twins bit for bit, the same bytes after a stop at every step, exact ages.

Every arm of staleness is a stream, so what `test_twin.py` asks of online and offline is asked of each of them, under a
fixed and under a moving reference. Ages are read from the logs and held against schedules written by hand.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import TINY_STUDY
from safetensors.torch import load_file

from aligngap.execute.collect import collect
from aligngap.execute.worker import make
from aligngap.models.pair_logps import pair_logps
from aligngap.pipeline.align import Align, checkpoint_at
from aligngap.pipeline.context import Context, Job
from aligngap.pipeline.plan import Plan, expand
from aligngap.storage.records import read_folder
from aligngap.storage.store import Store
from aligngap.study.load import validate
from aligngap.types import Stopped

POLICY = {"behavior": "policy", "judge": "proxy"}
STALE: dict[str, dict[str, Any]] = {
    "lag": POLICY | {"lag": 3},
    "lag-sync": POLICY | {"lag": 2, "sync_every": 2},
    "in-flight": POLICY | {"lag": 4, "tokens_per_step": 3},
    "dropping": POLICY | {"lag": 4, "tokens_per_step": 2, "drop_stale": 1},
    "buffer": POLICY | {"buffer": 3},
    "recent": POLICY | {"buffer": 4, "pick": "recent", "reuse": 2},
    "frozen": POLICY | {"freeze_writer_at": 3},
    "frozen-buffer": POLICY | {"buffer": 2, "freeze_writer_at": 3},
    "retrained": POLICY | {"retrain": {"every": 3, "pairs": 12, "steps": 4}},
    "grouped": POLICY | {"candidates": 4, "grouped": True},
    "blend": {"behavior": "mixture", "mix": ["online", "offline"], "share": 1.0, "share_to": 0.0},
}
OTHERS = {"online": POLICY, "offline": {"behavior": "dataset", "judge": "golden"}}
ARMS = STALE | OTHERS | {f"{name}-twin": {"behavior": "recording", "of": name} for name in STALE}
VARIANTS = {
    "moving": {"set": {"recipe.reference": {"every": 3}}, "arms": ["lag", "lag-twin", "offline"]},
    "plain": {"set": {"recipe.writer_logps": False}, "arms": ["lag"]},
}
TWINS = [(name, f"{name}-twin") for name in STALE] + [("lag[moving]", "lag-twin[moving]")]
#: the age of every step's pairs, mean and largest, written down by hand; None where it depends on what was drawn
SCHEDULES: dict[str, tuple[list[float] | None, list[float] | None]] = {
    "online": ([0] * 8, [0] * 8),
    "lag": ([0, 1, 2, 3, 3, 3, 3, 3], [0, 1, 2, 3, 3, 3, 3, 3]),
    # Four batches at step 0, and two more whenever fewer than three are left: at steps 2, 4 and 6.
    "lag-sync": ([0, 1, 2, 3, 2, 3, 2, 3], [0, 1, 2, 3, 2, 3, 2, 3]),
    "frozen": ([0, 0, 0, 0, 1, 2, 3, 4], [0, 0, 0, 0, 1, 2, 3, 4]),
    "frozen-buffer": (None, [0, 1, 1, 2, 3, 4, 5, 6]),
    "offline": ([math.nan] * 8, [math.nan] * 8),
}


class Done:
    def __init__(self, plan: Plan, ctx: Context, out: Path) -> None:
        self.plan, self.ctx, self.out = plan, ctx, out
        self.runs: dict[str, Align] = {r.arm: r.align for r in plan.runs}

    def at(self, arm: str) -> Path:
        return self.ctx.store.path(self.runs[arm].name)

    def log(self, arm: str) -> pd.DataFrame:
        return pd.read_parquet(self.at(arm) / "log.parquet")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    raw = yaml.safe_load(TINY_STUDY) | {"arms": ARMS, "variants": VARIANTS}
    raw["policy"]["dropout"] = 0.1
    raw["recipe"] |= {"writer_logps": True}
    raw["measurement"] |= {"checkpoints": [], "prompts": 8, "kl_prompts": 4, "pairs": 8, "opponents": ["sft"]}
    plan = expand(validate(raw, "stale"))
    out = tmp_path_factory.mktemp("stale")
    store = Store(out / "store")
    store.prepare()
    ctx = Context(store)
    measured = {plan.runs[0].measure.name, *(r.measure.name for r in plan.runs if r.arm in ("lag", "dropping"))}
    for step in plan.steps():
        if step.kind != "measure" or step.name in measured or step in plan.start.values():
            make(step, ctx)
    collect(plan, store, out)
    return Done(plan, ctx, out)


@pytest.mark.parametrize(("arm", "twin"), TWINS)
def test_replay_in_order_is_the_same_run_bit_for_bit(done: Done, arm: str, twin: str) -> None:
    assert done.runs[arm].name != done.runs[twin].name
    left, right = (load_file(done.at(a) / checkpoint_at(8) / "model.safetensors") for a in (arm, twin))
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name
    writing = ["responses_sampled", "flops", "dropped", "dropped_length_tokens"]
    logs = [done.log(a).drop(columns=writing) for a in (arm, twin)]
    pd.testing.assert_frame_equal(*logs, check_exact=True)
    assert done.runs[arm].recorded(done.ctx) == done.runs[twin].recorded(done.ctx)


@pytest.mark.parametrize(
    "arm", ["lag-sync", "dropping", "recent", "frozen", "retrained", "grouped", "blend", "lag[moving]"]
)
def test_stopped_at_every_step_it_ends_with_the_same_bytes(done: Done, tmp_path: Path, arm: str) -> None:
    store = Store(tmp_path / "store")
    store.prepare()
    step = done.runs[arm]
    for need in {s.name for s in step.walk()} - {step.name}:
        os.symlink(done.ctx.store.path(need), store.path(need))
    stops, ctx = 0, Context(store)
    for _ in range(12):
        try:
            make(step, ctx, Job(stopping=lambda: True, save_seconds=0.0))
            break
        except Stopped:
            stops += 1
    assert stops >= 8  # once after each step, from nothing but what was saved
    files = [p for p in done.at(arm).rglob("*") if p.is_file() and p.name != "manifest.json"]
    assert len(files) > 3
    for file in files:
        assert file.read_bytes() == (store.path(step.name) / file.relative_to(done.at(arm))).read_bytes(), file.name


@pytest.mark.parametrize("arm", SCHEDULES)
def test_ages_are_those_of_the_schedule(done: Done, arm: str) -> None:
    log = done.log(arm)
    for column, expected in zip(("age", "age_max"), SCHEDULES[arm], strict=True):
        if expected is not None:
            assert log[column].tolist() == pytest.approx(expected, nan_ok=True), column


def test_other_weights_come_of_every_arm(done: Done) -> None:
    ends = [load_file(done.at(a) / checkpoint_at(8) / "model.safetensors") for a in (*STALE, *OTHERS, "lag[moving]")]
    flat = [torch.cat([t.flatten() for t in end.values()]) for end in ends]
    for i, a in enumerate(flat):
        assert not any(torch.equal(a, b) for b in flat[:i])


def test_the_writers_log_probabilities_are_the_writers(done: Done) -> None:
    """At lag 3 the pairs of step 7 were written by the policy after 4 steps, of which no checkpoint is kept here; those
    of the first four steps by the start policy."""
    run = done.runs["lag"]
    pairs = run.recorded(done.ctx)[: 4 * 8]
    with torch.no_grad():
        chosen, rejected = pair_logps(run.sft.policy(done.ctx), pairs)
    assert [p.writer_chosen for p in pairs] == pytest.approx(chosen.tolist(), abs=1e-4)
    assert [p.writer_rejected for p in pairs] == pytest.approx(rejected.tolist(), abs=1e-4)
    assert all(p.writer_chosen is None for p in done.runs["offline"].recorded(done.ctx))


def test_storing_them_changes_no_weight_and_no_other_column(done: Done) -> None:
    left, right = (load_file(done.at(a) / checkpoint_at(8) / "model.safetensors") for a in ("lag", "lag[plain]"))
    assert all(torch.equal(left[name], right[name]) for name in left)
    files = [pd.read_parquet(done.at(a) / "recording.parquet") for a in ("lag", "lag[plain]")]
    assert set(files[0]) - set(files[1]) == {"writer_chosen", "writer_rejected"}
    pd.testing.assert_frame_equal(
        files[0][list(files[1])].drop(columns="writer"), files[1].drop(columns="writer"), check_exact=True
    )
    assert done.log("lag[plain]")["lag_kl_nats"].isna().all()


def test_the_lag_kl_is_what_the_stored_numbers_say(done: Done) -> None:
    log = done.log("lag")
    assert log["writer_known"].eq(1).all()
    pairs = done.runs["lag"].recorded(done.ctx)
    for step in range(8):
        mine = pairs[8 * step : 8 * step + 8]
        # The log has mean log-ratios of the policy to the reference; the lag is to the writer.
        writer = np.mean([[p.writer_chosen, p.writer_rejected] for p in mine])
        ref = np.mean([[p.ref_chosen, p.ref_rejected] for p in mine])
        ratio = (log["chosen_log_ratio"][step] + log["rejected_log_ratio"][step]) / 2
        assert log["lag_kl_nats"][step] == pytest.approx(writer - (ratio + ref), abs=1e-4)


def test_dropping_what_is_stale_shortens_what_is_left(done: Done) -> None:
    """What is discarded is longer than what is trained on: long responses are the old ones when they are in flight."""
    log = done.log("dropping")
    assert log["dropped"].is_monotonic_increasing
    assert log["dropped"].iloc[-1] > 0
    assert log["age_max"].max() <= 1
    assert log["dropped_length_tokens"].iloc[-1] > log["length_tokens"].mean()
    manifest = done.ctx.store.manifest(done.runs["dropping"].name)["result"]["dropped"]
    assert manifest["pairs"] == log["dropped"].iloc[-1]
    assert done.log("in-flight")["age_max"].max() > 1


def test_the_records_have_the_ages(done: Done) -> None:
    records = read_folder(done.out).records.set_index(["arm", "step"])
    end = records.loc["lag", 8]
    assert (end["age"], end["age_max"]) == (18 / 8, 3)
    assert end["lag_kl_nats"] == pytest.approx(done.log("lag")["lag_kl_nats"].mean())
    assert np.isnan(records.loc["lag", 0]["age"])
    assert records.loc["dropping", 8]["dropped"] == done.log("dropping")["dropped"].iloc[-1]


def test_the_reference_moves_and_pairs_of_data_follow_it(done: Done) -> None:
    """Refreshed after steps 3 and 6: at steps 4 and 7 policy and reference are one but for dropout."""
    run = done.runs["offline[moving]"]
    pairs, fixed = run.recorded(done.ctx), done.runs["offline"].recorded(done.ctx)
    assert [p.key for p in pairs] == [p.key for p in fixed]
    same = [p.ref_chosen == pytest.approx(q.ref_chosen, abs=1e-4) for p, q in zip(pairs, fixed, strict=True)]
    assert all(same[:24])
    assert not any(same[24:48])
    moved, still = (done.log(a)["margin"].abs() for a in ("offline[moving]", "offline"))
    assert moved[6] < still[6]


def test_a_retrained_proxy_is_heard_from_its_first_retraining_on(done: Done) -> None:
    pairs, online = (done.runs[a].recorded(done.ctx) for a in ("retrained", "online"))
    assert [p.key for p in pairs[:24]] == [p.key for p in online[:24]]
    assert [p.judged_forward for p in pairs[:24]] == [p.judged_forward for p in online[:24]]
    both = {p.key: p.judged_forward for p in online[24:32]}
    again = [(p.judged_forward, both[p.key]) for p in pairs[24:32] if p.key in both]
    assert len(again) == 8  # the policy wrote the same pairs at step 4: until then it had learned from the same
    assert all(a != b for a, b in again)


def test_a_group_is_served_whole_and_its_advantages_sum_to_nought(done: Done) -> None:
    pairs = done.runs["grouped"].recorded(done.ctx)
    for a, b in zip(pairs[::2], pairs[1::2], strict=True):
        assert a.prompt == b.prompt
        four = [a.advantage_chosen, a.advantage_rejected, b.advantage_chosen, b.advantage_rejected]
        assert sum(x or 0.0 for x in four) == pytest.approx(0, abs=1e-9)
    assert done.log("grouped")["responses_sampled"].iloc[-1] == 8 * 8 * 2


def test_the_blend_goes_from_one_arm_to_the_other(done: Done) -> None:
    pairs = done.runs["blend"].recorded(done.ctx)
    written = [sum(p.writer != "data" for p in pairs[8 * k : 8 * k + 8]) for k in range(8)]
    assert (written[0], written[-1]) == (8, 0)
    assert sum(written[:4]) > sum(written[4:])
