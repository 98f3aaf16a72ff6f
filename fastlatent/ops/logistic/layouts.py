"""Arguments as other code holds them, turned into those of the mixture's ops."""

import torch
from torch import Tensor

from fastlatent.ops import _check
from fastlatent.ops.logistic.arguments import check_params


def from_pixelcnn(
    x: Tensor,  # (n, 3 or 1, h, w) in [-1, 1]
    params: Tensor,  # (n, 10 K or 3 K, h, w)
    n_bins: int = 256,
) -> tuple[Tensor, Tensor]:  # bins (n, c, h, w), params
    """For PyTorch ports of PixelCNN++: what `discretized_mix_logistic_loss(x, params)` takes.

    `-discretized_logistic_mixture_log_prob(*from_pixelcnn(x, params)).sum()` is that loss where
    its own is right. It differs for bins of probability below 1e-5, for which the loss takes the
    density at the bin's centre, up to 2.15 nats a channel too low at log-scale -7; and, in
    float32, just above that, where the difference of two sigmoids cancels. The order of the
    parameters is the same.

    Raises TypeError for an x that is not floating, ValueError for params that do not fit.
    """
    _check.tensor("from_pixelcnn", "x", x, 4, _check.FLOATING)
    check_params("from_pixelcnn", params, x.shape[1], None, "centred")
    return _nearest_bins(x, n_bins), params


def from_vdvae(
    x: Tensor,  # (n, h, w, 3) in [-1, 1]
    params: Tensor,  # (n, h, w, 10 K)
    low_bit: bool = False,
) -> tuple[Tensor, Tensor]:  # bins (n, 3, h, w), params (n, 10 K, h, w)
    """For VDVAE's `DmolNet`: the arguments of its `nll`, views with the channels in their place.

    `nll` is `-discretized_logistic_mixture_log_prob(*from_vdvae(x, params)) / (h w 3)`; with
    `low_bit` add `n_bins=32`. It differs where PixelCNN++'s loss does, see `from_pixelcnn`.

    Raises TypeError for an x that is not floating, ValueError for params that do not fit.
    """
    _check.tensor("from_vdvae", "x", x, 4, _check.FLOATING)
    _check.tensor("from_vdvae", "params", params, 4, _check.FLOATING)
    planes = params.permute(0, 3, 1, 2)
    check_params("from_vdvae", planes, x.shape[3], True, "centred")
    return _nearest_bins(x.permute(0, 3, 1, 2), 32 if low_bit else 256), planes


def _nearest_bins(x: Tensor, n_bins: int) -> Tensor:
    """int32, so that the op still sees a value beyond [-1, 1] as a bin off the grid."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return ((wide + 1) * ((n_bins - 1) / 2)).round().int()
