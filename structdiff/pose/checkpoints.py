r"""Published DDHPose and D3DP weights as networks of ours.

Both repositories save ``{"model_pos": state dict, "optimizer": ..., "random_state": ...}`` of a
model wrapped for several GPUs, so that a tensor is called
``module.dir_bone_estimator.TTEblocks.0.attn.qkv_xc.weight``. The random state is a pickled object
of NumPy, which ``torch.load`` with ``weights_only=True`` refuses as a whole; the reader of
:mod:`structdiff.torch_archive` makes nothing of it and executes nothing either. What the network is
like follows from the shapes; then every tensor is checked against that network.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from structdiff.errors import CheckpointError, StructDiffError
from structdiff.pose.networks import HSTDenoiser, Layout
from structdiff.pose.skeletons import H36M_17, Skeleton, get_skeleton
from structdiff.torch_archive import read_torch_archive

CHAIN_LENGTH = 1000
"""Steps of the published process, which the networks' time counts."""

_LAYOUTS: dict[str, Layout] = {"dir_bone_estimator": "reference", "pose_estimator": "d3dp"}
_NAMES = {
    "embedding": "Spatial_patch_to_embedding",
    "time.inner": "time_mlp.1",
    "time.outer": "time_mlp.3",
    "joint_embedding": "Spatial_pos_embed",
    "frame_embedding": "Temporal_pos_embed",
    "level_embedding": "group",
    "spatial_norm": "Spatial_norm",
    "temporal_norm": "Temporal_norm",
}
_BLOCK_NAMES = {
    "attention.qkv": "attn.qkv",
    "attention.child_keys": "attn.qkv_xc",
    "attention.projection": "attn.proj",
    "mlp.0": "mlp.fc1",
    "mlp.2": "mlp.fc2",
}
# Tables of the diffusion process, stored with the weights; they follow from its length.
_PROCESS = {
    *("betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod"),
    *("sqrt_one_minus_alphas_cumprod", "log_one_minus_alphas_cumprod"),
    *("sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_variance"),
    *("posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2"),
}


def read_published(
    path: str | Path, skeleton: str | Skeleton = H36M_17, *, heads: int = 8
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Settings and weights of a published checkpoint; nothing in the file is executed.

    Parameters
    ----------
    path
        A ``.bin`` or ``.pth`` of DDHPose or D3DP.
    skeleton
        Of the data it was trained on, or its name. The file does not say: weights for Human3.6M and
        for MPI-INF-3DHP have the same shapes.
    heads
        Of every attention; the file does not say. Both repositories use 8.

    Returns
    -------
    settings
        Arguments of :class:`~structdiff.pose.networks.HSTDenoiser`.
    state
        Its state dict, float32, on the CPU.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, hostile, of another model, or holds NaN.
    """
    path, skeleton = Path(path), get_skeleton(skeleton)
    if not path.is_file():
        _fail(path, "there is no such file", "check the path")
    contents = read_torch_archive(path, ["model_pos"])
    layout, found = _network_tensors(path, contents.get("model_pos"))
    settings = {
        "skeleton": skeleton,
        "heads": heads,
        "layout": layout,
        **_sizes(path, found, layout),
    }
    try:
        with torch.device("meta"):
            network = HSTDenoiser(**settings)
    except StructDiffError as error:
        _fail(path, f"its network cannot be built ({error})", "give its number of heads")
    expected = {
        published_name(name, layout): (name, tensor.shape)
        for name, tensor in network.state_dict().items()
    }
    _check_names(path, found.keys(), expected.keys())
    state = {}
    for theirs, (ours, shape) in expected.items():
        state[ours] = _checked(path, theirs, found[theirs], shape)
    return settings, state


def load_published(
    path: str | Path, skeleton: str | Skeleton = H36M_17, *, heads: int = 8
) -> HSTDenoiser:
    """The network of a published checkpoint, in evaluation mode.

    DDHPose's comes in layout ``"reference"`` and takes ``[x, y, dx, dy, dz, l]``; D3DP's comes in
    layout ``"d3dp"`` and takes ``[x, y]`` and the noisy joint position.

    Parameters
    ----------
    path, skeleton, heads
        As for :func:`read_published`.

    Raises
    ------
    CheckpointError
        As :func:`read_published`.
    """
    settings, state = read_published(path, skeleton, heads=heads)
    network = HSTDenoiser(**settings)
    network.load_state_dict(state)
    return network.eval()


def published_name(name: str, layout: Layout) -> str:
    """What the published code calls a parameter of :class:`~structdiff.pose.networks.HSTDenoiser`.

    Parameters
    ----------
    name
        As in our state dict.
    layout
        ``"reference"`` for DDHPose's names, ``"d3dp"`` for D3DP's.
    """
    first, _, rest = name.partition(".")
    if first in ("spatial", "temporal"):
        number, _, inside = rest.partition(".")
        part, _, kind = inside.rpartition(".")
        blocks = "STEblocks" if first == "spatial" else "TTEblocks"
        if layout == "reference":  # its plain first block stands alone
            blocks, number = (
                (f"{blocks}_0", "0") if number == "0" else (blocks, f"{int(number) - 1}")
            )
        return f"{blocks}.{number}.{_BLOCK_NAMES.get(part, part)}.{kind}"
    if first == "head":
        return name if layout == "d3dp" else f"head_pose.{rest}"
    part, _, kind = name.rpartition(".")
    return f"{_NAMES[part]}.{kind}" if part in _NAMES else _NAMES[name]


def _network_tensors(path: Path, stored: Any) -> tuple[Layout, dict[str, Any]]:
    """Which network it is, and its tensors under their names inside it."""
    if not isinstance(stored, dict) or not stored:
        _fail(path, "it has no 'model_pos'", "a DDHPose or D3DP checkpoint holds the weights there")
    names = {name.removeprefix("module."): value for name, value in stored.items()}
    parts = {name.partition(".")[0] for name in names}
    kinds = sorted(parts & _LAYOUTS.keys())
    if len(kinds) != 1:
        _fail(
            path,
            f"its tensors, such as {next(iter(stored))!r}, are of no single known network",
            "DDHPose's lie under 'dir_bone_estimator', D3DP's under 'pose_estimator'",
        )
    prefix = f"{kinds[0]}."
    found = {n.removeprefix(prefix): v for n, v in names.items() if n.startswith(prefix)}
    others = {name: value for name, value in names.items() if not name.startswith(prefix)}
    if unknown := sorted(others.keys() - _PROCESS):
        _fail(path, f"it has unexpected tensors outside its network: {_some(unknown)}", _REMEDY)
    for name, table in others.items():
        if not isinstance(table, Tensor) or tuple(table.shape) != (CHAIN_LENGTH,):
            shape = tuple(table.shape) if isinstance(table, Tensor) else type(table).__name__
            _fail(
                path,
                f"{name!r} of its diffusion process is {shape}, not ({CHAIN_LENGTH},)",
                f"use weights trained with {CHAIN_LENGTH} steps",
            )
    return _LAYOUTS[kinds[0]], found


def _sizes(path: Path, found: Mapping[str, Any], layout: Layout) -> dict[str, Any]:
    """What the shapes say about the network."""

    def shape(name: str, dimensions: int) -> tuple[int, ...]:
        tensor = found.get(name)
        if not isinstance(tensor, Tensor):
            _fail(path, f"it lacks the tensor {name!r}", _REMEDY)
        if tensor.ndim != dimensions or not tensor.numel():
            _fail(path, f"{name!r} is {tuple(tensor.shape)}: no {dimensions} axes", _REMEDY)
        return tuple(tensor.shape)

    width, inputs = shape("Spatial_patch_to_embedding.weight", 2)
    frames = shape("Temporal_pos_embed", 3)[1]
    (hidden,) = shape(published_name("temporal.0.mlp.0.bias", layout), 1)
    numbered = {n.split(".")[1] for n in found if n.startswith(("STEblocks.", "TTEblocks."))}
    depth = len(numbered) + (layout == "reference")
    return {
        "frames": frames,
        "width": width,
        "depth": depth,
        "mlp_ratio": hidden / width,
        "inputs": inputs,
    }


def _check_names(path: Path, found: Iterable[str], expected: Iterable[str]) -> None:
    if missing := sorted(set(expected) - set(found)):
        _fail(path, f"it lacks the tensors {_some(missing)}", _REMEDY)
    if unknown := sorted(set(found) - set(expected)):
        _fail(path, f"it has unexpected tensors: {_some(unknown)}", _REMEDY)


def _checked(path: Path, name: str, tensor: Any, shape: torch.Size) -> Tensor:
    """The tensor in float32 and our shape, if it is as it should be."""
    # The published embeddings have a leading axis of one.
    theirs = (1, *shape) if name in ("group", "Spatial_pos_embed", "Temporal_pos_embed") else shape
    if not isinstance(tensor, Tensor) or tuple(tensor.shape) != tuple(theirs):
        is_ = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
        _fail(path, f"the tensor {name!r} is {is_}, not {tuple(theirs)}", _REMEDY)
    if not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all()):
        _fail(path, f"the tensor {name!r} holds NaN or infinity", "get the file again")
    # A copy: in the file, tensors may share their memory.
    return tensor.to(torch.float32).reshape(shape).clone()


def _some(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown


_REMEDY = "use the weights of one DDHPose or D3DP network, for this skeleton"


def _fail(path: Path, reason: str, remedy: str) -> NoReturn:
    raise CheckpointError(f"{path}: {reason}; {remedy}")
