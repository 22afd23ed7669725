"""Where the pairs come from: the one thing in which online and offline alignment differ.

A stream answers `draw(n, sampler)` with n labelled pairs. `OnPolicy` has the current policy write them and a judge
label them, `sync_every` batches at a time: 1 is online, the whole run is offline from the SFT policy, in between is
semi-online. `Dataset` and `Replay` serve a fixed list (a labelled data set, a recording) in a stated order. `Mixture`
draws from two, `Buffer` from the last batches that another has served. A stream's whole state, what it wrote ahead
included, is `state_dict()`, so a run can be killed anywhere.

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
from aligngap.types import AligngapError, Judge, Pair, PairStream, Prompt, Response, Sampler, Scorer, chunks, step_of

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


def dropped_by(stream: Any) -> tuple[int, int]:
    """How many pairs a stream has discarded so far as too old, and how many tokens their responses have."""
    found: tuple[int, int] = getattr(stream, "dropped", (0, 0))
    return found


class Around:
    """What a stream around another one counts: what that one has sampled and dropped."""

    source: PairStream

    @property
    def responses_sampled(self) -> int:
        return self.source.responses_sampled

    @property
    def dropped(self) -> tuple[int, int]:
        return dropped_by(self.source)


class Buffer(Around):
    """The last `size` batches that another stream has served: each batch is drawn from them, no pair twice in it.

    A batch is asked for at the first draw and at every `every`-th after it, but not from the step `until` on, after
    which the buffer stays as it is. `pick`: "uniform", or "recent", in proportion to 1 / (1 + age in steps).
    """

    def __init__(
        self,
        source: PairStream,
        *,
        size: int,
        seed: int,
        pick: str = "uniform",
        every: int = 1,
        until: int | None = None,
    ) -> None:
        if size < 1 or every < 1:
            raise AligngapError(f"buffer is {size} batches, one every {every} steps: both must be at least 1")
        if pick not in ("uniform", "recent"):
            raise AligngapError(f"pick is {pick!r}: must be uniform or recent")
        self.source, self.size, self.seed, self.pick, self.every, self.until = source, size, seed, pick, every, until
        self.batches: list[list[Pair]] = []
        self.draws = 0

    def draw(self, n: int, sampler: Sampler) -> list[Pair]:
        step = step_of(sampler.key) or 0
        due = self.draws % self.every == 0 and (self.until is None or step < self.until)
        while due or sum(map(len, self.batches)) < n:
            self.batches = [*self.batches, self.source.draw(n, sampler)][-self.size :]
            due = False
        held = [pair for batch in self.batches for pair in batch]
        weights = np.array([1.0 if self.pick == "uniform" else 1 / (1 + step - (p.written_at or 0)) for p in held])
        rng = np.random.default_rng(derive(self.seed, "buffer", self.draws))
        self.draws += 1
        return [held[i] for i in rng.choice(len(held), n, replace=False, p=weights / weights.sum())]

    def state_dict(self) -> dict[str, Any]:
        rows = [[pair_to_row(p) for p in batch] for batch in self.batches]
        return {"source": self.source.state_dict(), "draws": self.draws, "batches": rows}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.source.load_state_dict(state["source"])
        self.draws = int(state["draws"])
        self.batches = [[pair_from_row(row) for row in batch] for batch in state["batches"]]


class Retrained(Around):
    """An on-policy stream whose judge learns on: made anew every `every` draws, from golden labels of its own pairs.

    The golden judge labels the last `pairs` that were drawn since; `refit` makes a judge from all that it has labelled
    so far, always from the same start, so that after a kill the same judge is made again from the same labels.
    """

    source: OnPolicy

    def __init__(
        self, source: OnPolicy, golden: Judge, refit: Callable[[Sequence[Pair]], Judge], *, every: int, pairs: int
    ) -> None:
        if every < 1 or pairs < 1:
            raise AligngapError(f"a judge retrained every {every} steps on {pairs} pairs: both must be at least 1")
        self.source, self.golden, self.refit, self.every, self.pairs = source, golden, refit, every, pairs
        self.recent: list[Pair] = []
        self.learned: list[Pair] = []
        self.draws = 0

    def draw(self, n: int, sampler: Sampler) -> list[Pair]:
        if self.draws and self.draws % self.every == 0:
            sides = [p.prompt for p in self.recent], [p.chosen for p in self.recent], [p.rejected for p in self.recent]
            self.learned, self.recent = [*self.learned, *label(*sides, self.golden, writer=sampler.key)], []
            self.source.judge = self.refit(self.learned)
        drawn = self.source.draw(n, sampler)
        self.draws += 1
        self.recent = [*self.recent, *drawn][-self.pairs :]
        return drawn

    def state_dict(self) -> dict[str, Any]:
        rows = {name: [pair_to_row(p) for p in getattr(self, name)] for name in ("recent", "learned")}
        return {"source": self.source.state_dict(), "draws": self.draws, **rows}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.source.load_state_dict(state["source"])
        self.draws = int(state["draws"])
        self.recent, self.learned = ([pair_from_row(row) for row in state[name]] for name in ("recent", "learned"))
        if self.learned:
            self.source.judge = self.refit(self.learned)


class Mixture:
    """Each pair comes from the first stream with probability `share`, else from the second; seeded, exact to resume.

    With `until=(last, steps)` the share goes in a straight line from `share` at the first of so many draws to `last`
    at the last one.
    """

    def __init__(
        self, first: PairStream, second: PairStream, *, share: float, seed: int, until: tuple[float, int] | None = None
    ) -> None:
        for value in (share, until[0] if until else share):
            if not 0.0 <= value <= 1.0:
                raise AligngapError(f"mixture share is {value}: must lie between 0 and 1")
        self.first, self.second, self.share, self.seed, self.draws = first, second, share, seed, 0
        self.until = until

    @property
    def responses_sampled(self) -> int:
        return self.first.responses_sampled + self.second.responses_sampled

    @property
    def dropped(self) -> tuple[int, int]:
        a, b = dropped_by(self.first), dropped_by(self.second)
        return (a[0] + b[0], a[1] + b[1])

    @property
    def share_now(self) -> float:
        """The share at the next draw."""
        if self.until is None:
            return self.share
        last, steps = self.until
        return self.share + (last - self.share) * min(1.0, self.draws / max(1, steps - 1))

    def draw(self, n: int, sampler: Sampler) -> list[Pair]:
        rng = np.random.default_rng(derive(self.seed, "mixture", self.draws))
        from_first = rng.random(n) < self.share_now
        self.draws += 1
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


class Stopwatch(Around):
    """Another stream, and the seconds that its draws took: what writing and labelling fresh pairs costs.

    The seconds are saved with the stream's state, so that a run that was killed still counts all of them; they change
    nothing that is drawn.
    """

    def __init__(self, source: PairStream) -> None:
        self.source, self.seconds = source, 0.0

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


class Relabelled(Around):
    """Another stream's pairs, labelled anew by a judge as they are drawn; who wrote them stays what it was.

    Unlabelled pairs stay unlabelled.
    """

    def __init__(self, source: PairStream, judge: Judge, *, soft_labels: bool = False) -> None:
        self.source, self.judge, self.soft_labels = source, judge, soft_labels

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
            kept: dict[str, Any] = {"writer": old.writer}
            for what in ("ref", "writer", "advantage"):
                both = getattr(old, f"{what}_chosen"), getattr(old, f"{what}_rejected")
                kept |= zip((f"{what}_chosen", f"{what}_rejected"), both[::-1] if swapped else both, strict=True)
            out.append(replace(new, **kept))
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


def standardise(scores: np.ndarray) -> np.ndarray:
    """Advantage [P, n] of each score in its row: its distance from the mean in standard deviations, 0 if all are equal.

    The group-relative advantage of GRPO, Shao et al. 2024, arXiv 2402.03300, section 4.1.
    """
    around: np.ndarray = scores - scores.mean(axis=1, keepdims=True)
    spread = scores.std(axis=1, keepdims=True)
    return np.where(spread > 1e-9, around / np.where(spread > 1e-9, spread, 1.0), 0.0)


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
