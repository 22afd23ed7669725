"""What is expected of a study before anything of it is trained: the signs of its regimes, from the tabular world.

Each regime of the studies of few labels (`hypotheses/few_labels.py`) names its analogue in the capacity world, where
offline's path and online's first-order twin are closed forms. Their gap is computed here from three spent seeds of that
world and written to the study's folder, with time, commit and hash, before its first run.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from pathlib import Path
from typing import Any

import pandas as pd

from aligngap.hypotheses.few_labels import LABELS, REGIMES, Regime
from aligngap.storage.files import write_text
from aligngap.storage.listing import writing
from aligngap.storage.provenance import commit
from aligngap.storage.reuse import EXPECTED, move_aside

FILE, ABOUT = EXPECTED
#: seeds of the capacity world that choose and judge nothing else
SEEDS = range(1000, 1003)
BETAS = (0.2, 0.1, 0.05, 0.025)
#: a gap of less has no sign worth naming
FAINT = 0.01


def write_expected(study: str, out: Path) -> Path | None:
    """Write what is expected of the study of this name, once; None for a study without regimes.

    A file that says the same is left as it is, with the time at which it was written first; one that says something
    else, or that another study has left there, is moved aside.
    """
    regimes = REGIMES.get(study)
    if regimes is None:
        if any((out / name).is_file() for name in EXPECTED):
            with writing(out, (), moves=EXPECTED):
                move_aside(out, *EXPECTED)
        return None
    text = expected(regimes).to_csv(index=False, float_format="%.3f")
    file = out / FILE
    if not file.exists() or file.read_bytes() != text.encode():
        out.mkdir(parents=True, exist_ok=True)
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        about = {"written": now, "sha256": hashlib.sha256(text.encode()).hexdigest(), "commit": commit()}
        with writing(out, EXPECTED):
            move_aside(out, *EXPECTED)  # another study's, or another expectation, with the time of that
            write_text(file, text, durable=True)
            write_text(out / ABOUT, json.dumps(about, indent=1) + "\n", durable=True)
    return file


def expected(regimes: tuple[Regime, ...]) -> pd.DataFrame:
    """A row a regime and KL: the tabular gap online - offline, its standard deviation over seeds, and the sign.

    The sign is `+`, `-` or `0` (below a point of win rate); "" where the regime has no analogue.
    """
    from aligngap.exact import capacity

    sees = tuple(dict.fromkeys(r.sees for r in regimes if r.sees is not None))
    grid = capacity.Grid(labels=tuple(map(float, LABELS)), sees=sees, betas=BETAS, linear_sees=())
    rows = [row for seed in SEEDS for row in capacity.predict(capacity.prepare(seed, grid), grid)]
    predictions = pd.DataFrame(rows)
    gaps = capacity.gaps(capacity.chosen_wins(predictions, capacity.choose(predictions, grid.budgets)))
    out: list[dict[str, Any]] = []
    for regime in regimes:
        online, _, offline = regime.arms
        about = {"online": online, "offline": offline, "judge": regime.judge, "labels": regime.labels}
        for kl in grid.budgets:
            here = gaps[(gaps["labels"] == regime.labels) & (gaps["sees"] == regime.sees) & (gaps["kl"] == kl)]["gap"]
            gap = float(here.mean()) if len(here) else float("nan")
            sign = "" if gap != gap else "0" if abs(gap) < FAINT else "+" if gap > 0 else "-"
            said = {"sign": sign, "tabular_gap": gap, "tabular_sd": float(here.std(ddof=1)) if len(here) > 1 else None}
            out.append({**about, "sees": regime.sees, "kl_nats": kl, **said})
    return pd.DataFrame(out)
