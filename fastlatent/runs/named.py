"""Trained weights by name: `fastlatent.load("lbae-digits")` with nothing trained before.

They lie packed, a folder each, in three places: where FASTLATENT_WEIGHTS says, in weights/ of a
checkout, and in the package. A packed folder holds the files of a run folder; its weights and
learned latents are float16 where they were rounded to that before. The first use unpacks it into
the cache, as a run folder in float32 that commands can write to.
"""

import hashlib
import os
import secrets
import shutil
from pathlib import Path

import torch
from torch import Tensor

from fastlatent.files.cache import cache_folder
from fastlatent.runs.files import fingerprint, read_tensors, write_tensors

VARIABLE = "FASTLATENT_WEIGHTS"  # folders of packed weights, apart as in PATH
PACKAGE = Path(__file__).resolve().parents[1]
WEIGHTS = "weights.safetensors"
ROUNDED = ("weights.safetensors", "latents.safetensors")  # packed in half of their bytes
MARK = "weights"  # in the metadata of tensors: the file of weights that they belong to


def names() -> list[str]:
    """The names of all weights at hand, in order."""
    found = {path.parent.name for place in _places() for path in place.glob(f"*/{WEIGHTS}")}
    return sorted(found)


def named_folder(name: str | os.PathLike[str]) -> Path | None:
    """The run folder of weights of that name, unpacked by the first use; None for another name.

    Raises OSError where the cache cannot be written, ValueError for damaged weights.
    """
    text = os.fspath(name)
    if text in ("", ".", "..") or Path(text).name != text:
        return None
    packed = (place / text for place in _places())
    source = next((path for path in packed if (path / WEIGHTS).is_file()), None)
    return None if source is None else _unpacked(source)


def is_named(folder: Path) -> bool:
    """Whether a run folder is one that `named_folder` unpacked."""
    return folder.parent.parent == _kept()


def pack(run: Path, target: Path, files: tuple[str, ...]) -> None:
    """Write these files of a run folder into a new packed folder, which loses nothing of them."""
    target.mkdir(parents=True)
    for name in files:
        if name in ROUNDED:
            tensors, marks = read_tensors(run / name)
            write_tensors(target / name, {n: _packed(t) for n, t in tensors.items()}, marks)
        else:
            shutil.copyfile(run / name, target / name)


def _places() -> list[Path]:
    """Where packed weights may lie, the first to be looked at first."""
    given = [part for part in os.environ.get(VARIABLE, "").split(os.pathsep) if part]
    checkout = PACKAGE.parent if (PACKAGE.parent / "pyproject.toml").is_file() else None
    others = [] if checkout is None else [checkout / "weights"]
    return [*(Path(part).expanduser() for part in given), *others, PACKAGE / "weights"]


def _kept() -> Path:
    return cache_folder() / "weights"


def _unpacked(packed: Path) -> Path:
    """The run folder of packed weights; its place in the cache hangs on what they hold."""
    files = sorted(path for path in packed.iterdir() if path.is_file())
    content = hashlib.blake2b(digest_size=8)
    for path in files:
        content.update(f"{path.name} {fingerprint(path)}\n".encode())
    folder = _kept() / content.hexdigest() / packed.name
    if (folder / "config.json").is_file():
        return folder
    building = folder.parent / f".{packed.name}.{secrets.token_hex(4)}.tmp"
    building.mkdir(parents=True)
    try:
        _unpack(packed, building, files)
        building.rename(folder)
    except OSError:
        # Another process may have been first.
        if not (folder / "config.json").is_file():
            raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return folder


def _unpack(packed: Path, folder: Path, files: list[Path]) -> None:
    """Write the files of a run folder; what belongs to the weights is marked with them anew."""
    weights, _ = read_tensors(packed / WEIGHTS)
    write_tensors(folder / WEIGHTS, {name: _whole(t) for name, t in weights.items()})
    mark = fingerprint(folder / WEIGHTS)
    for path in files:
        if path.name == WEIGHTS:
            continue
        if path.suffix != ".safetensors":
            shutil.copyfile(path, folder / path.name)
            continue
        tensors, marks = read_tensors(path)
        if path.name in ROUNDED:
            tensors = {name: _whole(t) for name, t in tensors.items()}
        write_tensors(folder / path.name, tensors, marks | ({MARK: mark} if MARK in marks else {}))


def _packed(tensor: Tensor) -> Tensor:
    """In float16, where a tensor of float32 is the same there."""
    if tensor.dtype != torch.float32:
        return tensor
    half = tensor.half()
    return half if torch.equal(half.float(), tensor) else tensor


def _whole(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype == torch.float16 else tensor
