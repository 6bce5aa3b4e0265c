"""The light lifter, and the Gaussian of its errors against dense linear algebra."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from structdiff.pose.denoising import mirrored_joints, pose_state
from structdiff.pose.kinematics import DIRECTION, LENGTH
from structdiff.pose.lifter import BoneGaussian, LightLifter, cosine_transform, lifted_bones
from structdiff.pose.skeletons import H36M_17, MPI_INF_3DHP_17
from structdiff.state import State
from support.poses import relative, walker

FRAMES = 7


def random_gaussian(frames: int = FRAMES, seed: int = 0) -> BoneGaussian:
    """Of variances within a factor of 20 of the first ones, in float64."""
    gaussian = BoneGaussian(frames, 17).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for raw in gaussian.raw.values():
            raw.add_(0.3 * torch.randn(raw.shape, generator=generator).double())
    return gaussian


def noisy(frames: int = FRAMES, batch: int = 3) -> tuple[State, State]:
    """Any numbers in place of noisy bones, and a lifter's bones."""
    generator = torch.Generator().manual_seed(1)
    joints = torch.from_numpy(relative(walker(batch * frames))).double()
    mean = pose_state(joints.unflatten(0, (batch, frames)), H36M_17, root_slot=False)
    x = mean.map(lambda v: torch.randn(v.shape, generator=generator).double())
    return x.masked(), mean


def scales(alpha: float) -> tuple[State, State]:
    """alpha and sigma with squares that add up to 1, another pair per window and component."""
    each = torch.tensor([alpha, 0.9 * alpha, 0.5 * alpha]).double().reshape(-1, 1, 1, 1)
    both = {LENGTH: each, DIRECTION: each.flip(0)}
    return State(both), State({k: torch.sqrt(1 - v**2) for k, v in both.items()})


# --- the cosine transform --------------------------------------------------------------------
@pytest.mark.parametrize("frames", [1, 2, 9, 27])
def test_the_cosine_transform_is_orthonormal(frames):
    matrix = cosine_transform(frames)
    assert torch.allclose(matrix @ matrix.T, torch.eye(frames).double(), atol=1e-12)


def test_the_cosine_transform_is_scipys():
    from scipy.fft import dct

    x = np.random.default_rng(0).normal(size=(9, 4))
    assert np.allclose(cosine_transform(9).numpy() @ x, dct(x, axis=0, norm="ortho"), atol=1e-12)


# --- the best linear estimate ----------------------------------------------------------------
@pytest.mark.parametrize("alpha", [0.02, 0.5, 0.95])
def test_the_estimate_is_the_mean_of_the_dense_gaussian_posterior(alpha):
    """E[b | x] = m + a S (a^2 S + s^2 I)^-1 (x - a m) with S = C^T diag(v) C, entry by entry."""
    gaussian, (x, mean), (a, s) = random_gaussian(), noisy(), scales(alpha)
    found = gaussian.estimate(x, mean, a, s)
    transform = cosine_transform(FRAMES)
    for name in x:
        variance = gaussian.variance(name).detach()
        for window in range(3):
            scale, sigma = float(a[name][window]), float(s[name][window])
            for joint in (1, 8, 16):
                for axis in range(variance.shape[-1]):
                    v = variance[:, joint, axis]
                    dense = transform.T @ torch.diag(v) @ transform
                    seen = scale**2 * dense + sigma**2 * torch.eye(FRAMES).double()
                    m = mean[name][window, :, joint, axis]
                    off = x[name][window, :, joint, axis] - scale * m
                    expected = m + scale * dense @ torch.linalg.solve(seen, off)
                    # The module keeps its transform in float32.
                    assert torch.allclose(found[name][window, :, joint, axis], expected, atol=1e-6)


def test_the_estimate_is_the_lifters_in_pure_noise():
    gaussian, (x, mean) = random_gaussian(), noisy()
    nothing = State({k: torch.zeros(3, 1, 1, 1).double() for k in x})
    found = gaussian.estimate(x, mean, nothing, nothing + 1.0)
    assert all(torch.allclose(found[k], mean[k], atol=1e-12) for k in x)


def test_the_estimate_is_the_bones_themselves_without_noise():
    gaussian, (x, mean) = random_gaussian(), noisy()
    nothing = State({k: torch.zeros(3, 1, 1, 1).double() for k in x})
    found = gaussian.estimate(x, mean, nothing + 1.0, nothing)
    assert all(torch.allclose(found[k], x[k], atol=1e-5) for k in x)


def test_the_estimate_leaves_the_root_slot_0_and_the_masks():
    gaussian, (x, mean), (a, s) = random_gaussian(), noisy(), scales(0.5)
    found = gaussian.estimate(x, mean, a, s)
    assert found.masks == x.masks
    assert all(float(found[k][..., H36M_17.root, :].abs().max()) == 0 for k in x)


def test_no_gradient_of_an_estimate_reaches_the_variances():
    gaussian, (x, mean), (a, s) = random_gaussian(), noisy(), scales(0.5)
    x = x.map(lambda v: v.clone().requires_grad_())
    gaussian.estimate(x, mean, a, s)[DIRECTION].sum().backward()
    assert all(raw.grad is None for raw in gaussian.raw.values())
    assert x[DIRECTION].grad is not None


@pytest.mark.parametrize(("alpha", "expected"), [(0.0, 1.0), (1.0, 0.0)])
def test_noise_leaves_all_open_and_data_nothing(alpha, expected):
    left = random_gaussian().left(torch.tensor(alpha), torch.tensor(math.sqrt(1 - alpha**2)))
    assert float(left) == pytest.approx(expected, abs=1e-6)


def test_what_is_left_open_is_the_posterior_deviation_in_parts_of_the_noises():
    gaussian = BoneGaussian(1, 17)
    with torch.no_grad():
        gaussian.raw[DIRECTION].fill_(math.log(0.04) / 10)
    a, s = 0.6, 0.8
    # sqrt(1 / (1 / v + a^2 / s^2)) / sqrt(v), v = 0.04
    expected = math.sqrt(1 / (1 / 0.04 + a**2 / s**2) / 0.04)
    found = gaussian.left(torch.tensor(a), torch.tensor(s))
    assert float(found) == pytest.approx(expected, rel=1e-5)


# --- learning the variances ------------------------------------------------------------------
def test_the_likelihood_finds_the_variances_of_the_errors():
    """Its minimum over v_f is the mean square of the errors' cosine transform."""
    frames, generator = 5, torch.Generator().manual_seed(0)
    truth = {
        LENGTH: 1e-4 * torch.tensor([4.0, 2.0, 1.0, 0.5, 0.1]),
        DIRECTION: torch.tensor([0.2, 0.1, 0.05, 0.02, 0.01]),
    }
    joints = torch.from_numpy(relative(walker(frames)))[None].expand(400, -1, -1, -1)
    mean = pose_state(joints, H36M_17, root_slot=False)
    back = cosine_transform(frames).float().T

    def off(name: str, value: torch.Tensor) -> torch.Tensor:
        drawn = torch.randn(value.shape, generator=generator) * truth[name][:, None, None].sqrt()
        return value + torch.einsum("nf,bfjc->bnjc", back, drawn)

    bones = mean.replace(**{name: off(name, value) for name, value in mean.items()}).masked()
    gaussian = BoneGaussian(frames, 17)
    optimiser = torch.optim.Adam(gaussian.parameters(), lr=0.02)
    for _ in range(150):
        optimiser.zero_grad()
        gaussian.surprise(bones, mean).mean().backward()
        optimiser.step()
    for name in truth:
        learnt = gaussian.variance(name).detach()[:, list(H36M_17.bones)]
        errors = torch.einsum("fn,bnjc->bfjc", back.T, bones[name] - mean[name])
        empirical = errors.square().mean(0)[:, list(H36M_17.bones)]
        assert torch.allclose(learnt, empirical, rtol=0.01)
        assert torch.allclose(learnt.mean((1, 2)), truth[name], rtol=0.05)


def test_the_surprise_is_the_negative_log_likelihood_up_to_a_constant():
    gaussian, (x, mean) = random_gaussian(), noisy()
    found = gaussian.surprise(x, mean)
    transform, expected = cosine_transform(FRAMES), torch.zeros(3).double()
    for name in x:
        variance = gaussian.variance(name).detach()
        deviation = torch.einsum("fn,bnjc->bfjc", transform, x[name] - mean[name])
        law = torch.distributions.Normal(0.0, variance.sqrt())
        nll = -law.log_prob(deviation) - 0.5 * math.log(2 * math.pi)
        nll[..., H36M_17.root, :] = 0
        expected += nll.flatten(1).mean(1)
    assert found.shape == (3,) and torch.allclose(found, expected, atol=1e-5)


def test_the_likelihood_moves_the_variances_only():
    gaussian = BoneGaussian(FRAMES, 17).double()
    x, mean = noisy()
    x = x.map(lambda v: v.clone().requires_grad_())
    mean = mean.map(lambda v: v.clone().requires_grad_())
    gaussian.surprise(x, mean).sum().backward()
    assert all(raw.grad is not None for raw in gaussian.raw.values())
    assert all(value.grad is None for value in (*x.values(), *mean.values()))


# --- the lifter ------------------------------------------------------------------------------
@pytest.mark.parametrize("skeleton", [H36M_17, MPI_INF_3DHP_17], ids=lambda s: s.name)
@pytest.mark.parametrize("frames", [1, 5, 27])
def test_the_lifter_gives_joints_about_the_root(skeleton, frames):
    torch.manual_seed(0)
    lifter = LightLifter(skeleton, width=8, blocks=2)
    joints = lifter(torch.randn(2, frames, 17, 2)).detach()
    assert joints.shape == (2, frames, 17, 3)
    assert float(joints[..., skeleton.root, :].abs().max()) == 0
    others = [j for j in range(17) if j != skeleton.root]
    assert float(joints[..., others, :].abs().min()) > 0


def test_the_lifter_sees_the_frames_around_and_no_others():
    torch.manual_seed(0)
    lifter = LightLifter(H36M_17, width=8, blocks=2, kernel=3).eval()
    x = torch.randn(1, 15, 17, 2)
    other = x.clone()
    other[:, 7] += 1.0
    moved = (lifter(x) != lifter(other)).flatten(2).any(-1)[0]
    assert moved.nonzero().flatten().tolist() == [5, 6, 7, 8, 9]  # one frame a block and side


def test_windows_are_lifted_apart():
    torch.manual_seed(0)
    lifter = LightLifter(H36M_17, width=8, blocks=1).eval()
    x = torch.randn(3, 5, 17, 2)
    assert torch.allclose(lifter(x)[1:2], lifter(x[1:2]), atol=1e-6)


def test_the_lifters_bones_pass_no_gradient_but_its_joints_do():
    lifter = LightLifter(H36M_17, width=8, blocks=1)
    joints, bones = lifted_bones(lifter, torch.randn(1, 5, 17, 2), H36M_17)
    assert joints.requires_grad
    assert not any(value.requires_grad for value in bones.values())


def test_mirroring_joints_twice_changes_nothing():
    joints = torch.randn(2, 3, 17, 3)
    assert torch.equal(mirrored_joints(mirrored_joints(joints, H36M_17), H36M_17), joints)
