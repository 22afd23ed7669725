"""People in the loop: what is drawn, what the blind sheet tells, what comes back, and what the report says."""

from __future__ import annotations

import csv
import json
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import BROWSER, complaint
from synthetic_records import ArmTruth, make

from aligngap.cli import main
from aligngap.ratings.pairs import find_pairs
from aligngap.ratings.sheet import read_choices, read_key
from aligngap.report.people import list_people
from aligngap.storage.columns import PER_PROMPT_COLUMNS, RECORD_COLUMNS, SAMPLE_COLUMNS
from aligngap.storage.records import read_folder, read_ratings, write_table
from aligngap.storage.reuse import begin_folder
from aligngap.types import AligngapError

ARMS = ("online", "offline")
NASTY = '</script><script>alert(1)</script> =1+1\u2028 "quoted", ünï'


@pytest.fixture(scope="module")
def planted() -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    arms = {"online": ArmTruth(gap=0.15, kl_range=(0.5, 14.0)), "offline": ArmTruth(kl_range=(0.4, 12.0))}
    records, per_prompt, _ = make(arms, seeds=(0, 1, 2), prompts=200, opponents=("sft",))
    samples = []
    for (run, arm, seed, step), rows in per_prompt.groupby(["run", "arm", "seed", "step"], sort=False):
        for prompt in rows["prompt_id"].head(40):
            same = prompt.endswith("-7")  # one prompt of a seed to which everybody answers alike
            text = "the same" if same else f"{arm} says {step} of {prompt}"
            samples.append(
                {"run": run, "arm": arm, "seed": seed, "step": step, "prompt_id": prompt, "prompt": NASTY,
                 "response": text, "ended": True}
            )  # fmt: skip
    return records, per_prompt, pd.DataFrame(samples)


@pytest.fixture
def out(tmp_path: Path, planted: tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]) -> Path:
    folder = tmp_path / "out"
    records, per_prompt, samples = planted
    write_table(folder / "records.parquet", records, RECORD_COLUMNS)
    write_table(folder / "per_prompt.parquet", per_prompt, PER_PROMPT_COLUMNS)
    write_table(folder / "samples.parquet", samples, SAMPLE_COLUMNS)
    return folder


def export(out: Path, to: Path, *more: str) -> int:
    return main(["ratings", "export", str(out), "--arms", *ARMS, "--kl", "2", "--pairs", "60", "--to", str(to), *more])


def fill(sheet: Path, key: Path, prefer: float, to: Path, rng_seed: int = 0) -> Path:
    """A rater who prefers the online response with this probability, and says tie of one pair in ten."""
    arms = json.loads(key.read_text())
    left = {p["pair"]: p["first_left"] for p in arms["pairs"]}
    rng = np.random.default_rng(rng_seed)
    rows = list(csv.DictReader(sheet.open(encoding="utf-8", newline="")))
    with to.open("w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["pair", "choice"])
        for row in rows:
            first = rng.random() < prefer
            said = "tie" if rng.random() < 0.1 else "left" if first == left[row["pair"]] else "Right"
            table.writerow([row["pair"], said])
    return to


def test_pairs_are_drawn_so_that_their_gap_is_the_reports(out: Path) -> None:
    tables = read_folder(out)
    wins = tables.per_prompt.set_index(["run", "step", "prompt_id"])["win"]
    kls, gaps = [], []
    for seed in range(12):
        found = find_pairs(tables, ARMS, 2.0, seed)
        kls += [(np.log(p.first.kl_nats), np.log(p.second.kl_nats)) for p in found]
        gaps += [
            wins[p.first.run, p.first.step, p.prompt_id] - wins[p.second.run, p.second.step, p.prompt_id] for p in found
        ]
    assert len(found) == 120  # 40 prompts of each of three seeds
    assert [p.seed for p in found[:6]] == [0, 1, 2, 0, 1, 2]
    assert np.mean(kls, axis=0) == pytest.approx(np.log([2, 2]), abs=0.03)
    # the read-off of the same prompts on the line between the checkpoints, which the draws average to
    assert np.std(gaps) > 0.4
    assert abs(np.mean(gaps) - _read_off(tables)) < 0.04


def _read_off(tables) -> float:  # type: ignore[no-untyped-def]
    kept = tables.samples[["run", "step", "prompt_id"]].drop_duplicates()
    rows = tables.per_prompt.merge(kept, on=["run", "step", "prompt_id"])
    rows = rows.merge(tables.records[["run", "step", "kl_nats"]], on=["run", "step"], suffixes=("_own", ""))
    found: dict[str, list[float]] = {"online": [], "offline": []}
    for (arm, _), run in rows.groupby(["arm", "run"]):
        line = run[run["kl_nats"] > 0].groupby("kl_nats")["win"].mean()
        found[arm].append(float(np.interp(np.log(2.0), np.log(line.index), line.to_numpy())))
    return float(np.mean(found["online"]) - np.mean(found["offline"]))


def test_the_sheet_is_blind_balanced_and_the_same_by_the_same_seed(out: Path, tmp_path: Path) -> None:
    assert export(out, tmp_path / "a") == 0
    text = (tmp_path / "a" / "sheet.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(text.splitlines(keepends=True)))
    [key] = (out / "ratings").glob("*.json")
    told = read_key(out, key.stem)
    assert {r["pair"] for r in rows} == {a.pair for a in told.asked.values() if a.first_left is not None}
    assert [r["pair"] for r in rows] == sorted(r["pair"] for r in rows)
    sides = [a.first_left for a in told.asked.values() if a.first_left is not None]
    assert abs(sum(sides) - len(sides) / 2) <= 0.5
    asked = [r for r in rows if told.asked[r["pair"]].first_left]
    assert all(r["left"].startswith("online") for r in asked)
    page = (tmp_path / "a" / "sheet.html").read_text(encoding="utf-8")
    assert page.count("</script>") == 1
    assert {p.name for p in (tmp_path / "a").iterdir()} == {"sheet.csv", "sheet.html"}
    assert export(out, tmp_path / "b") == 0
    assert (tmp_path / "b" / "sheet.csv").read_bytes() == (tmp_path / "a" / "sheet.csv").read_bytes()
    assert export(out, tmp_path / "c", "--seed", "1") == 0
    assert (tmp_path / "c" / "sheet.csv").read_bytes() != (tmp_path / "a" / "sheet.csv").read_bytes()


def test_too_few_texts_are_told_with_the_setting(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(out, tmp_path / "a", "--pairs", "500") == 0
    told = capsys.readouterr().out
    assert "only 120 pairs at 2 nats are kept as text (40 prompts a checkpoint)" in told
    assert "measurement.samples" in told
    assert "3 of 120 pairs are the same text twice" in told


def test_what_people_say_corrects_the_gap_and_widens_its_interval(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export(out, tmp_path / "a", "--pairs", "90")
    [key] = (out / "ratings").glob("*.json")
    one = fill(tmp_path / "a" / "sheet.csv", key, 0.5, tmp_path / "ann.csv")
    two = fill(tmp_path / "a" / "sheet.csv", key, 0.5, tmp_path / "ben.csv", 1)
    capsys.readouterr()
    assert main(["ratings", "import", str(out), str(one), str(two)]) == 0
    told = capsys.readouterr().out
    assert "rater(s) are in" in told
    assert "People, by 90 rated pairs at 2 nats: online − offline" in told
    from aligngap.report import _analysis

    [found] = list_people(_analysis(out))
    assert found.raters == 2
    assert found.gap.value > 0.08  # what was planted is 0.15
    assert abs(found.corrected.value) < 0.09  # people do not care
    assert np.diff(found.corrected.interval)[0] > 0
    assert found.corrected.interval[0] < 0 < found.corrected.interval[1]
    assert abs(found.agreement.kappa) < 0.25
    assert found.between_raters.pairs == len(read_choices(one)[1])
    assert main(["show", str(out)]) == 0
    assert "Judge and people say the same of" in capsys.readouterr().out
    ratings = read_ratings(out)
    assert set(ratings["rater"]) == {"", "ann", "ben"}
    assert (ratings["human"][ratings["rater"] == ""] == 0.5).all()
    assert main(["ratings", "import", str(out), str(one)]) == 0  # again: replaced, not doubled
    assert len(read_ratings(out)) == len(ratings)


def test_a_rater_who_sees_what_the_judge_sees_agrees_with_it(out: Path, tmp_path: Path) -> None:
    export(out, tmp_path / "a", "--pairs", "90")
    [path] = (out / "ratings").glob("*.json")
    key = read_key(out, path.stem)
    wins = read_folder(out).per_prompt.set_index(["run", "step", "prompt_id"])["win"]
    with (tmp_path / "judge.csv").open("w") as stream:
        print("choice;pair", file=stream)  # in another order, between semicolons
        for a in key.asked.values():
            if a.first_left is not None:
                d = wins[a.runs[0], a.steps[0], a.prompt_id] - wins[a.runs[1], a.steps[1], a.prompt_id]
                said = "tie" if d == 0 else "left" if (d > 0) == a.first_left else "right"
                print(f"{said};{a.pair}", file=stream)
    assert main(["ratings", "import", str(out), str(tmp_path / "judge.csv")]) == 0
    from aligngap.report import _analysis

    [found] = list_people(_analysis(out))
    assert found.agreement.share_decided == 1.0
    assert found.agreement.kappa > 0.9  # identical texts are ties to people, whatever the judge says
    assert found.corrected.weight > 0.3


def test_bad_input_is_one_line(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*words: str) -> str:
        assert main(["ratings", *words]) == 2
        return complaint(capsys.readouterr().err)

    base = ["export", str(out), "--to", str(tmp_path / "x"), "--kl"]
    assert "no such arm; there are online, offline" in refused(*base, "2", "--arms", "online", "none")
    assert "no run of both arms reached it" in refused(*base, "50", "--arms", *ARMS)
    assert "must be above 0" in refused(*base, "0", "--arms", *ARMS)
    export(out, tmp_path / "a")
    capsys.readouterr()
    assert "not an empty folder" in refused("export", str(out), "--kl", "2", "--to", str(tmp_path / "a"))
    sheet = tmp_path / "a" / "sheet.csv"
    pair = next(csv.DictReader(sheet.open(encoding="utf-8", newline="")))["pair"]
    for text, expected in (
        (f"pair,choice\n{pair},\n", "no pair is rated"),
        (f"pair,choice\n{pair},better\n", "row 2: choice is 'better'"),
        (f"pair,choice\n{pair},left\n{pair},right\n", "row 3: pair"),
        (f"name,choice\n{pair},left\n", "needs the columns pair and choice"),
        ("pair,choice\n00000000-0001,left\n", "has no key 00000000"),
        ("pair,choice\n../../x-1,left\n", "is no name of a pair"),
        (f"pair,choice\n{pair},left\n{pair[:-4]}9999,left\n", "is not of key"),
    ):
        sheet.write_text(text)
        assert expected in refused("import", str(out), str(sheet))
    assert not (out / "ratings.parquet").exists()


def test_other_texts_than_those_rated_are_refused(out: Path, tmp_path: Path) -> None:
    export(out, tmp_path / "a")
    [key] = (out / "ratings").glob("*.json")
    sheet = fill(tmp_path / "a" / "sheet.csv", key, 0.5, tmp_path / "ann.csv")
    samples = read_folder(out).samples
    write_table(out / "samples.parquet", samples.assign(response=samples["response"] + "."), SAMPLE_COLUMNS)
    from aligngap.ratings.command import take_in

    with pytest.raises(AligngapError, match="other responses than those rated"):
        take_in(out, [sheet])


DRIVE = """<script>
const press = key => document.body.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
let blob; URL.createObjectURL = b => { blob = b; return "#"; };
const before = at("count").textContent;
if (before.includes(" 0 rated")) for (const k of ["ArrowLeft", "ArrowRight", "ArrowDown", "Backspace", "1"])
  press(k);
at("rater").value = "ann, b"; at("rater").oninput(); press("d");

document.body.textContent = before + "|" + table();
</script>"""


@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
def test_the_page_is_rated_by_keyboard_and_keeps_its_choices(out: Path, tmp_path: Path) -> None:
    export(out, tmp_path / "a", "--pairs", "6")
    page = tmp_path / "a" / "sheet.html"
    page.write_text(page.read_text(encoding="utf-8").replace("</body>", DRIVE + "</body>"), encoding="utf-8")

    def opened() -> str:
        words = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
        done = subprocess.run(
            [*words, "--virtual-time-budget=2000", "--dump-dom", page.as_uri()], capture_output=True, text=True,
            timeout=120, check=True,
        )  # fmt: skip
        return done.stdout.partition("<body>")[2].partition("</body>")[0]

    first, table = opened().split("|")
    assert first.startswith("pair 1 of 6, 0 rated")
    rows = table.strip().splitlines()
    assert rows[0] == "pair,choice,rater"
    assert [r.split(",")[1] for r in rows[1:]] == ["left", "right", "left", "", "", ""]
    assert rows[1].endswith('"ann, b"')
    again, table = opened().split("|")
    assert again.startswith("pair 4 of 6, 3 rated")
    (tmp_path / "back.csv").write_text(table.strip() + "\n")
    rater, choices = read_choices(tmp_path / "back.csv")
    assert rater == "ann, b"
    assert len(choices) == 3
    assert main(["ratings", "import", str(out), str(tmp_path / "back.csv")]) == 0


def test_ratings_stay_with_the_responses_that_were_rated(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Records written again leave them; other responses in their place move them aside, where no report reads them."""
    export(out, tmp_path / "sheets")
    (key,) = (out / "ratings").glob("*.json")
    filled = fill(tmp_path / "sheets" / "sheet.csv", key, 0.6, tmp_path / "rater.csv")
    assert main(["ratings", "import", str(out), str(filled)]) == 0
    samples = read_folder(out).samples
    begin_folder(out, "name: again", samples)
    assert (out / "ratings.parquet").exists()
    rated = read_ratings(out).iloc[0]
    mine = (samples["arm"] == rated["first"]) & (samples["step"] == rated["first_step"])
    mine &= (samples["seed"] == rated["seed"]) & (samples["prompt_id"] == rated["prompt_id"])
    assert mine.any()
    begin_folder(out, "name: again", samples.assign(response=samples["response"].mask(mine, "other words")))
    assert not (out / "ratings.parquet").exists()
    assert (out / "earlier" / "ratings.parquet").exists()
    assert "moved to" in capsys.readouterr().err
    assert not len(read_folder(out).ratings)
