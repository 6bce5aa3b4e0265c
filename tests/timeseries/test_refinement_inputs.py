"""What refinement takes (batches, gradient modes, masks, frozen components) and what it refuses."""

import math

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from structdiff.denoisers import BaseDenoiser, Denoiser
from structdiff.errors import StructDiffError
from structdiff.guidance import path_levels
from structdiff.processes import FrozenClock, System
from structdiff.state import State
from structdiff.timeseries.refinement import forecast_entries, refine_windows
from support.refinement import CHAIN, TAU, Curved, Network, gaussian, horizon

torch.set_num_threads(1)


# --- randomness, modes, states --------------------------------------------------------------------
@pytest.mark.parametrize("energy", ["denoising", "score"])
def test_a_window_does_not_depend_on_its_batch_mates(energy):
    _, denoiser, y = gaussian(batch=4)
    options = {"time": TAU, "free": horizon(12, 4), "energy": energy}
    together = refine_windows(denoiser, y, source=torch.tensor([5, 6, 7, 8]), **options)
    alone = refine_windows(denoiser, y[2:3], source=[7], **options)
    torch.testing.assert_close(together[2:3], alone, rtol=0, atol=1e-12)
    other = refine_windows(denoiser, y[2:3], source=[9], **options)
    assert (other - alone).abs().max() > 1e-3


def test_the_network_is_frozen_and_the_callers_gradient_mode_does_not_matter():
    torch.manual_seed(0)
    denoiser = Denoiser(Network(12), System(CHAIN), "noise")
    y = torch.randn(3, 12, 2)
    options = {"time": TAU, "free": forecast_entries(12, 4, 2), "source": 1}
    got = refine_windows(denoiser, y, **options)
    assert all(p.grad is None and p.requires_grad for p in denoiser.parameters())
    assert not got.requires_grad
    with torch.no_grad():
        assert torch.equal(refine_windows(denoiser, y, **options), got)
    with torch.inference_mode():
        assert torch.equal(refine_windows(denoiser, y.clone(), **options), got)


@pytest.mark.parametrize("energy", ["denoising", "score"])
def test_the_loop_reads_no_number_back(energy):
    class Reads(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.count += func is torch.ops.aten._local_scalar_dense.default
            return func(*args, **(kwargs or {}))

    denoiser, counts = Denoiser(Network(12), System(CHAIN), "noise"), []
    for iterations in (1, 1, 6):  # the first call also works out the coefficients
        with Reads() as reads:
            refine_windows(
                denoiser,
                torch.ones(2, 12, 1),
                time=TAU,
                free=None,
                regularizer="quantile",
                levels=path_levels(2),
                energy=energy,
                iterations=iterations,
                source=[1, 2],
            )
        counts.append(reads.count)
    assert counts[1] == counts[2] > 0  # those at the entry are seen


def test_masked_entries_stay_0_and_change_nothing_and_frozen_components_stay():
    class Both(BaseDenoiser):
        def forward(self, x, t, condition=None):
            mixed = x["x"].sum(1, keepdim=True) + x["level"]
            return State({"x": torch.tanh(x["x"] + mixed), "level": x["level"]}, x.masks)

    system = System({"x": CHAIN, "level": CHAIN}, clocks={"level": FrozenClock()})
    mask = torch.tensor([[True] * 5 + [False] * 2])
    x, level = torch.randn(2, 7, dtype=torch.float64), torch.randn(2, 1, dtype=torch.float64)
    results = []
    for junk in (0.0, math.nan):
        start = State({"x": x.masked_fill(~mask, junk), "level": level}, {"x": mask})
        results.append(
            refine_windows(Both(system), start, time=TAU, free=horizon(7, 3), source=[1, 2])
        )
    first, second = results
    assert torch.equal(first["x"], second["x"]) and torch.equal(first["level"], level)
    assert not first["x"][:, 5:].any() and first["x"][:, :5].all()


# --- errors ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "hmc"}, "method must be one of"),
        ({"energy": "exact"}, "energy must be one of"),
        ({"regularizer": "absolute"}, "regularizer must be one of"),
        ({"regularizer": "quantile"}, "needs levels"),
        ({"levels": path_levels(3)}, "takes none"),
        ({"regularizer": "quantile", "levels": torch.tensor([0.0, 0.5, 1.0])}, r"\(0, 1\)"),
        ({"regularizer": "quantile", "levels": path_levels(2)}, "per window"),
        ({"free": torch.ones(12)}, "boolean"),
        ({"free": torch.ones(5, dtype=torch.bool)}, "does not fit"),
        ({"missing": torch.ones(5, dtype=torch.bool)}, "missing has shape"),
        ({"iterations": -1}, "iterations"),
        ({"step": 0.0}, "step must be"),
        ({"noise_scale": -0.1}, "noise_scale"),
        ({"weight": -1.0}, "weight"),
        ({"weight": math.inf, "regularizer": "quantile", "levels": path_levels(3)}, "infinite"),
        ({"time": 0.0}, "choose a time"),
        ({"start": torch.full((3, 12), math.nan)}, "not finite at entry"),
    ],
)
def test_bad_arguments_are_named(change, message):
    _, denoiser, y = gaussian()
    options = {"start": y, "time": TAU, "free": horizon(12, 4), **change}
    with pytest.raises(StructDiffError, match=message):
        refine_windows(denoiser, options.pop("start"), **options)


@pytest.mark.parametrize("cut", ["output", "input"])
def test_a_prediction_cut_from_its_input_is_refused_and_its_score_taken(cut):
    class Cut(BaseDenoiser):
        def __init__(self):
            super().__init__(System(CHAIN))
            self.level = nn.Parameter(torch.ones(()))

        def forward(self, x, t, condition=None):
            return x.detach() * (1.0 if cut == "output" else self.level)

        def noise(self, x, t, condition=None):
            return self(x, t) * 0.5

    y = torch.ones(2, 4)
    with pytest.raises(StructDiffError, match="energy='score'"):
        refine_windows(Cut(), y, time=TAU, free=None)
    assert refine_windows(Cut(), y, time=TAU, free=None, energy="score").shape == y.shape


def test_several_moving_components_are_refused():
    system = System({"x": CHAIN, "z": CHAIN})
    with pytest.raises(StructDiffError, match="freeze the others"):
        refine_windows(
            Curved(system), State({"x": torch.ones(1, 2), "z": torch.ones(1)}), time=TAU, free=None
        )
