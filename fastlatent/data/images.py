"""From pictures of any size to uint8 tensors of one size."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastlatent.pictures import open_picture, pixels_of


@dataclass(frozen=True)
class Fit:
    """Brings uint8 images (n, c, h, w) to `size` x `size`.

    28x28 to 32 is a black border of 2 pixels. All else: centre crop to `crop` if given, shorter
    side to `size` (Pillow's bilinear filter, antialiased, in 8 bits), centre crop to `size`.
    """

    size: int | None = None
    crop: int | None = None

    def __call__(self, pixels: Tensor) -> Tensor:
        if self.crop is not None:
            if self.crop > min(pixels.shape[-2:]):
                raise ValueError(
                    f"data.crop is {self.crop}, more than images of {_size(pixels)} have"
                )
            pixels = _centre_crop(pixels, self.crop)
        height, width = pixels.shape[-2:]
        if self.size is None or height == width == self.size:
            return pixels.contiguous()
        if height == width == 28 and self.size == 32:
            return torch.nn.functional.pad(pixels, (2, 2, 2, 2))
        return _centre_crop(_resize_shorter_side(pixels, self.size), self.size).contiguous()


class FileImages:
    """Image files, decoded and fitted when read.

    `mode` is "L" (grey) or "RGB"; by default the first file decides. Reading raises ValueError
    for a file that is no 8-bit image, is damaged, or differs in size from the first.
    """

    def __init__(self, paths: Sequence[Path | str], fit: Fit, mode: str | None = None) -> None:
        self.paths = [str(path) for path in paths]
        self.fit = fit
        pixels, self.mode = _decode(self.paths[0], mode)
        self.shape = tuple(self._fitted(0, pixels).shape)  # (c, h, w)

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, rows: Sequence[int]) -> Tensor:
        """The images at `rows`, uint8 (k, c, h, w)."""
        out = torch.empty((len(rows), *self.shape), dtype=torch.uint8)
        for k, row in enumerate(rows):
            image = self._fitted(row, _decode(self.paths[row], self.mode)[0])
            if image.shape != self.shape:
                raise ValueError(
                    f"{self.paths[row]} is {_size(image)} where {self.paths[0]} is "
                    f"{self.shape[1]}x{self.shape[2]}; give --data.size to bring all to one size"
                )
            out[k] = image
        return out

    def read_all(self) -> Tensor:
        """Every image, uint8 (n, c, h, w), decoded by as many threads as there are cores."""
        chunks = [range(i, min(i + 64, len(self))) for i in range(0, len(self), 64)]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return torch.cat(list(pool.map(self.read, chunks)))

    def _fitted(self, row: int, pixels: Tensor) -> Tensor:
        try:
            return self.fit(pixels[None])[0]
        except ValueError as error:
            raise ValueError(f"{self.paths[row]}: {error}") from None


def _decode(path: str, mode: str | None) -> tuple[Tensor, str]:
    """The image in `path` as uint8 (c, h, w), and its mode."""
    image, grey = open_picture(path)
    if mode == "L" and not grey:
        raise ValueError(f"{path} is a colour image where the first image is grey")
    mode = mode or ("L" if grey else "RGB")
    return pixels_of(image.convert(mode)), mode


def _resize_shorter_side(pixels: Tensor, size: int) -> Tensor:
    from PIL import Image

    count, channels, height, width = pixels.shape
    short = min(height, width)
    height, width = size * height // short, size * width // short
    out = torch.empty((count, channels, height, width), dtype=torch.uint8)
    for k, image in enumerate(pixels.permute(0, 2, 3, 1).numpy()):
        picture = Image.fromarray(np.ascontiguousarray(image[..., 0] if channels == 1 else image))
        resized = np.array(picture.resize((width, height), Image.Resampling.BILINEAR))
        out[k] = torch.from_numpy(resized.reshape(height, width, channels)).permute(2, 0, 1)
    return out


def _centre_crop(pixels: Tensor, side: int) -> Tensor:
    # Half a pixel rounds to even, as torchvision's CenterCrop does.
    top, left = (round((length - side) / 2) for length in pixels.shape[-2:])
    return pixels[..., top : top + side, left : left + side]


def _size(pixels: Tensor) -> str:
    return f"{pixels.shape[-2]}x{pixels.shape[-1]}"
