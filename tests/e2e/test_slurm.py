"""Steps as jobs of submitit, by its executor of this machine that stands in for Slurm: killed, the same bytes.

Slurm itself is not tried: what is, is everything but `sbatch` and `squeue`, which are submitit's.
"""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest
from conftest import TINY_STUDY, complaint, holder_of

from aligngap.cli import main
from aligngap.execute.agenda import Event
from aligngap.execute.slurm import Slurm, parse_options
from aligngap.execute.worker import make
from aligngap.pipeline.base import Step
from aligngap.pipeline.context import Context
from aligngap.pipeline.plan import expand
from aligngap.storage.store import Store
from aligngap.study.load import load
from aligngap.types import AligngapError


def first_steps(folder: Path) -> list[Step]:
    """The tiny study's data and SFT policy, which trains long enough to be killed while it does."""
    (folder / "tiny.yaml").write_text(TINY_STUDY)
    run = expand(load(str(folder / "tiny.yaml"), ["sft.steps=80"])).runs[0].align
    return [run.data, run.sft]


def weights(store: Store, step: Step) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(store.path(step.name).rglob("*.safetensors"))}


def test_a_killed_job_is_handed_over_again_and_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # So long the result of a job that has been killed is looked for, which a slow disk may hold back.
    monkeypatch.setattr("submitit.core.core.Job._results_timeout_s", 1)
    steps = first_steps(tmp_path)
    alone = Store(tmp_path / "alone")
    alone.prepare()
    for step in steps:
        assert make(step, Context(alone))
    jobs = Store(tmp_path / "jobs")
    jobs.prepare()
    executor = Slurm(jobs, options=["cluster=local"], workers=2, save_seconds=0.01)
    said, limit = list[tuple[Event, str]](), time.monotonic() + 600
    for event, step, message in executor.run(steps):
        assert time.monotonic() < limit
        assert event not in (Event.FAILED, Event.BAD_INPUT), message
        if event in (Event.START, Event.MADE):
            said.append((event, step.kind))
        if event is Event.START and step.kind == "sft":  # its job has hardly begun: the kill falls into the training
            while (holder := holder_of(jobs.partial(step.name))) is None:
                assert time.monotonic() < limit
                time.sleep(0.01)
            while not any(int(p.stem.removeprefix("kept-")) > 1 for p in jobs.partial(step.name).glob("kept-*.json")):
                assert time.monotonic() < limit
                time.sleep(0.001)
            holder.send_signal(signal.SIGKILL)
    assert said == [(Event.START, "data"), (Event.MADE, "data"), (Event.START, "sft"), (Event.MADE, "sft")]
    log = [json.loads(line) for line in (jobs.root / "partial" / f"{steps[1].name}.log.jsonl").read_text().splitlines()]
    assert [row["event"] for row in log].count("started") == 2
    assert "resumed" in [row["event"] for row in log]
    assert weights(jobs, steps[1]) == weights(alone, steps[1]) != {}


def test_options_are_parameters_of_a_job() -> None:
    assert parse_options(["partition=gpu", "timeout_min=240"]) == {"partition": "gpu", "timeout_min": 240}
    with pytest.raises(AligngapError, match="--slurm partition: must be KEY=VALUE"):
        parse_options(["partition"])
    with pytest.raises(AligngapError, match="--slurm cpus_per_task: is said by --threads"):
        parse_options(["cpus_per_task=4"])


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--executor", "slurm", "--slurm", "cluster=moon"], "--slurm cluster=moon: must be one of slurm, local"),
        (["--executor", "slurm", "--gpus", "0.5"], "--gpus 0.5: a job of Slurm has a whole number of GPUs"),
        (["--executor", "slurm", "--device", "cpu"], "--device belongs to --executor local; with slurm, --gpus says"),
        (["--slurm", "partition=gpu"], "--slurm belongs to --executor slurm; add it"),
        (["--executor", "slurm"], "--executor slurm: no Slurm on this machine; start the command where `srun`"),
        (
            ["--executor", "slurm", "--slurm", "cluster=local", "--slurm", "partitoin=gpu"],
            "--slurm: submitit does not know such a parameter",
        ),
    ],
)
def test_what_cannot_be_had_is_one_line(
    words: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(TINY_STUDY)
    assert main(["run", "tiny.yaml", "--out", "out", *words]) == 2
    assert complaint(capsys.readouterr().err).startswith(f"aligngap: {line}")
