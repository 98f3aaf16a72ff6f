"""Images that a program has at hand, kept in an .npz file that a run can name as its data set."""

from collections.abc import Sized
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from fastlatent.data.own import in_8_bits
from fastlatent.files.arrays import bits_among, images_of, taken_as_white
from fastlatent.files.writing import written_whole
from fastlatent.jobs.progress import say, track

Arrays = dict[str, np.ndarray]


def arrays_of(data: Any) -> Arrays:
    """Arrays for `keep_images`: x, or train_x and test_x of a pair, with labels y where known.

    `data` is images as a tensor or an array, (n, h, w), (n, c, h, w) or (n, h, w, c), uint8, bool
    or floats in [0, 1]; a map-style torch Dataset of images, or of tuples that begin with an image
    and perhaps a class; or a pair of such, for training and for testing. Every tenth image of a
    single set is held out for testing. Images become uint8.

    Raises TypeError for anything else, ValueError for images of another shape or range.
    """
    if isinstance(data, (tuple, list)) and len(data) == 2:
        found: Arrays = {}
        for name, part in zip(("train", "test"), data, strict=True):
            found |= _with_labels(f"data: {name}", part, f"{name}_")
        if ("train_y" in found) != ("test_y" in found):
            raise ValueError("data: the training and the test images must both have labels or none")
        return found
    return _with_labels("data", data, "")


def _with_labels(name: str, given: Any, prefix: str) -> Arrays:
    """Images (n, c, h, w) uint8 as x, and labels as y where there are any."""
    labels = None
    if isinstance(given, Tensor):
        images = given.numpy(force=True)
    elif isinstance(given, np.ndarray):
        images = given
    elif isinstance(given, TorchDataset) and isinstance(given, Sized):
        images, labels = _items(name, given)
    else:
        raise TypeError(
            f"{name} must be the name of a data set, a tensor, a NumPy array, a torch Dataset with "
            f"a length, or a pair of these for training and testing; got {type(given).__name__}"
        )
    bits = bits_among(name, {name: images})
    if bits:
        say(taken_as_white(bits))
    pixels = in_8_bits(images_of(name, images, bool(bits))).numpy()
    if len(pixels) < 2:
        raise ValueError(f"{name} must hold at least 2 images; got {len(pixels)}")
    return {f"{prefix}x": pixels} | ({} if labels is None else {f"{prefix}y": labels})


def _items(name: str, data: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """The images and classes of a Dataset, which is gone through once."""
    images: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    for number in track(range(len(data)), f"images of {name}", len(data), unit="image"):
        item = data[number]
        image, *rest = item if isinstance(item, (tuple, list)) else (item,)
        if isinstance(image, Tensor):
            image = image.numpy(force=True)
        pixels = np.asarray(image)  # of a picture of PIL, too
        if pixels.dtype.kind == "O" or pixels.ndim not in (2, 3):
            raise TypeError(
                f"{name} must give images (h, w), (c, h, w) or (h, w, c), alone or first in a "
                f"tuple; got {type(image).__name__} of shape {pixels.shape} at {number}"
            )
        if images and pixels.shape != images[0].shape:
            raise ValueError(
                f"{name} must give images of one shape; got {images[0].shape} and {pixels.shape}, "
                f"at {number}"
            )
        images.append(pixels)
        labels += [np.asarray(rest[0])] if rest else []
    if not images:
        raise ValueError(f"{name} must hold at least 2 images; got 0")
    classes = np.stack(labels) if len(labels) == len(images) else None
    if classes is not None and (classes.ndim > 2 or classes.dtype.kind not in "iub"):
        classes = None  # a target of another kind
    return np.stack(images), classes


def keep_images(arrays: Arrays, path: Path) -> None:
    """Write them to an .npz file, which `npz:PATH` names."""
    with written_whole(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def shape_of(arrays: Arrays) -> tuple[int, int, int]:
    """(c, h, w) of the images."""
    _, c, h, w = arrays["x" if "x" in arrays else "train_x"].shape
    return c, h, w
