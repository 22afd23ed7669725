"""The records everything else is made of, and the narrow roles by which the rooms know each other.

This module imports neither torch nor transformers, so that the reading side (statistics, hypotheses, report)
can use it on any machine. It holds no behaviour beyond small derived properties: how a pair is written, labelled,
batched or learned from lives in the rooms named after those verbs.

Letters for shapes: B pairs, T tokens, V vocabulary, P prompts, S seeds. Units stand in names (`kl_nats`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np


class AligngapError(Exception):
    """Bad input or a setting that cannot work: one line that says what, where and the remedy (exit code 2)."""


class RunFailed(Exception):
    """A step that started and could not finish (exit code 1)."""


class JudgeFailed(RunFailed):
    """A judge answered something that is no probability."""


class Damaged(RunFailed):
    """Stored work that is not what was written: one line that names the file; `name` is the artifact's, if any."""

    def __init__(self, message: str, name: str = "") -> None:
        super().__init__(message)
        self.name = name


class Stopped(BaseException):
    """Somebody asked a step to stop; what it did so far is saved."""


# ---------------------------------------------------------------------------------------------- text and tokens


@dataclass(frozen=True)
class Comparison:
    """One row of a task: a prompt and two responses, the first preferred by the task's own rater."""

    prompt_id: str
    prompt: str
    chosen: str
    rejected: str


@dataclass(frozen=True)
class TaskData:
    """What a task yields: comparisons split by conversation (none in both splits), and what was left out and why.

    Of what is read from files, `rows` says how many rows came in, `layouts` in which layout each was recognised, and
    `more` how many comparisons they make beyond one each: rows + more = train + test + everything in `dropped`.
    `unread` are the columns that nothing was read of.
    """

    train: Sequence[Comparison]
    test: Sequence[Comparison]
    source: str
    dropped: Mapping[str, int] = field(default_factory=dict)
    rows: int = 0
    layouts: Mapping[str, int] = field(default_factory=dict)
    more: int = 0
    unread: Sequence[str] = ()


@dataclass(frozen=True)
class Prompt:
    """A prompt as text and as the policy's token ids (the ids are the truth; they are never made again)."""

    id: str
    text: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Response:
    """A response as the policy's token ids, the closing EOS included when there is one.

    `ended` says whether it closed with EOS; a response cut by the length limit has `ended=False`.
    """

    ids: tuple[int, ...]
    ended: bool
    text: str


@dataclass(frozen=True)
class Pair:
    """Two labelled responses to one prompt: the unit every stream serves and the one trainer learns from.

    `p_chosen` is the probability, by the judge, that `chosen` is better: 1.0 for a hard label, 0.5 for a tie.
    `judged_forward` / `judged_backward` are the judge's raw answers to (chosen, rejected) and (rejected, chosen),
    kept so that position bias can be studied later. `ref_chosen` / `ref_rejected` are the reference's log-probabilities
    of each response (sum over tokens, nats), stored once so that no replay runs the reference again.
    `writer` names the weights that wrote the responses ("data" for a data set). `labelled` is false where no judge was
    asked; `p_chosen` is then 0.5 and which response is called chosen means nothing.
    `writer_chosen` / `writer_rejected` are the writer's own log-probabilities (likewise sums, nats) as it wrote, where
    a study stores them; `advantage_*` says how each response stands in the group it was written in, where it has one.
    """

    prompt: Prompt
    chosen: Response
    rejected: Response
    p_chosen: float
    judged_forward: float
    judged_backward: float
    writer: str
    ref_chosen: float | None = None
    ref_rejected: float | None = None
    labelled: bool = True
    writer_chosen: float | None = None
    writer_rejected: float | None = None
    advantage_chosen: float | None = None
    advantage_rejected: float | None = None

    @property
    def written_at(self) -> int | None:
        """The optimiser step of the weights that wrote it; None for data, and where two policies wrote a response each.

        A pair's age at a step is the difference of the two.
        """
        return step_of(self.writer)

    @property
    def key(self) -> tuple[str, tuple[int, ...], tuple[int, ...]]:
        """What makes two pairs the same pair, whichever response the judge preferred."""
        first, second = sorted((self.chosen.ids, self.rejected.ids))
        return (self.prompt.id, first, second)


def step_of(writer: str) -> int | None:
    """The optimiser step that the name of some weights ends with ("online-0@step40"), or None where it has none."""
    found = re.fullmatch(r"\S+@step(\d+)", writer)
    return int(found[1]) if found else None


@dataclass(frozen=True)
class Judgement:
    """A pairwise judge's raw answers in both orders, each of shape [B], values in [0, 1].

    `forward[i]` is its probability that a beats b when shown (a, b); `backward[i]` that b beats a when shown (b, a).
    """

    forward: np.ndarray
    backward: np.ndarray

    def checked(self, key: str, prompts: Sequence[Prompt]) -> Judgement:
        """Itself, if every answer is a probability; else JudgeFailed, naming the judge, its answer and the prompt."""
        for answers in (self.forward, self.backward):
            wrong = np.flatnonzero(~((answers >= 0.0) & (answers <= 1.0)))  # nan is neither
            if len(wrong):
                first = int(wrong[0])
                where = f"prompt {prompts[first].id}" + (f" and {len(wrong) - 1} more" if len(wrong) > 1 else "")
                raise JudgeFailed(f"judge {key} answered {answers[first]}, which is no probability, to {where}")
        return self

    @property
    def p_win(self) -> np.ndarray:
        """Probability [B] that a beats b: the part of the answers that changes sign when a and b are swapped."""
        p: np.ndarray = (self.forward + 1.0 - self.backward) / 2.0
        return p

    @property
    def soft(self) -> np.ndarray:
        """Label [B]: the probability that a beats b, the antisymmetric part of the answers taken in logits.

        A judge that adds a bias for the first place to its logit is undone by (logit(forward) - logit(backward)) / 2,
        as it is not by a mean of probabilities, which shrinks near 0 and 1. Answers of exactly 0 or 1 have no logit:
        a pair with such a one has `p_win`.
        """
        ahead = self.forward * (1.0 - self.backward)
        behind = (1.0 - self.forward) * self.backward
        inside = (ahead > 0) & (behind > 0)
        one, other = (np.sqrt(np.where(inside, x, 1.0)) for x in (ahead, behind))
        p: np.ndarray = np.where(inside, one / (one + other), self.p_win)
        return p

    @property
    def hard(self) -> np.ndarray:
        """Label [B]: 1 if a wins, 0 if b wins, 0.5 for a tie. The sign rule of arXiv 2405.08448, App. A.2."""
        label: np.ndarray = (np.sign(self.forward - self.backward) + 1.0) / 2.0
        return label


# --------------------------------------------------------------------------------------------------------- roles


class Sampler(Protocol):
    """The narrow view of a policy that a stream gets."""

    @property
    def key(self) -> str:
        """Which weights these are, for instance "online-0@step40"."""
        ...

    def sample(self, prompts: Sequence[Prompt], n: int, seed: int) -> list[list[Response]]:
        """n responses to each prompt at temperature 1: a function of (weights, prompts, seed) and nothing else."""
        ...


@runtime_checkable
class Scorer(Sampler, Protocol):
    """A sampler that also says how probable a response is to it."""

    def score(self, prompts: Sequence[Prompt], responses: Sequence[Response]) -> Sequence[float]:
        """log pi(response | prompt) of each, summed over tokens, nats."""
        ...


@runtime_checkable
class Judge(Protocol):
    """Who labels. Swapping a and b swaps `forward` and `backward` of the answer."""

    @property
    def key(self) -> str: ...

    def judge(self, prompts: Sequence[Prompt], a: Sequence[Response], b: Sequence[Response]) -> Judgement: ...


@runtime_checkable
class PaidJudge(Judge, Protocol):
    """A judge whose answers are paid for, and counted step by step."""

    def for_step(self, step: str) -> None:
        """Count what is asked from now on for the step of this name."""
        ...

    def spent(self, step: str) -> dict[str, Any]:
        """What was asked for a step, and what it cost; empty where nothing was."""
        ...


@runtime_checkable
class TellingJudge(Judge, Protocol):
    """A judge that has something to say of how it read what it was asked."""

    def about(self) -> dict[str, Any]:
        """Counts for the manifest of the step that asked it; empty where there is nothing to say."""
        ...


class PairStream(Protocol):
    """Where the pairs come from: the one thing in which online and offline differ."""

    @property
    def responses_sampled(self) -> int:
        """How many responses were generated so far for the pairs that were drawn."""
        ...

    def draw(self, n: int, sampler: Sampler) -> list[Pair]:
        """The next n pairs, written by the sampler's policy or not."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on exactly: counters, and what was written ahead. JSON values only."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class Task(Protocol):
    """Where prompts and comparisons come from. Built from a study's `task:` section; unknown keys are refused."""

    def fingerprint(self) -> str:
        """A hash of what would be loaded (file contents, generator settings): part of every artifact's key."""
        ...

    def load(self, seed: int) -> TaskData: ...


@runtime_checkable
class OracleTask(Task, Protocol):
    """A task with a true preference of its own, as the sandbox: its `world` says which response is better."""

    def world(self, seed: int) -> Any:
        """The world of a seed, of which the task's judge knows the truth."""
        ...


@runtime_checkable
class FileTask(Task, Protocol):
    """A task that reads the user's files, which can be looked at before anything is computed."""

    path: Any


class Progress(Protocol):
    """How long work says where it is."""

    def __call__(self, done: int, total: int, note: str = "") -> None: ...


def first_line(error: BaseException, most: int = 200) -> str:
    """What an error says, on one line of at most so many characters; its class where it says nothing."""
    return " ".join(str(error).split())[:most] or type(error).__name__


def one_line(error: object) -> str:
    """The text on one line, with everything unprintable in it escaped, and every run of blanks made one."""
    return escape(" ".join(str(error).split()))


def escape(text: str) -> str:
    """The text with everything unprintable in it escaped: line ends, control characters, right-to-left marks."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def silent(done: int, total: int, note: str = "") -> None:
    """Progress for nobody."""


# ------------------------------------------------------------------------------------------------------- results


@dataclass(frozen=True)
class Estimate:
    """A number with its doubt: never reported bare. `se` is nan where it is undefined (n < 2)."""

    value: float
    se: float
    n: int
    how: str = ""

    @classmethod
    def mean(cls, x: Sequence[float] | np.ndarray, how: str = "mean over prompts") -> Estimate:
        """The mean of independent values and its standard error s / sqrt(n); nan where undefined."""
        a = np.asarray(x, dtype=np.float64)
        if a.size == 0:
            return cls(float("nan"), float("nan"), 0, how)
        se = float(a.std(ddof=1) / np.sqrt(a.size)) if a.size > 1 else float("nan")
        return cls(float(a.mean()), se, int(a.size), how)

    def __str__(self) -> str:
        return f"{self.value:.3f} ± {self.se:.3f} (n={self.n})"


@dataclass(frozen=True)
class Verdict:
    """A hypothesis's outcome by a rule declared before the runs."""

    name: str
    outcome: str  # "supported", "contradicted", "inconclusive", "censored" or "too few seeds"
    rule: str
    effect: Estimate
    interval: tuple[float, float]
    reason: str
    claim: str = ""  # what the paper says, to stand beside it
    share: Estimate | None = None  # the effect as a share of the opening gap, where that is asked
    share_interval: tuple[float, float] = (float("nan"), float("nan"))
    p: float = float("nan")  # of the rule's test, where it has one
    p_adjusted: float = float("nan")  # for all tests of its family
    primary: bool = False  # whether it belongs to the family that was named before the runs


def chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Consecutive slices of at most `size` items."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
