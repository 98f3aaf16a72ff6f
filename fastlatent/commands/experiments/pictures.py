"""Pictures of latent geometry: improvements, correlations along curves, maps of the metric."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastlatent.geometry.curves import Curves
from fastlatent.geometry.experiment import Experiment
from fastlatent.geometry.field import Field, eigenvector_lines
from fastlatent.plots import drawn, figure

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.container import Container
    from matplotlib.image import AxesImage
    from matplotlib.lines import Line2D
    from PIL.Image import Image

    Handle = Artist | Container

BINS = 30
LEVELS = 15  # of filled contours
LEAST_RANGE = 1e-3  # of cosines
SHOWN_BARS = 60  # pairs in a picture of grouped bars, at most
DRAWN_CURVES = 100  # curves in a map, at most
CURVE_POINTS = 60
MEASURED, BY_RULE = "measured", "by the original's rule"
COLOURS = {MEASURED: "tab:blue", BY_RULE: "tab:orange"}
DASHES = {MEASURED: "--", BY_RULE: ":"}  # two means side by side are told apart


def improvement_histogram(result: Experiment, title: str) -> "Image":
    """Share of the pairs by improvement, under both rules, with the means."""
    whole = figure(6.4, 4.4)
    axes = whole.add_subplot()
    values = _improvements(result)
    known = {name: part[np.isfinite(part)] for name, part in values.items()}
    everything = np.concatenate([*known.values()])
    low, high = everything.min(initial=0), everything.max(initial=0)
    width = (high - low) / BINS or 1
    # No bar mixes gains with losses: 0 is where two bins meet.
    first = np.floor(low / width)
    edges = width * np.arange(first, max(np.ceil(high / width), first + 1) + 1)
    handles: list[Handle] = []
    for name, part in values.items():
        style: dict[str, Any] = {"fill": True, "alpha": 0.45} if name == MEASURED else {"lw": 1.5}
        share = np.histogram(known[name], edges)[0] * (100 / max(len(part), 1))
        label = _known_label(name, part)
        handles.append(axes.stairs(share, edges, color=COLOURS[name], label=label, **style))
        handles += _mean_line(axes.axvline, part, COLOURS[name], DASHES[name])
    axes.set_xlabel("shorter than the straight line by (%)")
    axes.set_ylabel("share of the pairs (%)")
    axes.set_title(title)
    _legend_below(axes, handles)
    return drawn(whole)


def improvement_of_pairs(result: Experiment, title: str) -> "Image":
    """The improvement of each pair under both rules, with the means."""
    whole = figure(8, 4.4)
    axes = whole.add_subplot()
    numbers = 1 + np.flatnonzero(result.counted.cpu().numpy())
    size = 18 if len(numbers) <= 200 else 5
    handles: list[Handle] = []
    for name, part in _improvements(result).items():
        style = {"marker": "o"} if name == MEASURED else {"marker": "x", "lw": 1}
        label, known = _known_label(name, part), np.isfinite(part)
        points = (numbers[known], part[known], size, COLOURS[name])
        handles.append(axes.scatter(*points, alpha=0.8, label=label, **style))
        handles += _mean_line(axes.axhline, part, COLOURS[name], DASHES[name])
    axes.axhline(0, color="0.3", lw=0.8)
    axes.set_xlabel("pair")
    axes.set_ylabel("shorter than the straight line by (%)")
    axes.set_title(title)
    axes.grid(axis="y", alpha=0.3)
    axes.locator_params(axis="x", integer=True)
    _legend_below(axes, handles)
    return drawn(whole)


def length_history(result: Experiment, title: str) -> "Image":
    """The shortest length of each pair so far, as a share of its straight line, and their mean.

    A step of the axis is a level of the search, of the published procedure a validation.
    """
    whole = figure(6.4, 4.4)
    axes = whole.add_subplot()
    history = result.geodesics.history[:, result.counted].double().cpu().numpy()
    share = 100 * history / history[:1]
    steps = np.arange(len(share))
    axes.plot(steps, share[:, :DRAWN_CURVES], color=COLOURS[MEASURED], lw=0.8, alpha=0.4)
    if share.shape[1] > 0:
        mean = np.nanmean(share, 1)
        label = f"mean of {share.shape[1]:,}: {mean[-1]:.2f} %"
        axes.plot(steps, mean, color="black", marker="o", ms=3, label=label)
        axes.legend(frameon=False)
    axes.set_xlabel("level of the search, or validation")
    axes.set_ylabel("length (% of the straight line)")
    axes.set_title(title)
    axes.locator_params(axis="x", integer=True)
    axes.grid(axis="y", alpha=0.3)
    return drawn(whole)


def _mean_line(
    line: "Callable[..., Line2D]", percent: np.ndarray, colour: str, dashes: str
) -> "list[Handle]":
    """The mean of what is known, drawn by `line`; nothing where nothing is."""
    known = percent[np.isfinite(percent)]
    if not len(known):
        return []
    part = f" of {len(known)} of {len(percent)} pairs" if len(known) < len(percent) else ""
    label = f"mean {known.mean():.2f} %{part}"
    return [line(known.mean(), color=colour, ls=dashes, lw=1.5, label=label)]


def _known_label(name: str, percent: np.ndarray) -> str:
    return name if np.isfinite(percent).any() else f"{name}: unknown"


def _legend_below(axes: "Axes", handles: "Sequence[Handle]") -> None:
    """A legend that covers nothing."""
    axes.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(0, -0.14), ncols=2, frameon=False
    )


def _improvements(result: Experiment) -> dict[str, np.ndarray]:
    """In percent, of the pairs that count."""
    both = {MEASURED: result.improvement, BY_RULE: result.original_improvement}
    return {name: _percent(values[result.counted]) for name, values in both.items()}


def _percent(share: Tensor) -> np.ndarray:
    return 100 * share.double().cpu().numpy()


def improvements_of_two(
    first: Tensor,  # (n,), relative
    second: Tensor,  # (n,)
    pairs: Tensor,  # (n,) int64, their numbers
    names: Sequence[str],
    title: str,
) -> "Image":
    """Two bars for each pair of ends, one for each model, with the means over all pairs."""
    n = min(len(first), SHOWN_BARS)
    numbers = pairs[:n].cpu().numpy()
    whole = figure(max(6.4, 1.5 + 0.22 * n), 4.4)
    axes = whole.add_subplot()
    handles: list[Handle] = []
    for k, (name, values, colour, dashes) in enumerate(
        zip(names, (first, second), ("tab:blue", "tab:red"), ("--", ":"), strict=True)
    ):
        percent = _percent(values)
        known = np.isfinite(percent[:n])
        places, heights = (numbers + 0.4 * (k - 0.5))[known], percent[:n][known]
        label = _known_label(name, percent)
        handles.append(axes.bar(places, heights, 0.4, color=colour, label=label))
        handles += _mean_line(axes.axhline, percent, colour, dashes)
    axes.locator_params(axis="x", integer=True)
    axes.set_xlabel("pair" + (f" (the first {n} of {len(first)})" if n < len(first) else ""))
    axes.set_ylabel("shorter than the straight line by (%)")
    axes.set_title(title)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    _legend_below(axes, handles)
    return drawn(whole)


def correlations(
    straight: Tensor,  # (n, m, m), cosines between the m points of each straight line
    shorter: Tensor,  # (n, m, m), of the shorter curves
    what: str,
    rows: Sequence[int] | None = None,  # number of each pair of ends, from 0; default: all
) -> "Image":
    """Filled contours side by side, a row for each pair of ends, with one colour range a row."""
    n, m, _ = straight.shape
    numbers = range(n) if rows is None else rows
    page = figure(7.4, 0.5 + 3 * n)
    page.suptitle(f"cosine between {what} at equal distances along the curve")
    grid = page.subplots(n, 2, squeeze=False, sharex=True, sharey=True)
    place = np.linspace(0, 1, m)
    pairs = torch.stack([straight, shorter], 1).double().cpu().numpy()
    for row, pair in enumerate(np.ma.masked_invalid(pairs)):
        for axes, part, name in zip(grid[row], pair, ("straight", "shorter"), strict=True):
            spread = f"{part.var():.4f}" if part.count() else "unknown"
            axes.set_title(f"row {numbers[row] + 1}, {name}: variance {spread}", fontsize=10)
            axes.set_aspect("equal")
        grid[row, 0].set_ylabel("share of the length")
        if not pair.count():
            continue
        # Images that hardly differ get one colour, not contours of rounding errors.
        low, high = pair.min(), max(pair.max(), pair.min() + LEAST_RANGE)
        levels = np.linspace(low, high, LEVELS)
        for axes, part in zip(grid[row], pair, strict=True):
            shown = axes.contourf(place, place, part, levels, cmap="viridis")
        digits = 2 if high - low > 0.1 else 4
        page.colorbar(shown, ax=grid[row], format=f"%.{digits}f", shrink=0.9)
    for axes in grid[-1]:
        axes.set_xlabel("share of the length")
    return drawn(page)


class Encoded(NamedTuple):
    """Latents of images, with their classes where those are known."""

    latents: Tensor  # (n, 2)
    labels: Tensor | None  # (n,) int64
    names: Sequence[str]  # of the classes


def metric_map(
    field: Field,
    encoded: Encoded,
    result: Experiment | None,
    title: str,
) -> "Image":
    """Four views of a two-dimensional latent space.

    Volume with lines along the largest eigenvector, condition number with lines along the smallest,
    encoded images by class, and curves coloured by their gain over straight lines.
    """
    width = field.extent[1] - field.extent[0]
    height = field.extent[3] - field.extent[2]
    page = figure(12, 1 + 10 * min(2.0, max(0.5, height / width)))
    page.suptitle(title)
    grid = page.subplots(2, 2, sharex=True, sharey=True)
    volume, condition = field.log_volume.cpu().numpy(), field.log_condition.cpu().numpy()
    _heat(grid[0, 0], field, volume, "log sqrt det M", "viridis", largest=True)
    _heat(grid[0, 1], field, condition, "log condition number of M", "magma", largest=False)
    _scatter(grid[1, 0], encoded)
    _curves(grid[1, 1], field, volume, result)
    for axes in grid.flat:
        axes.set_aspect("equal")
        axes.set_xlim(*field.extent[:2])
        axes.set_ylim(*field.extent[2:])
    for axes in grid[1]:
        axes.set_xlabel("first latent")
    for axes in grid[:, 0]:
        axes.set_ylabel("second latent")
    return drawn(page)


def _heat(
    axes: "Axes", field: Field, values: np.ndarray, name: str, colours: str, largest: bool
) -> None:
    from matplotlib.collections import LineCollection

    shown = _shades(axes, field, values, cmap=colours)
    lines = LineCollection(eigenvector_lines(field, largest), colors="white", lw=0.7, alpha=0.8)
    axes.add_collection(lines)
    axes.figure.colorbar(shown, ax=axes, label=name, shrink=0.85)
    axes.set_title(f"{name}\nlines along the {'largest' if largest else 'smallest'} eigenvector")


def _shades(axes: "Axes", field: Field, values: np.ndarray, **style: Any) -> "AxesImage":
    finite = values[np.isfinite(values)]
    low, high = np.quantile(finite, [0.005, 0.995]) if len(finite) else (0, 1)
    return axes.imshow(
        values,
        extent=field.extent,
        origin="lower",
        interpolation="bilinear",
        vmin=low,
        vmax=high,
        **style,
    )


def _scatter(axes: "Axes", encoded: Encoded) -> None:
    x, y = encoded.latents.cpu().numpy().T
    axes.set_title("encoded images" + ("" if encoded.labels is None else " by class"))
    if encoded.labels is None:
        axes.scatter(x, y, s=4, c="tab:blue", alpha=0.6)
        return
    import matplotlib

    labels = encoded.labels.cpu().numpy()
    classes = np.unique(labels)
    colours = matplotlib.colormaps["tab10" if len(classes) <= 10 else "gist_ncar"]
    for k, label in enumerate(classes):
        shade = colours(k if len(classes) <= 10 else k / len(classes))
        name = encoded.names[label] if label < len(encoded.names) else str(label)
        rows = labels == label
        axes.scatter(x[rows], y[rows], s=4, color=shade, alpha=0.7, label=name)
    if len(classes) <= 20:
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), markerscale=3, frameon=False)


def _curves(axes: "Axes", field: Field, volume: np.ndarray, result: Experiment | None) -> None:
    """Straight lines dashed, shorter curves solid, both coloured by the improvement."""
    _shades(axes, field, volume, cmap="Greys", alpha=0.5)
    axes.set_title("no curves")
    if result is None or not bool(result.counted.any()):
        return
    from matplotlib.collections import LineCollection

    rows = result.counted.nonzero()[:DRAWN_CURVES, 0]
    percent = 100 * result.improvement[rows].cpu().numpy()
    scale: dict[str, Any] = {"cmap": "plasma", "clim": (0, max(float(percent.max()), 1e-6))}
    for curves, dashes in (
        (result.lines[rows], "dashed"),
        (result.geodesics.curves[rows], "solid"),
    ):
        lines = LineCollection(
            list(_polylines(curves)), array=percent, linestyles=dashes, lw=1.2, **scale
        )
        axes.add_collection(lines)
    axes.figure.colorbar(lines, ax=axes, label="shorter by (%)", shrink=0.85)
    axes.set_title(
        "shorter curves (solid) and straight lines (dashed)\nover log sqrt det M in grey"
    )


def _polylines(curves: Curves) -> np.ndarray:  # (n, CURVE_POINTS, 2)
    t = torch.linspace(0, 1, CURVE_POINTS, dtype=curves.control.dtype, device=curves.control.device)
    return curves.points(t).cpu().numpy()
