"""What `aligngap forecast` says: online's expected lead at each KL, from the records of its twin and of offline."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd

from aligngap.hypotheses.forecast import Forecast, forecast
from aligngap.hypotheses.view import View
from aligngap.report import words
from aligngap.report.folder import read_compared, read_declared, read_study
from aligngap.storage.files import write_text
from aligngap.storage.records import read_folder
from aligngap.types import Estimate

OPPONENT = "sft"
FILE = "forecast.csv"


def write_forecast(folder: Path) -> str:
    """Write `forecast.csv` beside the records of a forecast's runs; the same as text for the terminal."""
    tables, (twin, offline) = read_folder(folder), read_compared(folder)
    budgets = read_declared(folder, read_study(folder))["budgets"]
    view = View(tables.records, tables.per_prompt, OPPONENT, twin, offline)
    found = forecast(view, budgets, twin, offline)
    rows = [
        {
            "kl_nats": f.kl, "evaluator": f.evaluator, "law": f.law.value, "law_se": f.law.se,
            "law_lower": f.law_interval[0], "law_upper": f.law_interval[1], "slope_at_nats": f.slope_at,
            "twin": f.twin.value, "twin_se": f.twin.se, "twin_lower": f.twin_interval[0],
            "twin_upper": f.twin_interval[1], "seeds": f.law.n,
        }
        for f in found
    ]  # fmt: skip
    write_text(folder / FILE, pd.DataFrame(rows).to_csv(index=False, float_format="%.6g"))
    seeds = words.seeds(len(view.seeds))
    head = f"forecast of online's lead in win rate against the SFT policy, before any online run ({seeds}):"
    said = [line(f) for f in found] or ["nothing: no run left the SFT policy, or the records have no rho"]
    return "\n".join([head, *(f"  {s}" for s in said), *(f"  {s}" for s in notes(found)), f"written: {folder / FILE}"])


def line(f: Forecast) -> str:
    """One KL by one evaluator in a line."""
    parts = [f"at {words.nats(f.kl)} by the {f.evaluator}: law {say_estimate(f.law, f.law_interval)}"]
    if f.slope_at < f.kl:
        parts[0] += f" (slopes read at {words.nats(f.slope_at)})"
    if math.isfinite(f.twin.value):
        parts.append(f"twin {say_estimate(f.twin, f.twin_interval)}")
    else:
        parts.append("twin: – (a run ended below, or was first measured above)")
    return ", ".join(parts)


def say_estimate(e: Estimate, interval: tuple[float, float]) -> str:
    """An estimate with its 95% interval; a dash where there is none."""
    return f"{words.number(e.value, 3, True)} ({words.span(interval)})" if math.isfinite(e.value) else "–"


def notes(found: list[Forecast]) -> list[str]:
    """What a reader must know of these numbers."""
    out = ["the law is a first-order statement: beyond 1 nat it overstates, beyond 2 at most its sign is worth reading"]
    if any(f.law.n == 1 for f in found):
        out.append("one seed: the intervals are over prompts alone, and training noise is in none of them")
    return out
