"""Randomness as a function of (seed, step, name): a resumed run draws what it would have drawn."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def generator(
    seed: int, step: int, name: str, device: torch.device | str = "cpu"
) -> torch.Generator:
    """A generator whose stream depends on nothing but its arguments (keyed by BLAKE2b)."""
    return torch.Generator(device).manual_seed(_hash(f"{seed}/{step}/{name}"))


def _hash(text: str) -> int:
    """63 bits of BLAKE2b."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


@dataclass(frozen=True)
class Noise:
    """The noise of one training step on one rank; each name is a stream of its own."""

    seed: int
    step: int
    rank: int = 0

    def derived(self, name: str) -> "Noise":
        """Noise for a part of the step, with streams of its own."""
        return Noise(_hash(f"{self.seed}/{self.step}/{self.rank}/{name}"), self.step, self.rank)

    def normal(
        self,
        name: str,
        shape: Sequence[int],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Standard normal numbers of the given shape."""
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
