"""A small world whose true preferences are known, in which a whole study runs in minutes on a laptop.

A prompt asks for a topic, a length, a style and two or three entities ("garden short careful river lamp"); a response
is a string of words from a vocabulary of 63 ("perhaps old river and warm lamp"). What a good response is, is a formula
(`World.reward`), so every preference has a true answer: the synthetic set-up of Gao et al., arXiv 2210.10760, with a
known function where they have a large reward model. The seed given to `load` moves everything: tables, prompts,
writers and raters.

What each part of the reward stands for in alignment:

- *coverage* (+): requested entities that appear. Helpfulness.
- *wrong entities* (-): entities neither requested nor native to the topic. Hallucination; native ones are free.
- *taste* (+/-): a table over topic, modifier and entity, each phrase counted once and only if it is true. What cannot
  be stated as a rule and must be learnt from comparisons.
- *repetition* (-, convex): rare and mild in the data, ruinous in excess. A learned proxy sees only the mild part and
  extrapolates it: the Goodhart channel.
- *length, style, grammar, connectors, fillers, no ending* (-): format and fluency, simple to verify.

Responses in the data come from two kinds of writer, who differ in skill and in dialect (each content word has a second
form, "zoriver" for "river", of the same meaning); so a learned judge can be good on one kind and bad on the other.
The geometry, whether what is liked is what is usually written, is the condition of Tajwar et al., arXiv 2404.14367.

Left out on purpose: order of mention, facts beyond one table, prompts of more than one sentence, and any tuning of the
defaults towards a result.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, product
from typing import Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from aligngap.types import AligngapError, Comparison, TaskData

VERSION = 1  # part of the fingerprint; raise it when the same settings would yield other text or other rewards

TOPICS = ("garden", "kitchen", "harbor", "museum")
LENGTHS = ("short", "medium", "long")
STYLES = ("plain", "careful")
ENTITIES = ("river", "lamp", "bread", "stone", "clock", "horse", "apple", "drum", "ladder", "rope", "mirror", "candle")
MODIFIERS = ("old", "bright", "small", "quiet", "heavy", "warm")
CONNECTORS = ("and", "with", "but", "yet")  # the first two join entities of one kind, the last two of different kinds
HEDGES = ("perhaps", "maybe", "likely")
FILLERS = ("really", "just", "simply", "basically")
_CONTENT = ENTITIES + MODIFIERS + CONNECTORS + HEDGES
_RESPONSE_WORDS = _CONTENT + tuple("zo" + word for word in _CONTENT) + FILLERS
VOCABULARY = _RESPONSE_WORDS + TOPICS + LENGTHS + STYLES
"""Every word that a prompt or a response of the sandbox can contain."""

_PROMPTS = tuple(
    " ".join((*request, *entities))
    for request in product(TOPICS, LENGTHS, STYLES)
    for size in (2, 3)
    for entities in combinations(ENTITIES, size)
)
_TEST_PROMPTS = int(0.15 * len(_PROMPTS))
_TRAIN_PROMPTS = len(_PROMPTS) - _TEST_PROMPTS

# Inner ids of words. They never leave this module: to everyone else the sandbox is text.
_E, _M, _C, _V = len(ENTITIES), len(MODIFIERS), len(_CONTENT), len(VOCABULARY)
_UNKNOWN, _END = _V, _V + 1
_ID = {word: i for i, word in enumerate(VOCABULARY)}
_MEANING = np.array([i - _C if _C <= i < 2 * _C else i for i in range(_V + 2)])  # the second dialect means the same

# Classes of words, and which may follow which (row, then column).
_START, _HEDGE, _MODIFIER, _ENTITY, _CONNECTOR, _FILLER, _FOREIGN, _STOP = range(8)
_CLASS = np.full(_V + 2, _FOREIGN)
for _class, _words in ((_ENTITY, ENTITIES), (_MODIFIER, MODIFIERS), (_CONNECTOR, CONNECTORS), (_HEDGE, HEDGES)):
    _CLASS[[_ID[word] for word in _words]] = _class
_CLASS[[_ID[word] for word in FILLERS]] = _FILLER
_CLASS[_END] = _STOP
_FOLLOWS = np.zeros((8, 8), dtype=bool)
_FOLLOWS[_START, [_HEDGE, _MODIFIER, _ENTITY]] = True
_FOLLOWS[_HEDGE, [_MODIFIER, _ENTITY]] = True
_FOLLOWS[_MODIFIER, _ENTITY] = True
_FOLLOWS[_ENTITY, [_CONNECTOR, _FILLER, _STOP]] = True
_FOLLOWS[_FILLER, [_CONNECTOR, _STOP]] = True
_FOLLOWS[_CONNECTOR, [_HEDGE, _MODIFIER, _ENTITY]] = True
_FOLLOWS[_STOP, _STOP] = True

# Weights of the reward. Unit: naming one requested entity is worth 1; single lapses cost about half of that.
COVERAGE, WRONG_ENTITY, HEDGE, GRAMMAR, CONNECTOR, FILLER, UNENDED = 1.0, -0.5, 0.5, -0.5, -0.3, -0.3, -1.5
LENGTH_SCALE = 3.0  # words away from the requested length that cost 1; quadratic

HABIT = 1.5  # how sharp the writers' habits are: logits are HABIT times a standard normal
SLIP = 0.1  # an unskilled writer's chance, per word, of writing any word instead
DIALECT = 0.9  # the other writers' chance, per content word, of using the second dialect

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


class Sandbox(BaseModel):
    """The generator's settings: each knob is one property that is thought to matter for online against offline.

    Defaults are in the middle where nothing speaks for an end, and follow the literature where something does; they
    were fixed before any policy was trained and are not tuned towards a result.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    name: ClassVar[str] = "sandbox"

    train_pairs: int = Field(default=16000, ge=1, description="comparisons in the train split: the label budget")
    test_pairs: int = Field(default=1024, ge=1, description="comparisons in the test split, on other prompts")
    distinct_prompts: int | None = Field(
        default=None, ge=1, le=_TRAIN_PROMPTS, description="different train prompts; all there are (5,835) if not given"
    )
    response_words: int = Field(
        default=14, ge=1, le=64, description="longest response in words; 1 is the tabular world"
    )
    sft_like_share: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="share of pairs by the SFT-like writer: how near the data are to the SFT policy",
    )
    crossed_pairs: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="share of pairs whose second writer is drawn anew: without, nothing says how the dialects compare",
    )
    writer_skill: float = Field(default=0.6, ge=0, le=1, description="how often the SFT-like writer does what is asked")
    other_skill: float = Field(default=0.4, ge=0, le=1, description="the same of the other writers: sub-optimal data")
    taste: float = Field(
        default=0.6,
        ge=0,
        description="standard deviation of the taste table: how much of the reward must be learnt by heart",
    )
    repetition: float = Field(
        default=0.3,
        ge=0,
        description="weight of the repetition penalty, sum of (count - 1)^2: the cost of over-optimisation",
    )
    peak_in_support: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="whether what is liked is what writers write: 1 their habit, 0 its opposite, 0.5 unrelated",
    )
    rater: Literal["hard", "bradley_terry"] = Field(
        default="hard", description="labels by the sign of the true preference, or drawn from it"
    )
    temperature: float = Field(default=1.0, gt=0, description="reward difference worth one logit of preference")
    rater_noise: float = Field(
        default=0.0, ge=0, le=0.5, description="share of labels flipped by mistake, whatever the gap"
    )
    cyclic: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of rock-paper-scissors in the true preference, which then is not transitive",
    )

    @model_validator(mode="after")
    def _prompts_fit(self) -> Self:
        if self.distinct_prompts is not None and self.distinct_prompts > self.train_pairs:
            raise ValueError(
                f"distinct_prompts ({self.distinct_prompts}) is more than train_pairs ({self.train_pairs}): "
                "every prompt needs a pair; lower the one or raise the other"
            )
        return self

    @classmethod
    def tabular(cls, **settings: Any) -> Self:
        """The tabular world: one-word responses to 16 prompts, Bradley-Terry labels; `settings` override."""
        preset = {"response_words": 1, "distinct_prompts": 16, "rater": "bradley_terry", "train_pairs": 4000}
        return cls(**{**preset, **settings})

    def fingerprint(self) -> str:
        """A hash of the settings and the generator's version (not of the seed, which is an argument of `load`)."""
        return hashlib.sha256(f"sandbox {VERSION} {self.model_dump_json()}".encode()).hexdigest()[:16]

    def world(self, seed: int) -> World:
        """The world of this seed: its tables, its true reward and preference, its writers."""
        return _world(self, seed)

    def preference_matrix(self, prompt: str, seed: int) -> tuple[tuple[str, ...], Floats]:
        """`world(seed).preference_matrix(prompt)`: (K words, [K, K] true preferences between one-word responses)."""
        return self.world(seed).preference_matrix(prompt)

    def load(self, seed: int) -> TaskData:
        """The comparisons of this seed, split by prompt. Pairs of equal text or equal reward are written again."""
        world = self.world(seed)
        prompts = [_PROMPTS[i] for i in np.random.default_rng([seed, 1]).permutation(len(_PROMPTS))]
        train, test = prompts[_TEST_PROMPTS:][: self.distinct_prompts], prompts[:_TEST_PROMPTS]
        writers, raters = np.random.default_rng([seed, 2]), np.random.default_rng([seed, 3])
        train_rows, train_ties = world.comparisons(train, self.train_pairs, writers, raters)
        test_rows, test_ties = world.comparisons(test, self.test_pairs, writers, raters)
        return TaskData(
            train=train_rows,
            test=test_rows,
            source=f"sandbox {self.fingerprint()} seed {seed}",
            dropped={"no preference (same text or equal reward), written again": train_ties + test_ties},
        )


class _Requests(NamedTuple):
    """What N prompts ask for."""

    topic: Ints  # [N]
    length: Ints  # [N], index into LENGTHS
    careful: Bools  # [N]
    entities: Bools  # [N, E]


@dataclass(frozen=True, eq=False)
class World:
    """The tables drawn from one seed, and what follows from them: rewards, preferences, writers' text."""

    task: Sandbox
    kind: Ints  # [E] 0 or 1: the kind of each entity, which decides the connector between two
    native: Bools  # [topics, E]: three entities belong to each topic and are true of it unasked
    habit: Floats  # [topics, M + 1, E]: how usual a modifier (last: none) is among the writers
    taste: Floats  # [topics, M + 1, E]: how much it is liked
    phase: Floats  # [topics, V + 1]: angle of each word in the cyclic part of the preference

    # ---------------------------------------------------------------------------------------- what is good

    def reward(self, prompts: Sequence[str], responses: Sequence[str], ended: Bools | None = None) -> Floats:
        """True reward [N] of any text: empty, ungrammatical or with unknown words (module docstring for the terms)."""
        return self._reward(_requests(prompts), _encode(responses), ended)

    def preference(
        self,
        prompts: Sequence[str],
        a: Sequence[str],
        b: Sequence[str],
        a_ended: Bools | None = None,
        b_ended: Bools | None = None,
    ) -> Floats:
        """True probability [N] that a beats b; 0, 0.5 or 1 where the rater is hard. p(a, b) + p(b, a) = 1.

        p = (1 - cyclic) sigmoid((r_a - r_b) / temperature) + cyclic (1 + sin(phase_a - phase_b)) / 2.
        """
        requests, words_a, words_b = _requests(prompts), _encode(a), _encode(b)
        return self._prefer(
            self._reward(requests, words_a, a_ended) - self._reward(requests, words_b, b_ended),
            self._direction(requests, words_a),
            self._direction(requests, words_b),
        )

    def preference_matrix(self, prompt: str) -> tuple[tuple[str, ...], Floats]:
        """All K words of the vocabulary and the [K, K] true preferences p(i beats j) between them as responses."""
        requests, words = _requests([prompt] * _V), _encode(VOCABULARY)
        reward, direction = self._reward(requests, words), self._direction(requests, words)
        return VOCABULARY, self._prefer(reward[:, None] - reward, direction[:, None], direction[None])

    def _prefer(self, gap: Floats, a: Floats, b: Floats) -> Floats:
        sine = a[..., 1] * b[..., 0] - a[..., 0] * b[..., 1]
        cyclic = self.task.cyclic
        lean = (1 - cyclic) * np.tanh(gap / self.task.temperature / 2) + cyclic * sine  # odd in (a, b), as floats too
        lean = np.round(lean, 9)  # a difference that small is rounding: a tie
        if self.task.rater == "hard":
            lean = np.sign(lean)
        result: Floats = (1 + lean) / 2
        return result

    def _direction(self, requests: _Requests, words: Ints) -> Floats:
        """Unit vector [N, 2] of a response in the cyclic part: the direction of the sum over its words' angles."""
        angle = self.phase[requests.topic]
        counts = _counts(words)
        sums = np.stack([(counts * np.cos(angle)).sum(1), (counts * np.sin(angle)).sum(1)], axis=1)
        norm = np.linalg.norm(sums, axis=1, keepdims=True)
        result: Floats = sums / np.where(norm > 1e-9, norm, np.inf)
        return result

    def _reward(self, requests: _Requests, words: Ints, ended: Bools | None = None) -> Floats:
        n, width = words.shape
        classes = _CLASS[words]
        counts = _counts(words)
        length = (words != _END).sum(1)

        rows, columns = np.nonzero(classes == _ENTITY)
        entity = words[rows, columns]
        before = np.where(columns > 0, words[rows, columns - 1], _END)
        form = np.where(_CLASS[before] == _MODIFIER, before - _E, _M)  # which modifier, last: none
        phrases = np.zeros((n, _M + 1, _E), dtype=bool)
        phrases[rows, form, entity] = True
        named = phrases.any(axis=1)
        true = requests.entities | self.native[requests.topic]

        place = np.arange(width)
        left = np.maximum.accumulate(np.where(classes == _ENTITY, place, -1), axis=1)
        right = np.minimum.accumulate(np.where(classes == _ENTITY, place, width)[:, ::-1], axis=1)[:, ::-1]
        rows, columns = np.nonzero((classes == _CONNECTOR) & (left >= 0) & (right < width))
        differ = self.kind[words[rows, left[rows, columns]]] != self.kind[words[rows, right[rows, columns]]]
        mismatched = differ != (words[rows, columns] - _ID[CONNECTORS[0]] >= 2)

        edge = np.ones((n, 1), dtype=np.int64)
        chain = np.hstack([_START * edge, classes, _STOP * edge])
        hedges = (classes == _HEDGE).sum(1)
        careful = np.where(hedges > 0, 2 - hedges, 0)  # one is wanted, each further one costs
        far = (length - self.targets[requests.length]) / LENGTH_SCALE
        result: Floats = (
            COVERAGE * (named & requests.entities).sum(1)
            + WRONG_ENTITY * (named & ~true).sum(1)
            + (phrases * self.taste[requests.topic] * true[:, None]).sum((1, 2))
            - self.task.repetition * (np.maximum(counts - 1, 0) ** 2).sum(1)
            - far**2
            + HEDGE * np.where(requests.careful, careful, -hedges)
            + GRAMMAR * (~_FOLLOWS[chain[:, :-1], chain[:, 1:]]).sum(1)
            + CONNECTOR * np.bincount(rows[mismatched], minlength=n)
            + FILLER * (classes == _FILLER).sum(1)
        )
        return result if ended is None else result + UNENDED * ~np.asarray(ended, dtype=bool)

    @property
    def targets(self) -> Ints:
        """Words meant by short, medium, long: 5, 8 and 11 of 14, that is two, three and four full phrases."""
        return np.maximum(1, np.round(np.array([5, 8, 11]) * self.task.response_words / 14)).astype(np.int64)

    # ------------------------------------------------------------------------------- who writes, who rates

    def comparisons(
        self, prompts: Sequence[str], n: int, writers: np.random.Generator, raters: np.random.Generator
    ) -> tuple[list[Comparison], int]:
        """n labelled pairs on these prompts, each used as often as any other, and how many pairs were redone."""
        asked = [prompts[i % len(prompts)] for i in range(n)]
        by_a, anew = writers.random((2, n)) < self.task.sft_like_share
        by_b = np.where(writers.random(n) < self.task.crossed_pairs, anew, by_a)
        a, b, p = np.empty(n, dtype=object), np.empty(n, dtype=object), np.empty(n)
        todo, redone = np.arange(n), -n
        for _ in range(200):
            redone += len(todo)
            here = [asked[i] for i in todo]
            a[todo] = self.write(here, by_a[todo], writers)
            b[todo] = self.write(here, by_b[todo], writers)
            p[todo] = self.preference(here, list(a[todo]), list(b[todo]))
            todo = todo[(a[todo] == b[todo]) | (p[todo] == 0.5)]
            if not len(todo):
                break
        else:
            raise AligngapError(
                f"sandbox: {len(todo)} pairs of responses stay equal in reward: raise taste, or lower writers' skills"
            )
        wins = (raters.random(n) < p) != (raters.random(n) < self.task.rater_noise)
        rows = zip(asked, np.where(wins, a, b), np.where(wins, b, a), strict=True)
        return [Comparison(x.replace(" ", "-"), x, str(chosen), str(rejected)) for x, chosen, rejected in rows], redone

    def write(self, prompts: Sequence[str], sft_like: Bools, rng: np.random.Generator) -> list[str]:
        """One response to each prompt; `sft_like` [N] says by which kind of writer. Phrases are added until the
        writer finds the response long enough; skill is the chance, at each choice, of doing what is asked."""
        requests, n, width = _requests(prompts), len(prompts), self.task.response_words
        true = requests.entities | self.native[requests.topic]
        skill = np.where(sft_like, self.task.writer_skill, self.task.other_skill)
        enough = self.targets[requests.length] + np.round(rng.normal(0, 3, n) * (1 - skill)).astype(np.int64)
        enough = np.clip(enough, 1, width)
        words = np.full((n, width), _END)
        at, last = np.zeros(n, dtype=np.int64), np.full(n, -1)
        used = np.zeros((n, _E), dtype=bool)

        def heeds(p: Floats) -> Bools:
            result: Bools = rng.random(n) < p
            return result

        def put(where: Bools, word: Ints) -> None:
            rows = np.flatnonzero(where)
            words[rows, at[rows]] = word[rows]
            at[rows] += 1

        hedged = np.where(heeds((1 + skill) / 2), requests.careful, rng.random(n) < 0.5)
        put(hedged & (enough > 2), _ID[HEDGES[0]] + rng.integers(len(HEDGES), size=n))
        while True:
            further = last >= 0  # a further phrase needs a connector
            going = enough - at > further
            if not going.any():
                break
            asked, fresh = requests.entities & ~used, true & ~used
            options = np.where((heeds(skill) & fresh.any(1))[:, None], fresh, True)
            options = np.where((heeds(skill) & asked.any(1))[:, None], asked, options)
            entity = _draw(np.where(options, HABIT * self.habit[requests.topic, _M], -np.inf), rng)
            form = _draw(HABIT * self.habit[requests.topic, :, entity], rng)
            differ = (self.kind[entity] != self.kind[last]) == heeds((1 + skill) / 2)
            put(going & further, _ID[CONNECTORS[0]] + 2 * differ + rng.integers(2, size=n))
            put(going & (form < _M) & (enough - at > 1), _E + form)
            put(going, entity)
            put(going & heeds(0.3 * (1 - skill)) & (at < enough), _ID[FILLERS[0]] + rng.integers(len(FILLERS), size=n))
            used[np.flatnonzero(going), entity[going]] = True
            last = np.where(going, entity, last)

        written = words != _END
        slips = written & (rng.random((n, width)) < SLIP * (1 - skill)[:, None])
        words = np.where(slips, rng.integers(len(_RESPONSE_WORDS), size=(n, width)), words)
        second = (words < _C) & ~sft_like[:, None] & (rng.random((n, width)) < DIALECT)
        table = np.array([*VOCABULARY, "", ""], dtype=object)[words + _C * second]
        return [" ".join(row[:k]) for row, k in zip(table.tolist(), at.tolist(), strict=True)]


@lru_cache(maxsize=16)
def _world(task: Sandbox, seed: int) -> World:
    if seed < 0:
        raise AligngapError(f"sandbox: seed is {seed}; give a seed of 0 or more")
    rng = np.random.default_rng([seed, 0])
    t = len(TOPICS)
    kind = np.zeros(_E, dtype=np.int64)
    kind[rng.permutation(_E)[: _E // 2]] = 1
    native = np.zeros((t, _E), dtype=bool)
    native[np.repeat(np.arange(t), _E // t), rng.permutation(_E)] = True
    habit, other = rng.normal(size=(2, t, _M + 1, _E))
    rho = 2 * task.peak_in_support - 1  # correlation of taste and habit; the spread of taste stays the same
    taste = task.taste * (rho * habit + np.sqrt(1 - rho**2) * other)
    return World(task, kind, native, habit, taste, phase=rng.uniform(0, 2 * np.pi, size=(t, _V + 1)))


@lru_cache(maxsize=2 * len(_PROMPTS))
def _request(prompt: str) -> tuple[int, int, bool, tuple[int, ...]]:
    topic, length, style, *entities = [*prompt.split(), "", "", ""]
    wanted = tuple(ENTITIES.index(word) for word in entities if word in ENTITIES)
    if topic not in TOPICS or length not in LENGTHS or style not in STYLES or not wanted:
        raise AligngapError(
            f"sandbox: {prompt!r} is not one of its prompts; they read 'topic length style entity entity', "
            f"for instance {_PROMPTS[0]!r}"
        )
    return TOPICS.index(topic), LENGTHS.index(length), style == "careful", wanted


def _requests(prompts: Sequence[str]) -> _Requests:
    rows = [_request(prompt) for prompt in prompts]
    entities = np.zeros((len(rows), _E), dtype=bool)
    for i, row in enumerate(rows):
        entities[i, row[3]] = True
    topic, length, careful = np.array([row[:3] for row in rows], dtype=np.int64).reshape(-1, 3).T
    return _Requests(topic, length, careful.astype(bool), entities)


def _encode(texts: Sequence[str]) -> Ints:
    """Inner ids [N, L] of the words' meanings, padded with _END; whatever is not a word of ours is _UNKNOWN."""
    rows = [[_ID.get(word, _UNKNOWN) for word in text.split()] for text in texts]
    width = max((len(row) for row in rows), default=0)
    ids = np.array([row + [_END] * (width - len(row)) for row in rows], dtype=np.int64).reshape(len(rows), width)
    result: Ints = _MEANING[ids]
    return result


def _counts(words: Ints) -> Ints:
    """How often each meaning occurs, [N, V + 1]; the last column counts unknown words."""
    n = len(words)
    flat = (words + (_V + 2) * np.arange(n)[:, None]).ravel()
    return np.bincount(flat, minlength=n * (_V + 2)).reshape(n, _V + 2)[:, : _V + 1]


def _draw(logits: Floats, rng: np.random.Generator) -> Ints:
    """One index per row from softmax(logits), by the Gumbel maximum."""
    result: Ints = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    return result
