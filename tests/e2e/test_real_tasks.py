"""The packaged small studies of the paper's four tasks, each on real pairs, cut to a handful of steps.

They need real preference data (`ALIGNGAP_DATA`: `helpfulness`, `harmlessness`, `summarisation`, `chat`) and are skipped
without.
"""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import pytest
import yaml
from warm import Warm

from aligngap.study.load import load
from aligngap.study.yaml_file import packaged

STUDIES = {
    "real/helpful-tiny": "helpfulness",
    "real/harmless-tiny": "harmlessness",
    "real/tldr-tiny": "summarisation",
    "real/arena-tiny": "chat",
}
SHORT = (
    "task.max_rows=60", "tokenizer.vocabulary=1024", "limits={prompt_tokens: 1024, response_tokens: 100}",
    "policy.config={d_model: 16, d_kv: 8, d_ff: 32, num_layers: 1, num_decoder_layers: 1, num_heads: 2}",
    "sft.steps=2", "sft.batch=4", "golden.optimization.steps=2", "golden.optimization.batch=4",
    "proxy.optimization.steps=2", "proxy.optimization.batch=4", "recipe.optimization.steps=2",
    "recipe.optimization.batch=4", "sweep=[]", "measurement={checkpoints: [1], prompts: 4, kl_prompts: 2, pairs: 4, "
    "best_of_n: 2, best_of_n_prompts: 2, samples: 1, opponents: [sft, chosen]}",
)  # fmt: skip


def test_every_small_real_study_is_held_here() -> None:
    assert set(STUDIES) == {name for name in packaged() if name.startswith("real/") and name.endswith("-tiny")}


@pytest.mark.skipif(not os.environ.get("ALIGNGAP_DATA"), reason="needs real preference data, ALIGNGAP_DATA")
@pytest.mark.parametrize("study", STUDIES)
def test_a_real_task_runs_to_its_report(study: str, warm: Warm, tmp_path: Path) -> None:
    if not (Path(os.environ["ALIGNGAP_DATA"]) / STUDIES[study]).is_dir():
        pytest.skip(f"ALIGNGAP_DATA has no {STUDIES[study]}")
    words = ["run", study, "--out", "out", "--device", "cpu", "--workers", "1"]
    words += [word for setting in SHORT for word in ("--set", setting)]
    code, _, said = warm.run(words, tmp_path)
    assert code == 0, said[-2000:]
    assert (tmp_path / "out" / "report.html").is_file()
    records = pd.read_parquet(tmp_path / "out" / "records.parquet")
    assert set(records["arm"]) == {"online", "offline"}
    assert (records["outcome"] == "ok").all()
    assert yaml.safe_load((tmp_path / "out" / "study.yaml").read_text())["name"] == load(study).name
