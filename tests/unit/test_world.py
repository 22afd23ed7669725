"""Several processes train one model as one does: the same pairs, losses and weights, and a state they go on from."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import BOTH, COMMAND_ENV, prompt, tiny_policy

from aligngap.models.policy import Mixed
from aligngap.parallel.world import Alone

KINDS = ("ddp", "fsdp")
CASES = ("sft", "offline", "online", "mixed")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What `several.py` left: the results of one process alone, and of the first and the second of two."""
    folder = tmp_path_factory.mktemp("several")
    script = Path(__file__).parents[1] / "several.py"
    done = subprocess.run(
        [sys.executable, str(script), str(folder)], env=COMMAND_ENV, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in ("alone", "0", "1")}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES)
def test_two_processes_do_what_one_does(found: dict[str, dict[str, Any]], kind: str, case: str) -> None:
    one, two = found["alone"][f"alone {case}"], found["0"][f"{kind} {case}"]
    assert one["outcome"] == two["outcome"] == "ok"
    for left, right in zip(one["log"], two["log"], strict=True):
        assert right == pytest.approx(left, rel=1e-4, abs=1e-5, nan_ok=True)
    assert len(one["pairs"]) == (0 if case == "sft" else 32)
    for left, right in zip(one["pairs"], two["pairs"], strict=True):
        refs = {name: pytest.approx(left[name], abs=1e-4) for name in ("ref_chosen", "ref_rejected")}
        assert right == left | refs
    for left, right in zip(
        one["saved"], two["saved"], strict=True
    ):  # at step 2 and at the end, read from their folders
        assert left.keys() == right.keys()
        for name, weight in left.items():
            torch.testing.assert_close(torch.tensor(right[name]), torch.tensor(weight), atol=3e-5, rtol=1e-3)
    assert two["said"] == one["said"]


def test_only_the_first_process_has_anything_to_keep(found: dict[str, dict[str, Any]]) -> None:
    assert {name: what for name, what in found["1"].items() if what} == {"refused": found["0"]["refused"]}


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_state_is_gone_on_from_bit_for_bit(found: dict[str, dict[str, Any]], kind: str) -> None:
    whole, again = found["0"][f"{kind} online"], found["0"][f"{kind} again"]
    assert again == whole


def test_a_sharded_state_is_refused_elsewhere(found: dict[str, dict[str, Any]]) -> None:
    said = found["0"]["refused"]
    assert "2 processes with --parallel fsdp" in said
    assert "go on as it began" in said


class Half(Alone):
    """One of two processes, whose `each` gives its own share only."""

    size = 2

    def __init__(self, rank: int) -> None:
        self.rank = rank  # type: ignore[misc]

    def share_of(self, n: int) -> tuple[int, int]:
        return n * self.rank // 2, n * (self.rank + 1) // 2

    def each(self, items: Sequence[Any], work: Any) -> list[Any]:
        start, stop = self.share_of(len(items))
        return list(work(items[start:stop]))


@pytest.mark.parametrize("family", BOTH)
@pytest.mark.parametrize("how", [{}, {"temperature": 2.0}, {"mixed": True}])
def test_shares_of_a_batch_are_the_responses_of_the_batch(family: str, how: dict[str, Any]) -> None:
    """Each row is drawn with the noise it has where all rows are together, whoever draws it."""
    policy = tiny_policy(family, spread=1.0)
    prompts = [prompt((4 + i, 5 + i % 7, 1)) for i in range(9)]
    given = dict(how)
    sampler = Mixed(policy, tiny_policy(family, seed=3), 0.5) if given.pop("mixed", False) else None

    def sampled(**more: Any) -> list[Any]:
        if sampler is not None:
            more |= {"mixture": (sampler.reference, sampler.share)}
        return [r.ids for row in policy.sample(prompts, 2, 11, **given, **more) for r in row]

    whole = sampled()
    assert len(set(whole)) > 9
    assert [*sampled(world=Half(0)), *sampled(world=Half(1))] == whole
