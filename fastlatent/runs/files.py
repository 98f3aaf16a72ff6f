"""Files of a run: tensors and JSON, whole or not there."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastlatent.files import reading
from fastlatent.files.writing import written_whole

RESULTS = "results.jsonl"  # beside run folders: a line for each evaluation
CONTENT = "content"  # in the metadata of tensors: a hash of their bytes (BLAKE2b, 128 bits)
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


def write_json(path: Path, values: Any) -> None:
    """Write JSON values; floats keep every bit."""
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2) + "\n")


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
        content = _new_hash()
        file.write(_head(tensors, metadata, content))
        for tensor in tensors.values():
            flat = tensor.detach().reshape(-1)
            for part in flat.split(max(1, WRITTEN // tensor.element_size())):
                numbers = part.cpu().contiguous().view(torch.uint8).numpy()
                content.update(numbers.data)
                file.write(numbers)
        file.seek(0)
        file.write(_head(tensors, metadata, content))  # of the same length


def _new_hash() -> hashlib.blake2b:
    return hashlib.blake2b(digest_size=16)


def _head(
    tensors: dict[str, Tensor], metadata: dict[str, str] | None, content: hashlib.blake2b
) -> bytes:
    """What a safetensors file begins with: the length of the JSON, the JSON."""
    head: dict[str, Any] = {"__metadata__": (metadata or {}) | {CONTENT: content.hexdigest()}}
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

    Raises FileNotFoundError. Raises ValueError when the file is damaged: it is no such file, or its
    content is not what `write_tensors` put in. The latter is not known of files that others wrote.
    """
    tensors, metadata = reading.read_tensors(path)
    mark = metadata.pop(CONTENT, None)
    if mark is not None and mark != _content(path):
        raise ValueError(f"{path} is damaged: its numbers are not those that were written")
    return tensors, metadata


def _content(path: Path) -> str:
    """A hash of what follows the head of a safetensors file."""
    with path.open("rb") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        return hashlib.file_digest(file, _new_hash).hexdigest()


def link_or_copy(source: Path, path: Path) -> None:
    """Put the file `source` also at `path`, sharing its storage where the file system can."""
    with written_whole(path) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


def digest(tensors: Mapping[str, Tensor]) -> str:
    """A hash of tensors with their names, shapes and types, wherever they lie (BLAKE2b)."""
    found = _new_hash()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().data)
    return found.hexdigest()


def fingerprint(path: Path) -> str:
    """A hash of the file's content (BLAKE2b, 128 bits)."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, _new_hash).hexdigest()
