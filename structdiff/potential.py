r"""Denoisers whose score is the gradient of a potential, so that it has no curl by construction.

A network gives one number per object, :math:`u_\theta(x, t) \approx \log p_t(x)` up to a function
of time, and everything else follows from its gradient in the free coordinates:

.. math:: s = \nabla u, \qquad E[\epsilon \mid x_t] = -\sigma s, \qquad
          E[x_0 \mid x_t] = (x_t + \sigma^2 s) / \alpha

It costs a backward pass per evaluation, and knows its own log-density: the Fokker-Planck
regulariser, likelihood ratios and the gauge decomposition ask for that.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from structdiff.denoisers import BaseDenoiser, Pair
from structdiff.errors import StructDiffError
from structdiff.processes.system import System, Time
from structdiff.state import State, as_state


class PotentialDenoiser(BaseDenoiser):
    r"""A network for the log-density, read as a denoiser.

    The score is taken with :func:`torch.func.grad`, so it is there under ``no_grad`` as well, can
    be trained through, and can be differentiated again (the network must be smooth: SiLU or
    softplus, not ReLU).

    Parameters
    ----------
    network
        Module ``(State, log_snr, condition) -> (B,)``; ``log_snr`` maps each component to its half
        log-SNR (B,).
    system
        The forward processes.
    """

    def __init__(self, network: nn.Module, system: System) -> None:
        super().__init__(system)
        self.network = network

    def log_density(self, x: State | Tensor, t: Time, condition: Any = None) -> Tensor:
        """The potential: the log-density of x_t up to a function of time, (B,).

        Parameters
        ----------
        x
            Noisy state, components (B, ...).
        t
            Shared time () or (B,), or the components' own times by name.
        condition
            Passed to the network.

        Raises
        ------
        StructDiffError
            If the network returns anything but one number per object.
        """
        state, times = as_state(x), self.system.times(t)
        size, like = state.batch_size, state.first
        state = self.system.uncentred(state, times) if self.system.shifted else state
        log_snr = {
            k: v.to(like.device, like.dtype).expand(size)
            for k, v in self.system.half_log_snr(times).items()
        }
        potential: Tensor = self.network(state, log_snr, condition)
        if potential.shape != (size,):
            raise StructDiffError(
                f"a potential is one number per object, shape ({size},), but "
                f"{type(self.network).__name__} returned {tuple(potential.shape)}"
            )
        return potential.to(like.dtype)

    def score(self, x: State | Tensor, t: Time, condition: Any = None) -> State:
        r""":math:`\nabla u`, embedded in each component's space; 0 where no entry exists."""
        state, times = as_state(x), self.system.times(t)
        spaces = self.system.spaces

        def total(points: dict[str, Tensor]) -> Tensor:
            """Sum over the batch: objects do not see each other, so its gradient is each one's."""
            full = {k: spaces[k].unpack(v, state[k]) for k, v in points.items()}
            return self.log_density(State._trusted(full, state.masks), times, condition).sum()

        # In free coordinates: an entry and its mirror image are one number.
        points = {k: spaces[k].pack(v) for k, v in state.items()}
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False), torch.no_grad():
                gradient = torch.func.grad(total)({k: v.clone() for k, v in points.items()})
        else:
            gradient = torch.func.grad(total)(points)
        return State._trusted(
            {k: spaces[k].unpack(gradient[k], v) for k, v in state.items()}, state.masks
        ).masked()

    def pair(self, x: State | Tensor, t: Time, condition: Any = None) -> Pair:
        state, times = as_state(x), self.system.times(t)
        sigma = self.system.sigma(times)
        score = self.score(state, times, condition)
        data = (state + score * {k: v**2 for k, v in sigma.items()}) / self.system.alpha(times)
        return Pair(data, -score * sigma)

    def forward(self, x: State | Tensor, t: Time, condition: Any = None) -> State:
        """E[x0 | xt]: one network call and one backward pass through it.

        Parameters
        ----------
        x
            Noisy state, components (B, ...).
        t
            Shared time () or (B,), or the components' own times by name.
        condition
            Passed to the network.
        """
        return self.pair(x, t, condition).data
