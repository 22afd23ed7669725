"""From finished measurements to the record tables of an output folder."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import yaml

from aligngap.pipeline.base import Step
from aligngap.pipeline.measure import Measure
from aligngap.pipeline.plan import Plan, Run
from aligngap.storage import records
from aligngap.storage.columns import (
    BEST_OF_N_COLUMNS,
    CROSSED_COLUMNS,
    PER_PROMPT_COLUMNS,
    PROBE_COLUMNS,
    RECORD_COLUMNS,
    SAMPLE_COLUMNS,
)
from aligngap.storage.listing import PROVENANCE
from aligngap.storage.reuse import begin_folder, write_provenance, writing_records
from aligngap.storage.store import Store
from aligngap.types import Damaged

COUNTS = ("pairs_seen", "pairs_distinct", "responses_sampled")
#: columns of the records, from the log: over the steps since the checkpoint before, or at this step
SINCE = {"age": ("age", "mean"), "age_max": ("age_max", "max"), "lag_kl_nats": ("lag_kl_nats", "mean")}
SINCE |= {"trained_length_tokens": ("length_tokens", "mean")}
SO_FAR = ("dropped", "dropped_length_tokens")

KL_PER_TOKEN_NATS = 5.0  #: above it a policy writes what its reference hardly ever would (e^-5 a token): KL exploded
EMPTY_TOKENS = 1.5  #: mean length, EOS included, below which responses are empty, if the SFT policy's were twice that
ENDLESS = 0.95  #: share cut by the limit above which responses no longer end, if at most half of the SFT policy's were


def collect(plan: Plan, store: Store, out: Path, command: str = "") -> int:
    """Write the record tables, the resolved study and the provenance; returns the number of runs with measurements.

    The provenance keeps the `command` that made them. What is read of the store is held against its checksums: Damaged.

    Runs not measured yet are left out, and the provenance names them under `missing`; the SFT policy's measurement is
    the step 0 of every run that starts there.
    """
    tables: dict[str, list[pd.DataFrame]] = {"rows": [], "per_prompt": [], "samples": []}
    about: dict[str, Any] = {"pipeline": [], "runs": {}, "artifacts": {}}
    if command:
        about["command"] = command
    if plan.study.decision_margin is not None:
        about["costs"] = {}
    count = 0
    read = lru_cache(maxsize=16)(pd.read_parquet)  # very many runs have one start
    for run in plan.runs:
        start = plan.start[run.name]
        if not store.has(run.measure.name) or not store.has(start.name):
            continue
        count += 1
        result = store.manifest(run.align.name)["result"]
        outcome = result["outcome"]
        measured = (start.name, run.measure.name)
        if outcome == "ok" and all(store.holds(name, "rows.parquet") for name in measured):
            outcome = find_trouble(*(read(store.open(name, "rows.parquet")) for name in measured))
        about["runs"][run.name] = {"align": run.align.name, "measure": run.measure.name, "outcome": outcome}
        if "rollouts" in result:
            stated = {"tolerance_nats": run.align.rollouts.tolerance_nats}
            about["runs"][run.name]["rollouts"] = result["rollouts"] | stated
        log = pd.read_parquet(store.open(run.align.name, "log.parquet")).set_index("step")
        if "costs" in about:
            about["costs"][run.name] = count_generated(run, store, log, result)
        for source in [start.name, run.measure.name] if run.align.start is None else [run.measure.name]:
            for table, frames in tables.items():
                part = f"{table}.parquet"
                if holds_measured(store, source, table):
                    frame = read(store.open(source, part)).assign(arm=run.arm, run=run.name, seed=run.seed)
                    frames.append(add_run_columns(frame, run, plan, log, outcome) if table == "rows" else frame)
    if not count:
        return 0
    if count < len(plan.runs):
        about["missing"] = [run.name for run in plan.runs if run.name not in about["runs"]]
    best = [
        pd.read_parquet(store.open(s.name, "best_of_n.parquet")).assign(variant=variant)
        for (_, variant), s in plan.references.items()
        if store.has(s.name)
    ]
    probed = [*plan.probes.items(), *plan.judges_probes.items()]
    held = [(seed, store.open(s.name, "probe.parquet")) for seed, s in probed if store.has(s.name)]
    of = plan.study.compare[0]
    along = [pd.read_parquet(part).assign(seed=seed, recording=of) for seed, part in held]
    crossed = [
        pd.read_parquet(store.open(r.crossed.name, "crossed.parquet")).assign(run=r.name)
        for r in plan.runs
        if r.crossed is not None and store.has(r.crossed.name)
    ]
    asked: dict[str, Counter[str]] = {}
    for step in plan.steps():
        if store.has(step.name):
            manifest = store.manifest(step.name)
            about["artifacts"][step.name] = manifest["provenance"]
            for judge, counts in manifest["result"].get("judges", {}).items():
                asked.setdefault(judge, Counter()).update(counts)
    if asked:
        about["judges"] = asked
    about |= vouch(store, list(about["artifacts"]), out)
    shown: set[str] = set()
    for run in plan.runs:
        about["pipeline"] += describe_parts(run, plan.start[run.name], store, shown)
    columns = {"rows": RECORD_COLUMNS, "per_prompt": PER_PROMPT_COLUMNS, "samples": SAMPLE_COLUMNS}
    files = {"rows": records.RECORDS, "per_prompt": records.PER_PROMPT, "samples": records.SAMPLES}
    whole = {
        table: pd.concat(frames, ignore_index=True) if frames else records.empty(columns[table])
        for table, frames in tables.items()
    }
    resolved = yaml.safe_dump(plan.study.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    with writing_records(out):
        begin_folder(out, resolved, whole["samples"], (records.BEST_OF_N, records.PROBE, records.CROSSED))
        write_or_remove(out / records.BEST_OF_N, best, BEST_OF_N_COLUMNS)
        write_or_remove(out / records.PROBE, along, PROBE_COLUMNS)
        write_or_remove(out / records.CROSSED, crossed, CROSSED_COLUMNS)
        for table, frame in whole.items():
            records.write_table(out / files[table], frame[list(columns[table])], columns[table])
        write_provenance(out, about)
    return count


def vouch(store: Store, names: Sequence[str], out: Path) -> dict[str, Any]:
    """What a provenance says of how far artifacts can be believed, and of which content (hash) they are.

    An artifact that the records in `out` were made of before, and whose content was another, is told on stderr.
    """
    found: dict[str, Any] = {"contents": {name: store.content(name) for name in names}}
    if unvouched := store.unvouched(names):
        found["unvouched"] = unvouched
    if replaced := store.replaced(names):
        found["replaced"] = replaced
    before = contents_in(out)
    for name in sorted(found["contents"]):
        if before.get(name, found["contents"][name]) != found["contents"][name]:
            tell_other(store.path(name), out)
    return found


def contents_in(out: Path) -> dict[str, Any]:
    """The content of each artifact that the records in a folder were made of; {} where it is not said."""
    try:
        found = json.loads((out / PROVENANCE).read_bytes())["contents"]
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


@cache
def tell_other(artifact: Path, out: Path) -> None:
    """Say on stderr, once a process, that an artifact is another than when records were made of it."""
    what = f"holds other bytes than when the records in {out} were last written; they are of what it holds now"
    print(f"aligngap: {artifact}: {what}", file=sys.stderr, flush=True)


def holds_measured(store: Store, name: str, table: str) -> bool:
    """Whether a measurement has a table. Damaged if it says that it measured, and yet lists none."""
    if store.holds(name, f"{table}.parquet"):
        return True
    if table != "samples" and store.manifest(name)["result"].get("steps"):
        what = f"{table}.parquet is no part of it, though it says that it measured"
        raise Damaged(f"{store.path(name)}: {what}; remove this folder and repeat the command", name)
    return False


def write_or_remove(file: Path, frames: Sequence[pd.DataFrame], columns: records.Columns) -> None:
    """Write a table that not every study has; one of another study that lies there in its place is removed."""
    if frames:
        records.write_table(file, pd.concat(frames, ignore_index=True), columns)
    else:
        file.unlink(missing_ok=True)


def find_trouble(start: pd.DataFrame, rows: pd.DataFrame) -> str:
    """What a run's measurements say went wrong, with the first step at which they do, or "ok".

    `start` is the SFT policy's measurement. A run is judged after it ended: nothing here stops or repeats it.
    """
    columns = ["step", "kl_nats", "length_tokens", "unended"]
    _, _, length_before, unended_before = start[columns].to_numpy(np.float64)[0]
    for step, kl, length, unended in rows.sort_values("step")[columns].to_numpy(np.float64):
        told = []
        if not kl <= KL_PER_TOKEN_NATS * length:  # nan too
            told.append(f"KL exploded ({kl:.3g} nats over {length:.3g} tokens)")
        if length <= EMPTY_TOKENS and length_before >= 2 * EMPTY_TOKENS:
            told.append(f"responses are empty ({length:.3g} tokens on average, EOS included)")
        if unended >= ENDLESS and unended_before <= 0.5:
            told.append(f"responses no longer end ({unended:.0%} cut by the limit)")
        if told:
            return f"by step {step:.0f}: {', '.join(told)}"
    return "ok"


def count_generated(run: Run, store: Store, log: pd.DataFrame, result: dict[str, Any]) -> dict[str, Any]:
    """What a run generated for training: responses, tokens of those it trained on, seconds of writing and labelling."""
    writes = bool(run.align.source.sampled)
    tokens = 0
    if writes:
        sides = ["chosen_ids", "rejected_ids"]
        pairs = pq.read_table(store.open(run.align.name, "recording.parquet"), columns=[*sides, "writer"]).to_pandas()
        tokens = int(sum(pairs.loc[pairs["writer"] != "data", side].map(len).sum() for side in sides))
    responses = int(log["responses_sampled"].iloc[-1]) if len(log) else 0
    seconds = result.get("draw_seconds") if writes else 0.0  # None: made before draws were timed
    return {"arm": run.arm, "responses": responses, "tokens": tokens, "seconds": seconds}


def describe_parts(run: Run, start: Measure, store: Store, shown: set[str]) -> list[dict[str, Any]]:
    """What the steps before the arms found: rows kept and dropped, how well SFT and the judges learned.

    Each step is told once; one that a variant does not share is named as its arms are, "proxy judge[VARIANT]".
    """
    variant = run.arm.removeprefix(run.arm.partition("[")[0])
    steps = {
        "data": start.data, "SFT policy": start.sft, "golden judge": start.golden, "D_golden": start.held_out,
        "proxy judge": start.proxy,
    }  # fmt: skip
    found = []
    for name, step in steps.items():
        if step.name not in shown and store.has(step.name):
            shown.add(step.name)
            found += describe_step(run.seed, name + variant, step, store)
    return found


def describe_step(seed: int, part: str, step: Step, store: Store) -> list[dict[str, Any]]:
    """What a finished step found, a row a quantity."""
    if not store.has(step.name):
        return []
    result = store.manifest(step.name)["result"]
    found = {k: v for k, v in result.items() if k != "judges"}  # which the whole study has a table of
    return [{"seed": seed, "part": part, "what": k.replace("_", " "), "value": v} for k, v in found.items()]


def add_run_columns(frame: pd.DataFrame, run: Run, plan: Plan, log: pd.DataFrame, outcome: str) -> pd.DataFrame:
    """Measurement rows with what is known of the run: hyper-parameters, pairs seen by each step, outcome."""
    counts = {
        name: [int(log[name].get(step, 0)) if step else 0 for step in frame["step"]] if name in log else 0
        for name in COUNTS
    }
    spent = log["flops"].cumsum() if "flops" in log else pd.Series(dtype=float)
    before = dict(zip(marks := sorted({0, *frame["step"]}), [0, *marks], strict=False))
    pairs = {
        name: [getattr(log[of].loc[before[s] + 1 : s], how)() if of in log else np.nan for s in frame["step"]]
        for name, (of, how) in SINCE.items()
    } | {name: [log[name].get(s, np.nan) if name in log else np.nan for s in frame["step"]] for name in SO_FAR}
    return frame.assign(
        flops=[float(spent.get(step, np.nan)) if step else 0.0 for step in frame["step"]],
        study=plan.study.name, config=run.config, loss=run.loss, beta=run.beta,
        learning_rate=run.learning_rate, outcome=outcome, **counts, **pairs,
    )  # fmt: skip
