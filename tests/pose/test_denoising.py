"""The pose network as the core calls it: mirror images, masks, the time it is told."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from structdiff.denoisers import Denoiser
from structdiff.pose.denoising import mirrored_joints, pose_state
from structdiff.pose.kinematics import DIRECTION, LENGTH, compose, mirror_bones
from structdiff.pose.models import build_denoiser
from structdiff.pose.process import cosine_chain, published_grid
from structdiff.pose.skeletons import H36M_17, MPI_INF_3DHP_17
from structdiff.samplers import DDPM
from structdiff.state import State
from support.poses import narrow_published, random_denoiser, relative, tiny_spec, walker

SPECS = {
    "corrected": tiny_spec(),
    "hop-bias": tiny_spec(spatial="hop-bias"),
    "plain": tiny_spec(spatial="plain", temporal="plain"),
    "3dhp": tiny_spec(skeleton=MPI_INF_3DHP_17),
    "paper": narrow_published(layout="corrected"),
    "reference": narrow_published(),
}
every_model = pytest.mark.parametrize("kind", list(SPECS))


def inputs(kind: str, batch: int = 2) -> tuple[Denoiser, State, Tensor, Tensor]:
    """A model, noisy bones (B, 9, 17, .), normalised 2D joints, and a time per window."""
    spec = SPECS[kind]
    denoiser = random_denoiser(spec)
    generator = torch.Generator().manual_seed(1)
    joints = torch.from_numpy(relative(walker(9 * batch))).unflatten(0, (batch, 9))
    clean = pose_state(joints, denoiser.network.skeleton, root_slot=spec.root_slot)
    t = torch.linspace(1.0, 0.1, batch, dtype=torch.float64)
    noisy = denoiser.system.perturb(clean, t, denoiser.system.noise(clean, 0))
    return denoiser, noisy, torch.randn(batch, 9, 17, 2, generator=generator) / 3, t


def near_truth(index: int) -> tuple[Denoiser, State, Tensor]:
    """A model whose lifter is off by centimetres, bones noisy at an index, and their joints."""
    denoiser = random_denoiser(SPECS["corrected"])
    truth = torch.from_numpy(relative(walker(18))).unflatten(0, (2, 9))
    off = 0.03 * torch.randn(2, 1, 17, 3, generator=torch.Generator().manual_seed(4))
    denoiser.network.lifter.forward = lambda _: relative(truth + off)
    clean = pose_state(truth, H36M_17, root_slot=False)
    t = cosine_chain().time_of(index)
    return denoiser, denoiser.system.perturb(clean, t, denoiser.system.noise(clean, 0)), truth


def close(one: State, other: State, tolerance: float = 1e-5) -> bool:
    """Whether bones are the same vectors, to 10 micrometres: short ones have no direction."""
    vectors = (bones[LENGTH] * bones[DIRECTION] for bones in (one, other))
    return bool(torch.allclose(*vectors, rtol=0, atol=tolerance))


# --- mirror images ---------------------------------------------------------------------------
@every_model
def test_with_flip_averaging_the_prediction_is_mirror_equivariant(kind):
    denoiser, x, seen, t = inputs(kind)
    skeleton = denoiser.network.skeleton
    denoiser.network.flip = True
    mirrored = denoiser(mirror_bones(x, skeleton), t, mirrored_joints(seen, skeleton))
    assert close(mirror_bones(denoiser(x, t, seen), skeleton), mirrored)


@every_model
def test_without_it_the_prediction_is_not(kind):
    """The models are random: what makes them equivariant is the flip test alone."""
    denoiser, x, seen, t = inputs(kind)
    skeleton = denoiser.network.skeleton
    mirrored = denoiser(mirror_bones(x, skeleton), t, mirrored_joints(seen, skeleton))
    assert not close(mirror_bones(denoiser(x, t, seen), skeleton), mirrored, 1e-3)


@every_model
def test_the_flip_test_is_the_mean_of_two_calls(kind):
    denoiser, x, seen, t = inputs(kind)
    network, skeleton = denoiser.network, denoiser.network.skeleton
    _, log_snr = denoiser.network_inputs(x, denoiser.system.times(t))
    plain = network.joints(x, log_snr, seen)
    other = network.joints(mirror_bones(x, skeleton), log_snr, mirrored_joints(seen, skeleton))
    expected = network.finished((plain + mirrored_joints(other, skeleton)) / 2)
    network.flip = True
    found = compose(network(x, log_snr, seen), skeleton)
    expected = expected - expected[..., skeleton.root, None, :]
    assert float((found - expected).detach().abs().max()) < 1e-5


@pytest.mark.parametrize("kind", ["corrected", "hop-bias"])
def test_mirrored_noise_gives_mirrored_samples(kind):
    """Card, check 5, over a whole run of the sampler."""
    denoiser, x, seen, _ = inputs(kind)
    skeleton = denoiser.network.skeleton
    denoiser.network.flip = True
    start = denoiser.system.prior(x, 3)
    sampler = DDPM(3, published_grid(3), eta=0.0)
    one = mirror_bones(sampler(denoiser, start, seen), skeleton)
    other = sampler(denoiser, mirror_bones(start, skeleton), mirrored_joints(seen, skeleton))
    assert close(one, other)


def test_training_does_not_flip():
    denoiser, x, seen, t = inputs("corrected")
    plain = denoiser(x, t, seen)
    denoiser.network.flip = True
    denoiser.train()
    assert close(plain, denoiser(x, t, seen), 1e-6)


# --- bones out -------------------------------------------------------------------------------
@every_model
def test_predictions_are_bones_with_unit_directions_and_an_empty_root_slot(kind):
    denoiser, x, seen, t = inputs(kind)
    skeleton = denoiser.network.skeleton
    found = denoiser(x, t, seen)
    norms = found[DIRECTION][..., list(skeleton.bones), :].norm(dim=-1)
    assert torch.allclose(norms, torch.ones_like(norms), atol=1e-5)
    assert bool((found[LENGTH] >= 0).all())
    assert not any(bool(found[k][..., skeleton.root, :].any()) for k in found)
    assert found.masks == x.masks


@every_model
def test_a_window_does_not_depend_on_its_batch_mates(kind):
    denoiser, x, seen, t = inputs(kind, 3)
    denoiser.network.flip = True
    alone = denoiser(x.take(slice(1, 2)), t[1:2], seen[1:2])
    assert close(denoiser(x, t, seen).take(slice(1, 2)), alone)


def test_the_published_network_clamps_its_joints_when_it_samples_only():
    network = random_denoiser(SPECS["reference"]).network
    assert float(network.finished(torch.tensor([-3.0, 0.5, 3.0])).abs().max()) == pytest.approx(1.1)
    network.train()
    assert float(network.finished(torch.tensor([3.0]))) == 3.0


def test_our_network_has_no_bound():
    network = random_denoiser(SPECS["corrected"]).network
    assert float(network.finished(torch.tensor([3.0]))) == 3.0


# --- what the network is told ----------------------------------------------------------------
@every_model
def test_the_network_is_told_the_index_of_the_chain(kind):
    denoiser, x, seen, _ = inputs(kind)
    asked = []
    denoiser.network.network.register_forward_pre_hook(lambda _, given: asked.append(given[1]))
    for index in (999, 499, 0):
        denoiser(x, cosine_chain().time_of(index), seen)
    assert [float(time[0]) for time in asked] == pytest.approx([999, 499, 0], abs=2e-2)


def test_the_published_features_are_keypoints_direction_and_length():
    denoiser, x, seen, t = inputs("reference")
    given = []
    denoiser.network.network.register_forward_pre_hook(lambda _, args: given.append(args[0]))
    denoiser(x, t, seen)
    clamped = [x[name].clamp(-1.1, 1.1) for name in (DIRECTION, LENGTH)]
    assert torch.equal(given[0], torch.cat((seen, *clamped), dim=-1))


@pytest.mark.parametrize("index", [0, 499, 999])
def test_features_have_about_unit_size_at_every_noise_level(index):
    denoiser, noisy, _ = near_truth(index)
    given = []
    denoiser.network.network.register_forward_pre_hook(lambda _, args: given.append(args[0]))
    denoiser(noisy, cosine_chain().time_of(index), torch.zeros(2, 9, 17, 2))
    bones = given[0][..., list(H36M_17.bones), :]
    assert 0.2 < float(bones[..., 10:].std()) < 3 and float(bones.abs().max()) < 10


# --- around the lifter -----------------------------------------------------------------------
def test_a_fresh_model_answers_the_best_linear_estimate():
    _, x, seen, t = inputs("corrected")
    fresh = build_denoiser(SPECS["corrected"]).eval()
    network = fresh.network
    alpha, sigma = (
        State({k: v.reshape(-1, 1, 1, 1).float() for k, v in values.items()})
        for values in (fresh.system.alpha(t), fresh.system.sigma(t))
    )
    with torch.no_grad():
        _, _, mean = network.with_lifter(x, fresh.system.half_log_snr(t), seen)
        expected = compose(network.errors.estimate(x, mean, alpha, sigma), H36M_17)
        assert float((compose(fresh(x, t, seen), H36M_17) - expected).abs().max()) < 1e-5


def test_the_root_is_never_corrected():
    denoiser, x, seen, t = inputs("corrected")
    _, log_snr = denoiser.network_inputs(x, denoiser.system.times(t))
    joints = denoiser.network.joints(x, log_snr, seen)
    assert float(joints[..., H36M_17.root, :].detach().abs().max()) == 0


def test_a_fresh_model_trusts_its_lifter_in_noise_and_the_bones_near_the_data():
    errors = {}
    for index in (0, 999):
        denoiser, noisy, truth = near_truth(index)
        with torch.no_grad():
            for parameter in denoiser.network.network.head[-1].parameters():
                parameter.zero_()
            found = denoiser(noisy, cosine_chain().time_of(index), torch.zeros(2, 9, 17, 2))
        errors[index] = float((compose(found, H36M_17) - truth).norm(dim=-1).mean())
    lifted = float((denoiser.network.lifter(noisy) - truth).norm(dim=-1).mean())
    assert errors[999] == pytest.approx(lifted, rel=1e-2)
    assert errors[0] < 0.3 * lifted
