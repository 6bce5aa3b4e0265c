r"""Testbeds as models that :mod:`structdiff.samplers.comparison` measures.

Two metrics. ``error`` is the distance to the exact answer for samplers that draw no noise,

.. math:: \sqrt{E\,|x - E[x_0 \mid X_{t_{min}}]|^2},

with X the probability flow from the same start, solved far beyond what is compared. ``sliced_w2``
is the sliced 2-Wasserstein distance to as many fresh draws from the density, for all samplers; its
floor is that distance between two sets of fresh draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from structdiff.denoisers import BaseDenoiser
from structdiff.errors import StructDiffError
from structdiff.noise import Interval, SeededNoise
from structdiff.processes import VE, VP, System
from structdiff.samplers.base import Sampler
from structdiff.samplers.comparison import ComparableModel, Metric, sliced_wasserstein
from structdiff.samplers.registry import get_sampler
from structdiff.spaces import Positive
from structdiff.state import State
from structdiff.testbeds import CorrelatedGaussian, GaussianMixture, LogNormalMixture, Sphere

#: To 1e-8 of an adaptive solution on every testbed, in the time of one at a tolerance of 1e-8.
_EXACT_STEPS = 1000
_FLOOR_PAIRS = 4


class _CountedNoise:
    """Seeded noise that knows how often it was asked."""

    def __init__(self, seed: int) -> None:
        self._source = SeededNoise(seed, stream=1)
        self.draws = 0

    def normal(self, name: str, like: Tensor, interval: Interval | None = None) -> Tensor:
        self.draws += 1
        return self._source.normal(name, like, interval)


@dataclass(frozen=True)
class _Drawn:
    values: State
    seed: int
    noisy: bool
    """Whether the sampler drew noise on its way."""


class TestbedModel(ComparableModel):
    """A density with an exact denoiser, under a system.

    Parameters
    ----------
    name
        As the user calls it.
    testbed
        Has ``sample(n, seed)`` (values) and ``denoiser(system)``.
    system
        Processes, spaces and clocks.
    """

    __test__ = False  # not a test, for pytest
    usual_count = 10_000

    metrics = (
        Metric("error", "RMS error to the exact flow", "smaller"),
        Metric("sliced_w2", "sliced W2 to fresh draws", "smaller"),
    )

    def __init__(self, name: str, testbed: Any, system: System) -> None:
        self.name = name
        self.fingerprint = "exact"
        self.testbed, self.system = testbed, system
        self.denoiser: BaseDenoiser = testbed.denoiser(system)
        self._exact: dict[tuple[int, int], State] = {}

    def start(self, n: int, seed: int) -> State:
        """The states that sampling starts from."""
        return self.system.prior(self.testbed.sample(n, seed).map(torch.zeros_like), seed)

    def exact(self, n: int, seed: int) -> State:
        """The exact flow from :meth:`start`, denoised at its end; solved once."""
        if (n, seed) not in self._exact:
            solver = get_sampler("unipc3", _EXACT_STEPS)
            self._exact[n, seed] = solver(self.denoiser, self.start(n, seed))
        return self._exact[n, seed]

    def draw(self, sampler: Sampler, n: int, seed: int) -> _Drawn:
        """Run the sampler on the exact denoiser."""
        noise = _CountedNoise(seed)
        values = sampler(self.denoiser, self.start(n, seed), source=noise)
        return _Drawn(values, seed, noise.draws > 0)

    def scores(self, drawn: _Drawn) -> dict[str, float]:
        """``error`` (NaN for stochastic samplers) and ``sliced_w2``."""
        n = drawn.values.batch_size
        error = math.nan
        if not drawn.noisy:
            gap = drawn.values - self.exact(n, drawn.seed)
            error = float(gap.square_norm().mean().sqrt())
        fresh = self.testbed.sample(n, drawn.seed + 1)
        return {"error": error, "sliced_w2": sliced_wasserstein(_rows(drawn.values), _rows(fresh))}

    def floors(self, n: int) -> dict[str, float]:
        """Sliced W2 between fresh draws; the error has no floor."""
        pairs = [
            sliced_wasserstein(
                _rows(self.testbed.sample(n, 1000 + k)), _rows(self.testbed.sample(n, 2000 + k))
            )
            for k in range(_FLOOR_PAIRS)
        ]
        return {"sliced_w2": math.sqrt(sum(p**2 for p in pairs) / len(pairs))}


def _rows(x: State) -> Tensor:
    """The components side by side, (B, D)."""
    return torch.cat([v.reshape(len(v), -1) for v in x.values()], dim=1)


TESTBEDS: Mapping[str, Callable[[], tuple[Any, System]]] = {
    "gmm3": lambda: (GaussianMixture.gmm3(), System(VP())),
    "gmm3-ve": lambda: (GaussianMixture.gmm3(), System(VE(sigma_min=0.01, sigma_max=50.0))),
    "pair": lambda: (
        CorrelatedGaussian(),
        System({"x": VP(), "a": VE(sigma_min=0.01, sigma_max=10.0)}),
    ),
    "log-normal": lambda: (LogNormalMixture(), System(VP(), spaces={"x": Positive()})),
    "sphere": lambda: (Sphere(), System(VP())),
}
"""Name -> a density and the system it is noised by."""


def testbed_model(name: str) -> TestbedModel:
    """A testbed of :data:`TESTBEDS` as a model.

    Raises
    ------
    StructDiffError
        If there is none of this name.
    """
    if name not in TESTBEDS:
        raise StructDiffError(f"unknown testbed {name!r}: choose one of {', '.join(TESTBEDS)}")
    return TestbedModel(f"testbed:{name}", *TESTBEDS[name]())


testbed_model.__test__ = False  # type: ignore[attr-defined]
