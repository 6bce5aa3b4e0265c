r"""Where the randomness of a sampler comes from.

Samplers never call ``torch.randn``: they ask a :class:`NoiseSource` for standard normal numbers,
one draw per component. So the same seed gives the same sample, a test can replay given draws, an
object's sample need not depend on its batch mates, and two step sizes can share one Brownian path.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from structdiff.errors import StructDiffError

Interval: TypeAlias = tuple[float, float]
"""Start and end of a backward step in shared time, start > end."""


@runtime_checkable
class NoiseSource(Protocol):
    """Standard normal numbers, one call per component and step."""

    def normal(self, name: str, like: Tensor, interval: Interval | None = None) -> Tensor:
        """Draw N(0, 1) with the shape (B, ...), dtype and device of ``like``.

        Parameters
        ----------
        name
            Component the numbers are for.
        like
            Tensor whose shape, dtype and device the draw takes.
        interval
            Shared time interval the draw drives, or None where no time passes (priors, correctors).
        """
        ...


class GlobalNoise:
    """Draws from torch's global generator: what you get when you ask for nothing."""

    def normal(self, name: str, like: Tensor, interval: Interval | None = None) -> Tensor:
        return torch.randn_like(like)


class SeededNoise:
    """One seed for the whole call; the draws of an object depend on its place in the batch.

    Parameters
    ----------
    seed
        Any integer.
    stream
        Independent sequences of one seed: samplers draw from another than priors do.
    """

    def __init__(self, seed: int, stream: int = 0) -> None:
        self.seed = int(seed)
        self.stream = int(stream)
        self._generators: dict[torch.device, torch.Generator] = {}

    def normal(self, name: str, like: Tensor, interval: Interval | None = None) -> Tensor:
        generator = self._generators.get(like.device)
        if generator is None:
            seed = (self.seed + self.stream * 0x9E3779B97F4A7C15) % 2**64
            generator = torch.Generator(like.device).manual_seed(seed)
            self._generators[like.device] = generator
        return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)


_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MIX = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)


def _shift(words: Tensor, bits: int) -> Tensor:
    """Logical right shift: the one of int64 copies the sign."""
    return (words >> bits) & ((1 << (64 - bits)) - 1)


def _mix(words: Tensor) -> Tensor:
    """The 64-bit finaliser of SplitMix64; int64 multiplication wraps, as it needs."""
    words = (words ^ _shift(words, 30)) * _MIX[0]
    words = (words ^ _shift(words, 27)) * _MIX[1]
    return words ^ _shift(words, 31)


def splitmix64(state: Tensor, counter: Tensor) -> Tensor:
    """The ``counter``-th 64 random bits after ``state`` (Steele, Lea and Flood, OOPSLA 2014).

    Any output is reached without the ones before it, so a whole batch of streams is one
    expression, a tenth of the kernels of the counter-based generators in use for this.

    Parameters
    ----------
    state, counter
        int64 tensors that broadcast together; counters from 1.
    """
    return _mix(state + counter * _GOLDEN)


class PerObjectNoise:
    """One seed per object: an object's draws depend neither on batch mates nor on batch size.

    Counter-based, so it is vectorised over the batch and needs no generator per object.
    Spaces lay their free coordinates out so that padding does not move them; a molecule's noise is
    therefore also the same in a batch that is padded further.

    Parameters
    ----------
    seeds
        One integer in [0, 2**63) per object, (B,).
    stream
        Independent sequences of one seed: samplers draw from another than priors do.
    """

    def __init__(self, seeds: Sequence[int] | Tensor, stream: int = 0) -> None:
        self.stream = int(stream)
        self.seeds = torch.as_tensor(seeds, dtype=torch.int64)
        if self.seeds.dim() != 1:
            raise StructDiffError(f"seeds must have shape (B,), got {tuple(self.seeds.shape)}")
        self._draws: dict[str, int] = {}
        self._keys: dict[tuple[str, torch.device], Tensor] = {}
        self._ahead: dict[str, tuple[int, Tensor]] = {}

    def normal(self, name: str, like: Tensor, interval: Interval | None = None) -> Tensor:
        if like.shape[0] != len(self.seeds):
            raise StructDiffError(
                f"{len(self.seeds)} seeds for a batch of {like.shape[0]}: pass one seed per object"
            )
        draw = self._draws.get(name, 0)
        self._draws[name] = draw + 1
        first, ahead = self._ahead.get(name, (0, like[None, :0]))
        ready = ahead.shape[1:] == like.shape and ahead.dtype == like.dtype
        if not (ready and ahead.device == like.device and first <= draw < first + len(ahead)):
            # Several draws at once: a small one costs its kernel launches, not its numbers.
            count = max(1, min(16, 2**20 // max(like.numel(), 1)))
            first, ahead = draw, self._normals(name, like, draw, count)
            self._ahead[name] = first, ahead
        return ahead[draw - first]

    def _normals(self, name: str, like: Tensor, draw: int, count: int) -> Tensor:
        """The draws from number ``draw`` on, (count, B, ...)."""
        size = math.prod(like.shape[1:])
        blocks = (size + 1) // 2  # two normals a block
        numbers = torch.arange(draw, draw + count, device=like.device)
        counter = torch.arange(1, 2 * blocks + 1, device=like.device)
        state = _mix(self._key(name, like.device) + numbers[:, None])  # (count, B)
        words = splitmix64(state[..., None], counter)
        # Box-Muller from 53-bit uniforms in (0, 1), rounded to the precision that is asked for.
        uniform = _shift(words, 11).double().add_(0.5).mul_(2.0**-53).unflatten(-1, (blocks, 2))
        if like.dtype != torch.float64:
            uniform = uniform.float()
        first, second = uniform.unbind(-1)
        radius, angle = torch.log(first).mul_(-2).sqrt_(), second * (2 * math.pi)
        pairs = torch.stack((torch.cos(angle).mul_(radius), torch.sin(angle).mul_(radius)), dim=-1)
        return pairs.flatten(-2)[..., :size].to(like.dtype).reshape(count, *like.shape)

    def _key(self, name: str, device: torch.device) -> Tensor:
        """Start of a component's streams per object, (B,)."""
        key = self._keys.get((name, device))
        if key is None:
            # A number of our own: Python's hash of a string changes between processes.
            number = sum(ord(c) * 257**i for i, c in enumerate(name)) + (self.stream << 60)
            component = (number * _MIX[0]) & 0x7FFFFFFFFFFFFFFF
            key = _mix(_mix(self.seeds.to(device)) ^ component)
            self._keys[name, device] = key
        return key


class ReplayNoise:
    """Hands out given draws in order: parity with a published trace is checked this way.

    Parameters
    ----------
    draws
        For every component, its draws in the order they are consumed, each of the component's own
        shape (B, ...); symmetric components take the upper triangle of what is given.

    Raises
    ------
    StructDiffError
        When a component asks for more draws than were given, or for another shape.
    """

    def __init__(self, draws: Mapping[str, Iterable[Tensor]]) -> None:
        self._draws = {name: iter(values) for name, values in draws.items()}

    takes_components = True
    """The draws already have the component's full shape; spaces do not unpack them."""

    def normal(self, name: str, like: Tensor, interval: Interval | None = None) -> Tensor:
        draw = next(self._draws.get(name, iter(())), None)
        if draw is None:
            raise StructDiffError(f"no draw is left for component {name!r}")
        if draw.shape != like.shape:
            raise StructDiffError(
                f"draw for {name!r} has shape {tuple(draw.shape)}, needed {tuple(like.shape)}"
            )
        return draw.to(like)


class BrownianNoise:
    """Increments of one fixed Brownian path, so that runs of different step sizes can be compared.

    Uses the Brownian interval of torchsde. Draws without an interval (priors) come from the seed.

    Parameters
    ----------
    seed
        Any integer; the path is a function of the seed only.
    """

    def __init__(self, seed: int) -> None:
        self.seed = int(seed)
        self._paths: dict[str, object] = {}
        self._plain = SeededNoise(seed)

    def normal(self, name: str, like: Tensor, interval: Interval | None = None) -> Tensor:
        if interval is None:
            return self._plain.normal(name, like)
        from torchsde import BrownianInterval

        path = self._paths.get(name)
        if path is None:
            entropy = self.seed + sum(ord(c) * 257**i for i, c in enumerate(name))
            path = self._paths[name] = BrownianInterval(
                t0=0.0,
                t1=1.0,
                size=tuple(like.shape),
                dtype=like.dtype,
                device=like.device,
                entropy=entropy % 2**31,
                # Without the dyadic tree the path would depend on which intervals are asked first.
                halfway_tree=True,
                tol=1e-6,
            )
        start, end = interval
        increment: Tensor = path(end, start)  # type: ignore[operator]
        return increment / math.sqrt(start - end)


def as_source(
    source: NoiseSource | int | Sequence[int] | Tensor | None, stream: int = 0
) -> NoiseSource:
    """Read None (global generator), a seed, or a seed per object (B,) as a noise source.

    ``stream`` keeps the draws of one seed apart: the same seed may be given to a prior and to the
    sampler that starts from it. A source that is already made is handed back as it is.
    """
    if source is None:
        return GlobalNoise()
    if isinstance(source, NoiseSource):
        return source
    if isinstance(source, int):
        return SeededNoise(source, stream)
    return PerObjectNoise(source, stream)
