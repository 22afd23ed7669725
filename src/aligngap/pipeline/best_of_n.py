"""Best-of-n of the SFT policy, ranked by the proxy: the reference that needs no training, so any arm should beat it.

The proxy is pairwise and gives no scores, so of m responses to a prompt the one is picked whose mean probability of
beating the other m - 1, in both orders, is highest: a round robin, ranked by Borda score. For every m up to n the win
rate of best-of-m is the average over subsets of m of the n responses (Nakano et al. 2021, arXiv 2112.09332, appendix
I), each ranked by its own members alone, as m samples would be: over all subsets where they are few, else over
`MOST_SUBSETS` drawn at random.

KL is the analytic ln m - (m-1)/m, an upper bound here: no rule that picks one of m independent samples, whatever else
it looks at, spreads its choice more unevenly than a strict ranking does (Border 1991, Econometrica 59: 1175-1187, for
the shares that a rule can give; KL is convex in them; Beirami et al. 2024, arXiv 2401.01879, for ties). So the points
never lie further left than they should, and an arm that does not beat them at equal KL does not beat best-of-n.

What this module leaves out: which prompts and opponents, and where the table goes (`steps`, `collect`); best-of-n by
the golden judge.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from itertools import combinations
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from aligngap.pipeline.base import Step, configuration_of
from aligngap.pipeline.data import Data
from aligngap.pipeline.judges import FitJudge, ReadyJudge, Relabel
from aligngap.pipeline.measure import Responses, opponents_of
from aligngap.pipeline.sft import Sft
from aligngap.seeding import derive
from aligngap.settings import MeasurementSpec
from aligngap.stats.scaling_law import best_of_n_kl
from aligngap.streams import judge_pairs
from aligngap.types import Estimate, Judge, Prompt, Sampler

if TYPE_CHECKING:
    from aligngap.measurement import Opponent
    from aligngap.pipeline.context import Context, Job


def best_of_n(
    policy: Sampler,
    proxy: Judge,
    golden: Judge,
    prompts: Sequence[Prompt],
    opponents: Sequence[Opponent],
    *,
    n: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Win rates of best-of-m of `policy` for m in 1, 2, 4, … and n: a row of `best_of_n.parquet` per opponent and m.

    `policy` is the SFT policy; `seed` is the study's seed, from which the sampling's own is derived. Standard errors
    are over prompts; the n responses to a prompt are one observation.
    """
    from aligngap.measurement import wins

    if n < 1:
        raise ValueError(f"n must be at least 1, not {n}")
    answers = policy.sample(prompts, n, derive(seed, "best of n"))
    beats = judge_pairs(proxy, prompts, answers)
    shares = {m: shares_of_best(beats, m) for m in sizes(n)}
    repeated = [p for p in prompts for _ in range(n)]
    flat = [r for row in answers for r in row]
    rows: list[dict[str, Any]] = []
    for opponent in opponents:
        theirs = [r for r in opponent.responses for _ in range(n)]
        won = [
            wins(j.judge(repeated, flat, theirs).checked(j.key, repeated), len(flat)).reshape(-1, n)
            for j in (golden, proxy)
        ]
        for m in sizes(n):
            by_golden, by_proxy = (Estimate.mean((w * shares[m]).sum(axis=1)) for w in won)
            rows.append({
                "seed": seed, "opponent": opponent.name, "n": m, "kl_nats": float(best_of_n_kl(m)),
                "win_rate": by_golden.value, "win_rate_se": by_golden.se,
                "proxy_win_rate": by_proxy.value, "proxy_win_rate_se": by_proxy.se,
                "prompts": len(prompts),
            })  # fmt: skip
    return rows


#: subsets of one size above which as many are drawn at random, alike for every prompt
MOST_SUBSETS = 2000


def shares_of_best(beats: np.ndarray, m: int) -> np.ndarray:
    """Each response's share [P, n] of being the best of m, over subsets of the n responses; they sum to 1.

    beats [P, n, n] holds the probability that one beats another. Members that tie for the highest score share the
    subset's weight equally.
    """
    prompts, n, _ = beats.shape
    shares = np.zeros((prompts, n))
    members = np.array(_subsets(n, m))  # [S, m]
    for part in members:
        among = beats[:, part[:, None], part[None, :]].sum(axis=2)  # the diagonal adds the same to all
        best = among >= among.max(axis=1, keepdims=True) - 1e-12
        shares[:, part] += best / best.sum(axis=1, keepdims=True)
    return np.asarray(shares / len(members))


def _subsets(n: int, m: int) -> list[tuple[int, ...]]:
    """All subsets of m of n, or `MOST_SUBSETS` of them."""
    if math.comb(n, m) <= MOST_SUBSETS:
        return list(combinations(range(n), m))
    rng = np.random.default_rng([n, m])
    return [tuple(rng.permutation(n)[:m].tolist()) for _ in range(MOST_SUBSETS)]


def sizes(n: int) -> list[int]:
    """1, 2, 4, … up to n, and n itself."""
    return sorted({2**k for k in range(n.bit_length())} | {n})


class BestOfN(Step):
    """The reference that needs no training: best-of-n of the SFT policy as the proxy ranks it."""

    #: 2 multiplied T5's padding, 1 ranked the members of a subset by all n responses, which transformers sampled
    version: ClassVar[int] = 3
    kind: Literal["best-of-n"] = "best-of-n"
    data: Data
    sft: Sft
    golden: FitJudge | ReadyJudge
    proxy: FitJudge | ReadyJudge
    opponents: dict[str, Responses]
    labelled: Relabel
    measurement: MeasurementSpec
    seed: int

    @cached_property
    def configuration(self) -> Any:
        m = self.measurement
        kept = {"n": m.best_of_n, "prompts": m.best_of_n_prompts, "of": m.prompts, "split": m.split}
        return configuration_of(self) | {"measurement": kept | {"opponents": list(m.opponents)}}

    def run(self, ctx: Context, job: Job) -> dict[str, Any]:
        from aligngap.pipeline.best_of_n import best_of_n
        from aligngap.storage.pairs import write_rows

        m = self.measurement
        prompts = self.data.prompts(ctx, m.split, m.prompts)
        against = opponents_of(ctx, self.opponents, self.labelled, m, prompts)
        prompts = prompts[: m.best_of_n_prompts]
        rows = best_of_n(
            self.sft.policy(ctx), self.proxy.open(ctx, job), self.golden.open(ctx, job), prompts,
            [type(o)(o.name, o.responses[: len(prompts)]) for o in against], n=m.best_of_n, seed=self.seed,
        )  # fmt: skip
        write_rows(job.work / "best_of_n.parquet", rows)
        return {"prompts": len(prompts), "n": m.best_of_n}

    def units(self) -> float:
        m = self.measurement
        answers = m.best_of_n * min(m.best_of_n_prompts, m.prompts)
        return answers * (m.best_of_n - 1.0 + 4.0 * len(m.opponents))  # each against the others, and the opponents
