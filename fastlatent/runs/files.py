"""Files that are whole or not there: written beside their place, flushed to disk, moved in."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fastlatent.console import RunError

RESULTS = "results.jsonl"  # beside run folders: a line for each evaluation
WRITTEN = 1 << 24  # bytes of a tensor on their way to a file
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}  # and their names in safetensors files


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary path to write to, which takes the place of `path` if nothing fails."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        flush_to_disk(temporary)
        os.replace(temporary, path)
        flush_to_disk(path.parent)
    except OSError as error:
        # Name the file that was asked for, not the temporary one; writing names none. Errors
        # without a number, such as Pillow's, consist of their text.
        if error.errno is None or str(error.filename or temporary) != str(temporary):
            raise
        raise type(error)(error.errno, error.strerror, str(path)) from None
    finally:
        temporary.unlink(missing_ok=True)


def flush_to_disk(path: Path) -> None:
    """Wait until a file's content, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, values: Any) -> None:
    """Write JSON values; floats keep every bit."""
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """The values in a JSON file; ValueError when it is damaged."""
    try:
        return json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise ValueError(f"{path} is damaged: it is not valid JSON") from None


def write_tensors(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write tensors in the safetensors format."""
    # The largest types first, as the format wants it: then each tensor begins at a whole number of
    # its own.
    tensors = dict(sorted(tensors.items(), key=lambda item: -item[1].element_size()))
    with written_whole(path) as temporary, temporary.open("wb") as file:
        # Not safetensors' own save_file, which copies all of it and gives the file to its owner
        # alone, whatever the umask.
        file.write(_head(tensors, metadata))
        for tensor in tensors.values():
            flat = tensor.detach().reshape(-1)
            for part in flat.split(max(1, WRITTEN // tensor.element_size())):
                file.write(part.cpu().contiguous().view(torch.uint8).numpy())


def _head(tensors: dict[str, Tensor], metadata: dict[str, str] | None) -> bytes:
    """What a safetensors file begins with: the length of the JSON, the JSON."""
    head: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.numel() * tensor.element_size()
        head[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors, on the CPU, and the metadata of a safetensors file.

    Raises FileNotFoundError, and ValueError when the file is damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(2, "no such file", str(path))
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118 - not a dict
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or not a safetensors file: {error}") from None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What torch.save wrote, tensors and plain values only, or a safetensors file.

    RunError when it is something else.
    """
    if path.suffix == ".safetensors":
        return read_tensors(path)[0]
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # damage can end in any of them
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise RunError(f"{path} cannot be read as a checkpoint: {reason[0]}") from None


def link_or_copy(source: Path, path: Path) -> None:
    """Put the file `source` also at `path`, sharing its storage where the file system can."""
    with written_whole(path) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


def fingerprint(path: Path) -> str:
    """A hash of the file's content (BLAKE2b, 128 bits)."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
