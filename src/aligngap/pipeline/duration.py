"""How long a step may take, for `plan` and the ETA: its work counted, on one core of the machine calibrated on.

A step's `units` are forward passes of one response; a unit costs what the sandbox's model took, times how much larger
this model and these lengths are: parameters that a token passes through, times tokens at the study's limits.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from aligngap.models.pretrained import PACKAGE, inside_package
from aligngap.pipeline.align import Align, Written
from aligngap.pipeline.base import Step
from aligngap.pipeline.best_of_n import BestOfN
from aligngap.pipeline.crossed import CrossJudge
from aligngap.pipeline.data import Data
from aligngap.pipeline.judges import FitJudge, Relabel
from aligngap.pipeline.measure import Measure
from aligngap.pipeline.probe import JudgesProbe, Probe
from aligngap.pipeline.reference import ReferenceSamples
from aligngap.pipeline.sft import Sft
from aligngap.pipeline.teaching import HeadStart
from aligngap.settings import Limits, ModelSpec
from aligngap.types import AligngapError

#: Seconds of one core per unit of work, from the manifests (`cpu_seconds`) of studies in the sandbox.
SECONDS_PER_UNIT: dict[type[Step], float] = {
    Sft: 1.8e-4, HeadStart: 2.8e-4, FitJudge: 2.8e-4, Relabel: 0.9e-3, Written: 1.6e-3, Measure: 3.4e-4,
    BestOfN: 2.0e-4, Probe: 2.0e-4, JudgesProbe: 3.0e-4, ReferenceSamples: 2.0e-4, CrossJudge: 3.4e-4,
}  # fmt: skip
#: the same per pair of the data: to write them, and for the first steps that read them
PER_PAIR: dict[type[Step], float] = {Data: 1.5e-4, Sft: 1.8e-4, FitJudge: 1.8e-4}
#: the same of a run: per unit, and per optimiser step of any model; for one that writes pairs, and one that only reads
WRITES, READS = (2.1e-4, 0.04), (1.35e-4, 0.006)
START = 0.7  #: seconds to load what a step draws on
#: Products per pass of one pair of prompt and response through the sandbox's model, at its limits of 16 and 16 tokens.
SANDBOX = 5.8e6
BYTES_PER_PARAMETER = 0.6  #: of a GGUF file of 4 bits and their scales


def seconds_of(step: Step, counted: Mapping[str, float] | None = None) -> float:
    """Seconds of one core; a model that is not on this machine (`unsized`) is taken to be as small as the sandbox's.

    `counted` says how many pairs the finished data steps hold, by their names; of the others the study says about.
    """
    data = data_of(step)
    pairs = (counted or {}).get(data.name, data.expected) if data else 0.0
    start = START + PER_PAIR.get(type(step), 0.0) * pairs
    if isinstance(step, Align):
        per_unit, per_step = WRITES if step.source.sampled else READS
        start += per_step * step.optimization.steps
    elif type(step) in SECONDS_PER_UNIT:
        per_unit = SECONDS_PER_UNIT[type(step)]
    else:
        return start
    assert data is not None  # every step that works on a model reads data
    model, units = model_of(step), pairs if isinstance(step, Relabel | Written) else step.units()
    products = model and products_of(model, data.limits)
    return start + units * per_unit * (products / SANDBOX if products else 1.0)


def data_of(step: Step) -> Data | None:
    """The data that a step works on, or is."""
    return next((s for s in step.walk() if isinstance(s, Data)), None)


def unsized(steps: Iterable[Step]) -> list[str]:
    """The models whose sizes cannot be read here, so that their steps' time is not known."""
    models = (model_of(step) for step in steps)
    return sorted({m.path for m in models if m and m.path and products_of(m, Limits()) is None})


def model_of(step: Step) -> ModelSpec | None:
    """The model whose passes take the time: the judge's where a step trains or asks one, the policy's elsewhere."""
    if isinstance(step, FitJudge | HeadStart):
        return step.backbone.model
    if isinstance(step, Relabel):
        return step.judge.backbone.model if isinstance(step.judge, FitJudge) else None
    if isinstance(step, Written):
        return step.reference.model
    return next((s.model for s in step.walk() if isinstance(s, Sft)), None)


def products_of(model: ModelSpec, limits: Limits) -> float | None:
    """Multiplications of one forward pass over a prompt and a response at their limits, attention's scores left out."""
    if model.path is None:
        sizes = model.config
    elif (found := sizes_at(model.path)) is None:
        return None
    elif isinstance(found, float):
        return found * (limits.prompt_tokens + limits.response_tokens)
    else:
        sizes = found
    width = named(sizes, ("d_model", "hidden_size", "n_embd"), 512)
    inner = named(sizes, ("d_ff", "intermediate_size", "n_inner"), 4 * width)
    layers = named(sizes, ("num_layers", "num_hidden_layers", "n_layer"), 6)
    head = width * named(sizes, ("vocab_size",), 2048) * limits.response_tokens
    t5 = "num_decoder_layers" in sizes or sizes.get("model_type", model.model_type) == "t5"
    gated = "gated" in str(sizes.get("feed_forward_proj", "")) if t5 else "n_embd" not in sizes
    feed_forward = (3 if gated else 2) * width * inner
    reads = layers * (4 * width**2 + feed_forward)
    writes = named(sizes, ("num_decoder_layers",), layers) * (8 * width**2 + feed_forward) if t5 else reads
    return reads * limits.prompt_tokens + writes * limits.response_tokens + head


@cache  # every step of a plan asks
def sizes_at(path: str) -> dict[str, Any] | float | None:
    """The configuration of a pretrained model, or of a GGUF file about how many parameters it has; None: not here."""
    try:
        found = inside_package(path) if path.startswith(PACKAGE) else Path(path).expanduser()
    except AligngapError:
        return None
    if found.suffix == ".gguf":
        return found.stat().st_size / BYTES_PER_PARAMETER if found.is_file() else None
    try:
        sizes = json.loads((found / "config.json").read_text())
    except (OSError, ValueError):
        return None
    return sizes if isinstance(sizes, dict) else None


def named(sizes: dict[str, Any], names: tuple[str, ...], default: float) -> float:
    """The first of the names that the configuration has as a number; families spell the same size differently."""
    return next((float(sizes[n]) for n in names if isinstance(sizes.get(n), int | float)), float(default))
