"""Randomness as a function of (seed, step, name): a resumed run draws what it would have drawn.

Training draws for a whole batch at a time. Measurements draw for each image by itself, so that
neither the batches nor the number of processes change a result.
"""

import hashlib
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any, Self, TypeVar, cast

import torch
from torch import Tensor

Drawing = TypeVar("Drawing", bound=Callable[..., Any])

PART = 1 << 22  # numbers of images that are computed at a time
# SplitMix64: G. Steele, D. Lea, C. Flood, "Fast Splittable Pseudorandom Number Generators",
# OOPSLA 2014, figures 16 and 17. The constants as signed numbers; products wrap around.
GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)
MIXERS = ((30, 0xBF58476D1CE4E5B9 - (1 << 64)), (27, 0x94D049BB133111EB - (1 << 64)))


def generator(
    seed: int, step: int, name: str, device: torch.device | str = "cpu"
) -> torch.Generator:
    """A generator whose stream depends on nothing but its arguments (keyed by BLAKE2b)."""
    return torch.Generator(device).manual_seed(_hash(f"{seed}/{step}/{name}"))


def _hash(text: str) -> int:
    """63 bits of BLAKE2b."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def uncompiled(function: Drawing) -> Drawing:
    """Keep a function that draws out of compiled ones.

    As `torch.compiler.disable`, which imports the compiler at once, in a second.
    """

    @wraps(function)
    def call(*arguments: Any) -> Any:
        if "torch._dynamo" not in sys.modules:
            return function(*arguments)
        return torch.compiler.disable(function)(*arguments)

    call._torchdynamo_disable = True  # type: ignore[attr-defined]  # what the compiler looks for
    return cast(Drawing, call)


@dataclass(frozen=True)
class Noise:
    """The noise of one training step on one rank; each name is a stream of its own."""

    seed: int
    step: int
    rank: int = 0

    def derived(self, name: str) -> Self:
        """Noise for a part of the step, with streams of its own."""
        return replace(self, seed=_hash(f"{self.seed}/{self.step}/{self.rank}/{name}"))

    def of_images(self, index: Tensor, first: int = 0, draws: int = 1) -> "ImageNoise":
        """The same with streams for each image: those at `index` (n,) int64 of a split.

        Each has `draws` rows in succession, those of its draws from `first` on.
        """
        place = {"seed": self.seed, "step": self.step, "rank": self.rank}
        return ImageNoise(**place, index=index, first=first, draws=draws)

    def normal(
        self,
        name: str,
        shape: Sequence[int],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        axis: int = 0,
    ) -> Tensor:
        """Standard normal numbers of the given shape; `axis` goes through the images."""
        return torch.randn(
            tuple(shape), generator=self.stream(name, device), device=device, dtype=dtype
        )

    def uniform(
        self,
        name: str,
        shape: Sequence[int],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Uniform numbers in [0, 1) of the given shape."""
        return torch.rand(
            tuple(shape), generator=self.stream(name, device), device=device, dtype=dtype
        )

    def stream(self, name: str, device: torch.device | str = "cpu") -> torch.Generator:
        """The generator of that name, at its beginning."""
        return generator(self.seed, self.step, f"{self.rank}/{name}", device)


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageNoise(Noise):
    """The noise of images in a measurement: that of each depends on no other image.

    Whatever is drawn has a row for each image and draw, as `Noise.of_images` counts them.
    """

    index: Tensor  # (n,) int64
    first: int = 0  # draw of each image
    draws: int = 1

    def normal(
        self,
        name: str,
        shape: Sequence[int],  # n * draws along the axis of the images
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        axis: int = 0,
    ) -> Tensor:
        """Standard normal numbers; ValueError for a shape of another number of rows."""
        others = list(shape)
        rows = others.pop(axis)
        return self._rows(name, (rows, *others), device, dtype, _normal).movedim(0, axis)

    def uniform(
        self,
        name: str,
        shape: Sequence[int],  # (n * draws, ...)
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Uniform numbers in [0, 1); ValueError for a shape of another number of rows."""
        return self._rows(name, shape, device, dtype, _uniform)

    def stream(self, name: str, device: torch.device | str = "cpu") -> "RowStream":
        return RowStream(self, name, device)

    def _rows(
        self,
        name: str,
        shape: Sequence[int],
        device: torch.device | str,
        dtype: torch.dtype,
        numbers: Callable[[Tensor, torch.dtype], Tensor],
    ) -> Tensor:
        index = self.index.to(device)
        if shape[0] != len(index) * self.draws:
            raise ValueError(
                f"noise of {len(index)} images, {self.draws} draws of each, has "
                f"{len(index) * self.draws} rows; got the shape {tuple(shape)}"
            )
        start = _hash(f"{self.seed}/{self.step}/{self.rank}/{name}")
        draw = torch.arange(self.first, self.first + self.draws, device=index.device)
        keys = _mixed_(_mixed_(index * GAMMA + start)[:, None] + draw * GAMMA).flatten()
        size = math.prod(shape[1:])
        offsets = torch.arange(1, size + 1, device=index.device) * GAMMA
        drawn = torch.empty(len(keys), size, device=index.device, dtype=dtype)
        rows = max(1, PART // max(1, size))
        for out, part in zip(drawn.split(rows), keys.split(rows), strict=True):
            out.copy_(numbers(_mixed_(part[:, None] + offsets), dtype))
        return drawn.view(tuple(shape))


class RowStream(torch.Generator):
    """A generator whose normal numbers, drawn by `normal`, have a row for each image and draw."""

    def __new__(cls, _noise: ImageNoise, _name: str, device: torch.device | str) -> Self:
        return super().__new__(cls, device)  # type: ignore[call-arg]  # as the stubs have it

    def __init__(self, noise: ImageNoise, name: str, device: torch.device | str):
        self._noise, self._name, self._used = noise, name, 0

    def normal(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """The next numbers of the stream: (..., rows, d)."""
        self._used += 1
        name = f"{self._name}/{self._used}"
        return self._noise.normal(name, shape, self.device, dtype, axis=-2)


def _mixed_(x: Tensor) -> Tensor:
    """64 mixed bits of each number, in place; shifts fill with zeros, as of unsigned numbers."""
    for shift, factor in MIXERS:
        x.bitwise_xor_(_shifted(x, shift)).mul_(factor)
    return x.bitwise_xor_(_shifted(x, 31))


def _shifted(x: Tensor, bits: int) -> Tensor:
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _uniform(bits: Tensor, dtype: torch.dtype) -> Tensor:
    """Numbers in [0, 1) that `dtype` holds exactly."""
    digits = 1 - round(math.log2(torch.finfo(dtype).eps))
    return _shifted(bits, 64 - digits).double().mul_(0.5**digits)


def _normal(bits: Tensor, _dtype: torch.dtype) -> Tensor:
    # The middle of each of 2^53 intervals; in half the digits, large numbers would be rare.
    return torch.special.ndtri(_shifted(bits, 11).double().add_(0.5).mul_(0.5**53))
