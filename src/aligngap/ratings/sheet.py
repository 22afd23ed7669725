"""The blind sheet: pairs without their arms, as a table and as a page to rate in a browser, and the key that stays.

A pair's name on the sheet tells nothing: the key's name and a number in random order. Which arm stands on the left is
drawn, each arm as often as the other. The key lies in the output folder, so the sheet's folder can be handed on whole.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aligngap.ratings.pairs import RatedPair
from aligngap.storage.files import write_text
from aligngap.storage.listing import find_faults, writing
from aligngap.types import AligngapError, first_line

#: the folder of keys within an output folder
KEYS = "ratings"
COLUMNS = ("pair", "prompt", "left", "right", "choice")
#: what may stand in the column `choice`
CHOICES = {"left": "left", "l": "left", "right": "right", "r": "right", "tie": "tie", "t": "tie"}
KEY_FORMAT = 1


@dataclass(frozen=True)
class Asked:
    """A pair as the key keeps it: which it is, and which arm stood on the left (None: identical, nobody is asked)."""

    pair: str
    seed: int
    config: str
    prompt_id: str
    runs: tuple[str, str]
    steps: tuple[int, int]
    kl_nats: tuple[float, float]
    first_left: bool | None
    digest: str


@dataclass(frozen=True)
class Key:
    """What maps a sheet's names back: the two arms, the KL, the opponent of the judge's verdicts and the pairs."""

    name: str
    arms: tuple[str, str]
    kl: float
    opponent: str
    asked: Mapping[str, Asked]


def make_key(pairs: Sequence[RatedPair], arms: tuple[str, str], kl: float, opponent: str, seed: int) -> Key:
    """A key over these pairs: names, sides and order are drawn by the seed."""
    told = json.dumps([arms, kl, seed, [p.digest for p in pairs]])
    name = hashlib.sha256(told.encode()).hexdigest()[:8]
    rng = np.random.default_rng([seed, 17])
    to_ask = [p for p in pairs if not p.identical]
    left = iter(rng.permutation(np.arange(len(to_ask)) % 2 == 0))
    numbers = iter(rng.permutation(len(pairs)))
    asked = {}
    for pair in pairs:
        asked_as = f"{name}-{int(next(numbers)) + 1:04d}"
        asked[asked_as] = Asked(
            asked_as, pair.seed, pair.config, pair.prompt_id, (pair.first.run, pair.second.run),
            (pair.first.step, pair.second.step), (pair.first.kl_nats, pair.second.kl_nats),
            None if pair.identical else bool(next(left)), pair.digest,
        )  # fmt: skip
    return Key(name, arms, kl, opponent, asked)


def sheet_rows(key: Key, pairs: Sequence[RatedPair]) -> list[dict[str, str]]:
    """The rows of the sheet in the order of their names."""
    rows = []
    for asked, pair in zip(key.asked.values(), pairs, strict=True):
        if asked.first_left is not None:
            texts = [pair.first.response, pair.second.response]
            left, right = texts if asked.first_left else reversed(texts)
            rows.append({"pair": asked.pair, "prompt": pair.prompt, "left": left, "right": right, "choice": ""})
    return sorted(rows, key=lambda r: r["pair"])


def write_sheet(folder: Path, key: Key, rows: Sequence[Mapping[str, str]]) -> tuple[Path, Path]:
    """Write `sheet.csv` and `sheet.html` into a folder; the two paths.

    A cell that a spreadsheet would take for a formula gets an apostrophe before it; only names and choices are read
    back.
    """
    from jinja2 import Environment, PackageLoader

    text = io.StringIO(newline="")
    table = csv.DictWriter(text, COLUMNS)
    table.writeheader()
    for row in rows:
        table.writerow({k: f"'{v}" if v[:1] in ("=", "+", "-", "@", "\t", "\r") else v for k, v in row.items()})
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "sheet.csv", text.getvalue())
    data = json.dumps({"key": key.name, "pairs": list(rows)}, ensure_ascii=False)
    for character, escaped in (("<", "\\u003c"), ("\u2028", "\\u2028"), ("\u2029", "\\u2029")):
        data = data.replace(character, escaped)
    page = Environment(loader=PackageLoader("aligngap", "ratings")).get_template("sheet.html.j2").render(data=data)
    write_text(folder / "sheet.html", page)
    return folder / "sheet.csv", folder / "sheet.html"


def write_key(out: Path, key: Key) -> Path:
    """Keep a key in an output folder."""
    path = out / KEYS / f"{key.name}.json"
    told = {"format": KEY_FORMAT, "arms": key.arms, "kl_nats": key.kl, "opponent": key.opponent}
    pairs = [vars(asked) for asked in key.asked.values()]
    with writing(out, [f"{KEYS}/{path.name}"]):
        path.parent.mkdir(exist_ok=True)
        write_text(path, json.dumps(told | {"pairs": pairs}, indent=1) + "\n", durable=True)
    return path


def read_key(out: Path, name: str) -> Key:
    """The key of this name in an output folder; AligngapError where there is none that can be read."""
    path = out / KEYS / f"{name}.json"
    if not path.is_file():
        raise AligngapError(f"{out}: has no key {name}; the sheet was written from another output folder")
    if f"{KEYS}/{path.name}" in find_faults(out).changed:
        raise AligngapError(f"{path}: was changed after aligngap wrote it, and tells the arms; export the sheet again")
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        if told["format"] != KEY_FORMAT:
            raise AligngapError(f"{path}: has format {told['format']}, this aligngap reads {KEY_FORMAT}")
        asked = [_asked(row) for row in told["pairs"]]
        arms = (str(told["arms"][0]), str(told["arms"][1]))
        return Key(name, arms, float(told["kl_nats"]), str(told["opponent"]), {a.pair: a for a in asked})
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise AligngapError(f"{path}: cannot be read ({first_line(error)}); export the sheet again") from error


def _asked(row: Mapping[str, Any]) -> Asked:
    both = {name: (row[name][0], row[name][1]) for name in ("runs", "steps", "kl_nats")}
    return Asked(**{**row, **both})


def read_choices(path: Path) -> tuple[str, dict[str, str]]:
    """Who rated a sheet that came back, and the choices by pair; rows without one are left out.

    The rater is named by the column `rater`, where there is one, else by the file. Commas, semicolons and tabs are read
    between cells. AligngapError names the row that cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise AligngapError(f"{path}: cannot be read ({first_line(error)}); save it as CSV in UTF-8") from error
    head = text.partition("\n")[0]
    delimiter = max(",;\t", key=head.count)
    try:
        rows = list(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter))
    except csv.Error as error:
        raise AligngapError(f"{path}: is not CSV ({first_line(error)})") from error
    found: dict[str, str] = {}
    rater = path.stem
    for number, row in enumerate(rows, 2):
        if "pair" not in row or "choice" not in row:
            raise AligngapError(f"{path}: needs the columns pair and choice; its first line is {head[:80].strip()!r}")
        said, pair = (row["choice"] or "").strip().lower(), (row["pair"] or "").strip()
        if not said:
            continue
        if said not in CHOICES:
            raise AligngapError(f"{path}, row {number}: choice is {said!r}; write left, right or tie")
        rater = (row.get("rater") or "").strip() or rater
        if found.setdefault(pair, CHOICES[said]) != CHOICES[said]:
            raise AligngapError(f"{path}, row {number}: pair {pair} is rated twice, and not alike; keep one row")
    if not found:
        raise AligngapError(f"{path}: no pair is rated; write left, right or tie into the column choice")
    return rater, found
