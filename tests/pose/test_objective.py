"""DDHPose's loss against plain loops, and where its gradients go."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from structdiff.denoisers import Denoiser
from structdiff.errors import StructDiffError
from structdiff.objectives import Uniform
from structdiff.pose.denoising import pose_state
from structdiff.pose.kinematics import DIRECTION, LENGTH
from structdiff.pose.objective import DisentangledLoss, OftenPureNoise, position_error
from structdiff.pose.process import cosine_chain, pose_system
from structdiff.pose.skeletons import H36M_17
from structdiff.state import State
from support.poses import narrow_published, random_denoiser, relative, tiny_spec, walker

PARENTS = H36M_17.parents


def batch(root_slot: bool = False, size: int = 3) -> tuple[State, Tensor, Tensor]:
    """Clean bones, the joints they are of (B, 9, 17, 3), and normalised 2D joints."""
    joints = torch.from_numpy(relative(walker(9 * size))).unflatten(0, (size, 9))
    seen = torch.randn(size, 9, 17, 2, generator=torch.Generator().manual_seed(0)) / 3
    return pose_state(joints, H36M_17, root_slot=root_slot), joints, seen


def loops(guess: np.ndarray, truth: np.ndarray, w_l: float, w_d: float) -> tuple[list[float], ...]:
    """Length and remaining terms of the loss per window, joint by joint (card, section 2.4)."""
    lengths, others = [], []
    for y, y0 in zip(guess, truth, strict=True):
        position = direction = 0.0
        totals = np.zeros((17, 2))
        for frame in range(len(y)):
            for joint in range(17):
                position += np.linalg.norm(y[frame, joint] - y0[frame, joint]) / (len(y) * 17)
                if PARENTS[joint] < 0:
                    continue
                bones = [p[frame, joint] - p[frame, PARENTS[joint]] for p in (y, y0)]
                size = [np.linalg.norm(v) for v in bones]
                totals[joint] += size
                gap = bones[0] / size[0] - bones[1] / size[1]
                direction += (gap**2).sum() / (len(y) * 16)
        means = totals / len(y)
        length = sum((means[j, 0] - means[j, 1]) ** 2 for j in range(1, 17)) / 16
        lengths.append(w_l * length)
        others.append(position + w_d * direction)
    return lengths, others


def draw(objective: DisentangledLoss, denoiser: Denoiser, x0: State, seen: Tensor):
    """Loss per component, and the joints that were predicted for it."""
    made = objective.draw(denoiser.system, x0, _source(5))
    losses = objective.distances(denoiser, made.x0, made.noisy, made.noise, made.times, seen)
    _, log_snr = denoiser.network_inputs(made.noisy, made.times)
    return losses, denoiser.network.joints(made.noisy, log_snr, seen)


def _source(seed: int):
    from structdiff.noise import SeededNoise

    return SeededNoise(seed)


# --- the loss --------------------------------------------------------------------------------
@pytest.mark.parametrize(("w_l", "w_d"), [(1.0, 1.0), (0.3, 0.1), (0.0, 0.0)])
def test_the_published_loss_is_the_sum_over_joints_frames_and_bones(w_l, w_d):
    denoiser = random_denoiser(narrow_published())
    x0, joints, seen = batch(root_slot=True)
    objective = DisentangledLoss(length_weight=w_l, direction_weight=w_d)
    losses, guess = draw(objective, denoiser, x0, seen)
    expected = loops(guess.detach().double().numpy(), joints.double().numpy(), w_l, w_d)
    assert losses[LENGTH].tolist() == pytest.approx(expected[0], rel=1e-4, abs=1e-7)
    assert losses[DIRECTION].tolist() == pytest.approx(expected[1], rel=1e-4)


def test_a_lifter_adds_its_own_error_and_its_surprise():
    denoiser = random_denoiser(tiny_spec())
    network = denoiser.network
    x0, joints, seen = batch()
    objective = DisentangledLoss(length_weight=2.0, direction_weight=0.5, lifter_weight=3.0)
    losses, guess = draw(objective, denoiser, x0, seen)
    expected = loops(guess.detach().double().numpy(), joints.double().numpy(), 2.0, 0.5)
    lifted = network.lifter(seen).detach()
    mean = pose_state(lifted, H36M_17, root_slot=False)
    own = torch.linalg.norm(lifted - joints, dim=-1).mean((1, 2))
    extra = 3.0 * own + 0.01 * network.errors.surprise(x0, mean)
    assert losses[LENGTH].tolist() == pytest.approx(expected[0], rel=1e-4)
    assert (losses[DIRECTION] - extra).tolist() == pytest.approx(expected[1], rel=1e-4, abs=1e-5)


def test_the_loss_of_the_truth_is_0():
    class Oracle(nn.Module):
        def forward(self, features: Tensor, time: Tensor) -> Tensor:
            return batch(root_slot=True)[1]

    denoiser = random_denoiser(narrow_published())
    denoiser.network.network = Oracle()
    x0, _, seen = batch(root_slot=True)
    losses = DisentangledLoss()(denoiser, x0, seen, 0)
    assert losses.shape == (3,) and float(losses.abs().max()) < 1e-6


def test_lengths_are_compared_by_their_mean_over_frames():
    """Jitter about the right length costs nothing; a wrong mean costs its square."""

    class Jittery(nn.Module):
        def __init__(self, change: Tensor) -> None:
            super().__init__()
            self.change = change

        def forward(self, features: Tensor, time: Tensor) -> Tensor:
            return joints * self.change[:, None, None]

    x0, joints, seen = batch(root_slot=True)
    denoiser = random_denoiser(narrow_published())
    swinging = torch.tensor([1.1, 0.9, 1.05, 0.95, 1.0, 1.02, 0.98, 1.2, 0.8])
    found = {}
    for name, change in (("jitter", swinging), ("long", torch.full((9,), 1.1))):
        denoiser.network.network = Jittery(change)
        found[name] = draw(DisentangledLoss(), denoiser, x0, seen)[0][LENGTH]
    assert float(found["jitter"].max()) < 1e-9
    lengths = x0[LENGTH].mean(1)[:, 1:]
    assert torch.allclose(found["long"], (0.1 * lengths).square().mean((1, 2)), rtol=1e-3)


def test_the_loss_is_the_sum_of_both_components():
    denoiser = random_denoiser(tiny_spec())
    x0, _, seen = batch()
    losses, _ = draw(DisentangledLoss(), denoiser, x0, seen)
    total = DisentangledLoss()(denoiser, x0, seen, 5)
    assert torch.allclose(total, losses[LENGTH] + losses[DIRECTION], atol=1e-6)


def test_a_position_error_is_the_mean_distance():
    joints = torch.zeros(2, 5, 17, 3)
    moved = joints.clone()
    moved[1, :, 4] = torch.tensor([0.0, 0.006, 0.008])
    assert position_error(moved, joints).tolist() == pytest.approx([0.0, 0.01 / 17])


def test_another_network_is_refused():
    class Any(nn.Module):
        def forward(self, x: State, log_snr: object, condition: object) -> State:
            return x

    x0, _, seen = batch()
    with pytest.raises(StructDiffError, match="pose network"):
        DisentangledLoss()(Denoiser(Any(), pose_system(), "data"), x0, seen, 0)


# --- gradients -------------------------------------------------------------------------------
def stepped(objective: DisentangledLoss, denoiser: Denoiser, root_slot: bool = False) -> None:
    x0, _, seen = batch(root_slot)
    denoiser.train()
    objective(denoiser, x0, seen, 0).mean().backward()


def named(denoiser: Denoiser, moved: bool) -> Sequence[str]:
    """Parameters that got a gradient that is not 0 anywhere, or none."""
    return [
        name
        for name, parameter in denoiser.network.named_parameters()
        if (parameter.grad is not None and bool(parameter.grad.any())) is moved
    ]


def test_while_the_lifter_trains_alone_the_transformer_gets_no_gradient():
    denoiser = random_denoiser(tiny_spec())
    stepped(DisentangledLoss(lifter_steps=1), denoiser)
    assert all(name.startswith("network.") for name in named(denoiser, moved=False))
    assert not any(name.startswith("network.") for name in named(denoiser, moved=True))


@pytest.mark.parametrize("spatial", ["hrst", "hop-bias"])
def test_after_that_every_parameter_gets_one(spatial):
    denoiser = random_denoiser(tiny_spec(spatial=spatial))
    objective = DisentangledLoss(lifter_steps=1)
    objective.update(1.0)
    stepped(objective, denoiser)
    assert named(denoiser, moved=False) == []


def test_the_lifter_alone_is_what_the_beginning_minimises():
    denoiser = random_denoiser(tiny_spec())
    x0, joints, seen = batch()
    losses, _ = draw(DisentangledLoss(lifter_weight=2.0, lifter_steps=7), denoiser, x0, seen)
    lifted = denoiser.network.lifter(seen).detach()
    surprise = denoiser.network.errors.surprise(x0, pose_state(lifted, H36M_17, root_slot=False))
    own = 2.0 * torch.linalg.norm(lifted - joints, dim=-1).mean((1, 2))
    assert float(losses[LENGTH].detach().abs().max()) == 0
    assert torch.allclose(losses[DIRECTION], own + 0.01 * surprise, atol=1e-6)


def test_the_transformers_error_does_not_reach_the_lifter():
    denoiser = random_denoiser(tiny_spec())
    stepped(DisentangledLoss(lifter_weight=0.0), denoiser)
    lifter = denoiser.network.lifter
    assert not any(p.grad is not None and bool(p.grad.any()) for p in lifter.parameters())


def test_every_parameter_of_the_corrected_published_network_gets_a_gradient():
    denoiser = random_denoiser(narrow_published(layout="corrected"))
    stepped(DisentangledLoss(), denoiser)
    assert named(denoiser, moved=False) == []


def test_only_the_unused_weights_of_the_reference_get_none():
    # Card, section 8: 7 of the 14 extra Linears of 8 layers are never used; here 1 of 2.
    denoiser = random_denoiser(narrow_published())
    stepped(DisentangledLoss(), denoiser, root_slot=True)
    unused = {name.rpartition(".")[0] for name in named(denoiser, moved=False)}
    assert len(unused) == 1 and unused.pop().startswith("network.spatial.1.")


# --- where training looks --------------------------------------------------------------------
def test_half_of_the_times_are_the_priors():
    u = torch.linspace(0, 1, 1001, dtype=torch.float64)[:-1]
    t = OftenPureNoise().quantile(u)
    assert float((t == 1).double().mean()) == pytest.approx(0.5, abs=2e-3)
    assert torch.allclose(t[:500], 2 * u[:500])


def test_the_loss_draws_its_times_from_the_law():
    denoiser = random_denoiser(tiny_spec())
    x0, _, _ = batch(size=40)
    drawn = DisentangledLoss(OftenPureNoise(0.25)).draw(denoiser.system, x0, _source(0)).t
    assert float((drawn == 1).double().mean()) == pytest.approx(0.25, abs=0.03)
    even = DisentangledLoss(Uniform()).draw(denoiser.system, x0, _source(0)).t
    assert float(even.min()) >= float(cosine_chain().time_of(0)) and float(even.max()) <= 1
    assert float(even.mean()) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("share", [-0.1, 1.0, 2.0])
def test_an_impossible_share_of_pure_noise_is_refused(share):
    with pytest.raises(StructDiffError, match="share of pure noise"):
        OftenPureNoise(share)
