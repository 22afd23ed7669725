"""What `aligngap forecast` says: online's expected lead at each KL, from the records of its twin and of offline."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pandas as pd

from aligngap.hypotheses.forecast import Forecast, forecast
from aligngap.hypotheses.view import View, under
from aligngap.report import words
from aligngap.report.folder import read_compared, read_declared, read_study
from aligngap.storage.files import write_text
from aligngap.storage.listing import writing
from aligngap.storage.records import read_folder
from aligngap.storage.reuse import FORECAST
from aligngap.types import Estimate

OPPONENT = "sft"


def write_forecast(folder: Path) -> str:
    """Write `forecast.csv` beside the records of a forecast's runs; the same as text for the terminal."""
    tables, (twin, offline) = read_folder(folder), read_compared(folder)
    budgets = read_declared(read_study(folder))["budgets"]
    view = View(tables.records, tables.per_prompt, OPPONENT, twin, offline)
    pairs = varied_pairs(folder, view, twin, offline)
    every = {variant: forecast(view, budgets, *arms) for variant, arms in pairs.items()}
    rows = [
        {
            "variant": variant, "kl_nats": f.kl, "evaluator": f.evaluator, "law": f.law.value, "law_se": f.law.se,
            "law_lower": f.law_interval[0], "law_upper": f.law_interval[1], "slope_at_nats": f.slope_at,
            "twin": f.twin.value, "twin_se": f.twin.se, "twin_lower": f.twin_interval[0],
            "twin_upper": f.twin_interval[1], "seeds": f.law.n,
        }
        for variant, found in every.items()
        for f in found
    ]  # fmt: skip
    with writing(folder, [FORECAST]):
        write_text(folder / FORECAST, pd.DataFrame(rows).to_csv(index=False, float_format="%.6g"))
    seeds = words.seeds(len(view.seeds))
    head = f"forecast of online's lead in win rate against the SFT policy, before any online run ({seeds}):"
    found = [f for those in every.values() for f in those]
    said = [under_variant(v) + line(f) for v, those in every.items() for f in those] or [
        "nothing: no run left the SFT policy, or the records have no rho"
    ]
    remarks = notes(found, len(view.seeds), ended(view, twin, offline))
    return "\n".join([head, *(f"  {s}" for s in (*said, *remarks)), f"written: {folder / FORECAST}"])


def varied_pairs(folder: Path, view: View, twin: str, offline: str) -> dict[str, tuple[str, str]]:
    """The twin and the offline arm of the study as it stands ("") and of every variant that has a twin of its own.

    Offline hears no proxy: under a variant that did not run it, it is that of the settings that differ in the proxy
    alone, if there is one.
    """
    sets = {"": {}} | {name: v.get("set", {}) for name, v in (read_study(folder).get("variants") or {}).items()}
    heard = {
        v: json.dumps({k: x for k, x in values.items() if not k.startswith("proxy")}, sort_keys=True)
        for v, values in sets.items()
    }
    out = {}
    for variant in sets:
        if not view.has(under(twin, variant)):
            continue
        alike = [v for v in (variant, *sets) if heard[v] == heard[variant] and view.has(under(offline, v))]
        if alike:
            out[variant] = (under(twin, variant), under(offline, alike[0]))
    return out


def under_variant(variant: str) -> str:
    """What stands before a line about a variant."""
    return f"{variant}: " if variant else ""


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
    return words.effect(e.value, interval) if math.isfinite(e.value) else "–"


def ended(view: View, *arms: str) -> float:
    """The KL in nats that some run of every arm reached, the farthest."""
    kl = view.records[view.records["arm"].isin(arms)].groupby("arm")["kl_nats"].max()
    return float(kl.min()) if len(kl) else math.nan


def notes(found: list[Forecast], seeds: int, reached: float) -> list[str]:
    """What a reader must know of these numbers: of so many seeds, whose runs reached a KL in nats."""
    known = [f for f in found if f.twin.n or f.law.n]
    if not known:
        return [f"no KL budget was reached: the runs ended at {words.nats(reached)}; --steps makes them longer"]
    out = ["the law is a first-order statement: beyond 1 nat it overstates, beyond 2 at most its sign is worth reading"]
    fewer = {f.kl: max(f.law.n, f.twin.n) for f in known if max(f.law.n, f.twin.n) < seeds}
    if fewer:
        each = ", ".join(f"{n} at {words.budget(kl)}" for kl, n in fewer.items())
        out.append(f"of the {seeds} seeds not all reach every budget: {each}; --steps makes the runs longer")
    if any(f.law.n == 1 for f in found):
        out.append("one seed: the intervals are over prompts alone, and training noise is in none of them")
    return out
