"""Readers of the file formats that data sets come in: paths to NumPy arrays.

Formats without a published checksum raise ValueError, in one sentence with the path, for a file
that is damaged or of another kind; the others are to be checked with `check_md5` first.
"""

import gzip
import hashlib
import math
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm")
)


def check_md5(path: Path, md5: str) -> None:
    """Raises unless the file has the md5 that its publisher's copy has."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != md5:
        raise ValueError(
            f"{path} has the wrong checksum (md5 {found}, the published file has {md5}): it is "
            "damaged or another file; fetch it again"
        )


def read_idx(path: Path, ndim: int) -> np.ndarray:
    """The uint8 array of `ndim` dimensions in an idx file, gzipped if its name ends in .gz.

    Format: yann.lecun.com/exdb/mnist, "The IDX file format".
    """
    data = path.read_bytes()
    if path.suffix == ".gz":
        try:
            data = gzip.decompress(data)
        except EOFError:
            raise ValueError(f"{path} is truncated: its gzip stream breaks off") from None
        except (OSError, zlib.error) as error:
            raise ValueError(f"{path} is damaged: {error}") from None
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


def read_npz_arrays(path: Path, wanted: Sequence[str]) -> dict[str, np.ndarray]:
    """Those arrays of an .npz file whose names are among `wanted`; at least one must be there."""
    # A truncated archive has lost the directory at its end, so it is no zip file either.
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is not an .npz file, or it is truncated")
    try:
        archive = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    with archive:
        arrays = {}
        for key in archive.files:
            if key not in wanted:
                continue
            try:
                arrays[key] = archive[key]
            except (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
                raise ValueError(f"{path} is damaged at {key!r}: {error}") from None
        if not arrays:
            raise ValueError(
                f"{path} holds {', '.join(archive.files) or 'nothing'}; "
                f"expected some of {', '.join(wanted)}"
            )
    return arrays


def read_h5_groups(path: Path, ids: Sequence[str] | None) -> tuple[list[str], list[np.ndarray]]:
    """Names and images of the groups of an h5 file, each with a dataset `image`, uint8 (h, w, c).

    In the order of `ids`; None: of all groups, sorted. Raises ValueError where h5py is missing too.
    """
    try:
        import h5py
    except ImportError:
        raise ValueError(f"{path}: reading h5 files needs h5py: pip install fastlatent[h5]") from (
            None
        )
    try:
        with h5py.File(path, "r") as file:
            names = sorted(file) if ids is None else list(ids)
            for name in names:
                if name not in file or "image" not in file[name]:
                    raise ValueError(f"{path} has no image of the id {name!r}")
            return names, [np.asarray(file[name]["image"]) for name in names]
    except (OSError, RuntimeError, AttributeError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} is no h5 file of images, or damaged: {reason}") from None


def read_cifar_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (n, 3, 32, 32) and labels (n,) of a batch of CIFAR-10's python version."""
    with path.open("rb") as file:
        try:
            entry = _ArraysOnly(file, encoding="latin1").load()
        except pickle.UnpicklingError as error:
            raise ValueError(f"{path} is not a CIFAR-10 batch: {error}") from None
    return entry["data"].reshape(-1, 3, 32, 32), np.array(entry["labels"], np.int64)


class _ArraysOnly(pickle.Unpickler):
    """Builds NumPy arrays and plain Python values only: an md5 is no proof against forgery."""

    def find_class(self, module: str, name: str) -> object:
        # NumPy 1 and Python 2 wrote numpy.core, NumPy 2 writes numpy._core.
        allowed = {
            ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
            ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return allowed[module, name]


def read_svhn_mat(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (n, 3, 32, 32) and labels (n,) of an SVHN .mat file; its label 10 is digit 0."""
    from scipy.io import loadmat

    entry = loadmat(path)
    return entry["X"].transpose(3, 2, 0, 1), entry["y"].astype(np.int64).reshape(-1) % 10


def image_files(folder: Path) -> list[Path]:
    """The image files below `folder`, sorted by path; hidden ones are left out."""
    found = []
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith((".", "__MACOSX"))]
        found += [
            Path(place, name)
            for name in files
            if Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".")
        ]
    return sorted(found)
