"""Arrays in files of NumPy, and images in arrays."""

import struct
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from fastlatent.files.reading import reading
from fastlatent.jobs.progress import track

BLOCK = 1 << 20  # bytes read at a time
LOOKED_AT = 1024  # images looked at together
MAGIC = b"\x93NUMPY"  # what an array in a file begins with


@contextmanager
def open_npz(path: Path) -> Iterator["np.lib.npyio.NpzFile"]:
    """An .npz file; FileNotFoundError where there is no file, ValueError where it is another."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    # A truncated archive has lost the directory at its end, so it is no zip file either.
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is not an .npz file, or it is truncated")
    with reading(path, "is damaged"):
        archive = np.load(path, allow_pickle=False)
    with archive:
        yield archive


def read_array(path: Path, archive: "np.lib.npyio.NpzFile", name: str) -> np.ndarray:
    """An array of an .npz file, in a type of PyTorch's; ValueError where it cannot be read."""
    with reading(path, f"is damaged at {name}"):
        array = archive[name]
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path}: {name} is not an array")
    return native(array)


def map_array(path: Path, archive: "np.lib.npyio.NpzFile", name: str) -> np.ndarray | None:
    """An array of an .npz file as a map of the file, which all processes share.

    None where it is compressed, or not as it is used. ValueError where it is damaged.
    """
    files = archive.zip
    if files is None:
        raise ValueError(f"{path} is closed")
    member = f"{name}.npy" if f"{name}.npy" in files.namelist() else name
    info = files.getinfo(member)
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:  # encrypted
        return None
    with reading(path, f"is damaged at {name}"):
        with files.open(info) as content:  # its checksum is looked at on the way
            if content.read(len(MAGIC)) != MAGIC:
                return None
            blocks = iter(lambda: content.read(BLOCK), b"")
            for _ in track(blocks, f"reading {name} of {path.name}", -(-info.file_size // BLOCK)):
                pass
        with path.open("rb") as file:
            file.seek(info.header_offset)
            lengths = struct.unpack("<26xHH", file.read(30))  # of the name, of what follows it
            file.seek(sum(lengths), 1)
            shape, by_columns, dtype = _header(file)
            start = file.tell()
    if by_columns or dtype.hasobject or 0 in shape or native(np.empty(0, dtype)).dtype != dtype:
        return None
    # What is written to it goes to memory of the process alone.
    return np.memmap(path, dtype, "c", start, shape)


def _header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    if np.lib.format.read_magic(file) == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    return np.lib.format.read_array_header_2_0(file)


def native(array: np.ndarray) -> np.ndarray:
    """The array in this machine's byte order, and in float64 where it is wider: PyTorch's types."""
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        return array.astype(np.float64)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def images_of(where: str, array: np.ndarray, binary: bool = False) -> Tensor:
    """Images (n, h, w), (n, h, w, c) or (n, c, h, w) as (n, c, h, w), uint8 or floats in [0, 1].

    Bool becomes 0 and 255, and so does uint8 of 0 and 1 if `binary`. Raises ValueError, naming
    `where`, for other shapes, types and ranges.
    """
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and array.shape[3] in (1, 3) and array.shape[1] not in (1, 3):
        array = array.transpose(0, 3, 1, 2)
    if array.ndim != 4 or array.shape[1] not in (1, 3) or 0 in array.shape[2:]:
        raise ValueError(
            f"{where} must be (n, h, w), (n, h, w, c) or (n, c, h, w) with 1 or 3 channels; "
            f"got {array.shape}"
        )
    if array.dtype == bool or (binary and array.dtype == np.uint8):
        array = array * np.uint8(255)
    elif array.dtype.kind == "f":
        if not (array.size == 0 or (array.min() >= 0 and array.max() <= 1)):  # false for NaN
            raise ValueError(
                f"{where} holds floats outside 0 to 1: {array.min():.4g} to {array.max():.4g}"
            )
    elif array.dtype != np.uint8:
        raise ValueError(f"{where} must be uint8, bool or float in [0, 1]; got {array.dtype}")
    return torch.from_numpy(np.ascontiguousarray(array))


def bits_among(where: Path | str, arrays: Mapping[str, np.ndarray]) -> list[str]:
    """Names of those uint8 arrays of images that hold 0 and 1 alone, as bits are often stored.

    Each is judged by itself. Raises ValueError, naming `where`, beside arrays with greys, and where
    images of one array have 1 for white and others 255.
    """
    bits = [name for name, x in arrays.items() if x.dtype == np.uint8 and x.max(initial=0) == 1]
    for name, array in arrays.items():
        if name not in bits and bits and _has_greys(array):
            raise ValueError(
                f"{where}: {' and '.join(bits)} holds uint8 of 0 and 1 alone, and {name} holds "
                "greys; give all in one scale, or bits as bool"
            )
        if array.dtype == np.uint8 and array.max(initial=0) == 255 and not _has_greys(array):
            pixels = tuple(range(1, array.ndim))
            ones, whites = ((array == value).any(pixels) for value in (1, 255))
            if ones.any() and not (ones & whites).any():  # otherwise three values, such as masks
                raise ValueError(
                    f"{where}: {name} holds {ones.sum():,} images of 0 and 1 and {whites.sum():,} "
                    "of 0 and 255; give all in one scale"
                )
    return bits


def _has_greys(array: np.ndarray) -> bool:
    """Whether a pixel is neither black nor white, nor a bit."""
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        return False
    array = np.atleast_1d(array)
    parts = (array[i : i + LOOKED_AT] for i in range(0, len(array), LOOKED_AT))
    if array.dtype == np.uint8:
        # Below 2 the difference wraps around.
        return any(bool((part - np.uint8(2) < 253).any()) for part in parts)
    return any(bool(((part > 0) & (part < 1)).any()) for part in parts)


def taken_as_white(names: Sequence[str]) -> str:
    """What to say of arrays that `bits_among` names."""
    return f"{' and '.join(names)}: uint8 of 0 and 1 alone is taken as black and white"
