"""Calibrated spread: it finds a known factor, and leaves trees, means and the centre alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from structdiff.pose.kinematics import DIRECTION, LENGTH, compose, decompose
from structdiff.pose.sampling import FrameNoise
from structdiff.pose.skeletons import H36M_17
from structdiff.pose.spread import calibrated_factor, covered, spread_of, widened
from structdiff.state import State
from support.poses import relative, walker

BONES = list(H36M_17.bones)


def person(frames: int = 60) -> Tensor:
    return torch.from_numpy(relative(walker(frames)))


def drawn(mean: Tensor, std: float, count: int, seed: int = 0) -> Tensor:
    """Hypotheses (H, T, J, 3): every joint about the mean, centred as a model's are."""
    noise = FrameNoise(seed, torch.arange(len(mean))[None], count, torch.device("cpu"))
    off = noise.normal(DIRECTION, mean[None].expand(count, -1, -1, -1))
    found = mean + std * off
    return found - found[..., :1, :]


def truth(mean: Tensor, std: float, seed: int) -> Tensor:
    off = std * torch.randn(mean.shape, generator=torch.Generator().manual_seed(seed))
    return relative(mean + off)


def bent(mean: Tensor, size: float, seed: int = 0) -> Tensor:
    """Pairs of hypotheses (2, T, J, 3) whose bones lie on either side of the mean's."""
    bones = decompose(mean, H36M_17)
    generator = torch.Generator().manual_seed(seed)
    towards = bones[DIRECTION]
    off = torch.randn(towards.shape, generator=generator)
    off = off - (off * towards).sum(-1, keepdim=True) * towards
    away = torch.stack((towards + size * off, towards - size * off))
    longer = 1 + size * torch.rand(bones[LENGTH].shape, generator=generator) / 4
    lengths = torch.stack((bones[LENGTH] * longer, bones[LENGTH] * (2 - longer)))
    unit = away / away.norm(dim=-1, keepdim=True).clamp(min=1e-9)
    return compose(State({LENGTH: lengths, DIRECTION: unit}), H36M_17)


# --- the standard deviation ------------------------------------------------------------------
def test_the_spread_of_centred_hypotheses_is_that_of_one_of_them():
    mean = torch.zeros(4000, 17, 3)
    noise = FrameNoise(0, torch.arange(4000)[None], 5, torch.device("cpu"))
    hypotheses = mean + 0.1 * noise.normal(DIRECTION, mean[None].expand(5, -1, -1, -1))
    variance = spread_of(hypotheses).square().mean()
    assert float(variance) == pytest.approx(0.01, rel=0.01)


def test_one_hypothesis_has_no_spread():
    assert float(spread_of(person()[None]).abs().max()) == 0


# --- finding the factor ----------------------------------------------------------------------
@pytest.mark.parametrize("wrong", [0.25, 1.0, 3.0])
def test_a_known_factor_is_found(wrong):
    """Hypotheses ``wrong`` times as wide as the errors: the factor is 1 / wrong."""
    mean, std = person(120), 0.002  # small beside the bones, so that turning is like moving
    clips = [drawn(mean, wrong * std, 8, seed) for seed in range(4)]
    errors = [truth(mean, std, 50 + seed) for seed in range(4)]
    factor = calibrated_factor(clips, errors, H36M_17)
    wide = [widened(h, H36M_17, factor) for h in clips]
    assert covered(wide, errors, H36M_17) == pytest.approx(0.8, abs=0.02)
    # Of 8 centred hypotheses the deviation varies, which costs a few percent of coverage.
    assert factor == pytest.approx(1 / wrong, rel=0.15)


def test_coverage_holds_on_clips_that_were_not_calibrated_on():
    mean, std = person(120), 0.002  # small beside the bones, so that turning is like moving
    factor = calibrated_factor(
        [drawn(mean, 3 * std, 8, seed) for seed in range(4)],
        [truth(mean, std, 50 + seed) for seed in range(4)],
        H36M_17,
    )
    fresh = [widened(drawn(mean, 3 * std, 8, 90 + seed), H36M_17, factor) for seed in range(4)]
    errors = [truth(mean, std, 70 + seed) for seed in range(4)]
    assert covered(fresh, errors, H36M_17) == pytest.approx(0.8, abs=0.02)


def test_coverage_is_the_share_inside_the_normal_quantile():
    # 80 % of a normal law lie within 1.2816 standard deviations.
    mean = person(400)
    hypotheses = mean + torch.tensor([0.01, -0.01])[:, None, None, None]
    exact = truth(mean, 0.01, 3)
    exact = mean + (exact - mean) / math.sqrt(2)  # the root's error left every joint
    assert covered([hypotheses], [exact], H36M_17) == pytest.approx(0.8, abs=0.01)
    assert covered([hypotheses], [mean], H36M_17) == 1.0
    assert covered([hypotheses], [mean + 1.0], H36M_17) == 0.0


def test_the_root_does_not_count():
    mean = person(5)
    moved = mean.clone()
    moved[:, BONES] += 1.0
    assert covered([mean.repeat(2, 1, 1, 1)], [moved], H36M_17) == 0.0


def test_every_clip_counts_by_its_coordinates():
    long, short = person(90), person(10)
    pairs = [(p + torch.tensor([0.01, -0.01])[:, None, None, None]) for p in (long, short)]
    assert covered(pairs, [long, short + 1.0], H36M_17) == pytest.approx(0.9)


# --- widening --------------------------------------------------------------------------------
@pytest.mark.parametrize("factor", [0.3, 1.0, 2.5])
def test_widened_hypotheses_are_trees_about_the_same_root(factor):
    found = widened(drawn(person(), 0.005, 5), H36M_17, factor)
    bones = decompose(found, H36M_17)
    assert bool(found.isfinite().all()) and float(found[..., 0, :].abs().max()) < 1e-6
    norms = bones[DIRECTION][..., BONES, :].norm(dim=-1)
    assert torch.allclose(norms, torch.ones_like(norms), atol=1e-5)
    assert torch.allclose(compose(bones, H36M_17), found, atol=1e-5)


@pytest.mark.parametrize("factor", [0.3, 2.5])
def test_widening_keeps_mean_lengths_and_the_mean_direction(factor):
    pair = bent(person(), 0.1)
    before, after = (decompose(p, H36M_17) for p in (pair, widened(pair, H36M_17, factor)))
    assert torch.allclose(before[LENGTH].mean(0), after[LENGTH].mean(0), atol=1e-5)
    means = [bones[DIRECTION].mean(0)[:, BONES] for bones in (before, after)]
    cosine = torch.nn.functional.cosine_similarity(*means, dim=-1)
    assert float(cosine.min()) > 1 - 1e-5


@pytest.mark.parametrize("factor", [0.3, 2.5])
def test_deviations_grow_by_the_factor(factor):
    pair = bent(person(), 0.02)
    before, after = (decompose(p, H36M_17) for p in (pair, widened(pair, H36M_17, factor)))
    lengths = [(bones[LENGTH][0] - bones[LENGTH][1])[:, BONES] for bones in (before, after)]
    assert torch.allclose(lengths[1], factor * lengths[0], atol=1e-6)
    angles = [(bones[DIRECTION][0] - bones[DIRECTION][1]).norm(dim=-1) for bones in (before, after)]
    ratio = (angles[1] / angles[0])[:, BONES]
    # To first order in the angle, here 0.03 on average and below 0.1.
    assert float((ratio / factor).mean()) == pytest.approx(1, abs=0.01)


def test_a_factor_of_1_and_a_single_hypothesis_change_nothing():
    hypotheses = drawn(person(), 0.03, 4)
    assert widened(hypotheses, H36M_17, 1.0) is hypotheses
    assert widened(hypotheses[:1], H36M_17, 3.0) is not None
    assert torch.equal(widened(hypotheses[:1], H36M_17, 3.0), hypotheses[:1])


def test_lengths_stay_positive_however_wide():
    found = widened(bent(person(), 0.5), H36M_17, 10.0)
    assert bool((decompose(found, H36M_17)[LENGTH] >= 0).all()) and bool(found.isfinite().all())
