"""A hypothesis from study to verdict by the command: the smallest coverage study that has every arm."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import COMMAND, TINY_STUDY, finish
from warm import Warm

from aligngap.storage.records import read_folder

COVERAGE = (
    TINY_STUDY.split("arms:")[0].replace("name: tiny", "name: tiny-coverage")
    + """
probe: 24
variants:
  dpo: {set: {recipe.loss: {name: dpo, beta: 0.1}}, arms: [online]}
  proxy-small: {set: {proxy.labels: 40}, arms: [online]}
  proxy-bradley-terry: {set: {proxy.kind: bradley-terry}, arms: [online]}
  proxy-local: {set: {proxy.kind: local, proxy.beta: 0.1}, arms: [online]}
sweep:
  - {axes: {learning_rate: [3.0e-3, 6.0e-3]}, arms: [offline], why: a pooled offline arm}
arms:
  offline-proxy: null
  window-8: null
  window-32: null
  blocks-32: null
  blocks-2: {behavior: recording, of: online, order: "blocks:2"}
"""
)


@pytest.fixture(scope="module")
def out(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("coverage")
    (folder / "tiny.yaml").write_text("extends: coverage\n" + COVERAGE)
    finish([COMMAND, "run", "tiny.yaml", "--out", "out", "--device", "cpu", "--workers", "2"], folder, warm)
    return folder / "out"


def test_every_arm_is_recorded(out: Path) -> None:
    records = read_folder(out).records
    arms = {"online", "offline", "twin", "shuffled", "window-2", "blocks-2", "reversed", "shuffled-golden"}
    variants = ("dpo", "proxy-small", "proxy-bradley-terry", "proxy-local")
    assert set(records["arm"]) == arms | {f"online[{v}]" for v in variants}
    assert records.groupby("arm")["config"].nunique()["offline"] == 2


def test_the_twin_is_the_online_run(out: Path) -> None:
    records = read_folder(out).records
    columns = ["step", "opponent", "kl_nats", "win_rate", "accuracy", "chosen_log_ratio"]
    online, twin = (records[records["arm"] == a][columns].reset_index(drop=True) for a in ("online", "twin"))
    assert online.equals(twin)


def test_the_report_judges_it(out: Path) -> None:
    text, page = (out / "summary.md").read_text(), (out / "report.html").read_text()
    for name in ("H1", "R3", "R4 shuffled", "R4 window", "order reversed", "labels shuffled"):
        assert f"| {name} |" in text
    assert 'id="why-coverage"' in page
    assert (out / "figures" / "coverage.png").exists()
    assert "To test it: aligngap run scaling" in text


def test_the_provenance_tells_what_each_variant_changed(out: Path) -> None:
    parts = json.loads((out / "provenance.json").read_text())["pipeline"]
    found = {r["part"]: r["value"] for r in parts if r["what"] == "training pairs"}
    whole = ("golden judge", "proxy judge", "proxy judge[proxy-bradley-terry]", "proxy judge[proxy-local]")
    assert found == {**dict.fromkeys(whole, 127), "proxy judge[proxy-small]": 40}  # 160, less the long ones
    assert [r["part"] for r in parts if r["what"] == "parameters"] == ["SFT policy"]


def test_the_probe_holds_everybody_along_the_online_run(out: Path) -> None:
    table = read_folder(out).probe
    found = table.set_index(["classifier", "arm", "step"])["accuracy"].to_dict()
    who = [("proxy", ""), ("writer", "online"), ("final", "online"), ("final", "offline")]
    who += [("judge", v) for v in ("proxy-small", "proxy-bradley-terry", "proxy-local")]
    assert set(found) == {(*w, step) for w in who for step in (4, 8)}
    assert table["accuracy"].between(0, 1).all()
    assert (table["pairs"] + table["ties"] == 24).all()
    assert set(table["recording"]) == {"online"}
    assert found["writer", "online", 8] == found["final", "online", 8]  # the final policy is the last writer
    verdicts = (out / "summary.md").read_text()
    assert "| R6 |" in verdicts
    assert "| R13 |" in verdicts
