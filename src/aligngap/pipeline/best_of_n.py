"""Best-of-n of the SFT policy, ranked by the proxy: the reference that needs no training, so any arm should beat it.

The proxy is pairwise and gives no scores, so a response is ranked by its mean probability of beating the other n - 1
responses to the same prompt, in both orders: a round robin, ranked by Borda score. For every m up to n the average over
*all* subsets of m of the n responses gives the win rate of best-of-m from one set of samples (Nakano et al. 2021, arXiv
2112.09332, appendix I; `stats.scaling_law.best_of_n`).

KL is the analytic ln m - (m-1)/m, an upper bound here: no rule that picks one of m independent samples, whatever else
it looks at, spreads its choice more unevenly than a strict ranking does (Border 1991, Econometrica 59: 1175-1187, for
the shares that a rule can give; KL is convex in them; Beirami et al. 2024, arXiv 2401.01879, for ties). So the points
never lie further left than they should, and an arm that does not beat them at equal KL does not beat best-of-n.

What this module leaves out: which prompts and opponents, and where the table goes (`steps`, `collect`); best-of-n by
the golden judge.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from aligngap.pipeline.base import Step, configuration_of
from aligngap.pipeline.data import Data
from aligngap.pipeline.judges import FitJudge, ReadyJudge, Relabel
from aligngap.pipeline.measure import Responses, opponents_of
from aligngap.pipeline.sft import Sft
from aligngap.seeding import derive
from aligngap.settings import MeasurementSpec
from aligngap.stats.scaling_law import best_of_n as best_of_subsets
from aligngap.stats.scaling_law import best_of_n_kl
from aligngap.streams import round_robin
from aligngap.types import Estimate, Judge, Prompt, Sampler

if TYPE_CHECKING:
    from aligngap.measure import Opponent
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
    from aligngap.measure import wins

    if n < 1:
        raise ValueError(f"n must be at least 1, not {n}")
    answers = policy.sample(prompts, n, derive(seed, "best of n"))
    score = round_robin(proxy, prompts, answers)
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
            by_golden, by_proxy = (Estimate.mean(best_of_subsets(score, w, m)) for w in won)
            rows.append({
                "seed": seed, "opponent": opponent.name, "n": m, "kl_nats": float(best_of_n_kl(m)),
                "win_rate": by_golden.value, "win_rate_se": by_golden.se,
                "proxy_win_rate": by_proxy.value, "proxy_win_rate_se": by_proxy.se,
                "prompts": len(prompts),
            })  # fmt: skip
    return rows


def sizes(n: int) -> list[int]:
    """1, 2, 4, … up to n, and n itself."""
    return sorted({2**k for k in range(n.bit_length())} | {n})


class BestOfN(Step):
    """The reference that needs no training: best-of-n of the SFT policy as the proxy ranks it."""

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
