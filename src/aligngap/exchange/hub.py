"""Policies, records and reports go to the Hugging Face hub: a model, a data set, a page as a static Space.

Everything is sent by huggingface_hub with the token that it finds (`hf auth login`, or HF_TOKEN). What is made there is
private unless it is asked for otherwise: records and pages hold prompts and responses. Leaves out: what is in a model's
folder (`export.py`) and how a page is drawn (`report/`).
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from aligngap import __version__
from aligngap.storage.listing import copy_list
from aligngap.types import AligngapError, first_line

if TYPE_CHECKING:
    from huggingface_hub import HfApi

#: what of an output folder goes into a data set: (pattern, configuration in the hub's viewer or none)
RECORDS = ("*.parquet", "*.csv", "study.yaml", "provenance.json", "summary.md", "figures/*.png", "figures/*.svg")


@dataclass(frozen=True)
class Hub:
    """A hub that has been reached with a token, and one name on it, OWNER/NAME, under which things are put."""

    api: HfApi
    repo: str
    public: bool = False

    def push(self, kind: str, folder: Path, what: str) -> str:
        """Send a folder as the repository's next commit; its address. `kind` is model, dataset or space."""
        with explain_refusals(self.repo):
            sdk = "static" if kind == "space" else None
            url = self.api.create_repo(
                self.repo, repo_type=kind, private=not self.public, exist_ok=True, space_sdk=sdk
            )  # fmt: skip
            self.api.upload_folder(repo_id=self.repo, repo_type=kind, folder_path=folder, commit_message=what)
        return str(url)


def find_hub(repo: str, public: bool = False) -> Hub:
    """The hub, asked who we are: a wrong name, a missing token or no network is told before anything is made."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # documented, not re-exported

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise AligngapError(f"--push {repo}: not a name on the hub ({first_line(error)})") from error
    if "/" not in repo:
        raise AligngapError(f"--push {repo}: whose? Write OWNER/{repo}")
    api = HfApi(library_name="aligngap", library_version=__version__)
    with explain_refusals(repo):
        api.whoami()
    return Hub(api, repo, public)


@contextmanager
def explain_refusals(repo: str) -> Iterator[None]:
    """What the hub or the way to it complains of, in one line with its remedy."""
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled
    from huggingface_hub.errors import HTTPError as Unsent  # type: ignore[attr-defined]

    try:
        yield
    except LocalTokenNotFoundError as error:
        raise AligngapError(
            f"--push {repo}: no token of the Hugging Face hub; run `hf auth login` or set HF_TOKEN"
        ) from error
    except OfflineModeIsEnabled as error:
        raise AligngapError(f"--push {repo}: HF_HUB_OFFLINE is set; unset it to send anything to the hub") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        remedy = {
            401: "the token is not valid; run `hf auth login` again",
            403: "the token may not write there; make one with the right to write, or choose another OWNER",
            404: "no such owner, or not yours to write to",
        }.get(status, "try again later")
        answer = error.server_message or error.response.reason_phrase
        raise AligngapError(f"--push {repo}: the hub answered {status}, {answer}: {remedy}") from error
    except (Unsent, ConnectionError, TimeoutError) as error:
        raise AligngapError(
            f"--push {repo}: the hub cannot be reached ({first_line(error, 120)}); look at the network, then repeat"
        ) from error


def push_report(hub: Hub, out: Path) -> list[str]:
    """Send the records of an output folder as a data set and its page as a static Space of the same name; addresses.

    The folder is one whose page is made: `aligngap.report.build_report`.
    """
    with tempfile.TemporaryDirectory() as folder:
        records, page = Path(folder) / "records", Path(folder) / "page"
        for path in [p for pattern in RECORDS for p in sorted(out.glob(pattern))]:
            to = records / path.relative_to(out)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, to)
        copy_list(out, records)
        (records / "README.md").write_text(records_card(hub.repo, records), encoding="utf-8")
        page.mkdir()
        shutil.copy(out / "report.html", page / "index.html")
        (page / "README.md").write_text(page_card(hub.repo), encoding="utf-8")
        what = f"aligngap {__version__}: report of {out.resolve().name}"
        return [hub.push("dataset", records, what), hub.push("space", page, what)]


def records_card(repo: str, folder: Path) -> str:
    """README.md of a data set of records: a table of the folder is a configuration of the hub's viewer."""
    from huggingface_hub import DatasetCard, DatasetCardData

    tables = sorted(p.name for p in folder.glob("*.parquet"))
    first = [name for name in tables if name == "records.parquet"]
    data = DatasetCardData(
        tags=["aligngap", "preference-alignment"], pretty_name=repo.partition("/")[2],
        configs=[
            {"config_name": name.removesuffix(".parquet"), "data_files": name}
            for name in [*first, *(n for n in tables if n not in first)]
        ],
    )  # fmt: skip
    summary = folder / "summary.md"
    lines = [
        f"Records of an aligngap study, in aligngap's own columns; the page drawn from them is the Space `{repo}`. "
        "A prompt's or response's text is as it was in the study's data: its licence holds.",
        "",
        summary.read_text(encoding="utf-8") if summary.is_file() else "",
    ]
    return str(DatasetCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(lines)))


def page_card(repo: str) -> str:
    """README.md of a static Space, which says which file is its page."""
    from huggingface_hub import SpaceCard, SpaceCardData

    data = SpaceCardData(
        title=repo.partition("/")[2], sdk="static", app_file="index.html", tags=["aligngap"], datasets=[repo]
    )
    return str(
        SpaceCard(f"---\n{data.to_yaml()}\n---\n\nThe report of an aligngap study; its records: data set `{repo}`.\n")
    )
