"""Which checkpoints there are: `NAME=PATTERN` words become checkpoints with their run, seed and step, in order.

A pattern names folders (`*`, `?` and `[…]` as in a shell), a trainer's output folder (its `checkpoint-*`), or a hub
name (`OWNER/NAME`, with `@REVISION` if it is not the newest). The step is the number at the end of a checkpoint's name
(`checkpoint-500`, `step-000080`), else what its `trainer_state.json` says; a run is the folder around
its checkpoints. The seed is the number after the word `seed` in the run's path, and where none has it, runs are
numbered from 0 in natural order. What else differs between the names of a policy's runs is their configuration.
"""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from aligngap.instrument.rows import check_arm
from aligngap.types import AligngapError

STEP = re.compile(r"(?:checkpoint|ckpt|step|global_step|iter|epoch)[-_]?0*(\d+)(?:_hf)?", re.IGNORECASE)
SEED = re.compile(r"(?<![a-z])seed[-_=. ]?(\d+)", re.IGNORECASE)
WRITING = ("tmp-", ".")  #: how the names of folders begin that a trainer is still writing
HUB = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


@dataclass(frozen=True)
class Found:
    """One checkpoint: where it lies, and which step of which run it is."""

    path: str
    arm: str
    run: str  # the run's folder
    step: int
    seed: int = 0
    config: str = ""

    @property
    def name(self) -> str:
        """What it is called in a line: ARM CONFIG seed=N@STEP."""
        return " ".join(part for part in (self.arm, self.config, f"seed={self.seed}") if part) + f"@{self.step}"


def natural(text: str) -> list[tuple[int, int, str]]:
    """A key by which names sort as people count: checkpoint-90 before checkpoint-100."""
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in re.split(r"(\d+)", text) if p]


def find_checkpoints(words: Sequence[Sequence[str]], tell: Callable[[str], None] = lambda line: None) -> list[Found]:
    """The checkpoints of every policy, each list of words being NAME=PATTERN and further patterns of the same policy.

    A line is told of each folder that is passed over. Raises AligngapError where a pattern names nothing.
    """
    patterns: dict[str, list[str]] = {}
    for first, *more in words:
        name, equals, pattern = first.partition("=")
        if not equals or not pattern:
            raise AligngapError(f"--policy {first}: write NAME=CHECKPOINTS, as online=runs/online-seed*/checkpoint-*")
        patterns.setdefault(check_arm(name), []).extend([pattern, *more])
    return [found for arm, given in patterns.items() for found in _of_arm(arm, given, tell)]


def _of_arm(arm: str, patterns: Sequence[str], tell: Callable[[str], None]) -> list[Found]:
    found: list[Found] = []
    for pattern in patterns:
        matched = sorted(glob.glob(str(Path(pattern).expanduser())), key=natural)
        if not matched:
            if HUB.fullmatch(pattern) and not any(c in pattern for c in "*?["):
                found.append(Found(pattern, arm, pattern, 1))
                continue
            what = "names no folder; checkpoints are folders with a config.json"
            raise AligngapError(f"--policy {arm}={pattern}: {what}")
        for place in matched:
            found += _of_folder(arm, Path(place), tell)
    if not found:
        raise AligngapError(f"--policy {arm}: its folders hold no checkpoint yet; wait for the first one")
    return _distinct(_named(found))


def _of_folder(arm: str, folder: Path, tell: Callable[[str], None]) -> list[Found]:
    if not folder.is_dir():
        if folder.suffix == ".gguf":
            return [Found(str(folder), arm, str(folder.with_suffix("")), 1)]
        tell(f"{folder}: is no folder; passed over")
        return []
    if folder.name.startswith(WRITING):
        tell(f"{folder}: is being written; passed over")
        return []
    around = folder / "checkpoints" if (folder / "checkpoints").is_dir() else folder
    inside = sorted(around.iterdir(), key=lambda p: natural(p.name))
    whole = [p for p in inside if STEP.fullmatch(p.name) and p.is_dir() and _holds_model(p)]
    if whole and not (STEP.fullmatch(folder.name) and _holds_model(folder)):
        return [Found(str(p), arm, str(folder), _step(p)) for p in whole]
    named = STEP.fullmatch(folder.name)
    return [Found(str(folder), arm, str(folder.parent if named else folder), _step(folder))]


def _holds_model(folder: Path) -> bool:
    """Whether a folder looks like a checkpoint, and not like a part of one that DeepSpeed puts there."""
    return any((folder / name).is_file() for name in ("config.json", "adapter_config.json")) or any(
        folder.glob("*.safetensors")
    )


def _step(folder: Path) -> int:
    named = STEP.fullmatch(folder.name)
    if named:
        return int(named[1])
    try:
        said = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["global_step"]
        return int(said)
    except (OSError, ValueError, KeyError, TypeError):
        return 1


def _named(found: Sequence[Found]) -> list[Found]:
    """The checkpoints with the seed and the configuration of their runs."""
    runs = sorted(dict.fromkeys(f.run for f in found), key=natural)
    said = {run: SEED.findall(run) for run in runs}
    if all(said.values()):
        seeds = {run: int(numbers[-1]) for run, numbers in said.items()}
    else:
        seeds = {run: number for number, run in enumerate(runs)}
    words = {run: re.findall(r"[^-_ /\\]+", SEED.sub("", _last(run))) for run in runs}
    shared = set.intersection(*(set(w) for w in words.values()))
    config = {run: "-".join(w for w in words[run] if w not in shared) if all(said.values()) else "" for run in runs}
    return [replace(f, seed=seeds[f.run], config=config[f.run]) for f in found]


def _last(run: str) -> str:
    """The part of a run's path that names it: its folder, with the one above where the folder is only a seed."""
    place = Path(run)
    own = SEED.sub("", place.name).strip("-_ .")
    return place.name if own else f"{place.parent.name}/{place.name}"


def _distinct(found: Sequence[Found]) -> list[Found]:
    known: dict[tuple[str, int, int], Found] = {}
    for f in found:
        other = known.setdefault((f.config, f.seed, f.step), f)
        if other.path != f.path:
            raise AligngapError(
                f"--policy {f.arm}: {other.path} and {f.path} are both step {f.step} of seed {f.seed}; give each run a "
                "folder of its own, with seed0, seed1 … in its name"
            )
    return sorted(known.values(), key=lambda f: (f.config, f.seed, f.step))
