"""The latents of training images in training.

Under torch.distributed each rank holds the latents of its own images.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from fastlatent.data import Batch, Split
from fastlatent.files.subset import spread_to_both_ends
from fastlatent.models.glo.principal import principal_directions
from fastlatent.models.glo.table import LatentTable, mapped
from fastlatent.models.learned import Room
from fastlatent.noise import Noise, generator

if TYPE_CHECKING:
    from fastlatent.models.glo.model import GLO

ANCHORS = 256  # learned latents among whose images a search looks for starts
BLOCK = 4096  # images whose random latents are drawn together, whoever holds them
SUBSET = 24_576  # images that the components of large ones are computed from


class MovingLatents:
    """The table of latents in a training run."""

    def __init__(self, model: "GLO", split: Split, room: Room):
        self.model, self.split, self.room = model, split, room
        self.simultaneous = model.config.order == "simultaneous"
        self.table = LatentTable.empty(
            len(split),
            model.latent_dim,
            model.config.projection,
            room.device,
            scratch=room.folder if room.in_file else None,
            rank=room.rank,
            world=room.world,
        )
        own = model.config.per_sample_alpha
        # On the mean loss of the whole batch, over all parts and ranks.
        self.rate = model.config.alpha if own is None else own * room.batch
        self._taken: list[tuple[Tensor, Tensor]] = []

    def initialise(self) -> None:
        """Set the initial latents; the same on any number of ranks.

        Raises ValueError where there are fewer images, or fewer numbers in one, than latents.
        """
        self.model.images_mark.copy_(self.split.mark)
        if self.model.starts_at_components:
            self._find_components()
            for batch in self._own(self._passes()):
                self.table.write(batch.index, self.model.components(batch.images))
            return
        seed, d = self.room.seed, self.table.dim
        for block, index in enumerate(torch.arange(self.table.count).split(BLOCK)):
            stream, shape = Noise(seed, block), (len(index), d)
            if self.model.config.initial == "gaussian":
                latents = stream.normal("initial codes", shape)
            else:
                latents = 2 * stream.uniform("initial codes", shape) - 1
            mine = index % self.table.world == self.table.rank
            self.table.write(index[mine], self.model.project(latents[mine]))

    def _find_components(self) -> None:
        """Mean, directions and scale of the images, into the model."""
        model, n = self.model, self.table.count
        size = model.image_mean.numel()
        order = None
        if size > 3072 and n > SUBSET:
            order = torch.randperm(n, generator=generator(self.room.seed, 0, "components"))
            order = order[:SUBSET].sort().values
        found = principal_directions(
            lambda: ((2 * batch.images - 1).flatten(1) for batch in self._passes(order)),
            n if order is None else len(order),
            size,
            model.latent_dim,
            generator(self.room.seed, 1, "components"),
        )
        model.image_mean.copy_(found.mean)
        model.directions.copy_(found.directions)
        if model.config.initial == "pca_scaled":
            lengths = [
                found.coordinates((2 * batch.images - 1).flatten(1)).norm(dim=1)
                for batch in self._passes()
            ]
            model.component_scale.copy_(torch.cat(lengths).quantile(0.99).clamp_min(1e-12))

    def _passes(self, order: Tensor | None = None) -> Iterator[Batch]:
        """The images once, in file order or at the indices `order`."""
        return self.split.batches(self.room.test_batch, self.room.device, order=order)

    def _own(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """What of the batches is this rank's."""
        for batch in batches:
            mine = batch.index % self.table.world == self.table.rank
            yield Batch(batch.images[mine], batch.index[mine], None)

    def take(self, batch: Batch) -> dict[str, Tensor]:
        """What the objective is given for these images; their gradients are for `move`."""
        rows = self.table.rows(batch.index, self.room.device)
        if self.simultaneous:
            rows.requires_grad_()
            self._taken.append((batch.index, rows))
        return {"latents": rows}

    def leave(self) -> None:
        """Forget what was taken: the step is left out."""
        self._taken.clear()

    def move(
        self,
        objective: Callable[..., dict[str, Tensor]],
        parts: list[Batch],
        noises: list[Noise],
    ) -> list[dict[str, Tensor]]:
        """Gradient step of a step's latents, after that of the weights.

        Simultaneous: by the gradient that the pass of the weights has left. Alternating: by that
        of another pass, with the new weights, whose loss is returned for each part.
        """
        if self.simultaneous:
            # The trainer has divided the loss by the parts, DDP averages over ranks.
            for index, rows in self._taken:
                assert rows.grad is not None
                self.table.move(index, rows.detach(), rows.grad, self.rate / self.table.world)
            self._taken.clear()
            return [{} for _ in parts]
        share = self.rate / (self.table.world * len(parts))
        seen = []
        for batch, noise in zip(parts, noises, strict=True):
            rows = self.table.rows(batch.index, self.room.device).requires_grad_()
            loss = objective(batch.images, noise, latents=rows)["loss"]
            (gradient,) = torch.autograd.grad(loss, rows)
            self.table.move(batch.index, rows.detach(), gradient, share)
            seen.append({"loss_of_moved_weights": loss.detach()})
        return seen

    def describe(self, model: "GLO") -> None:
        """Set what the model needs for new latents and searches; asks all ranks."""
        n = self.table.count
        index = spread_to_both_ends(n, min(ANCHORS, n))
        model.describe_latents(*self.table.moments(_total), self.gather(index))

    def gather(self, index: Tensor) -> Tensor:
        """The latents at `index` (k,) of whichever rank, on all of them: (k, d)."""
        device = self.room.device
        latents = torch.zeros(len(index), self.table.dim, device=device)
        mine = index % self.table.world == self.table.rank
        latents[mine.to(device)] = self.table.rows(index[mine], device)
        return _total(latents)

    def whole(self) -> Tensor | None:
        """All latents (N, d), to be written; None on other ranks than the first, which are asked.

        The table itself where there is but one rank, otherwise a mapped file.
        """
        if self.table.world == 1:
            return self.table.values
        main = self.table.rank == 0
        n, d, world = self.table.count, self.table.dim, self.table.world
        out = mapped(n, d, self.room.folder) if main else None
        longest = -(-n // world)
        step = max(1, (1 << 24) // (4 * d * world))
        for start in range(0, longest, step):
            end = min(start + step, longest)
            mine = torch.zeros(end - start, d, device=self.room.device)
            rows = self.table.values[start:end]
            mine[: len(rows)] = rows
            shares = [torch.empty_like(mine) for _ in range(world)]
            dist.all_gather(shares, mine)
            if out is not None:
                joined = torch.stack(shares, 1).flatten(0, 1)
                place = out[start * world : end * world]
                place.copy_(joined[: len(place)])
        return out

    def restore(self, latents: Tensor) -> None:
        """Take up this rank's rows of all latents (N, d); ValueError for those of other images."""
        if latents.shape != (self.table.count, self.table.dim):
            raise ValueError(
                f"its latents are of shape {tuple(latents.shape)}, the training set needs "
                f"({self.table.count}, {self.table.dim})"
            )
        if not torch.equal(self.split.mark, self.model.images_mark.cpu()):
            raise ValueError("its latents are of other images than the training set has now")
        own = latents[self.table.rank :: self.table.world]
        for start, rows in self.table.chunks():
            rows.copy_(own[start : start + len(rows)])

    def all_finite(self) -> bool:
        """Whether every learned latent of this rank is finite."""
        return all(bool(rows.isfinite().all()) for _, rows in self.table.chunks())


def _total(sums: Tensor) -> Tensor:
    """The sum over all ranks."""
    if dist.is_initialized():
        sums = sums.clone()
        dist.all_reduce(sums)
    return sums
