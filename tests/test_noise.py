"""Noise sources: seeds, independence, replay, Brownian paths."""

import math

import pytest
import torch

from structdiff.errors import StructDiffError
from structdiff.noise import (
    BrownianNoise,
    GlobalNoise,
    PerObjectNoise,
    ReplayNoise,
    SeededNoise,
    as_source,
    splitmix64,
)

torch.set_num_threads(1)
LIKE = torch.zeros(3, 5)


def test_splitmix64_gives_the_reference_numbers():
    # Reference implementation of Steele, Lea and Flood: seed 1234567.
    words = splitmix64(torch.tensor(1234567), torch.arange(1, 4))
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423 - 2**64]
    assert words.tolist() == expected


def test_a_seed_gives_the_same_draws_again():
    for make in (lambda: SeededNoise(3), lambda: PerObjectNoise([1, 2, 3])):
        a, b = make(), make()
        for _ in range(2):
            assert torch.equal(a.normal("x", LIKE), b.normal("x", LIKE))


def test_successive_draws_components_and_streams_differ():
    source = PerObjectNoise([1, 2, 3])
    draws = [
        source.normal("x", LIKE),
        source.normal("x", LIKE),
        source.normal("adj", LIKE),
        PerObjectNoise([1, 2, 3], stream=1).normal("x", LIKE),
    ]
    flat = [value for draw in draws for value in draw.flatten().tolist()]
    assert len(set(flat)) == len(flat)


@pytest.mark.parametrize("stream", [0, 1])
def test_per_object_noise_is_standard_normal(stream):
    # 400,000 objects with neighbouring seeds, 7 numbers each; 4.5 standard errors.
    n = 400_000
    z = PerObjectNoise(torch.arange(n), stream).normal("x", torch.zeros(n, 7).double())
    assert float(z.mean(0).abs().max()) < 4.5 / math.sqrt(n)
    assert float((z.var(0) - 1).abs().max()) < 4.5 * math.sqrt(2 / n)
    assert float(((z**4).mean(0) - 3).abs().max()) < 4.5 * math.sqrt(96 / n)
    between = torch.corrcoef(z.T).fill_diagonal_(0)
    assert float(between.abs().max()) < 4.5 / math.sqrt(n)
    assert float((z[1:] * z[:-1]).mean(0).abs().max()) < 4.5 / math.sqrt(n)
    inside = (z < torch.tensor(1.0)).double().mean()
    assert float(inside) == pytest.approx(0.841345, abs=4.5 * 0.366 / math.sqrt(7 * n))


def test_successive_draws_of_one_object_are_uncorrelated():
    source = PerObjectNoise(torch.arange(200_000))
    a, b = (source.normal("x", torch.zeros(200_000, 1).double())[:, 0] for _ in range(2))
    c = source.normal("adj", torch.zeros(200_000, 1).double())[:, 0]
    between = torch.corrcoef(torch.stack((a, b, c))).fill_diagonal_(0)
    assert float(between.abs().max()) < 4.5 / math.sqrt(200_000)


def test_an_object_draws_the_same_in_any_batch():
    alone = PerObjectNoise([7]).normal("x", torch.zeros(1, 5))
    among = PerObjectNoise([3, 7, 9]).normal("x", torch.zeros(3, 5))
    assert torch.equal(alone[0], among[1])


def test_a_longer_draw_continues_a_shorter_one():
    short = PerObjectNoise([7]).normal("x", torch.zeros(1, 4))
    assert torch.equal(PerObjectNoise([7]).normal("x", torch.zeros(1, 9))[:, :4], short)


def test_large_seeds_are_told_apart():
    z = PerObjectNoise([0, 2**62, 2**63 - 1]).normal("x", LIKE)
    assert len(set(z.flatten().tolist())) == 15 and bool(z.isfinite().all())


def test_the_number_of_seeds_must_be_that_of_the_objects():
    with pytest.raises(StructDiffError, match="2 seeds for a batch of 3"):
        PerObjectNoise([1, 2]).normal("x", LIKE)


def test_the_streams_of_a_seed_are_different():
    assert not torch.equal(SeededNoise(1).normal("x", LIKE), SeededNoise(1, 1).normal("x", LIKE))


def test_replayed_draws_come_in_their_order_and_end():
    draws = [torch.full((3, 5), float(i)) for i in range(2)]
    source = ReplayNoise({"x": draws})
    assert torch.equal(source.normal("x", LIKE), draws[0])
    assert torch.equal(source.normal("x", LIKE), draws[1])
    with pytest.raises(StructDiffError, match="no draw is left"):
        source.normal("x", LIKE)


def test_a_replayed_draw_of_another_shape_is_refused():
    with pytest.raises(StructDiffError, match="shape"):
        ReplayNoise({"x": [torch.zeros(2, 5)]}).normal("x", LIKE)


def test_the_sum_of_small_increments_is_the_large_increment():
    # One path, whichever intervals are asked and in whichever order.
    like = torch.zeros(4, 2, dtype=torch.float64)
    coarse = BrownianNoise(5).normal("x", like, (0.8, 0.4)) * math.sqrt(0.4)
    source = BrownianNoise(5)
    fine = sum(
        source.normal("x", like, (0.8 - 0.1 * i, 0.7 - 0.1 * i)) * math.sqrt(0.1) for i in range(4)
    )
    assert torch.allclose(coarse, fine, atol=1e-2)  # the path is resolved to 1e-6 in time


def test_brownian_increments_are_standard_normal_and_independent():
    like = torch.zeros(20_000, 1, dtype=torch.float64)
    source = BrownianNoise(0)
    a, b = source.normal("x", like, (0.9, 0.6)), source.normal("x", like, (0.6, 0.5))
    assert float(a.std()) == pytest.approx(1.0, abs=0.03)
    assert float(b.std()) == pytest.approx(1.0, abs=0.03)
    assert abs(float((a * b).mean())) < 0.03


def test_sources_are_read_from_what_users_give():
    assert isinstance(as_source(None), GlobalNoise)
    assert isinstance(as_source(3), SeededNoise)
    assert isinstance(as_source([3, 4]), PerObjectNoise)
    assert isinstance(as_source(torch.arange(2)), PerObjectNoise)
    source = SeededNoise(0)
    assert as_source(source) is source


def test_noise_takes_dtype_and_shape_of_what_it_is_for():
    for source in (GlobalNoise(), SeededNoise(0), PerObjectNoise([1, 2, 3])):
        z = source.normal("x", torch.zeros(3, 2, 2, dtype=torch.float16))
        assert z.dtype == torch.float16 and z.shape == (3, 2, 2)
