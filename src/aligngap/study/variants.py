"""The runs of a study's arms: each point of a sweep, each variant, and in which settings two arms differ."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from aligngap import registry
from aligngap.settings import Study
from aligngap.study.yaml_file import parse_study, set_value
from aligngap.types import AligngapError


def grid_of(study: Study, arm: str) -> Iterator[tuple[str, Any, Any]]:
    """(config, loss, optimization) of each run of an arm: the recipe, or the recipe at each point of its sweep."""
    grid = next((g for g in study.sweep if arm in g.arms), None)
    axes: dict[str, list[float]] = {**grid.axes} if grid else {}  # type: ignore[dict-item]
    if "beta" not in study.recipe.loss.options:
        axes.pop("beta", None)  # under a variant whose loss has none
    for point in itertools.product(*axes.values()):
        values = dict(zip(axes, point, strict=True))
        loss, how = study.recipe.loss, study.recipe.optimization
        if "beta" in values:
            loss = type(loss).model_validate({"name": loss.name, **loss.options, "beta": values["beta"]})
        if "learning_rate" in values:
            how = how.model_copy(update={"learning_rate": values["learning_rate"]})
        if "steps" in values:
            how = how.model_copy(update={"steps": int(values["steps"])})
        beta = f"beta={loss.options['beta']:g} " if "beta" in loss.options else ""
        steps = f" steps={how.steps}" if "steps" in values else ""
        yield f"{beta}learning_rate={how.learning_rate:g}{steps}", loss, how


def apply_variant(study: Study, name: str) -> Study:
    """The study under one of its variants."""
    raw = study.model_dump(mode="json", exclude={"variants"}, exclude_unset=True)
    for key, value in study.variants[name].set.items():
        if key.split(".")[0] in ("arms", "sweep", "measurement", "seeds", "name", "variants", "compare"):
            raise AligngapError(
                f"variants.{name}: `{key}` may not vary: arms, sweep and measurement are the study's own"
            )
        set_value(raw, key, value, f"variants.{name}")
    if study.sweep:
        raw["sweep"] = [
            {**grid, "arms": arms} for grid, arms in zip(raw["sweep"], arms_per_grid(study, name), strict=True)
        ]
    return parse_study(raw, f"variants.{name}")


def arms_per_grid(study: Study, variant: str) -> list[list[str]]:
    """Per grid the arms it holds for under a variant: those it names as "ARM[VARIANT]", and the bare ones that no grid
    names so."""
    end = f"[{variant}]"
    named = {arm.removesuffix(end) for grid in study.sweep for arm in grid.arms if arm.endswith(end)}
    return [
        [a.removesuffix(end) for a in grid.arms if a.endswith(end) or ("[" not in a and a not in named)]
        for grid in study.sweep
    ]


def diff_arms(study: Study, left: str, right: str) -> list[tuple[str, str, str]]:
    """(setting, left, right) wherever two arms differ; in one study by construction only in stream and sweep.

    A side may be "ARM[VARIANT]"; then what the variants set is compared as well, under its dotted key.
    """
    sides = [parse_side(study, side) for side in (left, right)]
    rows: list[tuple[str, str, str]] = []

    def compare(key: str, values: Sequence[str]) -> None:
        if values[0] != values[1]:
            rows.append((key, values[0], values[1]))

    arms = [its.arms[arm].model_dump() for its, arm, _ in sides]
    for key in arms[0]:
        compare(key, [str(a[key]) for a in arms])
    compare("sweep", [", ".join(config for config, _, _ in grid_of(its, arm)) for its, arm, _ in sides])
    for key in dict.fromkeys(k for _, _, variant in sides if variant for k in study.variants[variant].set):
        compare(key, [str(value_at(its, key)) for its, _, _ in sides])
    return rows


def parse_side(study: Study, name: str) -> tuple[Study, str, str]:
    """The study an arm is run under, the arm, and the variant ("" for the study as it stands)."""
    arm, bracket, variant = name.partition("[")
    variant = variant.removesuffix("]")
    if arm not in study.arms:
        raise AligngapError(f"no arm `{arm}`{registry.did_you_mean(arm, study.arms)}")
    if not bracket:
        return study, arm, ""
    if variant not in study.variants:
        raise AligngapError(f"no variant `{variant}`{registry.did_you_mean(variant, study.variants)}")
    if arm not in (study.variants[variant].arms or study.arms):
        raise AligngapError(f"arm `{arm}` is not run under variant `{variant}`")
    return apply_variant(study, variant), arm, variant


def value_at(study: Study, key: str) -> Any:
    """The value of a dotted key of a study; None where a section is not there."""
    value: Any = study.model_dump(mode="json")
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value
