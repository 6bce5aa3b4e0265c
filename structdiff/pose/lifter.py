r"""A light lifter, and the Gaussian of its errors: what a denoiser of poses starts from.

A transformer takes hours to learn what a small regressor finds in a minute: where the joints are,
roughly. So the regressor stands inside the denoiser, and the diffusion is about its errors. Around
its bones m, their errors over the frames of a window are taken as Gaussian and independent per
frequency f of the cosine transform C, with variances v learned along. The best linear estimate of
the bones from noisy ones is then

.. math:: b = m + C^\top g \odot C (x_t - \alpha m), \qquad
          g_f = \frac{\alpha v_f}{\alpha^2 v_f + \sigma^2},

which is m in pure noise and :math:`x_t` near the data. The network corrects b by what is left.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from structdiff.pose.kinematics import DIRECTION, LENGTH, decompose
from structdiff.pose.skeletons import Skeleton
from structdiff.state import State

_SPREAD = 5.0
"""Brings normalised 2D joints about their root to the size of 1."""
_FIRST_STD = {LENGTH: 0.01, DIRECTION: 0.15}
"""Of the lifter's errors before anything is learned: metres, and parts of a unit vector."""
_RATE = 10.0
"""How much faster than the weights the variances learn, by their unit."""


class _Mixing(nn.Module):
    """Frames of one channel among themselves, then channels of one frame."""

    def __init__(self, width: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.norm_frames, self.norm_channels = nn.LayerNorm(width), nn.LayerNorm(width)
        self.frames = nn.Conv1d(
            width, width, kernel, padding=kernel // 2, groups=width, padding_mode="replicate"
        )
        self.channels = nn.Sequential(
            nn.Linear(width, width), nn.GELU(), nn.Dropout(dropout), nn.Linear(width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.frames(self.norm_frames(x).transpose(1, 2)).transpose(1, 2)
        mixed: Tensor = x + self.channels(self.norm_channels(x))
        return mixed


class LightLifter(nn.Module):
    """Joints from their 2D sequence by a small network that mixes frames, then channels.

    Parameters
    ----------
    skeleton
        Of the joints.
    width, blocks
        Channels and depth.
    kernel
        Frames that a block looks at, odd.
    dropout
        In training.
    """

    def __init__(
        self,
        skeleton: Skeleton,
        width: int = 160,
        blocks: int = 3,
        kernel: int = 9,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.skeleton = skeleton
        joints = len(skeleton)
        self.enter = nn.Linear(2 * joints, width)
        self.blocks = nn.Sequential(*(_Mixing(width, kernel, dropout) for _ in range(blocks)))
        self.leave = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 3 * (joints - 1)))

    def forward(self, keypoints: Tensor) -> Tensor:
        """Root-relative joints in metres (B, N, J, 3) from normalised 2D (B, N, J, 2)."""
        root = self.skeleton.root
        centre = keypoints[..., root : root + 1, :]
        spread = _SPREAD * torch.cat(
            (keypoints[..., :root, :], keypoints[..., root + 1 :, :]), dim=-2
        )
        around = spread - _SPREAD * centre
        hidden = self.enter(torch.cat((centre, around), dim=-2).flatten(-2))
        bones = self.leave(self.blocks(hidden)).unflatten(-1, (-1, 3))
        zero = bones.new_zeros(*bones.shape[:-2], 1, 3)
        return torch.cat((bones[..., :root, :], zero, bones[..., root:, :]), dim=-2)


def cosine_transform(frames: int) -> Tensor:
    """Orthonormal DCT-II, (N, N): a row per frequency."""
    n = torch.arange(frames, dtype=torch.float64)
    matrix = torch.cos(math.pi / frames * (n + 0.5) * n[:, None]) * math.sqrt(2 / frames)
    matrix[0] /= math.sqrt(2)
    return matrix


class BoneGaussian(nn.Module):
    """Errors of a lifter's bones over a window: Gaussian, independent per frequency and entry.

    Parameters
    ----------
    frames
        N of the window.
    joints
        J.
    """

    def __init__(self, frames: int, joints: int) -> None:
        super().__init__()
        self.register_buffer("transform", cosine_transform(frames).float(), persistent=False)
        # Errors change slowly: most of their variance lies in the low frequencies.
        falling = -2 * torch.log1p(torch.arange(frames) / 2)
        self.raw = nn.ParameterDict(
            {
                name: nn.Parameter(
                    (math.log(frames * std**2) + falling)[:, None, None].expand(
                        frames, joints, size
                    )
                    / _RATE
                )
                for (name, std), size in zip(_FIRST_STD.items(), (1, 3), strict=True)
            }
        )

    def variance(self, name: str) -> Tensor:
        """Per frequency and entry of a component, (N, J, C)."""
        return torch.exp(_RATE * self.raw[name])

    def _turn(self, x: Tensor, back: bool = False) -> Tensor:
        """Frames (B, N, J, C) to frequencies, or back."""
        transform = cast(Tensor, self.transform).to(x.dtype)
        return torch.einsum("nf,bfjc->bnjc" if not back else "fn,bfjc->bnjc", transform, x)

    def estimate(self, x: State, mean: State, alpha: State, sigma: State) -> State:
        """The best linear estimate of the bones from noisy ones around ``mean``.

        Parameters
        ----------
        x, mean
            Noisy bones and the lifter's, components (B, N, J, C).
        alpha, sigma
            Scales of signal and noise per component, (B, 1, 1, 1).
        """

        def filtered(name: str) -> Tensor:
            variance = self.variance(name).detach()  # learned by likelihood alone
            a, s = alpha[name], sigma[name]
            gain = a * variance / (a**2 * variance + s**2)
            off = self._turn(x[name] - a * mean[name])
            return mean[name] + self._turn(gain * off, back=True)

        return State({name: filtered(name) for name in x}, x.masks)

    def left(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Share of the directions' standard deviation that noisy ones leave open."""
        total = self.variance(DIRECTION).detach().mean()
        return sigma / torch.sqrt(alpha**2 * total + sigma**2)

    def surprise(self, bones: State, mean: State) -> Tensor:
        """Negative log likelihood of the true bones given the lifter's, per entry, (B,).

        Up to a constant; its gradient reaches the variances only.
        """
        total = []
        for name, mask in bones.masks.items():
            off = self._turn((bones[name] - mean[name]).detach())
            log_variance = _RATE * self.raw[name]
            entries = 0.5 * (log_variance + off.square() * torch.exp(-log_variance))
            total.append(torch.where(mask, entries, 0.0).flatten(1).mean(1))
        return torch.stack(total).sum(0)


def lifted_bones(lifter: nn.Module, keypoints: Tensor, skeleton: Skeleton) -> tuple[Tensor, State]:
    """The lifter's joints (B, N, J, 3) and their bones, from which no gradient flows back."""
    joints: Tensor = lifter(keypoints)
    return joints, decompose(joints.detach(), skeleton)
