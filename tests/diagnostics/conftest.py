"""Wrong scores of known wrongness: scaled by a factor, or rotated."""

from __future__ import annotations

import pytest
import torch

from structdiff import State
from structdiff.denoisers import BaseDenoiser
from structdiff.state import as_state


class Wrong(BaseDenoiser):
    """factor * s + a vector field of (x (B, D), t) on the one component x."""

    def __init__(self, exact, factor=1.0, extra=None):
        super().__init__(exact.system)
        self.exact, self.factor, self.extra = exact, factor, extra

    def forward(self, x, t, condition=None):
        state, alpha = as_state(x), self.system.alpha(t)
        data = self.exact(state, t) * alpha
        # x0 = (x + sigma^2 s) / alpha
        data = (state * (1 - self.factor) + data * self.factor) / alpha
        if self.extra is None:
            return data
        variance = {k: v**2 / alpha[k] for k, v in self.system.sigma(t).items()}
        return data + State({"x": self.extra(state["x"], t)}) * variance

    def log_density(self, x, t):
        """Of the scaled score only."""
        return self.exact.log_density(x, t) * self.factor


@pytest.fixture
def wrong():
    """``wrong(denoiser, factor, extra)``."""
    return Wrong


@pytest.fixture
def rotated():
    """``rotated(denoiser, omega)``: s + omega A x in the plane, whose curl is 2 omega."""

    def make(exact, omega):
        def turn(x, t):
            return omega * torch.stack((-x[:, 1], x[:, 0]), dim=1)

        return Wrong(exact, 1.0, turn)

    return make
