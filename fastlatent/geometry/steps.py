"""What a decoder is made of, each piece with its derivative.

A step maps values (n, ...) and, at each of the n points, k tangents (n, k, ...). Tangents may have
one row for all points, (1, k, ...), as unit vectors have and whatever linear steps make of them.
Where a point has channels they are its first dimension, (n, c, ...), and may be the last one in
memory.
"""

import contextlib
import functools
import importlib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastlatent.geometry.activation import activated
from fastlatent.ops.jacobian import activation_jvp

Shape = tuple[int, ...]


@dataclass(eq=False)
class Step(ABC):
    """Reads registers, writes one. `shape` is that of one point in the output."""

    inputs: tuple[int, ...]
    output: int
    shape: Shape

    @abstractmethod
    def value(self, *x: Tensor) -> Tensor:
        """(n, ...) from each input (n, ...)."""

    @abstractmethod
    def push(
        self, x: Sequence[Tensor], dx: Sequence[Tensor | None]
    ) -> tuple[Tensor, Tensor | None]:
        """The value and the tangents, from those of the inputs; None: it has none."""

    @property
    def work(self) -> int:
        """Multiply-adds for one point, of those that count."""
        return 0


class Affine(Step):
    """L x + b for one input."""

    @abstractmethod
    def linear(self, x: Tensor) -> Tensor:
        """L x."""

    def push(self, x: Sequence[Tensor], dx: Sequence[Tensor | None]) -> tuple[Tensor, Tensor]:
        (tangents,) = dx
        assert tangents is not None
        n, k = tangents.shape[:2]
        return self.value(*x), self.linear(tangents.flatten(0, 1)).unflatten(0, (n, k))


def memory_order(x: Tensor) -> list[int]:
    """The dimensions of a point, 1 to x.dim() - 1, from the slowest in memory to the fastest."""
    strides = x.stride()
    return sorted(range(1, x.dim()), key=lambda dim: (-strides[dim], dim))


def in_memory_order(x: Tensor, order: Sequence[int], lead: int = 1) -> Tensor:
    """(..., l), the numbers of each point in that order; `lead` dimensions are ahead of them."""
    moved = x.permute(*range(lead), *(dim + lead - 1 for dim in order))
    return flattened(moved, lead)


def from_memory_order(x: Tensor, shape: Shape, order: Sequence[int], lead: int = 1) -> Tensor:
    """The inverse: (..., l) -> (..., *shape)."""
    if not order:
        return x.squeeze(lead)
    moved = x.unflatten(lead, [shape[dim - 1] for dim in order])
    back = sorted(range(len(order)), key=lambda place: order[place])
    return moved.permute(*range(lead), *(place + lead for place in back))


def flattened(x: Tensor, lead: int = 1) -> Tensor:
    """(..., l) with `lead` dimensions ahead, l = 1 for points that are single numbers."""
    return x.flatten(lead) if x.dim() > lead else x.unsqueeze(lead)


@functools.cache
def _load_forward_rules() -> None:
    """Imports what PyTorch imports when a process first uses forward mode.

    It scripts functions there, and scripting is deprecated: a warning about PyTorch's own code that
    no reader can act on. Elsewhere in other versions, it is left to PyTorch.
    """
    with warnings.catch_warnings(), contextlib.suppress(ImportError):
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        importlib.import_module("torch._decomp.decompositions_for_jvp")


def forward_derivative(
    function: Callable[..., Tensor], x: tuple[Tensor, ...], tangents: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    """The value at x and the derivative along the tangents, by forward mode."""
    _load_forward_rules()
    value, derivative = torch.func.jvp(function, tuple(map(_apart, x)), tangents)[:2]
    return value, derivative


def _apart(x: Tensor) -> Tensor:
    """With a place in memory for each element; PyTorch lays out tangents as their values are."""
    reach = 0
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size > 1:
            if stride <= reach:
                return x.clone(memory_format=torch.contiguous_format)
            reach += (size - 1) * stride
    return x


@dataclass(eq=False)
class Dense(Affine):
    """For the elements of each point: (n, i) -> (n, o), seen as (n, *shape)."""

    weight: Tensor  # (o, i)
    bias: Tensor | None  # (o,)
    channels_last: bool = False  # the order of the o elements

    def value(self, *x: Tensor) -> Tensor:
        return self._seen(F.linear(flattened(x[0]), self.weight, self.bias))

    def linear(self, x: Tensor) -> Tensor:
        return self._seen(F.linear(flattened(x), self.weight))

    def _seen(self, y: Tensor) -> Tensor:
        if self.channels_last:
            return y.unflatten(1, (*self.shape[1:], self.shape[0])).movedim(-1, 1)
        return y.unflatten(1, self.shape) if self.shape else y.squeeze(1)

    @property
    def work(self) -> int:
        return self.weight.numel()


@dataclass(eq=False)
class Convolution(Affine):
    weight: Tensor  # (o, i / groups, *kernel), transposed: (i, o / groups, *kernel)
    bias: Tensor | None  # (o,)
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    transposed: bool
    output_padding: Sequence[int]
    groups: int

    def value(self, *x: Tensor) -> Tensor:
        return self._convolve(x[0], self.bias)

    def linear(self, x: Tensor) -> Tensor:
        return self._convolve(x, None)

    def _convolve(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return torch.convolution(
            x,
            self.weight,
            bias,
            self.stride,
            self.padding,
            self.dilation,
            self.transposed,
            self.output_padding,
            self.groups,
        )

    @property
    def work(self) -> int:
        positions = torch.Size(self.shape[1:]).numel()
        if self.transposed:  # positions of the input, as if nothing was cut off
            positions //= torch.Size(self.stride).numel()
        return self.weight.numel() * positions


@dataclass(eq=False)
class ChannelMix(Affine):
    """A 1x1 convolution: (n, i, *spatial) -> (n, o, *spatial)."""

    weight: Tensor  # (o, i)
    bias: Tensor | None  # (o,)

    def value(self, *x: Tensor) -> Tensor:
        return self._mix(x[0], self.bias)

    def linear(self, x: Tensor) -> Tensor:
        return self._mix(x, None)

    def _mix(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if x.stride(1) == 1 and x.shape[1] > 1:
            order = [dim for dim in memory_order(x) if dim != 1] + [1]
            moved = F.linear(x.permute(0, *order), self.weight, bias)
            back = sorted(range(len(order)), key=lambda place: order[place])
            return moved.permute(0, *(place + 1 for place in back))
        y = torch.matmul(self.weight, x.flatten(2))
        y = y if bias is None else y + bias[:, None]
        return y.unflatten(2, x.shape[2:])

    @property
    def work(self) -> int:
        return self.weight.numel() * torch.Size(self.shape[1:]).numel()


@dataclass(eq=False)
class Scale(Affine):
    """scale x + shift by constants; x is broadcast to the shape where they are larger."""

    scale: Tensor | None
    shift: Tensor | None

    def value(self, *x: Tensor) -> Tensor:
        y = self.linear(x[0])
        return y if self.shift is None else y + self.shift

    def linear(self, x: Tensor) -> Tensor:
        if x.dim() - 1 < len(self.shape):
            missing = len(self.shape) - x.dim() + 1
            x = x.view(len(x), *[1] * missing, *x.shape[1:])
        y = x if self.scale is None else self.scale * x
        return y.expand(-1, *self.shape)


@dataclass(eq=False)
class LinearMap(Affine):
    """A linear operator without weights, on each point by itself."""

    function: Callable[[Tensor], Tensor]

    def value(self, *x: Tensor) -> Tensor:
        return self.function(x[0])

    def linear(self, x: Tensor) -> Tensor:
        return self.function(x)


@dataclass(eq=False)
class Rearrangement(LinearMap):
    """A LinearMap that puts the elements of each point in another order."""


@dataclass(eq=False)
class Interleave(Affine):
    """Phases (n, c, factor^2, h, w) to an image (n, c, factor h, factor w), cut to the shape.

    Phase (i, j) holds the pixels of rows i, i + factor, ... and columns j, j + factor, ...
    """

    factor: int
    start: tuple[int, int]  # of the cut

    def value(self, *x: Tensor) -> Tensor:
        return self.linear(x[0])

    def linear(self, x: Tensor) -> Tensor:
        n, c, _, h, w = x.shape
        s = self.factor
        split = x.unflatten(2, (s, s))  # (n, c, i, j, h, w)
        if x.stride(1) == 1:
            rows = split.permute(0, 4, 2, 5, 3, 1).reshape(n, s * h, s * w, c)
            image = rows.movedim(-1, 1)
        else:
            image = split.permute(0, 1, 4, 2, 5, 3).reshape(n, c, s * h, s * w)
        (top, left), (height, width) = self.start, self.shape[1:]
        return image[:, :, top : top + height, left : left + width]


@dataclass(eq=False)
class Phases(Affine):
    """The channels (n, c factor^2, h, w) of a convolution as phases (n, c, factor^2, h, w)."""

    channels_last: bool  # which of c and the phases comes first among the channels

    def value(self, *x: Tensor) -> Tensor:
        return self.linear(x[0])

    def linear(self, x: Tensor) -> Tensor:
        c, phases = self.shape[:2]
        if self.channels_last:
            return x.unflatten(1, (phases, c)).transpose(1, 2)
        return x.unflatten(1, (c, phases))


@dataclass(eq=False)
class Reshape(Affine):
    def value(self, *x: Tensor) -> Tensor:
        return self.linear(x[0])

    def linear(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), *self.shape)


@dataclass(eq=False)
class Sum(Step):
    """a + factor b, of one shape."""

    factor: float

    def value(self, *x: Tensor) -> Tensor:
        return torch.add(x[0], x[1], alpha=self.factor)

    def push(self, x: Sequence[Tensor], dx: Sequence[Tensor | None]) -> tuple[Tensor, Tensor]:
        a, b = dx
        parts = [part for part in (a, None if b is None else self.factor * b) if part is not None]
        return self.value(*x), torch.add(*parts) if len(parts) == 2 else parts[0]


@dataclass(eq=False)
class Product(Step):
    """a b, of one shape."""

    def value(self, *x: Tensor) -> Tensor:
        return x[0] * x[1]

    def push(self, x: Sequence[Tensor], dx: Sequence[Tensor | None]) -> tuple[Tensor, Tensor]:
        factors = ((dx[0], x[1]), (dx[1], x[0]))
        parts = [da * b.unsqueeze(1) for da, b in factors if da is not None]
        return self.value(*x), torch.add(*parts) if len(parts) == 2 else parts[0]


@dataclass(eq=False)
class Activation(Step):
    """One that activation_jvp knows; `function` is the same in PyTorch."""

    kind: str
    function: Callable[[Tensor], Tensor]
    slope: float = 0.01

    def value(self, *x: Tensor) -> Tensor:
        order = memory_order(x[0])
        flat = in_memory_order(x[0], order)
        y = activated(flat, self.kind, self.slope, self.function)
        return from_memory_order(y, self.shape, order)

    def push(self, x: Sequence[Tensor], dx: Sequence[Tensor | None]) -> tuple[Tensor, Tensor]:
        (a,), (tangents,) = x, dx
        assert tangents is not None
        order = memory_order(a)
        expanded = tangents.expand(len(a), *tangents.shape[1:])
        flat, moving = in_memory_order(a, order), in_memory_order(expanded, order, 2)
        y, dy = activation_jvp(flat, moving, self.kind, slope=self.slope)
        shape = self.shape
        return from_memory_order(y, shape, order), from_memory_order(dy, shape, order, 2)


@dataclass(eq=False)
class Elementwise(Step):
    """Any other function of one number, by one derivative in forward mode."""

    function: Callable[[Tensor], Tensor]
    uniform: bool = True  # the same for all elements

    def value(self, *x: Tensor) -> Tensor:
        return self.function(x[0])

    def push(self, x: Sequence[Tensor], dx: Sequence[Tensor | None]) -> tuple[Tensor, Tensor]:
        (tangents,) = dx
        assert tangents is not None
        y, slope = forward_derivative(self.function, (x[0],), (torch.ones_like(x[0]),))
        return y, slope.unsqueeze(1) * tangents


@dataclass(eq=False)
class Reciprocal(Elementwise):
    """1 / x."""


@dataclass(eq=False)
class Deviation(Elementwise):
    """The root of a variance, with derivative 0 where that is 0."""


@dataclass(eq=False)
class Opaque(Step):
    """Any operator at all, by torch.func."""

    function: Callable[..., Tensor]
    smooth: bool = True  # False: an output without derivatives, such as a mask

    def value(self, *x: Tensor) -> Tensor:
        return self.function(*x)

    def push(
        self, x: Sequence[Tensor], dx: Sequence[Tensor | None]
    ) -> tuple[Tensor, Tensor | None]:
        if not self.smooth:
            return self.function(*x), None
        moving = [i for i, tangents in enumerate(dx) if tangents is not None]

        def of_moving(*parts: Tensor) -> Tensor:
            every: list[Any] = list(x)
            for i, part in zip(moving, parts, strict=True):
                every[i] = part
            return self.function(*every)

        def along(*tangents: Tensor) -> tuple[Any, Any]:
            return forward_derivative(of_moving, tuple(x[i] for i in moving), tangents)

        n = len(x[moving[0]])
        tangents = [dx[i].expand(n, *dx[i].shape[1:]) for i in moving]  # type: ignore[union-attr]
        return torch.func.vmap(along, in_dims=1, out_dims=(None, 1))(*tangents)  # type: ignore[arg-type]
