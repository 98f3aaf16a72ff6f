"""Pictures of likely paths: what the search did, and paths over the density."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastlatent.paths import LikelihoodPaths
from fastlatent.paths.objective import LogProb
from fastlatent.plots import drawn, figure

if TYPE_CHECKING:
    from PIL.Image import Image

TITLES = {
    "length": "length",
    "spread": "standard deviation of the steps",
    "nll": "negative log-likelihood (nats)",
    "objective": "objective J",
}
GRID = 200  # points along each side of a density
FLOOR = 12.0  # nats below the peak, where a density is black


def history_picture(found: LikelihoodPaths, names: Sequence[str]) -> "Image":
    """The terms against iterations, those of the straight lines dashed; a colour for each path."""
    page = figure(9, 6.6)
    page.suptitle("likely paths while they are searched for; dashed: straight lines")
    for axes, (term, title) in zip(page.subplots(2, 2).flat, TITLES.items(), strict=True):
        values = getattr(found.history, term)[:, : len(names)].cpu().numpy()
        lines = getattr(found.line, term)[: len(names)].tolist()
        for k, name in enumerate(names):
            (curve,) = axes.plot(values[:, k], lw=1.2, label=name)
            axes.axhline(lines[k], color=curve.get_color(), ls="--", lw=1)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("iteration")
        axes.grid(alpha=0.3)
    handles, labels = axes.get_legend_handles_labels()
    page.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return drawn(page)


@torch.no_grad()
def density_picture(
    log_prob: LogProb,  # of points in two dimensions
    found: LikelihoodPaths,
    encoded: Tensor,  # (m, 2)
    title: str,
) -> "Image":
    """Likely paths (solid) and straight lines (dashed) over log p, encoded images as dots."""
    shown = torch.cat([encoded.double(), found.points.flatten(0, 1).double()])
    low, high = shown.amin(0), shown.amax(0)
    middle, half = (low + high) / 2, 0.55 * (high - low).max()
    side = torch.linspace(-1, 1, GRID, dtype=torch.float64, device=shown.device) * half
    grid = torch.stack(torch.meshgrid(middle[0] + side, middle[1] + side, indexing="xy"), -1)
    values = log_prob(grid.flatten(0, 1)).unflatten(0, (GRID, GRID)).cpu().numpy()
    peak = float(values.max())

    whole = figure(7, 6)
    axes = whole.add_subplot()
    left, right, bottom, top = (
        float(x) for k in (0, 1) for x in (middle[k] - half, middle[k] + half)
    )
    edges = (left, right, bottom, top)
    image = axes.imshow(
        values, extent=edges, origin="lower", cmap="magma", vmin=peak - FLOOR, vmax=peak
    )
    whole.colorbar(image, ax=axes, label="log p (nats)", shrink=0.85)
    across, up = encoded.cpu().numpy().T
    axes.scatter(across, up, 3, "white", alpha=0.5, lw=0)
    for points in found.points.cpu().numpy():
        ends = points[[0, -1]]
        axes.plot(*ends.T, color="white", ls="--", lw=1)
        axes.plot(*points.T, color="tab:cyan", marker="o", ms=3, lw=1.3)
        axes.plot(*ends.T, "o", color="white", mec="black", ms=6)
    axes.set_title(f"likely paths (solid), straight lines (dashed), encoded images\n{title}")
    axes.set_xlabel("first dimension")
    axes.set_ylabel("second dimension")
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)
    return drawn(whole)
