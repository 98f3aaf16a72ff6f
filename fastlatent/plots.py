"""Pictures: images in a grid with captions, true values in [0, 1], as PNG."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fastlatent.files.eight_bits import to_uint8
from fastlatent.files.writing import written_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL.Image import Image

TILE = 64  # smaller images are enlarged, by a whole factor, to at least this many pixels
GAP = 6  # pixels between images: digits that reach their edges stay apart
GROUP_GAP = 18  # pixels between groups of images that belong together
MARGIN = 8
TEXT = 15  # size of the captions in pixels
SMALL = 12  # size of the line below a picture that says what it is of
INK = (30, 30, 30)
GREY = (110, 110, 110)
BEGINNING = 0.05  # share of a training whose values, far from all others, may leave the frame
MOST = 40_000  # images in a picture: about as large a file as Pillow opens again


def grid(
    images: Tensor,  # (n, c, h, w) in [0, 1], row by row; c is 1 or 3
    columns: int,
    caption: str = "",
    headings: Sequence[str] = (),  # one above each column
    group: int = 1,  # columns that belong together
    row_group: int = 1,  # rows that belong together
    notes: Sequence[str] = (),  # one to the right of each row, of a few lines
) -> "Image":
    """The images in rows of `columns`, pixels enlarged but not smoothed.

    Raises ValueError when the images are not (n, 1 or 3, h, w), there is none, or over MOST.
    """
    from PIL import Image, ImageDraw, ImageFont

    if images.ndim != 4 or images.shape[1] not in (1, 3) or len(images) == 0:
        raise ValueError(f"grid: images must be (n, 1 or 3, h, w); got {tuple(images.shape)}")
    check_count(len(images))
    pixels = to_bytes(images)
    n, height, width, _ = pixels.shape
    factor = max(1, -(-TILE // max(height, width)))
    tile_w, tile_h = width * factor, height * factor

    gaps = [GROUP_GAP if group > 1 and k % group == 0 else GAP for k in range(1, columns)]
    left = [MARGIN + k * tile_w + sum(gaps[:k]) for k in range(columns)]
    font = ImageFont.load_default(TEXT)
    line = TEXT + 7
    top = MARGIN + line * (bool(caption) + bool(headings))
    rows = -(-n // columns)
    below = [GROUP_GAP if row_group > 1 and k % row_group == 0 else GAP for k in range(1, rows)]
    row_top = [top + k * tile_h + sum(below[:k]) for k in range(rows)]
    end = left[min(columns, n) - 1] + tile_w + MARGIN
    widths = [font.getlength(part) for note in notes for part in note.splitlines()]
    right = end + (round(max(widths)) + MARGIN if widths else 0)
    size = (
        max(right, round(font.getlength(caption)) + 2 * MARGIN),
        row_top[-1] + tile_h + MARGIN,
    )
    canvas = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(canvas)
    pen.text((MARGIN, MARGIN), caption, INK, font)
    for x, heading in zip(left, headings, strict=False):
        pen.text((x + tile_w / 2, top - 6), heading, INK, font, anchor="ms")
    for k, tile in enumerate(pixels):
        row, column = divmod(k, columns)
        image = Image.fromarray(tile[:, :, 0] if tile.shape[2] == 1 else tile)
        image = image.resize((tile_w, tile_h), Image.Resampling.NEAREST)
        canvas.paste(image, (left[column], row_top[row]))
    for row, note in enumerate(notes):
        middle = row_top[row] + tile_h / 2
        pen.multiline_text((end, middle), note, INK, font, anchor="lm")
    return canvas


def check_count(images: int) -> None:
    """ValueError for more images than a picture can hold."""
    if images > MOST:
        raise ValueError(f"a picture holds at most {MOST:,} images; got {images:,}")


def reconstructions(
    images: Tensor,  # (n, c, h, w)
    reconstructed: Tensor,  # (n, c, h, w)
    caption: str,
    corrupted: Tensor | None = None,  # (n, c, h, w), what the encoder was shown if not `images`
    width: int = 16,  # images in a row, at most
) -> "Image":
    """Each image with its reconstruction to the right of it, its corrupted form between them."""
    if corrupted is None:
        columns = {"input": images, "output": reconstructed}
    else:
        columns = {"input": images, "corrupted": corrupted, "output": reconstructed}
    groups = min(width // len(columns), len(images))
    tiles = torch.stack([*columns.values()], 1).flatten(0, 1)
    headings = [*columns] * groups
    return grid(tiles, len(headings), caption, headings, group=len(columns))


def samples(images: Tensor, caption: str) -> "Image":
    """Samples (n, c, h, w) in a grid as square as can be."""
    return grid(images, round(len(images) ** 0.5) or 1, caption)


def walks(
    start: Tensor | None,  # (k, c, h, w), images that the paths lead from, if there are such
    path: Tensor,  # (k, steps, c, h, w), decoded
    end: Tensor | None,  # (k, c, h, w), images that they lead to, if there are such
    caption: str,
    notes: Sequence[str] = (),  # one for each path
    together: int = 1,  # paths between the same ends, one below the other
) -> "Image":
    """A path in each row, between the images whose latents it joins."""
    steps = path.shape[1]
    headings = [f"{k / (steps - 1):.2f}" for k in range(steps)]
    columns = [path]
    if start is not None:
        headings.insert(0, "from")
        columns.insert(0, start[:, None])
    if end is not None:
        headings.append("to")
        columns.append(end[:, None])
    rows = torch.cat(columns, 1).flatten(0, 1)
    return grid(rows, len(headings), caption, headings, row_group=together, notes=notes)


def loss_curve(
    metrics: Sequence[dict[str, Any]],  # lines of metrics.jsonl
    unit: str,  # of the loss
    alternating: Mapping[str, str] | None = None,  # unit of each alternating step's loss, by name
) -> "Image":
    """Training and held-out loss over the epochs; those of alternating steps on axes of their
    own."""
    alternating = alternating or {}  # their sum says nothing
    whole = figure(6.4 * (2 if alternating else 1), 4)
    loss, *apart = whole.subplots(1, 2 if alternating else 1, squeeze=False)[0]
    if not alternating:
        _curve(loss, metrics, "train", "loss", alpha=0.6, lw=1)
    for kind in ("validation", "test"):
        _curve(loss, metrics, kind, "loss", marker=".", lw=1.5)
    _finish(loss, f"loss ({unit})")
    for axes in apart:
        for name in alternating:
            title = f"train {name.removesuffix('loss').replace('_', ' ')}".strip()
            _curve(axes, metrics, "train", name, title, alpha=0.6, lw=1)
        _finish(axes, f"loss ({', '.join(dict.fromkeys(alternating.values()))})")
    return drawn(whole)


def term_curves(
    metrics: Sequence[dict[str, Any]],  # lines of metrics.jsonl
    terms: dict[str, tuple[str, ...]],  # values by the title that they are drawn under
) -> "Image":
    """The values over the epochs, those of training thin, held-out ones with dots.

    Titles without a value are left out.
    """
    logged = {name for line in metrics for name in line}
    shown = {title: names for title, names in terms.items() if logged & set(names)}
    columns = min(len(shown), 3)
    rows = -(-len(shown) // columns)
    whole = figure(4.6 * columns, 3.6 * rows)
    held_out = "validation" if any(x["kind"] == "validation" for x in metrics) else "test"
    places = [*whole.subplots(rows, columns, squeeze=False).flat]
    for axes, (title, names) in zip(places, shown.items(), strict=False):
        for number, name in enumerate(names):
            label, colour = name.replace("_", " "), f"C{number}"
            thin = {"alpha": 0.5, "lw": 1, "color": colour}
            _curve(axes, metrics, "train", name, f"{label}, train", **thin)
            _curve(axes, metrics, held_out, name, f"{label}, {held_out}", marker=".", color=colour)
        axes.set_title(title)
        _finish(axes)
    for axes in places[len(shown) :]:
        axes.set_axis_off()
    return drawn(whole)


def _curve(
    axes: "Axes",
    metrics: Sequence[dict[str, Any]],
    kind: str,
    name: str,
    label: str | None = None,  # the kind by default
    **style: Any,
) -> None:
    """A value of the lines of one kind over the epochs; nothing where there is none."""
    points = [
        (line["epoch"], line[name]) for line in metrics if line["kind"] == kind and name in line
    ]
    if points:
        axes.plot(*zip(*points, strict=True), label=label or kind, **style)


def _finish(axes: "Axes", title: str = "") -> None:
    """Labels, legend, and a frame that the first values, far from all others, do not flatten."""
    axes.set_xlabel("epoch")
    axes.set_ylabel(title)
    axes.grid(alpha=0.3)
    if not axes.lines:
        return
    axes.legend(fontsize=9)
    epochs, values = (
        np.concatenate([np.asarray(part, float) for part in parts])
        for parts in zip(*(line.get_data() for line in axes.lines), strict=True)
    )
    finite = np.isfinite(values)
    beginning = BEGINNING * epochs.max()
    later = values[finite & (epochs > beginning)]
    if not len(later):
        return
    margin = 0.05 * (later.max() - later.min()) or 0.05 * max(abs(later.max()), 1)
    low, high = later.min() - margin, later.max() + margin
    if ((values[finite] < low) | (values[finite] > high)).any():
        axes.set_ylim(low, high)
        axes.text(
            *(0.01, 1.01),
            f"values before epoch {beginning:.2g} leave the frame",
            transform=axes.transAxes,
            fontsize=7,
            color="0.4",
        )


def layer_bars(
    values: Sequence[float],  # one for each layer, bottom first
    errors: Sequence[float],  # their standard errors
    title: str,
    unit: str,
) -> "Image":
    """A bar for each layer."""
    from matplotlib.ticker import MaxNLocator

    whole = figure()
    axes = whole.add_subplot()
    axes.bar(range(len(values)), values, yerr=errors, color="tab:blue", ecolor="0.2", capsize=3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("layer, from the bottom (nearest the image) to the top")
    axes.set_ylabel(unit)
    axes.set_title(title)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    return drawn(whole)


def prd_curves(curves: dict[str, tuple[Tensor, Tensor]], title: str) -> "Image":
    """Precision over recall for each set: (angles,) of recall and of precision."""
    whole = figure(4.8, 4.8 + 0.25 * -(-len(curves) // 2))
    axes = whole.add_subplot()
    for name, (recall, precision) in curves.items():
        axes.plot(recall.tolist(), precision.tolist(), label=name)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="recall", ylabel="precision", title=title)
    axes.set_aspect("equal")
    axes.grid(alpha=0.3)
    whole.legend(loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    return drawn(whole)


def figure(width: float = 6.4, height: float = 4) -> "Figure":
    """An empty figure of that size in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=120, layout="constrained")


def drawn(figure: "Figure") -> "Image":
    """The figure in pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])


def tiles(images: Tensor) -> "Image":
    """Images (n, c, h, w) in rows, each pixel as it is and nothing between them."""
    from PIL import Image

    n, _, height, width = images.shape
    columns = tile_columns(n)
    pixels = to_bytes(images)
    sheet = np.zeros((-(-n // columns) * height, columns * width, pixels.shape[3]), np.uint8)
    for k, tile in enumerate(pixels):
        row, column = divmod(k, columns)
        sheet[row * height :, column * width :][:height, :width] = tile
    return Image.fromarray(sheet[:, :, 0] if sheet.shape[2] == 1 else sheet)


def untiled(sheet: Tensor, n: int, height: int, width: int) -> Tensor:  # (n, c, height, width)
    """The images of a sheet (c, H, W) that `tiles` made; ValueError for one of another size."""
    columns = tile_columns(n)
    expected = (-(-n // columns) * height, columns * width)
    if sheet.shape[1:] != expected:
        raise ValueError(
            f"untiled: a sheet of {n} images of {height}x{width} is {expected[0]}x{expected[1]} "
            f"pixels; got {sheet.shape[1]}x{sheet.shape[2]}"
        )
    parts = sheet.unflatten(2, (columns, width)).unflatten(1, (-1, height))
    return parts.permute(1, 3, 0, 2, 4).flatten(0, 1)[:n]


def tile_columns(n: int) -> int:
    """Images in a row of a sheet of n."""
    return round(n**0.5) or 1


def save(picture: "Image", path: Path, subject: str = "") -> Path:
    """Write a PNG, whole or not at all; the subject, such as the run, stands in a line below."""
    if subject:
        picture = signed(picture, subject)
    with written_whole(path) as temporary:
        picture.save(temporary, format="PNG")
    return path


def signed(picture: "Image", subject: str) -> "Image":
    """The picture with a small line below it that says what it is of."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(SMALL)
    width = max(picture.width, round(font.getlength(subject)) + 2 * MARGIN)
    canvas = Image.new("RGB", (width, picture.height + SMALL + MARGIN), "white")
    canvas.paste(picture)
    place = (MARGIN, canvas.height - MARGIN // 2)
    ImageDraw.Draw(canvas).text(place, subject, GREY, font, anchor="ls")
    return canvas


def to_bytes(images: Tensor) -> np.ndarray:
    """Images (n, c, h, w) in [0, 1] as uint8 (n, h, w, c), rounded as in `to_uint8`; NaN is 0."""
    return to_uint8(images.detach().nan_to_num()).permute(0, 2, 3, 1).cpu().numpy()
