r"""The forward process of a pose: a cosine chain for lengths and one for directions.

.. math:: x_t = \sqrt{\bar\alpha_t}\,x_0 + \sqrt{1 - \bar\alpha_t}\,\epsilon, \qquad
          \bar\alpha_t = f(t + 1) / f(0), \quad
          f(u) = \cos^2\left(\frac{u/T + s}{1 + s}\,\frac{\pi}{2}\right)

with T = 1000, s = 0.008 and independent noise for the two components, which share their time
(DDHPose, arXiv 2403.04444, sec. 3.2; Nichol and Dhariwal 2021).
"""

from __future__ import annotations

import torch
from torch import Tensor

from structdiff.arguments import whole
from structdiff.errors import StructDiffError
from structdiff.pose.kinematics import DIRECTION, LENGTH
from structdiff.processes import DiscreteVP, System

LINKS = 1000


def pose_system(process: DiscreteVP | None = None) -> System:
    """The system ``{length, direction}``.

    Parameters
    ----------
    process
        Of both components; None is the cosine chain of 1000 links, started from unit noise.
    """
    chain = cosine_chain() if process is None else process
    return System({LENGTH: chain, DIRECTION: chain})


def cosine_chain(links: int = LINKS) -> DiscreteVP:
    """The cosine chain of DDHPose, whose samples start from unit noise."""
    return DiscreteVP(links, schedule="cosine", prior_scale=1.0)


def published_indices(steps: int, links: int = LINKS) -> list[int]:
    """Indices that DDHPose's sampler visits, from the last down, and -1 for the data.

    ``linspace(-1, links - 1, steps + 1)`` cut to integers: five steps visit 999, 799, 599, 399 and
    199 (D3DP and DDHPose, sec. 2.5 of their code).

    Raises
    ------
    StructDiffError
        If there are more steps than links.
    """
    count = whole("steps", steps)
    if count > links:
        raise StructDiffError(f"a chain of {links} links has no {count} steps: choose fewer")
    spaced = torch.linspace(-1, links - 1, count + 1, dtype=torch.float64)
    return [int(v) for v in spaced.flip(0)]  # int() cuts towards 0, and -1 is exact


def published_grid(steps: int, links: int = LINKS) -> Tensor:
    """The same as times of the chain, float64 (steps,): the grid for a sampler of that length."""
    indices = published_indices(steps, links)[:-1]
    return (torch.tensor(indices, dtype=torch.float64) + 1) / links
