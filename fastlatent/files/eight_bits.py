"""Images in 8 bits, as files hold them and networks for features see them."""

import torch
from torch import Tensor


def to_uint8(images: Tensor) -> Tensor:
    """Images in [0, 1] in 8 bits: floor(255 x + 0.5), clipped to 0..255; uint8 as it is.

    Halves go up, as in the published protocol of the LBAE. TypeError for other integers, ValueError
    for NaN.
    """
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise TypeError(f"to_uint8: images must be uint8 or floating point; got {images.dtype}")
    if images.isnan().any():
        raise ValueError("to_uint8: images must be numbers; got NaN")
    # At least float32: 255 x + 0.5 in half precision would round a second time.
    wide = images.to(torch.promote_types(images.dtype, torch.float32))
    return (255 * wide + 0.5).floor_().clamp_(0, 255).to(torch.uint8)
