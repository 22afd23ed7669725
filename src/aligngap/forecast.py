"""How long a step may take: a rough count of work, calibrated on one machine class, for `plan` and the ETA only."""

from __future__ import annotations

from .steps import Align, BestOfN, FitJudge, JudgesProbe, Measure, Relabel, Sft, Step, Written

#: Seconds of one core per unit of work, from the manifests of one opening study in the sandbox on 2 quiet cores.
SECONDS_PER_UNIT: dict[type[Step], float] = {
    Sft: 1.5e-4, FitJudge: 2.4e-4, Relabel: 1.1e-3, Written: 1.1e-3, Measure: 3.0e-4, BestOfN: 5.0e-4,
    JudgesProbe: 1.5e-4,
}  # fmt: skip


def seconds_of(step: Step) -> float:
    """Seconds of one core for the small models of the sandbox; larger models take longer in all steps alike."""
    if isinstance(step, Align):
        return step.units() * (2.0e-4 if step.source.sampled else 1.2e-4)
    return step.units() * SECONDS_PER_UNIT[type(step)] if type(step) in SECONDS_PER_UNIT else 3.0
