"""Entropies of binary codes: of each token's distribution over codes, and of the batch's mean.

Logits a_j give independent bits, P(c | a) = prod_j sigmoid(c_j a_j) for c in {-1, +1}^d.
Lookup-free quantisation takes the softmax of 2 tau s <x, c> over all 2^d codes, which is this
distribution with a = 4 tau s x (Yu et al. 2023, arXiv:2310.05737; with spherical codes Zhao et al.
2024, arXiv:2406.07548).

A token's entropy is therefore a sum over bits, sum_j h(a_j) with h(a) = softplus(a) - a sigmoid(a).
For the mean over tokens, split the bits in two: P(. | a_i) is the outer product of A_i, over the
low bits, and B_i, over the high ones. So the mean of all 2^d probabilities is one matrix product,
B^T A / n, and no tensor of tokens x codes exists.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import softplus

from fastlatent.ops import _check
from fastlatent.ops._precision import full_precision
from fastlatent.ops._register import register, strict

_TABLE = 1 << 24  # codes of a group whose probabilities are held at a time
_FACTORS = 1 << 20  # elements of A and B that are held at a time,
_ROWS = 256  # but of as many tokens at least, as a product of fewer is limited by memory
_MOST_BITS = 32
_SATURATED = 1e4  # beyond, a bit's entropy and its slope are 0 in every dtype; infinity is, too


def _grouped(logits: Tensor, groups: int) -> Tensor:
    """(n, d) to (groups, n, d / groups), at least in float32."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    parts = wide.unflatten(1, (groups, wide.shape[1] // groups)) if groups else wide[:, None]
    return parts.transpose(0, 1).clamp(-_SATURATED, _SATURATED)


def entropy_of_bits(a: Tensor) -> Tensor:
    """h(a) in nats, elementwise; without cancellation, as h is even."""
    negative = torch.where(a > 0, -a, a)
    return softplus(negative) - negative * negative.sigmoid()


def entropy_of_probabilities(p: Tensor) -> Tensor:
    """-sum p log p in nats over the last dimension, where 0 log 0 = 0 and its slope is 0."""
    return -(p * _log(p)).sum(-1)


def _log(p: Tensor) -> Tensor:
    """log p, and 0 where p is 0; its derivatives as well."""
    return torch.where(p <= 0, torch.ones_like(p), p).log()


def _factors(a: Tensor) -> tuple[Tensor, Tensor]:
    """(groups, n, g) to A (groups, n, 2^l) and B (groups, n, 2^r), where l + r = g."""
    bits = torch.stack([(-a).sigmoid(), a.sigmoid()], -1)
    low = (a.shape[-1] + 1) // 2
    return _outer(bits[:, :, :low]), _outer(bits[:, :, low:])


def _outer(bits: Tensor) -> Tensor:
    """Probabilities of all values of k bits (..., k, 2): (..., 2^k), where bit j counts 2^j."""
    p = bits.new_ones(*bits.shape[:-2], 1)
    for j in range(bits.shape[-2]):
        p = (bits[..., j, :, None] * p[..., None, :]).flatten(-2)
    return p


def _shares(weight: Tensor | None, like: Tensor) -> Tensor:
    """The weight of each token in the mean, (n, 1); 0 where there is no token or no weight."""
    n = like.shape[1]
    if weight is None:
        return like.new_full((n, 1), 1 / max(n, 1))
    wide = weight.to(like.dtype)[:, None]
    total = wide.sum()
    return wide / torch.where(total == 0, torch.ones_like(total), total)


def _reference(logits: Tensor, weight: Tensor | None, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    a = _grouped(logits, groups)
    left, right = _factors(a)
    p = (right.mT @ (_shares(weight, a) * left)).flatten(1)
    table = p if p.shape[1] <= _TABLE else p.new_empty(p.shape[0], 0)
    return entropy_of_bits(a).sum((0, 2)), entropy_of_probabilities(p), table


def _slopes(p: Tensor, bits: int, grad_mean: Tensor, grad_table: Tensor | None) -> Tensor:
    """The derivative by each probability. A constant is added: it has no effect, as they sum to 1,
    and keeps the sums that follow small where p is nearly uniform."""
    slope = -grad_mean[:, None, None] * (_log(p) + bits * math.log(2))
    return slope if grad_table is None else slope + grad_table


def _of_bits(mass: Tensor, a: Tensor, first: int = 0) -> Tensor:
    """Derivatives by the logits a (..., k) of a sum over codes, whose terms are mass (..., m).

    The terms are those of the codes first, first + 1 ... of k bits, of 2^k in all.
    """
    codes = torch.arange(first, first + mass.shape[-1], device=a.device)
    is_one = ((codes[:, None] >> torch.arange(a.shape[-1], device=a.device)) & 1).to(a.dtype)
    sums = mass @ torch.cat([is_one, 1 - is_one], 1)
    ones, zeros = sums[..., : a.shape[-1]], sums[..., a.shape[-1] :]
    return ones * (-a).sigmoid() - zeros * a.sigmoid()


def _by_factors(a: Tensor, left: Tensor, right: Tensor, slope: Tensor, first: int = 0) -> Tensor:
    """Derivatives by a (groups, n, g) of sum slope * (B^T A), for codes of B from `first` on."""
    low = (a.shape[-1] + 1) // 2
    part = right[:, :, first : first + slope.shape[1]]
    by_low = _of_bits(left * (part @ slope), a[:, :, :low])
    by_high = _of_bits(part * (left @ slope.mT), a[:, :, low:], first)
    return torch.cat([by_low, by_high], -1)


def _of_tokens(grad_tokens: Tensor, a: Tensor) -> Tensor:
    return -grad_tokens[:, None] * a * a.sigmoid() * (-a).sigmoid()


def _backward_reference(
    grad_tokens: Tensor,
    grad_mean: Tensor,
    grad_table: Tensor,
    logits: Tensor,
    weight: Tensor | None,
    table: Tensor,
    groups: int,
) -> Tensor:
    a = _grouped(logits, groups)
    left, right = _factors(a)
    shape = (-1, right.shape[2], left.shape[2])
    shares = _shares(weight, a)
    if table.shape[1]:
        slope = _slopes(table.view(shape), a.shape[2], grad_mean, grad_table.view(shape))
    else:
        slope = _slopes(right.mT @ (shares * left), a.shape[2], grad_mean, None)
    grad = shares * _by_factors(a, left, right, slope) + _of_tokens(grad_tokens, a)
    return grad.transpose(0, 1).flatten(1).to(logits.dtype).contiguous()


class _Tiles:
    """The product B^T A of all tokens, in tiles of codes and parts of the tokens."""

    def __init__(self, logits: Tensor, weight: Tensor | None, groups: int) -> None:
        self.a = _grouped(logits, groups)
        self.shares = _shares(weight, self.a)
        self.bits = self.a.shape[2]
        self.low = 1 << (self.bits + 1) // 2  # codes of A
        self.high = 1 << self.bits // 2  # codes of B
        self.whole = self.low * self.high <= _TABLE
        self.codes = self.high if self.whole else max(1, _TABLE // self.low)  # of B in a tile
        self.rows = max(_ROWS, _FACTORS // (max(groups, 1) * (self.low + self.high)))

    def parts(self) -> Iterator[slice]:
        for start in range(0, self.a.shape[1], self.rows):
            yield slice(start, start + self.rows)

    def tiles(self) -> Iterator[tuple[int, Tensor]]:
        """First code of B, and the probabilities (groups, codes of B, codes of A)."""
        for first in range(0, self.high, self.codes):
            p = self.a.new_zeros(self.a.shape[0], min(self.codes, self.high - first), self.low)
            for part in self.parts():
                left, right = _factors(self.a[:, part])
                here = right[:, :, first : first + p.shape[1]]
                p.baddbmm_(here.mT, left.mul_(self.shares[part]))
            yield first, p


def _kernel(logits: Tensor, weight: Tensor | None, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    if logits.device.type == "cpu" or strict():
        _check_values(logits, weight)
    with full_precision(logits.device.type):
        tiles = _Tiles(logits, weight, groups)
        mean = tiles.a.new_zeros(tiles.a.shape[0])
        for _, p in tiles.tiles():
            mean += entropy_of_probabilities(p.flatten(1))
        table = p.flatten(1) if tiles.whole else p.new_empty(p.shape[0], 0)
        return entropy_of_bits(tiles.a).sum((0, 2)), mean, table


def _check_values(logits: Tensor, weight: Tensor | None) -> None:
    if bool(logits.isnan().any()):
        raise ValueError("binary_entropy: logits must be numbers; got NaN")
    if weight is None or not weight.numel():
        return
    if not bool(((weight >= 0) & weight.isfinite()).all()):
        raise ValueError("binary_entropy: weight must be finite and at least 0; got other values")
    if not bool(weight.any()):
        raise ValueError("binary_entropy: weight must be above 0 for one token; got only 0")


def _backward_kernel(
    grad_tokens: Tensor,
    grad_mean: Tensor,
    grad_table: Tensor,
    logits: Tensor,
    weight: Tensor | None,
    table: Tensor,
    groups: int,
) -> Tensor:
    with full_precision(logits.device.type):
        tiles = _Tiles(logits, weight, groups)
        grad = torch.zeros_like(tiles.a)
        shape = (-1, tiles.high, tiles.low)
        known = tiles.whole
        for first, p in [(0, table.reshape(shape))] if known else tiles.tiles():
            also = grad_table.reshape(shape) if known else None
            slope = _slopes(p, tiles.bits, grad_mean, also)
            for part in tiles.parts():
                a = tiles.a[:, part]
                grad[:, part] += _by_factors(a, *_factors(a), slope, first)
        grad = grad.mul_(tiles.shares).add_(_of_tokens(grad_tokens, tiles.a))
        return grad.transpose(0, 1).flatten(1).to(logits.dtype).contiguous()


def _cases(device: str, dtype: torch.dtype) -> Iterator[tuple]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int, scale: float = 1.5) -> Tensor:
        numbers = torch.randn(shape, generator=generator, dtype=torch.float64)
        return (scale * numbers).to(device, dtype)

    def weights(n: int) -> Tensor:
        return torch.rand(n, generator=generator, dtype=torch.float64).to(device, dtype)

    yield normal(5, 6), None, 2
    yield normal(4, 5), weights(4), 1
    yield normal(1, 1), None, 1
    yield normal(3, 4), None, 4
    yield torch.cat([normal(2, 3), torch.zeros_like(normal(1, 3))]), None, 1
    yield normal(33, 31)[:, :30], weights(66)[::2], 3
    yield normal(7, 20).t(), None, 1
    yield normal(100, 10, scale=20), None, 1
    yield normal(0, 6), None, 2
    edges = [0.0, -0.0, 1.0, 30.0, -30.0, 100.0, 1e4, -1e4, torch.inf, -torch.inf]
    yield torch.tensor([edges, edges[::-1]], dtype=torch.float64).to(device, dtype), None, 1


def _backward_cases(device: str, dtype: torch.dtype) -> Iterator[tuple]:
    for logits, weight, groups in _cases(device, dtype):
        *_, table = _reference(logits, weight, groups)
        generator = torch.Generator().manual_seed(logits.shape[0])
        grads = [
            torch.randn(shape, generator=generator, dtype=torch.float64).to(device, table.dtype)
            for shape in (logits.shape[:1], table.shape[:1], table.shape)
        ]
        yield *grads, logits, weight, table, groups


_backward = register(
    "binary_entropy_backward(Tensor grad_tokens, Tensor grad_mean, Tensor grad_table, "
    "Tensor logits, Tensor? weight, Tensor table, SymInt groups) -> Tensor",
    _backward_reference,
    cases=_backward_cases,
    constants=(4,),
    linalg=_backward_kernel,
)


def _gradients(args: tuple, grads: tuple) -> tuple:
    logits, weight, groups, table = args
    return (_backward(*grads, logits, weight, table, groups),)


_op = register(
    "binary_entropy(Tensor logits, Tensor? weight, SymInt groups) -> (Tensor, Tensor, Tensor)",
    _reference,
    cases=_cases,
    constants=(1,),
    linalg=_kernel,
    backward=_gradients,
    keeps=(2,),
    refuses_nan=True,
)


@_op.public
def binary_entropy(
    logits: Tensor,  # (n, d)
    weight: Tensor | None = None,  # (n,), at least 0 and of logits' dtype, or a mask
    groups: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:  # tokens (n,), mean (groups,), probabilities (groups, 2^g)
    """Entropies in nats of codes whose bits are independent: P(c | a) = prod_j sigmoid(c_j a_j).

    The first is that of each token's own distribution, a sum over its bits. The second is that of
    the mean distribution of all tokens over the 2^g codes of a group, g = d / groups consecutive
    bits. `weight` says how much a token counts in the mean; 0 leaves it out, and it carries no
    gradient. The third are the mean probabilities, in which bit j of a code counts 2^j: averaged
    over processes they give the mean's entropy there. They are empty for g > 24, where they are
    taken in tiles and never held at once. All are in float32, or float64 for such logits.

    For lookup-free quantisation with inverse temperature tau and codes of +/-s, logits = 4 tau s x.
    The work is 2 n 2^g multiplications and additions, and twice as many for the gradient.

    Raises TypeError for a dtype that is not floating. Raises ValueError for shapes or devices that
    do not fit, groups that do not divide d, more than 32 bits in a group and, on a CPU or under
    FASTLATENT_STRICT=1, for NaN among the logits and for weights that are below 0 or all 0.
    """
    op = "binary_entropy"
    _check.tensor(op, "logits", logits, 2, _check.FLOATING)
    n, d = logits.shape
    if weight is not None:
        _check.tensor(op, "weight", weight, 1, (torch.bool, *_check.FLOATING))
        weight = weight.to(logits.dtype) if weight.dtype == torch.bool else weight
        _check.alike(op, logits=logits, weight=weight)
        if weight.shape[0] != n:
            raise ValueError(f"{op}: weight must be (n,) = ({n},); got {tuple(weight.shape)}")
    groups = _check.whole(op, "groups", groups, 1, 2**31 - 1, "a whole number from 1 up")
    if d % groups:
        raise ValueError(f"{op}: groups must divide the {d} bits of a token; got {groups}")
    if d // groups > _MOST_BITS:
        raise ValueError(
            f"{op}: groups must leave at most {_MOST_BITS} bits in each, whose codes are counted "
            f"one by one; got {groups} for {d} bits"
        )
    return _op(logits, weight, groups)
