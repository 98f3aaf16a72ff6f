"""Features of images: a source of images, a network or any callable, batch by batch."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fastlatent.files.image_files import BACKGROUND
from fastlatent.metrics.features.images import check_images, resize, to_uint8, to_unit
from fastlatent.metrics.features.sources import Source, open_source

Extractor = Callable[[Tensor], Tensor]


class Features:
    """The features of a source, (k, d) for each batch; made while they are iterated over.

    Can be iterated over again where the source can. `count` is how many images or features the
    source holds and `batches` how many batches this rank will get, or None where only a pass tells.
    `notes` say what was left out of a folder or file and how the rest is read.
    """

    def __init__(
        self,
        source: Source,
        extractor: Extractor | None,
        prepare: Callable[[str, Tensor], Tensor],  # where they come from, for messages; images
        batch: int,
        device: torch.device | None,
        rank: int,
        world: int,
    ):
        self.count, self.notes = source.count, source.notes
        total = None if source.count is None else -(-source.count // batch)
        self.batches = None if total is None else len(range(rank, total, world))
        self._source, self._extractor, self._prepare = source, extractor, prepare
        self._batch, self._device, self._rank, self._world = batch, device, rank, world

    def __iter__(self) -> Iterator[Tensor]:
        dim, seen = None, 0
        for number, given in enumerate(self._source.batches(self._batch, self._rank, self._world)):
            where = f"{self._source.name}, batch {number * self._world + self._rank}"
            features = self._of(where, given)
            if dim not in (None, features.shape[1]):
                raise ValueError(
                    f"extract: {where} has {features.shape[1]} features where those before have "
                    f"{dim}"
                )
            dim, seen = features.shape[1], seen + len(features)
            yield features
        if not seen and self._rank == 0:
            raise ValueError(f"extract: there are no images or features in {self._source.name}")

    def all(self) -> Tensor:
        """All features of this rank in one tensor (n, d)."""
        return torch.cat(list(self))

    def _of(self, where: str, given: Tensor) -> Tensor:
        if given.dim() == 2:
            features = given if self._device is None else given.to(self._device)
            rows = len(given)
        else:
            if self._extractor is None:
                raise ValueError(f"extract: {where} holds images; an extractor is needed")
            given = given if self._device is None else given.to(self._device)
            images = self._prepare(where, given)
            with torch.no_grad(), evaluation_mode(self._extractor):
                features = self._extractor(images)
            features, rows = _one_row_each(features), len(images)
        if features.shape[:1] != (rows,) or not features.is_floating_point():
            raise ValueError(
                f"extract: features must be floating point, one row for each of {rows} images; got "
                f"{features.dtype} of {tuple(features.shape)}"
            )
        if not features.isfinite().all():
            raise ValueError(f"extract: {where} has features that are NaN or infinite")
        return features


def extract(
    source: Any,
    extractor: Extractor | None = None,
    *,
    batch: int = 64,
    device: torch.device | str | None = None,
    takes: Literal["unit", "uint8"] = "unit",
    transform: Callable[[Tensor], Tensor] | None = None,
    size: int | tuple[int, int] | None = None,
    channels: Literal[1, 3] | None = None,
    recursive: bool = True,
    key: str | None = None,
    background: str = BACKGROUND,
    limit: int | None = None,
    rank: int = 0,
    world: int = 1,
) -> Features:
    """Features (n, d) of images, in batches and in bounded memory; to be iterated over.

    `source` is one of

    - features (n, d), passed through as they are, or images (n, c, h, w): uint8, bool or floats in
      [0, 1];
    - an .npz file of features or images (see `read_npz`; `key` names the array);
    - a folder of image files, with all folders below it if `recursive`. They must agree in size
      unless `size` (side, or height and width) brings all to one. They are turned upright by
      EXIF, transparent pixels are laid on the `background` (white, black or #rrggbb), and only the
      first picture of an animation is read. See `find_images` for what is left out;
    - an iterable of batches: tensors, tuples that start with one, or objects with `images`.

    uint8 images of 0 and 1 alone are black and white, as bool ones are, and `notes` say so; batches
    are judged by the first that is not all black. Give floats where 1 is nearly black.

    Images have 1 or 3 `channels`, by default as an array or the first file has them; colours
    become grey only where all their pixels are grey.

    `extractor` is any module or callable from images to features (n, d): float32 in [0, 1], or
    uint8 where it `takes` that. A module runs in evaluation mode, on its own device unless `device`
    is given, without gradients. `transform`, such as `to_uint8` or `jpeg_round_trip`, is applied to
    the images (after `size`) before that. With a `limit` only so many are taken: evenly spread over
    what has a length, for files may be sorted by class, and the first of batches. Each of `world`
    ranks takes every world-th batch.

    Raises, here or on the way, ValueError, TypeError or FileNotFoundError, which name the file or
    the batch: images of another range or shape, unreadable, not of one size; none at all; features
    that are not finite or not one row for each image.
    """
    for name, value in (("batch", batch), ("world", world), ("limit", limit)):
        if value is not None and value < 1:
            raise ValueError(f"extract: {name} must be at least 1; got {value}")
    if not 0 <= rank < world:
        raise ValueError(f"extract: rank must lie in 0 to {world - 1}; got {rank}")
    if takes not in ("unit", "uint8"):
        raise ValueError(f"extract: takes must be 'unit' or 'uint8'; got {takes!r}")
    if channels not in (None, 1, 3):
        raise ValueError(f"extract: channels must be 1 or 3; got {channels}")
    sides = (size, size) if isinstance(size, int) else size
    if sides is not None and (len(sides) != 2 or min(sides) < 1):
        raise ValueError(f"extract: size must be a side or (height, width); got {size}")
    opened = open_source(
        source,
        size=sides,
        channels=channels,
        recursive=recursive,
        key=key,
        background=background,
        limit=limit,
    )

    def prepare(where: str, images: Tensor) -> Tensor:
        check_images(f"extract: {where}", images)
        if sides is not None:
            images = resize(images, sides)
        if transform is not None:
            images = transform(images)
            check_images(f"extract: {where}, transformed", images)
        return to_uint8(images) if takes == "uint8" else to_unit(images)

    place = torch.device(device) if device is not None else _device_of(extractor)
    return Features(opened, extractor, prepare, batch, place, rank, world)


def distance_name(extractor: Extractor | None) -> str:
    """What a Frechet distance between its features is called: "FID" for FID's network alone.

    "FD(classifier)", "FD(dinov2)", "FD(<type or function>)" for others; "FD" for raw features.
    """
    if extractor is None:
        return "FD"
    own = getattr(extractor, "distance_name", None)
    name = getattr(extractor, "__name__", type(extractor).__name__)
    return own if isinstance(own, str) else f"FD({name})"


def _device_of(extractor: Extractor | None) -> torch.device | None:
    if not isinstance(extractor, nn.Module):
        return None
    return next((value.device for value in extractor.parameters()), None)


@contextmanager
def evaluation_mode(extractor: Extractor) -> Iterator[None]:
    """A module in evaluation mode inside; every part of it as it was afterwards."""
    parts = list(extractor.modules()) if isinstance(extractor, nn.Module) else []
    modes = [part.training for part in parts]
    try:
        # Not eval(), which modules of torch.export refuse.
        for part in parts:
            part.training = False
        yield
    finally:
        for part, mode in zip(parts, modes, strict=True):
            part.training = mode


def _one_row_each(features: Tensor) -> Tensor:
    if not isinstance(features, Tensor):
        raise TypeError(
            f"extract: the extractor must return a tensor; got {type(features).__name__}"
        )
    if features.dim() == 4 and features.shape[2:] == (1, 1):
        features = features[:, :, 0, 0]
    if features.dim() != 2:
        raise ValueError(
            f"extract: the extractor must return features (n, d); got {tuple(features.shape)}"
        )
    return features
