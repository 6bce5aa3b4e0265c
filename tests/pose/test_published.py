"""Published checkpoints lift clips through the estimator: DDHPose's and D3DP's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from structdiff.pose import H36M_17, PoseLifter, load_cmu17_demo
from structdiff.pose.checkpoints import published_name
from structdiff.pose.networks import HSTDenoiser

INPUTS = {"reference": 6, "d3dp": 5}


@pytest.fixture(params=["reference", "d3dp"])
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, HSTDenoiser]:
    """A small checkpoint in the published form, and the network it holds."""
    layout = request.param
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = HSTDenoiser(
            H36M_17, 9, width=32, depth=2, heads=8, inputs=INPUTS[layout], layout=layout
        ).eval()
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    part = {"reference": "dir_bone_estimator", "d3dp": "pose_estimator"}[layout]
    state = {
        f"module.{part}.{published_name(name, layout)}": tensor[None]
        if name in ("joint_embedding", "frame_embedding", "level_embedding")
        else tensor
        for name, tensor in network.state_dict().items()
    }
    path = tmp_path / "best_epoch.bin"
    torch.save({"epoch": 1, "model_pos": state}, path)
    return path, network


def clip():
    return load_cmu17_demo()[0]


def test_one_step_is_the_networks_answer_to_clamped_noise_averaged_with_the_mirrors(
    checkpoint, monkeypatch
):
    """K = 1 asks once at index 999; card 2.5: the mean with the mirror image's, clamped."""
    path, network = checkpoint
    lifter = PoseLifter.from_published(path, n_hypotheses=1, progress=False)
    seen = []
    inside = lifter.denoiser_.network

    def noted(features, time):
        seen.append((features, time))
        return network(features, time)

    monkeypatch.setattr(inside, "prepared", lambda: noted)
    short = clip().keypoints[:9]
    pose = lifter.predict(short, image_size=(1000, 1000), seed=0).hypotheses[0]
    ((features, time),) = seen
    assert torch.allclose(time, torch.full((2,), 999.0), atol=1e-3)
    assert float(features[..., 2:].abs().max()) == pytest.approx(1.1)
    with torch.no_grad():
        plain, other = network(features, time)
    mirrored = other[..., list(H36M_17.mirrored), :] * torch.tensor([-1.0, 1.0, 1.0])
    joints = ((plain + mirrored) / 2).clamp(-1.1, 1.1)
    expected = (joints - joints[:, :1]).numpy()
    assert np.allclose(pose, expected, atol=1e-5)


def test_several_steps_and_hypotheses_give_finite_poses_of_the_whole_clip(checkpoint):
    lifter = PoseLifter.from_published(checkpoint[0], n_hypotheses=3, steps=4, progress=False)
    pose = lifter.predict(clip(), seed=0)
    assert pose.hypotheses.shape == (3, 90, 17, 3)
    assert np.isfinite(pose.hypotheses).all()
    assert (pose.std[:, 1:] > 0).all()


def test_it_can_be_saved_and_loaded_like_any_model(checkpoint, tmp_path):
    lifter = PoseLifter.from_published(checkpoint[0], n_hypotheses=2, progress=False)
    loaded = PoseLifter.from_pretrained(lifter.save_pretrained(tmp_path / "model"))
    first, second = (each.predict(clip(), seed=1).hypotheses for each in (lifter, loaded))
    assert np.array_equal(first, second)


def test_the_network_made_ready_for_the_processor_gives_the_same_poses(checkpoint, monkeypatch):
    lifter = PoseLifter.from_published(checkpoint[0], n_hypotheses=2, progress=False)
    data = load_cmu17_demo()[:1]
    (ready,) = lifter._hypotheses(data, 2, 0, "lifting")
    monkeypatch.setattr(lifter.denoiser_.network, "prepared", lambda: None)
    (plain,) = lifter._hypotheses(data, 2, 0, "lifting")
    assert torch.allclose(ready, plain, atol=1e-5)
    assert lifter.denoiser_.network.ready is None
