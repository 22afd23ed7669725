"""Within reach and beyond: where each arm's gain over the SFT policy lies, and how much of the possible it is.

One figure and one table from the columns `GAP_COLUMNS` of the records, against the SFT policy, by the golden judge and
by the true preference. Records made before these columns were measured get a sentence that says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd

from aligngap.report import words
from aligngap.report.analysis import Analysis
from aligngap.report.chart import Axis, Chart, Panel, Series
from aligngap.report.style import NEUTRAL, Style, arm_styles
from aligngap.report.tables import Table
from aligngap.stats.estimate import FloatArray
from aligngap.stats.reference import reference_table
from aligngap.storage.columns import REACH
from aligngap.types import Estimate

#: the opponent that is the reference, and each evaluator's columns by the win rate that they split
OPPONENT = "sft"
BY = {"": "win_rate", "oracle_": "oracle_win_rate"}
MISSING = (
    "These records were made before the split at reach, the law and the ceiling were measured: the same command with "
    "the same store measures the runs again and trains none."
)
EXPLAINED = (
    "A response with log-ratio g = log π/π_SFT is within reach of about e^g responses of the SFT policy. The gain over "
    "the SFT policy is the sum of what is won on responses with g up to c nats, which choosing among SFT responses "
    "could have found, and on those beyond, which the SFT policy hardly writes. Every number is a mean over the runs "
    "of a seed at this KL, interpolated between checkpoints, then over seeds; ± is the standard error over seeds, or "
    "over prompts where there is one seed."
)


def rows_of(analysis: Analysis) -> pd.DataFrame:
    """The checkpoints against the SFT policy that have the split; empty where the records lack it."""
    records = analysis.records
    mine = records[(records["opponent"] == OPPONENT) & (records["step"] > 0) & records["arm"].isin(analysis.arms)]
    return mine[mine[f"within_{REACH[0]}"].notna() & (mine["kl_nats"] > 0)]


def drawn_threshold(rows: pd.DataFrame) -> int:
    """The threshold c that is drawn: 4 nats, or the least where hardly a response lies beyond that."""
    middle = REACH[len(REACH) // 2]
    return middle if rows[f"share_beyond_{middle}"].max() > 0.01 else REACH[0]


def evaluators(rows: pd.DataFrame) -> list[str]:
    """The evaluators that the rows have values of."""
    return [who for who in BY if rows[f"{who}within_{REACH[0]}"].notna().any()]


def reach_chart(analysis: Analysis) -> Chart | None:
    """Both parts of the gain, the gain under its ceiling, and efficiency, against KL; a row of panels an evaluator."""
    rows = rows_of(analysis)
    if not len(rows):
        return None
    c, by, styles = drawn_threshold(rows), evaluators(rows), arm_styles(analysis.arms)
    best, panels, dark = best_of_n(analysis), [], Style("#555555")
    rated = any(rows[f"{who}efficiency"].notna().any() for who in by)
    for who in by:
        rate = BY[who]
        ceiling = curve(rows["kl_nats"], rows[f"{who}ceiling"])
        columns: dict[str, pd.Series] = {
            f"within reach, g ≤ {c}": rows[f"{who}within_{c}"],
            f"beyond, g > {c}": rows[f"{who}beyond_{c}"],
            "gain, ceiling, best-of-n": rows[rate] - 0.5,
            "efficiency": rows[f"{who}efficiency"],
        }
        if not rated:  # no checkpoint lies where the samples carry a ceiling
            del columns["efficiency"]
        more: dict[str, list[Series]] = {title: [] for title in columns}
        gain = more["gain, ceiling, best-of-n"]
        if len(ceiling):
            gain.append(join("ceiling", dark, ceiling))
        if not who and len(best):
            gain.append(join("best-of-n", NEUTRAL, best, "hollow"))
        if not who and len(best) and rated:
            more["efficiency"].append(join("best-of-n", NEUTRAL, efficiency_of(best, ceiling), "hollow"))
        for title, values in columns.items():
            series = []
            for arm in analysis.arms:
                mine = (rows["arm"] == arm).to_numpy()
                kl, value = rows["kl_nats"][mine], values[mine]
                series.append(Series(arm, styles[arm], kl, value, points="faint"))
                series.append(join(arm, styles[arm], curve(kl, value)))
            first = title.startswith("within")
            y = Axis(f"win rate − ½, {analysis.judges[rate]}" if first else "")
            rules = [(0.0, ""), *([(1.0, "")] if title == "efficiency" and len(ceiling) else [])]
            panels.append(Panel(Axis("KL, nats (log axis)", "log2"), y, (*series, *more[title]), title, tuple(rules)))
    return Chart(tuple(panels), numbers(rows, by, best), 4 if rated else 3)


def join(name: str, style: Style, at: FloatArray, points: Literal["", "hollow"] = "") -> Series:
    """A line through points [M, 2]."""
    return Series(name, style, at[:, 0], at[:, 1], line=True, points=points)


def curve(kl: pd.Series, values: pd.Series) -> FloatArray:
    """Mean KL and mean value [M, 2] of the points in each half octave of KL that has any."""
    known = values.notna().to_numpy()
    x, y = kl.to_numpy(np.float64)[known], values.to_numpy(np.float64)[known]
    place = np.floor(2.0 * np.log2(x))
    found = [(np.exp(np.log(x[place == p]).mean()), y[place == p].mean()) for p in np.unique(place)]
    return np.array(found, dtype=np.float64).reshape(-1, 2)


def best_of_n(analysis: Analysis) -> FloatArray:
    """KL and gain [M, 2] of best-of-n against the SFT policy, by the golden judge; n = 1 is left out."""
    table = reference_table(analysis.best_of_n, OPPONENT)
    table = table[table["kl_nats"] > 0]
    return np.stack([table["kl_nats"].to_numpy(np.float64), table["win_rate"].to_numpy(np.float64) - 0.5], axis=1)


def efficiency_of(best: FloatArray, ceiling: FloatArray) -> FloatArray:
    """KL and gain over the ceiling's [M, 2] of points inside the ceiling's range."""
    if len(ceiling) < 2:
        return np.empty((0, 2))
    inside = (best[:, 0] >= ceiling[0, 0]) & (best[:, 0] <= ceiling[-1, 0])
    there = best[inside]
    top = np.interp(np.log(there[:, 0]), np.log(ceiling[:, 0]), ceiling[:, 1])
    return np.stack([there[:, 0], there[:, 1] / top], axis=1)


def numbers(rows: pd.DataFrame, by: Sequence[str], best: FloatArray) -> pd.DataFrame:
    """The figure's numbers: every checkpoint with every threshold, and best-of-n."""
    parts = [f"{part}_{c}" for c in REACH for part in ("within", "beyond", "mean_within", "mean_beyond")]
    kept = [f"{who}{name}" for who in by for name in (*parts, "rho", "slope", "ceiling", "efficiency")]
    columns = [n for name in (*(f"share_beyond_{c}" for c in REACH), *kept) for n in (name, f"{name}_se")]
    rates = [BY[who] for who in by]
    table = rows[["arm", "run", "seed", "step", "kl_nats", *rates, *columns]].assign(what="checkpoint")
    reference = pd.DataFrame({"arm": "sft", "kl_nats": best[:, 0], "win_rate": best[:, 1] + 0.5, "what": "best-of-n"})
    return pd.concat([table, reference], ignore_index=True) if len(best) else table


# ------------------------------------------------------------------------------------------------------ the table


def reach_tables(analysis: Analysis) -> list[Table]:
    """The compared arms at the KL budgets: share beyond, both parts, efficiency and rho, by each evaluator.

    None where nothing was measured against the SFT policy; without rows where the records lack the columns.
    """
    if OPPONENT not in analysis.opponents:
        return []
    rows = rows_of(analysis)
    title = "Within reach and beyond"
    if not len(rows):
        return [Table("reach", title, (MISSING,), (), ())]
    c, by = drawn_threshold(rows), evaluators(rows)
    names = {f"share_beyond_{c}": f"share beyond {c} nats"}
    for who in by:
        short = "judge" if not who else "truth"
        names |= {
            f"{who}within_{c}": f"within, {short}", f"{who}beyond_{c}": f"beyond, {short}",
            f"{who}mean_beyond_{c}": f"mean beyond, {short}", f"{who}rho": f"rho, {short}",
            f"{who}efficiency": f"efficiency, {short}",
        }  # fmt: skip
    lines = []
    for kl in analysis.view.budgets:
        arms = {arm: at_kl(rows[rows["arm"] == arm], list(names), kl) for arm in analysis.pairs[0]}
        if not all(len(found) for found in arms.values()):
            continue
        lines += [(words.kl(kl), arm, *(cell(found, n) for n in names)) for arm, found in arms.items()]
        if len(arms) == 2:  # a lone policy is compared with none
            first, second = arms.values()
            both = (first[list(names)] - second[list(names)]).dropna(how="all")
            lines.append((words.kl(kl), "difference", *(cell(both, n, sign=True) for n in names)))
    option = "--reference-samples" if analysis.given else "measurement.reference_samples"
    notes = (EXPLAINED, *say_ended(rows, by, option))
    return [Table("reach", title, notes, ("KL, nats", "arm", *names.values()), tuple(lines))]


def say_ended(rows: pd.DataFrame, by: Sequence[str], option: str) -> list[str]:
    """What is missing of ceiling and law, in a sentence each; `option` sets the samples that they take."""
    found = []
    top = rows["kl_nats"][rows["ceiling"].notna()].max()
    if not np.isfinite(top):
        found.append(
            f"No ceiling and no efficiency: they take about 150 e^KL samples of the SFT policy a prompt (`{option}`)."
        )
    elif top < 0.9 * rows["kl_nats"].max():
        found.append(f"The ceiling ends at {words.nats(float(top))}, beyond which too few samples carry it.")
    if not rows[[f"{who}rho" for who in by]].notna().any(axis=None):
        found.append(f"No rho: the records have no samples of the reference (`{option}` is 0).")
    return found


def at_kl(rows: pd.DataFrame, columns: Sequence[str], kl: float) -> pd.DataFrame:
    """The columns where runs first reach `kl`, interpolated in KL, mean over a seed's runs; one line a seed.

    Each column `x` comes with `x_se`, the error over prompts at the nearer checkpoint, averaged likewise.
    """
    lines = []
    for (seed, _), run in rows.groupby(["seed", "run"], observed=True):
        mine = run.sort_values("step")
        x = mine["kl_nats"].to_numpy(np.float64)
        above = np.flatnonzero(x >= kl)
        if not len(above) or above[0] == 0:
            continue
        i = int(above[0])
        share = (kl - x[i - 1]) / (x[i] - x[i - 1])
        line: dict[str, Any] = {"seed": seed}
        for name in columns:
            low, high = mine[name].iloc[i - 1], mine[name].iloc[i]
            line[name] = low + share * (high - low)
            line[f"{name}_se"] = mine[f"{name}_se"].iloc[i if share > 0.5 else i - 1]
        lines.append(line)
    if not lines:
        return pd.DataFrame()
    return pd.DataFrame(lines).groupby("seed").mean()


def cell(found: pd.DataFrame, name: str, sign: bool = False) -> str:
    """A quantity with its error over seeds; of one seed, the error over prompts if it is there."""
    values = found[name].dropna().to_numpy(np.float64)
    if not len(values):
        return "–"
    mean = Estimate.mean(values, "mean over seeds")
    error = mean.se if len(values) > 1 else float(found.get(f"{name}_se", pd.Series([np.nan])).iloc[0])
    return f"{words.number(mean.value, 3, sign)} ± {words.number(error)}"
