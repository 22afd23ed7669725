"""A trained policy of a finished study as an ordinary Hugging Face folder, with a model card that says what it is.

Numbers on the card are the records' own, with their standard errors. Leaves out: sending it to the hub (`hub.py`).
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aligngap import __version__
from aligngap.registry import did_you_mean
from aligngap.report.folder import read_provenance, read_study
from aligngap.settings import LoraSpec, LossSpec, Optimization
from aligngap.storage.columns import OPPONENTS
from aligngap.storage.files import whole_folder
from aligngap.storage.listing import PROVENANCE, STUDY
from aligngap.storage.records import Tables, read_folder
from aligngap.storage.store import Store
from aligngap.types import AligngapError

FINISHED = "give the output folder of a finished run, or repeat the command that made this one"


def export(out: Path, name: str, to: Path, store: Store) -> Path:
    """Write the policy of a run's checkpoint into the folder `to`, whole or not at all.

    `name` is RUN or RUN@STEP: a run's whole name, or words of it that only one run has ("online", "online seed=1");
    without a step, the run's last checkpoint. Raises AligngapError for an unknown run or step, for an artifact that is
    no longer in the store, and for a folder that is there and not empty.
    """
    tables, about, study = read_folder(out), _provenance(out), _study(out)
    wanted, at, step_text = name.rpartition("@") if "@" in name else (name, "", "")
    run = find_run(wanted, list(about["runs"]))
    artifact = str(about["runs"][run].get("align", ""))
    if not artifact:
        raise AligngapError(f"{out / PROVENANCE}: names no artifact of {run}; {FINISHED}")
    if not store.has(artifact):
        raise AligngapError(f"{store.path(artifact)}: no such artifact; name the study's store with --store")
    there = store.path(artifact).glob("checkpoints/step-*")
    checkpoints = {int(p.name.removeprefix("step-")): f"checkpoints/{p.name}" for p in there}
    if at and not (step_text.isdecimal() and int(step_text) in checkpoints):
        known = ", ".join(map(str, sorted(checkpoints)))
        raise AligngapError(f"{name}: the run has no checkpoint `{step_text}`; it has: {known}")
    step = int(step_text) if at else max(checkpoints)
    manifest = store.manifest(artifact)
    with whole_folder(to) as beside:
        write_policy(store.open(artifact, checkpoints[step]), beside, store, manifest)
        card = model_card(tables, study, about, manifest, run, step)
        (beside / "README.md").write_text(card, encoding="utf-8")
    return to


def write_policy(checkpoint: Path, to: Path, store: Store, manifest: Mapping[str, Any]) -> None:
    """The checkpoint's folder; of a low-rank adapter, the weights that it started from with the adapter added."""
    how = manifest["configuration"]["optimization"].get("lora")
    if how is None:
        shutil.copytree(checkpoint, to, dirs_exist_ok=True)
        return
    if "start" in manifest["inputs"]:
        raise AligngapError(
            f"{checkpoint}: an adapter on another run's policy; add it to that policy with PEFT's `merge_and_unload`"
        )
    from aligngap.models.policy import Policy

    base = Policy.load(store.open(manifest["inputs"]["sft"], "policy"), response_tokens=1)
    base.adapted(LoraSpec.model_validate(how), "", 0, checkpoint).copy("").merge().save(to)


def find_run(wanted: str, runs: list[str]) -> str:
    """The one run of that name, or the one that has all of these words."""
    if wanted in runs:
        return wanted
    found = [run for run in runs if wanted.split() and set(wanted.split()) <= set(run.split())]
    if len(found) == 1:
        return found[0]
    if found:
        raise AligngapError(f"`{wanted}` is the name of {len(found)} runs; add words of one: {'; '.join(found)}")
    raise AligngapError(f"no run `{wanted}`{did_you_mean(wanted, runs)}")


def model_card(
    tables: Tables, study: Mapping[str, Any], about: Mapping[str, Any], manifest: Mapping[str, Any], run: str,
    step: int,
) -> str:  # fmt: skip
    """README.md of an exported policy, in the form of the Hugging Face hub."""
    from huggingface_hub import ModelCard, ModelCardData

    records = tables.records
    rows = records[(records["run"] == run) & (records["step"] == step)]
    first = rows.iloc[0] if len(rows) else None
    arm, task = run.split()[0], dict(study.get("task", {}))
    path = study.get("policy", {}).get("path")
    started = f"`{path}`" if path else f"a {study.get('policy', {}).get('model_type')} from scratch, after SFT"
    defaults = {n: f.get_default() for n, f in Optimization.model_fields.items() if not f.is_required()}
    loss = LossSpec.model_validate(manifest["configuration"].get("loss", {})).model_dump()  # defaults are in no key
    how = {**defaults, **manifest["configuration"]["optimization"]}
    made = manifest["provenance"]
    data = ModelCardData(
        library_name="transformers", tags=["aligngap", "preference-alignment", str(loss["name"]), arm],
        base_model=path if path and not Path(path).exists() and path.count("/") == 1 else None,
    )  # fmt: skip
    lines = [
        f"# {run}, step {step}",
        "",
        f"A policy of the study `{study['name']}` ({study['question']}), made by aligngap {made['aligngap']}, commit "
        f"{made['commit']}, after arXiv 2405.08448; exported with aligngap {__version__}.",
        "",
        "## Training",
        "",
        *_table(("", ""), [
            ("arm", f"`{arm}`: {_plain(study['arms'].get(arm.partition('[')[0], {}))}"),
            ("loss", _plain(loss)),
            ("optimisation", _plain(how)),
            ("seed", str(first["seed"]) if first is not None else run.rpartition("seed=")[2]),
            ("steps", str(step)),
            ("start", started),
            ("task", _plain({k: v for k, v in task.items() if k not in ("path",) and v is not None})),
        ]),
        "## What was measured",
        "",
        *[f"Doubt: {sentence}\n" for sentence in tables.doubts],
    ]  # fmt: skip
    if first is None:
        lines += ["This checkpoint was not measured.", ""]
    else:
        judged = "mean over prompts ± standard error; the golden judge is a model that stands in for people"
        lines += [
            f"KL from the policy it started from: {first['kl_nats']:.3f} ± {first['kl_nats_se']:.3f} nats a response.",
            "",
            *_table(
                ("win rate against", "golden judge", "proxy judge", "prompts"),
                [
                    (
                        OPPONENTS.get(r["opponent"], str(r["opponent"])),
                        f"{r['win_rate']:.3f} ± {r['win_rate_se']:.3f}",
                        f"{r['proxy_win_rate']:.3f} ± {r['proxy_win_rate_se']:.3f}",
                        str(r["prompts"]),
                    )
                    for _, r in rows.iterrows()
                ],
            ),
            f"({judged}.)",
            "",
        ]
    source = [row["value"] for row in about.get("pipeline", []) if row["part"] == "data" and row["what"] == "source"]
    named = f" `{task.get('name')}`" if source else ""
    lines += [
        "## Licence and limits",
        "",
        f"No licence is granted by this card. The licence of the starting model and that of the data{named} hold for "
        "these weights as far as they say so; look them up before using or passing them on. The policy was trained to "
        "study alignment, on one preference data set, by a judge that is itself a model; it was not tested for safety.",
        "",
    ]
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(lines)))


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    lines = [header, ("---",) * len(header), *rows]
    return [*("| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in lines), ""]


def _plain(values: Mapping[str, Any]) -> str:
    """Settings in a line, those that are not set left out."""
    return ", ".join(f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items() if v is not None)


def _provenance(out: Path) -> dict[str, Any]:
    found = read_provenance(out)
    if not found.get("runs"):
        raise AligngapError(f"{out / PROVENANCE}: names no runs; {FINISHED}")
    return found


def _study(out: Path) -> dict[str, Any]:
    found = read_study(out)
    if lacking := [key for key in ("name", "question", "arms", "recipe") if not found.get(key)]:
        what = f"has no `{lacking[0]}`, as a study that was run has"
        raise AligngapError(f"{out / STUDY}: {what}; {FINISHED}")
    return found
