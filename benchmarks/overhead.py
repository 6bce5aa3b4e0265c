"""What a sampling loop costs beyond its network: ours, diffusers' and k-diffusion's.

The same toy network under EDM preconditioning, the same number of evaluations, in one process, in
turn, one thread. The network's own time, measured alone in the same process, is subtracted. With
``--k-diffusion FOLDER`` (a clone of the published repository) its functions are timed too.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from _record import record
from torch import Tensor, nn

from structdiff import EDM, Denoiser, State, System
from structdiff.samplers import Karras, get_sampler

STEPS = 40
SHAPES = {"64 x 32 numbers": (64, 32), "16 x 3 x 32 x 32 numbers": (16, 3, 32, 32)}
#: name of the method: (our sampler, diffusers' scheduler, k-diffusion's function)
METHODS = {
    "Euler / DDIM": ("ddim", "EDMEulerScheduler", "sample_euler"),
    "DPM-Solver++ 2M": ("dpm++", "EDMDPMSolverMultistepScheduler", "sample_dpmpp_2m"),
    "Heun": ("heun", "HeunDiscreteScheduler", "sample_heun"),
    "DPM-Solver++ 2M SDE": ("dpm++sde", None, "sample_dpmpp_2m_sde"),
}


class Toy(nn.Module):
    """As little network as looks at both of its inputs."""

    def forward(self, x: Tensor, noise_level: Tensor) -> Tensor:
        """(B, ...), (B,) -> (B, ...)."""
        return x * noise_level.reshape(-1, *[1] * (x.dim() - 1))


class Joint(nn.Module):
    """The same network as ours are called."""

    def __init__(self, inner: Toy) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: State, log_snr: dict[str, Tensor], condition: Any = None) -> State:
        """One component."""
        return x.replace(x=self.inner(x["x"], log_snr["x"]))


def ours(name: str, toy: Toy, x: Tensor) -> Callable[[], None]:
    """Our loop; its times and coefficients are part of what is timed."""
    system = System(EDM())
    denoiser = Denoiser(Joint(toy), system, prediction="edm", data_std=0.5)
    sampler = get_sampler(name, STEPS, grid=Karras())

    def run() -> None:
        sampler(denoiser, x, source=0)

    return run


def diffusers_loop(name: str, toy: Toy, x: Tensor) -> Callable[[], None]:
    """The loop of the package's documentation around one scheduler."""
    import diffusers

    kind = getattr(diffusers, name)
    if name.startswith("EDM"):
        scheduler = kind(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5, final_sigmas_type="zero")
    else:
        scheduler = kind(prediction_type="sample", use_karras_sigmas=True)
    batch = len(x)

    def network(scaled: Tensor, sample: Tensor, i: int, t: Tensor) -> Tensor:
        out = toy(scaled, t.expand(batch))
        if name.startswith("EDM"):  # these schedulers read the output themselves
            return out
        _, skip, scale = scalings(scheduler.sigmas[i].expand(batch), x.dim())
        return out * scale + sample * skip

    @torch.no_grad()
    def run() -> None:
        scheduler.set_timesteps(STEPS)
        sample = x
        for i, t in enumerate(scheduler.timesteps):
            scaled = scheduler.scale_model_input(sample, t)
            sample = scheduler.step(network(scaled, sample, i, t), t, sample).prev_sample

    return run


def scalings(sigma: Tensor, dims: int, data_std: float = 0.5) -> tuple[Tensor, Tensor, Tensor]:
    """EDM's c_in, c_skip and c_out of sigma (B,), in as few operations as published code's."""
    variance, wide = data_std**2, (...,) + (None,) * (dims - 1)
    total = sigma**2 + variance
    root = total**-0.5
    return root[wide], (variance / total)[wide], (sigma * data_std * root)[wide]


def k_diffusion_module(folder: Path) -> types.ModuleType:
    """``sampling.py`` and the preconditioner, without what the rest of the package imports."""
    package = types.ModuleType("k_diffusion")
    package.__path__ = [str(folder / "k_diffusion")]
    sys.modules["k_diffusion"] = package
    utils = types.ModuleType("k_diffusion.utils")
    utils.append_dims = lambda v, dims: v[(...,) + (None,) * (dims - v.ndim)]  # type: ignore[attr-defined]
    sys.modules["k_diffusion.utils"] = utils
    package.utils = utils  # type: ignore[attr-defined]
    spec = importlib.util.spec_from_file_location(
        "k_diffusion.sampling", folder / "k_diffusion" / "sampling.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Preconditioned(nn.Module):
    """EDM's preconditioning around the toy, as k-diffusion has it."""

    def __init__(self, toy: Toy) -> None:
        super().__init__()
        self.toy = toy

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """E[x0 | x]."""
        c_in, skip, scale = scalings(sigma, x.dim())
        return self.toy(x * c_in, sigma) * scale + x * skip


def k_diffusion_loop(
    module: types.ModuleType, name: str, toy: Toy, x: Tensor
) -> Callable[[], None]:
    """One of its functions, the noise (where any) drawn as cheaply as ours."""
    model = Preconditioned(toy)
    options: dict[str, Any] = {"disable": True}
    if name.endswith("sde"):
        options["noise_sampler"] = lambda sigma, following: torch.randn_like(x)
    function = getattr(module, name)

    @torch.no_grad()
    def run() -> None:
        sigmas = module.get_sigmas_karras(STEPS, 0.002, 80.0)
        function(model, x, sigmas, **options)

    return run


def per_evaluation(run: Callable[[], None], evaluations: int, rounds: int) -> list[float]:
    """Microseconds of one evaluation's share of the whole run, per round."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) / evaluations * 1e6)
    return times


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--k-diffusion", type=Path)
    parser.add_argument("--rounds", type=int, default=60)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    toy = Toy()
    k_diffusion = k_diffusion_module(arguments.k_diffusion) if arguments.k_diffusion else None
    rows = []
    for label, shape in SHAPES.items():
        x = torch.randn(shape) * 80
        level = torch.full((shape[0],), 0.3)
        for method, (own, scheduler, function) in METHODS.items():
            evaluations = 2 * (STEPS - 1) + 1 if own == "heun" else STEPS
            loops: dict[str, Callable[[], None]] = {"ours": ours(own, toy, x)}
            if scheduler is not None:
                loops["diffusers"] = diffusers_loop(scheduler, toy, x)
            if k_diffusion is not None:
                loops["k-diffusion"] = k_diffusion_loop(k_diffusion, function, toy, x)

            def alone(x: Tensor = x, level: Tensor = level) -> None:
                toy(x, level)

            times: dict[str, list[float]] = {k: [] for k in [*loops, "network"]}
            for _ in range(arguments.rounds):  # in turn: a noisy neighbour meets them all
                for name, loop in loops.items():
                    times[name] += per_evaluation(loop, evaluations, 1)
                times["network"].append(min(per_evaluation(alone, 1, evaluations)))
            best = {k: statistics.median(v) for k, v in times.items()}
            beyond = {k: best[k] - best["network"] for k in loops}
            others = [v for k, v in beyond.items() if k != "ours"]
            rows.append(
                {
                    "state": label,
                    "method": method,
                    "network alone, us": round(best["network"], 1),
                    **{
                        f"{k}, us": round(beyond[k], 1) if k in beyond else "-"
                        for k in ("ours", "diffusers", "k-diffusion")
                    },
                    "ours / faster": round(beyond["ours"] / min(others), 2) if others else "-",
                }
            )
    record(
        "overhead",
        "Cost per evaluation beyond the network",
        pd.DataFrame(rows),
        "Median over rounds in turn, microseconds for each network evaluation, the network's own "
        "time subtracted; preconditioning, grids and coefficients included.",
    )


if __name__ == "__main__":
    main()
