"""TSDiff as published, for timing beside ours: its backbone from a clone, its sampling loop.

Nothing of the clone is kept or changed on disk. Two things are replaced while it runs:

- ``pytorch_lightning``, of which it needs one function, is Lightning under its new name;
- the sum behind its S4 kernel, where neither pykeops nor its CUDA extension is installed. The
  clone's own fallback leaves out the conjugate half of the states, so that its kernel is wrong; the
  replacement adds it, either by the same sum over twice the states or by matrix products.

It needs einops and opt_einsum.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from structdiff.errors import StructDiffError
from structdiff.processes import DiscreteVP

Cauchy = Literal["sum", "products"]
Noise = Callable[[Tensor, int], Tensor]
"""Predicted noise of windows (B, L, C) at an index of the chain."""
CHAIN = DiscreteVP(100, 1e-4, 0.1, prior_scale=1.0)


# --- the clone's backbone -----------------------------------------------------------------------
def backbone(clone: Path, channels: int, cauchy: Cauchy) -> torch.nn.Module:
    """The published backbone (hidden 64, 3 blocks, S4 of 128 states), ``(x, index) -> noise``.

    Raises
    ------
    StructDiffError
        If the clone, or a library that it needs, is not there.
    """
    if not (clone / "src/uncond_ts_diff/arch/s4.py").is_file():
        raise StructDiffError(f"{clone} holds no src/uncond_ts_diff: give the clone's own folder")
    sys.path.insert(0, str(clone / "src"))
    try:
        sys.modules.setdefault("pytorch_lightning", importlib.import_module("lightning.pytorch"))
        sys.modules.setdefault(
            "pytorch_lightning.utilities", importlib.import_module("lightning.pytorch.utilities")
        )
        s4: Any = importlib.import_module("uncond_ts_diff.arch.s4")
        made: Any = importlib.import_module("uncond_ts_diff.arch.backbones")
    except ImportError as error:
        raise StructDiffError(
            f"the published code cannot be imported ({error}): pip install einops opt_einsum"
        ) from error
    finally:
        sys.path.remove(str(clone / "src"))
    if hasattr(s4, "cauchy_naive"):
        s4.cauchy_naive = {"sum": _cauchy_sum, "products": _cauchy_products}[cauchy]
    network: torch.nn.Module = made.BackboneModel(
        input_dim=channels,
        hidden_dim=64,
        output_dim=channels,
        step_emb=128,
        num_residual_blocks=3,
        num_features=8,  # of an encoder that its runs build and never call
        init_skip=True,
    )
    return network


def _cauchy_sum(v: Tensor, z: Tensor, w: Tensor) -> Tensor:
    """sum_n v_n / (z - w_n) + conj(v_n) / (z - conj(w_n)), as the clone sums the first half."""
    both_v, both_w = torch.cat((v, v.conj()), -1), torch.cat((w, w.conj()), -1)
    return (both_v.unsqueeze(-1) / (z.unsqueeze(-2) - both_w.unsqueeze(-1))).sum(-2)


def _cauchy_products(v: Tensor, z: Tensor, w: Tensor) -> Tensor:
    """The same as 2 (z sum Re(v) / q - sum Re(v conj(w)) / q), q = z^2 - 2 z Re(w) + |w|^2."""
    inverse = 1 / (z**2 - 2 * z * w.real.unsqueeze(-1) + w.abs().square().unsqueeze(-1))  # H N L
    heads = torch.stack((v.real, (v * w.conj()).real)).flatten(1, -3)  # 2 M H N
    left = heads.permute(2, 0, 1, 3).flatten(1, 2)  # H 2M N
    out = torch.complex(left @ inverse.real, left @ inverse.imag).unflatten(1, (2, -1))
    first, second = out.unbind(1)  # H M L
    return (2 * (z * first - second)).transpose(0, 1).unflatten(0, v.shape[:-2])


# --- the published loop ---------------------------------------------------------------------------
@torch.no_grad()
def quantile_guidance(
    noise: Noise, given: Tensor, observed: Tensor, levels: Tensor, scale: float, steps: int = 100
) -> Tensor:
    """DDPM with quantile self-guidance in the order of the published code.

    Each of the 100 steps draws x' from the unguided step, then moves it by the gradient of the
    energy at x' and the same index: two forward passes and one backward pass.

    Parameters
    ----------
    noise
        The network.
    given, observed
        Scaled windows (B, L, C) and which entries are known.
    levels
        Quantile level of each window, (B,).
    scale
        s.
    steps
        How many steps to take; fewer than 100 only for timing.
    """
    time = torch.arange(1, CHAIN.links + 1, dtype=torch.float64) / CHAIN.links
    kept = (2 * CHAIN.log_alpha(time)).exp()
    before = torch.cat((torch.ones(1, dtype=torch.float64), kept[:-1]))
    beta = 1 - kept / before
    variance = beta * (1 - before) / (1 - kept)
    kappa = levels.to(given.dtype)[:, None, None]
    x = torch.randn_like(given)
    for i in reversed(range(CHAIN.links - steps, CHAIN.links)):
        drift = float(beta[i] / (1 - kept[i]).sqrt())
        x = (x - drift * noise(x, i)) / float((1 - beta[i]).sqrt())
        if i > 0:
            x = x + float(variance[i].sqrt()) * torch.randn_like(x)
        with torch.enable_grad():
            point = x.detach().requires_grad_(True)
            clean = (point - float((1 - kept[i]).sqrt()) * noise(point, i)) / float(kept[i].sqrt())
            error = given - clean
            energy = torch.maximum(kappa * error, (kappa - 1) * error)[observed].sum()
            slope = torch.autograd.grad(energy, point)[0]
        x = x - scale * float(variance[i]) * slope
    return x
