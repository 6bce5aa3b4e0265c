"""Spaces: free coordinates, projections, noise and bijections."""

import pytest
import torch

from structdiff.errors import StructDiffError
from structdiff.noise import PerObjectNoise, ReplayNoise, SeededNoise
from structdiff.processes import VP, System
from structdiff.spaces import (
    Arcsinh,
    Euclidean,
    Layout,
    Log,
    Logit,
    Positive,
    Softplus,
    Symmetric,
    Transformed,
)
from structdiff.state import State

torch.set_num_threads(1)


def pair_mask(sizes, nodes):
    exists = torch.arange(nodes) < torch.tensor(sizes)[:, None]
    return exists[:, :, None] & exists[:, None, :] & ~torch.eye(nodes, dtype=torch.bool)


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(2, 5, 5), (2, 5, 5, 3)])
def test_symmetric_packing_is_a_bijection_onto_symmetric_matrices(shape):
    space, like = Symmetric(), torch.zeros(shape, dtype=torch.float64)
    vector = normal(2, 10 * (shape[3] if len(shape) == 4 else 1))
    matrix = space.unpack(vector, like)
    assert torch.equal(matrix, matrix.transpose(1, 2))
    assert not matrix.diagonal(dim1=1, dim2=2).any()
    assert torch.equal(space.pack(matrix), vector)


def test_padding_appends_pairs_and_moves_none():
    # Ordered by the larger node: the pairs of 3 nodes are the first 3 of 5 nodes.
    space = Symmetric()
    big = space.unpack(torch.arange(10.0)[None], torch.zeros(1, 5, 5))
    small = space.unpack(torch.arange(3.0)[None], torch.zeros(1, 3, 3))
    assert torch.equal(big[:, :3, :3], small)


@pytest.mark.parametrize("shape", [(2, 4, 4), (2, 4, 4, 3)])
def test_symmetric_projection_is_exact_and_idempotent(shape):
    space, x = Symmetric(), normal(*shape)
    mask = pair_mask([4, 2], 4).reshape(2, 4, 4, *[1] * (len(shape) - 3))
    once = space.project(x, mask)
    assert torch.equal(once, once.transpose(1, 2)) and torch.equal(space.project(once, mask), once)
    assert not once[1, 2:].any() and not once.diagonal(dim1=1, dim2=2).any()


def test_symmetric_projection_is_the_nearest_member():
    x = normal(1, 4, 4)
    residual = x - Symmetric().project(x)
    other = Symmetric().project(normal(1, 4, 4) ** 2)
    assert float((residual * other).sum().abs()) < 1e-12


def test_symmetric_noise_has_unit_variance_off_the_diagonal():
    # Not (Z + Z^T)/2, whose variance is 1/2; 1e5 draws: standard error 0.0045.
    z = Symmetric().noise("adj", torch.zeros(100_000, 3, 3), None, SeededNoise(0))
    assert torch.equal(z, z.transpose(1, 2))
    assert float(z[:, 0, 2].var()) == pytest.approx(1.0, abs=0.02)
    assert abs(float((z[:, 0, 1] * z[:, 1, 2]).mean())) < 0.02


def test_noise_of_a_pair_does_not_depend_on_padding():
    def draw(nodes):
        mask = pair_mask([3, 2], nodes)
        like = torch.zeros(2, nodes, nodes)
        return Symmetric().noise("adj", like, mask, PerObjectNoise([1, 2]))

    assert torch.equal(draw(6)[:, :3, :3], draw(3))


def test_noise_of_a_set_member_does_not_depend_on_padding():
    def draw(members):
        return Euclidean().noise("x", torch.zeros(2, members, 4), None, PerObjectNoise([1, 2]))

    assert torch.equal(draw(6)[:, :3], draw(3))


def test_replayed_noise_is_taken_as_it_is():
    z = Symmetric().project(normal(2, 3, 3), pair_mask([3, 2], 3))
    source = ReplayNoise({"adj": [z]})
    assert torch.equal(
        Symmetric().noise("adj", torch.zeros(2, 3, 3).double(), pair_mask([3, 2], 3), source), z
    )


def test_free_dimensions_count_each_pair_once():
    mask = pair_mask([4, 2], 4)
    assert Symmetric().dimension(torch.zeros(2, 4, 4), mask).tolist() == [6, 1]
    assert Euclidean().dimension(torch.zeros(2, 4, 4), mask).tolist() == [12, 2]
    assert Symmetric().dimension(torch.zeros(2, 4, 4)).tolist() == [6, 6]


BIJECTIONS = [
    (Log(), torch.tensor([1e-3, 1.0, 50.0])),
    (Softplus(), torch.tensor([1e-3, 1.0, 50.0])),
    (Logit(), torch.tensor([1e-3, 0.5, 0.99])),
    (Arcsinh(), torch.tensor([-1e4, 0.0, 3.0])),
]
every_bijection = pytest.mark.parametrize(
    ("bijection", "x"), BIJECTIONS, ids=lambda b: type(b).__name__
)


@every_bijection
def test_a_bijection_comes_back(bijection, x):
    x = x.double()
    assert torch.allclose(bijection.inverse(bijection.forward(x)), x, rtol=1e-10, atol=1e-12)


@every_bijection
def test_the_log_derivative_is_that_of_the_inverse(bijection, x):
    y = bijection.forward(x.double()).requires_grad_(True)
    (slope,) = torch.autograd.grad(bijection.inverse(y).sum(), y)
    assert torch.allclose(bijection.log_derivative(y), slope.log(), atol=1e-8)


@every_bijection
def test_the_score_of_the_value_is_the_gradient_of_its_log_density(bijection, x):
    # y ~ N(0, 1): log p(x) = -y^2/2 - log dx/dy
    space, x = Transformed(bijection), x.double().requires_grad_(True)
    y = bijection.forward(x)
    log_density = -(y**2) / 2 - bijection.log_derivative(y)
    (exact,) = torch.autograd.grad(log_density.sum(), x)
    found = space.score(-y.detach(), y.detach())
    assert torch.allclose(found, exact, rtol=1e-6, atol=1e-12)


def test_the_process_of_a_positive_number_runs_on_its_logarithm():
    assert torch.allclose(Positive().encode(torch.tensor([2.0])), torch.tensor([2.0]).log())


# --- layouts -----------------------------------------------------------------------------------
SYSTEM = System({"x": VP(), "adj": VP()}, {"adj": Symmetric()})


def graph():
    exists = torch.arange(4) < torch.tensor([3, 1])[:, None]
    x = State(
        {"x": normal(2, 4, 2), "adj": normal(2, 4, 4)},
        {"x": exists[:, :, None], "adj": pair_mask([3, 1], 4)},
    )
    return SYSTEM.project(x)


def test_a_layout_holds_the_free_coordinates_that_exist_somewhere():
    layout = SYSTEM.layout(graph())
    assert layout.exists.shape == (2, 3 * 2 + 3)
    assert layout.exists.sum(1).tolist() == [9, 2]


def test_a_layout_comes_back_exactly():
    x = graph()
    layout = SYSTEM.layout(x)
    back = layout.unflatten(layout.flatten(x))
    assert all(torch.equal(back[k], x[k]) for k in x)


def test_unflattening_zeroes_what_does_not_exist():
    x = graph()
    layout = SYSTEM.layout(x)
    back = layout.unflatten(torch.ones_like(layout.flatten(x)))
    assert not back["x"][1, 1:].any() and not back["adj"][1].any()


def test_a_vector_of_another_width_is_refused():
    with pytest.raises(StructDiffError, match="9 coordinates"):
        SYSTEM.layout(graph()).unflatten(torch.ones(2, 8))


def test_a_layout_without_spaces_is_euclidean():
    assert Layout(graph()).exists.shape == (2, 3 * 2 + 6)
