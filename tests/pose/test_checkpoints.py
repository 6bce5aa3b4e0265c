"""Published DDHPose and D3DP checkpoints: read by name, checked by shape, nothing executed.

The files are synthetic, in the layout of the published ones: names, nesting, a pickled random state
and an optimizer beside the weights. What a loaded network must compute is written down here once
more, from the method's description, joint by joint.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from structdiff.errors import CheckpointError
from structdiff.pose.checkpoints import load_published, published_name, read_published
from structdiff.pose.networks import HSTDenoiser
from structdiff.pose.skeletons import COCO_17, H36M_17, MPI_INF_3DHP_17

WIDTH, DEPTH, HEADS = 16, 3, 2
CHAINS = {
    "h36m17": "0 1 2 3, 0 4 5 6, 0 7 8 9 10, 0 7 8 11 12 13, 0 7 8 14 15 16",
    "3dhp17": "14 8 9 10, 14 11 12 13, 14 15 1 0, 14 15 1 2 3 4, 14 15 1 5 6 7, 14 15 1 16",
}
PROCESS = (
    *("betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod"),
    *("sqrt_one_minus_alphas_cumprod", "log_one_minus_alphas_cumprod"),
    *("sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_variance"),
    *("posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2"),
)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def published_tensors(model: str, frames: int) -> dict[str, Tensor]:
    """A network's state dict under the names that its repository gives it."""
    generator = torch.Generator().manual_seed(0)
    ours = model == "ddhpose"

    def linear(name: str, out: int, into: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}

    def norm(name: str) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": (WIDTH,), f"{name}.bias": (WIDTH,)}

    shapes = {"Spatial_pos_embed": (1, 17, WIDTH), "Temporal_pos_embed": (1, frames, WIDTH)}
    shapes |= {"group": (1, 6, WIDTH)} if ours else {}
    shapes |= linear("Spatial_patch_to_embedding", WIDTH, 6 if ours else 5)
    shapes |= linear("time_mlp.1", 2 * WIDTH, WIDTH) | linear("time_mlp.3", WIDTH, 2 * WIDTH)
    for kind in ("STEblocks", "TTEblocks"):
        plain = [f"{kind}_0.0"] if ours else [f"{kind}.{i}" for i in range(DEPTH)]
        hierarchical = [f"{kind}.{i}" for i in range(DEPTH - 1)] if ours else []
        for block in plain + hierarchical:
            shapes |= norm(f"{block}.norm1") | norm(f"{block}.norm2")
            shapes |= linear(f"{block}.attn.qkv", 3 * WIDTH, WIDTH)
            if block in hierarchical:
                shapes |= linear(f"{block}.attn.qkv_xc", WIDTH, WIDTH)
            shapes |= linear(f"{block}.attn.proj", WIDTH, WIDTH)
            shapes |= linear(f"{block}.mlp.fc1", 2 * WIDTH, WIDTH)
            shapes |= linear(f"{block}.mlp.fc2", WIDTH, 2 * WIDTH)
    head = "head_pose" if ours else "head"
    shapes |= norm("Spatial_norm") | norm("Temporal_norm")
    shapes |= norm(f"{head}.0") | linear(f"{head}.1", 3, WIDTH)
    return {n: 0.4 * torch.randn(shape, generator=generator) for n, shape in shapes.items()}


def written(path: Path, tensors: dict[str, Tensor], model: str, **others) -> Path:
    """A training checkpoint as both repositories save it."""
    inside = {"ddhpose": "dir_bone_estimator", "d3dp": "pose_estimator"}[model]
    state = OrderedDict((f"module.{n}", torch.rand(1000, dtype=torch.float64)) for n in PROCESS)
    state |= {f"module.{inside}.{name}": tensor for name, tensor in tensors.items()}
    state |= others
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([weight])
    weight.sum().backward()
    optimizer.step()
    contents = {"epoch": 3, "lr": 1e-4, "random_state": np.random.RandomState(4321)}
    torch.save({**contents, "optimizer": optimizer.state_dict(), "model_pos": state}, path)
    return path


def described(
    tensors: dict[str, Tensor], features: Tensor, time: Tensor, chains: str | None
) -> Tensor:
    """The published networks from their description; ``chains`` is None for D3DP's."""
    b, n, j, _ = features.shape

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]

    def norm(name: str, x: Tensor, epsilon: float = 1e-6) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        x = x / (x.square().mean(-1, keepdim=True) + epsilon).sqrt()
        return x * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]

    def block(name: str, x: Tensor, children: Tensor | None, *, chained: bool) -> Tensor:
        """Of rows (R, S, C)."""
        rows, tokens, _ = x.shape
        attention = f"{name}.attn"
        q, k, v = linear(f"{attention}.qkv", norm(f"{name}.norm1", x)).chunk(3, -1)
        if children is not None and not chained:
            own = linear(f"{attention}.qkv_xc", norm(f"{name}.norm1", children))
            k = k + own.reshape(rows, tokens, WIDTH)  # as the published code reads it
        size = WIDTH // HEADS
        heads = []
        for h in range(HEADS):
            part = slice(h * size, (h + 1) * size)
            logits = q[..., part] @ k[..., part].transpose(1, 2) / size**0.5
            for chain in (chains or "").split(",") if chained else ():
                path = [int(joint) for joint in chain.split()]
                for g, p, c in zip(path, path[1:], path[2:], strict=False):
                    logits[:, p, c] = (logits[:, p, c] + logits[:, g, p]) / 2
                    logits[:, c, p] = (logits[:, c, p] + logits[:, g, p]) / 2
            heads.append(logits.softmax(-1) @ v[..., part])
        x = x + linear(f"{attention}.proj", torch.cat(heads, -1))
        hidden = functional.gelu(linear(f"{name}.mlp.fc1", norm(f"{name}.norm2", x)))
        return x + linear(f"{name}.mlp.fc2", hidden)

    x = linear("Spatial_patch_to_embedding", features) + tensors["Spatial_pos_embed"]
    tree: dict[int, set[int]] = {joint: set() for joint in range(j)}
    for chain in chains.split(",") if chains else ():
        path = [int(joint) for joint in chain.split()]
        for level, joint in enumerate(path):
            tree[joint].update(path[level + 1 : level + 2])
    if chains:
        levels = {int(v): at for chain in chains.split(",") for at, v in enumerate(chain.split())}
        x = x + tensors["group"][0, [levels[joint] for joint in range(j)]]
    angles = time[:, None] * 10000 ** (-torch.arange(WIDTH // 2) / (WIDTH // 2 - 1))
    waves = torch.cat((angles.sin(), angles.cos()), -1)
    x = x + linear("time_mlp.3", functional.gelu(linear("time_mlp.1", waves)))[:, None, None]
    children = None
    for layer in range(DEPTH):
        number = f".{layer}" if not chains else f".{layer - 1}" if layer else "_0.0"
        x = x.reshape(b * n, j, WIDTH)
        x = block(f"STEblocks{number}", x, None, chained=bool(chains and layer))
        x = norm("Spatial_norm", x).reshape(b, n, j, WIDTH).transpose(1, 2).reshape(b * j, n, WIDTH)
        x = x + tensors["Temporal_pos_embed"] if layer == 0 else x
        # Where there are 17 frames, the published code takes them for joints.
        x = block(f"TTEblocks{number}", x, children, chained=bool(chains and layer and n == 17))
        x = norm("Temporal_norm", x).reshape(b, j, n, WIDTH).transpose(1, 2)
        if chains and layer == 0:
            means = [x[:, :, [joint, *tree[joint]]].mean(2) for joint in range(j)]
            children = torch.stack(means, dim=2)
    head = "head_pose" if chains else "head"
    return linear(f"{head}.1", norm(f"{head}.0", x, 1e-5))


@pytest.mark.parametrize("frames", [5, 17])
@pytest.mark.parametrize("skeleton", [H36M_17, MPI_INF_3DHP_17], ids=lambda s: s.name)
def test_a_loaded_ddhpose_network_computes_what_the_published_one_is_said_to(
    tmp_path, skeleton, frames
):
    tensors = published_tensors("ddhpose", frames)
    path = written(tmp_path / "best_epoch.bin", tensors, "ddhpose")
    features, time = torch.randn(2, frames, 17, 6), torch.tensor([999.0, 31.0])
    with torch.no_grad():
        found = load_published(path, skeleton, heads=HEADS)(features, time)
        expected = described(tensors, features, time, CHAINS[skeleton.name])
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def test_a_loaded_d3dp_network_computes_what_the_published_one_is_said_to(tmp_path):
    tensors = published_tensors("d3dp", 5)
    path = written(tmp_path / "h36m_best_epoch.bin", tensors, "d3dp")
    features, time = torch.randn(2, 5, 17, 5), torch.tensor([999.0, 31.0])
    with torch.no_grad():
        found = load_published(path, heads=HEADS)(features, time)
        expected = described(tensors, features, time, None)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize(("model", "layout"), [("ddhpose", "reference"), ("d3dp", "d3dp")])
def test_settings_follow_from_the_shapes(tmp_path, model, layout):
    path = written(tmp_path / "weights.bin", published_tensors(model, 9), model)
    settings, _ = read_published(path, heads=HEADS)
    assert settings == {
        **{"skeleton": H36M_17, "heads": HEADS, "layout": layout, "frames": 9, "width": WIDTH},
        **{"depth": DEPTH, "mlp_ratio": 2.0, "inputs": 6 if model == "ddhpose" else 5},
    }


@pytest.mark.parametrize("model", ["ddhpose", "d3dp"])
def test_weights_come_back_bit_for_bit_under_the_published_names(tmp_path, model):
    tensors = published_tensors(model, 5)
    path = written(tmp_path / "weights.bin", tensors, model)
    settings, state = read_published(path, heads=HEADS)
    HSTDenoiser(**settings).load_state_dict(state)
    back = {published_name(name, settings["layout"]): tensor for name, tensor in state.items()}
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[n].view(tensors[n].shape), tensors[n]) for n in tensors)


def test_a_checkpoint_of_a_network_that_no_wrapper_renamed_is_read_too(tmp_path):
    """Saved without DataParallel, names lack their ``module.``."""
    tensors = published_tensors("d3dp", 5)
    path = tmp_path / "single.pth"
    torch.save({"model_pos": {f"pose_estimator.{n}": t for n, t in tensors.items()}}, path)
    assert read_published(path, heads=HEADS)[0]["layout"] == "d3dp"


# --- what is refused ------------------------------------------------------------------------------
def broken(tmp_path: Path, **changes: Tensor | None) -> Path:
    """A DDHPose checkpoint with tensors replaced, added or (None) taken away."""
    tensors = published_tensors("ddhpose", 5)
    for name, value in changes.items():
        tensors.pop(name, None)
        if value is not None:
            tensors[name] = value
    return written(tmp_path / "broken.bin", tensors, "ddhpose")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"STEblocks.1.attn.qkv_xc.bias": None}, r"lacks the tensors 'STEblocks\.1.*qkv_xc\.bias'"),
        ({"Temporal_pos_embed": None}, "lacks the tensor 'Temporal_pos_embed'"),
        ({"extra.weight": torch.zeros(2)}, r"unexpected tensors: 'extra\.weight'"),
        ({"group": torch.zeros(1, 5, WIDTH)}, r"'group' is \(1, 5, 16\), not \(1, 6, 16\)"),
        (
            {"TTEblocks.0.mlp.fc1.weight": torch.zeros(32, 15)},
            r"'TTEblocks.0.mlp.fc1.weight' is \(32, 15\), not \(32, 16\)",
        ),
        ({"Spatial_norm.bias": torch.full((WIDTH,), torch.nan)}, "'Spatial_norm.bias' holds NaN"),
        ({"Temporal_pos_embed": torch.zeros(5, WIDTH)}, "no 3 axes"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, changes, message):
    with pytest.raises(CheckpointError, match=message):
        read_published(broken(tmp_path, **changes), heads=HEADS)


def test_many_missing_tensors_are_counted(tmp_path):
    """A block of 14 tensors is gone but for one."""
    names = [n for n in published_tensors("ddhpose", 5) if n.startswith("STEblocks.1.")]
    path = broken(tmp_path, **dict.fromkeys(names[1:]))
    with pytest.raises(CheckpointError, match="and 10 more"):
        read_published(path, heads=HEADS)


def test_weights_for_another_number_of_levels_are_refused(tmp_path):
    """COCO's tree has 5 levels, the published skeletons 6."""
    path = written(tmp_path / "weights.bin", published_tensors("ddhpose", 5), "ddhpose")
    with pytest.raises(CheckpointError, match=r"'group' is \(1, 6, 16\), not \(1, 5, 16\)"):
        read_published(path, COCO_17, heads=HEADS)


def test_a_number_of_heads_that_does_not_divide_the_width_is_refused(tmp_path):
    path = written(tmp_path / "weights.bin", published_tensors("ddhpose", 5), "ddhpose")
    with pytest.raises(CheckpointError, match="give its number of heads"):
        read_published(path, heads=3)


def test_another_process_length_is_refused(tmp_path):
    shorter = {"module.betas": torch.zeros(100)}
    path = written(tmp_path / "w.bin", published_tensors("ddhpose", 5), "ddhpose", **shorter)
    with pytest.raises(CheckpointError, match=r"'betas' .* is \(100,\), not \(1000,\)"):
        read_published(path, heads=HEADS)


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({"state_dict": {}}, "it has no 'model_pos'"),
        ({"model_pos": {"module.head.weight": torch.zeros(2)}}, "of no single known network"),
    ],
)
def test_another_model_is_refused(tmp_path, contents, message):
    torch.save(contents, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=message):
        read_published(tmp_path / "other.pth")


class Call:
    """Pickles as a call that makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return Path.mkdir, (self.folder,)


def test_a_call_in_the_pickle_is_refused_and_not_made(tmp_path):
    made = tmp_path / "made"
    torch.save({"model_pos": {}, "random_state": Call(made)}, tmp_path / "hostile.bin")
    with pytest.raises(CheckpointError, match="forbidden global"):
        read_published(tmp_path / "hostile.bin")
    assert not made.exists()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere\.bin: there is no such file"):
        load_published(tmp_path / "nowhere.bin")
