"""A survey of other people's checkpoints: planned, resumed and collected; what is lost of it is nothing but time."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import BREAKS_AT_THE_THIRD_CALL, WORDS, tiny_policy

from aligngap.execute.worker import make
from aligngap.instrument.ceilings import write_ceilings
from aligngap.instrument.deploy import placed
from aligngap.instrument.folders import find_checkpoints
from aligngap.instrument.gauge import Gauge
from aligngap.instrument.judging import parse_judge
from aligngap.instrument.pick import export_pick, pick, say_where, sentences
from aligngap.instrument.rows import OfRun, frames_of, write_frames
from aligngap.instrument.survey import Setting, Survey, plan_survey
from aligngap.instrument.tables import collect, matches, write_matches
from aligngap.pipeline import checkpoints
from aligngap.pipeline.checkpoints import AskJudge, PromptSet
from aligngap.pipeline.context import Context
from aligngap.storage.records import read_folder
from aligngap.storage.store import Store
from aligngap.types import AligngapError, RunFailed

PROMPTS = "\n".join(f"{a} {b}" for a, b in itertools.product(WORDS[:6], WORDS[6:16]))


@dataclass
class Place:
    """A folder with a reference, runs of two policies, prompts and a store."""

    folder: Path
    told: list[str] = field(default_factory=list)

    def setting(self, **given: Any) -> Setting:
        own = {"reference": str(self.folder / "sft"), "prompts": str(self.folder / "p.txt"), "response_tokens": 8}
        return Setting(**{"count": 40, **own, **given})

    def plan(self, *words: str, **given: Any) -> Survey:
        self.told = []
        wanted = words or ("online=runs/online-seed*", "offline=runs/offline-seed*")
        found = find_checkpoints([[w.replace("=", f"={self.folder}/", 1)] for w in wanted], self.told.append)
        return plan_survey("mine", self.setting(**given), found, self.told.append)

    def context(self) -> Context:
        return Context(Store(self.folder / "store"))

    def make(self, survey: Survey, ctx: Context | None = None) -> int:
        """Make what is not there; the number of steps made."""
        context = ctx or self.context()
        return sum(make(step, context) for step in survey.steps())


def drifting(folder: Path, arms: dict[str, int], seeds: int, sizes: dict[int, float]) -> None:
    """A reference and runs whose weights move away from it step by step."""
    reference = tiny_policy("llama", response_tokens=8)
    reference.save(folder / "sft")
    for arm, start in arms.items():
        for seed in range(seeds):
            generator = torch.Generator().manual_seed(start + seed)
            ways = [torch.randn(p.shape, generator=generator) for p in reference.model.parameters()]
            for step, size in sizes.items():
                policy = reference.copy("moved")
                with torch.no_grad():
                    for weight, way in zip(policy.model.parameters(), ways, strict=True):
                        weight.add_(size * way)
                policy.save(folder / f"runs/{arm}-seed{seed}/checkpoint-{step}")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setenv("ALIGNGAP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("aligngap.instrument.survey.SETTLED_SECONDS", 0.0)
    drifting(tmp_path, {"online": 10, "offline": 20}, 2, {10: 0.05, 20: 0.1})
    (tmp_path / "p.txt").write_text(PROMPTS)
    return Place(tmp_path)


JUDGE = """
def prefer(prompts, a, b):
    return [(len(x.split()) - len(y.split()) + 8) / 16 for x, y in zip(a, b)]
"""


@pytest.fixture
def judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Writes a module of a function that judges, and gives its name for `--judge`."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(text: str, name: str) -> str:
        (tmp_path / f"{name}.py").write_text(text)
        return f"{name}:prefer"

    return write  # type: ignore[return-value]


def test_a_survey_measures_what_a_gauge_measures(place: Place, judge: Any) -> None:
    spec = parse_judge(judge(JUDGE, "longer_one"))
    survey, ctx = place.plan(judges=(spec,)), place.context()
    assert place.make(survey, ctx) == 2 + 8 + 8 + (2 + 8)  # the last ones stand behind rho
    out = place.folder / "out"
    assert collect(survey, ctx, out, "aligngap measure", ["online", "offline"], [1.0, 2.0]) == 8
    tables = read_folder(out)
    assert sorted(tables.records["step"].unique()) == [0, 10, 20]
    assert len(tables.records) == 4 * 3
    gauge = Gauge(place.folder / "sft", place.folder / "p.txt", [spec], response_tokens=8, count=40)
    for run, step in (("online seed=0", 10), ("offline seed=1", 20)):
        row = tables.records[(tables.records["run"] == run) & (tables.records["step"] == step)].iloc[0]
        arm, seed = run.split(" seed=")
        measured = gauge.measure(place.folder / f"runs/{arm}-seed{seed}/checkpoint-{step}").rows[0]
        for name in ("kl_nats", "forward_kl_nats", "win_rate", "length_tokens", "entropy_nats", "unended"):
            assert row[name] == pytest.approx(measured[name], abs=1e-9), name
    zero = tables.records[tables.records["step"] == 0]
    assert (zero["kl_nats"] == 0).all()
    assert (zero["win_rate"] == 0.5).all()


def test_the_same_weights_elsewhere_are_measured_once(place: Place) -> None:
    survey, ctx = place.plan(), place.context()
    place.make(survey, ctx)
    shutil.copytree(place.folder / "runs" / "online-seed0" / "checkpoint-10", place.folder / "moved" / "checkpoint-99")
    again = place.plan("other=moved")
    assert place.make(again, ctx) == 0
    assert place.make(place.plan("other=moved", response_tokens=7), ctx) == 3
    assert place.make(place.plan("other=moved", seed=1), ctx) == 3


def test_the_same_weights_are_no_second_run_of_a_policy(place: Place) -> None:
    """A copy passed off as another seed is refused, whatever its config.json says; copies of the reference are not."""
    runs = place.folder / "runs"
    for seed in (0, 1):
        shutil.copytree(place.folder / "sft", runs / f"online-seed{seed}" / "checkpoint-5")
    place.plan()
    assert place.told == []
    shutil.copytree(runs / "offline-seed0", runs / "copied-seed1")
    place.plan("online=runs/offline-seed0", "offline=runs/offline-seed*", "copied=runs/copied-seed1")
    assert place.told == [
        "policies online and offline share the weights of 2 checkpoints",
        "policies online and copied are the same weights throughout; a difference is none of training",
        "policies offline and copied share the weights of 2 checkpoints",
    ]
    shutil.rmtree(runs / "offline-seed1")
    shutil.move(runs / "copied-seed1", runs / "offline-seed1")
    config = runs / "offline-seed1" / "checkpoint-10" / "config.json"
    config.write_text(config.read_text() + "\n")
    two = r"offline-seed0/checkpoint-10 and .*offline-seed1/checkpoint-10 hold the same weights"
    with pytest.raises(AligngapError, match=f"{two}, given as offline seed=0@10 and offline seed=1@10; leave one out"):
        place.plan()


def test_a_hundred_checkpoints_resume_without_one_done_twice(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    source = place.folder / "runs" / "online-seed0" / "checkpoint-10"
    for step in range(1, 101):
        folder = place.folder / "many" / f"checkpoint-{step}"
        shutil.copytree(source, folder)
        file = folder / "model.safetensors"
        body = bytearray(file.read_bytes())
        body[-1] = body[-1] & 0x80 | 0x3C  # each differs from the others in its last weight, and in little else
        body[-3] = step
        file.write_bytes(body)
    survey = place.plan("many=many", count=4, response_tokens=2, forward=0)
    assert len(survey.readings) == 100
    read, ask_to_stop = [], 40
    own = checkpoints.read_policy

    def counted(policy: Any, *given: Any, **more: Any) -> Any:
        if len(read) == ask_to_stop:
            raise KeyboardInterrupt
        read.append(policy.key)
        return own(policy, *given, **more)

    monkeypatch.setattr(checkpoints, "read_policy", counted)
    with pytest.raises(KeyboardInterrupt):
        place.make(survey)
    ask_to_stop = -1
    assert place.make(place.plan("many=many", count=4, response_tokens=2, forward=0)) == 101 - 40
    assert len(read) == len(set(read)) == 101
    assert place.make(place.plan("many=many", count=4, response_tokens=2, forward=0)) == 0


def test_a_judge_that_fails_half_way_loses_nothing(place: Place, judge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = parse_judge(judge(BREAKS_AT_THE_THIRD_CALL, "breaks_once"))
    import breaks_once  # type: ignore[import-not-found]

    one, ctx = "online=runs/online-seed0/checkpoint-10", place.context()
    survey = place.plan(one, judges=(spec,), reference_samples=0)
    *before, verdict = survey.steps()
    for step in before:
        make(step, ctx)
    assert isinstance(verdict, AskJudge)
    with pytest.raises(RunFailed, match=r"the line is dead; its earlier answers are kept, repeat the command"):
        make(verdict, ctx)
    assert breaks_once.calls == [32, 32]  # 40 prompts, in both orders: the first 32 are answered
    collect(survey, ctx, place.folder / "out", "", ["online"], [1.0])
    rows = read_folder(place.folder / "out").records
    assert rows[rows["step"] == 10]["kl_nats"].notna().all()
    assert rows[rows["step"] == 10]["win_rate"].isna().all()
    breaks_once.most[0] = 100
    make(verdict, ctx)
    assert breaks_once.calls == [32, 32, 8, 8]
    np.testing.assert_array_equal(verdict.wins(ctx), np.full(40, 0.5))


def test_a_checkpoint_that_is_being_written_is_passed_over_and_taken_in_later(place: Place) -> None:
    file = place.folder / "runs" / "online-seed0" / "checkpoint-20" / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    survey = place.plan()
    assert len(survey.readings) == 7
    assert "is shorter than it says" in place.told[0]
    assert "passed over, repeat the command when it is there" in place.told[0]
    ctx = place.context()
    place.make(survey, ctx)
    file.write_bytes(whole)
    later = place.plan()
    assert place.told == []
    assert place.make(later, ctx) == 1
    last = next(weights for c, weights in later.readings.items() if (c.arm, c.seed, c.step) == ("online", 0, 20))
    file.write_bytes(whole[:-1] + b"\x00")
    assert last.policy is not None
    with pytest.raises(RunFailed, match="its files have changed since the command began"):
        last.policy.check()


@pytest.mark.parametrize(
    "file", ["p.txt", "sft/tokenizer_config.json", "sft/generation_config.json", "sft/chat_template.jinja"]
)
def test_what_changes_between_the_plan_and_the_work_is_refused(place: Place, file: str) -> None:
    """Of the same size and with its time kept: prompts, and how the reference reads them; their keys are of the old."""
    path = place.folder / file
    if not path.exists():
        path.write_text("{{ messages }}")
    survey, at, text = place.plan(chat=False), path.stat(), path.read_bytes()
    first, second, rest = text.split(b"\n", 2) if file == "p.txt" else (text, b"", b"")
    other = b"\n".join([second, first, rest]) if file == "p.txt" else text.replace(b" ", b"\t", 1)
    path.write_bytes(other)
    os.utime(path, ns=(at.st_atime_ns, at.st_mtime_ns))
    assert path.stat().st_size == len(text)
    assert other != text
    with pytest.raises(RunFailed, match="changed since the command began; repeat the command"):
        make(survey.prompts, place.context())
    assert place.make(place.plan(chat=False), place.context()) == 1 + 1 + 8
    path.write_bytes(text)
    again = place.plan(chat=False)
    assert again.prompts.name == survey.prompts.name
    assert place.make(again, place.context()) == 1 + 1 + 8


def test_what_cannot_be_surveyed_is_one_line(place: Place) -> None:
    with pytest.raises(AligngapError, match=r"--reference .*gone: no such folder here, and no name of the hub"):
        place.plan(reference=str(place.folder / "gone"))
    tiny_policy("llama", words=WORDS[:5]).save(place.folder / "other")
    with pytest.raises(AligngapError, match=r"its tokenizer is not that of the reference .*so that no KL is defined"):
        place.plan("other=other")
    with pytest.raises(AligngapError, match="reads at most 64 tokens, and --prompt-tokens 60 with --response-tokens 8"):
        place.plan(prompt_tokens=60)
    with pytest.raises(AligngapError, match="but its tokenizer has no chat template"):
        place.plan(chat=True)
    shutil.rmtree(place.folder / "runs" / "online-seed0" / "checkpoint-10")
    (place.folder / "runs" / "online-seed0" / "checkpoint-20" / "model.safetensors").unlink()
    with pytest.raises(AligngapError, match="no checkpoint is whole yet"):
        place.plan("online=runs/online-seed0/checkpoint-20")
    (place.folder / "p.txt").write_text(" ".join(WORDS * 8) + "\nriver lamp\n")
    ctx, survey = place.context(), place.plan("offline=runs/offline-seed0")
    with pytest.raises(AligngapError, match=r"1 usable prompts after dropping 1 over 56 tokens.*--prompt-tokens"):
        make(next(s for s in survey.steps() if isinstance(s, PromptSet)), ctx)


def test_checkpoints_are_compared_with_each_other_at_equal_kl(place: Place, judge: Any) -> None:
    spec = parse_judge(judge(JUDGE, "longer_two"))
    survey, ctx = place.plan(judges=(spec,)), place.context()
    place.make(survey, ctx)
    kls = {c: float(s.read(ctx).kl.mean()) for c, s in survey.readings.items()}
    middle = float(np.median(list(kls.values())))
    found = matches(survey, ctx, [middle, 1.001 * middle, 1000.0])
    assert found
    for m in found:
        assert m.left.arm == "online"
        assert m.right.arm == "offline"
        assert m.left.seed == m.right.seed == m.seed
        assert max(abs(np.log(kl / m.kl)) for kl in m.kls) <= np.log(1.35)
        make(m.step, ctx)
    (line,) = write_matches(found, ctx, place.folder)
    assert "online" in line
    assert "wins against offline" in line
    assert f"at about {middle:g} and {1.001 * middle:g} nats" in line  # the same checkpoints are said once
    table = (place.folder / "matched.csv").read_text().splitlines()
    assert len(table) == 1 + len(found)


def test_what_another_study_left_in_the_folder_is_gone(place: Place) -> None:
    """Files that only some commands write, pages and forecasts: of the folder's records, or not there."""
    survey, ctx, out = place.plan(), place.context(), place.folder / "out"
    place.make(survey, ctx)
    (out / "figures").mkdir(parents=True)
    derived = ("matched.csv", "ceilings.csv", "best_of_n.parquet", "probe.parquet", "crossed.parquet")
    pages, kept = ("report.html", "summary.md", "figures/gap.svg"), ("forecast.csv", "expected.csv", "expected.json")
    for name in ("study.yaml", *derived, *pages, *kept, "notes.txt"):
        (out / name).write_text("another's")
    collect(survey, ctx, out, "", ["online", "offline"], [1.0])
    write_matches([], ctx, out)
    write_ceilings(survey, ctx, out)
    assert [name for name in (*derived, *pages, *kept) if (out / name).exists()] == []
    assert sorted(p.name for p in (out / "earlier").iterdir()) == sorted(kept)
    assert (out / "notes.txt").exists()
    (out / "report.html").write_text("its own")
    collect(survey, ctx, out, "", ["online", "offline"], [1.0])
    assert (out / "report.html").exists()


# ----------------------------------------------------------------------------------------------------------- picking


def write_planted(
    out: Path, rates: dict[str, Sequence[tuple[int, float, float]]], paired: bool = True, prompts: int = 400
) -> None:
    """Tables of checkpoints (step, KL, win probability) whose wins are drawn from a seed.

    Where they are `paired`, every checkpoint wins the easier prompts.
    """
    from aligngap.measurement import Measured
    from aligngap.storage.columns import PER_PROMPT_COLUMNS, RECORD_COLUMNS

    rng = np.random.default_rng(0)
    hard = rng.permutation((np.arange(prompts) + 0.5) / prompts)
    found = []
    for arm, of in rates.items():
        for step, kl, rate in of:
            own = hard + 0.05 * rng.standard_normal(prompts) if paired else rng.random(prompts)
            won = (own < rate).astype(float)
            row = dict.fromkeys(RECORD_COLUMNS, 0.0) | {"opponent": "sft", "kl_nats": kl, "kl_nats_se": 0.05}
            row |= {"win_rate": won.mean(), "prompts": prompts, "ties": 0, "accuracy_pairs": 0}
            each = [
                dict.fromkeys(PER_PROMPT_COLUMNS, 0.0)
                | {"opponent": "sft", "prompt_id": f"p{i}", "win": w, "length_tokens": 1, "opponent_length_tokens": 1}
                for i, w in enumerate(won)
            ]
            found.append((OfRun("mine", arm, 0, step), Measured([row], each, [])))
    write_frames(out, frames_of(found))


def test_the_pick_is_the_best_within_the_budget_scored_on_the_other_half(tmp_path: Path) -> None:
    write_planted(tmp_path, {"online": [(10, 1.0, 0.6), (20, 1.9, 0.7), (30, 4.0, 0.9)], "offline": [(10, 1.5, 0.5)]})
    found = pick(tmp_path, 2.0)
    assert found.chosen.name == "online seed=0@20"
    assert found.candidates == 3
    assert found.beyond == 1
    assert found.choosing + found.chosen.win.n == 400
    assert 150 < found.choosing < 250
    assert found.interval[0] < 0.7 < found.interval[1]
    assert found.alike == ()
    assert pick(tmp_path).chosen.name == "online seed=0@30"
    assert pick(tmp_path, 2.0, "offline").chosen.name == "offline seed=0@10"
    assert "doubt: it is not shown to beat the reference" in "\n".join(sentences(pick(tmp_path, 2.0, "offline")))
    with pytest.raises(AligngapError, match=r"nearest is online seed=0@10 at 1: raise --kl"):
        pick(tmp_path, 0.5)
    with pytest.raises(AligngapError, match="no policy `dpo`; it has: online, offline"):
        pick(tmp_path, 2.0, "dpo")


def test_a_pick_among_equals_is_not_flattered(tmp_path: Path) -> None:
    write_planted(tmp_path, {"dpo": [(step, 1.0, 0.5) for step in range(1, 41)]}, paired=False)
    found = pick(tmp_path, 2.0)
    best = float(read_folder(tmp_path).records["win_rate"].max())
    assert best > 0.53
    assert found.interval[0] < 0.5 < found.interval[1]
    assert found.chosen.win.value < best
    assert len(found.alike) >= 37


def test_a_pick_of_paths_from_elsewhere_is_found(place: Place, judge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured with paths as from one working directory, and picked from another; also of before that was noted."""
    spec, elsewhere = parse_judge(judge(JUDGE, "longer_four")), place.folder / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(place.folder)
    setting = place.setting(reference="sft", prompts="p.txt", judges=(spec,))
    survey = plan_survey("mine", setting, find_checkpoints([["online=runs/online-seed0"]]), place.told.append)
    place.make(survey)
    collect(survey, place.context(), Path("out"), "aligngap measure", ["online"], [1.0])
    out = place.folder / "out"
    found = pick(out)
    run = f"runs/online-seed0/checkpoint-{found.chosen.step}"
    assert say_where(out, found) == [f"it lies in {run}"]
    monkeypatch.chdir(elsewhere)
    assert pick(out).doubts == ()
    assert say_where(out, found) == [f"it lies in {place.folder / run}"]
    assert placed({"path": "runs/lora", "base": "sft"}, out)["base"] == str(place.folder / "sft")
    assert placed({"path": "runs/lora", "base": "owner/name"}, out)["base"] == "owner/name"  # on the hub
    for file in (place.folder / run).glob("tokenizer*"):
        file.unlink()
    assert "tokenizer.json" in say_where(out, found)[0]
    about = json.loads((out / "provenance.json").read_text())
    for told in about["runs"][found.chosen.run]["checkpoints"].values():
        del told["beside"], told["base"]
    (out / "provenance.json").write_text(json.dumps(about))
    assert say_where(out, found) == [f"it lies in {place.folder / run}"]
    to = export_pick(out, found, elsewhere / "deploy", None)
    assert (to / "tokenizer.json").read_bytes() == (place.folder / "sft" / "tokenizer.json").read_bytes()
    del about["directory"], about["reference"]
    (out / "provenance.json").write_text(json.dumps(about))
    assert "is no longer there" in say_where(out, found)[0]
    monkeypatch.chdir(place.folder)
    assert say_where(out, found) == [f"it lies in {run}"]


def test_a_pick_is_written_as_a_folder_that_stands_alone(place: Place, judge: Any) -> None:
    spec = parse_judge(judge(JUDGE, "longer_three"))
    survey, ctx, out = place.plan(judges=(spec,)), place.context(), place.folder / "out"
    place.make(survey, ctx)
    collect(survey, ctx, out, "aligngap measure", ["online", "offline"], [1.0])
    found = pick(out)
    (place.folder / "runs" / "online-seed0" / "checkpoint-20" / "optimizer.pt").write_bytes(b"large")
    to = export_pick(out, found, place.folder / "deploy", None)
    names = {f.name for f in to.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= names
    assert "optimizer.pt" not in names
    assert found.chosen.name in (to / "README.md").read_text()
    gauge = Gauge(place.folder / "sft", place.folder / "p.txt", response_tokens=8, count=40)
    assert gauge.kl(to).reverse.value == pytest.approx(found.chosen.kl.value, abs=1e-9)
    arm, seed = found.chosen.run.split(" seed=")
    weights = place.folder / f"runs/{arm}-seed{seed}/checkpoint-{found.chosen.step}/model.safetensors"
    assert say_where(out, found) == [f"it lies in {weights.parent}"]
    for name in ("tokenizer.json", "generation_config.json", "chat_template.jinja"):
        file = weights.parent / name
        before = file.read_bytes() if file.exists() else None
        file.write_bytes((before or b"") + b" ")
        (line,) = say_where(out, found)
        assert line.startswith(f"doubt: {weights.parent}: {name} has changed since {found.chosen.name} was measured")
        with pytest.raises(AligngapError, match=f"{name} has changed since .* was measured"):
            export_pick(out, found, place.folder / "again", None)
        file.unlink() if before is None else file.write_bytes(before)
    assert pick(out).doubts == ()
    for name in ("tokenizer_config.json", "model.safetensors"):
        file = place.folder / "sft" / name
        before = file.read_bytes()
        file.write_bytes(before.replace(b"{", b"{ ", 1) if name.endswith("json") else before[:-1] + b"\x11")
        (doubt,) = pick(out).doubts
        assert doubt.startswith(f"{place.folder / 'sft'}: the reference, against which everything was measured, has ch")
        assert f"doubt: {doubt}" in sentences(pick(out))
        file.write_bytes(before)
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + b"\x11")
    with pytest.raises(AligngapError, match=r"has changed since .* was measured; measure it again"):
        export_pick(out, found, place.folder / "again", None)
    (line,) = say_where(out, found)
    assert line.startswith(f"doubt: {weights.parent}: has changed since {found.chosen.name} was measured")
    weights.write_bytes(whole[:-9])
    assert "it is not what was measured" in say_where(out, found)[0]
    shutil.rmtree(weights.parent)
    assert "is no longer there" in say_where(out, found)[0]
