"""Pairs that the current policy writes and a judge labels: online, semi-online, and pairs of any stated age."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from aligngap.seeding import derive
from aligngap.storage.pairs import pair_from_row, pair_to_row
from aligngap.streams.fixed import Epochs
from aligngap.streams.labels import label, round_robin, standardise
from aligngap.types import AligngapError, Judge, Pair, Prompt, Response, Sampler, Scorer, step_of


class OnPolicy:
    """The current policy writes both responses, a judge labels them: online at `sync_every=1`, semi-online above it.

    When its queue is empty it writes `sync_every` batches with the policy as it stands, then serves them, `reuse` times
    over in the same order. Prompts come from `prompts` in the same seeded order in which `Dataset` serves rows, so that
    at equal seeds both arms see the same prompts in the same order.

    With `lag` it is so many batches ahead: the start policy writes `lag` + 1 batches and every step one more, which is
    served `lag` steps later. Batch and sampling seed of a step are online's; only the weights that wrote are older.
    With `tokens_per_step` the batches ahead are in flight: a response grows by so many tokens in a step of training, a
    pair is ready when its longer one is, and what is ready first is served first, so that longer pairs are older.
    `drop_stale` discards what is older than so many steps, when a batch is drawn. From the step `freeze_writer_at[0]`
    on, everything up to the last step, `freeze_writer_at[1]`, is written at once, and nothing after.

    With `candidates` above 2 it writes that many responses to a prompt; the pair is the first and the last of the
    judge's `round_robin`, labelled by the judge as any pair is; if `grouped`, all of them are served, as pairs of
    neighbours that know how each of the two stands in its group. `through` turns the policy into the sampler that
    writes, for instance its mixture with the reference (`policy.Mixed`). Without a judge the pairs are unlabelled:
    what HyPO's KL term is estimated on (`losses.UnlabelledKL`). If it `keeps_logps`, the writer's log-probabilities are
    stored with each pair.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        judge: Judge | None,
        *,
        seed: int,
        sync_every: int = 1,
        soft_labels: bool = False,
        reuse: int = 1,
        candidates: int = 2,
        through: Callable[[Sampler], Sampler] | None = None,
        lag: int = 0,
        tokens_per_step: int | None = None,
        drop_stale: int | None = None,
        freeze_writer_at: tuple[int, int] | None = None,
        grouped: bool = False,
        keeps_logps: bool = False,
    ) -> None:
        if sync_every < 1:
            raise AligngapError(f"sync_every is {sync_every}: must be at least 1 (the whole run is the largest)")
        if reuse < 1 or candidates < 2:
            raise AligngapError(f"reuse is {reuse} and candidates {candidates}: must be at least 1 and 2")
        if judge is None and candidates > 2:
            raise AligngapError(f"candidates is {candidates}: to pick among them takes a judge")
        if grouped and (judge is None or candidates % 2):
            raise AligngapError(f"candidates is {candidates}: a group is judged, and served in pairs")
        self.prompts = Epochs(prompts, seed)
        self.judge, self.seed, self.sync_every, self.soft_labels = judge, seed, sync_every, soft_labels
        self.reuse, self.candidates, self.through = reuse, candidates, through
        self.lag, self.tokens_per_step, self.drop_stale, self.freeze = (
            lag,
            tokens_per_step,
            drop_stale,
            freeze_writer_at,
        )
        self.grouped, self.keeps_logps = grouped, keeps_logps
        self.queue: list[Pair] = []
        self.written = 0  # batches written so far: the sampling seed's counter
        self.responses_sampled = 0
        self.dropped = (0, 0)

    def draw(self, n: int, sampler: Sampler) -> list[Pair]:
        step = step_of(sampler.key) or 0
        if self.drop_stale is not None:
            self._drop(step, self.drop_stale)
        while len(self.queue) < n * (1 + self.lag):
            written = [pair for _ in range(self._batches(step)) for pair in self._write(n, sampler)]
            self.queue.extend(written * self.reuse)
        if self.tokens_per_step is not None:
            self.queue.sort(key=self._ready)  # stable: of those ready at once, the first that was begun
        out, self.queue = self.queue[:n], self.queue[n:]
        return out

    def _batches(self, step: int) -> int:
        """How many batches are written at once."""
        if self.freeze is None or not self.freeze[0] <= step < self.freeze[1]:
            return self.sync_every
        return self.freeze[1] - step

    def _ready(self, pair: Pair) -> int:
        """The step at which a pair that is in flight is finished."""
        longer = max(len(pair.chosen.ids), len(pair.rejected.ids))
        return (pair.written_at or 0) + (longer - 1) // (self.tokens_per_step or longer)

    def _drop(self, step: int, oldest: int) -> None:
        old = [p for p in self.queue if step - (p.written_at or 0) > oldest]
        self.queue = [p for p in self.queue if step - (p.written_at or 0) <= oldest]
        tokens = sum(len(r.ids) for p in old for r in (p.chosen, p.rejected))
        self.dropped = (self.dropped[0] + len(old), self.dropped[1] + tokens)

    def _write(self, n: int, sampler: Sampler) -> list[Pair]:
        """A batch of n pairs by the sampler as it stands, with its log-probabilities where they are kept."""
        writer = sampler if self.through is None else self.through(sampler)
        pairs = self._labelled(n, writer)
        if not self.keeps_logps:
            return pairs
        if not isinstance(writer, Scorer):
            raise AligngapError(f"{writer.key}: what writes does not say how probable its responses are")
        prompts = [p.prompt for p in pairs]
        sides = [
            writer.score(prompts, answers) for answers in zip(*((p.chosen, p.rejected) for p in pairs), strict=True)
        ]
        return [
            replace(p, writer_chosen=c, writer_rejected=r) for p, c, r in zip(pairs, sides[0], sides[1], strict=True)
        ]

    def _labelled(self, n: int, writer: Sampler) -> list[Pair]:
        each = self.candidates // 2 if self.grouped else 1  # pairs of a prompt
        prompts = self.prompts.draw(n // each)
        written = writer.sample(prompts, self.candidates, derive(self.seed, "sampling", self.written))
        self.written += 1
        self.responses_sampled += self.candidates * len(prompts)
        if self.judge is None:
            rows = zip(prompts, written, strict=True)
            return [Pair(p, w[0], w[1], 0.5, 0.5, 0.5, writer.key, labelled=False) for p, w in rows]
        if self.grouped:
            return self._in_groups(prompts, written, self.judge, writer.key)
        if self.candidates > 2:
            order = np.argsort(-round_robin(self.judge, prompts, written), axis=1, kind="stable")
            written = [[w[int(o[0])], w[int(o[-1])]] for w, o in zip(written, order, strict=True)]
        first, second = [w[0] for w in written], [w[1] for w in written]
        return label(prompts, first, second, self.judge, writer=writer.key, soft=self.soft_labels)

    def _in_groups(
        self, prompts: Sequence[Prompt], written: Sequence[Sequence[Response]], judge: Judge, writer: str
    ) -> list[Pair]:
        """Every response once, beside its neighbour, with its advantage in its group."""
        scores = standardise(round_robin(judge, prompts, written)).reshape(-1, 2)
        sides = [r for w in written for r in w[::2]], [r for w in written for r in w[1::2]]
        each = [p for p in prompts for _ in range(self.candidates // 2)]
        pairs = label(each, *sides, judge, writer=writer, soft=self.soft_labels)
        out = []
        for pair, first, (a, b) in zip(pairs, sides[0], scores.tolist(), strict=True):
            chosen, rejected = (a, b) if pair.chosen is first else (b, a)
            out.append(replace(pair, advantage_chosen=chosen, advantage_rejected=rejected))
        return out

    def state_dict(self) -> dict[str, Any]:
        return {
            "prompts": self.prompts.state_dict(), "written": self.written, "dropped": list(self.dropped),
            "responses_sampled": self.responses_sampled, "queue": [pair_to_row(p) for p in self.queue],
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.prompts.load_state_dict(state["prompts"])
        self.written, self.responses_sampled = int(state["written"]), int(state["responses_sampled"])
        self.queue = [pair_from_row(row) for row in state["queue"]]
        pairs, tokens = state.get("dropped", (0, 0))  # states of before had none
        self.dropped = (int(pairs), int(tokens))
