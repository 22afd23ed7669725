"""A callback that measures a TRL or transformers trainer's policy while it trains, as a study's own runs are measured.

    trainer = DPOTrainer(model, args=args, train_dataset=pairs, eval_dataset=held_out)
    trainer.add_callback(FrontierCallback(trainer, "out/mine", prompts, ["my_rewards:prefer"], arm="offline"))
    trainer.train()

At each evaluation, or every so many steps, it adds a row to the record tables of the folder and tells the trainer's own
trackers `kl_nats`, `win_rate` and what stands beside them. `aligngap report out/mine` draws every run that wrote there
on one chart, at equal KL. The reference is the trainer's: its reference model; a PEFT model without its adapter; else a
copy of the policy as it is when the callback is made. The model that trains is viewed and left as it is, its random
numbers too.

Needs transformers; TRL is not imported, so any of its trainers will do that trains a language model. Of several
processes the first one measures, while the others wait. Sharded weights (FSDP, ZeRO-3) are refused.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from aligngap.instrument import Gauge, add_rows
from aligngap.instrument.rows import REFERENCE, Against, check_arm, rows_of
from aligngap.types import AligngapError, RunFailed, first_line

if TYPE_CHECKING:
    from aligngap.measurement import Measured

#: columns of the records that trackers are told
TOLD = (
    "kl_nats", "kl_nats_se", "forward_kl_nats", "win_rate", "win_rate_se", "proxy_win_rate", "length_tokens", "unended",
)  # fmt: skip
logger = logging.getLogger(__name__)


class FrontierCallback(TrainerCallback):
    """A callback adds rows to the record tables in `out` while a trainer trains, and tells its trackers.

    `prompts`: texts, lists of messages, or a file of them. `judges`: none (KL alone), one, or two, as a `Gauge` takes
    them; win rates are against the reference's responses. `arm` names the line of the chart, for instance `offline`;
    runs of one `arm` and `config` are told apart by `seed`, by default the trainer's. `config` is by default its beta
    and learning rate: arms are compared where they share one. `every` measures each so many optimiser steps, or at
    the given steps; by default at each evaluation. The first and the last step are always measured. `compare` names the
    two arms that the report is about, by default the first two that wrote into the folder.
    `reference` stands in the place of the trainer's; further `settings` are those of `Gauge`, such as `count` (prompts,
    256), `response_tokens` (128) and `samples`.

    Bad input is refused when the callback is made. What goes wrong later, such as a judge that does not answer, is told
    as a warning, the KL is kept and the training goes on.
    """

    def __init__(
        self,
        trainer: Any,
        out: str | Path,
        prompts: str | Path | Sequence[Any],
        judges: Sequence[Any] = (),
        *,
        arm: str,
        study: str = "trl",
        seed: int | None = None,
        config: str | None = None,
        every: int | Sequence[int] | None = None,
        compare: tuple[str, str] | None = None,
        reference: Any = None,
        **settings: Any,
    ) -> None:
        args = trainer.args
        self.trainer, self.out = trainer, Path(out)
        check(trainer, every)
        self.every, self.compare = every, compare
        beta, loss = (_first(getattr(args, name, default)) for name, default in (("beta", np.nan), ("loss_type", "")))
        self.of_run = {
            "study": study, "arm": check_arm(arm), "seed": int(args.seed if seed is None else seed),
            "config": f"beta={beta:g} learning_rate={args.learning_rate:g}" if config is None else config,
            "loss": str(loss), "beta": float(beta), "learning_rate": float(args.learning_rate),
        }  # fmt: skip
        self.last = -1
        self.gauge: Gauge | None = None
        if trainer.accelerator.is_main_process:
            own = reference if reference is not None else reference_of(trainer)
            tokenizer = getattr(trainer.processing_class, "tokenizer", trainer.processing_class)
            self.gauge = Gauge(own, prompts, judges, tokenizer=tokenizer, **settings)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._measure(state)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        step = state.global_step
        due = self.every is not None and (step % self.every == 0 if isinstance(self.every, int) else step in self.every)
        if due:
            self._measure(state)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.every is None:
            told, metrics = self._measure(state), kwargs.get("metrics")
            if metrics is not None:  # where `metric_for_best_model` is looked up
                metrics.update({f"eval_{name}": value for name, value in told.items()})

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._measure(state)

    def _measure(self, state: TrainerState) -> dict[str, float]:
        """Measure the policy as it is now, once a step; what trackers were told, the same in every process."""
        if state.global_step == self.last:
            return {}
        self.last = state.global_step
        told: dict[str, float] = {}
        try:
            if self.gauge is not None:
                told = self._write(self.gauge, state.global_step)
        finally:
            told = _from_first(self.trainer, told)
        if told:
            pending = self.trainer.control.should_log
            Trainer.log(self.trainer, dict(told))  # TRL's own `log` would empty its running means
            self.trainer.control.should_log = pending  # a log of this step that the trainer has yet to write
        return told

    def _write(self, gauge: Gauge, step: int) -> dict[str, float]:
        try:
            policy = self.trainer.accelerator.unwrap_model(self.trainer.model)
            reading = gauge.read(policy)
            measured: Measured
            try:
                measured = gauge.judged(reading, gauge.moved(policy))
            except (AligngapError, RunFailed) as error:
                logger.warning("aligngap: step %d is not judged: %s", step, first_line(error))
                measured = rows_of(reading, gauge.prompts, {REFERENCE: Against(gauge.start, {})}, gauge.samples)
            add_rows(self.out, measured, compare=self.compare, step=step, **self.of_run, **counts(self.trainer, step))
        except (AligngapError, RunFailed, OSError) as error:
            logger.warning("aligngap: step %d is not measured: %s", step, first_line(error))
            return {}
        row = measured.rows[0]
        return {name: float(row[name]) for name in TOLD if np.isfinite(row[name])}


def check(trainer: Any, every: int | Sequence[int] | None) -> None:
    """AligngapError where the trainer never evaluates, or holds only a part of its weights."""
    if every is None and any(kind.__name__ == "OnlineDPOTrainer" for kind in type(trainer).__mro__):
        raise AligngapError(
            "FrontierCallback: TRL's OnlineDPOTrainer ends with an error where it evaluates; leave eval_strategy at "
            "`no`, and give `every`"
        )
    if every is None and str(getattr(trainer.args.eval_strategy, "value", trainer.args.eval_strategy)) == "no":
        raise AligngapError("FrontierCallback: the trainer never evaluates; set eval_strategy, or give `every`")
    if isinstance(every, int) and every < 1:
        raise AligngapError(f"FrontierCallback: every={every}: must be 1 or more")
    plugin = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
    if getattr(trainer, "is_fsdp_enabled", False) or (plugin is not None and plugin.zero_stage == 3):
        raise AligngapError(
            "FrontierCallback: each process holds a part of the weights (FSDP, ZeRO-3); save checkpoints and measure "
            "them with `aligngap measure`"
        )


def reference_of(trainer: Any) -> Any:
    """The reference of a trainer's loss, as a model in memory that stays as it is."""
    from aligngap.models.checkpoint import base_of, view

    unwrap = trainer.accelerator.unwrap_model
    model, own = unwrap(trainer.model), getattr(trainer, "ref_model", None)
    if own is not None:
        moves = getattr(trainer.args, "sync_ref_model", False)
        return copy.deepcopy(view(unwrap(own))) if moves else unwrap(own)
    if hasattr(model, "peft_config") and "ref" not in model.peft_config:
        return base_of(model)
    return copy.deepcopy(view(model))  # an adapter that TRL goes on training (its copy `ref`), or no reference at all


def counts(trainer: Any, step: int) -> dict[str, int]:
    """Pairs that a trainer has seen by a step, distinct ones, and responses that it has sampled."""
    args = trainer.args
    seen = step * args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    responses = int(getattr(trainer, "num_generations", 0)) * seen
    try:
        rows = len(trainer.train_dataset)
    except TypeError:  # an iterable one
        rows = seen
    return {
        "pairs_seen": seen,
        "pairs_distinct": seen if responses else min(seen, rows),
        "responses_sampled": responses,
    }


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list | tuple) and value else value


def _from_first(trainer: Any, told: dict[str, float]) -> dict[str, float]:
    """What the first process has, in every process; the others wait for it."""
    if trainer.accelerator.num_processes == 1:
        return told
    from accelerate.utils import broadcast_object_list

    box = [told]
    broadcast_object_list(box)
    return box[0]
