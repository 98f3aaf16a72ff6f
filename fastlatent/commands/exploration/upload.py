"""An image file that a user hands in, as the model sees it."""

import tempfile
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from fastlatent.data.images import Fit
from fastlatent.files.image_files import decode, read_header
from fastlatent.jobs.errors import UsageError

MOST = 50_000_000  # pixels of a file
LUMA = (0.299, 0.587, 0.114)  # of red, green and blue in grey: ITU-R BT.601, as Pillow has it


def fitted(data: bytes, name: str, shape: tuple[int, int, int]) -> Tensor:  # (1, c, h, w)
    """The image in a file's bytes, in [0, 1], cropped and scaled to a model's (c, h, w).

    Colours become grey, and greys colours, where the model has the other. Raises UsageError for
    what is no 8-bit image, or one of more than 50 million pixels; it names the file.
    """
    channels, height, width = shape
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / (PurePosixPath(name).name or "image")
        path.write_bytes(data)
        try:
            high, wide = read_header(path).size
            if high * wide > MOST:
                raise ValueError(f"{path} is {high}x{wide}; {MOST:,} pixels are the most")
            pixels = decode(path)
        except ValueError as error:
            raise UsageError(str(error).replace(f"{folder}/", "")) from None
    if channels == 1 and len(pixels) == 3:
        grey = torch.einsum("c,chw->hw", torch.tensor(LUMA), pixels.float())
        pixels = grey.round().byte()[None]
    pixels = pixels.expand(channels, -1, -1)[None]
    if height == width:
        return Fit(height)(pixels).float() / 255
    return torch.nn.functional.interpolate(
        pixels.float() / 255, (height, width), mode="bilinear", antialias=True
    ).clamp(0, 1)
