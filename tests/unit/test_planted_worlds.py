"""Verdicts against a truth that is planted and then trained: the real pipeline in worlds whose cause is known.

`test_hypotheses.py` plants truths in records; here they are planted in data and labels, and every step runs.
`test_planted_losses.py` has more worlds in which the loss is the cause, without sampling.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from planted_worlds import train

from aligngap import registry
from aligngap.hypotheses.rules import ahead
from aligngap.hypotheses.verdicts import CONTRADICTED, INCONCLUSIVE, SUPPORTED
from aligngap.hypotheses.view import View
from aligngap.types import Verdict

ONLINE = {"behavior": "policy", "judge": "oracle"}
#: nats at which arms are compared: a policy of three words has log 3, and of two log 2, to move at all
BUDGETS = (0.1, 0.25)
FINAL = {"behavior": "responses", "writers": ["online@6", "online@6"], "judge": "oracle"}


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.SHELVES["tasks"], "planted", "planted_worlds:Planted")


def verdicts(view: View, *names: str) -> dict[str, Verdict]:
    return {v.name: v for n in names for v in registry.get("hypotheses", n).judge(view)}


def test_what_the_data_hold_is_the_cause(tmp_path: Path) -> None:
    """The data never compare the best word with another; labels are true everywhere. So the online run's pairs close
    the gap in any order (H1), and so do pairs by a better policy (H2)."""
    arms = {
        "online": ONLINE, "offline": {"behavior": "dataset", "judge": "oracle"},
        "shuffled": {"behavior": "recording", "of": "online", "order": "shuffled"}, "final-vs-final": FINAL,
    }  # fmt: skip
    view = View(*train(arms, 5, tmp_path, blind=True), opponent="sft", budgets=BUDGETS)
    found = verdicts(view, "coverage", "quality")
    assert ahead("gap", "online", "offline").judge(view).outcome == SUPPORTED
    assert found["H1"].outcome == SUPPORTED
    assert found["H2"].outcome == SUPPORTED
    assert found["R5"].outcome == CONTRADICTED


def test_labels_are_the_cause(tmp_path: Path) -> None:
    """The data compare all words, but their rater says the opposite of the truth. The online run's responses, labelled
    by who learned from that rater, do not close the gap: neither coverage (H1) nor quality (H2) is the cause."""
    arms = {
        "online": ONLINE, "offline": {"behavior": "dataset", "judge": "golden"},
        "shuffled": {"behavior": "recording", "of": "online", "order": "shuffled", "judge": "golden"},
        "final-vs-final": {**FINAL, "judge": "golden"},
    }  # fmt: skip
    view = View(*train(arms, 5, tmp_path, judge_steps=40, wrong_rater=True), opponent="sft", budgets=BUDGETS)
    found = verdicts(view, "coverage", "quality")
    assert ahead("gap", "online", "offline").judge(view).outcome == SUPPORTED
    assert found["H1"].outcome == CONTRADICTED
    assert found["H2"].outcome == CONTRADICTED
    assert found["R4 shuffled"].outcome == SUPPORTED


def test_imitation_is_the_cause(tmp_path: Path) -> None:
    """All labels are true; the offline responses are by a policy worse than the SFT policy, and the loss imitates.

    Where the writer says the better of two words with probability q, a pair's winner says it with 1 - (1 - q)^2. For a
    poor writer that is below the SFT policy's one half, so imitation gets worse than where it starts. Responses by a
    better policy close the gap (H2). That another loss closes it too is tested in `test_planted_losses.py`.
    """
    arms = {
        "online": ONLINE, "worse": {"behavior": "policy", "judge": "golden"},
        "offline": {**FINAL, "writers": ["worse@last", "worse@last"]},
        "final-vs-final": {**FINAL, "writers": ["online@last", "online@last"]},
    }  # fmt: skip
    made = train(arms, 5, tmp_path, judge_steps=40, loss={"name": "best-of-two"}, two=True, wrong_rater=True)
    view = View(*made, opponent="sft", budgets=BUDGETS)
    found = verdicts(view, "quality")
    assert ahead("gap", "online", "offline").judge(view).outcome == SUPPORTED
    assert found["H2"].outcome == SUPPORTED
    assert found["R5"].outcome == CONTRADICTED


def test_where_nothing_is_planted_nothing_is_found(tmp_path: Path) -> None:
    """Both arms learn from the SFT policy's own responses under true labels: one writes them as it goes, one has them
    from the start. Of six seeds, one of four left out in turn, at most one comparison at the 95% level may be sure."""
    arms = {
        "online": {**ONLINE, "sync_every": 24},
        "offline": {"behavior": "responses", "writers": ["sft", "sft"], "judge": "oracle"},
    }
    records, wins = train(arms, 6, tmp_path)
    outcomes = []
    for left_out in range(4):
        mine = (table[table["seed"] != left_out] for table in (records, wins))
        view = View(*mine, opponent="sft", budgets=BUDGETS)
        outcomes.append(ahead("gap", "online", "offline").judge(view).outcome)
    assert outcomes.count(INCONCLUSIVE) >= 3
