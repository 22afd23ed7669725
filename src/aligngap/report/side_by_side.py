"""What the arms write for the same prompts at nearly equal KL: the page's samples."""

from __future__ import annotations

import numpy as np
import pandas as pd

from aligngap.report.analysis import Analysis


def samples_at_equal_kl(
    analysis: Analysis, prompts: int = 4, targets: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)
) -> tuple[float, int, list[dict[str, object]]]:
    """Texts of every arm for the same prompts at nearly equal KL: (target KL, seed, one dict a prompt).

    For each arm the checkpoint of the seed nearest in log KL to the target is taken; the target is the one at which the
    farthest arm is nearest. Step 0 of any run stands for the SFT policy.
    """
    samples, rows = analysis.samples, analysis.records
    if not len(samples):
        return float("nan"), -1, []
    mask = (rows["opponent"] == analysis.opponent) & rows["kl_nats"].notna()
    rows = rows[["run", "arm", "seed", "step", "config", "kl_nats"]][mask]
    rows = rows.merge(samples[["run", "step"]].drop_duplicates(), on=["run", "step"])
    best: tuple[float, float, int, pd.DataFrame] | None = None
    for seed in sorted(rows["seed"].unique()):
        mine = rows[(rows["seed"] == seed) & (rows["kl_nats"] > 0.05)]
        if not len(mine):
            continue
        for target in targets:
            gap = (np.log(mine["kl_nats"]) - np.log(target)).abs()
            chosen = mine.loc[gap.groupby(mine["arm"]).idxmin()]
            worst = float(gap.loc[chosen.index].max()) - 0.5 * len(chosen)
            if best is None or worst < best[0] - 1e-9:
                best = (worst, target, int(seed), chosen)
    if best is None:
        return float("nan"), -1, []
    _, target, seed, chosen = best
    start = rows[(rows["seed"] == seed) & (rows["step"] == 0)].head(1).assign(arm="sft")
    picked = pd.concat([start, chosen]).drop_duplicates("arm")
    texts: list[dict[str, object]] = []
    of_seed = samples[samples["seed"] == seed]
    for prompt_id in of_seed["prompt_id"].drop_duplicates().head(prompts):
        about = of_seed[of_seed["prompt_id"] == prompt_id]
        answers = []
        for arm in ("sft", *analysis.arms):
            for row in picked[picked["arm"] == arm].itertuples():
                hit = about[(about["run"] == row.run) & (about["step"] == row.step)]
                if len(hit):
                    answers.append(
                        {
                            "arm": arm,
                            "kl": row.kl_nats,
                            "step": row.step,
                            "config": row.config,
                            "response": hit["response"].iloc[0],
                            "ended": bool(hit["ended"].iloc[0]),
                        }
                    )
        texts.append({"prompt_id": prompt_id, "prompt": about["prompt"].iloc[0], "answers": answers})
    return target, seed, texts
