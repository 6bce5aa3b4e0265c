"""Pictures of diagnostics: every result draws itself on a matplotlib Axes and returns it.

Colours tell apart for every kind of sight (Okabe and Ito 2008); thin grey lines are what a perfect
model would show.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from structdiff.diagnostics.field import optional

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from structdiff.diagnostics.conservativity import Asymmetry
    from structdiff.diagnostics.fokker_planck import FokkerPlanckMap
    from structdiff.diagnostics.gap import Gap, GaussianGap
    from structdiff.diagnostics.gauge import GaugeSplit
    from structdiff.diagnostics.intrinsic_dimension import IntrinsicDimension
    from structdiff.diagnostics.loops import LoopIntegral, PathTest
    from structdiff.diagnostics.spectra import FlowSpectrum, NormalBundle

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#8c8c8c"
LEVEL = r"half log-SNR $\lambda$ (noise $\leftarrow\;\rightarrow$ data)"
NOISE = r"noise level $\rho = \sigma/\alpha$"


def _axes(ax: Axes | None) -> Axes:
    """The given Axes, or those of a new figure."""
    if ax is not None:
        return ax
    pyplot = optional("matplotlib.pyplot", "matplotlib", "plots")
    _, made = pyplot.subplots(figsize=(5.2, 3.6), layout="constrained")
    return made


def _array(x: Tensor) -> Any:
    return x.detach().cpu().double().numpy()


def _finish(ax: Axes, x: str, y: str, title: str) -> Axes:
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    ax.set_title(title, fontsize="medium")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def asymmetry(result: Asymmetry, ax: Axes | None = None) -> Axes:
    """A against the noise level; 0 is a gradient, sqrt 2 a random matrix, 2 a rotation."""
    ax = _axes(ax)
    ax.errorbar(
        _array(result.half_log_snr),
        _array(result.value),
        _array(result.standard_error),
        color=BLUE,
        marker="o",
        markersize=4,
        capsize=2,
    )
    ax.axhline(np.sqrt(2), color=GREY, linewidth=0.8, linestyle=":")
    ax.set_ylim(bottom=0)
    if float(result.value.max()) < 1:
        ax.set_ylim(top=max(1.15 * float((result.value + result.standard_error).max()), 1e-6))
    else:
        ax.annotate(
            "random matrix",
            (0.01, np.sqrt(2)),
            xycoords=("axes fraction", "data"),
            fontsize="small",
            color=GREY,
            va="bottom",
        )
    title = f"Asymmetry of the score's Jacobian, {result.n} points a level"
    return _finish(ax, LEVEL, r"$A = |J - J^\top|_F\,/\,|J|_F$", title)


def loop_integral(result: LoopIntegral, ax: Axes | None = None) -> Axes:
    """Relative loop integral against the loop's size; constant over it means a vortex."""
    ax = _axes(ax)
    order = result.extent.argsort()
    ax.errorbar(
        _array(result.extent[order]),
        _array(result.value[order]),
        _array(torch.nan_to_num(result.standard_error[order])),
        color=BLUE,
        marker="o",
        markersize=4,
        capsize=2,
    )
    ax.set_ylim(bottom=0)
    planes = result.integral.shape[1]
    title = (
        f"Loop integral at $\\lambda$ = {result.half_log_snr:.2g}, "
        f"{result.n} points, {planes} planes"
    )
    return _finish(ax, "size of the loop", r"$|\oint s\cdot dl|\;/\oint |s|\,dl$", title)


def path_test(result: PathTest, ax: Axes | None = None) -> Axes:
    """Log-density ratios: along two paths, against the probability flow's."""
    ax = _axes(ax)
    reference = _array(result.likelihood)
    low, high = reference.min(), reference.max()
    ax.plot([low, high], [low, high], color=GREY, linewidth=0.8)
    ax.plot(reference, _array(result.straight), "o", color=BLUE, markersize=4, label="straight")
    ax.plot(reference, _array(result.corner), "x", color=ORANGE, markersize=5, label="corner")
    ax.legend(frameon=False)
    title = (
        f"Log-density ratios at $\\lambda$ = {result.half_log_snr:.2g}: "
        f"largest disagreement {result.value:.2g} on average"
    )
    return _finish(ax, "by the probability flow (nats)", "along a path (nats)", title)


def gauge_split(result: GaugeSplit, ax: Axes | None = None) -> Axes:
    """Mean squares of the score, its gradient part and the remainder."""
    ax = _axes(ax)
    parts = (result.square_score, result.square_gradient, result.square_remainder)
    heights = [float(p.mean()) for p in parts]
    errors = [float(p.std()) / result.n**0.5 for p in parts]
    names = [r"score $s$", r"gradient $\nabla\phi$", r"remainder $r$"]
    bars = ax.bar(names, heights, yerr=errors, color=[GREY, BLUE, ORANGE], capsize=3, width=0.6)
    ax.bar_label(bars, [f"{h:.3g}" for h in heights], padding=3, fontsize="small")
    ax.margins(y=0.15)
    title = (
        f"Gauge split at $\\lambda$ = {result.half_log_snr:.2g}: share of the remainder "
        f"{100 * result.value:.2g} %"
    )
    return _finish(ax, "", "mean square", title)


def intrinsic_dimension(result: IntrinsicDimension, ax: Axes | None = None) -> Axes:
    """Estimates against the noise level: points thin, their mean bold, the plateau dashed."""
    ax = _axes(ax)
    rho, estimates = _array(result.rho), _array(result.dimension)
    shown = estimates[:, : min(result.n, 200)]
    ax.plot(rho, shown, color=BLUE, alpha=min(0.5, 8 / shown.shape[1] + 0.03), linewidth=0.7)
    ax.plot(rho, _array(result.value), color=BLUE, marker="o", markersize=4, label="mean")
    if len(rho) >= 3:
        plateau = float(result.plateau()[0].mean())
        ax.axhline(plateau, color=ORANGE, linestyle="--", label=f"plateau {plateau:.2f}")
    ax.set_xscale("log")
    largest = float(result.size.max())
    ax.set_ylim(min(0.0, float(shown.min())) - 0.05 * largest, max(largest, shown.max()) * 1.05)
    ax.axhline(largest, color=GREY, linewidth=0.8, linestyle=":")
    ax.legend(frameon=False)
    return _finish(ax, NOISE, "dimension", f"Intrinsic dimension, {result.n} points")


def normal_bundle(result: NormalBundle, ax: Axes | None = None) -> Axes:
    """Spectra of the scores around every point; normal directions lie near 1."""
    ax = _axes(ax)
    spectra = _array(result.singular_values)[:200]
    ranks = np.arange(1, spectra.shape[1] + 1)
    ax.plot(ranks, np.where(spectra > 0, spectra, np.nan).T, ".-", color=BLUE, alpha=0.3)
    normals = spectra.shape[1] - result.value
    ax.axvline(normals + 0.5, color=ORANGE, linestyle="--")
    ax.set_yscale("log")
    ax.set_xticks(ranks if len(ranks) <= 20 else ranks[:: len(ranks) // 10])
    title = f"Scores around {result.n} points at $\\rho$ = {result.rho:g}: k = {result.value:.3g}"
    return _finish(ax, "rank", r"singular value (units of noise)", title)


def flow_spectrum(result: FlowSpectrum, ax: Axes | None = None) -> Axes:
    """Singular values of the flow's Jacobian against the noise level; slopes at the end."""
    ax = _axes(ax)
    rho = _array(result.rho)
    values = _array(result.singular_values.clamp(min=1e-30).log().mean(1).exp())  # (L, columns)
    slopes = _array(result.slopes.mean(0))
    for column, slope in zip(values.T, slopes, strict=True):
        colour = BLUE if slope < 0.5 else ORANGE
        ax.plot(rho, column, color=colour, linewidth=1.3)
    labels = _spread_labels(
        values[-1], [f"{round(slope, 2) + 0.0:.2f}" for slope in slopes.tolist()]
    )
    for height, text in labels:
        ax.annotate(
            text,
            (rho[-1], height),
            xytext=(-3, 0),
            textcoords="offset points",
            ha="right",
            va="center",
            fontsize="small",
        )
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlim(rho[-1] / 12, rho[0])
    title = f"Flow Jacobian, {result.n} points: k = {result.value:.3g} (slopes at the left)"
    return _finish(ax, NOISE, "singular value", title)


def _spread_labels(heights: Any, texts: list[str]) -> list[tuple[float, str]]:
    """One label per group of lines that end close to each other, at the group's middle."""
    groups: list[list[tuple[float, str]]] = []
    for height, text in sorted(zip(heights.tolist(), texts, strict=True), reverse=True):
        if groups and groups[-1][-1][0] < 2 * height:
            groups[-1].append((height, text))
        else:
            groups.append([(height, text)])
    return [
        (float(np.exp(np.mean([np.log(h) for h, _ in g]))), ", ".join(t for _, t in g))
        for g in groups
    ]


def fokker_planck_map(
    result: FokkerPlanckMap, ax: Axes | None = None, coordinate: int = 0, bins: int = 24
) -> Axes:
    """Root mean square residual over a coordinate of x and the noise level, as a heat map."""
    ax = _axes(ax)
    colors = optional("matplotlib.colors", "matplotlib", "plots")
    x = _array(result.points[:, :, coordinate])
    square = _array(result.residual) ** 2
    edges = np.linspace(x.min(), x.max(), bins + 1)
    table = np.full((bins, len(x)), np.nan)
    for level, (row, values) in enumerate(zip(x, square, strict=True)):
        place = np.clip(np.digitize(row, edges) - 1, 0, bins - 1)
        count = np.bincount(place, minlength=bins)
        total = np.bincount(place, values, minlength=bins)
        table[count > 0, level] = np.sqrt(total[count > 0] / count[count > 0])
    levels = _array(result.half_log_snr)
    positive = table[np.isfinite(table) & (table > 0)]
    norm = colors.LogNorm(positive.min(), positive.max()) if len(positive) else None
    mesh = ax.pcolormesh(_edges(levels), edges, table, norm=norm, cmap="viridis")
    name = "|R|" if result.form == "log_density" else r"$|\nabla R|$ per coordinate"
    ax.figure.colorbar(mesh, ax=ax, label=f"rms {name} (per unit of time)")
    title = f"Fokker-Planck residual, {result.n} points a level"
    return _finish(ax, LEVEL, f"coordinate {coordinate} of x", title)


def _edges(centres: Any) -> Any:
    """Edges of bins around sorted or single centres."""
    if len(centres) == 1:
        return np.array([centres[0] - 0.5, centres[0] + 0.5])
    middle = (centres[1:] + centres[:-1]) / 2
    return np.concatenate([[2 * centres[0] - middle[0]], middle, [2 * centres[-1] - middle[-1]]])


def gap(result: Gap, ax: Axes | None = None) -> Axes:
    """The samples of ODE and SDE (and the data), with W2 between them."""
    ax = _axes(ax)
    clouds = [("SDE", result.sde, ORANGE), ("ODE", result.ode, BLUE)]
    if result.data is not None:
        clouds.insert(0, ("data", result.data, GREY))
    if result.ode.shape[1] == 1:
        everything = np.concatenate([_array(c[1])[:, 0] for c in clouds])
        edges = np.histogram_bin_edges(everything, 80).tolist()
        for name, points, colour in clouds:
            ax.hist(
                _array(points)[:, 0],
                edges,
                density=True,
                histtype="step",
                color=colour,
                label=name,
                linewidth=1.3,
            )
    else:
        for name, points, colour in clouds:
            shown = _array(points[:3000, :2])
            ax.plot(
                shown[:, 0], shown[:, 1], ".", markersize=2, alpha=0.4, color=colour, label=name
            )
        ax.set_aspect("equal", adjustable="datalim")
    legend = ax.legend(frameon=False)
    for handle in legend.legend_handles:
        if handle is not None:
            handle.set_alpha(1.0)
    title = (
        f"$W_2$(ODE, SDE) = {result.value:.3g} ± {result.standard_error:.1g} ({result.kind}, "
        f"n = {result.n})"
    )
    if result.ode_data is not None and result.sde_data is not None:
        title += f"\nto the data: ODE {result.ode_data.value:.3g}, SDE {result.sde_data.value:.3g}"
    plane = result.ode.shape[1] > 1
    return _finish(
        ax, "coordinate 0" if plane else "x", "coordinate 1" if plane else "density", title
    )


def gaussian_gap(result: GaussianGap, ax: Axes | None = None) -> Axes:
    """Mean and one standard deviation of both laws, coordinate by coordinate."""
    ax = _axes(ax)
    place = np.arange(len(result.ode_mean))
    for shift, name, mean, covariance, colour in (
        (-0.1, "ODE", result.ode_mean, result.ode_covariance, BLUE),
        (0.1, "SDE", result.sde_mean, result.sde_covariance, ORANGE),
    ):
        ax.errorbar(
            place + shift,
            _array(mean),
            _array(covariance.diagonal().sqrt()),
            fmt="o",
            color=colour,
            capsize=3,
            label=name,
        )
    ax.set_xticks(place)
    ax.set_xlim(-0.6, len(place) - 0.4)
    ax.legend(frameon=False)
    title = f"$W_2$(ODE, SDE) = {result.value:.4g} by moments"
    return _finish(ax, "free coordinate", "mean ± standard deviation", title)
