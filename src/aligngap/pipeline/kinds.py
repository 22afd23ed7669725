"""The kinds of step by name: what a worker process needs to rebuild a step from its JSON text."""

from __future__ import annotations

import json

from aligngap.pipeline.align import Align, Written
from aligngap.pipeline.base import Step
from aligngap.pipeline.best_of_n import BestOfN
from aligngap.pipeline.checkpoints import AskJudge, PromptSet, ReadPolicy
from aligngap.pipeline.crossed import CrossJudge
from aligngap.pipeline.data import Data
from aligngap.pipeline.drawn import DrawReference, JudgeReference, ReadRatios
from aligngap.pipeline.judges import FitJudge, ReadyJudge, Relabel
from aligngap.pipeline.measure import Measure, Responses
from aligngap.pipeline.probe import JudgesProbe, Probe
from aligngap.pipeline.reference import ReferenceSamples
from aligngap.pipeline.sft import Sft
from aligngap.pipeline.teaching import HeadStart

KINDS: tuple[type[Step], ...] = (
    Data, Sft, HeadStart, FitJudge, ReadyJudge, Relabel, Written, Align, Responses, ReferenceSamples, Measure,
    BestOfN, CrossJudge, Probe, JudgesProbe, PromptSet, ReadPolicy, AskJudge,
    DrawReference, JudgeReference, ReadRatios,
)  # fmt: skip
STEPS: dict[str, type[Step]] = {s.model_fields["kind"].default: s for s in KINDS}


def step_from_json(text: str) -> Step:
    """The step that `step.model_dump_json()` wrote."""
    raw = json.loads(text)
    return STEPS[raw["kind"]].model_validate(raw)
