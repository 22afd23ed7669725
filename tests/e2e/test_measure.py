"""`aligngap measure` and `aligngap pick` as a stranger runs them: from folders of checkpoints to a page, a choice."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from conftest import WORDS, complaint, tiny_policy
from warm import Warm

from aligngap.storage.records import read_folder

MEASURE = (
    "measure", "--reference", "sft", "--policy", "online=runs/online-seed*", "--policy", "offline=runs/offline-seed*",
    "--prompts", "prompts.txt", "--response-tokens", "8", "--count", "12", "--workers", "1", "--device", "cpu",
)  # fmt: skip


class Told(NamedTuple):
    """The exit code of a command, and what it said."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reference, one run of each of two policies with two checkpoints, prompts, and a judge in a module."""
    place = tmp_path_factory.mktemp("stranger")
    reference = tiny_policy("llama", response_tokens=8)
    reference.save(place / "sft")
    for number, arm in enumerate(("online", "offline")):
        generator = torch.Generator().manual_seed(number)
        ways = [torch.randn(p.shape, generator=generator) for p in reference.model.parameters()]
        for step, size in ((10, 0.03), (20, 0.06)):
            policy = reference.copy("moved")
            with torch.no_grad():
                for weight, way in zip(policy.model.parameters(), ways, strict=True):
                    weight.add_(size * way)
            policy.save(place / f"runs/{arm}-seed0/checkpoint-{step}")
    (place / "prompts.txt").write_text("\n".join(f"{a} {b}" for a, b in itertools.product(WORDS[:4], WORDS[8:12])))
    (place / "stranger_rules.py").write_text(
        "def prefer(prompts, a, b):\n    return [(len(x) - len(y) + 99) / 198 for x, y in zip(a, b)]\n"
    )
    return place


@pytest.fixture
def told(warm: Warm, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Told]:
    """Runs the command in the folder: its exit code, and what it said on stdout and on stderr."""
    monkeypatch.chdir(folder)
    settled = "import aligngap.instrument.survey; aligngap.instrument.survey.SETTLED_SECONDS = 0.0"

    def run(*words: str) -> Told:
        env = {"ALIGNGAP_CACHE": str(folder / "cache")}
        said = Told(*warm.start([*words], folder, env=env, before=settled).finish())
        assert "Traceback" not in said.err
        return said

    return run


def test_from_folders_of_checkpoints_to_a_page_and_a_choice(folder: Path, told: Callable[..., Told]) -> None:
    alone = told(*MEASURE)
    assert alone.code == 0, alone.err
    assert "KL, nats" in alone.out
    assert "±: the standard error, over seeds where there are several" in alone.out
    assert "wins: " not in alone.out
    assert "with --judge adds win rates and a report" in alone.out
    judged = told(*MEASURE, "--judge", "stranger_rules:prefer")
    assert judged.code == 0, judged.err
    assert "measure online" not in judged.err  # nothing is sampled anew
    assert "judge online seed=0@10" in judged.err
    assert "report: out/measured/report.html" in judged.out
    assert "wins: the share of prompts" in judged.out
    tables = read_folder(folder / "out" / "measured")
    assert sorted(tables.records["run"].unique()) == ["offline seed=0", "online seed=0"]
    assert tables.records["win_rate"].notna().all()
    page = (folder / "out" / "measured" / "report.html").read_text(encoding="utf-8")
    assert "online" in page
    assert "offline" in page
    assert told(*MEASURE, "--judge", "stranger_rules:prefer", "--plan").out.count("yes") == 4
    with open("prompts.txt", "a", encoding="utf-8") as stream:
        stream.write("\n" + tables.samples["prompt"].iloc[0])
    lone = [w for i, w in enumerate(MEASURE) if not (w == "--policy" or MEASURE[i - 1] == "--policy")]
    one = told(
        *lone, "--policy", MEASURE[MEASURE.index("--policy") + 1], "--judge", "stranger_rules:prefer", "--out", "lone"
    )
    assert one.code == 0, one.err
    assert "so nothing is compared" in one.out
    assert "left out: 1 " in one.err
    chosen = told("pick", "out/measured", "--best", "--to", "deploy")
    assert chosen.code == 0
    assert "prompts that did not choose it" in chosen.out
    assert (folder / "deploy" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--policy", "online=nothing-here*"], "names no folder"),
        (["--judge", "pairwise"], "has to be trained on labels first"),
        (["--judge", "stranger_rules:absent"], "`stranger_rules:absent` cannot be imported"),
        (["--prompts", "gone.txt"], "no such file of prompts"),
        (["--compare", "online", "ppo"], "no such policy"),
        (["--kl", "2", "1"], "must be increasing KLs"),
        (["--count", "1"], "--count: must be 2 or more"),
    ],
)
def test_bad_words_are_one_line_before_any_compute(told: Callable[..., Told], words: list[str], said: str) -> None:
    done = told(*MEASURE, *words)
    assert done.code == 2
    line = complaint(done.err)
    assert line.startswith("aligngap: ")
    assert said in line
