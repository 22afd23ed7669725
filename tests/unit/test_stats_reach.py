"""The ceiling, the first-order law and the split at reach, held against enumeration in a world without sampling."""

from __future__ import annotations

import math

import numpy as np
import pytest

from aligngap.exact.worlds import World, capacity, log_softmax
from aligngap.stats.ceiling import ceiling, efficiency, strength_at, tilted_to
from aligngap.stats.first_order import first_order
from aligngap.stats.reach import split, within_from_reference
from aligngap.types import AligngapError

Array = np.ndarray


@pytest.fixture(scope="module")
def world() -> World:
    return capacity(seed=3, prompts=10, responses=9)


def drawn(log_policy: Array, n: int, rng: np.random.Generator) -> Array:
    """n responses [P, n] of a policy [P, K]."""
    return np.stack([rng.choice(len(row), size=n, p=np.exp(row)) for row in log_policy])


def other(world: World, seed: int, size: float = 1.0) -> Array:
    """Some policy that is no tilt of the reference by q."""
    return log_softmax(world.log_reference + size * np.random.default_rng(seed).normal(size=world.reward.shape))


def at(values: Array, index: Array) -> Array:
    return np.take_along_axis(values, index, axis=1)


# ------------------------------------------------------------------------------------------------------- the ceiling


@pytest.mark.parametrize("kl", [0.2, 1.0, 1.8])
def test_no_policy_of_the_same_kl_is_above_the_ceiling(world: World, kl: float) -> None:
    best = tilted_to(world.win, kl, world.log_reference)
    assert best is not None
    assert world.kl(best) == pytest.approx(kl, abs=1e-9)
    top = world.win_rate(best)
    for seed in range(40):
        # any direction, scaled to the same KL; and directions near the ceiling's own
        noise = np.random.default_rng(seed).normal(size=world.win.shape) * (1.0 if seed % 2 else 0.05)
        rival = tilted_to(world.win + noise, kl, world.log_reference)
        if rival is not None:
            assert world.kl(rival) == pytest.approx(kl, abs=1e-9)
            assert world.win_rate(rival) < top


def test_a_tilt_per_prompt_is_no_better_than_one_for_all(world: World) -> None:
    best = tilted_to(world.win, 0.8, world.log_reference)
    each = [tilted_to(world.win[[p]], 0.8, world.log_reference[[p]]) for p in range(len(world.win))]
    assert best is not None
    equal = np.concatenate([row for row in each if row is not None])
    assert len(equal) == len(world.win)
    assert world.win_rate(equal) < world.win_rate(best)


def test_sampled_ceiling_meets_the_enumerated_one(world: World) -> None:
    exact = ceiling(world.win, world.win, 1.0, world.log_reference, floor=0.0)
    assert exact is not None
    assert exact.gain.value == pytest.approx(
        float(world.win_rate(tilted_to(world.win, 1.0, world.log_reference))) - 0.5
    )
    samples = at(world.win, drawn(world.log_reference, 4000, np.random.default_rng(0)))
    found = ceiling(samples, samples, 1.0)
    assert found is not None
    assert found.gain.value == pytest.approx(exact.gain.value, abs=0.01)
    assert found.gain.se == pytest.approx(exact.gain.se, rel=0.1)
    assert found.ess_low > 50


def test_disjoint_opponents_keep_noise_out_of_the_ceiling(world: World) -> None:
    """Tilting and scoring by one noisy q lifts the ceiling; the split does not, and is below the truth if anything."""
    rng = np.random.default_rng(1)
    index = drawn(world.log_reference, 2000, rng)
    truth = at(world.win, index)
    first, second = (truth + 0.5 * rng.normal(size=truth.shape) for _ in range(2))
    honest, exact = ceiling(first, second, 0.5), ceiling(truth, truth, 0.5)
    same = ceiling(first, first, 0.5)
    assert honest is not None
    assert exact is not None
    assert same is not None
    assert same.gain.value > exact.gain.value + 0.1
    assert honest.gain.value < exact.gain.value + 0.01


def test_the_ceiling_ends_where_effective_samples_do(world: World) -> None:
    samples = at(world.win, drawn(world.log_reference, 200, np.random.default_rng(2)))
    assert ceiling(samples, samples, 0.3) is not None
    assert ceiling(samples, samples, 1.6) is None  # fewer than 50 of 200 effective samples are left
    assert ceiling(samples, samples, 1.6, floor=5.0) is not None
    assert ceiling(samples, samples, 40.0, floor=0.0) is None  # no weights on 200 samples have 40 nats
    assert strength_at(world.win, 9.0, world.log_reference) is None
    with pytest.raises(AligngapError, match="positive number of nats"):
        strength_at(world.win, 0.0)
    with pytest.raises(AligngapError, match=r"\[P, n\]"):
        ceiling(samples, samples[:, 1:], 0.3)


def test_efficiency_is_a_ratio_with_an_error_over_prompts(world: World) -> None:
    best = ceiling(world.win, world.win, 0.7, world.log_reference, floor=0.0)
    assert best is not None
    whole = efficiency(best.gains, best)
    assert whole.value == pytest.approx(1.0)
    assert whole.se == pytest.approx(0.0, abs=1e-12)
    half = efficiency(0.5 * best.gains, best)
    assert half.value == pytest.approx(0.5)
    policy = tilted_to(-world.win, 0.7, world.log_reference)
    assert policy is not None
    gains = ((np.exp(policy) - np.exp(world.log_reference)) * world.win).sum(-1)
    assert efficiency(gains, best).value < 0
    assert efficiency(gains, best).se > 0
    with pytest.raises(AligngapError, match="prompts against"):
        efficiency(gains[1:], best)


# -------------------------------------------------------------------------------------------- the first-order law


def test_the_law_holds_as_kl_vanishes_and_not_beyond(world: World) -> None:
    direction = other(world, 5) - world.log_reference + 2.0 * world.win
    reference = np.exp(world.log_reference)
    law = first_order(direction, world.win, reference)
    ratios = []
    for size in (0.01, 0.1, 1.0, 3.0):
        policy = log_softmax(world.log_reference + size * direction)
        kl, gain = float(world.kl(policy)), float(world.win_rate(policy)) - 0.5
        g = policy - world.log_reference
        assert first_order(g, world.win, reference).rho.value == pytest.approx(law.rho.value)  # scale and constants
        ratios.append(law.gain(kl) / gain)
    assert ratios[0] == pytest.approx(1.0, abs=0.01)
    assert abs(ratios[1] - 1.0) < 0.1
    assert ratios[3] > 1.1  # it overstates
    assert law.slope.value == pytest.approx(law.rho.value * law.sd_q.value)


def test_rho_is_one_along_q_and_attenuated_by_noise(world: World) -> None:
    reference = np.exp(world.log_reference)
    along = first_order(3.0 * world.win, world.win, reference)
    assert along.rho.value == pytest.approx(1.0)
    assert along.rho.se == pytest.approx(0.0, abs=1e-12)
    rng = np.random.default_rng(4)
    index = drawn(world.log_reference, 3000, rng)
    g, q = at(other(world, 6) - world.log_reference + world.win, index), at(world.win, index)
    clean, noisy = first_order(g, q), first_order(g, q + 0.3 * rng.normal(size=q.shape))
    assert abs(noisy.rho.value) < abs(clean.rho.value)
    assert noisy.slope.value == pytest.approx(clean.slope.value, abs=0.02)  # only the product compares


def test_sampled_law_meets_the_enumerated_one(world: World) -> None:
    g = other(world, 7) - world.log_reference + world.win
    exact = first_order(g, world.win, np.exp(world.log_reference))
    index = drawn(world.log_reference, 3000, np.random.default_rng(8))
    found = first_order(at(g, index), at(world.win, index))
    for name in ("rho", "sd_q", "slope"):
        assert getattr(found, name).value == pytest.approx(getattr(exact, name).value, abs=0.03)
        assert getattr(found, name).se == pytest.approx(getattr(exact, name).se, rel=0.3)
    with pytest.raises(AligngapError, match="n above 1"):
        first_order(g[:, :1], world.win[:, :1])


# ---------------------------------------------------------------------------------------------- the split at reach


@pytest.mark.parametrize("threshold", [-1.0, 0.0, 0.5, 2.0, 50.0])
def test_the_split_sums_to_the_gain_to_the_last_digit(world: World, threshold: float) -> None:
    policy = other(world, 9, 2.0)
    g = policy - world.log_reference
    q0 = (np.exp(world.log_reference) * world.win).sum(-1)
    exact = split(world.win, q0, g, threshold, np.exp(policy))
    assert exact.within.value + exact.beyond.value == exact.gain.value
    assert exact.gain.value == pytest.approx(float(world.win_rate(policy)) - 0.5, abs=1e-14)
    near = g <= threshold
    assert exact.within.value == pytest.approx(
        float((np.exp(policy) * (world.win - 0.5) * near).sum(-1).mean()), abs=1e-3
    )
    assert exact.share_within.value == pytest.approx(float((np.exp(policy) * near).sum(-1).mean()))
    index = drawn(policy, 3000, np.random.default_rng(10))
    found = split(at(world.win, index), q0, at(g, index), threshold)
    assert found.within.value + found.beyond.value == found.gain.value
    for name in ("gain", "within", "beyond", "share_within"):
        assert getattr(found, name).value == pytest.approx(getattr(exact, name).value, abs=0.015)
        assert getattr(found, name).n == len(world.win)


def test_the_means_on_either_side_are_what_the_parts_are_made_of(world: World) -> None:
    policy = other(world, 11, 2.0)
    q0 = np.full(len(world.win), 0.5)
    found = split(world.win, q0, policy - world.log_reference, 0.7, np.exp(policy))
    assert found.mean_within.value * found.share_within.value == pytest.approx(found.within.value)
    assert found.mean_beyond.value * (1 - found.share_within.value) == pytest.approx(found.beyond.value)
    assert found.mean_within.se > 0
    everything = split(world.win, q0, policy - world.log_reference, 99.0, np.exp(policy))
    assert everything.beyond.value == 0.0
    assert math.isnan(everything.mean_beyond.value)
    with pytest.raises(AligngapError, match=r"\[P, n\]"):
        split(world.win, q0[1:], world.win, 1.0)


def test_the_reference_s_own_samples_give_the_part_within_reach(world: World) -> None:
    policy = other(world, 12)
    g, q0 = policy - world.log_reference, (np.exp(world.log_reference) * world.win).sum(-1)
    exact = split(world.win, q0, g, 0.8, np.exp(policy)).within
    same = within_from_reference(world.win, q0, g, 0.8, np.exp(world.log_reference))
    assert same.value == pytest.approx(exact.value, abs=1e-14)
    index = drawn(world.log_reference, 4000, np.random.default_rng(13))
    assert within_from_reference(at(world.win, index), q0, at(g, index), 0.8).value == pytest.approx(
        exact.value, abs=0.01
    )
