"""A data set as it was published or given, before any choice of size or classes."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from fastlatent.noise import generator

Images = Tensor | list[Path]  # uint8 (n, c, h, w) as stored, or one file for each image


@dataclass
class Source:
    """Train and test images with their labels, if there are any."""

    train: Images
    test: Images
    train_labels: Tensor | None = None  # (n,) int64 class ids or (n, A) uint8 attributes
    test_labels: Tensor | None = None
    label_names: tuple[str, ...] | None = None
    train_ids: tuple[str, ...] | None = None  # names of images; only of sets without labels
    test_ids: tuple[str, ...] | None = None
    published: bool = False  # image files in colour that are known to agree in size
    notes: list[str] = field(default_factory=list)  # how it was read, in sentences


def take(images: Images, rows: Tensor) -> Images:
    """The images at `rows` (k,)."""
    if isinstance(images, Tensor):
        return images[rows]
    return [images[row] for row in rows.tolist()]


def set_apart(n: int, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Leave out `count` of n images at random: those kept and those left out, in file order."""
    order = torch.randperm(n, generator=generator(seed, 0, "images set apart"))
    return order[count:].sort().values, order[:count].sort().values


def hold_out(
    images: Images, labels: Tensor | None, label_names: tuple[str, ...] | None, every: int = 10
) -> Source:
    """Every `every`-th image, from the first on, is test; the others are train."""
    index = torch.arange(len(images))
    train, test = index[index % every != 0], index[index % every == 0]
    return Source(
        take(images, train),
        take(images, test),
        None if labels is None else labels[train],
        None if labels is None else labels[test],
        label_names,
    )
