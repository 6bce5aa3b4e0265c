"""Training with a regulariser does what it is for; small seeded networks, a few hundred steps."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from structdiff.denoisers import BaseDenoiser, Denoiser
from structdiff.noise import SeededNoise
from structdiff.objectives import (
    CurlPenalty,
    DenoisingScoreMatching,
    FokkerPlanck,
    Objective,
    Regularizer,
    curl_square,
    fokker_planck_residual,
)
from structdiff.potential import PotentialDenoiser
from structdiff.processes import VP, System
from structdiff.state import State
from structdiff.testbeds import GaussianMixture

SYSTEM = System(VP(0.1, 5.0, t_min=0.05))
LINE = GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [[[0.1]], [[0.1]]])
PLANE = GaussianMixture.gmm3()


class Network(nn.Module):
    """A small MLP of the point and the half log-SNR; a potential has width 1 and no last axis."""

    def __init__(self, width: int, out: int, potential: bool) -> None:
        super().__init__()
        self.potential = potential
        self.layers = nn.Sequential(
            nn.Linear(width + 1, 24), nn.SiLU(), nn.Linear(24, 24), nn.SiLU(), nn.Linear(24, out)
        )

    def forward(self, x: State, log_snr: dict[str, Tensor], condition: object = None):
        y = self.layers(torch.cat((x["x"], log_snr["x"][:, None] / 3), dim=1))
        if self.potential:  # around the standard normal
            return y[:, 0] - x["x"].square().sum(1) / 2
        return State({"x": y})


def trained(
    denoiser: BaseDenoiser, data: State, steps: int, terms: list[Regularizer]
) -> BaseDenoiser:
    objective: Objective = DenoisingScoreMatching(regularizers=terms)
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=5e-3)
    for step in range(steps):
        batch = data.take(slice(128 * (step % 8), 128 * (step % 8) + 128))
        optimizer.zero_grad()
        loss = objective(denoiser, batch, source=step).mean()
        loss.backward()
        objective.update(loss.detach())
        optimizer.step()
    return denoiser


def test_fokker_planck_weight_lowers_the_residual_of_a_trained_potential() -> None:
    """At a fifth of the squared residual or less, at the forward process's points."""
    data = LINE.sample(1024, 0).to(torch.float32)
    draw = DenoisingScoreMatching().draw(SYSTEM, data, SeededNoise(1))
    squares = []
    for terms in ([], [FokkerPlanck(0.03, every=2, probes=None)]):
        torch.manual_seed(0)
        denoiser = trained(PotentialDenoiser(Network(1, 1, True), SYSTEM), data, 250, terms)
        residual = fokker_planck_residual(denoiser, SYSTEM, draw.noisy, draw.t)
        squares.append(float(residual.detach().square().mean()))
    assert squares[1] < 0.2 * squares[0]


def test_curl_penalty_lowers_the_curl_of_a_trained_score() -> None:
    """At a third of the squared curl or less, in noise units."""
    data = PLANE.sample(1024, 0).to(torch.float32)
    draw = DenoisingScoreMatching().draw(SYSTEM, data, SeededNoise(1))
    sigma = SYSTEM.sigma(draw.t)["x"].float()
    squares = []
    for terms in ([], [CurlPenalty(20.0, every=2)]):
        torch.manual_seed(0)
        denoiser = trained(Denoiser(Network(2, 2, False), SYSTEM, "noise"), data, 250, terms)
        square = curl_square(denoiser, SYSTEM, draw.noisy, draw.t, 0).detach()
        squares.append(float((square * sigma**4).mean()))
    assert squares[1] < 0.33 * squares[0]
