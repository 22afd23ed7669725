"""What an exact study leaves: tables as Parquet and CSV, figures, and a plain-text summary.

The tables are of their own and not the product's records: nothing here is sampled, so there are no prompts to
resample, and the dials (labels, what the judge sees, the policy's class) have no columns there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from aligngap.exact import capacity, skewed, theory, worlds
from aligngap.exact.capacity import CEILING, CELL, OFFLINE, ONLINE, ONLINE_GOLDEN, UNLIMITED, Grid
from aligngap.exact.claims import judge
from aligngap.exact.skewed import SkewedGrid
from aligngap.storage.files import write_text
from aligngap.storage.records import Columns, read_table

#: a run of less KL than this has not left the reference, and is on neither side of it
STILL = 1e-12

#: predicted gaps below this have no sign worth counting
FAINT = 0.01


def read_runs(path: Path, columns: Columns) -> pd.DataFrame:
    """A table of runs or predictions; the records' reader takes infinity for undefined, so it is put back here."""
    table = read_table(path, columns)
    return table.assign(labels=table["labels"].fillna(UNLIMITED))


def compared(runs: pd.DataFrame, choices: pd.DataFrame, grid: Grid) -> dict[str, pd.DataFrame]:
    """The gaps of a table of runs, measured or predicted, in each view, by the judge and with golden labels."""
    chosen, ends = capacity.chosen_wins(runs, choices), capacity.end_wins(runs, grid.budgets)
    return {
        "chosen": capacity.gaps(chosen),
        "ends": capacity.gaps(ends),
        "matched": capacity.gaps(capacity.matched_wins(runs, grid.budgets)),
        "chosen, golden labels": capacity.gaps(chosen, ONLINE_GOLDEN),
        "ends, golden labels": capacity.gaps(ends, ONLINE_GOLDEN),
    }


def first_order_gaps(predictions: pd.DataFrame, grid: Grid) -> pd.DataFrame:
    """sqrt(2 KL) (slope_online - slope_offline) by seed, cell and budget: the first-order law's own forecast."""
    some = predictions[predictions["arm"].isin([ONLINE, OFFLINE]) & (predictions["beta"] == grid.betas[0])]
    wide = some.pivot(index=["seed", *CELL], columns="arm", values="slope")
    slope = (wide[ONLINE] - wide[OFFLINE]).rename("slope").reset_index()
    parts = [slope.assign(kl=k, gap=math.sqrt(2 * k) * slope["slope"]).drop(columns="slope") for k in grid.budgets]
    return pd.concat(parts, ignore_index=True)


def cells(measured: pd.DataFrame, predicted: pd.DataFrame) -> pd.DataFrame:
    """A row a cell and budget: predicted mean, measured mean, pointwise 95% t interval over seeds, and seeds."""
    rows = []
    for part in measured.groupby([*CELL, "kl"], as_index=False):
        frame = part[1]
        about = {name: frame[name].iloc[0] for name in (*CELL, "kl")}
        said = predicted
        for name, value in about.items():
            said = said[said[name] == value]
        values, n = frame["gap"].to_numpy(np.float64), len(frame)
        half = float(stats.t.ppf(0.975, n - 1) * values.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan
        mean, expected = float(values.mean()), float(said["gap"].mean())
        rows.append(
            {**about, "predicted": expected, "measured": mean, "lower": mean - half, "upper": mean + half, "seeds": n}
        )
    return pd.DataFrame(rows, columns=[*CELL, "kl", "predicted", "measured", "lower", "upper", "seeds"])


def calibration(measured: pd.DataFrame, predicted: pd.DataFrame) -> pd.DataFrame:
    """By KL: measured against predicted gap, run by run: slope, intercept, correlation, root mean square, signs."""
    keys = [c for c in measured.columns if c != "gap"]
    both = measured.merge(predicted, on=keys, suffixes=("", "_predicted")).dropna()
    rows = []
    for kl, frame in both.groupby("kl"):
        x, y = frame["gap_predicted"].to_numpy(np.float64), frame["gap"].to_numpy(np.float64)
        if len(x) < 3:
            continue
        fit = stats.linregress(x, y)
        clear = np.abs(x) > FAINT
        agree = float((np.sign(x[clear]) == np.sign(y[clear])).mean()) if clear.any() else math.nan
        line = {"kl": kl, "n": len(x), "slope": fit.slope, "intercept": fit.intercept, "correlation": fit.rvalue}
        rows.append({**line, "rmse": float(np.sqrt(((x - y) ** 2).mean())), "clear": int(clear.sum()), "signs": agree})
    return pd.DataFrame(rows, columns=["kl", "n", "slope", "intercept", "correlation", "rmse", "clear", "signs"])


def ceiling_shortfall(runs: pd.DataFrame, grid: Grid) -> pd.DataFrame:
    """T1's check: the ceiling less offline IPO's ends, unlimited labels, a table; mean and largest over seeds by KL."""
    ends = capacity.end_wins(runs[(runs["labels"] == UNLIMITED) & (runs["policy"] == "table")], grid.budgets)
    offline = ends[(ends["arm"] == OFFLINE) & (ends["sees"] == grid.sees[0])]
    top = runs[(runs["arm"] == CEILING) & (runs["labels"] == UNLIMITED) & (runs["sees"] == grid.sees[0])]
    rows = []
    for kl in grid.budgets:
        best = top.set_index("seed")[f"win_at_{kl:g}"].dropna()
        short = (best - offline[offline["kl"] == kl].set_index("seed")["win"]).dropna()
        if len(short):
            rows.append({"kl": kl, "ceiling": best.mean(), "shortfall": short.mean(), "largest": short.max()})
    return pd.DataFrame(rows, columns=["kl", "ceiling", "shortfall", "largest"])


def nats(kl: float) -> str:
    """A KL with its unit, for reading."""
    return f"{kl:g} nat" + ("s" if kl != 1 else "")


def label_name(labels: float) -> str:
    """A number of labels for reading; without limit it is all."""
    return "all" if math.isinf(labels) else f"{labels:g}"


#: columns that are differences, whose sign is written
SIGNED = ("predicted", "measured", "lower", "upper", "intercept", "shortfall", "largest")


def markdown(table: pd.DataFrame) -> str:
    """A Markdown table: three decimals below one, differences with their sign, an empty place for nan."""

    def text(name: str, value: Any) -> str:
        if not isinstance(value, float):
            return str(value)
        if math.isnan(value) or math.isinf(value):
            return "" if math.isnan(value) else "all"
        if name == "p_holm" and value < 0.001:
            return "<0.001"
        rounded = round(value, 3) + 0.0  # no minus before a zero
        return f"{rounded:+.3f}" if name in SIGNED else f"{rounded:g}"

    names = list(map(str, table.columns))
    body = [
        "| " + " | ".join(text(name, v) for name, v in zip(names, row, strict=True)) + " |"
        for row in table.astype(object).itertuples(index=False)
    ]
    return "\n".join(["| " + " | ".join(names) + " |", "|" + " --- |" * len(names), *body])


def phase_table(found: pd.DataFrame, policy: str, kl: float, grid: Grid) -> pd.DataFrame:
    """Measured (predicted) gap as text, labels down and what the judge sees across."""
    rows = []
    here = found[(found["policy"] == policy) & (found["kl"] == kl)]
    numbers = {(row.labels, row.sees): (row.measured, row.predicted) for row in here.itertuples(index=False)}
    for labels in grid.labels:
        row: dict[str, Any] = {"labels": label_name(labels)}
        for sees in grid.sees:
            if policy == "linear" and sees not in grid.linear_sees:
                continue
            name = f"sees {sees}" if sees else "names only"
            text = "{:+.3f} ({:+.3f})".format(*numbers[labels, sees]) if (labels, sees) in numbers else ""
            row[name] = text
        rows.append(row)
    return pd.DataFrame(rows)


def write_capacity(
    out: Path,
    runs: pd.DataFrame,
    predictions: pd.DataFrame,
    choices: pd.DataFrame,
    grid: Grid,
    about: Mapping[str, Any],
) -> None:
    """Write every derived table, the figures and `summary.md` of the capacity study."""
    measured, predicted = compared(runs, choices, grid), compared(predictions, choices, grid)
    law = first_order_gaps(predictions, grid)
    found = {view: cells(measured[view], predicted[view]) for view in measured if view != "matched"}
    for view, table in found.items():
        save_csv(out / f"cells_{view.replace(', ', '_').replace(' ', '_')}.csv", table)
    verdicts = judge(measured["chosen"], predicted["chosen"])
    secondary = judge(measured["ends"], predicted["ends"])
    save_csv(out / "verdicts.csv", verdicts)
    save_csv(out / "verdicts_ends.csv", secondary)
    forecasts = {
        "twin, at the same beta": calibration(measured["matched"], predicted["matched"]),
        "twin, each arm at its chosen beta": calibration(measured["chosen"], predicted["chosen"]),
        "fixed points, at the runs' ends": calibration(measured["ends"], predicted["ends"]),
        "first-order law, at the chosen beta": calibration(measured["chosen"], law),
    }
    every = pd.concat([t.assign(forecast=name) for name, t in forecasts.items()], ignore_index=True)
    save_csv(out / "calibration.csv", every[["forecast", *[c for c in every.columns if c != "forecast"]]])
    (out / "figures").mkdir(exist_ok=True)
    phase_figure(out / "figures" / "phase", found["chosen"], measured["matched"], predicted["matched"], grid)
    seeds = sorted(runs["seed"].unique())
    lines = [
        "# Capacity, in a world where everything is exact",
        "",
        f"Online minus offline true win rate against the reference at equal KL; {len(seeds)} seeds ({seeds[0]} to "
        f"{seeds[-1]}), each its own world, labels and judge. Predictions were written at {about['written']} (SHA-256 "
        f"{about['sha256'][:16]}), before training began; betas were chosen on seeds {about['spent']}. "
        f"Commit {about['commit']}.",
        "",
        "## Primary family (each arm at its chosen beta, stopped where it first has the KL)",
        "",
        markdown(verdicts.drop(columns=["p"])),
        "",
        "The same claims with every run at its end, interpolated in KL over beta (secondary):",
        "",
        markdown(secondary.drop(columns=["p"])),
    ]
    for kl in grid.budgets:
        for view in ("chosen", "ends"):
            for policy in ("table", "linear"):
                if len(found[view][(found[view]["policy"] == policy) & (found[view]["kl"] == kl)]):
                    title = f"## {policy} policy, {nats(kl)}, {view}: measured (predicted)"
                    lines += ["", title, "", markdown(phase_table(found[view], policy, kl, grid))]
    lines += ["", "## Fresh true preferences instead of the judge (online-golden - offline), table, 1 nat", ""]
    lines += [markdown(phase_table(found["chosen, golden labels"], "table", 1.0, grid).iloc[:, :2])]
    lines += ["", "## How well the forecasts hold, run by run", "", markdown(every[["forecast", *every.columns[:-1]]])]
    lines += ["", f"`signs`: share of agreeing signs where more than {FAINT} was predicted (`clear` such runs)."]
    lines += ["", "## T1: what offline IPO with unlimited labels falls short of the ceiling, at its ends", ""]
    lines += [markdown(ceiling_shortfall(runs, grid)), "", reach_line(runs, measured["chosen"], grid), ""]
    write_text(out / "summary.md", "\n".join(lines))


def reach_line(runs: pd.DataFrame, gaps: pd.DataFrame, grid: Grid) -> str:
    """Where a comparison lacks seeds, since an arm never reached the budget: said and not dropped in silence."""
    seeds = runs["seed"].nunique()
    count = gaps.groupby([*CELL, "kl"]).size()
    wanted = runs[runs["arm"] != CEILING].groupby(CELL).size().index
    short = [
        f"{p} / {label_name(n)} labels / sees {s} at {kl:g} nats: {int(count.get((p, n, s, kl), 0))}"
        for p, n, s in wanted for kl in grid.budgets if count.get((p, n, s, kl), 0) < seeds
    ]  # fmt: skip
    return (
        f"Seeds of {seeds} in which both arms reached the budget, where not all: " + ("; ".join(short) or "none") + "."
    )


def phase_figure(
    name: Path, found: pd.DataFrame, measured: pd.DataFrame, predicted: pd.DataFrame, grid: Grid, kl: float = 1.0
) -> None:
    """The phase diagram at one KL, predicted beside measured, and every run's gap against its forecast."""
    plt = _pyplot()
    figure, axes = plt.subplots(1, 3, figsize=(12.5, 4.0), width_ratios=(1, 1, 1.05))
    here = found[(found["policy"] == "table") & (found["kl"] == kl)].set_index(["labels", "sees"])
    most = max(0.01, float(here[["measured", "predicted"]].abs().max().max())) if len(here) else 0.1
    for axis, column, title in zip(
        axes, ("predicted", "measured"), ("predicted before training", "measured"), strict=False
    ):
        grid_of = np.array([[here[column].get((n, s), math.nan) for s in grid.sees] for n in grid.labels])
        image = axis.imshow(grid_of, cmap="PuOr_r", vmin=-most, vmax=most, aspect="auto")
        for i, j in np.ndindex(*grid_of.shape):
            dark = abs(grid_of[i, j]) > 0.6 * most
            axis.text(j, i, f"{grid_of[i, j]:+.3f}", ha="center", va="center", fontsize=8, color="w" if dark else "k")
        axis.set_xticks(range(len(grid.sees)), [str(s) if s else "names" for s in grid.sees])
        axis.set_yticks(range(len(grid.labels)), [label_name(n) for n in grid.labels])
        axis.set(xlabel="features of 8 that the judge sees", ylabel="golden labels", title=f"{title}, {kl:g} nat")
        figure.colorbar(image, ax=axis, label="online − offline win rate")
    keys = [c for c in measured.columns if c != "gap"]
    both = measured.merge(predicted, on=keys, suffixes=("", "_predicted"))
    for (at, frame), colour in zip(both.groupby("kl"), ("#0072B2", "#D55E00", "#009E73", "#8C8C8C"), strict=False):
        axes[2].plot(
            frame["gap_predicted"], frame["gap"], ".", ms=2, alpha=0.35, color=colour, rasterized=True,
            label=f"{nats(float(str(at)))} ({len(frame)} runs)",
        )  # fmt: skip
    ends = [min(axes[2].get_xlim()[0], axes[2].get_ylim()[0]), max(axes[2].get_xlim()[1], axes[2].get_ylim()[1])]
    axes[2].plot(ends, ends, "k-", lw=0.8)
    axes[2].set(xlabel="gap that the twin forecasts", ylabel="gap measured", title="run by run, both arms at one beta")
    axes[2].legend(markerscale=4, fontsize=8)
    _save(figure, name)


def write_skewed(
    out: Path, runs: pd.DataFrame, predictions: pd.DataFrame, grid: SkewedGrid, about: Mapping[str, Any]
) -> None:
    """Write the derived tables, the figure and `summary.md` of the skewed study."""
    exact, drawn = skewed_tables(runs, predictions, grid)
    save_csv(out / "exact.csv", exact)
    save_csv(out / "drawn.csv", drawn)
    (out / "figures").mkdir(exist_ok=True)
    skewed_figure(out / "figures" / "skewed", exact, drawn, grid)
    soft, hard = theory.turning_point(False), theory.turning_point(True)
    lines = [
        "# Skewed pairs and a misspecified policy class (T4)",
        "",
        f"Turning point of the share of pairs (3, 1): {soft:.4f} with true probabilities as labels, {hard:.4f} with "
        f"sure ones. Predictions were written at {about['written']} (SHA-256 {about['sha256'][:16]}), before training "
        f"began. Commit {about['commit']}.",
        "",
        "## Learning from the distribution itself: online with golden labels minus offline",
        "",
        markdown(exact),
        "",
        f"## Drawn labels, {len([s for s in runs['seed'].unique() if s >= 0])} seeds: share of runs on the wrong side",
        "",
        markdown(drawn),
        "",
        "`still`: runs that did not leave the reference (labels that balance exactly, a judge that learned nothing); "
        "they are on neither side and count in no share.",
        "",
    ]
    write_text(out / "summary.md", "\n".join(lines))


def skewed_tables(runs: pd.DataFrame, predictions: pd.DataFrame, grid: SkewedGrid) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The exact gaps by share, kind of label and KL; and how often each arm goes the wrong way from drawn labels."""
    rows = []
    for (hard, share), frame in runs[runs["labels"] == UNLIMITED].groupby(["hard", "share"]):
        said = predictions[
            (predictions["labels"] == UNLIMITED) & (predictions["hard"] == hard) & (predictions["share"] == share)
        ]
        for kl in grid.budgets:
            found = []
            for table in (said, frame):
                at = table.groupby("arm")[f"win_at_{kl:g}"].mean()
                found.append(at.get(ONLINE_GOLDEN, math.nan) - at.get(OFFLINE, math.nan))
            labels = "sure" if hard else "probabilities"
            line = {"labels": labels, "share": share, "kl": kl, "predicted": found[0], "measured": found[1]}
            rows.append(line)
    exact = pd.DataFrame(rows)
    rows = []
    some = runs[(runs["labels"] != UNLIMITED) & (runs["beta"] == grid.betas[-1])]
    said = predictions[(predictions["labels"] != UNLIMITED) & (predictions["beta"] == grid.betas[-1])]
    for labels, share in some[["labels", "share"]].drop_duplicates().itertuples(index=False):
        frame = some[(some["labels"] == labels) & (some["share"] == share)]
        there = said[(said["labels"] == labels) & (said["share"] == share)]
        forecast = skewed.wrong_share(float(share), float(labels))
        row: dict[str, float] = {"labels": labels, "share": share, "offline, forecast": forecast}
        for arm in (OFFLINE, ONLINE):
            both = [t[t["arm"] == arm].set_index("seed") for t in (frame, there)]
            moved = both[0]["kl_end"] > STILL
            wrong, expected = (~t.loc[moved, "right"].astype(bool) for t in both)
            row |= {f"{arm}, wrong": wrong.mean(), f"{arm}, as predicted": (wrong == expected).mean()}
            row |= {f"{arm}, still": float((~moved).sum())}
        rows.append(row)
    return exact, pd.DataFrame(rows)


def skewed_figure(name: Path, exact: pd.DataFrame, drawn: pd.DataFrame, grid: SkewedGrid) -> None:
    """The gap at one KL over the share of pairs (3, 1), and how often drawn labels send offline the wrong way."""
    plt = _pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.6))
    for hard, marker, colour in ((False, "o", "#0072B2"), (True, "s", "#D55E00")):
        point = theory.turning_point(hard)
        kind = "sure" if hard else "probabilities"
        here = exact[(exact["labels"] == kind) & (exact["kl"] == 0.25)]
        away = theory.skewed_policy(0.25, 1), theory.skewed_policy(0.25, -1)
        world = worlds.skewed(0.0)
        jump = world.win_rate(away[1]).item() - world.win_rate(away[0]).item()
        axes[0].plot([0, point, point, 1], [0, 0, jump, jump], "-", color=colour, lw=1, label=f"predicted, {kind}")
        size, face = (5, colour) if hard else (9, "none")
        axes[0].plot(
            here["share"], here["measured"], marker, color=colour, ms=size, mfc=face, label=f"measured, {kind}"
        )
    axes[0].set(xlabel="share of pairs (3, 1)", ylabel="online − offline win rate, 0.25 nats")
    axes[0].legend(fontsize=8)
    shares = np.linspace(0.4, 0.9, 101)
    for labels, marker, colour in zip(
        (n for n in grid.labels if n != UNLIMITED), "o^", ("#0072B2", "#D55E00"), strict=False
    ):
        here = drawn[drawn["labels"] == labels]
        forecast = [skewed.wrong_share(float(s), labels) for s in shares]
        axes[1].plot(shares, forecast, "-", color=colour, lw=1, label=f"forecast, {labels:g} labels")
        axes[1].plot(here["share"], here["offline, wrong"], marker, color=colour, ms=5, label=f"offline, {labels:g}")
        axes[1].plot(
            here["share"], here["online, wrong"], marker, mfc="none", color=colour, ms=5, label=f"online, {labels:g}"
        )
    axes[1].set(xlabel="share of pairs (3, 1)", ylabel="share of seeds on the wrong side")
    axes[1].legend(fontsize=7)
    _save(figure, name)


def save_csv(path: Path, table: pd.DataFrame) -> None:
    """Write a table as CSV, whole or not at all, numbers with six digits."""
    write_text(path, table.to_csv(index=False, float_format="%.6g"))


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg", force=False)
    import matplotlib.pyplot as plt

    return plt


def _save(figure: Any, name: Path, suffixes: Sequence[str] = ("png", "svg")) -> None:
    figure.tight_layout()
    for suffix in suffixes:
        figure.savefig(name.with_suffix(f".{suffix}"), dpi=160, metadata={"Date": None} if suffix == "svg" else {})
    _pyplot().close(figure)
