"""State-space kernels and layers against dense systems (Gu et al. 2022, S4 and S4D)."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor

from structdiff.errors import StructDiffError
from structdiff.timeseries.convolution import smooth_length
from structdiff.timeseries.s4 import (
    StateSpaceKernel,
    StateSpaceLayer,
    diagonal_kernel,
    dplr_advance,
    dplr_kernel,
    hippo_legs,
)

LENGTH = 390


def both(values: Tensor) -> np.ndarray:
    """Both states of every pair."""
    array = values.detach().to(torch.complex128).numpy()
    return np.concatenate((array, array.conj()), axis=-1)


def recurrence(kernel: StateSpaceKernel, channel: int, length: int) -> np.ndarray:
    """Impulse responses (2, length) of one channel, state by state in dense complex128 algebra."""
    dt = float(kernel.log_dt[channel].detach().double().exp())
    a = both(
        torch.complex(-kernel.log_decay[channel].double().exp(), kernel.frequency[channel].double())
    )
    c = both(torch.view_as_complex(kernel.c[:, channel].double()))
    identity = np.eye(len(a))
    if kernel.kernel == "s4d":
        step, drive = np.diag(np.exp(dt * a)), (np.exp(dt * a) - 1) / a
    else:
        p = both(torch.view_as_complex(kernel.p[channel].double()))
        dense = np.diag(a) - np.outer(p, p.conj())
        left = np.linalg.inv(identity - dt / 2 * dense)
        step = left @ (identity + dt / 2 * dense)
        drive = left @ (dt * both(torch.view_as_complex(kernel.b[channel].double())))
        c = c @ np.linalg.inv(identity - np.linalg.matrix_power(step, kernel.length))
    out, state = [], drive
    for _ in range(length):
        out.append((c @ state).real)
        state = step @ state
    return np.stack(out, axis=-1)


@pytest.fixture(params=["s4", "s4d"])
def layer(request: pytest.FixtureRequest) -> StateSpaceLayer:
    """A layer of four channels, moved off its initial values as training would."""
    torch.manual_seed(0)
    layer = StateSpaceLayer(4, 128, request.param, length=LENGTH)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return layer


@pytest.mark.parametrize("length", [1, 7, LENGTH, 801])
def test_kernel_equals_the_dense_recurrence_in_both_directions(
    layer: StateSpaceLayer, length: int
) -> None:
    """To 1e-3 in single precision at the published L = 390; other lengths are served as exactly."""
    with torch.no_grad():
        kernel = layer.response(length).double().numpy()
    for channel in range(4):
        exact = recurrence(layer.response, channel, length)
        error = np.linalg.norm(kernel[:, channel] - exact, axis=-1)
        assert (error <= 1e-3 * np.linalg.norm(exact, axis=-1)).all()


def test_double_precision_kernel_is_exact_to_rounding(layer: StateSpaceLayer) -> None:
    """No approximation is left in the formulas, only the precision of the numbers."""
    double = layer.double()
    exact = recurrence(double.response, 2, LENGTH)
    with torch.no_grad():
        kernel = double.response(LENGTH)[:, 2].numpy()
    np.testing.assert_allclose(kernel, exact, atol=1e-9 * np.abs(exact).max())


def test_layer_equals_the_direct_two_sided_convolution(layer: StateSpaceLayer) -> None:
    """y_i = D u_i + sum_{j<=i} K0[i-j] u_j + sum_{j>i} K1[j-i-1] u_j, then GELU and the map."""
    length = 50
    double = layer.double()
    u = torch.randn(3, length, 4, dtype=torch.float64)
    with torch.no_grad():
        forward, backward = double.response(length)
        y = u * double.skip
        for i in range(length):
            for j in range(length):
                weight = forward[:, i - j] if j <= i else backward[:, j - i - 1]
                y[:, i] += weight * u[:, j]
        direct = double.output(torch.nn.functional.gelu(y))
        torch.testing.assert_close(double(u), direct, atol=1e-9, rtol=1e-9)


def test_hippo_legs_eigenvalues_rebuild_the_matrix() -> None:
    """V^-1 (A + P P^T) V is diagonal: the spectrum of A is that of diag(w) - P P*."""
    states = 8
    w, b, p = hippo_legs(states)
    n = np.arange(states)
    root = np.sqrt(2 * n + 1)
    dense = -np.tril(np.outer(root, root), -1) - np.diag(n + 1.0)
    rebuilt = np.diag(both(w)) - np.outer(both(p), both(p).conj())
    # HiPPO-LegS is triangular: its eigenvalues are -1, ..., -N.
    np.testing.assert_allclose(
        np.sort(np.linalg.eigvals(rebuilt).real), -np.arange(states, 0, -1.0), atol=1e-6
    )
    # B^T A^k B does not depend on the basis.
    for power in range(4):
        here = both(b).conj() @ np.linalg.matrix_power(rebuilt, power) @ both(b)
        there = root @ np.linalg.matrix_power(dense, power) @ root
        assert here.real == pytest.approx(there, rel=1e-9)


@pytest.mark.parametrize(("states", "difference"), [(16, 0.014), (64, 0.0019), (128, 0.0007)])
def test_diagonal_step_response_approaches_the_exact_one(states: int, difference: float) -> None:
    """Dropping the rank-one term and half of B is right as N grows (Gu et al. 2022, S4D).

    Basis 0 at dt = 0.01 over 4 time units: 1.4 %, 0.19 %, 0.07 % by an independent computation.
    """
    length, dt = 400, torch.tensor([0.01], dtype=torch.float64)
    w, b, p = (value[None] for value in hippo_legs(states))
    # The first row of the eigenvectors, with the phases that hippo_legs chooses.
    n = torch.arange(states, dtype=torch.float64)
    root = torch.sqrt(2 * n + 1)
    dense = -torch.tril(root[:, None] * root, -1) - torch.diag(n + 1)
    skew = dense + torch.outer(torch.sqrt(n + 0.5), torch.sqrt(n + 0.5))
    vectors = torch.linalg.eigh(-1j * (skew + 0.5 * torch.eye(states)).to(torch.complex128))[1]
    vectors = vectors[:, states // 2 :]
    phase = vectors.mH @ root.to(vectors.dtype)
    c = (vectors[0] * phase / phase.abs())[None, None]
    exact = dplr_kernel(dt, w, p, b, c - dplr_advance(dt, w, p, c, length), length)
    diagonal = diagonal_kernel(dt, w, c * b / 2, length)
    exact, diagonal = exact.cumsum(-1)[0, 0], diagonal.cumsum(-1)[0, 0]
    measured = float((exact - diagonal).norm() / exact.norm())
    assert measured == pytest.approx(difference, rel=0.1)


def test_cached_output_equals_the_uncached_bit_for_bit(layer: StateSpaceLayer) -> None:
    """The kept spectrum is the very tensor that would be computed again."""
    u = torch.randn(2, LENGTH, 4)
    with torch.no_grad():
        uncached = layer.train()(u)
        layer.eval()
        first, kept = layer(u), layer._kept
        second = layer(u)
    assert kept is not None and layer._kept is kept
    assert torch.equal(uncached, first) and torch.equal(first, second)


def test_guidance_with_frozen_parameters_uses_the_kept_kernel(layer: StateSpaceLayer) -> None:
    """The gradient of the input is the same with the kept spectrum."""
    u = torch.randn(2, 60, 4, requires_grad=True)
    (plain,) = torch.autograd.grad(layer.eval()(u).square().sum(), u)
    assert layer._kept is None
    layer.requires_grad_(False)
    for _ in range(2):
        (frozen,) = torch.autograd.grad(layer(u).square().sum(), u)
        assert torch.equal(plain, frozen)
    assert layer._kept is not None


def test_optimiser_step_drops_the_kept_kernel(layer: StateSpaceLayer) -> None:
    """A parameter changed in place is seen in evaluation mode too."""
    layer.eval()
    u = torch.randn(2, 60, 4)
    with torch.no_grad():
        before = layer(u)
    optimiser = torch.optim.Adam(layer.parameters(), lr=0.1)
    layer(u).square().sum().backward()
    optimiser.step()
    with torch.no_grad():
        after = layer(u)
        assert torch.equal(after, copy.deepcopy(layer)(u))
    assert not torch.equal(after, before)


def test_gradients_equal_finite_differences(layer: StateSpaceLayer) -> None:
    """Of the input and of every parameter, in double precision."""
    double = layer.double()
    u = torch.randn(2, 6, 4, dtype=torch.float64)
    direction = {k: torch.randn_like(v) for k, v in double.named_parameters()}

    def at(step: float) -> Tensor:
        moved = {k: v + step * direction[k] for k, v in double.named_parameters()}
        shifted = u + step * u.sin()
        return torch.func.functional_call(double, moved, (shifted,)).square().sum()

    h = 1e-6
    with torch.no_grad():
        numeric = (at(h) - at(-h)) / (2 * h)
    step = torch.zeros((), dtype=torch.float64, requires_grad=True)
    (exact,) = torch.autograd.grad(at(step), step)  # type: ignore[arg-type]
    torch.testing.assert_close(exact, numeric, rtol=1e-5, atol=1e-6)


def test_convolution_has_forward_and_second_derivatives(layer: StateSpaceLayer) -> None:
    """torch.func: jvp equals the vjp's Jacobian, vmap of vjp runs, and the Hessian is symmetric."""
    double = layer.double().requires_grad_(False)
    u = torch.randn(1, 5, 4, dtype=torch.float64)
    v, w = torch.randn_like(u), torch.randn_like(u)
    forward = torch.func.jvp(double, (u,), (v,))[1]
    backward = torch.func.vmap(torch.func.vjp(double, u)[1])(w[None])[0][0]
    torch.testing.assert_close((forward * w).sum(), (backward * v).sum())
    hessian = torch.func.hessian(lambda x: double(x).square().sum())(u).reshape(20, 20)
    torch.testing.assert_close(hessian, hessian.T)


def test_pieces_of_the_batch_give_the_whole_batch(
    layer: StateSpaceLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Output and every gradient, window by window and all at once."""
    double = layer.double()
    u = torch.randn(5, 30, 4, dtype=torch.float64, requires_grad=True)
    inputs = [u, *double.parameters()]
    results = []
    for numbers in (1, 2**19):
        monkeypatch.setattr("structdiff.timeseries.convolution._CACHED_NUMBERS", numbers)
        y = double(u)
        results.append((y, *torch.autograd.grad(y.square().sum(), inputs)))
    for alone, together in zip(*results, strict=True):
        torch.testing.assert_close(alone, together)


def test_compiled_layer_gives_the_same_output_and_gradient(layer: StateSpaceLayer) -> None:
    """Traced in one graph, with the complex operations as they are."""
    u = torch.randn(2, 30, 4, requires_grad=True)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    y, traced = layer(u), compiled(u)
    torch.testing.assert_close(traced, y)
    (gradient,) = torch.autograd.grad(y.square().sum(), u)
    torch.testing.assert_close(torch.autograd.grad(traced.square().sum(), u)[0], gradient)


def test_fft_stays_in_single_precision_under_bf16_autocast(layer: StateSpaceLayer) -> None:
    """The convolution of a float32 input is bit for bit the same inside autocast."""
    u = torch.randn(2, 60, 4)
    with torch.no_grad():
        plain = layer.train().convolve(u)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(layer.convolve(u), plain)


@pytest.mark.parametrize(
    ("length", "smooth"), [(780, 800), (720, 720), (1, 2), (14, 16), (770, 800)]
)
def test_smooth_length_is_the_next_even_5_smooth_number(length: int, smooth: int) -> None:
    """Enough for a circle of 2 x 390, and exactly 2 x 360."""
    assert smooth_length(length) == smooth


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"state_size": 3}, "even"),
        ({"kernel": "s5"}, "unknown kernel"),
        ({"initialisation": "zeros"}, "unknown initialisation"),
        ({"kernel": "s4", "initialisation": "linear"}, "rank-one"),
        ({"kernel": "s4", "length": 0}, "length"),
    ],
)
def test_impossible_arguments_are_refused(arguments: dict[str, object], message: str) -> None:
    """Errors are raised where the input enters."""
    with pytest.raises(StructDiffError, match=message):
        StateSpaceLayer(4, **arguments)  # type: ignore[arg-type]


def test_linear_initialisation_is_s4d_lin() -> None:
    """A_n = -1/2 + i pi n (Gu et al. 2022, S4D)."""
    kernel = StateSpaceKernel(2, 8, "s4d", "linear")
    torch.testing.assert_close(kernel.log_decay.exp(), torch.full((2, 4), 0.5))
    torch.testing.assert_close(kernel.frequency[1], torch.pi * torch.arange(4.0))
