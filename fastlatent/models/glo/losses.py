"""Losses between images in [-1, 1], one value for each image, means over its pixels."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from fastlatent.models.glo.config import Bands, GLOConfig, Kernel
from fastlatent.nn import at_least_float32

ImageLoss = Callable[[Tensor, Tensor], Tensor]  # two (n, c, h, w) -> (n,)
WINDOW, STRIDE = 4, 2  # of local moments


def local_moment_loss(x: Tensor, y: Tensor) -> Tensor:  # (n,)
    """Mean absolute differences of local means and of local variances, added up.

    Over all windows of 4x4 pixels, 2 apart, of each channel; variances with divisor 16. It does
    not see the sign of detail: a checkerboard and its negative have loss 0.
    """
    _check_pair("local_moment_loss", x, y)
    (mean_x, var_x), (mean_y, var_y) = _moments(x), _moments(y)
    return _mean(mean_x - mean_y) + _mean(var_x - var_y)


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    mean = F.avg_pool2d(x, WINDOW, STRIDE)
    return mean, F.avg_pool2d(x.square(), WINDOW, STRIDE) - mean.square()


def laplacian_loss(
    x: Tensor,  # (n, c, h, w)
    y: Tensor,  # (n, c, h, w)
    levels: int = 3,
    kernel: Kernel = "binomial",
    bands: Bands = "low_pass",
) -> Tensor:  # (n,)
    """Mean absolute differences of each band and of the residual, added up.

    By the means this is sum_j 4^j |L_j x - L_j y|_1 divided by the number of pixels, the
    weighting of P. Bojanowski, A. Joulin, D. Lopez-Paz, A. Szlam, "Optimizing the Latent Space of
    Generative Networks", ICML 2018, arXiv 1707.05776.
    """
    _check_pair("laplacian_loss", x, y)
    # The pyramid is linear: that of the difference is the difference of both.
    pyramid = laplacian_pyramid(x - y, levels, kernel, bands)
    return torch.stack([_mean(band) for band in pyramid]).sum(0)


def laplacian_pyramid(
    x: Tensor,  # (n, c, h, w)
    levels: int = 3,
    kernel: Kernel = "binomial",
    bands: Bands = "low_pass",
) -> list[Tensor]:
    """The bands, finest first, and the residual: each (n, c, h', w') of half the size before.

    low_pass: a band is an image less its low-pass, which 2x2 means bring to the next level (an odd
    last row or column is dropped). burt_adelson: every second pixel of the low-pass goes on, and is
    expanded again to be taken off, as P. Burt and E. Adelson do, "The Laplacian Pyramid as a
    Compact Image Code", IEEE Transactions on Communications 31, 1983. Borders are replicated.
    """
    if bands == "burt_adelson" and kernel != "binomial":
        raise ValueError("laplacian_pyramid: bands burt_adelson needs the kernel binomial")
    if min(x.shape[-2:]) >> levels < 1:
        raise ValueError(
            f"laplacian_pyramid: {levels} levels halve an image of {x.shape[-2]}x{x.shape[-1]} "
            "to nothing"
        )
    pyramid = []
    for _ in range(levels):
        smooth = _low_pass(x, kernel)
        if bands == "low_pass":
            pyramid.append(x - smooth)
            x = F.avg_pool2d(smooth, 2)
        else:
            smaller = smooth[..., ::2, ::2]
            pyramid.append(x - _expand(_expand(smaller, x.shape[-2], -2), x.shape[-1], -1))
            x = smaller
    return [*pyramid, x]


def low_pass_kernel(kernel: Kernel) -> Tensor:  # (5, 5) float64, sums to 1
    """binomial: (1, 4, 6, 4, 1) / 16 in both directions.

    laploss: the sum, not the product, of the profiles exp(-a^2 / 4), as the known program has it.
    """
    place = torch.arange(-2, 3, dtype=torch.float64)
    if kernel == "binomial":
        profile = torch.tensor([1, 4, 6, 4, 1], dtype=torch.float64) / 16
        return profile[:, None] * profile
    profile = (-place.square() / 4).exp()
    weights = profile[:, None] + profile
    return weights / weights.sum()


def _low_pass(x: Tensor, kernel: Kernel) -> Tensor:
    n, c, h, w = x.shape
    padded = F.pad(x.reshape(n * c, 1, h, w), (2, 2, 2, 2), mode="replicate")
    weights = low_pass_kernel(kernel).to(padded)
    return F.conv2d(padded, weights[None, None]).reshape(n, c, h, w)


def _expand(x: Tensor, length: int, axis: int) -> Tensor:
    """Twice as long along an axis, by the binomial kernel between zeros, times 2."""
    before = torch.cat([x.narrow(axis, 0, 1), x.narrow(axis, 0, x.shape[axis] - 1)], axis)
    after = torch.cat([x.narrow(axis, 1, x.shape[axis] - 1), x.narrow(axis, -1, 1)], axis)
    pair = torch.stack([(before + 6 * x + after) / 8, (x + after) / 2], axis)
    # Stacked behind the axis counted from the end: entries of a pair follow one another.
    return pair.flatten(axis - 1, axis).narrow(axis, 0, length)


def squared_error(x: Tensor, y: Tensor) -> Tensor:  # (n,)
    """Mean squared error of each image's pixels."""
    _check_pair("squared_error", x, y)
    return (x - y).square().flatten(1).mean(1)


def absolute_error(x: Tensor, y: Tensor) -> Tensor:  # (n,)
    """Mean absolute error of each image's pixels."""
    _check_pair("absolute_error", x, y)
    return _mean(x - y)


def image_loss(config: GLOConfig) -> ImageLoss:
    """The loss of the configuration."""
    losses: dict[str, ImageLoss] = {
        "laplacian": partial(
            laplacian_loss, levels=config.levels, kernel=config.kernel, bands=config.bands
        ),
        "moments": local_moment_loss,
        "mse": squared_error,
        "l1": absolute_error,
    }
    chosen, weight = losses[config.loss], config.squared_weight
    if not weight:
        return chosen
    return lambda x, y: chosen(x, y) + weight * squared_error(x, y)


def in_full_precision(loss: ImageLoss, x: Tensor, y: Tensor) -> Tensor:  # (n,)
    """The loss in float32 at least, also where the networks compute in half of it."""
    with torch.autocast(x.device.type, enabled=False):
        return loss(at_least_float32(x), at_least_float32(y))


def _mean(x: Tensor) -> Tensor:
    return x.abs().flatten(1).mean(1)


def _check_pair(name: str, x: Tensor, y: Tensor) -> None:
    if x.dim() != 4 or x.shape != y.shape:
        raise ValueError(
            f"{name}: x and y must be images (n, c, h, w) of one shape; "
            f"got {tuple(x.shape)} and {tuple(y.shape)}"
        )
