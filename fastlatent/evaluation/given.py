"""Sets that programs of any kind have made: images in folders, features or moments in files."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from fastlatent.console import UsageError
from fastlatent.evaluation.extractors import Extractor
from fastlatent.metrics import Estimate, FeatureStatistics, Scores, frechet_distance, score
from fastlatent.metrics.features import extract, read_npz
from fastlatent.progress import track

Given = Tensor | FeatureStatistics  # features (n, d), or the moments of some
FOLDER_BATCH = 64  # images at a time
MOMENTS_ONLY = "from moments alone, which tell neither an error nor other metrics"


def read_set(
    path: Path,
    extractor: Extractor | None,
    transform: Callable[[Tensor], Tensor],  # of images (n, c, h, w) in [0, 1]
    device: torch.device,
    *,
    batch: int | None = None,
    limit: int | None = None,
    shape: tuple[int, ...] | None = None,  # (c, h, w) that images are brought to
) -> Given:
    """Features of the images in a folder or .npz file, or the features or moments that it holds.

    Raises UsageError, with the path, for features where a network is named, for images where none
    is, for what is neither folder nor .npz file, and for fewer than 2 rows.
    """
    stored = None
    if not path.is_dir():
        if path.is_file() and path.suffix != ".npz":
            raise UsageError(f"{path} is neither a folder of images nor an .npz file")
        stored = read_npz(path)
    holds_images = stored is None or (isinstance(stored, Tensor) and stored.dim() == 4)
    if holds_images and extractor is None:
        raise UsageError(
            f"{path} holds images: name the network whose features are compared, by --features, "
            "or by --data the data set whose classes a small one learns"
        )
    if isinstance(stored, FeatureStatistics):
        return stored
    if not holds_images and extractor is not None:
        raise UsageError(f"{path} holds features already; --features goes with images")
    read = partial(extract, path, batch=batch or FOLDER_BATCH, device=device, limit=limit)
    if not holds_images:
        features = read(None)
    elif shape is None:
        features = read(extractor.features, transform=transform)
    else:
        size, channels = shape[1:], shape[0]
        features = read(extractor.features, transform=transform, size=size, channels=channels)
    found = torch.cat(list(track(features, f"features of {path}", features.batches or 0)))
    if len(found) < 2:
        raise UsageError(f"{path} must give at least 2 images or features; got {len(found)}")
    return found


def compare(real: Given, fake: Given, seed: int, *, paired: bool = False) -> Scores:
    """All metrics of two sets of features, or the Frechet distance where one is moments."""
    if isinstance(real, Tensor) and isinstance(fake, Tensor):
        return score(real, fake, seed, paired=paired)
    distance = float(frechet_distance(*_moments(real), *_moments(fake)))
    return Scores({"frechet_distance": Estimate(distance, math.nan)}, None, [MOMENTS_ONLY])


def count_of(found: Given) -> int | None:
    """Of how many samples; None where a file of moments does not say."""
    return len(found) if isinstance(found, Tensor) else found.known_count


def _moments(found: Given) -> tuple[Tensor, Tensor]:
    """Mean and covariance."""
    if isinstance(found, Tensor):
        statistics = FeatureStatistics(found.shape[1], found.device)
        statistics.update(found)
        found = statistics
    return found.mu, found.sigma
