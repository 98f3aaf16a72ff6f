"""Images and latents as a caller has them, made into those that a model takes."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastlatent.files.arrays import bits_among, native, taken_as_white
from fastlatent.jobs.progress import say
from fastlatent.models import LatentModel


def images_for(model: LatentModel, name: str, x: Any) -> Tensor:  # (n, c, h, w)
    """One image or a batch, tensor or array, as float32 in [0, 1] on the model's device.

    `x` is (c, h, w) or (n, c, h, w), uint8, bool or floats in [0, 1]. Channels may come last where
    that is the only reading. Grey images may be (h, w) or (n, h, w). Values of uint8 that are all 0
    or 1 are black and white, as in files; a note says so.

    Raises TypeError for what is no such array, ValueError for another shape or range; both name the
    argument by `name`.
    """
    c, h, w = model.image_shape
    expected = f"{name} must be images ({c}, {h}, {w}) or (n, {c}, {h}, {w})"
    x = _tensor_of(x, expected)
    if x.dtype not in (torch.uint8, torch.bool) and not x.is_floating_point():
        raise TypeError(f"{expected}, uint8, bool or floats in [0, 1]; got {x.dtype}")
    shape = tuple(x.shape)
    if c == 1 and len(shape) in (2, 3) and shape[-2:] == (h, w):
        x = x.reshape(-1, 1, h, w)
    elif len(shape) in (3, 4) and shape[-3:] == (c, h, w):
        x = x.reshape(-1, c, h, w)
    elif len(shape) in (3, 4) and shape[-3:] == (h, w, c):
        x = x.reshape(-1, h, w, c).permute(0, 3, 1, 2)
    else:
        raise ValueError(f"{expected}; got {shape}")
    if x.dtype == torch.uint8:
        bits = bits_among(name, {name: x.numpy(force=True)})
        if bits:
            say(taken_as_white(bits))
            x = x.bool()
    device = next(model.parameters()).device
    if x.dtype == torch.uint8:
        # A true division on every device, as a split's batches have it.
        return x.to(device).float().div_(torch.tensor(255.0, device=device))
    x = x.to(device).float()
    low, high = (float(bound) for bound in torch.aminmax(x)) if x.numel() else (0, 0)
    if not (low >= 0 and high <= 1):  # false for NaN
        raise ValueError(
            f"{name} must hold floats in [0, 1], or uint8 in 0 to 255; got {low:.4g} to {high:.4g}"
        )
    return x


def latents_for(model: LatentModel, name: str, z: Any) -> Tensor:  # (n, d)
    """One vector of latents or a batch, tensor or array, in float32 on the model's device.

    Raises TypeError for what is no array of numbers. Raises ValueError for another shape, for
    numbers that are not finite, and for bits other than +1 and -1; all name the argument by `name`.
    """
    d = model.latent_dim
    kind = "bits, +1 and -1," if model.latent_kind == "bits" else "real latents"
    expected = f"{name} must be {kind} ({d},) or (n, {d})"
    z = _tensor_of(z, expected)
    if z.dtype == torch.bool or z.is_complex():
        raise TypeError(f"{expected}; got {z.dtype}")
    if z.dim() not in (1, 2) or z.shape[-1] != d:
        raise ValueError(f"{expected}; got {tuple(z.shape)}")
    z = z.reshape(-1, d).to(next(model.parameters()).device).float()
    if not z.isfinite().all():
        raise ValueError(f"{expected}; got NaN or infinite numbers")
    if model.latent_kind == "bits" and not (z.abs() == 1).all():
        other = z[z.abs() != 1][0]
        raise ValueError(f"{expected}; got {other:.4g} among them")
    return z


def _tensor_of(given: Any, expected: str) -> Tensor:
    if isinstance(given, np.ndarray) and given.dtype.kind in "biuf":
        # A copy where memory is read-only or runs backwards, which tensors cannot have.
        given = torch.from_numpy(np.require(native(given), requirements=("C", "W")))
    if isinstance(given, np.ndarray):
        raise TypeError(f"{expected}; got an array of {given.dtype}")
    if not isinstance(given, Tensor):
        raise TypeError(f"{expected}, as a tensor or a NumPy array; got {type(given).__name__}")
    return given.detach()
