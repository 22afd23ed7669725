"""The steps of a study, each with its key: Data, Sft, FitJudge, Relabel, Align, Responses, Measure.

A step is its configuration and the steps it needs, nested; its key is the hash of both, so equal work is shared
between arms, sweeps and studies and is never done twice. `run` does the work inside a folder that the store hands out,
and can be killed anywhere: training goes on from the newest saved state, measurement from the next checkpoint.

Heavy libraries are imported where they are used, so that planning a study needs none of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_type_hints

from pydantic import BaseModel, Field

from . import registry
from .seeding import derive
from .settings import (
    Arm,
    JudgeSpec,
    Limits,
    LossSpec,
    MeasurementSpec,
    ModelSpec,
    Optimization,
    Settings,
    TokenizerSpec,
)
from .store import digest
from .types import AligngapError, Prompt, Response

if TYPE_CHECKING:
    from .context import Context
    from .measure import Opponent
    from .types import Pair, PairStream


class Step(Settings):
    """Configuration, inputs and work of one artifact.

    Raise `version` when the same configuration gives other results.
    """

    version: ClassVar[int] = 1
    kind: str

    @cached_property
    def configuration(self) -> Any:
        """The step's settings as JSON values, each step it needs replaced by that step's name."""
        return _plain(self, {})

    @cached_property
    def inputs(self) -> dict[str, Step]:
        """The steps this one needs, by the place where its settings name them."""
        found: dict[str, Step] = {}
        _plain(self, found)
        return found

    @cached_property
    def name(self) -> str:
        """Folder of the artifact: kind and key."""
        return f"{self.kind}-{digest({'version': self.version, 'configuration': self.configuration})}"

    @property
    def label(self) -> str:
        """A few words for a progress line."""
        return self.kind

    def units(self) -> float:
        """Rough amount of work, in forward passes of one response or so; see `forecast.py`."""
        return 1.0

    def run(self, ctx: Context) -> dict[str, Any]:
        """Do the work in `ctx.work`; what is returned goes into the manifest."""
        raise NotImplementedError

    def walk(self) -> Iterator[Step]:
        """This step and all it needs, needs first; a step needed twice comes twice."""
        for step in self.inputs.values():
            yield from step.walk()
        yield self


def _plain(value: Any, found: dict[str, Step], place: str = "") -> Any:
    """JSON values of settings; a step below the top becomes its name and is added to `found` under its place."""
    if isinstance(value, Step) and place:
        found[place] = value
        return value.name
    if isinstance(value, BaseModel):
        extra = value.model_extra or {}
        fields = {name: getattr(value, name) for name in type(value).model_fields} | extra
        return {k: _plain(v, found, f"{place}.{k}" if place else k) for k, v in fields.items()}
    if isinstance(value, dict):
        return {str(k): _plain(v, found, f"{place}.{k}") for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v, found, f"{place}.{i}") for i, v in enumerate(value)]
    return value


# ------------------------------------------------------------------------------------------------------------- data


class Data(Step):
    """Load a task, train or load the tokenizer, encode both splits; over-long rows are dropped and counted."""

    kind: Literal["data"] = "data"
    task: dict[str, Any]
    fingerprint: str
    tokenizer: TokenizerSpec
    family: ModelSpec
    limits: Limits
    seed: int

    @cached_property
    def configuration(self) -> Any:
        # The content of the data is hashed (`fingerprint`), not where they lie.
        return _plain(self, {}) | {"task": self.task.get("name")}

    def run(self, ctx: Context) -> dict[str, Any]:
        from .policy import encode_prompt, encode_response, is_encoder_decoder
        from .tables import write_rows
        from .tokenizer import make_tokenizer

        loaded = build_task(self.task).load(self.seed)
        tokenizer = make_tokenizer(self.tokenizer, loaded)
        tokenizer.save_pretrained(str(ctx.work / "tokenizer"))
        enc_dec = is_encoder_decoder(self.family)
        rows, dropped = [], dict(loaded.dropped)
        for split, comparisons in (("train", loaded.train), ("test", loaded.test)):
            for c in comparisons:
                prompt_ids = encode_prompt(tokenizer, enc_dec, c.prompt)
                sides = [encode_response(tokenizer, text, self.closed) for text in (c.chosen, c.rejected)]
                if len(prompt_ids) > self.limits.prompt_tokens:
                    reason = f"{split}: prompt over {self.limits.prompt_tokens} tokens"
                elif max(map(len, sides)) > self.limits.response_tokens:
                    reason = f"{split}: a response over {self.limits.response_tokens} tokens"
                else:
                    row = {"split": split, "prompt_id": c.prompt_id, "prompt": c.prompt, "prompt_ids": prompt_ids}
                    row |= {"chosen": c.chosen, "chosen_ids": sides[0]}
                    row |= {"rejected": c.rejected, "rejected_ids": sides[1]}
                    rows.append(row)
                    continue
                dropped[reason] = dropped.get(reason, 0) + 1
        counts = {split: sum(r["split"] == split for r in rows) for split in ("train", "test")}
        for split, count in counts.items():
            if count < 2:
                raise AligngapError(
                    f"task {self.task['name']} ({loaded.source}): {count} usable {split} rows after dropping "
                    f"{dropped}; at least 2 are needed: raise limits.prompt_tokens or limits.response_tokens, or bring "
                    "more rows"
                )
        write_rows(ctx.work / "data.parquet", rows)
        return {"source": loaded.source, "rows": counts, "dropped": dropped, "vocabulary": len(tokenizer)}

    @property
    def closed(self) -> bool:
        """Whether responses end with EOS: all but those of one token, the tabular world, whose length is no choice."""
        return self.limits.response_tokens > 1

    def pairs(self, ctx: Context, split: str) -> list[Pair]:
        """The split's comparisons as pairs labelled by the task's own rater (hard labels)."""
        from .types import Pair

        def build() -> list[Pair]:
            from .tables import read_rows

            out = []
            for r in read_rows(ctx.path(self) / "data.parquet"):
                if r["split"] == split:
                    sides = [Response(tuple(r[f"{s}_ids"]), self.closed, r[s]) for s in ("chosen", "rejected")]
                    prompt = Prompt(r["prompt_id"], r["prompt"], tuple(r["prompt_ids"]))
                    out.append(Pair(prompt, sides[0], sides[1], 1.0, 1.0, 0.0, "data"))
            return out

        found: list[Pair] = ctx.cached((self.name, "pairs", split), build)
        return found

    def prompts(self, ctx: Context, split: str, n: int) -> list[Prompt]:
        """n distinct prompts of the split, chosen by the seed: the same for every arm."""
        import numpy as np

        distinct = list({p.prompt.id: p.prompt for p in self.pairs(ctx, split)}.values())
        order = np.random.default_rng(derive(self.seed, "measured prompts", split)).permutation(len(distinct))
        return [distinct[int(i)] for i in order[:n]]


def build_task(section: dict[str, Any]) -> Any:
    """The task a `task:` section names, built with its settings; unknown names and keys are refused in one line."""
    from pydantic import ValidationError

    if "name" not in section:
        raise AligngapError(f"task.name: missing; known tasks: {', '.join(registry.names('tasks'))}")
    maker = registry.get("tasks", str(section["name"]))
    try:
        return maker(**{k: v for k, v in section.items() if k != "name"})
    except ValidationError as error:
        raise AligngapError(explain(error, prefix="task.")) from error


def explain(error: Any, prefix: str = "") -> str:
    """The first complaint of a pydantic ValidationError as one line: key, what is wrong, what was given."""
    first = error.errors(include_url=False)[0]
    where = prefix + ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "unknown key"
    given = first.get("input")
    shown = f" (given: {given!r})" if isinstance(given, str | int | float | bool) else ""
    more = f" [and {error.error_count() - 1} more]" if error.error_count() > 1 else ""
    return f"{where.rstrip('.') or 'study'}: {message}{shown}{more}"


# --------------------------------------------------------------------------------------------------------- training


class Sft(Step):
    """Fine-tune on both responses of every pair: wide coverage of the data, not quality (arXiv 2405.08448, 4.1)."""

    kind: Literal["sft"] = "sft"
    data: Data
    model: ModelSpec
    optimization: Optimization
    limits: Limits
    seed: int

    def run(self, ctx: Context) -> dict[str, Any]:
        import torch

        from .batch import Ids, collate
        from .fit import Trainer
        from .policy import Policy, build_model
        from .streams import Epochs
        from .training import train

        tokenizer = ctx.tokenizer(self.data, self.model)
        model = build_model(self.model, tokenizer, derive(self.seed, "initialisation"))
        policy = Policy(model, tokenizer, response_tokens=self.limits.response_tokens).to(ctx.device)
        policy.check_head()
        examples, held_out = (
            [
                (policy.encode_prompt(p.prompt.text), policy.encode_response(r.text, r.ended))
                for p in pairs
                for r in (p.chosen, p.rejected)
            ]
            for pairs in (self.data.pairs(ctx, "train"), self.data.pairs(ctx, "test")[:256])
        )
        mean_length = sum(len(r) for _, r in examples) / len(examples)

        def objective(items: Sequence[tuple[Ids, Ids]]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            logps = policy.logps(collate([p for p, _ in items], [r for _, r in items]))
            return -logps / mean_length, {}  # nats per token of an average response

        trainer = Trainer(policy.model, self.optimization, self.seed)
        outcome = train(ctx, trainer, Epochs(examples, derive(self.seed, "sft order")), objective)
        if outcome != "ok":
            raise AligngapError(f"sft: {outcome}; lower sft.learning_rate")
        policy.save(ctx.work / "policy")
        nll = -policy.logps_of([p for p, _ in held_out], [r for _, r in held_out]).sum()
        tokens = sum(len(r) for _, r in held_out)
        return {"held_out_nats_per_token": float(nll) / tokens, "parameters": policy.model.num_parameters()}

    def units(self) -> float:
        return 3.0 * self.optimization.steps * self.optimization.batch


class OracleJudge(Settings):
    """The task's own true preference, where it has one."""

    kind: Literal["oracle"] = "oracle"
    task: dict[str, Any]
    seed: int


class FitJudge(Step):
    """Train a pairwise preference model on the rater's labels (golden) or on a relabelled set (proxy)."""

    kind: Literal["judge"] = "judge"
    data: Data
    labels: Relabel | None = None
    backbone: Sft
    spec: JudgeSpec
    seed: int

    def run(self, ctx: Context) -> dict[str, Any]:
        from dataclasses import replace

        import numpy as np

        from .fit import Trainer
        from .judges.preference_model import PreferenceModel, Shown
        from .policy import load_model
        from .streams import Epochs
        from .training import train

        source = self.labels or self.data
        pairs, held_out = source.pairs(ctx, "train"), source.pairs(ctx, "test")
        if self.spec.labels is not None:
            keep = np.random.default_rng(derive(self.seed, "labels")).permutation(len(pairs))[: self.spec.labels]
            pairs = [pairs[int(i)] for i in sorted(keep)]
        folder = ctx.path(self.backbone) / "policy"
        model = load_model(folder, self.backbone.model.dropout)
        tokenizer = ctx.tokenizer(self.data, self.backbone.model)
        judge = PreferenceModel(model, tokenizer, key=self.name, seed=derive(self.seed, "head")).to(ctx.device)
        swaps = np.random.default_rng(derive(self.seed, "shown order"))

        def shown(p: Pair, swap: bool) -> Shown:
            prompt = judge.encode_prompt(p.prompt.text)
            a, b = (judge.encode_response(r.text, r.ended) for r in (p.chosen, p.rejected))
            return Shown(prompt, b, a, 1.0 - p.p_chosen) if swap else Shown(prompt, a, b, p.p_chosen)

        # Each pair in both orders: over epochs the order is random and balanced, Eq. 5's two halves.
        items = [shown(p, bool(s)) for p in pairs for s in swaps.permutation([False, True])]
        trainer = Trainer(judge.module, self.spec.optimization, self.seed)
        outcome = train(ctx, trainer, Epochs(items, derive(self.seed, "judge order")), judge.objective)
        if outcome != "ok":
            raise AligngapError(f"preference model: {outcome}; lower its learning_rate")
        judge.save(ctx.work / "model")
        hard = [replace(p) for p in held_out if p.p_chosen != 0.5]
        judged = judge.judge([p.prompt for p in hard], [p.chosen for p in hard], [p.rejected for p in hard])
        return {
            "held_out_accuracy": float(judged.hard.mean()), "held_out_pairs": len(hard), "training_pairs": len(pairs),
            "first_position_share": float(((judged.forward > 0.5).mean() + (judged.backward > 0.5).mean()) / 2),
        }  # fmt: skip

    def units(self) -> float:
        return 3.0 * self.spec.optimization.steps * self.spec.optimization.batch


class Relabel(Step):
    """The task's pairs as a judge orders them (both orders, ties kept), with the reference's log-probabilities."""

    kind: Literal["relabel"] = "relabel"
    data: Data
    judge: FitJudge | OracleJudge
    reference: Sft
    soft: bool = False

    def run(self, ctx: Context) -> dict[str, Any]:
        from .streams import label
        from .tables import write_pairs

        judge = ctx.judge(self.judge)
        reference = ctx.policy(self.reference)
        about: dict[str, Any] = {}
        for number, split in enumerate(("train", "test")):
            given = self.data.pairs(ctx, split)
            ctx.progress(number, 2, split)
            pairs = label(
                [p.prompt for p in given], [p.chosen for p in given], [p.rejected for p in given], judge,
                writer="data", soft=self.soft,
            )  # fmt: skip
            pairs = ctx.with_stored_reference(reference, pairs)
            write_pairs(ctx.work / f"{split}.parquet", pairs)
            agree = sum(p.chosen.ids == g.chosen.ids for p, g in zip(pairs, given, strict=True))
            ties = sum(p.judged_forward == p.judged_backward for p in pairs)
            about[split] = {"pairs": len(pairs), "ties": ties, "agreement_with_rater": agree / len(pairs)}
        return about

    def pairs(self, ctx: Context, split: str) -> list[Pair]:
        return stored_pairs(ctx, self, split)

    def units(self) -> float:
        return 2.0e4


class Written(Step):
    """A fixed set of pairs written once: to each training prompt one response by each of two writers, judged."""

    kind: Literal["written"] = "written"
    data: Data
    writers: list[Sft | Align]
    at: list[int | None]
    judge: FitJudge | OracleJudge
    reference: Sft
    soft: bool = False
    seed: int

    def run(self, ctx: Context) -> dict[str, Any]:
        from .streams import label
        from .tables import write_pairs

        prompts = [p.prompt for p in self.data.pairs(ctx, "train")]
        sides = []
        for number, (writer, step) in enumerate(zip(self.writers, self.at, strict=True)):
            ctx.progress(number, 4, "sampling")
            answers = ctx.policy(writer, step).sample(prompts, 1, derive(self.seed, "writer", number))
            sides.append([a[0] for a in answers])
        names = " vs ".join(
            w.name + (f"@step{s}" if s is not None else "") for w, s in zip(self.writers, self.at, strict=True)
        )
        pairs = label(prompts, sides[0], sides[1], ctx.judge(self.judge), writer=names, soft=self.soft)
        write_pairs(ctx.work / "train.parquet", ctx.with_stored_reference(ctx.policy(self.reference), pairs))
        first = sum(p.chosen is a for p, a in zip(pairs, sides[0], strict=True))
        return {
            "pairs": len(pairs),
            "first_writer_wins": first / len(pairs),
            "ties": sum(p.p_chosen == 0.5 for p in pairs),
        }

    def pairs(self, ctx: Context, split: str) -> list[Pair]:
        return stored_pairs(ctx, self, split)

    def units(self) -> float:
        return 4.0e4


def stored_pairs(ctx: Context, step: Step, split: str) -> list[Pair]:
    """The pairs a step has written, read once per process."""
    from .tables import read_pairs

    found: list[Pair] = ctx.cached((step.name, "pairs", split), lambda: read_pairs(ctx.path(step) / f"{split}.parquet"))
    return found


class Source(Settings):
    """An arm's stream and the artifacts it draws on: the one thing in which two arms of a study differ."""

    arm: Arm
    judge: FitJudge | OracleJudge | None = None
    dataset: Relabel | Written | None = None
    recording: Align | None = None
    mixed: list[Source] = Field(default_factory=list)

    def stream(self, ctx: Context, data: Data, seed: int) -> PairStream:
        """Build the stream; at equal seeds, every stream that draws from the data does so in the same order."""
        from .streams import Dataset, Mixture, OnPolicy, Relabelled, Replay

        arm = self.arm
        if self.mixed:
            first, second = (s.stream(ctx, data, derive(seed, "mixed", i)) for i, s in enumerate(self.mixed))
            return Mixture(first, second, share=arm.share, seed=seed)
        if self.recording is not None:
            pairs, width = self.recording.recorded(ctx), self.recording.optimization.batch
            replay = Replay(pairs, order=arm.order, batch=width, seed=seed)
            return Relabelled(replay, ctx.judge(self.judge), soft_labels=arm.soft_labels) if self.judge else replay
        if self.dataset is not None:
            return Dataset(self.dataset.pairs(ctx, "train"), seed)
        assert self.judge is not None  # `Arm` has checked it
        prompts = [p.prompt for p in data.pairs(ctx, "train")]
        judge = ctx.judge(self.judge)
        return OnPolicy(prompts, judge, seed=seed, sync_every=arm.sync_every, soft_labels=arm.soft_labels)

    @property
    def samples(self) -> bool:
        return self.arm.behavior == "policy" or any(s.samples for s in self.mixed)


class Align(Step):
    """One run: a policy starts at the SFT policy and is fitted on its arm's stream, recorded pair by pair."""

    kind: Literal["align"] = "align"
    data: Data
    sft: Sft
    source: Source
    loss: LossSpec
    optimization: Optimization
    checkpoints: list[int]
    limits: Limits
    seed: int

    @property
    def label(self) -> str:
        return f"align ({self.source.arm.behavior})"

    @property
    def measured_steps(self) -> list[int]:
        last = self.optimization.steps
        return [*(s for s in self.checkpoints if s < last), last]

    def run(self, ctx: Context) -> dict[str, Any]:
        from .fit import Trainer, pair_objective, with_reference
        from .training import train

        reference = ctx.policy(self.sft)
        policy = reference.copy(key=f"{self.name}@step0")
        stream = self.source.stream(ctx, self.data, derive(self.seed, "data order"))
        trainer = Trainer(policy.model, self.optimization, self.seed)
        measured = set(self.measured_steps)

        def after(step: int) -> None:
            policy.key = f"{self.name}@step{step}"
            if step in measured:
                policy.save(ctx.work / "checkpoints" / f"step-{step:06d}")

        def prepare(pairs: Sequence[Pair]) -> list[Pair]:
            return with_reference(reference, pairs)

        objective = pair_objective(policy, build_loss(self.loss))
        outcome = train(
            ctx, trainer, stream, objective, sampler=policy, prepare=prepare, after=after, record_pairs=True
        )
        return {"outcome": outcome, "last_step": trainer.step}

    def recorded(self, ctx: Context) -> list[Pair]:
        from .tables import read_pairs

        return read_pairs(ctx.path(self) / "recording.parquet")

    def checkpoint(self, ctx: Context, step: int) -> Path:
        return ctx.path(self) / "checkpoints" / f"step-{step:06d}"

    def units(self) -> float:
        sampled = 2.0 if self.source.samples else 0.0
        return (6.0 + 3.0 * sampled) * self.optimization.steps * self.optimization.batch


def build_loss(spec: LossSpec) -> Any:
    """The loss a study names, with its hyper-parameters; a wrong one is refused in one line."""
    from pydantic import TypeAdapter, ValidationError

    maker = registry.get("losses", spec.name)
    known = getattr(maker, "__dataclass_fields__", {})
    types = get_type_hints(maker)
    for option, value in spec.options.items():
        if option not in known:
            hint = registry.did_you_mean(option, known)
            raise AligngapError(f"recipe.loss.{option}: not a setting of `{spec.name}`{hint}")
        try:
            TypeAdapter(types[option]).validate_python(value, strict=True)
        except ValidationError as error:
            what = error.errors(include_url=False)[0]["msg"]
            raise AligngapError(f"recipe.loss.{option}: {what} (given: {value!r})") from error
    return maker(**spec.options)


# ------------------------------------------------------------------------------------------------------ measurement


class Responses(Step):
    """One response to each measured prompt by a finished policy: an opponent, sampled once for the whole study."""

    kind: Literal["responses"] = "responses"
    data: Data
    policy: Sft | Align
    measurement: MeasurementSpec
    limits: Limits
    seed: int

    @cached_property
    def configuration(self) -> Any:
        m = self.measurement
        own = {"prompts": m.prompts, "split": m.split, "limits": self.limits.model_dump(), "seed": self.seed}
        return own | {"policy": self.policy.name}  # the rest of the measurement does not change a response

    def run(self, ctx: Context) -> dict[str, Any]:
        from .tables import write_rows

        prompts = self.data.prompts(ctx, self.measurement.split, self.measurement.prompts)
        policy = ctx.policy(self.policy)
        answers = policy.sample(prompts, 1, derive(self.seed, "opponent", self.policy.name))
        rows = [
            {"prompt_id": p.id, "ids": list(r[0].ids), "ended": r[0].ended, "text": r[0].text}
            for p, r in zip(prompts, answers, strict=True)
        ]
        write_rows(ctx.work / "responses.parquet", rows)
        return {"prompts": len(rows)}

    def read(self, ctx: Context) -> list[Response]:
        from .tables import read_rows

        rows = read_rows(ctx.path(self) / "responses.parquet")
        return [Response(tuple(r["ids"]), bool(r["ended"]), r["text"]) for r in rows]


class Measure(Step):
    """Measure a run's checkpoints (or the SFT policy: `run=None`, step 0) against every opponent."""

    kind: Literal["measure"] = "measure"
    data: Data
    sft: Sft
    run_: Align | None = None
    golden: FitJudge
    proxy: FitJudge
    oracle: OracleJudge | None = None
    held_out: Relabel
    reference_samples: Responses
    opponents: dict[str, Responses]
    measurement: MeasurementSpec
    seed: int

    @cached_property
    def configuration(self) -> Any:
        found = _plain(self, {})
        for name in ("best_of_n", "best_of_n_prompts"):  # another step's settings
            del found["measurement"][name]
        return found

    @property
    def label(self) -> str:
        return f"measure ({self.run_.source.arm.behavior})" if self.run_ else "measure (sft)"

    def run(self, ctx: Context) -> dict[str, Any]:
        from .measure import measure
        from .tables import write_rows

        m = self.measurement
        prompts = self.data.prompts(ctx, m.split, m.prompts)
        against = opponents_of(ctx, self.opponents, self.held_out, m, prompts)
        judges = {"golden": ctx.judge(self.golden), "proxy": ctx.judge(self.proxy)}
        if self.oracle is not None:
            judges["oracle"] = ctx.judge(self.oracle)
        reference = ctx.policy(self.sft)
        sft_samples = self.reference_samples.read(ctx)[: m.kl_prompts]
        steps = [0] if self.run_ is None else self.run_.measured_steps
        done = []
        for number, step in enumerate(steps):
            ctx.progress(number, len(steps), f"step {step}")
            part = ctx.work / f"measured-{step:06d}.json"
            if not part.exists():
                if self.run_ is not None and not self.run_.checkpoint(ctx, step).exists():
                    continue  # the run diverged before this step; its manifest says so
                policy = reference if self.run_ is None else ctx.policy(self.run_, step)
                result = measure(
                    policy, reference, prompts=prompts, opponents=against, judges=judges,
                    held_out=self.held_out.pairs(ctx, "test")[: m.pairs], reference_samples=sft_samples,
                    seed=derive(self.seed, "measurement"), samples=m.samples, batch=m.batch,
                )  # fmt: skip
                ctx.write_json(part, {"rows": result.rows, "per_prompt": result.per_prompt, "samples": result.samples})
            done.append(step)
        for table in ("rows", "per_prompt", "samples"):
            rows: list[dict[str, Any]] = []
            for step in done:
                read = json.loads((ctx.work / f"measured-{step:06d}.json").read_text())[table]
                rows.extend({"step": step, **row} for row in read)
            if rows:
                write_rows(ctx.work / f"{table}.parquet", rows)
        for step in done:
            (ctx.work / f"measured-{step:06d}.json").unlink()
        return {"steps": done}

    def units(self) -> float:
        checkpoints = 1 if self.run_ is None else len(self.run_.measured_steps)
        return checkpoints * self.measurement.prompts * 12.0


class BestOfN(Step):
    """The reference that needs no training: best-of-n of the SFT policy as the proxy ranks it."""

    kind: Literal["best-of-n"] = "best-of-n"
    data: Data
    sft: Sft
    golden: FitJudge
    proxy: FitJudge
    opponents: dict[str, Responses]
    labelled: Relabel
    measurement: MeasurementSpec
    seed: int

    @cached_property
    def configuration(self) -> Any:
        m = self.measurement
        kept = {"n": m.best_of_n, "prompts": m.best_of_n_prompts, "of": m.prompts, "split": m.split}
        return _plain(self, {}) | {"measurement": kept | {"opponents": list(m.opponents)}}

    def run(self, ctx: Context) -> dict[str, Any]:
        from .best_of_n import best_of_n
        from .tables import write_rows

        m = self.measurement
        prompts = self.data.prompts(ctx, m.split, m.prompts)
        against = opponents_of(ctx, self.opponents, self.labelled, m, prompts)
        prompts = prompts[: m.best_of_n_prompts]
        rows = best_of_n(
            ctx.policy(self.sft), ctx.judge(self.proxy), ctx.judge(self.golden), prompts,
            [type(o)(o.name, o.responses[: len(prompts)]) for o in against], n=m.best_of_n, seed=self.seed,
        )  # fmt: skip
        write_rows(ctx.work / "best_of_n.parquet", rows)
        return {"prompts": len(prompts), "n": m.best_of_n}

    def units(self) -> float:
        return 4.0e4


def opponents_of(
    ctx: Context, sampled: dict[str, Responses], labelled: Relabel, m: MeasurementSpec, prompts: Sequence[Prompt]
) -> list[Opponent]:
    """The opponents and their responses to the measured prompts, one each."""
    from .measure import Opponent

    against = [Opponent(name, responses.read(ctx)) for name, responses in sampled.items()]
    if "chosen" in m.opponents:
        # The golden winner of each prompt's first pair: data responses as an opponent.
        best = {p.prompt.id: p.chosen for p in reversed(labelled.pairs(ctx, m.split))}
        against.append(Opponent("chosen", [best[p.id] for p in prompts]))
    return against


for _step in (FitJudge, Relabel, Written, Source, Align, Responses, Measure, BestOfN):
    _step.model_rebuild()

KINDS: tuple[type[Step], ...] = (Data, Sft, FitJudge, Relabel, Written, Align, Responses, Measure, BestOfN)
STEPS: dict[str, type[Step]] = {s.model_fields["kind"].default: s for s in KINDS}


def step_from_json(text: str) -> Step:
    """The inverse of `step.model_dump_json()`, for a worker process."""
    raw = json.loads(text)
    return STEPS[raw["kind"]].model_validate(raw)
