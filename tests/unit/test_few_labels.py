"""Few golden labels: what is expected before the runs, what the runs are, and what their records say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import pytest
from synthetic_records import ArmTruth, make

from aligngap.execute import expected as before
from aligngap.execute.expected import expected, write_expected
from aligngap.hypotheses.few_labels import (
    EPOCHS,
    EPOCHS_REGIMES,
    FEW_LABELS,
    REGIMES,
    SIZE_REGIMES,
    Regime,
    between,
    cells,
    phase,
    scatter,
)
from aligngap.hypotheses.verdicts import CONTRADICTED, INCONCLUSIVE, SUPPORTED
from aligngap.hypotheses.view import View, under
from aligngap.pipeline.judges import FitJudge
from aligngap.pipeline.plan import expand
from aligngap.report.figures import dial_chart
from aligngap.report.forecast import varied_pairs
from aligngap.storage.listing import Faults, find_faults
from aligngap.study.forecast import TWIN, forecast_study
from aligngap.study.load import load


def view_of(gaps: Mapping[str, tuple[float, float]], regimes: tuple[Regime, ...]) -> View:
    """Records in which each judge leads by (measured, forecast) at its number of labels, over offline at 0."""
    truth: dict[str, ArmTruth] = {}
    for regime in regimes:
        online, twin, offline = regime.arms
        measured, said = gaps[f"{regime.judge} {regime.labels}"]
        truth |= {online: ArmTruth(gap=measured), twin: ArmTruth(gap=said), offline: ArmTruth()}
    records, per_prompt, _ = make(
        truth, seeds=range(5), prompts=120, checkpoints=6, seed_sd=0.002, rho=0.98, opponents=("sft",)
    )
    records = records.assign(oracle_win_rate=records["win_rate"], oracle_win_rate_se=records["win_rate_se"])
    return View(records, per_prompt.assign(oracle_win=per_prompt["win"]), "sft")


def planted(regimes: tuple[Regime, ...], by: Mapping[str, tuple[float, float, float]], twin: float = 1.0) -> View:
    """A view in which each judge's leads fall or rise with the labels, and its twins say `twin` times as much."""
    few, some, _ = (r.labels for r in regimes[:3])
    leads = {f"{r.judge} {r.labels}": by[r.judge][{few: 0, some: 1}.get(r.labels, 2)] for r in regimes}
    return view_of({k: (v, twin * v) for k, v in leads.items()}, regimes)


@pytest.fixture(scope="module")
def epochs() -> View:
    names = list(dict.fromkeys(r.judge for r in EPOCHS_REGIMES))
    leads = ((-0.05, -0.02, 0.0), (0.03, 0.02, 0.0), (0.12, 0.06, 0.01))
    return planted(EPOCHS_REGIMES, dict(zip(names, leads, strict=True)))


@pytest.fixture(scope="module")
def sizes() -> View:
    names = list(dict.fromkeys(r.judge for r in SIZE_REGIMES))
    leads = ((0.1, 0.05, 0.0), (0.0, -0.06, -0.12), (0.1, 0.05, 0.0))
    return planted(SIZE_REGIMES, dict(zip(names, leads, strict=True)), twin=-1.0)


@pytest.mark.parametrize("name", REGIMES)
def test_the_packaged_study_has_every_regime_and_its_twin(name: str) -> None:
    study = load(name)
    runs = {r.arm: r for r in expand(study).runs if r.seed == study.seed_list[0]}
    assert {a for regime in REGIMES[name] for a in regime.arms} == set(runs)
    assert study.seed_list == [600, 601, 602, 603, 604]
    known = [r.name for h in (EPOCHS, FEW_LABELS) for r in h.rules]
    assert set(study.primary) <= set(known)
    for regime in REGIMES[name]:
        online, twin, offline = (runs[a] for a in regime.arms)
        proxy, taken = online.measure.proxy, offline.align.source.dataset
        assert isinstance(proxy, FitJudge)
        assert proxy.labels == taken  # judge and offline arm have the same labels
        assert getattr(taken, "keep", None) == regime.labels
        assert twin.align.source.judge == online.align.source.judge == proxy
        assert twin.align.source.arm.sync_every == twin.align.optimization.steps
        assert len({(r.beta, r.learning_rate, r.align.optimization.steps) for r in (online, twin, offline)}) == 1


def test_the_two_studies_share_what_they_have_in_common() -> None:
    made = {name: {r.arm: r.align.name for r in expand(load(name)).runs if r.seed == 600} for name in REGIMES}
    for one, other in zip(EPOCHS_REGIMES[6:], SIZE_REGIMES[:3], strict=True):
        assert [made["epochs"][a] for a in one.arms] == [made["few-labels"][a] for a in other.arms]


def test_a_head_start_is_told_from_an_ignorant_judge(epochs: View) -> None:
    found = {v.name: v for v in EPOCHS.judge(epochs)}
    assert {n: v.outcome for n, v in found.items()} == dict.fromkeys(found, SUPPORTED)
    assert found["head start"].effect.value == pytest.approx(0.12, abs=0.03)
    assert found["head start fades"].effect.value == pytest.approx(0.11, abs=0.04)
    assert found["twins by head start"].effect.value == pytest.approx(1.0, abs=0.2)
    assert EPOCHS.touched(epochs)
    assert not FEW_LABELS.touched(epochs)


def test_a_judge_that_is_too_small_is_told(sizes: View) -> None:
    found = {v.name: v.outcome for v in FEW_LABELS.judge(sizes)}
    for name in ("twins by size", "twins between sizes"):
        assert found.pop(name) == CONTRADICTED  # the planted twins have every sign wrong
    assert found == dict.fromkeys(found, SUPPORTED)
    assert FEW_LABELS.touched(sizes)
    assert not EPOCHS.touched(sizes)


def test_between_judges_forecast_and_measurement_share_no_run(epochs: View) -> None:
    found = between(epochs, EPOCHS_REGIMES, 1.0)
    assert len(found) == 9  # three pairs of judges at each number of labels
    left, right = EPOCHS_REGIMES[0], EPOCHS_REGIMES[3]
    (cell,) = (c for c in found if left.judge in c.name and right.judge in c.name and f"{left.labels:,}" in c.name)
    for values, place in ((cell.measured, 0), (cell.forecast, 1)):
        alone = epochs.at(1.0).contrast({left.arms[place]: 1.0, right.arms[place]: -1.0}).found.budgets[0]
        assert values == pytest.approx(list(alone.by_seed))


def test_where_nothing_is_planted_nothing_is_found() -> None:
    names = dict.fromkeys((r.judge for r in EPOCHS_REGIMES), (0.0, 0.0, 0.0))
    found = {v.name: v.outcome for v in EPOCHS.judge(planted(EPOCHS_REGIMES, names))}
    assert {found[n] for n in ("head start", "head start truth", "head start helps", "head start fades")} == {
        INCONCLUSIVE
    }


def test_the_phase_diagram_draws_both_for_every_judge(epochs: View) -> None:
    dial = phase(EPOCHS_REGIMES)(epochs)
    assert dial is not None
    assert [n for n in dial.series if n.endswith("measured")] == [
        f"{j}, measured" for j in dict.fromkeys(r.judge for r in EPOCHS_REGIMES)
    ]
    assert len(dial.series) == 6
    much = dial.series["16,000 sibling comparisons, measured"]
    assert [p.x for p in much] == [250.0, 1000.0, 4000.0]
    assert [p.value for p in much] == pytest.approx([0.12, 0.06, 0.01], abs=0.03)
    assert all(p.lower < p.value < p.upper for p in much)
    chart = dial_chart(dial)
    assert len(chart.numbers) == 18
    far = scatter(EPOCHS_REGIMES)(epochs)
    assert far is not None
    assert all(p.value == pytest.approx(p.x, abs=0.03) for points in far.series.values() for p in points)
    assert len(cells(epochs, EPOCHS_REGIMES, 1.0)) == 9
    assert phase(EPOCHS_REGIMES)(View(epochs.records[:0], epochs.records[:0], "sft")) is None


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(before, "SEEDS", range(1000, 1001))
    monkeypatch.setattr(before, "BETAS", (0.1, 0.05))


@pytest.mark.usefixtures("quick")
def test_what_is_expected_is_computed_and_keeps_its_time(tmp_path: Path) -> None:
    file = write_expected("few-labels", tmp_path)
    assert file is not None
    table = pd.read_csv(file).query("kl_nats == 1").set_index("online")
    assert table.loc["online", "sign"] == "+"
    assert table.loc["online[small-labels-4000]", "sign"] == "-"
    assert table.loc["online", "tabular_gap"] > table.loc["online[labels-4000]", "tabular_gap"]
    about = (tmp_path / "expected.json").read_text()
    assert len(json.loads(about)["sha256"]) == 64
    write_expected("few-labels", tmp_path)
    assert (tmp_path / "expected.json").read_text() == about
    assert find_faults(tmp_path) == Faults()
    file.write_text("edited")
    assert find_faults(tmp_path) == Faults(changed=("expected.csv",))
    write_expected("few-labels", tmp_path)
    assert pd.read_csv(file).query("kl_nats == 1").set_index("online").equals(table)
    assert (tmp_path / "earlier" / "expected.csv").read_text() == "edited"
    assert (tmp_path / "earlier" / "expected.json").read_text() == about  # with its time
    assert write_expected("opening", tmp_path) is None
    assert not file.exists()  # what was expected of another study stands beside no other's records
    assert find_faults(tmp_path) == Faults()


@pytest.mark.usefixtures("quick")
def test_a_regime_without_an_analogue_has_no_sign() -> None:
    table = expected(EPOCHS_REGIMES[3:9:3])
    assert set(table["sign"][table["online"] == "online[some]"]) == {""}
    assert table["tabular_gap"][table["online"] == "online[some]"].isna().all()
    assert set(table["sign"][(table["online"] == "online[much]") & (table["kl_nats"] == 1)]) == {"+"}


def test_a_forecast_runs_the_twin_of_every_variant(tmp_path: Path) -> None:
    study = load("epochs")
    made = forecast_study(study, 240)
    runs = {r.arm: r.align.name for r in expand(made).runs if r.seed == 600}
    whole = {r.arm: r.align.name for r in expand(study).runs if r.seed == 600}
    for regime in EPOCHS_REGIMES:
        twin, offline = under(TWIN, regime.variant), under("offline", regime.offline)
        assert runs[twin] == whole[regime.arms[1]]  # which the study finds again
        assert runs[offline] == whole[regime.arms[2]]
    (tmp_path / "study.yaml").write_text(json.dumps(made.model_dump(mode="json")))
    records = pd.DataFrame({"arm": list(runs), "opponent": "sft", "seed": 600})
    pairs = varied_pairs(tmp_path, View(records, records[:0], "sft", TWIN, "offline"), TWIN, "offline")
    assert pairs == {
        r.variant: (under(TWIN, r.variant), under("offline", r.offline))
        for r in sorted(EPOCHS_REGIMES, key=lambda r: list(pairs).index(r.variant))
    }
    assert set(study.variants) <= set(pairs)
