"""Which network turns images into the features that sets are compared by."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fastlatent.data import Batch, DataConfig, Dataset, epoch_order
from fastlatent.files.cache import cache_folder
from fastlatent.files.image_files import BACKGROUND
from fastlatent.jobs.naming import setting
from fastlatent.jobs.progress import say
from fastlatent.jobs.ranks import main_first
from fastlatent.metrics.features import (
    dinov2,
    inception,
    jpeg_round_trip,
    stored_classifier,
    to_uint8,
)

Kind = Literal["classifier", "inception", "dinov2"]
TRAINING_BATCH = 128
CLASSIFIER_SEED = 0  # one for all runs on a data set, whose features could not be compared else


class Extractor(NamedTuple):
    """A network, in one word and in a sentence."""

    features: Callable[[Tensor], Tensor]  # images (n, c, h, w) in [0, 1] or uint8 -> (n, d)
    short: str
    about: str


@dataclass(frozen=True)
class Chosen:
    """How sets of images are to be compared: by whose features, and with which settings."""

    kind: Kind | Literal["auto", "none"] = "auto"
    weights: Path | None = None
    name: str | None = None  # of a network in a repository
    trust_code: bool = False  # let the file of the weights run code
    jpeg: bool = False  # images are stored as JPEG before, not in 8 bits
    closed_balls: bool = False  # of precision to coverage

    @property
    def transform(self) -> Callable[[Tensor], Tensor]:
        """What images (n, c, h, w) in [0, 1] pass through before their features are taken."""
        return partial(jpeg_round_trip, rgb=self.kind == "inception") if self.jpeg else to_uint8

    def open(
        self,
        kind: Kind,  # what "auto" comes to
        data: tuple[DataConfig, Dataset] | None,  # what a classifier learns
        device: torch.device,
    ) -> Extractor:
        """The network of that kind, ready on the device.

        Raises ValueError or OSError where it cannot be had, in one sentence.
        """
        if kind == "inception":
            try:
                network = inception(self.weights)
            except ModuleNotFoundError as error:
                raise ValueError(str(error)) from None
            return Extractor(network.to(device), kind, "Inception network of the FID")
        if kind == "dinov2":
            weights, name = self.weights, self.name
            if weights is None:
                raise ValueError(
                    f"{setting('features', 'dinov2')} needs {setting('feature_weights')}, the "
                    "network's file"
                )
            folder = weights.expanduser().parent if name is not None else weights
            of_folder = weights if name is not None else None
            transformer = dinov2(folder, name, of_folder, trust_code=self.trust_code)
            return Extractor(transformer.to(device), kind, f"DINOv2 network of {weights.name}")
        if data is None:
            raise ValueError(
                f"{setting('features', 'classifier')} needs {setting('data')}, the data set whose "
                "training images it learns"
            )
        return classifier_of(*data, device)


def classifier_of(config: DataConfig, data: Dataset, device: torch.device) -> Extractor:
    """A small classifier of the data set's training images: stored, or trained now and stored."""
    names, attributes = learnable(data)
    kept = ["name", "size", "classes", "per_class", "crop"]
    kept += ["background"] * (config.background != BACKGROUND)
    described = {name: value for name, value in asdict(config).items() if name in kept}
    train, test = data.train.to(device), data.test.to(device)

    def batches(epoch: int) -> Iterable[Batch]:
        order = epoch_order(len(train), CLASSIFIER_SEED, epoch)
        return train.batches(TRAINING_BATCH, device, order=order)

    def heard(epoch: int, epochs: int, loss: float) -> None:
        say(f"classifier of {data.name} for its features: epoch {epoch} of {epochs}")

    with main_first():
        classifier = stored_classifier(
            cache_folder(),
            batches,
            lambda _: test.batches(TRAINING_BATCH, device),
            len(names),
            train.shape,
            dataset=repr(described),
            labels="attributes" if attributes else "class",
            seed=CLASSIFIER_SEED,
            device=device,
            progress=heard,
        )
    about = f"classifier of {config.short}, right on {classifier.accuracy:.1%} of its test images"
    return Extractor(classifier, "classifier", about)


def learnable(data: Dataset) -> tuple[Sequence[str], bool]:
    """Names of what a classifier could learn, and whether they are attributes, not classes.

    Raises ValueError where there are no labels.
    """
    names, labels = data.label_names, data.train.labels
    if names is None or labels is None:
        classifier = setting("features", "classifier")
        raise ValueError(f"{classifier} needs labels, and {data.name} has none")
    return names, labels.dim() == 2
