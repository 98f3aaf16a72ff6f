"""Riemannian metrics on latents: pulled back by a map into Euclidean space, or given directly."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from fastlatent.geometry.tiles import Tile, budget, is_out_of_memory, over_points
from fastlatent.ops.jacobian import jacobian_gram

_DTYPES = (torch.float32, torch.float64)


class Metric(ABC):
    """A field of symmetric positive semidefinite matrices M(z) (d, d) over latents z.

    Latents are float32 or float64 tensors (n, d). Methods raise ValueError or TypeError for others,
    but do not look at values: latents that are not finite give results that are not.
    """

    latent_dim: int | None = None  # None: any
    draws: int | None = None  # of noise, over which the metric is a mean; None: it takes none

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

    def stored_at(
        self,
        z: Tensor,  # (n, d)
    ) -> int:
        """About how many numbers a backward pass keeps for each point; 0: next to none."""
        return 0

    def check(self, name: str, z: Tensor, **alike: Tensor) -> None:
        """z is (n, d), with d that of the metric, and the others are of its shape and dtype."""
        if not isinstance(z, Tensor):
            raise TypeError(f"{name}: z must be a tensor; got {type(z).__name__}")
        if z.dtype not in _DTYPES:
            raise TypeError(f"{name}: z must be float32 or float64; got {word(z.dtype)}")
        d = "d" if self.latent_dim is None else self.latent_dim
        if z.dim() != 2 or z.shape[1] == 0 or (self.latent_dim or z.shape[1]) != z.shape[1]:
            raise ValueError(f"{name}: z must have shape (n, {d}); got {tuple(z.shape)}")
        for other, tensor in alike.items():
            if not isinstance(tensor, Tensor) or tensor.dtype != z.dtype:
                got = word(tensor.dtype) if isinstance(tensor, Tensor) else type(tensor).__name__
                raise TypeError(f"{name}: {other} must be a tensor of z's dtype; got {got}")
            if tensor.shape != z.shape:
                raise ValueError(
                    f"{name}: {other} must have the shape of z, {tuple(z.shape)}; "
                    f"got {tuple(tensor.shape)}"
                )


class MetricField(Metric):
    """A metric given directly as a function z (n, d) -> M(z) (n, d, d).

    The matrices are brought to the dtype of the latents. Methods raise ValueError where the
    function raises an error, and where it gives something else.
    """

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
        try:
            m = self._function(z)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise ValueError(
                f"MetricField: the function can't be evaluated on latents {tuple(z.shape)} of "
                f"{word(z.dtype)}: {next(iter(str(error).splitlines()), type(error).__name__)}"
            ) from error
        if not isinstance(m, Tensor) or m.shape != (*z.shape, z.shape[1]):
            got = tuple(m.shape) if isinstance(m, Tensor) else type(m).__name__
            raise ValueError(
                f"MetricField: the function must give {(*z.shape, z.shape[1])} for latents "
                f"{tuple(z.shape)}; got {got}"
            )
        return m.to(z.dtype)


class TiledMetric(Metric):
    """A metric that is computed for some points at a time.

    What needs no graph is, so that intermediate results stay within `max_bytes`; where memory runs
    out nevertheless, for half as many, down to one tangent of one point, which raises MemoryError.
    """

    max_bytes: int | None = None  # None: 48 MiB on a CPU, 2 GiB elsewhere

    @abstractmethod
    def floats_at(
        self,
        z: Tensor,  # (n, d)
    ) -> int:
        """About how many numbers are held at a time for each point and each tangent of it."""

    def _tiled(
        self,
        name: str,
        compute: Callable[[slice, int], Tensor],
        *inputs: Tensor,
        tangents: int = 1,
    ) -> Tensor:
        """`compute` a tile at a time; all at once where the caller wants a graph through it."""
        z = inputs[0]
        if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
            return compute(slice(None), tangents)
        with torch.no_grad():
            each = self.floats_at(z) * z.element_size()
            limit = self.max_bytes or budget(z.device)
            return over_points(name, Tile.within(limit, tangents, each), compute, len(z))


class Embedding(TiledMetric):
    """The metric M = J^T J that a map F into Euclidean space R^D pulls back, J = dF/dz."""

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
        tangents: Tensor,  # (n, k, d), or (1, k, d): the same at all points
    ) -> tuple[Tensor, Tensor]:  # (n, D), (n, k, D)
        """F(z) and J(z) times each tangent, differentiable in both; at all points at once."""

    def rows(self, z: Tensor, tangents: Tensor) -> Tensor:
        """J(z) times each tangent (n, k, D), with the D elements in any order."""
        return self.push_forward(z, tangents)[1]

    def jvp(
        self,
        z: Tensor,  # (n, d)
        v: Tensor,  # (n, d)
    ) -> Tensor:  # (n, D)
        """J(z) v, differentiable in both."""
        self.check("jvp", z, v=v)

        def compute(points: slice, _: int) -> Tensor:
            return self.push_forward(z[points], v[points, None])[1][:, 0]

        return self._tiled("jvp", compute, z, v)

    def speed_squared(self, z: Tensor, v: Tensor) -> Tensor:
        self.check("speed_squared", z, v=v)

        def compute(points: slice, _: int) -> Tensor:
            return self.rows(z[points], v[points, None])[:, 0].square().sum(1)

        return self._tiled("speed_squared", compute, z, v)

    def jacobian(
        self,
        z: Tensor,  # (n, d)
    ) -> Tensor:  # (n, D, d)
        """J(z)."""
        self.check("jacobian", z)
        d = z.shape[1]

        def compute(points: slice, tangents: int) -> Tensor:
            units = _units(z).split(tangents, 1)
            parts = [self.push_forward(z[points], part)[1] for part in units]
            return torch.cat(parts, 1).mT if len(parts) > 1 else parts[0].mT

        return self._tiled("jacobian", compute, z, tangents=d)

    def matrix(self, z: Tensor) -> Tensor:
        self.check("matrix", z)
        d = z.shape[1]

        def compute(points: slice, tangents: int) -> Tensor:
            if tangents >= d:
                return jacobian_gram(self.rows(z[points], _units(z)).mT)
            return self._blockwise(z[points], tangents)

        return self._tiled("matrix", compute, z, tangents=d)

    def _blockwise(self, z: Tensor, width: int) -> Tensor:
        """M in blocks of columns, without ever holding more than two blocks of J."""
        units = _units(z).split(width, 1)
        blocks: dict[tuple[int, int], Tensor] = {}
        for i, mine in enumerate(units):
            left = self.rows(z, mine)
            for j in range(i, len(units)):
                right = left if i == j else self.rows(z, units[j])
                blocks[i, j] = left @ right.mT
                blocks[j, i] = blocks[i, j].mT
        places = range(len(units))
        return torch.cat([torch.cat([blocks[i, j] for j in places], 2) for i in places], 1)


def _units(z: Tensor) -> Tensor:
    """The unit vectors, (1, d, d)."""
    return torch.eye(z.shape[1], dtype=z.dtype, device=z.device)[None]


def word(dtype: torch.dtype) -> str:
    """Such as "float32"."""
    return str(dtype).removeprefix("torch.")
