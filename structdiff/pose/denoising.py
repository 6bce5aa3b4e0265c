r"""The network of a pose model as the shared core calls it: noisy bones in, clean bones out.

The networks of this head predict joints y; the core's contract is bones. So

.. math:: (x_t^{length}, x_t^{direction}, \lambda, \text{2D}) \mapsto y \mapsto
          (\|v\|, v / \|v\|), \quad v_c = y_c - y_{p(c)},

and whatever a sampler does in between, what it returns is an exact tree. The flip test of the
field, the mean of a prediction and of the mirror image's, mirrored back, is one batch here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from structdiff.pose.kinematics import DIRECTION, LENGTH, compose, decompose, mirror_bones
from structdiff.pose.lifter import BoneGaussian, LightLifter, lifted_bones
from structdiff.pose.networks import HSTDenoiser
from structdiff.pose.skeletons import Skeleton
from structdiff.processes import DiscreteVP
from structdiff.state import State

JOINTS = "joints"
"""The component of D3DP, which noises joints."""
Levels = Mapping[str, Tensor]
"""Half log-SNR (B,) per component."""


def mirrored_joints(values: Tensor, skeleton: Skeleton) -> Tensor:
    """The mirror image of joints (..., J, D): sides change places, x is negated."""
    sign = values.new_ones(values.shape[-1])
    sign[0] = -1
    return values[..., list(skeleton.mirrored), :] * sign


class PoseNetwork(nn.Module, ABC):
    """Base: joints from noisy bones; bones and the flip test from joints.

    Parameters
    ----------
    skeleton
        Of the joints.
    process
        The chain whose indices the network sees as time.
    """

    flip: bool = False
    """Whether predictions are averaged with the mirror image's (not in training)."""
    ready: Callable[[Tensor, Tensor], Tensor] | None = None
    """The transformer made ready for the processor it runs on, while clips are lifted."""

    def __init__(self, skeleton: Skeleton, process: DiscreteVP) -> None:
        super().__init__()
        self.skeleton, self.process = skeleton, process

    @abstractmethod
    def joints(self, x: State, log_snr: Levels, keypoints: Tensor) -> Tensor:
        """Joints in metres (B, N, J, 3), without the flip test.

        Parameters
        ----------
        x
            Noisy ``length`` (B, N, J, 1) and ``direction`` (B, N, J, 3).
        log_snr
            Half log-SNR per component, each (B,).
        keypoints
            Normalised 2D joints (B, N, J, 2).
        """

    def finished(self, joints: Tensor) -> Tensor:
        """The last word on predicted joints, after the flip test; the identity here."""
        return joints

    def forward(self, x: State, log_snr: Levels, condition: Tensor) -> State:
        if not self.flip or self.training:
            return self._read(self.joints(x, log_snr, condition), x)
        both = State.cat([x, self.mirrored(x)])
        seen = torch.cat((condition, mirrored_joints(condition, self.skeleton)))
        twice = {name: torch.cat((level, level)) for name, level in log_snr.items()}
        plain, other = self.joints(both, twice, seen).chunk(2)
        return self._read((plain + mirrored_joints(other, self.skeleton)) / 2, x)

    def _read(self, joints: Tensor, x: State) -> State:
        """As components of the state; a slot that is no bone keeps the value 0."""
        return self.clean(self.finished(joints)).with_masks(x.masks)

    def clean(self, joints: Tensor) -> State:
        """The components of clean poses (B, N, J, 3), masked where nothing is noised."""
        return decompose(joints, self.skeleton)

    def pose(self, x: State) -> Tensor:
        """Root-relative joints (B, N, J, 3) of clean components."""
        return compose(x, self.skeleton)

    def mirrored(self, x: State) -> State:
        """The mirror image of a noisy or clean state."""
        return mirror_bones(x, self.skeleton)

    def prepared(self) -> Callable[[Tensor, Tensor], Tensor] | None:
        """The transformer made ready for inference; None where that saves nothing."""
        return None

    def index(self, log_snr: Levels) -> Tensor:
        """Real-valued index of the chain (B,): the time that the networks know."""
        level = next(iter(log_snr.values()))  # components share their time
        return self.process.index_at(level).to(level.dtype)


class PublishedPoseNetwork(PoseNetwork):
    """DDHPose as published: the network sees 2D joints and noisy bones.

    In layout ``"reference"`` the root's empty slot is noised along, and noisy bones and predicted
    joints are clamped to :attr:`CLAMP`, as the published weights expect.

    Parameters
    ----------
    network
        From features ``[x, y, dx, dy, dz, l]`` and an index to joints.
    process
        The chain.
    """

    CLAMP = 1.1
    """Published: metres, and parts of a unit vector. It cuts 27 % of pure noise."""

    def __init__(self, network: HSTDenoiser, process: DiscreteVP) -> None:
        super().__init__(network.skeleton, process)
        self.network = network
        self.published = network.layout != "corrected"

    def joints(self, x: State, log_snr: Levels, keypoints: Tensor) -> Tensor:
        noisy = self._clamped(torch.cat((x[DIRECTION], x[LENGTH]), dim=-1))
        call = self.network if self.ready is None else self.ready
        joints: Tensor = call(torch.cat((keypoints, noisy), dim=-1), self.index(log_snr))
        return joints

    def finished(self, joints: Tensor) -> Tensor:
        return joints if self.training else self._clamped(joints)

    def prepared(self) -> Callable[[Tensor, Tensor], Tensor] | None:
        weight = self.network.embedding.weight
        usual = weight.device.type == "cpu" and weight.dtype == torch.float32
        return self.network.prepare_for_inference().forward if usual else None

    def clean(self, joints: Tensor) -> State:
        return pose_state(joints, self.skeleton, root_slot=self.published)

    def _clamped(self, values: Tensor) -> Tensor:
        return values.clamp(-self.CLAMP, self.CLAMP) if self.published else values


class PublishedJointsNetwork(PublishedPoseNetwork):
    """D3DP as published: what is noised are the joints themselves, the one component ``joints``.

    Parameters
    ----------
    network
        In layout ``"d3dp"``, from features ``[x, y]`` and a noisy joint, and an index, to joints.
    process
        The chain.
    """

    def joints(self, x: State, log_snr: Levels, keypoints: Tensor) -> Tensor:
        noisy = self._clamped(x[JOINTS])
        call = self.network if self.ready is None else self.ready
        joints: Tensor = call(torch.cat((keypoints, noisy), dim=-1), self.index(log_snr))
        return joints

    def clean(self, joints: Tensor) -> State:
        return State({JOINTS: joints})

    def pose(self, x: State) -> Tensor:
        joints, root = x[JOINTS], self.skeleton.root
        return joints - joints[..., root : root + 1, :]

    def mirrored(self, x: State) -> State:
        return State({JOINTS: mirrored_joints(x[JOINTS], self.skeleton)})


class LiftingPoseNetwork(PoseNetwork):
    """HSTDenoiser around a light lifter: it corrects the best linear estimate of the bones.

    Parameters
    ----------
    network
        From :data:`FEATURES` features per joint and an index to corrections.
    lifter
        From 2D joints to joints.
    process
        The chain.
    frames
        N of a window.
    """

    FEATURES = 14
    """2D about the root and of it (4), estimate (3), lifter's joints (3), noisy bones (4)."""
    SIZE = 0.1
    """Metres: the size of a correction."""

    def __init__(
        self, network: HSTDenoiser, lifter: LightLifter, process: DiscreteVP, frames: int
    ) -> None:
        super().__init__(network.skeleton, process)
        self.network, self.lifter = network, lifter
        self.errors = BoneGaussian(frames, len(network.skeleton))

    def joints(self, x: State, log_snr: Levels, keypoints: Tensor) -> Tensor:
        return self.with_lifter(x, log_snr, keypoints)[0]

    def with_lifter(
        self, x: State, log_snr: Levels, keypoints: Tensor
    ) -> tuple[Tensor, Tensor, State]:
        """Joints, and the lifter's own joints and bones, for training; see :meth:`joints`."""
        lifted, mean = lifted_bones(self.lifter, keypoints, self.skeleton)
        alpha, sigma = _scales(log_snr, x)
        bones = self.errors.estimate(x, mean, alpha, sigma)
        estimate = compose(bones, self.skeleton)
        a, s = alpha[DIRECTION], sigma[DIRECTION]
        # Unit size at every noise level, once what the lifter knows already is taken away.
        noisy = {
            name: (x[name] - alpha[name] * mean[name])
            / torch.sqrt(
                alpha[name] ** 2 * self.errors.variance(name).detach().mean() + sigma[name] ** 2
            )
            for name in x
        }
        root = self.skeleton.root
        centre = keypoints[..., root : root + 1, :]
        features = torch.cat(
            (
                5 * (keypoints - centre),
                centre.expand_as(keypoints),
                3 * estimate,
                3 * lifted.detach(),
                noisy[DIRECTION],
                noisy[LENGTH],
            ),
            dim=-1,
        )
        correction: Tensor = self.network(features, self.index(log_snr))
        # Poses are relative to their root, which nothing corrects.
        correction = correction - correction[..., root : root + 1, :]
        return estimate + self.SIZE * self.errors.left(a, s) * correction, lifted, mean


def _scales(log_snr: Levels, like: State) -> tuple[State, State]:
    """Scales of signal and noise (B, 1, 1, 1) where their squares add to 1."""
    shape = (-1,) + (1,) * (like.first.dim() - 1)
    levels = {k: 2 * v.reshape(shape) for k, v in log_snr.items()}
    return (
        State({k: torch.sigmoid(v).sqrt() for k, v in levels.items()}),
        State({k: torch.sigmoid(-v).sqrt() for k, v in levels.items()}),
    )


def pose_state(joints: Tensor, skeleton: Skeleton, *, root_slot: bool) -> State:
    """Clean bones of a batch of windows (B, N, J, 3).

    Parameters
    ----------
    joints
        In metres.
    skeleton
        Of the joints.
    root_slot
        Whether the root's empty slot is noised along, as in the published model; else it is masked
        and stays 0.
    """
    bones = decompose(joints, skeleton)
    return bones.with_masks({}) if root_slot else bones
