"""Sampling binary codes from a Gaussian thresholded at zero (a Bernoulli copula).

With unit rows h_i of the factor and g ~ N(0, I), P(sign <h_i, g> = sign <h_j, g>) = 1/2 +
arcsin(<h_i, h_j>) / pi (Sheppard 1899; Goemans and Williamson 1995, lemma 3.2). The last row
belongs to a reference bit that is constantly +1: multiplying by its sign turns second moments with
it into means (Fajtl et al. 2020, section 4).
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from fastlatent.ops import _check
from fastlatent.ops._precision import full_precision
from fastlatent.ops._register import register, stream, threads
from fastlatent.ops.bits import pack_signs, signs

_DTYPES = (torch.float32, torch.float64)
_CHUNK_BYTES = 1 << 25  # projections held at a time


def _reference(factor: Tensor, noise: Tensor, packed: bool) -> Tensor:
    raw = signs(noise.double() @ factor.double().mT).to(factor.dtype)
    codes = raw[:, :-1] * raw[:, -1:]
    return pack_signs(codes) if packed else codes


def _decided(factor: Tensor, noise: Tensor, packed: bool) -> Tensor:
    """Where rounding in the product can't change the code: as a mask of elements, or of bits."""
    factor, noise, eps = factor.double(), noise.double(), torch.finfo(factor.dtype).eps
    far = (noise @ factor.mT).abs() > 4 * eps * (noise.abs() @ factor.abs().mT)
    mask = far[:, :-1] & far[:, -1:]
    return pack_signs(mask) if packed else mask


def _cases(device: str, dtype: torch.dtype) -> Iterator[tuple]:
    make = torch.Generator().manual_seed(0)
    for n, d, r in [(64, 64, 65), (1, 1, 1), (5, 31, 7), (33, 200, 201), (7, 65, 3), (0, 9, 4)]:
        factor = torch.randn(d + 1, r, generator=make, dtype=torch.float64).to(device, dtype)
        noise = torch.randn(n, r, generator=make, dtype=torch.float64).to(device, dtype)
        for packed in (False, True):
            yield factor, noise, packed
    wide = torch.randn(40, 26, generator=make, dtype=torch.float64).to(device, dtype)
    yield wide[:, ::2], wide[::3, 1::2], False


def _cpp(core: Any, factor: Tensor, noise: Tensor, packed: bool) -> Tensor:
    def align(projections: Tensor, codes: Tensor) -> None:
        core.copula_align(projections, codes, packed, threads())

    return _sample(align, factor, noise, packed)


def _cuda(core: Any, factor: Tensor, noise: Tensor, packed: bool) -> Tensor:
    def align(projections: Tensor, codes: Tensor) -> None:
        core.copula_align_cuda(projections, codes, packed, stream(factor.device))

    return _sample(align, factor, noise, packed)


def _sample(
    align: Callable[[Tensor, Tensor], None], factor: Tensor, noise: Tensor, packed: bool
) -> Tensor:
    """The product in chunks of bounded memory, each handed to the epilogue at once."""
    n, d = noise.shape[0], factor.shape[0] - 1
    if packed:
        codes = noise.new_empty((n, -(-d // 64)), dtype=torch.int64)
    else:
        codes = noise.new_empty((n, d))
    rows = max(1, _CHUNK_BYTES // ((d + 1) * factor.element_size()))
    with full_precision(factor.device.type):
        for start in range(0, n, rows):
            align(noise[start : start + rows] @ factor.mT, codes[start : start + rows])
    return codes


_op = register(
    "bernoulli_copula_sample(Tensor factor, Tensor noise, bool packed) -> Tensor",
    _reference,
    cases=_cases,
    gradient="none",
    discrete=(0,),
    decided=_decided,
    dtypes=_DTYPES,
    cpp=_cpp,
    cuda=_cuda,
)


@_op.public
def bernoulli_copula_sample(
    factor: Tensor,  # (d + 1, r), unit rows; the last row is the reference bit
    noise: Tensor,  # (n, r), standard normal
    packed: bool = False,
) -> Tensor:  # (n, d) codes +/-1 in factor's dtype, or (n, ceil(d / 64)) int64 packed
    """Codes sign(noise factor^T), each times the sign of its last coordinate, which is dropped.

    With R = factor factor^T and * its last row, the codes have P(v_i = v_j) = 1/2 + arcsin(R_ij) /
    pi. Their means are E[v_i] = (2 / pi) arcsin(R_i*). The product runs in the precision of the
    arguments, never in TensorFloat-32 or bfloat16: rounding there biases rare bits. It is BLAS's
    own, so another number of threads may turn the sign of a projection that is zero but for
    rounding.

    Raises TypeError for dtypes other than float32 and float64 or for unequal ones. Raises
    ValueError for shapes or devices that do not fit.
    """
    _check.tensor("bernoulli_copula_sample", "factor", factor, 2, _DTYPES)
    _check.tensor("bernoulli_copula_sample", "noise", noise, 2, _DTYPES)
    _check.alike("bernoulli_copula_sample", factor=factor, noise=noise)
    if factor.shape[0] < 1:
        raise ValueError("bernoulli_copula_sample: factor must have at least the reference row")
    if noise.shape[1] != factor.shape[1]:
        raise ValueError(
            f"bernoulli_copula_sample: noise must have as many columns as factor, "
            f"{factor.shape[1]}; got {noise.shape[1]}"
        )
    packed = _check.flag("bernoulli_copula_sample", "packed", packed)
    return _op(factor, noise, packed)
