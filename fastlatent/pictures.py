"""Image files as data sets and measures read them alike: opened, checked, in 8 bits."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

_GREY_MODES = ("1", "L", "LA", "La")
_WIDE_MODES = ("I", "F")  # and I;16 in its byte orders: more than 8 bits a pixel


def open_picture(path: Path | str) -> tuple["Image", bool]:
    """The image in a file, and whether it is grey.

    Raises FileNotFoundError, and ValueError, naming the file, where it is no 8-bit image.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.load()
    except FileNotFoundError:
        raise
    # Damaged files make Pillow raise OSError, SyntaxError, struct.error, zlib.error and more.
    except Exception as error:
        raise ValueError(f"{path} is not a readable image: {error}") from None
    if image.mode.startswith(_WIDE_MODES):
        raise ValueError(
            f"{path} has more than 8 bits a channel (Pillow mode {image.mode}); convert it to 8"
        )
    return image, image.mode in _GREY_MODES


def pixels_of(image: "Image") -> Tensor:
    """An image of mode L or RGB as uint8 (c, h, w)."""
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.dim() == 2 else pixels.permute(2, 0, 1)
