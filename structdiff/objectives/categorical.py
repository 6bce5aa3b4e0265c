r"""Endpoint cross-entropy: for data whose entries take finitely many values.

.. math:: L = -E\, \frac{1}{S} \sum_s \log p_\theta(x_{0,s} \mid x_t)

The optimum over all functions is the true posterior of every site, whose mean is
:math:`E[x_0 \mid x_t]`: the same denoiser that squared error finds, with better gradients where the
answer is nearly certain (Dieleman et al. 2022; Eijkelboom et al. 2024).
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from structdiff.denoisers import BaseDenoiser, Denoiser
from structdiff.errors import StructDiffError
from structdiff.objectives.base import Objective
from structdiff.state import State


@runtime_checkable
class CategoricalNetwork(Protocol):
    """A network that knows which values the sites of a component can take."""

    def logits(
        self, x: State, log_snr: dict[str, Tensor], condition: Any = None
    ) -> dict[str, Tensor]:
        """Unnormalised log-probabilities per site and class, each (B, S, K)."""
        ...

    def sites(self, x0: State) -> dict[str, tuple[Tensor, Tensor]]:
        """Class of every site of clean data, int64 (B, S), and which sites exist, bool (B, S)."""
        ...


class CategoricalCrossEntropy(Objective):
    """Mean cross-entropy of the sites' classes; the network must be a :class:`CategoricalNetwork`.

    Parameters
    ----------
    time_law
        Where training looks.
    component_weights
        Factor per component.
    """

    def distances(
        self,
        denoiser: BaseDenoiser,
        x0: State,
        noisy: State,
        noise: State,
        times: dict[str, Tensor],
        condition: Any,
    ) -> dict[str, Tensor]:
        network = denoiser.network if isinstance(denoiser, Denoiser) else denoiser
        if not isinstance(denoiser, Denoiser) or not isinstance(network, CategoricalNetwork):
            raise StructDiffError(
                f"{type(network).__name__} predicts no class probabilities: train it with "
                "DenoisingScoreMatching, or use a network with logits() and sites()"
            )
        logits = network.logits(*denoiser.network_inputs(noisy, times), condition)
        losses = {}
        for name, (classes, exists) in network.sites(x0).items():
            log_probability = torch.log_softmax(logits[name].float(), dim=-1)
            picked = log_probability.gather(-1, classes[..., None])[..., 0]
            count = exists.sum(1).clamp(min=1)
            losses[name] = -(picked * exists).sum(1) / count
        return losses
