"""From readings and wins to rows of the record tables: the same columns as a study's, and added to a folder's tables.

The first judge fills the columns of the golden judge, the second those of the proxy; the reference is the opponent
`sft`. What a study knows and a measurement of other people's checkpoints does not (labels of held-out pairs, pairs
seen) is nan or 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import yaml

from aligngap.stats.budgets import BUDGETS
from aligngap.storage import records
from aligngap.storage.columns import PER_PROMPT_COLUMNS, RECORD_COLUMNS, SAMPLE_COLUMNS
from aligngap.storage.files import write_text
from aligngap.storage.listing import STUDY, writing
from aligngap.storage.reuse import keep_ratings
from aligngap.types import AligngapError, Estimate, Prompt

if TYPE_CHECKING:
    from aligngap.measurement import Measured, ReferenceSet
    from aligngap.pipeline.checkpoints import Reading

REFERENCE = "sft"  #: what the reference is called as an opponent
NAN = float("nan")
#: columns of records that say which run and step a row is of, and not what was measured
OF_RUN = (
    "study", "arm", "run", "config", "seed", "loss", "beta", "learning_rate", "step", "pairs_seen", "pairs_distinct",
    "responses_sampled", "flops", "outcome",
)  # fmt: skip


@dataclass(frozen=True)
class Against:
    """An opponent's reading, and by judge (`golden`, `proxy`) the wins [P] against it; a judge that is not there yet,
    or that nobody named, is left out."""

    reading: Reading
    wins: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Moved:
    """A policy on the reference's own samples: log-ratios [K, r] in nats, and the samples with their win rates."""

    log_ratios: np.ndarray
    reference: ReferenceSet


def rows_of(
    reading: Reading,
    prompts: Sequence[Prompt],
    against: Mapping[str, Against],
    samples: int = 8,
    moved: Moved | None = None,
) -> Measured:
    """The rows of one checkpoint, one an opponent, with standard errors over prompts; and texts of a few prompts.

    `moved` is what rho, ceiling and efficiency stand on; without it they are nan.
    """
    from aligngap.measurement import Measured, quantities

    own, tokens, ratios = reading, reading.tokens, reading.logp - reading.ref_logp
    common = dict.fromkeys((name for name in RECORD_COLUMNS if name not in OF_RUN), NAN)
    common |= {
        **_both("kl_nats", own.kl),
        "kl_k1_nats": float(np.mean(ratios)),
        **_both("forward_kl_nats", own.forward),
        "prompts": len(prompts), "ties": 0, "accuracy_pairs": 0,
        "length_tokens": float(tokens.mean()),
        "entropy_nats": float(own.entropy.sum() / tokens.sum()),
        "unended": float(np.mean([not r.ended for r in own.responses])),
    }  # fmt: skip
    rows, per_prompt = [], []
    for name, other in against.items():
        nobody = np.full(len(prompts), NAN)
        golden, proxy = (other.wins.get(who, nobody) for who in ("golden", "proxy"))
        lengths = other.reading.tokens
        rows.append(common | {
            "opponent": name, **_both("win_rate", golden), **_both("proxy_win_rate", proxy),
            "ties": int((golden == 0.5).sum()), "opponent_length_tokens": float(lengths.mean()),
            "proxy_agreement": float(np.mean(golden == proxy)) if {"golden", "proxy"} <= set(other.wins) else NAN,
        })  # fmt: skip
        if name == REFERENCE and "golden" in other.wins:
            more = (None, None) if moved is None else (moved.log_ratios, moved.reference)
            rows[-1] |= quantities(other.wins, float(own.kl.mean()), ratios, *more)
        told = dict.fromkeys((n for n in PER_PROMPT_COLUMNS if n not in ("run", "arm", "seed", "step")), NAN)
        for i, p in enumerate(prompts):
            row = told | {
                "opponent": name, "prompt_id": p.id, "win": float(golden[i]), "proxy_win": float(proxy[i]),
                "kl_nats": float(own.kl[i]), "length_tokens": int(tokens[i]),
                "opponent_length_tokens": int(lengths[i]), "log_ratio": float(ratios[i]),
            }  # fmt: skip
            per_prompt.append({n: row[n] for n in told})
    text = [
        {"prompt_id": p.id, "prompt": p.text, "response": r.text, "ended": r.ended}
        for p, r in list(zip(prompts, own.responses, strict=True))[:samples]
    ]
    return Measured(rows, per_prompt, text)


def _both(name: str, values: np.ndarray) -> dict[str, float]:
    e = Estimate.mean(values)
    return {name: e.value, f"{name}_se": e.se}


@dataclass(frozen=True)
class OfRun:
    """Which checkpoint of which run rows are of; what is not known of its training stays nan or 0."""

    study: str
    arm: str
    seed: int
    step: int
    config: str = ""
    loss: str = ""
    beta: float = NAN
    learning_rate: float = NAN
    pairs_seen: int = 0
    pairs_distinct: int = 0
    responses_sampled: int = 0
    flops: float = NAN
    outcome: str = "ok"

    @property
    def run(self) -> str:
        """The run's name: arm, hyper-parameters, seed, as in a study."""
        return " ".join(part for part in (self.arm, self.config, f"seed={self.seed}") if part)


@dataclass(frozen=True)
class Frames:
    """The three record tables of some checkpoints."""

    records: pd.DataFrame
    per_prompt: pd.DataFrame
    samples: pd.DataFrame


TABLES = {
    "records": (records.RECORDS, RECORD_COLUMNS),
    "per_prompt": (records.PER_PROMPT, PER_PROMPT_COLUMNS),
    "samples": (records.SAMPLES, SAMPLE_COLUMNS),
}


def frames_of(found: Sequence[tuple[OfRun, Measured]]) -> Frames:
    """The tables of measured checkpoints, under the declared columns."""
    made: dict[str, list[dict[str, Any]]] = {name: [] for name in TABLES}
    for of, measured in found:
        about = {name: getattr(of, name) for name in OF_RUN}
        short = {name: about[name] for name in ("run", "arm", "seed", "step")}
        made["records"] += [row | about for row in measured.rows]
        made["per_prompt"] += [row | short for row in measured.per_prompt]
        made["samples"] += [row | short for row in measured.samples]
    return Frames(**{n: pd.DataFrame(rows, columns=list(TABLES[n][1])) for n, rows in made.items()})


def write_frames(out: Path, frames: Frames) -> None:
    """Write the tables of a folder, each whole or not at all."""
    for name, (file, columns) in reversed(TABLES.items()):  # the records last: what they name lies there
        records.write_table(out / file, getattr(frames, name), columns)


def add_rows(out: Path | str, measured: Measured, *, compare: tuple[str, str] | None = None, **of: Any) -> None:
    """Add one checkpoint's rows to the tables of the folder `out`; what it held of the same run and step is replaced.

    `of` are the fields of `OfRun`: study, arm, seed and step, and what is known of the run beside. The folder's
    `study.yaml` names the arms seen so far, so that `aligngap report` draws them; `compare` names the two that the
    report is about, by default the first two. Several processes may add to one folder. What was changed in it stays
    told as changed.
    """
    place = Path(out)
    place.mkdir(parents=True, exist_ok=True)
    run = OfRun(**of)
    new = frames_of([(run, measured)])
    files = [file for file, _ in TABLES.values()]
    with writing(place, [STUDY, *files], moves=[records.RATINGS], onto=files, what=f"{run.run}@{run.step}"):
        old = _read(place)
        kept = {}
        for name in TABLES:
            before, after = getattr(old, name), getattr(new, name)
            if len(before):
                before = before[(before["run"] != run.run) | (before["step"] != run.step)]
            kept[name] = pd.concat([before, after], ignore_index=True) if len(before) else after
        keep_ratings(place, kept["samples"])
        write_frames(place, Frames(**kept))
        arms = list(dict.fromkeys(kept["records"]["arm"]))
        write_text(place / STUDY, study_text(run.study, arms, compare), durable=True)


def _read(out: Path) -> Frames:
    if not (out / records.RECORDS).exists():
        return Frames(*(records.empty(columns) for _, columns in TABLES.values()))
    found = records.read_folder(out)
    return Frames(found.records, found.per_prompt, found.samples)


def study_text(study: str, arms: Sequence[str], compare: Sequence[str] | None = None, **more: Any) -> str:
    """The `study.yaml` that a report of measured checkpoints reads: arms, the two compared, KL budgets."""
    two = list(compare or arms[:2])
    if len(two) == 1:
        two = [two[0], two[0]]
    about = {
        "name": study,
        "question": "At the same KL from the reference, how do these policies compare?",
        "arms": {arm: {"behavior": "given"} for arm in arms},
        "compare": two,
        "budgets": list(BUDGETS),
        **more,
    }
    return str(yaml.safe_dump(about, sort_keys=False, allow_unicode=True))


def check_arm(name: str) -> str:
    """The name of an arm, refused where tables and figures could not hold it."""
    from aligngap.settings import NAME

    if not NAME.fullmatch(name):
        raise AligngapError(f"`{name}`: a policy's name is a letter or digit, then also blanks and . _ + = -")
    return name
