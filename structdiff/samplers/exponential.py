r"""First-order exponential steps: DDIM, DDPM, and the exponential Ito step.

All keep the model's data prediction fixed over the step and treat the rest exactly. With
:math:`h = \lambda_u - \lambda_t` and :math:`\tau = 1 - e^{-2h}`,

.. math:: x_u = \alpha_u x_0 + \sigma_u \sqrt{1 - \eta^2 \tau}\,\frac{x_t - \alpha_t x_0}{\sigma_t}
          + \eta\,\sigma_u \sqrt{\tau}\,z.
"""

from __future__ import annotations

import math
from typing import ClassVar

from structdiff.errors import StructDiffError
from structdiff.samplers.base import LinearSampler, Schedule, Update
from structdiff.samplers.grids import Grid, GridLike, UniformTime
from structdiff.samplers.registry import register


class DDPM(LinearSampler):
    r"""Ancestral sampling (Ho et al. 2020; Song et al. 2021, DDIM eq. 12), on any process.

    Parameters
    ----------
    steps, grid, denoise, progress
        See :class:`~structdiff.samplers.base.Sampler`.
    eta
        :math:`\eta` in [0, 1]: 1 draws from the posterior :math:`q(x_u | x_t, x_0)`, 0 is DDIM.
    """

    default_grid: ClassVar[Grid] = UniformTime(power=2.0)

    def __init__(
        self,
        steps: int,
        grid: GridLike | None = None,
        *,
        eta: float = 1.0,
        denoise: bool = True,
        progress: bool = False,
    ) -> None:
        super().__init__(steps, grid, denoise=denoise, progress=progress)
        if not 0 <= eta <= 1:
            raise StructDiffError(f"eta of DDPM must lie in [0, 1], got {eta}")
        self.eta = float(eta)

    def coefficients(self, schedule: Schedule, i: int, depth: int) -> Update:
        h = schedule.log_snr[i + 1] - schedule.log_snr[i]
        noise = self.eta**2 * -math.expm1(-2 * h)  # eta^2 tau
        keep = math.sqrt(1 - noise)
        # 1 - keep e^{-h}, without the cancellation of small steps
        data = -math.expm1(-h) + math.exp(-h) * noise / (1 + keep)
        return Update(
            keep * schedule.sigma[i + 1] / schedule.sigma[i],
            (schedule.alpha[i + 1] * data,),
            schedule.sigma[i + 1] * math.sqrt(noise),
        )


class DDIM(DDPM):
    """The deterministic member, exponential Euler of the probability flow (Song et al. 2021).

    Identical to DPM-Solver++ of order 1 and to DEIS of order 0.
    """

    def __init__(
        self,
        steps: int,
        grid: GridLike | None = None,
        *,
        denoise: bool = True,
        progress: bool = False,
    ) -> None:
        super().__init__(steps, grid, eta=0.0, denoise=denoise, progress=progress)


class ExponentialIto(LinearSampler):
    r"""Exponential step of the reverse SDE with noise :math:`\eta g` (any :math:`\eta \geq 0`).

    .. math:: x_u = \frac{\alpha_u}{\alpha_t} x_t + (1 + \eta^2) \left(\frac{\sigma_u}{\sigma_t} -
              \frac{\alpha_u}{\alpha_t}\right) (x_t - \alpha_t x_0) + \eta\,\alpha_u
              \sqrt{\rho_t^2 - \rho_u^2}\,z

    The best plain first-order step of the SDE: its weak error is a tenth of Euler-Maruyama's.

    Parameters
    ----------
    steps, grid, denoise, progress
        See :class:`~structdiff.samplers.base.Sampler`.
    eta
        Noise scale; 1 is the reverse SDE of Anderson, 0 the probability flow (DDIM).
    """

    default_grid: ClassVar[Grid] = UniformTime(power=2.0)

    def __init__(
        self,
        steps: int,
        grid: GridLike | None = None,
        *,
        eta: float = 1.0,
        denoise: bool = True,
        progress: bool = False,
    ) -> None:
        super().__init__(steps, grid, denoise=denoise, progress=progress)
        if not eta >= 0:
            raise StructDiffError(f"eta must not be negative, got {eta}")
        self.eta = float(eta)

    def coefficients(self, schedule: Schedule, i: int, depth: int) -> Update:
        h = schedule.log_snr[i + 1] - schedule.log_snr[i]
        ratio = math.exp(schedule.log_alpha[i + 1] - schedule.log_alpha[i])
        pull = (1 + self.eta**2) * ratio * math.expm1(-h)
        return Update(
            ratio + pull,
            (-pull * schedule.alpha[i],),
            self.eta * schedule.alpha[i + 1] * schedule.rho(i) * math.sqrt(-math.expm1(-2 * h)),
        )


register("ddim", DDIM, order=1, nfe_per_step=1, stochastic=False, source="Song et al. 2021 (DDIM)")
register("ddpm", DDPM, order=1, nfe_per_step=1, stochastic=True, source="Ho et al. 2020")
register(
    "exponential-ito",
    ExponentialIto,
    order=1,
    nfe_per_step=1,
    stochastic=True,
    source="exponential Euler-Maruyama of the reverse SDE",
)
