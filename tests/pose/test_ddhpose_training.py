"""Training of PoseLifter: records, seeds, resuming, windows, presets, and what is held out."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from structdiff.errors import CheckpointError
from structdiff.pose import PoseDataset, PoseLifter, ddhpose
from structdiff.pose.models import build_denoiser, new_spec
from structdiff.pose.settings import Optimisation, held_out, shortened
from structdiff.pose.skeletons import H36M_17, MPI_INF_3DHP_17, convert
from structdiff.pose.spread import covered
from structdiff.pose.training import TrainingBatches
from structdiff.pose.windows import TrainingFrames
from support.poses import (
    SIZE,
    arrays,
    narrow_published,
    quick,
    relative,
    strangers,
    tiny_spec,
    walks,
)


@pytest.fixture
def clips() -> PoseDataset:
    return strangers()


def test_a_fitted_estimator_can_be_fitted_again(clips):
    model, fresh = quick(max_steps=2), quick(max_steps=2)
    model.fit(walks(1, 12)).fit(walks(2, 12))
    fresh.fit(walks(2, 12))
    one, other = (m._hypotheses(clips, 2, 0, "lifting") for m in (model, fresh))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# --- training --------------------------------------------------------------------------------
def test_the_record_of_the_training_says_what_was_done():
    record = quick(max_steps=3, calibration=0.4).fit(walks(3, 12)).training_
    assert record["steps"] == 3 and record["seed"] == 0
    assert (record["clips"], record["held_out"]) == (4, 2)
    assert record["windows"] == 4 * 12 and np.isfinite(record["loss"])


def test_training_stops_after_the_minutes_it_was_given():
    model = quick(max_steps=10**6, max_minutes=0.005).fit(walks(1, 12))
    assert 1 <= model.training_["steps"] < 10_000


@pytest.mark.parametrize("changes", [{}, {"dropout": 0.3}, {"spatial": "hop-bias"}], ids=str)
def test_the_same_seed_trains_the_same_bits(changes):
    weights = [
        quick(max_steps=3, **changes).fit(walks(1, 12)).denoiser_.network.state_dict()
        for _ in range(2)
    ]
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])


def test_another_seed_trains_other_weights():
    one, other = (quick(max_steps=1, random_state=s).fit(walks(1, 12)) for s in (0, 1))
    assert not torch.equal(
        one.denoiser_.network.lifter.enter.weight, other.denoiser_.network.lifter.enter.weight
    )


def test_a_resumed_run_equals_an_uninterrupted_one_to_the_bit(tmp_path):
    settings = {"checkpoint_every": 4, "dropout": 0.2, "lifter_share": 0.5, "calibration": 0.4}
    data = walks(3, 12, noise=2.0)
    whole = quick(max_steps=8, **settings).fit(data)
    stopped = quick(max_steps=8, **settings)
    halted(stopped, data, tmp_path, after=5)
    resumed = quick(max_steps=8, **settings).fit(data, out=tmp_path, resume=True)
    weights = [m.denoiser_.network.state_dict() for m in (whole, resumed)]
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])
    assert resumed.spread_ == whole.spread_ and resumed.temperature_ == whole.temperature_
    assert resumed.training_ == whole.training_


def halted(model, data, folder, after: int) -> None:
    """Break off a training in the middle of a step."""
    from structdiff.pose.objective import DisentangledLoss

    original, calls = DisentangledLoss.distances, itertools.count(1)

    def failing(self, *arguments):
        if next(calls) > after:
            raise RuntimeError("power cut")
        return original(self, *arguments)

    DisentangledLoss.distances = failing
    try:
        with pytest.raises(RuntimeError, match="power cut"):
            model.fit(data, out=folder)
    finally:
        DisentangledLoss.distances = original
    assert not hasattr(model, "denoiser_")


def test_a_folder_that_holds_a_run_is_not_overwritten(tmp_path):
    quick(max_steps=2).fit(walks(1, 10), out=tmp_path)
    with pytest.raises(CheckpointError, match="already holds a training run: resume"):
        quick(max_steps=2).fit(walks(1, 10), out=tmp_path)


def test_a_run_is_not_resumed_with_other_clips(tmp_path):
    quick(max_steps=2).fit(walks(1, 10), out=tmp_path)
    with pytest.raises(CheckpointError, match="digest"):
        quick(max_steps=4).fit(walks(1, 10, first=3), out=tmp_path, resume=True)


def test_training_batches_are_a_function_of_seed_and_windows():
    windows = TrainingFrames(walks(2, 20), 9, None)
    rows = torch.arange(0, 64, 2)
    batches = [TrainingBatches(windows, tiny_spec(), seed) for seed in (0, 0, 1)]
    drawn = [b.batch(rows) for b in batches]
    assert torch.equal(drawn[0][1], drawn[1][1])
    assert not torch.equal(drawn[0][1], drawn[2][1])


def test_half_of_the_windows_are_mirrored_with_their_keypoints():
    data = walks(2, 60)
    windows = TrainingFrames(data, 1, None)
    rows = torch.arange(240)
    bones, keypoints = TrainingBatches(windows, tiny_spec(1), 0).batch(rows)
    plain_keypoints, joints = windows.batch(rows)
    order, sign = list(H36M_17.mirrored), torch.tensor([-1.0, 1.0])
    mirrored = plain_keypoints[..., order, :] * sign
    flipped = (keypoints != plain_keypoints).flatten(1).any(1)
    assert torch.equal(keypoints[flipped], mirrored[flipped])
    assert float(flipped.double().mean()) == pytest.approx(0.5, abs=0.1)
    across = joints[:, 0, 4] - joints[:, 0, 1]
    hips = bones["direction"][:, 0, 4] * bones["length"][:, 0, 4]
    hips = hips - bones["direction"][:, 0, 1] * bones["length"][:, 0, 1]
    expected = torch.where(flipped[:, None], across * torch.tensor([1.0, -1.0, -1.0]), across)
    assert torch.allclose(hips, expected, atol=1e-5)


def test_a_model_may_have_windows_of_one_frame(clips):
    found = quick(frames=1, learning_rate=0.1).fit(walks(3, 20))._hypotheses(clips, 2, 0, "")
    assert [h.shape for h in found] == [(2, t, 17, 3) for t in (25, 4, 12)]
    assert all(bool(h.isfinite().all()) for h in found)


@pytest.mark.parametrize("changes", [{"spatial": "plain", "temporal": "plain"}, {"depth": 1}])
def test_other_blocks_train_too(changes, clips):
    found = quick(max_steps=2, **changes).fit(walks(1, 12))._hypotheses(clips, 1, 0, "")
    assert all(bool(h.isfinite().all()) for h in found)


def test_another_skeleton_is_trained_and_lifted():
    data = walks(2, 25)
    flat, space = (
        [convert(value, H36M_17, MPI_INF_3DHP_17) for value in arrays(data)[part]]
        for part in ("keypoints", "poses")
    )
    model = quick(skeleton="3dhp17", turn=0.0).fit(flat, space, image_size=SIZE)
    found = model.predict(flat[0], image_size=SIZE)
    assert found.skeleton == MPI_INF_3DHP_17
    assert not found.mean[:, MPI_INF_3DHP_17.root].any() and found.mean[:, 0].all()


# --- the published model ---------------------------------------------------------------------
@pytest.mark.parametrize(
    ("frames", "parameters"), [(27, 38_405_635), (81, 38_433_283), (243, 38_516_227)]
)
def test_the_preset_has_the_published_number_of_parameters(frames, parameters):
    spec = tiny_spec(frames, preset="paper", layout="reference")
    with torch.device("meta"):
        network = build_denoiser(spec).network
    assert sum(p.numel() for p in network.parameters()) == parameters


def test_the_corrected_preset_lacks_the_unused_weights():
    # Card, section 3: 7 spatial Linears, 1,838,592 weights, are never used.
    with torch.device("meta"):
        network = build_denoiser(tiny_spec(27, preset="paper")).network
    assert sum(p.numel() for p in network.parameters()) == 38_405_635 - 1_838_592


@pytest.mark.parametrize("layout", ["reference", "corrected"])
def test_a_narrow_published_model_trains_and_lifts(layout, clips, monkeypatch):
    monkeypatch.setattr(ddhpose, "new_spec", lambda *a, **k: narrow_published(9, layout))
    model = quick(preset="paper", layout=layout, steps=None, max_steps=5).fit(walks(1, 20))
    assert model.spec_.sampler == {"name": "ddpm", "steps": 1}
    assert model.training_["windows"] == 2 * 3  # 3 chunks of 9 from 20 frames
    assert model.spread_ == 1.0 and model.temperature_ is None
    found = model._hypotheses(clips, 2, 0, "lifting")
    assert [h.shape for h in found] == [(2, t, 17, 3) for t in (25, 4, 12)]


def test_the_preset_is_what_the_estimator_builds(monkeypatch):
    asked = {}

    def noted(*arguments, **settings):
        spec = new_spec(*arguments, **settings)
        asked.update(spec.network)
        return narrow_published()

    monkeypatch.setattr(ddhpose, "new_spec", noted)
    quick(preset="paper", max_steps=1).fit(walks(1, 10))
    expected = {"width": 512, "depth": 8, "heads": 8, "inputs": 6, "layout": "corrected"}
    assert {k: asked[k] for k in expected} == expected


def test_the_published_network_drops_paths_without_the_global_generator(monkeypatch):
    monkeypatch.setattr(ddhpose, "new_spec", lambda *a, **k: narrow_published())
    torch.manual_seed(1)
    before = torch.get_rng_state().tolist()
    quick(preset="paper", max_steps=3).fit(walks(1, 12))
    assert torch.get_rng_state().tolist() == before


def test_what_is_trained_does_not_depend_on_the_global_generator():
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = quick(max_steps=3, dropout=0.2).fit(walks(1, 12))
        found.append(model.denoiser_.network.state_dict())
    assert all(torch.equal(found[0][k], found[1][k]) for k in found[0])


# --- calibration -----------------------------------------------------------------------------
def test_the_spread_is_calibrated_on_held_out_motions():
    data = walks(4, 30, noise=2.0)
    model = quick(calibration=0.5).fit(data)
    assert model.spread_ != 1.0 and model.temperature_ > 0
    kept = PoseDataset(tuple(c for c in data if c.name in held(model, data)))
    found = model.predict(kept, n_hypotheses=8, seed=0)
    truth = [torch.from_numpy(relative(c.in_camera())).float() for c in kept]
    share = covered([torch.from_numpy(p.hypotheses) for p in found], truth, H36M_17)
    assert share == pytest.approx(0.8, abs=0.02)


def held(model, data) -> set[str]:
    """Names of the clips that were held out: the settings say which."""
    from structdiff.pose.settings import held_out

    return {c.name for c in held_out(data, model.calibration, model.random_state)[1]}


def test_without_cameras_there_is_no_temperature():
    parts = arrays(walks(3, 12, noise=2.0))
    model = quick(turn=0.0, calibration=0.4).fit(**parts, image_size=SIZE)
    assert model.training_["held_out"] > 0
    assert model.temperature_ is None and model.spread_ > 0


# --- what is held out ------------------------------------------------------------------------
@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.99])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_views_of_a_motion_are_held_out_together_and_something_is_left(share, seed):
    data = PoseDataset((*walks(3, 10), *walks(2, 4, first=3)))
    learnt, kept = held_out(data, share, seed)
    names = [{clip.name.split("/")[0] for clip in part} for part in (learnt, kept)]
    assert not names[0] & names[1] and len(learnt) > 0
    assert learnt.frames + kept.frames == data.frames
    assert kept.frames <= share * data.frames


def test_a_motion_whose_name_has_no_view_is_one_of_its_own():
    data = walks(4, 5, 1)
    data = PoseDataset(tuple(replace(c, name=str(i)) for i, c in enumerate(data)))
    learnt, kept = held_out(data, 0.5, 0)
    assert len(learnt) == len(kept) == 2


def test_the_beginnings_of_clips_are_calibrated_on():
    data = walks(2, 30)
    for frames, least, each in ((40, 5, 10), (40, 20, 20), (4000, 5, 30)):
        short = shortened(data, frames, least)
        assert [len(clip) for clip in short] == [each] * 4
        assert np.array_equal(short[1].poses, data[1].poses[:each])
        assert np.array_equal(short[1].keypoints, data[1].keypoints[:each])


def test_the_preset_trains_as_published_unless_told_otherwise():
    """Card 5: AdamW, 1e-4, weight decay 0.1, 1024 frames in a batch (37 windows of 27)."""
    assert Optimisation.of(PoseLifter(27, preset="paper")) == Optimisation(37, 1e-4, 0.1)
    assert Optimisation.of(PoseLifter(243, preset="paper")) == Optimisation(4, 1e-4, 0.1)
    told = PoseLifter(27, preset="paper", batch_size=2, weight_decay=0.0)
    assert Optimisation.of(told) == Optimisation(2, 1e-4, 0.0)
