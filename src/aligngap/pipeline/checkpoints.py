"""Steps that measure checkpoints which somebody else has trained: prompts, a reading of each policy, judges' verdicts.

A reading is one response of a policy to each prompt, with its KL from the reference; a verdict is what one judge says
of two readings. Both are keyed by the content of weights and never by where these lie, so that a checkpoint that is
moved, copied or named by another study is measured once. Leaves out which checkpoints there are, and the tables made of
them (`instrument/`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from aligngap.pipeline.base import Step
from aligngap.pipeline.measure import whole
from aligngap.seeding import derive
from aligngap.settings import JudgeSpec, Limits, ModelSpec, Settings
from aligngap.storage.store import digest
from aligngap.study.build import open_judge
from aligngap.types import AligngapError, Judge, Judgement, Prompt, Response, RunFailed

if TYPE_CHECKING:
    from aligngap.models.policy import Policy
    from aligngap.pipeline.context import Context, Job
    from aligngap.tasks.prompts import Prompts

CHUNK = 32  #: prompts that a judge is asked about before its answers are saved
MARKED = "prompts_with_marks_of_a_template_read_as_text"


class Weights(Settings):
    """Weights of somebody else's: where they lie, and what makes them those weights and no others."""

    path: str
    content: str = ""  # of weights and configuration; "" for a hub name that cannot be reached now
    base: str | None = None  # where the model of an adapter lies, if not where the adapter says

    @property
    def identity(self) -> str:
        return self.content or self.path

    def check(self) -> None:
        """Refuse weights that are others than when the step was planned, as while a trainer goes on writing them."""
        from aligngap.models.checkpoint import identity_of

        if self.content and identity_of(self.path, self.base) != self.content:
            raise RunFailed(f"{self.path}: its files have changed since the command began; repeat the command")

    def open(self, reference: Policy) -> Policy:
        """The policy that they are, on the reference's tokens; what was loaded is what was planned."""
        from aligngap.models.checkpoint import open_policy

        self.check()
        policy = open_policy(self.path, reference, base=self.base, key=self.identity)
        self.check()
        return policy


class PromptSet(Step):
    """The prompts of a measurement, drawn by the seed, as token ids of the reference's tokenizer."""

    kind: Literal["prompts"] = "prompts"
    path: str
    column: str | None = None
    fingerprint: str
    reference: Weights
    reads: str  # the hash of the reference's tokenizer, templates and settings
    spec: ModelSpec  # how the reference is run: precision and chat template
    limits: Limits
    count: int
    seed: int

    @cached_property
    def configuration(self) -> Any:
        spec = self.spec.model_dump(include={"chat", "template", "date", "dtype"})
        own = {"column": self.column, "fingerprint": self.fingerprint, "reads": self.reads, "spec": spec}
        return own | {"limits": self.limits.model_dump(), "count": self.count, "seed": self.seed}

    def run(self, ctx: Context, job: Job) -> dict[str, Any]:
        from aligngap.storage.pairs import write_rows
        from aligngap.tasks.prompts import read_prompts

        found = read_prompts(self.path, self.column)
        if fingerprint_of(found) != self.fingerprint:
            raise RunFailed(f"{found.source}: has changed since the command began; repeat the command")
        kept, dropped, marked = encode(self.policy(ctx), found.texts, self.limits, self.count, self.seed)
        check_some(kept, found.source, dropped, self.limits)
        if marked > 0.9 * len(kept) and not self.spec.chat:
            raise AligngapError(
                f"{found.source}: {marked} of {len(kept)} prompts are already written in a chat template's marks, "
                "which would be read as text; give messages or plain prompts, which the template then writes"
            )
        write_rows(job.work / "prompts.parquet", [{"id": p.id, "text": p.text, "ids": list(p.ids)} for p in kept])
        told = {"source": found.source, "rows": found.rows, "prompts": len(kept)}
        return told | {"dropped": dict(found.dropped) | dropped} | ({MARKED: marked} if marked else {})

    def prompts(self, ctx: Context) -> list[Prompt]:
        from aligngap.storage.pairs import read_rows

        def build() -> list[Prompt]:
            rows = read_rows(self.made(ctx, "prompts.parquet"))
            return [Prompt(r["id"], r["text"], tuple(r["ids"])) for r in rows]

        found: list[Prompt] = ctx.cached((self.name, "prompts"), build)
        return found

    def policy(self, ctx: Context) -> Policy:
        """The reference, loaded once per process."""
        from aligngap.models.checkpoint import open_reference, reads_of

        def check() -> None:
            self.reference.check()
            path = self.reference.path
            if self.reads and reads_of(path, self.reference.base) != self.reads:
                what = "its tokenizer, template or configuration has changed since the command began"
                raise RunFailed(f"{path}: {what}; repeat the command")

        def load() -> Policy:
            check()
            how: dict[str, Any] = {"spec": self.spec, "base": self.reference.base}
            policy = open_reference(
                self.reference.path, response_tokens=self.limits.response_tokens, key=self.reference.identity, **how
            )
            policy.to(ctx.device)
            check()
            return policy

        return ctx.cached(("reference", self.reference.identity, self.spec.model_dump_json()), load)


def fingerprint_of(text: Prompts) -> str:
    """The hash of the prompts that were read, in their order."""
    return digest(list(text.texts.values()))


def encode(
    reference: Policy, texts: Any, limits: Limits, count: int, seed: int
) -> tuple[list[Prompt], dict[str, int], int]:
    """At most `count` of the prompts (text by id), drawn by the seed and in the order given, with the reference's ids.

    Then what was left out, and how many of those kept spell a token that controls the model.
    """
    from aligngap.models.chat import TemplateRefused

    kept: list[tuple[int, Prompt]] = []
    dropped: dict[str, int] = {}
    names = list(texts)
    for i in np.random.default_rng(derive(seed, "measured prompts")).permutation(len(names)):
        if len(kept) == count:
            break
        text = texts[names[int(i)]]
        try:
            ids = reference.encode_prompt(text)
            reason = f"over {limits.prompt_tokens} tokens" if len(ids) > limits.prompt_tokens else ""
        except TemplateRefused:
            reason = "refused by the chat template"
        if reason:
            dropped[reason] = dropped.get(reason, 0) + 1
        else:
            kept.append((int(i), Prompt(names[int(i)], text, ids)))
    prompts = [p for _, p in sorted(kept, key=lambda found: found[0])]
    return prompts, dropped, sum(reference.encoding.holds_marks(p.text) for p in prompts)


def check_some(kept: Sequence[Prompt], source: str, dropped: dict[str, int], limits: Limits) -> None:
    """Refuse a measurement of fewer than two prompts."""
    if len(kept) < 2:
        why = f" after dropping {', '.join(f'{n} {reason}' for reason, n in dropped.items())}" if dropped else ""
        remedy = f"raise --prompt-tokens ({limits.prompt_tokens}), or give more prompts" if dropped else "give more"
        raise AligngapError(f"{source}: {len(kept)} usable prompts{why}; at least 2 are needed: {remedy}")


@dataclass(frozen=True)
class Reading:
    """One response of a policy to each of P prompts, with sums over its tokens in nats.

    kl [P] is KL(policy || reference) exact per token, forward [F] the KL(reference || policy) along the reference's
    responses to the first F prompts; logp and ref_logp [P] are of the responses, entropy [P] of their tokens.
    """

    responses: Sequence[Response]
    logp: np.ndarray
    ref_logp: np.ndarray
    kl: np.ndarray
    entropy: np.ndarray
    forward: np.ndarray

    @property
    def tokens(self) -> np.ndarray:
        return np.array([len(r.ids) for r in self.responses])


def read_policy(
    policy: Policy,
    reference: Policy,
    prompts: Sequence[Prompt],
    *,
    seed: int,
    batch: int,
    written: Sequence[Response] = (),
    progress: Any = None,
) -> Reading:
    """Sample the policy once on every prompt, and measure it along what it wrote and what the reference wrote.

    `written` are the reference's responses to the first prompts, for the forward KL. A function of both models'
    weights, the prompts, the seed and the batch (which decides the random numbers).
    """
    from aligngap.measurement import score

    say = progress or (lambda done, total, note: None)
    say(0, 3, "sampling")
    own = [r[0] for r in policy.sample(prompts, 1, derive(seed, "measurement"), batch_size=batch)]
    say(1, 3, "KL")
    scores = score(policy, reference, prompts, own, batch)
    say(2, 3, "forward KL")
    first = prompts[: len(written)]
    forward = score(reference, policy, first, written, batch).kl if len(written) else np.zeros(0)
    return Reading(own, scores.logp, scores.other_logp, scores.kl, scores.entropy, forward)


class ReadPolicy(Step):
    """A policy's reading; without `policy` it is the reference's own, at which the KL is 0."""

    kind: Literal["reading"] = "reading"
    prompts: PromptSet
    policy: Weights | None = None
    start: ReadPolicy | None = None  # the reference's reading
    forward: int = 0  # prompts behind the forward KL
    batch: int
    shown: str = "the reference"

    @cached_property
    def configuration(self) -> Any:
        who = {"reference": self.prompts.reference.identity, "policy": self.policy and self.policy.identity}
        return who | {"prompts": self.prompts.name, "forward": self.forward, "batch": self.batch}

    @property
    def label(self) -> str:
        return f"measure {self.shown}"

    def run(self, ctx: Context, job: Job) -> dict[str, Any]:
        from aligngap.storage.pairs import write_rows

        prompts, reference = self.prompts.prompts(ctx), self.prompts.policy(ctx)
        policy = reference
        if self.policy is not None:
            policy = self.policy.open(reference)
        written = self.start.read(ctx).responses[: self.forward] if self.start is not None else ()
        found = read_policy(
            policy, reference, prompts, seed=self.prompts.seed, batch=self.batch, written=written, progress=job.progress
        )
        forward = np.full(len(prompts), np.nan)
        forward[: len(found.forward)] = found.forward
        rows = [
            {
                "prompt_id": p.id, "ids": list(r.ids), "ended": r.ended, "text": r.text,
                "logp": float(found.logp[i]), "ref_logp": float(found.ref_logp[i]), "kl_nats": float(found.kl[i]),
                "entropy_nats": float(found.entropy[i]), "forward_kl_nats": float(forward[i]),
            }
            for i, (p, r) in enumerate(zip(prompts, found.responses, strict=True))
        ]  # fmt: skip
        write_rows(job.work / "reading.parquet", rows)
        return {"kl_nats": float(found.kl.mean()), "parameters": policy.model.num_parameters()}

    def read(self, ctx: Context) -> Reading:
        """The reading as it was stored."""
        from aligngap.storage.pairs import read_rows

        def build() -> Reading:
            rows = read_rows(self.made(ctx, "reading.parquet"))
            responses = [Response(tuple(r["ids"]), bool(r["ended"]), r["text"]) for r in rows]
            logp, ref_logp, kl, entropy, forward = (
                np.array([r[name] for r in rows], dtype=np.float64)
                for name in ("logp", "ref_logp", "kl_nats", "entropy_nats", "forward_kl_nats")
            )
            return Reading(responses, logp, ref_logp, kl, entropy, forward[np.isfinite(forward)])

        found: Reading = ctx.cached((self.name, "reading"), build)
        return found


class AskJudge(Step):
    """What a ready judge says of the responses in two readings: who is better on each prompt, asked in both orders.

    Its answers are saved every few prompts: a judge that fails half-way is asked the rest when the command is repeated.
    """

    kind: Literal["verdict"] = "verdict"
    left: ReadPolicy
    right: ReadPolicy
    judge: JudgeSpec
    identity: dict[str, Any]
    code: str = ""

    @cached_property
    def configuration(self) -> Any:
        sides = {"left": self.left.name, "right": self.right.name}
        return sides | {"judge": self.judge.kind, "identity": self.identity, "code": self.code}

    @property
    def label(self) -> str:
        return f"judge {self.left.shown} against {self.right.shown} ({self.judge.kind})"

    def run(self, ctx: Context, job: Job) -> dict[str, Any]:
        from aligngap.storage.checksums import write_sealed
        from aligngap.storage.pairs import write_rows

        judge = job.asked(open_ready(self, ctx))
        prompts = self.left.prompts.prompts(ctx)
        left, right = (side.read(ctx).responses for side in (self.left, self.right))
        rows: list[dict[str, Any]] = []
        for start in range(0, len(prompts), CHUNK):
            job.progress(start, len(prompts), f"prompt {start + 1}")
            part, chosen = job.work / f"measured-{start:06d}.json", slice(start, start + CHUNK)
            of = f"{self.name} prompt {start}"
            answers = whole(part, of)
            if answers is None:
                judged = ask(judge, prompts[chosen], left[chosen], right[chosen])
                answers = {"forward": judged.forward.tolist(), "backward": judged.backward.tolist()}
                write_sealed(part, {"of": of, **answers})
            rows += [
                {"prompt_id": p.id, "forward": float(f), "backward": float(b)}
                for p, f, b in zip(prompts[chosen], answers["forward"], answers["backward"], strict=True)
            ]
        write_rows(job.work / "verdict.parquet", rows)
        return {"prompts": len(rows)}

    def wins(self, ctx: Context) -> np.ndarray:
        """[P] 1 where the left one wins, 0 where it loses, one half at a tie."""
        from aligngap.storage.pairs import read_rows

        rows = read_rows(self.made(ctx, "verdict.parquet"))
        answers = (np.array([r[name] for r in rows], dtype=np.float64) for name in ("forward", "backward"))
        return Judgement(*answers).hard


class Asking(Protocol):
    """A step that asks a ready judge."""

    judge: JudgeSpec
    identity: dict[str, Any]
    code: str


def open_ready(step: Asking, ctx: Context) -> Judge:
    """The ready judge of a step, opened once per process."""

    def load() -> Judge:
        return open_judge(step.judge, step.identity, step.code, ctx.store.root, ctx.device)

    return ctx.cached(("judge", step.judge.model_dump_json(), str(step.identity), step.code), load)


def ask(judge: Judge, prompts: Sequence[Prompt], left: Sequence[Response], right: Sequence[Response]) -> Judgement:
    """A judge's checked answers; what a user's own code raises is one line and loses no other work."""
    try:
        return judge.judge(prompts, left, right).checked(judge.key, prompts)
    except (AligngapError, RunFailed):
        raise
    except Exception as error:
        from aligngap.types import first_line

        what = f"{type(error).__name__}: {first_line(error, 160)}"
        raise RunFailed(f"judge {judge.key}: {what}; its earlier answers are kept, repeat the command") from error
