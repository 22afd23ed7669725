"""`aligngap ratings`: a blind sheet out of an output folder, and people's choices back into it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from aligngap.ratings.pairs import digest, find_pairs, main_opponent, texts_of
from aligngap.ratings.sheet import Asked, Key, make_key, read_choices, read_key, sheet_rows, write_key, write_sheet
from aligngap.storage.columns import RATING_COLUMNS
from aligngap.storage.listing import writing
from aligngap.storage.records import RATINGS, Tables, read_folder, read_ratings, write_table
from aligngap.types import AligngapError, escape

SAID = {"left": 1.0, "right": 0.0, "tie": 0.5}


def export(out: Path, arms: tuple[str, str], kl: float, pairs: int, to: Path, seed: int = 0) -> list[str]:
    """Write the sheet of so many pairs into the folder `to` and its key into `out`; the lines to tell.

    Where fewer texts are kept than pairs are asked for, all are written, and the lines say which setting keeps more.
    """
    if pairs < 2:
        raise AligngapError(f"--pairs {pairs}: must be 2 or more")
    if not 0 < kl < float("inf"):
        raise AligngapError(f"--kl {kl:g}: must be above 0 nats")
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise AligngapError(f"{to}: exists and is not an empty folder; name another folder")
    tables = read_folder(out)
    found = find_pairs(tables, arms, kl, seed)
    taken = found[:pairs]
    if all(p.identical for p in taken):
        raise AligngapError(f"both arms wrote the same to all {len(taken)} prompts of which texts are kept: all ties")
    key = make_key(taken, arms, kl, main_opponent(tables.records), seed)
    path = write_key(out, key)
    csv_path, page = write_sheet(to, key, sheet_rows(key, taken))
    lines = [f"sheet: {page} (in a browser) or {csv_path} (column choice: left, right or tie)"]
    lines.append(f"key: {path}, which tells the arms; keep it from those who rate")
    same = sum(p.identical for p in taken)
    if same:
        lines.append(f"{same} of {len(taken)} pairs are the same text twice: ties, and not on the sheet")
    if len(taken) < pairs:
        each = len(tables.samples) // max(len(tables.samples[["run", "step"]].drop_duplicates()), 1)
        lines.append(
            f"only {len(taken)} pairs at {kl:g} nats are kept as text ({each} prompts a checkpoint); "
            "set measurement.samples higher and run again for more"
        )
    lines.append(f"then: aligngap ratings import {out} SHEET.csv")
    return lines


def take_in(out: Path, sheets: Sequence[Path]) -> list[str]:
    """Read filled-in sheets and write `ratings.parquet`; the lines to tell.

    What a rater said before of pairs of the same key is replaced; other ratings stay.
    """
    tables = read_folder(out)
    wins: Any = (
        tables.per_prompt.set_index(["run", "step", "opponent", "prompt_id"])["win"] if len(tables.per_prompt) else {}
    )
    rows: list[dict[str, Any]] = []
    keys: dict[str, Key] = {}
    for sheet in sheets:
        rater, choices = read_choices(sheet)
        pair = next(iter(choices))
        name = pair.rpartition("-")[0]
        if not (name.isalnum() and name.isascii()):
            raise AligngapError(f"{sheet}: {escape(pair)!r} is no name of a pair; keep the column pair as it was")
        key = keys.get(name) or read_key(out, name)
        keys[name] = key
        strange = [pair for pair in choices if pair not in key.asked or key.asked[pair].first_left is None]
        if strange:
            raise AligngapError(f"{sheet}: pair {strange[0]} is not of key {name}; keep the column pair as it was")
        rows += [_row(key, key.asked[pair], rater, said, wins) for pair, said in choices.items()]
    for key in keys.values():
        _check_texts(key, tables, out)
        same = [a for a in key.asked.values() if a.first_left is None]
        rows += [_row(key, asked, "", "tie", wins) for asked in same]
    new = pd.DataFrame(rows, columns=list(RATING_COLUMNS)).drop_duplicates(["key", "pair", "rater"], keep="last")
    with writing(out, [RATINGS], onto=[RATINGS], what=" ".join(sorted(keys))):
        if (out / RATINGS).exists():
            before = read_ratings(out)
            replaced = set(zip(new["key"], new["rater"], strict=True))
            stay = [pair not in replaced for pair in zip(before["key"], before["rater"], strict=True)]
            new = pd.concat([before[stay], new], ignore_index=True)
        write_table(out / RATINGS, new, RATING_COLUMNS)
    raters = len({r["rater"] for r in rows} - {""})
    return [f"{sum(bool(r['rater']) for r in rows)} ratings of {raters} rater(s) are in {out / RATINGS}"]


def _row(key: Key, asked: Asked, rater: str, said: str, wins: Any) -> dict[str, Any]:
    """One row of the table."""
    verdicts = []
    for run, step in zip(asked.runs, asked.steps, strict=True):
        try:
            verdicts.append(float(wins[(run, step, key.opponent, asked.prompt_id)]))
        except (KeyError, TypeError) as error:
            what = f"per_prompt.parquet has no verdict on {run} at step {step}, prompt {asked.prompt_id}"
            raise AligngapError(f"{what}; it has changed since key {key.name} was written: export again") from error
    human = SAID[said] if asked.first_left or said == "tie" else 1.0 - SAID[said]
    return {
        "key": key.name, "pair": asked.pair, "rater": rater, "first": key.arms[0], "second": key.arms[1],
        "budget_nats": key.kl, "seed": asked.seed, "config": asked.config, "prompt_id": asked.prompt_id,
        "first_step": asked.steps[0], "second_step": asked.steps[1], "first_kl_nats": asked.kl_nats[0],
        "second_kl_nats": asked.kl_nats[1], "first_left": bool(asked.first_left), "human": human,
        "opponent": key.opponent, "judge": verdicts[0] - verdicts[1],
    }  # fmt: skip


def _check_texts(key: Key, tables: Tables, out: Path) -> None:
    """AligngapError where the output folder no longer holds the texts that were rated."""
    texts = texts_of(tables.samples, key.arms)
    for asked in key.asked.values():
        both = [texts.get((r, s, asked.prompt_id)) for r, s in zip(asked.runs, asked.steps, strict=True)]
        if both[0] is None or both[1] is None or digest(*both[0], both[1][1]) != asked.digest:
            raise AligngapError(
                f"{out}: holds other responses than those rated; export a new sheet (pair {asked.pair})"
            )
