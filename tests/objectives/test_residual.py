"""The loss of residual diffusion: core card of the processes, section 2.2."""

import pytest
import torch

from structdiff.denoisers import Denoiser
from structdiff.errors import StructDiffError
from structdiff.objectives.residual import ResidualMatching
from structdiff.processes import VP, Residual, System
from structdiff.residual import ResidualDenoiser
from structdiff.state import State

torch.set_num_threads(1)
SYSTEM = System({"x": Residual(), "y": VP()})
EXISTS = torch.tensor([[True, True, True, True], [True, False, False, False]])


def data():
    generator = torch.Generator().manual_seed(0)
    values = {k: torch.randn(2, 4, generator=generator, dtype=torch.float64) for k in ("x", "y")}
    return State(values, {"x": EXISTS, "y": EXISTS}).masked()


class Off(torch.nn.Module):
    """Knows the data, and from them the noise; wrong by given amounts."""

    def __init__(self, prediction, x0, **offsets):
        super().__init__()
        self.prediction, self.x0, self.offsets = prediction, x0, offsets

    def forward(self, x, levels, condition=None):
        amount, sigma = levels["x"].unbind(-1)
        x0, y = self.x0["x"], x["y"]
        mean = x0 + amount[:, None] * (y - x0)
        true = {"residual": y - x0, "noise": (x["x"] - mean) / sigma[:, None], "data": x0}
        heads = tuple(
            State({"x": true[k] + self.offsets.get(k, 0.0)}) for k in self.prediction.split("+")
        )
        return heads if len(heads) > 1 else heads[0]


def loss(prediction="residual+noise", offsets=None, **options):
    x0 = data()
    network = Off(prediction, x0, **(offsets or {}))
    denoiser = ResidualDenoiser(network, SYSTEM, prediction, "amounts")
    return ResidualMatching(**options)(denoiser, x0, source=0)


@pytest.mark.parametrize("prediction", ["residual+noise", "residual", "noise", "data"])
def test_the_true_quantities_have_no_loss(prediction):
    assert float(loss(prediction).max()) < 1e-12


def test_every_head_adds_its_mean_absolute_error_over_what_exists():
    found = loss(offsets={"residual": 0.5, "noise": -0.25})
    assert torch.allclose(found, torch.full((2,), 0.75, dtype=torch.float64))


def test_the_squared_norm_is_a_choice():
    found = loss(offsets={"residual": 0.5, "noise": -0.25}, norm="l2")
    assert torch.allclose(found, torch.full((2,), 0.3125, dtype=torch.float64))


def test_heads_are_weighed():
    found = loss(offsets={"residual": 0.5, "noise": -0.25}, head_weights={"noise": 2.0})
    assert torch.allclose(found, torch.full((2,), 1.0, dtype=torch.float64))


def test_the_squared_norm_finds_the_conditional_mean_of_the_residual():
    # x0 | y ~ N(y / 2, 0.1^2): from the state near t_max, that is from y alone, the residual is
    # y / 2; standard error of a slope over 20000 objects, 1e-3.
    generator = torch.Generator().manual_seed(0)
    y, z = torch.randn(2, 20000, 1, generator=generator, dtype=torch.float64)
    x0 = State({"x": y / 2 + 0.1 * z, "y": y})
    slope = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

    class Linear(torch.nn.Module):
        def forward(self, x, levels, condition=None):
            return State({"x": slope * x["y"]})

    objective = ResidualMatching(norm="l2")
    denoiser = ResidualDenoiser(Linear(), SYSTEM, "residual")
    (gradient,) = torch.autograd.grad(objective(denoiser, x0, source=1).mean(), slope)
    # The loss is quadratic in the slope with curvature 2 E y^2: one Newton step is its minimum.
    assert float(-gradient / (2 * y.square().mean())) == pytest.approx(0.5, abs=5e-3)


def test_another_kind_of_denoiser_is_refused():
    denoiser = Denoiser(torch.nn.Identity(), SYSTEM, "data")
    with pytest.raises(StructDiffError, match="Denoiser predicts no residual"):
        ResidualMatching()(denoiser, data(), source=0)


@pytest.mark.parametrize("options", [{"norm": "l3"}, {"head_weights": {"score": 1.0}}])
def test_unknown_options_are_refused(options):
    with pytest.raises(StructDiffError):
        ResidualMatching(**options)
