"""An output folder that is written into again: what another study has left there is not taken for the new one's.

What is made again in any case is removed; what people said, and what was expected or forecast beforehand, is moved to
the folder `earlier`. Leaves out the tables that every command writes.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from aligngap.storage.files import write_text
from aligngap.storage.listing import HAS_LIST, PROVENANCE, STUDY, writing
from aligngap.storage.records import (
    BEST_OF_N,
    CROSSED,
    PER_PROMPT,
    PROBE,
    RATINGS,
    RECORDS,
    SAMPLES,
    read_ratings,
    read_samples,
)
from aligngap.types import AligngapError

MATCHED = "matched.csv"  #: checkpoints of two policies judged against each other at about equal KL
CEILINGS = "ceilings.csv"  #: the ceiling at every checkpoint's KL, with the effective samples that carry it
FORECAST = "forecast.csv"  #: online's lead, from the records of its twin and of offline
EXPECTED = ("expected.csv", "expected.json")  #: what was expected of a study before its first run, and since when
EARLIER = "earlier"  #: the folder that such files of another study are moved to

#: what a command writes beside the records, if at all, and what every report makes
TABLES = (BEST_OF_N, PROBE, CROSSED, MATCHED, CEILINGS)
OWN = (STUDY, PROVENANCE, RECORDS, PER_PROMPT, SAMPLES, *TABLES)  #: what a command that makes records writes
PAGES = ("report.html", "summary.md", "figures/*.png", "figures/*.svg", "figures/*.pdf", "figures/*.csv")


@contextmanager
def writing_records(out: Path) -> Iterator[None]:
    """Records and all that lies beside them are written within, by this command alone, as the folder's list then says.

    What people said, and what was expected or forecast, stays there or is moved aside.
    """
    out.mkdir(parents=True, exist_ok=True)
    with writing(out, OWN, moves=(RATINGS, FORECAST, *EXPECTED), anew=True):
        yield


def begin_folder(out: Path, study: str, samples: pd.DataFrame, own: Collection[str] = ()) -> None:
    """Make room in a folder for the records of a study, given the text of its `study.yaml` and its samples.

    `own` are those of `TABLES` that the command goes on to write or to remove by itself. Belongs in `writing_records`.
    """
    for name in TABLES:
        if name not in own:
            (out / name).unlink(missing_ok=True)
    keep_ratings(out, samples)
    before = out / STUDY
    if before.is_file() and before.read_bytes() != study.encode():
        move_aside(out, FORECAST)
        for pattern in PAGES:
            for page in out.glob(pattern):
                page.unlink()
    write_text(out / STUDY, study, durable=True)


def write_provenance(out: Path, about: Mapping[str, Any]) -> None:
    """Write where a folder's records come from, and that a list of its files lies beside it."""
    text = json.dumps({**about, HAS_LIST: True}, indent=1, sort_keys=True)
    write_text(out / PROVENANCE, text + "\n", durable=True)


def keep_ratings(out: Path, samples: pd.DataFrame) -> None:
    """Leave ratings in a folder if the responses that were rated are among the new samples; else move them aside.

    To be called before the samples are written.
    """
    if not (out / RATINGS).exists():
        return
    try:
        rated, old = read_ratings(out), read_samples(out)
    except AligngapError:  # the report says it better
        return
    key = ["run", "step", "prompt_id"]
    texts, now = (dict(zip(frame[key].itertuples(index=False, name=None), frame["response"], strict=True))
                  for frame in (old, samples))  # fmt: skip
    wanted = {
        (run, step, prompt)
        for arm, at in (("first", "first_step"), ("second", "second_step"))
        for run, step, prompt in zip(_runs(rated, arm), rated[at], rated["prompt_id"], strict=True)
    }
    if any(texts.get(one) is not None and now.get(one) != texts[one] for one in wanted):
        move_aside(out, RATINGS)


def _runs(rated: pd.DataFrame, arm: str) -> list[str]:
    """The runs whose responses were rated, by their names in the records."""
    rows = zip(rated[arm], rated["config"], rated["seed"], strict=True)
    return [" ".join(part for part in (a, config, f"seed={seed}") if part) for a, config, seed in rows]


def move_aside(out: Path, *names: str) -> None:
    """Move files of another study out of the way, and say so on stderr; nothing where they are not there."""
    for name in names:
        if not (out / name).is_file():
            continue
        folder, number, place = out / EARLIER, 0, Path(name)
        folder.mkdir(exist_ok=True)
        while (to := folder / (f"{place.stem}-{number}{place.suffix}" if number else name)).exists():
            number += 1
        os.replace(out / name, to)
        print(
            f"aligngap: {out / name}: is of what was in this folder before; moved to {to}", file=sys.stderr, flush=True
        )
