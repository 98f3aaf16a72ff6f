"""A decoder as a pure function of its latents, with frozen parameters."""

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.utils._python_dispatch import TorchDispatchMode

Decoder = nn.Module | Callable[[Tensor], Any]


class LatentFunction(Protocol):
    """Mean (n, ...) and variance (n, ...) or None, from latents (n, d)."""

    role: str  # its name in messages

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor | None]: ...


# How far, of the largest value, two ways to compute the same may differ: well above what rounding
# does in float32, well below what batch norm or a wrong derivative do.
_TOLERANCE = 1e-3


class FrozenDecoder:
    """The mean and, where there is one, the variance that a decoder gives for latents.

    Parameters of the decoder, and of modules that a function refers to, take part without
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
        self.function = decoder
        self._holder = _Holder(decoder)
        check_evaluation_mode(self._holder, role)
        parameters = dict(self._holder.named_parameters())
        trained = any(parameter.requires_grad for parameter in parameters.values())
        self._frozen = {n: p.detach() for n, p in parameters.items()} if trained else {}

    def raw(self, z: Tensor) -> Any:
        """What the decoder returns."""
        if not self._frozen:
            return self._holder(z)
        return torch.func.functional_call(self._holder, self._frozen, (z,))

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        """Mean (n, ...) and variance (n, ...), the latter None where it does not depend on z."""
        output = self.raw(z)
        parts = tuple(output) if isinstance(output, tuple | list) else (output,)
        if len(parts) not in (1, 2) or not isinstance(parts[0], Tensor):
            raise TypeError(
                f"{self.role}: expected a tensor or a pair (mean, variance) as its output; "
                f"got {_describe(output)}"
            )
        return parts[0], parts[1] if len(parts) == 2 and isinstance(parts[1], Tensor) else None


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


class _Holder(nn.Module):
    """Calls a function, and holds the modules it refers to."""

    def __init__(self, function: Callable[[Tensor], Any]):
        super().__init__()
        self.function = function if not isinstance(function, nn.Module) else None
        for number, module in enumerate(dict.fromkeys(_modules_of(function))):
            self.add_module(f"part{number}", module)
        self.training = False

    def forward(self, z: Tensor) -> Any:
        return self.part0(z) if self.function is None else self.function(z)


def _modules_of(function: object) -> Iterator[nn.Module]:
    """The module itself, or those that a method, a partial or a function's scope holds."""
    if isinstance(function, nn.Module):
        yield function
    elif isinstance(function, functools.partial):
        yield from _modules_of(function.func)
        for value in (*function.args, *function.keywords.values()):
            if isinstance(value, nn.Module):
                yield value
    elif inspect.ismethod(function):
        if isinstance(function.__self__, nn.Module):
            yield function.__self__
    elif inspect.isfunction(function):
        scope = inspect.getclosurevars(function)
        for value in (*scope.nonlocals.values(), *scope.globals.values()):
            if isinstance(value, nn.Module):
                yield value


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


class Trial:
    """What running a decoder on one and on two latents shows; raises where it can't be used.

    ValueError or TypeError: the decoder refuses these latents, its output is not (n, ...), not
    floating, depends on the batch or on chance, or is not differentiable in z.
    """

    def __init__(self, function: LatentFunction, z: Tensor):
        first, second = z[:1].detach(), z[1:2].detach()
        if len(second) == 0:
            second = 1.01 * first + 0.01
        with torch.enable_grad(), _Largest() as largest:
            leaf = torch.cat([first, second]).requires_grad_()
            mean, variance = _run(function, leaf)
        alone, alone_variance = _run(function, first)
        self.largest = -(-largest.numel // 2)  # numbers in the largest tensor of one latent
        self.shape = mean.shape[1:]
        role = function.role
        _check_rows(role, alone, mean)
        if not _depends(mean, leaf):
            raise ValueError(
                f"{role}: the output is not differentiable with respect to the latents (detached "
                "from them, computed outside PyTorch, or constant)"
            )
        self.stochastic = variance is not None and _depends(variance, leaf)
        self._leaf, self._outputs = leaf, [mean]
        if variance is not None and self.stochastic:
            assert alone_variance is not None
            _check_rows(role, alone_variance, variance)
            if variance[0].numel() != mean[0].numel():
                raise ValueError(
                    f"{role}: mean and variance must have as many elements for each latent; "
                    f"got shapes {tuple(mean.shape[1:])} and {tuple(variance.shape[1:])}"
                )
            with torch.enable_grad():
                self._outputs.append(standard_deviation(variance))

    def agrees(
        self,
        value: Callable[[Tensor], Tensor],  # (n, d) -> (n, D): mean and standard deviation
        push: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    ) -> bool:
        """Whether a program repeats the output and, in a random direction, the gradient."""
        z = self._leaf.detach()
        with torch.enable_grad():
            expected = torch.cat([y.flatten(1) for y in self._outputs], 1)
        make = torch.Generator().manual_seed(0)
        v, w = (
            torch.randn(like.shape, generator=make, dtype=z.dtype).to(z.device)
            for like in (z, expected)
        )
        (gradient,) = torch.autograd.grad(expected, self._leaf, w)
        with torch.no_grad():
            y, dy = push(z, v[:, None])
            pairs = (
                (value(z), expected.detach()),
                (y, expected.detach()),
                ((dy[:, 0] * w).sum(1), (gradient * v).sum(1)),
            )
            scales = (0.0, 0.0, gradient.norm() * v.norm())
            return all(_close(a, b, s) for (a, b), s in zip(pairs, scales, strict=True))


def standard_deviation(variance: Tensor) -> Tensor:
    """The root, with derivative 0 where the variance is 0."""
    zero = variance == 0
    return variance.masked_fill(zero, 1).sqrt().masked_fill(zero, 0)


def _run(function: LatentFunction, z: Tensor) -> tuple[Tensor, Tensor | None]:
    try:
        return function(z)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{function.role}: it can't be evaluated on latents of shape {tuple(z.shape)} and "
            f"dtype {str(z.dtype).removeprefix('torch.')}: {reason}"
        ) from error


def _check_rows(role: str, alone: Tensor, together: Tensor) -> None:
    """`alone` is the output of the first latent, `together` that of the first and another."""
    if not together.is_floating_point():
        raise TypeError(
            f"{role}: the output must be of a floating dtype to be differentiable with respect to "
            f"the latents; got {str(together.dtype).removeprefix('torch.')}"
        )
    if together.dim() == 0 or len(together) != 2 or alone.shape != (1, *together.shape[1:]):
        raise ValueError(
            f"{role}: n latents must give an output of shape (n, ...); 1 latent gave "
            f"{tuple(alone.shape)} and 2 gave {tuple(together.shape)}"
        )
    if not _close(alone[0].detach(), together[0].detach()):
        raise ValueError(
            f"{role}: the output of a latent depends on the others in its batch, or on chance; "
            "batch norm and dropout have to be in evaluation mode (.eval())"
        )


def _close(a: Tensor, b: Tensor, scale: float | Tensor = 0.0) -> bool:
    """Whether they differ by less than the tolerance times the scale or the largest of b."""
    if b.numel() == 0 or a.shape != b.shape:
        return a.shape == b.shape
    scale = max(float(scale), float(b.abs().nan_to_num(0, 0, 0).amax()))
    return torch.allclose(a, b, rtol=0, atol=_TOLERANCE * scale, equal_nan=True)


def _depends(output: Tensor, leaf: Tensor) -> bool:
    if not output.requires_grad:
        return False
    with torch.enable_grad():
        total = output.sum()
    (gradient,) = torch.autograd.grad(total, leaf, allow_unused=True, retain_graph=True)
    return gradient is not None


class _Largest(TorchDispatchMode):
    """Records the number of elements of the largest tensor that is made."""

    numel = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on the CPU or on a device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def _describe(output: object) -> str:
    if isinstance(output, tuple | list):
        return f"{type(output).__name__} of length {len(output)}"
    return type(output).__name__
