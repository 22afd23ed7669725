"""Where a run starts: under `recipe.start` the start and the loss's reference move together, and nothing else does.

Pairs stay what they were (written by the run from the SFT policy), KL is still measured from the SFT policy, and the
reference's log-probabilities that come with the data, the SFT policy's, are made anew.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import TINY_STUDY

from aligngap.execute.collect import collect
from aligngap.execute.worker import make
from aligngap.models.pair_logps import pair_logps
from aligngap.pipeline.align import Align
from aligngap.pipeline.context import Context
from aligngap.pipeline.plan import Plan, expand
from aligngap.storage.records import read_folder
from aligngap.storage.store import Store
from aligngap.study.load import validate
from aligngap.study.variants import diff_arms
from aligngap.types import AligngapError, Pair

ARMS = {
    "online": {"behavior": "policy", "judge": "proxy"},
    "offline": {"behavior": "dataset", "judge": "golden"},
    "final": {"behavior": "responses", "writers": ["online@last", "online@last"], "judge": "golden"},
    "hot": {"behavior": "responses", "writers": ["online@last"] * 2, "judge": "golden", "temperature": 3.0},
}
VARIANT = {"moved": {"set": {"recipe.start": "online@last"}, "arms": ["online", "offline", "final"]}}
RAW = yaml.safe_load(TINY_STUDY) | {"arms": ARMS, "variants": VARIANT}


class Done:
    def __init__(self, plan: Plan, ctx: Context, out: Path) -> None:
        self.plan, self.ctx, self.out = plan, ctx, out
        self.runs = {r.arm: r.align for r in plan.runs}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    plan = expand(validate(RAW, "start"))
    out = tmp_path_factory.mktemp("start")
    store = Store(out / "store")
    store.prepare()
    ctx = Context(store)
    for step in plan.steps():
        make(step, ctx)
    collect(plan, store, out)
    return Done(plan, ctx, out)


def test_the_start_is_the_online_run_of_the_study_itself(done: Done) -> None:
    for arm in ("online", "offline", "final"):
        moved = done.runs[f"{arm}[moved]"]
        assert isinstance(moved.start, Align)
        assert (moved.start.name, moved.start_at) == (done.runs["online"].name, 8)
        assert moved.source == done.runs[arm].source  # the same stream, pairs by the run from the SFT policy
    assert done.runs["online"].start is None


def stored(pairs: list[Pair]) -> np.ndarray:
    return np.array([[p.ref_chosen, p.ref_rejected] for p in pairs], dtype=np.float64)


@pytest.mark.parametrize("arm", ["online", "offline", "final"])
def test_the_reference_is_the_start(done: Done, arm: str) -> None:
    run = done.runs[f"{arm}[moved]"]
    pairs = run.recorded(done.ctx)[: run.optimization.batch]
    start, sft = done.runs["online"].policy(done.ctx, 8), run.sft.policy(done.ctx)
    by = {}
    for name, policy in (("start", start), ("sft", sft)):
        with torch.no_grad():
            by[name] = torch.stack(pair_logps(policy, pairs), 1).numpy()
    assert stored(pairs) == pytest.approx(by["start"], abs=1e-4)
    assert np.abs(stored(pairs) - by["sft"]).max() > 0.01
    log = pd.read_parquet(done.ctx.store.path(run.name) / "log.parquet")
    assert log["margin"].iloc[0] == pytest.approx(0, abs=1e-5)  # policy and reference are one at the first step


def test_from_the_sft_policy_stored_log_probabilities_are_kept(done: Done) -> None:
    run = done.runs["offline"]
    pairs = run.recorded(done.ctx)[: run.optimization.batch]
    with torch.no_grad():
        assert stored(pairs) == pytest.approx(
            torch.stack(pair_logps(run.sft.policy(done.ctx), pairs), 1).numpy(), abs=1e-4
        )


def test_kl_is_measured_from_the_sft_policy(done: Done) -> None:
    records = read_folder(done.out).records
    records = records[records["opponent"] == "sft"].set_index(["arm", "step"])
    assert list(records.loc["offline[moved]"].index) == [4, 8]  # its start is the last row of `online`
    assert list(records.loc["offline"].index) == [0, 4, 8]
    start, moved, plain = (records.loc[i]["kl_nats"] for i in (("online", 8), ("offline[moved]", 4), ("offline", 4)))
    assert abs(moved - start) < abs(moved - plain)


def test_a_higher_temperature_spreads_wider(done: Done) -> None:
    words = {}
    for arm in ("final", "hot"):
        dataset = done.runs[arm].source.dataset
        assert dataset is not None
        pairs = dataset.pairs(done.ctx, "train")
        words[arm] = len({r.ids for p in pairs for r in (p.chosen, p.rejected)}) / len(pairs)
    assert words["hot"] > words["final"]


def test_diff_says_what_a_variant_moves(done: Done) -> None:
    study = done.plan.study
    assert diff_arms(study, "final", "final[moved]") == [("recipe.start", "sft", "online@last")]
    assert [row[0] for row in diff_arms(study, "final[moved]", "offline[moved]")] == ["behavior", "writers"]
    assert [row[0] for row in diff_arms(study, "final", "hot")] == ["temperature"]
    for wrong, message in (
        ("final[mved]", "did you mean `moved`"),
        ("hot[moved]", "is not run under"),
        ("x", "no arm"),
    ):
        with pytest.raises(AligngapError, match=message):
            diff_arms(study, "final", wrong)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipe": RAW["recipe"] | {"start": "nobody@last"}}, r"`recipe\.start` `nobody@last` must be sft, ARM@STEP"),
        ({"recipe": RAW["recipe"] | {"start": "online@5"}}, r"`recipe\.start` `online@5` names step 5, not one of"),
        ({"arms": ARMS | {"online": ARMS["online"] | {"temperature": 2.0}}}, "`temperature` does not belong to"),
        ({"arms": ARMS | {"hot": ARMS["hot"] | {"temperature": 0}}}, "greater than 0"),
    ],
)
def test_what_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(AligngapError, match=message):
        validate(RAW | change, "start")
