"""The report: made from any records, says what cannot be concluded, escapes hostile text, needs no torch."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import BROWSER
from synthetic_records import ArmTruth, best_of_n_rows, make

from aligngap.hypotheses.verdicts import INCONCLUSIVE, SUPPORTED
from aligngap.report import build_report, headline, words
from aligngap.report.chart import Payload, escape_json
from aligngap.report.figures import clip_text, difference_limits
from aligngap.report.folder import find_command
from aligngap.report.page import mark_settings
from aligngap.report.sections import say_leading
from aligngap.storage.columns import BEST_OF_N_COLUMNS, PER_PROMPT_COLUMNS, RECORD_COLUMNS, SAMPLE_COLUMNS
from aligngap.storage.listing import writing
from aligngap.storage.records import (
    BEST_OF_N,
    FORMAT_KEY,
    PER_PROMPT,
    RECORDS,
    SAMPLES,
    read_folder,
    read_per_prompt,
    read_records,
    read_samples,
    write_table,
)
from aligngap.types import AligngapError, Estimate, Verdict

HOSTILE = "<script>alert(1)</script> </script><img src=x onerror=alert(2)> <b>x</b> %{x} & \"'"
Frames = tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]


def save(folder: Path, frames: Frames) -> Path:
    records, per_prompt, samples = frames
    write_table(folder / "records.parquet", records, RECORD_COLUMNS)
    write_table(folder / "per_prompt.parquet", per_prompt, PER_PROMPT_COLUMNS)
    write_table(folder / "samples.parquet", samples, SAMPLE_COLUMNS)
    return folder


# ------------------------------------------------------------------------------------------------------- records


def test_tables_come_back_as_written(tmp_path: Path) -> None:
    frames = make(prompts=5, seeds=(0,), opponents=("sft",))
    save(tmp_path, frames)
    for read, frame in zip((read_records, read_per_prompt, read_samples), frames, strict=True):
        pd.testing.assert_frame_equal(read(tmp_path), frame, check_dtype=False)
    rows = frames[2].to_dict("records")
    write_table(tmp_path / "again.parquet", rows, SAMPLE_COLUMNS)
    pd.testing.assert_frame_equal(read_samples(tmp_path / "again.parquet"), frames[2], check_dtype=False)
    assert pq.read_schema(tmp_path / "again.parquet").metadata[FORMAT_KEY] == b"1"
    assert not list(tmp_path.glob(".*.tmp"))


def test_texts_come_as_sorted_categories_where_asked(tmp_path: Path) -> None:
    records = make(prompts=5, seeds=(1, 0), opponents=("sft", "chosen"))[0]
    write_table(tmp_path / "records.parquet", records, RECORD_COLUMNS)
    table = pq.read_table(tmp_path / "records.parquet")
    pq.write_table(table, tmp_path / "records.parquet", row_group_size=7)  # each with a dictionary of its own
    found = read_records(tmp_path, ("arm", "run", "no such column"))
    assert list(found.select_dtypes("category")) == ["arm", "run"]
    for name in ("arm", "run"):
        assert list(found[name].cat.categories) == sorted(set(records[name]))
    plain = found.assign(arm=found["arm"].astype(str), run=found["run"].astype(str))
    pd.testing.assert_frame_equal(plain, read_records(tmp_path), check_dtype=False)


def test_nan_is_undefined_and_infinite_is_too(tmp_path: Path) -> None:
    records = make(prompts=5, seeds=(0,), opponents=("sft",))[0]
    records.loc[0, "kl_nats"] = np.inf
    records.loc[1, "kl_nats"] = np.nan
    write_table(tmp_path / "records.parquet", records, RECORD_COLUMNS)
    assert read_records(tmp_path)["kl_nats"].isna().sum() == 2


def test_no_rows_can_be_written_and_read(tmp_path: Path) -> None:
    write_table(tmp_path / "samples.parquet", [], SAMPLE_COLUMNS)
    assert list(read_samples(tmp_path).columns) == list(SAMPLE_COLUMNS)


def one_line(error: pytest.ExceptionInfo[AligngapError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def with_column(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    changed = table.set_column(table.schema.get_field_index(name), name, values)
    return changed.replace_schema_metadata({FORMAT_KEY: b"1"})


def not_utf8(rows: int) -> pa.Array:
    bytes_ = pa.array([b"\xff"] * rows, pa.binary())
    return pa.Array.from_buffers(pa.string(), rows, bytes_.buffers())


def test_bad_tables_get_one_clear_line(tmp_path: Path) -> None:
    frames = make(prompts=5, seeds=(0,), opponents=("sft",))
    save(tmp_path, frames)
    path = tmp_path / "records.parquet"
    with pytest.raises(AligngapError) as error:
        read_records(tmp_path / "nowhere" / "records.parquet")
    assert "no such file" in one_line(error)
    table = pq.read_table(path)
    cases = {
        "missing column(s) kl_nats, win_rate": table.drop_columns(["win_rate", "kl_nats"]),
        "newer": table.replace_schema_metadata({FORMAT_KEY: b"99"}),
        "not written by aligngap": table.replace_schema_metadata({}),
        "wrong type": with_column(table, "step", pa.array(["a"] * len(table))),
        "has the wrong type": with_column(table, "arm", pa.array([1] * len(table))),
        "holds text that is not UTF-8": with_column(table, "arm", not_utf8(len(table))),
    }
    for message, bad in cases.items():
        pq.write_table(bad, path)
        with pytest.raises(AligngapError) as error:
            build_report(tmp_path)
        assert message in one_line(error)
        assert "records.parquet" in one_line(error)
    path.write_bytes(b"not parquet")
    with pytest.raises(AligngapError) as error:
        read_folder(tmp_path)
    assert "not a readable Parquet file" in one_line(error)
    with pytest.raises(AligngapError) as error:
        write_table(path, frames[0].drop(columns="kl_nats"), RECORD_COLUMNS)
    assert "kl_nats" in one_line(error)
    with pytest.raises(AligngapError) as error:
        write_table(path, frames[0].assign(extra=1), RECORD_COLUMNS)
    assert "extra" in one_line(error)
    with pytest.raises(AligngapError) as error:
        write_table(path, frames[0].assign(step="x"), RECORD_COLUMNS)
    assert "does not fit" in one_line(error)
    assert path.read_bytes() == b"not parquet"  # a failed write leaves the old file


# -------------------------------------------------------------------------------------------------------- report


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    arms = {
        "online": ArmTruth(gap=0.1),
        "offline": ArmTruth(configs=2, spread=0.03),
        "online-golden": ArmTruth(gap=0.14),
    }
    save(folder, make(arms, seeds=range(5), prompts=120, texts=(HOSTILE, "plain")))
    write_table(folder / BEST_OF_N, best_of_n_rows(), BEST_OF_N_COLUMNS)
    (folder / "provenance.json").write_text(
        json.dumps({"artifacts": {"sft-1": {"commit": "abc123", "device": HOSTILE, "seconds": 1.5}}})
    )
    (folder / "study.yaml").write_text("name: opening # " + HOSTILE)
    build_report(folder, command="aligngap run opening --set seeds=3")
    return folder


def test_a_report_made_again_keeps_the_command_that_made_the_records(made: Path, tmp_path: Path) -> None:
    assert find_command(made, {"command": "aligngap run mine"}) == "aligngap run mine"
    assert find_command(made, {}) == "aligngap run opening --set seeds=3"  # of the summary, where provenance is too old
    assert find_command(tmp_path, {}) == f"aligngap report {tmp_path}"


def test_everything_is_there(made: Path) -> None:
    names = {p.name for p in (made / "figures").iterdir()}
    for stem in ("opening", "difference", "over-optimisation", "dynamics"):
        assert {f"{stem}.{s}" for s in ("png", "svg", "pdf", "csv")} <= names
    numbers = pd.read_csv(made / "figures" / "opening.csv")
    assert set(numbers["what"]) == {"checkpoint", "frontier", "peak", "sft level", "best-of-n"}
    assert numbers[numbers["what"] == "frontier"][["lower", "win_rate", "upper"]].notna().all().all()
    text = (made / "summary.md").read_text()
    assert "At equal KL, online beats offline in win rate: +0." in text
    assert "The primary family, named before the runs" in text
    assert "The paper's protocol" in text
    assert "## Each arm at its best configuration" not in text  # online ran one
    for name in ("R1 online", "R1 offline", "R2", "R7", "R8", "online-golden − offline", "online-golden − online"):
        assert name in text


def test_page_answers_first_and_needs_no_network(made: Path) -> None:
    page = (made / "report.html").read_text()
    body, script = page[: page.index("<script")], page[page.index('<script type="application/json"') :]
    assert re.search(r"<h1[^>]*>At equal KL, online beats offline in win rate\.</h1>", body)
    first = body[body.index("</h1>") : body.index("<summary>")]
    tiles = re.findall(r'class="tile"><span>(.*?)</span><b>(.*?)</b>', first)
    assert [label for label, _ in tiles] == ["online − offline at 4 nats", "online − offline at 8 nats", "evidence"]
    assert all(re.fullmatch(r"\+0\.\d{3}", value) for _, value in tiles[:2])
    assert tiles[2][1] == "5 seeds"
    assert first.index('data-chart="opening"') < first.index("What would change this")
    assert [word for word in ("<b>seeds</b>", "<b>prompts</b>", "<b>KL</b>") if word not in first] == []
    sentence = r"\+0\.\d{3} \(.0\.\d{3} to \+0\.\d{3}\) at 1 nat"
    assert re.search(sentence, body[body.index("What it rests on") :])
    assert "abc123" in page
    assert "aligngap run opening --set seeds=3" in page
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?:https?:)?//""", body)
    assert "@import" not in body
    assert "fetch(" not in script
    assert "prefers-color-scheme: dark" in body
    assert "@media print" in body
    assert len(page) < 2**20


def charts_of(page: str) -> dict[str, Any]:
    [text] = re.findall(r'<script type="application/json" id="charts">(.*?)</script>', page, re.DOTALL)
    assert "<" not in text
    found: dict[str, Any] = json.loads(text)
    return found


TRY = """<script>
const say = (what, text) => { document.body.dataset[what] = text; };
addEventListener("error", (e) => say("failed", e.message));
addEventListener("load", () => {
  document.querySelectorAll("details").forEach((d) => { d.open = true; });
  const svg = document.querySelector("[data-chart=opening] svg"), files = [];
  const mark = svg.querySelector("g[fill-opacity] path").getBoundingClientRect();
  svg.dispatchEvent(new MouseEvent("click", { clientX: mark.x + 2, clientY: mark.y + 2, bubbles: true }));
  say("tip", document.querySelector("[data-chart=opening] .tip.pinned").innerText);
  URL.createObjectURL = (blob) => { files.push(blob.type); say("files", files.join(" ")); return "#"; };
  document.querySelector(".tools").querySelectorAll("button").forEach((b) => b.click());
  const key = svg.querySelector(".key");
  const shown = () => document.querySelector("[data-chart=opening] svg").outerHTML.length;
  const before = shown();
  key.dispatchEvent(new MouseEvent("click", { bubbles: true }));
  say("hidden", String(shown() < before));
  const gaps = [...document.querySelectorAll(".change div")].map((row) => {
    const label = document.createRange();
    label.selectNodeContents(row.querySelector("b"));
    return row.querySelector("span").getBoundingClientRect().left - label.getBoundingClientRect().right;
  });
  say("gap", String(Math.floor(Math.min(...gaps))));
  const wide = document.querySelector("#comparisons");
  say("wide", String(wide.scrollWidth - wide.parentElement.clientWidth));
});
</script>"""


@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
def test_the_page_draws_answers_a_click_and_hands_out_files(made: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text((made / "report.html").read_text().replace("</head>", TRY + "</head>"))
    words = [str(BROWSER), "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    more = ["--window-size=900,1400", "--virtual-time-budget=8000", "--dump-dom", page.as_uri()]
    done = subprocess.run([*words, *more], capture_output=True, text=True, timeout=300, check=True).stdout
    body = done[done.index("<body") : done.index("<main")]
    assert "data-failed" not in body
    assert re.search(r"online beta=\S+|offline beta=\S+|online-golden beta=\S+", body)  # the checkpoint of the point
    assert "step " in body
    assert "win rate 0." in body
    assert 'data-hidden="true"' in body
    assert int(re.search(r'data-gap="(-?\d+)"', body)[1]) >= 8  # type: ignore[index]  # a label does not touch its sentence
    assert int(re.search(r'data-wide="(-?\d+)"', body)[1]) <= 0  # type: ignore[index]  # the comparisons are not cut
    assert {"text/csv", "image/svg+xml", "image/png"} <= set(re.search(r'data-files="([^"]*)"', body)[1].split())  # type: ignore[index]
    charts = charts_of((made / "report.html").read_text())["charts"]
    drawn = re.findall(r'data-chart="([^"]*)"[^>]*data-drawn="(\d+)"', done)
    assert set(charts) == {name for name, _ in drawn}
    assert done.count("<svg") >= len(charts)
    assert all(int(width) > 300 for _, width in drawn)


def test_settings_in_a_sentence_are_marked_and_the_rest_is_escaped(made: Path) -> None:
    assert mark_settings("`probe` is 0 & `<b>`") == "<code>probe</code> is 0 &amp; <code>&lt;b&gt;</code>"
    assert mark_settings("one ` and two") == "one ` and two"
    page = (made / "report.html").read_text()
    seen = re.sub(r"<(script|pre|style)\b.*?</\1>", "", page, flags=re.S)
    assert "<code>" in seen
    assert not re.search(r"`\w+`", seen)


def test_hostile_text_is_escaped_everywhere(made: Path) -> None:
    page = (made / "report.html").read_text()
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert page.count("</script>") == page.count("<script")
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "innerHTML" not in page  # the script puts notes on the page as text
    assert any("alert(1)" in note for note in charts_of(page)["texts"])  # shown, as text


def test_a_chart_on_the_page_holds_what_the_figure_for_papers_shows(made: Path) -> None:
    found = charts_of((made / "report.html").read_text())
    [panel] = found["charts"]["opening"]["panels"]
    rows = pd.read_csv(made / "figures" / "opening.csv")
    points = next(s for s in panel["series"] if s["name"] == "offline" and s.get("points") == "faint")
    own = rows[(rows["arm"] == "offline") & (rows["what"] == "checkpoint")]
    data = found["data"][points["data"]]
    assert data["x"] == pytest.approx(own["kl_nats"], rel=1e-4)
    assert data["y"] == pytest.approx(own["win_rate"], rel=1e-4)
    notes = [found["texts"][n].split("\n") for n in data["notes"]]
    assert [note[0] for note in notes] == list(own["run"])
    steps = [f"step {step:.0f}, seed {seed:.0f}" for step, seed in zip(own["step"], own["seed"], strict=True)]
    assert [note[1] for note in notes] == steps
    assert any("plain" in line or "alert" in line for note in notes for line in note[4:])  # what it wrote
    line = next(s for s in panel["series"] if s["name"] == "online" and s.get("line"))
    assert {"x", "y", "band"} <= set(found["data"][line["data"]])
    assert panel["x"]["scale"] == "log"


@pytest.mark.parametrize(("kl_range", "drawn"), [((0.02, 3.0), True), ((1e-3, 0.04), True), ((0.2, 3.0), False)])
def test_the_least_kl_that_is_compared_is_a_line_where_the_axis_goes_below_it(
    tmp_path: Path, kl_range: tuple[float, float], drawn: bool
) -> None:
    arms = {"online": ArmTruth(kl_range=kl_range), "offline": ArmTruth(kl_range=kl_range)}
    page = build_report(save(tmp_path, make(arms, (0, 1), prompts=20, checkpoints=4, opponents=("sft",)))).read_text()
    [panel] = charts_of(page)["charts"]["opening"]["panels"]
    assert panel["xrules"] == ([[0.1, "compared from 0.1 nats on"]] if drawn else [])
    [compared] = charts_of(page)["charts"].get("difference", {"panels": [{"xrules": []}]})["panels"]
    assert compared["xrules"] == []


def test_equal_series_and_texts_stand_once_on_the_page(made: Path) -> None:
    found = charts_of((made / "report.html").read_text())
    charts = found["charts"].values()
    shown = [s["data"] for chart in charts for panel in chart["panels"] for s in panel["series"]]
    assert len(set(shown)) == len(found["data"]) < len(shown)
    assert len(set(found["texts"])) == len(found["texts"])


def test_a_table_that_was_edited_is_told_on_screen_and_in_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the folder's sealed list; what else it tells is in `test_listing.py`."""
    with writing(tmp_path, [RECORDS, PER_PROMPT, SAMPLES]):
        save(tmp_path, make(prompts=20, seeds=(0, 1)))
    assert read_folder(tmp_path).doubts == ()
    table = pq.read_table(tmp_path / "records.parquet")
    rows = table.to_pandas()
    rows["win_rate"] = np.where(rows["arm"] == "offline", rows["win_rate"] * 0.9, rows["win_rate"])
    pq.write_table(pa.Table.from_pandas(rows, schema=table.schema), tmp_path / "records.parquet")
    said = "records.parquet was changed after aligngap wrote it"
    build_report(tmp_path)
    for text in (headline(tmp_path), (tmp_path / "summary.md").read_text(), (tmp_path / "report.html").read_text()):
        assert said in text
    read_folder(tmp_path)
    assert capsys.readouterr().err.count(f"aligngap: {tmp_path}: {said}") == 1


def test_the_page_says_at_which_commit_and_whether_with_changes_artifacts_were_made(tmp_path: Path) -> None:
    """An edited clone: two artifacts of two states of the source, both named on the page."""
    save(tmp_path, make(prompts=5, seeds=(0,), opponents=("sft",)))
    made_at = {"sft-1": "abc123abc123", "align-1": "abc123abc123+changes"}
    about = {"artifacts": {name: {"commit": commit, "seconds": 1.0} for name, commit in made_at.items()}}
    (tmp_path / "provenance.json").write_text(json.dumps(about))
    page = build_report(tmp_path).read_text()
    provenance = page.partition('id="provenance"')[2]
    assert "abc123abc123+changes" in provenance.replace("&#43;", "+")


def test_numbers_for_reading() -> None:
    assert [words.number(x, 3, True) for x in (-0.0004, 0.0004, 0.0006, np.nan)] == ["0.000", "0.000", "+0.001", "–"]
    assert [words.nats(x) for x in (1.0, 0.5, 12.0)] == ["1 nat", "0.5 nats", "12 nats"]


def test_texts_of_a_chart_are_one_line_and_inert() -> None:
    assert clip_text("a\x00b\nc") == "a b c"
    assert clip_text("x" * 500, 10) == "x" * 9 + "…"
    text = escape_json(json.dumps({"a": "</script>\u2028&"}))
    assert "<" not in text
    assert json.loads(text) == {"a": "</script>\u2028&"}
    assert json.loads(Payload().as_json()) == {"texts": [], "charts": {}, "data": []}


def test_same_records_same_page(made: Path, tmp_path: Path) -> None:
    tables = read_folder(made)
    save(tmp_path, (tables.records, tables.per_prompt, tables.samples))
    (tmp_path / BEST_OF_N).write_bytes((made / BEST_OF_N).read_bytes())
    for name in ("provenance.json", "study.yaml"):
        (tmp_path / name).write_text((made / name).read_text())
    build_report(tmp_path, command="aligngap run opening --set seeds=3")
    assert (tmp_path / "summary.md").read_text() == (made / "summary.md").read_text()
    assert (tmp_path / "report.html").read_text() == (made / "report.html").read_text()


def thin_study(name: str) -> Frames:
    if name == "one seed":
        return make(prompts=40, seeds=(0,), opponents=("golden_policy",))
    if name == "no overlap":
        arms = {"online": ArmTruth(kl_range=(0.2, 0.9)), "offline": ArmTruth(kl_range=(5.0, 9.0))}
        return make(arms, prompts=40, seeds=(0, 1), opponents=("golden_policy",))
    if name == "offline only":
        return make({"offline": ArmTruth()}, prompts=40, opponents=("sft",))
    if name == "unknown arms":
        return make({"a <b>": ArmTruth(), "c": ArmTruth()}, prompts=40, opponents=("sft",))
    records, per_prompt, samples = make(prompts=40, opponents=("golden_policy", "sft"))
    if name == "no prompts, no samples":
        return records, per_prompt.iloc[:0], samples.iloc[:0]
    if name == "only step 0":
        return records[records["step"] == 0], per_prompt[per_prompt["step"] == 0], samples[samples["step"] == 0]
    if name == "one checkpoint":
        return records[records["step"] <= 100], per_prompt[per_prompt["step"] <= 100], samples
    for column, (kind, _) in RECORD_COLUMNS.items():
        if kind == "float":
            records[column] = np.nan
    return records, per_prompt, samples


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("one seed", "One seed"),
        ("no overlap", "do not overlap"),
        ("offline only", "no arm named online"),
        ("unknown arms", "no arm named online or offline"),
        ("no prompts, no samples", "prompt by prompt are not recorded"),
        ("only step 0", "cannot be compared at equal KL"),
        ("one checkpoint", "compared at equal KL"),
        ("all nan", "cannot be compared at equal KL"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_thin_studies_still_get_a_report_that_says_why(tmp_path: Path, name: str, said: str) -> None:
    frames = thin_study(name)
    page = build_report(save(tmp_path, frames)).read_text()
    body = page[: page.index("<script")]
    assert said in body
    assert "nan" not in re.sub(r"<[^>]*>", " ", body[body.index("<main>") :]).lower().split()
    assert said in headline(tmp_path) + body


def test_a_page_of_other_peoples_checkpoints_asserts_nothing_that_it_cannot_know(tmp_path: Path) -> None:
    arms = {"my DPO": ArmTruth(kl_range=(0.4, 3.0)), "ppo": ArmTruth(gap=0.05, kl_range=(1.5, 6.0))}
    frames = make(arms, prompts=40, seeds=(0, 1), opponents=("sft",))
    frames[0]["proxy_win_rate"] = np.nan  # one judge
    frames[0]["pairs_seen"] = 0  # nobody knows
    given = {name: {"behavior": "given"} for name in arms}
    about = {"name": "mine", "arms": given, "compare": list(arms), "budgets": [1.0, 2.0, 8.0]}
    (tmp_path / "study.yaml").write_text(json.dumps(about))
    page = build_report(save(tmp_path, frames)).read_text()
    body = re.sub(r"<[^>]*>", " ", page[page.index("<main>") : page.index("<script")])
    summary = (tmp_path / "summary.md").read_text()
    for text in (body, summary, headline(tmp_path)):
        assert "my DPO − ppo" in text
        for word in ("golden", "proxy", "paper", "online", "aligngap run", "The study has no arm", "pairs a step"):
            assert word not in text, word
        assert "ppo starts above 1 nat in 2 runs" in text
    assert "What would change this" in body
    assert "how these policies were trained is not known here" in body
    assert "Over-optimisation" not in body


def test_panels_of_differences_share_a_range_that_holds_all_of_them() -> None:
    def comparison(low: float, high: float) -> Any:
        return SimpleNamespace(lower=np.array([low, np.nan]), upper=np.array([high, np.nan]))

    low, high = difference_limits([comparison(0.1, 0.2), comparison(0.0, 0.6), comparison(0.3, 0.4)])
    assert low < 0.0 < 0.6 < high < 1.0
    assert difference_limits([comparison(0.1, 0.2), comparison(-3.0, 2.0)]) == (-1.0, 1.0)


def test_reading_side_imports_no_torch(made: Path) -> None:
    code = (
        "import sys; from pathlib import Path; import aligngap.storage.records, aligngap.report\n"
        "assert not {'matplotlib', 'torch', 'transformers', 'ray'} & set(sys.modules)\n"
        "import aligngap.report.page, aligngap.report.paper, aligngap.hypotheses.opening, matplotlib\n"
        f"aligngap.report.headline(Path({str(made)!r}))\n"
        "assert not {'torch', 'transformers', 'ray'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_what_is_decided_of_the_named_claims_stands_on_the_first_screen() -> None:
    one = Estimate(0.07, 0.01, 5, "mean over seeds")
    every = [
        Verdict("named", SUPPORTED, "", one, (0.04, 0.1), "It is.", p_adjusted=0.007, primary=True),
        Verdict("undecided", INCONCLUSIVE, "", one, (-0.04, 0.1), "It may be.", p_adjusted=0.3, primary=True),
        Verdict("explored", SUPPORTED, "", one, (0.04, 0.1), "It seems.", p_adjusted=0.01),
        Verdict("led", INCONCLUSIVE, "", one, (-0.04, 0.1), "It is asked."),
    ]
    judged = SimpleNamespace(hypothesis=SimpleNamespace(name="few-labels", leads=("led",)), verdicts=every)
    assert say_leading(SimpleNamespace(judged=[judged])) == [  # type: ignore[arg-type]
        "It is. (named: supported, +0.070 (+0.040 to +0.100), adjusted p 0.007)",
        "It is asked. (led: inconclusive, +0.070 (−0.040 to +0.100))",
    ]
