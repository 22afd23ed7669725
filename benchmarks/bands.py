"""Coverage, error and width of the band of a drawn frontier, on planted truth: how far is it to be believed?

    PYTHONPATH=tests/unit python benchmarks/bands.py [STUDIES] [SEEDS] [PROMPTS]

Studies of one arm with ten checkpoints a run are drawn from a planted win rate over KL; the unimodal line of
`stats/unimodal.py` and the same spline without the shape are fitted to each. Coverage is the share of the KL range, and
its smallest value at any one KL. Run by hand; nothing is asserted (`tests/unit/test_stats_unimodal.py` does that).
"""

from __future__ import annotations

import sys

import numpy as np
from synthetic_records import hump, planted_clouds

from aligngap.stats.axes import KL
from aligngap.stats.estimate import two_level
from aligngap.stats.frontier import arm_curves, spline
from aligngap.stats.unimodal import frontier_line

SHAPES = {
    "hump": hump,
    "plateau": lambda kl: 0.25 + 0.2 / (1 + np.exp(-3 * (np.log(kl) - 0.5))),
    "rise": lambda kl: 0.25 + 0.06 * (np.log(kl) + 0.7),
}


def main(studies: int = 200, seeds: int = 1, prompts: int = 100) -> None:
    print("| truth | fit | error (rms) | coverage | at worst | width |\n| --- | --- | --- | --- | --- | --- |")
    for name, shape in SHAPES.items():
        found: dict[str, list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = {"spline": [], "one hump": []}
        for i in range(studies):
            clouds = planted_clouds(
                np.random.default_rng([3, i]), {"a": 0.0}, seeds=seeds, prompts=prompts, checkpoints=10,
                seed_sd=0.02 if seeds > 1 else 0.0, shape=shape,
            )  # fmt: skip
            c = arm_curves(clouds.items, KL.grid(0.45, 15.0), 100, i)["a"]
            line, inside = frontier_line(c), np.isfinite(c.frontier).all(axis=0)
            hat, truth = spline(c.grid[inside], 6.0).hat, shape(line.kl)
            plain = two_level(c.frontier[:, inside] @ hat.T, c.frontier_reps[:, :, inside] @ hat.T)
            for fit, y in (("spline", plain), ("one hump", line)):
                covered = (y.lower <= truth) & (truth <= y.upper)
                found[fit].append(((y.value - truth) ** 2, covered, y.upper - y.lower))
        for fit, rows in found.items():
            shortest = min(len(r[0]) for r in rows)
            error, covered, width = (np.array([r[j][:shortest] for r in rows]) for j in range(3))
            at_kl = covered.mean(axis=0)
            print(
                f"| {name} | {fit} | {np.sqrt(error.mean()):.4f} | {at_kl.mean():.1%} | {at_kl.min():.0%} "
                f"| {width.mean():.3f} |",
                flush=True,
            )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
