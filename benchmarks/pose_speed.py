"""What DDHPose's network costs beside the published code, in one process on one thread.

    python benchmarks/pose_speed.py [--published CLONE]

One lifted window of 27 frames at the published size (512 channels, 8 layers, 38.4 million weights),
one sampling step, flip test, 1 or 5 hypotheses; CPU seconds of the thread. Both sides do the same
work: draw noise, clamp it, predict the window and its mirror image, mirror back, average, clamp.
The published code calls its network twice; ours gets both as one batch. The repetitions of all
candidates alternate; a ratio is the median over repetitions of ours to the published time of the
same round. With the same weights and noise, outputs are compared first.

CLONE is a checkout of Andyen512/DDHPose. It needs einops; what it takes from timm is replaced, it
is told that "cuda" is the CPU, and nothing of it is kept or changed on disk.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import pandas as pd
import torch
from _record import record
from torch import Tensor, nn

from structdiff.errors import StructDiffError
from structdiff.pose.checkpoints import load_published
from structdiff.pose.networks import HSTDenoiser
from structdiff.pose.skeletons import H36M_17

FRAMES, CLAMP = 27, 1.1
ROUNDS = {1: 11, 5: 3}
"""Repetitions by the number of hypotheses."""

Lift = Callable[[], Tensor]


NO_ARGUMENTS = mock.patch.object(sys, "argv", ["main"])
"""The clone reads the command line when it is imported and when it builds a network."""


# --- the clone ----------------------------------------------------------------------------------
class _Kept(nn.Module):
    """timm's DropPath where nothing is dropped."""

    def __init__(self, rate: float) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return x


def _timm() -> dict[str, ModuleType]:
    """What the clone imports of timm; it calls only DropPath."""
    names = {
        "timm": (),
        "timm.data": ("IMAGENET_DEFAULT_MEAN", "IMAGENET_DEFAULT_STD"),
        "timm.models": (),
        "timm.models.helpers": ("load_pretrained",),
        "timm.models.layers": ("DropPath", "to_2tuple", "trunc_normal_"),
        "timm.models.registry": ("register_model",),
    }
    modules = {}
    for name, contents in names.items():
        modules[name] = ModuleType(name)
        for thing in contents:
            setattr(modules[name], thing, _Kept if thing == "DropPath" else None)
    return modules


def published_module(clone: Path) -> Any:
    """``common.ddhpose`` of the clone.

    Raises
    ------
    StructDiffError
        If the clone, or a library that it needs, is not there.
    """
    if not (clone / "common/ddhpose.py").is_file():
        raise StructDiffError(f"{clone} holds no common/ddhpose.py: give the clone's own folder")
    paths = mock.patch.object(sys, "path", [str(clone), *sys.path])
    with paths, mock.patch.dict(sys.modules, _timm()), NO_ARGUMENTS:
        try:
            return importlib.import_module("common.ddhpose")
        except ImportError as error:
            raise StructDiffError(
                f"the published code cannot be imported ({error}): pip install einops"
            ) from error


@contextmanager
def cuda_is_the_cpu() -> Iterator[None]:
    """Take the clone's "cuda" for the CPU."""
    draw = torch.randn

    def randn(*shape: Any, device: Any = None, **others: Any) -> Tensor:
        return draw(*shape, **others)

    with (
        mock.patch.object(torch, "randn", randn),
        mock.patch.object(Tensor, "cuda", lambda tensor: tensor),
    ):
        yield


def published_model(module: Any, hypotheses: int) -> Any:
    """The clone's model in its test form, random weights and embeddings."""
    torch.manual_seed(0)
    sizes = Namespace(
        number_of_frames=FRAMES,
        test_time_augmentation=True,
        timestep=1000,
        scale=1.0,
        cs=512,
        dep=8,
    )
    sides = list(H36M_17.left), list(H36M_17.right)
    with NO_ARGUMENTS:
        made = module.DDHPose(sizes, *sides, is_train=False, num_proposals=hypotheses)
    for parameter in made.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.02)
    return made.eval()


# --- the same work --------------------------------------------------------------------------------
def mirrored(values: Tensor, vector: bool = True) -> Tensor:
    """Joints or bones (..., J, D) of the mirror image; ``vector`` where x is the first of D."""
    values = values[..., list(H36M_17.mirrored), :]
    if vector:
        values = torch.cat((-values[..., :1], values[..., 1:]), dim=-1)
    return values


@torch.no_grad()
def lift(network: nn.Module, keypoints: Tensor, hypotheses: int) -> Tensor:
    """One step from t = 999 with the flip test: (N, J, 2) -> (H, N, J, 3), one network call."""
    shape = (1, hypotheses, *keypoints.shape[:-1])
    direction = torch.randn(*shape, 3)[0].clamp(-CLAMP, CLAMP)
    length = torch.randn(*shape, 1)[0].clamp(-CLAMP, CLAMP)
    seen = keypoints.expand(hypotheses, -1, -1, -1)
    plain = torch.cat((seen, direction, length), dim=-1)
    other = torch.cat((mirrored(seen), mirrored(direction), mirrored(length, False)), dim=-1)
    features = torch.cat((plain, other))
    joints, back = network(features, torch.full((len(features),), 999.0)).chunk(2)
    return ((joints + mirrored(back)) / 2).clamp(-CLAMP, CLAMP)


def candidates(clone: Path | None, hypotheses: int) -> dict[str, Lift]:
    """What is timed, by name, the published code first."""
    keypoints = torch.randn(FRAMES, 17, 2, generator=torch.Generator().manual_seed(1))
    made: dict[str, Lift] = {}
    reference = HSTDenoiser(layout="reference").eval()
    if clone is not None:
        model = published_model(published_module(clone), hypotheses)
        with tempfile.TemporaryDirectory() as folder:
            torch.save({"model_pos": model.state_dict()}, f"{folder}/weights.bin")
            reference = load_published(f"{folder}/weights.bin")
        both = keypoints[None], mirrored(keypoints)[None]

        @torch.no_grad()
        def published() -> Tensor:
            with cuda_is_the_cpu():
                joints: Tensor = model(both[0], None, input_2d_flip=both[1])
            return joints[0, 0]

        made["published code"] = published
    corrected = HSTDenoiser().eval()
    rounded = HSTDenoiser().eval().bfloat16()
    for name, network in (
        ("ours, its weights, prepared", reference.prepare_for_inference()),
        ("ours, its weights", reference),
        ("ours, corrected, prepared", corrected.prepare_for_inference()),
        ("ours, corrected, bfloat16", rounded),
    ):
        made[name] = lambda network=network: lift(network, keypoints, hypotheses)
    return made


def largest_difference(made: dict[str, Lift]) -> float:
    """Between the published code's joints and ours, prepared, from the same noise and weights."""
    results = []
    for name in list(made)[:2]:
        torch.manual_seed(5)
        results.append(made[name]())
    return float((results[0] - results[1]).abs().max())


def seconds(made: dict[str, Lift], rounds: int) -> pd.DataFrame:
    """CPU seconds of the thread, a row per round after one that does not count."""
    times: list[dict[str, float]] = []
    for _ in range(rounds + 1):
        row = {}
        for name, run in made.items():
            start = time.thread_time()
            run()
            row[name] = time.thread_time() - start
        times.append(row)
    return pd.DataFrame(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--published", type=Path, metavar="CLONE", default=None)
    clone = parser.parse_args().published
    torch.set_num_threads(1)
    rows, differences = [], []
    for hypotheses, rounds in ROUNDS.items():
        made = candidates(clone, hypotheses)
        if clone is not None:
            differences.append(largest_difference(made))
        times = seconds(made, rounds)
        for name in times:
            ratio = times[name] / times.iloc[:, 0]
            rows.append(
                {
                    "hypotheses": hypotheses,
                    "code": name,
                    "median s": f"{times[name].median():.3f}",
                    "least s": f"{times[name].min():.3f}",
                    f"median ratio to the {next(iter(made))}": f"{ratio.median():.3f}",
                    "ratios": f"{ratio.min():.2f}-{ratio.max():.2f}",
                }
            )
    notes = "Everything in float32 but the rows that say bfloat16."
    if differences:
        notes += (
            f" Largest difference of a coordinate from the published output, same weights and "
            f"noise: {max(differences):.1e}."
        )
    record("pose_speed", "DDHPose's network beside the published code", pd.DataFrame(rows), notes)


if __name__ == "__main__":
    main()
