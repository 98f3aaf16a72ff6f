"""Images of a data set as files, for programs that compare folders of images."""

from pathlib import Path

import torch
from torch import Tensor

from fastlatent.commands.single_images import SingleImages
from fastlatent.data import DataConfig, Split, load
from fastlatent.inference.latents import unit_images
from fastlatent.jobs.errors import UsageError
from fastlatent.jobs.progress import say, track


def write_images(
    config: DataConfig, split: str, n: int, folder: Path, batch: int | None = None
) -> None:
    """The first n images of the split as PNGs, as many of each class where there are classes.

    Raises UsageError for too few images, ValueError for a folder with images of another origin.
    """
    singles = SingleImages(folder, "sample")
    data = load(config)
    for note in data.notes:
        say(note)
    images = data.test if split == "test" else data.train
    batch = batch or 256
    for part in track(_first_of_each_class(images, n).split(batch), "writing", -(-n // batch)):
        singles.add(unit_images(images, part, "cpu"))
    singles.say(f"{n:,} {split} images of {data.name}")


def _first_of_each_class(split: Split, n: int) -> Tensor:  # (n,) int64
    """Indices of the first n / classes images of each class, or of the first n without classes.

    Where n is no multiple, the first classes give one more. Raises UsageError for too few images.
    """
    if split.labels is None or split.labels.ndim != 1:
        if n > len(split):
            raise UsageError(
                f"--images must be at most {len(split):,}, all {split.name} images; got {n}"
            )
        return torch.arange(n)
    rows = [(split.labels == label).nonzero()[:, 0] for label in split.labels.unique()]
    wanted = [n // len(rows) + (k < n % len(rows)) for k in range(len(rows))]
    for label, found, count in zip(split.labels.unique().tolist(), rows, wanted, strict=True):
        if count > len(found):
            raise UsageError(
                f"--images {n} asks for {count:,} {split.name} images of each of {len(rows)} "
                f"classes; class {label} has {len(found):,}"
            )
    return torch.cat([found[:count] for found, count in zip(rows, wanted, strict=True)])
