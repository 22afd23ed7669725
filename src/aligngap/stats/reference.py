"""Best-of-n of the SFT policy beside the arms: the frontier that needs no training, compared with them at equal KL.

Its points (`best_of_n.parquet`) become a `Cloud` like an arm's, so the comparison is the arms' own (`stats.compare`),
paired by seed. Prompt by prompt it is not recorded: its error rests on the standard errors, one draw for all n (they
share their samples), and the pairing on prompts is given up, which widens the interval of a difference.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from aligngap.stats.clouds import Cloud
from aligngap.stats.compare import Comparison, compare
from aligngap.stats.frontier import ArmCurves, arm_curves

BEST_OF_N = "best-of-n"


def reference_clouds(best_of_n: pd.DataFrame, opponent: str, score: str = "win_rate") -> list[Cloud]:
    """One cloud a seed; n = 1 is the SFT policy itself and stays out, as step 0 does."""
    rows = best_of_n[(best_of_n["opponent"] == opponent) & (best_of_n["n"] > 1) & best_of_n[score].notna()]
    out = []
    for seed, frame in rows.sort_values("n").groupby("seed"):
        count = len(frame)
        out.append(
            Cloud(
                arm=BEST_OF_N,
                seed=int(str(seed)),
                runs=(BEST_OF_N,),
                configs=("",),
                run=np.zeros(count, dtype=np.int64),
                step=frame["n"].to_numpy(np.int64),
                x=frame["kl_nats"].to_numpy(np.float64),
                x_se=np.zeros(count),
                win=frame[score].to_numpy(np.float64),
                win_se=np.nan_to_num(frame[f"{score}_se"].to_numpy(np.float64)),
            )
        )
    return out


def against_best_of_n(
    curves: Mapping[str, ArmCurves], best_of_n: pd.DataFrame, opponent: str, rng_seed: int = 0
) -> tuple[Comparison, ...]:
    """Every arm minus best-of-n at equal KL, without a band; nothing where best-of-n was not made."""
    clouds = reference_clouds(best_of_n, opponent)
    if not clouds or not curves:
        return ()
    some = next(iter(curves.values()))
    reference = arm_curves(clouds, some.grid, rng_seed=rng_seed)
    return tuple(compare({**curves, **reference}, arm, BEST_OF_N, opponent, band=False) for arm in curves)


def reference_table(best_of_n: pd.DataFrame, opponent: str, variant: str = "") -> pd.DataFrame:
    """Mean over seeds for each n: KL, golden and proxy win rate with standard errors, and how many seeds.

    The standard error is that over seeds, and not below what the prompts alone give (`estimate.two_level` likewise).
    """
    rows = best_of_n[(best_of_n["opponent"] == opponent) & (best_of_n["variant"] == variant)]
    out = []
    for n, frame in rows.groupby("n"):
        line: dict[str, float] = {"n": float(str(n)), "kl_nats": float(frame["kl_nats"].mean()), "seeds": len(frame)}
        for score in ("win_rate", "proxy_win_rate"):
            values = frame[score].to_numpy(np.float64)
            floor = float(np.mean(frame[f"{score}_se"].to_numpy(np.float64) ** 2))
            between = float(values.var(ddof=1)) if len(values) > 1 else 0.0
            line[score] = float(values.mean())
            line[f"{score}_se"] = float(np.sqrt(np.fmax(between, floor) / len(values)))
        out.append(line)
    return pd.DataFrame(
        out, columns=["n", "kl_nats", "win_rate", "win_rate_se", "proxy_win_rate", "proxy_win_rate_se", "seeds"]
    )


def gain_per_nat(best_of_n: pd.DataFrame, opponent: str = "sft", variant: str = "") -> dict[int, tuple[float, float]]:
    """Per seed how far best-of-n moves the golden win rate per nat, and its standard error: how near to what the SFT
    policy writes the good responses lie, read without any training.

    (win rate at the largest n - win rate at 1) / (ln n - (n-1)/n). Against the SFT policy itself it starts at one half
    in every task, so tasks are comparable at equal n. The proxy picks, so its errors are in it. The standard error
    takes the two win rates as independent; they share prompts, so it is too large rather than too small.
    """
    rows = best_of_n[(best_of_n["opponent"] == opponent) & (best_of_n["variant"] == variant)]
    out = {}
    for seed, frame in rows.dropna(subset=["win_rate"]).sort_values("n").groupby("seed"):
        numbers = frame[["kl_nats", "win_rate", "win_rate_se"]].to_numpy(np.float64)
        (kl, one, error), (last_kl, most, last_error) = numbers[0], numbers[-1]
        nats = float(last_kl - kl)
        if nats > 0:
            out[int(str(seed))] = (float(most - one) / nats, float(np.hypot(error, last_error)) / nats)
    return out
