"""From a DataConfig to a data set ready to be served."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from fastlatent.data import own, published
from fastlatent.data.config import DOWNLOADABLE, DataConfig
from fastlatent.data.images import FileImages, Fit
from fastlatent.data.source import Images, Source, set_apart, take
from fastlatent.data.split import Split
from fastlatent.jobs.errors import sentence_of
from fastlatent.jobs.naming import setting

# What "auto" keeps on the device: at most so many bytes, and so many files to decode beforehand.
_RESIDENT_BYTES = 1 << 30
_RESIDENT_FILES = 10_000


class Part(NamedTuple):
    """Images of one split, as they were read."""

    images: Images
    labels: Tensor | None
    ids: tuple[str, ...] | None

    def rows(self, chosen: Tensor) -> "Part":
        """Some of them."""
        return Part(
            take(self.images, chosen),
            None if self.labels is None else self.labels[chosen],
            None if self.ids is None else tuple(self.ids[row] for row in chosen.tolist()),
        )


@dataclass
class Dataset:
    """A data set: splits of images of one shape; `label_names` is None without labels.

    `notes` say, in sentences, what was left out of a folder or a file and how the rest was read.
    """

    name: str
    train: Split
    test: Split
    label_names: tuple[str, ...] | None
    validation: Split | None = None  # training images that were set apart
    notes: list[str] = field(default_factory=list)


def load(config: DataConfig) -> Dataset:
    """The data set that `config` describes.

    Raises ValueError for damaged or unfit data, OSError (FileNotFoundError) for what is missing.
    Streaming file sets are read later, so damage inside them shows up when it is reached.
    """
    source = _read_source(config)
    label_names = source.label_names
    fit = Fit(config.size, config.crop)
    given = {
        "train": (source.train, source.train_labels, source.train_ids),
        "test": (source.test, source.test_labels, source.test_ids),
    }
    parts = {
        name: Part(*_chosen(config, images, labels, label_names, name), ids)
        for name, (images, labels, ids) in given.items()
    }
    if config.validation:
        parts["train"], parts["validation"] = _apart(config, parts["train"])
    fitted: dict[str, Tensor | FileImages] = {}
    channels = 3 if source.published else None
    notes = list(source.notes)
    for name, part in parts.items():
        if isinstance(part.images, Tensor):
            fitted[name] = fit(part.images)
            continue
        files = FileImages(part.images, fit, channels, config.background, source.published)
        fitted[name], channels = files, files.channels  # the training images decide
        notes += [f"{name} split, {note}" for note in files.notes]
    streams = _streams(config, *fitted.values())
    splits = {
        name: Split(
            name,
            fitted[name] if streams else _resident(fitted[name]),
            part.labels,
            ids=part.ids,
            streams=streams,
            workers=config.workers,
        )
        for name, part in parts.items()
    }
    train, test = splits["train"], splits["test"]
    if train.shape != test.shape:
        raise ValueError(
            f"{config.name}: train images are {train.shape} and test images {test.shape} "
            "(channels, height, width); they must be of one shape"
        )
    return Dataset(config.name, train, test, label_names, splits.get("validation"), notes)


def _apart(config: DataConfig, train: Part) -> tuple[Part, Part]:
    """The training images that stay, and those set apart by data.validation."""
    count = len(train.images)
    if config.validation >= count:
        raise ValueError(
            f"{setting('data.validation')} must be less than the {count:,} training images of "
            f"{config.name}; got {config.validation}"
        )
    rest, apart = set_apart(count, config.validation, config.split_seed)
    return train.rows(rest), train.rows(apart)


def _read_source(config: DataConfig) -> Source:
    read = _READERS[config.kind]
    try:
        return read(config)
    except FileNotFoundError as error:
        if config.kind not in DOWNLOADABLE:
            raise
        if not config.download:
            raise FileNotFoundError(
                f"{sentence_of(error)}; {setting('data.download', True)} fetches it"
            ) from None
    _download(config)
    return read(config)


def _chosen(
    config: DataConfig,
    images: Images,
    labels: Tensor | None,
    label_names: tuple[str, ...] | None,
    split: str,
) -> tuple[Images, Tensor | None]:
    """The images that data.classes and data.per_class leave."""
    if labels is None or label_names is None:
        for field in ("classes", "per_class"):
            if getattr(config, field):
                raise ValueError(
                    f"{setting(f'data.{field}')} needs labels, and {config.name} has none"
                )
    else:
        kept = torch.ones(len(labels), dtype=torch.bool)
        if config.classes:
            kept = _with_label(labels, config, len(label_names))
        if config.per_class is not None and split == "train":
            kept &= _first_of_each_label(labels, config)
        if not kept.all():  # all without a copy
            rows = kept.nonzero()[:, 0]
            images, labels = take(images, rows), labels[rows]
    if len(images) == 0:
        classes = setting("data.classes", config.classes)
        left = f" with a label in {classes}" if config.classes else ""
        raise ValueError(f"{config.name} has no {split} image{left}")
    return images, labels


def _with_label(labels: Tensor, config: DataConfig, count: int) -> Tensor:
    if max(config.classes) >= count:
        raise ValueError(
            f"{setting('data.classes')} must be labels from 0 to {count - 1}, those of "
            f"{config.name}; got {config.classes}"
        )
    wanted = torch.tensor(config.classes)
    return torch.isin(labels, wanted) if labels.ndim == 1 else labels[:, wanted].any(1)


def _first_of_each_label(labels: Tensor, config: DataConfig) -> Tensor:
    if labels.ndim != 1:
        raise ValueError(
            f"{setting('data.per_class')} needs one class for each image; {config.name} has "
            "attributes"
        )
    kept = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        kept[(labels == label).nonzero()[: config.per_class, 0]] = True
    return kept


def _resident(images: Tensor | FileImages) -> Tensor:
    return images.read_all() if isinstance(images, FileImages) else images


def _streams(config: DataConfig, *splits: Tensor | FileImages) -> bool:
    if config.resident != "auto":
        return config.resident == "stream"
    sizes = (math.prod((len(images), *tuple(images.shape)[-3:])) for images in splits)
    files = sum(len(images) for images in splits if isinstance(images, FileImages))
    return sum(sizes) > _RESIDENT_BYTES or files > _RESIDENT_FILES


def _download(config: DataConfig) -> None:
    from torchvision import datasets

    root = published.data_root(config)
    fetch: dict[str, Callable[[], object]] = {
        "mnist": lambda: datasets.MNIST(root, download=True),
        "fashion": lambda: datasets.FashionMNIST(root, download=True),
        "kmnist": lambda: datasets.KMNIST(root, download=True),
        "emnist": lambda: datasets.EMNIST(root, config.detail or "balanced", download=True),
        "svhn": lambda: [datasets.SVHN(root, split, download=True) for split in ("train", "test")],
        "cifar10": lambda: datasets.CIFAR10(root, download=True),
        "celeba": lambda: datasets.CelebA(root, download=True),
    }
    try:
        fetch[config.kind]()
    except (OSError, RuntimeError, ValueError, ImportError) as error:
        reason = sentence_of(error)
        raise OSError(f"{config.name} could not be downloaded into {root}: {reason}") from error


_READERS: dict[str, Callable[[DataConfig], Source]] = {
    "digits": published.digits,
    "mnist": published.idx_set,
    "fashion": published.idx_set,
    "kmnist": published.idx_set,
    "emnist": published.idx_set,
    "static-mnist": published.static_mnist,
    "svhn": published.svhn,
    "cifar10": published.cifar10,
    "celeba": published.celeba,
    "multi-dsprites": published.multi_objects,
    "multi-mnist": published.multi_objects,
    "folder": own.folder,
    "npz": own.npz,
    "h5": own.h5,
}
