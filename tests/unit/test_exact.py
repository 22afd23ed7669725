"""The exact worlds: closed forms against the trainer, gradients against differences, the command in miniature."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import complaint
from statsmodels.stats.multitest import multipletests

from aligngap.cli import main
from aligngap.exact import capacity, claims, learn, skewed, theory
from aligngap.exact.arguments import SPENT
from aligngap.exact.capacity import OFFLINE, ONLINE, Grid
from aligngap.exact.claims import Claim, judge, p_value
from aligngap.exact.judge import TABLE, fit_judge, seen
from aligngap.exact.learn import Fixed, OnPolicy, PolicyClass, Source, step_sizes, train
from aligngap.exact.report import read_runs
from aligngap.exact.worlds import (
    Pairs,
    World,
    draw_labels,
    ends_of_pairs,
    independent,
    log_softmax,
    preference,
    sigmoid,
)
from aligngap.losses import DPO, IPO
from aligngap.stats.adjust import holm
from aligngap.stats.ceiling import tilted_to

Array = np.ndarray


def target(beta: float) -> IPO:
    return IPO(beta=beta, form="target")


@pytest.fixture(scope="module")
def world() -> World:
    return capacity.capacity(seed=11, prompts=5, responses=6, features=4)


def one(pairs: Pairs) -> Pairs:
    """The pairs of one run, as a stack of one."""
    return Pairs(pairs.weights[None], pairs.p_first[None])


def uneven(world: World, seed: int) -> Pairs:
    """Full-support pairs of two unequal writers, with labels that no reward explains."""
    rng = np.random.default_rng(seed)
    return Pairs(
        rng.dirichlet(np.ones(world.truth.shape[1]), size=len(world.truth)), rng.uniform(size=world.truth.shape)
    )


def linear(world: World) -> PolicyClass:
    return PolicyClass(world, world.features[None])


# ------------------------------------------------------------------------------------------------- worlds and labels


def test_the_capacity_world_is_what_it_says() -> None:
    world = capacity.capacity(seed=0)
    assert world.features.shape == (24, 12, 8)
    np.testing.assert_allclose(world.features.mean(1), 0.0, atol=1e-12)
    np.testing.assert_allclose(np.exp(world.log_reference).sum(-1), 1.0)
    assert world.reward.std() == pytest.approx(2.0)
    np.testing.assert_allclose(world.reward, world.features.sum(-1) * (world.reward / world.features.sum(-1))[0, 0])
    equal = (np.exp(world.log_reference) ** 2).sum(-1)
    np.testing.assert_allclose(world.data_weights.sum(-1), 1.0 - equal)  # pairs of equal responses say nothing
    assert world.win_rate(world.log_reference) == pytest.approx(0.5)
    assert world.kl(world.log_reference) == 0.0
    again, another = capacity.capacity(seed=0), capacity.capacity(seed=1)
    np.testing.assert_array_equal(world.reward, again.reward)
    assert not np.allclose(world.reward, another.reward)


def test_drawn_labels_are_n_and_tend_to_the_truth(world: World) -> None:
    few, many = draw_labels(world, 100, seed=5), draw_labels(world, 400_000, seed=5)
    for n, labels in ((100, few), (400_000, many)):
        assert labels.counts.sum() + labels.equal == n
        assert (labels.held_out <= labels.counts).all()
        assert (labels.wins <= labels.counts).all()
        assert labels.held_out.sum() == pytest.approx(0.2 * n * (1 - labels.equal / n), rel=0.3)
    pairs = many.pairs()
    np.testing.assert_allclose(pairs.weights, world.data_weights, atol=0.01)
    seen_often = world.data_weights > 0.05
    np.testing.assert_allclose(pairs.p_first[seen_often], world.truth[seen_often], atol=0.03)
    np.testing.assert_array_equal(draw_labels(world, 100, seed=5).counts, few.counts)
    assert (draw_labels(world, 100, seed=6).counts != few.counts).any()


def test_a_judge_that_sees_all_finds_the_reward_and_a_blind_one_its_part(world: World) -> None:
    centred = world.reward - world.reward.mean(1, keepdims=True)
    for sees in (4, TABLE):
        score = fit_judge(world, None, sees)
        np.testing.assert_allclose(preference(score), world.truth, atol=1e-6)
        np.testing.assert_allclose(score - score.mean(1, keepdims=True), centred, atol=1e-5)
    blind = fit_judge(world, None, 2)
    first, second = ends_of_pairs(6)
    x = seen(world, 2)
    off = world.data_weights * (world.truth - preference(blind))
    np.testing.assert_allclose(np.einsum("pm,pmd->d", off, x[:, first] - x[:, second]), 0.0, atol=1e-10)
    assert np.abs(preference(blind) - world.truth).max() > 0.1


def test_more_labels_make_a_better_judge(world: World) -> None:
    errors = [
        np.mean(
            [
                np.abs(preference(fit_judge(world, draw_labels(world, n, seed), 4)) - world.truth).mean()
                for seed in range(5)
            ]
        )
        for n in (50, 500, 5000)
    ]
    assert errors[0] > 2 * errors[1] > 3 * errors[2]


def test_sigmoid_and_pairs() -> None:
    np.testing.assert_allclose(sigmoid(np.array([-800.0, 0.0, 800.0])), [0.0, 0.5, 1.0])
    first, second = ends_of_pairs(4)
    assert len(first) == 6
    assert (first < second).all()
    log_policy = log_softmax(np.array([[0.3, -0.2, 1.0]]))
    np.testing.assert_allclose(independent(log_policy)[0, 1], 2 * np.exp(log_policy[0, 0] + log_policy[0, 2]))


# --------------------------------------------------------------------------------------------------- exact gradients


@pytest.mark.parametrize("loss", [target(0.3), IPO(beta=0.3), DPO(beta=0.3)], ids=lambda loss: type(loss).__name__)
@pytest.mark.parametrize("kind", ["table", "linear"])
def test_gradients_are_those_of_the_mean_loss_over_all_pairs(world: World, loss: IPO, kind: str) -> None:
    policies = PolicyClass(world) if kind == "table" else linear(world)
    pairs = one(uneven(world, 1))
    reference = torch.from_numpy(world.log_reference)
    theta = torch.from_numpy(0.5 * np.random.default_rng(2).normal(size=policies.start(1).shape)).requires_grad_()

    def value(at: torch.Tensor) -> torch.Tensor:
        return learn.expected_loss(loss, policies.log_probabilities(at), reference, pairs).sum()

    (gradient,) = torch.autograd.grad(value(theta), theta)
    flat = theta.detach().flatten()
    for k in range(0, flat.numel(), 3):
        step = torch.zeros_like(flat)
        step[k] = 1e-5
        up, down = (float(value((flat + s * step).reshape(theta.shape))) for s in (1, -1))
        assert float(gradient.flatten()[k]) == pytest.approx((up - down) / 2e-5, rel=1e-5, abs=1e-8)
    # and the mean is the mean: every pair by hand
    log_policy = policies.log_probabilities(theta).detach().numpy()[0]
    ratio = log_policy - world.log_reference
    first, second = ends_of_pairs(6)
    h = 0.3 * (ratio[:, first] - ratio[:, second])
    p = pairs.p_first[0]
    if isinstance(loss, IPO):
        each = (p * (h - 0.5) ** 2 + (1 - p) * (-h - 0.5) ** 2) / (0.09 if loss.form == "target" else 1.0)
    else:
        each = p * np.log1p(np.exp(-h)) + (1 - p) * np.log1p(np.exp(h))
    assert float(value(theta.detach())) == pytest.approx((pairs.weights[0] * each).sum())


# ------------------------------------------------------------------------------------------------------ closed forms


@pytest.mark.parametrize("kind", ["table", "linear"])
@pytest.mark.parametrize("beta", [0.05, 0.3])
def test_gradient_descent_on_static_pairs_is_known_step_by_step(world: World, kind: str, beta: float) -> None:
    policies = PolicyClass(world) if kind == "table" else linear(world)
    design = None if kind == "table" else world.features
    for pairs in (uneven(world, 3), draw_labels(world, 40, 7).pairs(), Pairs(world.data_weights, world.truth)):
        solved = theory.static(world, pairs, design)
        sizes = step_sizes(60, policies.curvature(), 10)
        path = train(policies, Fixed(one(pairs)), target(beta), 1, sizes)
        kl, win = theory.static_path(world, solved, beta, sizes)
        np.testing.assert_allclose(path.kl[:, 0], kl, atol=1e-9)
        np.testing.assert_allclose(path.win[:, 0], win, atol=1e-10)


def test_the_optimum_of_any_pair_distribution_solves_its_equation(world: World) -> None:
    """sum_j M (g_i - g_j) = sum_j M (2 p(i beats j) - 1) / (2 beta), M the symmetric pair distribution."""
    beta, pairs = 0.2, uneven(world, 4)
    g = theory.static(world, pairs).tilt(beta)
    first, second = ends_of_pairs(6)
    m, p = np.zeros((5, 6, 6)), np.full((5, 6, 6), 0.5)
    m[:, first, second] = m[:, second, first] = pairs.weights
    p[:, first, second], p[:, second, first] = pairs.p_first, 1 - pairs.p_first
    left = (m * (g[:, :, None] - g[:, None, :])).sum(-1)
    np.testing.assert_allclose(left, (m * (2 * p - 1)).sum(-1) / (2 * beta), atol=1e-10)
    kl, _ = theory.static_path(world, theory.static(world, pairs), beta, np.full(8000, 0.4))
    np.testing.assert_allclose(world.kl(log_softmax(world.log_reference + g)), kl[-1], atol=1e-6)


def test_responses_that_the_data_lack_stay_where_they_were(world: World) -> None:
    first, second = ends_of_pairs(6)
    weights = np.where((first == 5) | (second == 5), 0.0, 1.0)[None] * np.ones((5, 1)) / 10
    g = theory.static(world, Pairs(weights, world.truth)).tilt(0.1)
    np.testing.assert_allclose(g[:, 5], 0.0, atol=1e-12)
    assert np.abs(g[:, :5]).min() > 1e-3


@pytest.mark.parametrize("beta", [0.03, 0.1, 0.4])
def test_t1_offline_ipo_with_unlimited_pairs_of_the_reference_attains_the_ceiling(world: World, beta: float) -> None:
    """Azar et al. with Gibbs: against the writer of the data nothing is better at equal KL, online included."""
    optimum = log_softmax(world.log_reference + theory.static(world, Pairs(world.data_weights, world.truth)).tilt(beta))
    best = tilted_to(world.win, float(world.kl(optimum)), world.log_reference)
    assert best is not None
    assert world.win_rate(optimum) == pytest.approx(float(world.win_rate(best)), abs=1e-10)
    (equilibrium,) = theory.equilibria(world, world.truth, np.array([beta]))
    assert equilibrium is not None
    above = tilted_to(world.win, float(world.kl(equilibrium)), world.log_reference)
    assert above is not None
    assert world.win_rate(equilibrium) < world.win_rate(above) - 1e-7


def test_online_ends_at_its_equilibrium(world: World) -> None:
    judged = preference(fit_judge(world, draw_labels(world, 200, 1), 4))
    betas = np.array([0.6, 0.3])
    for beta, found in zip(betas, theory.equilibria(world, judged, betas), strict=True):
        assert found is not None
        first, second = ends_of_pairs(6)
        p = np.full((5, 6, 6), 0.5)
        p[:, first, second], p[:, second, first] = judged, 1 - judged
        against = np.einsum("pij,pj->pi", p, np.exp(found))
        np.testing.assert_allclose(found, log_softmax(world.log_reference + against / beta), atol=1e-9)
        path = train(PolicyClass(world), OnPolicy(judged[None]), target(float(beta)), 1, np.full(800, 0.5))
        assert path.kl[-1, 0] == pytest.approx(float(world.kl(found)), abs=1e-4)
        assert path.win[-1, 0] == pytest.approx(float(world.win_rate(found)), abs=1e-4)


def test_a_linear_policy_s_equilibrium_is_where_its_gradient_vanishes(world: World) -> None:
    judged = preference(fit_judge(world, draw_labels(world, 200, 2), 4))
    for beta, found in zip(
        (0.5, 0.2), theory.equilibria(world, judged, np.array([0.5, 0.2]), world.features), strict=True
    ):
        assert found is not None
        policies = linear(world)
        sizes = np.full(400, 0.5 / policies.curvature())
        path = train(policies, OnPolicy(judged[None]), target(beta), 1, sizes)
        assert path.kl[-1, 0] == pytest.approx(float(world.kl(found)), abs=1e-5)
        assert path.win[-1, 0] == pytest.approx(float(world.win_rate(found)), abs=1e-5)


# --------------------------------------------------------------------------------------------------- one trainer, twins


def test_the_arms_differ_in_their_source_and_in_nothing_else(world: World) -> None:
    """Served the truth on the reference's pairs, offline takes online's first step; then online's pairs move."""
    policies, sizes = PolicyClass(world), step_sizes(30, PolicyClass(world).curvature(), 1)
    offline, online = Fixed(one(Pairs(world.data_weights, world.truth))), OnPolicy(world.truth[None])
    first = [train(policies, source, target(0.1), 1, sizes[:1]).theta for source in (offline, online)]
    np.testing.assert_allclose(first[0], first[1], atol=1e-14)
    later = [train(policies, source, target(0.1), 1, sizes).theta for source in (offline, online)]
    assert np.abs(later[0] - later[1]).max() > 1e-3
    words = inspect.getsource(learn.train)
    assert not any(word in words for word in ("isinstance", "OnPolicy", "Fixed", "online", "offline"))


class Recording:
    """A source that keeps what another one serves; and, given what was kept, the twin's source."""

    def __init__(self, source: Source | None, kept: list[Pairs]) -> None:
        self.source, self.kept, self.at = source, kept, 0

    def draw(self, log_policy: Array) -> Pairs:
        if self.source is not None:
            self.kept.append(self.source.draw(log_policy))
        self.at += 1
        return self.kept[self.at - 1]


@pytest.mark.parametrize("kind", ["table", "linear"])
def test_a_recording_served_again_makes_the_same_policy(world: World, kind: str) -> None:
    policies = PolicyClass(world) if kind == "table" else linear(world)
    sizes = step_sizes(40, policies.curvature(), 5)
    recording = Recording(OnPolicy(preference(fit_judge(world, draw_labels(world, 100, 3), 4))[None]), [])
    online = train(policies, recording, target(0.1), 1, sizes)
    assert len(recording.kept) == 40
    twin = train(policies, Recording(None, recording.kept), target(0.1), 1, sizes)
    np.testing.assert_array_equal(online.theta, twin.theta)
    np.testing.assert_array_equal(online.win, twin.win)


def test_a_stack_of_runs_is_the_runs_one_by_one(world: World) -> None:
    policies, sizes = PolicyClass(world), step_sizes(20, PolicyClass(world).curvature(), 5)
    every = [uneven(world, seed) for seed in range(3)]
    stack = Pairs(np.stack([p.weights for p in every]), np.stack([p.p_first for p in every]))
    together = train(policies, Fixed(stack), target(0.2), 3, sizes)
    for r, pairs in enumerate(every):
        alone = train(policies, Fixed(one(pairs)), target(0.2), 1, sizes)
        np.testing.assert_allclose(together.theta[r], alone.theta[0], atol=1e-13)


# ------------------------------------------------------------------------------------------------------ skewed pairs


def test_turning_points() -> None:
    a, b = math.tanh(0.5), math.tanh(1.0)
    assert theory.turning_point(hard=False) == pytest.approx((2 * a + b) / (4 * a + b), abs=1e-12)
    assert theory.turning_point(hard=True) == pytest.approx(0.6, abs=1e-12)


@pytest.mark.parametrize("hard", [False, True])
def test_offline_turns_round_at_the_turning_point_and_online_does_not(hard: bool) -> None:
    point = theory.turning_point(hard)
    grid = skewed.SkewedGrid(shares=(point - 0.1, point + 0.1), labels=(math.inf,), betas=(0.01,), steps=200)
    every = [case for case in skewed.cases([], grid) if case.hard == hard]
    runs = pd.DataFrame(skewed.train_all(every, grid))
    said = pd.DataFrame([row for case in every for row in skewed.predict(case, grid)])
    keys = ["share", "arm"]
    both = runs.merge(said, on=keys, suffixes=("", "_said"))
    assert (both["right"] == both["right_said"]).all()
    assert both["right"].tolist().count(False) == 1
    assert both.loc[~both["right"], "arm"].tolist() == [OFFLINE]
    for column in ("win_at_0.25", "win_at_0.5"):
        known = both.dropna(subset=[column, f"{column}_said"])
        assert len(known) >= 3
        np.testing.assert_allclose(known[column], known[f"{column}_said"], atol=2e-3)
    below, above = (both[(both["share"] == s)].set_index("arm")["win_at_0.25"] for s in grid.shares)
    assert below["online-golden"] - below[OFFLINE] == pytest.approx(0.0, abs=2e-3)
    assert above["online-golden"] - above[OFFLINE] > 0.1
    assert above[OFFLINE] < 0.5


def test_the_forecast_of_wrong_draws() -> None:
    assert skewed.wrong_share(0.3, math.inf) == 0.0
    assert skewed.wrong_share(0.9, math.inf) == 1.0
    assert skewed.wrong_share(theory.turning_point(False), 500) == pytest.approx(0.5, abs=1e-6)
    share, n = 0.62, 300
    world = skewed.skewed(share)
    wrong = [skewed.direction(world, draw_labels(world, n, seed).pairs()) > 0 for seed in range(400)]
    assert np.mean(wrong) == pytest.approx(skewed.wrong_share(share, n), abs=0.08)


# -------------------------------------------------------------------------------------------- views, claims, verdicts


def table_of(wins: dict[tuple[str, int, float], float]) -> pd.DataFrame:
    """Runs (arm, seed, beta) -> win rate at 1 nat; nan where it is not reached."""
    rows = [
        {"seed": s, "policy": "table", "labels": 250.0, "sees": 8, "arm": a, "beta": b, "win_at_1": w,
         "kl_end": 0.4 / b, "win_end": 0.5 + 0.2 * math.sqrt(0.4 / b)}
        for (a, s, b), w in wins.items()
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_betas_are_chosen_on_spent_seeds_and_fall_back_where_not_reached() -> None:
    nan = math.nan
    spent = table_of({
        (ONLINE, 1, 0.1): 0.7, (ONLINE, 1, 0.2): 0.8, (ONLINE, 1, 0.3): 0.95,
        (ONLINE, 2, 0.1): 0.7, (ONLINE, 2, 0.2): 0.8, (ONLINE, 2, 0.3): nan,
        (OFFLINE, 1, 0.1): 0.6, (OFFLINE, 1, 0.2): 0.5, (OFFLINE, 2, 0.1): 0.6, (OFFLINE, 2, 0.2): 0.5,
    })  # fmt: skip
    choices = capacity.choose(spent, [1.0])
    assert choices.set_index("arm")["beta"].to_dict() == {ONLINE: 0.2, OFFLINE: 0.1}
    judged = table_of({
        (ONLINE, 5, 0.1): 0.65, (ONLINE, 5, 0.2): 0.75, (ONLINE, 5, 0.3): 0.99,
        (ONLINE, 6, 0.1): 0.66, (ONLINE, 6, 0.2): nan, (ONLINE, 6, 0.3): nan,
        (OFFLINE, 5, 0.1): 0.6, (OFFLINE, 5, 0.2): 0.9, (OFFLINE, 6, 0.1): nan, (OFFLINE, 6, 0.2): nan,
    })  # fmt: skip
    wins = capacity.chosen_wins(judged, choices).set_index(["arm", "seed"])["win"].to_dict()
    assert wins == {(ONLINE, 5): 0.75, (ONLINE, 6): 0.66, (OFFLINE, 5): 0.6}
    gaps = capacity.gaps(capacity.chosen_wins(judged, choices))
    assert gaps["seed"].tolist() == [5]
    assert gaps["gap"].tolist() == pytest.approx([0.15])


def test_ends_are_interpolated_in_kl() -> None:
    runs = table_of({(ONLINE, 1, b): 0.0 for b in (0.8, 0.5, 0.3, 0.2)})
    ends = capacity.end_wins(runs, [0.5, 1.0, 1.7, 3.0]).set_index("kl")["win"]
    assert list(ends.index) == [0.5, 1.0, 1.7]  # 3 nats are beyond the last end, at 2
    np.testing.assert_allclose(ends, 0.5 + 0.2 * np.sqrt(ends.index.to_numpy()), atol=1e-9)


def test_crossings_are_the_first_and_nan_where_there_is_none() -> None:
    kl, win = np.array([0.0, 0.4, 1.2, 0.8, 2.0]), np.array([0.5, 0.6, 0.8, 0.9, 0.95])
    found = capacity.crossings(kl, win, [1.0, 2.0, 5.0])
    assert found["win_at_1"] == pytest.approx(0.75)
    assert found["win_at_2"] == pytest.approx(0.95)
    assert math.isnan(found["win_at_5"])


def gaps_of(values: np.ndarray) -> pd.DataFrame:
    cell = {"policy": "table", "labels": 250.0, "sees": 8, "kl": 1.0}
    return pd.DataFrame([{"seed": i, **cell, "gap": v} for i, v in enumerate(values)])


def test_verdicts() -> None:
    rng = np.random.default_rng(0)
    cell = ("table", 250.0, 8)
    says = {
        name: Claim(name, name, cell, 1.0) for name in ("ahead", "behind", "none")
    }  # fmt: skip

    def verdict(values: np.ndarray, name: str) -> str:
        return str(judge(gaps_of(values), gaps_of(values), [says[name]])["verdict"][0])

    lead, nothing, wide = 0.08 + 0.02 * rng.normal(size=20), 0.01 * rng.normal(size=20), 0.3 * rng.normal(size=20)
    assert verdict(lead, "ahead") == "supported"
    assert verdict(-lead, "ahead") == "contradicted"
    assert verdict(lead, "behind") == "contradicted"
    assert verdict(lead, "none") == "contradicted"
    assert verdict(nothing, "none") == "supported"
    assert verdict(wide, "none") == "inconclusive"
    assert verdict(wide, "ahead") == "inconclusive"
    assert verdict(lead[:9], "ahead") == "inconclusive"  # fewer seeds than a verdict needs
    assert 0.02 < p_value(0.015 + 0.005 * rng.normal(size=5), "none", margin=0.02) < 0.9


def test_holm_is_that_of_statsmodels() -> None:
    p = [0.001, 0.04, 0.03, 0.5, 0.012]
    np.testing.assert_allclose(holm(p), multipletests(p, method="holm")[1])
    with_nan = holm([0.01, math.nan, 0.02])
    assert with_nan[0] == pytest.approx(0.02)
    assert math.isnan(with_nan[1])


def test_a_contrast_of_cells_is_paired_by_seed() -> None:
    few, many = gaps_of(np.array([0.1, 0.2, 0.4])), gaps_of(np.array([0.05, 0.1]))
    both = pd.concat([few, many.assign(labels=4000.0)])
    claim = Claim("shrinks", "ahead", ("table", 250.0, 8), 1.0, ("table", 4000.0, 8))
    np.testing.assert_allclose(claim.values(both), [0.05, 0.1])


def test_every_primary_claim_is_about_a_cell_of_the_study() -> None:
    grid = Grid()
    for claim in claims.PRIMARY:
        for policy, labels, sees in (claim.cell, *([claim.beyond] if claim.beyond else [])):
            assert labels in grid.labels
            assert sees in (grid.sees if policy == "table" else grid.linear_sees)
        assert claim.kl in grid.budgets


# ------------------------------------------------------------------------------------------------------- the command

MINI = (
    *("--seeds", "2", "--spent", "1", "--labels", "200", "all", "--sees", "8", "0", "--betas", "0.3", "0.08"),
    *("--budgets", "0.3", "1", "--steps", "60", "--prompts", "6", "--responses", "6", "--workers", "1"),
)


def test_the_command_predicts_first_and_then_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "capacity"
    assert main(["exact", "capacity", *MINI, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert said.index("predictions:") < said.index("seed 2 of 2\n", said.index("predictions:"))
    about = json.loads((out / "predictions.json").read_text())
    assert about["sha256"] == hashlib.sha256((out / "predictions.parquet").read_bytes()).hexdigest()
    assert (out / "predictions.json").stat().st_mtime_ns <= (out / "runs.parquet").stat().st_mtime_ns
    columns = capacity.run_columns([0.3, 1.0])
    runs, predictions = (read_runs(out / f"{name}.parquet", columns) for name in ("runs", "predictions"))
    assert len(runs) == len(predictions)
    assert set(runs["labels"]) == {200.0, math.inf}
    keys = ["seed", "policy", "labels", "sees", "arm", "beta"]
    both = runs.merge(predictions, on=keys, suffixes=("", "_said"))
    assert len(both) == len(runs)
    offline = both[both["arm"] == OFFLINE].dropna(subset="win_at_0.3")
    assert len(offline) > 4
    np.testing.assert_allclose(offline["win_at_0.3"], offline["win_at_0.3_said"], atol=1e-9)  # static: known exactly
    online = both[both["arm"] == ONLINE].dropna(subset=["win_at_0.3", "win_at_0.3_said"])
    assert np.abs(online["win_at_0.3"] - online["win_at_0.3_said"]).max() < 0.05
    summary = (out / "summary.md").read_text()
    assert "Primary family" in summary
    assert about["sha256"][:16] in summary
    assert (out / "figures" / "phase.png").stat().st_size > 5000
    assert 0.3 in set(pd.read_csv(out / "calibration.csv")["kl"])
    again = tmp_path / "again"
    assert main(["exact", "capacity", *MINI, "--out", str(again)]) == 0
    pd.testing.assert_frame_equal(runs, read_runs(again / "runs.parquet", columns))


def test_the_skewed_command(tmp_path: Path) -> None:
    out = tmp_path / "skewed"
    assert main(["exact", "skewed", "--seeds", "1", "--workers", "1", "--out", str(out)]) == 0
    exact = pd.read_csv(out / "exact.csv").dropna()
    np.testing.assert_allclose(exact["measured"], exact["predicted"], atol=5e-3)
    assert (exact["measured"].abs() > 0.1).any()
    assert "0.6459" in (out / "summary.md").read_text()
    drawn = pd.read_csv(out / "drawn.csv")
    assert (drawn["offline, as predicted"] == 1.0).all()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--seeds", "0"], "must be positive"),
        (["--first-seed", str(SPENT - 1), "--seeds", "5"], "none of the spent ones"),
        (["--labels", "many"], "whole numbers or `all`"),
        (["--betas", "0.1", "0.2"], "falling order"),
        (["--sees", "9"], "between 0 and 8"),
    ],
)
def test_bad_input_gets_one_line(
    words: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["exact", "capacity", "--out", str(tmp_path / "out"), *words]) == 2
    assert says in complaint(capsys.readouterr().err)


def test_a_folder_in_use_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["exact", "skewed", "--out", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err
