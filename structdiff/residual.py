r"""Denoisers whose network predicts the residual to a companion, the noise, or both.

.. math:: x_t = \alpha\,x_0 + \sigma\,\epsilon \quad(\text{centred}), \qquad
          I_{res} = y - x_0, \qquad \hat x_0 = y - \hat I_{res}

With both, data and noise are two answers of one call that need not agree on :math:`x_t`; samplers
that know (:class:`~structdiff.samplers.residual.RDDM`) use the pair, any other what it reads. A
component without a companion has y = 0: its residual is the data with the sign turned. Source: Liu
et al. 2024 (RDDM), who call the choices pred_res_noise, pred_res, pred_noise and pred_x0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from structdiff.denoisers import BaseDenoiser, Pair
from structdiff.errors import StructDiffError
from structdiff.processes.system import System, Time
from structdiff.state import State, as_state, expand_right

ResidualPrediction: TypeAlias = Literal["residual+noise", "residual", "noise", "data"]
Conditioning: TypeAlias = Literal["log_snr", "amounts"]


def _per_object(value: Tensor, like: Tensor) -> Tensor:
    """A number () or one per object (B,) as (B,), of the dtype and on the device of ``like``."""
    if value.dim() == 0 and value.device.type == "cpu":
        return like.new_full((like.shape[0],), float(value))  # a fill, no copy to the device
    return value.to(like).expand(like.shape[0])


class ResidualDenoiser(BaseDenoiser):
    r"""A network that predicts residual and noise, or one of them, and the system it knows.

    Parameters
    ----------
    network
        Module ``(State, levels, condition) -> State``, or for ``"residual+noise"`` a pair of
        states ``(residual, noise)``, over at least the components that move. It sees the
        un-centred state, companion included.
    system
        The forward processes, usually :class:`~structdiff.processes.residual.Residual` for the
        data and anything for the companion.
    prediction
        What the network returns.
    conditioning
        What ``levels`` holds per component: the half log-SNR (B,), or the amounts
        :math:`(A, B) = (1 - \alpha, \sigma)` of residual and noise, (B, 2). A network that knows
        both amounts serves any pair of ramps, chosen after training.

    Raises
    ------
    StructDiffError
        If ``prediction`` or ``conditioning`` is unknown.
    """

    def __init__(
        self,
        network: nn.Module,
        system: System,
        prediction: ResidualPrediction = "residual+noise",
        conditioning: Conditioning = "log_snr",
    ) -> None:
        super().__init__(system)
        for what, given, known in (
            ("prediction", prediction, get_args(ResidualPrediction)),
            ("conditioning", conditioning, get_args(Conditioning)),
        ):
            if given not in known:
                raise StructDiffError(f"unknown {what} {given!r}: choose one of {', '.join(known)}")
        self.network = network
        self.prediction = prediction
        self.conditioning = conditioning
        self.consistent = prediction != "residual+noise"

    def levels(self, x: State, t: Time) -> dict[str, Tensor]:
        """What the network is told of the noise level, per component: (B,) or (B, 2)."""
        times = self.system.times(t)
        if self.conditioning == "log_snr":
            return {k: _per_object(v, x[k]) for k, v in self.system.half_log_snr(times).items()}
        log_alpha, sigma = self.system.log_alpha(times), self.system.sigma(times)
        return {
            k: torch.stack(
                (_per_object(-torch.expm1(log_alpha[k]), x[k]), _per_object(sigma[k], x[k])), -1
            )
            for k in x
        }

    def companions(self, x: State) -> State:
        """Y of every component that moves; 0 where it has none."""
        names = {k: self.system.processes[k].companion for k in self.system.moving}
        return State._trusted(
            {k: torch.zeros_like(x[k]) if y is None else x[y] for k, y in names.items()},
            {k: m for k, m in x.masks.items() if k in names},
        )

    def predictions(self, x: State | Tensor, t: Time, condition: Any = None) -> dict[str, State]:
        """What the network predicts, by name (residual, noise, data), of the moving components."""
        x = as_state(x)
        out = self.network(self.system.uncentred(x, t), self.levels(x, t), condition)
        names = self.prediction.split("+")
        if (len(names) == 2) != isinstance(out, tuple):
            raise StructDiffError(
                f"the network of prediction {self.prediction!r} must return "
                f"{'a pair of states' if len(names) == 2 else 'one state'}, got {type(out)}"
            )
        heads = out if isinstance(out, tuple) else (out,)
        return {
            name: State._trusted(
                {k: head[k].to(x[k].dtype) for k in self.system.moving},
                {k: m for k, m in x.masks.items() if k in self.system.moving},
            )
            for name, head in zip(names, heads, strict=True)
        }

    def pair(self, x: State | Tensor, t: Time, condition: Any = None) -> Pair:
        """Data and noise of one network call; frozen components are their own data, without noise.

        Parameters
        ----------
        x, t, condition
            As for :meth:`forward`.
        """
        x, times = as_state(x), self.system.times(t)
        known = self.predictions(x, times, condition)
        companions = self.companions(x)
        data, noise = dict(x), {k: torch.zeros_like(v) for k, v in x.items()}
        for k in companions:
            alpha = expand_right(self.system.processes[k].alpha(times[k]), x[k])
            sigma = expand_right(self.system.processes[k].sigma(times[k]), x[k])
            found = {name: state[k] for name, state in known.items()}
            data[k] = _data(found, x[k], companions[k], alpha, sigma)
            noise[k] = found["noise"] if "noise" in found else (x[k] - alpha * data[k]) / sigma
        return Pair(State._trusted(data, x.masks), State._trusted(noise, x.masks))

    def forward(self, x: State | Tensor, t: Time, condition: Any = None) -> State:
        """E[x0 | xt]: one network call.

        Parameters
        ----------
        x
            Noisy centred state with the clean companion, components (B, ...).
        t
            Shared time () or (B,), or the components' own times by name.
        condition
            Passed to the network.
        """
        return self.pair(x, t, condition).data

    def extra_repr(self) -> str:
        return f"prediction={self.prediction!r}, system={self.system}"


def _data(
    found: Mapping[str, Tensor], x: Tensor, companion: Tensor, alpha: Tensor, sigma: Tensor
) -> Tensor:
    """The data that a network's predictions say."""
    if "residual" in found:
        return companion - found["residual"]
    return found["data"] if "data" in found else (x - sigma * found["noise"]) / alpha
