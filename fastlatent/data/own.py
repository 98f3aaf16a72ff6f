"""Data sets of one's own: a folder of image files, an .npz file of arrays, an h5 file of groups."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastlatent.data.config import DataConfig
from fastlatent.data.formats import read_h5_groups, read_npz_arrays
from fastlatent.data.source import Source, hold_out
from fastlatent.files.arrays import bits_among, images_of, taken_as_white
from fastlatent.files.image_folders import find_images
from fastlatent.files.reading import reading
from fastlatent.jobs.naming import setting

CONVERTED = 4096  # images at a time
_MOST_CLASSES = 10_000  # labels above are no class ids: a bound on the list of names


def folder(config: DataConfig) -> Source:
    """Image files; sub-folders name the classes, train/ and test/ the splits if both are there."""
    root = Path(config.detail).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"{setting('data.name')}: there is no folder {root}")
    present = [name for name in ("train", "test") if (root / name).is_dir()]
    if len(present) == 1:
        raise ValueError(
            f"{root} has the folder {present[0]} but not its counterpart; add it, or give "
            f"folder:{root / present[0]} to have every tenth image held out for testing"
        )
    roots = [root / name for name in present] or [root]
    walks = find_images(*roots)
    notes = [found.left_out for found in walks if found.left_out]
    for place, found in zip(roots, walks, strict=True):
        if not found.paths:
            without = f"; {found.left_out}" if found.left_out else ""
            raise ValueError(f"{place} holds no image files{without}")
    files = [found.paths for found in walks]
    classes = [
        [_class_of(path, place) for path in found]
        for place, found in zip(roots, files, strict=True)
    ]
    names = sorted({name for split in classes for name in split if name is not None})
    loose = [
        path
        for found, split in zip(files, classes, strict=True)
        for path, name in zip(found, split, strict=True)
        if name is None
    ]
    if names and loose:
        raise ValueError(
            f"{loose[0]} lies outside the class folders that other images of {root} are in"
        )
    number = {name: i for i, name in enumerate(names)}
    labels = [
        torch.tensor([number[name] for name in split if name is not None]) if names else None
        for split in classes
    ]
    label_names = tuple(names) or None
    if len(roots) == 2:
        source = Source(files[0], files[1], labels[0], labels[1], label_names)
    else:
        source = hold_out(files[0], labels[0], label_names)
    source.notes += notes
    return source


def _class_of(path: Path, root: Path) -> str | None:
    parts = path.relative_to(root).parts
    return parts[0] if len(parts) > 1 else None


def npz(config: DataConfig) -> Source:
    """Arrays train_x, test_x and perhaps train_y, test_y; or x and perhaps y; perhaps classes."""
    path = Path(config.detail).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{setting('data.name')}: there is no file {path}")
    arrays, others = read_npz_arrays(
        path, ("train_x", "test_x", "train_y", "test_y", "x", "y", "classes")
    )
    pairs = [("x", "y")] if "x" in arrays else [("train_x", "train_y"), ("test_x", "test_y")]
    for x, _ in pairs:
        if x not in arrays:
            raise ValueError(f"{path} has no array {x}; expected train_x and test_x, or x alone")
    read = {name for pair in pairs for name in pair} | {"classes"}
    others += sorted(arrays.keys() - read)
    names = [x for x, _ in pairs]
    notes = [f"{path}: images are {' and '.join(names)}; not read: {', '.join(others)}"]
    notes = notes if others else []
    images = _images(path, {x: arrays[x] for x in names}, notes)
    labels = [
        _npz_labels(path, y, arrays[y], len(pixels)) if y in arrays else None
        for (_, y), pixels in zip(pairs, images, strict=True)
    ]
    if len({0 if label is None else label.ndim for label in labels}) > 1:
        raise ValueError(f"{path}: train_y and test_y must both be there and be of one kind")
    label_names = _npz_label_names(path, arrays.get("classes"), labels)
    if len(pairs) == 2:
        source = Source(images[0], images[1], labels[0], labels[1], label_names)
    else:
        source = hold_out(images[0], labels[0], label_names)
    source.notes += notes
    return source


def _images(path: Path, arrays: dict[str, np.ndarray], notes: list[str]) -> list[Tensor]:
    """Each array of images, of any layout and type that `images_of` takes, as uint8."""
    bits = bits_among(path, arrays)
    if bits:
        notes.append(f"{path}: {taken_as_white(bits)}")
    images = [images_of(f"{path}: {name}", x, name in bits) for name, x in arrays.items()]
    return [in_8_bits(x) for x in images]


def in_8_bits(images: Tensor) -> Tensor:
    """Images of any type that `images_of` gives as uint8, rounded to nearest."""
    if images.dtype == torch.uint8:
        return images
    whole = torch.empty(images.shape, dtype=torch.uint8)
    for out, part in zip(whole.split(CONVERTED), images.split(CONVERTED), strict=True):
        # At least float32: in half precision 255 x would be rounded before.
        wide = part.to(torch.promote_types(part.dtype, torch.float32))
        out.copy_((wide * 255).round())
    return whole


def _npz_labels(path: Path, key: str, y: np.ndarray, count: int) -> Tensor:
    if y.shape[1:] == (1,):
        y = y[:, 0]
    if y.dtype.kind not in "iub" or y.ndim not in (1, 2) or len(y) != count:
        raise ValueError(
            f"{path}: {key} must be integer class ids ({count},) or attributes of 0 and 1 "
            f"({count}, A); got {y.dtype} of shape {y.shape}"
        )
    most = _MOST_CLASSES - 1 if y.ndim == 1 else 1
    if y.size and not 0 <= int(y.min()) <= int(y.max()) <= most:
        raise ValueError(f"{path}: {key} must lie in 0 to {most}; got {y.min()} to {y.max()}")
    return torch.from_numpy(y.astype(np.int64 if y.ndim == 1 else np.uint8))


def _npz_label_names(
    path: Path, classes: np.ndarray | None, labels: list[Tensor | None]
) -> tuple[str, ...] | None:
    counts = [
        0 if not y.numel() else int(y.max()) + 1 if y.ndim == 1 else y.shape[1]
        for y in labels
        if y is not None
    ]
    if not counts:
        return None
    if classes is None:
        return tuple(map(str, range(max(counts))))
    if classes.ndim != 1 or len(classes) < max(counts):
        raise ValueError(f"{path}: classes must name {max(counts)} labels; got {classes.shape}")
    return tuple(map(str, classes))


def h5(config: DataConfig) -> Source:
    """Groups with an `image` (h, w, c) each, as GLO's original program keeps data sets.

    The path is that of the file, or of a folder with data.hdf5 (or data.hy). id.txt beside it
    names the images, one a line; every tenth of them is held out. Codes in the file are left alone.
    """
    path = Path(config.detail).expanduser()
    if path.is_dir():
        found = [path / name for name in ("data.hdf5", "data.hy") if (path / name).is_file()]
        path = found[0] if found else path / "data.hdf5"
    if not path.is_file():
        raise FileNotFoundError(f"{setting('data.name')}: there is no file {path}")
    listed = path.with_name("id.txt")
    wanted = None
    if listed.is_file():
        with reading(listed, "is damaged"):
            wanted = listed.read_text(encoding="utf-8").split()
    names, images = read_h5_groups(path, wanted)
    if len(names) < 2:
        raise ValueError(f"{path} must hold at least 2 images; got {len(names)}")
    if len(set(names)) < len(names):
        raise ValueError(f"{listed} names an image twice")
    notes: list[str] = []
    (pixels,) = _images(path, {"image": images}, notes)
    source = hold_out(pixels, None, None)
    source.notes += notes
    source.train_ids = tuple(name for k, name in enumerate(names) if k % 10)
    source.test_ids = tuple(names[::10])
    return source
