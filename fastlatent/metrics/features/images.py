"""Images as metrics take them: decoded, in 8 bits, through JPEG, of one size."""

import io

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastlatent.files.eight_bits import to_uint8


def check_images(name: str, images: Tensor) -> None:
    """Raise unless the images are (n, c, h, w) with 1 or 3 channels, uint8 or within [0, 1]."""
    if images.dim() != 4 or images.shape[1] not in (1, 3) or 0 in images.shape[2:]:
        raise ValueError(
            f"{name}: images must be (n, c, h, w) with 1 or 3 channels; got {tuple(images.shape)}"
        )
    if images.dtype == torch.uint8 or not images.numel():
        return
    if not images.is_floating_point():
        raise TypeError(f"{name}: images must be uint8 or floating point; got {images.dtype}")
    low, high = (float(bound) for bound in torch.aminmax(images))
    if not (low >= 0 and high <= 1):  # false for NaN
        raise ValueError(
            f"{name}: floating-point images must lie in [0, 1]; got {low:.4g} to {high:.4g}"
        )


def to_unit(images: Tensor) -> Tensor:
    """Images in [0, 1], float32: uint8 divided by 255, half precision widened, others as are."""
    if images.dtype == torch.uint8:
        return images.float().div_(255)
    return images.to(torch.promote_types(images.dtype, torch.float32))


def jpeg_round_trip(images: Tensor, quality: int = 75, rgb: bool = False) -> Tensor:
    """Images (n, c, h, w) through 8 bits and Pillow's JPEG and back: uint8 on their device.

    Chroma is subsampled, as Pillow does by default. Grey images are stored as grey; `rgb` returns
    them as 3 equal channels. With the default quality this is how the published protocol of the
    LBAE stored all images before it took their features.
    """
    from PIL import Image

    check_images("jpeg_round_trip", images)
    if not 1 <= quality <= 95:
        raise ValueError(f"jpeg_round_trip: quality must lie in 1 to 95; got {quality}")
    n, c, h, w = images.shape
    out = torch.empty((n, 3 if rgb else c, h, w), dtype=torch.uint8)
    for row, pixels in zip(out, to_uint8(images).cpu(), strict=True):
        picture = Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).squeeze(-1).numpy()))
        stored = io.BytesIO()
        picture.save(stored, "JPEG", quality=quality)
        with Image.open(stored, formats=("JPEG",)) as read:
            read_back = torch.from_numpy(np.array(read.convert("RGB" if len(row) == 3 else "L")))
            row.copy_(read_back.view(h, w, len(row)).permute(2, 0, 1))
    return out.to(images.device)


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images (n, c, h, w) to (height, width), bicubic and antialiased: in [0, 1], float32.

    The two sides are scaled on their own, as FID's networks do. Nothing is rounded to 8 bits
    ("clean": G. Parmar, R. Zhang, J.-Y. Zhu, "On Aliased Resizing and Surprising Subtleties in GAN
    Evaluation", CVPR 2022). Images of that size come back as they are.
    """
    if tuple(images.shape[2:]) == size:
        return images
    resized = F.interpolate(to_unit(images), size, mode="bicubic", antialias=True)
    return resized.clamp_(0, 1)


def with_channels(name: str, images: Tensor, channels: int) -> Tensor:
    """Images (n, c, h, w) with 1 or 3 channels: grey repeated, equal colours as grey.

    Raises ValueError for colours where `channels` is 1.
    """
    if channels == 1 and images.shape[1] == 3:
        if not (images == images[:, :1]).all():
            raise ValueError(f"{name}: there are colour images where grey ones are expected")
        return images[:, :1]
    return images.expand(-1, channels, -1, -1)
