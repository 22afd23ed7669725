"""What a command says of what it was asked for and could not have."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from aligngap.execute.checks import tell_fewer_prompts
from aligngap.study.load import load


@pytest.mark.parametrize("there", [512, 100])
def test_prompts_that_a_task_does_not_have_are_told(
    there: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pd.DataFrame({"prompts": [there, there]}).to_parquet(tmp_path / "records.parquet")
    tell_fewer_prompts(load("opening"), tmp_path)
    what = "aligngap: opening: measurement.prompts is 512, and its train split has 100; all of them were used\n"
    assert capsys.readouterr().err == (what if there == 100 else "")
