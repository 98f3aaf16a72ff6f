"""Sets that programs of any kind have made: images in folders, features or moments in files."""

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fastlatent.data import DataConfig, Dataset, load
from fastlatent.estimate import Estimate
from fastlatent.files.image_files import BACKGROUND
from fastlatent.files.reading import read_json
from fastlatent.jobs.errors import UsageError
from fastlatent.jobs.naming import setting
from fastlatent.jobs.progress import say, track
from fastlatent.metrics import FeatureStatistics, Scores, frechet_distance, score
from fastlatent.metrics.features import extract
from fastlatent.metrics.features.sources import Source, array_source, open_source, read_stored
from fastlatent.metrics.statistics import Given, moments_of
from fastlatent.runs.evaluation.extractors import Extractor, learnable

FOLDER_BATCH = 64  # images at a time
MOMENTS_ONLY = "from moments alone, which tell neither an error nor other metrics"


@dataclass(frozen=True)
class Reading:
    """How images of folders and .npz files are read."""

    size: tuple[int, int] | None = None  # height and width that all are brought to
    channels: int | None = None
    key: str | None = None  # name of the array of an .npz file
    recursive: bool = True
    background: str = BACKGROUND
    limit: int | None = None


class Opened(NamedTuple):
    """A set before its features are taken, which is known to be fit for them."""

    path: Path
    moments: FeatureStatistics | None
    source: Source | None  # of images or features; None: moments

    @property
    def shape(self) -> tuple[int, ...] | None:
        """(c, h, w) of its images; None where it holds features or moments."""
        return None if self.source is None else self.source.shape


def open_set(path: Path, reading: Reading, network: bool) -> Opened:
    """The images in a folder or .npz file, or the features or moments that it holds.

    Says what is left out and how the rest is read. Raises UsageError, with the path, for features
    where a `network` is named, for images where none is, for what is neither folder nor .npz file,
    and for fewer than 2 rows; what `extract` raises for images that do not go together.
    """
    if path.is_dir() and not network:
        raise _no_network(path)
    if path.is_file() and path.suffix != ".npz":
        raise UsageError(f"{path} is neither a folder of images nor an .npz file")
    size, channels, limit = reading.size, reading.channels, reading.limit
    if path.is_dir():
        source = open_source(
            path,
            recursive=reading.recursive,
            background=reading.background,
            size=size,
            channels=channels,
            limit=limit,
        )
    else:
        stored = read_stored(path, reading.key, images=network)
        if isinstance(stored.values, FeatureStatistics):
            return Opened(path, stored.values, None)
        source = array_source(path, stored, size=size, channels=channels, limit=limit)
        if source.shape is not None and not network:
            raise _no_network(path)
        if source.shape is None and network:
            features = setting("features")
            raise UsageError(f"{path} holds features already; {features} goes with images")
    for note in source.notes:
        say(note)
    if source.count is not None and source.count < 2:
        raise UsageError(f"{path} must give at least 2 images or features; got {source.count}")
    return Opened(path, None, source)


def _no_network(path: Path) -> UsageError:
    return UsageError(
        f"{path} holds images: name the network whose features are compared, by "
        f"{setting('features')}, or by {setting('data')} the data set whose classes a small one "
        "learns"
    )


def take_features(
    opened: Opened,
    extractor: Extractor | None,
    transform: Callable[[Tensor], Tensor],  # of images (n, c, h, w) in [0, 1]
    device: torch.device,
    batch: int | None,
    size: tuple[int, int] | None,
) -> Given:
    """Features of the images of a set, or the features or moments that it holds."""
    if opened.moments is not None:
        return opened.moments
    read = partial(extract, opened.source, batch=batch or FOLDER_BATCH, device=device)
    if opened.shape is None or extractor is None:
        features = read(None)
    else:
        features = read(extractor.features, transform=transform, size=size)
    return torch.cat(list(track(features, f"features of {opened.path}", features.batches or 0)))


def what_is_learnt(
    name: str, root: Path | None, size: tuple[int, int] | None, channels: int | None
) -> tuple[DataConfig, Dataset]:
    """The data set of that name, of whose classes a classifier can learn; images go to `size`.

    Raises UsageError for `channels` that its images do not have.
    """
    config = DataConfig(name, None if root is None else root.expanduser())
    if config.kind == "folder" and size is not None and size[0] == size[1]:
        config = replace(config, size=size[0])  # whose images may have several
    data = load(config)
    for note in data.notes:
        say(note)
    learnable(data)
    own = data.train.shape[0]
    if channels not in (None, own):
        raise UsageError(
            f"{setting('channels')} must be {own}, as images of {data.name} have; got {channels}"
        )
    return config, data


def at_size_of(
    sets: Sequence[Opened], config: DataConfig, data: Dataset
) -> tuple[DataConfig, Dataset]:
    """The data set with images as large as those of the sets, which its classifier is to see.

    Raises UsageError where these have several sizes, or one that the data set cannot have.
    """
    sizes = {opened.shape[1:]: opened for opened in sets if opened.shape is not None}
    if len(sizes) > 1:
        found = " and ".join(f"{x.path} of {h}x{w}" for (h, w), x in sizes.items())
        raise UsageError(f"there are images in {found}; give a {setting('size')} to bring all to")
    for height, width in sizes.keys() - {data.train.shape[1:]}:
        if height != width:
            raise UsageError(
                f"the classifier of {data.name} takes square images, or such of "
                f"{'x'.join(map(str, data.train.shape[1:]))}; those of {sets[0].path} are "
                f"{height}x{width}; give a {setting('size')} to bring all to"
            )
        config = replace(config, size=height)
        data = load(config)
        say(f"the classifier learns {data.name} at {height}x{width}, the size of the images")
    return config, data


def own_folder(real: Path, fake: Path) -> Path:
    """Where the numbers of two sets go: evaluation-FAKE, or beside it where others have theirs."""
    sets = [path.expanduser().resolve() for path in (real, fake)]
    for number in count(1):
        folder = Path(f"evaluation-{sets[1].stem}" + f"-{number}" * (number > 1))
        stored = folder / "evaluation.json"
        if not stored.exists():
            return folder
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            earlier = read_json(stored)
            if [Path(earlier[name]).expanduser().resolve() for name in ("real", "fake")] == sets:
                return folder
    raise AssertionError


def compare(
    real: Given, fake: Given, seed: int, *, paired: bool = False, closed_balls: bool = False
) -> Scores:
    """All metrics of two sets of features, or the Frechet distance where one is moments."""
    if isinstance(real, Tensor) and isinstance(fake, Tensor):
        return score(real, fake, seed, paired=paired, closed_balls=closed_balls)
    distance = float(frechet_distance(*moments_of(real), *moments_of(fake)))
    return Scores({"frechet_distance": Estimate(distance, math.nan)}, None, [MOMENTS_ONLY])
