"""Saved pose models: what is written is read back to the bit, and damage is named when loading."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from structdiff.errors import CheckpointError
from structdiff.pose import PoseLifter, ddhpose
from structdiff.pose.skeletons import H36M_17, Skeleton
from structdiff.samplers import get_sampler
from structdiff.timeseries import TSDiff
from support.poses import SIZE, narrow_published, quick, walks


@pytest.fixture(scope="module")
def model():
    """With cameras, a calibrated spread and a temperature."""
    return quick(calibration=0.4).fit(walks(3, 20, noise=2.0))


@pytest.fixture(scope="module")
def test_clips():
    return walks(1, 15, first=8)


@pytest.fixture
def saved(model, tmp_path):
    return model.save_pretrained(tmp_path / "model")


def loaded(folder, **changes):
    return PoseLifter.from_pretrained(folder).set_params(random_state=0, progress=False, **changes)


def edit(folder, change):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def spoil(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


# --- round trip ------------------------------------------------------------------------------
@pytest.mark.parametrize("changes", [{}, {"aggregation": "j-agg", "bones": "constant"}], ids=str)
def test_a_loaded_model_gives_the_same_bits(model, saved, test_clips, changes):
    again = loaded(saved, **changes)
    model = loaded(saved).set_params(**{**model.get_params(), **changes})
    for one, other in zip(model.predict(test_clips), again.predict(test_clips), strict=True):
        for part in ("mean", "hypotheses", "std", "root"):
            assert np.array_equal(getattr(one, part), getattr(other, part))


def test_the_original_and_what_was_loaded_agree_to_the_bit(model, saved, test_clips):
    again = loaded(saved)
    for one, other in zip(model.predict(test_clips), again.predict(test_clips), strict=True):
        assert np.array_equal(one.hypotheses, other.hypotheses)
        assert np.array_equal(one.std, other.std)


def test_everything_else_comes_back(model, saved):
    again = PoseLifter.from_pretrained(str(saved))
    fresh = {"random_state": None, "accelerator": "auto"}
    assert again.get_params() == {**model.get_params(), **fresh}
    assert again.spec_ == model.spec_ and again.spec_.view is not None
    assert again.spread_ == model.spread_ != 1.0
    assert again.temperature_ == model.temperature_ and model.temperature_ is not None
    assert again.training_ == model.training_


@pytest.mark.parametrize("layout", ["corrected", "reference"])
def test_the_published_network_comes_back(layout, tmp_path, monkeypatch):
    monkeypatch.setattr(ddhpose, "new_spec", lambda *a, **k: narrow_published(9, layout))
    model = quick(preset="paper", layout=layout, max_steps=2).fit(walks(1, 12))
    again = loaded(model.save_pretrained(tmp_path))
    assert again.spec_.root_slot == (layout == "reference")
    weights = model.denoiser_.network.state_dict()
    assert all(torch.equal(v, weights[k]) for k, v in again.denoiser_.network.state_dict().items())


def test_a_loaded_model_is_ready_and_frozen(saved):
    network = PoseLifter.from_pretrained(saved).denoiser_.network
    assert not network.training and not any(p.requires_grad for p in network.parameters())


def test_a_loaded_model_can_be_fitted_anew(saved):
    again = loaded(saved, accelerator="cpu", max_steps=2, calibration=0.0).fit(walks(1, 10))
    assert again.training_["steps"] == 2 and again.spread_ == 1.0


def test_an_infinite_temperature_comes_back(model, saved, test_clips):
    # Equal weights: the best choice where keypoints say nothing.
    edit(saved, lambda c: c.update(temperature=float("inf")))
    again = loaded(saved, aggregation="j-agg")
    assert again.temperature_ == float("inf")
    found = again.predict(test_clips[0])
    assert np.allclose(found.mean, found.hypotheses.mean(0), atol=1e-6)


def test_half_precision_is_smaller_and_lifts_nearly_the_same(model, test_clips, tmp_path):
    whole, half = tmp_path / "whole", tmp_path / "half"
    model.save_pretrained(whole)
    model.save_pretrained(half, dtype="float16")
    sizes = [(f / "model.safetensors").stat().st_size for f in (half, whole)]
    assert sizes[0] < 0.6 * sizes[1]
    one, other = model.predict(test_clips)[0], loaded(half).predict(test_clips)[0]
    assert float(np.abs(one.mean - other.mean).max()) < 5e-3


def test_a_sampler_object_is_not_stored(model, tmp_path, test_clips):
    folder = loaded(
        model.save_pretrained(tmp_path / "a"), sampler=get_sampler("ddim", 3), steps=None
    )
    again = loaded(folder.save_pretrained(tmp_path / "b"))
    assert again.sampler is None and again.steps is None
    assert np.isfinite(again.predict(test_clips)[0].mean).all()


def test_a_skeleton_of_ones_own_comes_back_whole(tmp_path):
    own = Skeleton("mine", H36M_17.joints, H36M_17.parents, H36M_17.left, H36M_17.right)
    model = quick(skeleton=own, max_steps=2, turn=0.0).fit(
        [walks(1, 12)[0].keypoints], [walks(1, 12)[0].in_camera()], image_size=SIZE
    )
    again = loaded(model.save_pretrained(tmp_path))
    assert again.skeleton == "mine"
    assert Skeleton.from_dict(again.spec_.skeleton) == own


# --- damage ----------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(saved, name):
    (saved / name).unlink()
    with pytest.raises(CheckpointError, match=f"holds no {name}"):
        PoseLifter.from_pretrained(saved)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_truncated_file_is_named(saved, name):
    content = (saved / name).read_bytes()
    (saved / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=f"{name} is (damaged|truncated)"):
        PoseLifter.from_pretrained(saved)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="no model"):
        PoseLifter.from_pretrained(tmp_path / "nowhere")


def test_a_model_of_another_head_names_who_loads_it(saved):
    edit(saved, lambda c: c.update(format="structdiff.timeseries/1"))
    with pytest.raises(CheckpointError, match=r"structdiff\.timeseries\.TSDiff"):
        PoseLifter.from_pretrained(saved)


def test_other_heads_name_this_one(saved):
    with pytest.raises(CheckpointError, match=r"structdiff\.pose\.PoseLifter"):
        TSDiff.from_pretrained(saved)


@pytest.mark.parametrize(
    "name", ["network.head.1.weight", "lifter.enter.bias", "errors.raw.length"]
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(saved, name, value):
    spoil(saved, lambda tensors: tensors[name].view(-1)[:1].fill_(value))
    with pytest.raises(CheckpointError, match=f"{name.replace('.', '[.]')}.*holds NaN or infinity"):
        PoseLifter.from_pretrained(saved)


def test_a_missing_tensor_is_named(saved):
    spoil(saved, lambda tensors: tensors.pop("lifter.enter.bias"))
    with pytest.raises(CheckpointError, match=r"'lifter\.enter\.bias' is missing"):
        PoseLifter.from_pretrained(saved)


def test_a_tensor_of_another_shape_is_named(saved):
    spoil(saved, lambda tensors: tensors.update({"lifter.enter.bias": torch.zeros(7)}))
    with pytest.raises(CheckpointError, match=r"'lifter\.enter\.bias' has shape \(7,\)"):
        PoseLifter.from_pretrained(saved)


@pytest.mark.parametrize("part", ["parameters", "model", "spread", "temperature"])
def test_a_missing_part_of_the_config_is_named(saved, part):
    edit(saved, lambda c: c.pop(part))
    with pytest.raises(CheckpointError, match=part):
        PoseLifter.from_pretrained(saved)


@pytest.mark.parametrize("part", ["skeleton", "frames", "network", "lifter", "process", "sampler"])
def test_a_missing_part_of_the_model_is_named(saved, part):
    edit(saved, lambda c: c["model"].pop(part))
    with pytest.raises(CheckpointError, match=part):
        PoseLifter.from_pretrained(saved)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("model",), []),
        (("model", "frames"), 0),
        (("model", "frames"), "9"),
        (("model", "frames"), True),
        (("model", "frames"), 10),
        (("model", "frames"), 10**9),
        (("model", "overlap"), 9),
        (("model", "overlap"), -1),
        (("model", "overlap"), 1.5),
        (("model", "overlap"), None),
        (("model", "view"), [1.0, 1.0, 0.0]),
        (("model", "view"), [1.0, 1.0, 0.0, float("nan")]),
        (("model", "view"), [0.0, 1.0, 0.0, 0.0]),
        (("model", "view"), ["1", "1", "0", "0"]),
        (("model", "view"), "wide"),
        (("model", "view"), 4),
        (("model", "skeleton"), {}),
        (("model", "skeleton"), "h36m17"),
        (("model", "skeleton", "parents"), [-1] * 17),
        (("model", "skeleton", "parents"), [-1] + [99] * 16),
        (("model", "skeleton", "joints"), ["Pelvis"]),
        (("model", "process"), {}),
        (("model", "process"), {"type": "unknown"}),
        (("model", "process", "links"), 0),
        (("model", "process", "schedule"), "sigmoid"),
        (("model", "sampler"), {}),
        (("model", "sampler", "name"), "magic"),
        (("model", "sampler", "name"), None),
        (("model", "sampler", "steps"), 0),
        (("model", "sampler", "steps"), 10**6),
        (("model", "lifter"), None),
        (("model", "lifter"), {}),
        (("model", "lifter", "width"), 33),
        (("model", "lifter", "width"), -1),
        (("model", "lifter", "blocks"), 10**9),
        (("model", "lifter", "colour"), 1),
        (("model", "lifter", "dropout"), 7),
        (("model", "network"), []),
        (("model", "network", "width"), 15),
        (("model", "network", "width"), "16"),
        (("model", "network", "width"), 10**7),
        (("model", "network", "depth"), 3),
        (("model", "network", "heads"), 0),
        (("model", "network", "inputs"), 6),
        (("model", "network", "mlp_ratio"), float("nan")),
        (("model", "network", "mlp_ratio"), 1e9),
        (("model", "network", "layout"), "wild"),
        (("model", "network", "layout"), "reference"),
        (("model", "network", "layout"), "d3dp"),
        (("model", "network", "spatial"), "hop-bias"),
        (("model", "network", "colour"), 1),
        (("spread",), 0.0),
        (("spread",), -1.0),
        (("spread",), float("nan")),
        (("spread",), float("inf")),
        (("spread",), None),
        (("spread",), "wide"),
        (("temperature",), -1.0),
        (("temperature",), float("nan")),
        (("temperature",), "hot"),
        (("parameters",), []),
        (("parameters", "colour"), 1),
        (("training",), 3),
    ],
    ids=lambda v: ".".join(v) if isinstance(v, tuple) else repr(v)[:20],
)
def test_a_damaged_config_is_refused_when_loading(saved, place, value):
    def change(config):
        for name in place[:-1]:
            config = config[name]
        config[place[-1]] = value

    edit(saved, change)
    with pytest.raises(CheckpointError):
        PoseLifter.from_pretrained(saved)


def test_a_network_without_its_layout_is_refused(saved):
    edit(saved, lambda c: c["model"]["network"].pop("layout"))
    with pytest.raises(CheckpointError, match="layout"):
        PoseLifter.from_pretrained(saved)


def test_a_config_that_asks_for_much_memory_is_refused_before_taking_it(saved):
    def change(config):
        config["model"]["frames"] = 99_000
        config["model"]["network"].update(width=4096, depth=40, mlp_ratio=4.0)

    edit(saved, change)
    with pytest.raises(CheckpointError):
        PoseLifter.from_pretrained(saved)
