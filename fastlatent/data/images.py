"""From pictures of any size to uint8 tensors of one size."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastlatent.files.image_files import BACKGROUND, decode
from fastlatent.files.image_folders import survey
from fastlatent.jobs.naming import setting
from fastlatent.jobs.progress import track


@dataclass(frozen=True)
class Fit:
    """Brings uint8 images (n, c, h, w) to `size` x `size`.

    28x28 to 32 is a black border of 2 pixels. All else: centre crop to `crop` if given, shorter
    side to `size` (Pillow's bilinear filter, antialiased, in 8 bits), centre crop to `size`.
    """

    size: int | None = None
    crop: int | None = None

    def __call__(self, pixels: Tensor) -> Tensor:
        self.size_of(*pixels.shape[-2:])
        if self.crop is not None:
            pixels = _centre_crop(pixels, self.crop)
        height, width = pixels.shape[-2:]
        if self.size is None or height == width == self.size:
            return pixels.contiguous()
        if height == width == 28 and self.size == 32:
            return torch.nn.functional.pad(pixels, (2, 2, 2, 2))
        return _centre_crop(_resize_shorter_side(pixels, self.size), self.size).contiguous()

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of what such images become; ValueError where the crop is larger."""
        if self.crop is not None and self.crop > min(height, width):
            raise ValueError(
                f"{setting('data.crop')} is {self.crop}, more than images of {height}x{width} have"
            )
        side = self.size or self.crop
        return (height, width) if side is None else (side, side)


class FileImages:
    """Image files, decoded and fitted when read.

    They have 1 or 3 `channels`; by default the first file decides. Transparent pixels are laid on
    `background`. Raises ValueError for a file that is no 8-bit image or differs in size from the
    first: at once, for headers are read before anything else. Damage behind a header, and the
    headers of a set as it was published, are met when a file is read. `notes` say what is done to
    some of the files.
    """

    def __init__(
        self,
        paths: Sequence[Path | str],
        fit: Fit,
        channels: int | None = None,
        background: str = BACKGROUND,
        published: bool = False,  # the files are known to agree
    ) -> None:
        self.paths = [str(path) for path in paths]
        self.fit = fit
        self.background = background
        looked = self.paths[:1] if published else self.paths
        found = survey(looked, channels, background, every=fit.size is None)
        self.channels, self.notes = found.channels, found.notes
        (size, first), *others = found.sizes.items()
        self.shape = (self.channels, *self._fitted_size(first, size))  # (c, h, w)
        for size, path in others:
            self._check(path, self._fitted_size(path, size))

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, rows: Sequence[int]) -> Tensor:
        """The images at `rows`, uint8 (k, c, h, w)."""
        out = torch.empty((len(rows), *self.shape), dtype=torch.uint8)
        for k, row in enumerate(rows):
            path = self.paths[row]
            pixels = decode(path, self.channels, self.background)
            _, height, width = pixels.shape
            self._check(path, self._fitted_size(path, (height, width)))
            out[k] = self.fit(pixels[None])[0]
        return out

    def read_all(self) -> Tensor:
        """Every image, uint8 (n, c, h, w), decoded by as many threads as there are cores."""
        chunks = [range(i, min(i + 64, len(self))) for i in range(0, len(self), 64)]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            parts = pool.map(self.read, chunks)
            return torch.cat(list(track(parts, "decoding images", len(chunks))))

    def _fitted_size(self, path: Path | str, size: tuple[int, int]) -> tuple[int, int]:
        try:
            return self.fit.size_of(*size)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def _check(self, path: Path | str, size: tuple[int, int]) -> None:
        if size != self.shape[1:]:
            raise ValueError(
                f"{path} is {size[0]}x{size[1]} where {self.paths[0]} is "
                f"{self.shape[1]}x{self.shape[2]}; give {setting('data.size')} to bring all "
                "to one"
            )


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
