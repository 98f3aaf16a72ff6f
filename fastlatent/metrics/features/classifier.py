"""Features without a published network: a small classifier of the data set's own training images.

A Frechet distance between them is written FD(classifier), never FID.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from safetensors.torch import save as serialize
from torch import Tensor, nn

from fastlatent.files.reading import load_weights, parse_tensors, reading
from fastlatent.files.writing import written_whole
from fastlatent.metrics.features.images import check_images, to_unit
from fastlatent.nn import seeded
from fastlatent.noise import generator

VERSION = 1  # rises with every change of the network or of its training
FEATURES = 128
Labels = Literal["class", "attributes"]
Batches = Callable[[int], Iterable[Any]]  # epoch -> batches (images, labels), in that epoch's order

_COARSEST = 4  # side of the last maps, at most
_NARROWEST = 16  # channels of the first maps
_SEEN = 120_000  # images of training in all, within the bounds below
_EPOCHS = (3, 20)
_PEAK = 3e-3  # learning rate of Adam
_WARM_UP = 100  # steps


@dataclass(frozen=True)
class Description:
    """All that a classifier depends on but its training images."""

    dataset: str  # the caller's word for the images and their labels, with all that changes them
    image_shape: tuple[int, int, int]  # (c, h, w)
    classes: int  # or attributes
    labels: Labels
    seed: int
    version: int = VERSION

    def path(self, folder: Path | str) -> Path:
        """Where a classifier of this description is stored in `folder`."""
        values = json.dumps(asdict(self), sort_keys=True)
        digest = hashlib.blake2b(values.encode(), digest_size=8).hexdigest()
        return Path(folder).expanduser() / f"classifier-{digest}.safetensors"


class Classifier(nn.Module):
    """Convolutions with batch norm; its features (n, 128) are the means of the last maps.

    `forward` gives features, so that it is an extractor; `logits` the classes or attributes.
    """

    distance_name = "FD(classifier)"

    def __init__(self, description: Description):
        super().__init__()
        self.description = description
        self.accuracy = math.nan  # of held-out images, or of their attributes: in [0, 1]
        channels, height, width = description.image_shape
        if channels not in (1, 3) or min(height, width) < 8:
            raise ValueError(
                "Classifier: image_shape must be 1 or 3 channels and sides of at least 8; got "
                f"{tuple(description.image_shape)}"
            )
        if description.classes < (2 if description.labels == "class" else 1):
            raise ValueError(
                f"Classifier: {description.classes} classes or attributes are too few to tell apart"
            )
        halvings = max(1, math.ceil(math.log2(max(height, width) / _COARSEST)))
        widths = [max(_NARROWEST, FEATURES >> k) for k in reversed(range(halvings))]
        layers: list[nn.Module] = []
        for k, wide in enumerate(widths):
            narrow, kernel = (widths[k - 1], 3) if k else (channels, 5)
            layers += [
                nn.Conv2d(narrow, wide, kernel, 2, kernel // 2, bias=False),
                nn.BatchNorm2d(wide),
                nn.ReLU(),
            ]
        # A third faster on CPUs, where this is trained as often as not.
        self.maps = nn.Sequential(*layers).to(memory_format=torch.channels_last)
        self.head = nn.Linear(FEATURES, description.classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.features(images)

    def features(self, images: Tensor) -> Tensor:
        """(n, c, h, w) in [0, 1] or uint8 -> (n, 128)."""
        check_images("Classifier", images)
        if tuple(images.shape[1:]) != tuple(self.description.image_shape):
            raise ValueError(
                f"Classifier: images must be {tuple(self.description.image_shape)}, as those of "
                f"its training; got {tuple(images.shape[1:])}"
            )
        centred = 2 * to_unit(images).to(self.head.weight.dtype) - 1
        return self.maps(centred.contiguous(memory_format=torch.channels_last)).mean((2, 3))

    def logits(self, images: Tensor) -> Tensor:
        """(n, c, h, w) in [0, 1] or uint8 -> (n, K): of classes, or of each attribute."""
        return self.head(self.features(images))

    def save(self, path: Path | str) -> None:
        """Write weights, description and accuracy as one safetensors file, whole or not at all."""
        path = Path(path).expanduser()
        tensors = {name: value.cpu().contiguous() for name, value in self.state_dict().items()}
        about = {"description": asdict(self.description), "accuracy": self.accuracy}
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as temporary:
            temporary.write_bytes(serialize(tensors, {"classifier": json.dumps(about)}))

    @classmethod
    def load(cls, path: Path | str) -> "Classifier":
        """Read what `save` wrote: in evaluation mode, frozen.

        Raises FileNotFoundError, and ValueError when the file is damaged, no classifier, or of
        another version.
        """
        path = Path(path).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"Classifier: there is no file {path}")
        complaint = (
            "is damaged or not a classifier that this version stored; delete it to train anew"
        )
        with reading(path, complaint):
            tensors, metadata = parse_tensors(path)
            about = json.loads(metadata["classifier"])
            values = about["description"]
            if values["version"] != VERSION:
                raise ValueError(f"it is of version {values['version']}, not {VERSION}")
            shape = tuple(values["image_shape"])
            model = cls(Description(**(values | {"image_shape": shape})))
            load_weights(model, tensors, path, "the classifier; delete it to train anew")
            model.accuracy = float(about["accuracy"])
        return model.eval().requires_grad_(False)


def train_classifier(
    train: Batches | tuple[Tensor, Tensor],
    test: Batches | tuple[Tensor, Tensor],
    classes: int,
    image_shape: tuple[int, int, int],
    *,
    dataset: str = "",
    seed: int = 0,
    device: torch.device | str = "cpu",
    batch: int = 128,
    epochs: int | None = None,
    progress: Callable[[int, int, float], None] | None = None,
) -> Classifier:
    """A small convolutional classifier, its accuracy taken on held-out images; frozen.

    `train` and `test` are images (n, c, h, w), in [0, 1] or uint8, with labels, (n,) classes or
    (n, A) attributes of 0 and 1; or functions from an epoch's number to its batches, pairs of the
    two or objects with `images` and `labels`, shuffled by whoever makes them. Trained by Adam for
    as many epochs as show 120,000 images, but 3 at least and 20 at most. `progress` hears after
    each epoch: its number, how many there will be, and the mean loss.

    The same arguments give the same weights, on one CPU with one number of threads; global random
    state is left alone. Raises ValueError where images have no labels, or labels do not fit.
    """
    for name, value in (("batch", batch), ("epochs", epochs)):
        if value is not None and value < 1:
            raise ValueError(f"train_classifier: {name} must be at least 1; got {value}")
    sources = {"train": train, "test": test}
    shown = {name: _batches(data, batch, seed) for name, data in sources.items()}
    first = next(_pairs("train", shown["train"](0), classes), None)
    if first is None:
        raise ValueError("train_classifier: train holds no images")
    kind: Labels = "class" if first[1].dim() == 1 else "attributes"
    with seeded(seed):
        model = Classifier(Description(dataset, (*image_shape,), classes, kind, seed))
    model = model.to(device).train()
    adam = torch.optim.Adam(model.parameters(), lr=_PEAK)
    # Epochs and their length are known once the first is over.
    total, steps, step = epochs or 0, 0, 0
    epoch = 0
    with torch.enable_grad():
        while epoch == 0 or epoch < total:
            losses, seen = [], 0
            for number, (images, labels) in enumerate(
                _pairs("train", shown["train"](epoch), classes)
            ):
                done = (epoch + number / steps) / total if epoch else 0
                rate = 0.5 * (1 + math.cos(math.pi * min(1, done)))
                adam.param_groups[0]["lr"] = _PEAK * rate * min(1, (step + 1) / _WARM_UP)
                loss = _loss(model.logits(images.to(device)), labels.to(device))
                adam.zero_grad()
                loss.backward()
                adam.step()
                losses.append(loss.detach())
                seen, step = seen + len(images), step + 1
            if epoch == 0:
                total = epochs or min(max(math.ceil(_SEEN / seen), _EPOCHS[0]), _EPOCHS[1])
                steps = len(losses)
            epoch += 1
            if progress is not None:
                progress(epoch, total, float(torch.stack(losses).mean()))
    model.eval().requires_grad_(False)
    model.accuracy = _accuracy(model, _pairs("test", shown["test"](0), classes), device)
    return model


def stored_classifier(
    folder: Path | str,
    train: Batches | tuple[Tensor, Tensor],
    test: Batches | tuple[Tensor, Tensor],
    classes: int,
    image_shape: tuple[int, int, int],
    *,
    dataset: str,
    labels: Labels = "class",
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int, float], None] | None = None,
) -> Classifier:
    """The classifier that `folder` holds for this data set, seed and shape, else a new one.

    `dataset` names the images and labels, with all that changes them (size, chosen classes). A new
    classifier is trained by `train_classifier`, with its defaults, and stored. Raises ValueError
    where the labels are of another kind than `labels`.
    """
    path = Description(dataset, (*image_shape,), classes, labels, seed).path(folder)
    if path.is_file():
        return Classifier.load(path).to(device)
    model = train_classifier(
        train,
        test,
        classes,
        image_shape,
        dataset=dataset,
        seed=seed,
        device=device,
        progress=progress,
    )
    if model.description.labels != labels:
        raise ValueError(
            f"stored_classifier: labels are said to be {labels}; got {model.description.labels}"
        )
    model.save(path)
    return model


def _batches(data: Batches | tuple[Tensor, Tensor], batch: int, seed: int) -> Batches:
    if callable(data):
        return data
    images, labels = data
    if labels is None:
        raise ValueError("train_classifier: images must have labels; got none")
    if len(images) != len(labels):
        raise ValueError(
            f"train_classifier: each image must have a label; got {len(images)} and {len(labels)}"
        )

    def shuffled(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        make = generator(seed, epoch, "classifier")
        for rows in torch.randperm(len(images), generator=make).split(batch):
            yield images[rows.to(images.device)], labels[rows.to(labels.device)]

    return shuffled


def _pairs(name: str, batches: Iterable[Any], classes: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Images and checked labels of each batch."""
    for given in batches:
        if isinstance(given, (tuple, list)) and len(given) == 2:
            images, labels = given
        else:
            images, labels = getattr(given, "images", None), getattr(given, "labels", None)
        if images is None:
            raise TypeError(
                f"train_classifier: a batch of {name} must be (images, labels) or have both; got "
                f"{type(given).__name__}"
            )
        if labels is None:
            raise ValueError(
                f"train_classifier: images of {name} have no labels; a classifier needs them"
            )
        whole = not labels.is_floating_point()
        right = labels.shape == (len(images),) or labels.shape == (len(images), classes)
        most = classes - 1 if labels.dim() == 1 else 1
        if not (whole and right) or (len(labels) and not 0 <= labels.min() <= labels.max() <= most):
            raise ValueError(
                f"train_classifier: labels of {name} must be whole numbers, classes from 0 to "
                f"{classes - 1} (n,) or {classes} attributes of 0 and 1; got {labels.dtype} of "
                f"shape {tuple(labels.shape)}"
                + (f" from {labels.min()} to {labels.max()}" if labels.numel() else "")
            )
        yield images, labels


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    if labels.dim() == 1:
        return F.cross_entropy(logits, labels.long())
    return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))


@torch.no_grad()
def _accuracy(
    model: Classifier, pairs: Iterator[tuple[Tensor, Tensor]], device: torch.device | str
) -> float:
    right, count = 0, 0
    for images, labels in pairs:
        logits, labels = model.logits(images.to(device)), labels.to(device)
        found = logits.argmax(1) if labels.dim() == 1 else (logits > 0).to(labels.dtype)
        right, count = right + int((found == labels).sum()), count + labels.numel()
    if not count:
        raise ValueError("train_classifier: test holds no images")
    return right / count
