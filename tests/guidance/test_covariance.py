"""Guidance with a covariance: exact for Gaussian data, whatever the mask and the time."""

import pytest
import torch

from structdiff.errors import StructDiffError
from structdiff.guidance import CovarianceGuidance, GaussianCovariance
from structdiff.processes import VP, System
from structdiff.samplers import get_sampler
from structdiff.spaces import Symmetric
from structdiff.state import State
from structdiff.testbeds import CorrelatedGaussian, StationaryGaussian

torch.set_num_threads(1)
R = 1e-3
PROCESS = StationaryGaussian.ar1(0.8, 10, mean=0.5)
PRIOR = GaussianCovariance.from_matrix(PROCESS.covariance(), torch.full((10,), 0.5))
SYSTEM = System(VP())


def masks(batch=5):
    return torch.rand(batch, 10, generator=torch.Generator().manual_seed(3)) < 0.5


def exact(x, y, observed, t, covariance=None, noise=R):
    """E[x0 | xt, y] of the Gaussian, from both observations at once, object by object."""
    covariance = PROCESS.covariance() if covariance is None else covariance
    alpha, sigma = SYSTEM.alpha(t)["x"], SYSTEM.sigma(t)["x"]
    rows = []
    for value, known, seen in zip(x, y, observed, strict=True):
        a = torch.cat([alpha * torch.eye(10), torch.eye(10)[seen]]).double()
        error = torch.cat([sigma.expand(10) ** 2, torch.full((int(seen.sum()),), noise)])
        total = a @ covariance @ a.T + torch.diag(error)
        gap = torch.cat([value, known[seen]]) - a @ torch.full((10,), 0.5).double()
        rows.append(0.5 + covariance @ a.T @ torch.linalg.solve(total, gap))
    return torch.stack(rows)


@pytest.mark.parametrize("jacobian", ["prior", "network"])
@pytest.mark.parametrize("t", [0.05, 0.4, 0.9])
def test_it_gives_the_exact_expectation_of_gaussian_data(jacobian, t):
    y = PROCESS.sample(5, 0)["x"]
    guided = CovarianceGuidance(
        PROCESS.denoiser(SYSTEM), y, masks(), PRIOR, noise=R, jacobian=jacobian
    )
    x = PROCESS.sample(5, 1)["x"]
    assert torch.allclose(guided(x, t)["x"], exact(x, y, masks(), t), atol=1e-9)


def test_few_directions_and_a_rest_are_their_matrix():
    few = GaussianCovariance(PRIOR.mean, PRIOR.vectors[:, -3:], PRIOR.values[-3:], 0.05)
    full = GaussianCovariance.from_matrix(few.matrix(), few.mean)
    y, x = PROCESS.sample(5, 0)["x"], PROCESS.sample(5, 1)["x"]
    for jacobian in ("prior", "network"):
        a, b = (
            CovarianceGuidance(PROCESS.denoiser(SYSTEM), y, masks(), c, R, jacobian)(x, 0.4)["x"]
            for c in (few, full)
        )
        assert torch.allclose(a, b, atol=1e-9)


def test_objects_may_stand_at_times_of_their_own():
    y, x = PROCESS.sample(5, 0)["x"], PROCESS.sample(5, 1)["x"]
    times = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9])
    guided = CovarianceGuidance(PROCESS.denoiser(SYSTEM), y, masks(), PRIOR)
    for i, row in enumerate(guided(x, times)["x"]):
        alone = exact(x[i : i + 1], y[i : i + 1], masks()[i : i + 1], times[i])
        assert torch.allclose(row, alone[0], atol=1e-9)


def test_an_object_does_not_depend_on_its_batch_mates():
    y, x = PROCESS.sample(6, 0)["x"], PROCESS.sample(6, 1)["x"]
    observed = masks(3)[torch.tensor([0, 1, 0, 2, 1, 0])]  # masks that repeat out of order
    together = CovarianceGuidance(PROCESS.denoiser(SYSTEM), y, observed, PRIOR)(x, 0.4)["x"]
    for i in range(6):
        one = slice(i, i + 1)
        alone = CovarianceGuidance(PROCESS.denoiser(SYSTEM), y[one], observed[one], PRIOR)
        assert torch.allclose(together[one], alone(x[one], 0.4)["x"], atol=1e-12)


def test_what_is_not_observed_has_no_influence():
    y = PROCESS.sample(5, 0)["x"]
    results = [
        get_sampler("dpm++", 8)(
            CovarianceGuidance(
                PROCESS.denoiser(SYSTEM), torch.where(masks(), y, other), masks(), PRIOR
            ),
            torch.ones_like(y),
        )["x"]
        for other in (0.0, 1e9, float("nan"))
    ]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_single_precision_solves_as_well():
    # The systems are solved in float64: only the network's own rounding is left.
    y, x = PROCESS.sample(5, 0)["x"], PROCESS.sample(5, 1)["x"]
    guided = CovarianceGuidance(PROCESS.denoiser(SYSTEM), y.float(), masks(), PRIOR)
    got = guided(x.float(), 0.4)["x"]
    assert got.dtype == torch.float32
    assert torch.allclose(got.double(), exact(x, y, masks(), 0.4), atol=1e-4)


def test_windows_with_channels_and_symmetric_matrices_are_free_coordinates():
    like = torch.zeros(4, 5, 5, dtype=torch.float64)
    space, system = Symmetric(), System({"adj": VP()}, {"adj": Symmetric()})
    vectors = PROCESS.sample(4, 0)["x"], PROCESS.sample(4, 1)["x"]
    y, x = (State({"adj": space.unpack(v, like)}) for v in vectors)
    observed = space.unpack(masks(4).double(), like) > 0

    class Flat(type(PROCESS.denoiser(SYSTEM))):
        def forward(self, x, t, condition=None):
            inner = PROCESS.denoiser(SYSTEM)(space.pack(x["adj"]), self.system.times(t)["adj"])
            return State({"adj": space.unpack(inner["x"], x["adj"])})

    flat = Flat(StationaryGaussian([1.0], component="adj"), system)
    for jacobian in ("prior", "network"):
        guided = CovarianceGuidance(flat, y, {"adj": observed}, PRIOR, R, jacobian)
        expected = exact(vectors[1], vectors[0], masks(4), 0.4)
        assert torch.allclose(guided(x, 0.4)["adj"], space.unpack(expected, like), atol=1e-9)


def test_components_that_are_not_seen_move_with_the_networks_jacobian_only():
    testbed = CorrelatedGaussian()
    system = System({"x": VP(), "a": VP()})
    values, observed = testbed.sample(4, 0), {"x": torch.ones(4, 2, dtype=torch.bool)}
    prior = {"x": GaussianCovariance.from_matrix(testbed.covariance()[:2, :2])}
    x = system.prior(values, 1)
    plain = testbed.denoiser(system)(x, 0.5)["a"]
    by_prior = CovarianceGuidance(testbed.denoiser(system), values, observed, prior)(x, 0.5)["a"]
    by_network = CovarianceGuidance(
        testbed.denoiser(system), values, observed, prior, jacobian="network"
    )(x, 0.5)["a"]
    assert torch.equal(by_prior, plain)
    assert float((by_network - plain).abs().min()) > 1e-6


def test_data_and_noise_of_a_pair_add_up():
    y, x = PROCESS.sample(5, 0)["x"], PROCESS.sample(5, 1)["x"]
    guided = CovarianceGuidance(PROCESS.denoiser(SYSTEM), y, masks(), PRIOR)
    data, noise = guided.pair(x, 0.4)
    again = data["x"] * SYSTEM.alpha(0.4)["x"] + noise["x"] * SYSTEM.sigma(0.4)["x"]
    assert torch.allclose(again, x, atol=1e-12)


# --- the covariance ----------------------------------------------------------------------------
@pytest.mark.parametrize("count", [8, 400])
def test_all_directions_of_samples_are_their_covariance(count):
    samples = PROCESS.sample(count, 0)["x"]
    assert torch.allclose(GaussianCovariance.fit(samples).matrix(), torch.cov(samples.T), atol=1e-9)


def test_a_few_directions_keep_the_total_variance():
    samples = PROCESS.sample(400, 0)["x"]
    few = GaussianCovariance.fit(samples, rank=3)
    assert few.vectors.shape == (10, 3)
    assert abs(float(few.matrix().trace() - torch.cov(samples.T).trace())) < 1e-9


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GaussianCovariance.from_matrix(-torch.eye(2)), "no eigenvalue"),
        (lambda: GaussianCovariance.from_matrix(torch.ones(2, 3)), "symmetric"),
        (lambda: GaussianCovariance.fit(torch.zeros(1, 3)), "two or more"),
        (lambda: GaussianCovariance.fit(torch.full((4, 3), float("nan"))), "finite"),
        (lambda: GaussianCovariance.fit(torch.zeros(4, 3), rank=4), "rank 1 to 3, not 4"),
        (
            lambda: GaussianCovariance(torch.zeros(2), torch.eye(2)[:, :1], torch.ones(2)),
            "fit together",
        ),
        (
            lambda: GaussianCovariance(torch.zeros(2), torch.eye(2)[:, :1], torch.ones(1), 2.0),
            "at least rest",
        ),
        (
            lambda: GaussianCovariance(torch.zeros(2), 2 * torch.eye(2), torch.ones(2)),
            "orthonormal",
        ),
    ],
)
def test_what_is_no_covariance_is_named(make, message):
    with pytest.raises(StructDiffError, match=message):
        make()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"noise": 0.0}, "must be positive"),
        ({"jacobian": "unit"}, "'prior' or 'network'"),
        ({"covariance": GaussianCovariance.from_matrix(torch.eye(9))}, "10 free .* one of 9"),
        ({"covariance": {}}, "got none"),
    ],
)
def test_what_does_not_fit_is_named(arguments, message):
    y = PROCESS.sample(5, 0)["x"]
    with pytest.raises(StructDiffError, match=message):
        CovarianceGuidance(
            PROCESS.denoiser(SYSTEM), y, masks(), **{"covariance": PRIOR, **arguments}
        )
