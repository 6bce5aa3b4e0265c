"""Saved window models: what is written is read back, and damage is named before it is used."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from structdiff.errors import CheckpointError
from structdiff.molecules import MoleculeGenerator
from structdiff.samplers import get_sampler
from structdiff.timeseries import TSDiff


@pytest.fixture
def saved(model, tmp_path):
    return model.save_pretrained(tmp_path / "model")


def _edit(folder, change):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def _spoil(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def _loaded(folder, **changes):
    return TSDiff.from_pretrained(folder).set_params(random_state=0, progress=False, **changes)


# --- round trip ------------------------------------------------------------------------------
@pytest.mark.parametrize("family", ["model", "paper"])
def test_every_use_of_a_loaded_model_gives_the_same_bits(family, daily, tmp_path, request):
    model = request.getfixturevalue(family)
    again = _loaded(model.save_pretrained(tmp_path))
    same = pd.testing.assert_frame_equal
    same(again.predict(daily, level=80), model.predict(daily, level=80), check_exact=True)
    holes = daily.copy()
    holes.loc[40:43, "y"] = np.nan
    same(again.impute(holes), model.impute(holes), check_exact=True)
    same(again.synthesize(3), model.synthesize(3), check_exact=True)
    base = model.predict(daily)
    same(again.refine(daily, base), model.refine(daily, base), check_exact=True)


def test_everything_else_comes_back(model, saved):
    again = TSDiff.from_pretrained(str(saved))
    fresh = {"random_state": None, "accelerator": "auto"}
    assert again.get_params() == {**model.get_params(), **fresh}
    assert again.spec_ == model.spec_
    assert again.freq_ == model.freq_ == "D"
    assert again.training_ == model.training_
    assert 0 < again.refinement_time_ <= 1
    assert again.refinement_time_ == model.refinement_time_
    assert np.array_equal(again.levels_, model.levels_)
    assert torch.equal(again.covariance_.matrix(), model.covariance_.matrix())


def test_a_loaded_model_can_be_fitted_anew(saved, daily):
    again = _loaded(saved, accelerator="cpu", max_steps=1).fit(daily)
    assert len(again.predict()) == 18


def test_a_loaded_model_has_no_training_frame(saved):
    with pytest.raises(ValueError, match="no training frame: pass the series"):
        TSDiff.from_pretrained(saved).predict()


def test_half_precision_is_smaller_and_forecasts_nearly_the_same(model, daily, tmp_path):
    whole, half = tmp_path / "whole", tmp_path / "half"
    model.save_pretrained(whole)
    model.save_pretrained(half, dtype="float16")
    sizes = [(f / "model.safetensors").stat().st_size for f in (half, whole)]
    assert sizes[0] < sizes[1]
    forecast = _loaded(half).predict(daily)["TSDiff"]
    np.testing.assert_allclose(forecast, model.predict(daily)["TSDiff"], rtol=1e-2)


def test_integer_time_and_named_columns_come_back(tiny, daily, tmp_path):
    frame = daily.assign(ds=daily.groupby("unique_id").cumcount()).rename(columns={"y": "sold"})
    model = tiny(target_col="sold", freq=1).fit(frame)
    again = _loaded(model.save_pretrained(tmp_path))
    assert again.freq_ == 1
    pd.testing.assert_frame_equal(again.predict(frame), model.predict(frame))


def test_a_frequency_that_was_an_offset_is_stored_by_name(tiny, daily, tmp_path):
    model = tiny(freq=pd.offsets.Day(), max_steps=1).fit(daily)
    assert TSDiff.from_pretrained(model.save_pretrained(tmp_path)).freq == "D"


def test_a_sampler_object_is_not_stored(model, daily, tmp_path):
    model.set_params(sampler=get_sampler("ddim", 5))
    again = TSDiff.from_pretrained(model.save_pretrained(tmp_path))
    assert again.sampler is None
    assert np.isfinite(again.predict(daily)["TSDiff"]).all()


def test_an_unfitted_model_cannot_be_saved(tiny, tmp_path):
    with pytest.raises(ValueError, match="TSDiff is not fitted"):
        tiny().save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


# --- damage ----------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(saved, name):
    (saved / name).unlink()
    with pytest.raises(CheckpointError, match=f"holds no {name}"):
        TSDiff.from_pretrained(saved)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_truncated_file_is_named(saved, name):
    content = (saved / name).read_bytes()
    (saved / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=f"{name} is (damaged|truncated)"):
        TSDiff.from_pretrained(saved)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="no model"):
        TSDiff.from_pretrained(tmp_path / "nowhere")


def test_a_model_of_another_head_names_who_loads_it(saved):
    _edit(saved, lambda c: c.update(format="structdiff.molecules/1"))
    with pytest.raises(CheckpointError, match=r"structdiff\.molecules\.MoleculeGenerator"):
        TSDiff.from_pretrained(saved)


def test_other_heads_name_this_one(saved):
    with pytest.raises(CheckpointError, match=r"structdiff\.timeseries\.TSDiff"):
        MoleculeGenerator.from_pretrained(saved)


@pytest.mark.parametrize("name", ["backbone.head.0.weight", "prior.mean", "prior.rest", "levels"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(saved, name, value):
    def change(tensors):
        key = name if name in tensors else next(k for k in tensors if "head" in k)
        tensors[key].view(-1)[0] = value

    _spoil(saved, change)
    with pytest.raises(CheckpointError, match="holds NaN or infinity"):
        TSDiff.from_pretrained(saved)


@pytest.mark.parametrize("name", ["prior.mean", "prior.vectors", "levels"])
def test_a_missing_tensor_is_named(saved, name):
    _spoil(saved, lambda tensors: tensors.pop(name))
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        TSDiff.from_pretrained(saved)


def test_a_tensor_of_another_shape_is_named(saved):
    _spoil(saved, lambda tensors: tensors.update({"prior.mean": torch.zeros(7)}))
    with pytest.raises(CheckpointError, match=r"'prior\.mean' has shape \(7,\), expected \(24,\)"):
        TSDiff.from_pretrained(saved)


def _negative(tensors):
    tensors["prior.values"][:] = -1.0


def _skewed(tensors):
    tensors["prior.vectors"][:] = 1.0


def _flat(tensors):
    tensors["levels"][:, 1] = 0.0


@pytest.mark.parametrize("change", [_negative, _skewed, _flat])
def test_numbers_that_are_no_gaussian_or_no_scale_are_refused(saved, change):
    _spoil(saved, change)
    with pytest.raises(CheckpointError, match=r"get (the model|it) again"):
        TSDiff.from_pretrained(saved)


@pytest.mark.parametrize("part", ["parameters", "model", "freq", "refinement_time"])
def test_a_missing_part_of_the_config_is_named(saved, part):
    _edit(saved, lambda c: c.pop(part))
    with pytest.raises(CheckpointError, match=part):
        TSDiff.from_pretrained(saved)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("model", "horizon"), 0),
        (("model", "horizon"), "6"),
        (("model", "context"), 10**9),
        (("model", "context"), True),
        (("model", "context"), 17),
        (("model", "rank"), 10**6),
        (("model", "lags"), [0]),
        (("model", "lags"), 7),
        (("model", "scaling"), "robust"),
        (("model", "prediction"), "future"),
        (("model", "process"), {}),
        (("model", "process"), {"kind": "unknown"}),
        (("model", "network"), []),
        (("model", "network", "hidden"), 10**7),
        (("model", "network", "hidden"), 16),
        (("model", "network", "channels"), 3),
        (("model", "network", "kernel"), "s5"),
        (("model", "network", "length"), 5),
        (("model", "network", "colour"), 5),
        (("model", "sampler"), {}),
        (("model", "sampler"), {"name": "magic", "steps": 20}),
        (("model", "sampler", "steps"), 0),
        (("model", "guidance"), {}),
        (("model", "guidance", "kind"), "luck"),
        (("model", "guidance", "scale"), -1.0),
        (("model", "skip"), False),
        (("freq",), "fortnight"),
        (("freq",), None),
        (("freq",), 0),
        (("refinement_time",), None),
        (("refinement_time",), 7.0),
        (("refinement_time",), -1.0),
        (("parameters",), []),
        (("parameters", "colour"), 1),
        (("training",), 3),
    ],
    ids=lambda v: ".".join(v) if isinstance(v, tuple) else repr(v),
)
def test_a_damaged_config_is_refused_when_loading(saved, place, value):
    def change(config):
        for name in place[:-1]:
            config = config[name]
        config[place[-1]] = value

    _edit(saved, change)
    with pytest.raises(CheckpointError):
        TSDiff.from_pretrained(saved)


def test_a_config_that_asks_for_much_memory_is_refused_before_taking_it(saved):
    def change(config):
        config["model"].update(context=99_000, rank=99_000)
        config["model"]["network"]["length"] = 99_006

    _edit(saved, change)
    with pytest.raises(CheckpointError, match="of another network"):
        TSDiff.from_pretrained(saved)
