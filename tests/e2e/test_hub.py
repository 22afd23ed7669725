"""`export --push` and `report --push` send a model, records and a page to a hub; here one that a test plays."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pandas as pd
import pytest
from conftest import complaint
from fake_hub import TOKEN, FakeHub, fake_hub
from huggingface_hub import DatasetCard, ModelCard, RepoCard, constants

from aligngap.cli import main
from aligngap.storage.listing import LIST


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub that huggingface_hub takes for the real one, with a token that it accepts."""
    with fake_hub() as found:
        monkeypatch.setattr(constants, "ENDPOINT", found.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield found


@pytest.fixture(scope="module")
def small(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a finished study's output folder."""
    return Path(shutil.copytree(finished / "out", tmp_path_factory.mktemp("small") / "out"))


def test_a_model_arrives_with_its_card(
    hub: FakeHub, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "policy"
    words = ["export", str(finished / "out"), "online@4", "--to", str(kept), "--push", "me/small"]
    assert main(words) == 0
    assert capsys.readouterr().out.splitlines() == [str(kept), f"{hub.url}/me/small"]
    sent = hub.files["model", "me/small"]
    assert sent == {str(p.relative_to(kept)): p.read_bytes() for p in kept.rglob("*") if p.is_file()}
    assert "model.safetensors" in sent
    assert ModelCard(sent["README.md"].decode()).data.library_name == "transformers"
    assert hub.made["model", "me/small"]["visibility"] == "private"
    assert hub.messages[0].endswith("online@4 of out")


def test_a_model_needs_no_folder_of_its_own(hub: FakeHub, finished: Path, tmp_path: Path) -> None:
    before = sorted(finished.iterdir())
    assert main(["export", str(finished / "out"), "offline", "--push", "me/small", "--public"]) == 0
    assert "step 8" in hub.files["model", "me/small"]["README.md"].decode()
    assert hub.made["model", "me/small"]["visibility"] == "public"
    assert sorted(finished.iterdir()) == before


def test_records_and_page_arrive(hub: FakeHub, small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(small), "--push", "me/gap"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [f"{hub.url}/datasets/me/gap", f"{hub.url}/spaces/me/gap"]
    records, page = hub.files["dataset", "me/gap"], hub.files["space", "me/gap"]
    assert set(page) == {"README.md", "index.html"}
    assert page["index.html"] == (small / "report.html").read_bytes()
    card = RepoCard(page["README.md"].decode()).data.to_dict()
    assert (card["sdk"], card["app_file"], card["datasets"]) == ("static", "index.html", ["me/gap"])
    assert hub.made["space", "me/gap"]["sdk"] == "static"
    pd.testing.assert_frame_equal(
        pd.read_parquet(BytesIO(records["records.parquet"])), pd.read_parquet(small / "records.parquet")
    )
    about = DatasetCard(records["README.md"].decode())
    [first, *rest] = about.data.to_dict()["configs"]
    assert first == {"config_name": "records", "data_files": "records.parquet"}
    assert {"config_name": "samples", "data_files": "samples.parquet"} in rest
    assert "## " in about.text
    assert {"study.yaml", "provenance.json", "summary.md"} <= set(records)
    assert set(json.loads(records[LIST])["files"]) <= set(records)  # what was sent can be held against it
    assert any(name.startswith("figures/") for name in records)
    assert "report.html" not in records


def said(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a command that is refused."""
    assert main(words) == 2
    return complaint(capsys.readouterr().err)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--push", "me//x"], "--push me//x: not a name on the hub"),
        (["--push", "alone"], "whose? Write OWNER/alone"),
        (["--public"], "add --push OWNER/NAME"),
    ],
)
def test_a_name_that_cannot_be_one(small: Path, more: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert told in said(["report", str(small), *more], capsys)


def test_nowhere_to_write(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--to, or a model on the hub with --push" in said(["export", str(finished / "out"), "online"], capsys)


def test_no_token(
    hub: FakeHub, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    line = said(["report", str(small), "--push", "me/gap"], capsys)
    assert "no token of the Hugging Face hub; run `hf auth login` or set HF_TOKEN" in line
    assert not hub.made


def test_a_token_that_is_not_valid_or_may_not_write(
    hub: FakeHub, small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.forbidden = True
    assert "answered 403" in (line := said(["report", str(small), "--push", "me/gap"], capsys))
    assert "may not write there" in line
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    line = said(["report", str(small), "--push", "me/gap"], capsys)
    assert "not valid" in line
    assert "hf_another" not in line


def test_no_network(
    hub: FakeHub, small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{free.getsockname()[1]}"  # bound, but nobody listens
        monkeypatch.setattr(constants, "ENDPOINT", closed)
        assert "the hub cannot be reached" in said(["report", str(small), "--push", "me/gap"], capsys)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in said(["report", str(small), "--push", "me/gap"], capsys)


def test_the_package_is_the_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import runpy

    monkeypatch.setattr("sys.argv", ["aligngap", "list", "losses"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("aligngap", run_name="__main__")
    assert ended.value.code == 0
    assert "ipo" in capsys.readouterr().out
