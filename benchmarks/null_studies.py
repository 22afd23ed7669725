"""How often studies in which there is nothing to find find something, and how far their estimates lie off.

Studies are drawn in the form in which the product reads them (checkpoints of runs with their KL and their wins prompt
by prompt) from a world in which both arms are the same: configurations differ in how far they move and in what they
gain, every run has a training noise of its own that varies along its KL, every seed has one that its arms share, and a
prompt's difficulty is shared by all checkpoints. Each protocol is the product's own code.

Printed are the shares of
studies with a directional verdict on either side (2.5% a side is what is promised) and the mean difference at each KL
budget; for the decision of `aligngap compare`, how often it is wrong.

    python benchmarks/null_studies.py --studies 2000
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import ndtr

from aligngap.hypotheses.decision import OFFLINE, ONLINE, decide
from aligngap.hypotheses.verdicts import CONTRADICTED, SUPPORTED, decide_anywhere
from aligngap.hypotheses.verdicts import decide as by_interval
from aligngap.hypotheses.view import View
from aligngap.stats.budgets import BUDGETS, at_budgets
from aligngap.stats.clouds import Cloud, Clouds
from aligngap.stats.compare import compare, curves_for
from aligngap.stats.peaks import peaks_of
from aligngap.stats.seedwise import mean_over_seeds
from aligngap.storage.columns import PER_PROMPT_COLUMNS, RECORD_COLUMNS

DIFFERENCE = {"online": 1.0, "offline": -1.0}
#: where each configuration ends (nats) and what it gains over the others
CONFIGS = ((3.0, 0.01), (5.0, 0.0), (9.0, -0.01), (14.0, -0.03))
CHECKPOINTS = 8
MARGIN = 0.03
SEED_SD, RUN_SD, PROMPT_RHO = 0.02, 0.015, 0.5


def study(
    rng: np.random.Generator,
    seeds: int,
    prompts: int,
    configs: Mapping[str, tuple[int, ...]],
    same_prompts: bool = False,
    gain: float = 0.0,
    farther: float = 1.0,
    luck: float = 0.0,
    training: float = 1.0,
) -> Clouds:
    """A study whose arms differ by `gain` at every KL; `configs` names, for each arm, which of `CONFIGS` it ran.

    Online ends at `farther` times offline's KL. With `luck` a run that does better than its like goes farther too (a
    run one standard deviation better ends at exp(luck) times the KL), so that those that fall short of a budget are not
    missing at random. `training` multiplies what runs of one configuration differ by.
    """
    items = []
    shared = rng.normal(size=prompts)
    for seed in range(seeds):
        difficulty = shared if same_prompts else rng.normal(size=prompts)
        ids = tuple(f"{0 if same_prompts else seed}-{i}" for i in range(prompts))
        level = rng.normal(0, SEED_SD)
        for arm, ran in configs.items():
            kl, win = [], []
            for number in ran:
                end, better = CONFIGS[number]
                end *= np.exp(rng.normal(0, 0.1)) * (farther if arm == "online" else 1.0)
                moved = jitter(rng)
                luckier, later = rng.normal(size=2)
                end *= np.exp(luck * luckier)
                effect = training * RUN_SD * np.array([luckier, later])
                x = np.sort(np.geomspace(0.1, end, CHECKPOINTS) * moved)
                wave = effect @ np.stack([np.ones(CHECKPOINTS), np.sqrt(2) * np.sin(np.log(x))])
                curve = 0.5 + 0.3 * (1 - np.exp(-x / 3)) - 0.004 * x
                kl.append(x)
                win.append(curve + better + level + wave + (gain if arm == "online" else 0.0))
            x, p = np.concatenate(kl), np.clip(np.concatenate(win), 0.01, 0.99)
            noise = np.sqrt(1 - PROMPT_RHO) * rng.normal(size=(len(x), prompts))
            wins = (ndtr(np.sqrt(PROMPT_RHO) * difficulty + noise) < p[:, None]).astype(np.float32)
            items.append(
                Cloud(
                    arm=arm,
                    seed=seed,
                    runs=tuple(f"{arm} {n} {seed}" for n in ran),
                    configs=tuple(f"configuration {n}" for n in ran),
                    run=np.repeat(np.arange(len(ran)), CHECKPOINTS),
                    step=np.tile(np.arange(1, CHECKPOINTS + 1), len(ran)),
                    x=x,
                    x_se=np.zeros(len(x)),
                    win=wins.mean(axis=1, dtype=np.float64),
                    win_se=np.full(len(x), 0.03),
                    prompt_ids=ids,
                    win_by_prompt=wins,
                )
            )
    return Clouds(tuple(items))


def jitter(rng: np.random.Generator) -> np.ndarray:
    """What the KL of a run's checkpoints varies by."""
    return np.exp(rng.normal(0, 0.05, CHECKPOINTS))


@dataclass
class Tally:
    """What one protocol said over many studies."""

    name: str
    places: tuple[str, ...]
    above: int = 0
    below: int = 0
    studies: int = 0
    values: list[list[float]] = field(default_factory=list)

    def add(self, outcome: str, values: list[float]) -> None:
        self.studies += 1
        self.above += outcome == SUPPORTED
        self.below += outcome == CONTRADICTED
        self.values.append(values)

    def join(self, other: Tally) -> None:
        """Add what another tally of the same protocol counted."""
        self.above, self.below = self.above + other.above, self.below + other.below
        self.studies += other.studies
        self.values += other.values

    @property
    def bias(self) -> np.ndarray:
        return np.asarray(np.nanmean(np.array(self.values), axis=0))

    def line(self) -> str:
        """A row: shares of false verdicts on either side, and the mean difference at each place."""
        error = np.nanstd(np.array(self.values), axis=0, ddof=1) / np.sqrt(self.studies)
        means = ", ".join(
            f"{place} {b:+.4f} ± {e:.4f}" for place, b, e in zip(self.places, self.bias, error, strict=True)
        )
        return f"| {self.name} | {self.above / self.studies:.2%} | {self.below / self.studies:.2%} | {means} |"


SAME = {"online": (0, 1, 2, 3), "offline": (0, 1, 2, 3)}
#: the paper's protocol: one configuration against the best of all
ONE_AGAINST_ALL = {"online": (1,), "offline": (0, 1, 2, 3)}
NAMES = tuple(f"{b:g} nats" for b in BUDGETS)


def budgets(
    name: str, seeds: int, prompts: int, chosen: bool = False, spent: int = 0, shared: bool = False, **world: float
) -> Protocol:
    """Differences at the KL budgets, by the verdict's own rule."""

    def one(rng: np.random.Generator) -> tuple[str, list[float]]:
        clouds = study(rng, seeds + spent, prompts, SAME, shared, **world)
        found = at_budgets(clouds, DIFFERENCE, chosen=chosen, spent=range(spent))
        return decide_anywhere(found)[0], [b.mean.value for b in found.budgets]

    return Protocol(name, NAMES, one)


def best(name: str, seeds: int, prompts: int) -> Protocol:
    """The difference of the arms' best checkpoints of each configuration, chosen on other seeds."""

    def one(rng: np.random.Generator) -> tuple[str, list[float]]:
        found = peaks_of(study(rng, seeds, prompts, SAME), ("online", "offline"))
        assert not isinstance(found, str)
        mean = mean_over_seeds(found["online"].values.plus(found["offline"].values, -1.0))
        return by_interval(mean.interval()), [mean.value]

    return Protocol(name, ("best checkpoint",), one)


def paper(name: str, seeds: int, prompts: int) -> Protocol:
    """One configuration against the pooled envelope of four, averaged over log KL: the second view."""

    def one(rng: np.random.Generator) -> tuple[str, list[float]]:
        curves = curves_for(study(rng, seeds, prompts, ONE_AGAINST_ALL), 100)
        found = compare(curves, "online", "offline", band=False)
        return by_interval(found.average_interval), [found.average.value, found.peak.value]

    return Protocol(name, ("average over log KL", "peak"), one)


@dataclass(frozen=True)
class Protocol:
    """A way to ask for the gap: from a drawn study to a verdict and the estimates behind it."""

    name: str
    places: tuple[str, ...]
    one: Callable[[np.random.Generator], tuple[str, list[float]]]

    def run(self, studies: range) -> Tally:
        """What it says of these studies, each drawn from its number."""
        tally = Tally(self.name, self.places)
        for i in studies:
            tally.add(*self.one(np.random.default_rng([0, i])))
        return tally


def protocols(prompts: int = 256) -> list[Protocol]:
    """Every protocol of the product."""
    return [
        budgets("matched configurations, 5 seeds", 5, prompts),
        budgets("matched configurations, 10 seeds", 10, prompts),
        budgets("matched, 5 seeds that share their prompts", 5, prompts, shared=True),
        budgets("matched, 5 seeds, online ends at 1.6 times the KL", 5, prompts, farther=1.6),
        budgets("the same, and better runs go farther", 5, prompts, farther=1.6, luck=0.3),
        budgets("each arm's best configuration, chosen on 2 spent seeds, 5 seeds", 5, prompts, True, 2),
        budgets("each arm's best configuration, chosen on the other seeds, 5 seeds", 5, prompts, True),
        best("each configuration's best checkpoint, chosen on the other seeds, 5 seeds", 5, prompts),
        paper("the paper's protocol: one against the best of four, 3 seeds", 3, prompts),
        paper("the paper's protocol: one against the best of four, 5 seeds", 5, prompts),
        budgets("matched, 5 seeds, 1.6 times the KL, no training noise", 5, prompts, farther=1.6, training=0.0),
    ]


def wrong_decisions(seeds: int, studies: range, prompts: int = 256, kl: float | None = None) -> tuple[int, int]:
    """How often `aligngap compare` says "offline is enough" at a true gain of the margin, and "online" at none."""
    said = []
    for gain, wrong in ((MARGIN, OFFLINE), (0.0, ONLINE)):
        drawn = (study(np.random.default_rng([1, i]), seeds, prompts, SAME, gain=gain) for i in studies)
        said.append(sum(decide(view_of(clouds), MARGIN, kl=kl).outcome == wrong for clouds in drawn))
    return said[0], said[1]


#: seeds, and the KL of the decision: none is that of the best checkpoint
DECISIONS: tuple[tuple[int, float | None], ...] = ((2, None), (2, 2.0), (3, None), (3, 2.0), (5, None), (5, 2.0))


def part(job: tuple[str, int, range]) -> Any:
    """One share of the work: studies of a protocol, or of a decision."""
    kind, number, studies = job
    if kind == "protocol":
        return protocols()[number].run(studies)
    seeds, kl = DECISIONS[number]
    return wrong_decisions(seeds, studies, kl=kl)


def view_of(clouds: Clouds) -> View:
    """A view whose checkpoints are these, and whose tables name the arms."""
    records = pd.DataFrame(
        {"arm": c.arm, "seed": c.seed, "opponent": "sft", "run": c.runs[0]} for c in clouds.items
    ).reindex(columns=list(RECORD_COLUMNS))
    return View(records, pd.DataFrame(columns=list(PER_PROMPT_COLUMNS)), "sft", clouds=clouds)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="False verdicts and bias of every protocol where there is no gap.")
    parser.add_argument("what", nargs="?", choices=["all", "protocols", "decisions"], default="all")
    parser.add_argument("--studies", type=int, default=2000, help="studies of each protocol (default: 2000)")
    parser.add_argument("--workers", type=int, default=2, help="processes (default: 2)")
    args = parser.parse_args()
    each = [range(i, min(i + 100, args.studies)) for i in range(0, args.studies, 100)]
    error = np.sqrt(0.025 * 0.975 / args.studies)
    print(f"{args.studies} studies each, 256 prompts; a share's standard error at 2.5% is {error:.2%}")
    with ProcessPoolExecutor(args.workers) as pool:
        if args.what != "decisions":
            print("\n| protocol | online called ahead | offline called ahead | mean difference ± its error |")
            print("| --- | --- | --- | --- |")
        for number, protocol in enumerate(protocols() if args.what != "decisions" else ()):
            whole = Tally(protocol.name, protocol.places)
            for found in pool.map(part, [("protocol", number, studies) for studies in each]):
                whole.join(found)
            print(whole.line(), flush=True)
        if args.what != "protocols":
            print('\n| `aligngap compare` | "offline is enough" at a true gain of the margin | "online" at no gain |')
            print("| --- | --- | --- |")
        for number, (seeds, kl) in enumerate(DECISIONS if args.what != "protocols" else ()):
            said = np.sum(list(pool.map(part, [("decision", number, studies) for studies in each])), axis=0)
            enough, online = said / args.studies
            where = "the best checkpoint's KL" if kl is None else f"{kl:g} nats"
            print(f"| {seeds} seeds, at {where} | {enough:.2%} | {online:.2%} |", flush=True)


if __name__ == "__main__":
    main()
