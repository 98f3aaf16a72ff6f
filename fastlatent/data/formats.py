"""Readers of the file formats that data sets come in: paths to NumPy arrays.

Formats without a published checksum raise ValueError, in one sentence with the path, for a file
that is damaged or of another kind; the others are to be checked with `check_md5` first.
"""

import gzip
import hashlib
import math
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fastlatent.files.arrays import map_array, open_npz, read_array
from fastlatent.files.reading import read_pickle, reading
from fastlatent.jobs.progress import track

if TYPE_CHECKING:
    import h5py

MENTIONED = 5  # arrays of a file of another layout

# What NumPy arrays in a pickle ask for: an md5 is no proof against forgery. NumPy 1 and Python 2
# wrote numpy.core, NumPy 2 writes numpy._core.
ARRAYS = {
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


def check_md5(path: Path, md5: str, content: bytes | None = None) -> None:
    """Raises unless the file, or what was unpacked from it, has the md5 of its publisher's copy."""
    if content is not None:
        found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    else:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False))
        found = digest.hexdigest()
    if found != md5:
        raise ValueError(
            f"{path} has the wrong checksum (md5 {found}, the published file has {md5}): it is "
            "damaged or another file; fetch it again"
        )


def unpacked(path: Path) -> bytes:
    """The content of a file, which is gzipped if its name ends in .gz."""
    data = path.read_bytes()
    if path.suffix != ".gz":
        return data
    try:
        return gzip.decompress(data)
    except EOFError:
        raise ValueError(f"{path} is truncated: its gzip stream breaks off") from None
    except (OSError, zlib.error) as error:
        raise ValueError(f"{path} is damaged: {error}") from None


def parse_idx(path: Path, data: bytes, ndim: int) -> np.ndarray:
    """The uint8 array of `ndim` dimensions in the content of an idx file.

    Format: yann.lecun.com/exdb/mnist, "The IDX file format".
    """
    header = 4 + 4 * ndim
    if len(data) < header:
        raise ValueError(f"{path} is truncated: {len(data)} bytes are less than an idx header")
    # Two zeros, the type (8: uint8), the number of dimensions.
    if data[:4] != bytes((0, 0, 8, ndim)):
        raise ValueError(f"{path} is not an idx file of {ndim}-dimensional uint8 data")
    shape = struct.unpack(f">{ndim}I", data[4:header])
    expected = header + math.prod(shape)
    if len(data) != expected:
        fault = "is truncated" if len(data) < expected else "has bytes left over"
        raise ValueError(f"{path} {fault}: {len(data)} bytes where its header announces {expected}")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def read_bits_text(path: Path, width: int) -> np.ndarray:
    """Rows of `width` zeros and ones written as text (.amat): uint8 (n, width)."""
    text = np.frombuffer(path.read_bytes(), np.uint8)
    bits = text[(text == ord("0")) | (text == ord("1"))]
    blanks = np.isin(text, np.frombuffer(b" \t\r\n", np.uint8)).sum()
    if len(bits) + blanks != len(text):
        raise ValueError(f"{path} is not text of zeros and ones")
    if len(bits) == 0 or len(bits) % width:
        raise ValueError(f"{path} is truncated: {len(bits)} bits are not rows of {width}")
    return (bits - ord("0")).reshape(-1, width)


def read_npz_arrays(path: Path, wanted: Sequence[str]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Those arrays of an .npz file whose names are among `wanted`, and the names of the others.

    At least one must be there.
    """
    with open_npz(path) as archive:
        arrays = {}
        for key in archive.files:
            if key in wanted:
                mapped = map_array(path, archive, key)
                arrays[key] = read_array(path, archive, key) if mapped is None else mapped
        others = [key for key in archive.files if key not in wanted]
    if not arrays:
        held = ", ".join(others) or "nothing"
        raise ValueError(f"{path} holds {held}; expected some of {', '.join(wanted)}")
    return arrays, others


def read_h5_groups(path: Path, ids: Sequence[str] | None) -> tuple[list[str], np.ndarray]:
    """Names and images (n, h, w, c) of the groups of an h5 file, each with a dataset `image`.

    In the order of `ids`; None: of all groups, sorted. Raises ValueError where h5py is missing, and
    where images differ in shape or type.
    """
    try:
        import h5py
    except ImportError:
        raise ValueError(f"{path}: reading h5 files needs h5py: pip install fastlatent[h5]") from (
            None
        )
    try:
        with h5py.File(path, "r") as file:
            # Headers of groups take more memory than small images, and HDF5 would keep all.
            cache = file.id.get_mdc_config()
            cache.incr_mode = cache.flash_incr_mode = 0
            file.id.set_mdc_config(cache)
            if not any(_image_in(file.get(name)) for name in file):
                raise ValueError(_other_layout(path, file))
            names = sorted(file) if ids is None else list(ids)
            images = np.empty(0)
            title = f"reading {path.name}"
            for number, name in enumerate(track(names, title, len(names), "image")):
                image = _image_in(file.get(name))
                if image is None:
                    raise ValueError(
                        f"{path} has no image of the id {name!r}; what else is in the file is left "
                        "alone where id.txt beside it names the images, one a line"
                    )
                if number == 0:
                    images = np.empty((len(names), *image.shape), image.dtype)
                if image.shape != images.shape[1:] or image.dtype != images.dtype:
                    raise ValueError(
                        f"{path}: the image of {name!r} is {image.dtype} {image.shape} where that "
                        f"of {names[0]!r} is {images.dtype} {images.shape[1:]}"
                    )
                image.read_direct(images[number])
            return names, images
    except ValueError:
        raise
    except Exception as error:  # damage can end in any of them
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} is no h5 file of images, or damaged: {reason}") from None


def _image_in(entry: "h5py.HLObject | None") -> "h5py.Dataset | None":  # None: a broken link
    """The dataset `image` of a group of an h5 file; None where there is none."""
    import h5py

    image = entry.get("image") if isinstance(entry, h5py.Group) else None
    return image if isinstance(image, h5py.Dataset) else None


def _other_layout(path: Path, file: "h5py.File") -> str:
    """What to say of an h5 file without groups of images: what it holds instead."""
    import h5py

    arrays: list[h5py.Dataset] = []
    file.visititems(lambda _, x: arrays.append(x) if isinstance(x, h5py.Dataset) else None)
    # Images rather than their labels.
    arrays.sort(key=lambda x: (x.ndim in (3, 4), x.dtype.kind in "ubf", x.size or 0))
    held = "nothing"
    if arrays:
        others = [x.name.strip("/") for x in arrays[-2::-1]]
        beside = f" and {', '.join(others[:MENTIONED])}" if others else ""
        beside += ", ..." if len(others) > MENTIONED else ""
        shown = arrays[-1].name.strip("/")
        held = f"the array {shown!r} of shape {arrays[-1].shape}{beside}"
    return (
        f"{path} holds {held}; what is read is a group for each image, with a dataset image "
        "(h, w, c) in it. An array of all images can be given as npz:PATH, named x, its classes y"
    )


def read_cifar_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (n, 3, 32, 32) and labels (n,) of a batch of CIFAR-10's python version."""
    complaint = "is not a CIFAR-10 batch"
    entry = read_pickle(path, complaint, ARRAYS, encoding="latin1")
    with reading(path, complaint):
        return entry["data"].reshape(-1, 3, 32, 32), np.array(entry["labels"], np.int64)


def read_svhn_mat(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (n, 3, 32, 32) and labels (n,) of an SVHN .mat file; its label 10 is digit 0."""
    from scipy.io import loadmat

    with reading(path, "is not a file of SVHN"):
        entry = loadmat(path)
        return entry["X"].transpose(3, 2, 0, 1), entry["y"].astype(np.int64).reshape(-1) % 10
