"""What a window model is made of, as plain data: the content of its ``config.json``.

Two families. Ours predicts clean windows around a Gaussian prior (:mod:`.prior`) under EDM's noise.
``preset="paper"`` is TSDiff as published: the noise of a DDPM chain of 100 steps, exact S4, windows
divided by their mean size, guidance by quantiles (Kollovieh et al. 2023).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, TypeAlias, get_args

import torch

from structdiff.arguments import whole
from structdiff.denoisers import Denoiser
from structdiff.errors import CheckpointError, StructDiffError
from structdiff.guidance import GaussianCovariance
from structdiff.processes import EDM, DiscreteVP, System
from structdiff.processes.serial import process_from_dict, process_to_dict
from structdiff.timeseries.networks import TSDiffNetwork
from structdiff.timeseries.prior import GaussianSkip
from structdiff.timeseries.windows import Scaling, default_lags

Guidance: TypeAlias = Literal["covariance", "quantile", "squared"]
PRESETS = ("paper",)
PAPER_SCALES = {"quantile": 4.0, "squared": 1.0}
"""Where no scale is given. The paper tunes it per data set: 8 Exchange and Solar, 4 Electricity and
Traffic, 2 M4, Uber and Wikipedia, 1 KDDCup (quantile); the scales of the squared form were never
published."""
OWN_SCALES = {"quantile": 0.5, "squared": 0.2}
"""Of models around a Gaussian, whose few long steps bear less: ``benchmarks/tsdiff_choices.py``."""
_LARGEST_PRIOR = 1024
_LEAST_WINDOWS = 8
_PRIOR_WITH_LAGS = 256


@dataclass(frozen=True)
class ModelSpec:
    """Everything about a model but its numbers.

    Parameters
    ----------
    context, horizon
        Points before and after the cut of a window.
    lags
        Distances of the further channels.
    scaling
        Of windows, as for :class:`~structdiff.timeseries.windows.WindowMaker`.
    rank
        Directions of the Gaussian fitted to the training windows.
    network
        Constructor arguments of :class:`~structdiff.timeseries.networks.TSDiffNetwork`.
    skip
        Whether the network is wrapped around the Gaussian.
    process
        As :func:`~structdiff.processes.serial.process_to_dict` says.
    prediction
        What the network predicts.
    sampler
        Recommended sampler: ``name`` and ``steps``.
    guidance
        Recommended guidance: ``kind`` and ``scale``.
    """

    context: int
    horizon: int
    lags: tuple[int, ...]
    scaling: Scaling
    rank: int
    network: dict[str, Any]
    skip: bool
    process: dict[str, Any]
    prediction: str
    sampler: dict[str, Any] = field(default_factory=dict)
    guidance: dict[str, Any] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """Points of a window."""
        return self.context + self.horizon

    @property
    def channels(self) -> int:
        """The series and its lagged copies."""
        return 1 + len(self.lags)

    @property
    def reach(self) -> int:
        """Points before the cut that a window looks at."""
        return self.context + max(self.lags, default=0)

    def with_rank(self, rank: int) -> ModelSpec:
        """The same with a prior of another rank."""
        return replace(self, rank=rank)

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form."""
        return {**asdict(self), "lags": list(self.lags)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelSpec:
        """Read :meth:`to_dict`'s form; raises CheckpointError when a field is missing."""
        try:
            spec = cls(**{k: values[k] for k in cls.__dataclass_fields__})
        except KeyError as error:
            raise CheckpointError(f"the model's config.json has no {error}") from error
        return replace(spec, lags=tuple(int(lag) for lag in spec.lags))


def new_spec(
    *,
    context: int,
    horizon: int,
    lags: Sequence[int],
    points: int,
    preset: str | None,
    scaling: Scaling,
    kernel: str,
    hidden: int,
    blocks: int,
    state_size: int,
    network_settings: Mapping[str, Any],
) -> ModelSpec:
    """The model that ``fit`` trains.

    Parameters
    ----------
    context, horizon, lags, scaling
        Of the windows.
    points
        Points of all training series together: few of them fix few directions of a covariance.
    preset
        ``"paper"`` replaces kernel, widths and scaling by the published ones.
    kernel, hidden, blocks, state_size
        Of the network.
    network_settings
        Further arguments of the network, such as ``init_skip``.
    """
    channels = 1 + len(lags)
    size = channels * (context + horizon)
    most = size if size <= _LARGEST_PRIOR else _PRIOR_WITH_LAGS
    rank = max(1, min(most, max(8, points // 8)))
    network: dict[str, Any] = {
        "channels": channels,
        "hidden": hidden,
        "blocks": blocks,
        "state_size": state_size,
        "kernel": kernel,
        "length": context + horizon,
    }
    if preset == "paper":
        network |= {"hidden": 64, "blocks": 3, "state_size": 128, "kernel": "s4", "time": "index"}
        network |= network_settings
        return ModelSpec(
            context=context,
            horizon=horizon,
            lags=tuple(lags),
            scaling="mean",
            rank=rank,
            network=network,
            skip=False,
            process=process_to_dict(DiscreteVP(100, 1e-4, 0.1, prior_scale=1.0)),
            prediction="noise",
            sampler={"name": "ddpm", "steps": 100},
            guidance={"kind": "quantile", "scale": PAPER_SCALES["quantile"]},
        )
    if preset is not None:
        raise StructDiffError(f"unknown preset {preset!r}: choose {', '.join(PRESETS)} or None")
    network |= {"features": channels, **network_settings}
    return ModelSpec(
        context=context,
        horizon=horizon,
        lags=tuple(lags),
        scaling=scaling,
        rank=rank,
        network=network,
        skip=True,
        process=process_to_dict(EDM(0.005, 20.0)),
        prediction="data",
        sampler={"name": "dpm++", "steps": 20},
        guidance={"kind": "covariance", "scale": None},
    )


def build_denoiser(spec: ModelSpec) -> Denoiser:
    """The denoiser of a spec, with fresh weights; around a prior that is to be set."""
    try:
        backbone = TSDiffNetwork(**spec.network)
    except TypeError as error:  # an argument that the network does not have
        raise StructDiffError(f"no network can be built of {spec.network}: {error}") from error
    network: torch.nn.Module = backbone
    if spec.skip:
        # Zero at first: training starts from the Gaussian.
        for parameter in backbone.head[-1].parameters():
            torch.nn.init.zeros_(parameter)
        network = GaussianSkip(backbone, (spec.length, spec.channels), spec.rank)
    system = System({"x": process_from_dict(spec.process)})
    return Denoiser(
        network,
        system,
        spec.prediction,  # type: ignore[arg-type]
        data_std=1.0,
        scale_input=spec.skip,
    )


def set_prior(denoiser: Denoiser, prior: GaussianCovariance) -> None:
    """Hand the Gaussian to the network, where it is built around one."""
    if isinstance(denoiser.network, GaussianSkip):
        denoiser.network.set_covariance(prior)


def choose_lags(lags: Any, seasonality: int, preset: str | None) -> tuple[int, ...]:
    """Lags asked for: ``"auto"`` is the published ones under the preset and none without.

    A context of several seasons holds what lagged copies would tell, at a tenth of the numbers.
    """
    if isinstance(lags, str):
        if lags != "auto":
            raise StructDiffError(f"lags must be 'auto', None or distances in points, got {lags!r}")
        return default_lags(seasonality) if preset == "paper" else ()
    if lags is not None and not isinstance(lags, Iterable):
        raise StructDiffError(f"lags must be 'auto', None or distances in points, got {lags!r}")
    return tuple(whole("each of the lags", lag) for lag in lags or ())


def choose_context(
    context: int | None, horizon: int, seasonality: int, longest: int, points: int
) -> int:
    """Points of the past that a window holds.

    By default fourteen seasons of a day (336 hourly points, as published), twelve horizons of
    anything slower; but no more than leaves half of the longest series to train on, nor (beyond
    one season) than lets all series together hold eight windows without overlap: from fewer, a
    covariance of long windows is learnt by heart, and its intervals are far too narrow.
    """
    if context is not None:
        return whole("context", context)
    wanted = 14 * seasonality if seasonality >= 24 else max(12 * horizon, 2 * seasonality)
    room = max((longest - horizon) // 2, min(2 * horizon, longest // 3))
    learnable = max(seasonality, points // _LEAST_WINDOWS - horizon)
    return max(1, min(wanted, room, learnable))


def check_guidance(kind: Any) -> None:
    """Raise StructDiffError, with the known ones, if there is no such guidance."""
    if kind not in get_args(Guidance):
        raise StructDiffError(
            f"unknown guidance {kind!r}: choose one of {', '.join(get_args(Guidance))}"
        )
