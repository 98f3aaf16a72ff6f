"""Readers of every format of files that are taken in: nothing they read runs code.

What a parser raises at a damaged or foreign file becomes a ValueError of one sentence with the
path, whatever it was. No other module opens such files (tests/test_reading.py).
"""

import errno
import json
import os
import pickle
import pickletools
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

LONGEST = 300  # characters of a parser's own words
LOOKED_AT = 512  # bytes of a file that tell what it is
ARCHIVE, PICKLE, SAVED = "a zip archive", "a pickle", "an archive of torch.save"

# What a file's first bytes tell, where it is not what was expected.
MAGIC = (
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"PK", ARCHIVE),
    (b"\x1f\x8b", "a gzip file"),
    (b"version https://git-lfs", "a pointer of Git LFS, whose content was not fetched"),
    (b"\x80", PICKLE),
)


@contextmanager
def reading(path: Path | str, complaint: str) -> Iterator[None]:
    """Turn whatever parsing the file raises into ValueError: "PATH COMPLAINT: why".

    Errors of the disk stay OSErrors, with the path; so do ValueErrors that name the path already.
    Raises FileNotFoundError before anything is read, ValueError for what is no regular file.
    """
    if not os.path.exists(path):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    if not os.path.isfile(path):
        raise ValueError(f"{path} is no regular file")
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.strerror:
            raise type(error)(error.errno, error.strerror, str(path)) from None
        raise ValueError(f"{path} {complaint}: {_reason(error)}") from None
    except Exception as error:  # damage can end in any of them
        if isinstance(error, ValueError) and str(path) in str(error):
            raise
        raise ValueError(f"{path} {complaint}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """A parser's error in a few words."""
    if isinstance(error, MemoryError):
        return "it asks for more memory than there is"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return f"it is not {error.encoding} text"
    if isinstance(error, KeyError):
        return f"it lacks {error}"
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else type(error).__name__
    if "pickle" in text or "weights_only" in text:  # and advice to load them all the same
        return "it holds Python objects, which can run code and are not loaded"
    return text if len(text) <= LONGEST else text[:LONGEST] + " ..."


def looks_like(path: Path) -> str:
    """What the file is by its first bytes, in words."""
    with path.open("rb") as file:
        head = file.read(LOOKED_AT)
    if not head:
        return "an empty file"
    for magic, words in MAGIC:
        if head.startswith(magic):
            return _kind_of_archive(path) if words == ARCHIVE else words
    if head.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html", b"<head")):
        return "a page of the web, as a server sends where the file is not"
    if len(head) < LOOKED_AT and _is_old_pickle(head):
        return PICKLE
    return "a text file" if all(byte >= 32 or byte in b"\t\r\n" for byte in head) else "other data"


def _kind_of_archive(path: Path) -> str:
    if not zipfile.is_zipfile(path):  # the directory is at its end
        return "a truncated zip archive"
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any(name.endswith("/constants.pkl") for name in names):
        return "a program of TorchScript, which could run code and is not loaded"
    if any(name.endswith("/data.pkl") for name in names):
        return SAVED
    return "an .npz file" if names and all(name.endswith(".npy") for name in names) else ARCHIVE


def _is_old_pickle(content: bytes) -> bool:
    """Whether it is a pickle of protocol 0 or 1, which have no mark at their beginning."""
    try:
        steps = [step.name for step, _, _ in pickletools.genops(content)]
    except Exception:  # what is no pickle can end in any of them
        return False
    return not {"GLOBAL", "INST", "PUT", "BINPUT"}.isdisjoint(steps)  # some words pass for steps


def read_json(path: Path, complaint: str = "is damaged: it is not valid JSON") -> Any:
    """The values in a JSON file."""
    with reading(path, complaint):
        return json.loads(path.read_bytes())


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors, on the CPU, and the metadata of a safetensors file."""
    with reading(path, "is damaged or not a safetensors file"):
        return parse_tensors(path)


def parse_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """As `read_tensors`, with the parser's own errors: for `reading` with another complaint."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118 - not a dict


def read_checkpoint(path: Path, what: str = "a checkpoint") -> Any:
    """What torch.save wrote, tensors and plain values only, or a safetensors file."""
    if path.suffix == ".safetensors":
        return read_tensors(path)[0]
    with reading(path, f"cannot be read as {what}"):
        try:
            with warnings.catch_warnings():  # of pickles and archives that are refused anyway
                warnings.simplefilter("ignore")
                return torch.load(path, map_location="cpu", weights_only=True)
        except MemoryError:
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno != errno.EINVAL:  # of a damaged offset
                raise
            # PyTorch's own words advise to load the file all the same.
            kind = looks_like(path)
            if kind not in (PICKLE, SAVED):
                raise ValueError(f"it is {kind}") from None
            if isinstance(error, pickle.UnpicklingError):
                raise ValueError(
                    "it holds more than tensors and plain values, could run code and is not loaded"
                ) from None
            fault = (
                "its archive is damaged" if kind == SAVED else "it was not written by torch.save"
            )
            raise ValueError(fault) from None


class OnlyThese(pickle.Unpickler):
    """Builds plain Python values and what is named to it, and runs nothing else."""

    def __init__(self, file: Any, allowed: Mapping[tuple[str, str], Any], **options: Any) -> None:
        super().__init__(file, **options)
        self._allowed = allowed

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._allowed:
            raise ValueError(f"it asks for {module}.{name}, could run code and is not loaded")
        return self._allowed[module, name]


def read_pickle(
    path: Path, complaint: str, allowed: Mapping[tuple[str, str], Any], **options: Any
) -> Any:
    """The object in a pickle made of plain values and the `allowed` classes, by their names."""
    with reading(path, complaint), path.open("rb") as file:
        return OnlyThese(file, allowed, **options).load()


def load_weights(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    source: Path,
    what: str = "the model of config.json",
) -> None:
    """Put tensors into the module, all of them and no others, as they are.

    Raises ValueError where names, shapes or types differ, and where a number is not finite that
    would be so in a new module.
    """
    if not isinstance(tensors, Mapping):
        raise ValueError(f"{source} does not fit {what}: it holds {type(tensors).__name__}")
    expected = module.state_dict()
    for name, tensor in tensors.items():
        like = expected.get(name)
        if like is None or not isinstance(tensor, Tensor):
            continue  # load_state_dict finds the words
        if tensor.dtype != like.dtype:
            raise ValueError(
                f"{source} does not fit {what}: {name} must be {like.dtype}; got {tensor.dtype}"
            )
        if like.is_floating_point():
            bad = tensor.isnan() if like.isinf().any() else ~tensor.isfinite()
            if bad.any():
                raise ValueError(
                    f"{source} is damaged: {int(bad.sum())} of the {bad.numel()} numbers of {name} "
                    "are NaN or infinite"
                )
    try:
        module.load_state_dict(tensors)
    except (RuntimeError, TypeError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise ValueError(f"{source} does not fit {what}: {reason}") from None
