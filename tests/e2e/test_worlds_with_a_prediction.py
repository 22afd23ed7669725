"""The studies of few labels in miniature, from command to page: what is expected stands there before the runs."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from warm import Warm

#: what the exact worlds are solved for, made smaller
FEWER = "from aligngap.execute import expected; expected.SEEDS, expected.BETAS = range(1000, 1001), (0.1,)"
MINIATURE = """
extends: {study}
name: {study}
question: Does it run?
task: {{train_pairs: 120, test_pairs: 40}}
policy: {{config: {{d_model: 16, d_kv: 8, d_ff: 32, num_heads: 2}}}}
sft: {{steps: 4, batch: 8}}
golden:
  model: {{config: {{d_model: 16, d_kv: 8, d_ff: 32, num_layers: 1, num_decoder_layers: 1, num_heads: 2}}}}
  optimization: {{steps: 4, batch: 8}}
proxy: {{optimization: {{steps: 4, batch: 8}}, stop_every: 2{head_start}}}
recipe: {{optimization: {{steps: 3, batch: 4, learning_rate: 3.0e-2}}}}
golden_labels: 20
measurement: {{checkpoints: [1], prompts: 8, kl_prompts: 4, pairs: 8, reference_samples: 4, reference_prompts: 4}}
arms: {{sft-twin: {{behavior: policy, judge: proxy, sync_every: 3}}}}
budgets: [0.01, 0.05]
variants:
{variants}
seeds: 1
"""
SIBLINGS = "{worlds: 2, pairs: 6, optimization: {steps: 2, batch: 4}}"
EPOCHS = f"""
  labels-1000: {{set: {{golden_labels: 30}}, arms: [online, sft-twin, offline]}}
  labels-4000: null
  some: null
  some-labels-1000: null
  some-labels-4000: null
  much: {{set: {{proxy.head_start: {SIBLINGS}}}, arms: [online, sft-twin]}}
  much-labels-1000: null
  much-labels-4000: null
"""
SIZES = """
  labels-1000: null
  labels-4000: null
  small-labels-1000: null
  small-labels-4000: null
  large: null
  large-labels-1000: null
  large-labels-4000: null
"""


@pytest.mark.parametrize(
    ("study", "head_start", "variants", "arms"),
    [
        ("epochs", "", EPOCHS, {"online[labels-1000]", "offline[labels-1000]", "online[much]", "sft-twin[much]"}),
        ("few-labels", f", head_start: {SIBLINGS}", SIZES, {"online[small]", "sft-twin[small]"}),
    ],
)
def test_a_miniature_runs_to_its_page(
    study: str, head_start: str, variants: str, arms: set[str], warm: Warm, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(MINIATURE.format(study=study, head_start=head_start, variants=variants))
    words = ["run", "small.yaml", "--out", "out", "--workers", "1", "--device", "cpu"]
    code, _, trouble = warm.start(words, tmp_path, before=FEWER).finish()
    assert code == 0, trouble
    records = pd.read_parquet("out/records.parquet")
    assert arms | {"online", "offline", "sft-twin"} <= set(records["arm"])
    assert (records["outcome"] == "ok").all()
    said = Path("out/expected.csv")
    assert set(pd.read_csv(said)["sign"].dropna()) <= {"+", "-", "0"}
    assert said.stat().st_mtime <= Path("out/records.parquet").stat().st_mtime
    assert Path(f"out/figures/{study}.csv").is_file()
    assert Path("out/report.html").is_file()
