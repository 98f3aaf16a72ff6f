"""The metric of a decoder: analytic where its operations are known, by torch.func elsewhere."""

from typing import Protocol

import torch
from torch import Tensor

from fastlatent.geometry.embedding import Embedding, word
from fastlatent.geometry.frozen import LatentFunction, standard_deviation
from fastlatent.geometry.precision import full_precision
from fastlatent.geometry.program import analyse
from fastlatent.geometry.tape import Untraceable
from fastlatent.geometry.tiles import keep_memory
from fastlatent.geometry.trial import Trial

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
        self._kind: tuple[torch.dtype, torch.device] | None = None
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
        f = self._map_for(z)
        with full_precision(z.device.type):
            return f.push(z, tangents)

    def rows(self, z: Tensor, tangents: Tensor) -> Tensor:
        f = self._map_for(z)
        with full_precision(z.device.type):
            return f.push(z, tangents, ordered=False)[1]

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
            dtype, device = self._kind or (None, None)
            raise TypeError(
                f"{self._function.role}: latents must stay {word(dtype)} on {device}, as the "
                f"first ones were; got {word(z.dtype)} on {z.device}"
            )
        return self._map

    def _look(self, z: Tensor) -> Map:
        trial = Trial(self._function, z)
        if z.device.type == "cpu":
            keep_memory()
        if self._wanted:
            try:
                program = analyse(self._function, z, trial.stochastic)
                if trial.agrees(program.value, program.push):
                    return program
                self.obstacle = "its operations give other values or derivatives when repeated"
            except Untraceable as error:
                self.obstacle = str(error)
            except (RuntimeError, NotImplementedError) as error:
                self.obstacle = f"an operation has no derivative: {error}"
        return ForwardMode(self._function, trial)


class ForwardMode:
    """F with its derivatives by torch.func."""

    def __init__(self, function: LatentFunction, trial: Trial | None):
        self._function = function
        self._stochastic = trial is not None and trial.stochastic
        largest = trial.largest if trial is not None else 1
        self.floats = 4 * largest
        self.stored = 32 * largest

    def value(self, z: Tensor) -> Tensor:
        mean, variance = self._function(z)
        if variance is None or not self._stochastic:
            return mean.flatten(1)
        return torch.cat([mean.flatten(1), standard_deviation(variance.flatten(1))], 1)

    def push(self, z: Tensor, tangents: Tensor, ordered: bool = True) -> tuple[Tensor, Tensor]:
        def along(tangent: Tensor) -> tuple[Tensor, Tensor]:
            return torch.func.jvp(self.value, (z,), (tangent,))

        expanded = tangents.expand(len(z), -1, -1)
        try:
            return torch.func.vmap(along, in_dims=1, out_dims=(None, 1))(expanded)
        except NotImplementedError as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"{self._function.role}: an operation has no forward-mode derivative in PyTorch: "
                f"{reason}"
            ) from error
