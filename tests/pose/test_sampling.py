"""Hypotheses of clips: their noise, that they do not depend on company, and every sampler."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from structdiff.errors import StructDiffError
from structdiff.pose import sampling
from structdiff.pose.denoising import PoseNetwork
from structdiff.pose.kinematics import DIRECTION, LENGTH
from structdiff.pose.models import ModelSpec
from structdiff.pose.sampling import FrameNoise, PoseSampler, choose_sampler, clip_seed
from structdiff.pose.skeletons import H36M_17
from structdiff.pose.windows import Cuts
from structdiff.samplers import DDPM, SAMPLERS, Sampler, get_sampler
from support.poses import (
    arrays,
    narrow_published,
    quick,
    random_denoiser,
    relative,
    tiny_spec,
    walks,
)

CPU = torch.device("cpu")


def seen(frames: int = 20, seed: int = 0) -> Tensor:
    """Normalised 2D joints of a clip (T, 17, 2)."""
    return torch.randn(frames, 17, 2, generator=torch.Generator().manual_seed(seed)) / 3


def sampler(spec: ModelSpec | None = None, **options) -> PoseSampler:
    spec = tiny_spec() if spec is None else spec
    denoiser = random_denoiser(spec)
    chosen = choose_sampler(spec, denoiser, options.pop("name", None), options.pop("steps", 2))
    return PoseSampler(denoiser, spec, chosen, **options)


def noise(hypotheses: int, windows: Tensor, stream: int = 0, seed: int = 0) -> Tensor:
    source = FrameNoise(seed, windows, hypotheses, CPU, stream)
    drawn = source.normal(DIRECTION, torch.zeros(len(windows) * hypotheses, windows.shape[1], 51))
    return drawn.unflatten(0, (-1, hypotheses))  # (M, H, N, J C)


# --- noise of frames -------------------------------------------------------------------------
@pytest.mark.parametrize("hypotheses", [1, 2, 5, 20])
def test_every_draw_is_standard_normal(hypotheses):
    drawn = noise(hypotheses, torch.arange(2000).reshape(200, 10))
    for h in range(hypotheses):
        values = drawn[:, h].flatten()
        # 102,000 numbers: standard errors 0.003 and 0.0022 x 2.
        assert float(values.mean()) == pytest.approx(0, abs=0.015)
        assert float(values.var()) == pytest.approx(1, abs=0.02)
        assert float(values.pow(4).mean()) == pytest.approx(3, abs=0.15)


@pytest.mark.parametrize("hypotheses", [2, 5, 20])
def test_the_noise_of_the_hypotheses_adds_up_to_0(hypotheses):
    drawn = noise(hypotheses, torch.arange(40).reshape(4, 10))
    assert float(drawn.sum(1).abs().max()) < 1e-5 * hypotheses


def test_two_of_five_hypotheses_are_correlated_by_minus_a_quarter():
    drawn = noise(5, torch.arange(2000).reshape(200, 10))
    product = (drawn[:, 0] * drawn[:, 3]).mean()
    assert float(product) == pytest.approx(-1 / 4, abs=0.015)


def test_a_frame_has_the_same_noise_in_every_window():
    windows = torch.stack((torch.arange(9), torch.arange(6, 15), torch.arange(11, 20)))
    drawn = noise(3, windows)
    assert torch.equal(drawn[0, :, 6:], drawn[1, :, :3])
    assert torch.equal(drawn[1, :, 5:], drawn[2, :, :4])
    assert not torch.equal(drawn[0, :, :3], drawn[1, :, :3])


def test_frames_streams_seeds_and_hypotheses_have_their_own_noise():
    windows = torch.arange(9)[None]
    one = noise(1, windows)
    for other in (noise(1, windows + 9), noise(1, windows, stream=1), noise(1, windows, seed=1)):
        assert (
            abs(float(torch.corrcoef(torch.stack((one.flatten(), other.flatten())))[0, 1])) < 0.15
        )
    frames = noise(1, windows)[0, 0]
    assert abs(float(torch.corrcoef(frames).fill_diagonal_(0).abs().max())) < 0.5


def test_numbers_that_are_not_of_frames_are_drawn_per_window_and_hypothesis():
    # Samplers ask for them: a path's seed, or a noise level.
    source = FrameNoise(0, torch.arange(9000).reshape(1000, 9), 3, CPU)
    for like in (torch.zeros(3000, 1), torch.zeros(3000).double()):
        drawn = source.normal(DIRECTION, like)
        assert drawn.shape == like.shape and drawn.dtype == like.dtype
        assert len(set(drawn.flatten().tolist())) == 3000
        assert float(drawn.mean()) == pytest.approx(0, abs=0.07)
        assert float(drawn.var()) == pytest.approx(1, abs=0.1)
        groups = drawn.reshape(1000, 3).T
        assert float(torch.corrcoef(groups)[0, 1:].abs().max()) < 0.12


def test_neighbouring_seeds_are_far_apart():
    keys = [clip_seed(seed) for seed in range(1000)]
    assert len(set(keys)) == 1000 and all(0 <= key < 2**63 for key in keys)
    assert min(abs(a - b) for a, b in itertools.pairwise(keys)) > 2**40


# --- lifting a clip --------------------------------------------------------------------------
@pytest.mark.parametrize("spec", [tiny_spec(), narrow_published()], ids=["ours", "reference"])
@pytest.mark.parametrize("frames", [1, 4, 9, 10, 25])
@pytest.mark.parametrize("hypotheses", [1, 3])
def test_hypotheses_are_root_relative_joints_of_every_frame(spec, frames, hypotheses):
    found = sampler(spec).lift(seen(frames), hypotheses, 0, None)
    assert found.shape == (hypotheses, frames, 17, 3) and found.dtype == torch.float32
    assert bool(found.isfinite().all())
    assert float(found[..., H36M_17.root, :].abs().max()) == 0


def test_a_long_clip_is_lifted():
    found = sampler(tiny_spec(depth=1)).lift(seen(1000), 1, 0, None)
    assert found.shape == (1, 1000, 17, 3)


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not():
    lift = sampler().lift
    assert torch.equal(lift(seen(), 3, 7, None), lift(seen(), 3, 7, None))
    assert float((lift(seen(), 3, 7, None) - lift(seen(), 3, 8, None)).abs().max()) > 1e-3


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_hypotheses_do_not_depend_on_how_many_are_sampled_at_a_time(rows, monkeypatch):
    lift = sampler().lift
    whole = lift(seen(40), 3, 0, None)
    monkeypatch.setattr(sampling, "ROWS", rows)
    # The same numbers in another order of summation: float32 agrees to 1e-5 m, not to the bit.
    assert float((lift(seen(40), 3, 0, None) - whole).abs().max()) < 1e-5


def test_the_global_generator_is_neither_read_nor_moved():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one = sampler(name="ddpm", steps=3).lift(seen(), 3, 0, None)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(sampler(name="ddpm", steps=3).lift(seen(), 3, 0, None), one)


def test_best_of_more_hypotheses_is_never_worse():
    # Card, check 14: a minimum over a larger set.
    drawn = sampler().lift(seen(), 12, 0, None)
    truth = torch.from_numpy(relative(walks(1, 20, 1)[0].in_camera())).float()
    errors = (drawn - truth).norm(dim=-1)  # (H, T, J)
    best = [float(errors[:h].amin(0).mean()) for h in range(1, 13)]
    assert all(b <= a for a, b in itertools.pairwise(best))
    assert best[-1] < best[0]


def test_windows_that_share_frames_fade_into_one_another():
    lifting = sampler()
    assert lifting.overlap == 3
    keypoints, cuts = seen(15), Cuts(15, 9, 3)
    windows = lifting._windows(cuts.cut(keypoints), cuts.numbers, 2, 0)
    joined = lifting.lift(keypoints, 2, 0, None)
    share = torch.tensor([1 / 6, 1 / 2, 5 / 6])[:, None, None]
    expected = (1 - share) * windows[0, :, 6:] + share * windows[1, :, :3]
    assert torch.allclose(joined[:, 6:9], expected, atol=1e-6)
    assert torch.allclose(joined[:, :6], windows[0, :, :6], atol=1e-6)


def test_without_overlap_windows_are_lifted_on_their_own():
    lifting = sampler(overlap=0)
    alone = lifting.lift(seen(18)[:9], 2, 0, None)
    assert torch.allclose(lifting.lift(seen(18), 2, 0, None)[:, :9], alone, atol=1e-5)


@pytest.mark.parametrize("flip", [True, False])
def test_the_flip_test_is_on_while_sampling_only(flip):
    lifting = sampler(flip=flip)
    asked = []
    lifting.denoiser.network.register_forward_pre_hook(
        lambda network, _: asked.append(network.flip)
    )
    lifting.lift(seen(), 1, 0, None)
    assert set(asked) == {flip} and lifting.denoiser.network.flip is False


@pytest.mark.parametrize("overlap", [-1, 9, 100])
def test_an_impossible_overlap_is_refused(overlap):
    with pytest.raises(StructDiffError, match=f"overlap in 0 to 8 of them, not {overlap}"):
        sampler(overlap=overlap)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_poses_that_are_not_finite_are_reported(value):
    lifting = sampler()
    with torch.no_grad():
        lifting.denoiser.network.network.head[-1].bias.fill_(value)
    with pytest.raises(StructDiffError, match="not finite: check the keypoints' units"):
        lifting.lift(seen(), 1, 0, None)


# --- samplers --------------------------------------------------------------------------------
LONG: dict[str, dict[str, object]] = {
    # Hundreds of calls by default, most of them in the last link of the chain.
    "ode": {"grid": [0.95, 0.8, 0.6, 0.4, 0.2], "rtol": 0.1, "atol": 0.1},
    "sde": {"grid": [0.6, 0.5, 0.4, 0.3, 0.2], "rtol": 1.0, "atol": 1.0},
    "dlg": {"skip": 1, "burn_in": 1, "start_steps": 3},
}
EXPLICIT = (
    *("edm", "euler-maruyama", "exponential-ito", "flow", "heun", "interpolant-sde", "pc"),
    *("reverse-diffusion", "rhork-heun", "rhork-kutta", "rhork-rk4"),
)
MANY_STEPS = {**dict.fromkeys(EXPLICIT, 30), "s4": 100}
"""Not for three steps: over the chain's last link, sigma / alpha falls from 20,000 to 600."""


@pytest.fixture(scope="module")
def fitted():
    data = walks(1, 12)
    return quick(frames=5).fit(**arrays(data), camera=[c.camera for c in data])


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_every_sampler_of_the_package_gives_exact_trees(name, fitted, monkeypatch):
    """Finite, root at 0, and what the sampler returns is a tree of unit directions."""
    returned = []
    pose = PoseNetwork.pose
    monkeypatch.setattr(PoseNetwork, "pose", lambda own, x: returned.append(x) or pose(own, x))
    found = PoseSampler(fitted.denoiser_, fitted.spec_, made(name)).lift(seen(7), 2, 0, None)
    assert found.shape == (2, 7, 17, 3)
    assert bool(found.isfinite().all()) and not found[..., 0, :].any()
    norms = returned[0][DIRECTION][..., list(H36M_17.bones), :].norm(dim=-1)
    assert torch.allclose(norms, torch.ones_like(norms), atol=1e-5)
    assert bool((returned[0][LENGTH] >= 0).all())


@pytest.mark.parametrize("name", sorted(set(SAMPLERS) - set(LONG)))
def test_an_estimator_takes_every_sampler_by_its_name(name, fitted):
    fitted.set_params(sampler=name, steps=MANY_STEPS.get(name, 3))
    clip = walks(1, 5, 1, first=5)[0]
    truth = relative(clip.in_camera())
    found = fitted.predict(clip, n_hypotheses=1)
    # Nearer to the person than joints that are all at the root: 0.16 to 0.3 m against 0.4 m.
    error = np.linalg.norm(found.mean - truth, axis=-1).mean()
    assert error < np.linalg.norm(truth, axis=-1).mean()


def made(name: str) -> Sampler:
    """On the chain of poses, without hundreds of calls."""
    if name in LONG:
        return get_sampler(name, 4, **LONG[name])
    spec = tiny_spec()
    return choose_sampler(spec, random_denoiser(spec), name, 4)


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_every_sampler_is_chosen_by_its_name(name):
    spec = tiny_spec()
    chosen = choose_sampler(spec, random_denoiser(spec), name, 4)
    assert chosen.steps == 4 and not chosen.progress


def test_a_sampler_of_one_call_a_step_runs_on_the_published_indices():
    asked = []
    lifting = sampler(steps=5)
    lifting.denoiser.network.network.register_forward_pre_hook(lambda _, a: asked.append(a[1]))
    lifting.lift(seen(9), 1, 0, None)
    assert [float(t[0]) for t in asked] == pytest.approx([999, 799, 599, 399, 199], abs=2e-2)


def test_one_step_is_one_call_on_pure_noise():
    asked = []
    lifting = sampler(steps=1)
    lifting.denoiser.network.network.register_forward_pre_hook(lambda _, a: asked.append(a[1]))
    lifting.lift(seen(9), 4, 0, None)
    assert [float(t[0]) for t in asked] == [pytest.approx(999, abs=2e-2)]


def test_nothing_asked_is_the_models_own_sampler():
    spec = tiny_spec()
    chosen = choose_sampler(spec, random_denoiser(spec), None, None)
    assert isinstance(chosen, DDPM) and chosen.steps == spec.sampler["steps"]


def test_a_sampler_object_is_used_as_it_is():
    spec = tiny_spec()
    own = get_sampler("ddim", 7)
    assert choose_sampler(spec, random_denoiser(spec), own, None) is own
    with pytest.raises(StructDiffError, match="steps is part of the sampler object"):
        choose_sampler(spec, random_denoiser(spec), own, 5)


@pytest.mark.parametrize("name", ["magic", 5, ["ddim"], ""])
def test_an_unknown_sampler_is_refused_with_the_known_ones(name):
    spec = tiny_spec()
    with pytest.raises(StructDiffError, match=r"unknown sampler .*ddim"):
        choose_sampler(spec, random_denoiser(spec), name, None)


@pytest.mark.parametrize("steps", [0, -1, 2.5, "5", 1001])
def test_impossible_steps_are_refused(steps):
    spec = tiny_spec()
    with pytest.raises(StructDiffError, match="steps"):
        choose_sampler(spec, random_denoiser(spec), "ddim", steps)
