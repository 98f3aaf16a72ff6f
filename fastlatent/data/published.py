"""The published data sets: where their files lie, their checksums, labels and splits."""

import hashlib
import os
import string
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastlatent.data.config import DOWNLOADABLE, DataConfig
from fastlatent.data.formats import (
    check_md5,
    parse_idx,
    read_bits_text,
    read_cifar_batch,
    read_npz_arrays,
    read_svhn_mat,
    unpacked,
)
from fastlatent.data.images import Fit
from fastlatent.data.source import Source, hold_out, set_apart
from fastlatent.jobs.naming import setting

# As torchvision records them, but for MNIST and Fashion-MNIST. Theirs are of the files unpacked,
# which may have been packed again.
MD5 = {
    "mnist": {
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    },
    "fashion": {
        "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
        "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
        "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
    },
    "kmnist": {
        "train-images-idx3-ubyte.gz": "bdb82020997e1d708af4cf47b453dcf7",
        "train-labels-idx1-ubyte.gz": "e144d726b3acfaa3e44228e80efcd344",
        "t10k-images-idx3-ubyte.gz": "5c965bf0a639b31b8f53240b1b52f4d7",
        "t10k-labels-idx1-ubyte.gz": "7320c461ea6c1c855c0b718fb2a4b134",
    },
    "svhn": {
        "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
        "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
    },
    "cifar10": {
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
    },
    "celeba": {
        "list_attr_celeba.txt": "75e246fa4810816ffd6ee81facbd244c",
        "list_eval_partition.txt": "d32c9cbf5e040fd4025c592c306e6668",
    },
}

# md5 of each split packed to bits (numpy.packbits, 98 bytes a row): the same for text and .npz.
BINARIZED_MD5 = {
    "train": "309a57a5f57edf7dfa1a0d2118daedf9",
    "valid": "98627b12c08410820c516e41a0e07017",
    "test": "50aa7f0ccbdaba86f6a8aeabd1fecfed",
}

_DIGITS = tuple(string.digits)
_EMNIST_MERGED = tuple(string.digits + string.ascii_uppercase + "abdefghnqrt")
_IDX_LABELS = {
    "mnist": _DIGITS,
    "fashion": (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
    "kmnist": ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
    "emnist:balanced": _EMNIST_MERGED,
    "emnist:bymerge": _EMNIST_MERGED,
    "emnist:byclass": tuple(string.digits + string.ascii_uppercase + string.ascii_lowercase),
    # The letters are numbered from 1.
    "emnist:letters": ("none", *string.ascii_lowercase),
    "emnist:digits": _DIGITS,
    "emnist:mnist": _DIGITS,
}
# The file, the folders that it may lie in, the channels of its images.
_MULTI_OBJECTS = {
    "multi-dsprites": (
        "multi_dsprites_color_012.npz",
        ("multi-dsprites-binary-rgb", "multi_dsprites", "multi-dsprites", ""),
        3,
    ),
    "multi-mnist": ("multi_binary_mnist_012.npz", ("multi_mnist", "multi-mnist", ""), 1),
}
CELEBA_RANDOM = 20_000  # test images of celeba:random
_CIFAR10_LABELS = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)


def digits(_config: DataConfig) -> Source:
    from sklearn.datasets import load_digits

    stored = load_digits()
    small = torch.from_numpy((stored.images * (255 / 16)).round().astype(np.uint8))[:, None]
    return hold_out(Fit(28)(small), torch.tensor(stored.target), _DIGITS, every=6)


def idx_set(config: DataConfig) -> Source:
    """MNIST, Fashion-MNIST, KMNIST or a split of EMNIST from idx files, gzipped or not."""
    if config.kind == "emnist":
        split = config.detail or "balanced"
        label_names = _IDX_LABELS[f"emnist:{split}"]
        prefixes = (f"emnist-{split}-train", f"emnist-{split}-test")
        folders: tuple[str, ...] = ("EMNIST/raw", "raw", "", "gzip")
    else:
        label_names = _IDX_LABELS[config.kind]
        prefixes = ("train", "t10k")
        folder = {"mnist": "MNIST", "fashion": "FashionMNIST", "kmnist": "KMNIST"}[config.kind]
        folders = (f"{folder}/raw", "raw", "")
    (train, train_labels), (test, test_labels) = (
        _idx_split(config, folders, prefix, len(label_names)) for prefix in prefixes
    )
    return Source(train, test, train_labels, test_labels, label_names)


def _idx_split(
    config: DataConfig, folders: tuple[str, ...], prefix: str, classes: int
) -> tuple[Tensor, Tensor]:
    images_path = _find(config, folders, f"{prefix}-images-idx3-ubyte", gzipped=True)
    labels_path = _find(config, folders, f"{prefix}-labels-idx1-ubyte", gzipped=True)
    images, labels = (
        _idx(config, path, ndim) for path, ndim in ((images_path, 3), (labels_path, 1))
    )
    if images.shape[1:] != (28, 28):
        height, width = images.shape[1:]
        raise ValueError(f"{images_path} holds {height}x{width} images; expected 28x28")
    if len(images) != len(labels) or labels.max(initial=0) >= classes:
        raise ValueError(
            f"{labels_path} must hold a label from 0 to {classes - 1} for each of the "
            f"{len(images)} images in {images_path}"
        )
    if config.kind == "emnist":
        images = images.swapaxes(1, 2)  # they are stored with rows and columns exchanged
    return torch.tensor(images)[:, None], torch.tensor(labels).long()


def _idx(config: DataConfig, path: Path, ndim: int) -> np.ndarray:
    """The array in an idx file, checked where its publisher's checksum is known."""
    content = unpacked(path)
    array = parse_idx(path, content, ndim)
    md5 = MD5.get(config.kind, {}).get(path.name.removesuffix(".gz"))
    if md5 is not None:
        check_md5(path, md5, content)
    else:
        _check_published(config.kind, path)
    return array


def static_mnist(config: DataConfig) -> Source:
    """Larochelle and Murray's binarisation: train and valid together, 60,000 images, and test."""
    folders = ("binarized-mnist", "binarized_mnist", "")
    parts = {}
    try:
        path = _find(config, folders, "binarized_mnist.npz")
    except FileNotFoundError:
        try:
            for part in BINARIZED_MD5:
                path = _find(config, folders, f"binarized_mnist_{part}.amat")
                parts[part] = path, np.packbits(read_bits_text(path, 784), axis=1)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error}, nor binarized_mnist.npz") from None
    else:
        packed, _ = read_npz_arrays(path, tuple(BINARIZED_MD5))
        for part in BINARIZED_MD5:
            if part not in packed:
                raise ValueError(f"{path} has no array {part!r}")
            parts[part] = path, packed[part]
    pixels = {}
    for part, (path, bits) in parts.items():
        found = hashlib.md5(bits.tobytes(), usedforsecurity=False).hexdigest()
        if found != BINARIZED_MD5[part]:
            raise ValueError(
                f"{path} has the wrong checksum: its {part} images are damaged or are not "
                "Larochelle and Murray's"
            )
        pixels[part] = np.unpackbits(bits, axis=1).reshape(-1, 1, 28, 28) * np.uint8(255)
    train = np.concatenate((pixels["train"], pixels["valid"]))
    return Source(torch.from_numpy(train), torch.from_numpy(pixels["test"]))


def svhn(config: DataConfig) -> Source:
    arrays = []
    for split in ("train", "test"):
        path = _find(config, ("", "SVHN", "svhn"), f"{split}_32x32.mat")
        _check_published("svhn", path)
        arrays.append(read_svhn_mat(path))
    (train, train_labels), (test, test_labels) = arrays
    return Source(
        torch.tensor(train),
        torch.tensor(test),
        torch.tensor(train_labels),
        torch.tensor(test_labels),
        _DIGITS,
    )


def cifar10(config: DataConfig) -> Source:
    base = "cifar-10-batches-py"
    batches = {}
    for name in MD5["cifar10"]:
        path = _find(config, (base, f"CIFAR10/{base}", f"cifar10/{base}", ""), name)
        _check_published("cifar10", path)
        batches[name] = read_cifar_batch(path)
    test, test_labels = batches.pop("test_batch")
    return Source(
        torch.from_numpy(np.concatenate([images for images, _ in batches.values()])),
        torch.tensor(test),
        torch.from_numpy(np.concatenate([labels for _, labels in batches.values()])),
        torch.tensor(test_labels),
        _CIFAR10_LABELS,
    )


def celeba(config: DataConfig) -> Source:
    """The official train and test images with their 40 attributes as 0 and 1.

    `celeba:valid` has the validation images for test images, `celeba:random` 20,000 drawn from all.
    """
    folders = ("celeba", "CelebA", "")
    partition = _find(config, folders, "list_eval_partition.txt")
    attributes = _find(config, (str(partition.parent),), "list_attr_celeba.txt")
    for path in (partition, attributes):
        _check_published("celeba", path)
    folder = partition.parent / "img_align_celeba"
    if not folder.is_dir():
        raise FileNotFoundError(f"celeba: no folder {folder}")
    part_of = dict(line.split() for line in partition.read_text().splitlines())
    _count, header, *lines = attributes.read_text().splitlines()
    rows = [line.split() for line in lines]
    labels = torch.from_numpy(
        np.array([[value == "1" for value in row[1:]] for row in rows], np.uint8)
    )
    there = set(os.listdir(folder))
    missing = [row[0] for row in rows if row[0] not in there]
    if missing:
        raise FileNotFoundError(
            f"celeba: {len(missing)} of {len(rows)} images are missing, the first is "
            f"{folder / missing[0]}"
        )
    if config.detail == "random":
        if len(rows) <= CELEBA_RANDOM:
            few = f"celeba:random sets {CELEBA_RANDOM:,} images apart; there are {len(rows):,}"
            raise ValueError(few)
        train, test = set_apart(len(rows), CELEBA_RANDOM, config.split_seed)
    else:
        # The official partition: 0 train, 1 validation, 2 test.
        parts = torch.tensor([int(part_of[row[0]]) for row in rows])
        held_out = 1 if config.detail == "valid" else 2
        train, test = ((parts == part).nonzero()[:, 0] for part in (0, held_out))
    return Source(
        [folder / rows[i][0] for i in train.tolist()],
        [folder / rows[i][0] for i in test.tolist()],
        labels[train],
        labels[test],
        tuple(header.split()),
        published=True,
    )


def multi_objects(config: DataConfig) -> Source:
    """Pictures of 0 to 2 sprites: the first nine tenths are train, the rest test.

    Format: github.com/addtt/multi-object-datasets; x (n, 64, 64, c) of 0 and 255. The labels, a
    pickled dictionary, are not read.
    """
    file, folders, channels = _MULTI_OBJECTS[config.kind]
    path = _find(config, folders, file)
    arrays, _ = read_npz_arrays(path, ("x",))
    x = arrays["x"]
    if x.dtype != np.uint8 or x.ndim != 4 or x.shape[1:] != (64, 64, channels):
        raise ValueError(
            f"{path}: x must be uint8 of shape (n, 64, 64, {channels}); got {x.dtype} of shape "
            f"{x.shape}"
        )
    images = torch.from_numpy(x).permute(0, 3, 1, 2).contiguous()
    if images.flatten().bincount(minlength=256)[1:255].any():
        raise ValueError(f"{path}: x must hold 0 and 255 alone, for off and on")
    train = len(images) * 9 // 10
    return Source(images[:train], images[train:])


def data_root(config: DataConfig) -> Path:
    """The folder named by data.root, else by FASTLATENT_DATA; it need not exist."""
    root = config.root or os.environ.get("FASTLATENT_DATA")
    if not root:
        raise ValueError(
            f"{config.name} needs its files: give the folder that holds them with "
            f"{setting('data.root')} or the environment variable FASTLATENT_DATA"
            + f"; {setting('data.download', True)} fetches them into it"
            * (config.kind in DOWNLOADABLE)
        )
    return Path(root).expanduser()


def _find(config: DataConfig, folders: tuple[str, ...], file: str, gzipped: bool = False) -> Path:
    root = data_root(config)
    if not root.is_dir():
        where = setting("data.root") if config.root else "FASTLATENT_DATA"
        raise FileNotFoundError(f"{config.name}: {where} is {root}, which is not a folder")
    files = (file, f"{file}.gz") if gzipped else (file,)
    for folder in folders:
        for name in files:
            path = root / folder / name
            if path.is_file():
                return path
    places = ", ".join(str(root / folder) for folder in folders)
    raise FileNotFoundError(f"{config.name}: no {' or '.join(files)} in {places}")


def _check_published(kind: str, path: Path) -> None:
    md5 = MD5.get(kind, {}).get(path.name)
    if md5 is not None:
        check_md5(path, md5)
