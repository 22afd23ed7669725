"""The steps of a study: from data and judges to runs, measurements and probes.

A step is its configuration and the steps it needs, nested; its key is the hash of both, so equal work is shared
between arms, sweeps and studies and is never done twice. `run` does the work inside a folder that the store hands out,
and can be killed anywhere: training goes on from the newest saved state, measurement from the next checkpoint.

Heavy libraries are imported where they are used, so that planning a study needs none of them.
"""

from __future__ import annotations

import json

from aligngap.steps.align import Align, Source, Written, build_loss
from aligngap.steps.base import Step
from aligngap.steps.data import Data, build_task, explain
from aligngap.steps.judges import FitJudge, OracleJudge, ReadyJudge, Relabel, Sft, build_judge, identity_of
from aligngap.steps.measure import BestOfN, Measure, Responses
from aligngap.steps.probe import JudgesProbe, Probe

for _step in (FitJudge, ReadyJudge, Relabel, Written, Source, Align, Responses, Measure, BestOfN, Probe, JudgesProbe):
    _step.model_rebuild()

KINDS: tuple[type[Step], ...] = (
    Data, Sft, FitJudge, ReadyJudge, Relabel, Written, Align, Responses, Measure, BestOfN, Probe, JudgesProbe,
)  # fmt: skip
STEPS: dict[str, type[Step]] = {s.model_fields["kind"].default: s for s in KINDS}


def step_from_json(text: str) -> Step:
    """The inverse of `step.model_dump_json()`, for a worker process."""
    raw = json.loads(text)
    return STEPS[raw["kind"]].model_validate(raw)


__all__ = [
    "KINDS",
    "STEPS",
    "Align",
    "BestOfN",
    "Data",
    "FitJudge",
    "JudgesProbe",
    "Measure",
    "OracleJudge",
    "Probe",
    "ReadyJudge",
    "Relabel",
    "Responses",
    "Sft",
    "Source",
    "Step",
    "Written",
    "build_judge",
    "build_loss",
    "build_task",
    "explain",
    "identity_of",
    "step_from_json",
]  # fmt: skip
