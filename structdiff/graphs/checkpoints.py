r"""Published GDSS checkpoints as networks of ours.

A checkpoint holds both score networks, the configuration they were trained with and, for the
generic graph sets, the exponential moving averages of their weights. Two forms are read: the
original ``.pth`` (through :mod:`structdiff.torch_archive`, which executes nothing) and a
converted ``.safetensors`` with a ``.json`` of the same name beside it. Whatever comes in is checked
against the networks its own settings describe: names, shapes, finite values.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from structdiff.errors import CheckpointError
from structdiff.graphs.attention import published_state_dict
from structdiff.graphs.networks import (
    GDSSNetwork,
    ScoreNetwork,
    ScoreNetworkA,
    ScoreNetworkX,
    ScoreNetworkXGMH,
)
from structdiff.torch_archive import MAX_BYTES, read_torch_archive

_NETWORKS: dict[str, Callable[..., ScoreNetwork]] = {
    "ScoreNetworkX": ScoreNetworkX,
    "ScoreNetworkX_GMH": ScoreNetworkXGMH,
    "ScoreNetworkA": ScoreNetworkA,
}
_X_SETTINGS = {"max_feat_num", "depth", "nhid"}
_CHANNEL_SETTINGS = {"num_linears", "c_init", "c_hid", "c_final", "adim", "num_heads"}
_SETTINGS = {
    "ScoreNetworkX": _X_SETTINGS,
    "ScoreNetworkX_GMH": _X_SETTINGS | _CHANNEL_SETTINGS,
    "ScoreNetworkA": {"max_feat_num", "max_node_num", "nhid", "num_layers"} | _CHANNEL_SETTINGS,
}
# What a network's output means under each process of the paper.
_PREDICTION = {"VP": "noise", "subVP": "noise", "VE": "score"}
# The molecule checkpoints store no sampler; these are the settings of the repository's own
# configuration files and README, keyed by data set and node network.
_MOLECULE_SAMPLERS = {
    ("QM9", "ScoreNetworkX"): {"snr": 0.2, "scale_eps": 0.7},
    ("ZINC250k", "ScoreNetworkX"): {"snr": 0.2, "scale_eps": 0.9},
    ("ZINC250k", "ScoreNetworkX_GMH"): {"snr": 0.2, "scale_eps": 0.8},
}
_MOLECULE_SAMPLER = {
    "predictor": "Reverse",
    "corrector": "Langevin",
    "n_steps": 1,
    "use_ema": False,
    "noise_removal": True,
    "probability_flow": False,
    "eps": 1e-4,
    "seed": 42,
}
# Larger settings than these describe no model, only a way to exhaust memory.
_LARGEST = {"depth": 64, "num_layers": 64, "num_linears": 64}
_LARGEST_WIDTH = 4096


@dataclass(frozen=True)
class GDSSCheckpoint:
    """What a GDSS checkpoint holds; tensors are float32, on the CPU, under the published names.

    Attributes
    ----------
    name
        Name of the data set or model, as the file says.
    params_x, params_adj
        ``model_type`` and settings of the two networks.
    model_config
        The configuration stored in the checkpoint: ``data``, ``sde``, ``model``, ``train``, ...
    x_state, adj_state
        State dicts of the two networks.
    ema_x, ema_adj
        Their moving averages, where the checkpoint has them.
    sampling
        The sampler that its authors recommend: ``predictor``, ``corrector``, ``snr``,
        ``scale_eps``, ``n_steps``, ``use_ema``, ``eps``, ... (as far as known; ``use_ema`` always).
    """

    name: str
    params_x: dict[str, Any]
    params_adj: dict[str, Any]
    model_config: dict[str, Any]
    x_state: dict[str, Tensor]
    adj_state: dict[str, Tensor]
    ema_x: dict[str, Tensor] | None
    ema_adj: dict[str, Tensor] | None
    sampling: dict[str, Any]

    @property
    def prediction(self) -> dict[str, str]:
        """What each network's output means: ``"noise"`` (VP, sub-VP) or ``"score"`` (VE)."""
        sde = self.model_config["sde"]
        return {name: _PREDICTION[sde[name]["type"]] for name in ("x", "adj")}


def read_gdss(path: str | Path) -> GDSSCheckpoint:
    """Read a published GDSS checkpoint; nothing in the file is executed.

    Parameters
    ----------
    path
        The original ``.pth``, or a converted ``.safetensors`` with its ``.json`` beside it.

    Raises
    ------
    CheckpointError
        If the file is missing, truncated, hostile, of another model, or holds NaN.
    """
    path = Path(path)
    if not path.is_file():
        _fail(path, "there is no such file", "check the path")
    parts = _read_converted(path) if path.suffix == ".safetensors" else _read_original(path)
    for part in ("data", "sde", "model"):
        if not isinstance(parts["model_config"].get(part), Mapping):
            _fail(path, f"its configuration has no {part!r} part", "use a checkpoint of GDSS")
    if not isinstance(parts["sampling"]["use_ema"], bool):
        _fail(path, "'use_ema' is neither true nor false", "correct the file")
    for component in ("x", "adj"):
        _check_sde(path, component, parts["model_config"]["sde"])
        shapes = _expected_shapes(path, component, parts[f"params_{component}"])
        for kind in (f"{component}_state", f"ema_{component}"):
            if parts[kind] is not None:
                parts[kind] = _checked(path, kind, parts[kind], shapes)
    widths = {parts[key]["max_feat_num"] for key in ("params_x", "params_adj")}
    if len(widths) > 1:
        _fail(path, f"its networks read {widths} node features", "use networks trained together")
    return GDSSCheckpoint(**parts)


def build_networks(checkpoint: GDSSCheckpoint, use_ema: bool | None = None) -> GDSSNetwork:
    """The networks of a checkpoint, in evaluation mode.

    Parameters
    ----------
    checkpoint
        From :func:`read_gdss`.
    use_ema
        Load the moving averages; by default what ``checkpoint.sampling`` recommends.

    Raises
    ------
    CheckpointError
        If averages are asked for that the checkpoint does not hold.
    """
    use_ema = checkpoint.sampling["use_ema"] if use_ema is None else use_ema
    x_state, adj_state = checkpoint.x_state, checkpoint.adj_state
    if use_ema:
        if checkpoint.ema_x is None or checkpoint.ema_adj is None:
            raise CheckpointError(
                f"checkpoint {checkpoint.name}: it holds no moving averages; pass use_ema=False"
            )
        x_state, adj_state = checkpoint.ema_x, checkpoint.ema_adj
    networks = build_score_network(checkpoint.params_x), build_score_network(checkpoint.params_adj)
    for network, state in zip(networks, (x_state, adj_state), strict=True):
        network.load_state_dict(dict(state))
    return GDSSNetwork(*networks, prediction=checkpoint.prediction).eval()


def _read_original(path: Path) -> dict[str, Any]:
    contents = read_torch_archive(path)
    required = ("model_config", "params_x", "params_adj", "x_state_dict", "adj_state_dict")
    for key in required:
        if not isinstance(contents.get(key), dict):
            _fail(path, f"it has no {key!r}", f"a GDSS checkpoint holds {', '.join(required)}")
    states = {
        name: {key.removeprefix("module."): value for key, value in contents[full].items()}
        for name, full in (("x", "x_state_dict"), ("adj", "adj_state_dict"))
    }
    config, params_x = contents["model_config"], contents["params_x"]
    name = path.stem.removeprefix("gdss_")
    return {
        "name": name,
        "params_x": params_x,
        "params_adj": contents["params_adj"],
        "model_config": config,
        "x_state": states["x"],
        "adj_state": states["adj"],
        "ema_x": _named_average(path, contents.get("ema_x"), states["x"]),
        "ema_adj": _named_average(path, contents.get("ema_adj"), states["adj"]),
        "sampling": _sampling(config, params_x),
    }


def _named_average(path: Path, average: Any, state: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """Name the averages, which are stored as a list in the order of the state dict."""
    if average is None:
        return None
    values = average.get("shadow_params") if isinstance(average, dict) else None
    if not isinstance(values, list) or len(values) != len(state):
        _fail(path, "its moving averages do not match its weights", "get the file again")
    return dict(zip(state, values, strict=True))


def _sampling(config: Mapping[str, Any], params_x: Mapping[str, Any]) -> dict[str, Any]:
    """The recommended sampler: as stored, else as the repository's configuration files say."""
    stored = {}
    for part in ("sampler", "sample"):
        if isinstance(config.get(part), Mapping):
            stored.update(config[part])
    if stored:
        if stored.get("corrector") == "None":
            stored["corrector"] = None
        return {"use_ema": False, **stored}
    data = config["data"].get("data") if isinstance(config.get("data"), Mapping) else None
    known = _MOLECULE_SAMPLERS.get((str(data), str(params_x.get("model_type"))))
    return {**_MOLECULE_SAMPLER, **known} if known else {"use_ema": False}


def _read_converted(path: Path) -> dict[str, Any]:
    beside = path.with_suffix(".json")
    if not beside.is_file():
        _fail(path, f"its settings {beside.name} are missing", "put the JSON file beside it")
    if path.stat().st_size > MAX_BYTES:
        _fail(path, f"it has more than {MAX_BYTES / 2**30:g} GiB", "use a checkpoint of GDSS")
    try:
        settings = json.loads(beside.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        _fail(beside, f"it is no valid JSON ({error})", "get the file again")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        _fail(path, f"it is no readable safetensors file ({error})", "get the file again")
    required = ("model_config", "params_x", "params_adj", "recommended_sampling")
    for key in required:
        if not isinstance(settings, dict) or not isinstance(settings.get(key), dict):
            _fail(beside, f"it has no {key!r}", f"it must hold {', '.join(required)}")
    states: dict[str, dict[str, Tensor]] = {"x": {}, "adj": {}, "ema_x": {}, "ema_adj": {}}
    for name, tensor in tensors.items():
        group, _, rest = name.partition(".")
        if group not in states:
            _fail(path, f"it holds an unknown tensor {name!r}", f"groups are {', '.join(states)}")
        states[group][rest] = tensor
    return {
        "name": str(settings.get("name", path.stem.removeprefix("gdss_"))),
        "params_x": settings["params_x"],
        "params_adj": settings["params_adj"],
        "model_config": settings["model_config"],
        "x_state": states["x"],
        "adj_state": states["adj"],
        "ema_x": states["ema_x"] or None,
        "ema_adj": states["ema_adj"] or None,
        "sampling": {"use_ema": False, **settings["recommended_sampling"]},
    }


def build_score_network(params: Mapping[str, Any]) -> ScoreNetwork:
    """One score network with fresh weights, from ``model_type`` and its settings (section 4c)."""
    kind = params["model_type"]
    return _NETWORKS[kind](**{key: params[key] for key in sorted(_SETTINGS[kind])})


def _expected_shapes(
    path: Path, component: str, params: Mapping[str, Any]
) -> dict[str, torch.Size]:
    """Published names and shapes of the network that ``params`` describes."""
    kind = params.get("model_type")
    expected = ["ScoreNetworkA"] if component == "adj" else ["ScoreNetworkX", "ScoreNetworkX_GMH"]
    if kind not in expected:
        _fail(path, f"the {component} network is {kind!r}", f"supported: {', '.join(expected)}")
    if params.get("conv", "GCN") != "GCN":
        _fail(path, f"its convolution is {params['conv']!r}", "only 'GCN' is supported")
    for key in sorted(_SETTINGS[kind]):
        value = params.get(key)
        largest = _LARGEST.get(key, _LARGEST_WIDTH)
        if type(value) is not int or not 1 <= value <= largest:
            remedy = f"it must be an integer from 1 to {largest}"
            _fail(path, f"setting {key!r} of {kind} is {value!r:.40}", remedy)
    try:
        with torch.device("meta"):
            network = build_score_network(params)
    except ValueError as error:
        _fail(path, f"{kind} cannot be built ({error})", "use a checkpoint of GDSS")
    return {name: tensor.shape for name, tensor in published_state_dict(network).items()}


def _checked(
    path: Path, kind: str, state: dict[str, Any], shapes: dict[str, torch.Size]
) -> dict[str, Tensor]:
    """The tensors of one state dict, if they are exactly the expected ones and finite."""
    remedy = "use weights that belong to these settings"
    if missing := sorted(shapes.keys() - state.keys()):
        _fail(path, f"{kind} lacks {missing[0]!r} ({len(missing)} missing)", remedy)
    if unknown := sorted(state.keys() - shapes.keys()):
        _fail(path, f"{kind} has the unknown {unknown[0]!r} ({len(unknown)} unknown)", remedy)
    checked = {}
    for name, shape in shapes.items():
        tensor = state[name]
        if not isinstance(tensor, Tensor) or tensor.shape != shape:
            found = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
            _fail(path, f"{kind} {name!r} is {found}, not {tuple(shape)}", remedy)
        if not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all()):
            _fail(path, f"{kind} {name!r} holds NaN or infinity", "retrain or get the file again")
        checked[name] = tensor.to(torch.float32).clone(memory_format=torch.contiguous_format)
    return checked


def _check_sde(path: Path, component: str, sde: Mapping[str, Any]) -> None:
    """Both components need a known process with numbers for its two ends."""
    settings = sde.get(component)
    if not isinstance(settings, Mapping) or settings.get("type") not in _PREDICTION:
        known = ", ".join(_PREDICTION)
        _fail(path, f"component {component!r} has no known SDE", f"its type must be of {known}")
    for key in ("beta_min", "beta_max"):
        value = settings.get(key)
        if not isinstance(value, (int, float)) or not 0 < value < math.inf:
            _fail(path, f"{key} of {component!r} is {value!r:.40}", "it must be a positive number")


def _fail(path: Path, reason: str, remedy: str) -> NoReturn:
    raise CheckpointError(f"{path}: {' '.join(reason.split())}; {remedy}")
