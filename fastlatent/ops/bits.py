"""Binary codes: straight-through binarisation, bit packing, and exact second moments.

A code is a vector of +/-1; sign(0) is +1. Packed, bit j of 64-bit word w is coordinate 64 w + j,
set for +1; the padding of the last word is 0.

Straight-through estimators: Bengio, Leonard and Courville 2013, arXiv:1308.3432, section 4; the
"tanh" form is that of the Latent Bernoulli Autoencoder, Fajtl et al. 2020, section 3.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from fastlatent.ops import _check
from fastlatent.ops._register import contiguous_rows, register, strict, threads

SURROGATES = ("identity", "clip", "tanh")


def signs(a: Tensor) -> Tensor:
    """+1 where a >= 0, -1 below, NaN for NaN; in a's dtype."""
    one = torch.ones_like(a)
    return torch.where(a >= 0, one, torch.where(a < 0, -one, a))


def _binarize_backward_reference(grad: Tensor, x: Tensor, surrogate: str) -> Tensor:
    """grad times 1 (identity), [|x| <= 1] (clip) or 1 - tanh(x)^2 (tanh)."""
    wide = _widen(x)
    if surrogate == "tanh":
        slope = 1 - wide.tanh().square()
    elif surrogate == "clip":
        slope = torch.where(wide.isnan(), wide, (wide.abs() <= 1).to(wide.dtype))
    else:
        slope = torch.ones_like(wide)
    return (_widen(grad) * slope).to(x.dtype).contiguous()


class _StraightThrough(torch.autograd.Function):
    """sign(x) forward and the surrogate's derivative backward, under every function transform."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, surrogate: str) -> Tensor:
        return signs(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, ctx.surrogate = inputs
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return _binarize_backward_reference(grad, x, ctx.surrogate), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        (x,) = ctx.saved_tensors
        return _binarize_backward_reference(tangent, x, ctx.surrogate)


def _binarize_reference(x: Tensor, surrogate: str) -> tuple[Tensor, Tensor]:
    codes = _StraightThrough.apply(x, surrogate)
    wide = _widen(x.detach())
    t = wide.tanh() if surrogate == "tanh" else wide
    return codes.contiguous(), (t - signs(wide)).abs().mean(-1).contiguous()


def _binarize_cases(device: str, dtype: torch.dtype) -> Iterator[tuple]:
    for shape in [(64, 64), (3, 1), (2, 5, 31), (7, 33), (4, 1000), (0, 8), (200,)]:
        for surrogate in SURROGATES:
            yield _normal(shape, device, dtype, scale=2.0), surrogate
    wide = _normal((9, 130), device, dtype)
    yield wide[:, ::2], "tanh"
    yield wide.t(), "clip"
    yield _normal((6, 5), device, dtype).t(), "tanh"
    yield _normal((2, 3, 4, 5), device, dtype).to(memory_format=torch.channels_last), "tanh"
    tiny = torch.finfo(dtype).tiny
    edges = [0.0, -0.0, tiny, -tiny, 1.0, -1.0, 30.0, -30.0, 1e4, -1e4]
    yield torch.tensor([edges], dtype=torch.float64).to(device, dtype), "tanh"


def _binarize_backward_cases(device: str, dtype: torch.dtype) -> Iterator[tuple]:
    for x, surrogate in _binarize_cases(device, dtype):
        yield torch.empty_like(x).copy_(_normal(x.shape, device, dtype)), x, surrogate


def _binarize_cpp(core: Any, x: Tensor, surrogate: str) -> tuple[Tensor, Tensor]:
    codes = torch.empty_like(x, memory_format=torch.contiguous_format)
    error = torch.empty(x.shape[:-1], dtype=_wide_dtype(x.dtype))
    core.binarize(_rows(x), SURROGATES.index(surrogate), _rows(codes), error.flatten(), threads())
    return codes, error


def _binarize_backward_cpp(core: Any, grad: Tensor, x: Tensor, surrogate: str) -> Tensor:
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    kind = SURROGATES.index(surrogate)
    core.binarize_backward(_rows(grad), _rows(x), kind, _rows(out), threads())
    return out


_binarize_backward = register(
    "binarize_backward(Tensor grad, Tensor x, str surrogate) -> Tensor",
    _binarize_backward_reference,
    cases=_binarize_backward_cases,
    cpp=_binarize_backward_cpp,
    triton="bits_triton",
)

_binarize = register(
    "binarize(Tensor x, str surrogate) -> (Tensor, Tensor)",
    _binarize_reference,
    cases=_binarize_cases,
    discrete=(0,),
    non_differentiable=(1,),
    cpp=_binarize_cpp,
    triton="bits_triton",
    backward=lambda args, grads: (_binarize_backward(grads[0], *args),),
    surrogate=_binarize_backward_reference,
)


@_binarize.public
def binarize(
    x: Tensor,  # (..., d) logits
    surrogate: str = "tanh",
) -> tuple[Tensor, Tensor]:  # codes (..., d) in x's dtype, error (...)
    """Codes sign(x) with a straight-through gradient, and the quantisation error of each row.

    The error is the mean of |t - code| over the last dimension, in float32 or x's own precision if
    that is higher. It carries no gradient. Here t = tanh(x) for surrogate "tanh", and t = x for
    "identity" and "clip". The gradient of the codes is 1 ("identity"), 1 where |x| <= 1 and 0
    beyond ("clip"), or 1 - tanh(x)^2 ("tanh"). sign(0) = +1; NaN stays NaN.

    Raises TypeError for a dtype that is not floating, ValueError for a scalar or an unknown
    surrogate.
    """
    _check.tensor("binarize", "x", x, None, _check.FLOATING)
    _check.choice("binarize", "surrogate", surrogate, SURROGATES)
    return _binarize(x, surrogate)


def pack_signs(codes: Tensor) -> Tensor:
    """(n, d) to (n, ceil(d / 64)) int64: the definition of `pack_bits`."""
    d = codes.shape[1]
    bits = pad((codes > 0).long(), (0, -d % 64)).unflatten(1, (-(-d // 64), 64))
    return (bits << torch.arange(64, device=codes.device)).sum(-1)


def _pack_bits_cases(device: str, dtype: torch.dtype) -> Iterator[tuple]:
    for shape in [(64, 64), (5, 1), (3, 31), (4, 65), (7, 200), (2, 1000), (0, 70), (6, 0)]:
        yield (signs(_normal(shape, device, dtype)),)
    yield (signs(_normal((9, 130), device, dtype))[:, ::2],)


def _pack_bits_cpp(core: Any, codes: Tensor) -> Tensor:
    n, d = codes.shape
    words = torch.empty(n, -(-d // 64), dtype=torch.int64)
    core.pack_bits(_rows(codes), words, threads())
    return words


_pack_bits = register(
    "pack_bits(Tensor codes) -> Tensor",
    pack_signs,
    cases=_pack_bits_cases,
    gradient="none",
    cpp=_pack_bits_cpp,
    triton="bits_triton",
)


@_pack_bits.public
def pack_bits(
    codes: Tensor,  # (n, d) of +/-1
) -> Tensor:  # (n, ceil(d / 64)) int64
    """Codes as bits: bit j of word w is coordinate 64 w + j, set for +1; padding is 0.

    Raises TypeError for a dtype that is not floating. Raises ValueError for a wrong number of
    dimensions and, on CPU or under FASTLATENT_STRICT=1, for an element that is neither +1 nor -1.
    """
    _check.tensor("pack_bits", "codes", codes, 2, _check.FLOATING)
    if codes.is_cuda and strict() and not bool((codes.abs() == 1).all()):
        raise ValueError("pack_bits: codes must be +1 or -1")
    return _pack_bits(codes)


def _unpack_bits_reference(words: Tensor, d: int, dtype: torch.dtype) -> Tensor:
    bits = (words[:, :, None] >> torch.arange(64, device=words.device)) & 1
    return (2 * bits.flatten(1)[:, :d].to(dtype) - 1).contiguous()


def _unpack_bits_cases(device: str, dtype: torch.dtype) -> Iterator[tuple]:
    for (codes,) in _pack_bits_cases(device, dtype):
        yield pack_signs(codes), codes.shape[1], dtype


def _unpack_bits_cpp(core: Any, words: Tensor, d: int, dtype: torch.dtype) -> Tensor:
    codes = torch.empty(words.shape[0], d, dtype=dtype)
    core.unpack_bits(_rows(words), codes, threads())
    return codes


_unpack_bits = register(
    "unpack_bits(Tensor words, SymInt d, ScalarType dtype) -> Tensor",
    _unpack_bits_reference,
    cases=_unpack_bits_cases,
    gradient="none",
    discrete=(0,),
    cpp=_unpack_bits_cpp,
    triton="bits_triton",
)


@_unpack_bits.public
def unpack_bits(
    words: Tensor,  # (n, ceil(d / 64)) int64
    d: int,
    dtype: torch.dtype = torch.float32,
) -> Tensor:  # (n, d) of +/-1
    """The codes that `pack_bits` packed, in the given floating dtype.

    Raises TypeError for words that are not int64 or a dtype that is not floating. Raises ValueError
    where d does not fit the number of words.
    """
    d = _check_words("unpack_bits", words, d)
    _check.floating_dtype("unpack_bits", "dtype", dtype)
    return _unpack_bits(words, d, dtype)


def _binary_moments_reference(words: Tensor, d: int) -> tuple[Tensor, Tensor]:
    codes = _unpack_bits_reference(words, d, torch.float64)
    n = words.shape[0]
    ones = (codes > 0).sum(0)
    return ones, ((codes.mT @ codes + n) / 2).long()


def _binary_moments_cases(device: str, dtype: torch.dtype) -> Iterator[tuple]:
    for n, d in [(64, 64), (1, 1), (100, 31), (1000, 65), (513, 200), (3, 130), (0, 70), (5, 0)]:
        yield pack_signs(signs(_normal((n, d), device, torch.float64))), d
    yield pack_signs(signs(_normal((40, 256), device, torch.float64)))[::2, ::2], 100


def _binary_moments_cpp(core: Any, words: Tensor, d: int) -> tuple[Tensor, Tensor]:
    ones = torch.empty(d, dtype=torch.int64)
    agree = torch.empty(d, d, dtype=torch.int64)
    scratch = torch.empty(core.binary_moments_scratch(words.shape[0], d), dtype=torch.int64)
    core.binary_moments(_rows(words), ones, agree, scratch, threads())
    return ones, agree


_binary_moments = register(
    "binary_moments(Tensor words, SymInt d) -> (Tensor, Tensor)",
    _binary_moments_reference,
    cases=_binary_moments_cases,
    gradient="none",
    dtypes=(torch.int64,),
    cpp=_binary_moments_cpp,
    triton="bits_triton",
)


@_binary_moments.public
def binary_moments(
    words: Tensor,  # (n, ceil(d / 64)) int64, n packed codes
    d: int,
) -> tuple[Tensor, Tensor]:  # ones (d,) int64, agree (d, d) int64
    """Exact counts: ones[i] codes have +1 at i, agree[i, j] codes have i and j equal.

    Counts of parts of a data set add up. With n codes the mean of coordinate i is 2 ones[i] / n -
    1. The uncentred second moment of i and j is 2 agree[i, j] / n - 1.

    Raises TypeError for words that are not int64, ValueError where d does not fit the number of
    words.
    """
    d = _check_words("binary_moments", words, d)
    return _binary_moments(words, d)


def _check_words(op: str, words: Tensor, d: int) -> int:
    _check.tensor(op, "words", words, 2, (torch.int64,))
    d = _check.whole(op, "d", d, 0, 2**62, "a whole number from 0 up")
    if words.shape[1] != -(-d // 64):
        raise ValueError(
            f"{op}: d = {d} coordinates need {-(-d // 64)} words in each row; "
            f"got words of shape {tuple(words.shape)}"
        )
    return d


def _wide_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _widen(x: Tensor) -> Tensor:
    return x.to(_wide_dtype(x.dtype))


def _rows(x: Tensor) -> Tensor:
    """(..., d) as (n, d) whose rows are contiguous."""
    rows = x if x.dim() == 2 else x.reshape(x.shape[:-1].numel(), x.shape[-1])
    return contiguous_rows(rows)


def _normal(shape: tuple[int, ...], device: str, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    make = torch.Generator().manual_seed(len(shape) + sum(shape))
    return (scale * torch.randn(shape, generator=make, dtype=torch.float64)).to(device, dtype)
