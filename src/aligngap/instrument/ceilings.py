"""How many samples of the reference carry each checkpoint's ceiling: a table, and a sentence that says what is missing.

The ceiling itself and the efficiency are columns of the records, as a study's are; where too few samples carry it they
are nan, and what is left of the samples at a checkpoint's KL says how far off that is.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd

from aligngap.instrument.survey import Survey
from aligngap.pipeline.context import Context
from aligngap.stats.axes import say_nats
from aligngap.stats.ceiling import ESS_FLOOR, ceiling
from aligngap.storage.files import write_text
from aligngap.storage.listing import writing
from aligngap.storage.reuse import CEILINGS


def write_ceilings(survey: Survey, ctx: Context, out: Path) -> list[str]:
    """Write `ceilings.csv`, a row a checkpoint, and say in a sentence how far the samples carry the ceiling.

    `effective_samples` is the lowest decile over prompts; below 50 the records hold no ceiling.
    """
    rows: list[dict[str, Any]] = []
    behind = survey.behind
    if behind is not None and ctx.store.has(behind.wins.name):
        wins, drawn = behind.wins.wins(ctx), behind.wins.drawn
        for checkpoint, step in survey.readings.items():
            if not ctx.store.has(step.name):
                continue
            kl = float(ctx.store.manifest(step.name)["result"]["kl_nats"])
            best = ceiling(wins.first, wins.second, kl, floor=0.0) if kl > 0 else None
            gain, left = (math.nan, math.nan) if best is None else (best.gain.value, best.ess_low)
            rows.append({
                "policy": checkpoint.arm, "configuration": checkpoint.config, "seed": checkpoint.seed,
                "step": checkpoint.step, "kl_nats": kl, "ceiling": gain if left >= ESS_FLOOR else math.nan,
                "samples": drawn.samples, "effective_samples": left,
            })  # fmt: skip
    table = pd.DataFrame(rows)
    with writing(out, [CEILINGS]):
        (out / CEILINGS).unlink(missing_ok=True)
        if rows:
            write_text(out / CEILINGS, table.to_csv(index=False))
    return [say_ceilings(table)] if rows else []


def say_ceilings(table: pd.DataFrame) -> str:
    """How far the reference's samples carry the ceiling, and how many would carry it farther."""
    moved = table[table["kl_nats"] > 0].sort_values("kl_nats")
    if not len(moved):
        return "efficiency: no checkpoint has left the reference"
    carried = moved[moved["ceiling"].notna()]
    lacking = moved[moved["ceiling"].isna()]
    samples = f"{int(moved['samples'].iloc[0])} samples of the reference a prompt"
    if not len(lacking):
        return f"efficiency: {samples} carry every ceiling"
    first = lacking.iloc[0]
    left = first["effective_samples"]
    of = f"{left:.0f} of {samples} count" if math.isfinite(left) else f"no choice among {samples} lies there"
    most = f"known up to {say_nats(carried['kl_nats'].max(), digits='.2g')}; beyond, " if len(carried) else ""
    need = math.ceil(150 * math.exp(first["kl_nats"]) / 50) * 50
    return (
        f"efficiency: {most}at {say_nats(first['kl_nats'], digits='.2g')} {of}, and a ceiling takes {ESS_FLOOR:g}: "
        f"about --reference-samples {need}"
    )
