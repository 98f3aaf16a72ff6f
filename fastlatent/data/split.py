"""Batches of a split: from uint8 images on the device, or through worker processes."""

import hashlib
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from fastlatent.data.images import FileImages
from fastlatent.files.subset import spread, spread_to_both_ends
from fastlatent.noise import generator

MARKED = 1024  # images that a split's mark looks at


@dataclass
class Batch:
    """Images of one step, all on the device that was asked for."""

    images: Tensor  # (b, c, h, w) float32 in [0, 1]
    index: Tensor  # (b,) int64, which samples of the split these are
    labels: Tensor | None  # (b,) int64 class ids, (b, A) uint8 attributes, or None


def epoch_order(n: int, seed: int, epoch: int) -> Tensor:
    """The order (n,) int64 in which epoch `epoch` visits n samples, fixed by the arguments."""
    return torch.randperm(n, generator=generator(seed, epoch, "epoch order"))


class Split:
    """One split of a data set.

    Resident splits hold their images as one uint8 tensor, on the CPU until `to` moves it.
    Streaming splits (`streams`) read theirs in worker processes. Their batches are the same.
    """

    def __init__(
        self,
        name: str,
        images: Tensor | FileImages,  # uint8 (n, c, h, w), or files that read as such
        labels: Tensor | None = None,  # (n,) int64 or (n, A) uint8
        *,
        streams: bool = False,
        workers: int = 2,
        ids: tuple[str, ...] | None = None,  # a name for each image, where they have such
    ) -> None:
        self.name = name
        self.ids = ids
        self.labels = labels
        self.streams = streams
        self.workers = workers
        self._images = images
        shape = images.shape if isinstance(images, FileImages) else images.shape[1:]
        self.shape: tuple[int, int, int] = (shape[0], shape[1], shape[2])

    def __len__(self) -> int:
        return len(self._images)

    @property
    def device(self) -> torch.device:
        """Where `images` answers."""
        if isinstance(self._images, FileImages):
            return torch.device("cpu")
        return self._images.device

    @cached_property
    def mark(self) -> Tensor:  # (16,) uint8
        """A hash of the number and shape of the images and of up to 1,024 of them, evenly spread.

        The same wherever the images lie; it tells data sets, choices and orders of them apart.
        """
        hashed = hashlib.blake2b(repr((len(self), self.shape)).encode(), digest_size=16)
        places = spread_to_both_ends(len(self), min(len(self), MARKED))
        for index in places.split(64):
            hashed.update(self.images(index).cpu().contiguous().numpy().data)
        return torch.frombuffer(bytearray(hashed.digest()), dtype=torch.uint8)

    @property
    def mark_text(self) -> str:
        """The mark in hexadecimal digits, as files keep it."""
        return self.mark.numpy().tobytes().hex()

    def to(self, device: torch.device | str) -> "Split":
        """The split with its images and labels on `device`; a streaming split stays as it is."""
        if self.streams or isinstance(self._images, FileImages):
            return self
        labels = None if self.labels is None else self.labels.to(device)
        images = self._images.to(device)
        return Split(self.name, images, labels, workers=self.workers, ids=self.ids)

    def spread(self, n: int | None = None) -> Tensor:  # (min(n, all),) int64
        """Indices of n images evenly spread over the split, or of all of them where n is None."""
        return spread(len(self), n)

    def find(self, wanted: Sequence[str]) -> Tensor:  # (k,) int64
        """Where the images with these ids are; ids are names, or numbers from 0 without names.

        Raises ValueError for an id that no image has.
        """
        known = self.ids or tuple(map(str, range(len(self))))
        place = {name: k for k, name in enumerate(known)}
        unknown = [name for name in wanted if name not in place]
        if unknown:
            raise ValueError(
                f"no {self.name} image has the id {unknown[0]!r}; ids go from {known[0]} to "
                f"{known[-1]}"
            )
        return torch.tensor([place[name] for name in wanted], dtype=torch.int64)

    def images(self, index: Tensor | Sequence[int]) -> Tensor:
        """The samples at `index` (k,), in the order given: uint8 (k, c, h, w) on `device`.

        Raises ValueError for an index outside the split, and for one that is no list of integers.
        """
        if not isinstance(index, Tensor):
            rows = list(index)
            if not all(type(row) is int or isinstance(row, np.integer) for row in rows):
                raise ValueError(f"index must be whole numbers; got {rows}")
            index = torch.tensor(rows, dtype=torch.int64)
        self._check_index("index", index)
        return _read(self._images, index)

    def batches(
        self,
        batch: int,
        device: torch.device | str,
        *,
        order: Tensor | None = None,  # (m,) sample indices; None: file order
        start: int = 0,
        drop_last: bool = False,
        rank: int = 0,
        world: int = 1,
        workers: int | None = None,
    ) -> Iterator[Batch]:
        """One pass in steps of `batch` images for each of `world` ranks, from step `start` on.

        A step has batch * world samples; rank r takes rows r * batch to (r + 1) * batch. The last
        step may be short or empty on some ranks. Every rank sees as many steps. Streaming raises
        ValueError for a damaged file when it reaches it.
        """
        for name, value, least in (("batch", batch, 1), ("start", start, 0), ("world", world, 1)):
            if value < least:
                raise ValueError(f"batches: {name} must be at least {least}; got {value}")
        if not 0 <= rank < world:
            raise ValueError(f"batches: rank must lie in 0 to {world - 1}; got {rank}")
        if order is None:
            order = torch.arange(len(self))
        self._check_index("order", order)
        whole = batch * world
        steps = len(order) // whole if drop_last else -(-len(order) // whole)
        order = order.to(self.device)
        rows = [
            order[step * whole + rank * batch :][:batch] for step in range(start, max(start, steps))
        ]
        device = torch.device(device)
        if self.streams:
            return self._stream(rows, device, self.workers if workers is None else workers)
        return (self._batch(_read(self._images, index), index, device) for index in rows)

    def _stream(self, rows: list[Tensor], device: torch.device, workers: int) -> Iterator[Batch]:
        if not rows:
            return
        loader: DataLoader = DataLoader(
            _Rows(self._images),
            batch_size=None,
            sampler=[index.tolist() for index in rows],
            num_workers=workers,
            pin_memory=device.type == "cuda",
            worker_init_fn=_leave_signals_to_the_parent,
            # Without one of its own the loader draws its seed from the global generator.
            generator=torch.Generator(),
        )
        for index, pixels in zip(rows, loader, strict=True):
            if isinstance(pixels, Exception):
                raise pixels
            yield self._batch(pixels, index, device)

    def _batch(self, pixels: Tensor, index: Tensor, device: torch.device) -> Batch:
        labels = None if self.labels is None else self.labels[index].to(device)
        pixels = pixels.to(device, non_blocking=True)
        # Dividing by a tensor on the device is a true division there too: CUDA turns a division
        # by a number into a product with its rounded reciprocal.
        images = pixels.float().div_(torch.tensor(255.0, device=device))
        return Batch(images, index.to(device), labels)

    def _check_index(self, name: str, index: Tensor) -> None:
        if index.ndim != 1 or index.dtype != torch.int64:
            raise ValueError(
                f"{name} must be int64 (k,); got {index.dtype} of shape {tuple(index.shape)}"
            )
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < len(self):
            raise ValueError(
                f"{name} must lie in 0 to {len(self) - 1}, the samples of the {self.name} split"
            )


class _Rows(TorchDataset):
    """What a worker runs: a list of rows in, their pixels out."""

    def __init__(self, images: Tensor | FileImages) -> None:
        self._images = images

    def __getitem__(self, rows: Sequence[int]) -> Tensor | Exception:
        # Returned, not raised: the loader would wrap the worker's whole traceback into the message.
        try:
            return _read(self._images, torch.tensor(rows, dtype=torch.int64))
        except (ValueError, OSError) as error:
            return error


def _read(images: Tensor | FileImages, index: Tensor) -> Tensor:
    if isinstance(images, FileImages):
        return images.read(index.tolist())
    return images.index_select(0, index.to(images.device))


def _leave_signals_to_the_parent(_worker: int) -> None:
    # All can reach the whole process group; the parent saves its state first and needs its
    # workers until then.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
