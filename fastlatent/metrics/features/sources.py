"""What features are taken of: tensors, .npz files, folders of image files, batches."""

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from fastlatent.files.arrays import bits_among, images_of, open_npz, read_array, taken_as_white
from fastlatent.files.image_files import BACKGROUND, SUFFIXES, ColourError, check_background, decode
from fastlatent.files.image_folders import find_images, survey
from fastlatent.files.subset import spread
from fastlatent.jobs.naming import setting
from fastlatent.metrics.features.images import resize, to_unit, with_channels
from fastlatent.metrics.statistics import FeatureStatistics

FEATURE_KEYS = ("features", "feats")
IMAGE_KEYS = ("images", "x", "samples")
EITHER_KEYS = ("arr_0",)  # what numpy.savez calls an array without a name
_AHEAD = 2  # batches of files that are decoded while one is used


class Source(Protocol):
    """Images (k, c, h, w) or features (k, d) in batches of at most `batch`."""

    name: str  # for messages
    notes: list[str]  # what was left out and how the rest is read, in sentences

    @property
    def count(self) -> int | None:
        """Images or features in all; None where only a pass can tell."""

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Shape (c, h, w) of an image; None for features, and where only a pass can tell."""

    def batches(self, batch: int, rank: int, world: int) -> Iterator[Tensor]:
        """Every batch whose number is `rank` modulo `world`, in order."""


class _Array:
    """Images or features that are at hand; images of `channels`, to be brought to `size`."""

    def __init__(
        self,
        name: str,
        values: Tensor,
        size: tuple[int, int] | None,
        channels: int | None,
        limit: int | None,
        notes: Sequence[str] = (),
    ):
        chosen = spread(len(values), limit)
        self.name, self.count, self.notes = name, len(chosen), list(notes)
        self.shape = None
        if values.dim() == 4:
            if channels is not None and values.shape[1] in (1, 3):
                values = with_channels(name, values, channels)
            found = (values.shape[2], values.shape[3])
            self.shape = (values.shape[1], *(size or found))
            self.notes += _resized(name, [found], size)
        whole = self.count == len(values)
        self._values = values if whole else values[chosen.to(values.device)]

    def batches(self, batch: int, rank: int, world: int) -> Iterator[Tensor]:
        return iter(self._values.split(batch)[rank::world])


class _Folder:
    """The image files of a folder; whether they go together is seen before any is used."""

    def __init__(
        self,
        folder: Path,
        recursive: bool,
        size: tuple[int, int] | None,
        channels: int | None,
        background: str,
        limit: int | None,
    ):
        if not folder.is_dir():
            raise FileNotFoundError(f"extract: there is no file or folder {folder}")
        self.name = str(folder)
        (found,) = find_images(folder, recursive=recursive)
        if not found.paths:
            where = "in it or below" if recursive else "directly in it"
            without = f"; {found.left_out}" if found.left_out else ""
            kinds = " ".join(sorted(SUFFIXES))
            raise ValueError(f"{folder} holds no image files {where} ({kinds}){without}")
        self._paths = [found.paths[k] for k in spread(len(found.paths), limit).tolist()]
        self.count = len(self._paths)
        try:
            looked = survey(self._paths, channels, background, every=size is None)
        except ColourError as error:
            if channels is not None:
                raise
            raise ValueError(f"{error}; {setting('channels', 3)} takes all in colour") from None
        self.notes = [found.left_out] if found.left_out else []
        self.notes += [f"{folder}, {note}" for note in looked.notes]
        self.notes += _resized(self.name, list(looked.sizes), size)
        self._channels, self._background, self._size = looked.channels, background, size
        first, *others = looked.sizes
        for other in others if size is None else ():
            self._check(looked.sizes[other], other, first)
        self.shape = (looked.channels, *(size or first))

    def batches(self, batch: int, rank: int, world: int) -> Iterator[Tensor]:
        parts = [self._paths[i : i + batch] for i in range(0, len(self._paths), batch)]
        waiting: deque[list[Future[Tensor]]] = deque()
        pool = ThreadPoolExecutor(os.cpu_count())
        try:
            for part in parts[rank::world]:
                waiting.append([pool.submit(self._read, path) for path in part])
                if len(waiting) > _AHEAD:
                    yield self._together(waiting.popleft())
            while waiting:
                yield self._together(waiting.popleft())
        finally:
            pool.shutdown(cancel_futures=True)

    def _read(self, path: Path) -> Tensor:
        pixels = decode(path, self._channels, self._background)
        if self._size is not None:
            return resize(pixels[None], self._size)[0]
        self._check(path, (pixels.shape[1], pixels.shape[2]), self.shape[1:])
        return pixels

    def _together(self, decoded: list[Future[Tensor]]) -> Tensor:
        images = [image.result() for image in decoded]
        # Those that had the size already are still in 8 bits.
        if len({image.dtype for image in images}) > 1:
            images = [to_unit(image) for image in images]
        return torch.stack(images)

    def _check(self, path: Path, size: tuple[int, ...], first: tuple[int, ...]) -> None:
        if size != first:
            raise ValueError(
                f"{path} is {_times(size)} where the first image is {_times(first)}; give a "
                f"{setting('size')} to bring all to"
            )


def _times(size: Sequence[int]) -> str:
    return "x".join(map(str, size))


def _resized(
    name: str, sizes: Sequence[tuple[int, int]], size: tuple[int, int] | None
) -> list[str]:
    """What to say where images are brought to another size."""
    others = [_times(found) for found in sizes if size is not None and found != size]
    if size is None or not others:
        return []
    listed = ", ".join(others[:3]) + ", ..." * (len(others) > 3)
    return [f"{name}: images of {listed} are resized to {_times(size)}, bicubic"]


def _in_white(images: Tensor, bits: bool) -> Tensor:
    """Bool images, and uint8 ones that hold `bits`, as 0 and 255; all else as it is."""
    one_is_white = images.dtype == torch.bool or (bits and images.dtype == torch.uint8)
    return images.to(torch.uint8) * 255 if one_is_white and images.dim() == 4 else images


class _Stream:
    def __init__(self, batches: Iterable[Any], channels: int | None, limit: int | None):
        self.name, self.count, self.shape = "the batches", None, None
        self.notes: list[str] = []
        self._batches, self._channels, self._limit = batches, channels, limit

    def batches(self, batch: int, rank: int, world: int) -> Iterator[Tensor]:
        number, left = 0, self._limit
        bits: bool | None = None  # not known while all are black
        for given in self._batches:
            images = _tensor_of(given)
            if images.dim() == 4 and images.dtype == torch.uint8 and images.any():
                only_bits = int(images.max()) == 1
                if bits and not only_bits:
                    raise ValueError(
                        "extract: the batches hold uint8 of 0 and 1 alone at first, and values "
                        f"up to {images.max()} later; give all in one scale, or bits as bool"
                    )
                if bits is None and only_bits and not self.notes:
                    self.notes.append(taken_as_white(["the batches"]))
                bits = only_bits if bits is None else bits
            images = _in_white(images, bool(bits))
            if self._channels is not None and images.dim() == 4 and images.shape[1] in (1, 3):
                images = with_channels(self.name, images, self._channels)
            for part in images[:left].split(batch):
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
    background: str = BACKGROUND,
    limit: int | None = None,
) -> Source:
    """A source of batches from whatever `extract` takes, or one that this has opened."""
    check_background("extract: background", background)
    if isinstance(source, (_Array, _Folder)):
        return source
    if isinstance(source, (str, Path)):
        path = Path(source).expanduser()
        if path.suffix != ".npz" or path.is_dir():
            return _Folder(path, recursive, size, channels, background, limit)
        stored = read_stored(path, key)
        if isinstance(stored.values, FeatureStatistics):
            raise ValueError(
                f"{path} holds statistics (mu and sigma), of which no features can be taken; "
                "FeatureStatistics.load reads them"
            )
        return array_source(path, stored, size=size, channels=channels, limit=limit)
    if isinstance(source, np.ndarray):
        source = torch.from_numpy(source)
    if isinstance(source, Tensor):
        if source.dim() not in (2, 4):
            raise ValueError(
                "extract: source must be features (n, d) or images (n, c, h, w); "
                f"got {tuple(source.shape)}"
            )
        uint8 = source.dim() == 4 and source.dtype == torch.uint8
        bits = bits_among("extract", {"the tensor": source.numpy(force=True)} if uint8 else {})
        notes = [taken_as_white(bits)] if bits else []
        values = _in_white(source, bool(bits))
        return _Array("the tensor", values, size, channels, limit, notes)
    if isinstance(source, Iterable):
        return _Stream(source, channels, limit)
    raise TypeError(
        "extract: source must be a tensor, a path or an iterable of batches; "
        f"got {type(source).__name__}"
    )


class Stored(NamedTuple):
    """What an .npz file holds, and how it was read, in sentences."""

    values: FeatureStatistics | Tensor
    notes: list[str]


def array_source(
    path: Path,
    stored: Stored,  # a tensor and its notes
    *,
    size: tuple[int, int] | None = None,
    channels: int | None = None,
    limit: int | None = None,
) -> Source:
    """The source of an .npz file that has been read."""
    assert isinstance(stored.values, Tensor)
    return _Array(str(path), stored.values, size, channels, limit, stored.notes)


def read_npz(path: Path | str, key: str | None = None) -> FeatureStatistics | Tensor:
    """What an .npz file holds: statistics, features (n, d), or images (n, c, h, w).

    Statistics are `mu` (d,) and `sigma` (d, d), as of pytorch-fid, perhaps with their `n`. Features
    are `features` or `feats`, images `images`, `x` or `samples`, either `arr_0`; `key` names
    another array, or one of several. Where `arr_0` lies beside `mu` and `sigma`, as in the
    references of guided-diffusion, it is read, and the statistics by the key `mu`. Images may be
    (n, h, w), (n, h, w, c) or (n, c, h, w), uint8, bool or floats in [0, 1]; uint8 of 0 and 1 alone
    is taken as black and white.

    Raises FileNotFoundError. Raises ValueError where the file is damaged or its arrays are not
    those of one of the three: it names what is there.
    """
    return read_stored(Path(path).expanduser(), key).values


def read_stored(path: Path, key: str | None = None, images: bool = True) -> Stored:
    """What `read_npz` reads, and how; without `images`, statistics where they lie beside them."""
    with open_npz(path) as archive:
        names = set(archive.files)
        there = ", ".join(sorted(names)) or "nothing"
        if key is not None and key not in names:
            raise ValueError(f"{path} has no array {key}; it holds {there}")
        known = (*FEATURE_KEYS, *IMAGE_KEYS, *EITHER_KEYS)
        arrays = [key] if key is not None else [name for name in known if name in names]
        statistics = {"mu", "sigma"} <= names
        if statistics and (arrays in ([], ["mu"], ["sigma"]) or (not images and key is None)):
            return Stored(FeatureStatistics.load(path), [])
        beside = statistics and key is None
        if len(arrays) + beside > 1 and arrays != ["arr_0"]:
            raise ValueError(f"{path} holds {there}; name the array to be read by {setting('key')}")
        if not arrays:
            half = {"mu", "sigma"} & names
            wanted = "mu and sigma both" if half else f"mu and sigma, or one of {', '.join(known)}"
            raise ValueError(
                f"{path} holds {there}; expected {wanted}, or another named by {setting('key')}"
            )
        name = arrays[0]
        array = read_array(path, archive, name)
    notes = [f"{path}: {name} is read, and not mu and sigma"] if beside else []
    where = f"{path}: {name}"
    if name not in IMAGE_KEYS and array.ndim <= 2:
        return Stored(_features(where, array), notes)
    bits = bits_among(path, {name: array})
    if bits:
        notes.append(f"{path}: {taken_as_white(bits)}")
    return Stored(images_of(where, array, bool(bits)), notes)


def _features(where: str, array: np.ndarray) -> Tensor:
    if array.ndim != 2 or array.dtype.kind != "f":
        raise ValueError(
            f"{where} must be floating-point features (n, d); got {array.dtype} of {array.shape}"
        )
    return torch.from_numpy(array)
