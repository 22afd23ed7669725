"""What a measurement of given checkpoints needs: prompts, the reference's reading, theirs, and the judges' verdicts.

It is a plan like a study's: steps with keys, made by the same workers and found again in the same store. A checkpoint
that is not whole, as while a trainer writes it, is told and passed over; the same command takes it in later.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from aligngap.instrument.folders import Found
from aligngap.instrument.gauge import ROLES
from aligngap.instrument.judging import identity_of as judge_identity
from aligngap.judges.kinds import CheckedKind, LimitedKind
from aligngap.pipeline.base import Step
from aligngap.pipeline.checkpoints import AskJudge, PromptSet, ReadPolicy, Weights, fingerprint_of
from aligngap.pipeline.drawn import (
    OPPONENTS,
    SAMPLES,
    DrawReference,
    JudgeReference,
    ReadRatios,
    check_size,
    sampled_prompts,
)
from aligngap.registry import source_of
from aligngap.settings import JudgeSpec, Limits, ModelSpec
from aligngap.source import begin
from aligngap.storage.content import hash_of
from aligngap.storage.store import Store
from aligngap.study.build import build_judge
from aligngap.types import AligngapError, RunFailed

SETTLED_SECONDS = 5.0  #: a weight file that changed later than this before is looked at twice
LOOK_SECONDS = 1.0  #: between the two looks
PROMPT_TOKENS = 512  #: longest prompt where nothing else is said


@dataclass(frozen=True)
class Setting:
    """What is measured of every checkpoint, as the command's options say."""

    reference: str
    prompts: str
    column: str | None = None
    base: str | None = None
    judges: Sequence[JudgeSpec] = ()
    count: int = 256
    prompt_tokens: int | None = None  # None: `PROMPT_TOKENS`, or what the reference reads beside a response
    response_tokens: int = 128
    chat: bool | None = None
    dtype: str = "float32"
    seed: int = 0
    batch: int = 64
    forward: int | None = None
    samples: int = 8
    reference_samples: int | None = None  # behind rho and efficiency; None: a few, where no answer is paid for
    reference_prompts: int | None = None  # None: a quarter of the prompts, at most 64
    reference_opponents: int = OPPONENTS


@dataclass(frozen=True)
class Behind:
    """The steps behind rho, ceiling and efficiency: the reference's samples, what the first judge says of them, and
    each checkpoint's log-ratios on them."""

    wins: JudgeReference
    ratios: Mapping[Found, ReadRatios]


@dataclass(frozen=True)
class Survey:
    """The steps of a measurement, by checkpoint and by role of the judge; `extra` are verdicts between checkpoints."""

    name: str
    setting: Setting
    prompts: PromptSet
    start: ReadPolicy
    readings: Mapping[Found, ReadPolicy]
    verdicts: Mapping[tuple[Found, str], AskJudge]
    behind: Behind | None = None  # None: rho and efficiency are not measured
    extra: Sequence[AskJudge] = ()
    runs: Sequence[Any] = field(default=())  # none of a study's

    @property
    def study(self) -> Any:
        """What a progress line is headed by, as a study's plan has it."""
        return SimpleNamespace(name=self.name)

    def steps(self) -> list[Step]:
        """Every step once, needs before what needs them."""
        wanted: list[Step] = [*self.readings.values(), *self.verdicts.values(), *self.extra]
        if self.behind is not None:
            wanted += [self.behind.wins, *self.behind.ratios.values()]
        return list({s.name: s for w in wanted for s in w.walk()}.values())

    def judge(self, role: str, left: ReadPolicy, right: ReadPolicy) -> AskJudge:
        """The step in which the judge of a role compares two readings."""
        return ask_step(self.setting.judges[ROLES.index(role)], left, right)


def ask_step(spec: JudgeSpec, left: ReadPolicy, right: ReadPolicy) -> AskJudge:
    """A judge's step on two readings."""
    code = source_of("judges", spec.kind)
    return AskJudge(left=left, right=right, judge=spec, identity=judge_identity(spec), code=code)


def plan_survey(
    name: str, setting: Setting, found: Sequence[Found], tell: Callable[[str], None] = lambda line: None
) -> Survey:
    """The steps that measure these checkpoints; files are hashed and tokenizers compared, and no model is loaded.

    Raises AligngapError for a reference or prompts that cannot be used, for a checkpoint of another vocabulary, and
    where no checkpoint is whole. Judges are asked by `check_judges`.
    """
    from aligngap.models.checkpoint import (
        Unfinished,
        check_tokenizer,
        fetched,
        identity_of,
        reads_of,
        tokenizer_of,
    )
    from aligngap.models.loading import quiet
    from aligngap.tasks.prompts import read_prompts

    quiet()
    begin()
    check_size(setting.reference_samples, setting.reference_prompts, setting.reference_opponents)
    text = read_prompts(setting.prompts, setting.column)
    where = fetched(setting.reference)
    check_there(where, setting.reference, "--reference")
    base = setting.base and fetched(setting.base)
    tokenizer = tokenizer_of(where, base)
    chat = bool(tokenizer.chat_template) if setting.chat is None else setting.chat
    spec = ModelSpec.model_validate({"path": where, "chat": chat, "dtype": setting.dtype})
    limits = check_reference(where, base, setting, tokenizer, chat)
    settle(Path(where))
    reference = Weights(path=where, content=identity_of(where, base), base=base)
    prompts = PromptSet(
        path=str(Path(setting.prompts).expanduser()), column=setting.column, fingerprint=fingerprint_of(text),
        reference=reference, reads=reads_of(where, base), spec=spec, limits=limits, count=setting.count,
        seed=setting.seed,
    )  # fmt: skip
    size = min(setting.count, len(text.texts))
    forward = (size + 1) // 2 if setting.forward is None else setting.forward
    start = ReadPolicy(prompts=prompts, batch=setting.batch)
    readings: dict[Found, ReadPolicy] = {}
    read_alike: dict[str, str] = {}
    for checkpoint in found:
        try:
            place = fetched(checkpoint.path)
            check_there(place, checkpoint.path, f"--policy {checkpoint.arm}")
            settle(Path(place))
            weights = Weights(path=place, content=identity_of(place, base), base=base)
        except Unfinished as error:
            tell(f"{error}; passed over, repeat the command when it is there")
            continue
        tokens = tokens_of(Path(place))
        if tokens not in read_alike:
            read_alike[tokens] = check_tokenizer(Path(place), tokenizer, setting.reference)
            if read_alike[tokens]:
                tell(read_alike[tokens])
        readings[checkpoint] = ReadPolicy(
            prompts=prompts, policy=weights, start=start, forward=forward, batch=setting.batch, shown=checkpoint.name
        )
    if not readings:
        raise AligngapError("no checkpoint is whole yet; repeat the command when one is")
    check_distinct({c: r.policy for c, r in readings.items() if r.policy is not None}, reference, tell)
    verdicts = {
        (checkpoint, role): ask_step(judge, reading, start)
        for role, judge in zip(ROLES, setting.judges, strict=False)
        for checkpoint, reading in readings.items()
    }
    return Survey(name, setting, prompts, start, readings, verdicts, behind_steps(setting, prompts, size, readings))


def check_distinct(given: Mapping[Found, Weights], reference: Weights, tell: Callable[[str], None]) -> None:
    """Refuse the same weights given as two runs of one policy, and tell where two policies share weights.

    A step 0, and a copy of the reference, are in every run that starts there.
    """
    from aligngap.models.checkpoint import weights_identity

    start = weights_identity(reference.path, reference.base)
    hashes = {c: weights_identity(w.path, w.base) for c, w in given.items() if c.step > 0}
    moved = {c: h for c, h in hashes.items() if h not in ("", start)}
    first: dict[tuple[str, str], Found] = {}
    for c, h in moved.items():
        other = first.setdefault((c.arm, h), c)
        if (other.config, other.seed) != (c.config, c.seed):
            what = f"{other.path} and {c.path} hold the same weights, given as {other.name} and {c.name}"
            raise AligngapError(f"--policy {c.arm}: {what}; leave one out, or put the right checkpoint in its place")
    arms = list(dict.fromkeys(c.arm for c in moved))
    of = {arm: {h for c, h in moved.items() if c.arm == arm} for arm in arms}
    for one, other_arm in itertools.combinations(arms, 2):
        if of[one] == of[other_arm]:
            tell(f"policies {one} and {other_arm} are the same weights throughout; a difference is none of training")
        elif shared := of[one] & of[other_arm]:
            tell(f"policies {one} and {other_arm} share the weights of {len(shared)} checkpoints")


def behind_steps(
    setting: Setting, prompts: PromptSet, size: int, readings: Mapping[Found, ReadPolicy]
) -> Behind | None:
    """The steps behind rho and efficiency, of `size` prompts; None without a judge, or where they are left out.

    By default an endpoint is not asked: every sample of the reference is held against several others.
    """
    if not setting.judges:
        return None
    judge = setting.judges[0]
    samples = setting.reference_samples
    if samples is None:
        samples = 0 if judge.kind == "endpoint" else SAMPLES
    if samples == 0:
        return None
    drawn = DrawReference(
        prompts=prompts, count=setting.reference_prompts or sampled_prompts(size), samples=samples,
        opponents=setting.reference_opponents, batch=setting.batch,
    )  # fmt: skip
    code = source_of("judges", judge.kind)
    wins = JudgeReference(drawn=drawn, judge=judge, identity=judge_identity(judge), code=code)
    ratios = {
        checkpoint: ReadRatios(drawn=drawn, policy=step.policy, batch=setting.batch, shown=checkpoint.name)
        for checkpoint, step in readings.items()
        if step.policy is not None
    }
    return Behind(wins, ratios)


def check_there(place: str, given: str, option: str) -> None:
    """Refuse a path that is neither a folder nor a GGUF file here."""
    if not Path(place).is_dir() and not place.endswith(".gguf") and not place.startswith("package:"):
        what = "no such folder here, and no name of the hub (OWNER/NAME)"
        raise AligngapError(f"{option} {given}: {what}; give the folder that save_pretrained or a trainer has written")


def check_reference(place: str, base: str | None, setting: Setting, tokenizer: Any, chat: bool) -> Limits:
    """The limits of prompt and response, which the reference can read at once.

    Refuses one that writes no text, or has no chat template where one is asked for.
    """
    from aligngap.models.chat import check_template
    from aligngap.models.checkpoint import base_path, is_adapter, weights_of
    from aligngap.models.loading import check_spec, config_of, window

    whole = place
    if Path(place).is_dir():
        weights_of(Path(place))
        if is_adapter(Path(place)):
            whole = base_path(Path(place), base)
    spec = ModelSpec(path=whole)
    check_spec(spec)
    if chat:
        check_template(tokenizer, f"--reference {setting.reference}")
    config = config_of(spec)
    most = None if config.is_encoder_decoder else window(config)
    asked, response = setting.prompt_tokens or PROMPT_TOKENS, setting.response_tokens
    prompt = asked if most is None or setting.prompt_tokens is not None else min(asked, most - response)
    if most is not None and (prompt < 1 or prompt + response > most):
        what = f"--prompt-tokens {asked} with --response-tokens {response} make {asked + response} of them"
        raise AligngapError(f"--reference {setting.reference}: reads at most {most} tokens, and {what}; lower them")
    return Limits(prompt_tokens=prompt, response_tokens=response)


def check_judges(survey: Survey, store: Store) -> None:
    """Ask each judge that can say so whether it can be used, unless everything is done."""
    if all(store.has(step.name) for step in survey.steps()):
        return
    for spec in survey.setting.judges:
        kind = build_judge(spec)
        try:
            if isinstance(kind, LimitedKind):
                kind.check_limits(survey.prompts.limits)
            if isinstance(kind, CheckedKind):
                kind.check(store.root)
        except RunFailed as error:
            raise AligngapError(f"--judge {spec.kind}: {error}") from error


def settle(folder: Path) -> None:
    """Look twice at weights that have just changed: Unfinished where they are still changing."""
    from aligngap.models.checkpoint import Unfinished, weights_of

    if not folder.is_dir():
        return
    stamps = [(f.stat().st_size, f.stat().st_mtime_ns) for f in weights_of(folder)]
    if max(at for _, at in stamps) / 1e9 > time.time() - SETTLED_SECONDS:
        time.sleep(LOOK_SECONDS)
        if stamps != [(f.stat().st_size, f.stat().st_mtime_ns) for f in weights_of(folder)]:
            raise Unfinished(f"{folder}: its weights are being written")


def tokens_of(folder: Path) -> str:
    """The hash of a checkpoint's own tokenizer and template; "" where it has none."""
    names = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "chat_template.jinja")
    there = [folder / name for name in names if (folder / name).is_file()]
    return " ".join(hash_of(file)[:16] for file in there)
