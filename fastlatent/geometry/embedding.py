"""Riemannian metrics on latents: pulled back by a map into Euclidean space, or given directly."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastlatent.geometry.frozen import LatentFunction, Trial
from fastlatent.geometry.tiles import Tile, budget, over_points

_DTYPES = (torch.float32, torch.float64)


class Metric(ABC):
    """A field of symmetric positive semidefinite matrices M(z) (d, d) over latents z.

    Latents are float32 or float64 tensors (n, d). Methods raise ValueError or TypeError for others,
    but do not look at values: latents that are not finite give results that are not.
    """

    latent_dim: int | None = None  # None: any

    @abstractmethod
    def speed_squared(
        self,
        z: Tensor,  # (n, d)
        v: Tensor,  # (n, d)
    ) -> Tensor:  # (n,)
        """v^T M(z) v, differentiable in z and v."""

    @abstractmethod
    def matrix(
        self,
        z: Tensor,  # (n, d)
    ) -> Tensor:  # (n, d, d)
        """M(z)."""

    def check(self, name: str, z: Tensor, **alike: Tensor) -> None:
        """z is (n, d), with d that of the metric, and the others are of its shape and dtype."""
        if not isinstance(z, Tensor):
            raise TypeError(f"{name}: z must be a tensor; got {type(z).__name__}")
        if z.dtype not in _DTYPES:
            raise TypeError(f"{name}: z must be float32 or float64; got {_word(z.dtype)}")
        d = "d" if self.latent_dim is None else self.latent_dim
        if z.dim() != 2 or z.shape[1] == 0 or (self.latent_dim or z.shape[1]) != z.shape[1]:
            raise ValueError(f"{name}: z must have shape (n, {d}); got {tuple(z.shape)}")
        for other, tensor in alike.items():
            if not isinstance(tensor, Tensor) or tensor.dtype != z.dtype:
                got = _word(tensor.dtype) if isinstance(tensor, Tensor) else type(tensor).__name__
                raise TypeError(f"{name}: {other} must be a tensor of z's dtype; got {got}")
            if tensor.shape != z.shape:
                raise ValueError(
                    f"{name}: {other} must have the shape of z, {tuple(z.shape)}; "
                    f"got {tuple(tensor.shape)}"
                )


class MetricField(Metric):
    """A metric given directly as a function z (n, d) -> M(z) (n, d, d)."""

    def __init__(self, function: Callable[[Tensor], Tensor], latent_dim: int | None = None):
        if not callable(function):
            raise TypeError(f"MetricField: expected a function; got {type(function).__name__}")
        self._function = function
        self.latent_dim = latent_dim

    def speed_squared(self, z: Tensor, v: Tensor) -> Tensor:
        self.check("speed_squared", z, v=v)
        return torch.einsum("ni,nij,nj->n", v, self.matrix(z), v)

    def matrix(self, z: Tensor) -> Tensor:
        self.check("matrix", z)
        m = self._function(z)
        if not isinstance(m, Tensor) or m.shape != (*z.shape, z.shape[1]):
            got = tuple(m.shape) if isinstance(m, Tensor) else type(m).__name__
            raise ValueError(
                f"MetricField: the function must give {(*z.shape, z.shape[1])} for latents "
                f"{tuple(z.shape)}; got {got}"
            )
        return m


class Embedding(Metric):
    """The metric M = J^T J that a map F into Euclidean space R^D pulls back, J = dF/dz."""

    max_bytes: int | None = None  # of intermediate results; None: 256 MiB on a CPU, 2 GiB elsewhere

    @abstractmethod
    def output(
        self,
        z: Tensor,  # (n, d)
    ) -> Tensor:  # (n, D)
        """F(z), differentiable in z; nothing else gets gradients."""

    @abstractmethod
    def push_forward(
        self,
        z: Tensor,  # (n, d)
        tangents: Tensor,  # (k, n, d)
    ) -> tuple[Tensor, Tensor]:  # (n, D), (k, n, D)
        """F(z) and J(z) times each tangent, differentiable in both."""

    @abstractmethod
    def floats_at(
        self,
        z: Tensor,  # (n, d)
    ) -> int:
        """About how many numbers push_forward holds for each point and each tangent of it."""

    def jvp(
        self,
        z: Tensor,  # (n, d)
        v: Tensor,  # (n, d)
    ) -> Tensor:  # (n, D)
        """J(z) v, differentiable in both."""
        self.check("jvp", z, v=v)

        def compute(points: slice, _: int) -> Tensor:
            return self.push_forward(z[points], v[None, points])[1][0]

        return self._tiled("jvp", compute, z, v)

    def speed_squared(self, z: Tensor, v: Tensor) -> Tensor:
        self.check("speed_squared", z, v=v)

        def compute(points: slice, _: int) -> Tensor:
            return self.push_forward(z[points], v[None, points])[1][0].square().sum(1)

        return self._tiled("speed_squared", compute, z, v)

    def jacobian(
        self,
        z: Tensor,  # (n, d)
    ) -> Tensor:  # (n, D, d)
        """J(z)."""
        self.check("jacobian", z)
        d = z.shape[1]

        def compute(points: slice, tangents: int) -> Tensor:
            starts = range(0, d, tangents)
            parts = [self._columns(z[points], k, min(d, k + tangents)) for k in starts]
            return torch.cat(parts).permute(1, 2, 0)

        return self._tiled("jacobian", compute, z, tangents=d)

    def matrix(self, z: Tensor) -> Tensor:
        self.check("matrix", z)
        d = z.shape[1]

        def compute(points: slice, tangents: int) -> Tensor:
            if tangents >= d:
                rows = self._columns(z[points], 0, d).transpose(0, 1)
                return rows @ rows.mT
            return self._blockwise(z[points], tangents)

        return self._tiled("matrix", compute, z, tangents=d)

    def _blockwise(self, z: Tensor, width: int) -> Tensor:
        """M in blocks of columns, without ever holding more than two blocks of J."""
        d = z.shape[1]
        m = z.new_empty(len(z), d, d)
        for i in range(0, d, width):
            left = self._columns(z, i, min(d, i + width)).transpose(0, 1)
            for j in range(i, d, width):
                right = left if i == j else self._columns(z, j, min(d, j + width)).transpose(0, 1)
                block = left @ right.mT
                m[:, i : i + width, j : j + width] = block
                m[:, j : j + width, i : i + width] = block.mT
        return m

    def _columns(self, z: Tensor, first: int, last: int) -> Tensor:
        """Columns of J: (last - first, n, D)."""
        n, d = z.shape
        basis = torch.eye(d, dtype=z.dtype, device=z.device)[first:last, None]
        return self.push_forward(z, basis.expand(-1, n, -1))[1]

    def _tiled(
        self,
        name: str,
        compute: Callable[[slice, int], Tensor],
        *inputs: Tensor,
        tangents: int = 1,
    ) -> Tensor:
        """`compute` a tile at a time; all at once where the caller wants a graph through it."""
        z = inputs[0]
        graph = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
        if graph:
            return compute(slice(None), tangents)
        with torch.no_grad():
            each = self.floats_at(z) * z.element_size()
            limit = self.max_bytes or budget(z.device)
            return over_points(name, Tile.within(limit, tangents, each), compute, len(z))


class FunctionEmbedding(Embedding):
    """F = f for a deterministic decoder f, F = (mean, standard deviation) for a stochastic one.

    A random point m(z) + s(z) eps with eps ~ N(0, I) has the expected metric J_m^T J_m + J_s^T J_s
    (A. Tosi, S. Hauberg, A. Vellido, N. Lawrence, "Metrics for Probabilistic Geometries", UAI
    2014), which F pulls back from Euclidean space. A variance that does not depend on z adds
    nothing. Derivatives by torch.func, in forward mode.
    """

    def __init__(self, function: LatentFunction):
        self._function = function
        self._trial: Trial | None = None

    def try_on(self, z: Tensor) -> Trial | None:
        """What the first latents showed; raises where the function can't be used."""
        if self._trial is None and len(z):
            self._trial = Trial(self._function, z)
            self.latent_dim = z.shape[1]
        return self._trial

    def floats_at(self, z: Tensor) -> int:
        trial = self.try_on(z)
        return 4 * trial.largest if trial else 1

    def output(self, z: Tensor) -> Tensor:
        self.check("output", z)
        self.try_on(z)
        return self._flat(z)

    def push_forward(self, z: Tensor, tangents: Tensor) -> tuple[Tensor, Tensor]:
        self.try_on(z)
        return push(self._flat, z, tangents)

    def _flat(self, z: Tensor) -> Tensor:
        mean, variance = self._function(z)
        if variance is None or self._trial is None or not self._trial.stochastic:
            return mean.flatten(1)
        return torch.cat([mean.flatten(1), standard_deviation(variance.flatten(1))], 1)


def push(
    function: Callable[[Tensor], Any],
    x: Tensor,  # (n, ...)
    tangents: Tensor,  # (k, n, ...)
) -> tuple[Any, Any]:  # function(x), and its derivatives (k, ...)
    """Value and k directional derivatives, in forward mode."""

    def along(tangent: Tensor) -> tuple[Any, Any]:
        return torch.func.jvp(function, (x,), (tangent,))

    return torch.func.vmap(along, out_dims=(None, 0))(tangents)


def standard_deviation(variance: Tensor) -> Tensor:
    """The root, with derivative 0 where the variance is 0."""
    zero = variance == 0
    return variance.masked_fill(zero, 1).sqrt().masked_fill(zero, 0)


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
