"""What a study may say: every setting with its default, in one place, unknown keys forbidden. No torch.

YAML and `--set key=value` are two spellings of these classes. Defaults are the paper's where it states one.
"""

from aligngap.settings.arms import Arm, Sweep, Variant
from aligngap.settings.base import NAME, Settings, explain
from aligngap.settings.models import Limits, LoraSpec, ModelSpec, TokenizerSpec
from aligngap.settings.recipe import (
    HeadStartSpec,
    JudgeSpec,
    LossSpec,
    Optimization,
    Recipe,
    ReferenceSpec,
    RetrainSpec,
    RolloutSpec,
)
from aligngap.settings.study import MeasurementSpec, Study

__all__ = [
    "NAME",
    "Arm",
    "HeadStartSpec",
    "JudgeSpec",
    "Limits",
    "LoraSpec",
    "LossSpec",
    "MeasurementSpec",
    "ModelSpec",
    "Optimization",
    "Recipe",
    "ReferenceSpec",
    "RetrainSpec",
    "RolloutSpec",
    "Settings",
    "Study",
    "Sweep",
    "TokenizerSpec",
    "Variant",
    "explain",
]
