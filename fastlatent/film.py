"""Show how reconstructions came about in training: `python -m fastlatent.film RUN`."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fastlatent import plots
from fastlatent.commands.console import command, parse
from fastlatent.commands.trained import RunFolder
from fastlatent.files.image_files import decode
from fastlatent.files.subset import spread
from fastlatent.files.writing import written_whole
from fastlatent.jobs.errors import RunError
from fastlatent.jobs.progress import say, track
from fastlatent.runs import Run

if TYPE_CHECKING:
    from PIL.Image import Image

DESCRIPTION = """Make a film of a run's training: images and their reconstructions, step by step.

The film is a GIF. Its last frame is also written as a PNG. Training stores the frames, as often as
its option --film-every says.

Examples:
  python -m fastlatent.film runs/glo-digits
  python -m fastlatent.film runs/glo-digits --images 16 --fps 10 --out film.gif"""

COLOURS = 64
HOLD = 10  # times as long as others, the last frame stays


@dataclass(frozen=True)
class Options:
    """The command line."""

    run: RunFolder
    """Run folder, as training left it."""
    images: int = 32
    """Images to show, at most."""
    frames: int = 50
    """Frames to show, at most, evenly spread over the training. The last one is always shown."""
    fps: float = 5
    """Frames per second."""
    out: Path | None = None
    """Film to write, a GIF; default: images/film.gif in the run folder."""

    def __post_init__(self) -> None:
        if self.images < 1:
            raise ValueError(f"--images must be at least 1; got {self.images}")
        if self.frames < 1:
            raise ValueError(f"--frames must be at least 1; got {self.frames}")
        if not 0 < self.fps <= 50:
            raise ValueError(f"--fps must be above 0 and at most 50; got {self.fps:g}")
        if self.out is not None and self.out.suffix.lower() != ".gif":
            raise ValueError(f"--out must end in .gif, the format of films; got {self.out}")


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and make the film."""
    options = parse(Options, argv, "film", DESCRIPTION, renamed={"--n": "--images"})
    run = Run.open(options.run)
    found = run.frames()
    if not found:
        raise RunError(
            f"{run.path} holds no frames of a film; train with --film-every, such as "
            '--film-every "1 epoch"'
        )
    # From the end, so that the last frame is among those that stay.
    found = [found[-1 - int(k)] for k in spread(len(found), options.frames)][::-1]
    originals = images_of(run, run.film / "originals.png")
    frames = [
        plots.reconstructions(
            originals[: options.images],
            images_of(run, path)[: options.images],
            f"{run.path.name}: training images and their reconstructions, step {step}",
        )
        for step, path in track(found, "frames", len(found))
    ]
    out = run.images / "film.gif" if options.out is None else options.out.expanduser()
    out.parent.mkdir(parents=True, exist_ok=True)
    save([few_colours(frame, frames[-1]) for frame in frames], out, options.fps)
    last = plots.save(frames[-1], out.with_suffix(".png"))
    say(f"film of {len(frames):,} frames: {out}; its last one: {last}")


def images_of(run: Run, path: Path) -> torch.Tensor:  # (n, c, h, w) in [0, 1]
    """The images in a sheet of frames."""
    channels, height, width = run.config.model.image_shape
    sheet = decode(path, channels).float() / 255
    return plots.untiled(sheet, run.config.film_images, height, width)


def few_colours(frame: "Image", last: "Image") -> "Image":
    """The frame in few greys, or in the colours of the last: what does not move takes no bytes."""
    from PIL import Image, ImageChops

    grey = frame.convert("L")
    if ImageChops.difference(frame, grey.convert("RGB")).getbbox() is None:
        step = 255 / (COLOURS - 1)
        return grey.point([round(round(value / step) * step) for value in range(256)])
    colours = last.quantize(COLOURS, dither=Image.Dither.NONE)
    return frame.quantize(palette=colours, dither=Image.Dither.NONE)


def save(frames: list["Image"], path: Path, fps: float) -> None:
    """Write a GIF that runs for ever, whole or not at all."""
    duration = [round(1000 / fps)] * len(frames)
    duration[-1] *= HOLD
    with written_whole(path) as temporary:
        frames[0].save(
            temporary,
            format="GIF",
            save_all=True,
            append_images=frames[1:],
            duration=duration,
            loop=0,
        )


if __name__ == "__main__":
    sys.exit(main())
