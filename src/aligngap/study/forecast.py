"""The forecast of a study: what is run before any online run, to say how far ahead online will be.

Online's first-order twin is the online arm with every pair written by the policy that it starts from (`sync_every` the
whole run) and labelled by its own judge: to first order in the distance from the reference it is the online run. Twin
and offline arm are run at the study's own loss, betas, learning rates and labels, and measured against the SFT policy
alone. Leaves out: reading the forecast off the records, which `hypotheses/forecast.py` does.
"""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from aligngap.settings import Arm, Study, explain
from aligngap.types import AligngapError

#: the arm that stands for the online one
TWIN = "twin"
#: samples of the SFT policy to a prompt below which rho is not worth measuring
LEAST_SAMPLES = 16


def twin_of(arm: Arm, steps: int) -> Arm:
    """The first-order twin of an online arm: all pairs of a run of `steps` are written by the policy it starts from."""
    return arm.model_copy(update={"sync_every": steps})


def forecast_study(study: Study, steps: int | None = None) -> Study:
    """The study that forecasts another's gap, its runs cut to `steps` (a quarter of the study's where not given)."""
    online, offline = study.compare
    first, second = study.arms[online], study.arms[offline]
    if first.behavior != "policy":
        raise AligngapError(f"forecast: `{online}` does not learn from what its policy writes: `compare` must name an "
                            "online arm first")  # fmt: skip
    if second.behavior not in ("dataset", "responses") or any(w != "sft" for w in second.writers or ()):
        raise AligngapError(
            f"forecast: `{offline}` must learn from the data or from what the SFT policy wrote, so that nothing else "
            "is run before it"
        )
    if study.recipe.start != "sft":
        raise AligngapError("forecast: `recipe.start` must be sft: the forecast is about the first steps from there")
    whole = study.recipe.optimization.steps
    length = max(1, whole // 4) if steps is None else steps
    if not 1 <= length <= whole:
        raise AligngapError(f"forecast: --steps is {length}: must lie between 1 and the study's own {whole}")
    raw: dict[str, Any] = study.model_dump(exclude_unset=True)
    raw |= {
        "name": f"{study.name}-forecast",
        "question": f"Before any online run: how far will {online} be ahead of {offline}?",
        "arms": {TWIN: twin_of(first, length).model_dump(exclude_defaults=True), offline: raw["arms"][offline]},
        "compare": [TWIN, offline],
        "sweep": [grid for grid in (_renamed(g, online, offline) for g in raw.get("sweep", [])) if grid],
        "variants": _varied(study, online, offline), "primary": [], "probe": 0, "decision_kl": None,
        "decision_margin": None,
    }  # fmt: skip
    raw["recipe"]["optimization"]["steps"] = length
    own = study.measurement
    raw["measurement"] = raw.get("measurement", {}) | {
        "opponents": ["sft"], "best_of_n": 0, "reference_samples": max(own.reference_samples, LEAST_SAMPLES),
    }  # fmt: skip
    try:
        return Study.model_validate(raw)
    except ValidationError as error:
        raise AligngapError(f"forecast of {study.name}: {explain(error)}") from error


def _varied(study: Study, online: str, offline: str) -> dict[str, Any]:
    """The study's variants that run one of the two arms, with the twin in the place of the online one."""
    names = {online: TWIN, offline: offline}
    ran = {name: study.arms if v.arms is None else v.arms for name, v in study.variants.items()}
    kept = {name: [names[a] for a in arms if a in names] for name, arms in ran.items()}
    return {name: {"set": study.variants[name].set, "arms": arms} for name, arms in kept.items() if arms}


def _renamed(grid: dict[str, Any], online: str, offline: str) -> dict[str, Any] | None:
    """A grid with the twin in the place of the online arm and no axis of steps; None if it sweeps neither arm."""
    names = {online: TWIN, offline: offline}
    arms = [names[a] for a in grid["arms"] if a in names]
    axes = {name: values for name, values in grid["axes"].items() if name != "steps"}
    return {**grid, "arms": arms, "axes": axes} if arms and axes else None
