"""Binary codes as numbers and under a model: indices of codes, likelihood of bits.

Both are a few operations of PyTorch; the kernels they stand on are those of `bits`.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from fastlatent.ops import _check
from fastlatent.ops.bits import unpack_bits

ORDERS = ("lsb", "msb")
_MOST_BITS = 63


def code_indices(
    codes: Tensor,  # (..., d); a coordinate above 0 is a set bit
    order: str = "lsb",
) -> Tensor:  # (...) int64, from 0 to 2^d - 1
    """The number of each code. Coordinate j counts 2^j ("lsb"), or 2^(d - 1 - j) ("msb").

    "lsb" is the order of `pack_bits` and of `binary_entropy`, "msb" that of lookup-free
    quantisation.

    Raises TypeError for a dtype that is not floating, ValueError for another order, a scalar and
    more than 63 coordinates.
    """
    _check.tensor("code_indices", "codes", codes, None, _check.FLOATING)
    _check.choice("code_indices", "order", order, ORDERS)
    d = codes.shape[-1]
    if d > _MOST_BITS:
        raise ValueError(
            f"code_indices: codes must have at most {_MOST_BITS} coordinates, which fit an index; "
            f"got {d}: use the words of pack_bits"
        )
    place = torch.arange(d, device=codes.device)
    return ((codes > 0).long() << (place if order == "lsb" else place.flip(0))).sum(-1)


def bernoulli_log_prob(
    codes: Tensor,  # (n, d) of +/-1 in logits' dtype, or (n, ceil(d / 64)) int64, packed
    logits: Tensor,  # (n, d)
) -> Tensor:  # (n,) nats
    """log P(c | a) = -sum_j softplus(-c_j a_j): the likelihood of bits under independent logits.

    The sum is in float32, or float64 for such logits. Its gradient by the logits is
    c_j sigmoid(-c_j a_j); codes have none.

    Raises TypeError for logits that are not floating and codes of another dtype. Raises ValueError
    for shapes or devices that do not fit.
    """
    op = "bernoulli_log_prob"
    _check.tensor(op, "logits", logits, 2, _check.FLOATING)
    _check.tensor(op, "codes", codes, 2, (torch.int64, *_check.FLOATING))
    n, d = logits.shape
    if codes.device != logits.device:
        raise ValueError(
            f"{op}: codes must be on the device of logits, {logits.device}; got {codes.device}"
        )
    packed = codes.dtype == torch.int64
    shape = (n, -(-d // 64)) if packed else (n, d)
    if tuple(codes.shape) != shape:
        kind = "packed codes" if packed else "codes"
        raise ValueError(f"{op}: {kind} must be {shape} for these logits; got {tuple(codes.shape)}")
    if not packed:
        _check.alike(op, logits=logits, codes=codes)
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    signs = unpack_bits(codes, d, wide.dtype) if packed else codes.detach().to(wide.dtype)
    return logsigmoid(signs * wide).sum(-1)
