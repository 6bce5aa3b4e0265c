"""The forward process of bones: its scales, the indices visited, and what an exact answer gives.

Numbers are those of the method's card, section 2.3 and 2.5, as printed by the published code.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from structdiff.denoisers import Denoiser
from structdiff.errors import StructDiffError
from structdiff.pose.denoising import pose_state
from structdiff.pose.kinematics import DIRECTION, LENGTH, compose
from structdiff.pose.process import cosine_chain, pose_system, published_grid, published_indices
from structdiff.pose.skeletons import H36M_17
from structdiff.processes import DiscreteVP
from structdiff.samplers import DDPM, get_sampler
from structdiff.samplers.base import schedules
from structdiff.state import State
from support.poses import narrow_published, random_denoiser, relative, tiny_spec, walker

FIVE = [999, 799, 599, 399, 199, -1]


def bones(batch: int = 2, frames: int = 6, *, root_slot: bool = False) -> State:
    """Of a walking person, in float64."""
    joints = torch.from_numpy(relative(walker(batch * frames))).double()
    return pose_state(joints.unflatten(0, (batch, frames)), H36M_17, root_slot=root_slot)


class Oracle(nn.Module):
    """Knows the answer."""

    def __init__(self, answer: State) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: State, log_snr: dict[str, Tensor], condition: object) -> State:
        return self.answer


# --- scales ----------------------------------------------------------------------------------
def test_the_scales_of_both_components_are_the_published_ones():
    times = pose_system().times(cosine_chain().time_of([0, 199, 399, 599, 799, 999]))
    published = [0.99995872, 0.89870592, 0.64747821, 0.34080964, 0.09404561, 2.43e-9]
    for alpha in pose_system().alpha(times).values():
        assert (alpha**2).tolist() == pytest.approx(published, abs=1e-7)


def test_the_last_beta_is_0_999():
    kept = cosine_chain().alpha(cosine_chain().time_of([998, 999])) ** 2
    assert float(1 - kept[1] / kept[0]) == pytest.approx(0.999, rel=1e-12)


def test_both_components_share_one_chain_of_1000_links_and_start_from_unit_noise():
    system = pose_system()
    assert list(system.processes) == [LENGTH, DIRECTION]
    assert set(system.processes.values()) == {cosine_chain(1000)}
    assert all(process.prior_std() == 1 for process in system.processes.values())


def test_another_chain_may_be_given():
    chain = DiscreteVP(50, 1e-3, 0.2)
    assert set(pose_system(chain).processes.values()) == {chain}


@pytest.mark.parametrize("index", [0, 399, 799, 999])
def test_noisy_bones_have_the_mean_and_variance_of_the_chain(index):
    """Within 1 % of sqrt(ab) x0 and 1 - ab over 1e5 draws (card, check 2)."""
    system, count = pose_system(), 100_000
    clean = bones(1, 1)
    many = State({name: value.expand(count, -1, -1, -1) for name, value in clean.items()})
    noisy = system.perturb(many, cosine_chain().time_of(index), system.noise(many, 0))
    kept = float(cosine_chain().alpha(cosine_chain().time_of(index))) ** 2
    for name in clean:
        value = noisy[name].flatten(1)
        expected = kept**0.5 * clean[name].flatten()
        # The standard error of a mean is 0.32 % of sigma; the largest of 68 is 1 % and more.
        assert float((value.mean(0) - expected).abs().max()) < 0.015 * (1 - kept) ** 0.5
        assert float((value.mean(0) - expected).square().mean().sqrt()) < 0.01 * (1 - kept) ** 0.5
        assert float(value.var(0).mean()) == pytest.approx(1 - kept, rel=0.01)


def test_the_published_clamp_cuts_27_percent_of_pure_noise():
    # P(|z| > 1.1) = 0.2713.
    x = pose_system().prior(bones(200), 0)
    cut = [(value[..., 1:, :].abs() > 1.1).double().mean() for value in x.values()]
    assert cut == pytest.approx([0.2713, 0.2713], abs=0.005)


def test_only_the_published_network_sees_clamped_bones():
    seen: dict[str, Tensor] = {}
    for name, spec in (("ours", tiny_spec(6)), ("published", narrow_published(6))):
        denoiser = random_denoiser(spec)
        denoiser.network.network.register_forward_pre_hook(
            lambda _, given, name=name: seen.update({name: given[0]})
        )
        x = pose_system().prior(bones(8).to(torch.float32), 0)
        denoiser(x, 1.0, torch.zeros(8, 6, 17, 2))
    noisy = x[DIRECTION]
    assert torch.equal(seen["published"][..., 2:5], noisy.clamp(-1.1, 1.1))
    assert float(seen["ours"].abs().max()) > 2 and float(noisy.abs().max()) > 2


# --- steps -----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("steps", "indices"),
    [
        (1, [999, -1]),
        (3, [999, 665, 332, -1]),
        (5, FIVE),
        (10, [999, 899, 799, 699, 599, 499, 399, 299, 199, 99, -1]),
    ],
)
def test_the_sampler_visits_the_published_indices(steps, indices):
    # linspace(-1, 999, K + 1) cut to integers: 332.33 and 665.67 for K = 3.
    assert published_indices(steps) == indices
    asked = cosine_chain().index_at(cosine_chain().half_log_snr(published_grid(steps)))
    assert asked.tolist() == pytest.approx(indices[:-1], abs=1e-6)


def test_all_links_can_be_visited():
    assert published_indices(1000) == list(range(999, -2, -1))


@pytest.mark.parametrize("steps", [0, 2.5, 1001, "5"])
def test_impossible_numbers_of_steps_are_refused(steps):
    with pytest.raises(StructDiffError, match="steps"):
        published_indices(steps)


def test_the_first_of_five_steps_adds_the_published_noise():
    # Card, section 2.5: sigma(999 -> 799) = 0.951816 at eta 1, all of 1 - ab' but c^2 = 2e-8.
    grid = published_grid(5)
    schedule = schedules(pose_system(), grid.tolist())[LENGTH]
    update = DDPM(5, grid).coefficients(schedule, 0, 1)
    assert update.noise == pytest.approx(0.951816, abs=1e-6)
    assert update.noise**2 == pytest.approx(1 - 0.09404561, abs=1e-7)
    assert update.state**2 == pytest.approx(0, abs=3e-8)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("i", "now", "then"), [(0, 999, 799), (2, 599, 399), (3, 399, 199)])
def test_a_step_is_the_published_one(eta, i, now, then):
    """x' = sqrt(ab') x0 + c eps + sigma z with eps = (x - sqrt(ab) x0) / sqrt(1 - ab)."""
    grid = published_grid(5)
    update = DDPM(5, grid, eta=eta).coefficients(
        schedules(pose_system(), grid.tolist())[DIRECTION], i, 1
    )
    a, b = (float(cosine_chain().alpha(cosine_chain().time_of(k))) ** 2 for k in (now, then))
    sigma = eta * ((1 - a / b) * (1 - b) / (1 - a)) ** 0.5
    c = (1 - b - sigma**2) ** 0.5
    on_x = c / (1 - a) ** 0.5
    assert update.noise == pytest.approx(sigma, abs=1e-9)
    assert update.state == pytest.approx(on_x, abs=1e-7)
    assert update.outputs[0] == pytest.approx(b**0.5 - on_x * a**0.5, abs=1e-7)


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("steps", [1, 3, 5, 10])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_an_exact_answer_is_where_sampling_ends(eta, steps, count):
    """Card, check 3: y0 to 1e-6 for every K, H and eta."""
    joints = torch.from_numpy(relative(walker(6)))[None].repeat(count, 1, 1, 1)
    clean = pose_state(joints, H36M_17, root_slot=False)
    denoiser = Denoiser(Oracle(clean), pose_system(), "data")
    sampler = DDPM(steps, published_grid(steps), eta=eta)
    found = sampler(denoiser, denoiser.system.prior(clean, 0), None, 1)
    assert float((compose(found, H36M_17) - joints).abs().max()) < 1e-6
    assert sampler.nfe == steps


def test_ddim_is_ddpm_without_noise():
    clean = bones()
    denoiser = random_denoiser(tiny_spec(6)).double()
    start, seen = pose_system().prior(clean, 0), torch.zeros(2, 6, 17, 2).double()
    one = get_sampler("ddim", 5, grid=published_grid(5))(denoiser, start, seen, 1)
    other = DDPM(5, published_grid(5), eta=0.0)(denoiser, start, seen, 2)
    assert all(torch.equal(one[name], other[name]) for name in clean)


# --- the root's slot -------------------------------------------------------------------------
def test_the_root_slot_is_masked_and_stays_0():
    denoiser = random_denoiser(tiny_spec(6))
    clean = bones().to(torch.float32)
    assert all(not mask[..., H36M_17.root, :].any() for mask in clean.masks.values())
    noisy = pose_system().perturb(clean, torch.tensor(0.5), pose_system().noise(clean, 0))
    states = [noisy, pose_system().prior(clean, 0)]
    states += DDPM(5, published_grid(5)).trajectory(
        denoiser, states[1], torch.zeros(2, 6, 17, 2), 1
    )
    assert len(states) == 7
    for state in states:
        assert all(bool((value[..., H36M_17.root, :] == 0).all()) for value in state.values())
        assert all(bool((value[..., 1:, :] != 0).all()) for value in state.values())


def test_the_root_slot_is_noised_along_for_the_published_weights():
    assert narrow_published().root_slot and not tiny_spec().root_slot
    assert not narrow_published(layout="corrected").root_slot
    clean = bones(40, root_slot=True)
    assert not clean.masks
    assert bool((clean[LENGTH][..., H36M_17.root, :] == 0).all())
    start = pose_system().prior(clean, 0)[DIRECTION][..., H36M_17.root, :]
    assert float(start.std()) == pytest.approx(1, abs=0.1)
