"""A study is loaded: found by name or path, parsed, and refused in one line where it cannot work.

Leaves out which runs and steps it needs (`pipeline/plan.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from aligngap import registry
from aligngap.judges.kinds import LearningKind
from aligngap.settings import Arm, Study
from aligngap.streams import order_of
from aligngap.study.build import asks, build_judge, build_loss, build_task, has_oracle, needs_probabilities
from aligngap.study.variants import apply_variant, grid_of
from aligngap.study.yaml_file import apply_override, parse_study, read_study, resolve_extends
from aligngap.types import AligngapError


def load(name: str, overrides: Sequence[str] = ()) -> Study:
    """A study by packaged name or YAML path, with `--set key=value` overrides; one clear error, or a valid study."""
    raw = resolve_extends(read_study(name), name)
    for override in overrides:
        apply_override(raw, override)
    return validate(raw, name)


def validate(raw: Mapping[str, Any], name: str) -> Study:
    """The study that nested keys and values say, parsed and checked; errors begin with `name`."""
    study = parse_study(raw, name)
    try:
        check(study)
    except AligngapError as error:
        raise AligngapError(f"{name}: {error}") from error
    return study


def check(study: Study) -> None:
    """Refuse a study whose names, arms, loss, judges or task cannot work together, without any compute."""
    check_names(study)
    check_ages(study, study.arms)
    check_labels(study, study.arms, "arms")
    check_grids(study, study.arms, "")
    for grid in study.sweep:
        if "beta" in grid.axes and "beta" not in study.recipe.loss.options:
            raise AligngapError(f"sweep: axis `beta`, but recipe.loss `{study.recipe.loss.name}` sets no beta")
    for name, variant in study.variants.items():
        its = apply_variant(study, name)
        try:
            check_names(its)
            check_ages(its, variant.arms or study.arms)
        except AligngapError as error:
            raise AligngapError(f"variants.{name}: {error}") from error
        check_labels(its, variant.arms or study.arms, f"variants.{name}")
        check_grids(its, variant.arms or study.arms, name)


def check_names(study: Study) -> None:
    """Refuse a loss, judge, task, engine or order that is not known, or whose settings are wrong."""
    build_loss(study.recipe.loss)
    if asks(study, "batch") and study.recipe.optimization.micro_batch is not None:
        name = study.recipe.correction.name if study.recipe.correction is not None else study.recipe.loss.name
        raise AligngapError(f"recipe.optimization.micro_batch: `{name}` reads a batch as a whole; leave it out")
    if asks(study, "writer"):
        for arm, spec in study.arms.items():
            if spec.mix_reference:
                what = "mixes the reference into each token, and its pairs have no writer's log-probabilities"
                raise AligngapError(f"arms.{arm}.mix_reference: {what} to correct for; leave one of them out")
    known = registry.names("rollouts")
    if study.recipe.rollouts.engine not in known:
        hint = registry.did_you_mean(study.recipe.rollouts.engine, known)
        raise AligngapError(f"recipe.rollouts.engine: no `{study.recipe.rollouts.engine}`{hint}")
    for role in ("golden", "proxy"):
        build_judge(getattr(study, role), role)
    for arm in study.arms:
        for _, loss, _ in grid_of(study, arm):
            build_loss(loss)
    task = build_task(study.task)
    for arm, spec in study.arms.items():
        if spec.judge == "oracle" and not has_oracle(task):
            raise AligngapError(f"arms.{arm}.judge: task `{study.task['name']}` has no oracle; use golden or proxy")
        try:
            order_of(spec.order, 1, 0, 1)
        except AligngapError as error:
            raise AligngapError(f"arms.{arm}.order: {error}") from error


def check_ages(study: Study, arms: Iterable[str]) -> None:
    """Refuse an arm whose pairs would be older than the shortest of its runs is long."""
    for arm in (a for a in arms if a in study.arms):
        spec, steps = study.arms[arm], min(how.steps for _, _, how in grid_of(study, arm))
        for name in ("buffer", "lag", "freeze_writer_at"):
            value = getattr(spec, name) or 0
            most = steps if name == "buffer" else steps - 1
            if value > most:
                raise AligngapError(f"arms.{arm}.{name}: {value} is beyond a run of {steps} steps; at most {most}")
        if spec.retrain is not None:
            if spec.retrain.every >= steps:
                raise AligngapError(f"arms.{arm}.retrain.every: {spec.retrain.every} is beyond a run of {steps} steps")
            if not isinstance(build_judge(study.proxy, "proxy"), LearningKind):
                raise AligngapError(f"arms.{arm}.retrain: a proxy of kind `{study.proxy.kind}` does not learn")


def check_labels(study: Study, arms: Iterable[str], where: str) -> None:
    """Refuse arms with hard labels under a loss that reads probabilities."""

    def soft(arm: Arm) -> bool:
        if arm.mix is not None:
            return all(soft(study.arms[part]) for part in arm.mix)
        return soft(study.arms[arm.of]) if arm.of is not None and arm.judge is None else arm.soft_labels

    for arm in arms if needs_probabilities(study) else ():
        if arm in study.arms and not soft(study.arms[arm]):
            loss = study.recipe.loss.name
            raise AligngapError(f"{where}: loss `{loss}` reads probabilities, so arm `{arm}` needs `soft_labels: true`")


def check_grids(study: Study, arms: Iterable[str], variant: str) -> None:
    """Refuse two compared arms with different grids where no sweep of theirs says why."""
    a, b = study.compare
    if a not in arms or b not in arms:
        return
    ran = {arm: {config for config, _, _ in grid_of(study, arm)} for arm in (a, b)}
    if ran[a] == ran[b] or any(g.why for g in study.sweep if {a, b} & set(g.arms)):
        return
    under = f" under variant `{variant}`" if variant else ""
    raise AligngapError(
        f"sweep: `{a}` runs {len(ran[a])} configuration(s) and `{b}` {len(ran[b])}, not the same ones{under}: give "
        "both arms the same grid, or say in the sweep's `why` why they differ"
    )
