"""Where the pairs come from: the one thing in which online and offline alignment differ.

A stream answers `draw(n, sampler)` with n labelled pairs. `OnPolicy` has the current policy write them and a judge
label them, `sync_every` batches at a time: 1 is online, the whole run is offline from the SFT policy, in between is
semi-online. `Pairs` serves a fixed list (a labelled data set, a recording) in a stated order. `Mixture` draws from
several. A stream's whole state, what it wrote ahead included, is `state_dict()`, so a run can be killed anywhere.

What this module leaves out: training (`fit.py`) and the reference's log-probabilities, which are a property of the
pair and not of where it came from (`fit.with_reference`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any, Generic, TypeVar

import numpy as np

from aligngap.seeding import derive
from aligngap.storage.pairs import pair_from_row, pair_to_row
from aligngap.types import AligngapError, Judge, Pair, PairStream, Prompt, Response, Sampler, chunks

Item = TypeVar("Item")


def order_of(name: str, n: int, seed: int, batch: int) -> list[int]:
    """The order in which a recording of n pairs (batches of `batch`) is served.

    "in-order", "reversed", "shuffled" (uniformly), "window:k": pairs are permuted inside consecutive windows of k
    batches (arXiv 2405.08448, App. G), or "blocks:k": consecutive blocks of k batches are permuted among themselves and
    stay in order inside. A window keeps the coarse order and loses the fine one, a block the other way round.
    """
    rng = np.random.default_rng(derive(seed, "order", name))
    if name == "in-order":
        return list(range(n))
    if name == "reversed":
        return [i for start in range(0, n, batch) for i in range(start, min(n, start + batch))][::-1]
    if name == "shuffled":
        return [int(i) for i in rng.permutation(n)]
    kind, _, size = name.partition(":")
    if kind in ("window", "blocks") and size.isdecimal() and int(size) > 0:
        width = int(size) * batch
        starts = range(0, n, width)
        if kind == "blocks":
            return [i for b in rng.permutation(len(starts)) for i in range(starts[b], min(n, starts[b] + width))]
        return [start + int(i) for start in starts for i in rng.permutation(min(width, n - start))]
    raise AligngapError(f"order `{name}`: must be in-order, reversed, shuffled, window:K or blocks:K with K batches")


class Epochs(Generic[Item]):
    """A fixed list served forever, each epoch in a fresh order drawn from the seed: SFT, judges and data-set arms."""

    responses_sampled = 0

    def __init__(self, items: Sequence[Item], seed: int) -> None:
        if not items:
            raise AligngapError("a stream over an empty data set: nothing to draw from")
        self.items, self.seed, self.drawn = items, seed, 0
        self._epoch, self._permutation = -1, list[int]()

    def draw(self, n: int, sampler: Sampler | None = None) -> list[Item]:
        out = []
        for position in range(self.drawn, self.drawn + n):
            epoch, place = divmod(position, len(self.items))
            out.append(self.items[self._order(epoch)[place]])
        self.drawn += n
        return out

    def _order(self, epoch: int) -> list[int]:
        if self._epoch != epoch:
            rng = np.random.default_rng(derive(self.seed, "epoch", epoch))
            self._epoch, self._permutation = epoch, [int(i) for i in rng.permutation(len(self.items))]
        return self._permutation

    def state_dict(self) -> dict[str, Any]:
        return {"drawn": self.drawn}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.drawn = int(state["drawn"])


class Replay:
    """A recording served once, in a stated order (`order_of`); asking for more than was recorded is an error."""

    responses_sampled = 0

    def __init__(self, pairs: Sequence[Pair], *, order: str, batch: int, seed: int) -> None:
        self.pairs, self.drawn = pairs, 0
        self.order = order_of(order, len(pairs), seed, batch)

    def draw(self, n: int, sampler: Sampler) -> list[Pair]:
        if self.drawn + n > len(self.order):
            raise AligngapError(
                f"the recording holds {len(self.order)} pairs and {self.drawn + n} were asked for: "
                "replay at most as many steps as were recorded"
            )
        out = [self.pairs[i] for i in self.order[self.drawn : self.drawn + n]]
        self.drawn += n
        return out

    def state_dict(self) -> dict[str, Any]:
        return {"drawn": self.drawn}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.drawn = int(state["drawn"])


class Dataset(Epochs[Pair]):
    """A labelled data set of pairs, epoch after epoch: the offline stream. The policy is ignored."""

    responses_sampled = 0


class OnPolicy:
    """The current policy writes both responses, a judge labels them: online at `sync_every=1`, semi-online above it.

    When its queue is empty it writes `sync_every` batches with the policy as it stands, then serves them, `reuse` times
    over in the same order. Prompts come from `prompts` in the same seeded order in which `Dataset` serves rows, so that
    at equal seeds both arms see the same prompts in the same order.

    With `candidates` above 2 it writes that many responses to a prompt; the pair is the first and the last of the
    judge's `round_robin`, labelled by the judge as any pair is. `through` turns the policy into the
    sampler that writes, for instance its mixture with the reference (`policy.Mixed`). Without a judge the pairs are
    unlabelled: what HyPO's KL term is estimated on (`losses.UnlabelledKL`).
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
    ) -> None:
        if sync_every < 1:
            raise AligngapError(f"sync_every is {sync_every}: must be at least 1 (the whole run is the largest)")
        if reuse < 1 or candidates < 2:
            raise AligngapError(f"reuse is {reuse} and candidates {candidates}: must be at least 1 and 2")
        if judge is None and candidates > 2:
            raise AligngapError(f"candidates is {candidates}: to pick among them takes a judge")
        self.prompts = Epochs(prompts, seed)
        self.judge, self.seed, self.sync_every, self.soft_labels = judge, seed, sync_every, soft_labels
        self.reuse, self.candidates, self.through = reuse, candidates, through
        self.queue: list[Pair] = []
        self.written = 0  # batches written so far: the sampling seed's counter
        self.responses_sampled = 0

    def draw(self, n: int, sampler: Sampler) -> list[Pair]:
        if len(self.queue) < n:
            written = [pair for _ in range(self.sync_every) for pair in self._write(n, sampler)]
            self.queue.extend(written * self.reuse)
        out, self.queue = self.queue[:n], self.queue[n:]
        return out

    def _write(self, n: int, sampler: Sampler) -> list[Pair]:
        prompts = self.prompts.draw(n)
        writer = sampler if self.through is None else self.through(sampler)
        written = writer.sample(prompts, self.candidates, derive(self.seed, "sampling", self.written))
        self.written += 1
        self.responses_sampled += self.candidates * n
        if self.judge is None:
            rows = zip(prompts, written, strict=True)
            return [Pair(p, w[0], w[1], 0.5, 0.5, 0.5, writer.key, labelled=False) for p, w in rows]
        if self.candidates > 2:
            order = np.argsort(-round_robin(self.judge, prompts, written), axis=1, kind="stable")
            written = [[w[int(o[0])], w[int(o[-1])]] for w, o in zip(written, order, strict=True)]
        first, second = [w[0] for w in written], [w[1] for w in written]
        return label(prompts, first, second, self.judge, writer=writer.key, soft=self.soft_labels)

    def state_dict(self) -> dict[str, Any]:
        return {
            "prompts": self.prompts.state_dict(), "written": self.written,
            "responses_sampled": self.responses_sampled, "queue": [pair_to_row(p) for p in self.queue],
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.prompts.load_state_dict(state["prompts"])
        self.written, self.responses_sampled = int(state["written"]), int(state["responses_sampled"])
        self.queue = [pair_from_row(row) for row in state["queue"]]


class Mixture:
    """Each pair comes from the first stream with probability `share`, else from the second; seeded, exact to resume."""

    def __init__(self, first: PairStream, second: PairStream, *, share: float, seed: int) -> None:
        if not 0.0 <= share <= 1.0:
            raise AligngapError(f"mixture share is {share}: must lie between 0 and 1")
        self.first, self.second, self.share, self.seed, self.draws = first, second, share, seed, 0

    @property
    def responses_sampled(self) -> int:
        return self.first.responses_sampled + self.second.responses_sampled

    def draw(self, n: int, sampler: Sampler) -> list[Pair]:
        rng = np.random.default_rng(derive(self.seed, "mixture", self.draws))
        self.draws += 1
        from_first = rng.random(n) < self.share
        count = int(from_first.sum())
        a = iter(self.first.draw(count, sampler) if count else [])
        b = iter(self.second.draw(n - count, sampler) if count < n else [])
        return [next(a) if pick else next(b) for pick in from_first]

    def state_dict(self) -> dict[str, Any]:
        return {"draws": self.draws, "first": self.first.state_dict(), "second": self.second.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.draws = int(state["draws"])
        self.first.load_state_dict(state["first"])
        self.second.load_state_dict(state["second"])


class Stopwatch:
    """Another stream, and the seconds that its draws took: what writing and labelling fresh pairs costs.

    The seconds are saved with the stream's state, so that a run that was killed still counts all of them; they change
    nothing that is drawn.
    """

    def __init__(self, source: PairStream) -> None:
        self.source, self.seconds = source, 0.0

    @property
    def responses_sampled(self) -> int:
        return self.source.responses_sampled

    def draw(self, n: int, sampler: Sampler) -> list[Pair]:
        started = time.perf_counter()
        pairs = self.source.draw(n, sampler)
        self.seconds += time.perf_counter() - started
        return pairs

    def state_dict(self) -> dict[str, Any]:
        return {**self.source.state_dict(), "draw_seconds": self.seconds}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.source.load_state_dict({k: v for k, v in state.items() if k != "draw_seconds"})
        self.seconds = float(state.get("draw_seconds", 0.0))


class Relabelled:
    """Another stream's pairs, labelled anew by a judge as they are drawn; who wrote them stays what it was.

    Unlabelled pairs stay unlabelled.
    """

    def __init__(self, source: PairStream, judge: Judge, *, soft_labels: bool = False) -> None:
        self.source, self.judge, self.soft_labels = source, judge, soft_labels

    @property
    def responses_sampled(self) -> int:
        return self.source.responses_sampled

    def draw(self, n: int, sampler: Sampler) -> list[Pair]:
        given = self.source.draw(n, sampler)
        asked = [p for p in given if p.labelled]
        sides = [p.prompt for p in asked], [p.chosen for p in asked], [p.rejected for p in asked]
        fresh = iter(label(*sides, self.judge, writer="", soft=self.soft_labels) if asked else [])
        out = []
        for old in given:
            if not old.labelled:
                out.append(old)
                continue
            new = next(fresh)
            swapped = new.chosen is not old.chosen
            refs = (old.ref_rejected, old.ref_chosen) if swapped else (old.ref_chosen, old.ref_rejected)
            out.append(replace(new, writer=old.writer, ref_chosen=refs[0], ref_rejected=refs[1]))
        return out

    def state_dict(self) -> dict[str, Any]:
        return self.source.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.source.load_state_dict(state)


def label(
    prompts: Sequence[Prompt],
    first: Sequence[Response],
    second: Sequence[Response],
    judge: Judge,
    *,
    writer: str,
    soft: bool = False,
) -> list[Pair]:
    """Pairs [B] labelled by the judge in both orders; hard sign labels (a tie is kept with p = 1/2) unless `soft`."""
    judged = judge.judge(prompts, first, second).checked(judge.key, prompts)
    p = judged.soft if soft else judged.hard
    pairs = []
    for i, prompt in enumerate(prompts):
        swap = bool(p[i] < 0.5)
        chosen, rejected = (second[i], first[i]) if swap else (first[i], second[i])
        forward, backward = float(judged.forward[i]), float(judged.backward[i])
        if swap:
            forward, backward = backward, forward
        pairs.append(Pair(prompt, chosen, rejected, float(1 - p[i] if swap else p[i]), forward, backward, writer))
    return pairs


#: prompts whose round robins are judged at once: bounds memory, changes no result beyond a judge's own batching
PROMPTS_AT_ONCE = 32


def round_robin(judge: Judge, prompts: Sequence[Prompt], answers: Sequence[Sequence[Response]]) -> np.ndarray:
    """Score [P, n] of each of n responses to a prompt: its mean probability of beating the others, in both orders.

    n = 1 has nobody to beat: one half.
    """
    beats = judge_pairs(judge, prompts, answers)
    n = beats.shape[1]
    total: np.ndarray = beats.sum(axis=2) - 0.5
    return total / (n - 1) if n > 1 else np.full((len(prompts), n), 0.5)


def judge_pairs(judge: Judge, prompts: Sequence[Prompt], answers: Sequence[Sequence[Response]]) -> np.ndarray:
    """Probability [P, n, n] that response i to a prompt beats response j; one half on the diagonal.

    Every unordered pair is judged once; the judge itself asks both orders.
    """
    n = len(answers[0]) if answers else 0
    pairs = list(combinations(range(n), 2))
    beats = np.full((len(prompts), n, n), 0.5)
    if not pairs:
        return beats
    for part in chunks(range(len(prompts)), PROMPTS_AT_ONCE):
        asked = [prompts[i] for i in part for _ in pairs]
        first = [answers[i][a] for i in part for a, _ in pairs]
        second = [answers[i][b] for i in part for _, b in pairs]
        p = judge.judge(asked, first, second).checked(judge.key, asked).p_win.reshape(len(part), len(pairs))
        for k, (a, b) in enumerate(pairs):
            beats[list(part), a, b] = p[:, k]
            beats[list(part), b, a] = 1.0 - p[:, k]
    return beats
