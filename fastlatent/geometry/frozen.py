"""A decoder as a pure function of its latents, with frozen parameters."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.utils.spectral_norm import SpectralNorm

from fastlatent.geometry.composed import Differentiable
from fastlatent.geometry.precision import plain_attention
from fastlatent.untouched import Untouched

Decoder = nn.Module | Callable[[Tensor], Any]


class LatentFunction(Protocol):
    """Mean (n, ...) and variance (n, ...) or None, from latents (n, d)."""

    role: str  # its name in messages

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor | None]: ...


class FrozenDecoder:
    """The mean and, where there is one, the variance that a decoder gives for latents.

    Parameters of the decoder, and of modules that it holds or refers to, take part without
    gradients. Raises ValueError when one of them is in a mode in which the output depends on the
    batch or on chance.
    """

    def __init__(self, decoder: Decoder, role: str = "decoder"):
        if not callable(decoder):
            raise TypeError(
                f"{role}: expected a module, a function of latents or a Metric; "
                f"got {type(decoder).__name__}"
            )
        self.role = role
        self._untouched = Untouched(decoder)
        check_evaluation_mode(self._untouched.holder, role)

    def raw(self, z: Tensor) -> Any:
        """What the decoder returns."""
        with plain_attention(), Differentiable(z.device.type):
            try:
                return self._untouched(z)
            except AssertionError as error:  # such as those of exported programs
                raise refusal(self.role, z, error) from error

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        """Mean (n, ...) and variance (n, ...), the latter None where it does not depend on z."""
        output = self.raw(z)
        parts = tuple(output) if isinstance(output, tuple | list) else (output,)
        if len(parts) not in (1, 2) or not isinstance(parts[0], Tensor):
            raise UnknownOutput(
                f"{self.role}: expected a tensor or a pair (mean, variance) as its output; "
                f"got {_describe(output)}"
            )
        return parts[0], parts[1] if len(parts) == 2 and isinstance(parts[1], Tensor) else None


class UnknownOutput(TypeError):
    """Neither a tensor nor a pair of mean and variance."""


class Refused(ValueError):
    """The decoder raises an error for these latents."""


def refusal(role: str, z: Tensor, error: Exception) -> Refused:
    """What is said of a decoder that raises an error for these latents."""
    plain = type(error) in (RuntimeError, ValueError)
    reason = first_line(error) if plain else f"{type(error).__name__}: {first_line(error)}"
    if "Guard failed" in reason:
        reason += "; an exported program needs a dynamic number of latents"
    return Refused(
        f"{role}: it can't be evaluated on latents of shape {tuple(z.shape)} and dtype "
        f"{str(z.dtype).removeprefix('torch.')}: {reason}"
    )


def first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def check_evaluation_mode(module: nn.Module, role: str) -> None:
    """Raises ValueError if some part of `module` computes otherwise in training than in use."""
    for name, part in module.named_modules():
        fault = _fault(part)
        if fault:
            name = f"{role}.{name.partition('.')[2]}".rstrip(".")
            raise ValueError(f"{role}: {name} ({type(part).__name__}) {fault}")


def _fault(part: nn.Module) -> str | None:
    if isinstance(part, _BatchNorm) and (part.training or part.running_mean is None):
        if part.running_mean is None:
            return "has no running statistics, so the output of a latent depends on its batch"
        return (
            "is in training mode, so the output of a latent depends on its batch; call .eval() "
            "on the decoder first"
        )
    if not part.training:
        return None
    if isinstance(part, _DropoutNd) and part.p > 0:
        return "is in training mode, so the output is random; call .eval() on the decoder first"
    hooks = part._forward_pre_hooks.values()
    if isinstance(part, torch.nn.utils.parametrizations._SpectralNorm) or any(
        isinstance(hook, SpectralNorm) for hook in hooks
    ):
        return (
            "has spectral norm in training mode, so that each pass changes the weights; "
            "call .eval() on the decoder first"
        )
    return None


class Deviation:
    """The standard deviation of a stochastic decoder alone."""

    def __init__(self, decoder: LatentFunction):
        self.role = decoder.role
        self._decoder = decoder

    def __call__(self, z: Tensor) -> tuple[Tensor, None]:
        variance = self._decoder(z)[1]
        assert variance is not None
        return standard_deviation(variance), None


class Composition:
    """A feature map of the mean of a decoder."""

    def __init__(self, decoder: LatentFunction, feature_map: LatentFunction):
        self.role = f"{feature_map.role} of the {decoder.role}"
        self._decoder, self._feature_map = decoder, feature_map

    def __call__(self, z: Tensor) -> tuple[Tensor, None]:
        return self._feature_map(self._decoder(z)[0])[0], None


def standard_deviation(variance: Tensor) -> Tensor:
    """The root, with derivative 0 where the variance is 0."""
    zero = variance == 0
    return variance.masked_fill(zero, 1).sqrt().masked_fill(zero, 0)


def side_by_side(mean: Tensor, variance: Tensor | None, stochastic: bool) -> Tensor:  # (n, D)
    """F, made of the mean and, where there is one, the standard deviation."""
    if variance is None or not stochastic:
        return mean.flatten(1) if mean.dim() > 1 else mean[:, None]
    return torch.cat(
        [mean.reshape(len(mean), -1), standard_deviation(variance).reshape(len(mean), -1)], 1
    )


def _describe(output: object) -> str:
    if isinstance(output, tuple | list):
        return f"{type(output).__name__} of length {len(output)}"
    return type(output).__name__
