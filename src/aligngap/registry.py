"""Names to objects, lazily: one line here makes a loss, judge, task or hypothesis usable by name in a study.

Other packages add theirs through the entry-point group `aligngap.<shelf>`, for instance `aligngap.losses`.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import sys
from collections.abc import Callable
from functools import cache
from importlib.metadata import EntryPoints, entry_points
from typing import Any

from aligngap.source import source_hash, use
from aligngap.types import AligngapError

SHELVES: dict[str, dict[str, str]] = {
    "losses": {
        "ipo": "aligngap.losses:IPO",
        "dpo": "aligngap.losses:DPO",
        "slic": "aligngap.losses:SLiC",
        "gpo": "aligngap.losses:GPO",
        "chi-po": "aligngap.losses:ChiPO",
        "best-of-two": "aligngap.losses:BestOfTwo",
        "rloo": "aligngap.losses:RLOO",
        "squared-po": "aligngap.losses:SquaredPO",
        "grpo": "aligngap.losses:GRPO",
    },
    "corrections": {
        "importance": "aligngap.corrections:Importance",
        "perceptual": "aligngap.corrections:Perceptual",
        "proximal": "aligngap.corrections:Proximal",
        "second-moment": "aligngap.corrections:SecondMoment",
    },
    "tasks": {
        "sandbox": "aligngap.tasks.sandbox:Sandbox",
        "pairs": "aligngap.tasks.pairs:PairsTask",
        "tldr": "aligngap.tasks.tldr:TldrTask",
        "helpful": "aligngap.tasks.hh:HelpfulTask",
        "harmless": "aligngap.tasks.hh:HarmlessTask",
        "arena": "aligngap.tasks.arena:ArenaTask",
    },
    "judges": {
        "pairwise": "aligngap.judges.kinds:Pairwise",
        "bradley-terry": "aligngap.judges.kinds:BradleyTerry",
        "local": "aligngap.judges.kinds:Local",
        "reward-model": "aligngap.judges.kinds:RewardModel",
        "function": "aligngap.judges.function:FunctionJudge",
        "endpoint": "aligngap.judges.endpoint:Endpoint",
        "oracle": "aligngap.judges.oracle:SandboxOracle",
    },
    "behaviors": {
        "policy": "aligngap.streams:OnPolicy",
        "dataset": "aligngap.streams:Dataset",
        "recording": "aligngap.streams:Replay",
        "responses": "aligngap.streams:Dataset",
        "mixture": "aligngap.streams:Mixture",
    },
    "rollouts": {
        "transformers": "aligngap.models.rollout:Transformers",
        "vllm": "aligngap.models.vllm:Vllm",
    },
    "hypotheses": {
        "opening": "aligngap.hypotheses.opening:OPENING",
        "coverage": "aligngap.hypotheses.coverage:COVERAGE",
        "quality": "aligngap.hypotheses.quality:QUALITY",
        "classification": "aligngap.hypotheses.classification:CLASSIFICATION",
        "pointwise": "aligngap.hypotheses.pointwise:POINTWISE_PROXY",
        "noncontrastive": "aligngap.hypotheses.noncontrastive:NONCONTRASTIVE",
        "scaling": "aligngap.hypotheses.scaling:SCALING",
        "which-data": "aligngap.hypotheses.which_data:WHICH_DATA",
        "staleness": "aligngap.hypotheses.staleness:STALENESS",
        "stale": "aligngap.hypotheses.stale:STALE",
        "bottleneck": "aligngap.hypotheses.bottleneck:BOTTLENECK",
        "proxy-dial": "aligngap.hypotheses.proxy_dial:PROXY_DIAL",
        "losses": "aligngap.hypotheses.losses:LOSSES",
        "geometry": "aligngap.hypotheses.geometry:GEOMETRY",
        "judge-dial": "aligngap.hypotheses.judge_dial:JUDGE_DIAL",
        "step-size": "aligngap.hypotheses.step_size:STEP_SIZE",
        "over-optimisation": "aligngap.hypotheses.over_optimisation:OVER_OPTIMISATION",
        "forecast": "aligngap.hypotheses.forecast:FORECAST",
        "epochs": "aligngap.hypotheses.few_labels:EPOCHS",
        "few-labels": "aligngap.hypotheses.few_labels:FEW_LABELS",
    },
}


def names(shelf: str) -> dict[str, str]:
    """Every registered name of a shelf with its "module:object", plug-ins included."""
    if shelf not in SHELVES:
        raise AligngapError(f"no shelf `{shelf}`{did_you_mean(shelf, SHELVES)}")
    found = dict(SHELVES[shelf])
    for name, value in _declared(f"aligngap.{shelf}", entry_points, tuple(sys.path)):
        found.setdefault(name, value)
    return found


@cache
def _declared(group: str, find: Callable[..., EntryPoints], path: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """What installed packages declare under a group, looked up once a process: it reads every package on the path."""
    return tuple((entry.name, entry.value) for entry in find(group=group))


def get(shelf: str, name: str) -> Any:
    """The registered object, imported now. An unknown name says what was meant."""
    found = names(shelf)
    if name not in found:
        own = "; one of your own is named by an entry point of its package (docs/adding.md)" if ":" in name else ""
        raise AligngapError(f"{shelf}: no `{name}`{did_you_mean(name, found)}{own}")
    return _imported(shelf, name, found[name])


def source_of(shelf: str, name: str) -> str:
    """The hash of an object that is not aligngap's own: its source, as `source.source_hash` takes it, and which of it.

    20 hex digits, which change with every edit there; "" for an object of aligngap.
    """
    module, _, attribute = names(shelf).get(name, "").partition(":")
    if module.partition(".")[0] == "aligngap":  # and is not imported for it
        return ""
    source = source_hash({module, str(getattr(get(shelf, name), "__module__", ""))})
    return hashlib.sha256(f"{source} {attribute}".encode()).hexdigest()[:20] if source else ""


def use_source(code: str, *named: tuple[str, str]) -> None:
    """Import registered objects, each (shelf, name), and refuse them if their source is another than `code`.

    `code` is what `source_of` said of them, joined, when the step that uses them was planned.
    """
    if code:
        for shelf, name in named:
            get(shelf, name)
        what = ", ".join(f"{shelf}: `{name}`" for shelf, name in named if source_of(shelf, name))
        use(what, lambda: "".join(source_of(shelf, name) for shelf, name in named), code)


def every(shelf: str) -> list[Any]:
    """All registered objects of a shelf, imported now."""
    return [_imported(shelf, name, place) for name, place in names(shelf).items()]


def _imported(shelf: str, name: str, place: str) -> Any:
    module, _, attribute = place.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise AligngapError(f"{shelf}: `{name}` ({place}) cannot be imported: {error}") from error


def did_you_mean(name: str, known: Any) -> str:
    """The end of an error: "; did you mean `x`?" for the nearest known name, else the list of known names."""
    near = difflib.get_close_matches(str(name), list(known), n=1)
    return f"; did you mean `{near[0]}`?" if near else f"; known: {', '.join(known)}"
