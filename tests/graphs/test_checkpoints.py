"""Published GDSS checkpoints: both forms say the same, and a damaged one is named."""

from __future__ import annotations

import io
import json
import pickle
import sys
import types
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from structdiff.errors import CheckpointError
from structdiff.graphs.checkpoints import build_networks, read_gdss


class EasyDict(dict):
    """The settings class of the published files: items are attributes too."""

    def __init__(self, items=()):
        super().__init__()
        for key, value in dict(items).items():
            value = EasyDict(value) if isinstance(value, dict) else value
            self[key] = value
            setattr(self, key, value)


EasyDict.__module__ = "easydict"
EasyDict.__qualname__ = "EasyDict"


@pytest.fixture
def easydict(monkeypatch):
    """A module ``easydict`` to write with; reading must not need it."""
    module = types.ModuleType("easydict")
    module.EasyDict = EasyDict
    monkeypatch.setitem(sys.modules, "easydict", module)


@pytest.fixture
def converted(weights_dir, tmp_path) -> Path:
    """A copy of the converted QM9 checkpoint that a test may damage."""
    for ending in (".safetensors", ".json"):
        source = weights_dir / "gdss" / f"gdss_qm9{ending}"
        (tmp_path / source.name).write_bytes(source.read_bytes())
    return tmp_path / "gdss_qm9.safetensors"


def original_contents(converted: Path, prefix: str = "") -> dict:
    """What the published ``.pth`` of a converted file holds."""
    tensors = load_file(converted)
    settings = json.loads(converted.with_suffix(".json").read_text())

    def group(name: str) -> dict:
        return {
            key.removeprefix(f"{name}."): value
            for key, value in tensors.items()
            if key.startswith(f"{name}.")
        }

    contents = {
        "model_config": EasyDict(settings["model_config"]),
        "params_x": settings["params_x"],
        "params_adj": settings["params_adj"],
        "x_state_dict": OrderedDict((prefix + k, v) for k, v in group("x").items()),
        "adj_state_dict": OrderedDict((prefix + k, v) for k, v in group("adj").items()),
    }
    contents["x_state_dict"]._metadata = OrderedDict(version=1)
    for name in ("x", "adj"):
        if average := group(f"ema_{name}"):
            contents[f"ema_{name}"] = {"decay": 0.999, "shadow_params": list(average.values())}
    return contents


def write_original(converted: Path, path: Path, prefix: str = "", device: str = "cpu") -> Path:
    """Write ``.pth`` as the published code does; ``device`` is the tag of its storages."""
    torch.save(original_contents(converted, prefix), path)
    if device == "cpu":
        return path
    tag = pickle.dumps("cpu", 2)[2:-1], pickle.dumps(device, 2)[2:-1]
    return rewrite(path, lambda program: program.replace(tag[0], tag[1]))


def rewrite(
    path: Path, change, entry: str = "data.pkl", compress: int = zipfile.ZIP_STORED
) -> Path:
    """Replace one entry of an archive by ``change`` of its bytes."""
    with zipfile.ZipFile(path) as archive:
        entries = [(item.filename, archive.read(item)) for item in archive.infolist()]
    with zipfile.ZipFile(path, "w", compress) as archive:
        for name, data in entries:
            archive.writestr(name, change(data) if name.endswith(f"/{entry}") else data)
    return path


def assert_same_weights(one, other) -> None:
    for name in ("x_state", "adj_state", "ema_x", "ema_adj"):
        mine, theirs = getattr(one, name), getattr(other, name)
        assert (mine is None) == (theirs is None)
        if mine is not None:
            assert mine.keys() == theirs.keys()
            assert all(torch.equal(mine[key], theirs[key]) for key in mine)


# --- the two forms -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["qm9", "ego_small", "zinc250k_v2"])
def test_an_original_file_reads_like_its_converted_form(weights_dir, tmp_path, easydict, name):
    converted = weights_dir / "gdss" / f"gdss_{name}.safetensors"
    original = write_original(converted, tmp_path / "gdss.pth", device="cuda:0")
    assert_same_weights(read_gdss(original), read_gdss(converted))


def test_an_original_file_has_the_settings_of_its_converted_form(converted, tmp_path, easydict):
    read = read_gdss(write_original(converted, tmp_path / "gdss.pth"))
    settings = json.loads(converted.with_suffix(".json").read_text())
    stored = {key: getattr(read, key) for key in ("model_config", "params_x", "params_adj")}
    assert stored == {key: settings[key] for key in stored}


def test_reading_an_original_file_imports_no_easydict(converted, tmp_path, monkeypatch):
    with monkeypatch.context() as context:
        module = types.ModuleType("easydict")
        module.EasyDict = EasyDict
        context.setitem(sys.modules, "easydict", module)
        path = write_original(converted, tmp_path / "gdss.pth")
    read_gdss(path)
    assert "easydict" not in sys.modules


def test_the_prefix_of_multi_gpu_training_is_stripped(converted, tmp_path, easydict):
    original = write_original(converted, tmp_path / "gdss.pth", prefix="module.")
    assert_same_weights(read_gdss(original), read_gdss(converted))


@pytest.mark.parametrize("protocol", [2, 4])
def test_other_pickle_protocols_are_read(converted, tmp_path, easydict, protocol):
    path = tmp_path / "gdss.pth"
    torch.save(original_contents(converted), path, pickle_protocol=protocol)
    assert_same_weights(read_gdss(path), read_gdss(converted))


@pytest.mark.parametrize(("name", "scale"), [("qm9", 0.7), ("zinc250k", 0.9), ("zinc250k_v2", 0.8)])
def test_molecule_files_without_a_sampler_get_the_recommended_one(
    weights_dir, tmp_path, easydict, name, scale
):
    """Section 5 of the card: Reverse + Langevin, snr 0.2; scale_eps 0.7, 0.9 and 0.8 (v2)."""
    converted = weights_dir / "gdss" / f"gdss_{name}.safetensors"
    sampling = read_gdss(write_original(converted, tmp_path / "gdss.pth")).sampling
    assert (sampling["predictor"], sampling["corrector"]) == ("Reverse", "Langevin")
    assert (sampling["snr"], sampling["scale_eps"]) == (0.2, scale)


@pytest.mark.parametrize(("name", "use_ema"), [("community_small", False), ("enzymes", True)])
def test_weights_to_sample_with_are_the_recommended_ones(weights_dir, name, use_ema):
    """Section 5 of the card: moving averages for ENZYMES and grid, raw weights for the others."""
    checkpoint = read_gdss(weights_dir / "gdss" / f"gdss_{name}.safetensors")
    built = build_networks(checkpoint).x_network.layers[0].weight
    expected = checkpoint.ema_x if use_ema else checkpoint.x_state
    assert torch.equal(built, expected["layers.0.weight"])


def test_averages_that_are_not_there_are_refused(converted):
    with pytest.raises(CheckpointError, match="use_ema=False"):
        build_networks(read_gdss(converted), use_ema=True)


# --- damaged files -----------------------------------------------------------------------------


def test_compressed_records_are_refused(converted, tmp_path, easydict):
    path = write_original(converted, tmp_path / "gdss.pth")
    rewrite(path, lambda data: data, compress=zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="compressed records"):
        read_gdss(path)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_original_is_refused(converted, tmp_path, easydict, share):
    path = write_original(converted, tmp_path / "gdss.pth")
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(CheckpointError, match=r"gdss\.pth: .*; get the file again"):
        read_gdss(path)


def test_a_flipped_byte_in_a_record_is_refused(converted, tmp_path, easydict):
    path = write_original(converted, tmp_path / "gdss.pth")
    with zipfile.ZipFile(path) as archive:
        offset = archive.getinfo("gdss/data/0").header_offset + 1000
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="CRC"):
        read_gdss(path)


def test_a_truncated_converted_file_is_refused(converted):
    converted.write_bytes(converted.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="no readable safetensors file"):
        read_gdss(converted)


def test_a_file_from_before_zip_archives_is_refused_with_the_remedy(converted, tmp_path, easydict):
    path = tmp_path / "old.pth"
    torch.save(original_contents(converted), path, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"before torch 1\.6.*ask its author"):
        read_gdss(path)


def test_a_file_of_text_is_refused(tmp_path):
    path = tmp_path / "weights.pth"
    path.write_text("smiles\nCCO\n")
    with pytest.raises(CheckpointError, match="not a torch archive"):
        read_gdss(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere\.pth: there is no such file"):
        read_gdss(tmp_path / "nowhere.pth")


def test_a_zip_of_something_else_is_refused(tmp_path):
    path = tmp_path / "other.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(CheckpointError, match=r"not one of torch\.save"):
        read_gdss(path)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    path = tmp_path / "other.pth"
    torch.save({"state_dict": {"weight": torch.ones(2)}}, path)
    with pytest.raises(CheckpointError, match="has no 'model_config'"):
        read_gdss(path)


def change_tensors(converted: Path, **changes) -> None:
    tensors = load_file(converted)
    for name, value in changes.items():
        tensors.pop(name, None) if value is None else tensors.update({name: value})
    save_file(tensors, converted)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"x.layers.0.bias": torch.full((16,), torch.nan)},
            "'layers.0.bias' holds NaN or infinity",
        ),
        (
            {"x.layers.0.bias": torch.full((16,), torch.inf)},
            "'layers.0.bias' holds NaN or infinity",
        ),
        ({"x.layers.0.bias": torch.zeros(17)}, r"'layers.0.bias' is \(17,\), not \(16,\)"),
        ({"x.layers.0.bias": None}, "lacks 'layers.0.bias'"),
        ({"x.layers.9.bias": torch.zeros(16)}, "unknown 'layers.9.bias'"),
        ({"other.bias": torch.zeros(16)}, "unknown tensor 'other.bias'"),
    ],
)
def test_wrong_weights_are_named(converted, changes, reason):
    change_tensors(converted, **changes)
    with pytest.raises(CheckpointError, match=reason):
        read_gdss(converted)


@pytest.mark.parametrize(
    ("keys", "value", "reason"),
    [
        (("params_x", "depth"), 0, "'depth' of ScoreNetworkX is 0"),
        (("params_x", "depth"), 10**9, "an integer from 1 to 64"),
        (("params_x", "max_feat_num"), "4", "'max_feat_num' of ScoreNetworkX is '4'"),
        (("params_x", "model_type"), "Other", "the x network is 'Other'"),
        (("params_x",), None, "has no 'params_x'"),
        (("params_adj", "conv"), "MLP", "only 'GCN'"),
        (("params_adj", "num_heads"), 3, "does not divide"),
        (("model_config", "sde"), {}, "component 'x' has no known SDE"),
        (("model_config", "sde", "adj", "type"), "OU", "component 'adj' has no known SDE"),
        (("model_config", "sde", "adj", "beta_max"), "big", "beta_max of 'adj' is 'big'"),
        (("model_config", "data"), None, "no 'data' part"),
        (("recommended_sampling", "use_ema"), "no", "'use_ema' is neither"),
    ],
)
def test_wrong_settings_are_named(converted, keys, value, reason):
    path = converted.with_suffix(".json")
    settings = json.loads(path.read_text())
    branch = settings
    for key in keys[:-1]:
        branch = branch[key]
    branch[keys[-1]] = value
    path.write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=reason):
        read_gdss(converted)


def test_missing_settings_are_named(converted):
    converted.with_suffix(".json").unlink()
    with pytest.raises(CheckpointError, match="put the JSON file beside it"):
        read_gdss(converted)


def test_settings_that_are_no_json_are_refused(converted):
    converted.with_suffix(".json").write_text("{")
    with pytest.raises(CheckpointError, match="no valid JSON"):
        read_gdss(converted)


def test_averages_of_another_length_are_refused(weights_dir, tmp_path, easydict):
    contents = original_contents(weights_dir / "gdss" / "gdss_ego_small.safetensors")
    contents["ema_x"]["shadow_params"].pop()
    path = tmp_path / "gdss.pth"
    torch.save(contents, path)
    with pytest.raises(CheckpointError, match="averages do not match"):
        read_gdss(path)


def test_error_messages_have_one_line(converted, tmp_path):
    path = tmp_path / "bytes.pth"
    buffer = io.BytesIO(b"PK\x03\x04 no archive\n\n")
    path.write_bytes(buffer.getvalue())
    with pytest.raises(CheckpointError) as caught:
        read_gdss(path)
    assert "\n" not in str(caught.value)
