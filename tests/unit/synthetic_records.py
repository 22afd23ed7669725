"""Records with a planted truth: the generator behind the tests of the statistics and of the report.

An arm's true win rate is a hump in log KL, `level + height * exp(-(ln kl - centre)^2 / 2 width^2)`; arms differ by a
constant `gap` at equal KL, so the average over any common range has the same truth. Seeds shift an arm as a whole
(`seed_sd`); prompts are shared by all arms and correlated across checkpoints by a Gaussian copula (`rho`), which leaves
the marginal win probability exact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import ndtr

from aligngap.stats.clouds import Cloud, Clouds
from aligngap.stats.scaling_law import best_of_n_kl
from aligngap.storage.columns import PER_PROMPT_COLUMNS, RECORD_COLUMNS, SAMPLE_COLUMNS

OPPONENTS = ("golden_policy", "sft", "chosen")


@dataclass(frozen=True)
class ArmTruth:
    """One arm of the planted world."""

    gap: float = 0.0  # added to the win rate at every KL
    configs: int = 1  # size of the sweep
    spread: float = 0.0  # how far the worst configuration lies below the best
    kl_range: tuple[float, float] = (0.4, 12.0)
    accuracy_end: float = 0.52
    chosen_end: float = -10.0


DEFAULT_ARMS: Mapping[str, ArmTruth] = {
    "online": ArmTruth(gap=0.08, kl_range=(0.5, 14.0), accuracy_end=0.53, chosen_end=-8.0),
    "offline": ArmTruth(configs=4, spread=0.05, kl_range=(0.35, 20.0), accuracy_end=0.67, chosen_end=-40.0),
}


def true_win(kl: np.ndarray | float, gap: float = 0.0, height: float = 0.25, level: float = 0.2) -> np.ndarray:
    """Planted win rate at a KL in nats."""
    x = np.log(np.maximum(kl, 1e-12))
    return np.asarray(np.clip(level + gap + height * np.exp(-((x - np.log(4.0)) ** 2) / 2.0), 0.01, 0.99))


def make(
    arms: Mapping[str, ArmTruth] = DEFAULT_ARMS,
    seeds: Sequence[int] = (0, 1, 2),
    prompts: int = 256,
    checkpoints: int = 8,
    seed_sd: float = 0.01,
    rho: float = 0.5,
    opponents: Sequence[str] = OPPONENTS,
    same_prompts: bool = False,
    height: float = 0.25,
    rng_seed: int = 0,
    texts: Sequence[str] = ("the red fox", "a blue bird sings"),
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """(records, per_prompt, samples) of a planted study."""
    rng = np.random.default_rng(rng_seed)
    rows: list[dict[str, object]] = []
    blocks: list[pd.DataFrame] = []
    samples: list[dict[str, object]] = []
    for seed in seeds:
        ids = np.array([f"p{'' if same_prompts else seed}-{j}" for j in range(prompts)])
        for opponent in opponents:
            z = rng.normal(size=prompts)
            lift = {"golden_policy": 0.0, "sft": 0.25, "chosen": 0.15}[opponent]
            for arm, truth in arms.items():
                shift = rng.normal(0.0, seed_sd) if seed_sd else 0.0
                for config in range(truth.configs):
                    lr, beta = 1e-5 * (1 + config % 3), (0.1, 0.5, 1.0)[config % 3]
                    name = f"beta={beta} learning_rate={lr:g}" + (f" steps={4 + config}k" if config > 2 else "")
                    run = f"{arm} {name} seed={seed}"
                    low, high = truth.kl_range
                    kls = np.geomspace(low, high * (1 - 0.08 * config), checkpoints) * np.exp(
                        rng.normal(0, 0.03, checkpoints)
                    )
                    penalty = truth.spread * config / max(truth.configs - 1, 1)
                    for index, kl in enumerate([0.0, *kls]):
                        p = 0.2 if index == 0 else float(true_win(kl, truth.gap - penalty + shift, height))
                        p = float(np.clip(p + lift, 0.01, 0.99))
                        if index == 0 and opponent == "sft":
                            p = 0.5
                        u = ndtr(np.sqrt(rho) * z + np.sqrt(1 - rho) * rng.normal(size=prompts))
                        win = (u < p).astype(float)
                        proxy_p = float(np.clip(p + 0.05 * np.log1p(kl), 0.01, 0.99))
                        proxy = (u < proxy_p).astype(float)
                        kl_each = kl * rng.gamma(9.0, 1 / 9.0, prompts)
                        done = index / checkpoints
                        step = 100 * index
                        length = rng.poisson(9 + 3 * done, prompts) + 1
                        blocks.append(
                            pd.DataFrame(
                                {
                                    "run": run,
                                    "arm": arm,
                                    "seed": seed,
                                    "step": step,
                                    "opponent": opponent,
                                    "prompt_id": ids,
                                    "win": win,
                                    "proxy_win": proxy,
                                    "oracle_win": np.nan,
                                    "kl_nats": kl_each,
                                    "log_ratio": kl_each,
                                    "length_tokens": length,
                                    "opponent_length_tokens": 10,
                                }
                            )
                        )
                        se = float(win.std(ddof=1) / np.sqrt(prompts))
                        row: dict[str, object] = dict.fromkeys(RECORD_COLUMNS, np.nan)
                        row.update(
                            study="synthetic",
                            arm=arm,
                            run=run,
                            config=name,
                            seed=seed,
                            loss="ipo",
                            beta=beta,
                            learning_rate=lr,
                            step=step,
                            opponent=opponent,
                            kl_nats=float(kl_each.mean()),
                            kl_nats_se=float(kl_each.std(ddof=1) / np.sqrt(prompts)),
                            kl_k1_nats=kl,
                            forward_kl_nats=kl * 1.1,
                            forward_kl_nats_se=0.05,
                            win_rate=float(win.mean()),
                            win_rate_se=se,
                            ties=0,
                            proxy_win_rate=float(proxy.mean()),
                            proxy_win_rate_se=float(proxy.std(ddof=1) / np.sqrt(prompts)),
                            proxy_agreement=0.8,
                            prompts=prompts,
                            accuracy=0.5 + (truth.accuracy_end - 0.5) * done + rng.normal(0, 0.01),
                            accuracy_se=0.015,
                            accuracy_pairs=1024,
                            chosen_log_ratio=truth.chosen_end * done,
                            chosen_log_ratio_se=0.4,
                            rejected_log_ratio=1.3 * truth.chosen_end * done,
                            rejected_log_ratio_se=0.4,
                            length_tokens=float(length.mean()),
                            opponent_length_tokens=10.0,
                            entropy_nats=1.5 - 0.5 * done,
                            unended=0.01 * done,
                            pairs_seen=32 * step,
                            pairs_distinct=min(32 * step, 8000),
                            responses_sampled=64 * step if arm == "online" else 0,
                            flops=step * (3e9 if arm == "online" else 1e9),
                            outcome="ok",
                        )
                        rows.append(row)
                        if opponent == opponents[0]:
                            for j in range(2):
                                samples.append(
                                    {
                                        "run": run,
                                        "arm": arm,
                                        "seed": seed,
                                        "step": step,
                                        "prompt_id": str(ids[j]),
                                        "prompt": f"Write about topic {j}",
                                        "response": f"{texts[j % len(texts)]} {arm} {step}",
                                        "ended": True,
                                    }
                                )
    return (
        pd.DataFrame(rows, columns=list(RECORD_COLUMNS)),
        pd.concat(blocks, ignore_index=True)[list(PER_PROMPT_COLUMNS)],
        pd.DataFrame(samples, columns=list(SAMPLE_COLUMNS)),
    )


def best_of_n_rows(
    level: float = 0.2,
    gain: float = 0.05,
    seeds: Sequence[int] = (0, 1, 2),
    se: float = 0.015,
    n: int = 16,
    variant: str = "",
) -> pd.DataFrame:
    """`best_of_n.parquet` of a planted SFT policy: win rate `level` plus `gain` for every doubling of n."""
    rng = np.random.default_rng(5)
    rows = []
    for seed in seeds:
        for opponent in OPPONENTS:
            shift = rng.normal(0, se)
            for k in range(int(np.log2(n)) + 1):
                win = level + gain * k + shift
                rows.append(
                    {
                        "variant": variant,
                        "seed": seed,
                        "opponent": opponent,
                        "n": 2**k,
                        "kl_nats": float(best_of_n_kl(2**k)),
                        "win_rate": win,
                        "win_rate_se": se,
                        "proxy_win_rate": win + 0.02 * k,
                        "proxy_win_rate_se": se,
                        "prompts": 256,
                    }
                )
    return pd.DataFrame(rows)


def hump(kl: np.ndarray) -> np.ndarray:
    """The planted frontier: a win rate that peaks at 4 nats."""
    return np.asarray(0.3 + 0.15 * np.exp(-((np.log(kl / 4.0)) ** 2) / 4.0))


def planted_clouds(
    rng: np.random.Generator,
    gaps: Mapping[str, float],
    configs: Mapping[str, int] | None = None,
    seeds: int = 3,
    prompts: int = 200,
    checkpoints: int = 7,
    seed_sd: float = 0.02,
    wave_sd: float = 0.0,
    spread: float = 0.0,
    rho: float = 0.5,
    same_prompts: bool = False,
    shape: Callable[[np.ndarray], np.ndarray] = hump,
) -> Clouds:
    """Clouds straight from the planted truth, for simulations: no tables in between.

    `wave_sd` adds a seed effect that varies with KL (a random sinusoid) to the constant shift of `seed_sd`.
    """
    items = []
    shared = rng.normal(size=prompts)
    for seed in range(seeds):
        z = shared if same_prompts else rng.normal(size=prompts)
        ids = tuple(f"p{0 if same_prompts else seed}-{j}" for j in range(prompts))
        for arm, gap in gaps.items():
            shift, amplitude = rng.normal(0, seed_sd), rng.normal(0, wave_sd, 2) * np.sqrt(2.0)
            n = (configs or {}).get(arm, 1)
            kl = np.geomspace(0.5, 14.0, checkpoints)[None, :] * np.exp(rng.normal(0, 0.05, (n, checkpoints)))
            kl[:, 0], kl[:, -1] = 0.45, 15.0
            wave = amplitude[0] * np.sin(2 * np.log(kl)) + amplitude[1] * np.cos(2 * np.log(kl))
            worse = spread * np.arange(n)[:, None] / max(n - 1, 1)
            p = np.clip(gap + shift + wave - worse + shape(kl), 0.01, 0.99)
            u = ndtr(np.sqrt(rho) * z + np.sqrt(1 - rho) * rng.normal(size=(n, checkpoints, prompts)))
            wins = (u < p[..., None]).astype(np.float32).reshape(n * checkpoints, prompts)
            items.append(
                Cloud(
                    arm=arm,
                    seed=seed,
                    runs=tuple(f"{arm}-{seed}-{i}" for i in range(n)),
                    configs=tuple(f"c{i}" for i in range(n)),
                    run=np.repeat(np.arange(n), checkpoints),
                    step=np.tile(np.arange(1, checkpoints + 1), n),
                    x=kl.ravel(),
                    x_se=np.zeros(n * checkpoints),
                    win=wins.mean(axis=1, dtype=np.float64),
                    win_se=np.full(n * checkpoints, 0.03),
                    prompt_ids=ids,
                    win_by_prompt=wins,
                    x_by_prompt=None,
                )
            )
    return Clouds(tuple(items))


def same_as(arm: str, name: str, records: pd.DataFrame, per_prompt: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tables with a copy of an arm under another name: an exact replay."""

    def both(table: pd.DataFrame) -> pd.DataFrame:
        mine = table[table["arm"] == arm]
        copy = mine.assign(arm=name, run=name + " " + mine["run"])
        return pd.concat([table, copy], ignore_index=True)

    return both(records), both(per_prompt)
