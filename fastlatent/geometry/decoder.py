"""The metric of a decoder: analytic where its operations are known, by torch.func elsewhere."""

import contextlib
from typing import Any, Protocol

import torch
from torch import Tensor

from fastlatent.geometry.embedding import Embedding, word
from fastlatent.geometry.frozen import LatentFunction, side_by_side
from fastlatent.geometry.precision import full_precision
from fastlatent.geometry.program import analyse
from fastlatent.geometry.steps import forward_derivative
from fastlatent.geometry.tape import Untraceable
from fastlatent.geometry.tiles import is_out_of_memory, keep_memory
from fastlatent.geometry.trial import Trial, first_line

# On a CPU a batch is fastest in parts whose activations stay in the cache.
CACHE_BYTES = 16 << 20


class Map(Protocol):
    """F with its derivatives. Numbers held for each point and each tangent, and for a graph."""

    floats: int
    stored: int

    def value(self, z: Tensor) -> Tensor: ...

    def push(self, z: Tensor, tangents: Tensor, ordered: bool = True) -> tuple[Tensor, Tensor]: ...


class DecoderEmbedding(Embedding):
    """F = f for a deterministic decoder f, F = (mean, standard deviation) for a stochastic one.

    A random point m(z) + s(z) eps with eps ~ N(0, I) has the expected metric J_m^T J_m + J_s^T J_s
    (A. Tosi, S. Hauberg, A. Vellido, N. Lawrence, "Metrics for Probabilistic Geometries", UAI
    2014), which F pulls back from Euclidean space. A variance that does not depend on z adds
    nothing.

    The first latents show what the decoder does. Its operations are recorded, those without a
    nonlinearity between them merged, and values and tangents pushed through what is left; this has
    to agree with the decoder's own output and gradient there. Where a decoder can't be recorded or
    does not agree, torch.func runs it as it is.
    """

    def __init__(self, function: LatentFunction, analytic: bool = True):
        self._function = function
        self._wanted = analytic
        self._map: Map | None = None
        self._kind: tuple[torch.dtype, torch.device]  # of the latents that the map was made for
        self._trial: Trial | None = None  # until the gradients of derivatives are tried, too
        self.obstacle: str | None = None if analytic else "not asked for"

    @property
    def analytic(self) -> bool | None:
        """Whether the fast path is taken, `obstacle` says why not; None before any latents."""
        return None if self._map is None else self.obstacle is None

    def try_on(self, z: Tensor) -> None:
        """Look at the decoder now, on these latents; raises where it can't be used."""
        self.check("as_metric", z)
        self._map_for(z)

    def output(self, z: Tensor) -> Tensor:
        self.check("output", z)
        f = self._map_for(z)
        graph = torch.is_grad_enabled() and z.requires_grad
        each = z.element_size() * (f.stored if graph else f.floats)
        with full_precision(z.device.type):
            if not graph:
                return self._tiled("output", lambda points, _: f.value(z[points]), z)
            if z.device.type != "cpu" or len(z) == 0:
                return f.value(z)
            parts = z.split(max(32, CACHE_BYTES // each))
            return torch.cat([f.value(part) for part in parts]) if len(parts) > 1 else f.value(z)

    def push_forward(self, z: Tensor, tangents: Tensor) -> tuple[Tensor, Tensor]:
        return self._pushed(z, tangents)

    def rows(self, z: Tensor, tangents: Tensor) -> Tensor:
        return self._pushed(z, tangents, ordered=False)[1]

    def _pushed(self, z: Tensor, tangents: Tensor, ordered: bool = True) -> tuple[Tensor, Tensor]:
        f = self._map_for(z)
        with full_precision(z.device.type):
            if not (torch.is_grad_enabled() and z.requires_grad):
                return f.push(z, tangents, ordered)
            y, dy = self._differentiable_map(f).push(z, tangents, ordered)
            return y, dy + 0 * z.sum(1)[:, None, None]  # J may not depend on z

    def floats_at(self, z: Tensor) -> int:
        return self._map_for(z).floats

    def stored_at(self, z: Tensor) -> int:
        return self._map_for(z).stored

    def _map_for(self, z: Tensor) -> Map:
        if self._map is None:
            if len(z) == 0:
                return ForwardMode(self._function, None)
            with full_precision(z.device.type):
                self._map = self._look(z.detach())
            self._kind = z.dtype, z.device
            self.latent_dim = z.shape[1]
        elif len(z) and self._kind != (z.dtype, z.device):
            dtype, device = self._kind
            raise TypeError(
                f"{self._function.role}: latents must stay {word(dtype)} on {device}, as the "
                f"first ones were; got {word(z.dtype)} on {z.device}"
            )
        return self._map

    def _differentiable_map(self, f: Map) -> Map:
        """The map, or its values with other gradients where those of its derivatives are wrong."""
        trial = self._trial
        if trial is None or f is not self._map or torch._C._are_functorch_transforms_active():
            return f
        self._trial = None
        if trial.gradient_disagreement(f.push) is not None:
            self._map = GradientsByReverseMode(self._function, trial, f)
        return self._map

    def _look(self, z: Tensor) -> Map:
        self._trial = trial = Trial(self._function, z)
        if z.device.type == "cpu":
            keep_memory()
        if self._wanted:
            try:
                program = analyse(self._function, trial.latents, trial.stochastic)
                self.obstacle = trial.disagreement(program.value, program.push)
                if self.obstacle is None:
                    return program
            except Untraceable as error:
                self.obstacle = str(error)
            except Exception as error:  # whatever it is, torch.func runs the decoder itself
                self.obstacle = f"its operations could not be repeated: {first_line(error)}"
        return _by_autograd(self._function, trial)


class DependsOnChance(ValueError):
    """The output is another one each time."""


class ForwardMode:
    """F with its derivatives by torch.func."""

    def __init__(self, function: LatentFunction, trial: Trial | None):
        self._function = function
        self._stochastic = trial is not None and trial.stochastic
        largest = trial.largest if trial is not None else 1
        self.floats = 4 * largest
        self.stored = 32 * largest

    def value(self, z: Tensor) -> Tensor:
        return side_by_side(*self._function(z), self._stochastic)

    def push(self, z: Tensor, tangents: Tensor, ordered: bool = True) -> tuple[Tensor, Tensor]:
        def along(tangent: Tensor) -> tuple[Tensor, Tensor]:
            return forward_derivative(self.value, (z,), (tangent,))

        expanded = tangents.expand(len(z), -1, -1)
        role = self._function.role
        try:
            return torch.func.vmap(along, in_dims=1, out_dims=(None, 1))(expanded)  # type: ignore[arg-type]
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            if "called random operation" in str(error):
                raise DependsOnChance(
                    f"{role}: the output depends on chance; dropout and noise have to be turned off"
                ) from error
            raise ValueError(
                f"{role}: an operation has no forward-mode derivative in PyTorch: "
                f"{first_line(error)}"
            ) from error


class TwiceReverseMode(ForwardMode):
    """For operations without a derivative in forward mode: J v is the derivative of J^T u by u."""

    def __init__(self, function: LatentFunction, trial: Trial):
        super().__init__(function, trial)
        self.floats = self.stored  # a graph is held even where none is wanted

    def push(self, z: Tensor, tangents: Tensor, ordered: bool = True) -> tuple[Tensor, Tensor]:
        graph = torch.is_grad_enabled() and (z.requires_grad or tangents.requires_grad)
        with torch.enable_grad():
            at = z if graph and z.requires_grad else z.detach().clone().requires_grad_()
            y = self.value(at)
            u = torch.zeros_like(y, requires_grad=True)
            (pulled,) = torch.autograd.grad(y, at, u, create_graph=True)
            pushed = [
                torch.autograd.grad(pulled, u, v, create_graph=graph, retain_graph=True)[0]
                for v in tangents.expand(len(z), -1, -1).unbind(1)
            ]
            dy = torch.stack(pushed, 1)
        return (y, dy) if graph else (y.detach(), dy)


class GradientsByReverseMode(ForwardMode):
    """The derivatives of another map, whose gradients are taken by two reverse passes.

    The gradient of w^T J v by v is J^T w; that by z is the gradient of (J^T w)^T v.
    """

    def __init__(self, function: LatentFunction, trial: Trial, derivatives: Map):
        super().__init__(function, trial)
        self._derivatives = derivatives
        self.floats = derivatives.floats

    def push(self, z: Tensor, tangents: Tensor, ordered: bool = True) -> tuple[Tensor, Tensor]:
        graph = torch.is_grad_enabled() and (z.requires_grad or tangents.requires_grad)
        if not graph or torch._C._are_functorch_transforms_active():
            return self._derivatives.push(z, tangents, ordered)
        return _Pushed.apply(z, tangents, self)

    def derivatives(self, z: Tensor, tangents: Tensor) -> tuple[Tensor, Tensor]:
        return self._derivatives.push(z, tangents)

    def gradients(
        self, z: Tensor, tangents: Tensor, by_y: Tensor, by_dy: Tensor
    ) -> tuple[Tensor, Tensor]:
        """From those by F (n, D) and J v (n, k, D) those by z and the tangents (n, k, d)."""
        try:
            with torch.enable_grad(), full_precision(z.device.type):
                leaf = z.detach().requires_grad_()
                y = self.value(leaf)
                pulled = [
                    torch.autograd.grad(y, leaf, w, create_graph=True)[0] for w in by_dy.unbind(1)
                ]
                by_tangents = torch.stack(pulled, 1)
                total = (by_tangents * tangents).sum() + (y * by_y).sum()
                return torch.autograd.grad(total, leaf)[0], by_tangents.detach()
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            raise RuntimeError(
                f"{self._function.role}: gradients of speeds take second derivatives, which an "
                f"operation does not have in PyTorch: {first_line(error)}"
            ) from error


class _Pushed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, z: Tensor, tangents: Tensor, by: GradientsByReverseMode
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(z, tangents)
        ctx.by = by
        return by.derivatives(z, tangents)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        z, tangents = ctx.saved_tensors
        by_z, by_tangents = ctx.by.gradients(z, tangents, *gradients)
        return by_z, by_tangents.sum_to_size(tangents.shape), None


def _by_autograd(function: LatentFunction, trial: Trial) -> Map:
    """In a mode that has the derivatives of the metric; forward mode says what it lacks."""
    z = trial.latents[:1]
    forward, reverse = ForwardMode(function, trial), TwiceReverseMode(function, trial)
    try:
        forward.push(z, z[:, None])
    except DependsOnChance:
        raise
    except ValueError:
        with torch.enable_grad(), contextlib.suppress(RuntimeError):
            leaf = z.clone().requires_grad_()
            reverse.push(leaf, z[:, None])
            return reverse
    return forward
