"""Densities over two latents: what the encoder makes of the images, next to priors.

As the figure of S. Lin, R. Clark, "LaDDer: Latent Data Distribution Modelling with a Generative
Prior", arXiv 2009.00088: log densities on one window, x to the right and y up, and the components
of mixtures as ellipses of two deviations, with all weights as they are.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastlatent import plots
from fastlatent.files.subset import spread
from fastlatent.priors import (
    GaussianMixture,
    Hierarchical,
    Normal,
    Prior,
    VampPrior,
    aggregate_log_prob,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL.Image import Image

DRAWS = 10_000  # of t, by which the density of an inner VAE is averaged
SIDE = 180  # points of a window in each direction
PART = 1 << 13  # points computed at a time
LOWEST, HIGHEST = -14.0, 0.0  # nats, of the colours
OUTLINE = 100  # points of an ellipse
DOTS = 3000  # latents shown, at most


@dataclass(frozen=True)
class Panel:
    """A distribution over two latents."""

    title: str
    log_density: Callable[[Tensor], Tensor]  # (n, 2) -> (n,) nats
    dots: Tensor  # (n, 2) latents of images
    weights: Tensor  # (k,) of the components
    outlines: Tensor  # (k, m, 2), around two deviations of each component
    latent: str = "latent"  # what an axis shows


def aggregate_posterior(title: str, mean: Tensor, std: Tensor, dots: Tensor) -> Panel:
    """The mean of the posteriors N(mean, std^2) of images, (n, 2) each."""
    nothing = mean.new_zeros(0, OUTLINE, 2)
    return Panel(
        title,
        lambda points: aggregate_log_prob(points, mean, std),
        dots,
        mean.new_zeros(0),
        nothing,
    )


@torch.no_grad()
def prior_panel(title: str, prior: Prior, dots: Tensor, generator: torch.Generator) -> Panel:
    """A prior of two latents; of an inner VAE p(z) is averaged over draws of t."""
    if isinstance(prior, Hierarchical):
        mean, std = prior.conditional(prior.code.sample(DRAWS, generator=generator))
        return Panel(
            title,
            lambda points: aggregate_log_prob(points, mean, std),
            dots,
            *components(prior),
        )
    return Panel(title, prior.log_prob, dots, *components(prior))


@torch.no_grad()
def components(prior: Prior) -> tuple[Tensor, Tensor]:  # (k,), (k, m, 2)
    """Weights and outlines of a prior's components, of an inner VAE's as it lifts them.

    Raises ValueError for priors of other than two latents, at the bottom of a ladder too.
    """
    if isinstance(prior, Hierarchical):
        weights, outlines = components(prior.code)
        return weights, prior.conditional(outlines)[0]
    if prior.dim != 2:
        raise ValueError(f"components: the prior must be of 2 latents; this one is of {prior.dim}")
    turn = torch.arange(OUTLINE) * (2 * math.pi / (OUTLINE - 1))
    circle = 2 * torch.stack([turn.cos(), turn.sin()], 1)  # (m, 2)
    if isinstance(prior, GaussianMixture):
        weights, means = prior.log_weights.exp(), prior.means
        factors = torch.linalg.cholesky(prior.covariances())
    elif isinstance(prior, VampPrior):
        means, stds = prior.mixture()
        weights, factors = means.new_full((len(means),), 1 / len(means)), stds.diag_embed()
    elif isinstance(prior, Normal):
        weights, means, factors = torch.ones(1), torch.zeros(1, 2), torch.eye(2)[None]
        if prior.covariance != "identity":
            means, factors = prior.mean[None], prior.factor()[None]
    else:
        raise ValueError(f"components: {type(prior).__name__} has no components to draw")
    return weights, means[:, None] + circle.to(means) @ factors.mT


@torch.no_grad()
def densities(
    panels: Sequence[Panel], window: tuple[float, float, float, float], rows: int = 1
) -> "Image":
    """Log densities on a window (left, right, bottom, top), in nats, all in the same colours."""
    left, right, bottom, top = window
    side = max(right - left, top - bottom) / SIDE
    # A pixel shows the density at its middle.
    xs = torch.arange(left + side / 2, right, side)
    ys = torch.arange(bottom + side / 2, top, side)
    grid = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), 2)  # (y, x, 2)
    figure, axes = _axes(panels, rows)
    for place, panel in zip(axes, panels, strict=True):
        points = grid.flatten(0, 1).to(panel.dots.device)
        values = torch.cat([panel.log_density(part) for part in points.split(PART)])
        shown = place.imshow(
            values.reshape(grid.shape[:2]).cpu().numpy(),
            origin="lower",
            extent=window,
            vmin=LOWEST,
            vmax=HIGHEST,
            cmap="viridis",
            interpolation="nearest",
        )
    figure.colorbar(shown, ax=axes, label="log density (nats)", shrink=0.9, pad=0.01)
    return plots.drawn(figure)


def circles(
    panels: Sequence[Panel], window: tuple[float, float, float, float], rows: int = 1
) -> "Image":
    """Latents as dots, components as outlines; the wider the line, the greater the weight."""
    figure, axes = _axes(panels, rows)
    for place, panel in zip(axes, panels, strict=True):
        x, y = panel.dots[spread(len(panel.dots), DOTS)].cpu().unbind(1)
        place.scatter(x, y, s=2, color="0.55", alpha=0.5, linewidths=0, rasterized=True)
        heaviest = panel.weights.max() if len(panel.weights) else 1
        for weight, outline in zip(panel.weights, panel.outlines.cpu(), strict=True):
            width = 0.4 + 2.6 * float(weight / heaviest)
            place.plot(*outline.T, color="tab:red", lw=width, alpha=0.8)
        place.set(xlim=window[:2], ylim=window[2:], box_aspect=1)
    return plots.drawn(figure)


def window_of(dots: Sequence[Tensor], margin: float = 0.25) -> tuple[float, float, float, float]:
    """A square around nearly all latents (n, 2) of each, centred where the middle of them is."""
    joined = torch.cat([part.cpu() for part in dots])
    low, high = joined.quantile(torch.tensor([0.002, 0.998]).to(joined), dim=0)
    middle, half = (low + high) / 2, float((high - low).max()) * (0.5 + margin)
    x, y = middle.tolist()
    return x - half, x + half, y - half, y + half


def _axes(panels: Sequence[Panel], rows: int) -> "tuple[Figure, list[Axes]]":
    columns = -(-len(panels) // rows)
    # Panels are square, below a title each, beside a scale of colours where there is one.
    lines = max(panel.title.count("\n") for panel in panels)
    figure = plots.figure(2.5 * columns + 1, (2.75 + 0.2 * lines) * rows + 0.4)
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
    for place, panel in zip(axes, panels, strict=True):
        place.set_title(panel.title, fontsize=10)
        place.tick_params(labelsize=8)
        edge = place.get_subplotspec()
        assert edge is not None
        if edge.is_last_row():
            place.set_xlabel(f"first {panel.latent}", fontsize=9)
        if edge.is_first_col():
            place.set_ylabel(f"second {panel.latent}", fontsize=9)
    return figure, list(axes)
