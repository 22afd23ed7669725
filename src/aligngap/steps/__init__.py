"""The steps of a study: Data, Sft, FitJudge, Relabel, Written, Align, Responses, Measure, BestOfN, Probe.

A step is its configuration and the steps it needs, nested; its key is the hash of both, so equal work is shared
between arms, sweeps and studies and is never done twice. `run` does the work inside a folder that the store hands out,
and can be killed anywhere: training goes on from the newest saved state, measurement from the next checkpoint.

Heavy libraries are imported where they are used, so that planning a study needs none of them.
"""

from __future__ import annotations

import json

from .align import Align, Source, Written, build_loss
from .base import Step
from .data import Data, build_task, explain
from .judges import FitJudge, OracleJudge, Relabel, Sft
from .measure import BestOfN, Measure, Responses
from .probe import Probe

for _step in (FitJudge, Relabel, Written, Source, Align, Responses, Measure, BestOfN, Probe):
    _step.model_rebuild()

KINDS: tuple[type[Step], ...] = (Data, Sft, FitJudge, Relabel, Written, Align, Responses, Measure, BestOfN, Probe)
STEPS: dict[str, type[Step]] = {s.model_fields["kind"].default: s for s in KINDS}


def step_from_json(text: str) -> Step:
    """The inverse of `step.model_dump_json()`, for a worker process."""
    raw = json.loads(text)
    return STEPS[raw["kind"]].model_validate(raw)


__all__ = [
    "KINDS", "STEPS", "Align", "BestOfN", "Data", "FitJudge", "Measure", "OracleJudge", "Probe", "Relabel", "Responses",
    "Sft", "Source", "Step", "Written", "build_loss", "build_task", "explain", "step_from_json",
]  # fmt: skip
