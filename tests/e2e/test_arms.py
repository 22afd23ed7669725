"""The arms beyond the paper, through the command at tiny size: their studies run, and their verdicts are given."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from conftest import finish, run_command
from warm import Warm

ARMS = {
    "online", "offline", "online-soft", "online-soft[rloo]", "offline-hypo", "online[smoothed]", "offline[smoothed]",
    "reuse-4", "mix-25", "online-best-of-4", "online-best-of-4[best-of-two]", "online[best-of-two]",
    "offline[best-of-two]", "offline[few-labels]",
}  # fmt: skip
STUDY = """
crossed_judges: true
arms:
  online: {behavior: policy, judge: proxy}
  offline: {behavior: dataset, judge: golden}
  online-soft: {behavior: policy, judge: proxy, soft_labels: true}
  offline-hypo: {behavior: dataset, judge: golden, unlabelled: 0.5}
  reuse-4: {behavior: policy, judge: proxy, reuse: 4}
  mix-25: {behavior: policy, judge: proxy, mix_reference: 0.25}
  online-best-of-4: {behavior: policy, judge: proxy, candidates: 4}
variants:
  smoothed: {set: {recipe.label_smoothing: 0.1}, arms: [online, offline]}
  rloo: {set: {recipe.loss: {name: rloo, beta: 0.05}}, arms: [online-soft]}
  best-of-two: {set: {recipe.loss: {name: best-of-two}}, arms: [online, offline, online-best-of-4]}
  few-labels: {set: {golden.labels: 40}, arms: [offline]}
"""


def test_the_arms_beyond_the_paper(warm: Warm, tmp_path: Path) -> None:
    words = run_command(tmp_path, workers=1)
    study = (tmp_path / "tiny.yaml").read_text()
    head = study[: study.index("arms:")].replace("loss: {name: ipo", "on_policy_kl: 0.04\n  loss: {name: ipo")
    head = head.replace("opponents: [sft, chosen]", "opponents: [sft, chosen, best_of_n]")
    (tmp_path / "tiny.yaml").write_text(head + STUDY.lstrip())
    finish(words, tmp_path, warm)
    records = pd.read_parquet(tmp_path / "out" / "records.parquet")
    assert set(records["arm"]) == ARMS
    assert (records["outcome"] == "ok").all()
    end = records[records["step"] == 8].groupby("arm").first()
    assert end["responses_sampled"]["online"] == 2 * 8 * 8
    assert end["responses_sampled"]["reuse-4"] == 2 * 8 * 8 / 4
    assert end["pairs_distinct"]["reuse-4"] <= 16
    assert end["responses_sampled"]["online-best-of-4"] == 4 * 8 * 8
    assert 0 < end["responses_sampled"]["offline-hypo"] < 2 * 8 * 8
    assert end["responses_sampled"]["offline"] == 0
    assert (records.loc[records["step"] == 0, "flops"] == 0).all()
    assert end["flops"]["online-best-of-4"] > end["flops"]["online"] > end["flops"]["reuse-4"] > end["flops"]["offline"]
    assert end["flops"]["offline"] > records.set_index(["arm", "step"])["flops"]["offline", 4].iloc[0] > 0
    assert set(records["opponent"]) == {"sft", "chosen", "best_of_n"}
    against = records.groupby("opponent")["opponent_length_tokens"].first()
    assert against["best_of_n"] != against["sft"]  # other responses of the same policy
    moved = end["kl_nats"].drop("reuse-4")
    assert moved.nunique() == len(moved)  # every arm ends at a policy of its own
    crossed = pd.read_parquet(tmp_path / "out" / "crossed.parquet").merge(records, on=["run", "step", "opponent"])
    assert set(crossed["evaluator"]) == {"golden", "few-labels"}
    own = crossed["evaluator"] == crossed["arm"].map(lambda arm: "few-labels" if "few-labels" in arm else "golden")
    assert (crossed["win_rate_x"] == crossed["win_rate_y"])[own].all()  # the same responses before the same judge
    assert (crossed["win_rate_x"] != crossed["win_rate_y"])[~own].any()
    report = (tmp_path / "out" / "report.html").read_text()
    for name in ("frontier mix-25", "closed by offline-hypo", "closed by online-soft[rloo]", "Best-of-4"):
        assert name in report, name
