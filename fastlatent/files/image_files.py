"""Image files: the formats that are read, what a header tells, and the pixels in 8 bits."""

import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

# Pillow knows many more, and hands PostScript to another program.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
SUFFIXES = frozenset(
    (
        *(".apng", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png"),
        *(".pnm", ".ppm", ".tif", ".tiff", ".webp"),
    )
)
BACKGROUND = "white"  # what transparent pixels are laid on by default
_COLOURS = {"white": (255, 255, 255), "black": (0, 0, 0)}
_GREY_MODES = ("1", "L", "LA", "La")
_WIDE_MODES = ("I", "F")  # and I;16 in its byte orders: more than 8 bits a pixel
_ORIENTATION, _BITS_PER_SAMPLE = 274, 258  # tags of EXIF and TIFF
Taken = TypeVar("Taken")


class ColourError(ValueError):
    """A colour image where grey ones are expected."""


class Header(NamedTuple):
    """What the header of an image file tells of it."""

    size: tuple[int, int]  # height and width, upright
    grey: bool  # as it is stored; colours may still be greys, such as those of a palette
    transparent: bool  # has an alpha channel or a transparent colour
    animated: bool  # holds several pictures
    turned: bool  # lies otherwise than its EXIF orientation says


def check_background(name: str, value: object) -> None:
    """Raise ValueError unless the value is a colour that `colour` knows."""
    if not isinstance(value, str) or not (
        value in _COLOURS or re.fullmatch(r"#[0-9a-fA-F]{6}", value)
    ):
        raise ValueError(f"{name} must be white, black or #rrggbb; got {value!r}")


def colour(background: str) -> tuple[int, int, int]:
    """Red, green and blue of white, black or #rrggbb."""
    if background in _COLOURS:
        return _COLOURS[background]
    red, green, blue = bytes.fromhex(background[1:])
    return red, green, blue


def read_header(path: Path | str, background: str = BACKGROUND) -> Header:
    """The header of an image file, whose transparent pixels are to be laid on the background.

    Raises FileNotFoundError, and ValueError, naming the file, where it is no 8-bit image.
    """

    def taken(image: "Image") -> Header:
        turn = image.getexif().get(_ORIENTATION, 1)
        width, height = image.size
        # Pillow gives the upright size of a TIFF file itself.
        if turn in (5, 6, 7, 8) and image.format != "TIFF":
            width, height = height, width
        return Header(
            (height, width),
            _is_grey(image, background),
            image.has_transparency_data,
            # Cameras keep previews behind the picture of a JPEG file (MPO).
            getattr(image, "is_animated", False) and image.format != "MPO",
            turn in range(2, 9),
        )

    return _read(path, taken)


def decode(
    path: Path | str, channels: int | None = None, background: str = BACKGROUND
) -> Tensor:  # uint8 (c, h, w)
    """The image in a file: upright by its EXIF orientation, the first picture of an animation.

    With 1 channel where it is stored as grey and 3 otherwise, or with as many as `channels` says.
    Transparent pixels are laid on the background: white, black or #rrggbb.

    Raises FileNotFoundError, and ValueError, naming the file, where it is no 8-bit image of
    `FORMATS` or no regular file; ColourError where it has colours and `channels` is 1.
    """
    image = _read(path, lambda image: _flattened(image, background))
    pixels = torch.from_numpy(np.array(image))
    pixels = pixels[None] if pixels.dim() == 2 else pixels.permute(2, 0, 1)
    if channels == 1 and len(pixels) == 3:
        if not (pixels == pixels[:1]).all():
            raise ColourError(f"{path} is a colour image among grey ones")
        return pixels[:1]
    return pixels.expand(channels or len(pixels), -1, -1)


def _flattened(image: "Image", background: str) -> "Image":
    """The image upright and without transparency, in mode L or RGB."""
    from PIL import Image, ImageOps

    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    mode = "L" if _is_grey(image, background) else "RGB"
    if image.has_transparency_data:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, (*colour(background), 255))
        image = Image.alpha_composite(ground, image)
    return image.convert(mode)


def _is_grey(image: "Image", background: str) -> bool:
    """Whether it is stored as grey and the ground below it, where it shows, is grey too."""
    ground = colour(background)
    return image.mode in _GREY_MODES and (
        not image.has_transparency_data or ground == ground[:1] * 3
    )


def _read(path: Path | str, take: Callable[["Image"], Taken]) -> Taken:
    """What `take` makes of the opened file."""
    from PIL import Image, UnidentifiedImageError

    # Opening a pipe waits for its other end.
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError(f"{path} is not a regular file")
    try:
        with Image.open(path, formats=FORMATS) as image:
            mode, wide = image.mode, _is_wide(image)
            taken = None if wide else take(image)
    except FileNotFoundError:
        raise
    except UnidentifiedImageError:
        formats = ", ".join(FORMATS)
        raise ValueError(f"{path} is not a readable image: it is none of {formats}") from None
    # Damaged files make Pillow raise OSError, SyntaxError, struct.error, zlib.error and more.
    except Exception as error:
        raise ValueError(f"{path} is not a readable image: {error}") from None
    if taken is None:
        raise ValueError(
            f"{path} has more than 8 bits a channel (Pillow mode {mode}); convert it to 8"
        )
    return taken


def _is_wide(image: "Image") -> bool:
    """Whether a channel has more than 8 bits, which Pillow cuts from colours in silence."""
    if image.mode.startswith(_WIDE_MODES):
        return True
    if image.format == "TIFF":
        return max(image.tag_v2.get(_BITS_PER_SAMPLE, (1,))) > 8  # type: ignore[attr-defined]
    for codec, _, _, arguments in image.tile:  # type: ignore[attr-defined]
        raw, *others = arguments if isinstance(arguments, tuple) else (arguments,)
        # The sample format of PNG and PPM, such as RGB;16B; BGR;16 of BMP is 5, 6 and 5 bits.
        if isinstance(raw, str) and raw.endswith(";16B"):
            return True
        if codec in ("ppm", "ppm_plain") and others and others[0] > 255:  # the greatest value
            return True
    return False
