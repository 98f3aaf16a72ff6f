"""Arguments as other code holds them, turned into those of the mixture's ops."""

import torch
from torch import Tensor

from fastlatent.ops import _check
from fastlatent.ops._register import strict
from fastlatent.ops.logistic.arguments import check_grid, check_mixture
from fastlatent.ops.logistic.cell import widen
from fastlatent.ops.logistic.grid import Grid

GRID_TOLERANCE = 0.01  # bins by which a value may miss the centre of its own, beside rounding


def from_pixelcnn(
    x: Tensor,  # (n, 3 or 1, h, w) in [-1, 1]
    params: Tensor,  # (n, 10 K or 3 K, h, w)
    n_bins: int = 256,
) -> tuple[Tensor, Tensor]:  # bins (n, c, h, w), params
    """For PyTorch ports of PixelCNN++: what `discretized_mix_logistic_loss(x, params)` takes.

    `-discretized_logistic_mixture_log_prob(*from_pixelcnn(x, params)).sum()` is that loss where its
    own is right. It differs for bins of probability below 1e-5. For these the loss takes the
    density at the bin's centre, up to 2.15 nats a channel too low at log-scale -7; and, in float32,
    just above that, where the difference of two sigmoids cancels. The order of the parameters is
    the same.

    Raises TypeError for an x that is not floating. Raises ValueError for params that do not fit
    and, as `nearest_bins` does, for an x that is off the grid 2 k / (n_bins - 1) - 1.
    """
    _check.tensor("from_pixelcnn", "x", x, 4, _check.FLOATING)
    grid = check_grid("from_pixelcnn", n_bins, "centred", None)
    check_mixture("from_pixelcnn", params, x.shape[1], None, grid)
    return centred_bins("from_pixelcnn", x, grid.n), params


def from_vdvae(
    x: Tensor,  # (n, h, w, 3) in [-1, 1]
    params: Tensor,  # (n, h, w, 10 K)
    low_bit: bool = False,
) -> tuple[Tensor, Tensor]:  # bins (n, 3, h, w), params (n, 10 K, h, w)
    """For VDVAE's `DmolNet`: the arguments of its `nll`, views with the channels in their place.

    `nll` is `-discretized_logistic_mixture_log_prob(*from_vdvae(x, params)) / (h w 3)`. It differs
    where PixelCNN++'s loss does, see `from_pixelcnn`.

    With `low_bit` add `n_bins=32`. x is VDVAE's and Efficient-VDVAE's 5-bit data, x = 8 k / 127.5 -
    1 for k = 0 ... 31, or all of it 2 k / 31 - 1; the grid that x is nearer to is taken. The bins
    are exact, but on data of 8 k / 127.5 - 1 the likelihood can't equal `nll`. That takes bins of
    half-width 1 / 31 about x, more than half their spacing of 8 / 127.5. So its 32 "probabilities"
    add up to more than 1. Here bin k is centred at 2 k / 31 - 1.

    Raises as `from_pixelcnn`, and TypeError for a `low_bit` that is no bool.
    """
    _check.tensor("from_vdvae", "x", x, 4, _check.FLOATING)
    _check.tensor("from_vdvae", "params", params, 4, _check.FLOATING)
    planes = params.permute(0, 3, 1, 2)
    check_mixture("from_vdvae", planes, x.shape[3], True, Grid.of(256, "centred", None))
    x = x.permute(0, 3, 1, 2)
    if _check.flag("from_vdvae", "low_bit", low_bit):
        return _low_bins(x), planes
    return centred_bins("from_vdvae", x, 256), planes


def _low_bins(x: Tensor) -> Tensor:
    """Bins of 5-bit data on one of two grids, chosen without waiting for the device."""
    wide = widen(x)

    def miss(half: float) -> Tensor:
        place = (wide + 1) * half
        return (place - place.round()).abs().sum()

    half = torch.where(miss(31 / 2) < miss(127.5 / 8), 31 / 2, 127.5 / 8)
    expectation = "from_vdvae: x must be 8 k / 127.5 - 1 or 2 k / 31 - 1, k in 0 to 31, all alike"
    return nearest_bins(expectation, x, half, half, 32)


def centred_bins(op: str, x: Tensor, n_bins: int) -> Tensor:
    half = (n_bins - 1) / 2
    return nearest_bins(
        f"{op}: x must be 2 k / {n_bins - 1} - 1, from -1 to 1", x, half, half, n_bins
    )


def nearest_bins(
    expectation: str,  # what the message says before the first value that is off the grid
    x: Tensor,
    factor: float | Tensor,
    shift: float | Tensor,
    n_bins: int,
) -> Tensor:  # int32, like x
    """The bins k nearest to factor x + shift.

    Raises ValueError for values that are no bin, NaN among them, on a CPU and under
    FASTLATENT_STRICT=1; elsewhere looking would wait for the device, and under torch.compile break
    the graph. There a value beyond the ends, and NaN, become a bin off the grid, for the op to
    refuse.
    """
    place = widen(x) * factor + shift
    bins = place.round()
    if (x.device.type == "cpu" or strict()) and not torch.compiler.is_compiling():
        rounding = factor * torch.finfo(x.dtype).eps / 2  # of images computed in that precision
        near = (place - bins).abs() <= min(0.4, float(GRID_TOLERANCE + rounding))
        near &= (bins >= 0) & (bins < n_bins)
        if not near.all():
            raise ValueError(f"{expectation}; got {x[~near][0].item():.6g}")
        return bins.int()
    # Of NaN and of numbers beyond int32 the conversion may make any bin.
    return bins.clamp(-1, n_bins).nan_to_num(-1).int()
