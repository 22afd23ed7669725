"""How long a step may take: a rough count of work, calibrated on one machine class, for `plan` and the ETA only."""

from __future__ import annotations

from .steps import Align, FitJudge, Measure, Relabel, Responses, Sft, Step


def seconds_of(step: Step) -> float:
    """Seconds of one core for the small models of the sandbox; only ratios matter to the ETA."""
    if isinstance(step, Sft | FitJudge | Align):
        return step.units() * 2.2e-4 + 5.0
    if isinstance(step, Measure):
        return step.units() * 5e-4 + 5.0
    if isinstance(step, Relabel):
        return 20.0
    return 5.0 if isinstance(step, Responses) else 10.0
