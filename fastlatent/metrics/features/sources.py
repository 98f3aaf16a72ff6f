"""What features are taken of: tensors, .npz files, folders of image files, batches."""

import os
import zipfile
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from fastlatent.metrics.features.images import (
    SUFFIXES,
    as_channels_first,
    decode,
    image_files,
    resize,
    same_size,
    to_unit,
)
from fastlatent.metrics.statistics import FeatureStatistics
from fastlatent.subset import spread

FEATURE_KEYS = ("features", "feats")
IMAGE_KEYS = ("images", "x", "samples")
EITHER_KEYS = ("arr_0",)  # what numpy.savez calls an array without a name
_AHEAD = 2  # batches of files that are decoded while one is used


class Source(Protocol):
    """Images (k, c, h, w) or features (k, d) in batches of at most `batch`."""

    name: str  # for messages
    count: int | None  # images or features in all; None where only a pass can tell

    def batches(self, batch: int, rank: int, world: int) -> Iterator[Tensor]:
        """Every batch whose number is `rank` modulo `world`, in order."""


class _Array:
    def __init__(self, name: str, values: Tensor, limit: int | None):
        chosen = spread(len(values), limit)
        self.name, self.count = name, len(chosen)
        whole = self.count == len(values)
        self._values = values if whole else values[chosen.to(values.device)]

    def batches(self, batch: int, rank: int, world: int) -> Iterator[Tensor]:
        return iter(self._values.split(batch)[rank::world])


class _Folder:
    def __init__(
        self,
        folder: Path,
        recursive: bool,
        size: tuple[int, int] | None,
        channels: int | None,
        limit: int | None,
    ):
        if not folder.is_dir():
            raise FileNotFoundError(f"extract: there is no file or folder {folder}")
        self.name = str(folder)
        paths = image_files(folder, recursive)
        self._paths = [paths[k] for k in spread(len(paths), limit).tolist()]
        if not self._paths:
            where = "in it or below" if recursive else "directly in it"
            raise ValueError(f"{folder} holds no image files {where} ({' '.join(SUFFIXES)})")
        self.count = len(self._paths)
        first = decode(self._paths[0], channels)
        self._channels, self._size = len(first), size
        self._shape = torch.Size((len(first), *(size or first.shape[1:])))

    def batches(self, batch: int, rank: int, world: int) -> Iterator[Tensor]:
        parts = [self._paths[i : i + batch] for i in range(0, len(self._paths), batch)]
        waiting: deque[tuple[Sequence[Path], list[Future[Tensor]]]] = deque()
        pool = ThreadPoolExecutor(os.cpu_count())
        try:
            for part in parts[rank::world]:
                waiting.append((part, [pool.submit(self._read, path) for path in part]))
                if len(waiting) > _AHEAD:
                    yield self._together(*waiting.popleft())
            while waiting:
                yield self._together(*waiting.popleft())
        finally:
            pool.shutdown(cancel_futures=True)

    def _read(self, path: Path) -> Tensor:
        pixels = decode(path, self._channels)
        return pixels if self._size is None else resize(pixels[None], self._size)[0]

    def _together(self, paths: Sequence[Path], decoded: list[Future[Tensor]]) -> Tensor:
        images = [image.result() for image in decoded]
        same_size(paths, images, self._shape)
        # Those that had the size already are still in 8 bits.
        if len({image.dtype for image in images}) > 1:
            images = [to_unit(image) for image in images]
        return torch.stack(images)


class _Stream:
    def __init__(self, batches: Iterable[Any], limit: int | None):
        self.name, self.count = "the batches", None
        self._batches, self._limit = batches, limit

    def batches(self, batch: int, rank: int, world: int) -> Iterator[Tensor]:
        number, left = 0, self._limit
        for given in self._batches:
            for part in _tensor_of(given)[:left].split(batch):
                if number % world == rank:
                    yield part
                number += 1
                if left is not None:
                    left -= len(part)
            if left == 0:
                break


def _tensor_of(given: Any) -> Tensor:
    """The images or features of a batch: a tensor, the first of a tuple, or its `images`."""
    if isinstance(given, (tuple, list)) and given:
        given = given[0]
    given = getattr(given, "images", given)
    if isinstance(given, np.ndarray):
        given = torch.from_numpy(given)
    if not isinstance(given, Tensor):
        raise TypeError(
            "extract: a batch must be a tensor, a tuple that starts with one, or have `images`; "
            f"got {type(given).__name__}"
        )
    return given


def open_source(
    source: Any,
    *,
    size: tuple[int, int] | None = None,
    channels: int | None = None,
    recursive: bool = True,
    key: str | None = None,
    limit: int | None = None,
) -> Source:
    """A source of batches from whatever `extract` takes."""
    if isinstance(source, (str, Path)):
        path = Path(source).expanduser()
        if path.suffix != ".npz" or path.is_dir():
            return _Folder(path, recursive, size, channels, limit)
        values = read_npz(path, key)
        if isinstance(values, FeatureStatistics):
            raise ValueError(
                f"{path} holds statistics (mu and sigma), of which no features can be taken; "
                "FeatureStatistics.load reads them"
            )
        return _Array(str(path), values, limit)
    if isinstance(source, np.ndarray):
        source = torch.from_numpy(source)
    if isinstance(source, Tensor):
        if source.dim() not in (2, 4):
            raise ValueError(
                "extract: source must be features (n, d) or images (n, c, h, w); "
                f"got {tuple(source.shape)}"
            )
        return _Array("the tensor", source, limit)
    if isinstance(source, Iterable):
        return _Stream(source, limit)
    raise TypeError(
        "extract: source must be a tensor, a path or an iterable of batches; "
        f"got {type(source).__name__}"
    )


def read_npz(path: Path | str, key: str | None = None) -> FeatureStatistics | Tensor:
    """What an .npz file holds: statistics, features (n, d), or images (n, c, h, w).

    Statistics are `mu` (d,) and `sigma` (d, d), as of pytorch-fid, perhaps with their `n`. Features
    are `features` or `feats`, images `images`, `x` or `samples`, either `arr_0`; `key` names
    another array, or one of several. Images may be (n, h, w), (n, h, w, c) or (n, c, h, w), uint8,
    bool or floats in [0, 1].

    Raises FileNotFoundError, and ValueError where the file is damaged or its arrays are not those
    of one of the three: it names what is there.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    # A truncated archive has lost the directory at its end, so it is no zip file either.
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is not an .npz file, or it is truncated")
    with np.load(path, allow_pickle=False) as archive:
        there = ", ".join(sorted(archive.files)) or "nothing"
        if key is not None and key not in archive.files:
            raise ValueError(f"{path} has no array {key}; it holds {there}")
        known = (*FEATURE_KEYS, *IMAGE_KEYS, *EITHER_KEYS)
        arrays = [key] if key is not None else [name for name in known if name in archive.files]
        statistics = key is None and {"mu", "sigma"} <= set(archive.files)
        if len(arrays) + statistics > 1:
            raise ValueError(f"{path} holds {there}; name the array to be read by key")
        if statistics:
            return FeatureStatistics.load(path)
        if not arrays:
            half = {"mu", "sigma"} & set(archive.files)
            wanted = "mu and sigma both" if half else f"mu and sigma, or one of {', '.join(known)}"
            raise ValueError(f"{path} holds {there}; expected {wanted}")
        name = arrays[0]
        array = _load(path, archive, name)
    where = f"{path}: {name}"
    if name in IMAGE_KEYS or array.ndim > 2:
        return as_channels_first(where, array)
    return _features(where, array)


def _load(path: Path, archive: Any, name: str) -> np.ndarray:
    try:
        return archive[name]
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged at {name}: {error}") from None


def _features(where: str, array: np.ndarray) -> Tensor:
    if array.ndim != 2 or array.dtype.kind != "f":
        raise ValueError(
            f"{where} must be floating-point features (n, d); got {array.dtype} of {array.shape}"
        )
    return torch.from_numpy(array)
