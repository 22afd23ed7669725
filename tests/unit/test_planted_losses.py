"""Verdicts where the loss is the cause of the gap: tabular worlds, trained with the package's losses, without sampling.

A response is one of three words, best > fair > poor, each as likely under the reference. Pairs are enumerated under
their probability and descent is on the logits, so policies, KL and win rates are exact; only the measured wins are
drawn. Every label is true: what decides is which pairs there are, and what a loss makes of them.

Two facts make the worlds. From pairs of equal words a contrastive loss learns nothing (h = 0), while imitation copies
them. And tilting the reference by p(y beats reference), here (1, 0, -1) / 3 about its mean, is the best that any policy
can do at its KL; contrast between best and poor alone tilts by just that.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import pytest
import torch

from aligngap import registry
from aligngap.hypotheses.rules import ahead
from aligngap.hypotheses.verdicts import CONTRADICTED, INCONCLUSIVE, SUPPORTED
from aligngap.hypotheses.view import View, base_of
from aligngap.losses import DPO, IPO, BestOfTwo, Loss, PairLogps
from aligngap.storage.columns import PER_PROMPT_COLUMNS, RECORD_COLUMNS
from aligngap.types import Verdict

Array = np.ndarray

BEST, FAIR, POOR = range(3)
REFERENCE = np.full(3, 1 / 3)
TRUTH = (1 + np.sign(np.arange(3)[None, :] - np.arange(3)[:, None])) / 2  # p[i, j]: i beats j
WINS = TRUTH @ REFERENCE  # of each word against the reference
LEVELS = np.geomspace(0.06, 1.0, 14)  # of KL, at which a run is measured
#: offline pairs, by how often each pair of words occurs
GOOD_COPIES = {(BEST, BEST): 0.8, (FAIR, POOR): 0.2}
POOR_COPIES = {(POOR, POOR): 0.8, (BEST, POOR): 0.2}
NO_BEST = {(FAIR, POOR): 1.0}

#: nats at which arms are compared: log 3, all that there is, is 1.1
BUDGETS = (0.1, 0.25, 0.5)

Pairs = Mapping[tuple[int, int], float]


def kl(pi: Array) -> float:
    return float((pi * np.log(pi / REFERENCE)).sum())


def descend(loss: Loss, pairs: Array | None, steps: int = 150, size: float = 0.1) -> list[Array]:
    """The policies of gradient descent on the expected loss, the reference first; with no `pairs` they are its own.

    Step lengths are in units of the first gradient, so that losses of different scale move alike at first.
    """
    i, j = (torch.tensor(x.ravel()) for x in np.indices((3, 3)))
    p, ref, ones = torch.tensor(TRUTH.ravel()), torch.full((9,), -np.log(3.0), dtype=torch.float64), torch.ones(9)
    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    policies, unit = [REFERENCE], 0.0
    for _ in range(steps):
        log_pi = torch.log_softmax(logits, -1)
        now = log_pi.detach().exp().numpy()
        weights = torch.tensor((np.outer(now, now) if pairs is None else pairs).ravel())
        value = (weights * loss(PairLogps(log_pi[i], log_pi[j], ref, ref, p, ones, ones))).sum()
        (gradient,) = torch.autograd.grad(value, logits)
        unit = unit or float(gradient.norm())
        logits = (logits - size * gradient / unit).detach().requires_grad_()
        policies.append(torch.softmax(logits, -1).detach().numpy())
    return policies


def table(pairs: Pairs) -> Array:
    """Each pair's share, half of it in either order."""
    out = np.zeros((3, 3))
    for (a, b), share in pairs.items():
        out[a, b] += share / 2
        out[b, a] += share / 2
    return out


def measured(runs: Mapping[str, list[Array]], seeds: int = 5, prompts: int = 600) -> View:
    """Records of these runs at their first policy past each level of KL; a win is drawn from the exact win rate."""
    rng = np.random.default_rng(0)
    rows, wins = [], []
    for seed in range(seeds):
        for arm, policies in runs.items():
            reached = np.array([kl(pi) for pi in policies])
            at = [0, *(int(np.argmax(reached > level)) for level in LEVELS if reached.max() > level)]
            for step in dict.fromkeys(at):
                won = (rng.random(prompts) < policies[step] @ WINS).astype(float)
                same = {"run": f"{arm} seed={seed}", "arm": arm, "seed": seed, "step": step, "opponent": "sft"}
                numbers = {"kl_nats": reached[step], "kl_nats_se": 0.0, "win_rate": won.mean(), "prompts": prompts}
                numbers |= {"win_rate_se": won.std(ddof=1) / prompts**0.5, "config": "as opened", "outcome": "ok"}
                rows.append(same | numbers)
                ids = [f"p{n}" for n in range(prompts)]
                wins.append(pd.DataFrame({**same, "prompt_id": ids, "win": won, "kl_nats": reached[step]}))
    records = pd.DataFrame(rows).reindex(columns=list(RECORD_COLUMNS))
    return View(records, pd.concat(wins).reindex(columns=list(PER_PROMPT_COLUMNS)), opponent="sft", budgets=BUDGETS)


def world(offline: Array, opened: Loss, **variants: Loss) -> dict[str, list[Array]]:
    """Online, offline and offline on pairs by online's last policy, under the loss as opened; two arms under others."""
    online = descend(opened, None)
    runs = {"online": online, "offline": descend(opened, offline)}
    runs["final-vs-final"] = descend(opened, np.outer(online[-1], online[-1]))
    for name, loss in variants.items():
        v = name.replace("_", "-")
        runs |= {f"online[{v}]": descend(loss, None), f"offline[{v}]": descend(loss, offline)}
    return runs


def judged(view: View, *names: str) -> dict[str, Verdict]:
    found = {v.name: v for n in names for v in registry.get("hypotheses", n).judge(view)}
    return {"gap": ahead("gap", "online", "offline").judge(view), **found}


def outcomes(view: View, *names: str) -> dict[str, str]:
    return {name: verdict.outcome for name, verdict in judged(view, *names).items()}


def tilted_to(level: float) -> Array:
    """The best policy at a KL: the reference tilted by `WINS`, by bisection."""
    low, high = 0.0, 60.0
    for _ in range(80):
        middle = (low + high) / 2
        pi = np.exp(middle * WINS) / np.exp(middle * WINS).sum()
        low, high = (low, middle) if kl(pi) > level else (middle, high)
    return pi


@pytest.mark.parametrize("loss", [IPO(), DPO()], ids=["ipo", "dpo"])
def test_contrast_learns_nothing_from_equal_words(loss: Loss) -> None:
    """So on pairs with copies of the best word it only moves fair against poor, and on pairs with copies of the poor
    word it is exactly as good as a policy can be."""
    for pi in descend(loss, table(GOOD_COPIES)):
        assert pi[FAIR] * pi[POOR] == pytest.approx(pi[BEST] ** 2, rel=1e-6)  # log-ratios (0, x, -x)
    for pi in descend(loss, table(POOR_COPIES))[1:]:
        assert pi @ WINS == pytest.approx(tilted_to(kl(pi)) @ WINS, abs=1e-6)


def test_imitation_goes_to_the_winners_and_no_further() -> None:
    for pairs, winners in ((GOOD_COPIES, [0.8, 0.2, 0.0]), (POOR_COPIES, [0.2, 0.0, 0.8])):
        last = descend(BestOfTwo(), table(pairs), steps=1500)[-1]
        assert last == pytest.approx(winners, abs=0.02)
    assert kl(descend(BestOfTwo(), None)[-1]) > 0.9  # online the winners move on: to the best word, log 3 nats


def test_contrast_is_the_cause() -> None:
    """Offline data hold the best word, but only in copies: contrast cannot see it and imitation copies it."""
    view = measured(world(table(GOOD_COPIES), IPO(), best_of_two=BestOfTwo(), dpo=DPO()))
    found = outcomes(view, "noncontrastive", "losses")
    assert (found["gap"], found["H4"]) == (SUPPORTED, SUPPORTED)
    assert found["R10 gap"] != SUPPORTED
    assert (found["gap dpo"], found["closed by offline[dpo]"]) == (SUPPORTED, CONTRADICTED)


def test_imitation_is_the_cause_and_so_is_quality() -> None:
    """Offline data are mostly copies of the poor word: imitation writes them. Contrast learns the best that there is
    from the rest (`closed by`), and better responses would do as well (H2)."""
    runs = world(table(POOR_COPIES), BestOfTwo(), dpo=DPO())
    found = outcomes(measured(runs), "losses", "quality")
    assert (found["gap"], found["closed by offline[dpo]"]) == (SUPPORTED, SUPPORTED)
    assert found["gap dpo"] != SUPPORTED
    assert (found["H2"], found["R5"]) == (SUPPORTED, CONTRADICTED)


def test_coverage_is_not_mistaken_for_the_loss() -> None:
    """Offline data without the best word: no loss finds it, so the gap stays under each."""
    view = measured(world(table(NO_BEST), IPO(), best_of_two=BestOfTwo(), dpo=DPO()))
    found = outcomes(view, "noncontrastive", "losses")
    assert (found["gap"], found["H4"], found["R10 gap"]) == (SUPPORTED, CONTRADICTED, SUPPORTED)
    assert (found["gap dpo"], found["closed by offline[dpo]"]) == (SUPPORTED, CONTRADICTED)


def test_where_nothing_is_planted_no_loss_is_the_cause() -> None:
    """Offline pairs as the reference writes them: every arm is near the best there is, and there is no gap to share."""
    view = measured(world(np.outer(REFERENCE, REFERENCE), IPO(), best_of_two=BestOfTwo(), dpo=DPO()))
    assert {base_of(arm) for arm in view.arms} == {"online", "offline", "final-vs-final"}
    found = outcomes(view, "noncontrastive", "losses")
    assert (found["gap"], found["H4"], found["closed by offline[dpo]"]) == (INCONCLUSIVE, INCONCLUSIVE, INCONCLUSIVE)
    assert SUPPORTED not in (found["R10 gap"], found["gap dpo"])
