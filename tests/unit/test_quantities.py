"""The gap's three quantities as columns of the records, from a policy's own samples and the reference's."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from conftest import TableJudge, prompt

from aligngap.exact.worlds import capacity
from aligngap.measurement import Opponent, ReferenceSet, log_ratios_of, measure
from aligngap.models.policy import Policy
from aligngap.stats.ceiling import ceiling, efficiency
from aligngap.stats.first_order import first_order
from aligngap.stats.quantities import ReferenceWins, against_reference, split_at
from aligngap.storage.columns import GAP_COLUMNS, PER_PROMPT_COLUMNS, REACH, RECORD_COLUMNS
from aligngap.storage.records import read_records, write_table
from aligngap.types import AligngapError, Pair

PROMPTS = [prompt([4 + i % 6, 5 + i // 6], f"p{i}") for i in range(32)]


@pytest.fixture(scope="module")
def tables(policies: Callable[..., Policy]) -> tuple[pd.DataFrame, pd.DataFrame, ReferenceSet]:
    """A policy measured against two opponents by a golden judge and a true preference: its rows, and by prompt."""
    policy, reference = policies("t5", seed=3), policies("t5", seed=0)
    rng = np.random.default_rng(0)
    table = rng.random((20, 20))
    judges = {"golden": TableJudge(table), "proxy": TableJudge(table.T), "oracle": TableJudge(rng.random((20, 20)))}
    theirs = [a[0] for a in reference.sample(PROMPTS, 1, 5)]
    held = [
        Pair(p, a, b, 1.0, 1.0, 0.0, "data", -1.0, -1.0) for p, a, b in zip(PROMPTS, theirs, theirs[::-1], strict=True)
    ]
    answers = reference.sample(PROMPTS[:8], 6, 9)
    ids = [[r.ids for r in row[:4]] for row in answers]
    logps = reference.logps_of([p.ids for p in PROMPTS[:8] for _ in range(4)], [x for row in ids for x in row])
    wins = {"golden": ReferenceWins(rng.random((8, 400)), rng.random((8, 400)))}
    of = ReferenceSet(ids, logps.double().numpy().reshape(8, 4), wins)
    opponents = [Opponent("sft", theirs), Opponent("chosen", theirs[::-1])]
    how = {"prompts": PROMPTS, "opponents": opponents, "judges": judges, "held_out": held, "seed": 1}
    found = measure(policy, reference, reference_samples=theirs[:4], reference_set=of, **how)
    return pd.DataFrame(found.rows), pd.DataFrame(found.per_prompt), of


def test_the_two_parts_sum_to_the_gain_to_the_last_digit(
    tables: tuple[pd.DataFrame, pd.DataFrame, ReferenceSet],
) -> None:
    rows, per_prompt, _ = tables
    row = rows[rows["opponent"] == "sft"].iloc[0]
    mine = per_prompt[per_prompt["opponent"] == "sft"]
    assert row["kl_k1_nats"] == pytest.approx(mine["log_ratio"].mean())
    for who, rate in (("", "win_rate"), ("oracle_", "oracle_win_rate")):
        for c in REACH:
            assert row[f"{who}within_{c}"] + row[f"{who}beyond_{c}"] == row[rate] - 0.5
            beyond = mine["log_ratio"] > c
            assert row[f"share_beyond_{c}"] == beyond.mean()
            won = mine["win" if not who else "oracle_win"] - 0.5
            assert row[f"{who}within_{c}"] == pytest.approx(float((won * ~beyond).mean()))
            assert row[f"{who}within_{c}_se"] == pytest.approx(float((won * ~beyond).std() / np.sqrt(len(won))))
            if beyond.any():
                assert row[f"{who}mean_beyond_{c}"] == pytest.approx(won[beyond].mean())
    assert 0 < row["share_beyond_2"] < 1  # both sides were there to be told apart


def test_sums_hold_for_any_number_of_prompts_and_any_threshold() -> None:
    rng = np.random.default_rng(2)
    for n in (2, 7, 100, 501):
        won, g = rng.choice([0.0, 0.5, 1.0], n), rng.normal(3, 3, n)
        for c, found in ((c, split_at(won, g, (c,))) for c in (-50, 2, 50)):
            total = found[f"within_{c}"].value + found[f"beyond_{c}"].value
            assert abs(total - (won.mean() - 0.5)) <= np.spacing(0.5)


def test_what_cannot_be_computed_is_missing(
    tables: tuple[pd.DataFrame, pd.DataFrame, ReferenceSet], policies: Callable[..., Policy]
) -> None:
    rows, _, _ = tables
    assert list(rows.columns).count("rho") == 1
    against = rows.set_index("opponent")
    assert against.loc["chosen", list(GAP_COLUMNS)].isna().all()  # the split is of the gain over the reference
    sft = against.loc["sft"]
    assert np.isfinite(sft[["rho", "rho_se", "slope", "slope_se"]].astype(float)).all()
    assert sft[["oracle_rho", "oracle_ceiling"]].isna().all()  # the reference set had no true preference
    reference = policies("t5", seed=0)
    theirs = [a[0] for a in reference.sample(PROMPTS[:4], 1, 5)]
    held = [Pair(PROMPTS[0], theirs[0], theirs[1], 1.0, 1.0, 0.0, "data", -1.0, -1.0)]
    judge = TableJudge(np.full((20, 20), 0.5))
    itself = measure(
        reference, reference, prompts=PROMPTS[:4], opponents=[Opponent("sft", theirs)],
        judges={"golden": judge, "proxy": judge}, held_out=held,
        reference_samples=theirs[:2], reference_set=tables[2], seed=1,
    ).rows[0]  # fmt: skip
    assert itself["within_2"] == 0.0
    assert itself["share_beyond_2"] == 0.0
    assert np.isnan([itself["rho"], itself["efficiency"], itself["oracle_within_2"], itself["mean_beyond_2"]]).all()


def test_the_law_and_the_ceiling_are_those_of_the_samples(
    tables: tuple[pd.DataFrame, pd.DataFrame, ReferenceSet], policies: Callable[..., Policy]
) -> None:
    rows, _, of = tables
    row = rows.iloc[0]
    g = log_ratios_of(policies("t5", seed=3), PROMPTS, of, 3)
    law = first_order(g, of.wins["golden"].q[:, :4])
    assert row["rho"] == pytest.approx(law.rho.value, abs=1e-4)
    assert row["slope_se"] == pytest.approx(law.slope.se, rel=1e-3)
    assert row["kl_nats"] > 4
    assert np.isnan(row["ceiling"])  # 400 samples do not carry it
    world = capacity(seed=3, prompts=6, responses=9)
    rng = np.random.default_rng(3)
    index = np.stack([rng.choice(9, 300, p=np.exp(p)) for p in world.log_reference])
    q = np.take_along_axis(world.win, index, 1)
    won = rng.choice([0.0, 1.0], 40)
    found = against_reference(won, 0.5, rng.normal(size=(6, 10)), ReferenceWins(q, q))
    best = ceiling(q, q, 0.5)
    assert best is not None
    assert found["ceiling"] == best.gain
    assert found["efficiency"].value == pytest.approx((won.mean() - 0.5) / best.gain.value)


def test_an_efficiency_over_more_prompts_than_the_ceilings_has_a_smaller_error() -> None:
    world = capacity(seed=3, prompts=40, responses=9)
    best = ceiling(world.win, world.win, 0.5, world.log_reference, floor=0.0)
    assert best is not None
    rng = np.random.default_rng(4)
    few, many = rng.normal(0.1, 0.4, 40), rng.normal(0.1, 0.4, 4000)
    assert efficiency(np.concatenate([few, few, few, few]), best).value == pytest.approx(efficiency(few, best).value)
    assert efficiency(many, best).se < 0.5 * efficiency(few, best).se
    errors = [(rng.normal(0.1, 0.4, 400).mean() / best.gain.value) for _ in range(300)]
    assert efficiency(rng.normal(0.1, 0.4, 400), best).se == pytest.approx(float(np.std(errors)), rel=0.25)
    with pytest.raises(AligngapError, match="39 prompts against the ceiling's 40"):
        efficiency(few[1:], best)


def test_records_of_before_lack_the_columns_and_are_read(tmp_path: object) -> None:
    from pathlib import Path

    old = {n: c for n, c in RECORD_COLUMNS.items() if n not in GAP_COLUMNS}
    row = {n: {"str": "x", "int": 1, "float": 0.5}[kind] for n, (kind, _) in old.items()}
    path = write_table(Path(str(tmp_path)) / "records.parquet", [row], old)
    found = read_records(path)
    assert found[list(GAP_COLUMNS)].isna().all().all()
    assert "log_ratio" in PER_PROMPT_COLUMNS
