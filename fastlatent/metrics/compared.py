"""Two sets next to each other in one call, wherever they lie: folders, files, tensors, Datasets."""

from collections.abc import Callable, Iterator, Sized
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from fastlatent.estimate import Estimate
from fastlatent.metrics import precision_recall as balls
from fastlatent.metrics.features.extraction import distance_name, extract
from fastlatent.metrics.features.images import to_uint8
from fastlatent.metrics.features.inception_v3 import inception, stored_weights
from fastlatent.metrics.features.sources import read_stored
from fastlatent.metrics.features.vision_transformer import dinov2
from fastlatent.metrics.frechet import (
    frechet_distance,
    frechet_from_features,
    frechet_standard_error,
)
from fastlatent.metrics.kernel import kernel_distance
from fastlatent.metrics.precision_recall import PrecisionRecall
from fastlatent.metrics.sets import SEED
from fastlatent.metrics.statistics import FeatureStatistics, Given, count_of, moments_of

AS_GIVEN = "features as given"
Network = Callable[[Tensor], Tensor]
Features = Network | Literal["inception", "dinov2"] | None


class Distance(NamedTuple):
    """A distance of two sets by the features of a network."""

    value: float
    error: float  # standard error; NaN where moments alone are known
    name: str  # "FID" or "KID" by the network of FID, else "FD(...)" or "KD(...)"
    features: str  # whose they are
    counts: tuple[int | None, int | None]  # of the sets; None of moments that do not say

    def __str__(self) -> str:
        return f"{self.name} {Estimate(self.value, self.error)} ({self.features})"


class NamedPrecisionRecall(PrecisionRecall):
    """Precision and recall, and whose features they go by."""

    features: str


class _Sets(NamedTuple):
    """Two sets by features, or by the moments of such."""

    real: Given
    fake: Given
    name: str  # of a Frechet distance
    features: str

    def rows(self, function: str) -> tuple[Tensor, Tensor]:
        """The features of both; ValueError where there are but moments."""
        for name, found in (("a", self.real), ("b", self.fake)):
            if isinstance(found, FeatureStatistics):
                raise ValueError(
                    f"{function}: {name} holds moments alone, mu and sigma; features or images are "
                    "needed"
                )
        assert isinstance(self.real, Tensor) and isinstance(self.fake, Tensor)
        return self.real, self.fake


@torch.no_grad()
def fid(
    a: Any,
    b: Any,
    features: Features = None,
    *,
    weights: Path | str | None = None,
    size: int | tuple[int, int] | None = None,
    batch: int = 64,
    device: torch.device | str | None = None,
) -> Distance:
    """The squared Frechet distance of two sets, with its standard error: FID by FID's network.

    A set is a folder of image files; an .npz file of images, features or moments (mu, sigma); a
    tensor or array of images (n, c, h, w), uint8 or floats in [0, 1], or of features (n, d); a
    torch Dataset of images, or of tuples that begin with one; or an iterable of batches. A set of
    `fastlatent.data`, such as run.data.test, is one too.

    `features` names the network whose features images are compared by: "inception", that of FID,
    whose file is `weights`, or one that PyTorch's cache already holds, as nothing is downloaded
    here; "dinov2" with the file of its weights; or any function from images (n, c, h, w) in [0, 1]
    to features (n, d). Images are seen in 8 bits. Sets of features need none. `size` is the side,
    or height and width, that images are brought to, `batch` how many are taken at a time, on the
    `device`.

    Raises ValueError, TypeError or FileNotFoundError for sets that cannot be compared, naming them.
    """
    sets = _compared("fid", a, b, features, weights, size, batch, device)
    if isinstance(sets.real, Tensor) and isinstance(sets.fake, Tensor):
        value = float(frechet_from_features(sets.real, sets.fake))
        error = float(frechet_standard_error(sets.real, sets.fake))
    else:
        distance = frechet_distance(*moments_of(sets.real), *moments_of(sets.fake))
        value, error = float(distance), float("nan")
    counts = count_of(sets.real), count_of(sets.fake)
    return Distance(value, error, sets.name, sets.features, counts)


@torch.no_grad()
def kid(
    a: Any,
    b: Any,
    features: Features = None,
    *,
    weights: Path | str | None = None,
    size: int | tuple[int, int] | None = None,
    batch: int = 64,
    device: torch.device | str | None = None,
    subsets: int | None = 100,
    subset_size: int = 1000,
    seed: int = SEED,
) -> Distance:
    """The kernel distance of two sets, with its standard error: KID by FID's network.

    Sets and features are those of `fid`, subsets those of `kernel_distance`. Raises what `fid`
    raises, and ValueError for sets of which only moments are known.
    """
    sets = _compared("kid", a, b, features, weights, size, batch, device)
    real, fake = sets.rows("kid")
    found = kernel_distance(real, fake, subsets, subset_size, seed=seed)
    name = "KID" if sets.name == "FID" else sets.name.replace("FD", "KD")
    return Distance(found.value, found.error, name, sets.features, (len(real), len(fake)))


@torch.no_grad()
def precision_recall(
    real: Any,
    fake: Any,
    k: int = 3,
    *,
    paired: bool = False,
    closed: bool = False,
    features: Features = None,
    weights: Path | str | None = None,
    size: int | tuple[int, int] | None = None,
    batch: int = 64,
    device: torch.device | str | None = None,
) -> NamedPrecisionRecall:
    """Improved precision and recall of `fake` against `real`, each with its standard error.

    Sets and features are those of `fid`; two tensors of features (n, d) and (m, d) are taken as
    they are. Balls reach to the k-th neighbour; with `closed` samples on the surface of one lie
    inside. Where sets are `paired` each row of fake is made from the same row of real.

    Raises ValueError for bad sets, and fewer than k + 1 rows.
    """
    name = AS_GIVEN
    if not (isinstance(real, Tensor) and isinstance(fake, Tensor) and features is None) or (
        real.dim() == 4 or fake.dim() == 4
    ):
        sets = _compared("precision_recall", real, fake, features, weights, size, batch, device)
        (real, fake), name = sets.rows("precision_recall"), sets.features
    found = NamedPrecisionRecall(
        *balls.precision_recall(real, fake, k, paired=paired, closed=closed)
    )
    found.features = name
    return found


def _compared(
    function: str,
    a: Any,
    b: Any,
    features: Features,
    weights: Path | str | None,
    size: int | tuple[int, int] | None,
    batch: int,
    device: torch.device | str | None,
) -> _Sets:
    network, about = _network(function, features, weights, device)
    used = False
    found: list[Given] = []
    for name, given in (("a", a), ("b", b)):
        source = _source(given, batch)
        if isinstance(source, FeatureStatistics):
            found.append(source)
            continue
        first = isinstance(source, Tensor) and source.dim() == 2
        if network is None and not first and _holds_images(source):
            raise ValueError(
                f"{function}: features must name a network for images, as {name} holds: "
                "'inception' or 'dinov2' with weights=FILE, or a function from images to features"
            )
        rows = extract(
            source,
            None if first else network,
            batch=batch,
            device=device,
            transform=None if first else to_uint8,
            size=size,
        ).all()
        used = used or (network is not None and not first)
        found.append(rows)
    real, fake = found
    if isinstance(real, Tensor) and isinstance(fake, Tensor):
        fake = fake.to(real.device)
    seen = network if used else None
    return _Sets(real, fake, distance_name(seen), about if used else AS_GIVEN)


def _network(
    function: str, features: Features, weights: Path | str | None, device: Any
) -> tuple[Network | None, str]:
    """The network that turns images into features, and what it is called."""
    if features not in ("inception", "dinov2"):
        if weights is not None:
            raise ValueError(
                f"{function}: weights go with features 'inception' or 'dinov2'; got {features!r}"
            )
        if features is None:
            return None, AS_GIVEN
        if not callable(features):
            raise TypeError(
                f"{function}: features must be 'inception', 'dinov2' or a function from images "
                f"(n, c, h, w) to features (n, d); got {features!r}"
            )
        return features, getattr(features, "__name__", type(features).__name__)
    if features == "inception":
        weights = stored_weights() if weights is None else weights
        if weights is None:
            raise ValueError(
                f"{function}: weights must be the file of the Inception network, as nothing is "
                "downloaded here; fastlatent.metrics.inception() fetches it once"
            )
        network: nn.Module = inception(weights)
        about = "Inception network of the FID"
    else:
        if weights is None:
            raise ValueError(f"{function}: weights must be the file of the DINOv2 network")
        network, about = dinov2(weights), f"DINOv2 network of {Path(weights).name}"
    return network if device is None else network.to(device), about


def _source(given: Any, batch: int) -> Any:
    """What `extract` takes, or moments; a file is read."""
    if isinstance(given, (str, Path)):
        path = Path(given).expanduser()
        return read_stored(path).values if path.suffix == ".npz" and not path.is_dir() else path
    if isinstance(given, np.ndarray):
        return torch.from_numpy(given)
    if isinstance(given, Dataset) and isinstance(given, Sized):
        return _items(given, batch)
    if hasattr(given, "batches"):  # a split of fastlatent.data
        return given.batches(batch, "cpu")
    return given


def _items(data: Any, batch: int) -> Iterator[Tensor]:
    """Batches of a Dataset's images, which are tensors, arrays or pictures of PIL."""
    for first in range(0, len(data), batch):
        images = []
        for number in range(first, min(first + batch, len(data))):
            item = data[number]
            image = item[0] if isinstance(item, (tuple, list)) else item
            if not isinstance(image, Tensor):
                pixels = torch.from_numpy(np.array(image))
                image = pixels[None] if pixels.dim() == 2 else pixels
                if image.shape[0] not in (1, 3):
                    image = image.permute(2, 0, 1)
            images.append(image)
        yield torch.stack(images)


def _holds_images(source: Any) -> bool:
    """Whether a network is needed, as far as that is known before batches are read."""
    return isinstance(source, Path) or (isinstance(source, Tensor) and source.dim() == 4)
